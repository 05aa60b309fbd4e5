"""A story as a program for the real /dev/kvm that stands by itself: vmm/explore/kvm_script.py with its case filled in.

What can be exported are calls that a user of KVM makes (`vmm/explore/user_calls.py`), under the rule that was merged.
Where calls overlap in the story the program makes them in threads, and plays the order many times: nobody can hold the
kernel's code in the middle of a call.
"""

from __future__ import annotations

import pprint
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmm.explore import chart, story, user_calls
from vmm.explore.scenes import set_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.explore.scenes import Family, Setup
    from vmm.explore.search import Scenario
    from vmm.explore.story import Row, Story

TEMPLATE: Final = Path(__file__).with_name("kvm_script.py")
BEGIN, END = "# What is played: begin\n", "# What is played: end\n"

Known = tuple[str, str, str | None]
"""Who, what, and what it came to."""


def kvm(family: Family, scene: str, setup: Setup, told: Story, schedule: str) -> str:
    """The program. NotKvms: something in the story is no call of KVM's user."""
    board, scenario = set_up(family, scene, setup)
    first = user_calls.beginning(board)
    state: dict[str, int] = {}
    if told.rows and told.rows[-1].quiet:
        last = told.rows[-1].wave
        if not any(row.operation.startswith("VM") for row in told.rows):
            state = {"IRR": int(last.irr), "remote IRR": int(last.remote_irr)}
            state |= {"LAPIC IRR": int(last.requested), "LAPIC ISR": int(last.in_service)}
        state |= dict(told.counts)
    case: dict[str, Any] = {
        "story": f"{schedule}\n" + "\n".join(f"{n}. {text}" for n, text in enumerate(chart.sentences(told), 1)),
        "eventfds": [list(eventfd) for eventfd in first.eventfds],
        "irqfds": [list(irqfd) for irqfd in first.irqfds],
        "groups": groups(scenario, told.rows),
        "state": state,
    }
    case["story"] += f"\n{told.rule or 'nothing is violated'}\n"
    text = TEMPLATE.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    body = pprint.pformat(case, width=110, sort_dicts=False)
    return f"{head}{BEGIN}CASE: dict[str, Any] = {body}\n{END}{tail}"


def groups(scenario: Scenario, rows: Sequence[Row]) -> list[list[list[Known]]]:
    """Calls that overlap, together; of each group the calls of each thread, in order. NotKvms.

    What a call has queued is part of it: who acts before that is done overlaps with it.
    """
    spans: dict[tuple[int, int], list[int]] = {}
    results: dict[tuple[int, int], str | None] = {}
    for k, row in enumerate(rows):
        if user_calls.goes_on(scenario.actors[row.n]):
            raise user_calls.NotKvms(f"{row.actor}: makes its calls for ever, and a program has an end")
        if scenario.actors[row.n].repeats:
            continue
        key = row.n, row.number
        spans.setdefault(key, [k, k])[1] = _done(rows, k)
        if row.finished and " = " in row.operation:
            results[key] = row.operation.partition(" = ")[2]
    made: list[list[list[Known]]] = []
    until = -1
    for (n, number), (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        actor = scenario.actors[n]
        operation = actor.at(number)
        call = user_calls.of(operation.name, operation.function)
        if begin > until:
            made.append([])
        until = max(until, end)
        known: Known = (actor.name, call.text, results.get((n, number)))
        thread = next((calls for calls in made[-1] if calls[0][0] == actor.name), None)
        if thread is None:
            made[-1].append([known])
        else:
            thread.append(known)
    return made


def _done(rows: Sequence[Row], k: int) -> int:
    """When nothing is queued or running after a step."""
    return next((later for later in range(k, len(rows)) if rows[later].quiet), len(rows))


def replayed(family: Family, text: str) -> str:
    """The program of a schedule string. UsageError, NotKvms."""
    schedule = story.decode(text)
    setup, told = story.replay(family, text)
    return kvm(family, schedule.scene, setup, told, text)
