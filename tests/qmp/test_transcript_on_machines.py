"""QEMU's recorded sessions, line by line on real machines: the same class and wording, the same events in their turn.

A line about a device, object or command that is none of ours is left out, and what is left out must be named in
replay.json with the reason.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from machine import Machine, MachineConfig
from machine.registry import device_names, object_names
from support.qmp_target import sent_bytes, transcript
from vmm.chardev import MemoryBackend
from vmm.qmp.events import Events
from vmm.qmp.machine_target import MachineMonitor, listen
from vmm.qmp.monitor import make_call
from vmm.qmp.session import Session
from vmm.qtest import QtestServer

PLAN = json.loads((Path(__file__).parent / "replay.json").read_text())["on_machines"]
ABSTRACT = {"pci-device", "device", "help", "no-such-device"}


class Replay:
    """A machine under qtest, its monitor and its qtest channel."""

    def __init__(self, **config: Any) -> None:
        self.machine = Machine.create("pc", MachineConfig(accel="qtest", ram_size=128 << 20, **config))
        self.out = bytearray()
        events = Events()
        listen(self.machine, events)
        call = make_call(MachineMonitor(self.machine), "Debian 1:11.1.3+ds-1")
        self.works: list[asyncio.Task[None]] = []
        self.session = Session(call, events, self.out.extend, self.spawn)
        self.qtest = MemoryBackend("qtest")
        self.server = QtestServer(self.machine, self.qtest)

    def spawn(self, work: Any) -> None:
        self.works.append(asyncio.get_running_loop().create_task(work))

    async def ask(self, raw: bytes) -> list[dict[str, Any]]:
        """Everything that the monitor says to one message."""
        self.out.clear()
        self.session.feed(raw)
        for work in self.works:
            await work
        return self.said()

    def said(self) -> list[dict[str, Any]]:
        self.machine.loop.turn()
        return [json.loads(line) for line in bytes(self.out).split(b"\r\n") if line]

    def poke(self, command: str) -> list[dict[str, Any]]:
        """The events of one qtest command."""
        self.out.clear()
        self.qtest.feed(command.encode() + b"\n")
        self.qtest.take()
        return self.said()

    def close(self) -> None:
        self.session.close()
        self.server.close()
        self.machine.close()


def foreign(raw: str) -> str:
    """What the line is about that we have not; empty if nothing."""
    arguments = json.loads(raw).get("arguments", {})
    for key, known in (
        ("driver", {*device_names(), *ABSTRACT, "memory-backend-ram"}),
        ("qom-type", {*object_names(), "bogus"}),
    ):
        value = arguments.get(key)
        if isinstance(value, str) and value not in known:
            return value
    return ""


def plain(text: str) -> str:
    return text.replace("pc-i440fx-11.1-machine", "pc-machine")


def kind(message: dict[str, Any]) -> tuple[str, ...]:
    """What must be the same: an error's class and words, an event's name and data, that something was returned."""
    if "error" in message:
        return ("error", message["error"]["class"], plain(message["error"]["desc"]))
    if "event" in message:
        return ("event", message["event"], json.dumps(message.get("data"), sort_keys=True))
    return ("return",)


async def replay(session: str, machine: Replay) -> tuple[int, list[str]]:
    lines = [line for line in transcript() if line["sess"] == session]
    left_out = PLAN[session]["left_out"]
    used: set[str] = set()
    compared, wrong = 0, []
    for place, line in enumerate(lines):
        if line["dir"] not in (">", "qtest") or "-> IRQ" in line["raw"]:  # a command's reply has a line of its own
            continue
        expected = []
        for after in lines[place + 1 :]:
            if after["dir"] in (">", "qtest") and "-> IRQ" not in after["raw"]:
                break
            if after["dir"] == "<":
                expected.append({"return": "cut"} if "len" in after else json.loads(after["raw"]))
        if line["dir"] == "qtest":
            got = machine.poke(line["raw"].partition(" -> ")[0])
        else:
            reason = foreign(line["raw"]) or next((key for key in left_out if re.search(key, line["raw"])), "")
            if reason:
                used.add(reason)
                continue
            got = await machine.ask(sent_bytes(plain(line["raw"])))
        compared += 1
        if sorted(map(kind, got)) != sorted(map(kind, expected)):
            wrong.append(
                f"{line['raw'].strip()}\n   ours {[kind(m) for m in got]}\n   QEMU {[kind(m) for m in expected]}"
            )
    assert used <= left_out.keys(), f"left out without a reason: {used - left_out.keys()}"
    assert left_out.keys() <= used, f"nothing to leave out: {left_out.keys() - used}"
    return compared, wrong


@pytest.mark.parametrize("session", PLAN)
def test_session_on_a_machine_gets_the_recorded_classes_and_words(session: str) -> None:
    plan = PLAN[session]

    async def run() -> tuple[int, list[str]]:
        machine = Replay(**plan.get("config", {}))
        try:
            for device in plan.get("devices", ()):
                machine.machine.device_add(device)
            machine.machine.start()
            return await replay(session, machine)
        finally:
            machine.close()

    compared, wrong = asyncio.run(run())
    assert not wrong, "\n".join(wrong)
    assert compared >= plan["lines"]
