"""Recorded QEMU sessions, replayed: the same bytes in give the same replies out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest

from support.qmp_target import Client, sent_bytes, transcript
from vmm.chardev import MemoryBackend
from vmm.qmp.command import STR, Arg, Command, Enum, Struct

PLAN = json.loads((Path(__file__).parent / "replay.json").read_text())


def _stand_in(call: Any, arguments: Any) -> Any:  # noqa: ARG001
    return []


STAND_INS = [
    Command(
        "query-cpu-model-expansion",
        _stand_in,
        Struct((Arg("type", Enum(("static", "full"))), Arg("model", Struct((Arg("name", STR),))))),
    ),
    Command("screendump", _stand_in, Struct((Arg("filename", STR),))),
]


class RecordedSocket(MemoryBackend):
    """A socket as query-chardev and query-yank see it."""

    kind = "socket"

    def __init__(self, id: str, path: str) -> None:
        super().__init__(id)
        self.path = path
        self.frontend = cast("Any", self)

    @property
    def filename(self) -> str:
        return f"unix:{self.path}"


def command_of(raw: str) -> str:
    found = re.search(r'"exec(?:ute|-oob)"\s*:\s*"([^"]*)"', raw)
    return found[1] if found else ""


def without_time(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key != "timestamp"}


def replay(client: Client, lines: list[dict[str, Any]]) -> int:
    """Feed what was sent; compare what comes back, in order. Returns how many replies were the same in full."""
    for command in STAND_INS:
        client.call.registry.add(command)
    for name, path in (("char0", "qmp"), ("qtest", "qt")):
        client.target.chardevs.add(RecordedSocket(name, path))
    expected: list[Any] = []
    sent = ""
    for line in lines:
        if line["dir"] == ">":
            sent = command_of(line["raw"])
            client.session.feed(sent_bytes(line["raw"]))
        elif line["dir"] == "<":
            expected.append((sent, json.loads(line["raw"]) if "len" not in line else {"return": "cut"}))
    replies = client.replies()
    assert len(replies) == len(expected)
    same = 0
    for reply, (name, recorded) in zip(replies, expected, strict=True):
        if name in PLAN["not_ours"]:
            assert reply["error"]["desc"] == f"The command {name} has not been found"
        elif name in PLAN["own_answer"]:
            assert "return" in reply
        else:
            assert without_time(reply) == without_time(recorded), name
            same += 1
    return same


@pytest.mark.parametrize("name", PLAN["sessions"])
def test_session_replayed_gives_recorded_replies(name: str) -> None:
    how = PLAN["sessions"][name]
    client = Client(status=how.get("status", "running"), preconfig=how.get("preconfig", False))
    lines = [line for line in transcript() if line["sess"] == name]
    same = replay(client, lines)
    replies = sum(line["dir"] == "<" for line in lines)
    assert same >= replies - 2 * (len(PLAN["not_ours"]) + len(PLAN["own_answer"]))
    assert client.target.quits == 1


def test_sections_of_a_running_pc_replayed_give_recorded_replies() -> None:
    client = Client()
    client.negotiate()
    client.replies()
    lines = [line for line in transcript() if line["sess"] == "pc" and line["sec"] in PLAN["sections_of_pc"]]
    lines = [line for line in lines if "system_wakeup" not in line["raw"] and "wake up" not in line["raw"]]
    assert replay(client, lines) >= 10


def test_plan_names_only_commands_of_the_recording() -> None:
    recorded = {command_of(line["raw"]) for line in transcript() if line["dir"] == ">"}
    for group in ("not_ours", "stand_ins", "own_answer"):
        assert set(PLAN[group]) <= recorded
