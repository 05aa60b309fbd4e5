"""The types of the monitor's replies and events. Names and members are QEMU's; those with an X are this monitor's own.

Ref: vectors qemu-qmp-schema.json, qemu-qmp-transcript.jsonl.
"""

from __future__ import annotations

from typing import Final

from vmm.qmp.command import (
    ANY,
    BOOL,
    INT,
    NOTHING,
    SIZE,
    STR,
    UINT8,
    UINT16,
    UINT64,
    Arg,
    ArgType,
    Enum,
    Later,
    ListOf,
    Struct,
    Union,
)


def struct(name: str, *members: Arg) -> Struct:
    """A `Struct` with a name."""
    return Struct(members, name=name)


# --- the machine -------------------------------------------------------------------------------------------------

RUN_STATE: Final = Enum(
    (
        "debug",
        "inmigrate",
        "internal-error",
        "io-error",
        "paused",
        "postmigrate",
        "prelaunch",
        "finish-migrate",
        "restore-vm",
        "running",
        "save-vm",
        "shutdown",
        "suspended",
        "watchdog",
        "guest-panicked",
        "colo",
    ),
    "RunState",
)
STATUS_INFO: Final = struct("StatusInfo", Arg("running", BOOL), Arg("status", RUN_STATE))
NAME_INFO: Final = struct("NameInfo", Arg("name", STR, optional=True, doc="absent if none was given"))
UUID_INFO: Final = struct("UuidInfo", Arg("UUID", STR))
KVM_INFO: Final = struct("KvmInfo", Arg("enabled", BOOL, doc="it runs the vCPUs"), Arg("present", BOOL))
ACCELERATOR: Final = Enum(
    ("hvf", "kvm", "mshv", "nitro", "nvmm", "qtest", "tcg", "whpx", "xen"),
    "Accelerator",
)
ACCELERATOR_INFO: Final = struct(
    "AcceleratorInfo",
    Arg("enabled", ACCELERATOR, doc="the engine in use"),
    Arg("present", ListOf(ACCELERATOR), doc="all there are"),
)
TARGET: Final = Enum(("x86_64",), "SysEmuTarget")
TARGET_INFO: Final = struct("TargetInfo", Arg("arch", TARGET))
MACHINE_INFO: Final = struct(
    "MachineInfo",
    Arg("name", STR),
    Arg("alias", STR, optional=True),
    Arg("is-default", BOOL, optional=True),
    Arg("cpu-max", INT),
    Arg("hotpluggable-cpus", BOOL),
    Arg("numa-mem-supported", BOOL),
    Arg("deprecated", BOOL),
    Arg("default-cpu-type", STR, optional=True),
    Arg("default-ram-id", STR, optional=True),
    Arg("acpi", BOOL),
)
CURRENT_MACHINE: Final = struct("CurrentMachineParams", Arg("wakeup-suspend-support", BOOL))
CPU_PROPS: Final = struct(
    "CpuInstanceProperties",
    Arg("node-id", INT, optional=True),
    Arg("socket-id", INT, optional=True),
    Arg("die-id", INT, optional=True),
    Arg("module-id", INT, optional=True),
    Arg("core-id", INT, optional=True),
    Arg("thread-id", INT, optional=True),
)
CPU_INFO_FAST: Final = struct(
    "CpuInfoFast",
    Arg("cpu-index", INT),
    Arg("qom-path", STR),
    Arg("thread-id", INT, doc="the host thread that runs it"),
    Arg("props", CPU_PROPS, optional=True),
    Arg("qom-type", STR),
    Arg("target", TARGET),
)
HOTPLUGGABLE_CPU: Final = struct(
    "HotpluggableCPU",
    Arg("type", STR),
    Arg("vcpus-count", INT),
    Arg("props", CPU_PROPS),
    Arg("qom-path", STR, optional=True, doc="present if the CPU is"),
)
CPU_DEFINITION: Final = struct(
    "CpuDefinitionInfo",
    Arg("name", STR),
    Arg("migration-safe", BOOL, optional=True),
    Arg("static", BOOL),
    Arg("unavailable-features", ListOf(STR), optional=True),
    Arg("typename", STR),
    Arg("alias-of", STR, optional=True),
    Arg("deprecated", BOOL),
)
OST_INFO: Final = struct(
    "ACPIOSTInfo",
    Arg("device", STR, optional=True),
    Arg("slot", STR),
    Arg("slot-type", Enum(("DIMM", "CPU"), "ACPISlotType")),
    Arg("source", INT),
    Arg("status", INT),
)
MEMORY_SIZE: Final = struct(
    "MemoryInfo",
    Arg("base-memory", SIZE, doc="bytes of `-m`"),
    Arg("plugged-memory", SIZE, optional=True),
)
MEMDEV: Final = struct(
    "Memdev",
    Arg("id", STR, optional=True),
    Arg("size", SIZE),
    Arg("merge", BOOL),
    Arg("dump", BOOL),
    Arg("prealloc", BOOL),
    Arg("share", BOOL),
    Arg("reserve", BOOL, optional=True),
    Arg("host-nodes", ListOf(UINT16)),
    Arg("policy", Enum(("default", "preferred", "bind", "interleave"), "HostMemPolicy")),
)
REBOOT_ACTION: Final = Enum(("reset", "shutdown"), "RebootAction")
SHUTDOWN_ACTION: Final = Enum(("poweroff", "pause"), "ShutdownAction")
PANIC_ACTION: Final = Enum(("pause", "shutdown", "exit-failure", "none"), "PanicAction")
WATCHDOG_ACTION: Final = Enum(
    ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"), "WatchdogAction"
)

