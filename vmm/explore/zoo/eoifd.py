"""Two objects, one source id: what was wrong with KVM_EOIFD as posted, and with rules proposed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vmm.explore.board import Parts
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.kernel.eoifd import EoiIrqfds, IrqSource

if TYPE_CHECKING:
    from vmm.explore.board import Board

THREAD = 'the thread under "[PATCH v5 2/4] kvm: KVM_EOIFD", July 2012'
POSTED = Setup("eoifd-v5", "v5", 1)
FOLLOWS = Setup("eoifd-follows-irqfd", "v5", 1)


def exhausted(board: Board) -> None:
    """One thread binds, unbinds and assigns another, in any order."""
    user = board.thread("user", any_order=True)
    user.assign("e1")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.assign("e3")


def split(board: Board) -> None:
    """The same eventfd is assigned again; its eoifd listens to the source it had before."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.assign("e1")
    user.signal("e1")
    vcpu.interrupt()


def edge_again(board: Board) -> None:
    """The level irqfd is deassigned with its line high, and its eventfd assigned again as an edge irqfd."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1")
    user.eoifd("e2", "e1")
    user.signal("e1")
    user.deassign("e1")
    user.assign("e1", edge=True)
    user.signal("e1")
    vcpu.interrupt()


def unnamed(board: Board) -> None:
    """The irqfd's eventfd is closed: who can name its eoifd now?"""
    user = board.thread("user")
    user.assign("e1")
    user.eoifd("e2", "e1")
    user.close("e1")
    user.deassign_eoifd("e2", "e1")


def unnoticed(board: Board) -> None:
    """The eoifd's eventfd is closed after the irqfd was deassigned."""
    user = board.thread("user")
    user.assign("e1")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.close("e2")


def starved(board: Board) -> None:
    """Two want to hear of one irqfd's EOI."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1", eoi="f1")
    user.assign("e2", eoi="f2")
    user.eoifd("f1", "e1")
    user.eoifd("f2", "e1")
    user.signal("e1")
    vcpu.interrupt()


class HeldAfterFree(IrqSource):
    """The last put gives the id back, and leaves the pin as it is: `kvm_free_irq_source_id` clears bitmap bits only."""

    __slots__ = ()

    def deassert(self) -> bool:
        if not self.refs:
            return False
        return super().deassert()


class HeldAfterFreeIrqfds(EoiIrqfds):
    """Makes such sources."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def new_source(self, gsi: int) -> IrqSource:
        return HeldAfterFree(self.gsis, gsi, self.policy.clears_irq)


def freed_high(board: Board) -> None:
    """irqfd and eoifd go while the line is high and the guest has not come to it."""
    user = board.thread("user")
    user.assign("e1")
    user.eoifd("e2", "e1")
    user.signal("e1")
    user.deassign("e1")


BUGS = (
    Bug("Z01", "zombie eoifds use up the source ids", THREAD, ("S20",), exhausted, POSTED, FOLLOWS),
    Bug(
        "Z02",
        "irqfd and eoifd of one eventfd speak of two ids",
        THREAD,
        ("S7",),
        split,
        POSTED._replace(sources=2),
        Setup("assign-rebinds", "v5", 2),
    ),
    Bug(
        "Z03",
        "an eoifd is told of the EOIs of an edge irqfd",
        THREAD,
        ("S6",),
        edge_again,
        POSTED._replace(sources=2),
        Setup("assign-busy", "v5", 2),
        "an eventfd that an eoifd names is EBUSY, edge or level (assign-busy)",
    ),
    Bug("Z04", "close of the irqfd leaves an eoifd that nobody can name", THREAD, ("S1",), unnamed, POSTED, FOLLOWS),
    Bug(
        "Z05",
        "close of an eoifd is not noticed",
        "[PATCH v6 0/2], July 2012",
        ("S1",),
        unnoticed,
        POSTED,
        Setup("eoifd-v5:eoifd-close=deassigns", "v5", 1),
    ),
    Bug(
        "Z09",
        "of two eoifds of one irqfd the second hears nothing",
        "the asserted flag of [PATCH v5 2/4]",
        ("S7",),
        starved,
        POSTED._replace(sources=2),
        Setup("resample"),
    ),
    Bug(
        "Z10",
        "a freed source id leaves its pin high",
        "kvm_free_irq_source_id, virt/kvm/irq_comm.c before 3.8",
        ("S5",),
        freed_high,
        FOLLOWS._replace(parts=Parts(eoi_irqfds=HeldAfterFreeIrqfds)),
        FOLLOWS,
    ),
)
