"""Reset and hot-unplug of a device behind VFIO at every point of its level interrupt's life."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.explore.consumer import STEPS, IntxUser

if TYPE_CHECKING:
    from vmm.explore.board import Board

POLICIES = ("resample",)
"""A device's unmask eventfd is a resamplefd here."""


def _life(board: Board) -> IntxUser:
    user = IntxUser(board, "a")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    for _ in range(board.scale):
        vcpu.interrupt(serve=True)
    return user


def explore_golden(board: Board) -> None:
    """The ten steps in their order, while the device interrupts and the guest ends it."""
    user = _life(board)
    board.at_rest(user.left)
    unplug = board.thread("unplug")
    for name in STEPS:
        unplug.run(name, user.step(name))


def _in_service(board: Board) -> IntxUser:
    user = IntxUser(board, "a")
    board.device("a").assert_intx()
    board.executor.drain()
    board.pin.take()
    board.at_rest(user.left)
    return user


def explore_any_order(board: Board) -> None:
    """The ten steps in any order that descriptors allow, with the interrupt in service and the line high.

    Enlarged, the guest ends the interrupt between any two of them.
    """
    user = _in_service(board)
    unplug = board.thread("unplug", any_order=True, unordered=True)
    for name in STEPS:
        unplug.run(name, user.step(name), user.may(name))
    if board.scale > 1:
        unplug.eoi()


def explore_any_order_eoi(board: Board) -> None:
    """Those steps that the kernel sees, in any order, and the guest's EOI between any two of them."""
    user = _in_service(board)
    seen = [name for name in STEPS if name not in ("stop listening to routes", "drop the timer", "mode NONE")]
    user.skip(*(name for name in STEPS if name not in seen))
    unplug = board.thread("unplug", any_order=True, unordered=True)
    for name in seen:
        unplug.run(name, user.step(name), user.may(name))
    unplug.eoi()


def explore_reset(board: Board) -> None:
    """The device is reset: INTx off, its level gone, INTx on again; what it asserts afterwards must come through."""
    user = _life(board)
    hardware = user.hardware
    thread = board.thread("reset")
    thread.run("INTx off", lambda: user.tear_down("mode NONE"))
    thread.run("reset", hardware.serve)
    thread.run("INTx on", user.set_up)
    board.thread("later").assert_intx("a", when=lambda: board.results("reset")[-1:] == ("INTx on = ok",))


def explore_neighbour(board: Board) -> None:
    """One of two devices on the pin is unplugged; the other one's interrupt survives it."""
    user = IntxUser(board, "a")
    board.vfio("b")
    if board.scale > 1:
        board.device("a").assert_intx()
    board.thread("device b").assert_intx("b")
    board.thread("unplug").run("unplug a", user.tear_down)
    vcpu = board.thread("vcpu")
    for _ in range(board.scale):
        vcpu.interrupt(serve=True)
