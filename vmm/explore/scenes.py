"""Scenario files: finding them, and running one scene of one under one rule.

A scenario file is Python. Each function `explore_NAME(board)` is a scene; `SAME_END = (("a", "b"),)` says that wherever
scene b comes to rest, scene a can come to rest too (S3 is this, with a deassign and a close). `POLICIES` limits the
rules that its scenes are for.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vmm.errors import EngineError, UsageError, VintxError
from vmm.explore import remarks as remarks_on
from vmm.explore.actors import NotDeterministic
from vmm.explore.board import Board, Parts
from vmm.explore.calls import Call
from vmm.explore.own_code import LIBRARIES, MODULE, OURS, is_never_run, is_within
from vmm.explore.search import Finding, Scenario, explore
from vmm.kernel.policies import POLICIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.actors import Operation
    from vmm.explore.search import Result

SHIPPED = Path(__file__).parent / "scenarios"
PREFIX = "explore_"
LIMIT = 200_000
"""States, unless another limit is asked for."""
REAL = Parts()


class ScenarioFault(UsageError):
    """A scenario that is wrong in itself, with `path` and `line` (0 if not known). No verdict on what it explores."""

    def __init__(self, path: str, line: int, what: str) -> None:
        super().__init__(f"{path}:{line}: {what}" if line else f"{path}: {what}")
        self.path = path
        self.line = line
        self.what = what


class Setup(NamedTuple):
    """Under what a scene is explored: what `Board` takes."""

    policy: str = "resample"
    era: str | None = None
    sources: int | None = None
    parts: Parts = REAL
    irqchip: Literal["full", "split"] = "full"
    scale: int = 1

    def board(self) -> Board:
        """A board of this kind. ConfigError, UsageError."""
        return Board(self.policy, self.era, self.sources, self.parts, self.irqchip, self.scale)


class Family(NamedTuple):
    """A scenario file. `policies`: those that its scenes can be set up under. `wears`: what they are set up with unless
    something else is asked for: the classes of a historical bug, and the rule and era that it is about.
    """

    name: str
    path: str
    scenes: dict[str, Callable[[Board], None]]
    same_end: tuple[tuple[str, str], ...] = ()
    policies: tuple[str, ...] = tuple(POLICIES)
    wears: Setup = Setup()


class Outcome(NamedTuple):
    """What came of one scene under one rule. `era`: the one that the policy implies, if none was asked for. `remarks`:
    what may not be meant, or was not asked.
    """

    scene: str
    setup: Setup
    era: str
    result: Result
    seconds: float
    remarks: tuple[str, ...] = ()


def shipped() -> list[str]:
    """The families that come with vintx."""
    return sorted(path.stem.replace("_", "-") for path in SHIPPED.glob("[a-z]*.py"))


def load(name: str) -> Family:
    """A shipped family by its name, the scene of a bug of the zoo by its number, or a file by its path.

    UsageError, ScenarioFault.
    """
    path = SHIPPED / f"{name.replace('-', '_')}.py" if name in shipped() else Path(name).absolute()
    if not path.is_file() and re.fullmatch(r"[Zz]\d\d", name):
        from vmm.explore import zoo

        return zoo.bug(name).family()
    if path.is_dir():
        raise UsageError(f"{name} is a directory: give a file, or one of {', '.join(shipped())}")
    if not path.is_file():
        raise UsageError(f"there is no scenario {name!r}: give a file, or one of {', '.join(shipped())}")
    spec = importlib.util.spec_from_file_location(f"{MODULE}{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{name}: a scenario is a Python file, and its name ends in .py")
    module = importlib.util.module_from_spec(spec)
    if path.parent != SHIPPED and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what it imports; last, so that it hides no library
    with Blaming(str(path), all_of_it=True):
        spec.loader.exec_module(module)
    scenes = {
        key.removeprefix(PREFIX).replace("_", "-"): value
        for key, value in vars(module).items()
        if key.startswith(PREFIX) and key != PREFIX and callable(value)
    }
    if not scenes:
        raise ScenarioFault(str(path), 0, f"no function of it begins with {PREFIX}")
    same_end = _pairs(getattr(module, "SAME_END", ()), str(path), scenes)
    policies = _policies(getattr(module, "POLICIES", tuple(POLICIES)), str(path))
    return Family(path.stem.replace("_", "-"), str(path), scenes, same_end, policies)


def _pairs(value: object, path: str, scenes: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """SAME_END of a file."""
    if not isinstance(value, (tuple, list)):
        raise ScenarioFault(path, 0, f'SAME_END is (("one", "other"), ...), pairs of scenes, and not {value!r}')
    for pair in value:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not set(pair) <= set(scenes):
            raise ScenarioFault(path, 0, f"SAME_END names {pair!r}, and wants pairs of {', '.join(scenes)}")
    return tuple((one, other) for one, other in value)


def _policies(value: object, path: str) -> tuple[str, ...]:
    """POLICIES of a file."""
    if not isinstance(value, (tuple, list)) or not value:
        raise ScenarioFault(path, 0, f'POLICIES is ("resample", ...), the rules that it is for, and not {value!r}')
    unknown = [policy for policy in value if policy not in POLICIES]
    if unknown:
        raise ScenarioFault(path, 0, f"POLICIES names {unknown[0]!r}; there are {', '.join(POLICIES)}")
    return tuple(value)


class Blaming:
    """Turns what a scenario's own code raises into a ScenarioFault; lets errors of ours pass, unless `all_of_it` is
    the scenario's.
    """

    def __init__(self, path: str, all_of_it: bool = False) -> None:
        self.path = path
        self.all_of_it = all_of_it

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _tb: object) -> None:
        if error is None or isinstance(error, (ScenarioFault, EngineError, KeyboardInterrupt, GeneratorExit)):
            return
        if isinstance(error, NotDeterministic):
            raise _not_deterministic(self.path, error) from error
        path, line = self.path, line_in(self.path, error)
        if not line:
            path, line = users_line(error)
        if not line and self.all_of_it and not isinstance(error, VintxError):
            path = self.path
        elif not line:
            return
        raise ScenarioFault(path, line, str(error) if isinstance(error, VintxError) else in_words(error)) from error


def in_words(error: BaseException) -> str:
    """What was raised, in a line."""
    text = str(error.args[0] if isinstance(error, SyntaxError) and error.args else error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def line_in(path: str, error: BaseException) -> int:
    """The innermost line of `path` that an error came through, 0 if none."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 0
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return (lines[-1] or 0) if lines else 0


