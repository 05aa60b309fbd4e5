"""KVM_SET_GSI_ROUTING while interrupts of the GSI are under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.apic_bus import MSI_BASE
from vmm.explore.consumer import IntxUser
from vmm.explore.parts import GSI
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route

if TYPE_CHECKING:
    from vmm.explore.board import Board

POLICIES = ("resample",)
"""A device's unmask eventfd is a resamplefd here."""


def explore_same(board: Board) -> None:
    """The same table again, while an irqfd fires and its interrupt is ended: nobody may notice."""
    board.bind("e1", "e2")
    board.thread("device").signal("e1")
    vcpu = board.thread("vcpu")
    for _ in range(board.scale):
        vcpu.interrupt()
    user = board.thread("user")
    for _ in range(board.scale):
        user.reroute(GSI)


def explore_between_messages(board: Board) -> None:
    """A plain irqfd's GSI changes from one message to another: what was signalled arrives, by the one or the other."""
    board.vm.set_gsi_routing([Route.msi(GSI, MSI_BASE, 0x61)])
    board.vm.irqfd(board.fd("e1"), GSI)
    lapic = board.chips.lapics[0]
    board.thread("device").signal("e1")
    routes = [Route.msi(GSI, MSI_BASE, 0x62)]
    board.thread("user").run("to another message", lambda: board.vm.set_gsi_routing(routes))

    def arrived() -> str | None:
        return None if (lapic.irr >> 0x61 & 3).bit_count() == 1 else f"L1: the event arrived as {lapic.irr:#x}"

    board.at_rest(arrived)


def explore_to_message(board: Board) -> None:
    """A plain irqfd's GSI changes from the pin to a message while it is deassigned: then nothing comes from it."""
    board.pin.make_edge()
    board.vm.irqfd(board.fd("e1"), GSI)
    routes = [Route.msi(GSI, MSI_BASE, 0x62)]
    board.thread("device").signal("e1")
    user = board.thread("user")
    user.run("to a message", lambda: board.vm.set_gsi_routing(routes))
    board.thread("other").deassign("e1")


def explore_moved(board: Board) -> None:
    """A monitor moves a device's GSI to another pin as it should: irqfd off, table, irqfd on, VFIO unmasked."""
    user = IntxUser(board, "a")
    hardware = user.hardware
    moved = board.chips.pin(GSI + 1, vector=0x51)
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    for _ in range(board.scale):
        vcpu.interrupt(serve=True)
    routes = [Route.irqchip(GSI, KVM_IRQCHIP_IOAPIC, GSI + 1)]
    thread = board.thread("user")
    thread.run("mask", user.mask)
    thread.run("irqfd off", user.deassign)
    thread.run("to pin 6", lambda: board.vm.set_gsi_routing(routes))
    thread.run("irqfd on", user.assign)
    thread.run("unmask", user.unmask_intx)

    def lost() -> str | None:
        if hardware.depth and not moved.on_its_way() and not board.pin.on_its_way():
            return "L6: a stays masked, and no interrupt of its is on its way"
        return None

    board.at_rest(lost)


def explore_for_ever(board: Board) -> None:
    """The same table again and again while a device interrupts and a CPU goes on for ever: nobody is forgotten."""
    board.vfio("a")
    board.thread("device a").assert_intx("a")
    user = board.thread("user")
    for _ in range(1 + board.scale):
        user.reroute(GSI)
    board.guest()
    board.eventually("L1", "L4", "L5", "L6")
