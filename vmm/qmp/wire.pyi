"""What goes over the wire of QMP, for type checkers. Made by `python -m vmm.qmp.document`."""

# ruff: noqa
# fmt: off
from typing import Any, Literal, NotRequired, Protocol, TypedDict, overload

ACPIOSTInfo = TypedDict(
    "ACPIOSTInfo",
    {
        "device": NotRequired[str],
        "slot": str,
        "slot-type": ACPISlotType,
        "source": int,
        "status": int,
    },
)

ACPISlotType = Literal["DIMM", "CPU"]

Accelerator = Literal["hvf", "kvm", "mshv", "nitro", "nvmm", "qtest", "tcg", "whpx", "xen"]

class AcceleratorInfo(TypedDict):
    enabled: Accelerator
    present: list[Accelerator]

class Audiodev(TypedDict):
    id: str

class BalloonInfo(TypedDict):
    actual: int

BlkdebugEvent = Literal["read_aio", "write_aio", "flush_to_disk"]

class BlkdebugInjectErrorOptions(TypedDict):
    event: BlkdebugEvent
    errno: NotRequired[int]
    sector: NotRequired[int]
    once: NotRequired[bool]

BlockDeviceInfo = TypedDict(
    "BlockDeviceInfo",
    {
        "file": str,
        "node-name": NotRequired[str],
        "ro": bool,
        "drv": str,
        "backing_file_depth": int,
        "active": bool,
        "children": list[BlockdevChild],
        "encrypted": bool,
        "detect_zeroes": BlockdevDetectZeroesOptions,
        "bps": int,
        "bps_rd": int,
        "bps_wr": int,
        "iops": int,
        "iops_rd": int,
        "iops_wr": int,
        "image": ImageInfo,
        "cache": BlockdevCacheInfo,
        "write_threshold": int,
    },
)

BlockErrorAction = Literal["ignore", "report", "stop"]

class BlockInfo(TypedDict):
    device: str
    qdev: NotRequired[str]
    type: str
    removable: bool
    locked: bool
    inserted: NotRequired[BlockDeviceInfo]
    tray_open: NotRequired[bool]

class BlockJobInfo(TypedDict):
    device: str

BlockdevAioOptions = Literal["threads", "native", "io_uring"]

BlockdevCacheInfo = TypedDict(
    "BlockdevCacheInfo",
    {
        "writeback": bool,
        "direct": bool,
        "no-flush": bool,
    },
)

BlockdevCacheOptions = TypedDict(
    "BlockdevCacheOptions",
    {
        "direct": NotRequired[bool],
        "no-flush": NotRequired[bool],
    },
)

BlockdevChild = TypedDict(
    "BlockdevChild",
    {
        "child": str,
        "node-name": str,
    },
)

BlockdevDetectZeroesOptions = Literal["off", "on", "unmap"]

BlockdevDiscardOptions = Literal["ignore", "unmap"]

BlockdevDriver = Literal["blkdebug", "file", "null-co", "raw"]

BlockdevOptionsBlkdebug = TypedDict(
    "BlockdevOptionsBlkdebug",
    {
        "driver": BlockdevDriver,
        "node-name": NotRequired[str],
        "discard": NotRequired[BlockdevDiscardOptions],
        "cache": NotRequired[BlockdevCacheOptions],
        "read-only": NotRequired[bool],
        "auto-read-only": NotRequired[bool],
        "force-share": NotRequired[bool],
        "detect-zeroes": NotRequired[BlockdevDetectZeroesOptions],
        "image": BlockdevRef,
        "config": NotRequired[str],
        "inject-error": NotRequired[list[BlkdebugInjectErrorOptions]],
    },
)

BlockdevOptionsFile = TypedDict(
    "BlockdevOptionsFile",
    {
        "driver": BlockdevDriver,
        "node-name": NotRequired[str],
        "discard": NotRequired[BlockdevDiscardOptions],
        "cache": NotRequired[BlockdevCacheOptions],
        "read-only": NotRequired[bool],
        "auto-read-only": NotRequired[bool],
        "force-share": NotRequired[bool],
        "detect-zeroes": NotRequired[BlockdevDetectZeroesOptions],
        "filename": str,
        "locking": NotRequired[OnOffAuto],
        "aio": NotRequired[BlockdevAioOptions],
    },
)

