from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.qmp_target import PACKAGE, FakeTarget
from vmm.chardev import CharBackend
from vmm.errors import InUse
from vmm.qmp import char_monitor as module
from vmm.qmp.char_monitor import CharMonitor
from vmm.qmp.command import Command
from vmm.qmp.events import Events
from vmm.qmp.monitor import Monitor, make_call

if TYPE_CHECKING:
    from vmm.chardev import CharEvent


class Pipe(CharBackend):
    """A character device whose peer is the test: `room` is how many bytes the peer takes."""

    def __init__(self) -> None:
        super().__init__("char0")
        self.open = False
        self.sent = bytearray()
        self.room = 1 << 30

    def _send(self, data: bytearray) -> int:
        taken = min(self.room, len(data))
        self.sent += data[:taken]
        self.room -= taken
        return taken

    def event(self, event: CharEvent) -> None:
        assert self.frontend is not None
        self.frontend.char_event(event)

    def type(self, data: bytes) -> None:
        assert self.frontend is not None
        assert self.frontend.can_receive() > 0
        self.frontend.receive(data)

    def deliver(self) -> None:
        while self._out and self.room:
            self.flush()

    def heard(self) -> list[Any]:
        self.deliver()
        sent, self.sent = self.sent, bytearray()
        return [json.loads(line) for line in sent.split(b"\r\n") if line]


class Setup:
    def __init__(self, mode: str = "control") -> None:
        self.events = Events()
        self.target = FakeTarget(self.events)
        self.monitor = Monitor(make_call(self.target, PACKAGE), self.events, mode)
        self.pipe = Pipe()
        self.front = CharMonitor(self.monitor, self.pipe)


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_each_peer_gets_a_session_of_its_own(setup: Setup) -> None:
    for _ in range(2):
        setup.pipe.event("opened")
        setup.pipe.type(b'{"execute":"query-name"}{"execute":"qmp_capabilities"}{"execute":"query-name"}')
        assert [next(iter(reply)) for reply in setup.pipe.heard()] == ["QMP", "error", "return", "return"]
        setup.pipe.event("closed")
        setup.target.stop()
        assert setup.pipe.heard() == []


def test_nothing_is_read_before_a_peer_is_there(setup: Setup) -> None:
    assert setup.front.can_receive() == 0
    setup.front.receive(b"{}")
    assert setup.pipe.heard() == []


def test_device_that_has_a_front_end_is_refused(setup: Setup) -> None:
    with pytest.raises(InUse, match="Device 'char0' is in use"):
        CharMonitor(setup.monitor, setup.pipe)


def test_peer_that_does_not_read_makes_its_commands_wait_and_loses_nothing(setup: Setup) -> None:
    ran = []

    def big(call: Any, arguments: Any) -> str:  # noqa: ARG001
        ran.append(1)
        return "x" * 200_000

    setup.monitor.call.registry.add(Command("x-big", big))
    setup.pipe.event("opened")
    setup.pipe.type(b'{"execute":"qmp_capabilities"}')
    setup.pipe.heard()
    setup.pipe.room = 0
    setup.pipe.type(b'{"execute":"x-big"}' * 10)
    assert len(ran) == 1
    assert setup.front.can_receive() == 0
    setup.pipe.room = 1 << 30
    replies = setup.pipe.heard()
    assert (len(ran), len(replies)) == (10, 10)
    assert setup.front.can_receive() > 0


def test_peer_that_never_reads_is_given_up_when_events_pile_up(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTPUT_LIMIT", 100_000)
    setup.pipe.event("opened")
    setup.pipe.type(b'{"execute":"qmp_capabilities"}')
    setup.pipe.flush()
    setup.pipe.room = 0
    for _ in range(10):
        setup.events.emit("X_BIG", {"text": "x" * 40_000})
    assert len(setup.front._unsent) == 0
    assert setup.front.can_receive() == 0


def test_close_delivers_the_last_words_and_leaves_the_device(setup: Setup) -> None:
    setup.pipe.event("opened")
    setup.pipe.type(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
    setup.front.close()
    setup.front.close()
    assert [next(iter(reply)) for reply in setup.pipe.heard()] == ["QMP", "return", "timestamp", "return"]
    assert setup.pipe.frontend is None


def test_human_monitor_on_a_device_holds_lines_while_the_peer_does_not_read() -> None:
    setup = Setup("readline")
    setup.pipe.event("opened")
    setup.pipe.flush()
    setup.pipe.sent.clear()
    setup.pipe.room = 0
    setup.pipe.type(b"help\n" * 200 + b"stop\n")
    assert setup.target.run_state == "running"
    setup.pipe.room = 1 << 30
    setup.pipe.deliver()
    assert setup.target.run_state == "paused"
    assert setup.pipe.sent.endswith(b"(qemu) ")
