"""The pair of 8259As: programming, priorities, cascade, and what both personalities promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devices.i8259 import I8259, Pic, PicInterrupt, PicSetIrq, PicState
from tests.support.i8259 import EOI, MASTER, SLAVE, Machine
from vmm import order
from vmm.errors import PropertyError

VECTORS = Path(__file__).parents[1] / "conformance" / "data"


both = pytest.mark.parametrize("personality", ["kvm", "qemu"])


@both
def test_edge_on_unmasked_pin_gives_its_vector_once(personality):
    m = Machine(personality)
    m.pulse(4)
    assert m.pic.high
    assert m.pic.intack() == 0x34
    assert (m.isr(MASTER), m.irr(MASTER), m.pic.high) == (0x10, 0, False)
    m.eoi(4)
    assert (m.isr(MASTER), m.pic.high) == (0, False)


@both
def test_level_pin_still_high_at_eoi_requests_again(personality):
    m = Machine(personality)
    m.out(0x4D0, 0x20)
    m.line(5, True)
    assert m.pic.intack() == 0x35
    assert not m.pic.high
    m.eoi(5)
    assert m.pic.high
    m.line(5, False)
    assert not m.pic.high


@both
def test_slave_pin_goes_through_both_chips(personality):
    m = Machine(personality)
    m.pulse(12)
    assert m.pic.intack() == 0x3C
    assert (m.isr(MASTER), m.isr(SLAVE)) == (0x04, 0x10)
    m.eoi(12)
    assert (m.isr(MASTER), m.isr(SLAVE), m.pic.high) == (0, 0, False)


@both
def test_second_slave_request_is_served_after_the_first(personality):
    m = Machine(personality)
    m.pulse(12, 14)
    assert m.pic.intack() == 0x3C
    m.eoi(12)
    assert m.pic.high
    assert m.pic.intack() == 0x3E
    m.eoi(14)
    assert not m.pic.high


@both
def test_higher_priority_interrupts_lower_in_service(personality):
    m = Machine(personality)
    m.pulse(6)
    m.pic.intack()
    m.pulse(7)
    assert not m.pic.high
    m.pulse(1)
    assert m.pic.intack() == 0x31
    m.out(MASTER, EOI)
    assert m.isr(MASTER) == 0x40


@both
def test_masked_pin_requests_when_unmasked(personality):
    m = Machine(personality)
    m.out(MASTER + 1, 0x08)
    assert m.line(3, True) == -1
    assert not m.pic.high
    m.out(MASTER + 1, 0)
    assert m.pic.high


@both
def test_level_request_withdrawn_before_inta_lowers_int(personality):
    m = Machine(personality)
    m.out(0x4D0, 0x20)
    m.line(5, True)
    m.line(5, False)
    assert not m.pic.high
    assert m.pic.peek() is None


@both
def test_inta_with_nothing_pending_gives_spurious_ir7_and_sets_no_isr(personality):
    m = Machine(personality, trace=True)
    assert m.pic.intack() == 0x37
    assert m.isr(MASTER) == 0
    assert m.board.recording.of(PicInterrupt)[-1] == PicInterrupt(0x37, True)


def test_slave_request_withdrawn_before_inta_gives_spurious_irq15():
    m = Machine("kvm")
    m.out(0x4D1, 0x08)
    m.line(11, True)
    m.line(11, False)
    assert m.pic.peek() == 0x3F
    assert m.pic.intack() == 0x3F
    assert (m.isr(MASTER), m.isr(SLAVE)) == (0x04, 0)


@both
def test_specific_eoi_ends_the_named_level_only(personality):
    m = Machine(personality)
    m.pulse(6)
    m.pic.intack()
    m.pulse(2 + 1)
    m.pic.intack()
    m.out(MASTER, 0x60 | 6)
    assert m.isr(MASTER) == 0x08


@both
def test_rotate_on_specific_eoi_puts_that_level_last(personality):
    m = Machine(personality)
    m.pulse(4)
    m.pic.intack()
    m.out(MASTER, 0xE0 | 4)
    m.pulse(0, 5)
    assert m.pic.intack() == 0x35


@both
def test_rotate_on_non_specific_eoi_puts_served_level_last(personality):
    m = Machine(personality)
    m.pulse(4)
    m.pic.intack()
    m.out(MASTER, 0xA0)
    m.pulse(3, 6)
    assert m.pic.intack() == 0x36


@both
def test_set_priority_makes_the_level_lowest(personality):
    m = Machine(personality)
    m.out(MASTER, 0xC0 | 2)
    m.pulse(2, 3)
    assert m.pic.intack() == 0x33


@both
def test_auto_eoi_leaves_nothing_in_service(personality):
    m = Machine(personality, initialise=False)
    m.initialise(icw4=3)
    m.pulse(4)
    assert m.pic.intack() == 0x34
    assert m.isr(MASTER) == 0
    m.pulse(4)
    assert m.pic.intack() == 0x34


@both
def test_rotate_in_auto_eoi_mode_rotates_after_each_inta(personality):
    m = Machine(personality, initialise=False)
    m.initialise(icw4=3)
    m.out(MASTER, 0x80)
    m.pulse(4)
    m.pic.intack()
    m.pulse(4, 6)
    assert m.pic.intack() == 0x36


@both
def test_special_fully_nested_master_lets_slave_interrupt_itself(personality):
    m = Machine(personality, initialise=False)
    m.initialise(icw4=0x11)
    m.pulse(12)
    m.pic.intack()
    m.pulse(9)
    assert m.pic.intack() == 0x39


@both
def test_plain_nested_master_holds_slave_back_until_eoi(personality):
    m = Machine(personality)
    m.pulse(12)
    m.pic.intack()
    m.pulse(9)
    assert not m.pic.high
    m.out(MASTER, EOI)
    assert m.pic.intack() == 0x39


@pytest.mark.parametrize(("personality", "delivered"), [("kvm", False), ("qemu", True)])
def test_special_mask_mode_lets_lower_level_through_only_where_modelled(personality, delivered):
    m = Machine(personality)
    m.pulse(3)
    m.pic.intack()
    m.out(MASTER + 1, 0x08)
    m.out(MASTER, 0x68)
    m.pulse(6)
    assert m.pic.high is delivered


@pytest.mark.parametrize(("personality", "hit", "miss", "isr"), [("kvm", 0x85, 7, 0), ("qemu", 0x85, 0, 0x20)])
def test_poll_reads_pending_level(personality, hit, miss, isr):
    m = Machine(personality)
    m.out(MASTER, 0x0C)
    assert m.inb(MASTER) == miss
    m.pulse(5)
    m.out(MASTER, 0x0C)
    assert m.inb(MASTER) == hit
    assert m.isr(MASTER) == isr
    assert not m.pic.high


@both
def test_slave_poll_takes_the_cascade_request_away(personality):
    m = Machine(personality)
    m.pulse(10)
    m.out(SLAVE, 0x0C)
    assert m.inb(SLAVE) & 7 == 2
    assert m.irr(SLAVE) == 0


@pytest.mark.parametrize(("personality", "isr"), [("kvm", 0x10), ("qemu", 0)])
def test_icw1_clears_mask_and_edge_requests(personality, isr):
    m = Machine(personality)
    m.pulse(4)
    m.pic.intack()
    m.out(0x4D0, 0x20)
    m.line(5, True)
    m.pulse(6)
    m.out(MASTER + 1, 0xFF)
    m.out(MASTER, 0x11)
    assert m.inb(MASTER + 1) == 0
    assert (m.irr(MASTER), m.isr(MASTER)) == (0x20, isr)
    assert m.inb(0x4D0) == 0x20


def test_icw1_acknowledges_dropped_edges_only_if_a_cpu_listens():
    m = Machine("kvm")
    acked = Acks(m.pic)
    m.pulse(4, 6)
    m.pic.accepts = lambda: False
    m.out(MASTER, 0x11)
    assert acked.pins == []
    m.initialise()
    m.pulse(4, 6)
    m.pic.accepts = lambda: True
    m.out(MASTER, 0x11)
    assert acked.pins == [4, 6]


@both
def test_icw_sequence_without_icw4_ends_after_icw3(personality):
    m = Machine(personality, initialise=False)
    for port, value in ((MASTER, 0x10), (MASTER + 1, 0x27), (MASTER + 1, 4), (MASTER + 1, 0xFB)):
        m.out(port, value)
    assert m.inb(MASTER + 1) == 0xFB
    m.out(MASTER + 1, 0)
    m.pulse(1)
    assert m.pic.intack() == 0x21


def test_single_mode_of_qemu_skips_icw3():
    m = Machine("qemu", initialise=False)
    for port, value in ((MASTER, 0x13), (MASTER + 1, 0x20), (MASTER + 1, 1), (MASTER + 1, 0xFB)):
        m.out(port, value)
    assert m.inb(MASTER + 1) == 0xFB


@both
def test_elcr_keeps_only_pins_that_may_be_level(personality):
    m = Machine(personality)
    m.board.outw(0x4D0, 0xFFFF)
    assert (m.inb(0x4D0), m.inb(0x4D1)) == (0xF8, 0xDE)


def test_word_access_reaches_both_ports_as_bytes():
    m = Machine()
    m.board.outw(MASTER, 0xA50B)
    assert m.inb(MASTER + 1) == 0xA5
    assert m.board.inw(MASTER) == 0xA500


class Acks:
    def __init__(self, pic: Pic) -> None:
        self.pins: list[int] = []
        pic.ack_notifiers = self

    def notify_acked(self, pin: int) -> None:
        self.pins.append(pin)


@both
def test_eoi_notifies_with_global_pin_number(personality):
    m = Machine(personality)
    acked = Acks(m.pic)
    m.pulse(11)
    m.pic.intack()
    m.out(SLAVE, EOI)
    m.out(MASTER, EOI)
    assert acked.pins == [11, 2]


def test_ack_notifier_that_lowers_the_pin_prevents_a_second_interrupt():
    m = Machine()
    m.out(0x4D0, 0x20)
    m.line(5, True)
    m.pic.intack()

    class Resample:
        def notify_acked(self, pin: int) -> None:
            m.pic.set_irq(pin, 0, False)

    m.pic.ack_notifiers = Resample()
    m.eoi(5)
    assert not m.pic.high


def test_point_before_ack_sees_isr_clear_and_lock_free(monkeypatch):
    m = Machine()
    m.pulse(4)
    m.pic.intack()
    seen = []
    monkeypatch.setattr(order, "hook", lambda name, pic: seen.append((name, pic.master.isr, pic.lock.is_free())))
    m.out(MASTER, EOI)
    assert seen == [("pic.eoi.before-ack", 0, True)]
    assert m.pic.lock.is_free()


def test_pin_falls_only_when_last_source_lets_go():
    m = Machine()
    m.out(0x4D0, 0x20)
    pic = m.pic
    assert pic.set_irq(5, 0, True) == 1
    assert pic.set_irq(5, 1, True) == 0
    pic.set_irq(5, 0, False)
    assert pic.high
    pic.clear_source(1)
    assert not pic.high


def test_output_is_told_of_changes_only():
    m = Machine()
    told = []
    m.pic.output = told.append
    m.pulse(4, 6)
    m.pic.intack()
    assert told == [True, False]


def test_reset_returns_all_registers_to_zero_and_lowers_int():
    m = Machine()
    m.out(0x4D0, 0x20)
    m.line(5, True)
    m.device.reset()
    assert not m.pic.high
    assert m.pic.state(0) == bytes(15) + b"\xf8"


def test_set_state_of_kernel_struct_raises_int_at_once():
    m = Machine()
    state = dict.fromkeys((f.name for f in PicState.subcons), 0) | {"irr": 0x10, "irq_base": 0x50}
    m.pic.set_state(0, PicState.build(state))
    assert m.pic.high
    assert m.pic.peek() == 0x54


def test_unknown_personality_is_refused_by_name():
    with pytest.raises(PropertyError, match=r"personality.*'bochs'"):
        I8259(personality="bochs")


def test_unrealize_gives_back_every_port():
    m = Machine()
    m.device.unrealize()
    assert m.board.ledger.rows() == []
    assert m.inb(MASTER + 1) == 0xFF


def test_trace_shows_pin_and_result():
    m = Machine(trace=True)
    m.line(4, True)
    m.line(4, True)
    assert m.board.recording.of(PicSetIrq) == [PicSetIrq(4, True, 1), PicSetIrq(4, True, 1)]


def test_info_names_both_chips():
    assert Machine().pic.info() == [
        "pic0: irr=00 imr=00 isr=00 hprio=0 irq_base=30 rr_sel=0 elcr=00 fnm=0",
        "pic1: irr=00 imr=00 isr=00 hprio=0 irq_base=38 rr_sel=0 elcr=00 fnm=0",
    ]


def recorded_sequences():
    data = json.loads((VECTORS / "kvm-ioapic.json").read_text())
    return [s for s in data["seqs"] if s.get("default_routing")]


@pytest.mark.parametrize("sequence", recorded_sequences(), ids=lambda s: s["name"])
def test_recorded_kernel_states_are_reproduced(sequence):
    pic = Pic("kvm")
    level: dict[str, int] = {}
    expected = sequence["trace"][0]["chg"]["pic"]
    for op, entry in zip(sequence["ops"], sequence["trace"][1:], strict=True):
        match op:
            case ["irqfd", name, gsi, *_]:
                level[name] = gsi
            case ["efd_write", name]:
                pic.set_irq(level[name], 1, True)
            case ["line_status", gsi, value] if gsi < 16:
                pic.set_irq(gsi, 0, bool(value))
            case ["eoi"]:  # the resampler lowers the pin of both chips
                pic.clear_source(1)
        expected = entry.get("chg", {}).get("pic", expected)
        assert [[c.irr, c.isr, c.imr, c.last_irr] for c in pic.chips] == expected
