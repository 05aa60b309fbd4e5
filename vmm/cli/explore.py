"""`vintx explore`: every order of a scenario's actors, under a rule of the KVM_EOIFD dispute or the merged one.

vintx explore thread --all-policies --sources 1
vintx explore irqfd-life --scene close
vintx explore mine.py --policy eoifd-v5
vintx explore shared-gsi --bug Z12
vintx explore mine.py --replay 'close/eoifd-v5/v5/1/a4b2a-5f3a'
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from vmm.cli import explore_kvm, explore_options, explore_reports, explore_search, explore_text
from vmm.errors import EngineError, UsageError, VintxError
from vmm.explore import scenes, story
from vmm.explore.scenes import ScenarioFault
from vmm.kernel.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    import argparse

    from vmm.cli.explore_search import Searcher
    from vmm.explore.scenes import Family, Outcome

HELD, VIOLATED, WRONG, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 130
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
    parser.add_argument("--json", action="store_true", help="one object per scene and rule; an error is an object, too")
    explore_search.add_arguments(parser)
    explore_kvm.add_arguments(parser)
    explore_reports.add_arguments(parser)
    parser.add_argument("--in-machine", action="store_true", help="with --replay: do it on a booted machine, over QMP")
    parser.add_argument("--replay", metavar="SCHEDULE", help="run one order again and tell it")
    parser.set_defaults(parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """0 if all held, 1 if something was violated, 2 if the command line or the scenario is wrong, 3 if not finished.

    With --json an error is an object on standard output, besides the words on the other one. KeyboardInterrupt.
    """
    searched = Searched()
    try:
        status = _run(arguments, searched)
        sys.stdout.flush()
        return status
    except EngineError as error:
        return _told(arguments, searched, error, UNFINISHED)
    except VintxError as error:
        return _told(arguments, searched, error, WRONG)
    except KeyboardInterrupt as error:
        file, line = scenes.users_line(error)
        done = searched.searcher.line.text if searched.searcher is not None else ""
        words = f"interrupted{f' in {file}:{line}' if line else ''}{f' at {done}' if done else ''}"
        _told(arguments, searched, UsageError(words), INTERRUPTED)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        print(f"vintx explore: nothing more can be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where what is in its buffer can go
        return WRONG


def _run(arguments: argparse.Namespace, searched: Searched) -> int:
    explore_options.check(arguments, arguments.parser)
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
    # What a scenario's code prints does not get into what a program is to read.
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        family = scenes.load(arguments.scenario)
        if arguments.bug:
            from vmm.explore import zoo

            family = zoo.infected(family, arguments.bug)
        if arguments.replay:
            return _replay(family, arguments, searched)
        return _explore(family, arguments, searched)


class Searched:
    """What has been done when something goes wrong."""

    def __init__(self) -> None:
        self.family: Family | None = None
        self.outcomes: list[Outcome] = []
        self.objects: list[dict[str, Any]] = []
        self.searcher: Searcher | None = None
        self.out = sys.stdout


def _told(arguments: argparse.Namespace, searched: Searched, error: VintxError, status: int) -> int:
    """Say what went wrong, and what was found before."""
    if arguments.json:
        made: dict[str, Any] = {"error": str(error), "status": status}
        if isinstance(error, ScenarioFault):
            made |= {"file": error.path, "line": error.line or None}
        print(json.dumps(made | {"results": searched.objects}, indent=2))
    elif searched.family is not None and searched.outcomes:
        explore_text.console().print(explore_text.summary(searched.family, searched.outcomes, arguments.bug))
    sys.stdout.flush()
    print(f"vintx explore: {error}", file=sys.stderr)
    return status


def _explore(family: Family, arguments: argparse.Namespace, searched: Searched) -> int:
    if arguments.max_states < 1 or arguments.scale < 1:
        raise UsageError("--max-states and --scale are at least 1")
    policies = list(family.policies) if arguments.all_policies else [arguments.policy or family.wears.policy]
    chosen = list(dict.fromkeys(arguments.scene)) or list(family.scenes)
    searcher = searched.searcher = explore_search.Searcher(arguments)
    searched.family = family
    for policy in policies:
        for scene in chosen:
            worn = family.wears if policy == family.wears.policy else scenes.Setup(policy)
            sources = worn.sources if arguments.sources is None else arguments.sources
            setup = scenes.Setup(policy, arguments.era or worn.era, sources, scale=arguments.scale)
            outcome = searcher.run(family, scene, setup)
            if arguments.json:
                searched.objects.append(_object(family, outcome, arguments))
            elif outcome.result.finding is not None:
                explore_text.print_finding(family, outcome, arguments.steps, arguments.bug)
            searched.outcomes.append(outcome)
            for remark in outcome.remarks:
                print(f"vintx explore: note: {remark}", file=sys.stderr)
    outcomes = searched.outcomes
    if arguments.json:
        said = explore_reports.found(arguments, family, outcomes)
        print(json.dumps(searched.objects, indent=2), file=searched.out)
    else:
        console = explore_text.console()
        console.print(explore_text.summary(family, outcomes, arguments.bug))
        console.print(explore_text.verdict(outcomes))
        searched.outcomes = []  # told
        said = explore_reports.found(arguments, family, outcomes)
        print(*said, sep="\n", end="\n" if said else "")
    if any(outcome.result.finding is not None for outcome in outcomes):
        return VIOLATED
    return HELD if all(outcome.result.complete for outcome in outcomes) else UNFINISHED


def _object(family: Family, outcome: Outcome, arguments: argparse.Namespace) -> dict[str, Any]:
    result = outcome.result
    made: dict[str, Any] = {
        "scenario": family.name,
        "scene": outcome.scene,
        "policy": outcome.setup.policy,
        "era": outcome.era,
        "sources": outcome.setup.sources,
        "bug": arguments.bug,
        "strategy": arguments.strategy,
        "orders": result.orders or None,
        "states": result.states,
        "transitions": result.transitions,
        "depth": result.depth,
        "ends": result.ends,
        "seconds": round(outcome.seconds, 3),
        "complete": result.complete or result.finding is not None,
        "held": result.complete and result.finding is None,
        "unasked": list(result.unasked),
        "notes": list(outcome.remarks),
    }
    if result.finding is not None:
        told = story.of(family, outcome)
        made["rule"] = result.finding.rule
        made["schedule"] = story.encode(outcome)
        made["steps"] = [row.object() for row in told.rows]
    return made


def _replay(family: Family, arguments: argparse.Namespace, searched: Searched) -> int:
    if arguments.policy or arguments.all_policies or arguments.era or arguments.scene or arguments.sources is not None:
        raise UsageError("a schedule names its scene, policy, era and sources; leave out --scene, --policy and so on")
    setup, told = story.replay(family, arguments.replay)
    if arguments.json:
        said = explore_reports.replayed(arguments, family, setup, told)
        steps = [row.object() for row in told.rows]
        made = {"policy": setup.policy, "era": setup.era, "rule": told.rule, "steps": steps}
        print(json.dumps(made, indent=2), file=searched.out)
    else:
        explore_text.print_story(explore_text.console(), told, arguments.steps)
        said = explore_reports.replayed(arguments, family, setup, told)
        print(*said, sep="\n", end="\n" if said else "")
    return VIOLATED if told.rule else HELD
