"""The human monitor's look into a machine, beside what QEMU printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine import Machine, MachineConfig
from support.qmp_target import transcript
from vmm.errors import QmpError
from vmm.qmp.hmp import HUMAN, run_hmp
from vmm.qmp.machine_target import MachineMonitor
from vmm.qmp.machine_views import number
from vmm.qmp.monitor import make_version


@pytest.fixture(scope="module")
def human() -> Any:
    machine = Machine.create("pc", MachineConfig(accel="qtest", ram_size=128 << 20, cpus=2))
    machine.device_add({"driver": "edu", "id": "e0", "addr": "5"})
    machine.start()
    monitor = MachineMonitor(machine)
    yield lambda line: run_hmp(monitor, make_version("x"), line)
    machine.close()


def recorded(command: str) -> str:
    """What QEMU printed; `command` is the whole line that was sent."""
    lines = [line for line in transcript() if (line["sess"], line["sec"]) == ("pc", "hmp")]
    sent = f'"command-line": "{command}"'
    place = next(n for n, line in enumerate(lines) if line["dir"] == ">" and sent in line["raw"])
    reply = next(line for line in lines[place:] if line["dir"] == "<")
    return str(json.loads(reply["raw"])["return"]).replace("\r\n", "\n")


@pytest.mark.parametrize(
    "command",
    [
        "p 1+1",
        "xp /4xw 0xfec00000",
        "nosuch",
        "info nosuch",
        "device_add nosuch",
        "info name",
        "info uuid",
        "o /b 0x80 1",
    ],
)
def test_answer_is_qemus_word_for_word(human: Any, command: str) -> None:
    assert human(command) == recorded(command)


def test_local_apic_is_printed_as_qemu_prints_it(human: Any) -> None:
    ours, qemu = human("info lapic").splitlines(), recorded("info lapic").splitlines()
    assert len(ours) == len(qemu)
    # LINT0 takes ExtINT here, as firmware leaves it; all else is at reset in both.
    assert [line for line in ours if not line.startswith("LVT0")] == [
        line for line in qemu if not line.startswith("LVT0")
    ]
    assert "dumping local APIC state for CPU 1" in human("info lapic 1")
    assert human("info lapic 9") == "No local APIC\n"


def test_registers_are_printed_as_qemu_prints_them(human: Any) -> None:
    ours, qemu = human("info registers"), recorded("info registers")
    for name in ("EAX", "ESI", "EIP", "CR0", "EFER"):
        (shown,) = (line for line in ours.splitlines() if line.startswith(f"{name}="))
        (theirs,) = (line for line in qemu.splitlines() if line.startswith(f"{name}="))
        assert re.sub(r"[0-9a-f]{8,}", "#", shown) == re.sub(r"[0-9a-f]{8,}", "#", theirs).replace("HLT=0", "HLT=1")
    assert human("info registers -a").count("CPU#") == 2


def test_trees_show_a_device_where_it_is_and_no_more_once_it_is_gone(vm: Any) -> None:
    guest = vm("pc", accel="qtest")
    hmp = "human-monitor-command"
    before = {view: guest.qmp(hmp, command_line=f"info {view}") for view in ("qtree", "qom-tree")}
    guest.qmp("device_add", driver="edu", id="e0", addr="5")
    qtree = guest.qmp(hmp, command_line="info qtree")
    assert '      dev: edu, id "e0"\r\n        addr = 05.0\r\n' in qtree
    assert "    /e0 (edu)\r\n" in guest.qmp(hmp, command_line="info qom-tree")
    guest.qmp("device_del", id="e0")
    guest.qmp("system_reset")
    assert before == {view: guest.qmp(hmp, command_line=f"info {view}") for view in ("qtree", "qom-tree")}


def test_memory_tree_names_who_answers(human: Any) -> None:
    tree = human("info mtree")
    assert "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n" in tree
    assert "    0000000000000000-0000000007ffffff (prio 0, ram): pc.ram\n" in tree
    assert "    00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic\n" in tree
    flat = human("info mtree -f")
    assert 'FlatView #1\n AS "I/O", root: io\n Root memory region: io\n' in flat


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("p /d -1", "-1\n"),
        ("p /o 8", "010\n"),
        ("p (1+2)*3", "0x9\n"),
        ("p ~0", "0xffffffffffffffff\n"),
        ("p 1+", "Error: unexpected end of expression\n"),
        ("p 1 2", "Error: invalid char '2' in expression\n"),
        ("xp /99999x 0", "Error: no more than 65536 units at a time\n"),
        ("xp /z 0", "Error: invalid char in format: 'z'\n"),
        ("i /g 0x80", "Error: a port has 1, 2 or 4 bytes\n"),
        ("o /b 0x80", "Error: integer expected\n"),
        ("info qom-tree /nosuch", "Error: Device '/nosuch' not found\n"),
    ],
)
def test_formats_and_refusals(human: Any, line: str, shown: str) -> None:
    assert human(line) == shown


def test_memory_is_shown_as_it_is(vm: Any) -> None:
    guest = vm("pc", accel="qtest")
    guest.machine.memory.write(0x1000, b"AB\0\0\xfe")
    show = {"xp /2xb 0x1000": "0x41 0x42", "xp /1dh 0x1000": "16961", "xp /1xw 0x1001": "0xfe000042"}
    show |= {"xp /2c 0x1000": "'A' 'B'", "xp /1c 0x1004": "'\\xfe'", "xp /1ob 0x1000": "0101"}
    show |= {"xp /1db 0x1004": "-2", "xp /1ub 0x1004": "254", "x /1xb 0x1000": "0x41"}
    for line, cells in show.items():
        assert guest.qmp("human-monitor-command", command_line=line).rstrip().partition(": ")[2] == cells, line


@given(st.lists(st.tuples(st.sampled_from("+-*&|^"), st.integers(0, 1 << 64)), max_size=6), st.integers(0, 1 << 64))
def test_expression_has_the_value_that_it_would_have_left_to_right_in_each_rank(rest: Any, first: int) -> None:
    mask = (1 << 64) - 1
    text = str(first) + "".join(f" {operator} {value}" for operator, value in rest)
    terms = [first]
    signs = ["+"]
    for operator, value in rest:
        if operator in "+-":
            terms.append(value)
            signs.append(operator)
        else:
            left = terms[-1]
            terms[-1] = {"*": left * value, "&": left & value, "|": left | value, "^": left ^ value}[operator]
    expected = sum(-term if sign == "-" else term for sign, term in zip(signs, terms, strict=True)) & mask
    assert number(text) == expected


@given(st.text(max_size=30))
def test_any_expression_is_a_number_or_refused(text: str) -> None:
    with suppress(QmpError):
        assert 0 <= number(text) < 1 << 64


def test_every_command_answers_on_a_machine_without_a_board() -> None:
    machine = Machine.create("none", MachineConfig())
    monitor = MachineMonitor(machine)
    for name in HUMAN:
        if name != "quit":
            assert isinstance(run_hmp(monitor, make_version("x"), name), str)
    machine.close()


def test_human_monitor_that_is_there_before_the_machine_greets_and_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmm.cli.system", "-M", "pc", "-accel", "qtest", "-monitor", "stdio"],
        input="info status\nquit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "monitor - type 'help' for more information" in done.stdout
    assert "VM status: running" in done.stdout