def users_line(error: BaseException) -> tuple[str, int]:
    """File and line of the user's code that an error was raised by, or by a library that it called. Line 0: none of the
    user's, the innermost code is ours.
    """
    frames = traceback.extract_tb(error.__traceback__)
    while frames and is_within(frames[-1].filename, LIBRARIES) and not is_within(frames[-1].filename, OURS):
        frames.pop()
    if not frames or is_within(frames[-1].filename, OURS):
        return "", 0
    return frames[-1].filename, frames[-1].lineno or 0


def _not_deterministic(path: str, error: NotDeterministic) -> ScenarioFault:
    file, line = error.where or (path, _line_of(path, error.operation))
    return ScenarioFault(file, line, f"{error.says}: {error}")


def _line_of(path: str, operation: Operation | None) -> int:
    call = getattr(operation.function, "__self__", None) if operation is not None else None
    if isinstance(call, Call) and call.where[0] == path:
        return call.where[1]
    return 0


def set_up(family: Family, scene: str, setup: Setup) -> tuple[Board, Scenario]:
    """A board with the scene on it. UsageError for an unknown scene, ScenarioFault for one that cannot be set up."""
    if scene not in family.scenes:
        raise UsageError(f"{family.name} has no scene {scene!r}; it has {', '.join(family.scenes)}")
    if setup.policy.partition(":")[0] not in family.policies and setup.policy in POLICIES:
        raise UsageError(f"{family.name} is for {', '.join(family.policies)}, not {setup.policy}")
    setup = _dressed(family, setup)
    board = setup.board()
    scenario = _write(family, scene, board)
    for pair in family.same_end:
        if pair[1] == scene:
            _compare(family, pair[0], setup, board)
    return board, scenario


