"""The ACPI hot-plug block: recorded sessions replayed, and the rules behind them."""

import gc
import json
import re
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.edu import Edu
from devices.pci.hotplug import AcpiPciEjectSlot, Gpe0Registers, HotplugRegisters
from devices.pci_testdev import PciTestdev
from support.pci import PM_DEVFN, SCI, PciBoard
from vmm.errors import LifecycleError

TRANSCRIPT = Path(__file__).parent.parent / "conformance/data/qemu-qmp-transcript.jsonl"
QTEST = re.compile(r"(in|out)([bwl]) (\S+)(?: (\S+))? -> (?:OK(?: (\S+))?|IRQ (\w+) (\d+))$")
SIZES = {"b": 1, "w": 2, "l": 4}
UP, DOWN, EJ, RMV, BSEL, INDEX = range(0xAE00, 0xAE18, 4)


@pytest.fixture
def board():
    return PciBoard()


def hot_add(board, name, addr, **values):
    return board.plug(PciTestdev(name, addr=addr, **values), hot=True)


class Replay:
    """Runs the device_add, device_del, system_reset and port lines of a recorded session on a PciBoard."""

    def __init__(self, session):
        lines = [json.loads(line) for line in TRANSCRIPT.read_text().splitlines()]
        self.lines = [line for line in lines if line["sess"] == session]
        self.board = PciBoard()
        self.checked = 0
        self.deleted = []
        """Devices of the recorded DEVICE_DELETED events."""
        self.irq_events = []
        """The recorded IRQ lines."""

    def device_add(self, arguments):
        driver = {"pci-testdev": PciTestdev, "edu": Edu}[arguments.pop("driver")]
        arguments.pop("bus", None)
        name = arguments.pop("id", None)
        device = driver(name, **driver.parse(arguments))
        self.board.plug(device, hot=True)

    def qmp(self, request, reply):
        command, arguments = request["execute"], dict(request.get("arguments", {}))
        failed = "error" in reply
        if command == "device_add":
            assert not failed
            self.device_add(arguments)
        elif command == "device_del" and reply.get("error", {}).get("class") != "DeviceNotFound":
            device = next(d for d in self.board.bus.all_devices() if d.id == arguments["id"])
            if failed:
                with pytest.raises(LifecycleError, match=re.escape(reply["error"]["desc"])):
                    self.board.hotplug.request_unplug(device)
            else:
                self.board.hotplug.request_unplug(device)
            self.checked += 1
        elif command == "system_reset":
            self.board.reset()

    def port(self, raw):
        """One qtest line: the access and its value, or an IRQ line that came before its OK."""
        found = QTEST.match(raw)
        if found is None:
            if raw.startswith("clock_step"):
                self.board.clock.step(int(raw.split()[1]))
            return
        direction, width, port, value, result, edge, irq = found.groups()
        if edge:
            self.irq_events.append((edge, int(irq)))
            return
        if int(port, 0) == 0xB2 or 0x600 <= int(port, 0) < 0x640:
            return  # the power management block is another device
        if direction == "in":
            assert self.board.ports.read(int(port, 0), SIZES[width]) == int(result, 16), raw
            self.checked += 1
        else:
            self.board.ports.write(int(port, 0), SIZES[width], int(value, 0))

    def run(self):
        request = None
        for line in self.lines:
            raw = line["raw"].strip()
            if line["dir"] == "qtest":
                self.port(raw)
            elif line["dir"] == ">":
                request = json.loads(raw)
            elif line["dir"] == "<":
                reply = json.loads(raw)
                if reply.get("event") == "DEVICE_DELETED":
                    self.deleted.append(reply["data"].get("device"))
                elif "event" not in reply and request is not None:
                    self.qmp(request, reply)
                    request = None


def test_session_with_gpe_replays_value_for_value():
    replay = Replay("pc-acpi-gpe")
    replay.run()
    assert replay.board.deleted == replay.deleted == ["d0", "d0", "d1", "d2", "m0", "m1", "s0"]
    # The reset at the end lowers the SCI; the recording has no line after it that would show so.
    assert replay.board.take_irq_events() == [*replay.irq_events, ("lower", SCI)]
    assert replay.checked == 26


