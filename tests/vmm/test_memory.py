"""Address spaces: who answers where, and what an open bus says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import ConfigError
from vmm.memory import ALL_ONES, PCI_HOLE, AddressSpace, GuestMemory, IoRegion, split_ram


class Bytes:
    """A region backed by bytes, with a log of the accesses it got."""

    def __init__(self, size: int, fill: int = 0, **limits: int) -> None:
        self.data = bytearray([fill]) * size
        self.log: list[tuple[str, int, int]] = []
        self.region = IoRegion("bytes", size, self.read, self.write, **limits)

    def read(self, offset: int, size: int) -> int:
        self.log.append(("r", offset, size))
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("w", offset, size))
        self.data[offset : offset + size] = value.to_bytes(size, "little")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_address_nobody_answers_reads_all_ones(size):
    space = AddressSpace.memory()
    space.write(0x1000, size, 0)
    assert space.read(0x1000, size) == ALL_ONES[size]


def test_wide_access_is_split_into_what_the_region_takes():
    ports = AddressSpace.ports()
    device = Bytes(4, max_access=1)
    ports.map(0x3F8, device.region)
    ports.write(0x3F8, 4, 0x44332211)
    assert device.data == bytes.fromhex("11223344")
    assert ports.read(0x3F8, 2) == 0x2211
    assert device.log == [("w", i, 1) for i in range(4)] + [("r", 0, 1), ("r", 1, 1)]


def test_access_narrower_than_the_region_takes_is_ignored():
    ports = AddressSpace.ports()
    device = Bytes(4, fill=0x5A, min_access=4)
    ports.map(0xCF8, device.region)
    ports.write(0xCF8, 1, 0)
    assert ports.read(0xCF8, 1) == 0xFF
    assert ports.read(0xCF8, 4) == 0x5A5A5A5A


def test_access_across_two_regions_and_a_hole_takes_each_byte_where_it_lives():
    space = AddressSpace.memory()
    space.map(0x0FFE, Bytes(2, fill=0x11).region)
    space.map(0x1001, Bytes(4, fill=0x22).region)
    assert space.read(0x0FFE, 8) == 0xFF_22222222_FF_1111


def test_moved_mapping_answers_only_at_its_new_place():
    space = AddressSpace.memory()
    mapping = space.map(0xFEB0_0000, Bytes(0x1000, fill=0x33).region)
    mapping.move(0xFEB1_0800)
    assert space.read(0xFEB0_0000, 1) == 0xFF
    assert space.read(0xFEB1_0800, 1) == 0x33
    assert space.read(0xFEB1_17FF, 1) == 0x33
    assert space.read(0xFEB1_1800, 1) == 0xFF


def test_closed_mapping_uncovers_what_it_hid():
    space = AddressSpace.memory()
    space.map(0x1000, Bytes(0x1000, fill=1).region)
    over = space.map(0x1000, Bytes(0x10, fill=2).region, priority=1)
    assert (space.read(0x1000, 1), space.read(0x1010, 1)) == (2, 1)
    over.close()
    over.close()
    assert space.read(0x1000, 1) == 1
    with pytest.raises(ConfigError):
        over.move(0)


def test_higher_priority_answers_then_the_one_mapped_last():
    space = AddressSpace.memory()
    space.map(0, Bytes(16, fill=1).region, priority=1)
    space.map(0, Bytes(16, fill=2).region)
    assert space.read(0, 1) == 1
    space.map(0, Bytes(16, fill=3).region, priority=1)
    assert space.read(0, 1) == 3


def test_region_outside_the_space_is_refused():
    with pytest.raises(ConfigError, match="io space"):
        AddressSpace.ports().map(0xFFFF, Bytes(2).region)


def test_huge_region_answers_at_both_ends():
    space = AddressSpace.memory()
    mapping = space.map(1 << 40, Bytes(1 << 25, fill=7).region)
    assert space.read(1 << 40, 1) == 7
    assert space.read((1 << 40) + (1 << 25) - 1, 1) == 7
    mapping.close()
    assert space.read(1 << 40, 1) == 0xFF


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(0, 2)), max_size=8),
    st.lists(st.integers(0, 7), max_size=4),
    st.integers(0, 64),
    st.sampled_from([1, 2, 4, 8]),
)
def test_any_layout_reads_as_the_obvious_byte_map(layout, closed, address, size):
    space = AddressSpace.memory()
    mappings = [
        (space.map(base, Bytes(length, fill=i + 1).region, priority), priority)
        for i, (base, length, priority) in enumerate(layout)
    ]
    gone = {i for i in closed if i < len(mappings)}
    for i in gone:
        mappings[i][0].close()

    def byte(at: int) -> int:
        best = None
        for i, (base, length, priority) in enumerate(layout):
            if i not in gone and base <= at < base + length and (best is None or priority >= best[0]):
                best = (priority, i + 1)
        return best[1] if best else 0xFF

    assert space.read(address, 1) == byte(address)
    spans = [range(base, base + length) for base, length, _ in layout]
    if not any(set(a) & set(b) for i, a in enumerate(spans) for b in spans[:i]):
        expected = int.from_bytes(bytes(byte(address + i) for i in range(size)), "little")
        assert space.read(address, size) == expected


def test_access_goes_whole_to_who_answers_at_its_first_address():
    ports = AddressSpace.ports()
    index = Bytes(4, fill=0x11, min_access=4)
    ports.map(0xCF8, index.region)
    ports.map(0xCF9, Bytes(1, fill=0x99).region, priority=1)
    assert ports.read(0xCF8, 4) == 0x11111111
    assert ports.read(0xCF9, 1) == 0x99


def test_dma_outside_ram_reads_ones_and_is_lost():
    memory = GuestMemory(8192)
    touched: list[tuple[int, int]] = []
    memory.on_write = lambda gpa, length: touched.append((gpa, length))
    memory.write(8190, b"abcd")
    memory.write(9000, b"x")
    assert memory.read(8190, 4) == b"ab\xff\xff"
    assert memory.read(9000, 2) == b"\xff\xff"
    assert touched == [(8190, 2)]
    memory.close()


GIB = 1 << 30


def test_more_than_the_pci_hole_leaves_room_for_is_split_and_the_rest_begins_at_4_gib():
    assert split_ram(PCI_HOLE - 4096) == (PCI_HOLE - 4096, 0)
    assert split_ram(PCI_HOLE) == (3 * GIB, GIB // 2)
    memory = GuestMemory(6 * GIB)
    touched: list[tuple[int, int]] = []
    memory.on_write = lambda gpa, length: touched.append((gpa, length))
    assert memory.ranges() == [(0, 3 * GIB), (4 * GIB, 3 * GIB)]
    memory.write(3 * GIB - 2, b"low!")
    memory.write(4 * GIB - 2, b"...high")
    memory.write(7 * GIB - 1, b"last")
    assert memory.read(3 * GIB - 2, 4) == b"lo\xff\xff"
    assert memory.read(4 * GIB - 1, 6) == b"\xff.high"
    assert memory.read(7 * GIB - 1, 2) == b"l\xff"
    assert touched == [(3 * GIB - 2, 2), (4 * GIB, 5), (7 * GIB - 1, 1)]
    assert [memory.locate(*where) for where in ((0, 8), (3 * GIB - 4, 8), (4 * GIB - 4, 8), (4 * GIB, 8))] == [
        0,
        -1,
        -1,
        3 * GIB,
    ]
    assert memory.locate(7 * GIB - 8, 8) == 6 * GIB - 8
    assert memory.locate(7 * GIB - 7, 8) == -1
    memory.close()


@given(st.integers(-(1 << 13), 1 << 13), st.integers(1, 64), st.sampled_from([0, 3 * GIB, 4 * GIB, 5 * GIB]))
def test_an_access_anywhere_is_that_of_its_bytes(offset, length, near):
    memory = GuestMemory(4 * GIB)
    gpa = max(near + offset, 0)
    data = bytes(range(1, length + 1))
    memory.write(gpa, data)
    ram = [a < 3 * GIB or 4 * GIB <= a < 5 * GIB for a in range(gpa, gpa + length)]
    assert memory.read(gpa, length) == bytes(d if r else 0xFF for d, r in zip(data, ram, strict=True))
    assert (memory.locate(gpa, length) >= 0) == all(ram)
    memory.close()


def test_ram_size_that_is_no_whole_page_is_refused():
    with pytest.raises(ConfigError, match="4097"):
        GuestMemory(4097)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), max_size=5),
)
def test_regions_of_several_pages_come_move_and_go_in_any_order(layout, changed):
    space = AddressSpace.memory()
    mappings = [space.map(p << 12, Bytes(n << 12, fill=i + 1).region) for i, (p, n) in enumerate(layout)]
    places = {i: range(p, p + n) for i, (p, n) in enumerate(layout)}
    for i in changed:
        if i in places and places[i].start < 7:
            mappings[i].move(8 << 12)
            places[i] = range(8, 8 + layout[i][1])
        elif i in places:
            mappings[i].close()
            del places[i]
    for page in range(14):
        there = [i for i, pages in places.items() if page in pages]
        assert space.read(page << 12 | 0xFFF, 1) == (max(there) + 1 if there else 0xFF)
