"""--against-kvm where no KVM is needed: what it refuses, and what it says without one."""

from __future__ import annotations

import pytest

from vmm.cli.vintx import main
from vmm.explore import scenes, user_calls
from vmm.explore.kvm_trials import Trial
from vmm.explore.user_calls import NotKvms
from vmm.kernel import hostkvm_probe


def test_without_kvm_it_is_skipped_with_the_probes_reason(monkeypatch, capsys):
    missing = hostkvm_probe.probe("/nonexistent/kvm")
    monkeypatch.setattr(hostkvm_probe, "probed", lambda: missing)
    assert main(["explore", "irqfd-life", "--against-kvm"]) == 3
    said = capsys.readouterr().err
    assert "skipped, there is no KVM to compare with: open: /nonexistent/kvm: No such file or directory" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["thread", "--against-kvm", "--depth", "3"], "--depth and --eventfds are for irqfd-life"),
        (["irqfd-life", "--depth", "3"], "--depth goes with --against-kvm"),
        (["irqfd-life", "--against-kvm", "--depth", "-1"], "at least 0"),
        (["irqfd-life", "--against-kvm", "--scene", "nope"], "irqfd-life has no scene 'nope'; it has deassign"),
        (["thread", "--against-kvm", "--trials", "0"], "nothing to compare"),
        (["irqfd-life", "--against-kvm", "--policy", "eoifd-v5"], "one rule, `resample`"),
    ],
)
def test_wrong_command_line_is_refused(arguments, words, capsys):
    assert main(["explore", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def written(tmp_path):
    def write(body: str):
        path = tmp_path / "mine.py"
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        path.write_text(f"def explore_it(board):\n{lines}\n")
        return scenes.load(str(path))

    return write


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("board.vfio('a')\nboard.thread('d').assert_intx('a')", "a device behind VFIO"),
        ("board.thread('u').run('mask', int)", "a function of the scene's own"),
        (
            "board.thread('u', any_order=True).assign('e')\nboard.thread('v').take(cpu=board.another_cpu())",
            "no call that a user",
        ),
        ("u = board.thread('u', any_order=True)\nu.assign('e')\nu.close('e')", "in any order"),
        ("board.thread('u').close_vm()", "cannot be looked at"),
    ],
)
def test_scene_that_no_user_of_kvm_could_play_is_refused_with_the_reason(body, words, written):
    with pytest.raises(NotKvms, match=words):
        Trial(written(body), "it")


def test_call_of_a_second_interface_is_refused_by_its_name():
    with pytest.raises(NotKvms, match="no KVM_EOIFD"):
        user_calls.parse("E+ e2 e1")
