"""The mailbox guest: its image as a processor reads it, and what leaves its CPU, with a CPU that a test scripts."""

from __future__ import annotations

import itertools
import struct

import pytest

from vmm.errors import EngineError
from vmm.kernel import hostkvm_abi as abi
from vmm.kernel import hostkvm_guest
from vmm.kernel.hostkvm_guest import OPERATIONS, MailboxGuest, UserMmio, UserPort

BASE = 0x10000
MAILBOX = 0x20000
READY = (2, (1, 1, 0x10))


@pytest.fixture
def image():
    """Guest memory as the image makes it, from address 0."""
    hostkvm_guest._image.cache_clear()
    return bytes(BASE) + hostkvm_guest._image()


class Vm:
    def __init__(self):
        self.memory = bytearray(1 << 19)


class Cpu:
    """Leaves its guest as scripted: an exit reason with what KVM tells about it. Then, or else, it is ready."""

    def __init__(self, index=0, *, exits=(), result=0, memory=None):
        self.index, self.exits, self.result, self.memory = index, list(exits), result, memory
        self.started = ()
        self.reason = None
        self.given = []  # what the guest reads
        self.mailbox = b""
        self.area = bytearray(b"\xee" * 2 * 4096)
        self.run_area = abi.Run.from_buffer(self.area)

    def set_long_mode(self, *registers):
        self.started = registers

    def run(self):
        if self.memory is not None:
            self.mailbox = bytes(self.memory[MAILBOX : MAILBOX + 32])
            self.memory[MAILBOX + 24 : MAILBOX + 32] = self.result.to_bytes(8, "little")
        if self.reason == 6:
            self.given.append(bytes(self.area[40:48]))
        self.reason, told = self.exits.pop(0) if self.exits else READY
        reason = self.reason
        if reason == 2:
            struct.pack_into("<BBHIQ", self.area, 32, *told, 1, 4096)
        elif reason == 6:
            struct.pack_into("<Q8sIB", self.area, 32, told[0], b"\xee" * 8, *told[1:])
        elif reason == 17:
            struct.pack_into("<I", self.area, 32, told)
        return reason


@pytest.fixture
def vm():
    return Vm()


@pytest.fixture
def guest(vm):
    return MailboxGuest(vm)


# The image.


def test_every_operation_of_the_guest_begins_where_its_table_says(image):
    count = len(OPERATIONS)
    table = struct.unpack_from(f"<{count}Q", image, BASE + 0x80)
    starts = dict(zip(OPERATIONS, (image[address:][:2] for address in table), strict=True))
    assert starts == {
        "ready": b"\xe6\x10",  # out 0x10, al
        "write8": b"\x88\x0e",
        "write16": b"\x66\x89",
        "write32": b"\x89\x0e",
        "write64": b"\x48\x89",
        "read8": b"\x0f\xb6",
        "read16": b"\x0f\xb7",
        "read32": b"\x8b\x06",
        "read64": b"\x48\x8b",
        "wreg": b"\xbb\x00",  # mov ebx, 0xfec00000
        "window": b"\xfb\xf3",  # sti; pause
        "popcnt": b"\xf3\x48",
        "in8": b"\x89\xf2",  # mov edx, esi
        "out8": b"\x89\xf2",
    }
    assert list(OPERATIONS.values()) == list(range(count))


def test_guests_gates_lead_to_the_handler_and_the_nmis_to_the_return(image):
    for vector in range(256):
        low, selector, stack, kind, middle, high, zero = struct.unpack_from("<HHBBHII", image, 0x12000 + 16 * vector)
        assert (selector, stack, kind, high, zero) == (8, 0, 0x8E, 0, 0)  # an interrupt gate of ring 0
        handler = image[low | middle << 16 :][:2]
        assert handler == (b"\x48\xcf" if vector == 2 else b"\xe6\x11")  # iretq; out 0x11, al


def test_guests_segments_are_flat(image):
    null, code, data = struct.unpack_from("<3Q", image, 0x11000)
    assert null == 0
    limit = 0xF << 48 | 0xFFFF  # in pages: bit 55
    assert code == limit | 1 << 55 | 1 << 53 | 0x9B << 40  # 64 bits, execute and read
    assert data == limit | 1 << 55 | 1 << 54 | 0x93 << 40  # 32 bits, read and write


