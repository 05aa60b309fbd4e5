"""One character device for several users: focus, escapes, and who hears what."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.chardev import BUFFER_SIZE, MemoryBackend
from vmm.chardev_mux import HELP, MuxBackend
from vmm.chardev_options import parse_chardev


class User:
    """A front end that notes everything."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.got = b""
        self.events: list[str] = []

    def can_receive(self) -> int:
        return self.room

    def receive(self, data: bytes) -> None:
        self.got += data

    def char_event(self, event: str) -> None:
        self.events.append(event)

    def writable(self) -> None:
        self.events.append("writable")


class Shared:
    """A mux on memory with two users, a monitor that came first and a port that came then."""

    def __init__(self) -> None:
        self.below = MemoryBackend("m")
        self.mux = MuxBackend(self.below)
        self.monitor, self.port = User(), User()
        self.ends = [self.mux.shared(), self.mux.shared()]
        for end, user in zip(self.ends, (self.monitor, self.port), strict=True):
            end.connect(user)
        loop = asyncio.new_event_loop()
        self.mux.start(loop)
        loop.close()


def test_who_came_last_has_the_focus_and_only_it_is_greeted() -> None:
    shared = Shared()
    shared.below.feed(b"to the port")
    assert (shared.port.got, shared.monitor.got) == (b"to the port", b"")
    assert (shared.port.events, shared.monitor.events) == (["opened"], [])


def test_escape_c_gives_the_focus_to_the_next_who_is_greeted_once() -> None:
    shared = Shared()
    shared.below.feed(b"a\x01cb\x01cc\x01cd")
    assert (shared.port.got, shared.monitor.got) == (b"ac", b"bd")
    assert shared.monitor.events == ["opened"]


def test_output_of_all_goes_out() -> None:
    shared = Shared()
    shared.ends[0].write(b"one ")
    shared.ends[1].write(b"two")
    assert shared.below.output == b"one two"


def test_escapes_print_help_send_themselves_break_and_end_the_machine() -> None:
    shared = Shared()
    ended: list[bool] = []
    shared.mux.on_exit = lambda: ended.append(True)
    shared.below.feed(b"\x01h\x01\x01\x01b\x01z\x01x")
    assert HELP.encode() in shared.below.output
    assert shared.port.got == b"\x01"
    assert shared.port.events == ["opened", "break"]
    assert ended == [True]


def test_user_that_has_no_room_holds_its_input_back_and_loses_nothing() -> None:
    shared = Shared()
    shared.port.room = 0
    shared.below.feed(b"waits")
    assert shared.port.got == b""
    shared.port.room = 2
    shared.ends[1].accept_input()
    assert shared.port.got == b"waits"


def test_user_that_leaves_gives_the_focus_back() -> None:
    shared = Shared()
    shared.ends[1].disconnect()
    shared.below.feed(b"now here")
    assert shared.monitor.got == b"now here"
    shared.ends[0].disconnect()
    shared.below.feed(b"to nobody")
    assert shared.mux.frontend is None


def test_everybody_hears_when_there_is_room_again() -> None:
    class Full(MemoryBackend):
        taking = False

        def _send(self, data: bytearray) -> int:
            return super()._send(data) if self.taking else 0

    below = Full("m")
    mux = MuxBackend(below)
    users = User(), User()
    for user in users:
        mux.shared().connect(user)
    assert mux.ports[0].write(bytes(BUFFER_SIZE + 1)) == BUFFER_SIZE
    below.taking = True
    below.flush()
    assert [user.events.count("writable") for user in users] == [1, 1]


@given(st.lists(st.binary(max_size=6), max_size=8))
def test_any_input_in_any_pieces_is_understood_alike(pieces: list[bytes]) -> None:
    whole, parts = Shared(), Shared()
    whole.below.feed(b"".join(pieces))
    for piece in pieces:
        parts.below.feed(piece)
    assert (whole.port.got, whole.monitor.got) == (parts.port.got, parts.monitor.got)


def test_mux_is_an_option_of_every_kind() -> None:
    assert isinstance(parse_chardev("null,id=n,mux=on"), MuxBackend)
    assert not isinstance(parse_chardev("null,id=n,mux=off"), MuxBackend)


@pytest.mark.parametrize(
    "options",
    [
        ["-serial", "mon:stdio"],
        ["-chardev", "stdio,id=s,mux=on", "-mon", "s", "-serial", "chardev:s"],
    ],
)
def test_terminal_is_shared_by_a_port_and_a_monitor(options: list[str]) -> None:
    process: Any = subprocess.run(
        [sys.executable, "-m", "vmm.cli.system", "-M", "pc", "-accel", "qtest", *options],
        input="x\x01cinfo status\n\x01x",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "VM status: running" in process.stdout
    assert "Terminated" in process.stdout
    assert "unknown command" not in process.stdout
