"""Stories as they are told: in words, with waveforms in a terminal, and as a picture."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from vmm.cli.vintx import main
from vmm.explore import chart, scenes, story
from vmm.explore.scenes import Setup
from vmm.explore.story import Row, Story, Wave

SVG = "{http://www.w3.org/2000/svg}"
CLOSE = ["explore", "thread", "--policy", "eoifd-v5", "--sources", "1", "--scene", "close"]
LOW = Wave(False, False, False, False, False, False)


def told(scene: str, policy: str = "eoifd-v5", family: str = "thread") -> tuple[Story, str]:
    loaded = scenes.load(family)
    outcome = scenes.run(loaded, scene, Setup(policy, None, 1))
    return story.of(loaded, outcome), story.encode(outcome)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_waveforms_rise_with_the_injection_and_fall_with_the_eoi():
    waves = [(row.operation, row.wave) for row in told("close")[0].rows if row.finished]
    levels = {operation: (wave.line, wave.remote_irr, wave.in_service) for operation, wave in waves}
    assert levels["SIG e1 = ok"] == (False, False, False)
    assert levels["irqfd.inject gsi 5"] == (True, True, False)
    assert levels["take = ok"] == (True, True, True)
    assert levels["EOI = ok"] == (False, False, False)


def test_story_is_told_in_words_with_numbers_and_the_invariant(capsys):
    assert main(CLOSE) == 1
    shown = capsys.readouterr().out
    for words in (
        "  1. user assigns e1 as an irqfd (KVM_IRQFD)",
        "  6. inject runs irqfd.inject gsi 5; the pin rises, Remote IRR is set, an interrupt is requested",
        "  8. vcpu writes its EOI; the pin falls, Remote IRR is cleared, it is ended",
        "S1 (no source-id leak)",
    ):
        assert words in shown
    rows = [line for line in shown.splitlines() if "irqfd.inject" in line and "│" in line]
    assert rows[0].count("└─┐") == 2


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("I- e1 = EBUSY", "deassigns the irqfd of e1 (KVM_IRQFD_FLAG_DEASSIGN): EBUSY"),
        ("I+ e1 edge = ok", "assigns e1 as an edge irqfd (KVM_IRQFD)"),
        ("I+ e1 e2 = ok", "assigns e1 as an irqfd, e2 is its resamplefd (KVM_IRQFD)"),
        ("take, serve on CPU 1 = ok", "takes the interrupt and lets the devices be served on CPU 1"),
        ("route 5 to pin 6 = ok", "routes GSI 5 to pin 6 (KVM_SET_GSI_ROUTING)"),
        ("mine", "runs mine"),
    ],
)
def test_call_is_said_in_the_fields_words(operation, words):
    assert chart.in_words(operation) == words


def test_picture_has_a_column_for_each_actor_the_waveforms_and_how_to_run_it_again():
    one, schedule = told("close")
    drawn = texts(chart.svg(one, "thread, scene close", schedule))
    columns = {"user", "cleanup", "inject", "vcpu", "pin", "remote IRR", "mask"}
    assert {*columns, "E+ e2 e1 = ok", f"again: --replay '{schedule}'"} <= set(drawn)
    root = ET.fromstring(chart.svg(one, "x"))
    pin = next(line for line in root.iter(f"{SVG}polyline"))
    assert len({point.split(",")[0] for point in pin.get("points").split()}) == 2
    width, height = float(root.get("width")), float(root.get("height"))
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.get("x")) < width
        assert 0 <= float(element.get("y")) < height


def test_text_of_users_is_no_markup_in_the_picture():
    row = Row(0, "<b>&'\"\x00\ud800", 0, "]]> = ok", "]]>", True, "", LOW)
    drawn = texts(chart.svg(Story((row,), "S0: <&>", "", LOW), "<&>", "a'b"))
    assert "<b>&'\"\ufffd\ufffd" in drawn
    assert "]]> = ok" in drawn
    assert "<&>" in drawn


def test_story_without_a_step_is_drawn_too():
    assert "nothing is violated" in texts(chart.svg(Story((), None, "", LOW), "nothing"))


def test_loop_is_told_drawn_and_replayed(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from vmm.explore.parts import point\nfrom vmm.order import State\n\n\nclass Light(State):\n"
        "    VISIBLE = ('on',)\n    __slots__ = VISIBLE\n\n    def __init__(self):\n        self.on = False\n\n"
        "    def turn(self):\n        self.on = not self.on\n        point('turned', self)\n"
        "        self.on = not self.on\n\n\n"
        "def explore_light(board):\n    light = Light()\n    board.state(light)\n"
        "    board.thread('user').run('turn', light.turn)\n"
    )
    family = scenes.load(str(path))
    one = story.tell(family, "light", Setup(), (0, 0), loop=0)
    assert chart.sentences(one)[-1] == "and so on for ever, from step 1"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(chart.terminal(one))
    assert "turn = ok [the loop begins]" in console.export_text()
    assert "\N{CLOCKWISE OPEN CIRCLE ARROW}" in texts(chart.svg(one, "light"))
    schedule = story.decode("light/resample/6.18/-x2/a*a2b-0000")
    assert (schedule.choices, schedule.loop, schedule.setup.scale) == ((0, 0, 0, 1), 1, 2)


def test_picture_is_written_for_what_was_found_and_for_a_replay(tmp_path, capsys):
    found, again = tmp_path / "found.svg", tmp_path / "again.svg"
    assert main([*CLOSE, "--svg", str(found)]) == 1
    assert f"drawn: {found}" in capsys.readouterr().out
    schedule = next(text for text in texts(found.read_text()) if text.startswith("again:")).split("'")[1]
    assert main(["explore", "thread", "--replay", schedule, "--svg", str(again)]) == 1
    assert again.read_text() == found.read_text()


def test_several_pictures_are_named_after_scene_and_rule(tmp_path, capsys):
    path = tmp_path / "all.svg"
    arguments = ["explore", "thread", "--all-policies", "--sources", "1", "--scene", "counter-example"]
    assert main([*arguments, "--svg", str(path)]) == 1
    capsys.readouterr()
    names = {made.name for made in tmp_path.iterdir()}
    assert names == {
        f"all-counter-example-{rule}.svg" for rule in ("eoifd-v5", "assign-busy", "assign-rebinds", "eoifd-holds-file")
    }


def test_picture_of_nothing_is_not_written_and_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    path = tmp_path / "none.svg"
    assert main(["explore", "thread", "--scene", "close-eoifd", "--svg", str(path)]) == 0
    assert "nothing was found" in capsys.readouterr().out
    assert not path.exists()
    assert main([*CLOSE, "--svg", str(tmp_path / "no" / "x.svg")]) == 2
    assert "there is no directory" in capsys.readouterr().err
