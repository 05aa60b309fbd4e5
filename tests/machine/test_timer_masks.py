"""A tick of the 8254 that nobody took while its pin was masked does not keep the next ones back once it is unmasked."""

from __future__ import annotations

import pytest

from devices.ioapic import IOREDTBL, IOWIN
from machine import Machine, MachineConfig
from vmm.kernel.gsi import KvmSetIrq
from vmm.trace import Recording

IOAPIC = 0xFEC0_0000
TICK_NS = 4_000_000
MASKED, EDGE = 0x10030, 0x00030


class Board:
    def __init__(self, ioapic):
        config = MachineConfig(accel="qtest", ram_size=1 << 20, options={"ioapic": ioapic})
        self.machine = Machine.create("pc", config)
        self.machine.power_on()
        self.trace = Recording()
        self.machine.trace.listen(self.trace)
        ports = self.machine.ports
        ports.write(0x21, 1, 0xFF)
        ports.write(0xA1, 1, 0xFF)
        self.entry(MASKED)
        ports.write(0x43, 1, 0x34)  # channel 0, rate generator, 250 Hz
        for byte in divmod(1_193_182 // 250, 256)[::-1]:
            ports.write(0x40, 1, byte)

    def entry(self, low):
        """The low half of the redirection entry of pin 2, which GSI 0 is routed to."""
        self.machine.mmio.write(IOAPIC, 4, IOREDTBL + 4)
        self.machine.mmio.write(IOAPIC + IOWIN, 4, low)

    def ticks(self, count):
        """Times that GSI 0 rose while that many ticks were due."""
        self.trace.clear()
        self.machine.clock.step(count * TICK_NS)
        return sum(event.gsi == 0 and event.level for event in self.trace.of(KvmSetIrq))


@pytest.fixture
def make():
    made = []

    def one(ioapic):
        made.append(Board(ioapic))
        return made[-1]

    yield one
    for board in made:
        board.machine.close()


@pytest.fixture
def board(make):
    return make("kvm")


def test_masked_everywhere_one_tick_is_in_flight_and_the_others_wait(board):
    assert board.ticks(5) == 1


@pytest.mark.parametrize("how", ["I/O APIC", "PIC"])
def test_after_an_unmask_ticks_come_again(board, how):
    board.ticks(5)
    if how == "PIC":
        board.machine.ports.write(0x21, 1, 0xFE)
    else:
        board.entry(EDGE)
    assert board.ticks(1) == 1


def test_with_qemus_chips_a_tick_that_nobody_takes_is_dropped(make):
    assert make("qemu").ticks(5) == 5


def test_writing_an_entry_that_stays_masked_changes_nothing(board):
    board.ticks(5)
    board.entry(MASKED | 1)
    assert board.ticks(5) == 0


def test_unmasking_another_pin_changes_nothing(board):
    board.ticks(5)
    board.machine.ports.write(0x21, 1, 0xFD)
    board.machine.ports.write(0xA1, 1, 0xFE)
    assert board.ticks(5) == 0
