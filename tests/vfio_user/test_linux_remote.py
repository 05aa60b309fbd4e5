"""vintx on vintx: Linux in one process, its device in another. It must be as if both were one."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devices.memory_backend import MemoryBackendMemfd
from support.endurance import size
from support.linux_shell import boot, needs_linux
from support.served import Served, interrupts, remote

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_linux
ROUNDS = size(200, 10_000)
MIB = size(4, 64)
KILLS = size(3, 50)
EXAMPLES = Path(__file__).parents[2] / "docs/examples"
DISK = "until [ -b /dev/nvme0n1 ]; do usleep 10000; done"


@pytest.fixture
def served(tmp_path) -> Iterator:
    made: list[Served] = []

    def make(*device: str) -> Served:
        made.append(Served(tmp_path / f"{len(made)}.sock", *device))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            assert one.end() == 0


def counted(shell) -> tuple[int, int]:
    """What Linux counted of ROUNDS level interrupts: the driver, and the interrupt's line of /proc/interrupts."""
    by_driver = interrupts(shell, ROUNDS)
    (row,) = (line.split() for line in shell.run("grep uio /proc/interrupts").splitlines())
    return by_driver, int(row[1])


def test_interrupts_are_as_many_as_in_one_process(vm, served):
    one_process = boot(vm, devices=[{"driver": "edu", "id": "e0"}])
    alone = counted(one_process)
    stats = one_process.machine.peripherals["e0"].stats()
    assert one_process.power_off() == 0
    server = served("--device", "edu")
    assert counted(boot(vm, devices=[remote(server.path, id="e0")])) == alone == (ROUNDS, ROUNDS)
    assert stats == {"raised": ROUNDS, "acked": ROUNDS}


@pytest.mark.parametrize("shared", [True, False], ids=["shared-memory", "memory-by-message"])
def test_file_system_on_an_nvme_in_another_process_outlives_its_server(vm, served, tmp_path, shared):
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate((2 * MIB + 8) << 20)
    server = served("--device", f"nvme,serial=S1,x-image={image}")
    config = {}
    if shared:
        config["memory_backend"] = MemoryBackendMemfd.create("m0", {"size": 256 << 20, "share": True}, False, None)
    shell = boot(vm, devices=[remote(server.path, id="n0")], **config)
    shell.run(f"{DISK}; mke2fs -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt")
    shell.run(f"dd if=/dev/urandom of=/mnt/file bs=1M count={MIB} 2>/dev/null; sync")
    known = shell.run("sha1sum </mnt/file")
    shell.run("umount /mnt")
    assert shell.run("dmesg | grep -c 'nvme.*\\(timeout\\|invalid\\|mismatch\\)'", status=1) == "0"

    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    shell.guest.wait_event("VFIO_USER_DISCONNECTED", device="n0")
    shell.guest.qmp("device_del", id="n0")
    shell.guest.wait_event("DEVICE_DELETED", device="n0")
    server.start()
    shell.guest.qmp("device_add", **remote(server.path, id="n1"))
    shell.run("until [ -b /dev/nvme0n1 ] || [ -b /dev/nvme1n1 ]; do usleep 10000; done; mount /dev/nvme?n1 /mnt")
    assert shell.run("sha1sum </mnt/file") == known
    shell.run("umount /mnt")


def test_driver_that_waits_for_an_interrupt_goes_on_each_time_the_server_was_killed_and_returned(vm, served):
    server = served(f"{EXAMPLES}/thermometer.py:Thermometer,period-us=10000")
    shell = boot(vm, devices=[remote(server.path, id="t0", **{"x-reconnect-ms": 20})])
    shell.run("set -- 1; " + (EXAMPLES / "thermometer.sh").read_text())
    shell.start("while :; do dd bs=4 count=1 <&3 2>/dev/null | hexdump -e '\"alarm %d\\n\"'; go_on; done")
    shell.wait("^alarm")
    for _ in range(KILLS):
        server.end(signal.SIGKILL)
        shell.guest.wait_event("VFIO_USER_DISCONNECTED", device="t0")
        server.start()
        shell.guest.wait_event("VFIO_USER_CONNECTED", device="t0")
        shell.guest.events.clear()
        shell.wait("^alarm")  # may have been on its way
        shell.wait("^alarm")
    assert shell.guest.qmp("query-status")["status"] == "running"
