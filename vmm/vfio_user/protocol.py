"""The messages of vfio-user as declarations, and the numbers in them.

`REQUESTS` and `REPLIES` give the payload that follows the header, by command; a command that is in neither has none.
All integers are little-endian. An error reply is a header alone, whatever its command. What is exchanged at every
register access is packed and unpacked by the plain `struct` formats at the end; the declarations say the same.

Ref: QEMU docs/interop/vfio-user.rst; include/uapi/linux/vfio.h
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, Final

import construct as c

MAJOR, MINOR = 0, 2
"""The version spoken here. The answer to a proposal is the smaller minor version."""


class Command(enum.IntEnum):
    """What a message asks for. 14 (DIRTY_PAGES) is obsolete."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


# Header.

HEADER_SIZE: Final = 16
TYPE_MASK: Final = 0xF
TYPE_COMMAND: Final = 0
TYPE_REPLY: Final = 1
FLAG_NO_REPLY: Final = 0x10
FLAG_ERROR: Final = 0x20

Header = c.Struct(
    "msg_id" / c.Int16ul,
    "command" / c.Int16ul,
    "msg_size" / c.Int32ul,
    "flags" / c.Int32ul,
    "error" / c.Int32ul,
)
"""`msg_size` counts the header; `error` is a positive errno if FLAG_ERROR is set."""

# Limits.

MAX_DATA_XFER_SIZE: Final = 1 << 20
"""The largest read or write, in bytes, unless VERSION says otherwise."""
MAX_MESSAGE_SIZE: Final = HEADER_SIZE + 16 + MAX_DATA_XFER_SIZE
MAX_MSG_FDS: Final = 8
"""Descriptors that a message to us may carry. QEMU refuses a server that says more than 16."""
SCM_MAX_FD: Final = 253
"""The kernel's limit of descriptors in one message."""
MAX_FDS_OF_A_PEER: Final = 1024
"""A peer that says it takes more descriptors than this is mistaken."""
MAX_DMA_MAPS: Final = 65535
PAGE_SIZE: Final = 4096
MAX_BITMAP_SIZE: Final = MAX_DATA_XFER_SIZE - 64
"""The largest bitmap of dirty pages that is made, in bytes: it goes in one message."""
CHUNK: Final = 1 << 16
"""What is sent in one message of bulk data: more would not fit into the buffer of a UNIX socket at once."""

# Negotiation.

Version = c.Struct("major" / c.Int16ul, "minor" / c.Int16ul, "data" / c.GreedyBytes)
"""`data`: JSON {"capabilities": {...}} and a NUL, or nothing."""
VERSION_SIZE: Final = 4

CAPABILITY_DEFAULTS: Final = {
    "max_msg_fds": 1,
    "max_data_xfer_size": MAX_DATA_XFER_SIZE,
    "max_dma_maps": MAX_DMA_MAPS,
    "pgsizes": PAGE_SIZE,
    "write_multiple": False,
}
"""What a peer that does not mention a capability has."""

# DMA.

DMA_MAP_READ, DMA_MAP_WRITE = 1, 2
DMA_MAP_MMAP, DMA_MAP_FILE_IO = 4, 8
"""libvfio-user's: how the descriptor, which there must be, may be used."""
DMA_UNMAP_GET_DIRTY_BITMAP, DMA_UNMAP_ALL = 1, 2

DmaMap = c.Struct(
    "argsz" / c.Int32ul, "flags" / c.Int32ul, "offset" / c.Int64ul, "address" / c.Int64ul, "size" / c.Int64ul
)
"""`offset` is in the file whose descriptor comes along; without one the range is reached by messages only."""
DmaUnmap = c.Struct("argsz" / c.Int32ul, "flags" / c.Int32ul, "address" / c.Int64ul, "size" / c.Int64ul)
DirtyBitmap = c.Struct("pgsize" / c.Int64ul, "size" / c.Int64ul, "data" / c.GreedyBytes)
"""Follows DmaUnmap with DMA_UNMAP_GET_DIRTY_BITMAP; `data` in the reply only."""
DmaAccess = c.Struct("address" / c.Int64ul, "count" / c.Int64ul, "data" / c.GreedyBytes)
"""DMA_READ and DMA_WRITE; `data` where the direction has it."""

# The device.

DEVICE_FLAGS_RESET, DEVICE_FLAGS_PCI = 1, 2
DeviceInfo = c.Struct("argsz" / c.Int32ul, "flags" / c.Int32ul, "num_regions" / c.Int32ul, "num_irqs" / c.Int32ul)

