"""A real QEMU without a guest, by its test protocol, on served devices: memory that it maps, messages."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from devices.edu import REG_IRQ_RAISE, Edu
from devices.pci.msi import MSI_ENABLE
from devices.pci_testdev import PciTestdev
from support.qemu_peer import lacking_qemu, qemu
from support.vfio_user_board import ServerThread
from vmm.trace import Recording
from vmm.vfio_user import protocol as p
from vmm.vfio_user.events import VfioUserRegionRead, VfioUserRegionWrite

pytestmark = pytest.mark.skipif(bool(lacking_qemu()), reason=lacking_qemu())
BAR = 0xE000_0000
MSI = 0x40
TRIGGER = p.IRQ_SET_ACTION_TRIGGER


class Qtest:
    """QEMU with the devices that servers at some paths have, from slot 4 on."""

    def __init__(self, *paths: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        argv = [str(qemu()), "-accel", "qtest", "-nodefaults", "-display", "none", "-qtest-log", "/dev/null"]
        argv += ["-chardev", f"socket,id=qtest,fd={theirs.fileno()}", "-qtest", "chardev:qtest"]
        argv += ["-machine", "pc,memory-backend=m0", "-m", "64M"]
        argv += ["-object", "memory-backend-memfd,id=m0,size=64M,share=on"]
        for slot, path in enumerate(paths, 4):
            device = {"driver": "vfio-user-pci", "addr": str(slot), "socket": {"type": "unix", "path": path}}
            argv += ["-device", json.dumps(device)]
        self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        theirs.close()
        self.file = self.socket.makefile("rw")

    def __call__(self, *words: object) -> int:
        """A command; the number that it answers with."""
        self.file.write(" ".join(str(word) for word in words) + "\n")
        self.file.flush()
        answer = self.file.readline().split()
        while answer[:1] == ["IRQ"]:
            answer = self.file.readline().split()
        assert answer[:1] == ["OK"], (words, answer)
        return int(answer[1], 0) if len(answer) > 1 else 0

    def config(self, slot: int, offset: int, value: int | None = None, width: str = "l") -> int:
        """A register of configuration space."""
        self("outl", 0xCF8, 1 << 31 | slot << 11 | offset & ~3)
        port = 0xCFC + (offset & 3)
        return self("in" + width, port) if value is None else self("out" + width, port, value)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.file.close()
        self.socket.close()


@pytest.fixture
def plugged(tmp_path):
    made = []

    def plug(device):
        server = ServerThread(device, tmp_path / "socket")
        made.append(server)
        peer = Qtest(server.path)
        made.append(peer)
        return server.server, peer

    yield plug
    for one in reversed(made):
        one.close()


def test_qemu_maps_what_a_device_offers_and_both_have_one_memory(plugged):
    server, peer = plugged(PciTestdev(membar=1 << 16, **{"membar-backed": True}))
    peer.config(4, 0x18, BAR)
    peer.config(4, 0x1C, 0)
    peer.config(4, 4, 2, "w")
    trace = Recording()
    server.trace.listen(trace)
    peer("writel", BAR + 0x8000, 0x1234_5678)
    region = server.device.bars[2].region
    assert region.read(0x8000, 4) == 0x1234_5678
    region.write(0xFFFC, 4, 0x55)
    assert peer("readl", BAR + 0xFFFC) == 0x55
    assert trace.of(VfioUserRegionRead, VfioUserRegionWrite) == []


def test_qemu_takes_messages_and_goes_back_to_the_pin(plugged):
    server, peer = plugged(Edu())
    interrupts = server.endpoint.interrupts
    peer.config(4, 0x10, BAR)
    peer.config(4, 4, 6, "w")
    assert peer.config(4, 0x34, width="b") == MSI
    assert (p.IRQ_INTX, TRIGGER, 0) in interrupts._fds
    peer.config(4, MSI + 4, 0xFEE0_0000)
    peer.config(4, MSI + 12, 0x41, "w")
    peer.config(4, MSI + 2, MSI_ENABLE, "w")
    assert (p.IRQ_MSI, TRIGGER, 0) in interrupts._fds
    assert (p.IRQ_INTX, TRIGGER, 0) not in interrupts._fds
    peer("writel", BAR + REG_IRQ_RAISE, 1)
    assert peer("readl", BAR + 0x24) == 1
    assert not server.device.intx_level
    peer.config(4, MSI + 2, 0, "w")
    assert (p.IRQ_INTX, TRIGGER, 0) in interrupts._fds
