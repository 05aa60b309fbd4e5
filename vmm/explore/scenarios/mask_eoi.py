"""Masks, EOIs, and entries that the guest rewrites between the interrupt and its EOI, on the machine's own I/O APIC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.explore.chip import FIRST_VECTOR

if TYPE_CHECKING:
    from vmm.explore.board import Board

POLICIES = ("resample",)
"""A device's unmask eventfd is a resamplefd here."""


def _once(board: Board) -> None:
    """S12 in every state: no level is delivered twice before its EOI."""
    pin = board.pin

    def twice() -> str | None:
        again = pin.requested and pin.in_service
        return "S12: a level was delivered a second time before its EOI" if again else None

    board.always(twice)


def explore_one_shot(board: Board) -> None:
    """A one-shot handler: mask, EOI, serve the device later, unmask. Then the device interrupts once more."""
    _once(board)
    board.vfio("a")
    device = board.thread("device a")
    for _ in range(1 + board.scale):
        device.assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.take()
    vcpu.mask()
    vcpu.eoi()
    vcpu.serve("a")
    vcpu.unmask()
    vcpu.interrupt(serve=True)


def explore_masked_by_another(board: Board) -> None:
    """Another CPU masks and unmasks the pin while this one takes its interrupts and ends them."""
    _once(board)
    board.vfio("a")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    for _ in range(board.scale):
        vcpu.interrupt(serve=True)
    other = board.thread("other vcpu")
    other.mask()
    other.unmask()


def explore_two_sources(board: Board) -> None:
    """User space drives the pin as well: what the EOI lowers is the resampler's source only."""
    _once(board)
    board.vfio("a")
    board.thread("device a").assert_intx("a")
    user = board.thread("user")
    user.line(1)
    user.line(0)
    vcpu = board.thread("vcpu")
    for _ in range(board.scale):
        vcpu.interrupt(serve=True)


def explore_moved(board: Board) -> None:
    """The handler moves its interrupt to another CPU before it ends it; there it comes again."""
    _once(board)
    cpu, pin = board.another_cpu(), board.pin
    board.vfio("a")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.take()
    vcpu.run("to the other CPU", lambda: pin.write(pin.entry, cpu << 24))
    vcpu.eoi()
    board.thread("other vcpu").interrupt(serve=True, cpu=cpu)


def explore_other_vector(board: Board) -> None:
    """The handler gives the pin another vector in service. The EOI does not match any more, so it ends the interrupt
    by a change to edge and back, as a guest without an EOI register does.
    """
    pin = board.pin
    board.vfio("a")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.take(serve=True)
    vcpu.run("another vector", lambda: pin.write(pin.entry & ~0xFF | FIRST_VECTOR + 1))
    vcpu.eoi()
    vcpu.run("make edge", pin.make_edge)
    vcpu.run("make level", pin.make_level)


def explore_directed_eoi(board: Board) -> None:
    """The guest suppresses the broadcast of its EOIs, and ends the interrupt by a change to edge and back."""
    pin = board.pin
    pin.suppress_broadcast()
    board.vfio("a")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.interrupt(serve=True)
    vcpu.run("make edge", pin.make_edge)
    vcpu.run("make level", pin.make_level)


def explore_storm(board: Board) -> None:
    """EOIs with the line still high: the storm limiter postpones, and whoever masks or serves meanwhile is heard."""
    _once(board)
    board.throttle(1 + board.scale)
    board.vm.irq_line(5, 1)
    vcpu = board.thread("vcpu")
    for _ in range(2 + board.scale):
        vcpu.interrupt()
    user = board.thread("user")
    user.line(0)
    other = board.thread("other vcpu")
    other.mask()
    other.unmask()


def explore_for_ever(board: Board) -> None:
    """Another CPU masks and unmasks the pin, and this one goes on for ever: the device is served and unmasked."""
    board.vfio("a")
    board.thread("device a").assert_intx("a")
    other = board.thread("other vcpu")
    other.mask()
    other.unmask()
    board.guest()
    board.eventually("L1", "L5", "L6")
