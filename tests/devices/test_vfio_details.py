"""VFIO's numbers, the corners of its validation, and the two kinds of hardware under INTx."""

from __future__ import annotations

import errno

import pytest

from devices import vfio
from devices.pci import config as cfg
from devices.pci.device import PciDevice
from devices.vfio import ExclusiveIntx, VfioDevice
from tests.support.vfio_board import VfioBoard
from vmm.memory import IoRegion

NONE, BOOL, MASK, UNMASK, TRIGGER = 1, 2, 8, 16, 32
INTX, REQ = 0, 4


class Recorder(PciDevice):
    """BAR 0 takes accesses of 2 and 4 bytes. A vendor's capability can be written. Each access is written down."""

    driver = "recorder"
    interrupt_pin = 1

    def __init__(self, id=None, **values):
        super().__init__(id, **values)
        self.seen = []
        self.config_seen = []

    def make_config(self):
        config = super().make_config()
        self.vendor = config.add_capability(0x09, bytes(6), b"\xff" * 6) + 2
        return config

    def realize(self, board):
        super().realize(board)
        region = IoRegion("recorder", 64, self._read, self._write, min_access=2, max_access=4)
        self.register_bar(0, region)

    def config_write(self, offset, size, value):
        self.config_seen.append((offset, size, value))
        super().config_write(offset, size, value)

    def _read(self, offset, size):
        self.seen.append((offset, size))
        return offset + 1

    def _write(self, offset, size, value):
        self.seen.append((offset, size, value))


class Handler:
    """Counts what a line brings."""

    def __init__(self) -> None:
        self.calls = 0

    def handler(self) -> None:
        self.calls += 1


def opened(pci_2_3: bool = True, id: str = "h0") -> tuple[VfioBoard, VfioDevice]:
    board = VfioBoard()
    board.device_class = lambda _driver: Recorder
    host = board.host(id, **{"x-pci-2-3": pci_2_3})
    return board, host.open("test", board.files, board.executor, board.trace)


@pytest.fixture
def device():
    return opened()[1]


def exclusive(level: bool = False) -> tuple[ExclusiveIntx, Handler]:
    hardware, handler = ExclusiveIntx(), Handler()
    hardware.handler = handler
    hardware.line_changed(level)
    return hardware, handler


def test_numbers_are_those_of_linux_vfio_h():
    regions = (vfio.VFIO_PCI_BAR0_REGION_INDEX, vfio.VFIO_PCI_BAR5_REGION_INDEX, vfio.VFIO_PCI_ROM_REGION_INDEX)
    assert regions == (0, 5, 6)
    assert (vfio.VFIO_PCI_CONFIG_REGION_INDEX, vfio.VFIO_PCI_VGA_REGION_INDEX, vfio.VFIO_PCI_NUM_REGIONS) == (7, 8, 9)
    interrupts = ("INTX", "MSI", "MSIX", "ERR", "REQ")
    assert [getattr(vfio, f"VFIO_PCI_{name}_IRQ_INDEX") for name in interrupts] == [0, 1, 2, 3, 4]
    assert vfio.VFIO_PCI_NUM_IRQS == 5
    kinds = (vfio.VFIO_IRQ_SET_DATA_NONE, vfio.VFIO_IRQ_SET_DATA_BOOL, vfio.VFIO_IRQ_SET_DATA_EVENTFD)
    actions = tuple(getattr(vfio, f"VFIO_IRQ_SET_ACTION_{name}") for name in ("MASK", "UNMASK", "TRIGGER"))
    assert (kinds, actions) == ((1, 2, 4), (8, 16, 32))
    assert (vfio.DATA_TYPE_MASK, vfio.ACTION_TYPE_MASK) == (7, 56)
    assert (vfio.VFIO_DEVICE_FLAGS_RESET, vfio.VFIO_DEVICE_FLAGS_PCI) == (1, 2)
    assert (vfio.VFIO_REGION_INFO_FLAG_READ, vfio.VFIO_REGION_INFO_FLAG_WRITE) == (1, 2)
    flags = ("EVENTFD", "MASKABLE", "AUTOMASKED", "NORESIZE")
    assert [getattr(vfio, f"VFIO_IRQ_INFO_{name}") for name in flags] == [1, 2, 4, 8]


# Regions


def test_wide_access_is_split_where_the_region_wants_it_and_no_sooner(device):
    device.bar_write(0, 4, 4, 0xAABBCCDD)
    device.bar_write(0, 8, 8, 0x1122334555667789)
    device.bar_write(0, 2, 2, 0xEEFF)
    assert device.device.seen == [(4, 4, 0xAABBCCDD), (8, 4, 0x55667789), (12, 4, 0x11223345), (2, 2, 0xEEFF)]
    device.device.seen.clear()
    assert device.bar_read(0, 4, 4) == 5
    assert device.bar_read(0, 8, 8) == 9 | 13 << 32
    assert device.bar_read(0, 2, 2) == 3
    assert device.device.seen == [(4, 4), (8, 4), (12, 4), (2, 2)]


