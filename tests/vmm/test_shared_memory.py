"""Memory behind descriptors: sealed files are mapped, others are read and written; one that shrinks does no harm."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import ConfigError
from vmm.shared_memory import SharedBytes, SharedRegion, is_sealed, memfd

PAGE = 4096


@pytest.fixture(params=[True, False], ids=["sealed", "unsealed"])
def fd(request):
    made = memfd("test", 4 * PAGE, request.param)
    yield made
    os.close(made)


def test_bytes_are_those_of_the_file_both_ways(fd):
    shared = SharedBytes(fd, PAGE, PAGE)
    assert (shared.view is not None) == is_sealed(fd)
    shared.write(8, b"data")
    assert os.pread(fd, 4, PAGE + 8) == b"data"
    os.pwrite(fd, b"more", 2 * PAGE - 4)
    assert shared.read(PAGE - 4, 4) == b"more"
    shared.close()
    shared.close()


def test_file_that_is_cut_off_reads_all_ones_and_does_not_grow_again():
    fd = memfd("test", 2 * PAGE, seal=False)
    shared = SharedBytes(fd, 0, 2 * PAGE)
    os.truncate(fd, PAGE + 2)
    assert shared.read(PAGE, 4) == b"\0\0\xff\xff"
    shared.write(PAGE, b"four")
    shared.write(PAGE + 100, b"lost")
    assert os.fstat(fd).st_size == PAGE + 2
    assert os.pread(fd, 4, PAGE) == b"fo"
    os.close(fd)


def test_sealed_file_cannot_be_cut_off():
    fd = memfd("test", PAGE)
    with pytest.raises(PermissionError):
        os.truncate(fd, 0)
    os.close(fd)


def test_what_is_no_file_ends_too_early_or_may_not_be_written_is_refused(tmp_path):
    event = os.eventfd(0)
    with pytest.raises(OSError, match="no file") as caught:
        SharedBytes(event, 0, 8)
    assert caught.value.errno == errno.EINVAL
    os.close(event)
    (tmp_path / "file").write_bytes(bytes(PAGE))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="ends before"):
        SharedBytes(fd, 0, PAGE + 1, writable=False)
    with pytest.raises(OSError, match="does not allow") as caught:
        SharedBytes(fd, 0, PAGE)
    assert caught.value.errno == errno.EACCES
    assert SharedBytes(fd, 0, PAGE, writable=False).read(0, 2) == b"\0\0"
    os.close(fd)


def test_region_is_memory_in_its_areas_and_registers_elsewhere():
    writes = []
    region = SharedRegion("test", 4 * PAGE, [(PAGE, PAGE)], lambda offset, _: offset, lambda *a: writes.append(a))
    region.write(PAGE + 4, 4, 0x1234)
    assert os.pread(region.fd, 2, PAGE + 4) == b"\x34\x12"
    assert region.read(PAGE + 4, 2) == 0x1234
    assert region.read(8, 4) == 8
    assert region.read(2 * PAGE - 2, 4) == 2 * PAGE - 2  # it leaves the area
    region.write(0, 1, 5)
    assert writes == [(0, 1, 5)]
    region.close()
    region.close()


def test_region_without_registers_is_an_open_bus_outside_its_areas():
    region = SharedRegion("test", 2 * PAGE, [(0, PAGE)])
    region.write(PAGE, 4, 1)
    assert region.read(PAGE, 4) == 0xFFFF_FFFF
    region.close()


@given(st.integers(-PAGE, 4 * PAGE), st.integers(-PAGE, 4 * PAGE))
def test_areas_are_pages_inside_the_region_or_refused(offset, length):
    good = offset >= 0 < length and offset + length <= 2 * PAGE and not (offset | length) % PAGE
    try:
        SharedRegion("test", 2 * PAGE, [(offset, length)]).close()
    except ConfigError:
        assert not good
    else:
        assert good


def test_more_memory_than_there_can_be_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="'huge'"):
        memfd("huge", 1 << 70)
