"""A PCI function as a guest sees it: BARs, INTx, DMA, plug and unplug."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.pci import config as cfg
from devices.pci.device import PciDevice, PciUpdateMappingsAdd, PciUpdateMappingsDel
from devices.pci.info import UNMAPPED
from support.pci import PciBoard
from vmm.errors import ConfigError
from vmm.memory import IoRegion

DEVFN = 5 << 3
BOARD = PciBoard()


class Probe(PciDevice):
    """One BAR of any kind; reads answer with the offset."""

    driver = "probe"
    vendor_id, device_id, interrupt_pin = 0x1234, 0x0001, 1

    def __init__(self, bar=None, id="p0", **values):
        super().__init__(id, **values)
        self.bar = bar or {"size": 0x1000}
        self.written = []

    def realize(self, board):
        super().realize(board)
        self.add_bar(0, **self.bar)

    def add_bar(self, index, size, **kind):
        region = IoRegion("probe", size, self.read, lambda *access: self.written.append(access))
        return self.register_bar(index, region, **kind)

    def read(self, offset, _size):
        return offset


@pytest.fixture
def board():
    return PciBoard()


KINDS = st.one_of(
    st.fixed_dictionaries({"size": st.integers(2, 8).map(lambda n: 1 << n), "io": st.just(True)}),
    st.fixed_dictionaries({"size": st.integers(4, 31).map(lambda n: 1 << n), "prefetchable": st.booleans()}),
    st.fixed_dictionaries(
        {"size": st.integers(4, 50).map(lambda n: 1 << n), "prefetchable": st.booleans(), "mem64": st.just(True)}
    ),
)


def sized(board, mem64):
    """What software makes of a BAR: write all ones, read back. Ref: PCI 3.0, 6.2.5.1."""
    width = 8 if mem64 else 4
    value = 0
    for i in range(0, width, 4):
        board.config_write(DEVFN, 0x10 + i, 0xFFFF_FFFF)
        value |= board.config_read(DEVFN, 0x10 + i) << 8 * i
    flags = 3 if value & 1 else 0xF
    return value & flags, (~(value & ~flags) + 1) & (1 << 8 * width) - 1


@settings(max_examples=80)
@given(kind=KINDS)
def test_bar_of_any_kind_and_size_sized_by_software_gives_its_kind_and_size(kind):
    device = BOARD.plug(Probe(kind, addr=DEVFN))
    try:
        flags, size = sized(BOARD, kind.get("mem64"))
        assert size == kind["size"]
        if kind.get("io"):
            assert flags == 1
        else:
            assert flags == (4 if kind.get("mem64") else 0) | (8 if kind.get("prefetchable") else 0)
        assert device.bars[0].address == UNMAPPED
    finally:
        device.unrealize()


@settings(max_examples=60)
@given(
    kind=KINDS.filter(lambda kind: kind["size"] <= 1 << 20),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("bar"), st.integers(0, (1 << 64) - 1)),
            st.tuples(st.just("command"), st.integers(0, 7)),
            st.tuples(st.just("reset"), st.just(0)),
        ),
        max_size=12,
    ),
)
def test_bar_after_any_guest_writes_answers_where_command_and_the_register_say(kind, steps):
    device = BOARD.plug(Probe(kind, addr=DEVFN))
    io, mem64 = kind.get("io", False), kind.get("mem64", False)
    space = BOARD.ports if io else BOARD.mmio
    others = len(space.mappings())
    command = register = 0
    try:
        for what, value in steps:
            if what == "bar":
                register = value & ((1 << 64) - 1 if mem64 else 0xFFFF_FFFF)
                BOARD.config_write(DEVFN, 0x10, register & 0xFFFF_FFFF)
                BOARD.config_write(DEVFN, 0x14, register >> 32)
            elif what == "command":
                command = value
                BOARD.config_write(DEVFN, cfg.COMMAND, command, 2)
            else:
                command = register = 0
                device.reset()
            base = register & -kind["size"]
            limit = (1 << 64 if mem64 else 1 << 32) - 1
            decoded = command & (1 if io else 2) and base and base + kind["size"] - 1 < limit
            mapped = space.mappings()
            assert device.bars[0].address == (base if decoded else UNMAPPED)
            assert len(mapped) == others + bool(decoded and base + kind["size"] <= space.size)
    finally:
        device.unrealize()
    assert len(space.mappings()) == others


def test_bar_mapped_by_a_guest_answers_with_offsets_from_its_base(board):
    device = board.plug(Probe(addr=DEVFN))
    board.config_write(DEVFN, 0x10, 0xFEB0_0000)
    assert board.read(0xFEB0_0010) == 0xFFFF_FFFF
    board.config_write(DEVFN, cfg.COMMAND, 2, 2)
    assert board.read(0xFEB0_0010) == 0x10
    board.write(0xFEB0_0020, 0xABCD)
    assert device.written == [(0x20, 4, 0xABCD)]
    board.config_write(DEVFN, 0x10, 0xFEC1_0000)
    assert board.read(0xFEB0_0010) == 0xFFFF_FFFF
    assert board.read(0xFEC1_0010) == 0x10
    board.config_write(DEVFN, cfg.COMMAND, 0, 2)
    assert board.read(0xFEC1_0010) == 0xFFFF_FFFF


def test_bar_put_over_the_boards_own_registers_does_not_hide_them(board):
    board.mmio.map(0xFEC0_0000, IoRegion("ioapic", 0x1000, lambda *_: 0x1234, lambda *_: None))
    board.plug(Probe(addr=DEVFN))
    board.config_write(DEVFN, 0x10, 0xFEC0_0000)
    board.config_write(DEVFN, cfg.COMMAND, 2, 2)
    assert board.read(0xFEC0_0000) == 0x1234


def test_io_bar_put_over_the_configuration_ports_does_not_hide_them(board):
    board.plug(Probe({"size": 256, "io": True}, addr=DEVFN))
    board.config_write(DEVFN, 0x10, 0x0C00)
    board.config_write(DEVFN, cfg.COMMAND, 1, 2)
    assert board.inb(0x0C10) == 0x10
    assert board.config_read(DEVFN, 0) == 0x0001_1234


@pytest.mark.parametrize("bar", [{"size": 256, "io": True}, {"size": 4096}, {"size": 4096, "mem64": True}])
def test_bar_being_sized_while_decoding_is_on_answers_nowhere(board, bar):
    board.plug(Probe(bar, addr=DEVFN))
    board.config_write(DEVFN, cfg.COMMAND, 3, 2)
    for offset in (0x10, 0x14):
        board.config_write(DEVFN, offset, 0xFFFF_FFFF)
    assert board.bus.query().devices[-1].regions[0].address == UNMAPPED
    for offset in (0x10, 0x14):
        board.config_write(DEVFN, offset, 0)
    assert board.bus.query().devices[-1].regions[0].address == UNMAPPED


def test_mappings_of_a_bar_are_traced():
    board = PciBoard(trace=True)
    board.plug(Probe(addr=DEVFN))
    board.config_write(DEVFN, cfg.COMMAND, 2, 2)
    board.config_write(DEVFN, 0x10, 0xFEB0_0000)
    board.config_write(DEVFN, 0x10, 0xFEA0_0000)
    assert board.recording.of(PciUpdateMappingsAdd, PciUpdateMappingsDel) == [
        PciUpdateMappingsAdd("probe", 0, 0xFEB0_0000, 0x1000),
        PciUpdateMappingsDel("probe", 0, 0xFEB0_0000, 0x1000),
        PciUpdateMappingsAdd("probe", 0, 0xFEA0_0000, 0x1000),
    ]


@pytest.mark.parametrize(
    "bar",
    [
        {"size": 0x1001},
        {"size": 8},
        {"size": 2, "io": True},
        {"size": 1 << 32},
        {"size": 256, "io": True, "mem64": True},
        {"size": 256, "io": True, "prefetchable": True},
    ],
)
def test_bar_that_no_register_can_hold_is_refused_and_leaves_nothing(board, bar):
    before = board.ledger.snapshot()
    with pytest.raises(ConfigError, match="BAR0"):
        board.plug(Probe(bar, addr=DEVFN))
    assert board.ledger.difference(before) == ([], [])
    assert board.config_read(DEVFN, 0) == 0xFFFF_FFFF


@pytest.mark.parametrize(("first", "second"), [(0, 0), (2, 1), (1, 2)])
def test_bars_that_share_a_register_are_refused(board, first, second):
    device = board.plug(Probe({"size": 64}, addr=DEVFN))
    device.add_bar(3 + (first > second), 64)
    device._drop_bar(device.bars[0])
    device.add_bar(first, 64, mem64=first < second or first == second)
    with pytest.raises(ConfigError, match="overlaps"):
        device.add_bar(second, 64, mem64=second < first)


def test_status_shows_the_pin_while_command_keeps_it_off_the_wire(board):
    device = board.plug(Probe(addr=DEVFN))
    wire = board.bus.pirqs[0]
    board.config_write(DEVFN, cfg.COMMAND, cfg.COMMAND_INTX_DISABLE, 2)
    device.set_intx(True)
    assert (wire.high, board.config_read(DEVFN, cfg.STATUS, 2) & 8) == (False, 8)
    board.config_write(DEVFN, cfg.COMMAND, 0, 2)
    assert wire.high
    board.config_write(DEVFN, cfg.COMMAND + 1, 4, 1)
    assert not wire.high
    device.set_intx(False)
    board.config_write(DEVFN, cfg.COMMAND, 0, 2)
    assert (wire.high, board.config_read(DEVFN, cfg.STATUS, 2) & 8) == (False, 0)


def test_interrupt_status_written_as_one_stays(board):
    device = board.plug(Probe(addr=DEVFN))
    device.set_intx(True)
    board.config_write(DEVFN, cfg.STATUS, 0xFFFF, 2)
    assert board.config_read(DEVFN, cfg.STATUS, 2) & 8


def test_reset_of_a_raised_device_lowers_the_line_and_clears_status(board):
    device = board.plug(Probe(addr=DEVFN))
    board.config_write(DEVFN, cfg.COMMAND, 7, 2)
    device.set_intx(True)
    device.reset()
    assert not board.bus.pirqs[0].high
    assert board.config_read(DEVFN, cfg.COMMAND) == 0
    device.set_intx(True)
    assert board.bus.pirqs[0].high


def test_dma_without_bus_master_reads_ones_and_writes_nothing(board):
    device = board.plug(Probe(addr=DEVFN))
    board.memory.write(0x1000, b"memory")
    assert device.dma_read(0x1000, 6) == b"\xff" * 6
    device.dma_write(0x1000, b"device")
    assert board.memory.read(0x1000, 6) == b"memory"
    board.config_write(DEVFN, cfg.COMMAND, cfg.COMMAND_MASTER, 2)
    assert device.dma_read(0x1000, 6) == b"memory"
    device.dma_write(0x1000, b"device")
    assert board.memory.read(0x1000, 6) == b"device"


def test_unplug_of_a_raised_mapped_device_leaves_no_wire_high_and_the_ledger_equal(board):
    before, mapped = board.ledger.snapshot(), len(board.mmio.mappings())
    holders = list(board.bus.pirqs[0].holders)
    device = board.plug(Probe(addr=DEVFN))
    board.config_write(DEVFN, 0x10, 0xFEB0_0000)
    board.config_write(DEVFN, cfg.COMMAND, 2, 2)
    device.set_intx(True)
    assert board.bus.pirqs[0].high
    device.unrealize()
    assert not any(wire.high for wire in board.bus.pirqs)
    assert board.bus.pirqs[0].holders == holders
    assert board.ledger.difference(before) == ([], [])
    assert len(board.mmio.mappings()) == mapped
    device.set_intx(False)
    device.set_intx(True)
    assert not any(wire.high for wire in board.bus.pirqs)


def test_realize_without_a_bus_is_refused(board):
    with pytest.raises(ConfigError, match="No 'PCI' bus found for device 'probe'"):
        Probe().realize(board)


def test_device_written_on_one_page_answers_and_interrupts(board):
    class Counter(PciDevice):
        driver = "counter"
        vendor_id, device_id, interrupt_pin = 0x1234, 0x0002, 2
        count = 0

        def realize(self, board):
            super().realize(board)
            self.register_bar(0, IoRegion("counter", 0x100, self.read, self.write), io=True)

        def read(self, _offset, _size):
            return self.count

        def write(self, _offset, _size, value):
            self.count = value
            self.set_intx(value > 100)

    board.route(5, 6, 7, 10)
    board.plug(Counter("c0"))
    devfn = 2 << 3
    board.config_write(devfn, 0x10, 0xC000)
    board.config_write(devfn, cfg.COMMAND, 1, 2)
    board.outb(0xC000, 101)
    assert (board.inb(0xC000), board.high()) == (101, [7])  # slot 2, INTB#: PIRQC
    board.outb(0xC000, 7)
    assert board.high() == []
