"""Rule by scene by invariant: the quick rows as expected or explained, and what is said where neither is so."""

from __future__ import annotations

import json
import os
from concurrent.futures.process import BrokenProcessPool

import pytest

from vmm.cli.vintx import main
from vmm.dispute.matrix_expected import CASES, Verdict
from vmm.dispute.matrix_explained import EXPLAINED
from vmm.dispute.row import FAILS, MERGED, POLICIES, V5
from vmm.explore import matrix
from vmm.kernel.policies import policy

QUICK = ["same-eventfd", "close-both", "edge-again", "loop", "eoifd-of-edge", "two-eoifds", "eoifd-closed"]


def case(name: str):
    return next(one for one in CASES if one.name == f"dispute/{name}")


@pytest.mark.parametrize("name", QUICK)
def test_scene_breaks_what_was_expected_or_explained_under_each_rule(name):
    cells = matrix.run([case(name)], POLICIES, jobs=1)
    assert len(cells) >= len(POLICIES) - 1
    text, status = matrix.verdict(cells)
    assert status == 0, text


@pytest.mark.parametrize(("name", "broken"), [("unmask", "S8"), ("resamplefd-closed", "L6")])
def test_merged_rule_has_its_own_price(name, broken):
    assert matrix.survey(case(name), MERGED).breaks == (broken,)


@pytest.mark.skipif(not os.environ.get("VINTX_FULL"), reason="a minute; VINTX_FULL=1 runs it")
def test_whole_matrix_is_as_expected_or_explained():
    text, status = matrix.verdict(matrix.run(CASES, POLICIES))
    assert status == 0, text


def test_every_rule_has_one_verdict_at_most_and_every_verdict_its_evidence():
    for one in CASES:
        named = [name for verdict in one.verdicts for name in verdict.policies]
        assert len(named) == len(set(named)), one.name
        assert all(verdict.says and set(verdict.grade) <= set("SEKR") for verdict in one.verdicts)


def test_every_explanation_is_of_a_difference():
    for (name, rule, found), text in EXPLAINED.items():
        (one,) = (c for c in CASES if c.name == name)
        assert set(one.expected(rule).breaks) != set(found)
        assert text


def test_rule_that_refuses_a_deassign_has_a_zombie_unless_it_looks_again_when_it_binds(monkeypatch):
    monkeypatch.setattr(type(policy(FAILS)), "may_bind", lambda _self, _irqfd: True)
    cell = matrix.survey(case("bind"), FAILS)
    assert cell.breaks == case("bind").expected(FAILS).breaks == ("S1",)


def test_wrong_expectation_is_told_with_what_was_found_and_exits_1():
    wrong = case("same-eventfd")._replace(verdicts=(Verdict((V5,), ("S7", "S14"), "S", "no"),))
    cell = matrix.survey(wrong, V5)
    text, status = matrix.verdict([cell])
    assert status == 1
    assert "same-eventfd under eoifd-v5: expected S7 S14, found S1 S7" in text
    assert "S1: source ids 0x2 are in use" in text
    assert "0 of 1 as expected, 0 explained, 1 not" in text


def test_matrix_is_printed_with_states_and_exits_0(capsys):
    assert main(["explore", "--matrix", "dispute", "--scene", "two-eoifds", "--scene", "bind", "--policy", FAILS]) == 0
    shown = capsys.readouterr().out
    assert "not S1" in shown
    assert "1 of 2 as expected, 1 explained, 0 not" in shown


def test_matrix_as_json_has_found_beside_expected(capsys):
    assert main(["explore", "--matrix", "dispute", "--scene", "loop", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in rows] == list(POLICIES)
    assert all(row["expected"] == list(row["found"]) or set(row["expected"]) == set(row["found"]) for row in rows)
    assert all(row["states"] > 10 and row["complete"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--matrix", "nonesuch"], "has nothing of 'nonesuch'; it has dispute"),
        (["--matrix", "--scene", "nope"], "no scene 'nope'"),
        (["--matrix", "--policy", "nope"], "has no 'nope'; it has eoifd-v5"),
        (["--matrix", "--sources", "1"], "--matrix takes no --sources"),
        ([], "what is to be explored"),
    ],
)
def test_wrong_command_line_is_refused(arguments, words, capsys):
    assert main(["explore", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_process_of_the_matrix_that_dies_is_no_verdict(monkeypatch, capsys):
    def broken(*_args: object, **_more: object):
        raise BrokenProcessPool

    monkeypatch.setattr(matrix, "run", broken)
    assert main(["explore", "--matrix", "dispute", "--scene", "close"]) == 3
    assert "a process of the matrix died; --jobs 1 does without them" in capsys.readouterr().err
