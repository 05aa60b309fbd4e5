"""The shipped families under the merged rule: each scene holds in every order, over exactly so many states.

A count changes with each point and field of the code that is explored; that is what it is for.
"""

from __future__ import annotations

import re

import pytest

from vmm.cli.vintx import main
from vmm.explore import scenes, zoo
from vmm.explore.scenes import Setup

MOST = 30_000
COUNTS = {
    ("irqfd-life", "deassign"): 4228,
    ("irqfd-life", "close"): 1324,
    ("irqfd-life", "assign"): 6376,
    ("irqfd-life", "two-removers"): 377,
    ("irqfd-life", "vm-closed"): 915,
    ("irqfd-life", "bind"): 381,
    ("irqfd-life", "for-ever"): 4183,
    ("irqfd-life", "for-ever-close"): 1389,
    ("irqfd-life", "for-ever-assign"): 14_332,
    ("irqfd-life", "for-ever-neighbour"): 2466,
    ("shared-gsi", "early-eoi"): 180,
    ("shared-gsi", "unplug"): 5102,
    ("shared-gsi", "for-ever"): 6079,
    ("mask-eoi", "one-shot"): 549,
    ("mask-eoi", "masked-by-another"): 663,
    ("mask-eoi", "two-sources"): 12_234,
    ("mask-eoi", "moved"): 97,
    ("mask-eoi", "other-vector"): 30,
    ("mask-eoi", "directed-eoi"): 34,
    ("mask-eoi", "storm"): 5843,
    ("mask-eoi", "for-ever"): 511,
    ("vm-close", "release"): 2615,
    ("vm-close", "any-order"): 4414,
    ("vm-close", "assign"): 113,
    ("vm-close", "destroy"): 758,
    ("vm-close", "device"): 4684,
    ("reroute", "same"): 447,
    ("reroute", "between-messages"): 75,
    ("reroute", "to-message"): 9487,
    ("reroute", "moved"): 8759,
    ("reroute", "for-ever"): 844,
    ("unplug", "golden"): 9213,
    ("unplug", "any-order"): 10_401,
    ("unplug", "any-order-eoi"): 18_138,
    ("unplug", "reset"): 15_584,
    ("unplug", "neighbour"): 9556,
}


@pytest.mark.parametrize(("family", "scene"), COUNTS)
def test_scene_holds_over_all_of_its_states(family, scene):
    result = scenes.run(scenes.load(family), scene, Setup()).result
    assert result.finding is None, str(result.finding)
    assert result.complete
    assert result.states == COUNTS[family, scene]
    assert result.states <= MOST


def test_families_are_all_here():
    named = {family for family, _ in COUNTS}
    assert named == set(scenes.shipped()) - {"thread", "dispute"}
    for family in named:
        assert {scene for name, scene in COUNTS if name == family} == set(scenes.load(family).scenes)


@pytest.mark.parametrize(("family", "scene"), [("mask-eoi", "storm"), ("vm-close", "release"), ("reroute", "same")])
def test_scale_enlarges(family, scene):
    result = scenes.run(scenes.load(family), scene, Setup(scale=2)).result
    assert result.finding is None, str(result.finding)
    assert result.states > COUNTS[family, scene]


def test_option_enlarges_and_a_schedule_remembers_it(capsys):
    scene = ["--scene", "moved"]
    assert main(["explore", "mask-eoi", *scene, "--bug", "Z35", "--scale", "2"]) == 1
    schedule = re.search(r"again: --replay '(.+)' --bug", capsys.readouterr().out).group(1)
    assert "/-x2/" in schedule
    assert main(["explore", "mask-eoi", "--bug", "Z35", "--replay", schedule]) == 1
    assert main(["explore", "mask-eoi", *scene, "--scale", "0"]) == 2


BUGS = [
    ("mask-eoi", "one-shot", "Z26", "S11"),
    ("mask-eoi", "moved", "Z35", "S12"),
    ("mask-eoi", "two-sources", "Z11", "S8"),
    ("mask-eoi", "directed-eoi", "Z39", "S12"),
    ("vm-close", "destroy", "Z33", "use-after-free"),
    ("irqfd-life", "assign", "Z15", "wait-entry-never-added"),
    ("irqfd-life", "assign", "Z13", "use-after-free"),
]


@pytest.mark.parametrize(("family", "scene", "bug", "breaks"), BUGS)
def test_family_finds_bugs_that_it_does_not_name(family, scene, bug, breaks):
    infected = zoo.infected(scenes.load(family), bug)
    finding = scenes.run(infected, scene, infected.wears).result.finding
    assert finding is not None
    assert finding.rule.startswith(breaks), str(finding)
