"""What is told beside a verdict: names that nothing binds, and comparisons that cannot be made."""

from __future__ import annotations

import json

import pytest

from vmm.cli.vintx import main
from vmm.explore import remarks, scenes
from vmm.explore.scenes import Setup
from vmm.kernel.policies import POLICIES


@pytest.fixture
def explored(tmp_path, capsys):
    def run(text: str, *options: str) -> list[str]:
        (tmp_path / "mine.py").write_text(text)
        main(["explore", str(tmp_path / "mine.py"), "--json", *options])
        said = capsys.readouterr()
        (found,) = [one for one in json.loads(said.out) if one["scene"] == "it"]
        assert all(f"vintx explore: note: {note}" in said.err for note in found["notes"])
        return found["notes"]

    return run


@pytest.mark.parametrize(
    ("lines", "policy", "note"),
    [
        ("u.deassign('e11')", "resample", "mine.py:4: I- e11: nothing makes an irqfd of e11; there are e1"),
        ("u.signal('e11')", "resample", "mine.py:4: SIG e11: nothing is bound to e11; there are e1"),
        ("u.eoifd('e3', 'e11')", "eoifd-v5", "mine.py:4: E+ e3 e11: nothing makes an irqfd of e11; there are e1"),
        ("u.deassign_eoifd('e3', 'e9')", "eoifd-v5", "mine.py:4: E- e3 e9: nothing makes an irqfd of e9; there are e1"),
    ],
)
def test_eventfd_that_nothing_binds_is_remarked(lines, policy, note, explored):
    text = f"def explore_it(board):\n    board.bind('e1', 'e2')\n    u = board.thread('u')\n    {lines}\n"
    assert explored(text, "--policy", policy) == [note]


@pytest.mark.parametrize(
    "lines",
    [
        "u.deassign('e1'); u.signal('e2'); u.signal('e1'); u.close('e7')",
        "u.assign('e3', eoi='e4'); u.deassign('e3'); u.signal('e4')",
        "board.vfio('a'); u.signal('a.trigger'); u.deassign('a.trigger')",
        "u.deassign('e11'); u.run('what binds anything', int)",
    ],
)
def test_eventfd_that_something_may_bind_is_not_remarked(lines, explored):
    text = f"def explore_it(board):\n    board.bind('e1', 'e2')\n    u = board.thread('u')\n    {lines}\n"
    assert explored(text) == []


@pytest.mark.parametrize("name", scenes.shipped())
def test_shipped_scenes_are_meant_as_they_are(name):
    family = scenes.load(name)
    for policy in POLICIES if "eoifd-v5" in family.policies else family.policies:
        for scene in family.scenes:
            board, scenario = scenes.set_up(family._replace(same_end=()), scene, Setup(policy))
            assert remarks.unbound(board, scenario.actors) == []


def test_comparison_with_a_scene_that_breaks_a_rule_is_told_to_be_left_out(explored):
    text = (
        "SAME_END = (('other', 'it'),)\ndef explore_it(board):\n    board.thread('u').signal('e1', lambda: True)\n"
        "def explore_other(board):\n    board.live('G', lambda: False)\n    board.thread('u').signal('e1')\n"
    )
    assert "S3 is not asked: scene other, to compare with, breaks G" in explored(text)
