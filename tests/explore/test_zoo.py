"""Historical bugs: each is found by what it is said to break, and the same scene is clean once it is fixed."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from vmm.cli.vintx import main
from vmm.errors import UsageError
from vmm.explore import scenes, story, zoo
from vmm.explore.board import Parts
from vmm.explore.zoo.binding import GoesByOldRoute
from vmm.kernel.irqfd import Irqfds

BUGS = zoo.bugs()
PAGE = (Path(__file__).parents[2] / "docs" / "explore.md").read_text()


@pytest.mark.parametrize("number", BUGS)
def test_bug_is_found_and_its_fix_is_clean(number):
    shown = zoo.show(BUGS[number])
    assert shown.clean, str(shown.real.result.finding)
    if not BUGS[number].shown:
        assert shown.broken.result.finding is None, str(shown.broken.result.finding)
        assert shown.broken.result.complete
        return
    assert shown.found, f"{shown.bug.breaks}: {shown.broken.result.finding}"
    if shown.broken.result.finding.choices:  # a circle of locks has no way that leads to it
        told = story.of(shown.bug.family(infected=True), shown.broken)
        assert told.rule is not None
        assert told.rule.startswith(shown.bug.breaks)


def test_zoo_has_the_ones_that_must_have_a_verdict_and_all_but_one_are_shown():
    assert len(zoo.MUST) == 28
    assert len(BUGS) == 74
    assert set(zoo.MUST) <= set(BUGS)
    assert [number for number, bug in BUGS.items() if not bug.shown] == ["Z23"]


def test_bug_that_is_still_in_the_kernel_says_what_would_fix_it():
    upstream = {number for number, bug in BUGS.items() if bug.broken.parts == scenes.REAL and "still" not in bug.cure}
    assert {"Z07", "Z22", "Z28"} <= upstream
    assert all("era 6.18 has the flaw" in BUGS[number].cure for number in ("Z07", "Z22", "Z28"))


def test_irqfd_that_would_go_by_an_old_route_is_saved_by_the_deassign_that_forgets_it():
    """Z29 wants both: here the irqfd has the bug, and the deassign has not."""

    class Forgets(Irqfds):
        __slots__ = ()
        irqfd_class = GoesByOldRoute

    bug = BUGS["Z29"]
    shown = zoo.show(bug._replace(real=bug.broken._replace(parts=Parts(irqfds=Forgets))))
    assert shown.found
    assert shown.clean, str(shown.real.result.finding)


def test_guide_has_a_row_for_each_bug_with_what_it_breaks():
    rows = dict(re.findall(r"^\| (Z\d\d) \| ([^|]+ \| [^|]+) \|", PAGE, re.MULTILINE))
    shown = {number: f"{bug.title} | {bug.breaks[0]}" for number, bug in BUGS.items() if bug.shown}
    assert {number: row for number, row in rows.items() if number in shown} == shown
    assert set(rows) == set(BUGS)


def test_one_bug_is_told_as_a_story(capsys):
    assert main(["zoo", "z17"]) == 0
    shown = capsys.readouterr().out
    assert "36343f6" in shown
    assert "S6" in shown
    assert "clean" in shown


def test_list_names_references_and_runs_nothing(capsys):
    assert main(["zoo", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "CVE-2024-26812" in shown
    assert "clean" not in shown


def test_verdicts_do_not_depend_on_the_number_of_processes(capsys):
    seen = []
    for jobs in ("1", "2"):
        assert main(["zoo", "--json", "--jobs", jobs, "Z24", "Z08", "Z07"]) == 0
        found = json.loads(capsys.readouterr().out)
        seen.append([{**verdict, "seconds": 0} for verdict in found])
    assert seen[0] == seen[1]
    assert [(v["number"], v["text"], v["fix"]) for v in seen[0]] == [
        ("Z24", "S9", "clean"),
        ("Z08", "S9", "clean"),
        ("Z07", "L5", "clean"),
    ]


def test_process_that_dies_loses_no_verdict(monkeypatch, capsys):
    here, original = os.getpid(), zoo._verdict

    def die(number: str):
        if os.getpid() != here and number == "Z08":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(number)

    monkeypatch.setattr(zoo, "_verdict", die)
    die.__module__, die.__qualname__ = zoo.__name__, "_verdict"
    assert main(["zoo", "--json", "--jobs", "2", "Z24", "Z08", "Z24", "z08"]) == 0
    assert [verdict["number"] for verdict in json.loads(capsys.readouterr().out)] == ["Z24", "Z08"]


def test_list_is_json_if_asked_for(capsys):
    assert main(["zoo", "--list", "--json", "Z12"]) == 0
    (known,) = json.loads(capsys.readouterr().out)
    assert (known["number"], known["breaks"], known["fixed"]) == ("Z12", "L1", "the real class")


def test_bug_of_inference_ends_as_not_demonstrated(capsys):
    assert main(["zoo", "Z23"]) == 0
    assert re.search(r"not demonstrated over \d+,\d+ states", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["Z99"], ["Z12", "--jobs", "-1"], ["Z12", "--jobs", "0"]])
def test_wrong_command_line_is_refused(arguments, capsys):
    assert main(["zoo", *arguments]) == 2
    assert "vintx zoo: " in capsys.readouterr().err


def test_error_is_an_object_if_json_is_asked_for(capsys):
    assert main(["zoo", "Z99", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"].startswith("there is no Z99")


def test_families_scenes_find_a_bug_that_they_do_not_name(capsys):
    assert main(["explore", "shared-gsi", "--scene", "early-eoi"]) == 0
    capsys.readouterr()
    assert main(["explore", "shared-gsi", "--scene", "early-eoi", "--bug", "z12"]) == 1
    shown = capsys.readouterr().out
    schedule = re.search(r"again: --replay '(.+)' --bug z12", shown).group(1)
    assert main(["explore", "shared-gsi", "--bug", "Z12", "--replay", schedule]) == 1
    assert "L1: a wants service" in capsys.readouterr().out
    assert main(["explore", "shared-gsi", "--replay", schedule]) == 2
    assert "its steps lead elsewhere now" in capsys.readouterr().err


def test_bugs_scene_is_a_scenario_with_the_bug_or_without(capsys):
    assert main(["explore", "Z71"]) == 0
    assert "held" in capsys.readouterr().out
    assert main(["explore", "Z71", "--bug", "Z71"]) == 1
    schedule = re.search(r"again: --replay '(.+)' --bug", capsys.readouterr().out).group(1)
    assert main(["explore", "z71", "--bug", "z71", "--replay", schedule]) == 1
    assert "its interrupt mode is INTx" in capsys.readouterr().out


def test_bug_brings_its_policy_era_and_sources_unless_others_are_asked_for(capsys):
    assert main(["explore", "Z01", "--bug", "Z01", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)[0]
    assert (found["policy"], found["era"], found["sources"]) == ("eoifd-v5", "v5", 1)
    assert main(["explore", "Z01", "--bug", "Z01", "--sources", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["sources"] == 2


def test_unknown_bug_names_what_there_is():
    with pytest.raises(UsageError, match="Z88"):
        zoo.infected(scenes.load("thread"), "Z99")
