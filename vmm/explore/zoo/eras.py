"""What released kernels did and later ones do not: an era, no class, is what is exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vmm.explore.chip import Chips
from vmm.explore.parts import GSI
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.kvm import Vm
from vmm.kernel.poll import FdHandler
from vmm.order import State

if TYPE_CHECKING:
    from vmm.explore.board import Board
    from vmm.kernel.files import EventfdCtx

NOW = Setup("resample")


def two_vms(board: Board) -> None:
    """Two VMs assign the same eventfd, then it is signalled."""
    other = Vm(board.files, board.executor, era_name=board.vm.era.name)
    chips = Chips(other.trace, board.vm.irqfds.inject_queue)
    other.connect(chips.ioapic, bus=chips.bus)
    pin = chips.pin(GSI)
    other.set_gsi_routing([Route.irqchip(GSI, KVM_IRQCHIP_IOAPIC, GSI)])
    other.irqfds.inject_queue = board.vm.irqfds.inject_queue  # the host's, as in the kernel
    board.state(other, pin)
    board.bind("e1", "e2")
    fd, resamplefd = board.fd("e1"), board.fd("e3")

    def assign() -> None:
        try:
            other.irqfd(fd, GSI, 2, resamplefd)
        except OSError:
            return

    user = board.thread("user")
    user.run("I+ e1 in another VM", assign)
    user.signal("e1")

    def starved() -> str | None:
        if other.irqfds.items and not (board.pin.requested and pin.requested):
            return "S14: e1 has an irqfd in two VMs, and one of them got no interrupt"
        return None

    board.at_rest(starved)


class Reader(State):
    """What an event loop took from an eventfd."""

    WIRING: ClassVar[tuple[str, ...]] = ("ctx",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("took",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, ctx: EventfdCtx) -> None:
        self.ctx = ctx
        self.took = 0

    def read(self) -> None:
        """The event loop's handler."""
        self.took += self.ctx.drain()


def stolen(board: Board) -> None:
    """An event loop still polls an eventfd that has an irqfd."""
    reader = Reader(board.ctx("e1"))
    handler = FdHandler(board.files, board.fd("e1"), board.vm.irqfds.inject_queue, reader.read)
    board.state(reader, handler)
    board.bind("e1", "e2")
    board.thread("device").signal("e1")

    def twice() -> str | None:
        return "S10: e1 was injected, and read as well" if reader.took and board.pin.held else None

    board.at_rest(twice)


def accepted(board: Board) -> None:
    """A resamplefd for a VM whose IOAPIC is in user space."""
    board.thread("user").assign("e1", eoi="e2")

    def deaf() -> str | None:
        done = board.results("user") == ("I+ e1 e2 = ok",)
        return "S9: a resamplefd was accepted, and no EOI can reach it" if done else None

    board.at_rest(deaf)


BUGS = (
    Bug(
        "Z19",
        "one eventfd has irqfds in two VMs",
        "2cdd64cbf990, fixed in 6.17",
        ("S14",),
        two_vms,
        Setup("resample", "6.3"),
        NOW,
    ),
    Bug(
        "Z21",
        "an event loop takes what an irqfd injects as well",
        "e8dbf19508a1, b59e00dd8cda, fixed in 5.11",
        ("S10",),
        stolen,
        Setup("resample", "3.8"),
        NOW,
    ),
    Bug(
        "Z24",
        "a resamplefd is accepted with a split irqchip",
        "654f1f13ea56, fixed in 5.2",
        ("S9",),
        accepted,
        Setup("resample", "3.8", irqchip="split"),
        Setup("resample", "5.11", irqchip="split"),
    ),
)