def test_narrow_access_does_not_reach_the_device(device):
    device.bar_write(0, 4, 1, 0xAA)
    assert device.bar_read(0, 4, 1) == 0xFF
    assert device.device.seen == []


def test_bar_that_is_not_there_or_not_decoded_reads_ones_and_swallows_writes(device):
    device.bar_write(1, 0, 4, 1)
    assert device.bar_read(1, 0, 2) == 0xFFFF
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_IO)
    device.bar_write(0, 0, 4, 1)
    assert device.bar_read(0, 0, 4) == 0xFFFFFFFF
    assert device.device.seen == []


# Configuration space


def test_writes_beside_what_vfio_keeps_reach_the_device(device):
    at = device.device.vendor
    device.config_write(at, 4, 0x44332211)
    device.config_write(at + 2, 2, 0x8877)
    assert device.device.config.get(at, 4) == device.config_read(at, 4) == 0x88772211


def test_write_reaches_the_device_whole_and_nothing_beside_it(device):
    at = device.device.vendor
    device.config_write(at, 4, 0x44332211)
    device.config_write(at + 2, 2, 0x8877)
    device.config_write(at + 1, 1, 0x66)
    device.config_write(cfg.STATUS, 2, 0xFFFF)
    device.config_write(0, 4, 0x12345678)
    assert device.device.config_seen == [
        (at, 4, 0x44332211),
        (at + 2, 2, 0x8877),
        (at + 1, 1, 0x66),
        (cfg.STATUS, 2, 0xFFFF),
        (0, 4, 0x12345678),
    ]


def test_write_over_what_vfio_keeps_leaves_the_rest_to_the_device(device):
    device.config_write(cfg.BASE_ADDRESS_0, 4, 0xFE000000)
    assert device.device.config_seen == []
    device.device.config.set(cfg.STATUS, 2, cfg.STATUS_WRITE_ONE_TO_CLEAR)
    device.config_write(cfg.COMMAND, 4, 0x80000000 | cfg.COMMAND_MASTER)
    assert device.device.config.get(cfg.STATUS, 2) == cfg.STATUS_WRITE_ONE_TO_CLEAR & 0x7FFF
    assert device.config_read(cfg.COMMAND, 2) == cfg.COMMAND_MASTER
    device.device.config_seen.clear()
    device.config_write(cfg.INTERRUPT_LINE, 4, 0x0403020B)
    assert device.config_read(cfg.INTERRUPT_LINE, 1) == 0x0B
    assert device.device.config_seen == [(cfg.INTERRUPT_LINE + n, 1, n + 1) for n in (1, 2, 3)]


@pytest.mark.parametrize("virq_disabled", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_wide_read_is_its_bytes_put_together(device, size, virq_disabled):
    device.device.config.data[cfg.STATUS + 1 : cfg.CAPABILITY_LIST] = bytes(range(0x87, 0x87 + 0x2D))
    device.config_write(cfg.COMMAND + 1, 1, virq_disabled * cfg.COMMAND_INTX_DISABLE >> 8)
    for at in range(0, cfg.CONFIG_SIZE, size):
        one_by_one = bytes(device.config_read(at + n, 1) for n in range(size))
        assert device.config_read(at, size).to_bytes(size, "little") == one_by_one


def test_command_is_written_by_bytes_as_by_words(device):
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    device.config_write(cfg.COMMAND + 1, 1, cfg.COMMAND_INTX_DISABLE >> 8)
    assert device.config_read(cfg.COMMAND, 2) == cfg.COMMAND_MEMORY | cfg.COMMAND_INTX_DISABLE
    device.config_write(cfg.COMMAND, 1, cfg.COMMAND_IO)
    assert device.config_read(cfg.COMMAND, 2) == cfg.COMMAND_IO | cfg.COMMAND_INTX_DISABLE
    device.device.config_seen.clear()
    device.config_write(cfg.COMMAND, 4, cfg.COMMAND_MASTER)
    assert device.config_read(cfg.COMMAND, 2) == cfg.COMMAND_MASTER
    assert device.device.config_seen[0] == (cfg.COMMAND, 2, cfg.COMMAND_MASTER | cfg.COMMAND_INTX_DISABLE)


def test_reset_keeps_command_as_the_user_has_it(device):
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_MASTER)
    device.device.config_seen.clear()
    device.reset()
    assert device.config_read(cfg.COMMAND, 2) == cfg.COMMAND_MEMORY | cfg.COMMAND_MASTER
    written = cfg.COMMAND_MEMORY | cfg.COMMAND_MASTER | cfg.COMMAND_INTX_DISABLE
    assert device.device.config_seen == [(cfg.COMMAND, 2, written)]


