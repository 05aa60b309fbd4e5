"""The VM's descriptor is closed at every point of a level interrupt's life, and the VM is destroyed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.explore.board import Board


def explore_release(board: Board) -> None:
    """The VM is closed while an irqfd fires and the guest, which runs on, ends its interrupt."""
    board.bind("e1", "e2")
    board.thread("device").signal("e1")
    vcpu = board.thread("vcpu")
    for _ in range(board.scale):
        vcpu.interrupt()
    board.thread("user").close_vm()


def explore_any_order(board: Board) -> None:
    """Both eventfds and the VM are closed by three threads: nothing is left."""
    board.bind("e1", "e2")
    board.thread("user").close_vm()
    board.thread("other").close("e1")
    board.thread("third").close("e2")


def explore_assign(board: Board) -> None:
    """An irqfd is assigned while the VM is closed."""
    user = board.thread("user")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    board.thread("other").close_vm()


def explore_destroy(board: Board) -> None:
    """The last reference goes while the storm limiter has a delivery postponed: nobody touches a CPU that was freed."""
    board.throttle(2)
    board.vm.irq_line(5, 1)
    vcpu = board.thread("vcpu")
    for _ in range(1 + board.scale):
        vcpu.interrupt()
    vcpu.close_vm()
    vcpu.run("destroy", board.chips.destroy)
    board.thread("user").line(0, when=lambda: board.results("vcpu")[-1:] != ("VM = ok",))


def explore_device(board: Board) -> None:
    """The VM is closed while a device behind VFIO interrupts, and then VFIO's own side is taken down."""
    if not board.merged:
        board.bind("e1", "e2")
    hardware = board.vfio("a", assign=board.merged)
    intx = hardware.intx
    board.thread("device a").assert_intx("a")
    board.thread("vcpu").interrupt(serve=True)
    user = board.thread("user")
    user.close_vm()

    def disable() -> None:
        with intx.igate:
            intx.disable()

    user.run("disable INTx", disable)
    user.close("a.trigger")
    user.close("a.unmask")

    def left() -> str | None:
        refs = [board.ctx(name).refs for name in ("a.trigger", "a.unmask")]
        return f"S2: eventfds of a have {refs} references left" if any(refs) else None

    board.at_rest(left)
