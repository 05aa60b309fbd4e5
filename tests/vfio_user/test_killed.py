"""SIGKILL for either side at every message of a conversation: the other one ends in a clean state and goes on."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devices.edu import REG_IRQ_ACK, REG_IRQ_RAISE, Edu
from devices.pci.msi import CAP_ID_MSI, MSI_ENABLE
from support.doomed import session
from support.vfio_board import BAR
from support.vfio_user import RawClient, open_fds, serving
from support.vfio_user_board import MESSAGE, RemoteBoard
from vmm.errors import ConfigError

FULL = bool(os.environ.get("VINTX_FULL"))
ALL_ONES = 0xFFFF_FFFF


class Doomed:
    """The process that makes the doomed ones."""

    def __init__(self, role: str) -> None:
        tests = Path(__file__).parents[1]
        path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.doomed", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def ask(self, *arguments) -> None:
        self.process.stdin.write(json.dumps(arguments).encode() + b"\n")
        self.process.stdin.flush()

    def said(self, wait: float = 10) -> str:
        """What it says next; nothing if it has said nothing yet."""
        if not select.select([self.process.stdout], [], [], wait)[0]:
            assert not wait, "nothing was heard of the process"
            return ""
        return self.process.stdout.readline().decode().strip()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.ask()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def doomed(request):
    made = Doomed(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("doomed", ["client"], indirect=True)
@pytest.mark.parametrize("half", [False, True], ids=["between messages", "inside a message"])
def test_client_that_is_killed_at_any_message_leaves_nothing_and_the_next_is_served(doomed, tmp_path, half):
    count = len(session())
    assert count > 100
    with serving(Edu(), tmp_path) as server:
        before = open_fds()
        for messages in range(0, count, 1 if FULL or not half else 3):
            doomed.ask(server.path, messages, half)
            while not (dead := doomed.said(0)):
                server.turn(0.01)
            assert dead == f"dead of {signal.SIGKILL}"
            for _ in range(4):  # it comes, speaks, goes
                server.turn()
            endpoint = server.endpoint
            assert (server.connected, len(server.memory), endpoint.watched()) == (False, 0, {}), messages
            assert open_fds() == before, messages
        client = RawClient(server)
        assert client.is_served()
        client.close()


def use(board, device):
    """What a guest does with an edu: probe, interrupts by the pin, by messages, DMA, reset."""
    board.enable(device)
    device.config_read(0, 4)
    for n in range(3):
        board.write(BAR + REG_IRQ_RAISE, 1)
        board.turn(device)
        board.take()
        board.write(BAR + REG_IRQ_ACK, 1)
        board.eoi()
        board.write(BAR + 4, n)
        board.read(BAR + 4)
    at = device.config.find_capability(CAP_ID_MSI)
    if at is not None:
        device.config_write(at + 4, 4, MESSAGE)
        device.config_write(at + 12, 2, 0x40)
        device.config_write(at + 2, 2, MSI_ENABLE)
        board.write(BAR + REG_IRQ_RAISE, 1)
        board.turn(device)
        board.take()
        board.write(BAR + REG_IRQ_ACK, 1)
        device.config_write(at + 2, 2, 0)
    for register, value in ((0x80, 0x1000), (0x88, 0x40000), (0x90, 64), (0x98, 1)):
        board.mmio.write(BAR + register, 8, value)
    board.read(BAR + 0x24)
    device.reset()
    board.turn(device)


@pytest.mark.parametrize("doomed", ["server"], indirect=True)
@pytest.mark.parametrize("mode", ["before", "after", "half"])
def test_server_that_is_killed_at_any_message_takes_nothing_of_the_machine_with_it(doomed, tmp_path, mode):
    board = RemoteBoard()
    path = str(tmp_path / "socket")
    lived = refused = 0
    messages, step = 0, 1 if FULL else 2
    ledger, fds = board.ledger.snapshot(), None
    while not lived:
        doomed.ask(path, messages, mode)
        assert doomed.said() == "ready"
        try:
            device = board.attach(path)
        except ConfigError:
            refused += 1
            device = None
        if device is not None:
            use(board, device)
            lived = device.remote.attached
            if not lived:
                board.turn_until(device, lambda: board.events)
                assert board.events == [
                    ("VFIO_USER_DISCONNECTED", {"device": "v0", "path": device.path, **board.events[0][1]})
                ]
                assert board.read(BAR) == ALL_ONES
            assert board.level == 0
            device.unrealize()
        board.events.clear()
        assert board.ledger.difference(ledger) == ([], []), messages
        if fds is None:
            fds = open_fds()
        assert open_fds() == fds, messages
        messages += step
    assert refused * step >= 10
    assert messages > 60