BlockdevOptionsNullCo = TypedDict(
    "BlockdevOptionsNullCo",
    {
        "driver": BlockdevDriver,
        "node-name": NotRequired[str],
        "discard": NotRequired[BlockdevDiscardOptions],
        "cache": NotRequired[BlockdevCacheOptions],
        "read-only": NotRequired[bool],
        "auto-read-only": NotRequired[bool],
        "force-share": NotRequired[bool],
        "detect-zeroes": NotRequired[BlockdevDetectZeroesOptions],
        "size": NotRequired[int],
        "latency-ns": NotRequired[int],
        "read-zeroes": NotRequired[bool],
    },
)

BlockdevOptionsRaw = TypedDict(
    "BlockdevOptionsRaw",
    {
        "driver": BlockdevDriver,
        "node-name": NotRequired[str],
        "discard": NotRequired[BlockdevDiscardOptions],
        "cache": NotRequired[BlockdevCacheOptions],
        "read-only": NotRequired[bool],
        "auto-read-only": NotRequired[bool],
        "force-share": NotRequired[bool],
        "detect-zeroes": NotRequired[BlockdevDetectZeroesOptions],
        "file": BlockdevRef,
        "offset": NotRequired[int],
        "size": NotRequired[int],
    },
)

BlockdevOptions = BlockdevOptionsBlkdebug | BlockdevOptionsFile | BlockdevOptionsNullCo | BlockdevOptionsRaw

BlockdevRef = str | BlockdevOptions

class ChardevBackendFile(TypedDict):
    type: ChardevBackendKind
    data: ChardevFile

class ChardevBackendNull(TypedDict):
    type: ChardevBackendKind
    data: ChardevCommon

class ChardevBackendPipe(TypedDict):
    type: ChardevBackendKind
    data: ChardevHostdev

class ChardevBackendPty(TypedDict):
    type: ChardevBackendKind
    data: ChardevPty

class ChardevBackendRingbuf(TypedDict):
    type: ChardevBackendKind
    data: ChardevRingbuf

class ChardevBackendSocket(TypedDict):
    type: ChardevBackendKind
    data: ChardevSocket

class ChardevBackendStdio(TypedDict):
    type: ChardevBackendKind
    data: ChardevStdio

ChardevBackend = ChardevBackendFile | ChardevBackendNull | ChardevBackendPipe | ChardevBackendPty | ChardevBackendRingbuf | ChardevBackendSocket | ChardevBackendStdio

class ChardevBackendInfo(TypedDict):
    name: str

ChardevBackendKind = Literal["file", "null", "pipe", "pty", "ringbuf", "socket", "stdio"]

class ChardevCommon(TypedDict):
    logfile: NotRequired[str]
    logappend: NotRequired[bool]

ChardevFile = TypedDict(
    "ChardevFile",
    {
        "out": str,
        "in": NotRequired[str],
        "append": NotRequired[bool],
        "logfile": NotRequired[str],
        "logappend": NotRequired[bool],
    },
)

class ChardevHostdev(TypedDict):
    device: str
    logfile: NotRequired[str]
    logappend: NotRequired[bool]

ChardevInfo = TypedDict(
    "ChardevInfo",
    {
        "label": str,
        "filename": str,
        "frontend-open": bool,
    },
)

class ChardevPty(TypedDict):
    logfile: NotRequired[str]
    logappend: NotRequired[bool]

class ChardevReturn(TypedDict):
    pty: NotRequired[str]

class ChardevRingbuf(TypedDict):
    size: NotRequired[int]
    logfile: NotRequired[str]
    logappend: NotRequired[bool]

ChardevSocket = TypedDict(
    "ChardevSocket",
    {
        "addr": SocketAddressLegacy,
        "server": NotRequired[bool],
        "wait": NotRequired[bool],
        "nodelay": NotRequired[bool],
        "reconnect-ms": NotRequired[int],
        "logfile": NotRequired[str],
        "logappend": NotRequired[bool],
    },
)

