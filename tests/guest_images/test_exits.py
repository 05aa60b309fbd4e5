"""`exits` times every kind of exit that the machine has, on our pc as on QEMU's."""

from __future__ import annotations

import pytest

import guest_images as g
from support.qemu_guest import ABSENT, QEMU, QemuGuest

PASSED = g.EXIT_PASSED << 1 | 1
DEBUG_EXIT = {"driver": "isa-debug-exit", "iobase": 0xF4, "iosize": 4}
ALWAYS = ["port-out", "port-in", "lapic-write", "lapic-read", "ioapic-write", "ioapic-read"]
EVERYTHING = [*ALWAYS, "edu-write", "edu-read", "self-ipi", "edge", "halt"]


def check(console: str, kinds: list[str], count: int, halts: int) -> None:
    """All lines are there, in order, with the counts that were asked for; every exit takes time."""
    timed = [m.groupdict() for m in g.EXITS_TIMED.finditer(console)]
    assert [row["kind"] for row in timed] == kinds
    assert [int(row["count"]) for row in timed] == [halts if kind == "halt" else count for kind in kinds]
    assert all(int(row["cycles"]) > 0 for row in timed)
    assert console.splitlines()[-1] == g.EXITS_DONE


def test_every_kind_is_timed_where_edu_and_testdev_are(vm):
    devices = [DEBUG_EXIT, {"driver": "edu"}, {"driver": "pc-testdev"}]
    guest = vm("pc", kernel=g.path("exits"), append="n=200", devices=devices)
    assert guest.wait_exit() == PASSED
    check(guest.serial, EVERYTHING, 200, 2)


def test_without_devices_the_rest_is_timed(vm):
    guest = vm("pc", kernel=g.path("exits"), append="n=20", devices=[DEBUG_EXIT])
    assert guest.wait_exit() == PASSED
    check(guest.serial, [*ALWAYS, "self-ipi", "halt"], 20, 1)


def test_a_wake_up_takes_no_less_than_the_timer(vm):
    guest = vm("pc", kernel=g.path("exits"), append="n=1000", devices=[DEBUG_EXIT])
    guest.wait_exit()
    halt = next(m for m in g.EXITS_TIMED.finditer(guest.serial) if m["kind"] == "halt")
    hz = guest.machine.engine.tsc_hz
    assert int(halt["cycles"]) / hz >= 0.999 * int(halt["count"]) * g.EXITS_HALT_NS / 1e9


@pytest.mark.skipif(QEMU is None, reason=ABSENT)
def test_qemu_times_every_kind_too():
    with QemuGuest("exits", "n=200", "-device", "edu", "-device", "pc-testdev") as guest:
        assert guest.finish() == PASSED
    check(guest.console, EVERYTHING, 200, 2)
