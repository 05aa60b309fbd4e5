"""Which options of `vintx explore` go together: what one of its ways does not look at is refused, not passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.errors import UsageError

if TYPE_CHECKING:
    import argparse

_ALWAYS: Final = frozenset({"scenario", "json"})
_SEARCHED: Final = frozenset({"scene", "policy", "all_policies", "era", "bug", "sources", "scale", "max_states"})
_FILES: Final = frozenset({"steps", "svg", "export"})
_JUDGED: Final = frozenset({"scene", "policy", "all_policies", "era", "sources"})
"""Those that the judge refuses itself are among them, and those that a schedule has in it."""

WAYS: Final = {
    "matrix": frozenset({"scene", "policy", "jobs"}),
    "against_kvm": _JUDGED | {"depth", "eventfds", "trials"},
    "in_machine": frozenset({"replay", "bug"}),
    "replay": _JUDGED | _FILES | {"bug"},
}
"""What each of the ways that is no search takes. The first one that is asked for counts."""
STRATEGIES: Final = {
    "bfs": frozenset({"jobs", "cluster", "checkpoint"}),
    "dfs": frozenset({"depth"}),
    "random": frozenset({"depth", "runs", "seed"}),
    "pct": frozenset({"depth", "runs", "seed"}),
}
_SOMEWHERE: Final = frozenset().union(*STRATEGIES.values())


def check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """UsageError for an option that is empty, or that does not go with another."""
    given = {action.dest for action in parser._actions if _is_given(arguments, action)}
    for name in sorted(given):
        if getattr(arguments, name) == "":
            raise UsageError(f"{_flag(name)} is empty")
    way = next((way for way in WAYS if way in given), None)
    if way is not None:
        takes = WAYS[way] | _ALWAYS | {way}
        if way == "in_machine":
            takes -= {"json"}
        for name in sorted(given - takes):
            raise UsageError(f"{_flag(way)} takes no {_flag(name)}{_WHY.get(way, '')}")
        return
    strategy = arguments.strategy
    for name in sorted(given & _SOMEWHERE - STRATEGIES[strategy]):
        others = [other for other, takes in STRATEGIES.items() if name in takes]
        judge = "--against-kvm and with " if name == "depth" else ""
        raise UsageError(f"{_flag(name)} goes with {judge}--strategy {', '.join(others)}, and not with {strategy}")
    if "cluster" in given and "jobs" in given:
        raise UsageError("--jobs is for this machine; a --cluster has as many workers as it has")


_WHY: Final = {
    "matrix": ": each of its scenes says what it is explored with",
    "replay": ": it runs one order again",
    "in_machine": ": it runs one order, and tells it",
}


def _is_given(arguments: argparse.Namespace, action: argparse.Action) -> bool:
    return bool(getattr(arguments, action.dest, action.default) != action.default)


def _flag(name: str) -> str:
    return "SCENARIO" if name == "scenario" else f"--{name.replace('_', '-')}"