class ChardevStdio(TypedDict):
    signal: NotRequired[bool]
    logfile: NotRequired[str]
    logappend: NotRequired[bool]

class CommandInfo(TypedDict):
    name: str

class CommandLineOptionInfo(TypedDict):
    option: str
    parameters: list[CommandLineParameterInfo]

class CommandLineParameterInfo(TypedDict):
    name: str
    type: CommandLineParameterType
    help: NotRequired[str]
    default: NotRequired[str]

CommandLineParameterType = Literal["string", "boolean", "number", "size"]

CpuDefinitionInfo = TypedDict(
    "CpuDefinitionInfo",
    {
        "name": str,
        "migration-safe": NotRequired[bool],
        "static": bool,
        "unavailable-features": NotRequired[list[str]],
        "typename": str,
        "alias-of": NotRequired[str],
        "deprecated": bool,
    },
)

CpuInfoFast = TypedDict(
    "CpuInfoFast",
    {
        "cpu-index": int,
        "qom-path": str,
        "thread-id": int,
        "props": NotRequired[CpuInstanceProperties],
        "qom-type": str,
        "target": SysEmuTarget,
    },
)

CpuInstanceProperties = TypedDict(
    "CpuInstanceProperties",
    {
        "node-id": NotRequired[int],
        "socket-id": NotRequired[int],
        "die-id": NotRequired[int],
        "module-id": NotRequired[int],
        "core-id": NotRequired[int],
        "thread-id": NotRequired[int],
    },
)

CurrentMachineParams = TypedDict(
    "CurrentMachineParams",
    {
        "wakeup-suspend-support": bool,
    },
)

DataFormat = Literal["utf8", "base64"]

DirtyLimitInfo = TypedDict(
    "DirtyLimitInfo",
    {
        "cpu-index": int,
    },
)

class DisplayOptions(TypedDict):
    type: DisplayType

DisplayType = Literal["none"]

class DumpGuestMemoryCapability(TypedDict):
    formats: list[DumpGuestMemoryFormat]

DumpGuestMemoryFormat = Literal["elf", "kdump-zlib", "kdump-raw-zlib"]

FdsetInfo = TypedDict(
    "FdsetInfo",
    {
        "fdset-id": int,
    },
)

class FirmwareLog(TypedDict):
    log: str

GuestPanicAction = Literal["pause", "poweroff", "run"]

class GuidInfo(TypedDict):
    guid: str

HostMemPolicy = Literal["default", "preferred", "bind", "interleave"]

HotpluggableCPU = TypedDict(
    "HotpluggableCPU",
    {
        "type": str,
        "vcpus-count": int,
        "props": CpuInstanceProperties,
        "qom-path": NotRequired[str],
    },
)

HumanReadableText = TypedDict(
    "HumanReadableText",
    {
        "human-readable-text": str,
    },
)

IOThreadInfo = TypedDict(
    "IOThreadInfo",
    {
        "id": str,
        "thread-id": int,
    },
)

ImageInfo = TypedDict(
    "ImageInfo",
    {
        "filename": str,
        "format": str,
        "actual-size": NotRequired[int],
        "virtual-size": int,
    },
)

class InetSocketAddress(TypedDict):
    host: str
    port: str

IoOperationType = Literal["read", "write"]

class JobInfo(TypedDict):
    id: str

class KvmInfo(TypedDict):
    enabled: bool
    present: bool

MachineInfo = TypedDict(
    "MachineInfo",
    {
        "name": str,
        "alias": NotRequired[str],
        "is-default": NotRequired[bool],
        "cpu-max": int,
        "hotpluggable-cpus": bool,
        "numa-mem-supported": bool,
        "deprecated": bool,
        "default-cpu-type": NotRequired[str],
        "default-ram-id": NotRequired[str],
        "acpi": bool,
    },
)

