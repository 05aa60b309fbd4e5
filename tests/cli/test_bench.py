"""`vintx bench`: what it prints, without the time that measuring takes."""

from __future__ import annotations

import json

import pytest

from support.qemu_guest import ABSENT, QEMU
from vmm.cli import bench, bench_qmp, vintx
from vmm.cli.bench_figures import GROUPS, Figure, Subject
from vmm.cli.process import GuestLost, program


def test_list_names_every_figure_once_and_measures_nothing(capsys):
    assert vintx.main(["bench", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [figure.name for group in GROUPS for figure in group.figures]
    assert len(set(names)) == len(names)


def test_json_of_a_figure_that_needs_no_guest(capsys):
    assert vintx.main(["bench", "--json", "-r", "1", "-k", "snapshot", "--qemu", "no-such-program"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = printed["figures"]
    assert printed["qemu"] is None
    assert (row["name"], row["unit"], row["qemu"], row["ratio"]) == ("snapshot", "us", None, None)
    assert row["ours"] > 0


def test_table_says_so_where_there_is_no_qemu(capsys):
    assert vintx.main(["bench", "-r", "1", "-k", "snapshot", "--qemu", "no-such-program"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["name", "what", "ours", "qemu", "ratio", "aim", "unit"]
    assert "snapshot" in printed
    assert bench.NO_QEMU in printed.replace("\n", " ")


def test_linux_is_left_out_with_the_reason_where_there_is_no_guest(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert vintx.main(["bench", "-r", "1", "-k", "linux-", "--qemu", "no-such-program"]) == 0
    printed = capsys.readouterr().out
    assert "linux-init" in printed
    assert "Linux was not measured" in printed
    assert "make guests" in printed.replace("\n", " ")


@pytest.mark.skipif(QEMU is None, reason=ABSENT)
def test_greetings_of_both_are_measured_and_compared(capsys):
    assert vintx.main(["bench", "--json", "-r", "1", "-k", "greeting"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = printed["figures"]
    assert "QEMU" in printed["qemu"]
    assert row["ratio"] == pytest.approx(row["ours"] / row["qemu"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-k", "nothing-like-it"], "-k nothing-like-it: there is no such figure"),
        (["-r", "0"], "-r takes a positive number"),
    ],
)
def test_a_wrong_option_is_refused(capsys, argv, message):
    assert vintx.main(["bench", *argv]) == 1
    assert message in capsys.readouterr().err


def test_rates_and_times_are_compared_as_costs():
    assert Figure("x", "", "/s").cost(4.0) == 0.25
    assert Figure("x", "", "us").cost(4.0) == 4.0


def test_a_guest_that_fails_is_reported_with_what_it_said():
    with pytest.raises(GuestLost, match="intx_loop ended with status 3") as caught:
        Subject("vintx", program(), ours=True).console("intx_loop", "")
    assert "intx_loop: no devices" in caught.value.output


def test_a_machine_that_says_nothing_is_reported():
    with pytest.raises(GuestLost, match="ended without a word"):
        Subject("vintx", program(), ours=True).until_output("-device", "no-such-device")


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("first-reply", {"first-reply"}),
        ("qmp", {"qmp"}),
        ("qtest", {"qtest-in", "qtest-out", "qtest-pipelined"}),
        ("plug-cycle", {"plug-cycle"}),
    ],
)
def test_monitor_and_qtest_are_measured(capsys, monkeypatch, key, names):
    for name, count in (("COMMANDS", 20), ("ACCESSES", 400), ("CYCLES", 5)):
        monkeypatch.setattr(bench_qmp, name, count)
    assert vintx.main(["bench", "--json", "-r", "1", "-k", key, "--qemu", "no-such-program"]) == 0
    rows = json.loads(capsys.readouterr().out)["figures"]
    assert {row["name"] for row in rows} == names
    assert all(row["ours"] > 0 for row in rows)
