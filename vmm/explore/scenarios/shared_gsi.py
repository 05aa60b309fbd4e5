"""Two devices behind VFIO on one level-triggered pin, under the merged rule: one shared source id, one resampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.explore.board import Board

POLICIES = ("resample",)
"""A device's unmask eventfd is a resamplefd here."""


def explore_early_eoi(board: Board) -> None:
    """The first EOI comes before the driver has served the device, so the line goes up again at once."""
    board.vfio("a")
    board.vfio("b")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.interrupt()
    vcpu.interrupt(serve=True)


def explore_unplug(board: Board) -> None:
    """The neighbour's irqfd is deassigned while there is an interrupt."""
    board.vfio("a")
    board.vfio("b")
    board.thread("device a").assert_intx("a")
    board.thread("unplug").deassign("b.trigger")
    vcpu = board.thread("vcpu")
    vcpu.interrupt(serve=True)
    vcpu.interrupt(serve=True)


def explore_for_ever(board: Board) -> None:
    """Both interrupt, and the guest goes on for ever: in every fair run each is served, unmasked, and all is quiet."""
    board.vfio("a")
    board.vfio("b")
    board.thread("device a").assert_intx("a")
    board.thread("device b").assert_intx("b")
    board.guest()
    board.eventually("L1", "L5", "L6")
