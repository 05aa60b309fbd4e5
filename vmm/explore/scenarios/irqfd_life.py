"""Assign, deassign, close, interrupt and EOI of one irqfd by several threads at once."""

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
