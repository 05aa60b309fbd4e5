"""Work that shows a CPU's or a memory's errors as wrong results: pipelines, processes, code that is rewritten."""

from __future__ import annotations

import pytest

from support.endurance import size
from support.linux_shell import boot, lacking, needs_linux
from vmm import pytest_plugin

pytestmark = needs_linux
GIB = 1 << 30
ROUNDS = size(1, 20)
STRESS = """
work() {
  head -c %(size)d /dev/urandom > /tmp/$1; a=$(sha256sum < /tmp/$1)
  for i in $(seq %(rounds)d); do
    [ "$(gzip -1 < /tmp/$1 | gunzip | sha256sum)" = "$a" ] || echo "error: pipeline $1"
    code_alias %(aliases)d || echo "error: code_alias $1 gave $?"
    for j in $(seq %(processes)d); do
      [ "$(/bin/busybox echo $j | /bin/busybox cat)" = $j ] || echo "error: process $1"
    done
  done
}
for n in $(seq %(jobs)d); do work $n & done; wait; echo over
"""


SIZES = {
    "rounds": ROUNDS,
    "size": size(200_000, 4_000_000),
    "aliases": size(1_000, 20_000),
    "processes": size(10, 100),
}


def stress(shell, jobs):
    """What was wrong, and "over" at the end."""
    return shell.run((STRESS % {"jobs": jobs, **SIZES}).strip())


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_results_are_right_with_as_many_jobs_as_cpus(vm, cpus, monkeypatch):
    monkeypatch.setattr(pytest_plugin, "PATIENCE", size(120, 1200))
    shell = boot(vm, cpus=cpus)
    assert stress(shell, max(2, cpus)) == "over"
    assert shell.run("dmesg | grep -ciE 'BUG:|call trace|segfault|traps:'", status=1) == "0"
    assert shell.power_off() == 0


def test_memory_above_4_gib_holds_data_programs_and_what_devices_write(vm, tmp_path, monkeypatch):
    monkeypatch.setattr(pytest_plugin, "PATIENCE", size(120, 1200))
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    disk = {"driver": "nvme", "id": "n0", "serial": "v1", "x-image": str(image)}
    shell = boot(vm, cpus=2, ram_size=6 * GIB, devices=[disk])
    total = int(shell.run("grep MemTotal /proc/meminfo").split()[1])
    assert 5.7 * GIB < total << 10 < 6 * GIB
    assert "100000000-1bfffffff : System RAM" in shell.run("cat /proc/iomem")
    # A program that the controller has written into memory, not the CPU: Linux takes pages above 4 GiB first.
    shell.run("mke2fs -F /dev/nvme0n1 >/dev/null; mount -t ext4 /dev/nvme0n1 /mnt; cp /bin/busybox /mnt/busybox")
    shell.run("umount /mnt; echo 3 > /proc/sys/vm/drop_caches; mount -t ext4 /dev/nvme0n1 /mnt")
    assert shell.run("/mnt/busybox echo from the disk") == "from the disk"
    assert shell.run("/mnt/busybox sha256sum < /mnt/busybox") == shell.run("sha256sum < /bin/busybox")
    assert stress(shell, 2) == "over"
    assert shell.power_off() == 0


@pytest.mark.parametrize("suite", ["trixie", "sid"])
def test_a_newer_kernel_of_debian_boots_to_the_same_shell(vm, suite, monkeypatch):
    if lacking(suite):
        pytest.skip(lacking(suite))
    monkeypatch.setattr(pytest_plugin, "PATIENCE", 120)
    shell = boot(vm, name=suite, cpus=2, devices=[{"driver": "edu", "id": "e0", "addr": "5"}])
    major = int(shell.run("uname -r").split(".")[0])
    assert major >= 6
    shell.guest.qmp("device_del", id="e0")
    shell.guest.wait_event("DEVICE_DELETED", device="e0")
    assert shell.power_off() == 0
