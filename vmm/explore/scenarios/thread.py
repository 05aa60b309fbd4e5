"""The operations of the thread under "[PATCH v5 2/4] kvm: KVM_EOIFD, an eventfd for EOIs", in every order.

The sequence that it argues with: assign irqfd, assign eoifd, deassign irqfd, assign irqfd2, close eoifd. Run it with
`--sources 1`, or the fourth call has 62 other ids to take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.explore.board import Board

SAME_END = (("deassign", "close"),)
"""S3: where a close comes to rest, a deassign in its stead does too."""


def explore_counter_example(board: Board) -> None:
    """The calls of the counter-example by one thread, which makes them in any order."""
    user = board.thread("user", any_order=True)
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.assign("e3")


def explore_same_eventfd(board: Board) -> None:
    """The same eventfd is assigned again, then there is an interrupt: it must be ended as any other."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.assign("e1", eoi="e2")
    user.signal("e1")
    vcpu.interrupt()


def explore_deassign(board: Board) -> None:
    """irqfd and eoifd, an interrupt under way, and then the irqfd is deassigned."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.signal("e1")
    user.deassign("e1")
    vcpu.interrupt()


def explore_close(board: Board) -> None:
    """The same with a close of the irqfd's eventfd."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.signal("e1")
    user.close("e1")
    vcpu.interrupt()


def explore_close_eoifd(board: Board) -> None:
    """The irqfd is deassigned and then the eoifd's eventfd closed: everything is given back."""
    user = board.thread("user")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.close("e2")