def test_registers_before_and_after_ejects_are_what_qemu_showed(board):
    cold = board.plug(PciTestdev("cold0", addr=3 << 3))
    board.plug(_fixed(2))
    devices = [hot_add(board, f"d{slot}", slot << 3) for slot in range(4, 31)]
    board.hotplug.request_unplug(devices[0])
    with pytest.raises(LifecycleError, match="Device d4 is already in the process of unplug"):
        board.hotplug.request_unplug(devices[0])
    board.hotplug.request_unplug(cold)
    assert [board.inl(port) for port in (UP, DOWN, EJ, RMV, BSEL, INDEX)] == [
        0x7FFF_FFF0,
        0x18,
        0,
        0xFFFF_FFF8,
        0,
        0,
    ]
    assert (board.inb(0xAFE0), board.inb(0xAFE1)) == (2, 0)
    board.outl(BSEL, 0)
    assert [board.inl(port) for port in (UP, DOWN, RMV)] == [0, 0x18, 0xFFFF_FFF8]
    board.outl(EJ, 0x8)
    board.outl(EJ, 0x10)
    assert board.inl(DOWN) == 0
    assert board.deleted == ["cold0", "d4"]


def _fixed(slot):
    class Fixed(PciTestdev):
        hotpluggable = False

    return Fixed("fixed", addr=slot << 3)


def test_device_that_was_added_answers_before_the_guest_looks(board):
    hot_add(board, "d0", 5 << 3)
    assert board.config_read(5 << 3, 0) == 0x0005_1B36


def test_added_device_raises_the_sci_only_while_enabled_and_until_status_is_cleared(board):
    hot_add(board, "d0", 5 << 3)
    assert board.high() == []
    board.outb(0xAFE2, 2)
    assert board.high() == [SCI]
    board.outb(0xAFE2, 0)
    assert board.high() == []
    board.outb(0xAFE2, 0xFF)
    board.outb(0xAFE0, 0xFD)
    assert board.high() == [SCI]
    board.outb(0xAFE0, 0x02)
    assert board.high() == []
    assert board.inl(UP) == 1 << 5


def test_reading_pciu_clears_it_and_reading_pcid_does_not(board):
    device = hot_add(board, "d0", 5 << 3)
    board.hotplug.request_unplug(device)
    assert [board.inl(UP), board.inl(UP), board.inl(DOWN), board.inl(DOWN)] == [0x20, 0, 0x20, 0x20]
    assert board.hotplug.pending_slots == [5]


def test_requested_device_stays_until_the_guest_ejects_it(board):
    before = board.ledger.snapshot()
    device = hot_add(board, "d0", 5 << 3)
    board.hotplug.request_unplug(device)
    assert board.config_read(5 << 3, 0) == 0x0005_1B36
    board.outl(EJ, 1 << 5)
    assert board.config_read(5 << 3, 0) == 0xFFFF_FFFF
    assert (board.deleted, board.inl(DOWN)) == (["d0"], 0)
    assert board.ledger.difference(before) == ([], [])


def test_eject_without_a_request_takes_the_device_away(board):
    hot_add(board, "d0", 5 << 3)
    board.outl(EJ, 1 << 5)
    assert (board.deleted, board.inl(UP)) == (["d0"], 0)


def test_eject_takes_every_function_of_the_slot(board):
    m1 = hot_add(board, "m1", 8 << 3 | 1, multifunction=True)
    hot_add(board, "m0", 8 << 3, multifunction=True)
    board.hotplug.request_unplug(m1)
    board.outl(EJ, 1 << 8)
    assert board.deleted == ["m0", "m1"]


@pytest.mark.parametrize("slot", [0, 1])
def test_eject_of_a_slot_that_is_not_hot_pluggable_is_ignored(board, slot):
    before = board.config_read(slot << 3, 0)
    board.outl(EJ, 1 << slot)
    assert board.config_read(slot << 3, 0) == before
    assert board.deleted == []
    assert board.config_read(PM_DEVFN, 0) == 0x7113_8086


