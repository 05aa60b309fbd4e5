"""`mailbox` does what it is told by numbers, on our pc as on QEMU's."""

from __future__ import annotations

import pytest

import guest_images as g
from support.qemu_guest import ABSENT, QEMU, QemuGuest

PASSED = g.EXIT_PASSED << 1 | 1
DEBUG_EXIT = {"driver": "isa-debug-exit", "iobase": 0xF4, "iosize": 4}
COMMANDS = "1 read\n2 mask\n3 take\n4 unmask\n\n5 nonsense\n  eoi\n65 quit\n"
ANSWERS = """\
mailbox: 1 entry 0000a051
mailbox: 2 entry 0001a051
mailbox: 3 took 0
mailbox: 4 entry 0000a051
mailbox: 5 unknown
mailbox: 0 ended
mailbox: 65 bye
mailbox: done
"""


def ready(vm, **config):
    guest = vm("pc", kernel=g.path("mailbox"), devices=[DEBUG_EXIT], **config)
    guest.wait_for(lambda: g.MAILBOX_READY.search(guest.serial), "the mailbox")
    return guest


def test_commands_are_answered_with_their_numbers(vm):
    guest = ready(vm)
    guest.type(COMMANDS)
    assert guest.wait_exit() == PASSED
    assert guest.serial.endswith("mailbox: pin 5 vector 81\nmailbox: ready\n" + ANSWERS)


@pytest.mark.skipif(QEMU is None, reason=ABSENT)
def test_commands_are_answered_by_qemus_machine_too():
    with QemuGuest("mailbox", "") as theirs:
        theirs.wait_for("mailbox: ready")
        theirs.send(COMMANDS.encode())
        assert theirs.finish() == PASSED
        assert theirs.console.endswith("mailbox: ready\n" + ANSWERS)


def test_interrupt_waits_until_it_is_asked_for_and_is_in_service_until_its_eoi(vm):
    guest = ready(vm, append="pin=10", options={"irqfd-policy": "resample"})
    e, f = (guest.qmp("x-eventfd-open")["fd"] for _ in range(2))
    guest.qmp("x-irqfd-assign", fd=e, gsi=10, resamplefd=f)
    guest.qmp("x-eventfd-signal", fd=e)
    lapic = guest.qmp("x-query-irqchip")["lapics"][0]
    assert (lapic["irr"], lapic["isr"]) == ([0x51], [])
    guest.type("1 take\n2 read\n3 take\n")
    guest.wait_serial(r"^mailbox: 3 took 0$")
    assert "mailbox: 1 took 81\nmailbox: 2 entry 0000e051\n" in guest.serial
    assert guest.qmp("x-query-irqchip")["lapics"][0]["isr"] == [0x51]
    guest.type("4 eoi\n5 read\n")
    guest.wait_serial(r"^mailbox: 5 entry 0000a051$")
    assert guest.qmp("x-eventfd-read", fd=f) == {"count": 1}
