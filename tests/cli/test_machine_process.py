"""A machine as a process ends with who watches it, however that ends."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interrupts import hear_interrupts
from vmm.cli import process
from vmm.cli.process import GuestLost, MachineProcess

PATIENCE_S = 60
NONE = [sys.executable, "-m", "vmm.cli.system", "-M", "none", "-display", "none", "-nodefaults"]
WAITS = "import signal; signal.pause()"
WATCHER = """
import asyncio, signal, sys
from vmm.cli.process import MachineProcess

async def main():
    async with MachineProcess([sys.executable, "-c", %r], monitor=False) as vm:
        print(vm._process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd_open(2) to watch a stranger's end with")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_machine_does_not_outlive_who_watches_it(how):
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER % WAITS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    )
    assert watcher.stdout is not None
    machine = os.pidfd_open(int(watcher.stdout.readline()))
    try:
        watcher.send_signal(how)
        watcher.communicate(timeout=PATIENCE_S)
        assert select.select([machine], [], [], PATIENCE_S)[0], "the machine runs on"
    finally:
        watcher.kill()
        os.close(machine)


def test_machine_that_is_given_up_at_its_start_is_ended():
    async def give_up() -> MachineProcess:
        vm = MachineProcess([sys.executable, "-c", WAITS])  # never opens a monitor
        starting = asyncio.ensure_future(vm.__aenter__())
        while not hasattr(vm, "_reader"):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return vm

    vm = asyncio.run(give_up())
    assert vm._process.returncode == -signal.SIGTERM
    assert not Path(vm._folder.name).exists()


def test_machine_that_ends_before_its_monitor_is_there_says_why():
    async def start() -> None:
        async with MachineProcess([sys.executable, "-c", "raise SystemExit('no such board')"]):
            raise AssertionError

    with pytest.raises(GuestLost, match=r"(?s)ended before the monitor's socket.*no such board"):
        asyncio.run(start())


async def _stopped(vm: MachineProcess) -> None:
    async with vm:
        vm._process.send_signal(signal.SIGSTOP)
        await vm.qmp("query-status")


def test_machine_that_hangs_is_not_waited_for_and_ends(monkeypatch):
    monkeypatch.setattr(process, "ANSWER_S", 0.2)
    monkeypatch.setattr(process, "ENDING_S", 0.1)
    vm = MachineProcess(NONE)
    monkeypatch.setattr(vm, "_connect", lambda _socket: _connect_patiently(vm, _socket))
    with pytest.raises(GuestLost, match=r"no answer to query-status after 0\.2 s"):
        asyncio.run(_stopped(vm))
    assert vm._process.returncode == -signal.SIGKILL


async def _connect_patiently(vm: MachineProcess, socket: str) -> None:
    answer, process.ANSWER_S = process.ANSWER_S, PATIENCE_S
    try:
        await MachineProcess._connect(vm, socket)
    finally:
        process.ANSWER_S = answer


def test_monitor_that_does_not_greet_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(process, "ANSWER_S", 0.2)
    listens = (
        "import signal, socket, sys; s = socket.socket(socket.AF_UNIX); "
        "s.bind(sys.argv[-1].split(',')[0].removeprefix('unix:')); s.listen(); signal.pause()"
    )

    async def start() -> None:
        async with MachineProcess([sys.executable, "-c", listens]):
            raise AssertionError

    with pytest.raises(GuestLost, match=r"no greeting of the monitor after 0\.2 s"):
        asyncio.run(start())


def test_name_of_the_monitor_is_gone_once_it_is_connected():
    async def start() -> bool:
        async with MachineProcess(NONE) as vm:
            await vm.qmp("query-status")
            return Path(vm._folder.name).exists()

    assert asyncio.run(start()) is False
