"""S1 to S20 and L1 to L6, each with its form, and where the code is that asks it. docs/explore.md has the table.

The forms:

    state          a predicate of one state: where nobody can act any more, or, if it says so, of every state
    step           before and after one operation that nobody else interfered with
    two runs       the ends of one scene are compared with the ends of another
    as it happens  the code of the objects notices: an `order.Violation`, an exception
    lock graph     which lock was taken under which, over the whole search: there is no cycle
    fair cycle     a goal that must come true again and again: no fair loop of states in which it is false

A *ghost* is what a check has to know and the kernel does not. Hashed ghosts are state: two states that differ in them
only are two. What is not hashed is the same in all states of a search, or follows from the rest of the state.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.kernel import invariants
from vmm.kernel.invariants import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm.explore.board import Board
    from vmm.explore.parts import Thread
    from vmm.kernel.invariants import View


class Rule(NamedTuple):
    """One invariant. `asked`: the function or rule name that breaks; `hashed`: of the ghost, empty if there is none."""

    number: str
    says: str
    form: str
    asked: str
    ghost: str = ""
    hashed: str = ""


# Of one operation.


def s11(delivered: bool, high: bool) -> str:
    """No phantom: what an unmask delivers is of a line that is high now, never of history alone."""
    return "an unmask delivers an interrupt, and no line is high" if delivered and not high else ""


_VIEW: Final = ("irqfds", "eoifds", "notifiers", "resamplers", "source ids", "lines", "eventfds", "files")
"""What an `invariants.View` has, in order."""


def careless(board: Board, failure: str, before: View, after: View) -> str:
    """S19 of a call that came to `failure`, as `I+ e1 = EBUSY`, while nobody else acted; empty if it holds."""
    call, _, error = failure.partition(" = ")
    kind: invariants.Kind = call.split()[0]  # type: ignore[assignment]
    step = Step(kind, getattr(errno, error), before, after)
    if not invariants.s19(board.vm, board.ledger(), step):
        return ""
    parts = zip(_VIEW, before.kernel + before.references, after.kernel + after.references, strict=True)
    changed = "; ".join(f"{name} from {was} to {now}" for name, was, now in parts if was != now)
    return f"S19: {call} failed with {error}, and changed {changed}"


# Of states.


def s17(board: Board) -> str:
    """Mask depth: a device is masked as often as VFIO says, once or not at all, and always while INTx is disabled."""
    for hardware in board.devices:
        ctx = hardware.intx.ctx
        if ctx is None or hardware.gone:
            continue
        if hardware.depth != int(ctx.masked):
            return f"{hardware.name} is disabled {hardware.depth} times, and VFIO has it masked {int(ctx.masked)}"
        if hardware.intx.virq_disabled and not ctx.masked:
            return f"the guest has disabled INTx of {hardware.name}, and it is not masked"
    return ""


def l1(board: Board) -> str:
    """No lost level interrupt: a line that is high, bound and enabled is delivered, after each EOI again."""
    pin, ioapic = board.pin, board.chips.ioapic
    later = ioapic.eoi_inject.armed or ioapic.eoi_inject.pending or ioapic not in board.chips.bus.ioapics
    if pin.irr and pin.level and not pin.masked and not pin.remote_irr and not later:
        return "the pin is high and enabled, and nothing was delivered"
    bound = [item.ctx for item in board.vm.irqfds.items]
    for hardware in board.devices:
        ctx = hardware.intx.ctx
        if ctx is None or ctx.trigger not in bound or hardware.intx.virq_disabled:
            continue
        if hardware.level and ctx.masked and not any(pin.on_its_way() for pin in board.chips.pins):
            return f"{hardware.name} wants service, and no interrupt is on its way"
    return ""


# Goals. Pure functions of the state that come true again and again in every fair run.


def served(board: Board) -> bool:
    """L1: no device waits for service."""
    return not any(hardware.level for hardware in board.devices)


def progressed(board: Board) -> bool:
    """L3: the guest came to silence its line, however often it ended the interrupt before."""
    return not board.pin.held


def at_peace(board: Board) -> bool:
    """L5: no work, no interrupt and no EOI is under way."""
    pin, executor = board.pin, board.executor
    return not (executor.pending or executor.running or pin.requested or pin.in_service or pin.remote_irr)


def unmasked(board: Board) -> bool:
    """L6: no device is masked, but by the guest or for good."""
    return not any(
        hardware.depth and not hardware.gone and not hardware.intx.virq_disabled for hardware in board.devices
    )


def returned(thread: Thread) -> bool:
    """L4: a thread is in the middle of no call, whatever others do for ever."""
    return not thread.busy


GOALS: Final[dict[str, Callable[[Board], bool]]] = {"L1": served, "L3": progressed, "L5": at_peace, "L6": unmasked}


# Locks.


def kind_of(lock: str) -> str:
    """What lockdep calls a lock's class: the name without whose it is."""
    return re.sub(r"^(?!kvm\.|ioapic\.).*\.|-\d+$", "", lock)


