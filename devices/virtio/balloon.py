"""The memory balloon: the host says how many pages it wants, the driver gives them. Ref: VIRTIO 1.2, 5.5."""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Property
from devices.virtio import registers as r
from devices.virtio.pci import VirtioPci
from vmm.memory import GuestMemory
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.virtio.queue import Element, Virtqueue

PAGE = 4096
F_STATS_VQ = 1 << 1
F_DEFLATE_ON_OOM = 1 << 2
INFLATE, DEFLATE, STATS = range(3)
NO_STAT = (1 << 64) - 1

BalloonConfig = c.Struct("num_pages" / c.Int32ul, "actual" / c.Int32ul)
"""What the host wants, and what the driver has given, in pages of 4 KiB."""
StatEntry = c.Struct("tag" / c.Int16ul, "value" / c.Int64ul)
STAT_NAMES = (
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-async-scans",
    "stat-direct-scans",
    "stat-async-reclaims",
    "stat-direct-reclaims",
)
"""By tag, as QEMU's guest-stats shows them."""


class VirtioBalloonToTarget(Event):
    """The host wants the guest to have `target` bytes."""

    device: str
    target: int


class VirtioBalloon(VirtioPci):
    """`-device virtio-balloon-pci`: `set_target` says how much memory the guest is to keep, `actual` what it has.

    A page that the driver gives is given back to the host; it reads as zeros if the guest looks after all.
    """

    driver = "virtio-balloon-pci"
    description = "memory balloon"
    virtio_id, transitional_id, class_id = r.ID_BALLOON, 0x1002, 0x00FF
    queue_sizes = (128, 128, 128)
    config_size = 8
    properties = (
        *VirtioPci.properties,
        Property("deflate-on-oom", "bool", False, "the driver may take pages back when it has none left"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        self._target = self._given = 0
        self.stats: dict[int, int] = {}
        self.stats_time = 0
        self._stats_buffer: Element | None = None
        super().__init__(id, **values)

    def features(self) -> int:
        return F_STATS_VQ | (F_DEFLATE_ON_OOM if self.values["deflate-on-oom"] else 0)

    def config_bytes(self) -> bytes:
        return bytes(BalloonConfig.build({"num_pages": self._target, "actual": self._given}))

    def config_written(self, data: bytes) -> None:
        before, self._given = self._given, BalloonConfig.parse(data).actual
        tell = getattr(self.board, "emit", None)
        if before != self._given and tell is not None:
            tell("BALLOON_CHANGE", {"actual": self.actual})

    def restart(self) -> None:
        """The driver has given nothing; what the host wants stays."""
        self._given = 0
        self.stats.clear()
        self._stats_buffer = None

    @property
    def actual(self) -> int:
        """Bytes that the guest has."""
        size: int = getattr(self.board.memory, "size", 0)
        return max(size - self._given * PAGE, 0)

    def set_target(self, size: int) -> None:
        """Ask the guest to make do with `size` bytes."""
        total: int = getattr(self.board.memory, "size", 0)
        self._target = max(total - size, 0) // PAGE
        if self.board.trace.on:
            self.board.trace.emit(VirtioBalloonToTarget(self.label, size))
        self.config_interrupt()

    def qom_values(self) -> dict[str, tuple[str, Any]]:
        """Properties that qom-get shows beside those of `-device`."""
        stats = {name: self.stats.get(tag, NO_STAT) for tag, name in enumerate(STAT_NAMES)}
        return {"guest-stats": ("guest statistics", {"last-update": self.stats_time, "stats": stats})}

    def poll_stats(self) -> None:
        """Ask the driver for new statistics, if it has given any."""
        buffer, self._stats_buffer = self._stats_buffer, None
        if buffer is not None and self.driver_ok:
            self.queues[STATS].push(buffer, 0)
            self.notify(self.queues[STATS])

    def handle(self, queue: Virtqueue) -> int | None:
        """Pages that come or go, or statistics."""
        if queue.index == STATS and self._stats_buffer is not None:
            return None
        element = queue.pop()
        if element is None:
            return None
        raw = self.dma.gather(element.readable, 0, 1 << 16)
        if queue.index == STATS:
            # The driver's buffer is kept: giving it back asks for new ones.
            for entry in c.GreedyRange(StatEntry).parse(raw):
                if entry.tag < len(STAT_NAMES):
                    self.stats[entry.tag] = entry.value
            self.stats_time = self.board.clock.now() // 1_000_000_000
            self._stats_buffer = element
            return len(raw)
        if queue.index == INFLATE:
            for (page,) in struct.iter_unpack("<I", raw[: len(raw) & ~3]):
                self._discard(page * PAGE)
        queue.push(element, 0)
        return len(raw) * 64

    def _discard(self, address: int) -> None:
        memory = self.dma.memory
        if not isinstance(memory, GuestMemory):
            return  # of another process
        at = memory.locate(address, PAGE)
        if at >= 0 and not at % mmap.PAGESIZE:
            memory.ram.madvise(mmap.MADV_DONTNEED, at, PAGE)
            if memory.on_write is not None:
                memory.on_write(address, PAGE)
