"""A story drawn: a column for each actor, and the pin, Remote IRR and the mask as waveforms beside them.

    console.print(chart.terminal(told))
    Path("story.svg").write_text(chart.svg(told, title, schedule))

Time goes down. In the picture each line is a call, or as much of one as is done until somebody else acts; a bar on the
actor's line of life shows how long the call is under way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from xml.etree import ElementTree as ET

from rich.table import Table
from rich.text import Text

from vmm.explore.story import lines, said, words
from vmm.kernel.hold import POINTS

if TYPE_CHECKING:
    from vmm.explore.story import Row, Story

ALWAYS: Final = ("pin", "remote IRR", "mask")
"""Signals that are drawn even if they never move."""

# In words

_SAYS: Final = (
    (r"I\+ (\S+) edge", r"assigns \1 as an edge irqfd (KVM_IRQFD)"),
    (r"I\+ (\S+) (\S+)", r"assigns \1 as an irqfd, \2 is its resamplefd (KVM_IRQFD)"),
    (r"I\+ (\S+)", r"assigns \1 as an irqfd (KVM_IRQFD)"),
    (r"I- (\S+)", r"deassigns the irqfd of \1 (KVM_IRQFD_FLAG_DEASSIGN)"),
    (r"E\+ (\S+) (\S+)", r"binds the eoifd \1 to the irqfd of \2 (KVM_EOIFD)"),
    (r"E- (\S+) (\S+)", r"deassigns the eoifd \1 of \2 (KVM_EOIFD_FLAG_DEASSIGN)"),
    (r"C (\S+)", r"closes \1"),
    (r"SIG (\S+)", r"signals \1"),
    (r"VM", r"closes the VM"),
    (r"(\S+) asserts", r"\1 asserts INTx"),
    (r"take, serve(.*)", r"takes the interrupt and lets the devices be served\1"),
    (r"take(.*)", r"takes the interrupt\1"),
    (r"EOI(.*)", r"writes its EOI\1"),
    (r"interrupt(.*)", r"takes an interrupt and ends it\1"),
    (r"serve (\S+)", r"serves \1"),
    (r"mask", r"masks the pin"),
    (r"unmask", r"unmasks the pin"),
    (r"line 1", r"raises the GSI from user space (KVM_IRQ_LINE)"),
    (r"line 0", r"lowers the GSI from user space (KVM_IRQ_LINE)"),
    (r"route (\d+) to pin (\d+)", r"routes GSI \1 to pin \2 (KVM_SET_GSI_ROUTING)"),
)
_MOVES: Final = {
    "pin": ("the pin rises", "the pin falls"),
    "remote IRR": ("Remote IRR is set", "Remote IRR is cleared"),
    "mask": ("the pin is masked", "the pin is unmasked"),
    "LAPIC IRR": ("an interrupt is requested", ""),
    "LAPIC ISR": ("it is in service", "it is ended"),
}


def in_words(operation: str) -> str:
    """A call in the field's words: `I- e1 = EBUSY` is `deassigns the irqfd of e1 (...): EBUSY`."""
    text, _, result = operation.partition(" = ")
    for pattern, says in _SAYS:
        found = re.fullmatch(pattern, text)
        if found is not None:
            text = found.expand(says)
            break
    else:
        text = f"runs {text}"
    return f"{text}: {result}" if result not in ("", "ok") else text


def sentences(story: Story) -> list[str]:
    """The story, one sentence for each line of the table."""
    told = []
    begun: set[tuple[int, int]] = set()
    before = story.wave.signals()
    for rows in lines(story):
        last = rows[-1]
        text = in_words(last.operation)
        goes_on = (last.n, last.number) in begun
        begun.add((last.n, last.number))
        if goes_on:
            text = f"goes on, and {text}" if last.finished else f"goes on: {text}"
        if not last.finished:
            mirrors = POINTS.get(last.step, "")
            text += f", and stands at {last.step}" + (f" ({mirrors})" if mirrors else "")
        after = last.wave.signals()
        moved = [_moved(name, after[name]) for name in after if after[name] != before[name]]
        before = after
        moved = [move for move in moved if move]
        told.append(f"{last.actor} {text}{'; ' if moved else ''}{', '.join(moved)}")
    if story.loop is not None:
        told.append(f"and so on for ever, from step {story.loop + 1}")
    return told


