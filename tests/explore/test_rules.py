"""The catalogue of rules, and those of them that are functions of a board, each broken by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.explore import rules
from vmm.explore.board import Board
from vmm.explore.locks import circle
from vmm.explore.parts import GSI
from vmm.kernel import invariants

PAGE = Path(__file__).parents[2] / "docs" / "explore.md"


def test_all_twenty_six_are_there_once_and_in_order():
    numbers = [rule.number for rule in rules.catalogue()]
    assert numbers == [*(f"S{n}" for n in range(1, 21)), *(f"L{n}" for n in range(1, 7))]


@pytest.mark.parametrize("rule", rules.catalogue(), ids=lambda rule: rule.number)
def test_rule_says_its_form_what_is_ghost_and_whether_that_is_hashed(rule):
    forms = {"state", "step", "two runs", "as it happens", "lock graph", "fair cycle"}
    assert set(rule.form.split(", ")) <= forms
    assert rule.says
    assert rule.asked
    assert bool(rule.ghost) == bool(rule.hashed)


def test_guides_table_is_the_catalogue():
    assert rules.markdown() in PAGE.read_text()


def test_functions_that_rules_name_exist():
    named = {name for rule in rules.catalogue() for name in rule.asked.split("`")[1::2] if name.isidentifier()}
    missing = [
        name for name in named if not (hasattr(rules, name) or hasattr(invariants, name) or name in rules.AS_IT_HAPPENS)
    ]
    assert missing == []


@pytest.fixture
def board():
    board = Board()
    board.vfio("a")
    return board


def test_board_at_rest_breaks_nothing(board):
    assert (rules.s17(board), rules.l1(board)) == ("", "")
    assert all(goal(board) for goal in rules.GOALS.values())
    assert board.wrong_at_rest() is None


def test_device_that_is_masked_twice_breaks_s17(board):
    board.device("a").mask()
    board.device("a").mask()
    assert "disabled 2 times" in rules.s17(board)


def test_device_that_is_not_masked_while_the_guest_disabled_it_breaks_s17(board):
    board.device("a").intx.virq_disabled = True
    assert "it is not masked" in rules.s17(board)


def test_device_that_waits_with_no_interrupt_on_its_way_breaks_l1(board):
    board.device("a").assert_intx()
    board.executor.pending.clear()  # the injection is lost
    assert "a wants service" in rules.l1(board)
    assert not rules.served(board)
    assert not rules.unmasked(board)


def test_line_that_is_high_and_not_delivered_breaks_l1(board):
    board.pin.mask()
    board.vm.irq_line(GSI, 1)
    assert rules.l1(board) == ""
    board.chips.ioapic.redir[GSI] &= ~(1 << 16)
    assert "nothing was delivered" in rules.l1(board)
    assert not rules.progressed(board)


def test_pin_that_waits_for_an_eoi_that_no_cpu_owes_breaks_s12(board):
    board.vm.irq_line(GSI, 1)
    assert board.wrong_at_rest() is None
    board.chips.lapics[0].irr = 0
    assert board.wrong_at_rest().startswith("S12: pin 5 waits for an EOI of vector 0x50")


@pytest.mark.parametrize(
    ("delivered", "high", "wrong"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_unmask_delivers_only_what_is_high(delivered, high, wrong):
    assert bool(rules.s11(delivered, high)) == wrong


@pytest.mark.parametrize(
    ("nested", "way"),
    [
        ([("a", "b"), ("b", "c")], ""),
        ([("a", "b"), ("b", "a")], "a -> b -> a"),
        ([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")], "a -> b -> c -> a"),
    ],
)
def test_locks_that_nest_in_a_circle_break_s15(nested, way):
    said = rules.s15(nested)
    assert said.endswith(way)
    assert bool(said) == bool(way)


@pytest.mark.parametrize(
    ("lock", "kind"),
    [("e1.wqh", "wqh"), ("irq-source-3", "irq-source"), ("a.igate", "igate"), ("kvm.irqfds.lock", "kvm.irqfds.lock")],
)
def test_kind_of_a_lock_is_its_name_without_whose_it_is(lock, kind):
    assert rules.kind_of(lock) == kind


def test_circle_names_who_takes_what():
    board = Board(era="3.8")
    board.bind("e1", "e2")
    board.thread("user").assign("e3", eoi="e4")
    board.thread("other").close("e1")
    said = circle(board.scenario(), 10_000)
    assert said.startswith("S15: locks are taken in a circle: kvm.irqfds.lock -> wqh -> kvm.irqfds.lock")
    assert "other takes kvm.irqfds.lock under wqh" in said
