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

    def make(device: str) -> Served:
        made.append(Served(tmp_path / f"{len(made)}.sock", "--device", device))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            assert one.end() == 0


@pytest.mark.parametrize("board", ["pc", "q35"])
def test_bare_metal_guest_has_every_interrupt_of_a_served_edu(board, served):
    server = served("edu")
    options = (*MEMORY, *DEBUG_EXIT, "-kernel", str(guest_images.path("intx_loop")), "-append", "n=1000 devices=1")
    with QemuPeer(board, *options, devices=(remote(server.path),)) as peer:
        found = peer.wait_for(lambda: guest_images.INTX_LOOP_DEVICE.search(peer.serial), "line about the device")
        assert (found["raised"], found["handled"]) == ("1000", "1000")
        assert peer.process.wait() == guest_images.EXIT_PASSED << 1 | 1


@needs_guest
@pytest.mark.parametrize("board", ["pc", "q35"])
def test_linux_has_every_interrupt_after_a_replug_and_after_the_server_was_killed(board, served):
    server = served("edu")
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


@needs_guest
@pytest.mark.parametrize(
    ("board", "memory"),
    [("pc", MEMORY), ("q35", MEMORY), ("pc", ("-m", "256M"))],
    ids=["pc", "q35", "memory-by-message"],
)
def test_linux_keeps_a_file_system_on_a_served_nvme(board, memory, served, tmp_path):
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate((2 * MIB + 8) << 20)
    server = served(f"nvme,serial=S1,x-image={image}")
    where = {"bus": "rp"} if board == "q35" else {}
    ports = ROOT_PORT if where else ()
    peer, shell = boot(board, *memory, *ports, devices=(remote(server.path, id="vu0", **where),))
    with peer:
        disk = "until [ -b /dev/nvme0n1 ]; do usleep 10000; done"
        shell.run(f"{disk}; mke2fs -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt")
        shell.run(f"dd if=/dev/urandom of=/mnt/file bs=1M count={MIB} 2>/dev/null; sync")
        known = shell.run("sha1sum </mnt/file")
        shell.run("umount /mnt")
        peer.unplug("vu0")
        assert server.end() == 0
        server.start()
        peer.qmp("device_add", **remote(server.path, id="vu1", **where))
        shell.run(f"{disk}; mount /dev/nvme0n1 /mnt")
        assert shell.run("sha1sum </mnt/file") == known
        shell.run("umount /mnt")
        assert shell.run("dmesg | grep -c 'nvme.*\\(timeout\\|invalid\\|mismatch\\)'", status=1) == "0"