def _moved(name: str, high: bool) -> str:
    if name in _MOVES:
        return _MOVES[name][not high]
    if name.endswith(" masked"):
        return f"VFIO {'masks' if high else 'unmasks'} {name.removesuffix(' masked')}"
    return f"{name} {'rises' if high else 'falls'}"


def verdict(story: Story) -> str:
    """The invariant, by number and in words."""
    if story.rule is None:
        return "nothing is violated"
    number = story.rule.partition(":")[0]
    known = words(story.rule)
    return f"{number} ({known})" if known else number


def signals(story: Story) -> list[str]:
    """What is drawn: what moves, and what always is."""
    waves = [story.wave, *(row.wave for row in story.rows)]
    levels = [wave.signals() for wave in waves]
    return [name for name in levels[0] if name in ALWAYS or len({level[name] for level in levels}) > 1]


# In a terminal

_LOW, _HIGH, _RISES, _FALLS = "│  ", "  │", "└─┐", "┌─┘"
_ASCII: Final = str.maketrans("│─└┐┌┘", "|-'..'")
_SHORT: Final = {"pin": "pin", "remote IRR": "rIRR", "mask": "mask"}
"""What a terminal has room for; the rest is on the board."""


def terminal(story: Story, every_step: bool = False, board: bool = True, ascii_only: bool = False) -> Table:
    """The table of a story with waveforms: left is low, right is high; and what is on the `board`."""
    drawn = _ASCII if ascii_only else {}
    actors = list(dict.fromkeys(row.actor for row in story.rows))
    made = Table("step", pad_edge=False)
    for actor in actors:
        made.add_column(Text(actor))
    for heading in _SHORT.values():
        made.add_column(heading, no_wrap=True)
    if board:
        made.add_column("board")
    before = story.wave.signals()
    first = [Text(story.before)] if board else []
    levels = [(_HIGH if before[name] else _LOW).translate(drawn) for name in _SHORT]
    made.add_row("", *[""] * len(actors), *levels, *first)
    shown = story.before
    begun: set[tuple[int, int]] = set()
    k = 0
    for rows in lines(story, every_step):
        last = rows[-1]
        text = said(rows, begun)
        if story.loop is not None and k <= story.loop < k + len(rows):
            text += " [the loop begins]"
        k += len(rows)
        after = last.wave.signals()
        cells = [Text(text if actor == last.actor else "") for actor in actors]
        waves = [_wave(before[name], after[name]).translate(drawn) for name in _SHORT]
        made.add_row(str(k), *cells, *waves, *([Text("" if last.board == shown else last.board)] if board else []))
        shown, before = last.board, after
    return made


def _wave(before: bool, after: bool) -> str:
    if before == after:
        return _HIGH if after else _LOW
    return _RISES if after else _FALLS


# As a picture

CHAR, LINE, TOP = 7.3, 26, 96
"""Pixels: a character of the font, a line of the chart, where the first one is."""
STYLE: Final = """
svg { background: #fff; font: 12px ui-monospace, "DejaVu Sans Mono", monospace; }
.title { font-size: 16px; font-weight: bold; } .quiet { fill: #667; } .life { stroke: #ccd; }
.call { fill: #e8eef9; stroke: #5470a8; } .wrong { fill: #fbe3e3; stroke: #b22; } .bar { fill: #5470a8; }
.wave { fill: none; stroke: #0a7a43; stroke-width: 2; } .low { stroke: #dde; } .rule { fill: #b22; font-weight: bold; }
"""


class _Column(NamedTuple):
    name: str
    left: float
    width: float

    @property
    def middle(self) -> float:
        return self.left + self.width / 2


