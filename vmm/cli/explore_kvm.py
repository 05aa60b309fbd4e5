"""`vintx explore SCENARIO --against-kvm`: the live KVM as the judge of what the model says of orders."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from vmm.errors import EngineError, EngineRefused, UsageError
from vmm.explore import scenes

if TYPE_CHECKING:
    import argparse

    from vmm.explore.against_kvm import Report
    from vmm.explore.kvm_trials import Report as TrialReport

LIFE = "irqfd-life"
"""The family whose operations are also enumerated, one after the other."""
DEPTH, TRIALS = 4, 200
AGREES, DIFFERS, CANNOT = 0, 1, 3
"""Exit statuses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the judge; `--depth` is one of the search, too."""
    parser.add_argument(
        "--against-kvm",
        action="store_true",
        help="compare with this machine's KVM: scenes by threads; of irqfd-life every order",
    )
    parser.add_argument("--eventfds", type=int, metavar="N", choices=(1, 2), help="that the orders are about: 1 or 2")
    parser.add_argument("--trials", type=int, metavar="N", help=f"of each scene by threads (default: {TRIALS})")


def check(arguments: argparse.Namespace) -> None:
    """UsageError for an option of the judge without it."""
    for option in ("eventfds", "trials"):
        if getattr(arguments, option) is not None and not arguments.against_kvm:
            raise UsageError(f"--{option} goes with --against-kvm")


def run(arguments: argparse.Namespace) -> int:
    """0 if they agree, 1 if not, 3 if there is no KVM to ask. UsageError."""
    from vmm.kernel.hostkvm_probe import probed

    family = scenes.load(arguments.scenario)
    depth = DEPTH if arguments.depth is None else arguments.depth
    trials = TRIALS if arguments.trials is None else arguments.trials
    if depth < 0 or trials < 0:
        raise UsageError("--depth and --trials are at least 0")
    if arguments.policy not in (None, "resample") or arguments.all_policies or arguments.era or arguments.sources:
        raise UsageError("the kernel has one rule, `resample`, and source ids of its own")
    if family.name != LIFE and (arguments.depth or arguments.eventfds):
        raise UsageError(f"--depth and --eventfds are for {LIFE}; other scenes are played by threads")
    for scene in arguments.scene:
        if scene not in family.scenes:
            raise UsageError(f"{family.name} has no scene {scene!r}; it has {', '.join(family.scenes)}")
    if not trials and not (family.name == LIFE and depth):
        raise UsageError("with --trials 0 there is nothing to compare")
    if not probed().oracle:
        print(f"vintx explore: skipped, there is no KVM to compare with: {probed().reason}", file=sys.stderr)
        return CANNOT
    try:
        return _run(arguments, family, depth, trials)
    except (EngineRefused, EngineError) as error:
        print(f"vintx explore: {error}", file=sys.stderr)
        return CANNOT


def _run(arguments: argparse.Namespace, family: scenes.Family, depth: int, trials: int) -> int:
    from vmm.explore.against_kvm import compare
    from vmm.explore.kvm_trials import Trial
    from vmm.explore.user_calls import NotKvms
    from vmm.kernel.hostkvm import HostKvm

    said: dict[str, Any] = {"scenes": [], "left-out": {}}
    differ = False
    report: Report | None = None
    if family.name == LIFE and depth:
        report = compare(depth, arguments.eventfds or 1, on_progress=_progress if sys.stderr.isatty() else None)
        differ = bool(report.differences)
        said["orders"] = {
            "depth": depth,
            "eventfds": report.eventfds,
            "orders": report.orders,
            "sequences": report.sequences,
            "seconds": round(report.seconds, 1),
            "differences": [
                {"sequence": list(d.sequence), "model": d.model._asdict(), "kernel": d.kernel._asdict()}
                for d in report.differences
            ],
        }
        if not arguments.json:
            print("\n".join([str(report), *map(str, report.differences)]), flush=True)
    with HostKvm() as kvm:
        for scene in (dict.fromkeys(arguments.scene) or family.scenes) if trials else ():
            try:
                trial = Trial(family, scene)
            except NotKvms as error:
                said["left-out"][scene] = str(error)
                if not arguments.json:
                    print(f"{scene}: left out: {error}")
                continue
            found = trial.run(kvm, trials)
            differ |= bool(found.strange)
            said["scenes"].append(_trial(found))
            if not arguments.json:
                print("\n".join([str(found), *(f"  {outcome}" for outcome in found.strange)]), flush=True)
    if arguments.json:
        print(json.dumps(said, indent=2))
    if report is None and not said["scenes"]:
        print("vintx explore: nothing of it could be compared", file=sys.stderr)
        return CANNOT
    return DIFFERS if differ else AGREES


def _trial(report: TrialReport) -> dict[str, Any]:
    return {
        "scene": report.scene,
        "trials": report.trials,
        "states": report.states,
        "explored": len(report.explored),
        "seen": [{"outcome": str(outcome), "times": times} for outcome, times in report.seen.items()],
        "strange": [str(outcome) for outcome in report.strange],
    }


def _progress(done: int, of: int) -> None:
    end = "\n" if done == of else ""
    print(f"\r{done} of {of} beginnings", end=end, file=sys.stderr, flush=True)
