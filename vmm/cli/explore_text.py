"""What `vintx explore` and `vintx zoo` print: stories, tables, verdicts, in a terminal of any width."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmm.explore import chart, story

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.explore.scenes import Family, Outcome
    from vmm.explore.story import Story

WIDE = 10_000


class Screen(Console):
    """A console whose reader may go: rich would end the program with the status of a violation."""

    def on_broken_pipe(self) -> None:
        """Let whoever called the command say what its status is then."""
        raise BrokenPipeError


def console(width: int = 150) -> Console:
    """As wide as the terminal; so wide where there is none. What its encoding does not have is written as a number."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    made = Screen(highlight=False)
    return made if made.is_terminal else Screen(highlight=False, width=width)


def fits(console: Console, table: Table) -> bool:
    """No word of the table has to be cut."""
    wide = console.options.update(width=WIDE, max_width=WIDE)
    return table.__rich_measure__(console, wide).minimum <= console.width


def print_finding(family: Family, outcome: Outcome, every_step: bool, bug: str | None) -> None:
    """The story of what was found, and how to run it again."""
    screen = console()
    told = story.of(family, outcome)
    title = f"{family.name}, scene {outcome.scene}, {outcome.setup.policy}"
    if len(title) + 2 < screen.width:
        screen.rule(Text(title), align="left")
    else:
        screen.print(title, markup=False, soft_wrap=True)
    print_story(screen, told, every_step)
    infected = f" --bug {bug}" if bug else ""
    screen.print(f"again: --replay '{story.encode(outcome)}'{infected}\n", markup=False, soft_wrap=True)


def print_story(console: Console, told: Story, every_step: bool) -> None:
    """The chart, if the terminal is wide enough for it, and the sentences."""
    print_chart(console, told, every_step)
    for number, sentence in enumerate(chart.sentences(told), 1):
        console.print(f"{number:3}. {sentence}", markup=False, soft_wrap=True)
    console.print(chart.verdict(told), markup=False, soft_wrap=True)
    if told.rule:
        console.print(f"  {told.rule}", markup=False, soft_wrap=True)


def print_chart(console: Console, told: Story, every_step: bool) -> None:
    """The chart; without the board if there is no room for that; not at all if there is none for the rest."""
    for board in (True, False):
        table = chart.terminal(told, every_step, board, console.options.ascii_only)
        if fits(console, table):
            console.print(table)
            return
    console.print(f"(a chart of this has no room in {console.width} columns; --svg draws it)", soft_wrap=True)


def summary(family: Family, outcomes: Sequence[Outcome], bug: str | None = None) -> Table | Text:
    """A line for each exploration."""
    title = f"{family.name} with {bug.upper()}" if bug else family.name
    table = Table(
        "scene", "policy", "era", "states", "transitions", "ends", "s", "outcome", title=Text(title, style="italic")
    )
    lines = []
    for outcome in outcomes:
        result = outcome.result
        counts = (str(n) for n in (result.states, result.transitions, result.ends))
        row = (outcome.scene, outcome.setup.policy, outcome.era, *counts, f"{outcome.seconds:.2f}", came_to(outcome))
        table.add_row(*map(Text, row))
        lines.append(f"{outcome.scene}, {outcome.setup.policy}: {came_to(outcome)}; {result.states} states")
    return table if fits(console(), table) else Text("\n".join([title, *lines]))


def came_to(outcome: Outcome) -> str:
    """What came of an exploration, in a few words."""
    result = outcome.result
    if result.finding is not None:
        number = result.finding.rule.partition(":")[0]
        known = story.words(number)
        return f"{number} in {len(result.finding.choices)} steps{': ' + known if known else ''}"
    if result.unasked:
        return f"held, but for {', '.join(result.unasked)}: --strategy bfs asks goals"
    if result.orders:
        return f"nothing in {result.orders} orders"
    return "held" if result.complete else f"not finished at {result.states} states"


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Over how much the invariants hold."""
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
