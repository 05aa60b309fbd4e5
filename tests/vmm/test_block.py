"""Image files: what is refused, what is locked, what is stored."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.block import FileImage
from vmm.errors import ConfigError, InUse


def make(path, size=4096, fill=b"\0"):
    path.write_bytes(fill * size)
    return str(path)


def test_image_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"Could not open '.*nosuch': No such file"):
        FileImage(str(tmp_path / "nosuch"))


def test_path_with_a_nul_is_refused():
    with pytest.raises(ConfigError, match="null"):
        FileImage("a\0b")


def test_directory_fifo_and_character_device_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/null"):
        with pytest.raises(ConfigError, match=r"Is a directory|neither a file"):
            FileImage(str(path))


def test_empty_image_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(ConfigError, match="truncate -s 64M"):
        FileImage(make(tmp_path / "empty", 0))


def test_image_that_ends_inside_a_sector_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"truncate -s %4096"):
        FileImage(make(tmp_path / "odd", 4608), sector_size=4096)
    assert FileImage(make(tmp_path / "odd", 4608)).size == 4608


def test_image_of_another_writer_is_in_use_until_that_closes(tmp_path):
    path = make(tmp_path / "disk")
    first = FileImage(path)
    for readonly in (False, True):
        with pytest.raises(InUse, match="lock"):
            FileImage(path, readonly)
    first.close()
    first.close()
    assert FileImage(path).size == 4096


def test_readers_share_an_image_and_keep_writers_out(tmp_path):
    path = make(tmp_path / "disk")
    readers = [FileImage(path, readonly=True) for _ in range(2)]
    with pytest.raises(InUse, match="'write' lock"):
        FileImage(path)
    assert [reader.size for reader in readers] == [4096, 4096]


def test_refused_image_leaves_no_descriptor_open(tmp_path):
    path = make(tmp_path / "empty", 0)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path.iterdir would hold one itself
    for _ in range(3):
        with pytest.raises(ConfigError):
            FileImage(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_image_cut_off_under_us_is_an_error_not_a_short_read(tmp_path):
    image = FileImage(make(tmp_path / "disk"))
    os.truncate(image.path, 1000)
    with pytest.raises(OSError, match="ends at 0x3e8"):
        image.read(512, [bytearray(512), bytearray(512)])


@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=8),
    offset=st.integers(0, 2000),
    most=st.integers(1, 900),
    data=st.data(),
)
def test_pieces_come_back_as_written_however_little_the_host_takes_at_once(
    tmp_path_factory, lengths, offset, most, data
):
    path = tmp_path_factory.mktemp("image") / "disk"
    image = FileImage(make(path, 8192, b"\xaa"))
    content = data.draw(st.binary(min_size=sum(lengths), max_size=sum(lengths)))
    pieces, at = [], 0
    for length in lengths:
        pieces.append(content[at : at + length])
        at += length
    pwritev, preadv = os.pwritev, os.preadv
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", lambda fd, bufs, at: pwritev(fd, [memoryview(bufs[0])[:most]], at))
        patch.setattr(os, "preadv", lambda fd, bufs, at: preadv(fd, [memoryview(bufs[0])[:most]], at))
        image.write(offset, pieces)
        back = [bytearray(length) for length in lengths]
        image.read(offset, back)
    image.close()
    assert b"".join(back) == content
    whole = path.read_bytes()
    assert whole == b"\xaa" * offset + content + b"\xaa" * (8192 - offset - len(content))


@pytest.mark.parametrize("holes", [True, False])
def test_zeroes_cover_exactly_their_range(tmp_path, monkeypatch, holes):
    path = tmp_path / "disk"
    image = FileImage(make(path, 200_192, b"\xff"))
    if not holes:

        def refuse(*_):
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1

        monkeypatch.setattr("vmm.block._fallocate", refuse)
    image.write_zeroes(512, 150_016)
    assert path.read_bytes() == b"\xff" * 512 + bytes(150_016) + b"\xff" * (200_192 - 150_528)


def test_zeroes_in_an_image_open_for_reading_are_an_error(tmp_path):
    image = FileImage(make(tmp_path / "disk"), readonly=True)
    with pytest.raises(OSError, match="disk"):
        image.write_zeroes(0, 512)
