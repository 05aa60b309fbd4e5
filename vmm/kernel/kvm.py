"""A VM as its descriptor shows it: KVM's ioctls as methods, with the kernel's errno in an OSError.

    files = DescriptorTable()
    vm = Vm(files, executor)
    vm.connect(ioapic=ioapic, pic=pic, bus=bus)
    a, r = files.eventfd(flags=EFD_NONBLOCK), files.eventfd(flags=EFD_NONBLOCK)
    vm.irqfd(a, gsi=10, flags=KVM_IRQFD_FLAG_RESAMPLE, resamplefd=r)
    files.write(a, 1); executor.drain()        # the inject work asserts source 1 of GSI 10

Ref: Documentation/virt/kvm/api.rst; vectors kvm-ioapic.json
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vmm.errors import ConfigError
from vmm.kernel.eoifd import (
    KVM_CAP_EOIFD_LEVEL_IRQFD,
    KVM_CAP_IRQFD_LEVEL,
    KVM_EOIFD_FLAG_DEASSIGN,
    KVM_EOIFD_FLAG_LEVEL_IRQFD,
    EoiIrqfds,
)
from vmm.kernel.eras import DEFAULT_ERA, era
from vmm.kernel.files import File, os_error
from vmm.kernel.gsi import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID,
    KVM_MAX_IRQ_ROUTES,
    KVM_MSI_VALID_DEVID,
    KVM_PIT_IRQ_SOURCE_ID,
    KVM_USERSPACE_IRQ_SOURCE_ID,
    ChipAcks,
    Gsis,
    IrqSourceIds,
)
from vmm.kernel.ioctl import ioctl
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, Irqfds
from vmm.kernel.policies import DEFAULT_POLICY, policy
from vmm.order import Srcu, State, WorkQueue
from vmm.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.kernel.eras import Era
    from vmm.kernel.files import DescriptorTable
    from vmm.kernel.gsi import Chip, Route
    from vmm.order import Executor

Irqchip = Literal["full", "split", "none"]

KVM_CAP_IRQCHIP = 0
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_IRQ_INJECT_STATUS = 26
KVM_CAP_IRQFD = 32
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_IRQFD_RESAMPLE = 82
KVM_CAP_SPLIT_IRQCHIP = 121


class ChipState(Protocol):
    """A chip's state that knows its bytes."""

    def build(self) -> bytes:
        """As the kernel's struct."""

    def parse(self, data: bytes, /) -> ChipState:
        """From the kernel's struct."""


class IoApicChip(Protocol):
    """The IOAPIC as a VM wants it."""

    acks: Any

    def set_irq(self, pin: int, source: int, level: bool, line_status: bool = ..., /) -> int:
        """Drive a pin from a source."""

    def get_state(self) -> ChipState:
        """As KVM_GET_IRQCHIP."""

    def set_state(self, state: Any, /) -> None:
        """As KVM_SET_IRQCHIP: what `get_state` gave, or its `parse`."""


class PicChips(Protocol):
    """The two PICs, pins 0 to 15."""

    ack_notifiers: Any

    def set_irq(self, pin: int, source: int, level: bool, /) -> int:
        """Drive a pin from a source."""

    def state(self, index: int, /) -> bytes:
        """One chip's state as KVM_GET_IRQCHIP."""

    def set_state(self, index: int, data: bytes, /) -> None:
        """One chip's state as KVM_SET_IRQCHIP."""


class MessageBus(Protocol):
    """The APIC bus: where messages go."""

    def msi(self, address: int, data: int, /) -> int:
        """Deliver a message: how many CPUs took it, 0 coalesced, -1 nobody."""

    def request_scan(self) -> None:
        """Which vectors' EOIs matter may have changed."""


class VmFile(File):
    """The file behind a VM's descriptor. When its last reference goes the VM's irqfds go; the VM itself may live on."""

    WIRING = ("on_release",)
    __slots__ = WIRING

    def __init__(self, on_release: Callable[[], None]) -> None:
        super().__init__("kvm-vm")
        self.on_release = on_release

    def release(self) -> None:
        self.on_release()