Memdev = TypedDict(
    "Memdev",
    {
        "id": NotRequired[str],
        "size": int,
        "merge": bool,
        "dump": bool,
        "prealloc": bool,
        "share": bool,
        "reserve": NotRequired[bool],
        "host-nodes": list[int],
        "policy": HostMemPolicy,
    },
)

class MemoryDeviceInfo(TypedDict):
    type: str

MemoryInfo = TypedDict(
    "MemoryInfo",
    {
        "base-memory": int,
        "plugged-memory": NotRequired[int],
    },
)

class MigrationCapabilityStatus(TypedDict):
    state: bool

class MigrationInfo(TypedDict):
    status: NotRequired[MigrationStatus]

MigrationStatus = Literal["none", "setup", "active", "completed", "failed"]

class MouseInfo(TypedDict):
    name: str
    index: int

class NameInfo(TypedDict):
    name: NotRequired[str]

NetClientDriver = Literal["hubport", "socket"]

class NetdevHubport(TypedDict):
    id: str
    type: NetClientDriver
    hubid: int

class NetdevSocket(TypedDict):
    id: str
    type: NetClientDriver
    fd: NotRequired[str]
    listen: NotRequired[str]
    connect: NotRequired[str]

Netdev = NetdevHubport | NetdevSocket

class ObjectPropertiesValues(TypedDict):
    properties: list[ObjectPropertyValue]

ObjectPropertyInfo = TypedDict(
    "ObjectPropertyInfo",
    {
        "name": str,
        "type": str,
        "description": NotRequired[str],
        "default-value": NotRequired[Any],
    },
)

class ObjectPropertyValue(TypedDict):
    name: str
    type: str
    value: NotRequired[Any]

class ObjectTypeInfo(TypedDict):
    name: str
    abstract: NotRequired[bool]
    parent: NotRequired[str]

OnOffAuto = Literal["auto", "on", "off"]

PanicAction = Literal["pause", "shutdown", "exit-failure", "none"]

class PciBridgeInfo(TypedDict):
    bus: PciBusInfo
    devices: NotRequired[list[PciDeviceInfo]]

class PciBusInfo(TypedDict):
    number: int
    secondary: int
    subordinate: int
    io_range: PciMemoryRange
    memory_range: PciMemoryRange
    prefetchable_range: PciMemoryRange

PciDeviceClass = TypedDict(
    "PciDeviceClass",
    {
        "desc": NotRequired[str],
        "class": int,
    },
)

PciDeviceId = TypedDict(
    "PciDeviceId",
    {
        "device": int,
        "vendor": int,
        "subsystem": NotRequired[int],
        "subsystem-vendor": NotRequired[int],
    },
)

class PciDeviceInfo(TypedDict):
    bus: int
    slot: int
    function: int
    class_info: PciDeviceClass
    id: PciDeviceId
    irq: NotRequired[int]
    irq_pin: int
    qdev_id: str
    pci_bridge: NotRequired[PciBridgeInfo]
    regions: list[PciMemoryRegion]

class PciInfo(TypedDict):
    bus: int
    devices: list[PciDeviceInfo]

class PciMemoryRange(TypedDict):
    base: int
    limit: int

class PciMemoryRegion(TypedDict):
    bar: int
    type: str
    address: int
    size: int
    prefetch: NotRequired[bool]
    mem_type_64: NotRequired[bool]

QMPCapability = Literal["oob"]

RebootAction = Literal["reset", "shutdown"]

class ReplayInfo(TypedDict):
    mode: ReplayMode
    icount: int

ReplayMode = Literal["none", "record", "play"]

RunState = Literal["debug", "inmigrate", "internal-error", "io-error", "paused", "postmigrate", "prelaunch",
    "finish-migrate", "restore-vm", "running", "save-vm", "shutdown", "suspended", "watchdog",
    "guest-panicked", "colo"]

class RxFilterInfo(TypedDict):
    name: str

SchemaInfo = TypedDict(
    "SchemaInfo",
    {
        "name": str,
        "meta-type": SchemaMetaType,
        "features": NotRequired[list[str]],
    },
)

SchemaMetaType = Literal["builtin", "enum", "array", "object", "alternate", "command", "event"]

