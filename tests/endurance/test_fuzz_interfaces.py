"""Anything may come in: QMP, HMP, qtest and the command line, 1,000,000 inputs in the full form.

Each input is answered or refused; no error of ours escapes, nothing hangs, nothing grows. What was reached is printed
(`-s`), and 30 % of the inputs at least must have got past the parser.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machine import Machine, MachineConfig
from support import fuzz
from support.endurance import size
from vmm.chardev import MemoryBackend
from vmm.cli.options import OPTIONS, parse_command_line
from vmm.errors import VintxError
from vmm.qmp.commands import standard_registry
from vmm.qmp.events import Events
from vmm.qmp.hmp import HUMAN, run_hmp
from vmm.qmp.machine_target import MachineMonitor, listen
from vmm.qmp.monitor import make_call
from vmm.qmp.session import Session
from vmm.qtest import QtestServer
from vmm.qtest.server import _COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUND = 2_000
"""Inputs that one machine gets."""
MAY_GROW = 48 << 20
"""Bytes that a run may take more than its first round: caches of ours and of Python fill up."""
HANG_S = 30
SEED = 20_121_123


def rounds(total: int) -> Iterator[int]:
    while total > 0:
        yield min(total, ROUND)
        total -= ROUND


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def hung(_number: int, _frame: Any) -> None:
        raise AssertionError(f"an input took {HANG_S} s")

    before = signal.signal(signal.SIGALRM, hung)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Watch:
    """Counts inputs, traces every 64th, and looks at memory between rounds."""

    def __init__(self) -> None:
        self.count = fuzz.Count()
        self._after_first: int | None = None
        self._fds: int | None = None

    def input(self) -> Any:
        signal.alarm(HANG_S)
        self.count.inputs += 1
        return self.count.traced() if self.count.inputs % 64 == 1 else contextlib.nullcontext()

    def round_over(self) -> None:
        gc.collect()
        fds = len(list(Path("/proc/self/fd").iterdir()))
        if self._after_first is None:
            self._after_first, self._fds = fuzz.resident_bytes(), fds
        assert fds <= (self._fds or 0) + 2
        assert fuzz.resident_bytes() - self._after_first < MAY_GROW

    def over(self, what: str, commands: int) -> None:
        signal.alarm(0)
        print(f"\n{self.count.report(what)}")
        assert self.count.past >= 0.3 * self.count.inputs
        assert len(self.count.commands) >= commands


def made_machine() -> Machine:
    machine = Machine.create("pc", MachineConfig(accel="qtest", ram_size=16 << 20))
    machine.start()
    return machine


async def qmp_round(watch: Watch, maker: fuzz.Maker, commands: list[Any], inputs: int) -> None:
    machine = made_machine()
    events = Events()
    listen(machine, events)
    monitor = MachineMonitor(machine)
    out = bytearray()
    works: set[asyncio.Task[None]] = set()

    def spawn(work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        works.add(task)
        task.add_done_callback(works.discard)

    def new_session() -> Session:
        session = Session(make_call(monitor, "fuzz"), events, out.extend, spawn)
        session.feed(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
        return session

    session = new_session()
    for number in range(inputs):
        data = fuzz.qmp_input(maker, commands)
        out.clear()
        with watch.input():
            session.feed(data + b"\n")
            while works:
                await asyncio.sleep(0)
        for line in bytes(out).split(b"\r\n"):
            assert b"Internal error" not in line, (data, line)
            if line.startswith(b'{"return"') or (
                b'"error"' in line and not PARSER_WORDS.intersection(line.split(b" "))
            ):
                watch.count.understood(command_in(data))
                break
        watch.count.answers[kind_of(bytes(out))] += 1
        if number % 50 == 49:  # damaged input may have left a bracket open: begin again, as a new client does
            session.close()
            session = new_session()
    session.close()
    monitor.chardevs.close()
    machine.close()
    assert not machine.ledger.rows()


PARSER_WORDS = {b"JSON", b"QMP"}
KNOWN = {command.name for command in standard_registry()}


def command_in(data: bytes) -> str:
    name = data.partition(b'": "')[2].partition(b'"')[0].decode("latin-1")
    return name if name in KNOWN else "(damaged)"


def kind_of(out: bytes) -> str:
    """An answer without what varies: its class, and its words outside quotes."""
    if b'"error"' not in out:
        return "return"
    text = out.partition(b'"desc": "')[2].decode("ascii")
    return "".join(part for place, part in enumerate(text.split("'")) if place % 2 == 0)[:60]


def test_qmp_takes_anything() -> None:
    watch, maker = Watch(), fuzz.Maker(Random(SEED))
    commands = list(standard_registry())
    for inputs in rounds(size(6_000, 400_000)):
        asyncio.run(qmp_round(watch, maker, commands, inputs))
        watch.round_over()
    watch.over("QMP", commands=len(commands) - 2)


def test_hmp_takes_anything() -> None:
    watch, maker = Watch(), fuzz.Maker(Random(SEED + 1))
    names = sorted(HUMAN)
    for inputs in rounds(size(4_000, 200_000)):
        machine = made_machine()
        call = make_call(MachineMonitor(machine), "fuzz")
        for _ in range(inputs):
            data = fuzz.hmp_input(maker, names)
            line = data.decode("utf-8", "replace").rstrip("\n")
            with watch.input():
                answer = run_hmp(call.target, call.version, line)
            if not answer.startswith("unknown command") and line.strip():
                name = " ".join(line.split()[: 2 if line.startswith("info ") else 1])
                watch.count.understood(name if name in HUMAN else "(damaged)")
            watch.count.answers[answer.split(" ")[0][:20]] += 1
        machine.close()
        watch.round_over()
    watch.over("HMP", commands=len(names) - 1)


def test_qtest_takes_anything() -> None:
    watch, maker = Watch(), fuzz.Maker(Random(SEED + 2))
    names = sorted(_COMMANDS)
    for inputs in rounds(size(6_000, 300_000)):
        machine = made_machine()
        backend = MemoryBackend("qtest")
        server = QtestServer(machine, backend)
        for _ in range(inputs):
            data = fuzz.qtest_input(maker, names)
            with watch.input():
                backend.feed(data)
            replies = backend.take().decode("latin-1").removesuffix("\n").split("\n")
            words = data.decode("latin-1").split(" ")
            for reply in filter(None, replies):
                assert reply.startswith(("OK", "FAIL", "ERR", "IRQ ")), (data, reply)
                watch.count.answers[
                    " ".join(reply.split(" ")[:1]) if reply[:2] == "OK" else reply.partition(":")[2][:30]
                ] += 1
            if any(reply.startswith(("OK", "ERR")) for reply in replies):
                watch.count.understood(words[0].strip() if words[0].strip() in _COMMANDS else "(damaged)")
            if machine._ended:
                break
        server.close()
        machine.close()
        assert not machine.ledger.rows()
        watch.round_over()
    watch.over("qtest", commands=len(names) - 1)


def test_command_line_takes_anything() -> None:
    watch, maker = Watch(), fuzz.Maker(Random(SEED + 3))
    options = [name for option in OPTIONS if not isinstance(option, str) for name in option.names]
    for inputs in rounds(size(4_000, 100_000)):
        for _ in range(inputs):
            words = fuzz.command_line(maker, options)
            with watch.input():
                try:
                    parse_command_line(words)
                except VintxError as error:
                    message = str(error)
                    watch.count.answers[message.rpartition(": ")[2][:40]] += 1
                    assert message
                    if "invalid option" in message or "requires an argument" in message or "no disk" in message:
                        continue
                watch.count.understood(words[0].lstrip("-") if words else "")
        watch.round_over()
    watch.over("command line", commands=len(options) - 2)


@pytest.fixture(scope="module")
def one_session() -> Any:
    """A machine for many examples; `quit` is left out."""
    machine = made_machine()
    monitor = MachineMonitor(machine)
    out = bytearray()
    events = Events()

    def send(data: bytes) -> bytes:
        async def run() -> bytes:
            works: list[asyncio.Task[None]] = []
            spawn = asyncio.get_running_loop().create_task
            session = Session(make_call(monitor, "fuzz"), events, out.extend, lambda work: works.append(spawn(work)))
            session.feed(b'{"execute":"qmp_capabilities"}')
            out.clear()
            session.feed(data + b"\n")
            for work in works:
                await work
            session.close()
            return bytes(out)

        return asyncio.run(run())

    yield send
    monitor.chardevs.close()
    machine.close()


@settings(max_examples=size(150, 5_000), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_message_made_from_the_declarations_is_answered_once(one_session: Any, random: Random) -> None:
    """The same inputs where hypothesis chooses, which makes a failing one small."""
    commands = [command for command in standard_registry() if command.name != "quit"]
    command = random.choice(commands)
    message = {"execute": command.name, "arguments": fuzz.Maker(random).value(command.args), "id": 1}
    replies = [json.loads(line) for line in one_session(json.dumps(message).encode()).split(b"\r\n") if line]
    answers = [reply for reply in replies if "event" not in reply]
    assert len(answers) == 1
    assert answers[0].get("id") == 1
    assert "Internal error" not in json.dumps(answers)
