"""Scenarios as a user runs them: what holds, what is found and told, what is run again, and what is no verdict."""

from __future__ import annotations

import json
import re
import sys

import pytest

from vmm.cli.vintx import main
from vmm.errors import UsageError
from vmm.explore import scenes, story
from vmm.explore.scenes import ScenarioFault, Setup

TWO_OBJECTS = ["eoifd-v5", "deassign-fails", "eoifd-follows-irqfd", "assign-busy", "assign-rebinds", "eoifd-holds-file"]


def outcome(family: str, scene: str, policy: str = "resample", sources: int | None = 1):
    return scenes.run(scenes.load(family), scene, Setup(policy, None, sources))


def rule(*asked) -> str:
    finding = outcome(*asked).result.finding
    return "" if finding is None else finding.rule.partition(":")[0]


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return write


def test_fourth_call_of_the_thread_fails_though_no_irqfd_lives_under_the_posted_rule():
    found = outcome("thread", "counter-example", "eoifd-v5")
    assert found.result.finding.rule.startswith("S20: <eventfd e3 0>: I+ e3 = EFAULT")
    told = story.of(scenes.load("thread"), found)
    calls = [row.operation for row in told.rows if row.finished and row.actor == "user"]
    assert calls == ["I+ e1 = ok", "E+ e2 e1 = ok", "I- e1 = ok", "I+ e3 = EFAULT"]
    assert told.rows[-1].board.endswith("ids 1; irqfds -; eoifds e2(1)")


@pytest.mark.parametrize("policy", ["resample", *TWO_OBJECTS])
def test_counter_example_fails_under_rules_that_leave_an_eoifd_its_source(policy):
    zombies = policy in ("eoifd-v5", "assign-busy", "assign-rebinds", "eoifd-holds-file")
    assert rule("thread", "counter-example", policy) == ("S20" if zombies else "")
    if policy in ("eoifd-v5", "assign-busy"):
        assert rule("thread", "counter-example", policy, 2) == ""


@pytest.mark.parametrize(
    ("policy", "broken"),
    [
        ("resample", ""),
        ("eoifd-v5", "S1"),
        ("deassign-fails", "S3"),
        ("eoifd-follows-irqfd", ""),
        ("assign-busy", ""),
        ("eoifd-holds-file", "S3"),
    ],
)
def test_close_is_told_from_deassign(policy, broken):
    assert rule("thread", "close", policy) == broken


def test_same_eventfd_again_is_served_by_a_rule_that_rebinds_only():
    assert rule("thread", "same-eventfd", "eoifd-v5", 2) == "S7"
    assert rule("thread", "same-eventfd", "assign-rebinds", 2) == ""


@pytest.mark.parametrize(
    ("policy", "scene"),
    [
        *[("resample", scene) for scene in ("deassign", "close", "two-removers", "vm-closed", "bind")],
        *[("eoifd-follows-irqfd", scene) for scene in ("close", "two-removers", "vm-closed")],
    ],
)
def test_life_of_an_irqfd_breaks_nothing_in_any_order(policy, scene):
    found = outcome("irqfd-life", scene, policy)
    assert found.result.finding is None, str(found.result.finding)
    assert found.result.complete
    assert found.result.states < 30_000


@pytest.mark.parametrize("scene", ["early-eoi", "unplug"])
def test_two_devices_on_a_pin_are_both_served(scene):
    assert outcome("shared-gsi", scene, "resample", None).result.finding is None


def test_schedule_runs_again_and_says_the_same(capsys):
    arguments = ["explore", "thread", "--policy", "deassign-fails", "--sources", "1", "--scene", "close"]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    schedule = re.search(r"--replay '(.+)'", shown).group(1)
    assert "close equals deassign" in shown
    assert main(["explore", "thread", "--replay", schedule]) == 1
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if "S3" in line] == [
        line for line in shown.splitlines() if "  S3" in line or "S3 (" in line
    ]


@pytest.mark.parametrize(
    "schedule",
    [
        "close/eoifd-v5/v5/1/a3-0000",
        "close/eoifd-v5/v5/1/z-0000",
        "close/eoifd-v5/v5/1/a500-0000",
        "x/y",
        "nope/resample/6.18/-/a-0000",
    ],
)
def test_schedule_of_something_else_is_refused(schedule):
    with pytest.raises(UsageError):
        story.replay(scenes.load("thread"), schedule)


def test_json_has_counts_and_the_order_that_fails(capsys):
    arguments = ["explore", "thread", "--all-policies", "--sources", "1", "--scene", "counter-example", "--json"]
    assert main(arguments) == 1
    objects = json.loads(capsys.readouterr().out)
    assert [o["policy"] for o in objects if not o["held"]] == [
        "eoifd-v5",
        "assign-busy",
        "assign-rebinds",
        "eoifd-holds-file",
    ]
    assert all(o["states"] > 100 and o["transitions"] >= o["states"] - 1 for o in objects)
    assert objects[1]["steps"][-1]["step"] == "violates"