REGION_BAR0, REGION_ROM, REGION_CONFIG, REGION_VGA, NUM_REGIONS = 0, 6, 7, 8, 9
REGION_READABLE, REGION_WRITABLE, REGION_MMAP, REGION_CAPS = 1, 2, 4, 8
REGION_INFO_SIZE: Final = 32
CAP_SPARSE_MMAP, CAP_TYPE = 1, 2

RegionInfo = c.Struct(
    "argsz" / c.Int32ul,
    "flags" / c.Int32ul,
    "index" / c.Int32ul,
    "cap_offset" / c.Int32ul,
    "size" / c.Int64ul,
    "offset" / c.Int64ul,
    "capabilities" / c.GreedyBytes,
)
"""`cap_offset` counts from the start of this structure; 0: no capability."""
CapabilityHeader = c.Struct("id" / c.Int16ul, "version" / c.Int16ul, "next" / c.Int32ul)
"""`next` counts from the start of the RegionInfo; 0: the last one."""
SparseMmap = c.Struct(
    "header" / CapabilityHeader,
    "nr_areas" / c.Rebuild(c.Int32ul, c.len_(c.this.areas)),
    "reserved" / c.Default(c.Int32ul, 0),
    "areas" / c.Array(c.this.nr_areas, c.Struct("offset" / c.Int64ul, "size" / c.Int64ul)),
)
"""Which parts of a region may be mapped through its descriptor."""

RegionType = c.Struct("header" / CapabilityHeader, "type" / c.Int32ul, "subtype" / c.Int32ul)
"""CAP_TYPE: what a device-specific region is, one with an index from NUM_REGIONS on."""

RegionIoFds = c.Struct(
    "argsz" / c.Int32ul,
    "flags" / c.Int32ul,
    "index" / c.Int32ul,
    "count" / c.Int32ul,
    "sub_regions" / c.GreedyBytes,
)
REGION_IO_FDS_SIZE: Final = 16
IO_FD_TYPE_IOEVENTFD, IO_FD_TYPE_IOREGIONFD, IO_FD_TYPE_SHADOW_IOEVENTFD = 0, 1, 2
"""libvfio-user has the last one, in a structure of its own."""
IOEVENTFD_DATAMATCH, IOEVENTFD_PIO = 1, 2
"""`flags` of an ioeventfd, as of KVM_IOEVENTFD."""
SubRegionIoFd = c.Struct(
    "offset" / c.Int64ul,
    "size" / c.Int64ul,
    "fd_index" / c.Int32ul,
    "type" / c.Int32ul,
    "flags" / c.Int32ul,
    "padding" / c.Default(c.Int32ul, 0),
    "datamatch" / c.Int64ul,
)
"""`datamatch` is `user_data` of an ioregionfd. A reply tells how far its entries are apart: (argsz - 16) / count."""
LibvfioUserSubRegionIoFd = c.Struct(
    "offset" / c.Int64ul,
    "size" / c.Int64ul,
    "fd_index" / c.Int32ul,
    "type" / c.Int32ul,
    "flags" / c.Int32ul,
    "shadow_mem_fd_index" / c.Int32ul,
    "shadow_offset" / c.Int64ul,
    "datamatch" / c.Int64ul,
)
"""What libvfio-user has instead, 48 bytes; `fd_index` 0xffffffff: a sub-region without a descriptor."""

IRQ_INTX, IRQ_MSI, IRQ_MSIX, IRQ_ERR, IRQ_REQ, NUM_IRQS = 0, 1, 2, 3, 4, 5
IRQ_INFO_EVENTFD, IRQ_INFO_MASKABLE, IRQ_INFO_AUTOMASKED, IRQ_INFO_NORESIZE = 1, 2, 4, 8
IrqInfo = c.Struct("argsz" / c.Int32ul, "flags" / c.Int32ul, "index" / c.Int32ul, "count" / c.Int32ul)