# --- the monitor -------------------------------------------------------------------------------------------------

VERSION_INFO: Final = struct(
    "VersionInfo",
    Arg("qemu", struct("VersionTriple", Arg("major", INT), Arg("minor", INT), Arg("micro", INT))),
    Arg("package", STR, doc="the program, and its own version"),
)
COMMAND_INFO: Final = struct("CommandInfo", Arg("name", STR))
HUMAN_READABLE: Final = struct("HumanReadableText", Arg("human-readable-text", STR))
SCHEMA_INFO: Final = Struct(
    (
        Arg("name", STR),
        Arg(
            "meta-type",
            Enum(("builtin", "enum", "array", "object", "alternate", "command", "event"), "SchemaMetaType"),
        ),
        Arg("features", ListOf(STR), optional=True),
    ),
    open=True,
    name="SchemaInfo",
)
LINE_PARAMETER: Final = struct(
    "CommandLineParameterInfo",
    Arg("name", STR),
    Arg("type", Enum(("string", "boolean", "number", "size"), "CommandLineParameterType")),
    Arg("help", STR, optional=True),
    Arg("default", STR, optional=True),
)
LINE_OPTION: Final = struct("CommandLineOptionInfo", Arg("option", STR), Arg("parameters", ListOf(LINE_PARAMETER)))
YANK_INSTANCE: Final = Union(
    "YankInstance",
    (Arg("type", Enum(("block-node", "chardev", "migration"), "YankInstanceType")),),
    "type",
    {"block-node": Struct((Arg("node-name", STR),)), "chardev": Struct((Arg("id", STR),)), "migration": NOTHING},
)

# --- objects -----------------------------------------------------------------------------------------------------

PROPERTY: Final = struct(
    "ObjectPropertyInfo",
    Arg("name", STR),
    Arg("type", STR),
    Arg("description", STR, optional=True),
    Arg("default-value", ANY, optional=True),
)
PROPERTY_VALUE: Final = struct(
    "ObjectPropertyValue",
    Arg("name", STR),
    Arg("type", STR),
    Arg("value", ANY, optional=True, doc="absent if it cannot be read"),
)
PROPERTY_VALUES: Final = struct("ObjectPropertiesValues", Arg("properties", ListOf(PROPERTY_VALUE)))
TYPE_INFO: Final = struct(
    "ObjectTypeInfo", Arg("name", STR), Arg("abstract", BOOL, optional=True), Arg("parent", STR, optional=True)
)