# Interrupts


@pytest.mark.parametrize(("index", "start", "count"), [(INTX, 1, 0), (REQ, 1, 0), (5, 0, 0), (-1, 0, 0), (1, 0, 0)])
def test_range_that_begins_where_there_is_nothing_is_einval(device, index, start, count):
    with pytest.raises(OSError, match=rf"\[Errno {errno.EINVAL}\]"):
        device.set_irqs(NONE | TRIGGER, index, start, count)


def test_what_is_refused_is_told_with_the_devices_name():
    for name in ("h0", "h1"):
        with pytest.raises(OSError, match=f"{name}: irq 7"):
            opened(id=name)[1].set_irqs(NONE | TRIGGER, 7, 0, 1)


def test_structure_without_data_is_as_long_as_its_header():
    board, device = opened()
    fd = board.rig.efd()
    device.set_irq_eventfd(REQ, TRIGGER, fd)
    device.set_irqs_ioctl(b"".join(n.to_bytes(4, "little") for n in (20, NONE | TRIGGER, REQ, 0, 1)))
    assert board.rig.count(fd) == 1


def test_request_interrupt_loops_back_and_a_new_eventfd_replaces_the_old():
    board, device = opened()
    old, new = board.rig.efd(), board.rig.efd()
    device.set_irq_eventfd(REQ, TRIGGER, old)
    device.set_irqs(BOOL | TRIGGER, REQ, 0, 1, b"\0")
    assert board.rig.count(old) == 0
    device.set_irqs(BOOL | TRIGGER, REQ, 0, 1, b"\1")
    assert board.rig.count(old) == 1
    device.set_irq_eventfd(REQ, TRIGGER, new)
    device.set_irqs(NONE | TRIGGER, REQ, 0, 1)
    assert (board.rig.count(old), board.rig.count(new)) == (0, 1)
    device.set_irq_eventfd(REQ, TRIGGER, -1)
    assert [board.files.file(fd).ctx.refs for fd in (old, new)] == [1, 1]


def test_request_eventfd_goes_with_the_device():
    board, device = opened()
    fd = board.rig.efd()
    device.set_irq_eventfd(REQ, TRIGGER, fd)
    for _ in range(2):
        device.close()
        assert board.files.file(fd).ctx.refs == 1
        assert not device.request_release()
    assert board.rig.count(fd) == 0


