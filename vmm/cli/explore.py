"""`vintx explore`: every order of a scenario's actors, under a rule of the KVM_EOIFD dispute or the merged one.

vintx explore thread --all-policies --sources 1
vintx explore irqfd-life --scene close
vintx explore mine.py --policy eoifd-v5
vintx explore shared-gsi --bug Z12
vintx explore mine.py --replay 'close/eoifd-v5/v5/1/a4b2a-5f3a'
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vmm.cli import explore_kvm, explore_reports, explore_search
from vmm.errors import ConfigError, UsageError
from vmm.explore import chart, scenes, story
from vmm.kernel.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    import argparse

    from vmm.explore.scenes import Family, Outcome

HELD, VIOLATED, WRONG, UNFINISHED = 0, 1, 2, 3
"""Exit statuses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx explore`."""
    parser.add_argument(
        "scenario", metavar="SCENARIO", nargs="?", help=f"a Python file, or one of {', '.join(scenes.shipped())}"
    )
    parser.add_argument("--matrix", action="store_true", help="what each rule breaks in each scene, beside expected")
    parser.add_argument("--scene", action="append", default=[], metavar="S", help="one scene only; may be repeated")
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--policy", metavar="P", help=f"irqfd-policy, with its options (default: {DEFAULT_POLICY})")
    rule.add_argument("--all-policies", action="store_true", help="each of them in turn")
    parser.add_argument("--era", metavar="E", help="irqfd-era (default: the one that the policy implies)")
    parser.add_argument("--bug", metavar="ZNN", help="with this bug of the zoo, and its policy, era and source ids")
    parser.add_argument("--sources", type=int, metavar="N", help="how many irq source ids there are to give out")
    parser.add_argument("--scale", type=int, default=1, metavar="N", help="scenes N times as large, where they can be")
    parser.add_argument("--max-states", type=int, default=scenes.LIMIT, metavar="N", help="give up there (exit 3)")
    parser.add_argument("--steps", action="store_true", help="tell every step of a story, not only the switches")
    parser.add_argument("--json", action="store_true", help="one object per scene and rule")
    explore_search.add_arguments(parser)
    explore_kvm.add_arguments(parser)
    explore_reports.add_arguments(parser)
    parser.add_argument("--in-machine", action="store_true", help="with --replay: do it on a booted machine, over QMP")
    parser.add_argument("--replay", metavar="SCHEDULE", help="run one order again and tell it")


def run(arguments: argparse.Namespace) -> int:
    """0 if all held, 1 if something was violated, 2 if the command line or the scenario is wrong, 3 if not finished."""
    try:
        if arguments.matrix:
            from vmm.cli import explore_matrix

            return explore_matrix.run(arguments)
        if arguments.scenario is None:
            raise UsageError(f"what is to be explored? A Python file, or one of {', '.join(scenes.shipped())}")
        if arguments.against_kvm:
            return explore_kvm.run(arguments)
        if arguments.in_machine:
            from vmm.cli import explore_machine

            return explore_machine.run(arguments)
        explore_kvm.check(arguments)
        explore_reports.check(arguments)
        family = scenes.load(arguments.scenario)
        if arguments.bug:
            from vmm.explore import zoo

            family = zoo.infected(family, arguments.bug)
        if arguments.replay:
            return _replay(family, arguments)
        return _explore(family, arguments)
    except (UsageError, ConfigError) as error:
        print(f"vintx explore: {error}", file=sys.stderr)
        return WRONG


def _explore(family: Family, arguments: argparse.Namespace) -> int:
    if arguments.max_states < 1 or arguments.scale < 1:
        raise UsageError("--max-states and --scale are at least 1")
    policies = list(family.policies) if arguments.all_policies else [arguments.policy or family.wears.policy]
    chosen = arguments.scene or list(family.scenes)
    searcher = explore_search.Searcher(arguments)
    console = _console()
    objects: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    for policy in policies:
        for scene in chosen:
            worn = family.wears if policy == family.wears.policy else scenes.Setup(policy)
            sources = worn.sources if arguments.sources is None else arguments.sources
            setup = scenes.Setup(policy, arguments.era or worn.era, sources, scale=arguments.scale)
            outcome = searcher.run(family, scene, setup)
            outcomes.append(outcome)
            if arguments.json:
                objects.append(_object(family, outcome))
            elif outcome.result.finding is not None:
                _print_finding(console, family, outcome, arguments)
    written = explore_reports.found(arguments, family, outcomes)
    if arguments.json:
        print(json.dumps(objects, indent=2))
    else:
        console.print(_summary(family, outcomes))
        console.print(_verdict(outcomes))
        print(*written, sep="\n", end="\n" if written else "")
    if any(outcome.result.finding is not None for outcome in outcomes):
        return VIOLATED
    return HELD if all(outcome.result.complete for outcome in outcomes) else UNFINISHED


def _console() -> Console:
    """As wide as the terminal; wide enough for a story where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=150)


def _print_finding(console: Console, family: Family, outcome: Outcome, arguments: argparse.Namespace) -> None:
    finding = outcome.result.finding
    assert finding is not None
    console.rule(f"{family.name}, scene {outcome.scene}, {outcome.setup.policy}", align="left")
    told = story.of(family, outcome)
    _print_story(console, told, arguments.steps)
    bug = f" --bug {arguments.bug}" if arguments.bug else ""
    console.print(f"again: --replay '{story.encode(outcome)}'{bug}\n", markup=False, soft_wrap=True)


def _print_story(console: Console, told: story.Story, every_step: bool) -> None:
    console.print(chart.terminal(told, every_step))
    for number, sentence in enumerate(chart.sentences(told), 1):
        console.print(f"{number:3}. {sentence}", markup=False, soft_wrap=True)
    console.print(chart.verdict(told), markup=False)
    if told.rule:
        console.print(f"  {told.rule}", markup=False, soft_wrap=True)


def _summary(family: Family, outcomes: list[Outcome]) -> Table:
    table = Table("scene", "policy", "era", "states", "transitions", "ends", "s", "outcome", title=family.name)
    for outcome in outcomes:
        result = outcome.result
        text = "held" if result.complete else f"not finished at {result.states} states"
        if result.orders:
            text = f"nothing in {result.orders} orders"
        if result.finding is not None:
            number = result.finding.rule.partition(":")[0]
            known = story.words(number)
            text = f"{number} in {len(result.finding.choices)} steps{': ' + known if known else ''}"
        counts = (str(n) for n in (result.states, result.transitions, result.ends))
        table.add_row(outcome.scene, outcome.setup.policy, outcome.era, *counts, f"{outcome.seconds:.2f}", text)
    return table


def _verdict(outcomes: list[Outcome]) -> str:
    held = [outcome for outcome in outcomes if outcome.result.finding is None and outcome.result.complete]
    states = sum(outcome.result.states for outcome in held)
    transitions = sum(outcome.result.transitions for outcome in held)
    text = f"The invariants hold over all {states} states and {transitions} transitions of {len(held)} of "
    text += f"{len(outcomes)} explorations."
    if not held:
        text = f"None of {len(outcomes)} explorations came to its end."
    every = sum(outcome.result.states for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    return f"{text} {every / max(seconds, 1e-9):,.0f} states/s."


def _object(family: Family, outcome: Outcome) -> dict[str, Any]:
    result = outcome.result
    made: dict[str, Any] = {
        "scenario": family.name,
        "scene": outcome.scene,
        "policy": outcome.setup.policy,
        "era": outcome.era,
        "sources": outcome.setup.sources,
        "states": result.states,
        "transitions": result.transitions,
        "depth": result.depth,
        "ends": result.ends,
        "seconds": round(outcome.seconds, 3),
        "complete": result.complete or result.finding is not None,
        "held": result.complete and result.finding is None,
    }
    if result.finding is not None:
        told = story.of(family, outcome)
        made["rule"] = result.finding.rule
        made["schedule"] = story.encode(outcome)
        made["steps"] = [row.object() for row in told.rows]
    return made


def _replay(family: Family, arguments: argparse.Namespace) -> int:
    if arguments.policy or arguments.all_policies or arguments.era or arguments.scene or arguments.sources is not None:
        raise UsageError("a schedule names its scene, policy, era and sources; leave out --scene, --policy and so on")
    setup, told = story.replay(family, arguments.replay)
    written = explore_reports.replayed(arguments, family, setup, told)
    if arguments.json:
        steps = [row.object() for row in told.rows]
        print(json.dumps({"policy": setup.policy, "era": setup.era, "rule": told.rule, "steps": steps}, indent=2))
    else:
        _print_story(_console(), told, arguments.steps)
        print(*written, sep="\n", end="\n" if written else "")
    return VIOLATED if told.rule else HELD
