"""QEMU's own clients for people, on a terminal: qmp-shell, qmp-shell -H, qmp-tui."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 30
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][0-9A-Z]|\x1b[=>78]")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.text = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str, nudge: str = "") -> str:
        """What the program showed up to a match, which is forgotten then. `nudge` is typed while nothing comes."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, (pattern, self.text)
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:
                    data = b""
                assert data, ("it ended", pattern, self.text)
                self.text += _CONTROL.sub("", data.decode("utf-8", "replace"))
            elif nudge:
                self.type(nudge)
        shown, self.text = self.text[: found.end()], self.text[found.end() :]
        return shown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "qmp"
    command = [sys.executable, "-m", "vmm.cli.system", "-M", "pc", "-accel", "qtest", "-name", "seen"]
    machine = subprocess.Popen(
        [*command, "-qmp", f"unix:{path},server=on,wait=off"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield str(path)
    machine.terminate()
    machine.wait()


def client(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found is not None
    return found


def test_qmp_shell_shows_replies_and_errors(monitor: str) -> None:
    shell = Terminal(client("qmp-shell"), monitor)
    try:
        assert "Connected to QEMU 11.1.3" in shell.until(r"\(QEMU\) ")
        shell.type("query-name\r")
        assert '"name": "seen"' in shell.until(r"\(QEMU\) ")
        shell.type("device_add driver=edu id=e0\r")
        assert '{"return": {}}' in shell.until(r"\(QEMU\) ")
        shell.type("qom-get path=e0 property=type\r")
        assert '{"return": "edu"}' in shell.until(r"\(QEMU\) ")
        shell.type("device_del id=nosuch\r")
        assert "Device 'nosuch' not found" in shell.until(r"\(QEMU\) ")
        shell.type("query-kv\t\r")
        assert '"enabled": false' in shell.until(r"\(QEMU\) ")
        shell.type("quit\r")
        shell.until(r'"return": {}')
    finally:
        shell.close()


def test_qmp_shell_for_humans_has_the_human_monitor(monitor: str) -> None:
    shell = Terminal(client("qmp-shell"), "-H", monitor)
    try:
        assert "Welcome to the HMP shell" in shell.until(r"\(qemu\) |\(QEMU\) ")
        shell.type("info status\r")
        assert "VM status: running" in shell.until(r"VM status: \w+")
        shell.type("info pic\r")
        assert "ioapic0: ver=0x20" in shell.until(r"ioapic0: ver=\w+")
        shell.type("nonsense\r")
        shell.until(r"unknown command: 'nonsense'")
    finally:
        shell.close()


def test_qmp_tui_connects_negotiates_and_shows_what_was_said(monitor: str) -> None:
    program = os.environ.get("VINTX_QMP_TUI")
    if program is None:
        pytest.importorskip(
            "urwid", reason="qmp-tui wants urwid: pip install 'qemu.qmp[tui]', or VINTX_QMP_TUI=PROGRAM"
        )
    tui = Terminal(program or client("qmp-tui"), monitor)
    try:
        shown = tui.until(r"Connected", nudge="\x1b[B")  # with newer urwids it draws when a key comes, an arrow here
        assert "vintx" in shown
        assert "qmp_capabilities" in shown
        assert "return" in shown
    finally:
        tui.close()