ShutdownAction = Literal["poweroff", "pause"]

ShutdownCause = Literal["none", "host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal",
    "host-ui", "guest-shutdown", "guest-reset", "guest-panic", "subsystem-reset", "snapshot-load"]

class SocketAddressLegacyInet(TypedDict):
    type: SocketAddressType
    data: InetSocketAddress

class SocketAddressLegacyUnix(TypedDict):
    type: SocketAddressType
    data: UnixSocketAddress

SocketAddressLegacy = SocketAddressLegacyInet | SocketAddressLegacyUnix

SocketAddressType = Literal["inet", "unix"]

class StatsSchema(TypedDict):
    provider: str

class StatusInfo(TypedDict):
    running: bool
    status: RunState

SysEmuTarget = Literal["x86_64"]

class TPMInfo(TypedDict):
    id: str

class TargetInfo(TypedDict):
    arch: SysEmuTarget

class UnixSocketAddress(TypedDict):
    path: str

class UuidInfo(TypedDict):
    UUID: str

class VersionInfo(TypedDict):
    qemu: VersionTriple
    package: str

class VersionTriple(TypedDict):
    major: int
    minor: int
    micro: int

WatchdogAction = Literal["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"]

class XEoifd(TypedDict):
    fds: list[int]
    irqfds: list[int]
    source: Any

class XEventfd(TypedDict):
    fd: int
    name: str
    count: int
    ours: bool

class XHeld(TypedDict):
    operation: NotRequired[int]
    command: NotRequired[str]
    state: NotRequired[str]
    point: NotRequired[str]

XIoapic = TypedDict(
    "XIoapic",
    {
        "name": str,
        "version": int,
        "id": int,
        "ioregsel": int,
        "irr": int,
        "remote-irr": int,
        "entries": list[int],
    },
)

class XIrqchip(TypedDict):
    ioapics: list[XIoapic]
    pics: list[XPic]
    lapics: list[XLapic]

class XIrqfd(TypedDict):
    fds: list[int]
    gsi: int
    level: bool
    resamplefds: list[int]
    source: Any

class XIrqfds(TypedDict):
    irqfds: list[XIrqfd]
    eoifds: list[XEoifd]
    sources: list[int]
    eventfds: list[XEventfd]

XLapic = TypedDict(
    "XLapic",
    {
        "cpu-index": int,
        "id": int,
        "spiv": int,
        "tpr": int,
        "irr": list[int],
        "isr": list[int],
        "tmr": list[int],
        "lvt": XLvt,
        "taken": XTaken,
    },
)

class XLedgerRow(TypedDict):
    owner: str
    kind: str
    name: str

class XLvt(TypedDict):
    pass

XOperation = TypedDict(
    "XOperation",
    {
        "fd": NotRequired[int],
        "count": NotRequired[int],
        "operation": NotRequired[int],
        "command": NotRequired[str],
        "state": NotRequired[str],
        "point": NotRequired[str],
        "not-held": NotRequired[list[str]],
    },
)

XOutcome = TypedDict(
    "XOutcome",
    {
        "operation": NotRequired[int],
        "command": NotRequired[str],
        "state": NotRequired[str],
        "point": NotRequired[str],
        "error": NotRequired[str],
        "return": NotRequired[XReturn],
    },
)

XPic = TypedDict(
    "XPic",
    {
        "name": str,
        "irr": int,
        "imr": int,
        "isr": int,
        "priority-add": int,
        "irq-base": int,
        "elcr": int,
        "read-isr": bool,
        "special-fully-nested": bool,
    },
)

XPoint = TypedDict(
    "XPoint",
    {
        "name": str,
        "mirrors": str,
        "held": bool,
        "why-not": NotRequired[str],
        "operations": list[XHeld],
    },
)

class XReturn(TypedDict):
    pass

class XTaken(TypedDict):
    pass

XUnplug = TypedDict(
    "XUnplug",
    {
        "device": NotRequired[str],
        "path": str,
        "slot": int,
        "since-ns": int,
        "waits-for": str,
    },
)