# --- PCI ---------------------------------------------------------------------------------------------------------

_RANGE = struct("PciMemoryRange", Arg("base", INT), Arg("limit", INT))
_REGION = struct(
    "PciMemoryRegion",
    Arg("bar", INT),
    Arg("type", STR, doc="`io` or `memory`"),
    Arg("address", INT, doc="-1: not mapped"),
    Arg("size", INT),
    Arg("prefetch", BOOL, optional=True),
    Arg("mem_type_64", BOOL, optional=True),
)
_BRIDGE = struct(
    "PciBridgeInfo",
    Arg(
        "bus",
        struct(
            "PciBusInfo",
            Arg("number", INT),
            Arg("secondary", INT),
            Arg("subordinate", INT),
            Arg("io_range", _RANGE),
            Arg("memory_range", _RANGE),
            Arg("prefetchable_range", _RANGE),
        ),
    ),
    Arg("devices", ListOf(Later(lambda: PCI_DEVICE)), optional=True),
)
PCI_DEVICE: Final[ArgType] = struct(
    "PciDeviceInfo",
    Arg("bus", INT),
    Arg("slot", INT),
    Arg("function", INT),
    Arg("class_info", struct("PciDeviceClass", Arg("desc", STR, optional=True), Arg("class", INT))),
    Arg(
        "id",
        struct(
            "PciDeviceId",
            Arg("device", INT),
            Arg("vendor", INT),
            Arg("subsystem", INT, optional=True),
            Arg("subsystem-vendor", INT, optional=True),
        ),
    ),
    Arg("irq", INT, optional=True, doc="what the guest wrote into INTERRUPT_LINE"),
    Arg("irq_pin", INT, doc="1 for INTA#; 0: none"),
    Arg("qdev_id", STR),
    Arg("pci_bridge", _BRIDGE, optional=True),
    Arg("regions", ListOf(_REGION)),
)
PCI_INFO: Final = struct("PciInfo", Arg("bus", INT), Arg("devices", ListOf(PCI_DEVICE)))

# --- character devices -------------------------------------------------------------------------------------------

CHARDEV_INFO: Final = struct(
    "ChardevInfo", Arg("label", STR), Arg("filename", STR), Arg("frontend-open", BOOL, doc="somebody uses it")
)
CHARDEV_BACKEND_INFO: Final = struct("ChardevBackendInfo", Arg("name", STR))
CHARDEV_RETURN: Final = struct("ChardevReturn", Arg("pty", STR, optional=True, doc="the terminal's path"))

# --- block devices -----------------------------------------------------------------------------------------------

