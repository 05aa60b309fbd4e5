"""Several monitors of one process: each negotiates for itself, and one that waits holds up no other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 60


class Monitor:
    """A QMP client without any wisdom of its own."""

    def __init__(self, listener: socket.socket) -> None:
        self._peer, _ = listener.accept()
        self._peer.settimeout(PATIENCE_S)
        self._lines = self._peer.makefile("r", encoding="ascii")

    def send(self, **message: Any) -> None:
        self._peer.sendall(json.dumps({name.replace("_", "-"): value for name, value in message.items()}).encode())

    def next(self) -> dict[str, Any]:
        return dict(json.loads(self._lines.readline()))

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.send(execute=command, arguments=arguments)
        return self.next()

    def close(self) -> None:
        self._lines.close()
        self._peer.close()


@pytest.fixture
def monitors(tmp_path: Path) -> Iterator[tuple[Monitor, Monitor]]:
    command = [sys.executable, "-m", "vmm.cli.system", "-M", "pc", "-accel", "qtest"]
    listeners = []
    for name in ("a", "b"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / name))
        listener.listen(1)
        listener.settimeout(PATIENCE_S)
        listeners.append(listener)
        command += ["-chardev", f"socket,id={name},path={tmp_path / name}"]
    command += ["-mon", "a,mode=control", "-object", "monitor-qmp,id=m,chardev=b"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    both = (Monitor(listeners[0]), Monitor(listeners[1]))
    yield both
    for monitor in both:
        monitor.close()
    process.terminate()
    process.wait()
    for listener in listeners:
        listener.close()


def test_each_monitor_is_greeted_and_negotiates_for_itself(monitors: tuple[Monitor, Monitor]) -> None:
    a, b = monitors
    assert "QMP" in a.next()
    assert "QMP" in b.next()
    assert a.ask("qmp_capabilities") == {"return": {}}
    assert b.ask("query-status")["error"]["class"] == "CommandNotFound"
    a.send(execute="stop")
    assert a.next()["event"] == "STOP"
    assert a.next() == {"return": {}}
    assert b.ask("qmp_capabilities", enable=["oob"]) == {"return": {}}  # and no STOP before it
    a.send(execute="cont")
    assert a.next()["event"] == "RESUME"
    assert b.next()["event"] == "RESUME"
    a.next()
    a.send(exec_oob="query-yank")
    assert a.next()["error"]["desc"] == "QMP input member 'exec-oob' is unexpected"
    b.send(exec_oob="query-yank")
    assert {row["id"] for row in b.next()["return"]} == {"a", "b"}


def test_command_that_waits_holds_up_its_own_monitor_only(monitors: tuple[Monitor, Monitor], tmp_path: Path) -> None:
    a, b = monitors
    for monitor in monitors:
        monitor.next()
        monitor.ask("qmp_capabilities", enable=["oob"])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    node = {"driver": "blkdebug", "node-name": "n0", "config": str(fifo), "image": {"driver": "null-co"}}
    a.send(execute="blockdev-add", arguments=node, id="slow")
    a.send(execute="query-name", id="behind")
    a.send(exec_oob="query-yank", id="oob")
    assert a.next()["id"] == "oob"
    assert b.ask("query-named-block-nodes") == {"return": []}
    assert b.ask("query-status")["return"]["running"] is True
    writer = threading.Thread(target=lambda: fifo.write_text('[inject-error]\nevent = "read_aio"\n'))
    writer.start()
    assert a.next() == {"return": {}, "id": "slow"}
    assert a.next()["id"] == "behind"
    writer.join()
    assert [row["node-name"] for row in b.ask("query-named-block-nodes")["return"] if row["drv"] == "blkdebug"] == [
        "n0"
    ]


def test_client_that_leaves_while_its_command_waits_does_not_undo_it(
    monitors: tuple[Monitor, Monitor], tmp_path: Path
) -> None:
    a, b = monitors
    for monitor in monitors:
        monitor.next()
        monitor.ask("qmp_capabilities")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    node = {"driver": "blkdebug", "node-name": "n0", "config": str(fifo), "image": {"driver": "null-co"}}
    a.send(execute="blockdev-add", arguments=node)
    a.close()
    fifo.write_text("")  # which waits until somebody reads
    while not b.ask("query-named-block-nodes")["return"]:
        pass
    assert b.ask("blockdev-del", **{"node-name": "n0"}) == {"return": {}}
