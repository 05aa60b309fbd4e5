"""A VM with real chips and no CPU: one local APIC, the kernel's IOAPIC, descriptors, and the acts of a guest."""

from __future__ import annotations

from devices.apic_bus import ApicBus
from devices.ioapic import IOREDTBL
from devices.ioapic_kvm import KvmIoApic
from devices.lapic import LocalApic
from vmm.clock import VirtualClock
from vmm.kernel.files import EFD_NONBLOCK, DescriptorTable, File
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.kvm import Vm
from vmm.order import Executor
from vmm.trace import Recording, Trace

LEVEL = 0x8000
MASKED = 0x10000
SVR_ENABLED = 0x1FF


class NoCpu:
    """A CPU that never runs."""

    def interrupt_changed(self) -> None: ...
    def nmi(self) -> None: ...
    def smi(self) -> None: ...
    def init(self) -> None: ...
    def sipi(self, vector: int) -> None: ...


class KvmRig:
    """GSI n is routed to IOAPIC pin n only. `drain` runs what is queued; every act ends with it.

    Descriptor 0 is a file that is no eventfd.
    """

    def __init__(self, ncpu: int = 1, era: str | None = None, irqchip: str = "full", policy: str | None = None) -> None:
        self.executor = Executor()
        self.clock = VirtualClock()
        self.trace = Trace(self.clock.now)
        self.recording = Recording()
        self.files = DescriptorTable()
        self.files.install(File("stdin"))
        self.vm = Vm(self.files, self.executor, self.trace, irqchip, era, policy)
        self.bus = ApicBus(self.trace)
        self.cpus = [LocalApic(n, NoCpu(), self.bus, self.clock, self.trace) for n in range(ncpu)]
        for n, cpu in enumerate(self.cpus):
            cpu.mmio_write(0xF0, 4, SVR_ENABLED)
            cpu.mmio_write(0xD0, 4, 1 << n << 24)
        self.ioapic = KvmIoApic(self.bus, self.clock, self.trace)
        if irqchip == "full":
            self.vm.connect(ioapic=self.ioapic)
            self.route({gsi: gsi for gsi in range(24)})
        self.vm.connect(bus=self.bus)

    def drain(self) -> None:
        self.executor.drain()

    # Host

    def efd(self, count: int = 0, flags: int = 0) -> int:
        return self.files.eventfd(count, flags | EFD_NONBLOCK)

    def write(self, fd: int, value: int = 1) -> None:
        self.files.write(fd, value)
        self.drain()

    def count(self, fd: int) -> int:
        """What read(2) gives, 0 for EAGAIN."""
        try:
            return self.files.read(fd)
        except BlockingIOError:
            return 0

    def close(self, fd: int) -> None:
        self.files.close(fd)
        self.drain()

    def assign(self, fd: int, gsi: int = 5, resample: int | None = None) -> None:
        if resample is None:
            self.vm.irqfd(fd, gsi)
        else:
            self.vm.irqfd(fd, gsi, 2, resample)
        self.drain()

    def deassign(self, fd: int, gsi: int = 5, flags: int = 1, resample: int = 0) -> None:
        self.vm.irqfd(fd, gsi, flags, resample)
        self.drain()

    def line(self, gsi: int, level: int) -> int:
        status = self.vm.irq_line_status(gsi, level)
        self.drain()
        return status

    def route(self, pins: dict[int, int]) -> None:
        self.vm.set_gsi_routing([Route.irqchip(gsi, KVM_IRQCHIP_IOAPIC, pin) for gsi, pin in pins.items()])
        self.drain()

    def pair(self, gsi: int = 5) -> tuple[int, int]:
        """A resampling irqfd on `gsi`: its trigger and its resamplefd."""
        a, r = self.efd(), self.efd()
        self.assign(a, gsi, r)
        return a, r

    # Guest

    def redir(self, pin: int, entry: int) -> None:
        """Write a redirection entry, high half first."""
        self.redir_half(pin, True, entry >> 32)
        self.redir_half(pin, False, entry & 0xFFFF_FFFF)

    def redir_half(self, pin: int, high: bool, value: int) -> None:
        self.ioapic.mmio_write(0, 4, IOREDTBL + 2 * pin + high)
        self.ioapic.mmio_write(0x10, 4, value)
        self.drain()

    def inta(self, cpu: int = 0) -> int:
        """The CPU takes its highest interrupt: the vector, -1 for none."""
        apic = self.cpus[cpu]
        vector = apic.pending_vector()
        if vector is None:
            return -1
        apic.acknowledge(vector)
        return vector

    def eoi(self, cpu: int = 0) -> None:
        self.cpus[cpu].mmio_write(0xB0, 4, 0)
        self.drain()

    # What can be seen

    def irr(self, pin: int = 5) -> bool:
        """The IOAPIC's IRR bit of a pin."""
        return bool(self.ioapic.get_state().irr >> pin & 1)

    def remote_irr(self, pin: int = 5) -> bool:
        return bool(self.ioapic.redir[pin] >> 14 & 1)