_IMAGE = struct(
    "ImageInfo",
    Arg("filename", STR),
    Arg("format", STR),
    Arg("actual-size", INT, optional=True, doc="bytes on the host's disk"),
    Arg("virtual-size", INT, doc="bytes the guest sees"),
)
BLOCK_DEVICE_INFO: Final = struct(
    "BlockDeviceInfo",
    Arg("file", STR),
    Arg("node-name", STR, optional=True),
    Arg("ro", BOOL),
    Arg("drv", STR),
    Arg("backing_file_depth", INT),
    Arg("active", BOOL),
    Arg(
        "children",
        ListOf(struct("BlockdevChild", Arg("child", STR, doc="`file` or `image`"), Arg("node-name", STR))),
    ),
    Arg("encrypted", BOOL),
    Arg("detect_zeroes", Enum(("off", "on", "unmap"), "BlockdevDetectZeroesOptions")),
    *(Arg(name, INT) for name in ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")),
    Arg("image", _IMAGE),
    Arg(
        "cache",
        struct("BlockdevCacheInfo", Arg("writeback", BOOL), Arg("direct", BOOL), Arg("no-flush", BOOL)),
    ),
    Arg("write_threshold", INT),
)
BLOCK_INFO: Final = struct(
    "BlockInfo",
    Arg("device", STR),
    Arg("qdev", STR, optional=True, doc="who uses it"),
    Arg("type", STR),
    Arg("removable", BOOL),
    Arg("locked", BOOL),
    Arg("inserted", BLOCK_DEVICE_INFO, optional=True),
    Arg("tray_open", BOOL, optional=True),
)

# --- interrupts --------------------------------------------------------------------------------------------------

_IOAPIC = struct(
    "XIoapic",
    Arg("name", STR),
    Arg("version", INT),
    Arg("id", INT),
    Arg("ioregsel", INT),
    Arg("irr", INT, doc="a bit per pin"),
    Arg("remote-irr", INT, doc="a bit per pin"),
    Arg("entries", ListOf(UINT64), doc="the redirection table"),
)
_PIC = struct(
    "XPic",
    Arg("name", STR),
    *(Arg(name, INT) for name in ("irr", "imr", "isr", "priority-add", "irq-base", "elcr")),
    *(Arg(name, BOOL) for name in ("read-isr", "special-fully-nested")),
)
_LAPIC = struct(
    "XLapic",
    *(Arg(name, INT) for name in ("cpu-index", "id", "spiv", "tpr")),
    *(Arg(name, ListOf(UINT8), doc="vectors") for name in ("irr", "isr", "tmr")),
    Arg("lvt", Struct((), open=True, name="XLvt"), doc="the local vector table, by entry"),
    Arg("taken", Struct((), open=True, name="XTaken"), doc="how often the CPU took each vector, by vector"),
)
IRQCHIP_INFO: Final = struct(
    "XIrqchip",
    Arg("ioapics", ListOf(_IOAPIC)),
    Arg("pics", ListOf(_PIC)),
    Arg("lapics", ListOf(_LAPIC)),
)
UNPLUG_ROW: Final = struct(
    "XUnplug",
    Arg("device", STR, optional=True),
    Arg("path", STR),
    Arg("slot", INT),
    Arg("since-ns", INT, doc="how long ago it was asked for"),
    Arg("waits-for", STR, doc="`gpe-enable`: no guest listens; `sci`: it has not looked; `eject`: it keeps the device"),
)
LEDGER_ROW: Final = struct("XLedgerRow", Arg("owner", STR), Arg("kind", STR), Arg("name", STR))

# --- the host kernel's side --------------------------------------------------------------------------------------

_HELD = (
    Arg("operation", INT, optional=True, doc="its number, if it is held at a point"),
    Arg("command", STR, optional=True),
    Arg("state", STR, optional=True, doc="`held` or `blocked`"),
    Arg("point", STR, optional=True),
)
OPERATION: Final = struct(
    "XOperation",
    Arg("fd", INT, optional=True),
    Arg("count", UINT64, optional=True),
    *_HELD,
    Arg("not-held", ListOf(STR), optional=True, doc="points where it should have been held, and why not"),
)
OUTCOME: Final = struct(
    "XOutcome",
    *_HELD,
    Arg("error", STR, optional=True),
    Arg("return", Struct((), open=True, name="XReturn"), optional=True),
)
POINT: Final = struct(
    "XPoint",
    Arg("name", STR),
    Arg("mirrors", STR, doc="the place in Linux"),
    Arg("held", BOOL),
    Arg("why-not", STR, optional=True),
    Arg("operations", ListOf(struct("XHeld", *_HELD))),
)
IRQFDS: Final = struct(
    "XIrqfds",
    Arg(
        "irqfds",
        ListOf(
            struct(
                "XIrqfd",
                Arg("fds", ListOf(INT)),
                Arg("gsi", INT),
                Arg("level", BOOL),
                Arg("resamplefds", ListOf(INT)),
                Arg("source", ANY, doc="its irq source id; null if it has none of its own"),
            )
        ),
    ),
    Arg(
        "eoifds",
        ListOf(struct("XEoifd", Arg("fds", ListOf(INT)), Arg("irqfds", ListOf(INT)), Arg("source", ANY))),
    ),
    Arg("sources", ListOf(INT), doc="irq source ids in use"),
    Arg(
        "eventfds",
        ListOf(struct("XEventfd", Arg("fd", INT), Arg("name", STR), Arg("count", UINT64), Arg("ours", BOOL))),
    ),
)
