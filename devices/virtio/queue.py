"""The split virtqueue: descriptor table, available ring, used ring, all in guest memory.

Nothing here trusts the guest. Whatever leads nowhere (an index out of range, a chain that loops, a buffer outside RAM)
raises `QueueBroken`, upon which the device stops until the guest resets it. Ref: VIRTIO 1.2, 2.7.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from devices.virtio import registers as r

if TYPE_CHECKING:
    from devices.pci.dma import Dma

_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_INDEX = struct.Struct("<H")


class QueueBroken(Exception):
    """The guest broke the rules of the queue; `str()` says which."""


class Element:
    """A chain of descriptors: what the device reads, then what it writes.

    `readable` and `writable` are lists of (address, length); all of it is RAM.
    """

    __slots__ = ("head", "readable", "readable_length", "writable", "writable_length")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[tuple[int, int]] = []
        self.writable: list[tuple[int, int]] = []
        self.readable_length = 0
        self.writable_length = 0


class Virtqueue:
    """One queue. `size` is what the driver chose, up to `max_size`; addresses are 0 while it has set none."""

    __slots__ = (
        "_dma",
        "_signalled",
        "avail",
        "desc",
        "enabled",
        "event_idx",
        "index",
        "last_avail",
        "max_size",
        "size",
        "used",
        "used_index",
        "vector",
    )

    def __init__(self, index: int, max_size: int, dma: Dma) -> None:
        self.index = index
        self.max_size = max_size
        self._dma = dma
        self.reset()

    def reset(self) -> None:
        """As at power-on: nowhere, and empty."""
        self.size = self.max_size
        self.desc = self.avail = self.used = 0
        self.enabled = False
        self.event_idx = False
        self.vector = r.NO_VECTOR
        self.last_avail = 0
        """How many chains were taken, modulo 65536."""
        self.used_index = 0
        """How many were given back."""
        self._signalled: int | None = None
        """`used_index` when the driver was last told, or was not to be."""

    def place_legacy(self, address: int) -> None:
        """Lay the rings out one behind the other from `address` on (0: nowhere). Ref: VIRTIO 1.2, 2.7.2."""
        self.desc = address
        self.avail = address + 16 * self.size
        end = self.avail + 6 + 2 * self.size
        self.used = (end + r.LEGACY_ALIGN - 1) & ~(r.LEGACY_ALIGN - 1)
        self.enabled = bool(address)
        self.last_avail = self.used_index = 0
        self._signalled = None

    # Memory.

    def _load(self, layout: struct.Struct, address: int, what: str) -> tuple[int, ...]:
        found = self._dma.load(layout, address)
        if found is None:
            raise QueueBroken(f"queue {self.index}: {what} at {address:#x} is not in memory")
        return found

    def _store(self, layout: struct.Struct, address: int, *fields: int) -> None:
        if not self._dma.store(layout, address, *fields):
            raise QueueBroken(f"queue {self.index}: the used ring at {address:#x} is not in memory")

    # Taking.

    def available(self) -> int:
        """How many chains the guest offers that were not taken."""
        (index,) = self._load(_INDEX, self.avail + 2, "the available ring")
        count = (index - self.last_avail) & 0xFFFF
        if count > self.size:
            raise QueueBroken(f"queue {self.index}: guest moved the available index by {count}, past its size")
        return count

    def pop(self) -> Element | None:
        """The next chain; None if there is none. Asks to be notified of the one after it."""
        if not self.available():
            return None
        slot = self.avail + 4 + 2 * (self.last_avail % self.size)
        (head,) = self._load(_INDEX, slot, "the available ring")
        if head >= self.size:
            raise QueueBroken(f"queue {self.index}: guest says that descriptor {head} is available")
        element = self._chain(head)
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        if self.event_idx:
            self._store(_INDEX, self.used + 4 + 8 * self.size, self.last_avail)
        return element

    def unpop(self) -> None:
        """Put the chain that was taken last back: it comes first again."""
        self.last_avail = (self.last_avail - 1) & 0xFFFF

    def _chain(self, head: int) -> Element:
        element = Element(head)
        table, entries, index = self.desc, self.size, head
        address, length, flags, following = self._load(_DESCRIPTOR, table + 16 * index, "a descriptor")
        if flags & r.DESC_F_INDIRECT:
            if not length or length % 16 or flags & r.DESC_F_NEXT:
                raise QueueBroken(f"queue {self.index}: an indirect table of {length} bytes, flags {flags:#x}")
            table, entries = address, length // 16
            address, length, flags, following = self._load(_DESCRIPTOR, table, "an indirect descriptor")
        count = 0
        while True:
            count += 1
            if count > r.MAX_QUEUE_SIZE or count > entries:
                raise QueueBroken(f"queue {self.index}: chain {head} is too long, or loops")
            if flags & r.DESC_F_INDIRECT:
                raise QueueBroken(f"queue {self.index}: an indirect table in chain {head} beyond its head")
            if not length:
                raise QueueBroken(f"queue {self.index}: a buffer of no bytes in chain {head}")
            if not self._dma.reachable(address, length):
                raise QueueBroken(f"queue {self.index}: buffer {address:#x}+{length:#x} is not in memory")
            if flags & r.DESC_F_WRITE:
                element.writable.append((address, length))
                element.writable_length += length
            elif element.writable:
                raise QueueBroken(f"queue {self.index}: chain {head} has a readable buffer behind a writable one")
            else:
                element.readable.append((address, length))
                element.readable_length += length
            if not flags & r.DESC_F_NEXT:
                return element
            index = following
            if index >= entries:
                raise QueueBroken(f"queue {self.index}: chain {head} goes on at {index} of {entries}")
            address, length, flags, following = self._load(_DESCRIPTOR, table + 16 * index, "a descriptor")

    # Giving back.

    def push(self, element: Element, written: int) -> None:
        """Give a chain back; the device wrote `written` bytes to it."""
        at = self.used_index
        self._store(_USED, self.used + 4 + 8 * (at % self.size), element.head, written)
        self.used_index = (at + 1) & 0xFFFF
        self._store(_INDEX, self.used + 2, self.used_index)

    def wants_interrupt(self, notify_on_empty: bool) -> bool:
        """Whether the driver wants to hear of what was given back since it was last asked.

        Ref: VIRTIO 1.2, 2.7.7 and 2.7.10.
        """
        old, new = self._signalled, self.used_index
        if old == new:
            return False
        self._signalled = new
        if notify_on_empty and not self.available():
            return True
        if self.event_idx:
            (event,) = self._load(_INDEX, self.avail + 4 + 2 * self.size, "the available ring")
            return old is None or (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        (flags,) = self._load(_INDEX, self.avail, "the available ring")
        return not flags & r.AVAIL_F_NO_INTERRUPT