class Vm(State):
    """One VM. `fd` is its descriptor in `files`.

    `irqchip`: where PIC and IOAPIC are. `full`: here; `split`: in user space, with messages here; `none`: all in user
    space. `era_name` is a name of `vmm.kernel.eras`, `policy_name` one of `vmm.kernel.policies`; every policy but
    `resample` implies era `v5` and gives KVM_EOIFD. ConfigError for names that are not known or do not go together.
    """

    WIRING: ClassVar[tuple[str, ...]] = (
        "bus",
        "era",
        "executor",
        "files",
        "gsis",
        "ioapic",
        "ioapic_acks",
        "irqchip",
        "irqfds",
        "pic",
        "pic_acks",
        "trace",
    )
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("fd",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    irqfds_class: ClassVar[type[Irqfds]] = Irqfds
    eoi_irqfds_class: ClassVar[type[EoiIrqfds]] = EoiIrqfds
    """What a VM has under the `resample` policy, and under the others."""

    def __init__(
        self,
        files: DescriptorTable,
        executor: Executor,
        trace: Trace | None = None,
        irqchip: Irqchip = "full",
        era_name: str | None = None,
        policy_name: str | None = None,
    ) -> None:
        self.files = files
        self.executor = executor
        self.trace = trace or Trace()
        self.irqchip: Irqchip = irqchip
        self.era: Era = _era(era_name, policy_name)
        rule = policy(policy_name or (DEFAULT_POLICY if self.era.resample else "eoifd-v5"))
        events = WorkQueue("events", executor, 2)
        reserved = [KVM_USERSPACE_IRQ_SOURCE_ID]
        if self.era.resample:
            reserved.append(KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID)
        if self.era.fixed_pit_source:
            reserved.append(KVM_PIT_IRQ_SOURCE_ID)
        self.gsis = Gsis(Srcu("kvm.irq_srcu", events), self.trace, IrqSourceIds(reserved), irqchip == "full")
        cleanup = WorkQueue("kvm-irqfd-cleanup", executor)
        if rule is None:
            self.irqfds = self.irqfds_class(files, self.gsis, self.era, irqchip, events, cleanup)
        else:
            self.irqfds = self.eoi_irqfds_class(files, self.gsis, self.era, irqchip, events, cleanup, rule)
        self.gsis.on_routes = self.irqfds.update_routes
        self.ioapic_acks = ChipAcks(self.gsis, KVM_IRQCHIP_IOAPIC, self.irqfds.notify_resampler)
        self.pic_acks = ChipAcks(self.gsis, KVM_IRQCHIP_PIC_MASTER, self.irqfds.notify_resampler)
        self.ioapic: IoApicChip | None = None
        self.pic: PicChips | None = None
        self.bus: MessageBus | None = None
        self.fd = files.install(VmFile(self.irqfds.release))

    def connect(
        self,
        ioapic: IoApicChip | None = None,
        pic: PicChips | None = None,
        bus: MessageBus | None = None,
        chips: dict[int, Chip] | None = None,
    ) -> None:
        """Give the VM its chips, and each chip its ack notifiers. `chips`: stand-ins by KVM_IRQCHIP_*."""
        if ioapic is not None:
            self.ioapic = ioapic
            ioapic.acks = self.ioapic_acks
            if hasattr(ioapic, "resample_on_unmask"):
                ioapic.resample_on_unmask = self.era.resample_on_unmask
            self.gsis.chips[KVM_IRQCHIP_IOAPIC] = ioapic
        if pic is not None:
            self.pic = pic
            pic.ack_notifiers = self.pic_acks
            self.gsis.chips[KVM_IRQCHIP_PIC_MASTER] = self.gsis.chips[KVM_IRQCHIP_PIC_SLAVE] = pic
        if bus is not None:
            self.bus = bus
            self.gsis.deliver_msi = bus.msi
            self.gsis.rescan = bus.request_scan
        self.gsis.chips.update(chips or {})

    # ioctls

    def ioctl(self, request: int, data: bytes) -> tuple[int, bytes]:
        """A request by its number, its argument as bytes: see `vmm.kernel.ioctl`. OSError."""
        return ioctl(self, request, data)

    def irqfd(self, fd: int, gsi: int, flags: int = 0, resamplefd: int = 0) -> None:
        """KVM_IRQFD: assign, or with KVM_IRQFD_FLAG_DEASSIGN deassign, where `resamplefd` is not looked at.

        OSError EINVAL, EBADF, EBUSY: see `Irqfds.assign` and `Irqfds.deassign`.
        """
        if flags & ~self.irqfds.flags or not 0 <= gsi < 1 << 32:
            raise os_error(errno.EINVAL, f"KVM_IRQFD flags {flags:#x}")
        if flags & KVM_IRQFD_FLAG_DEASSIGN:
            self.irqfds.deassign(fd, gsi)
        else:
            self.irqfds.assign(fd, gsi, flags, resamplefd)

    def eoifd(self, fd: int, flags: int, irqfd: int) -> None:
        """KVM_EOIFD: assign, or with KVM_EOIFD_FLAG_DEASSIGN deassign.

        OSError ENOTTY where there is no such ioctl; else see `EoiIrqfds.assign_eoifd` and `EoiIrqfds.deassign_eoifd`.
        """
        irqfds = self.irqfds
        if not isinstance(irqfds, EoiIrqfds):
            raise os_error(errno.ENOTTY, f"KVM_EOIFD in era {self.era.name}")
        if flags & ~(KVM_EOIFD_FLAG_DEASSIGN | KVM_EOIFD_FLAG_LEVEL_IRQFD):
            raise os_error(errno.EINVAL, f"KVM_EOIFD flags {flags:#x}")
        if flags & KVM_EOIFD_FLAG_DEASSIGN:
            irqfds.deassign_eoifd(fd, irqfd)
        else:
            irqfds.assign_eoifd(fd, flags, irqfd)

    def set_gsi_routing(self, routes: Sequence[Route], flags: int = 0) -> None:
        """KVM_SET_GSI_ROUTING: replace the whole table. OSError EINVAL."""
        if self.irqchip == "none" or flags:
            raise os_error(errno.EINVAL, f"KVM_SET_GSI_ROUTING flags {flags:#x} with irqchip {self.irqchip}")
        self.gsis.set_routing(routes)

    def irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE: drive a GSI from source 0; any non-zero level is high; an unknown GSI is ignored. OSError
        ENXIO without an irqchip.
        """
        self._line(gsi, level, line_status=False)

    def irq_line_status(self, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS: as `irq_line`; returns what was delivered: above 0, 0 coalesced, -1 ignored."""
        return self._line(gsi, level, line_status=True)

    def _line(self, gsi: int, level: int, line_status: bool) -> int:
        if self.irqchip == "none":
            raise os_error(errno.ENXIO, "KVM_IRQ_LINE without an irqchip")
        return self.gsis.set_irq(KVM_USERSPACE_IRQ_SOURCE_ID, gsi, int(level != 0), line_status)

    def signal_msi(self, address_lo: int, address_hi: int, data: int, flags: int = 0, devid: int = 0) -> int:  # noqa: ARG002
        """KVM_SIGNAL_MSI: send a message; above 0 delivered, 0 blocked, -1 nobody. OSError EINVAL."""
        if self.irqchip == "none" or flags & ~KVM_MSI_VALID_DEVID:
            raise os_error(errno.EINVAL, f"KVM_SIGNAL_MSI flags {flags:#x} with irqchip {self.irqchip}")
        return self.gsis.deliver_msi(address_hi << 32 | address_lo, data)

    def get_irqchip(self, chip: int) -> bytes:
        """KVM_GET_IRQCHIP: `struct kvm_pic_state` or `struct kvm_ioapic_state`. OSError ENXIO, EINVAL."""
        if chip == KVM_IRQCHIP_IOAPIC:
            return self._ioapic().get_state().build()
        return self._pic(chip).state(chip)

    def set_irqchip(self, chip: int, data: bytes) -> None:
        """KVM_SET_IRQCHIP: raw state; no unmask rule, no change of what the sources drive. OSError ENXIO, EINVAL."""
        if chip == KVM_IRQCHIP_IOAPIC:
            ioapic = self._ioapic()
            ioapic.set_state(ioapic.get_state().parse(data))
        else:
            self._pic(chip).set_state(chip, data)

    def _ioapic(self) -> IoApicChip:
        if self.irqchip != "full" or self.ioapic is None:
            raise os_error(errno.ENXIO, f"no IOAPIC in the kernel with irqchip {self.irqchip}")
        return self.ioapic

    def _pic(self, chip: int) -> PicChips:
        if self.irqchip != "full" or self.pic is None:
            raise os_error(errno.ENXIO, f"no PIC in the kernel with irqchip {self.irqchip}")
        if chip not in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE):
            raise os_error(errno.EINVAL, f"irqchip {chip}")
        return self.pic

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if it is not there."""
        if capability == KVM_CAP_IRQ_ROUTING:
            return KVM_MAX_IRQ_ROUTES
        if capability in (KVM_CAP_IRQFD_LEVEL, KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_EOIFD_LEVEL_IRQFD):
            # 82 was KVM_CAP_EOIFD as posted, and became KVM_CAP_IRQFD_RESAMPLE.
            return int(self.era.eoifd or (self.era.resample and capability == KVM_CAP_IRQFD_RESAMPLE))
        return int(
            capability
            in (KVM_CAP_IRQCHIP, KVM_CAP_IRQ_INJECT_STATUS, KVM_CAP_IRQFD, KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP)
        )

    def close(self) -> None:
        """Close the VM's descriptor: every irqfd goes, eventfds are ordinary ones again. Closing twice is fine."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.files.close(fd)

    # What the board wants.

    def gsi_target(self, gsi: int) -> Callable[[bool], object]:
        """What a `Wire` of this GSI is connected to: source 0, where the last writer wins."""
        return partial(self.gsis.set_irq, KVM_USERSPACE_IRQ_SOURCE_ID, gsi)


def _era(era_name: str | None, policy_name: str | None) -> Era:
    """The era that a policy implies; ConfigError if another was asked for."""
    if policy_name is None:
        return era(era_name or DEFAULT_ERA)
    eoifd = policy(policy_name) is not None
    found = era(era_name or ("v5" if eoifd else DEFAULT_ERA))
    if found.eoifd != eoifd:
        raise ConfigError(
            f"irqfd_policy {policy_name!r} and irqfd_era {found.name!r} do not go together: "
            "KVM_EOIFD was there in era v5 only"
        )
    return found
