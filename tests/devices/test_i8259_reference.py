"""The 8259A beside a slow and obvious one, and its command words beside their declarations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.i8259 import Icw1, Icw4, Ocw2, Ocw3, Pic, PicState
from tests.support.i8259 import MASTER, Machine

both = pytest.mark.parametrize("personality", ["kvm", "qemu"])


# A slow and obvious 8259A: sets of pins, and the priority order as a list.


class Obvious:
    def __init__(self) -> None:
        self.order = list(range(8))
        self.requests: set[int] = set()
        self.served: set[int] = set()
        self.masked: set[int] = set()

    def candidate(self) -> int | None:
        for pin in self.order:
            if pin in self.served:
                return None
            if pin in self.requests and pin not in self.masked:
                return pin
        return None

    def end(self, pin: int | None = None, rotate: bool = False) -> None:
        if pin is None:
            pin = next((p for p in self.order if p in self.served), None)
            if pin is None:
                return
        self.served.discard(pin)
        if rotate:
            self.last(pin)

    def last(self, pin: int) -> None:
        at = self.order.index(pin)
        self.order = self.order[at + 1 :] + self.order[: at + 1]


pins = st.sampled_from([0, 1, 3, 4, 5, 6, 7])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("pulse"), pins),
        st.tuples(st.just("mask"), st.integers(0, 255)),
        st.tuples(st.just("inta")),
        st.tuples(st.just("eoi"), st.booleans()),
        st.tuples(st.just("specific"), pins, st.booleans()),
        st.tuples(st.just("lowest"), pins),
    ),
    max_size=60,
)


@both
@given(operations)
def test_master_agrees_with_a_slow_reference(personality, ops):
    m = Machine(personality)
    model = Obvious()
    for op in ops:
        match op:
            case ("pulse", pin):
                m.pulse(pin)
                model.requests.add(pin)
            case ("mask", mask):
                m.out(MASTER + 1, mask)
                model.masked = {p for p in range(8) if mask >> p & 1}
            case ("inta",):
                pin = model.candidate()
                assert m.pic.intack() == 0x30 + (7 if pin is None else pin)
                if pin is not None:
                    model.requests.discard(pin)
                    model.served.add(pin)
            case ("eoi", rotate):
                m.out(MASTER, 0xA0 if rotate else 0x20)
                model.end(rotate=rotate)
            case ("specific", pin, rotate):
                m.out(MASTER, (0xE0 if rotate else 0x60) | pin)
                model.end(pin, rotate)
            case ("lowest", pin):
                m.out(MASTER, 0xC0 | pin)
                model.last(pin)
        assert m.pic.high == (model.candidate() is not None)
        assert m.isr(MASTER) == sum(1 << p for p in model.served)
        assert m.irr(MASTER) == sum(1 << p for p in model.requests)


anything = st.lists(
    st.one_of(
        st.tuples(st.just("w"), st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1]), st.integers(0, 255)),
        st.tuples(st.just("r"), st.sampled_from([0x20, 0x21, 0xA0, 0xA1])),
        st.tuples(st.just("l"), st.integers(0, 15), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("inta")),
    ),
    max_size=60,
)


@both
@given(anything)
def test_peek_foretells_intack_whatever_the_guest_did(personality, ops):
    m = Machine(personality)
    for op in ops:
        match op:
            case ("w", port, value):
                m.out(port, value)
            case ("r", port):
                assert 0 <= m.inb(port) <= 255
            case ("l", pin, source, level):
                assert m.pic.set_irq(pin, source, level) in (-1, 0, 1)
            case ("inta",):
                before = (m.pic.state(0), m.pic.state(1))
                vector = m.pic.peek()
                assert (m.pic.state(0), m.pic.state(1)) == before
                taken = m.pic.intack()
                assert vector is None or vector == taken
        if m.pic.peek() is not None:
            assert m.pic.high
        twin = Pic(personality)
        for i in (0, 1):
            twin.chips[i].set_state(PicState.parse(m.pic.state(i)))
        assert twin.master.pending() == m.pic.master.pending()


@given(st.integers(0, 255))
def test_declared_command_words_say_what_the_chip_does(value):
    m = Machine(initialise=False)
    m.out(MASTER, value)
    chip = m.pic.master
    if value & 0x10:
        word = Icw1.parse(bytes([value]))
        assert (chip.init_state, bool(chip.init4)) == (1, word.ic4)
    elif value & 0x08:
        word = Ocw3.parse(bytes([value]))
        assert bool(chip.poll) == word.p
        assert chip.read_reg_select == (word.rr and word.ris)
        assert chip.special_mask == (word.esmm and word.smm)
    else:
        word = Ocw2.parse(bytes([value]))
        sets_priority = word.r and word.sl
        assert chip.priority_add == ((word.level + 1) & 7 if sets_priority else 0)


@given(st.integers(0, 255))
def test_declared_icw4_says_what_the_chip_does(value):
    m = Machine(initialise=False)
    for port, byte in ((MASTER, 0x11), (MASTER + 1, 0x20), (MASTER + 1, 4), (MASTER + 1, value)):
        m.out(port, byte)
    word = Icw4.parse(bytes([value]))
    assert bool(m.pic.master.auto_eoi) == word.aeoi
    assert bool(m.pic.master.special_fully_nested_mode) == word.sfnm