def test_function_that_nobody_listens_to_is_kept_quiet():
    board, device = opened()
    command = device.device.config
    assert command.get(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE
    device.set_irq_eventfd(INTX, TRIGGER, board.rig.efd())
    assert not command.get(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE
    device.set_irqs(NONE | TRIGGER, INTX, 0, 0)
    assert command.get(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE


def test_exclusive_line_is_taken_while_it_is_high_requested_and_unmasked():
    hardware, handler = exclusive(level=True)
    assert (handler.calls, hardware.pending()) == (0, True)
    hardware.request(masked=True)
    hardware.line_changed(True)
    assert handler.calls == 0
    hardware.unmask()
    assert handler.calls == 1
    hardware.line_changed(False)
    assert (handler.calls, hardware.pending()) == (1, False)
    hardware.mask()
    hardware.line_changed(True)
    assert handler.calls == 1


def test_exclusive_line_that_is_free_is_neither_taken_nor_masked():
    hardware, handler = exclusive()
    hardware.mask()
    hardware.unmask()
    hardware.request(masked=False)
    hardware.line_changed(True)
    assert handler.calls == 1
    hardware.free()
    hardware.line_changed(True)
    hardware.unmask()
    assert handler.calls == 1


def test_configuration_space_is_written_through_its_region(device):
    device.region_write(vfio.VFIO_PCI_CONFIG_REGION_INDEX, device.device.vendor, bytes.fromhex("11223344"))
    assert device.device.config.get(device.device.vendor, 4) == 0x44332211
    device.region_write(vfio.VFIO_PCI_CONFIG_REGION_INDEX, device.device.vendor, b"\xaa")
    assert device.region_read(vfio.VFIO_PCI_CONFIG_REGION_INDEX, device.device.vendor, 4).hex() == "aa223344"


def test_region_ends_with_its_last_byte(device):
    assert device.region_read(0, 60, 4) == (61).to_bytes(4, "little")
    device.region_write(0, 62, b"\x11\x22")
    assert device.device.seen == [(60, 4), (62, 2, 0x2211)]
    assert device.region_read(0, 64, 0) == b""


def test_unaligned_access_goes_in_pieces_that_are_aligned(device):
    device.region_write(0, 2, bytes.fromhex("aabbccddeeff"))
    assert device.device.seen == [(2, 2, 0xBBAA), (4, 4, 0xFFEEDDCC)]
    device.device.seen.clear()
    device.region_read(0, 4, 2)
    assert device.device.seen == [(4, 2)]


def test_bars_are_sized_in_vfios_copy_and_the_device_does_not_move(device):
    address = device.device.config.get(cfg.BASE_ADDRESS_0, 4)
    device.config_write(cfg.BASE_ADDRESS_0, 4, 0xFFFF_FFFF)
    assert device.config_read(cfg.BASE_ADDRESS_0, 4) == 0xFFFF_FFC0
    device.config_write(cfg.BASE_ADDRESS_0, 4, 0xFE00_0000)
    assert device.config_read(cfg.BASE_ADDRESS_0, 4) == 0xFE00_0000
    assert device.device.config.get(cfg.BASE_ADDRESS_0, 4) == address


def test_function_without_a_capability_that_vfio_shows_has_no_list():
    class OnlyMsi(Recorder):
        def make_config(self):
            config = PciDevice.make_config(self)
            config.add_capability(0x05, bytes(8), b"\xff" * 8)
            return config

    board = VfioBoard()
    board.device_class = lambda _driver: OnlyMsi
    device = board.host().open("test", board.files, board.executor, board.trace)
    assert not device.config_read(cfg.STATUS, 2) & cfg.STATUS_CAPABILITIES
    assert device.config_read(cfg.CAPABILITY_LIST, 1) == 0


def test_function_that_is_given_back_is_quiet_and_knows_no_veto():
    _, device = opened()
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_INTX_DISABLE)
    device.intx.hardware.unmask()
    device.close()
    assert device.device.config.get(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE
    assert not device.intx.virq_disabled


def test_interrupt_that_is_requested_masked_stays_masked():
    board, device = opened()
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_INTX_DISABLE)
    device.intx.hardware.unmask()
    device.set_irq_eventfd(INTX, TRIGGER, board.rig.efd())
    assert device.device.config.get(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE


def test_last_bar_is_closed_with_its_decoding():
    class Far(Recorder):
        def realize(self, board):
            PciDevice.realize(self, board)
            self.register_bar(5, IoRegion("far", 64, self._read, self._write))

    board = VfioBoard()
    board.device_class = lambda _driver: Far
    device = board.host().open("test", board.files, board.executor, board.trace)
    assert device.region_read(5, 0, 4)
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_IO)
    with pytest.raises(OSError, match=rf"\[Errno {errno.EIO}\]"):
        device.region_read(5, 0, 4)


def test_ports_are_closed_with_their_own_decoding():
    class Ports(Recorder):
        def realize(self, board):
            PciDevice.realize(self, board)
            self.register_bar(1, IoRegion("ports", 16, self._read, self._write), io=True)

    board = VfioBoard()
    board.device_class = lambda _driver: Ports
    device = board.host().open("test", board.files, board.executor, board.trace)
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_IO)
    assert device.region_read(1, 4, 1) == b"\5"
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    with pytest.raises(OSError, match=rf"\[Errno {errno.EIO}\]"):
        device.region_read(1, 4, 1)


@pytest.mark.parametrize(("index", "action"), [(INTX, UNMASK), (INTX, TRIGGER), (REQ, TRIGGER)])
def test_descriptor_zero_is_a_descriptor(index, action):
    board, device = opened()
    device.set_irq_eventfd(INTX, TRIGGER, board.rig.efd())
    board.files.close(0)
    assert board.rig.efd() == 0
    device.set_irq_eventfd(index, action, 0)
    assert board.files.file(0).ctx.refs == 2


def test_function_does_not_mask_at_the_host_unless_told_to():
    board = VfioBoard()
    board.device_class = lambda _driver: Recorder
    device = VfioDevice(board.host().device, board.files, board.executor, board.trace)
    assert not isinstance(device.intx.hardware, ExclusiveIntx)


def test_mask_or_unmask_by_a_false_bool_changes_nothing():
    board, device = opened()
    device.set_irq_eventfd(INTX, TRIGGER, board.rig.efd())
    for action, data, masked in ((MASK, 0, False), (MASK, 1, True), (UNMASK, 0, True), (UNMASK, 1, False)):
        device.set_irqs(BOOL | action, INTX, 0, 1, bytes([data]))
        assert bool(device.device.config.get(cfg.COMMAND, 2) & cfg.COMMAND_INTX_DISABLE) == masked
