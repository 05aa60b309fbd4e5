"""The educational device: registers as QEMU's edu shows them, factorial, DMA, interrupt."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.edu import (
    DMA_RAISE_IRQ,
    DMA_RUN,
    DMA_SIZE,
    DMA_START,
    DMA_TO_MEMORY,
    FACTORIAL_NS,
    IRQ_DMA,
    IRQ_FACTORIAL,
    REG_DMA_CMD,
    REG_DMA_COUNT,
    REG_DMA_DST,
    REG_DMA_SRC,
    REG_FACTORIAL,
    REG_ID,
    REG_IRQ_ACK,
    REG_IRQ_RAISE,
    REG_IRQ_STATUS,
    REG_LIVENESS,
    REG_STATUS,
    STATUS_COMPUTING,
    STATUS_RAISE_IRQ,
    Edu,
    EduDma,
    EduRegisters,
)
from support.pci import PciBoard

DEVFN = 5 << 3
BAR = 0xFE00_0000
IRQ = 11
DMA_NS = 100_000_000


class EduBoard(PciBoard):
    """A board with an edu that firmware has set up: BAR mapped, bus master, IRQ 11."""

    def __init__(self, **values):
        super().__init__(trace=True)
        self.edu = self.plug(Edu("e0", addr=DEVFN, **values))
        self.firmware()

    def firmware(self):
        self.config_write(DEVFN, 0x10, BAR)
        self.config_write(DEVFN, 4, 6, 2)
        self.route(IRQ)

    def get(self, register, size=4):
        return self.read(BAR + register, size)

    def put(self, register, value, size=4):
        self.write(BAR + register, value, size)

    def start_dma(self, source, destination, count, command):
        for register, value in ((REG_DMA_SRC, source), (REG_DMA_DST, destination), (REG_DMA_COUNT, count)):
            self.put(register, value, 8)
        self.put(REG_DMA_CMD, command | DMA_RUN, 8)

    def dma(self, source, destination, count, command=0):
        self.start_dma(source, destination, count, command)
        self.clock.step(DMA_NS)


@pytest.fixture
def board():
    return EduBoard()


def test_identity_and_msi_capability_are_those_of_qemus_edu(board):
    assert board.config_read(DEVFN, 0) == 0x11E8_1234
    assert board.config_read(DEVFN, 8) == 0x00FF_0010
    assert board.config_read(DEVFN, 0x3C) == 0x0100
    assert board.config_read(DEVFN, 0x34, 1) == 0x40
    assert board.config_read(DEVFN, 0x40) == 0x0080_0005  # 64-bit, one vector, the last capability
    assert board.get(REG_ID) == 0x0100_00ED


@given(value=st.integers(0, 0xFFFF_FFFF))
def test_liveness_register_reads_the_inversion_of_what_was_written(value):
    BOARD.put(REG_LIVENESS, value)
    assert BOARD.get(REG_LIVENESS) == value ^ 0xFFFF_FFFF


@given(n=st.one_of(st.integers(0, 40), st.integers(0, 0xFFFF_FFFF)))
def test_factorial_once_computed_reads_exact_modulo_2_to_the_32(n):
    BOARD.put(REG_FACTORIAL, n)
    assert BOARD.get(REG_STATUS) & STATUS_COMPUTING
    BOARD.clock.step(FACTORIAL_NS)
    assert not BOARD.get(REG_STATUS) & STATUS_COMPUTING
    assert BOARD.get(REG_FACTORIAL) == (math.factorial(n) & 0xFFFF_FFFF if n < 50 else 0)


BOARD = EduBoard()


def test_factorial_written_while_computing_is_ignored(board):
    board.put(REG_FACTORIAL, 5)
    board.put(REG_FACTORIAL, 6)
    board.clock.step(FACTORIAL_NS)
    assert board.get(REG_FACTORIAL) == 120
    assert not board.clock.step()


def test_factorial_raises_the_line_only_if_asked_to(board):
    board.put(REG_FACTORIAL, 5)
    board.clock.step(FACTORIAL_NS)
    assert (board.get(REG_IRQ_STATUS), board.high()) == (0, [])
    board.put(REG_STATUS, 0xFFFF_FFFF)
    assert board.get(REG_STATUS) == STATUS_RAISE_IRQ
    board.put(REG_FACTORIAL, 5)
    board.clock.step(FACTORIAL_NS - 1)
    assert board.high() == []
    board.clock.step(1)
    assert (board.get(REG_IRQ_STATUS), board.high()) == (IRQ_FACTORIAL, [IRQ])
    board.put(REG_IRQ_ACK, IRQ_FACTORIAL)
    assert (board.get(REG_IRQ_STATUS), board.high()) == (0, [])


def test_line_is_high_until_every_raised_bit_is_acknowledged(board):
    board.put(REG_IRQ_RAISE, 0)
    assert board.high() == []
    board.put(REG_IRQ_RAISE, 0x6)
    board.put(REG_IRQ_RAISE, 0x1)
    assert board.get(REG_IRQ_STATUS) == 7
    board.put(REG_IRQ_ACK, 0x5)
    assert (board.get(REG_IRQ_STATUS), board.high()) == (2, [IRQ])
    board.put(REG_IRQ_ACK, 0xFFFF_FFFF)
    assert (board.get(REG_IRQ_STATUS), board.high()) == (0, [])
    assert board.take_irq_events() == [("raise", IRQ), ("lower", IRQ)]
    assert board.edu.stats() == {"raised": 2, "acked": 2}


def test_interrupt_status_written_directly_stays(board):
    board.put(REG_IRQ_STATUS, 5)
    assert (board.get(REG_IRQ_STATUS), board.high()) == (0, [])


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0x00, 8),
        (0x20, 8),
        (0x0C, 4),
        (0x40, 4),
        (0x60, 4),
        (0x64, 4),
        (0x84, 4),
        (0xA0, 8),
        (0x40000, 8),
        (0xFFFFC, 4),
    ],
)
def test_read_where_there_is_no_register_of_that_size_gives_ones(board, offset, size):
    assert board.get(offset, size) == (1 << 8 * size) - 1


@pytest.mark.parametrize("size", [1, 2])
def test_access_narrower_than_a_dword_does_nothing(board, size):
    board.put(REG_LIVENESS, 0, size)
    assert board.get(REG_LIVENESS) == 0
    board.put(REG_IRQ_RAISE, 1, size)
    assert board.high() == []
    board.put(REG_DMA_CMD, DMA_RUN, size)
    assert board.get(REG_DMA_CMD) == 0


def test_quadword_write_below_the_dma_registers_does_nothing(board):
    board.put(REG_IRQ_RAISE, 1, 8)
    assert board.high() == []


def test_declaration_has_every_register_where_the_device_answers(board):
    names = {"identification": REG_ID, "liveness": REG_LIVENESS, "factorial": REG_FACTORIAL, "status": REG_STATUS}
    names |= {"irq_status": REG_IRQ_STATUS, "dma_source": REG_DMA_SRC, "dma_destination": REG_DMA_DST}
    names |= {"dma_count": REG_DMA_COUNT}
    board.put(REG_LIVENESS, 0x1234)
    board.put(REG_IRQ_RAISE, 0x55)
    board.start_dma(0x1000, 0x40000, 16, 0)
    raw = b"".join(
        board.get(at, 4 if at < 0x80 else 8).to_bytes(4 if at < 0x80 else 8, "little")
        for at in [*range(0, 0x80, 4), *range(0x80, 0xA0, 8)]
    )
    parsed = EduRegisters.parse(raw)
    for name, at in names.items():
        assert parsed[name] == board.get(at, 8 if at >= 0x80 else 4)
    assert parsed.dma_command == DMA_RUN


@settings(max_examples=60)
@given(
    data=st.binary(min_size=1, max_size=DMA_SIZE),
    start=st.integers(0, DMA_SIZE),
    source=st.integers(0, 0x7_0000),
    target=st.integers(0x8_0000, 0xE_0000),
)
def test_dma_to_the_buffer_and_back_copies_exactly(data, start, source, target):
    board = BOARD
    start = min(start, DMA_SIZE - len(data))
    board.memory.write(source, data)
    around = board.memory.read(target - 1, 1), board.memory.read(target + len(data), 1)
    board.dma(source, DMA_START + start, len(data))
    board.memory.write(source, bytes(len(data)))
    board.dma(DMA_START + start, target, len(data), DMA_TO_MEMORY)
    assert board.memory.read(target, len(data)) == data
    assert (board.memory.read(target - 1, 1), board.memory.read(target + len(data), 1)) == around


def test_dma_runs_for_the_delay_that_was_set_and_then_interrupts():
    board = EduBoard(**{"x-dma-delay-us": 250})
    board.start_dma(0x1000, DMA_START, 16, DMA_RAISE_IRQ)
    board.clock.step(249_999)
    assert (board.get(REG_DMA_CMD, 8), board.high()) == (DMA_RUN | DMA_RAISE_IRQ, [])
    board.clock.step(1)
    assert (board.get(REG_DMA_CMD, 8), board.high()) == (DMA_RAISE_IRQ, [IRQ])
    assert board.get(REG_IRQ_STATUS) == IRQ_DMA


def test_dma_registers_while_a_transfer_runs_keep_their_values(board):
    board.start_dma(0x1000, DMA_START, 16, 0)
    for register in (REG_DMA_SRC, REG_DMA_DST, REG_DMA_COUNT):
        board.put(register, 0x99, 8)
    board.put(REG_DMA_CMD, DMA_RUN | DMA_TO_MEMORY, 8)
    read = [board.get(register, 8) for register in (REG_DMA_SRC, REG_DMA_DST, REG_DMA_COUNT, REG_DMA_CMD)]
    assert read == [0x1000, DMA_START, 16, DMA_RUN]


def test_dma_command_without_run_is_ignored(board):
    board.put(REG_DMA_CMD, DMA_TO_MEMORY | DMA_RAISE_IRQ, 8)
    assert board.get(REG_DMA_CMD, 8) == 0
    assert not board.clock.step()


@pytest.mark.parametrize(
    ("source", "destination", "count", "command"),
    [
        (0x1000, DMA_START - 1, 16, 0),
        (0x1000, DMA_START, DMA_SIZE + 1, 0),
        (0x1000, DMA_START + DMA_SIZE, 1, 0),
        (0x1000, 0, 16, 0),
        (0x1000, DMA_START, (1 << 64) - 1, 0),
        (0x1000, (1 << 64) - 1, 2, 0),
        (DMA_START + 1, 0x1000, DMA_SIZE, DMA_TO_MEMORY),
        (0, 0x1000, 16, DMA_TO_MEMORY),
    ],
)
def test_dma_that_leaves_the_buffer_copies_nothing_and_still_ends(board, source, destination, count, command):
    before = bytes(board.memory.view)
    board.dma(source, destination, count, command | DMA_RAISE_IRQ)
    assert bytes(board.memory.view) == before
    assert board.edu.buffer == bytes(DMA_SIZE)
    assert board.get(REG_DMA_CMD, 8) & DMA_RUN == 0
    assert board.get(REG_IRQ_STATUS) == IRQ_DMA
    [event] = board.recording.of(EduDma)
    assert event == EduDma(source, destination, count, bool(command & DMA_TO_MEMORY), False)


def test_dma_address_is_cut_to_the_mask():
    board = EduBoard(dma_mask=0xFFFF)
    board.memory.write(0x1000, b"low here")
    board.dma(0x7F_0000_1000, DMA_START, 8)
    board.dma(DMA_START, 0x8_2000, 8, DMA_TO_MEMORY)
    assert board.memory.read(0x2000, 8) == b"low here"
    assert board.memory.read(0x8_2000, 8) == bytes(8)


def test_dma_without_bus_master_writes_nothing_and_reads_ones(board):
    board.config_write(DEVFN, 4, 2, 2)
    board.memory.write(0x1000, b"memory")
    board.dma(0x1000, DMA_START, 6)
    board.config_write(DEVFN, 4, 6, 2)
    board.dma(DMA_START, 0x2000, 6, DMA_TO_MEMORY)
    assert board.memory.read(0x2000, 6) == b"\xff" * 6
    board.config_write(DEVFN, 4, 2, 2)
    board.dma(DMA_START, 0x1000, 6, DMA_TO_MEMORY)
    assert board.memory.read(0x1000, 6) == b"memory"


def test_reset_ends_computation_and_transfer_and_clears_the_registers(board):
    board.put(REG_LIVENESS, 1)
    board.put(REG_STATUS, STATUS_RAISE_IRQ)
    board.put(REG_IRQ_RAISE, 4)
    board.put(REG_FACTORIAL, 5)
    board.start_dma(0x1000, DMA_START, 16, DMA_RAISE_IRQ)
    board.reset()
    assert board.high() == []
    assert not board.clock.step()
    board.firmware()
    registers = (REG_LIVENESS, REG_FACTORIAL, REG_STATUS, REG_IRQ_STATUS, REG_DMA_SRC, REG_DMA_CMD)
    assert [board.get(register) for register in registers] == [0] * 6
    assert board.high() == []


def test_unplug_while_it_computes_transfers_and_interrupts_leaves_nothing_behind(board):
    before = PciBoard().ledger.snapshot()
    board.put(REG_IRQ_RAISE, 1)
    board.put(REG_FACTORIAL, 5)
    board.start_dma(0x1000, DMA_START, 16, DMA_RAISE_IRQ)
    board.edu.unrealize()
    assert board.high() == []
    assert not board.clock.step()
    assert board.read(BAR) == 0xFFFF_FFFF
    assert board.ledger_of(board.edu) == []
    board.route(0x80)
    assert board.ledger.difference(before) == ([], [])


REGISTERS = st.one_of(st.integers(0, 0x27).map(lambda n: n * 4), st.integers(0, (1 << 20) - 8))


@settings(max_examples=60)
@given(
    accesses=st.lists(
        st.tuples(
            REGISTERS,
            st.sampled_from((1, 2, 4, 8)),
            st.one_of(st.integers(0, 0x50000), st.integers(0, (1 << 64) - 1)),
            st.integers(0, 3),
        ),
        max_size=30,
    )
)
def test_any_guest_accesses_never_raise_and_the_line_is_high_while_a_bit_is_set(accesses):
    board = BOARD
    board.reset()
    board.firmware()
    for offset, size, value, steps in accesses:
        board.put(offset, value & (1 << 8 * size) - 1, size)
        assert 0 <= board.get(offset, size) < 1 << 8 * size
        board.clock.step(steps * 40_000_000)
        assert board.high() == ([IRQ] if board.get(REG_IRQ_STATUS) else [])
