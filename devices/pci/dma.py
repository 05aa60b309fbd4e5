"""How a device that masters the bus reaches scattered buffers of its guest.

A buffer is a list of segments, (address, length) each. Where memory is this machine's RAM the host's files are read
and written in place; over vfio-user it is another process's, and bytes are copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from devices.pci.config import COMMAND, COMMAND_MASTER
from vmm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from struct import Struct

    from devices.pci.device import PciDevice

    Segments = Sequence[tuple[int, int]]


class Memory(Protocol):
    """Guest memory: this machine's RAM, or that of another process."""

    def read(self, gpa: int, length: int, /) -> bytes:
        """Bytes at a bus address."""

    def write(self, gpa: int, data: bytes | bytearray | memoryview, /) -> None:
        """Store at a bus address."""


class Image(Protocol):
    """What a disk is made of. Calls raise OSError if the host fails."""

    def read(self, offset: int, buffers: Sequence[memoryview | bytearray], /) -> None:
        """Fill the buffers from `offset` on."""

    def write(self, offset: int, buffers: Sequence[bytes | memoryview | bytearray], /) -> None:
        """Store the buffers from `offset` on."""


class Dma:
    """A device's way to guest memory."""

    __slots__ = ("_config", "_locate", "_view", "memory")

    def __init__(self, device: PciDevice) -> None:
        """For a device that is being realized, and for as long as it is."""
        self._config = device.config
        self.memory: Memory = device.board.memory
        self._view: memoryview | None = None
        self._locate: Callable[[int, int], int] = _anywhere
        if isinstance(self.memory, GuestMemory):
            self._view, self._locate = self.memory.view, self.memory.locate

    def reachable(self, address: int, length: int) -> bool:
        """Whether all of it is memory and the device may master the bus."""
        return self._locate(address, length) >= 0 and bool(self._config.data[COMMAND] & COMMAND_MASTER)

    def load(self, layout: Struct, address: int) -> tuple[int, ...] | None:
        """The fields of a structure; None if it cannot be reached."""
        if not self._config.data[COMMAND] & COMMAND_MASTER:
            return None
        if self._view is None:
            return layout.unpack(self.memory.read(address, layout.size))
        at = self._locate(address, layout.size)
        return layout.unpack_from(self._view, at) if at >= 0 else None

    def store(self, layout: Struct, address: int, *fields: int) -> bool:
        """Store a structure; False if it cannot be reached."""
        if not self.reachable(address, layout.size):
            return False
        self.memory.write(address, layout.pack(*fields))
        return True

    def gather(self, segments: Segments, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of a buffer from `start` on, at most `length`."""
        return b"".join(self.memory.read(address, size) for address, size in cut(segments, start, length))

    def scatter(self, segments: Segments, data: bytes | memoryview, start: int = 0) -> int:
        """Store `data` into a buffer from `start` on, as far as it fits: how much was."""
        done = 0
        for address, size in cut(segments, start, len(data)):
            self.memory.write(address, data[done : done + size])
            done += size
        return done

    def fill(self, image: Image, offset: int, segments: Segments) -> None:
        """Read from an image into a buffer. OSError if the host fails."""
        memory = self.memory
        if isinstance(memory, GuestMemory):
            try:
                image.read(offset, self._views(memory, segments))
            finally:
                if memory.on_write is not None:
                    for address, length in segments:
                        memory.on_write(address, length)
            return
        data = bytearray(sum(length for _, length in segments))
        image.read(offset, [data])
        self.scatter(segments, memoryview(data))

    def drain(self, image: Image, offset: int, segments: Segments) -> None:
        """Write a buffer to an image. OSError if the host fails."""
        memory = self.memory
        if isinstance(memory, GuestMemory):
            image.write(offset, self._views(memory, segments))
        else:
            image.write(offset, [self.memory.read(address, length) for address, length in segments])

    @staticmethod
    def _views(memory: GuestMemory, segments: Segments) -> list[memoryview]:
        """The segments in place; all of them are RAM."""
        view, locate = memory.view, memory.locate
        return [view[at : at + length] for at, length in ((locate(a, n), n) for a, n in segments)]


def _anywhere(_address: int, _length: int) -> int:
    """Memory of another process: what it lacks reads as ones and is lost when written."""
    return 0


def cut(segments: Segments, start: int, length: int | None = None) -> list[tuple[int, int]]:
    """The part of a buffer from `start` on, at most `length` bytes of it."""
    left = 1 << 64 if length is None else length
    found = []
    for address, size in segments:
        if start >= size:
            start -= size
            continue
        piece = min(size - start, left)
        if piece <= 0:
            break
        found.append((address + start, piece))
        left -= piece
        start = 0
    return found
