"""An order of the explorer as commands to a running machine: calls by QMP, the guest's part by the guest `mailbox`.

    plan = in_machine.plan(family, schedule)
    for action in plan.actions: ...                 # `vmm/cli/explore_machine.py` does them

A machine is not the explorer. Its kernel's works run as soon as they are queued, and only what a command began can be
held, at the points of `vmm/kernel/hold.py`. So where an order stops a call at a point, the plan holds it there; where
it delays what cannot be held, the call is done at once, before or after what came in between. Whether that still comes
to the same is not guessed: the plan is run on a board first, and refused if it does not break what the order breaks.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from vmm.errors import UsageError
from vmm.explore import story, user_calls
from vmm.explore.scenes import set_up
from vmm.kernel.eoifd import EoiIrqfds, LevelIrqfd
from vmm.kernel.hold import POINTS, Holder, Progress, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.explore.actors import Operation
    from vmm.explore.board import Board
    from vmm.explore.scenes import Family
    from vmm.explore.search import Scenario
    from vmm.explore.story import Row, Schedule

COMMANDS: Final = ("I+", "I-", "E+", "E-", "C", "SIG")
"""Calls that the monitor makes."""
GUEST: Final = ("take", "EOI", "mask", "unmask")
"""What the guest does."""
VARIANTS: Final = 64
"""Ways to do at once what cannot be held that are tried."""


class NotInMachine(UsageError):
    """An order that a running machine cannot be brought into."""


class Action(NamedTuple):
    """One thing to do. `call`: `who` makes the call `text`; `hold` and `release`: the point `text`."""

    kind: Literal["call", "hold", "release"]
    text: str
    who: str = ""


class Start(NamedTuple):
    """What is there before anybody acts: eventfds (name, count, semaphore), irqfds (eventfd, level, resamplefd or
    empty), eoifds (eventfd, irqfd).
    """

    eventfds: tuple[tuple[str, int, bool], ...]
    irqfds: tuple[tuple[str, bool, str], ...]
    eoifds: tuple[tuple[str, str], ...]


class End(NamedTuple):
    """What the monitor can tell in the end. `results`: of each thread's calls; `bound`: eventfds with an irqfd."""

    results: tuple[tuple[str, tuple[str, ...]], ...]
    bound: tuple[str, ...]
    eoifds: tuple[str, ...]
    ids: int
    irr: bool
    remote_irr: bool
    counts: tuple[tuple[str, int], ...]

    def differs(self, other: End) -> list[str]:
        """In what the other one is something else."""
        return [
            f"{field.replace('_', ' ')} {theirs}, not {mine}"
            for field, mine, theirs in zip(self._fields, self, other, strict=True)
            if mine != theirs
        ]


class Plan(NamedTuple):
    """`actions` break `rule` on a board, and leave `end`; `merged`: the rule is `resample`. `at_once`: what the order
    delays and the machine cannot.
    """

    schedule: Schedule
    start: Start
    actions: tuple[Action, ...]
    end: End
    rule: str | None
    merged: bool
    at_once: tuple[str, ...]


class _Split(NamedTuple):
    """A call that stops where it cannot be held. `first` and `last`: the lines in which it begins and ends."""

    first: int
    last: int
    why: str


def plan(family: Family, text: str) -> Plan:
    """What a machine has to do for a schedule string. UsageError, NotInMachine with the reason."""
    schedule = story.decode(text)
    _, told = story.replay(family, text)
    board, scenario = set_up(family, schedule.scene, schedule.setup)
    start = _start(board)
    calls = _calls(scenario, told.rows)
    lines = story.lines(told)
    splits = _splits(scenario, lines, calls)
    wanted = None if told.rule is None else told.rule.partition(":")[0]
    for chosen in itertools.islice(itertools.product((False, True), repeat=len(splits)), VARIANTS):
        actions = tuple(_actions(scenario, lines, calls, dict(zip(splits, chosen, strict=True))))
        rules, end = _rehearse(family, schedule, actions)
        if (wanted in rules) if wanted else not rules:
            rule = rules[wanted] if wanted else None
            reasons = tuple(dict.fromkeys(split.why for split in splits))
            return Plan(schedule, start, actions, end, rule, board.merged, reasons)
    reasons_ = (
        "; ".join(dict.fromkeys(split.why for split in splits)) or "there the works run as soon as they are queued"
    )
    raise NotInMachine(f"a running machine does not come to {wanted or 'the same'} by this order: {reasons_}")


