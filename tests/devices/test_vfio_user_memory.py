"""Guest RAM in the hands of a server: by descriptor if it can be, and the CPU engine hears of every write."""

from __future__ import annotations

import os

import pytest

import guest_images
from devices.edu import REG_DMA_CMD, REG_DMA_COUNT, REG_DMA_DST, REG_DMA_SRC, Edu
from devices.memory_backend import MemoryBackendMemfd
from devices.pci_testdev import PciTestdev
from support.vfio_board import BAR
from support.vfio_user_board import RemoteBoard, ServerThread
from vmm.errors import ConfigError
from vmm.memory import FOUR_GIB, GuestMemory
from vmm.shared_memory import memfd

BUFFER = 0x40000
PAGE = 4096
RAM = 1 << 20


@pytest.fixture
def serve(tmp_path):
    made = []

    def start(device):
        made.append(ServerThread(device, tmp_path / "socket"))
        return made[-1].server

    yield start
    for one in made:
        one.close()


@pytest.fixture
def attach(serve):
    """A board whose RAM is in a memfd, with an edu; `on_write` as of an engine."""
    made = []

    def make(size=RAM, on_write=None, backed=True):
        board = RemoteBoard()
        fd = memfd("ram", size) if backed else -1
        board.memory = GuestMemory(size, fd)
        board.memory.on_write = on_write
        server = serve(Edu(**{"x-dma-delay-us": 0, "dma_mask": 2**64 - 1}))
        device = board.attach(server.path)
        board.enable(device)
        made.append((device, fd))
        return board, device, server

    yield make
    for device, fd in made:
        device.unrealize()
        if fd >= 0:
            os.close(fd)


def copy(board, source, destination, count, to_memory, interrupt=False):
    """Let edu copy, and wait until it says that it is done."""
    for register, value in ((REG_DMA_SRC, source), (REG_DMA_DST, destination), (REG_DMA_COUNT, count)):
        board.mmio.write(BAR + register, 8, value)
    board.mmio.write(BAR + REG_DMA_CMD, 8, 1 | to_memory << 1 | interrupt << 2)
    while board.mmio.read(BAR + REG_DMA_CMD, 8) & 1:
        pass


@pytest.mark.parametrize("backed", [True, False], ids=["by descriptor", "by message"])
def test_device_reads_and_writes_guest_ram(attach, backed):
    board, device, server = attach(backed=backed)
    assert device.remote.offer.shared == backed
    assert all((mapping.fd >= 0) == backed for mapping in server.memory._ranges)
    board.memory.write(0x1FFE, b"across pages")
    copy(board, 0x1FFE, BUFFER, 12, to_memory=False)
    copy(board, BUFFER, RAM - 12, 12, to_memory=True)
    assert board.memory.read(RAM - 12, 12) == b"across pages"


def test_engine_hears_of_the_pages_that_the_device_wrote_and_of_no_others(attach):
    heard = []
    board, device, _ = attach(on_write=lambda address, length: heard.append((address, length)))
    assert device.remote.offer.shared
    heard.clear()
    copy(board, BUFFER, 0x3FFC, 8, to_memory=True)
    assert heard == [(0x3000, 2 * PAGE)]
    heard.clear()
    copy(board, BUFFER, 0x8000, 1, to_memory=True)
    copy(board, 0x9000, BUFFER, 1, to_memory=False)
    assert heard == [(0x8000, PAGE)]


def test_engine_has_heard_of_the_data_before_the_interrupt_arrives(attach):
    heard = []
    board, device, _ = attach(on_write=lambda address, length: heard.append((address, length)))
    heard.clear()
    for register, value in ((REG_DMA_SRC, BUFFER), (REG_DMA_DST, 0x5000), (REG_DMA_COUNT, 4), (REG_DMA_CMD, 7)):
        board.mmio.write(BAR + register, 8, value)
    board.turn_until(device, lambda: board.rig.irr(10))
    assert heard == [(0x5000, PAGE)]


def test_ram_above_4_gib_is_reached_by_descriptor(attach):
    size = FOUR_GIB + (1 << 20)
    board, _, server = attach(size)
    assert len(server.memory) == 2
    board.memory.write(FOUR_GIB + 0x100, b"above")
    copy(board, FOUR_GIB + 0x100, BUFFER, 5, to_memory=False)
    copy(board, BUFFER, 0x100, 5, to_memory=True)
    assert board.memory.read(0x100, 5) == b"above"


def test_server_that_does_not_log_gets_messages_and_the_engine_hears_of_them(attach, monkeypatch):
    monkeypatch.setattr("vmm.vfio_user.features.MAX_LOG_PAGE", 0)
    heard = []
    board, device, _ = attach(on_write=lambda address, length: heard.append((address, length)))
    assert not device.remote.offer.shared
    copy(board, BUFFER, 0x3FFC, 8, to_memory=True)
    assert (0x3FFC, 8) in heard


def test_memory_bar_of_pci_testdev_is_mapped_by_who_takes_it(serve):
    server = serve(PciTestdev(membar=1 << 16, **{"membar-backed": True}))
    board = RemoteBoard()
    device = board.attach(server.path)
    device.config_write(0x18, 4, BAR)
    device.config_write(4, 2, 2)
    board.mmio.write(BAR + 0x8000, 8, 0x1122334455667788)
    assert server.device.bars[2].region.read(0x8004, 4) == 0x11223344
    assert device._mapped.keys() == {2}
    device.unrealize()


def test_machine_whose_ram_is_a_memfd_shares_it_and_has_every_interrupt(vm, serve):
    backend = MemoryBackendMemfd.create("m0", {"size": 64 << 20}, False, None)
    backend.in_use = "machine"
    remote = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": serve(Edu()).path}}
    devices = [{"driver": "isa-debug-exit", "iobase": 0xF4, "iosize": 4}, remote]
    kernel = guest_images.path("intx_loop")
    guest = vm("pc", kernel=kernel, append="n=50", ram_size=64 << 20, memory_backend=backend, devices=devices)
    with pytest.raises(ConfigError, match="in use"):
        guest.machine.object_del("m0")
    guest.wait_exit()
    counts = guest_images.INTX_LOOP_DEVICE.search(guest.serial)
    assert (counts["raised"], counts["handled"], counts["spurious"]) == ("50", "50", "0")
    guest.machine.memory.write(0x9000, b"shared")
    assert os.pread(backend.fd, 6, 0x9000) == b"shared"


@pytest.mark.parametrize(
    ("properties", "complaint"),
    [
        ({"size": 5000}, "multiple of"),
        ({"size": 1 << 60}, "m0"),
        ({"size": 4096, "hugetlb": True}, "'memory-backend-memfd.hugetlb' not found"),
    ],
)
def test_memfd_that_cannot_be_is_an_error_that_says_why(properties, complaint):
    with pytest.raises(ConfigError, match=complaint):
        MemoryBackendMemfd.create("m0", properties, False, None)