def test_exit_status_tells_held_from_not_finished(capsys):
    assert main(["explore", "thread", "--scene", "close-eoifd"]) == 0
    assert re.search(r"hold over all \d+ states and \d+ transitions of 1 of 1", capsys.readouterr().out)
    assert main(["explore", "thread", "--scene", "close-eoifd", "--max-states", "20"]) == 3
    assert "not finished at 20 states" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonesuch"], "shared-gsi, thread, unplug"),
        (["thread", "--scene", "nope"], "it has counter-example"),
        (["thread", "--policy", "nope"], "'nope' is not known"),
        (["thread", "--policy", "eoifd-v5", "--era", "3.8"], "do not go together"),
        (["thread", "--sources", "65"], "a VM has from 0 to"),
        (["thread", "--sources", "1", "--replay", "x"], "a schedule names its scene"),
        (["shared-gsi", "--policy", "eoifd-v5"], "is for resample"),
    ],
)
def test_wrong_command_line_names_what_there_is(arguments, words, capsys):
    assert main(["explore", *arguments]) == 2
    assert words in capsys.readouterr().err


FAULTS = {
    "raises": ('    user.run("oops", lambda: 1 / 0)', 4, "ZeroDivisionError"),
    "device": ('    user.assert_intx("nope")', 4, "there is no device 'nope'"),
    "actor": ('    board.at_rest(lambda: board.results("nobody"))', 4, "there is no thread 'nobody'; there are user"),
    "check": ("    board.always(lambda: board.nope)", 4, "AttributeError"),
    "library": ('    user.run("parse", lambda: __import__("json").loads("{"))', 4, "JSONDecodeError"),
    "guard": ('    user.assign("e3", when=lambda: 1 / 0)', 4, "ZeroDivisionError"),
    "misspelt": ('    user.asign("e3")', 4, "no attribute 'asign'"),
    "no text": (
        "    board.at_rest(lambda: 42)",
        4,
        "a check returns a text that says what is wrong, or None, and not 42",
    ),
    "errno": ('    user.run("again", lambda: board.vm.irqfd(99, 5))', 4, "OSError"),
    "twice": ('    board.thread("user")', 4, "there is a thread 'user' already"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_scenario_is_reported_with_its_line_and_is_no_violation(fault, written, capsys):
    text, line, words = FAULTS[fault]
    path = written(
        f'def explore_it(board):\n    user = board.thread("user")\n    user.assign("e1", eoi="e2")\n{text}\n'
    )
    assert main(["explore", path]) == 2
    error = capsys.readouterr().err
    assert f"mine.py:{line}: " in error
    assert words in error


def test_fault_in_a_module_of_the_users_own_is_reported_with_its_file(written, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_calls.py").write_text("def boom():\n    raise KeyError('x')\n")
    path = written("import my_calls\ndef explore_it(board):\n    board.thread('user').run('boom', my_calls.boom)\n")
    assert main(["explore", path]) == 2
    assert re.search(r"my_calls\.py:2: KeyError: 'x'", capsys.readouterr().err)


def test_scenario_imports_what_lies_beside_it_and_libraries_first(written, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "beside_it.py").write_text("NAME = 'e7'\n")
    (tmp_path / "json.py").write_text("raise ImportError\n")
    monkeypatch.delitem(sys.modules, "beside_it", raising=False)
    path = written("import beside_it, json\ndef explore_it(board):\n    board.thread('u').signal(beside_it.NAME)\n")
    assert scenes.run(scenes.load(path), "it", Setup()).result.complete


def test_call_that_differs_when_it_is_run_again_is_reported_with_its_line(written):
    path = written(
        "import itertools\nCOUNT = itertools.count()\ndef explore_it(board):\n    fd = board.fd('e')\n"
        "    def roll():\n        board.vm.irqfd(fd, 5 + next(COUNT))\n        board.vm.irqfd(fd, 5, 1)\n"
        "    board.thread('user').run('roll', roll)\n"
    )
    with pytest.raises(ScenarioFault, match=r"mine\.py:8: not deterministic: roll"):
        scenes.run(scenes.load(path), "it", Setup())


@pytest.mark.parametrize(
    ("text", "words"),
    [("def explore_x(board):\n  foo(", r"mine\.py:2: .*SyntaxError"), ("x = 1\n", "begins with explore_")],
)
def test_file_that_is_no_scenario_is_refused(text, words, written):
    with pytest.raises(ScenarioFault, match=words):
        scenes.load(written(text))


def test_deadlock_of_a_users_locks_is_told(written, capsys):
    path = written(
        "from vmm.order import Lock\ndef explore_it(board):\n    a, b = Lock('a'), Lock('b')\n    board.state(a, b)\n"
        "    def forth():\n        with a, b: pass\n    def back():\n        with b, a: pass\n"
        "    board.thread('one').run('forth', forth)\n    board.thread('two').run('back', back)\n"
    )
    assert main(["explore", path]) == 1
    assert "deadlock: one at lock.acquire, two at lock.acquire" in capsys.readouterr().out


def test_users_own_check_is_asked_in_every_state(written):
    path = written(
        "def explore_it(board):\n    board.thread('user').assign('e1', eoi='e2')\n"
        "    board.always(lambda: 'it is bound' if board.vm.irqfds.items else None)\n"
    )
    found = scenes.run(scenes.load(path), "it", Setup())
    assert found.result.finding.rule == "it is bound"
