"""Orders of the explorer on a booted machine: what is done, what is read back, and what cannot be had there."""

from __future__ import annotations

import re

import pytest

from vmm.cli import explore_machine
from vmm.cli.vintx import main
from vmm.explore import in_machine, scenes, story
from vmm.explore.in_machine import NotInMachine
from vmm.explore.scenes import Setup
from vmm.explore.search import set_up


def found(family: str, scene: str, policy: str, sources: int | None = 1) -> str:
    """The schedule of what is found in a scene."""
    return story.encode(scenes.run(scenes.load(family), scene, Setup(policy, None, sources)))


def written(path, body: str):
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(f"def explore_it(board):\n{lines}\n")
    return scenes.load(str(path))


def schedule(family, policy: str, script: list[tuple[str, str]]) -> str:
    """Of an order by hand: who acts until it stands at a step, or (empty) has ended its call; then nobody else."""
    setup = Setup(policy, None, 2)
    board, scenario = scenes.set_up(family, "it", setup)
    stage = set_up(scenario)
    heap, standings, choices = stage.arena.take(), stage.beginning(), []
    names = [actor.name for actor in scenario.actors]
    todo = [(names.index(who), until) for who, until in script]
    while todo or (enabled := stage.enabled(heap, standings)):
        n, until = todo[0] if todo else (enabled[0], "")
        if n not in stage.enabled(heap, standings):
            n = stage.enabled(heap, standings)[-1]  # who it waits for
            heap, standing, _ = stage.step(heap, n, standings[n])
        else:
            heap, standing, step = stage.step(heap, n, standings[n])
            if todo and (step == until if until else standing.suspended is None):
                todo.pop(0)
        standings = (*standings[:n], standing, *standings[n + 1 :])
        choices.append(n)
    rows = story.tell(family, "it", setup, choices).rows
    assert board.finished()
    check = story._sum([(row.actor, row.step) for row in rows])
    return f"it/{policy}/{board.vm.era.name}/2/{story._way(choices)}-{check}"


BIND = "user = board.thread('user')\nuser.assign('e1')\nuser.deassign('e1')\nboard.thread('binder').eoifd('e2', 'e1')"


def test_counter_example_fails_in_the_machine_as_it_does_in_the_explorer(capsys):
    order = found("thread", "counter-example", "eoifd-v5")
    assert main(["explore", "thread", "--replay", order, "--in-machine"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"user: I\+ e3 +x-irqfd-assign .*: EFAULT: Bad address: all 64 irq source ids are in use", shown)
    assert "irqfds of nobody; eoifds e2; 1 source ids in use, 62 taken beforehand" in shown
    assert "S20 (EBUSY precision), in the machine as in the explorer" in shown


def test_call_is_held_at_its_point_while_another_is_made_and_the_guest_ends_its_interrupt(tmp_path, capsys):
    body = f"board.bind('f1', 'f2')\n{BIND}\nboard.thread('device').signal('f1')\nboard.thread('vcpu').interrupt()"
    family = written(tmp_path / "mine.py", body)
    script = [("user", ""), ("binder", "eoifd.assign.looked-up"), ("user", ""), ("binder", "")]
    order = schedule(family, "eoifd-v5", script)
    assert main(["explore", family.path, "--replay", order, "--in-machine"]) == 0
    shown = capsys.readouterr().out
    steps = re.findall(r"^ *\d+\. (.*?)  +(.*)$", shown, re.MULTILINE)
    assert [step[0] for step in steps][1:6] == [
        "x-point-hold",
        "binder: E+ e2 e1",
        "user: I- e1",
        "x-point-release",
        "binder: E+ e2 e1",
    ]
    assert steps[2][1].endswith("is held at eoifd.assign.looked-up")
    assert steps[5][1].endswith("is done: ok")
    assert "nothing is violated, here as there" in shown
    assert "irqfds of f1; eoifds e2 f2; 2 source ids in use" in shown
    assert "vcpu: EOI" in shown
    assert "f2=1" in shown


def test_plan_holds_a_shutdown_that_the_order_delays():
    plan = in_machine.plan(scenes.load("thread"), found("thread", "close", "deassign-fails"))
    texts = [f"{action.kind} {action.text}" for action in plan.actions]
    assert texts.index("hold irqfd.shutdown.unhook") < texts.index("call C e1")
    assert texts.index("call C e1") < texts.index("release irqfd.shutdown.unhook")
    assert plan.rule is not None
    assert plan.rule.startswith("S3")


def test_what_cannot_be_held_is_done_at_once_if_it_comes_to_the_same(tmp_path):
    family = written(
        tmp_path / "mine.py", "board.thread('user').assign('e1', eoi='e2')\nboard.thread('other').close('e3')"
    )
    order = schedule(family, "resample", [("user", "irqfd.assign.attached"), ("other", ""), ("user", "")])
    plan = in_machine.plan(family, order)
    assert [action.text for action in plan.actions] == ["I+ e1 e2", "C e3"]
    assert "cannot be held at irqfd.assign.attached: it is inside an SRCU read section" in plan.at_once[0]


def test_order_that_depends_on_what_cannot_be_held_is_refused_with_the_reason(tmp_path, capsys):
    body = (
        "user, other = board.thread('user'), board.thread('other')\nuser.assign('e1', eoi='e2')\nother.deassign('e1')\n"
        "board.always(lambda: 'S0: between' if board.results('other') == ('I- e1 = ok',) and not "
        "board.results('user') and board.vm.irqfds.resamplers else None)\n"
    )
    family = written(tmp_path / "mine.py", body)
    order = story.encode(scenes.run(family, "it", Setup()))
    assert main(["explore", family.path, "--replay", order, "--in-machine"]) == 2
    said = capsys.readouterr().err
    assert "a running machine does not come to S0 by this order" in said


@pytest.mark.parametrize(
    ("family", "scene", "policy", "words"),
    [
        ("dispute", "unmask", "resample", "line 1: no command of the monitor"),
        ("dispute", "resamplefd-closed", "resample", "a scene's device behind VFIO"),
    ],
)
def test_call_that_the_monitor_has_no_command_for_is_refused(family, scene, policy, words):
    with pytest.raises(NotInMachine, match=words):
        in_machine.plan(scenes.load(family), found(family, scene, policy, None))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["thread", "--in-machine"], "give it with --replay"),
        (["thread", "--in-machine", "--replay", "x"], "is no schedule"),
    ],
)
def test_wrong_command_line_is_refused(arguments, words, capsys):
    assert main(["explore", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_end_that_differs_is_told_and_is_no_verdict(monkeypatch, capsys):
    order = found("thread", "close-eoifd", "eoifd-v5", None)
    plan = in_machine.plan(scenes.load("thread"), order)
    wrong = plan._replace(end=plan.end._replace(ids=7))
    monkeypatch.setattr(explore_machine.in_machine, "plan", lambda *_: wrong)
    assert main(["explore", "thread", "--replay", order, "--in-machine"]) == 4
    assert "the machine ends otherwise than the order: ids 1, not 7" in capsys.readouterr().out
