"""Compressed data, unpacked by libraries: kernels and kernel modules.

What a format is, its first bytes say. lz4 and zstd come from packages that may be missing; the rest is Python's own.
Ref: Linux Documentation/arch/x86/boot.rst, payload_offset (the formats and their magic numbers).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Final

from vmm.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Callable

    Data = bytes | memoryview

LIMIT: Final = 1 << 30
_LONGEST_MAGIC: Final = 6
_CHUNK: Final = 1 << 18
LZ4_BLOCK: Final = 8 << 20
"""A block of lz4's legacy frame unpacks to this, the last one to less. Ref: lz4_Frame_format.md, Legacy frame."""


def kind(data: Data) -> str | None:
    """The name of the format, None if it is none of these."""
    start = bytes(data[:_LONGEST_MAGIC])
    return next((name for magic, name, _ in FORMATS if start.startswith(magic)), None)


def unpack(data: Data, path: str, limit: int = LIMIT) -> bytes:
    """`data` unpacked. What follows the compressed data is ignored.

    BootError, naming `path`, for a format that is not known or whose package is missing, for damaged data, and for
    more than `limit` bytes of result.
    """
    start = bytes(data[:_LONGEST_MAGIC])
    for magic, name, function in FORMATS:
        if start.startswith(magic):
            try:
                result = function(data, limit + 1)
            except ImportError as error:
                raise BootError(f"{name}: the Python package {error.name!r} is not installed", path) from error
            except Exception as error:  # each library has its own
                raise BootError(f"damaged {name} data ({error})", path) from error
            if not result:
                raise BootError(f"damaged {name} data (it unpacks to nothing)", path)
            if len(result) > limit:
                raise BootError(f"{name} data that unpacks to more than {limit:#x} bytes", path)
            return result
    raise BootError(f"compressed in a way that is not known (it begins with {start.hex(' ')})", path)


def _gzip(data: Data, most: int) -> bytes:
    machine = zlib.decompressobj(wbits=31)
    result = machine.decompress(data, most)
    return _whole(result, machine.eof or len(result) >= most)


def _bzip2(data: Data, most: int) -> bytes:
    machine = bz2.BZ2Decompressor()
    result = machine.decompress(data, most)
    return _whole(result, machine.eof or len(result) >= most)


def _xz(data: Data, most: int) -> bytes:
    machine = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    result = machine.decompress(data, most)
    return _whole(result, machine.eof or len(result) >= most)


def _lzma(data: Data, most: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, most)


def _lz4(data: Data, most: int) -> bytes:
    import lz4.block

    pieces = []
    at, total = 4, 0
    while at + 4 < len(data) and total < most:
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            break  # behind the last block a kernel has its unpacked size
        piece = lz4.block.decompress(data[at + 4 : at + 4 + size], uncompressed_size=LZ4_BLOCK)
        pieces.append(piece)
        total += len(piece)
        at += 4 + size
    return _whole(b"".join(pieces), total > 0 and len(data) - at <= 4)


def _zstd(data: Data, most: int) -> bytes:
    import zstandard

    # Kernels are compressed with a window of 128 MiB. An object ends with its frame, a reader looks for another one.
    machine = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    pieces = []
    total = 0
    for at in range(0, len(data), _CHUNK):
        piece = machine.decompress(data[at : at + _CHUNK])
        pieces.append(piece)
        total += len(piece)
        if machine.eof or total >= most:
            break
    return _whole(b"".join(pieces), machine.eof or total >= most)


def _whole(result: bytes, ended: bool) -> bytes:
    if not ended:
        raise ValueError("it is cut short")
    return result


FORMATS: Final[tuple[tuple[bytes, str, Callable[[Data, int], bytes]], ...]] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x5d\x00\x00", "lzma", _lzma),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)
