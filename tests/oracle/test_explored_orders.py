"""The live KVM as the judge of the explorer: every short order of an irqfd's life, and scenes played by threads."""

from __future__ import annotations

import json
import os

import pytest

from vmm.cli.vintx import main
from vmm.explore import against_kvm, scenes
from vmm.explore.kvm_trials import Trial
from vmm.kernel.irqfd import Resampler

pytestmark = pytest.mark.kvm


@pytest.mark.usefixtures("kvm")
def test_every_short_order_comes_to_the_same_on_the_live_kvm():
    report = against_kvm.compare(3, jobs=1)
    assert report.differences == []
    assert (report.sequences, report.orders) == (393, 756)


@pytest.mark.usefixtures("kvm")
def test_two_eventfds_come_to_the_same_and_merged_states_stand_for_all_orders():
    report = against_kvm.compare(3, eventfds=2)
    assert report.differences == []
    # 16 operations. Nothing follows a call on an eventfd that has no descriptor: seven calls, after either close.
    assert report.orders == 16 + 16**2 + (16**2 - 2 * 7) * 16
    assert report.sequences < report.orders / 4


@pytest.mark.skipif(not os.environ.get("VINTX_FULL"), reason="two minutes; VINTX_FULL=1 runs it")
@pytest.mark.usefixtures("kvm")
def test_every_order_of_six_comes_to_the_same_on_the_live_kvm():
    report = against_kvm.compare(6)
    assert report.differences == []
    assert report.orders == 420_273


@pytest.mark.usefixtures("kvm")
def test_model_that_forgets_to_lower_the_line_is_found_in_few_operations(monkeypatch):
    monkeypatch.setattr(Resampler, "ack", Resampler.notify)
    report = against_kvm.compare(3, jobs=1)
    assert report.differences
    shortest = min(report.differences, key=lambda difference: len(difference.sequence))
    assert shortest.sequence == ("I+ e 5", "SIG e", "EOI 5")
    assert (shortest.model.irr, shortest.kernel.irr) == (1 << 5, 0)
    assert "I+ e 5, SIG e, EOI 5\n  model:  ok; GSI 5 IRR 1" in str(shortest)


@pytest.mark.parametrize("scene", ["deassign", "close", "assign", "two-removers"])
def test_what_threads_were_seen_to_do_is_among_what_the_explorer_found(kvm, scene):
    report = Trial(scenes.load("irqfd-life"), scene).run(kvm, 60)
    assert report.strange == []
    assert len(report.seen) > 1
    assert sum(report.seen.values()) == 60


def test_outcome_that_no_order_has_is_strange(kvm):
    trial = Trial(scenes.load("irqfd-life"), "assign")
    trial.explored = {outcome for outcome in trial.explored if not outcome.irr}
    report = trial.run(kvm, 40)
    assert report.strange
    assert all(outcome.irr for outcome in report.strange)


@pytest.mark.usefixtures("kvm")
def test_judge_is_asked_by_command_and_says_what_it_left_out(capsys):
    assert main(["explore", "irqfd-life", "--against-kvm", "--depth", "2", "--trials", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["orders"]["differences"] == []
    assert said["orders"]["orders"] > 80
    assert [scene["strange"] for scene in said["scenes"]] == [[]] * 5
    assert "a VM that is closed" in said["left-out"]["vm-closed"]


def test_scenario_of_which_nothing_can_be_played_is_no_agreement(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def explore_it(board):\n    board.thread('u').run('f', int)\n")
    assert main(["explore", str(path), "--against-kvm"]) == 3
    assert "nothing of it could be compared" in capsys.readouterr().err