def _write(family: Family, scene: str, board: Board) -> Scenario:
    """Let a scene write on a board. ScenarioFault."""
    function = family.scenes[scene]
    code = getattr(function, "__code__", None)
    line = code.co_firstlineno if code is not None and code.co_filename == family.path else 0
    try:
        with Blaming(family.path, all_of_it=Path(family.path).is_absolute()):
            if is_never_run(function(board)):
                raise UsageError(f"{code.co_name if code else scene} has a yield or is async: nothing of it was run")
            return board.scenario()
    except ScenarioFault as fault:
        if fault.line or fault.path != family.path:
            raise
        raise ScenarioFault(family.path, line, fault.what) from fault.__cause__
    except UsageError as error:
        raise ScenarioFault(family.path, line, str(error)) from error


def _dressed(family: Family, setup: Setup) -> Setup:
    """With the classes that the family wears, where none are asked for."""
    if setup.parts is REAL:
        setup = setup._replace(parts=family.wears.parts)
    return setup._replace(irqchip=family.wears.irqchip) if setup.irqchip == "full" else setup


def _compare(family: Family, other: str, setup: Setup, board: Board) -> None:
    """Let the board be compared with all ends of another scene, if those can be had."""
    twin = setup.board()
    ends: set[Any] = set()
    scenario = _write(family, other, twin)
    with Blaming(family.path):

        def note() -> None:
            ends.add(twin.view())

        result = explore(scenario._replace(always=None, at_rest=note, atomic=None), LIMIT)
    if result.finding is not None or not result.complete:
        why = f"breaks {result.finding.rule.partition(':')[0]}" if result.finding else f"has more than {LIMIT} states"
        board.remarks.append(f"S3 is not asked: scene {other}, to compare with, {why}")
        return

    def differs() -> str | None:
        here = board.view()
        if here in ends:
            return None
        return f"S3: this end is not among those of scene {other}: {here}; there: {', '.join(sorted(map(str, ends)))}"

    board.compare = differs


def run(
    family: Family,
    scene: str,
    setup: Setup,
    limit: int = LIMIT,
    search: Callable[[Scenario, int], Result] = explore,
) -> Outcome:
    """Explore one scene, by another strategy than breadth-first if `search` is one's method `explore`.

    UsageError, ConfigError, ScenarioFault.
    """
    board, scenario = set_up(family, scene, setup)
    began = time.perf_counter()
    with Blaming(family.path):
        result = search(scenario, limit)
        if board.nests_locks and result.complete and result.finding is None:
            result = _with_locks(scenario, result, limit)
        board.refuse_what_changed()
    seconds = time.perf_counter() - began
    if result.finding is not None and result.finding.cause is not None:
        blame(family, result.finding.cause)
    remarks = (*remarks_on.unbound(board, scenario.actors), *board.remarks)
    return Outcome(scene, setup, board.vm.era.name, result, seconds, remarks)


def _with_locks(scenario: Scenario, result: Result, limit: int) -> Result:
    """S15 as well, which needs a second look at every order. There is no way that leads to it."""
    from vmm.explore import locks

    wrong = locks.circle(scenario, limit)
    return result._replace(finding=Finding(wrong, ())) if wrong else result


def blame(family: Family, cause: BaseException) -> None:
    """ScenarioFault if what an operation raised is the scenario's own doing."""
    path, line = users_line(cause)
    innermost = traceback.extract_tb(cause.__traceback__)[-1].filename
    if not line and (innermost == family.path or isinstance(cause, (OSError, VintxError))):
        path, line = family.path, line_in(family.path, cause)
    if line:
        raise ScenarioFault(path, line, in_words(cause)) from cause
