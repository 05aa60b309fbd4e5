"""A real QEMU as the machine of a device that a vfio-user server has: Linux in it, by its shell, and QMP."""

from __future__ import annotations

import functools
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

from guest_images import linux
from support.linux_shell import APPEND, Shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

PATIENCE_S = 120
MEMORY = ("-m", "256M", "-object", "memory-backend-memfd,id=m0,size=256M,share=on", "-machine", "memory-backend=m0")
"""RAM that other processes can map."""


@functools.cache
def qemu() -> str | None:
    """A qemu-system-x86_64 that has vfio-user-pci: VINTX_QEMU, or the one in PATH."""
    program = shutil.which(os.environ.get("VINTX_QEMU") or "qemu-system-x86_64")
    if program is None:
        return None
    done = subprocess.run([program, "-device", "vfio-user-pci,help"], capture_output=True, check=False)
    return program if b"vfio-user-pci options" in done.stdout else None  # its status is 0 for a driver it has not


def lacking_qemu() -> str:
    """Why there is no such QEMU; empty if there is."""
    return "" if qemu() else "no qemu-system-x86_64 with vfio-user-pci (10.1 or later): name one in VINTX_QEMU"


class QemuPeer:
    """A QEMU process, its serial port and its QMP; a context manager that leaves nothing behind."""

    def __init__(self, board: str, *options: str, devices: tuple[dict[str, Any], ...] = ()) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(PATIENCE_S)
        argv = [str(qemu()), "-accel", "tcg", "-M", board, "-nodefaults", "-display", "none", "-serial", "stdio"]
        argv += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control", *options]
        argv += [word for device in devices for word in ("-device", json.dumps(device))]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.machine = None
        self.serial = ""
        """All that the guest has said."""
        self.events: list[dict[str, Any]] = []
        self._qmp = self._socket.makefile("rw")
        self._greeted = False

    def __enter__(self) -> QemuPeer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
        self._stderr.close()
        self._qmp.close()
        self._socket.close()

    # What `Shell` wants of a guest.

    def type(self, text: str) -> None:
        """Characters for the serial port."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Read what the guest says until the condition is true; its value. AssertionError if that never comes."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            ready = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]
            data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            assert data, f"no {what}; the guest said:\n{self.serial[-3000:]}\n{self._complaints()}"
            self.serial += data.decode(errors="replace").replace("\r", "")
        return found

    def _complaints(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-3000:]

    # QMP.

    def qmp(self, command: str, **arguments: Any) -> Any:
        """A command's return value. RuntimeError for an error reply."""
        if not self._greeted:
            self._greeted = True
            self._qmp.readline()
            self.qmp("qmp_capabilities")
        print(json.dumps({"execute": command, "arguments": arguments}), file=self._qmp, flush=True)
        while "event" in (message := json.loads(self._qmp.readline())):
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(message["error"]["desc"])
        return message["return"]

    def wait_event(self, name: str) -> dict[str, Any]:
        """The data of the next event of that name, which may have come already."""
        for event in self.events:
            if event["event"] == name:
                self.events.remove(event)
                return dict(event["data"])
        while (message := json.loads(self._qmp.readline())).get("event") != name:
            self.events.append(message)
        return dict(message["data"])

    def unplug(self, device: str) -> None:
        """Ask for a device, and see that the guest gave it away."""
        self.qmp("device_del", id=device)
        while self.wait_event("DEVICE_DELETED").get("device") != device:
            pass


def boot(board: str, *options: str, devices: tuple[dict[str, Any], ...] = ()) -> tuple[QemuPeer, Shell]:
    """Linux at its prompt."""
    here = linux.find()
    kernel = ("-kernel", str(here.kernel), "-initrd", str(here.initrd), "-append", f"{APPEND} quiet")
    peer = QemuPeer(board, "-no-reboot", *kernel, *options, devices=devices)
    try:
        shell = Shell(peer)  # type: ignore[arg-type]  # it has all that a shell uses
        shell.begin()
    except BaseException:
        peer.__exit__(None, None, None)
        raise
    return peer, shell