def _start(board: Board) -> Start:
    if board.devices:
        raise NotInMachine(
            "a scene's device behind VFIO has no hand on it in a machine; its driver's calls are no commands"
        )
    if board.vm.irqchip != "full":
        raise NotInMachine("the machine's IOAPIC is in the kernel")
    names = {id(ctx): name for name, ctx in board.eventfds().items()}
    eventfds = tuple((name, ctx.count, bool(ctx.semaphore)) for name, ctx in board.eventfds().items())
    irqfds = []
    for item in board.vm.irqfds.items:
        level = isinstance(item, LevelIrqfd) and item.level
        irqfds.append((names[id(item.ctx)], level, "" if item.resamplefd is None else names[id(item.resamplefd)]))
    eoifds: tuple[tuple[str, str], ...] = ()
    if isinstance(board.vm.irqfds, EoiIrqfds):
        eoifds = tuple((names[id(e.ctx)], names[id(e.level_irqfd)]) for e in board.vm.irqfds.eoifds)
    return Start(eventfds, tuple(irqfds), eoifds)


# From the order to actions


def _calls(scenario: Scenario, rows: Sequence[Row]) -> dict[tuple[int, int], Operation]:
    """The threads' calls. NotInMachine: one is no command."""
    found: dict[tuple[int, int], Operation] = {}
    closed: set[str] = set()
    for row in rows:
        actor = scenario.actors[row.n]
        if user_calls.goes_on(actor):
            raise NotInMachine(f"{actor.name}: makes its calls for ever, and an order in a machine has an end")
        if actor.repeats or (row.n, row.number) in found:
            continue
        operation = actor.at(row.number)
        kind, *words = operation.name.split()
        ours = getattr(getattr(operation.function, "__self__", None), "kind", None)
        if kind in ("E+", "E-", *COMMANDS) and ours != kind:
            raise NotInMachine(f"{operation.name}: a function of the scene's own, and no command")
        if kind not in (*COMMANDS, *GUEST) or "CPU" in words or operation.name.startswith("take,"):
            raise NotInMachine(f"{operation.name}: no command of the monitor, and none of the guest `mailbox`")
        if kind == "SIG" and words[0] in closed:
            raise NotInMachine(f"{operation.name}: it was closed, and the monitor has no other descriptor of it")
        if kind == "C":
            closed.add(words[0])
        found[row.n, row.number] = operation
    return found


def _splits(scenario: Scenario, lines: list[list[Row]], calls: dict[tuple[int, int], Operation]) -> list[_Split]:
    """Where the order stops what cannot be held, and somebody else's call comes in between."""
    found = []
    for place, rows in enumerate(lines):
        last = rows[-1]
        if last.finished or (last.n, last.number) not in calls:
            continue
        until = next((k for k in range(place + 1, len(lines)) if _key(lines[k]) == (last.n, last.number)), len(lines))
        others = [k for k in range(place + 1, until) if not scenario.actors[lines[k][-1].n].repeats]
        why = _why(calls[last.n, last.number].name, last.step)
        if others and why:
            found.append(_Split(place, until, why))
    return found


def _why(call: str, step: str) -> str:
    """Why a call cannot be held at a step; empty if it can."""
    if call.split()[0] in GUEST:
        return f"{call} is the guest's, and a vCPU cannot be held at {step}"
    if step not in POINTS:
        return f"{call} cannot be held at {step}, which is no point with a name"
    reason = why_not(step)
    return f"{call} cannot be held at {step}: {reason}" if reason else ""


def _key(rows: list[Row]) -> tuple[int, int]:
    return rows[-1].n, rows[-1].number