def s15(nested: Iterable[tuple[str, str]]) -> str:
    """Lock discipline: locks nest in one order. `nested`: (outer, inner) kinds; says a shortest cycle."""
    under: dict[str, set[str]] = {}
    for outer, inner in nested:
        under.setdefault(outer, set()).add(inner)
    for start in sorted(under):
        ways = [[start]]
        seen: set[str] = set()
        for way in ways:
            for inner in sorted(under.get(way[-1], ())):
                if inner == start:
                    return f"locks are taken in a circle: {' -> '.join([*way, start])}"
                if inner not in seen:
                    seen.add(inner)
                    ways.append([*way, inner])
    return ""


AS_IT_HAPPENS: Final = {
    "use-after-free": "S4",
    "double-free": "S4",
    "double-put": "S4",
    "deactivated-twice": "S4",
    "wait-entry-never-added": "S13",
    "wait-entry-added-twice": "S13",
    "sleeps-in-atomic": "S15",
    "eventfd-recursion": "S15",
    "not-owner": "S15",
    "deadlock": "S15, L4",
    "raised": "S16",
}
"""What `order.Violation` calls a broken rule, and its number."""

_FREED = "`Mortal.freed_by`, `Mortal.shutdowns`"


def _named(number: str) -> str:
    return ", ".join(f"`{rule}`" for rule, numbers in AS_IT_HAPPENS.items() if number in numbers.split(", "))


def _kernel() -> list[Rule]:
    """Those of `vmm/kernel/invariants.py`. Their ledger is made from the state whenever it is asked for."""
    found = []
    for one in invariants.catalogue():
        form = {"two runs": "two runs", "state": "state", "step": "step"}[one.form]
        found.append(Rule(one.number, one.says, form, f"`{one.number.lower()}`", one.ghost, "no" if one.ghost else ""))
    return found


def _says(function: Callable[..., object]) -> str:
    return " ".join((function.__doc__ or "").split()).partition(". ")[0].rstrip(".")


def catalogue() -> list[Rule]:
    """All twenty-six, in order."""
    own = [
        Rule("S11", _says(s11), "step", "`s11`, after each unmask", "whether a device's line is high", "yes"),
        Rule(
            "S13",
            "Quiesce before free: timers, works, wait entries and notifiers are over before what they touch is freed",
            "as it happens",
            f"{_named('S13')}, and those of S4",
            _FREED,
            "yes",
        ),
        Rule("S15", _says(s15), "lock graph", f"`s15`; and {_named('S15')} as they happen", "who waits", "yes"),
        Rule("S16", "Bounded and total: nothing is raised but errno", "as it happens", _named("S16")),
        Rule("S17", _says(s17), "state", "`s17`", "the device's own count", "yes"),
        Rule(
            "S18",
            "Set-up and tear-down are symmetrical: what is gone leaves nothing, and can be had again",
            "step",
            "`IntxUser.left`",
            "the steps that were taken",
            "yes",
        ),
        Rule("L1", _says(l1), "state, fair cycle", "`l1`, `served`"),
        Rule(
            "L2",
            "Progress of set-up: what may be switched on is, or says why not",
            "state",
            "`deadlock`: a call that does not return; errno: one that does",
        ),
        Rule(
            "L3", "A guest gets something done between interrupts that it ends too early", "fair cycle", "`progressed`"
        ),
        Rule("L4", "Tear-down terminates: no call waits for ever", "state, fair cycle", f"{_named('L4')}; `returned`"),
        Rule("L5", "Quiescence: without events from outside, all comes to rest", "fair cycle", "`at_peace`"),
        Rule("L6", "The mask returns: each that an interrupt has caused is taken back", "fair cycle", "`unmasked`"),
    ]
    happens = {
        "S4": f"`s4`; and {_named('S4')} as they happen",
        "S19": "`s19`, of each call wherever nothing else is under way",
    }
    rules = [rule._replace(asked=happens.get(rule.number, rule.asked)) for rule in _kernel()] + own
    rules = [rule._replace(ghost=_FREED, hashed="yes") if rule.number == "S4" else rule for rule in rules]
    return sorted(rules, key=lambda rule: (rule.number[0] == "L", int(rule.number[1:])))


def markdown() -> str:
    """The table of docs/explore.md."""
    lines = ["| | says | form | asked by | ghost | hashed |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(rule)} |".replace("  ", " ") for rule in catalogue()]
    return "\n".join(lines)
