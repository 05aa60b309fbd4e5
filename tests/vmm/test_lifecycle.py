"""The life-cycle table and the ledger."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import LedgerError, LifecycleError
from vmm.lifecycle import TRANSITIONS, Holdings, Ledger, Life, Phase, Who


def test_plug_to_absent_round_trip_follows_the_table():
    life = Life("/machine/peripheral/d0")
    seen = []
    for action, who in [
        ("plug", Who.USER),
        ("realize", Who.MACHINE),
        ("request-unplug", Who.USER),
        ("unrealize", Who.GUEST),
        ("gone", Who.MACHINE),
    ]:
        life.move(action, who)
        seen.append(life.phase)
    assert seen == [Phase.PLUGGED, Phase.REALIZED, Phase.UNPLUG_REQUESTED, Phase.UNREALIZING, Phase.ABSENT]


@given(
    st.sampled_from(sorted({t.action for t in TRANSITIONS})), st.sampled_from(list(Who)), st.sampled_from(list(Phase))
)
def test_transition_outside_the_table_is_refused_and_changes_nothing(action, who, phase):
    life = Life("d0")
    life.phase = phase
    row = next((t for t in TRANSITIONS if t.action == action and phase in t.before and who in t.who), None)
    if row is None:
        with pytest.raises(LifecycleError) as caught:
            life.move(action, who)
        assert (caught.value.device, caught.value.state, caught.value.action) == ("d0", phase.value, action)
        assert life.phase is phase
    else:
        life.move(action, who)
        assert life.phase is row.after


def test_every_phase_leads_back_to_absent():
    reaches = {Phase.ABSENT}
    while True:
        more = {p for t in TRANSITIONS if t.after in reaches for p in t.before} - reaches
        if not more:
            break
        reaches |= more
    assert reaches == set(Phase)


def test_holdings_close_in_reverse_and_leave_the_ledger_as_it_was():
    ledger = Ledger()
    ledger.take(Holdings(Ledger(), "other").hold("slot", "1", lambda: None))
    before = ledger.snapshot()
    order: list[str] = []
    holdings = Holdings(ledger, "d0")
    for name in ("id", "slot", "wire"):
        holdings.hold("kind", name, lambda name=name: order.append(name))
    assert len(ledger.rows("d0")) == 3
    holdings.close()
    assert order == ["wire", "slot", "id"]
    assert ledger.difference(before) == ([], [])


def test_release_that_fails_does_not_keep_the_others():
    ledger = Ledger()
    holdings = Holdings(ledger, "d0")
    order: list[str] = []

    def fail() -> None:
        raise OSError("gone")

    holdings.hold("fd", "a", lambda: order.append("a"))
    holdings.hold("fd", "b", fail)
    holdings.hold("fd", "c", lambda: order.append("c"))
    with pytest.raises(OSError, match="gone"):
        holdings.close()
    assert order == ["c", "a"]
    assert ledger.rows() == []


def test_row_dropped_twice_is_an_error_that_names_it():
    ledger = Ledger()
    holdings = Holdings(ledger, "d0")
    row = holdings.hold("fd", "7", lambda: None)
    holdings.drop(row)
    with pytest.raises(LedgerError, match="d0: fd 7"):
        holdings.drop(row)
    with pytest.raises(LedgerError):
        ledger.give_back(row)
    assert ledger.rows() == []
