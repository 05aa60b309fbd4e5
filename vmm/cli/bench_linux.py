"""What Linux takes: the guest of `make guests`, the same kernel and initrd on both machines.

A machine is timed from outside, by when its lines arrive: no clock of a guest is asked. Without that guest these
figures are left out, and `bench` says why.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cli.process import GuestLost, MachineProcess

if TYPE_CHECKING:
    from vmm.cli.bench_figures import Subject

PATIENCE_S = 120
BOARD = ("-M", "pc", "-accel", "tcg", "-smp", "2", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot")
SYSCALLS = 200_000
PROCESSES = 300
READS = 3_000
CYCLES = 20
SLOT = 5
DEVICE = f"/sys/bus/pci/devices/0000:00:{SLOT:02x}.0"
OFF = "#!/bin/busybox sh\nexec busybox poweroff -f\n"
WORK = f"""#!/bin/busybox sh
until [ -b /dev/nvme0n1 ]; do usleep 10000; done
echo bench: syscalls
dd if=/dev/zero of=/dev/null bs=1 count={SYSCALLS // 2} 2>/dev/null
echo bench: processes
i=0; while [ $i -lt {PROCESSES} ]; do /bin/busybox true; i=$((i+1)); done
echo bench: reads
dd if=/dev/nvme0n1 of=/dev/null bs=4k count={READS} iflag=direct 2>/dev/null
echo bench: over
exec busybox poweroff -f
"""
PLUG = f"""#!/bin/busybox sh
echo bench: ready
while :; do
  until [ -e {DEVICE}/irq ]; do usleep 500; done; echo bench: here
  until [ ! -e {DEVICE} ]; do usleep 500; done; echo bench: gone
done
"""
ROWS = (
    ("linux-init", "Linux, -smp 2: exec to init", "ms"),
    ("linux-off", "the same: exec to power-off", "ms"),
    ("linux-syscalls", "system calls (read, write) a second", "/s"),
    ("linux-processes", "fork, exec, exit and wait a second", "/s"),
    ("linux-nvme", "4 KiB reads of an NVMe, one at a time", "/s"),
    ("linux-hotplug", "device_add and device_del of edu, with acpiphp", "/s"),
)


def lacking() -> str:
    """Why there is nothing to measure; empty if there is."""
    from guest_images import linux

    try:
        linux.find()
    except linux.GuestMissing as error:
        return str(error)
    return ""


class _Files:
    """A folder with an initrd for `script`, and an image."""

    def __init__(self, script: str) -> None:
        from guest_images import linux
        from guest_images.linux.initrd import overlay

        here = linux.find()
        self._folder = tempfile.TemporaryDirectory(prefix="vintx-")
        initrd = Path(self._folder.name) / "initrd.gz"
        initrd.write_bytes(overlay(here.initrd, {"run.sh": script}))
        self.image = Path(self._folder.name) / "disk"
        with self.image.open("wb") as file:
            file.truncate(READS * 4096)
        self.boot = ("-kernel", str(here.kernel), "-initrd", str(initrd), "-append", "console=ttyS0")

    def nvme(self, ours: bool) -> tuple[str, ...]:
        """The options that give the machine an NVMe controller."""
        if ours:
            return ("-device", f"nvme,serial=bench,x-image={self.image}")
        return ("-drive", f"if=none,id=d0,format=raw,file={self.image}", "-device", "nvme,serial=bench,drive=d0")

    def close(self) -> None:
        """Remove them."""
        self._folder.cleanup()


def _timed(subject: Subject, script: str, disk: bool, marks: tuple[str, ...]) -> list[float]:
    """Seconds since exec at which each of the lines came, and at which the process ended."""
    files = _Files(script)
    began = time.perf_counter()
    options = files.nvme(subject.ours) if disk else ()
    said: list[str] = []
    times: list[float] = []
    try:
        with subprocess.Popen(
            [subject.program, *BOARD, *files.boot, *options, "-serial", "stdio"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if len(times) < len(marks) and marks[len(times)] in line:
                    times.append(time.perf_counter() - began)
        times.append(time.perf_counter() - began)
    finally:
        files.close()
    if len(times) <= len(marks) or process.returncode:
        raise GuestLost(f"{subject.name}: Linux ended with status {process.returncode}", "".join(said))
    return times


def boot(subject: Subject) -> dict[str, float]:
    """From exec to the first line of init, and to the end of the process."""
    if lacking():
        return {}
    init, off = _timed(subject, OFF, False, ("vintx: init reached",))
    return {"linux-init": init * 1e3, "linux-off": off * 1e3}


def work(subject: Subject) -> dict[str, float]:
    """What user space does most."""
    if lacking():
        return {}
    marks = tuple(f"bench: {name}" for name in ("syscalls", "processes", "reads", "over"))
    syscalls, processes, reads, over, _ = _timed(subject, WORK, True, marks)
    return {
        "linux-syscalls": SYSCALLS / (processes - syscalls),
        "linux-processes": PROCESSES / (reads - processes),
        "linux-nvme": READS / (over - reads),
    }


def hotplug(subject: Subject) -> dict[str, float]:
    """From device_add to what the guest sees, from device_del to DEVICE_DELETED, and again."""
    return {} if lacking() else asyncio.run(_hotplug(subject))


async def _hotplug(subject: Subject) -> dict[str, float]:
    files = _Files(PLUG)
    try:
        async with MachineProcess([subject.program, *BOARD, *files.boot]) as machine:
            await machine.line("bench: ready", PATIENCE_S)
            began = time.perf_counter()
            for _ in range(CYCLES):
                seen = len(machine.lines)
                await machine.qmp("device_add", driver="edu", id="e0", addr=f"{SLOT:#x}")
                await machine.line("bench: here", start=seen)
                seen = len(machine.lines)
                await machine.qmp("device_del", id="e0")
                await machine.line("bench: gone", start=seen)
                await machine.deleted("e0")
            return {"linux-hotplug": CYCLES / (time.perf_counter() - began)}
    finally:
        files.close()


def note() -> str:
    """What to tell below the table."""
    return f"Linux was not measured: {lacking()}" if lacking() else ""