def _actions(
    scenario: Scenario,
    lines: list[list[Row]],
    calls: dict[tuple[int, int], Operation],
    late: dict[_Split, bool],
) -> Iterator[Action]:
    """Line by line. `late`: of each split, whether the call is done where it ends in the order, not where it begins."""
    moved = {split.first: split.last for split, is_late in late.items() if is_late}
    done: set[tuple[int, int]] = set()
    held: dict[tuple[int, int], str] = {}
    delayed = _delayed(scenario, lines)
    for place, rows in enumerate(lines):
        key, last = _key(rows), rows[-1]
        if key in held:
            point = held.pop(key)
            if not last.finished and not _why("", last.step) and last.step != point:
                held[key] = last.step
                yield Action("hold", last.step)
            yield Action("release", point)
            continue
        if key not in calls:
            point = delayed.get(place, "")
            if point:
                yield Action("release", point)
            continue
        if key in done or (place in moved and moved[place] < len(lines)):
            continue
        for point in {delayed[k]: None for k in delayed if _queued_by(lines, k) == place}:
            yield Action("hold", point)
        done.add(key)
        if not last.finished and not _why(calls[key].name, last.step) and place not in {split.first for split in late}:
            held[key] = last.step
            yield Action("hold", last.step)
        yield Action("call", calls[key].name, last.actor)


def _delayed(scenario: Scenario, lines: list[list[Row]]) -> dict[int, str]:
    """Lines in which a shutdown begins after somebody else's call: it is held where it has not changed anything."""
    found = {}
    begun: set[tuple[int, int]] = set()
    for place, rows in enumerate(lines):
        key = _key(rows)
        if not scenario.actors[key[0]].repeats or key in begun:
            continue
        begun.add(key)
        queued = _queued_by(lines, place)
        between = [k for k in range(queued + 1, place) if not scenario.actors[lines[k][-1].n].repeats]
        if between and rows[-1].operation.startswith("irqfd.shutdown"):
            found[place] = "irqfd.shutdown.unhook"
    return found


def _queued_by(lines: list[list[Row]], place: int) -> int:
    """The line since which something was queued, when a work begins."""
    k = place - 1
    while k > 0 and not lines[k - 1][-1].quiet:
        k -= 1
    return max(k, 0)


# The rehearsal


def _rehearse(family: Family, schedule: Schedule, actions: Sequence[Action]) -> tuple[dict[str, str], End]:
    """Do it on a board, as a machine does: what it breaks, and what is left."""
    board, scenario = set_up(family, schedule.scene, schedule.setup)
    noted: dict[str, str] = {}
    board.notes = noted
    operations = {
        (actor.name, operation.name): operation for actor in scenario.actors for operation in actor.operations
    }
    irqfds, gsis = board.vm.irqfds, board.vm.gsis

    def busy() -> str:
        taken = next((lock.name for lock in (irqfds.lock, irqfds.resampler_lock, gsis.lock) if not lock.is_free()), "")
        return taken or (gsis.irq_srcu.name if gsis.irq_srcu.readers else "")

    holder = Holder(board.executor, busy)
    for action in actions:
        if action.kind == "hold":
            holder.hold(action.text)
        elif action.kind == "release":
            if action.text in holder.armed:
                holder.release(action.text)
        else:
            operation = operations[action.who, action.text]
            if operation.ready is not None and not operation.ready():
                return {"": f"{action.text} cannot begin"}, _end(board, ())
            if action.text.split()[0] in GUEST:
                operation.function()
            else:
                op = holder.run(action.text, operation.function)
                if op.error is not None:
                    noted.setdefault(str(op.error).partition(":")[0], str(op.error))
        board.executor.drain()
    threads = sorted({actor.name for actor in scenario.actors if not actor.repeats})
    results = tuple((name, board.results(name)) for name in threads if board.results(name))
    if not any(op.state is not Progress.DONE for op in holder.stopped):
        wrong = board.wrong_at_rest() or (scenario.always() if scenario.always is not None else None)
        if wrong is not None:
            noted.setdefault(wrong.partition(":")[0], wrong)
    return noted, _end(board, results)


def _end(board: Board, results: tuple[tuple[str, tuple[str, ...]], ...]) -> End:
    names = {id(ctx): name for name, ctx in board.eventfds().items()}
    irqfds = board.vm.irqfds
    eoifds = irqfds.eoifds if isinstance(irqfds, EoiIrqfds) else ()
    closed = board.ledger().closed
    return End(
        results,
        tuple(sorted(names[id(item.ctx)] for item in irqfds.items if item.ctx not in closed)),
        tuple(sorted(names[id(item.ctx)] for item in eoifds if item.ctx not in closed)),
        (board.vm.gsis.sources.used & ~sum(1 << source for source in board.static)).bit_count(),
        board.pin.irr,
        board.pin.remote_irr,
        tuple((name, ctx.count) for name, ctx in board.eventfds().items() if ctx not in closed),
    )
