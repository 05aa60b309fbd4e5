"""What a scenario's own functions may not do is told with file and line, and is never a verdict."""

from __future__ import annotations

import re

import pytest

from vmm.cli.vintx import main
from vmm.errors import UsageError
from vmm.explore import scenes
from vmm.explore.scenes import ScenarioFault, Setup

STATE = """
from vmm.order import State
class Box(State):
    BOOKKEEPING = __slots__ = ("value",)
    def __init__(self, value=0): self.value = value
"""


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a file, named as a user would in its folder: what it is refused with."""

    def run(text: str, *options: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        assert main(["explore", "./mine.py", *options]) == 2
        said = capsys.readouterr()
        assert "held" not in said.out
        return said.err.replace(str(tmp_path), "")

    return run


@pytest.fixture
def scene(refused):
    """The same for the body of a scene."""
    return lambda body, head="": refused(
        head + "def explore_it(board):\n    u = board.thread('u')\n" + "".join(f"    {line}\n" for line in body)
    )


OUTSIDE = {
    "list": (["seen = []", "u.run('f', lambda: seen.append(1))"], "'seen'"),
    "dict": (["d = {'n': 0}", "def f(): d['n'] += 1", "u.run('f', f)"], "'d'"),
    "nonlocal": (["n = 0", "def f():", "    nonlocal n", "    n += 1", "u.run('f', f)"], "'n'"),
    "object": (["class C: n = 0", "c = C()", "def f(): c.n += 1", "u.run('f', f)"], "'c'"),
    "class": (["class C: n = 0", "def f(): C.n += 1", "u.run('f', f)"], "'C'"),
    "count": (["import itertools", "k = itertools.count()", "u.run('f', lambda: next(k))"], "'k'"),
    "iterator": (["k = iter([1, 2, 3])", "u.run('f', lambda: next(k))"], "'k'"),
    "helper": (["d = []", "def g(): d.append(1)", "def f(): g()", "u.run('f', f)"], "'d'"),
    "guard": (["d = []", "u.signal('e1', when=lambda: not d.append(1))"], "'d'"),
    "worker": (["d = []", "board.worker('w', lambda: d.append(1), lambda: not d)", "u.signal('e1')"], "'d'"),
    "namespace": (["import types", "k = types.SimpleNamespace(n=0)", "def f(): k.n += 1", "u.run('f', f)"], "'k'"),
    "default": (["def f(d=[]): d.append(1)", "u.run('f', f)"], "'a default'"),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_what_changes_and_is_no_state_is_named(what, scene):
    body, name = OUTSIDE[what]
    said = scene(body)
    assert re.search(r"/mine\.py:\d+: not deterministic: ", said)
    assert f"{name} changes, and is no State" in said


def test_library_may_change_what_is_its_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import functools, logging, re\nLOG = logging.getLogger('mine')\n@functools.cache\ndef known(n): return n\n"
        "def explore_it(board):\n    def f():\n        LOG.debug('here')\n        known(3)\n        re.compile('a|b')\n"
        "    board.thread('u').run('f', f)\n    board.thread('v').run('f', f)\n"
    )
    assert scenes.run(scenes.load(str(tmp_path / "mine.py")), "it", Setup()).result.complete


def test_global_that_changes_is_named(refused):
    said = refused(
        "N = 0\ndef explore_it(board):\n    def f():\n        global N\n        N += 1\n    "
        "board.thread('u').run('f', f)\n    board.at_rest(lambda: 'S0: no violation' if N > 1 else None)\n"
    )
    assert "/mine.py:3: not deterministic: 'N' changes" in said


def test_state_that_the_board_does_not_know_is_named(scene):
    assert "'b' changes" in scene(["b = Box()", "def f(): b.value += 1", "u.run('f', f)"], STATE)


def test_state_that_the_board_knows_may_change(tmp_path):
    body = (
        "    b = Box()\n    board.state(b)\n    most = [3]\n    def f():\n        if b.value < most[0]: b.value += 1\n"
    )
    (tmp_path / "mine.py").write_text(
        STATE + "def explore_it(board):\n" + body + "    for t in 'uv':\n        board.thread(t).run('f', f)\n"
        "    board.at_rest(lambda: None if b.value == 2 else f'S0: {b.value}')\n"
    )
    result = scenes.run(scenes.load(str(tmp_path / "mine.py")), "it", Setup()).result
    assert (result.finding, result.complete) == (None, True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "b.value = __import__('random').random() < 2 and __import__('time').monotonic_ns()",
            "it left Box.value otherw",
        ),
        ("b.value = {1}", "a set has no name"),
        ("b.value = 0.5", "a float has no name"),
        ("b.value = [1]", "made Box.value [1]: make it a tuple"),
        ("b.value = ([1],)", "([1],): make it a tuple"),
    ],
)
def test_step_that_cannot_be_kept_or_repeated_is_told_though_it_is_taken_once(line, words, scene):
    said = scene(["b = Box()", "board.state(b)", "def f():", f"    {line}", "u.run('f', f)"], STATE)
    assert "/mine.py:12: " in said
    assert words in said


def test_worker_that_throws_dice_is_told(scene):
    dice = ["b = Box()", "board.state(b)", "def f(): b.value = time.monotonic_ns()"]
    said = scene([*dice, "board.worker('w', f, lambda: not b.value)", "u.signal('e1')"], "import time" + STATE)
    assert "not deterministic: w did something else in its first step than before: it left Box.value otherwise" in said


@pytest.mark.parametrize("value", ["set()", "([],)", "open('/dev/null')", "[[]]"])
def test_field_that_could_not_be_put_back_is_refused_before_the_search(value, scene):
    said = scene([f"b = Box({value})", "board.state(b)", "u.run('f', lambda: b.value)"], STATE)
    assert "Box.value is " in said
    assert "could not be put back" in said


def test_field_without_a_value_is_refused(scene):
    said = scene(["b = Box()", "del b.value", "board.state(b)", "u.run('f', int)"], STATE)
    assert "Box.value has no value" in said


def test_object_that_is_no_state_is_refused(scene):
    assert "is no State, so its changes could not be taken back" in scene(["board.state(object())"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("u.run('f', 5)", "u runs as 'f' is a function, and not 5"),
        ("u.run(5, int)", "called by a text, and not 5"),
        ("u.signal('e1', when=True)", "`when` of SIG e1 is a function, and not True"),
        ("board.always('x')", "a check is a function, and not 'x'"),
        ("board.at_rest(None)", "a check is a function, and not None"),
        ("board.live('G', 42)", "a goal is a function, and not 42"),
        ("board.worker('w', 1, int)", "what a worker does is a function, and not 1"),
        ("board.eventually('L9')", "there is no goal 'L9'; there are L1"),
        ("u.deassign(7)", "7 is no name of an eventfd"),
        ("board.thread(7)", "7 is no name of a thread"),
        ("u.take(cpu=3)", "there is no CPU 3; there are 1"),
        ("u.eoi(cpu=-1)", "there is no CPU -1"),
        ("u.line(7)", "a line is at 0 or 1, and not at 7"),
    ],
)
def test_argument_that_makes_no_sense_is_told_with_its_line(line, words, scene):
    said = scene([line])
    assert "/mine.py:3: " in said
    assert words in said


@pytest.mark.parametrize(
    "body",
    [
        ["def f(): yield", "u.run('f', f)"],
        ["async def f(): pass", "u.run('f', f)"],
        ["def g(): yield", "u.run('f', lambda: g())"],
        ["u.signal('e1')", "yield"],
    ],
)
def test_function_that_would_do_nothing_is_refused(body, scene):
    assert "has a yield or is async" in scene(body)


@pytest.mark.parametrize("error", ["sys.exit(0)", "sys.exit('bye')", "(_ for _ in ()).throw(BaseException('odd'))"])
@pytest.mark.parametrize("where", ["step", "guard", "check", "scene"])
def test_what_is_raised_to_end_the_program_does_not_end_it(error, where, scene):
    lines = {
        "step": f"u.run('f', lambda: {error})",
        "guard": f"u.signal('e1', when=lambda: {error})",
        "check": f"board.always(lambda: {error}); u.signal('e1')",
        "scene": error,
    }
    said = scene([lines[where]], "import sys\n")
    assert re.search(r"/mine\.py:4: (SystemExit|BaseException)", said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\nsys.exit(0)\n", "/mine.py:2: SystemExit: 0"),
        ("import nonesuch\n", "/mine.py:1: ModuleNotFoundError"),
        ("x = '\0'\n", "Error: source code string cannot contain null bytes"),
        ("POLICIES = 'resample'\ndef explore_x(board): pass\n", "POLICIES is"),
        ("POLICIES = ('resampel',)\ndef explore_x(board): pass\n", "POLICIES names 'resampel'; there are resample"),
        ("SAME_END = 3\ndef explore_x(board): pass\n", "SAME_END is"),
        ("SAME_END = ('x', 'x')\ndef explore_x(board): pass\n", "SAME_END names 'x', and wants pairs of x"),
        ("def explore_(board): pass\n", "no function of it begins with explore_"),
        ("def explore_x(): pass\n", "/mine.py:1: TypeError: explore_x() takes 0"),
        ("def explore_x(board): board.bind('e1', 'e2')\n", "/mine.py:1: nobody acts"),
        ("def explore_x(board):\n    for n in range(130): board.thread(f't{n}').signal('e')\n", "there can be 120"),
    ],
)
def test_file_that_cannot_be_explored_says_why(text, words, refused):
    assert words in refused(text)


def test_directory_is_no_scenario(tmp_path, capsys):
    assert main(["explore", str(tmp_path)]) == 2
    assert "is a directory: give a file" in capsys.readouterr().err


def test_guard_and_check_that_change_a_state_are_told(scene):
    head = ["b = Box()", "board.state(b)", "def g():", "    b.value += 1", "    return True"]
    assert "SIG e1: its `when` changes Box.value" in scene([*head, "u.signal('e1', when=g)"], STATE)
    said = scene([*head, "u.signal('e1')", "board.always(lambda: None if g() else '')"], STATE)
    assert "/mine.py:14: not deterministic: a check changes Box.value; it may only look" in said


def test_guard_that_does_not_make_up_its_mind_is_told(scene):
    said = scene(["import os, itertools", "k = itertools.cycle((True, False))", "u.signal('e1', when=lambda: next(k))"])
    assert "its `when` says True, and then False" in said


def test_call_that_passes_points_for_ever_is_told(scene):
    loop = ["b = Box()", "board.state(b)", "def f():", "    while True:", "        b.value += 1"]
    said = scene([*loop, "        order.hook('mine', b)", "u.run('f', f)"], "from vmm import order" + STATE)
    assert "cannot be explored: f has passed 500 points and goes on" in said


def test_check_says_something_or_nothing(scene):
    assert "a check returns a text that says what is wrong, or None, and not ''" in scene(
        ["u.signal('e1')", "board.at_rest(lambda: '')"]
    )


def test_route_to_a_pin_that_there_is_not_is_a_result_and_no_fault(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def explore_it(board):\n    board.thread('u').reroute(99)\n"
        "    board.at_rest(lambda: str(board.results('u')))\n"
    )
    finding = scenes.run(scenes.load(str(tmp_path / "mine.py")), "it", Setup()).result.finding
    assert finding.rule == "('route 5 to pin 99 = EINVAL',)"


def test_fault_is_one_of_usage():
    assert issubclass(ScenarioFault, UsageError)
