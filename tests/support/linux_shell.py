"""Debian's Linux as a guest of the fixture `vm`: booted to a shell on the serial port, which tests type into."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import pytest

from guest_images import linux

if TYPE_CHECKING:
    from vmm.pytest_plugin import Guest

GIB = 1 << 30
APPEND = "console=ttyS0 panic=-1"


@functools.cache
def lacking(name: str = linux.DEFAULT) -> str:
    """Why there is no such guest here; empty if there is."""
    try:
        linux.find(name)
    except linux.GuestMissing as error:
        return str(error)
    return ""


needs_linux = [pytest.mark.linux, pytest.mark.skipif(bool(lacking()), reason=lacking())]
"""For `pytestmark`: the tests of a module want the Linux guest."""


class Shell:
    """A guest's shell. `run` types a command and gives what it printed."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.machine = guest.machine
        self._seen = 0
        self._number = 0

    def wait(self, pattern: str) -> re.Match[str]:
        """Let the machine run until the guest has written this, behind all that was read before."""
        wanted = re.compile(pattern, re.MULTILINE)
        match = self.guest.wait_for(lambda: wanted.search(self.guest.serial, self._seen), f"serial output {pattern!r}")
        self._seen = match.end()
        return match

    def begin(self) -> None:
        """Wait for the prompt; from then on what is typed is not echoed, and read by a shell that shows no prompt.

        Its output is no terminal, or it would be interactive. Such a busybox reads its line with fgets where nothing is
        echoed, takes the end of a job in the background for the end of the file, and leaves.
        """
        self.wait(linux.PROMPT)
        self.guest.type("stty -echo; dmesg -n 1; echo si''lent; sh -s 2>&1 | cat\n")
        self.wait("^silent$")
        self.run("true")

    def start(self, command: str) -> str:
        """Type a command and do not wait; the pattern of its end, for `wait`. Group 1 is the exit status."""
        self._number += 1
        self.guest.type(f'{{ {command}\n}}; echo "<{self._number}:$?>"\n')
        return rf"<{self._number}:(\d+)>\n"

    def run(self, command: str, status: int | None = 0) -> str:
        """Type a command and let it end; its output. `status` None: any exit status will do."""
        began = self._seen
        match = self.wait(self.start(command))
        output = self.guest.serial[began : match.start()].strip("\n")
        assert status is None or int(match[1]) == status, f"{command}: exit status {match[1]}\n{output}"
        return output

    def forget(self) -> None:
        """The guest's `forget` was called: what is written next is the first."""
        self._seen = len(self.guest.serial)

    def power_off(self) -> int:
        """End the guest from inside; the exit status of its process."""
        self.guest.type("poweroff -f\n")
        return self.guest.wait_exit()


def boot(vm, append: str = "quiet", name: str = linux.DEFAULT, listen=(), **config) -> Shell:
    """A machine with Linux at its prompt. `name`: which guest of the cache. `listen`: sinks for its trace."""
    here = linux.find(name)
    config.setdefault("ram_size", 256 << 20)
    config.setdefault("trace", False)
    devices = config.pop("devices", ())
    kernel = config.pop("kernel", here.kernel)
    guest = vm("pc", kernel=kernel, initrd=str(here.initrd), append=f"{APPEND} {append}", **config)
    for sink in listen:
        guest.machine.trace.listen(sink)
    for given in devices:
        guest.machine.device_add(given)
    shell = Shell(guest)
    shell.begin()
    return shell


def interrupts(shell: Shell) -> dict[str, tuple[int, str, str]]:
    """/proc/interrupts: each row's sum over the CPUs, its chip and handling, and its actions."""
    table = {}
    header, *rows = shell.run("cat /proc/interrupts").splitlines()
    cpus = len(header.split())
    for row in rows:
        name, _, rest = row.strip().partition(":")
        words = rest.split(None, cpus)
        if name.isdigit():
            _chip, handling, actions = words[cpus].split(None, 2)
            table[name] = (sum(map(int, words[:cpus])), handling, actions)
    return table
