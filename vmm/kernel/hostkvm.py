"""The real /dev/kvm with the interface of `vmm.kernel.kvm.Vm`: the oracle that the models are held against.

    with HostKvm() as kvm, HostVm(kvm) as vm:
        a, r = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        vm.irqfd(a, gsi=10, flags=KVM_IRQFD_FLAG_RESAMPLE, resamplefd=r)
        os.eventfd_write(a, 1)
        vm.settle()                 # the kernel's inject work has run

Descriptors are the process' own; what the kernel refuses is an OSError with its errno, as in the model. Whether this
machine can do it is `vmm.kernel.hostkvm_probe`'s question. Nothing is opened at import.

Two things make the kernel's work queues deterministic. The thread is `pinned` to one CPU, because an irqfd's injection
is queued on the CPU that wrote the eventfd and that queue is first in, first out. And `settle` sends a *canary*, an
irqfd on a pin of the PIC that nobody uses: once its pulse shows, what was queued before has run.

Ref: Documentation/virt/kvm/api.rst; virt/kvm/eventfd.c for the queues
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import mmap
import os
import struct
import threading
import time
from typing import TYPE_CHECKING, Self

from vmm.errors import EngineError, EngineRefused
from vmm.kernel import hostkvm_abi as abi
from vmm.kernel.gsi import (
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    Route,
    default_routing,
)
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.kernel.kvm import Irqchip

DEFAULT_PATH = "/dev/kvm"
CANARY = Route.irqchip(4093, KVM_IRQCHIP_PIC_MASTER, 7)
"""A GSI below KVM_MAX_IRQ_ROUTES that recordings leave alone."""
SETTLE_SECONDS = 30.0
CHIP_SIZES = {KVM_IRQCHIP_PIC_MASTER: 16, KVM_IRQCHIP_PIC_SLAVE: 16, KVM_IRQCHIP_IOAPIC: 216}
LAPIC_TPR, LAPIC_ISR, LAPIC_TMR, LAPIC_IRR = 0x80, 0x100, 0x180, 0x200

_LIBC = ctypes.CDLL(None, use_errno=True)
_ioctl = _LIBC.ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]

_CHIP = struct.Struct("<I4x512s")
_ROUTE_PIN = struct.Struct("<4I2I24x")
_ROUTE_MSI = struct.Struct("<4I4I16x")
_LAPIC_BITS = struct.Struct("<" + "I12x" * 7 + "I")
_PIC_LAST_IRR, _PIC_IRR = 0, 1


class HostKvm:
    """/dev/kvm, open. EngineRefused says why it cannot be."""

    def __init__(self, path: str = DEFAULT_PATH) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise EngineRefused("kvm", f"{path}: {error.strerror}", _open_remedy(error.errno)) from error
        try:
            version = fcntl.ioctl(self.fd, abi.KVM_GET_API_VERSION)
        except OSError as error:
            os.close(self.fd)
            raise EngineRefused("kvm", f"{path} is not KVM: KVM_GET_API_VERSION: {error.strerror}") from error
        if version != abi.KVM_API_VERSION:
            os.close(self.fd)
            raise EngineRefused("kvm", f"{path} has API version {version}, known is {abi.KVM_API_VERSION}")
        self.run_size = fcntl.ioctl(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if it is not there."""
        return fcntl.ioctl(self.fd, abi.KVM_CHECK_EXTENSION, capability)

    def close(self) -> None:
        """Close the descriptor; VMs made from it live on. Closing twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HostVm:
    """One VM of the real KVM. `fd` is its descriptor; its ioctls are those of `vmm.kernel.kvm.Vm`.

    `memory` is guest RAM from address 0, `memory_size` bytes. `irqchip` as in the model, where `split` has 24 routes.
    """

    def __init__(self, kvm: HostKvm, irqchip: Irqchip = "full", memory_size: int = 1 << 20) -> None:
        """EngineRefused if the kernel makes no VM."""
        self.kvm = kvm
        self.irqchip: Irqchip = irqchip
        self.cpus: list[HostCpu] = []
        self._canary = -1
        self._canary_routed = False
        self.memory = mmap.mmap(-1, memory_size)
        # The pages stay where they are while this view lives; without it `memory` could be closed under the guest.
        self._view: ctypes.Array[ctypes.c_char] | None = (ctypes.c_char * memory_size).from_buffer(self.memory)
        self.fd = -1
        try:
            self.fd = fcntl.ioctl(kvm.fd, abi.KVM_CREATE_VM, 0)
            region = abi.MemoryRegion(0, 0, 0, memory_size, ctypes.addressof(self._view))
            fcntl.ioctl(self.fd, abi.KVM_SET_USER_MEMORY_REGION, region)
            if irqchip == "full":
                fcntl.ioctl(self.fd, abi.KVM_CREATE_IRQCHIP)
            elif irqchip == "split":
                cap = abi.EnableCap(cap=abi.KVM_CAP_SPLIT_IRQCHIP)
                cap.args[0] = 24
                fcntl.ioctl(self.fd, abi.KVM_ENABLE_CAP, cap)
        except OSError as error:
            self.close()
            raise EngineRefused("kvm", f"{kvm.path}: no VM: {error.strerror}") from error

    def add_cpu(self) -> HostCpu:
        """Make the next virtual CPU; its number is its place. EngineRefused if the kernel does not."""
        cpu = HostCpu(self, len(self.cpus))
        self.cpus.append(cpu)
        return cpu

    # ioctls

    def irqfd(self, fd: int, gsi: int, flags: int = 0, resamplefd: int = 0) -> None:
        """KVM_IRQFD."""
        fcntl.ioctl(self.fd, abi.KVM_IRQFD, abi.Irqfd(fd & 0xFFFF_FFFF, gsi, flags, resamplefd & 0xFFFF_FFFF))

    def set_gsi_routing(self, routes: Sequence[Route], flags: int = 0) -> None:
        """KVM_SET_GSI_ROUTING: replace the whole table. With an irqchip in the kernel the canary's entry is added."""
        if self.irqchip == "full":
            routes = [*routes, CANARY]
        fcntl.ioctl(self.fd, abi.KVM_SET_GSI_ROUTING, _routing(routes, flags))
        self._canary_routed = self.irqchip == "full"

    def irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE."""
        fcntl.ioctl(self.fd, abi.KVM_IRQ_LINE, abi.IrqLevel(gsi, level))

    def irq_line_status(self, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS: above 0 delivered, 0 coalesced, -1 ignored."""
        line = abi.IrqLevel(gsi, level)
        fcntl.ioctl(self.fd, abi.KVM_IRQ_LINE_STATUS, line)
        return ctypes.c_int32(line.irq).value

    def signal_msi(self, address_lo: int, address_hi: int, data: int, flags: int = 0, devid: int = 0) -> int:
        """KVM_SIGNAL_MSI: above 0 delivered, 0 blocked, -1 nobody."""
        try:
            return int(fcntl.ioctl(self.fd, abi.KVM_SIGNAL_MSI, abi.Msi(address_lo, address_hi, data, flags, devid)))
        except PermissionError:
            return -1  # the ioctl's value is the status, and -1 is also -EPERM

    def get_irqchip(self, chip: int) -> bytes:
        """KVM_GET_IRQCHIP: `struct kvm_pic_state` or `struct kvm_ioapic_state`."""
        state = abi.Irqchip(chip_id=chip)
        fcntl.ioctl(self.fd, abi.KVM_GET_IRQCHIP, state)
        return bytes(state)[8 : 8 + CHIP_SIZES[chip]]

    def set_irqchip(self, chip: int, data: bytes) -> None:
        """KVM_SET_IRQCHIP."""
        state = bytearray(_CHIP.pack(chip, data))
        fcntl.ioctl(self.fd, abi.KVM_SET_IRQCHIP, state)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION."""
        return self.kvm.check_extension(capability)

    def gsi_target(self, gsi: int) -> Callable[[bool], object]:
        """What a `Wire` of this GSI is connected to: source 0, where the last writer wins."""
        return functools.partial(self.irq_line, gsi)

    def close(self) -> None:
        """Close CPUs, VM and memory. Closing twice is fine."""
        for cpu in self.cpus:
            cpu.close()
        if self._canary >= 0:
            os.close(self._canary)
            self._canary = -1
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._view is not None:
            self._view = None
            self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Order

    def settle(self) -> None:
        """Return when every injection that was queued by this thread, and every irqfd's tear-down, has happened.

        The thread must be `pinned` since before they were queued, and the irqchip `full`. EngineError if the kernel
        does not come to it.
        """
        if self._canary < 0:
            self._canary = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            if not self._canary_routed:
                self.set_gsi_routing(default_routing())
            self.irqfd(self._canary, CANARY.gsi)
        # Any deassign waits for the tear-down queue, also one that matches nothing.
        self.irqfd(self._canary, CANARY.gsi + 1, KVM_IRQFD_FLAG_DEASSIGN)
        os.eventfd_write(self._canary, 1)
        state = abi.Irqchip(chip_id=CANARY.chip)
        chip = state.chip
        bit = 1 << CANARY.pin
        deadline = 0.0
        for spins in itertools.count():
            fcntl.ioctl(self.fd, abi.KVM_GET_IRQCHIP, state)
            if chip[_PIC_IRR] & bit and not chip[_PIC_LAST_IRR] & bit:
                break
            if spins > 1000:
                deadline = deadline or time.monotonic() + SETTLE_SECONDS
                if time.monotonic() > deadline:
                    raise EngineError(f"{self.kvm.path}: an irqfd's injection did not happen in {SETTLE_SECONDS:.0f} s")
                os.sched_yield()
        chip[_PIC_IRR] &= ~bit
        fcntl.ioctl(self.fd, abi.KVM_SET_IRQCHIP, state)


class HostCpu:
    """One virtual CPU. `run_area` is the head of its shared `struct kvm_run`."""

    def __init__(self, vm: HostVm, index: int) -> None:
        self.index = index
        try:
            self.fd = fcntl.ioctl(vm.fd, abi.KVM_CREATE_VCPU, index)
            try:
                self._map = mmap.mmap(self.fd, vm.kvm.run_size)
            except OSError:
                os.close(self.fd)
                raise
        except OSError as error:
            raise EngineRefused("kvm", f"{vm.kvm.path}: no virtual CPU {index}: {error.strerror}") from error
        self.run_area: abi.Run | None = abi.Run.from_buffer(self._map)

    def run(self) -> int:
        """KVM_RUN until an exit that is not a signal; returns the exit reason.

        Not with fcntl.ioctl: from Python 3.14 on that repeats an interrupted call without running signal handlers.
        """
        assert self.run_area is not None, "the CPU is closed"
        while _ioctl(self.fd, abi.KVM_RUN, 0) < 0:
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise EngineError(f"KVM_RUN of CPU {self.index}: {os.strerror(number)}")
        return int(self.run_area.exit_reason)

    def get_lapic(self) -> bytearray:
        """KVM_GET_LAPIC: the register page, 1024 bytes."""
        page = bytearray(1024)
        fcntl.ioctl(self.fd, abi.KVM_GET_LAPIC, page)
        return page

    def set_lapic(self, page: bytearray) -> None:
        """KVM_SET_LAPIC: what `get_lapic` gave, changed. The APIC map and the RTC's bookkeeping are made anew."""
        fcntl.ioctl(self.fd, abi.KVM_SET_LAPIC, page)

    def acknowledge(self) -> int:
        """The interrupt acknowledge cycle, from outside: the highest vector above the priority goes from IRR to ISR.

        Returns it, -1 for none. The guest is not told. Ref: Intel SDM vol. 3, 11.8.3.1 and 11.8.4
        """
        page = self.get_lapic()
        vector = lapic_bits(page, LAPIC_IRR).bit_length() - 1
        priority = max(page[LAPIC_TPR], lapic_bits(page, LAPIC_ISR).bit_length() - 1)
        if vector >> 4 <= priority >> 4:  # classes of 16; no vector, -1, is below all
            return -1
        place, bit = vector // 32 * 16 + vector % 32 // 8, 1 << vector % 8
        page[LAPIC_IRR + place] ^= bit
        page[LAPIC_ISR + place] |= bit
        self.set_lapic(page)
        return vector

    def nmi_pending(self) -> bool:
        """An NMI waits for the guest to run (KVM_GET_VCPU_EVENTS)."""
        events = abi.VcpuEvents()
        fcntl.ioctl(self.fd, abi.KVM_GET_VCPU_EVENTS, events)
        return bool(events.nmi_pending)

    def set_long_mode(self, rip: int, rsp: int, page_table: int, idt: int, gdt: int) -> None:
        """Start in 64-bit mode, ring 0, interrupts disabled, as a boot processor that runs.

        `gdt` has code at selector 8 and data at 16; `page_table` is CR3. No CPUID is set, so what depends on it is off.
        """
        sregs = abi.Sregs()
        fcntl.ioctl(self.fd, abi.KVM_GET_SREGS, sregs)
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x8000_0011, page_table, 0x20, 0x500
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            segment: abi.Segment = getattr(sregs, name)
            code = name == "cs"
            segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, 8 if code else 16
            segment.type, segment.l, segment.db = (11, 1, 0) if code else (3, 0, 1)
            segment.present = segment.s = segment.g = 1
            segment.dpl = segment.unusable = 0
        sregs.gdt.base, sregs.gdt.limit = gdt, 23
        sregs.idt.base, sregs.idt.limit = idt, 0xFFF
        fcntl.ioctl(self.fd, abi.KVM_SET_SREGS, sregs)
        fcntl.ioctl(self.fd, abi.KVM_SET_REGS, abi.Regs(rip=rip, rsp=rsp, rflags=2))
        fcntl.ioctl(self.fd, abi.KVM_SET_MP_STATE, ctypes.c_int32(abi.KVM_MP_STATE_RUNNABLE))

    def close(self) -> None:
        """Close the CPU's descriptor. Closing twice is fine."""
        if self.fd >= 0:
            self.run_area = None
            self._map.close()
            os.close(self.fd)
            self.fd = -1


