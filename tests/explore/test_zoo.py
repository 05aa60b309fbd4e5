"""Historical bugs: each is found by what it is said to break, and the real class is clean."""

from __future__ import annotations

import pytest

from vmm.cli.vintx import main
from vmm.explore import story, zoo

NUMBERS = [
    *("Z01", "Z02", "Z04", "Z05", "Z09", "Z10", "Z12", "Z13", "Z15"),
    *("Z17", "Z19", "Z20", "Z21", "Z24", "Z50", "Z51", "Z52", "Z53", "Z54", "Z88"),
]


@pytest.mark.parametrize("number", NUMBERS)
def test_bug_is_found_and_the_real_class_is_clean(number):
    shown = zoo.show(zoo.bug(number))
    assert shown.found, f"{shown.bug.breaks}: {shown.broken.result.finding}"
    assert shown.clean, str(shown.real.result.finding)
    told = story.of(shown.bug.family(infected=True), shown.broken)
    assert told.rule is not None
    assert told.rule.startswith(shown.bug.breaks)


def test_zoo_has_these_and_no_others():
    assert list(zoo.bugs()) == NUMBERS


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


def test_unknown_number_names_what_there_is(capsys):
    assert main(["zoo", "Z99"]) == 2
    assert "Z88" in capsys.readouterr().err
