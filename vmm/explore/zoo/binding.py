"""More bugs of irqfd: what may be bound to what, and what is left of a failed or late step."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar

from devices.apic_bus import MSI_BASE
from vmm import order
from vmm.explore.board import Parts
from vmm.explore.parts import GSI
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.kernel.eoifd import EoiIrqfds
from vmm.kernel.files import os_error
from vmm.kernel.gsi import KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, Route
from vmm.kernel.irqfd import Irqfd, Irqfds
from vmm.kernel.kvm import Vm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.explore.board import Board
    from vmm.kernel.files import EventfdCtx, File
    from vmm.kernel.irqfd import Resampler

NOW = Setup("resample")
OLD = 0x61
"""The vector of a message."""


class PutsWhatItHasNot(EoiIrqfds):
    """The way out of a failed assign puts the file, looked up or not."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def let_go(self, file: File | None) -> None:
        if file is not None or order.hook is not None:  # not where the search gives the step up
            file.put()  # type: ignore[union-attr]


def no_source_left(board: Board) -> None:
    """Two level irqfds, and one source id."""
    user = board.thread("user")
    user.assign("e1")
    user.assign("e3")


class RefusesAlias(Irqfds):
    """What is signalled at an EOI must not be what injects."""

    __slots__ = ()

    def admit(self, irqfd: Irqfd, ctx: EventfdCtx) -> None:
        told = irqfd.resamplefd
        if told is ctx or any((told is not None and item.ctx is told) or item.resamplefd is ctx for item in self.items):
            raise os_error(errno.EINVAL, f"{ctx!r} would be signalled by the EOI that it causes")


def each_others(board: Board) -> None:
    """Two irqfds, each with the other's eventfd as its resamplefd: one signal."""
    user = board.thread("user")
    user.assign("e1", eoi="e2")
    user.assign("e2", eoi="e1")
    user.signal("e1")
    board.throttle(2)
    board.guest()
    board.eventually("L5")


class MatchesResamplefd(Irqfds):
    """Deassign matches the second eventfd as well; without the flag there is none to match."""

    __slots__ = ()

    def matches(self, item: Irqfd, ctx: EventfdCtx, gsi: int) -> bool:
        return super().matches(item, ctx, gsi) and item.resamplefd is None


def bound_and_removed(board: Board) -> None:
    """A resampling irqfd is deassigned by its eventfd and GSI."""
    user = board.thread("user")
    user.assign("e1", eoi="e2")
    user.deassign("e1")


class RegistersLate(Irqfds):
    """The irq-bypass consumer is registered when the file was let go."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("consumer",)
    __slots__ = BOOKKEEPING

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.consumer: Irqfd | None = None

    def attach(self, irqfd: Irqfd) -> None:
        super().attach(irqfd)
        self.consumer = irqfd

    def let_go(self, file: File | None) -> None:
        super().let_go(file)
        if order.hook is not None:
            order.hook("irqfd.assign.bypass", self)
        self.register_consumer()

    def register_consumer(self) -> None:
        """irq_bypass_register_consumer: the consumer is a part of the irqfd."""
        if self.consumer is not None:
            self.consumer.touch("irq_bypass_register_consumer")
            self.consumer = None


class RegistersEarly(RegistersLate):
    """The consumer is registered while the file is held. (9432a3175770)"""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def let_go(self, file: File | None) -> None:
        self.register_consumer()
        Irqfds.let_go(self, file)


def taken_in_circles(board: Board) -> None:
    """An eventfd is assigned, another one closed: which lock is taken under which?"""
    board.bind("e1", "e2")
    board.thread("user").assign("e3", eoi="e4")
    board.thread("other").close("e1")
    board.nest_locks()


def assigned_and_closed(board: Board) -> None:
    """The eventfd is closed while it is being assigned."""
    board.thread("user").assign("e1")
    board.thread("other").close("e1")


class DoesNotAwaitReaders(Irqfds):
    """Joining a resampler does not wait for EOIs that look at the list as it was."""

    __slots__ = ()

    def await_readers(self) -> None:
        pass


def joined_at_eoi(board: Board) -> None:
    """A second device gets its irqfd, and interrupts, while the first one's interrupt is ended."""
    board.vfio("a")
    board.vfio("b", assign=False)
    user = board.thread("user")
    user.assign("b.trigger", eoi="b.unmask")
    user.assert_intx("b")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    for _ in range(2):
        vcpu.interrupt(serve=True)


class LowersMoved(Vm):
    """When a GSI has moved to another pin, what its resampler left high at the old one is lowered, once nobody is on
    the way there any more, and the members are asked again.
    """

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def set_gsi_routing(self, routes: Sequence[Route], flags: int = 0) -> None:
        before = self.gsis.table.by_gsi
        super().set_gsi_routing(routes, flags)
        moved = self.irqfds.resamplers
        i = 0
        while i < len(moved):
            self.move(moved[i], before.get(moved[i].gsi, ()))
            i += 1

    def move(self, resampler: Resampler, old: tuple[Route, ...]) -> None:
        """One resampler's GSI."""
        members = resampler.members
        i = 0
        while i < len(members):
            members[i].inject_work.flush()
            i += 1
        now = self.gsis.table.by_gsi.get(resampler.gsi, ())
        i = 0
        while i < len(old):
            if old[i] not in now:
                self.gsis.chips[old[i].chip].set_irq(old[i].pin, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, False)
            i += 1
        resampler.notify()