IRQ_SET_DATA_NONE, IRQ_SET_DATA_BOOL, IRQ_SET_DATA_EVENTFD = 1, 2, 4
IRQ_SET_ACTION_MASK, IRQ_SET_ACTION_UNMASK, IRQ_SET_ACTION_TRIGGER = 8, 16, 32
IRQ_SET_DATA_MASK, IRQ_SET_ACTIONS = 7, 0x38
IRQ_SET_SIZE: Final = 20
IrqSet = c.Struct(
    "argsz" / c.Int32ul,
    "flags" / c.Int32ul,
    "index" / c.Int32ul,
    "start" / c.Int32ul,
    "count" / c.Int32ul,
    "data" / c.GreedyBytes,
)
"""`data`: `count` bytes with IRQ_SET_DATA_BOOL. Eventfds come as descriptors; none takes them away."""

# Regions.

RegionAccess = c.Struct("offset" / c.Int64ul, "region" / c.Int32ul, "count" / c.Int32ul, "data" / c.GreedyBytes)
"""REGION_READ and REGION_WRITE; `data` where the direction has it."""
RegionWriteMulti = c.Struct(
    "wr_cnt" / c.Rebuild(c.Int64ul, c.len_(c.this.writes)),
    "writes"
    / c.Array(
        c.this.wr_cnt,
        c.Struct("offset" / c.Int64ul, "region" / c.Int32ul, "count" / c.Int32ul, "data" / c.Bytes(8)),
    ),
)
RegionWriteMultiReply = c.Struct("wr_cnt" / c.Int64ul)

# Features and migration.