def test_eject_of_several_slots_in_one_write_takes_the_lowest(board):
    for slot in (9, 10):
        hot_add(board, f"d{slot}", slot << 3)
    board.outl(EJ, 0x600)
    assert board.deleted == ["d9"]


def test_eject_of_an_empty_slot_or_of_nothing_is_ignored(board):
    board.outl(EJ, 0)
    board.outl(EJ, 1 << 20)
    assert board.deleted == []


@pytest.mark.parametrize("bus", [1, 256, 257, 0xFFFF_FFFF])
def test_other_buses_are_empty_and_eject_nothing(board, bus):
    device = hot_add(board, "d0", 5 << 3)
    board.hotplug.request_unplug(device)
    board.outl(BSEL, bus)
    assert [board.inl(port) for port in (UP, DOWN, INDEX)] == [0, 0, 0]
    assert board.inl(BSEL) == (bus if bus <= 256 else 0)
    board.outl(EJ, 1 << 5)
    assert board.deleted == []
    board.outl(BSEL, 0)
    assert [board.inl(UP), board.inl(DOWN)] == [0x20, 0x20]


@pytest.mark.parametrize("size", [1, 2])
def test_access_narrower_than_a_dword_reads_zero_and_does_nothing(board, size):
    hot_add(board, "d0", 5 << 3)
    assert board.ports.read(UP, size) == 0
    board.ports.write(EJ, size, 1 << 5)
    assert (board.deleted, board.inl(UP)) == ([], 0x20)


def test_acpi_index_of_the_slot_that_was_written_reads_back(board):
    hot_add(board, "d0", 5 << 3, **{"acpi-index": 7})
    hot_add(board, "d1", 6 << 3)
    read = []
    for mask in (0x20, 0x40, 0x80, 5, 0):
        board.outl(INDEX, mask)
        read.append(board.inl(INDEX))
    assert read == [7, 0, 0, 0, 0]


def test_second_request_at_time_0_stands_for_ever(board):
    device = hot_add(board, "d0", 5 << 3)
    board.hotplug.request_unplug(device)
    board.clock.step(5_000_000_000)
    with pytest.raises(LifecycleError, match=r"^Device d0 is already in the process of unplug$"):
        board.hotplug.request_unplug(device)


def test_second_request_in_a_running_machine_is_taken_and_shown_again(board):
    board.clock.step(1_000_000)
    device = hot_add(board, "d0", 5 << 3)
    board.hotplug.request_unplug(device)
    board.outb(0xAFE0, 2)
    board.hotplug.request_unplug(device)
    assert board.inb(0xAFE0) == 2


def test_pending_unplug_tells_since_when_and_whose_turn_it_is(board):
    board.clock.step(1_000_000)
    device = hot_add(board, "d0", 5 << 3)
    hot_add(board, "d1", 6 << 3)
    assert board.hotplug.waiting() == []
    board.hotplug.request_unplug(device)
    assert board.hotplug.waiting() == [(device, 1_000_000, "gpe-enable")]
    board.outb(0xAFE2, 2)
    assert board.hotplug.waiting() == [(device, 1_000_000, "sci")]
    board.inl(DOWN)
    assert board.hotplug.waiting() == [(device, 1_000_000, "eject")]
    board.clock.step(1_000_000)
    board.hotplug.request_unplug(device)  # asked again: it has to look again, and has waited since the first time
    assert board.hotplug.waiting() == [(device, 1_000_000, "sci")]
    board.outl(EJ, 1 << 5)
    assert board.hotplug.waiting() == []


def test_card_that_is_pulled_out_leaves_nothing_pending(board):
    device = hot_add(board, "d0", 5 << 3)
    board.hotplug.request_unplug(device)
    assert board.hotplug.forget(5) == [device]
    assert (board.inl(UP), board.inl(DOWN), board.hotplug.waiting()) == (0, 0, [])


def test_device_with_the_same_id_after_an_eject_can_be_requested_anew(board):
    for _ in range(3):
        device = hot_add(board, "d0", 5 << 3)
        board.hotplug.request_unplug(device)
        board.outl(EJ, 1 << 5)
    assert board.deleted == ["d0"] * 3


