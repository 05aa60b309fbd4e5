"""A small machine to explore: a level pin with an EOI, eventfds, irqfds with a resampler, VFIO devices on them."""

from __future__ import annotations

from devices.vfio_irqs import VfioIntx
from vmm import order
from vmm.explore.actors import Actor, Operation
from vmm.explore.chip import Chips
from vmm.explore.parts import GSI
from vmm.kernel.eoifd import EoiIrqfds
from vmm.kernel.files import EFD_NONBLOCK, DescriptorTable
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.irqfd import Irqfds, Resampler
from vmm.kernel.kvm import Vm
from vmm.order import Executor, State, WorkQueue


class Hardware(State):
    """A device's interrupt pin: high until the driver serves it."""

    WIRING = ("intx",)
    VISIBLE = ("level", "masked")
    __slots__ = (*WIRING, *VISIBLE)

    def __init__(self) -> None:
        self.intx = None
        self.level = False
        self.masked = False

    def pending(self) -> bool:
        return self.level

    def mask(self) -> None:
        self.masked = True

    def unmask(self) -> None:
        self.masked = False

    def request(self, masked: bool) -> None:
        self.masked = masked

    def free(self) -> None:
        self.masked = True

    def assert_intx(self) -> None:
        self.level = True
        if not self.masked:
            self.intx.handler()

    def serve(self) -> None:
        self.level = False


class Model:
    """The objects, and actors over them. Nothing runs at set-up but what the scenario calls."""

    def __init__(
        self,
        irqfds: type[Irqfds] = Irqfds,
        policy: str | None = None,
        era: str | None = None,
        eoi_irqfds: type[EoiIrqfds] = EoiIrqfds,
    ) -> None:
        self.executor = Executor()
        self.files = DescriptorTable()
        kind = type("ModelVm", (Vm,), {"__slots__": (), "irqfds_class": irqfds, "eoi_irqfds_class": eoi_irqfds})
        self.vm = kind(self.files, self.executor, era_name=era, policy_name=policy)
        chips = Chips(self.vm.trace, self.vm.irqfds.inject_queue)
        self.vm.connect(chips.ioapic, bus=chips.bus)
        self.vm.set_gsi_routing([Route.irqchip(GSI, KVM_IRQCHIP_IOAPIC, GSI)])
        self.pin = chips.pin(GSI)
        self.devices: list[Hardware] = []
        self.ctxs = []

    def efd(self, name: str) -> int:
        fd = self.files.eventfd(0, EFD_NONBLOCK, name)
        self.ctxs.append(self.files.file(fd).ctx)
        return fd

    def vfio(self, name: str) -> Hardware:
        """A device on GSI, its trigger an irqfd, its unmask eventfd the resamplefd."""
        hardware = Hardware()
        intx = VfioIntx(name, hardware, self.files, self.executor, self.vm.trace)
        hardware.intx = intx
        trigger, unmask = self.efd(f"{name}.trigger"), self.efd(f"{name}.unmask")
        intx.enable(self.files.ctx_fdget(trigger))
        intx.enable_virqfd(unmask)
        self.vm.irqfd(trigger, GSI, 2, unmask)
        self.devices.append(hardware)
        return hardware

    def roots(self) -> tuple[State, ...]:
        return (self.vm, self.files, self.executor, self.pin, *self.devices, *self.ctxs)

    def worker(self, queue: WorkQueue, name: str = "") -> Actor:
        run = Operation("work", Run(self.executor, queue).next, queue.has_next)
        return Actor(name or queue.name, (run,), repeats=True)


class Run(State):
    """A worker's operation."""

    WIRING = ("executor", "queue")
    __slots__ = WIRING

    def __init__(self, executor: Executor, queue: WorkQueue) -> None:
        self.executor = executor
        self.queue = queue

    def next(self) -> None:
        self.executor.run_next(self.queue)


class LoweringPerMember(Resampler):
    """A wrong resampler: it lowers the shared line once more before it signals each member."""

    __slots__ = ()

    def notify_member(self, member) -> None:
        self.deassert()
        if order.hook is not None:
            order.hook("resampler.lowered-again", member)
        super().notify_member(member)


class LoweringIrqfds(Irqfds):
    __slots__ = ()
    resampler_class = LoweringPerMember
