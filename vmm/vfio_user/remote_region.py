"""What a server says of its regions: sizes, parts that may be mapped, writes that may be made by eventfd.

All of it is checked here: a server may be mistaken or mean harm. What makes no sense is left out, and the region is
accessed by messages, which always works.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import construct

from vmm.errors import ConfigError
from vmm.shared_memory import SharedRegion
from vmm.vfio_user import protocol as p
from vmm.vfio_user.stream import close_all
from vmm.vfio_user.transport import is_eventfd

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CAPABILITIES = 16
MAX_AREAS = 64
"""Mappings that one region may have."""
MAX_INFO_SIZE = 1 << 16
"""Bytes of region information that are asked for."""
NO_FD = 0xFFFF_FFFF


class RemoteRegion:
    """A region of the server. `fd`, if not -1, is ours and has its mappable `areas` (offset, size)."""

    def __init__(self, index: int, size: int = 0, flags: int = 0, offset: int = 0) -> None:
        self.index = index
        self.size = size
        self.flags = flags
        self.offset = offset
        self.areas: list[tuple[int, int]] = []
        self.fd = -1

    def map(
        self, name: str, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> SharedRegion | None:
        """The region with its areas mapped, or None if none can be; takes the descriptor over if it returns one."""
        if self.fd < 0 or not 0 < len(self.areas) <= MAX_AREAS:
            return None
        try:
            region = SharedRegion(name, self.size, self.areas, read, write, self.fd, self.offset)
        except (OSError, OverflowError, ConfigError):
            return None
        self.fd = -1
        return region

    def close(self) -> None:
        """Close the descriptor, if nobody took it. A second close does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def request(index: int, room: int = p.REGION_INFO_SIZE) -> bytes:
    """DEVICE_GET_REGION_INFO for a region, with room for a reply of so many bytes."""
    fields = {"argsz": room, "flags": 0, "index": index, "cap_offset": 0, "size": 0, "offset": 0, "capabilities": b""}
    built: bytes = p.RegionInfo.build(fields)
    return built


def parse(index: int, payload: bytes, fds: list[int]) -> tuple[RemoteRegion, int]:
    """(the region, how much room a complete answer takes). Takes its descriptor out of `fds`, and closes others.

    ValueError if it is another region's.
    """
    try:
        info = p.RegionInfo.parse(payload)
        if info.index != index:
            raise ValueError(f"asked for region {index}, told of {info.index}")
        region = RemoteRegion(index, info.size, info.flags, info.offset)
        if info.flags & p.REGION_MMAP and fds:
            region.fd = fds.pop(0)
            region.areas = _areas(payload, info) if info.flags & p.REGION_CAPS else [(0, info.size)]
        return region, min(info.argsz, MAX_INFO_SIZE)
    finally:
        close_all(fds)
        fds.clear()


def _areas(payload: bytes, info: Any) -> list[tuple[int, int]]:
    """Of the sparse mmap capability; everything if there is none, nothing if it makes no sense."""
    at = int(info.cap_offset)
    for _ in range(MAX_CAPABILITIES):
        if not at:
            return [(0, int(info.size))]
        try:
            header = p.CapabilityHeader.parse(payload[at:])
            if header.id == p.CAP_SPARSE_MMAP:
                found = p.SparseMmap.parse(payload[at:])
                return [(area.offset, area.size) for area in found.areas]
        except construct.ConstructError:
            return []
        at = header.next
    return []


class RemoteDoorbell(NamedTuple):
    """A write that is made by signalling `fd`, ours: of `datamatch`, or of any value (None)."""

    offset: int
    size: int
    datamatch: int | None
    fd: int


def parse_doorbells(size: int, payload: bytes, fds: list[int]) -> list[RemoteDoorbell]:
    """Of the reply to DEVICE_GET_REGION_IO_FDS for a region of `size` bytes. Takes over `fds`.

    Only ioeventfds are taken; sub-regions of other kinds, and those that make no sense, are accessed by messages.
    """
    found = []
    try:
        reply = p.RegionIoFds.parse(payload)
        count = min(reply.count, p.SCM_MAX_FD)
        stride, rest = divmod(reply.argsz - p.REGION_IO_FDS_SIZE, reply.count) if reply.count else (0, 0)
        layouts = {p.SubRegionIoFd.sizeof(): p.SubRegionIoFd}
        layouts[p.LibvfioUserSubRegionIoFd.sizeof()] = p.LibvfioUserSubRegionIoFd
        layout = layouts.get(stride)
        if rest or layout is None or len(reply.sub_regions) < count * stride:
            count = 0
        for i in range(count):
            assert layout is not None
            entry = layout.parse(reply.sub_regions[i * stride :])
            inside = entry.size in (1, 2, 4, 8) and entry.offset + entry.size <= size
            fits = entry.type == p.IO_FD_TYPE_IOEVENTFD and entry.fd_index < len(fds) and inside
            if fits and is_eventfd(fds[entry.fd_index]):
                match = entry.datamatch if entry.flags & p.IOEVENTFD_DATAMATCH else None
                found.append(RemoteDoorbell(entry.offset, entry.size, match, os.dup(fds[entry.fd_index])))
    except (construct.ConstructError, OSError):
        pass  # what was found so far is good
    finally:
        close_all(fds)
        fds.clear()
    return found
