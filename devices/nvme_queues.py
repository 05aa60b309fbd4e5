"""NVMe queues, the commands in them, and where a command's data is in guest memory.

Nothing here trusts the guest: a pointer that is not aligned or does not lead to memory ends the command with a status.
Ref: NVMe 1.4, 4.1 to 4.3.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from devices import nvme_registers as r
from vmm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.pci.device import PciDevice
    from vmm.block import FileImage

    Segments = list[tuple[int, int]]
    """(address, length) of the pieces of a buffer, in order."""

SQE = struct.Struct("<BBHIIIQQQIIIIII")
CQE = struct.Struct("<IIHHHH")


class CommandFailed(Exception):
    """Ends the command at hand with `status` (SCT << 8 | SC)."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Sqe(NamedTuple):
    """A submission queue entry, as `nvme_registers.Command` declares it."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    cdw2: int
    cdw3: int
    mptr: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int


class CompletionQueue:
    """`tail` is where the controller writes next, `head` what the guest has consumed; one entry stays free."""

    __slots__ = ("base", "head", "id", "irq", "phase", "size", "submitters", "tail")

    def __init__(self, id: int, base: int, size: int, irq: bool) -> None:
        self.id = id
        self.base = base
        self.size = size
        self.irq = irq
        self.head = 0
        self.tail = 0
        self.phase = 1
        self.submitters: list[SubmissionQueue] = []
        """The submission queues that complete here."""

    @property
    def full(self) -> bool:
        """Whether a completion would overwrite one that the guest has not consumed."""
        return (self.tail + 1) % self.size == self.head

    def consume(self, head: int) -> bool:
        """The guest's doorbell. False if it cannot have consumed so much, or consumed nothing."""
        size = self.size
        if head >= size or not 0 < (head - self.head) % size <= (self.tail - self.head) % size:
            return False
        self.head = head
        return True

    def advance(self) -> None:
        """An entry was written at the tail."""
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1


class SubmissionQueue:
    """`tail` is where the guest writes next, `head` what the controller has fetched."""

    __slots__ = ("base", "cq", "head", "id", "size", "tail")

    def __init__(self, id: int, base: int, size: int, cq: CompletionQueue) -> None:
        self.id = id
        self.base = base
        self.size = size
        self.cq = cq
        self.head = 0
        self.tail = 0

    def submit(self, tail: int) -> bool:
        """The guest's doorbell. False if there is no room for so many, or none is new."""
        size = self.size
        if tail >= size or not 0 < (tail - self.tail) % size < size - (self.tail - self.head) % size:
            return False
        self.tail = tail
        return True


class Memory(Protocol):
    """Guest memory: this machine's RAM, or that of another process (vfio-user)."""

    def read(self, gpa: int, length: int, /) -> bytes:
        """Bytes at a bus address."""

    def write(self, gpa: int, data: bytes | bytearray | memoryview, /) -> None:
        """Store at a bus address."""


class GuestBuffers:
    """Guest memory as a controller reaches it: PRPs in, bytes in and out."""

    __slots__ = ("_device", "_locate", "_memory", "page")

    def __init__(self, device: PciDevice) -> None:
        self._device = device
        self._memory: Memory = device.board.memory
        # Of another process' memory nobody here knows the map; what it lacks reads as ones and is lost when written.
        self._locate: Callable[[int, int], int] = getattr(self._memory, "locate", lambda _address, _length: 0)
        self.page = 4096
        """Memory page size (CC.MPS), in bytes."""

    def reachable(self, address: int, length: int) -> bool:
        """Whether all of it is memory and the controller may master the bus."""
        return self._locate(address, length) >= 0 and self._device.bus_master

    def read(self, address: int, length: int) -> bytes | None:
        """Bytes of the guest; None if they cannot be reached."""
        return self._memory.read(address, length) if self.reachable(address, length) else None

    def write(self, address: int, data: bytes) -> bool:
        """Store; False if it cannot be reached."""
        if not self.reachable(address, len(data)):
            return False
        self._memory.write(address, data)
        return True

    def segments(self, prp1: int, prp2: int, length: int) -> Segments:
        """Where `length` bytes are. CommandFailed for a PRP with a wrong offset or out of memory.

        Ref: NVMe 1.4, 4.3.
        """
        page = self.page
        low = page - 1
        if prp1 & 3:
            raise CommandFailed(r.INVALID_PRP_OFFSET)
        first = min(length, page - (prp1 & low))
        found: Segments = []
        self._add(found, prp1, first)
        left = length - first
        if not left:
            return found
        if left <= page:
            if prp2 & low:
                raise CommandFailed(r.INVALID_PRP_OFFSET)
            self._add(found, prp2, left)
            return found
        if prp2 & 7:
            raise CommandFailed(r.INVALID_PRP_OFFSET)
        at = prp2
        while left:
            room = (page - (at & low)) // 8
            needed = (left + low) // page
            count = min(room, needed)
            raw = self.read(at, 8 * count)
            if raw is None:
                raise CommandFailed(r.DATA_TRANSFER_ERROR)
            entries = struct.unpack(f"<{count}Q", raw)
            if needed > room:
                # The last entry of a full page leads to the next page of the list.
                at = entries[-1]
                if at & low:
                    raise CommandFailed(r.INVALID_PRP_OFFSET)
                entries = entries[:-1]
            for entry in entries:
                if entry & low:
                    raise CommandFailed(r.INVALID_PRP_OFFSET)
                piece = min(left, page)
                self._add(found, entry, piece)
                left -= piece
        return found

    def _add(self, found: Segments, address: int, length: int) -> None:
        if not self.reachable(address, length):
            raise CommandFailed(r.DATA_TRANSFER_ERROR)
        if found and sum(found[-1]) == address:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((address, length))

    def send(self, prp1: int, prp2: int, data: bytes) -> None:
        """Give the guest `data` where the PRPs say."""
        done = 0
        for address, length in self.segments(prp1, prp2, len(data)):
            self._memory.write(address, data[done : done + length])
            done += length

    def fill(self, image: FileImage, offset: int, segments: Segments) -> None:
        """Read from an image into the segments. OSError if the host fails."""
        memory = self._memory
        if isinstance(memory, GuestMemory):
            view = memory.view
            try:
                image.read(offset, [view[at : at + length] for at, length in self._located(memory, segments)])
            finally:
                if memory.on_write is not None:
                    for address, length in segments:
                        memory.on_write(address, length)
            return
        data = bytearray(sum(length for _, length in segments))
        image.read(offset, [data])
        done = 0
        for address, length in segments:
            memory.write(address, data[done : done + length])
            done += length

    @staticmethod
    def _located(memory: GuestMemory, segments: Segments) -> Segments:
        """The segments as places in `view`. PRP lists were checked to lie in RAM."""
        return [(memory.locate(address, length), length) for address, length in segments]

    def drain(self, image: FileImage, offset: int, segments: Segments) -> None:
        """Write the segments to an image. OSError if the host fails."""
        memory = self._memory
        if isinstance(memory, GuestMemory):
            view = memory.view
            image.write(offset, [view[at : at + length] for at, length in self._located(memory, segments)])
        else:
            image.write(offset, [memory.read(address, length) for address, length in segments])