def lapic_bits(page: bytearray, register: int) -> int:
    """LAPIC_ISR, LAPIC_TMR or LAPIC_IRR of a register page, as one number of 256 bits."""
    return _bits256(bytes(page[register : register + 0x80]))


@functools.lru_cache(4096)
def _bits256(registers: bytes) -> int:
    value = 0
    for n, word in enumerate(_LAPIC_BITS.unpack_from(registers)):
        value |= word << 32 * n
    return value


def _routing(routes: Sequence[Route], flags: int) -> bytearray:
    """`struct kvm_irq_routing`. Mutable and never small: fcntl copies short ones and refuses long constants."""
    parts = [struct.pack("<II", len(routes), flags)]
    for r in routes:
        if r.kind == KVM_IRQ_ROUTING_IRQCHIP:
            parts.append(_ROUTE_PIN.pack(r.gsi, r.kind, r.flags, 0, r.chip, r.pin))
        else:
            parts.append(
                _ROUTE_MSI.pack(r.gsi, r.kind, r.flags, 0, r.address & 0xFFFF_FFFF, r.address >> 32, r.data, r.devid)
            )
    return bytearray(b"".join(parts).ljust(1100, b"\0"))


def _open_remedy(number: int | None) -> str:
    remedies: dict[int | None, str] = {
        errno.ENOENT: "Load the kernel's module (modprobe kvm_amd, kvm_intel, kvm_pvm), or pass the device",
        errno.EACCES: "Join the group kvm: usermod -aG kvm $USER, then log in anew",
        errno.EPERM: "The container's device policy refuses it: pass the device with --device /dev/kvm",
        errno.ENODEV: "The module is there but the processor's virtualisation is off: look at the firmware's settings",
        errno.ENXIO: "The device node is there but no module serves it: modprobe kvm_amd, kvm_intel or kvm_pvm",
        errno.EBUSY: "Another hypervisor has the processor's virtualisation",
    }
    return remedies.get(number, "")


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Keep the calling thread on one of its CPUs, so that work it queues runs in order. The old set comes back."""
    thread = threading.get_native_id()
    before = os.sched_getaffinity(thread)
    choice = sorted(before)
    os.sched_setaffinity(thread, {choice[os.getpid() % len(choice)]})
    try:
        yield
    finally:
        os.sched_setaffinity(thread, before)