def test_ejected_device_is_referred_to_by_nobody(board):
    device = hot_add(board, "d0", 5 << 3)
    board.hotplug.request_unplug(device)
    board.outl(EJ, 1 << 5)
    gone = weakref.ref(device)
    del device
    gc.collect()
    assert gone() is None


def test_reset_ejects_what_is_pending_and_nothing_else(board):
    devices = [hot_add(board, f"d{slot}", slot << 3) for slot in (4, 5, 6)]
    board.inl(UP)
    hot_add(board, "d7", 7 << 3)
    board.outb(0xAFE2, 2)
    board.outl(BSEL, 1)
    for device in (devices[2], devices[0]):
        board.hotplug.request_unplug(device)
    board.reset()
    assert board.deleted == ["d4", "d6"]
    assert board.high() == []
    assert (board.inl(0xAFE0), board.inl(BSEL), board.inl(DOWN), board.inl(UP)) == (0, 0, 0, 1 << 7)
    board.reset()
    assert board.deleted == ["d4", "d6"]


def test_reset_with_a_request_in_a_slot_that_cannot_go_ends(board):
    board.hotplug.down = 1 << 1
    board.reset()
    assert board.hotplug.pending_slots == []


@given(value=st.integers(0, 0xFFFF), enable=st.integers(0, 0xFFFF), clear=st.integers(0, 0xFFFF))
def test_gpe0_bytes_agree_with_the_declaration_and_drive_the_sci(value, enable, clear):
    board = BOARD
    hotplug = board.hotplug
    hotplug.gpe_status = value
    board.outw(0xAFE2, enable)
    board.outw(0xAFE0, clear)
    registers = Gpe0Registers.parse(bytes(board.inb(0xAFE0 + i) for i in range(4)))
    assert (registers.status, registers.enable) == (value & ~clear, enable)
    assert board.high() == ([SCI] if value & ~clear & enable else [])


BOARD = PciBoard()


@settings(max_examples=80)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(("add", "request", "eject")), st.integers(0, 31)),
            st.tuples(st.just("write"), st.tuples(st.integers(0xAE00, 0xAE17), st.integers(0, 0xFFFF_FFFF))),
            st.tuples(st.sampled_from(("up", "reset")), st.just(0)),
        ),
        max_size=30,
    )
)
def test_slots_after_any_adds_requests_and_ejects_are_what_a_plain_model_says(steps):
    board = PciBoard(trace=True)
    before = board.ledger.snapshot()
    fixed = {0, 1}
    there, up, down = {}, set(), set()
    for what, slot in steps:
        if what == "add" and slot not in there and slot not in fixed:
            there[slot] = hot_add(board, f"d{slot}", slot << 3)
            up.add(slot)
        elif what == "request" and slot in there and slot not in down:
            board.hotplug.request_unplug(there[slot])
            down.add(slot)
        elif what == "eject":
            board.outl(BSEL, 0)
            board.outl(EJ, 1 << slot)
            there.pop(slot, None)
            up.discard(slot)
            down.discard(slot)
        elif what == "write" and not 0xAE08 <= slot[0] & ~3 < 0xAE0C:
            board.outl(*slot)
        elif what == "up":
            board.outl(BSEL, 0)
            assert board.inl(UP) == sum(1 << s for s in up)
            up.clear()
        elif what == "reset":
            board.reset()
            for gone in down:
                del there[gone]
                up.discard(gone)
            down.clear()
        board.outl(BSEL, 0)
        assert board.inl(DOWN) == sum(1 << s for s in down)
        assert {s for s in range(32) if board.config_read(s << 3, 0) == 0x0005_1B36} == set(there)
        raw = b"".join(board.inl(port).to_bytes(4, "little") for port in (DOWN, EJ, RMV, BSEL))
        registers = HotplugRegisters.parse(bytes(4) + raw + bytes(4))
        assert (registers.removable, registers.eject) == (0xFFFF_FFFC, 0)
    for slot in list(there):
        board.outl(EJ, 1 << slot)
    assert board.ledger.difference(before) == ([], [])
    assert len(board.recording.of(AcpiPciEjectSlot)) >= len(there)