def svg(story: Story, title: str, schedule: str = "") -> str:
    """The chart as SVG, complete in itself. `schedule`: how to run it again."""
    told = lines(story)
    columns = _columns(story, told)
    drawn = signals(story)
    right = columns[-1].left + columns[-1].width + 24 if columns else 70
    places = {}
    for name in drawn:
        width = max(34, len(name) * CHAR + 12)
        places[name] = right, right + width - 12
        right += width
    words_of = [f"{n}. {sentence}" for n, sentence in enumerate(sentences(story), 1)]
    wide = [title, verdict(story), story.rule or "", *words_of, f"again: --replay '{schedule}'" if schedule else ""]
    bottom = TOP + LINE * (len(told) + 1)
    height = bottom + 18 * (len(words_of) + 6)
    width = max(right + 16, max(len(text) for text in wide) * CHAR + 32)
    root = ET.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "width": f"{width:.0f}", "height": f"{height:.0f}", "role": "img"},
    )
    ET.SubElement(root, "title").text = _plain(title)
    ET.SubElement(root, "style").text = STYLE
    _text(root, 16, 28, title, "title")
    _text(root, 16, 50, verdict(story), "rule" if story.rule else "quiet")
    for column in columns:
        _text(root, column.middle, TOP - 16, column.name, anchor="middle")
        _line(root, column.middle, TOP - 8, column.middle, bottom - 8, "life")
    _calls(root, told, {column.name: column for column in columns}, story.loop)
    for name, (low, high) in places.items():
        _text(root, (low + high) / 2, TOP - 16, name, "quiet", "middle")
        levels = [story.wave.signals()[name], *(rows[-1].wave.signals()[name] for rows in told)]
        _line(root, low, TOP - 8, low, bottom - 8, "low")
        ET.SubElement(root, "polyline", {"class": "wave", "points": _points(levels, low, high)})
    y = float(bottom) + 16
    for sentence in words_of:
        _text(root, 16, y, sentence)
        y += 18
    y += 12
    if story.rule:
        _text(root, 16, y, story.rule, "rule")
        y += 24
    if schedule:
        _text(root, 16, y, f"again: --replay '{schedule}'", "quiet")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _columns(story: Story, told: list[list[Row]]) -> list[_Column]:
    widths = {row.actor: len(row.actor) for row in story.rows}
    begun: set[tuple[int, int]] = set()
    for rows in told:
        actor = rows[-1].actor
        widths[actor] = max(widths[actor], len(said(rows, begun)))
    columns = []
    left = 52.0
    for name, longest in widths.items():
        columns.append(_Column(name, left, longest * CHAR + 24))
        left += columns[-1].width
    return columns


def _calls(root: ET.Element, told: list[list[Row]], columns: dict[str, _Column], loop: int | None) -> None:
    begun: set[tuple[int, int]] = set()
    starts: dict[tuple[int, int], float] = {}
    k = 0
    for place, rows in enumerate(told):
        last = rows[-1]
        column = columns[last.actor]
        y = TOP + LINE * place
        if loop is not None and k <= loop < k + len(rows):
            _text(root, 4, y + 2, "\N{CLOCKWISE OPEN CIRCLE ARROW}", "rule")
        k += len(rows)
        _text(root, 44, y + 16, str(k), "quiet", "end")
        key = last.n, last.number
        starts.setdefault(key, y)
        if last.finished and starts[key] != y:
            _rect(root, column.middle - 2, starts[key] + 22, 4, y - starts[key] - 22, "bar")
        text = said(rows, begun)
        wide = len(text) * CHAR + 12
        _rect(root, column.middle - wide / 2, y, wide, 22, "wrong" if last.step == "violates" else "call")
        _text(root, column.middle, y + 15, text, anchor="middle")


def _points(levels: list[bool], low: float, high: float) -> str:
    points = []
    y = float(TOP) - 8
    for k, level in enumerate(levels):
        x = high if level else low
        points.append((x, y))
        y = TOP + 11 + LINE * k
        points.append((x, y))
    points.append((points[-1][0], y + 7))
    return " ".join(f"{x:.0f},{y:.0f}" for x, y in points)


def _text(root: ET.Element, x: float, y: float, text: str, css: str = "", anchor: str = "") -> None:
    attributes = {"x": f"{x:.0f}", "y": f"{y:.0f}"}
    attributes |= {"class": css} if css else {}
    attributes |= {"text-anchor": anchor} if anchor else {}
    ET.SubElement(root, "text", attributes).text = _plain(text)


def _plain(text: str) -> str:
    """Without what XML cannot say: a name is the user's, and may be anything."""
    return re.sub(r"[^\t\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def _line(root: ET.Element, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ET.SubElement(root, "line", {"class": css} | {name: f"{value:.0f}" for name, value in ends.items()})


def _rect(root: ET.Element, x: float, y: float, width: float, height: float, css: str) -> None:
    box = {"x": x, "y": y, "width": width, "height": height}
    attributes = {"class": css, "rx": "3"} | {name: f"{value:.0f}" for name, value in box.items()}
    ET.SubElement(root, "rect", attributes)
