"""Assign, deassign, close, interrupt and EOI of one irqfd by several threads at once; and by some of them for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.explore.board import Board

SAME_END = (("deassign", "close"),)


def _life(board: Board) -> None:
    board.bind("e1", "e2")
    board.thread("device").signal("e1")
    board.thread("vcpu").interrupt()


def explore_deassign(board: Board) -> None:
    """An irqfd is deassigned while it fires and its interrupt is ended."""
    _life(board)
    board.thread("other").deassign("e1")


def explore_close(board: Board) -> None:
    """Its eventfd is closed; whoever holds the context may still signal it."""
    _life(board)
    board.thread("other").close("e1")


def explore_assign(board: Board) -> None:
    """It is deassigned while it is being assigned, and fires."""
    board.thread("user").assign("e1", eoi="e2")
    board.thread("device").signal("e1")
    board.thread("other").deassign("e1")


def explore_two_removers(board: Board) -> None:
    """One deassigns while another closes: it is shut down once."""
    board.bind("e1", "e2")
    board.thread("other").deassign("e1")
    board.thread("third").close("e1")


def explore_vm_closed(board: Board) -> None:
    """The VM's descriptor is closed while the eventfds are: nothing is left."""
    board.bind("e1", "e2")
    user = board.thread("user")
    user.close("e2")
    user.close_vm()
    board.thread("other").close("e1")


def explore_bind(board: Board) -> None:
    """An eoifd is bound while its irqfd is deassigned: it must not be born an orphan."""
    board.thread("user").assign("e1", eoi="e2")
    board.thread("binder").eoifd("e2", "e1")
    board.thread("other").deassign("e1")


# For ever.


def _again(board: Board) -> None:
    """A device that interrupts as soon as it is told of the last interrupt's EOI, for ever; and a CPU that takes each
    interrupt and ends it.
    """
    board.throttle(1)
    board.eventfd("e2", 1)
    board.bind("e1", "e2")
    told, trigger = board.ctx("e2"), board.held("e1")

    def interrupt() -> None:
        told.drain()
        if not board.vm.era.consumes:
            trigger.drain()  # or it would count for ever
        trigger.signal()

    board.thread("device", for_ever=True).run("EOI told, SIG e1", interrupt, when=told.readable)
    board.guest()
    board.eventually("L4")
    board.live("L4", lambda: not trigger.waiters)  # nobody listens any more


def explore_for_ever(board: Board) -> None:
    """The irqfd of a device that interrupts for ever is deassigned: the call returns, and the irqfd is gone."""
    _again(board)
    board.thread("other").deassign("e1")


def explore_for_ever_close(board: Board) -> None:
    """Its eventfd is closed instead."""
    _again(board)
    board.thread("other").close("e1")


def explore_for_ever_assign(board: Board) -> None:
    """One assigns and deassigns for ever; another eventfd is assigned and closed: each call returns, and it is gone."""
    user = board.thread("user", for_ever=True)
    user.assign("e1", eoi="e2")
    user.deassign("e1")
    board.thread("other").assign("e3", eoi="e4")
    board.thread("third").close("e3")
    closed = board.ctx("e3")
    board.eventually("L4")
    board.live("L4", lambda: not closed.waiters)


def explore_for_ever_neighbour(board: Board) -> None:
    """A device's interrupt comes through, and its mask is taken back, while others come to its GSI and go for ever."""
    board.vfio("a", assign=board.merged)
    if not board.merged:
        board.bind("a.trigger", "a.unmask")
    board.thread("device a").assert_intx("a")
    user = board.thread("user", for_ever=True)
    user.assign("e1", eoi="e2")
    user.deassign("e1")
    board.guest()
    board.eventually("L1", "L4", "L6")
