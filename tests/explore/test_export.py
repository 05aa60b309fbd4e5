"""Orders as programs for /dev/kvm: what they have in them, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from vmm.cli.vintx import main
from vmm.explore import export, scenes, user_calls
from vmm.explore.scenes import Setup
from vmm.explore.story import Story, tell
from vmm.kernel.hostkvm_probe import probed

UNMASK = ["explore", "dispute", "--scene", "unmask"]


def case(text: str) -> dict:
    """What a program plays."""
    body = text.partition(export.BEGIN)[2].partition(export.END)[0]
    return eval(body.partition(" = ")[2], {})


@pytest.fixture
def program(tmp_path, capsys):
    path = tmp_path / "order.py"
    assert main([*UNMASK, "--export", "kvm", str(path)]) == 1
    assert f"exported: {path}" in capsys.readouterr().out
    return path


def test_program_has_the_calls_that_overlap_in_threads_and_the_end_of_the_story(program):
    played = case(program.read_text())
    calls = [call[:2] for group in played["groups"] for thread in group for call in thread]
    assert sorted(calls) == [("device", "SIG e1"), ("guest", "mask"), ("guest", "unmask"), ("user", "line 1")]
    assert len(played["groups"]) == 1
    assert played["irqfds"] == [["e1", 5, "e2"]]
    assert (played["state"]["IRR"], played["state"]["e2"]) == (0, 1)
    assert "S8: pin 5: IRR 0" in played["story"]


def test_program_needs_nothing_of_vintx(program):
    imported = re.findall(r"^(?:import|from) (\w+)", program.read_text(), re.MULTILINE)
    assert set(imported) <= set(sys.stdlib_module_names)


@pytest.mark.kvm
def test_kernel_clears_irr_at_an_unmask_although_user_space_holds_the_line(program):
    if not probed().oracle:
        pytest.skip(probed().reason)
    done = subprocess.run([sys.executable, "-I", str(program), "200"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The outcome of the story was seen." in done.stdout


@pytest.mark.kvm
def test_order_without_overlap_comes_to_the_same_on_the_kernel(tmp_path):
    if not probed().oracle:
        pytest.skip(probed().reason)
    path = tmp_path / "mine.py"
    path.write_text(
        "def explore_it(board):\n    user = board.thread('user')\n    user.assign('e1', eoi='e2')\n"
        "    user.assign('e1', eoi='e2')\n    user.deassign('e1')\n    user.signal('e1')\n    user.close('e1')\n"
        "    user.deassign('e1')\n    user.line(1)\n    user.take()\n    user.line(0)\n    user.eoi()\n"
    )
    family = scenes.load(str(path))
    program = tmp_path / "order.py"
    program.write_text(export.kvm(family, "it", Setup(), _in_turn(family), "x"))
    results = [call[2] for group in case(program.read_text())["groups"] for thread in group for call in thread]
    assert results == ["ok", "EBUSY", "ok", "ok", "ok", "EBADF", "ok", "ok", "ok", "ok"]
    done = subprocess.run([sys.executable, "-I", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 times" in done.stdout
    assert "user: I- e1                      EBADF" in done.stdout


def _in_turn(family) -> Story:
    """The only thread, and whoever it waits for."""
    from vmm.explore.search import set_up

    board, scenario = scenes.set_up(family, "it", Setup())
    stage = set_up(scenario)
    heap, standings, choices = stage.arena.take(), stage.beginning(), []
    while enabled := stage.enabled(heap, standings):
        n = enabled[-1]
        heap, standing, _ = stage.step(heap, n, standings[n])
        standings = (*standings[:n], standing, *standings[n + 1 :])
        choices.append(n)
    assert board.results("user")
    return tell(family, "it", Setup(), choices)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["thread", "--policy", "eoifd-v5", "--sources", "1", "--scene", "close"], "has the rule `resample` only"),
        (["dispute", "--scene", "resamplefd-closed"], "a device behind VFIO is none of KVM's"),
    ],
)
def test_order_that_kvm_cannot_be_asked_for_is_refused_with_the_reason(arguments, words, tmp_path, capsys):
    assert main(["explore", *arguments, "--export", "kvm", str(tmp_path / "x.py")]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_target_than_kvm_is_refused(capsys):
    assert main([*UNMASK, "--export", "qemu", "x.py"]) == 2
    assert "there is `kvm` to export to" in capsys.readouterr().err


def test_own_function_of_a_scene_is_no_call():
    with pytest.raises(user_calls.NotKvms, match="a function of the scene's own"):
        user_calls.parse("take", lambda: None)