def rerouted_in_service(board: Board) -> None:
    """The GSI moves to another pin between the interrupt and its EOI: is the device ever unmasked?"""
    hardware = board.vfio("a")
    moved = board.chips.pin(GSI + 1, vector=0x51)
    board.thread("device a").assert_intx("a")
    board.thread("user").reroute(GSI + 1)
    vcpu = board.thread("vcpu")
    vcpu.interrupt(serve=True)
    vcpu.interrupt(serve=True)

    def masked() -> str | None:
        stays = hardware.depth and not moved.on_its_way()
        return "L6: a stays masked: its GSI has moved, and the EOI of the old pin is nobody's" if stays else None

    board.at_rest(masked)


class GoesByOldRoute(Irqfd):
    """One that is being shut down injects by the message that it has cached."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def event(self) -> None:
        if self.ctx is not None:
            self.ctx.take()
        if order.hook is not None:
            order.hook("irqfd.wakeup.drained", self)
        if not self.inject_in_atomic():
            self.inject_work.schedule()


class KeepsRoute(Irqfds):
    """Deassign leaves what the irqfd cached, though a change of routes does not reach it any more."""

    __slots__ = ()
    irqfd_class = GoesByOldRoute

    def forget_route(self, irqfd: Irqfd) -> None:
        pass


def rerouted_while_deassigned(board: Board) -> None:
    """The GSI's message is replaced while its irqfd is deassigned, and then the eventfd is signalled."""
    vm, lapic = board.vm, board.chips.lapics[0]
    vm.set_gsi_routing([Route.msi(GSI, MSI_BASE, OLD)])
    vm.irqfd(board.fd("e1"), GSI)
    board.thread("user").deassign("e1")
    other = board.thread("other")
    other.run("another message", lambda: vm.set_gsi_routing([Route.msi(GSI, MSI_BASE, OLD + 1)]))
    other.signal("e1")

    def old() -> str | None:
        return "S6: an event came by the message that was replaced before" if lapic.irr >> OLD & 1 else None

    board.at_rest(old)


BUGS = (
    Bug(
        "Z06",
        "a failed assign puts a file that it has not looked up",
        "awilliam/linux-vfio 08833b37f5b1",
        ("raised AttributeError",),
        no_source_left,
        Setup("eoifd-v5", "v5", 1, Parts(eoi_irqfds=PutsWhatItHasNot)),
        Setup("eoifd-v5", "v5", 1),
    ),
    Bug(
        "Z07",
        "an EOI signals what injects: it never ends",
        "awilliam/linux-vfio 08833b37f5b1; kvm_irqfd_assign to this day",
        ("L5",),
        each_others,
        NOW,
        Setup("resample", None, None, Parts(irqfds=RefusesAlias)),
        "such a pair is EINVAL; era 6.18 has the flaw",
    ),
    Bug(
        "Z08",
        "a deassign without the flag matches nothing and returns 0",
        "awilliam/linux-vfio 08833b37f5b1",
        ("S9",),
        bound_and_removed,
        Setup("resample", None, None, Parts(irqfds=MatchesResamplefd)),
        NOW,
    ),
    Bug(
        "Z14",
        "the eventfd's lock and irqfds.lock, each under the other",
        "684a0b719ddb, fixed in 3.15",
        ("S15",),
        taken_in_circles,
        Setup("resample", "3.8"),
        Setup("resample", "5.11"),
        "it is polled outside irqfds.lock (684a0b719ddb)",
    ),
    Bug(
        "Z16",
        "the bypass consumer of an irqfd that was shut down is registered",
        "9432a3175770",
        ("use-after-free",),
        assigned_and_closed,
        Setup("resample", None, None, Parts(irqfds=RegistersLate)),
        Setup("resample", None, None, Parts(irqfds=RegistersEarly)),
        "it is registered while the file is held (9432a3175770)",
    ),
    Bug(
        "Z23",
        "an assign returns before EOIs in progress know of it",
        '"Remove redundant synchronize_srcu_expedited from irqfd assignment", 2026, rejected',
        ("S7", "L1"),
        joined_at_eoi,
        Setup("resample", None, None, Parts(irqfds=DoesNotAwaitReaders)),
        NOW,
        shown=False,
    ),
    Bug(
        "Z28",
        "the EOI goes to the GSI that the pin has now",
        "kvm_notify_acked_irq; vectors kvm-ioapic.json, reroute-resample-asserted",
        ("L6",),
        rerouted_in_service,
        NOW,
        Setup("resample", None, None, Parts(vm=LowersMoved)),
        "what is held high moves with its GSI; era 6.18 has the flaw",
    ),
    Bug(
        "Z29",
        "an irqfd that is going has a route that nobody renews",
        "the comment in kvm_irqfd_deassign",
        ("S6",),
        rerouted_while_deassigned,
        Setup("resample", None, None, Parts(irqfds=KeepsRoute)),
        NOW,
    ),
)
