"""The rows of docs/dispute.md in every order: what each rule breaks in them is `vintx explore --matrix`.

Rows that play two GSIs or a dup are not here: they have one order only. Run it with `--sources 1`, or as the matrix
does, which knows how many source ids each scene wants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.explore.board import Board

SAME_END = (("deassign", "close"), ("eoifd-deassigned", "eoifd-closed"))


def explore_other_eventfd(board: Board) -> None:
    """Row a: irqfd, eoifd, deassign, another irqfd, close of the eoifd, in any order."""
    user = board.thread("user", any_order=True)
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.assign("e3")
    user.close("e2")


def explore_same_eventfd(board: Board) -> None:
    """Row a': the same eventfd is assigned again, and fires."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.assign("e1", eoi="e2")
    user.signal("e1")
    vcpu.interrupt()


def _bound(board: Board) -> None:
    board.bind("e1", "e2")
    board.thread("device").signal("e1")
    board.thread("vcpu").interrupt()


def explore_deassign(board: Board) -> None:
    """Row k: the irqfd is deassigned while its interrupt is under way."""
    _bound(board)
    board.thread("user").deassign("e1")


def explore_close(board: Board) -> None:
    """Row b: its eventfd is closed instead."""
    _bound(board)
    board.thread("user").close("e1")


def explore_close_both(board: Board) -> None:
    """Row b: both eventfds are closed."""
    board.bind("e1", "e2")
    board.thread("user").close("e1")
    board.thread("other").close("e2")


def explore_assign_twice(board: Board) -> None:
    """Row c: two threads assign one eventfd."""
    board.thread("user").assign("e1", eoi="e2")
    board.thread("other").assign("e1", eoi="e3")


def explore_edge_again(board: Board) -> None:
    """Row d: the eventfd is assigned again as an edge irqfd, and fires."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.deassign("e1")
    user.assign("e1", edge=True)
    user.signal("e1")
    vcpu.interrupt()


def explore_edge_beside(board: Board) -> None:
    """Row d': another, edge irqfd is on the pair's GSI; both fire."""
    board.bind("e1", "e2")
    user = board.thread("user")
    user.assign("e9", edge=True)
    user.signal("e9")
    board.thread("device").signal("e1")
    board.thread("vcpu").interrupt()


def explore_loop(board: Board) -> None:
    """Row e: irqfd, eoifd, deassign, again and again with other eventfds."""
    user = board.thread("user")
    for turn in ("1", "2", "3"):
        user.assign(f"e{turn}", eoi=f"f{turn}")
        user.eoifd(f"f{turn}", f"e{turn}")
        user.deassign(f"e{turn}")


def explore_bind(board: Board) -> None:
    """Row f: assign, bind and deassign by three threads."""
    board.thread("user").assign("e1", eoi="e2")
    board.thread("binder").eoifd("e2", "e1")
    board.thread("other").deassign("e1")


def explore_eoifd_of_edge(board: Board) -> None:
    """Row g: an eoifd for an edge irqfd."""
    board.thread("user").assign("e1", edge=True)
    board.thread("binder").eoifd("e2", "e1")


def explore_two_eoifds(board: Board) -> None:
    """Row h: two want to hear of the EOI. With one object there are two irqfds instead."""
    user, vcpu = board.thread("user"), board.thread("vcpu")
    user.assign("e1", eoi="f1")
    if board.merged:
        user.assign("e2", eoi="f2")
    user.eoifd("f1", "e1")
    user.eoifd("f2", "e1")
    user.signal("e1")
    vcpu.interrupt()


def _half(board: Board) -> None:
    vcpu = board.thread("vcpu")
    vcpu.interrupt()

    def stuck() -> str | None:
        ended = board.results("vcpu")[-1:] == ("EOI = ok",)
        return "L5: the pin is high after the EOI, and nobody will ever lower it" if ended and board.pin.held else None

    board.at_rest(stuck)


def explore_eoifd_closed(board: Board) -> None:
    """Row i: the eoifd's eventfd is closed first; then the irqfd fires."""
    _half(board)
    user = board.thread("user")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.close("e2")
    user.signal("e1")


def explore_eoifd_deassigned(board: Board) -> None:
    """Row i: the eoifd is deassigned first; then the irqfd fires."""
    _half(board)
    user = board.thread("user")
    user.assign("e1", eoi="e2")
    user.eoifd("e2", "e1")
    user.deassign_eoifd("e2", "e1")
    user.signal("e1")


def explore_vm_closed(board: Board) -> None:
    """Row j: the VM's descriptor is closed with both bound, and the guest ends its interrupt all the same."""
    board.bind("e1", "e2")
    ctx = board.held("e1")

    def fire() -> None:
        ctx.signal()
        ctx.put()  # or it stays for who might signal it again

    board.thread("device").run("SIG e1, put", fire)
    board.thread("vcpu").interrupt()
    user = board.thread("user")
    user.close_vm()
    user.close("e1")
    user.close("e2")


def explore_eoifd_first(board: Board) -> None:
    """Row l: as QEMU did, the eoifd first, with an interrupt under way."""
    _bound(board)
    user = board.thread("user")
    user.deassign_eoifd("e2", "e1")
    user.deassign("e1")


def explore_resamplefd_closed(board: Board) -> None:
    """Row i with VFIO: its unmask eventfd is the resamplefd, and is closed while there is an interrupt."""
    hardware = board.vfio("a", assign=board.merged)
    if not board.merged:
        board.bind("a.trigger", "a.unmask")
    board.thread("device").assert_intx("a")
    board.thread("user").close("a.unmask")
    board.thread("vcpu").interrupt(serve=True)

    def masked() -> str | None:
        ctx = hardware.intx.ctx
        waits = ctx is not None and ctx.masked and not hardware.level
        return "L6: a was served, and stays masked for ever" if waits and not board.pin.on_its_way() else None

    board.at_rest(masked)


def explore_unmask(board: Board) -> None:
    """The guest masks and unmasks its pin while user space raises the line as well."""
    board.bind("e1", "e2")
    board.thread("device").signal("e1")
    board.thread("user").line(1)
    guest = board.thread("guest")
    guest.run("mask", board.pin.mask)
    guest.run("unmask", board.pin.unmask)  # not `guest.unmask()`, which takes an irqfd's source for no line (S11)
