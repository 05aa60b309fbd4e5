"""Our server, a real QEMU: Linux in it has the devices that Python serves, and neither dies with the other."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

import guest_images
from support.endurance import size
from support.linux_shell import needs_linux
from support.qemu_peer import MEMORY, QemuPeer, boot, lacking_qemu
from support.served import Served, interrupts, remote, there

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.skipif(bool(lacking_qemu()), reason=lacking_qemu())
needs_guest = needs_linux[1]
ROUNDS = size(200, 1000)
MIB = size(4, 64)
DEBUG_EXIT = ("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4")
ROOT_PORT = ("-device", "pcie-root-port,id=rp,chassis=1")


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


@pytest.mark.parametrize("board", ["pc", "q35"])
def test_bare_metal_guest_has_every_interrupt_of_a_served_edu(board, served):
    server = served("--device", "edu")
    options = (*MEMORY, *DEBUG_EXIT, "-kernel", str(guest_images.path("intx_loop")), "-append", "n=1000 devices=1")
    with QemuPeer(board, *options, devices=(remote(server.path),)) as peer:
        found = peer.wait_for(lambda: guest_images.INTX_LOOP_DEVICE.search(peer.serial), "line about the device")
        assert (found["raised"], found["handled"]) == ("1000", "1000")
        assert peer.process.wait() == guest_images.EXIT_PASSED << 1 | 1


@needs_guest
@pytest.mark.parametrize("board", ["pc", "q35"])
def test_linux_has_every_interrupt_after_a_replug_and_after_the_server_was_killed(board, served):
    server = served("--device", "edu")
    where = {"bus": "rp"} if board == "q35" else {}
    ports = ROOT_PORT if where else ()
    peer, shell = boot(board, *MEMORY, *ports, devices=(remote(server.path, id="vu0", **where),))
    with peer:
        assert interrupts(shell, ROUNDS) == ROUNDS
        peer.unplug("vu0")
        peer.qmp("device_add", **remote(server.path, id="vu1", **where))
        assert interrupts(shell, ROUNDS) == ROUNDS

        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        place = there(shell, 0x11E8)
        # A server that is gone reads as all ones, and the guest lives on.
        assert shell.run(f"dd if={place}/config bs=4 count=1 2>/dev/null | hexdump -e '4/1 \"%02x\"'") == "ffffffff"
        peer.unplug("vu1")
        server.start()
        peer.qmp("device_add", **remote(server.path, id="vu2", **where))
        assert interrupts(shell, ROUNDS) == ROUNDS


NVME = ("nvme0n1", "--device", "nvme,serial=S1,drive=d0")
VIRTIO = ("vda", "--device", "virtio-blk-pci,drive=d0")
BY_MESSAGE = ("-m", "256M")
"""Memory that no other process can map: what a device does there goes by message."""


@needs_guest
@pytest.mark.parametrize(
    ("disk", "board", "memory"),
    [
        (NVME, "pc", MEMORY),
        (NVME, "q35", MEMORY),
        (NVME, "pc", BY_MESSAGE),
        (VIRTIO, "q35", MEMORY),
        (VIRTIO, "pc", BY_MESSAGE),
    ],
    ids=["nvme-pc", "nvme-q35", "nvme-by-message", "virtio-q35", "virtio-by-message"],
)
def test_linux_keeps_a_file_system_on_a_served_disk(disk, board, memory, served, tmp_path):
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate((2 * MIB + 8) << 20)
    name, *device = disk
    server = served(*device, "--drive", f"file={image},if=none,id=d0")
    where = {"bus": "rp"} if board == "q35" else {}
    ports = ROOT_PORT if where else ()
    peer, shell = boot(board, *memory, *ports, devices=(remote(server.path, id="vu0", **where),))
    with peer:
        ready = f"until [ -b /dev/{name} ]; do usleep 10000; done"
        shell.run(f"{ready}; mke2fs -q /dev/{name} >/dev/null && mount /dev/{name} /mnt")
        shell.run(f"dd if=/dev/urandom of=/mnt/file bs=1M count={MIB} 2>/dev/null; sync")
        known = shell.run("sha1sum </mnt/file")
        shell.run("umount /mnt")
        peer.unplug("vu0")
        assert server.end() == 0
        server.start()
        peer.qmp("device_add", **remote(server.path, id="vu1", **where))
        shell.run(f"{ready}; mount /dev/{name} /mnt")
        assert shell.run("sha1sum </mnt/file") == known
        shell.run("umount /mnt")
        assert shell.run("dmesg | grep -c '\\(nvme\\|virtio\\).*\\(timeout\\|invalid\\|mismatch\\)'", status=1) == "0"


@needs_guest
def test_linux_draws_random_numbers_from_a_served_virtio_rng(served):
    server = served("--device", "virtio-rng-pci")
    peer, shell = boot("pc", *MEMORY, devices=(remote(server.path),))
    with peer:
        assert shell.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
        drawn = {shell.run("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | sha1sum") for _ in range(4)}
        assert len(drawn) == 4