class MigrationState(enum.IntEnum):
    """`device_state`: where a device is in a migration. The P2P states are not used over sockets."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


MIGRATION_STOP_COPY, MIGRATION_P2P, MIGRATION_PRE_COPY = 1, 2, 4
FEATURE_MASK, FEATURE_GET, FEATURE_SET, FEATURE_PROBE = 0xFFFF, 0x10000, 0x20000, 0x40000
FEATURE_MIGRATION, FEATURE_MIG_DEVICE_STATE = 1, 2
FEATURE_DMA_LOGGING_START, FEATURE_DMA_LOGGING_STOP, FEATURE_DMA_LOGGING_REPORT = 6, 7, 8
DEVICE_FEATURE_SIZE: Final = 8
DeviceFeature = c.Struct("argsz" / c.Int32ul, "flags" / c.Int32ul, "data" / c.GreedyBytes)
FeatureMigration = c.Struct("flags" / c.Int64ul)
FeatureMigDeviceState = c.Struct("device_state" / c.Int32ul, "data_fd" / c.Int32sl)
FeatureDmaLoggingControl = c.Struct(
    "page_size" / c.Int64ul,
    "num_ranges" / c.Rebuild(c.Int32ul, c.len_(c.this.ranges)),
    "reserved" / c.Default(c.Int32ul, 0),
    "ranges" / c.Array(c.this.num_ranges, c.Struct("iova" / c.Int64ul, "length" / c.Int64ul)),
)
FeatureDmaLoggingReport = c.Struct(
    "iova" / c.Int64ul, "length" / c.Int64ul, "page_size" / c.Int64ul, "bitmap" / c.GreedyBytes
)
FEATURE_DATA: Final = {
    FEATURE_MIGRATION: FeatureMigration,
    FEATURE_MIG_DEVICE_STATE: FeatureMigDeviceState,
    FEATURE_DMA_LOGGING_START: FeatureDmaLoggingControl,
    FEATURE_DMA_LOGGING_STOP: FeatureDmaLoggingControl,
    FEATURE_DMA_LOGGING_REPORT: FeatureDmaLoggingReport,
}
"""What `DeviceFeature.data` is, by feature."""
MIG_DATA_SIZE: Final = 8
MigData = c.Struct("argsz" / c.Int32ul, "size" / c.Int32ul, "data" / c.GreedyBytes)
"""`size` says how much of `data` counts."""

REQUESTS: Final = {
    Command.VERSION: Version,
    Command.DMA_MAP: DmaMap,
    Command.DMA_UNMAP: DmaUnmap,
    Command.DEVICE_GET_INFO: DeviceInfo,
    Command.DEVICE_GET_REGION_INFO: RegionInfo,
    Command.DEVICE_GET_REGION_IO_FDS: RegionIoFds,
    Command.DEVICE_GET_IRQ_INFO: IrqInfo,
    Command.DEVICE_SET_IRQS: IrqSet,
    Command.REGION_READ: RegionAccess,
    Command.REGION_WRITE: RegionAccess,
    Command.DMA_READ: DmaAccess,
    Command.DMA_WRITE: DmaAccess,
    Command.REGION_WRITE_MULTI: RegionWriteMulti,
    Command.DEVICE_FEATURE: DeviceFeature,
    Command.MIG_DATA_READ: MigData,
    Command.MIG_DATA_WRITE: MigData,
}
REPLIES: Final = {
    Command.VERSION: Version,
    Command.DMA_UNMAP: DmaUnmap,
    Command.DEVICE_GET_INFO: DeviceInfo,
    Command.DEVICE_GET_REGION_INFO: RegionInfo,
    Command.DEVICE_GET_REGION_IO_FDS: RegionIoFds,
    Command.DEVICE_GET_IRQ_INFO: IrqInfo,
    Command.REGION_READ: RegionAccess,
    Command.REGION_WRITE: RegionAccess,
    Command.DMA_READ: DmaAccess,
    Command.DMA_WRITE: DmaAccess,
    Command.REGION_WRITE_MULTI: RegionWriteMultiReply,
    Command.DEVICE_FEATURE: DeviceFeature,
    Command.MIG_DATA_READ: MigData,
}

# The hot ones.

WRITE_MULTI_ENTRY: Final = struct.Struct("<QII8s")
HEADER: Final = struct.Struct("<HHIII")
IRQ_SET: Final = struct.Struct("<IIIII")
REGION_ACCESS: Final = struct.Struct("<QII")
DMA_ACCESS: Final = struct.Struct("<QQ")


def command_bytes(msg_id: int, command: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """A whole command."""
    return HEADER.pack(msg_id, command, HEADER_SIZE + len(payload), TYPE_COMMAND | flags, 0) + payload


def reply_bytes(msg_id: int, command: int, payload: bytes = b"") -> bytes:
    """A whole reply."""
    return HEADER.pack(msg_id, command, HEADER_SIZE + len(payload), TYPE_REPLY, 0) + payload


def error_bytes(msg_id: int, command: int, error: int) -> bytes:
    """A whole error reply. `error`: a positive errno."""
    return HEADER.pack(msg_id, command, HEADER_SIZE, TYPE_REPLY | FLAG_ERROR, error)


def parse_capabilities(data: bytes, strict: bool = True) -> dict[str, Any]:
    """The capabilities in the JSON of a VERSION, with defaults for what is not there. ValueError if it is damaged.

    The NUL behind it may be missing unless `strict`.

    `twin_socket` becomes the index of its descriptor, or None if there is no second socket; `migration` becomes the
    page size that dirty pages are counted in, or None if the peer does not speak of migration.
    """
    found: dict[str, Any] = {**CAPABILITY_DEFAULTS, "twin_socket": None, "migration": None}
    if not data:
        return found
    if strict and data[-1]:
        raise ValueError("the version data does not end with NUL")
    text = data.rstrip(b"\0")
    if not text:
        return found
    try:
        given = json.loads(text)
    except RecursionError as error:
        raise ValueError("capabilities are nested too deeply") from error
    given = given.get("capabilities", {}) if isinstance(given, dict) else None
    if not isinstance(given, dict):
        raise ValueError("capabilities are no JSON object")
    for name, default in CAPABILITY_DEFAULTS.items():
        value = given.get(name, default)
        if type(value) is not type(default) or value < 0:
            raise ValueError(f"capability {name}: {value!r}")
        found[name] = value
    if not 0 < found["max_data_xfer_size"] < 1 << 32 or found["max_msg_fds"] > MAX_FDS_OF_A_PEER:
        raise ValueError(
            f"a peer that takes {found['max_data_xfer_size']} bytes and {found['max_msg_fds']} descriptors"
        )
    found["twin_socket"] = _twin_socket(given.get("twin_socket", {}))
    if "migration" in given:
        found["migration"] = _migration(given["migration"])
    return found


def _twin_socket(given: Any) -> int | None:
    if not isinstance(given, dict):
        raise ValueError(f"capability twin_socket: {given!r}")
    index = given.get("fd_index", 0)
    if type(index) is not int or index < 0:
        raise ValueError(f"capability twin_socket: fd_index {index!r}")
    return index if given.get("supported") is True else None


def _migration(given: Any) -> int:
    """The capability that the specification does not list and every implementation has."""
    if not isinstance(given, dict):
        raise ValueError(f"capability migration: {given!r}")
    size = given.get("pgsize", PAGE_SIZE)
    if type(size) is not int or size < PAGE_SIZE or size & (size - 1):
        raise ValueError(f"capability migration: pgsize {size!r}")
    return size