def test_guests_addresses_are_physical_ones_up_to_4_gib(image):
    def translated(address):
        table = 0x40000
        for shift in (39, 30, 21):
            (entry,) = struct.unpack_from("<Q", image, table + 8 * (address >> shift & 511))
            assert entry & 7 == 7  # present, writable, for all
            table = entry & 0xFFFF_FFFF_F000
            if entry & 0x80:
                assert (shift, entry & 0xFF) == (21, 0x87)
                return table | address & 0x1F_FFFF
        raise AssertionError("no page")

    for address in (0, 0x12345, 0x1F_FFFF, 0x20_0000, 0x7FFF_FFFF, 0xFEC0_0010, 0xFEE0_00B0, 0xFFFF_FFFF):
        assert translated(address) == address


def test_image_leaves_mailbox_and_stacks_empty_and_ends_with_its_page_tables(image):
    assert not any(image[0x13000:0x40000])
    assert len(image) == 0x46000


# Its CPU.


def test_guest_is_put_into_memory_and_started_with_a_stack_for_each_cpu(vm, guest, image):
    assert vm.memory == image.ljust(1 << 19, b"\0")
    cpus = [Cpu(n) for n in range(8)]
    for cpu in cpus:
        guest.start(cpu)
    assert {(rip, *rest) for rip, _, *rest in (cpu.started for cpu in cpus)} == {(0x10000, 0x40000, 0x12000, 0x11000)}
    tops = [cpu.started[1] for cpu in cpus]
    assert all(above - below >= 4096 for above, below in itertools.pairwise(tops))
    assert all(top - 4096 >= MAILBOX + 4096 and top <= 0x40000 and top % 4096 == 0 for top in tops)


def test_start_runs_the_guest_up_to_its_first_ready(guest):
    cpu = Cpu(exits=[(6, (0xFEC0_0000, 4, 1)), READY, READY])
    guest.start(cpu)
    assert cpu.exits == [READY]


def test_call_fills_the_mailbox_and_gives_the_answer(vm, guest):
    cpu = Cpu(memory=vm.memory, result=0x1122_3344_5566_7788)
    assert guest.call(cpu, "read64", 0x30000, 5) == 0x1122_3344_5566_7788
    assert struct.unpack("<4Q", cpu.mailbox) == (8, 0x30000, 5, 0)
    guest.call(cpu, "ready")
    assert struct.unpack("<4Q", cpu.mailbox) == (0, 0, 0, 0)


def test_access_that_kvm_hands_over_is_told_and_reads_give_0(guest):
    first, second = (6, (0xFED0_0ABC, 4, 0)), (6, (0xFED0_0AC0, 2, 1))
    cpu = Cpu(exits=[first, second, READY])
    assert guest.call(cpu, "read64", 0xFED0_0ABC) == UserMmio(False, 0xFED0_0ABC, 4)  # the first of them
    assert not cpu.exits
    assert cpu.given == [bytes(8)] * 2
    assert guest.call(Cpu(exits=[second, first]), "write8") == UserMmio(True, 0xFED0_0AC0, 2)


@pytest.mark.parametrize(("write", "operation"), [(False, "in8"), (True, "out8")])
def test_port_that_kvm_hands_over_is_told_and_does_not_take_the_next_call_away(guest, write, operation):
    cpu = Cpu(exits=[(2, (write, 1, 0x60)), READY])
    assert guest.call(cpu, operation, 0x60) == UserPort(write, 0x60, 1)
    assert not cpu.exits
    assert cpu.area[4096:4098] == b"\0\xee"


@pytest.mark.parametrize(("port", "taken"), [(0x11, True), (0x10, False)])
def test_interrupt_is_taken_if_its_handler_was_reached(vm, guest, port, taken):
    cpu = Cpu(exits=[(2, (1, 1, port)), READY], memory=vm.memory)
    assert guest.taken(cpu, 77) is taken
    assert cpu.exits == [READY]
    assert struct.unpack("<4Q", cpu.mailbox) == (OPERATIONS["window"], 0, 77, 0)


@pytest.mark.parametrize(("exit_", "words"), [((8, ()), "exit 8$"), ((17, 3), "exit 17, suberror 3$")])
def test_guest_that_cannot_go_on_is_an_error_with_the_reason(guest, exit_, words):
    with pytest.raises(EngineError, match="CPU 1 left its guest with " + words):
        guest.call(Cpu(1, exits=[exit_]), "ready")