YankInstanceBlockNode = TypedDict(
    "YankInstanceBlockNode",
    {
        "type": YankInstanceType,
        "node-name": str,
    },
)

class YankInstanceChardev(TypedDict):
    type: YankInstanceType
    id: str

class YankInstanceMigration(TypedDict):
    type: YankInstanceType

YankInstance = YankInstanceBlockNode | YankInstanceChardev | YankInstanceMigration

YankInstanceType = Literal["block-node", "chardev", "migration"]

class Execute(Protocol):
    """Executes a command and returns its reply: `execute("query-status")`."""

    @overload
    def __call__(self, command: Literal["qmp_capabilities"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["query-version"], arguments: dict[str, Any] = ...) -> VersionInfo: ...
    @overload
    def __call__(self, command: Literal["query-commands"], arguments: dict[str, Any] = ...) -> list[CommandInfo]: ...
    @overload
    def __call__(self, command: Literal["query-qmp-schema"], arguments: dict[str, Any] = ...) -> list[SchemaInfo]: ...
    @overload
    def __call__(self, command: Literal["query-command-line-options"], arguments: dict[str, Any] = ...) -> list[CommandLineOptionInfo]: ...
    @overload
    def __call__(self, command: Literal["query-target"], arguments: dict[str, Any] = ...) -> TargetInfo: ...
    @overload
    def __call__(self, command: Literal["quit"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["query-status"], arguments: dict[str, Any] = ...) -> StatusInfo: ...
    @overload
    def __call__(self, command: Literal["query-name"], arguments: dict[str, Any] = ...) -> NameInfo: ...
    @overload
    def __call__(self, command: Literal["query-uuid"], arguments: dict[str, Any] = ...) -> UuidInfo: ...
    @overload
    def __call__(self, command: Literal["query-kvm"], arguments: dict[str, Any] = ...) -> KvmInfo: ...
    @overload
    def __call__(self, command: Literal["query-accelerators"], arguments: dict[str, Any] = ...) -> AcceleratorInfo: ...
    @overload
    def __call__(self, command: Literal["query-machines"], arguments: dict[str, Any] = ...) -> list[MachineInfo]: ...
    @overload
    def __call__(self, command: Literal["query-current-machine"], arguments: dict[str, Any] = ...) -> CurrentMachineParams: ...
    @overload
    def __call__(self, command: Literal["query-cpus-fast"], arguments: dict[str, Any] = ...) -> list[CpuInfoFast]: ...
    @overload
    def __call__(self, command: Literal["query-hotpluggable-cpus"], arguments: dict[str, Any] = ...) -> list[HotpluggableCPU]: ...
    @overload
    def __call__(self, command: Literal["query-acpi-ospm-status"], arguments: dict[str, Any] = ...) -> list[ACPIOSTInfo]: ...
    @overload
    def __call__(self, command: Literal["query-cpu-definitions"], arguments: dict[str, Any] = ...) -> list[CpuDefinitionInfo]: ...
    @overload
    def __call__(self, command: Literal["query-memory-size-summary"], arguments: dict[str, Any] = ...) -> MemoryInfo: ...
    @overload
    def __call__(self, command: Literal["query-memdev"], arguments: dict[str, Any] = ...) -> list[Memdev]: ...
    @overload
    def __call__(self, command: Literal["pmemsave"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["inject-nmi"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["stop"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["cont"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["system_reset"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["system_powerdown"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["system_wakeup"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["set-action"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["watchdog-set-action"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["rtc-reset-reinjection"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["x-exit-preconfig"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["device_add"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["device_del"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["x-device-pull"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["device-list-properties"], arguments: dict[str, Any]) -> list[ObjectPropertyInfo]: ...
    @overload
    def __call__(self, command: Literal["object-add"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["object-del"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["query-pci"], arguments: dict[str, Any] = ...) -> list[PciInfo]: ...
    @overload
    def __call__(self, command: Literal["qom-list"], arguments: dict[str, Any]) -> list[ObjectPropertyInfo]: ...
    @overload
    def __call__(self, command: Literal["qom-get"], arguments: dict[str, Any]) -> Any: ...
    @overload
    def __call__(self, command: Literal["qom-list-get"], arguments: dict[str, Any]) -> list[ObjectPropertiesValues]: ...
    @overload
    def __call__(self, command: Literal["qom-set"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["qom-list-types"], arguments: dict[str, Any] = ...) -> list[ObjectTypeInfo]: ...
    @overload
    def __call__(self, command: Literal["qom-list-properties"], arguments: dict[str, Any]) -> list[ObjectPropertyInfo]: ...
    @overload
    def __call__(self, command: Literal["blockdev-add"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["blockdev-del"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["block_resize"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["query-block"], arguments: dict[str, Any] = ...) -> list[BlockInfo]: ...
    @overload
    def __call__(self, command: Literal["query-named-block-nodes"], arguments: dict[str, Any] = ...) -> list[BlockDeviceInfo]: ...
    @overload
    def __call__(self, command: Literal["query-chardev"], arguments: dict[str, Any] = ...) -> list[ChardevInfo]: ...
    @overload
    def __call__(self, command: Literal["query-chardev-backends"], arguments: dict[str, Any] = ...) -> list[ChardevBackendInfo]: ...
    @overload
    def __call__(self, command: Literal["chardev-add"], arguments: dict[str, Any]) -> ChardevReturn: ...
    @overload
    def __call__(self, command: Literal["chardev-remove"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["chardev-send-break"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["ringbuf-write"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["ringbuf-read"], arguments: dict[str, Any]) -> str: ...
    @overload
    def __call__(self, command: Literal["x-query-irq"], arguments: dict[str, Any] = ...) -> HumanReadableText: ...
    @overload
    def __call__(self, command: Literal["x-query-interrupt-controllers"], arguments: dict[str, Any] = ...) -> HumanReadableText: ...
    @overload
    def __call__(self, command: Literal["x-query-irqchip"], arguments: dict[str, Any] = ...) -> XIrqchip: ...
    @overload
    def __call__(self, command: Literal["x-query-unplug"], arguments: dict[str, Any] = ...) -> list[XUnplug]: ...
    @overload
    def __call__(self, command: Literal["x-query-ledger"], arguments: dict[str, Any] = ...) -> list[XLedgerRow]: ...
    @overload
    def __call__(self, command: Literal["x-eventfd-open"], arguments: dict[str, Any] = ...) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-eventfd-dup"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-eventfd-close"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-eventfd-signal"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-eventfd-read"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-irqfd-assign"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-irqfd-deassign"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-eoifd-assign"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-eoifd-deassign"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-query-irqfds"], arguments: dict[str, Any] = ...) -> XIrqfds: ...
    @overload
    def __call__(self, command: Literal["x-vfio-set-irqs"], arguments: dict[str, Any]) -> XOperation: ...
    @overload
    def __call__(self, command: Literal["x-point-hold"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["x-point-release"], arguments: dict[str, Any]) -> list[XOutcome]: ...
    @overload
    def __call__(self, command: Literal["x-query-points"], arguments: dict[str, Any] = ...) -> list[XPoint]: ...
    @overload
    def __call__(self, command: Literal["query-balloon"], arguments: dict[str, Any] = ...) -> BalloonInfo: ...
    @overload
    def __call__(self, command: Literal["balloon"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["announce-self"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["netdev_add"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["netdev_del"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["set_link"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["human-monitor-command"], arguments: dict[str, Any]) -> str: ...
    @overload
    def __call__(self, command: Literal["query-iothreads"], arguments: dict[str, Any] = ...) -> list[IOThreadInfo]: ...
    @overload
    def __call__(self, command: Literal["query-mice"], arguments: dict[str, Any] = ...) -> list[MouseInfo]: ...
    @overload
    def __call__(self, command: Literal["query-rx-filter"], arguments: dict[str, Any] = ...) -> list[RxFilterInfo]: ...
    @overload
    def __call__(self, command: Literal["query-jobs"], arguments: dict[str, Any] = ...) -> list[JobInfo]: ...
    @overload
    def __call__(self, command: Literal["query-block-jobs"], arguments: dict[str, Any] = ...) -> list[BlockJobInfo]: ...
    @overload
    def __call__(self, command: Literal["query-memory-devices"], arguments: dict[str, Any] = ...) -> list[MemoryDeviceInfo]: ...
    @overload
    def __call__(self, command: Literal["query-tpm"], arguments: dict[str, Any] = ...) -> list[TPMInfo]: ...
    @overload
    def __call__(self, command: Literal["query-audiodevs"], arguments: dict[str, Any] = ...) -> list[Audiodev]: ...
    @overload
    def __call__(self, command: Literal["query-stats-schemas"], arguments: dict[str, Any] = ...) -> list[StatsSchema]: ...
    @overload
    def __call__(self, command: Literal["query-migrate-capabilities"], arguments: dict[str, Any] = ...) -> list[MigrationCapabilityStatus]: ...
    @overload
    def __call__(self, command: Literal["query-vcpu-dirty-limit"], arguments: dict[str, Any] = ...) -> list[DirtyLimitInfo]: ...
    @overload
    def __call__(self, command: Literal["query-fdsets"], arguments: dict[str, Any] = ...) -> list[FdsetInfo]: ...
    @overload
    def __call__(self, command: Literal["query-display-options"], arguments: dict[str, Any] = ...) -> DisplayOptions: ...
    @overload
    def __call__(self, command: Literal["query-vm-generation-id"], arguments: dict[str, Any] = ...) -> GuidInfo: ...
    @overload
    def __call__(self, command: Literal["query-dump-guest-memory-capability"], arguments: dict[str, Any] = ...) -> DumpGuestMemoryCapability: ...
    @overload
    def __call__(self, command: Literal["query-firmware-log"], arguments: dict[str, Any] = ...) -> FirmwareLog: ...
    @overload
    def __call__(self, command: Literal["query-replay"], arguments: dict[str, Any] = ...) -> ReplayInfo: ...
    @overload
    def __call__(self, command: Literal["query-migrate"], arguments: dict[str, Any] = ...) -> MigrationInfo: ...
    @overload
    def __call__(self, command: Literal["migrate-pause"], arguments: dict[str, Any] = ...) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["migrate-recover"], arguments: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, command: Literal["query-yank"], arguments: dict[str, Any] = ...) -> list[YankInstance]: ...
    @overload
    def __call__(self, command: Literal["yank"], arguments: dict[str, Any]) -> dict[str, Any]: ...

class Events:
    """The data of each event, by its name."""

    class SHUTDOWN(TypedDict):
        guest: bool
        reason: ShutdownCause
    class RESET(TypedDict):
        guest: bool
        reason: ShutdownCause
    class WATCHDOG(TypedDict):
        action: WatchdogAction
    class GUEST_PANICKED(TypedDict):
        action: GuestPanicAction
    class GUEST_CRASHLOADED(TypedDict):
        action: GuestPanicAction
    class DEVICE_DELETED(TypedDict):
        device: NotRequired[str]
        path: str
    class DEVICE_UNPLUG_GUEST_ERROR(TypedDict):
        device: NotRequired[str]
        path: str
    class ACPI_DEVICE_OST(TypedDict):
        info: ACPIOSTInfo
    class RTC_CHANGE(TypedDict):
        offset: int
        # qom-path: str
    class VSERPORT_CHANGE(TypedDict):
        id: str
        open: bool
    class BLOCK_IO_ERROR(TypedDict):
        # qom-path: str
        device: str
        # node-name: NotRequired[str]
        operation: IoOperationType
        action: BlockErrorAction
        nospace: NotRequired[bool]
        reason: str
    class BALLOON_CHANGE(TypedDict):
        actual: int
    class VFIO_USER_CONNECTED(TypedDict):
        device: NotRequired[str]
        path: str
        socket: NotRequired[str]
    class VFIO_USER_DISCONNECTED(TypedDict):
        device: NotRequired[str]
        path: str
        socket: NotRequired[str]
        reason: str
