"""The runner of QEMU's test programs, on a program that is none: what it prints is what the program did."""

from __future__ import annotations

import json
import sys

import pytest

sys.path.insert(0, __file__.rpartition("/")[0])
import run_qtest

CASES = ("good", "odd", "bad", "behind", "absent")
PROGRAM = """#!/bin/sh
# Lists its cases, or runs them; stops at the first that fails.
skipped=" " only=""
while [ $# -gt 0 ]; do
    case $1 in
    -l) printf '/x/good\\n/x/odd\\n/x/bad\\n/x/behind\\n/x/absent\\n'; exit 0;;
    -s) skipped="$skipped$2 "; shift;;
    -p) only=$2; shift;;
    esac
    shift
done
n=0
for case in /x/good /x/odd /x/bad /x/behind /x/absent; do
    [ -z "$only" ] || [ "$only" = $case ] || continue
    n=$((n + 1))
    case "$skipped" in *" $case "*) echo "ok $n $case # SKIP by request (-s option)"; continue;; esac
    case $case in
    /x/odd) echo "ok $n $case # SKIP no device";;
    /x/bad) echo "ERROR: assertion failed: (1 == 2)" >&2; exit 134;;
    *) echo "ok $n $case";;
    esac
done
"""


@pytest.fixture
def build(tmp_path):
    program = tmp_path / "tests" / "qtest" / "toy-test"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    return tmp_path


def row(build, **plan):
    program = run_qtest.Program(build, build, "toy-test", {"theirs": 5, "expected": 3} | plan, 20)
    program.run()
    return program


def test_program_that_stops_is_gone_on_with_behind_the_case_that_failed(build):
    program = row(build)
    assert program.passed == ["/x/good", "/x/behind", "/x/absent"]
    assert program.skipped == {"/x/odd": "no device"}
    assert program.failed == {"/x/bad": "ERROR: assertion failed: (1 == 2)"}
    assert program.row() == ("| toy-test | 5 |  | 3 | 3 | 1: no device | `bad`: ERROR: assertion failed: (1 == 2) |")


def test_cases_that_are_left_out_are_not_run_and_not_counted(build):
    program = row(build, leave_out={"bad": "there is none", "absent": "nor this"}, less="2", expected="all")
    assert program.passed == ["/x/good", "/x/behind"]
    assert program.failed == {}
    assert program.expected == 3
    assert program.row() == "| toy-test | 5 | 2 | 3 | 2 | 1: no device |  |"


@pytest.mark.parametrize(("leave_out", "expected", "status"), [({}, 3, 1), ({"bad": ""}, 3, 0), ({"bad": ""}, 4, 1)])
def test_exit_status_says_whether_all_that_must_pass_did(
    build, tmp_path, monkeypatch, capsys, leave_out, expected, status
):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"toy-test": {"theirs": 5, "expected": expected, "leave_out": leave_out}}))
    monkeypatch.setattr(run_qtest, "PLAN", plan)
    assert run_qtest.main([str(build), "--binary", sys.executable]) == status
    assert capsys.readouterr().out.splitlines()[2].startswith("| toy-test | 5 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other-test"], "other-test: not one of"),
        (["qmp-test"], "there is no tests/qtest/qmp-test; build it with: ninja tests/qtest/qmp-test"),
    ],
)
def test_what_is_not_there_is_named(build, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run_qtest.main([str(build), *arguments])
    assert message in capsys.readouterr().err


def test_every_program_of_the_plan_says_what_must_pass():
    for name, plan in json.loads(run_qtest.PLAN.read_text()).items():
        assert plan["expected"] == "all" or plan["expected"] <= plan["theirs"], name
        assert plan["expected"] in ("all", plan["theirs"]) or plan["less"], name
        assert set(plan) <= {"theirs", "expected", "less", "leave_out"}, name
