"""From a function's pin to an ISA IRQ: swizzle, wired-OR, PIRQ routing, and moves of routes."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.edu import REG_IRQ_ACK, REG_IRQ_RAISE, Edu
from devices.pci.device import PciDevice
from devices.pci.piix3 import PciRouteIrq, PirqRouteControl, ResetControl
from support.pci import PIIX3_DEVFN, PM_DEVFN, PciBoard

PATHS = json.loads((Path(__file__).parent.parent / "conformance/data/qemu-intx-paths.json").read_text())["pc"]
ROUTED = (10, 11, 5, 9)
BAR = 0xC000_0000


class Pin(PciDevice):
    driver = "pin"
    interrupt_pin = 1

    def __init__(self, pin=1, **values):
        super().__init__(**values)
        self.interrupt_pin = pin


@pytest.fixture
def board():
    return PciBoard()


def mapped_edu(board, slot):
    """An edu in `slot` with its BAR at a place of its own; returns that place."""
    base = BAR + (slot << 20)
    board.plug(Edu(f"edu{slot}", addr=slot << 3))
    board.config_write(slot << 3, 0x10, base)
    board.config_write(slot << 3, 4, 2, 2)
    return base


@pytest.mark.parametrize("setting", ["reset", "routed"])
def test_inta_of_every_slot_raises_and_lowers_the_pins_that_qemu_recorded(board, setting):
    assert [hex(board.config_read(PIIX3_DEVFN, 0x60 + i, 1)) for i in range(4)] == PATHS["pirq_defaults"]
    if setting == "routed":
        board.route(*ROUTED)
    ours = {}
    for text in PATHS[setting]:
        slot = int(text)
        devfn, base = slot << 3, mapped_edu(board, slot)
        board.take_irq_events()
        seen = {"pin": board.config_read(devfn, 0x3D, 1)}
        board.write(base + REG_IRQ_RAISE, 1)
        seen["raise_"] = board.take_irq_events()
        seen["intx_status"] = bool(board.config_read(devfn, 6, 2) & 8)
        board.config_write(devfn, 4, 0x402, 2)
        seen["disable"] = board.take_irq_events()
        board.config_write(devfn, 4, 0x002, 2)
        seen["reenable"] = board.take_irq_events()
        board.write(base + REG_IRQ_ACK, 1)
        seen["lower"] = board.take_irq_events()
        ours[text] = json.loads(json.dumps(seen))
        board.bus.devices[devfn].unrealize()
    assert ours == PATHS[setting]


def test_two_devices_on_one_pirq_are_ored_as_qemu_recorded(board):
    board.route(*ROUTED)
    a, b = mapped_edu(board, 4), mapped_edu(board, 8)
    events = []
    for base, register in ((a, REG_IRQ_RAISE), (b, REG_IRQ_RAISE), (a, REG_IRQ_ACK), (b, REG_IRQ_ACK)):
        board.write(base + register, 1)
        events.append([list(event) for event in board.take_irq_events()])
    assert events == PATHS["shared 4+8: raise a, raise b, lower a, lower b"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("drive"), st.integers(0, 7), st.booleans()),
        st.tuples(st.just("disable"), st.integers(0, 7), st.booleans()),
        st.tuples(st.just("route"), st.integers(0, 3), st.sampled_from((0x80, 5, 9, 10, 11, 16, 0x8A))),
        st.tuples(st.just("replug"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("reset"), st.integers(0, 7), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(steps=STEPS)
def test_irqs_after_any_drives_disables_routes_and_unplugs_are_the_or_of_who_reaches_them(steps):
    board = PciBoard()
    slots = [3, 4, 5, 7, 8, 9, 12, 31]

    def plug(i):
        return board.plug(Pin(pin=i % 4 + 1, id=f"d{i}", addr=slots[i] << 3))

    devices = [plug(i) for i in range(8)]
    level, disabled, route = [False] * 8, [False] * 8, [0x80] * 4
    for what, i, value in steps:
        if what == "drive":
            level[i] = value
            devices[i].set_intx(value)
        elif what == "disable":
            disabled[i] = value
            board.config_write(slots[i] << 3, 4, 0x400 * value, 2)
        elif what == "route":
            route[i] = value
            board.config_write(PIIX3_DEVFN, 0x60 + i, value, 1)
        elif what == "replug":
            level[i] = disabled[i] = False
            devices[i].unrealize()
            devices[i] = plug(i)
        else:
            level[i] = disabled[i] = False
            devices[i].reset()
        reached = {route[(slots[d] + d % 4 - 1) & 3] for d in range(8) if level[d] and not disabled[d]}
        assert board.high() == sorted(irq for irq in reached if irq < 16)
        for d in range(8):
            assert bool(board.config_read(slots[d] << 3, 6, 2) & 8) == level[d]
        changes = [irq for _, irq in board.take_irq_events()]
        assert len(changes) == len(set(changes)), "an IRQ moved twice in one step"
    before = board.ledger.snapshot()
    for device in devices:
        device.unrealize()
    assert board.high() == []
    assert not any(wire.high for wire in board.bus.pirqs)
    gone = board.ledger.difference(before)[1]
    assert {row.owner for row in gone} == {f"d{i}" for i in range(8)}


def test_level_moves_with_its_pirq_and_the_new_irq_is_high_before_the_old_is_low(board):
    board.plug(Pin(addr=1 << 3 | 2, multifunction=True)).set_intx(True)  # PIRQA
    board.route(11)
    assert board.take_irq_events() == [("raise", 11)]
    board.route(10)
    assert board.take_irq_events() == [("raise", 10), ("lower", 11)]
    board.route(10)
    assert board.take_irq_events() == []
    board.route(0x80)
    assert board.take_irq_events() == [("lower", 10)]


@pytest.mark.parametrize("irq", [0, 1, 2, 8, 13])
def test_irqs_that_the_data_sheet_reserves_can_be_routed_as_in_qemu(board, irq):
    board.plug(Pin(addr=5 << 3)).set_intx(True)
    board.route(irq)
    assert board.high() == [irq]


@pytest.mark.parametrize("value", [0x10, 0x1B, 0x40, 0x80, 0x8B, 0xFF])
def test_route_of_16_or_more_reaches_nothing_and_reads_back(board, value):
    board.plug(Pin(addr=5 << 3)).set_intx(True)
    board.route(value)
    assert board.high() == []
    assert board.config_read(PIIX3_DEVFN, 0x60, 1) == value


def test_one_dword_write_routes_all_four_pirqs(board):
    for slot in (5, 6, 7, 8):
        board.plug(Pin(addr=slot << 3)).set_intx(True)
    board.config_write(PIIX3_DEVFN, 0x60, 0x090A_0B05)
    assert board.high() == [5, 9, 10, 11]


def test_who_asks_for_the_route_hears_of_changes_before_the_level_moves(board):
    device = board.plug(Pin(addr=5 << 3))
    heard = []
    subscription = board.bus.on_route_change(lambda: heard.append((board.bus.intx_route(device), board.high())))
    assert board.bus.intx_route(device) is None
    device.set_intx(True)
    board.route(11)
    board.route(5)
    board.config_write(PIIX3_DEVFN, 0x60, 5, 1)
    assert heard == [(11, []), (5, [11])]
    subscription.close()
    subscription.close()
    board.route(0x80)
    assert heard == [(11, []), (5, [11])]
    assert board.bus.intx_route(device) is None


def test_device_without_a_pin_has_no_route(board):
    board.route(5, 5, 5, 5)
    assert board.bus.intx_route(board.i440fx) is None


def test_reset_takes_all_routes_away(board):
    board.plug(Pin(addr=5 << 3)).set_intx(True)
    board.route(5, 6, 7, 9)
    board.reset()
    assert board.high() == []
    assert [board.config_read(PIIX3_DEVFN, 0x60 + i, 1) for i in range(4)] == [0x80] * 4


def test_change_of_a_route_is_traced():
    board = PciBoard(trace=True)
    board.route(0x80, 11)
    board.route(0x80, 0x80)
    assert board.recording.of(PciRouteIrq) == [PciRouteIrq(1, 11), PciRouteIrq(1, -1)]


@given(value=st.integers(0, 255))
def test_declaration_of_pirqrc_says_what_is_routed(value):
    register = PirqRouteControl.parse(bytes([value]))
    routed = value < 16
    assert (not register.disable and register.irq == value) or not routed
    assert routed or register.disable or value & 0x70


def test_reset_control_resets_the_machine_on_bit_2_and_keeps_bit_1(board):
    board.outb(0xCF9, 0x02)
    assert (board.inb(0xCF9), board.resets) == (0x02, [])
    board.outb(0xCF9, 0x06)
    assert (board.inb(0xCF9), board.resets) == (0x02, ["guest-reset"])
    assert ResetControl.parse(bytes([6])).reset_cpu
    board.outb(0xCF9, 0xF9)
    assert board.inb(0xCF9) == 0
    board.reset()
    assert board.inb(0xCF9) == 0


def test_power_management_registers_answer_at_pmbase_while_enabled(board):
    board.config_write(PM_DEVFN, 0x40, 0x601)
    assert board.pm.base is None
    assert board.inb(0x604) == 0xFF
    board.config_write(PM_DEVFN, 0x80, 1, 1)
    assert board.pm.base == 0x600
    assert board.inb(0x604) == 4
    board.config_write(PM_DEVFN, 0x40, 0xB001_2345)
    assert board.pm.base == 0x2340
    assert board.config_read(PM_DEVFN, 0x40) == 0x2341
    board.config_write(PM_DEVFN, 0x80, 0, 1)
    assert board.pm.base is None
    board.config_write(PM_DEVFN, 0x80, 1, 1)
    board.reset()
    assert board.pm.base is None
    assert board.config_read(PM_DEVFN, 0x40) == 1


def test_ledger_does_not_change_with_the_routes_and_unrealize_lets_go_of_the_lines(board):
    before = board.ledger.snapshot()
    board.route(*ROUTED)
    board.route(11, 11, 0x80, 5)
    assert board.ledger.difference(before) == ([], [])
    board.plug(Pin(addr=5 << 3)).set_intx(True)
    assert board.high() == [11]
    board.piix3.unrealize()
    assert board.high() == []
    assert not any(line.name.startswith("PIRQ") for wire in board.isa_wires for line in wire.holders)
