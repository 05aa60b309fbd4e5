"""Linux' virtio drivers on the pin: they bind, work, share their lines, and come and go."""

from __future__ import annotations

import hashlib

import pytest

from support.linux_shell import boot, interrupts, needs_linux
from vmm.block_graph import BlockGraph
from vmm.chardev import MemoryBackend
from vmm.netdev import HubPort

pytestmark = needs_linux
WAIT = "while [ {} ]; do usleep 10000; done"
CYCLES = 3


def drives(folder, **sizes):
    blocks = BlockGraph()
    for name, size in sizes.items():
        path = folder / f"{name}.img"
        path.write_bytes(hashlib.sha256(name.encode()).digest() * (size // 32))
        blocks.add_drive(name, {"driver": "raw", "file": {"driver": "file", "filename": str(path)}})
    return blocks


@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
def test_disk_keeps_a_file_system_and_random_numbers_flow(vm, tmp_path, legacy):
    devices = [
        {
            "driver": "virtio-blk-pci",
            "id": "b0",
            "drive": "d0",
            "serial": "vintx-1",
            "addr": "4",
            "disable-modern": legacy,
        },
        {"driver": "virtio-rng-pci", "id": "r0", "addr": "8", "disable-modern": legacy},
    ]
    shell = boot(vm, devices=devices, blocks=drives(tmp_path, d0=16 << 20))
    shell.run(WAIT.format("! -b /dev/vda"))
    assert shell.run("cat /sys/block/vda/serial") == "vintx-1"
    shell.run("mke2fs -F /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt")
    shell.run("head -c 2000000 /dev/urandom > /mnt/x && md5sum /mnt/x > /tmp/sum")
    shell.run("umount /mnt && echo 3 > /proc/sys/vm/drop_caches && mount -t ext4 /dev/vda /mnt && md5sum -c /tmp/sum")
    shell.run("umount /mnt")
    assert shell.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
    assert len(shell.run("head -c 64 /dev/hwrng | od -An -tx1 | tr -d ' \\n'")) == 128
    rows = {actions: (count, handling) for count, handling, actions in interrupts(shell).values()}
    [(shared, (count, handling))] = [(a, row) for a, row in rows.items() if "virtio" in a]
    assert (shared, handling.rpartition("-")[2]) == ("virtio0, virtio1", "fasteoi")
    assert count > 50
    assert shell.power_off() == 0


def test_port_carries_bytes_both_ways_and_a_card_its_frames(vm):
    channel, hub = MemoryBackend("c0"), []
    netdevs = {name: HubPort(name, hub) for name in ("n0", "n1")}
    devices = [
        {"driver": "virtio-serial-pci", "id": "v0"},
        {"driver": "virtserialport", "bus": "v0.0", "chardev": "c0", "name": "org.example.0"},
        *({"driver": "virtio-net-pci", "netdev": name} for name in netdevs),
    ]
    shell = boot(vm, devices=devices, netdevs=netdevs, chardevs={"c0": channel})
    shell.run(WAIT.format("! -e /sys/class/virtio-ports/vport0p1/name -o ! -d /sys/class/net/eth1"))
    assert shell.run("cat /sys/class/virtio-ports/vport0p1/name") == "org.example.0"
    channel.feed(b"from the host\n")
    assert shell.run("head -n 1 /dev/vport0p1") == "from the host"
    shell.run("echo from the guest > /dev/vport0p1")
    assert channel.take() == b"from the guest\n"
    shell.run("ip link set eth1 up && ip link set eth0 up && ip addr add 10.0.0.1/24 dev eth0")
    shell.run("ping -c 1 -W 1 10.0.0.2", status=None)
    shell.run(WAIT.format("$(cat /sys/class/net/eth1/statistics/rx_packets) = 0"))
    assert shell.power_off() == 0


def test_devices_come_and_go_and_leave_nothing(vm, tmp_path):
    shell = boot(vm, blocks=drives(tmp_path, d0=1 << 20))
    guest, machine = shell.guest, shell.machine
    digest = hashlib.md5((tmp_path / "d0.img").read_bytes(), usedforsecurity=False).hexdigest()
    before = machine.ledger.snapshot()
    for _ in range(CYCLES):
        guest.qmp("device_add", driver="virtio-blk-pci", id="b0", drive="d0")
        guest.qmp("device_add", driver="virtio-rng-pci", id="r0")
        shell.run(WAIT.format("! -b /dev/vda"))
        assert shell.run("md5sum < /dev/vda").split()[0] == digest
        for name in ("b0", "r0"):
            guest.qmp("device_del", id=name)
            guest.wait_event("DEVICE_DELETED", device=name)
        shell.run(WAIT.format("-e /dev/vda"))
        assert machine.ledger.difference(before) == ([], [])
    assert shell.run("dmesg | grep -c 'nobody cared'", status=None) == "0"
    assert shell.power_off() == 0
