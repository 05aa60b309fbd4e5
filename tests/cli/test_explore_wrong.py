"""`vintx explore` with what does not go together, with streams that are closed, full or narrow, and interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from tests.support.interrupts import hear_interrupts
from vmm.cli import explore_text
from vmm.cli.explore_search import Line
from vmm.cli.vintx import main
from vmm.errors import EngineError, UsageError
from vmm.explore import scenes, search, story
from vmm.explore.scenes import Setup
from vmm.explore.search import Progress

FINDS = ["explore", "thread", "--policy", "eoifd-v5", "--sources", "1", "--scene", "counter-example"]
HOLDS = ["explore", "thread", "--scene", "close-eoifd"]
SCHEDULE = "counter-example/eoifd-v5/v5/1/a6b8c6e11cd2-1336"
PATIENCE_S = 60


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", ""], "--policy is empty"),
        (["--replay", ""], "--replay is empty"),
        (["--svg", ""], "--svg is empty"),
        (["--strategy", "random", "--jobs", "2"], "--jobs goes with --strategy bfs, and not with random"),
        (["--strategy", "dfs", "--runs", "7"], "--runs goes with --strategy random, pct, and not with dfs"),
        (["--strategy", "dfs", "--checkpoint", "d"], "--checkpoint goes with --strategy bfs"),
        (["--strategy", "pct", "--depth", "10001"], "depth 10001: pct takes 10,000 at most"),
        (["--strategy", "random", "--depth", "1000001"], "depth 1000001: random takes 1,000,000 at most"),
        (["--seed", "5"], "--seed goes with --strategy random, pct, and not with bfs"),
        (["--cluster", "tcp://x:1", "--jobs", "2"], "--jobs is for this machine"),
        (["--replay", SCHEDULE, "--jobs", "2"], "--replay takes no --jobs: it runs one order again"),
        (["--replay", SCHEDULE, "--scale", "2"], "--replay takes no --scale"),
        (["--replay", SCHEDULE, "--against-kvm"], "--against-kvm takes no --replay"),
        (["--replay", SCHEDULE, "--in-machine", "--steps"], "--in-machine takes no --scene"),
        (["--matrix", "--bug", "Z12"], "--matrix takes no --bug: each of its scenes says"),
        (["--svg", "/"], "/ is a directory; name a file"),
        (["--svg", "/nonexistent/x.svg"], "/nonexistent/x.svg: there is no directory /nonexistent"),
        (["--export", "kvm", "/nonexistent/x.py"], "there is no directory /nonexistent"),
    ],
)
def test_option_that_would_be_passed_over_is_refused(options, words, capsys, monkeypatch):
    monkeypatch.setattr(search.Search, "run", None)  # nothing is searched before
    assert main([*HOLDS, *options]) == 2
    assert words in capsys.readouterr().err


def test_matrix_without_a_cell_is_refused(capsys):
    assert main(["explore", "--matrix", "unplug", "--policy", "eoifd-v5"]) == 2
    assert "the matrix has nothing of unplug under eoifd-v5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "way",
    [
        "a999999999999-1336",  # more than a memory has
        "a9999999-1336",
        "a6b8c6e11cd2a-1336",  # goes on after the end
        "a6*b8c6e11cd2-1336",  # no loop
        "a6b8c6e11cd2*-1336",
        "(77)6b8c6e11cd2-1336",
        "(7777)6-1336",
    ],
)
def test_damaged_schedule_is_refused(way, capsys):
    assert main(["explore", "thread", "--replay", f"counter-example/eoifd-v5/v5/1/{way}"]) == 2
    assert capsys.readouterr().err.startswith("vintx explore: ")


@pytest.mark.parametrize("scale", ["x0", "x99999999"])
def test_schedule_of_a_scale_that_there_is_not_is_refused(scale, capsys):
    assert main(["explore", "thread", "--replay", SCHEDULE.replace("/1/", f"/1{scale}/")]) == 2
    assert "is no schedule" in capsys.readouterr().err


def test_schedule_names_actors_beyond_the_letters(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def explore_it(board):\n    for k in range(60):\n        before = f't{k - 1}'\n"
        "        board.thread(f't{k}').signal('e', when=(lambda b=before: board.results(b) != ()) if k else None)\n"
        "    board.at_rest(lambda: 'S0: the end')\n"
    )
    family = scenes.load(str(path))
    schedule = story.encode(scenes.run(family, "it", Setup()))
    assert "Z3(52)3(53)3" in schedule
    assert story.replay(family, schedule)[1].rule == "S0: the end"


def test_finding_that_is_not_there_when_it_is_run_again_is_no_verdict(monkeypatch, capsys):
    told = story.tell(scenes.load("thread"), "counter-example", Setup("eoifd-v5", None, 1), ())
    monkeypatch.setattr(story, "tell", lambda *_: told._replace(rule=None))
    assert main(FINDS) == 2
    assert "not deterministic: scene counter-example: an order broke S20" in capsys.readouterr().err


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "[b]mine[x].py"
        path.write_text(text)
        return str(path)

    return write


def test_json_is_json_whatever_the_scenario_prints(written, capsys):
    path = written(
        "print('loaded')\ndef explore_it(board):\n    print('set up')\n    u = board.thread('u')\n"
        "    u.run('p', lambda: print('a step'))\n    board.at_rest(lambda: 'S0: the end')\n"
    )
    assert main(["explore", path, "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)[0]["rule"] == "S0: the end"
    assert {"loaded", "set up", "a step"} <= set(said.err.splitlines())


def test_json_has_an_error_as_an_object_with_what_was_found_before(written, capsys):
    path = written(
        "def explore_one(board):\n    board.thread('u').signal('e')\n"
        "def explore_two(board):\n    board.thread('u').run('oops', lambda: 1 / 0)\n"
    )
    assert main(["explore", path, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["line"], found["status"]) == (path, 4, 2)
    assert found["error"] == f"{path}:4: ZeroDivisionError: division by zero"
    assert [(one["scene"], one["held"]) for one in found["results"]] == [("one", True)]


def test_json_error_of_a_wrong_command_line(capsys):
    assert main(["explore", "thread", "--policy", "nope", "--json"]) == 2
    assert "'nope' is not known" in json.loads(capsys.readouterr().out)["error"]


def test_what_was_explored_before_a_fault_is_told(written, capsys):
    path = written(
        "def explore_one(board):\n    board.thread('u').signal('e')\n"
        "def explore_two(board):\n    board.thread('u').run('oops', lambda: 1 / 0)\n"
    )
    assert main(["explore", path]) == 2
    said = capsys.readouterr()
    assert "│ one " in said.out
    assert ":4: ZeroDivisionError" in said.err


def test_names_are_no_markup(written, capsys):
    path = written("def explore_it(board):\n    board.thread('u').signal('e')\n    board.at_rest(lambda: '[/b]')\n")
    assert main(["explore", path]) == 1
    said = capsys.readouterr().out
    assert "[b]mine[x], scene it, resample" in said
    assert "[/b] in 3 steps" in said


def test_file_that_takes_no_more_does_not_cost_the_verdict(capsys):
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full")
    assert main([*FINDS, "--svg", "/dev/full"]) == 2
    said = capsys.readouterr()
    assert "S20 in 34 steps" in said.out
    assert "/dev/full: No space left on device" in said.err


# Streams


def child(arguments: list[str], **streams) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "vmm.cli.vintx", *arguments]
    return subprocess.run(argv, check=False, timeout=PATIENCE_S, **streams)


def shell(command: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    argv = ["sh", "-c", command, "sh", sys.executable, "-m", "vmm.cli.vintx", *arguments]
    return subprocess.run(argv, check=False, timeout=PATIENCE_S, capture_output=True, text=True)


@pytest.mark.parametrize(("arguments", "status"), [(FINDS, 1), (HOLDS, 0)])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_change_no_verdict(arguments, status, closed):
    done = shell(f'"$@" {closed}', arguments)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_output_that_nobody_reads_is_no_verdict():
    read, write = os.pipe()
    os.close(read)
    try:
        done = child(HOLDS, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_output_that_takes_no_more_is_no_verdict(more):
    done = shell('"$@" >/dev/full', [*HOLDS, *more])
    assert (done.returncode, done.stderr) == (
        2,
        "vintx explore: nothing more can be written: No space left on device\n",
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminal_without_lines_and_letters_gets_others(encoding, written):
    text = "def explore_it(board):\n    board.bind('\u00e9', 'b')\n    board.thread('u').signal('\u00e9')\n"
    path = written(f"{text}    board.at_rest(lambda: 'S0: \u2603')\n")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "150"}
    done = child(["explore", path], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (1, b"")
    said = done.stdout.decode(encoding)
    assert "S0: \\u2603" in said
    assert "'-." in said
    assert ("SIG \\xe9" in said) is (encoding == "ascii")
    assert ("SIG \u00e9" in said) is (encoding != "ascii")


def test_interrupt_says_where(written):
    path = written(
        "def explore_it(board):\n    def f():\n        while True: print('in it', flush=True)\n"
        "    board.thread('u').run('spin', f)\n"
    )
    argv = [sys.executable, "-m", "vmm.cli.vintx", "explore", path]
    spinning = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )
    try:
        assert spinning.stdout is not None
        assert spinning.stdout.readline() == "in it\n"
        spinning.send_signal(signal.SIGINT)
        _, said = spinning.communicate(timeout=PATIENCE_S)
    finally:
        spinning.kill()
    assert (spinning.returncode, said) == (130, f"vintx explore: interrupted in {path}:3\n")


# Narrow terminals


def test_story_in_a_narrow_terminal_is_told_without_cutting_words():
    outcome = scenes.run(scenes.load("thread"), "counter-example", Setup("eoifd-v5", None, 1))
    told = story.of(scenes.load("thread"), outcome)
    said = {}
    for width in (150, 65, 30):
        console = Console(file=io.StringIO(), width=width)
        explore_text.print_story(console, told, every_step=False)
        said[width] = console.file.getvalue()
        assert "…" not in said[width]
        assert "6. user assigns e3 as an irqfd (KVM_IRQFD): EFAULT" in said[width]
    assert ("board" in said[150], "board" in said[65], "rIRR" in said[65]) == (True, False, True)
    assert "(a chart of this has no room in 30 columns; --svg draws it)" in said[30].replace("\n", " ")


def test_summary_in_a_narrow_terminal_is_lines(monkeypatch):
    outcome = scenes.run(scenes.load("thread"), "close-eoifd", Setup())
    monkeypatch.setattr(explore_text, "console", lambda: Console(file=io.StringIO(), width=40))
    lines = explore_text.summary(scenes.load("thread"), [outcome])
    assert str(lines) == "thread\nclose-eoifd, resample: held; 58 states"


def test_progress_fits_into_the_terminal_and_leaves_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr("vmm.cli.explore_search.REFRESH_S", 0)
    stream = io.StringIO()
    line = Line(stream)
    line.tell(Progress(40_000, 12, 1_500))
    line.wipe()
    assert [len(part) for part in stream.getvalue().split("\r")] == [0, 19, 19, 0]
    assert "\x1b" not in stream.getvalue()


def test_scene_that_is_named_twice_is_explored_once(capsys):
    assert main([*HOLDS, "--scene", "close-eoifd"]) == 0
    assert "of 1 of 1 explorations" in capsys.readouterr().out


def test_limit_of_one_state_is_kept(capsys):
    assert main([*HOLDS, "--max-states", "1"]) == 3
    assert "not finished at 1 states" in capsys.readouterr().out


def test_bug_is_named_in_what_is_told(capsys):
    assert main([*HOLDS, "--bug", "z12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["bug"] == "z12"
    assert main([*HOLDS, "--bug", "z12"]) == 0
    assert "thread with Z12" in capsys.readouterr().out


def test_engine_error_is_not_finished_and_no_violation(monkeypatch, capsys):
    def die(*_args: object, **_more: object):
        raise EngineError("9 workers died")

    monkeypatch.setattr(search.Search, "run", die)
    assert main(HOLDS) == 3
    assert "9 workers died" in capsys.readouterr().err


def test_replay_of_what_is_not_deterministic_any_more_says_so(written, capsys):
    text = "def explore_it(board):\n    board.thread('u').signal('e')\n    board.at_rest(lambda: 'S0: the end')\n"
    path = written(text)
    schedule = story.encode(scenes.run(scenes.load(path), "it", Setup()))
    written(text + "    board.always(lambda: 1 / 0)\n")
    assert main(["explore", path, "--replay", schedule]) == 2
    assert ":4: ZeroDivisionError" in capsys.readouterr().err
    written(text.replace("signal('e')", "run('SIG e', lambda: __import__('sys').exit(1))"))
    with pytest.raises(UsageError, match=r":2: SystemExit: 1"):
        story.replay(scenes.load(path), schedule)
