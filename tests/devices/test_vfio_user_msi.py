"""`vfio-user-pci` with messages, memory and doorbells: a server on a thread, and a machine without a CPU."""

from __future__ import annotations

import os
from random import Random

import pytest

from devices.edu import REG_IRQ_ACK, REG_IRQ_RAISE, Edu
from devices.pci import config as cfg
from devices.pci.device import Doorbell, PciDevice
from devices.pci.msi import CAP_ID_MSI, CAP_ID_MSIX, MSI_ENABLE, MSIX_ENABLE, MSIX_FUNCTION_MASK, Msi, Msix
from support.vfio_board import BAR
from support.vfio_user import open_fds
from support.vfio_user_board import MESSAGE, RemoteBoard, ServerThread
from vmm.memory import IoRegion
from vmm.shared_memory import SharedRegion
from vmm.trace import Recording
from vmm.vfio_user.events import VfioUserRegionWrite

VECTORS = 4
BELL = 0x20
MEMORY = 0x1000


class Bells(PciDevice):
    """Every write to register 4n sends vector n; a page of memory behind the registers; a doorbell."""

    driver = "bells"
    vendor_id, device_id, class_id, interrupt_pin = 0x1234, 0x0BE1, 0x00FF, 1

    def __init__(self, id=None, **values):
        super().__init__(id, **values)
        self.rung = 0
        self.doorbells = [Doorbell(0, BELL, 4), Doorbell(0, BELL + 4, 4, 7)]

    def realize(self, board):
        super().realize(board)
        self.msi = Msi(self, VECTORS, maskable=True)
        self.msix = Msix(self, VECTORS, bar=2, table=0, pba=0x800)
        region = SharedRegion("bells", 0x2000, [(MEMORY, 0x1000)], self.read, self.write)
        self.holdings.hold("memory", "bells", region.close)
        self.register_bar(0, region)
        empty = IoRegion("bells-table", 0x1000, lambda *_: 0, lambda *_: None)
        self.register_bar(2, self.msix.wrap(empty))

    def read(self, offset, _size):
        return self.rung if offset == BELL else offset

    def write(self, offset, _size, value):
        if offset in (BELL, BELL + 4):
            self.rung += 1
        elif self.msix.enabled:
            self.msix.notify(offset // 4)
        elif self.msi.enabled:
            self.msi.notify(offset // 4)
        else:
            self.set_intx(bool(value))


@pytest.fixture
def board():
    return RemoteBoard()


@pytest.fixture
def serve(tmp_path):
    made = []

    def start(device):
        made.append(ServerThread(device, tmp_path / "socket"))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def bells(board, serve):
    device = board.attach(serve(Bells()).path)
    board.enable(device)
    yield device
    if device.holdings:
        device.unrealize()


def capability(device, cap_id):
    """Where the guest finds a capability."""
    at = device.config_read(cfg.CAPABILITY_LIST, 1)
    while device.config_read(at, 1) != cap_id:
        at = device.config_read(at + 1, 1)
        assert at
    return at


def enable_msi(device, vectors=1, data=0x40, flags=MSI_ENABLE):
    """What pci_alloc_irq_vectors does for MSI."""
    at = capability(device, CAP_ID_MSI)
    device.config_write(at + 4, 4, MESSAGE)
    device.config_write(at + 8, 4, 0)
    device.config_write(at + 12, 2, data)
    device.config_write(at + 2, 2, flags | (vectors.bit_length() - 1) << 4)
    return at


def enable_msix(device, base, vectors=VECTORS, data=0x40):
    """What pci_alloc_irq_vectors does for MSI-X: the table at `base`."""
    at = capability(device, CAP_ID_MSIX)
    device.config_write(cfg.BASE_ADDRESS_0 + 8, 4, base)
    device.config_write(at + 2, 2, MSIX_ENABLE | MSIX_FUNCTION_MASK)
    board = device.board
    for n in range(vectors):
        entry = base + 16 * n
        for offset, value in ((0, MESSAGE), (4, 0), (8, data + n), (12, 0)):
            board.mmio.write(entry + offset, 4, value)
    device.config_write(at + 2, 2, MSIX_ENABLE)
    return at


def vectors_taken(board, device):
    """All vectors that CPU 0 has to take, in the order in which it takes them."""
    board.turn(device)
    taken = []
    while (vector := board.rig.inta()) > 0:
        taken.append(vector)
        board.rig.eoi()
    return taken


# Messages.


def test_msi_of_edu_arrives_as_a_message_and_the_pin_stays_low(board, serve):
    device = board.attach(serve(Edu()).path)
    board.enable(device)
    enable_msi(device)
    assert device.mode == "MSI"
    board.write(BAR + REG_IRQ_RAISE, 1)
    assert vectors_taken(board, device) == [0x40]
    board.write(BAR + REG_IRQ_ACK, 1)
    board.write(BAR + REG_IRQ_RAISE, 2)
    assert vectors_taken(board, device) == [0x40]
    assert board.level == 0
    device.unrealize()


def test_msi_vectors_carry_their_number_and_those_not_given_share(board, bells):
    enable_msi(bells, vectors=2)
    for n in range(VECTORS):
        board.write(BAR + 4 * n, 1)
        assert vectors_taken(board, bells) == [0x40 + (n & 1)]


def test_masked_vector_of_msi_is_kept_and_comes_once_when_unmasked(board, bells):
    at = enable_msi(bells, vectors=4)
    bells.config_write(at + 16, 4, 0b0010)
    board.write(BAR + 4, 1)
    board.write(BAR + 4, 1)
    assert vectors_taken(board, bells) == []
    bells.config_write(at + 16, 4, 0)
    assert vectors_taken(board, bells) == [0x41]
    assert vectors_taken(board, bells) == []


def test_switching_to_messages_and_back_leaves_the_pin_as_it_was(board, bells):
    before = board.ledger.snapshot()
    at = enable_msi(bells)
    bells.config_write(at + 2, 2, 0)
    assert bells.mode == "INTx"
    assert board.ledger.difference(before) == ([], [])
    board.write(BAR, 1)
    board.turn(bells)
    assert board.take() == 10


def test_msix_vectors_have_their_own_messages_and_eventfds_as_they_are_unmasked(board, bells):
    table = 0xFD00_0000
    enable_msix(bells, table, vectors=2)
    for n in range(2):
        board.write(BAR + 4 * n, 1)
        assert vectors_taken(board, bells) == [0x40 + n]
    board.write(BAR + 8, 1)
    assert vectors_taken(board, bells) == []  # masked from the start
    for offset, value in ((0, MESSAGE), (8, 0x77), (12, 0)):
        board.mmio.write(table + 32 + offset, 4, value)
    board.write(BAR + 8, 1)
    assert vectors_taken(board, bells) == [0x77]


def test_msix_vector_that_comes_while_masked_is_pending_in_the_pba(board, bells):
    table = 0xFD00_0000
    enable_msix(bells, table)
    board.mmio.write(table + 12, 4, 1)
    board.write(BAR, 1)
    assert vectors_taken(board, bells) == []
    assert board.mmio.read(table + 0x800, 4) == 1
    board.mmio.write(table + 12, 4, 0)
    assert vectors_taken(board, bells) == [0x40]
    assert board.mmio.read(table + 0x800, 4) == 0


def test_function_mask_holds_all_vectors_back(board, bells):
    at = enable_msix(bells, 0xFD00_0000)
    bells.config_write(at + 2, 2, MSIX_ENABLE | MSIX_FUNCTION_MASK)
    board.write(BAR, 1)
    board.write(BAR + 12, 1)
    assert vectors_taken(board, bells) == []
    bells.config_write(at + 2, 2, MSIX_ENABLE)
    assert sorted(vectors_taken(board, bells)) == [0x40, 0x43]


def test_message_of_a_device_that_is_no_bus_master_is_lost(board, bells):
    enable_msi(bells)
    bells.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    board.write(BAR, 1)
    assert vectors_taken(board, bells) == []


def test_message_to_ram_is_a_write_of_its_data(board, bells):
    at = enable_msi(bells, data=0x1234)
    bells.config_write(at + 4, 4, 0x3000)
    board.write(BAR, 1)
    board.turn(bells)
    assert board.memory.read(0x3000, 4) == b"\x34\x12\0\0"


def test_reset_switches_messages_off_and_the_pin_on(board, bells):
    enable_msix(bells, 0xFD00_0000)
    bells.reset()
    assert bells.mode == "INTx"
    assert not bells.msix.enabled
    board.enable(bells)
    board.write(BAR, 1)
    board.turn(bells)
    assert board.take() == 10


def test_unplug_with_messages_on_gives_everything_back(board, serve):
    path = serve(Bells()).path
    board.turn_until(board.attach(path, "warm"), lambda: True)
    board.bus.devices[0].unrealize()
    before, fds = board.ledger.snapshot(), open_fds()
    device = board.attach(path)
    board.enable(device)
    enable_msix(device, 0xFD00_0000)
    device.unrealize()
    assert board.ledger.difference(before) == ([], [])
    board.turn_until(device, lambda: open_fds() <= fds)  # the server's, too


# Memory and doorbells.


def test_mapped_part_of_a_bar_is_one_memory_for_both_sides(board, serve):
    server = serve(Bells()).server
    device = board.attach(server.path)
    board.enable(device)
    board.write(BAR + MEMORY + 8, 0x1122_3344)
    region = server.device.bars[0].region
    assert region.read(MEMORY + 8, 4) == 0x1122_3344
    region.write(MEMORY + 0xFFC, 4, 0x55)
    assert board.read(BAR + MEMORY + 0xFFC) == 0x55
    assert board.read(BAR + 0x40) == 0x40  # the rest is registers
    device.unrealize()


def test_doorbell_is_rung_without_a_message_and_only_by_what_it_matches(board, serve):
    server = serve(Bells()).server
    device = board.attach(server.path)
    board.enable(device)
    trace = Recording()
    server.trace.listen(trace)
    board.write(BAR + BELL, 1)
    board.turn_until(device, lambda: board.read(BAR + BELL) == 1)
    board.write(BAR + BELL + 4, 7)
    board.turn_until(device, lambda: board.read(BAR + BELL) == 2)
    assert trace.of(VfioUserRegionWrite) == []
    board.write(BAR + BELL + 4, 8)
    assert board.read(BAR + BELL) == 3
    assert len(trace.of(VfioUserRegionWrite)) == 1
    device.unrealize()


def test_memory_of_a_server_that_is_gone_reads_all_ones(board, tmp_path):
    server = ServerThread(Bells(), tmp_path / "socket")
    device = board.attach(server.path)
    board.enable(device)
    board.write(BAR + MEMORY, 5)
    assert board.read(BAR + MEMORY) == 5
    server.close()
    board.turn_until(device, lambda: board.events)
    assert board.read(BAR + MEMORY) == 0xFFFF_FFFF
    board.write(BAR + BELL, 1)
    device.unrealize()


def test_server_that_returns_gets_messages_memory_and_doorbells_again(board, tmp_path):
    server = ServerThread(Bells(), tmp_path / "socket")
    device = board.attach(server.path)
    board.enable(device)
    enable_msi(device, vectors=2)
    server.close()
    board.turn_until(device, lambda: board.events)
    assert device.mode == "NONE"
    server = ServerThread(Bells(), tmp_path / "socket")
    device._reconnect()
    assert [name for name, _ in board.events] == ["VFIO_USER_DISCONNECTED", "VFIO_USER_CONNECTED"]
    assert device.mode == "MSI"
    board.write(BAR + 4, 1)
    assert vectors_taken(board, device) == [0x41]
    board.write(BAR + MEMORY, 9)
    assert server.server.device.bars[0].region.read(MEMORY, 4) == 9
    board.write(BAR + BELL, 1)
    board.turn_until(device, lambda: board.read(BAR + BELL) == 1)
    device.unrealize()
    server.close()
    assert board.ledger.rows() == []


ACTS = {
    "MSI": lambda board, device: enable_msi(device, 2),  # noqa: ARG005
    "MSI-X": lambda board, device: enable_msix(device, 0xFD00_0000),  # noqa: ARG005
    "reset": lambda board, device: (device.reset(), board.enable(device)),
    "interrupt": lambda board, device: (board.write(BAR + 4, 1), vectors_taken(board, device)),
    "memory": lambda board, device: board.write(BAR + MEMORY, 5),  # noqa: ARG005
    "doorbell": lambda board, device: board.write(BAR + BELL, 1),  # noqa: ARG005
}


def settle(board, device, server):
    """Wait until the server has seen that its client is gone."""
    board.turn_until(device, lambda: not server.server.connected)


def test_plugs_acts_and_unplugs_in_any_order_leave_nothing_behind(board, tmp_path):
    """A server that is restarted now and then, too; the long form has hundreds of them."""
    random = Random(7)
    server = ServerThread(Bells(), tmp_path / "socket")
    board.attach(server.path, "warm").unrealize()
    fds = None
    for cycle in range(5000 if os.environ.get("VINTX_FULL") else 150):
        device = board.attach(server.path)
        board.enable(device)
        for _ in range(random.randrange(8)):
            if random.random() < 0.03:
                server.close()
                server = ServerThread(Bells(), tmp_path / "socket")
                board.turn_until(device, lambda: board.events)
                device._reconnect()
                assert device.remote.attached
                board.events.clear()
            ACTS[random.choice(list(ACTS))](board, device)
        device.unrealize()
        assert board.ledger.rows() == []
        if cycle == 20:
            settle(board, device, server)
            fds = open_fds()
    settle(board, device, server)
    assert open_fds() == fds
    server.close()
