"""`vintx serve` as a process, for tests of machines that have its device; and what Linux does with that device."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from support.linux_shell import Shell

BIND = "modprobe uio_pci_generic; echo 1234 11e8 > /sys/bus/pci/drivers/uio_pci_generic/new_id; true"
PLACE = "grep -l 0x{device:04x} /sys/bus/pci/devices/*/device | sed 's,/device$,,'"


def remote(path: object, **properties: Any) -> dict[str, Any]:
    """The device that a server at `path` has."""
    return {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}, **properties}


class Served:
    """`vintx serve` as a process; `kill` and `start` again."""

    def __init__(self, path: Path, *device: str) -> None:
        self.path = path
        self._argv = [sys.executable, "-m", "vmm.cli.vintx", "serve", *device, "--socket", str(path)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("vintx serve: ")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate()
        return self.process.returncode


def there(shell: Shell, device: int) -> str:
    """The device's directory, once the guest has found it."""
    shell.run(f"until {PLACE.format(device=device)} | grep -q .; do usleep 10000; done")
    return shell.run(PLACE.format(device=device))


def interrupts(shell: Shell, rounds: int) -> int:
    """Level interrupts of an edu device, each waited for, found, acknowledged; how many Linux's driver counted."""
    shell.run(BIND)
    place = there(shell, 0x11E8)
    shell.run(f"until ls {place}/uio >/dev/null 2>&1; do usleep 10000; done")
    node = shell.run(f"ls {place}/uio")
    before = int(shell.run(f"cat /sys/class/uio/{node}/event"))
    shell.run(f"edu_irqs {rounds} /dev/{node} {place}/resource0 {place}/config")
    return int(shell.run(f"cat /sys/class/uio/{node}/event")) - before
