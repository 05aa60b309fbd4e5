"""The command line of `vintx-system-x86_64`: QEMU's options, in one table.

From it come the parser here, and help, manual page, completion and query-command-line-options (`vmm.cli.reference`).
Parsing is pure, but for the files that -readconfig names. What is asked for is checked as far as words go; whether a
machine, device or file is there is found out by whoever acts on the `Config`. An option that is not known, or cannot
be honoured, is an error, never ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.cli import option_values as values
from vmm.cli.config import (
    ACTION_DEFAULTS,
    ACTIONS,
    PROGRAM,
    Config,
    FwCfgSpec,
    HelpRequest,
    MonitorSpec,
    PropertySet,
    Topology,
    TraceSpec,
)
from vmm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Apply = Callable[[Config, str], None]

__all__ = (
    "ACTIONS",
    "ACTION_DEFAULTS",
    "OPTIONS",
    "PROGRAM",
    "REFUSED",
    "Config",
    "FwCfgSpec",
    "HelpRequest",
    "MonitorSpec",
    "Option",
    "PropertySet",
    "Topology",
    "TraceSpec",
    "parse_command_line",
)


class Option(NamedTuple):
    """One option. `value`: how --help shows its argument, None if it takes none.

    `group`: its section in a file of -readconfig, empty if it has none. `params`: what its argument takes, where that
    does not depend on a type.
    """

    names: tuple[str, ...]
    value: str | None
    help: str
    apply: Apply
    group: str = ""
    params: tuple[values.Param, ...] = ()


OPTIONS: Final[tuple[Option | str, ...]] = (
    "Help",
    Option(("h", "help"), None, "show this text", values.asks("usage")),
    Option(("version",), None, "show the version", values.asks("version")),
    "Machine",
    Option(("machine", "M"), "TYPE[,PROP=VALUE...]", "the machine type; `help` lists them", values.machine, "machine"),
    Option(
        ("accel",),
        "NAME[,PROP=VALUE...]",
        "the CPU engine; repeat it for a second choice",
        values.accel,
        "accel",
        values.ACCEL,
    ),
    Option(("enable-kvm",), None, "the same as -accel kvm", values.enable_kvm),
    Option(("m",), "[size=]MEGABYTES", "guest RAM; suffix k, M, G", values.memory, "memory", values.MEMORY),
    Option(
        ("smp",),
        "[cpus=]N[,maxcpus=N][,sockets=N][,cores=N][,threads=N]",
        "the vCPUs",
        values.smp,
        "smp-opts",
        values.SMP,
    ),
    Option(("cpu",), "MODEL[,PROP=VALUE...]", "the CPU model; `help` lists them", values.cpu),
    Option(
        ("device",), "DRIVER[,PROP=VALUE...]", "plug a device; also `help`, and `DRIVER,help`", values.device, "device"
    ),
    Option(("object",), "TYPE,id=ID[,PROP=VALUE...]", "make an object; `help` lists types", values.object_, "object"),
    Option(
        ("global",),
        "DRIVER.PROP=VALUE",
        "another default for a driver's property",
        values.global_,
        "global",
        values.GLOBAL,
    ),
    Option(
        ("fw_cfg",),
        "[name=]NAME,file=PATH|string=TEXT",
        "add an item to fw_cfg",
        values.fw_cfg,
        "fw_cfg",
        values.FW_CFG,
    ),
    Option(
        ("rtc",),
        "[base=utc|localtime|DATETIME][,clock=host|rt|vm]",
        "the real-time clock",
        values.rtc,
        "rtc",
        values.RTC,
    ),
    Option(("name",), "NAME", "the guest's name", values.name, "name", values.NAME),
    Option(("uuid",), "UUID", "the guest's UUID", values.uuid),
    Option(("readconfig",), "PATH", "options from a file, as if they stood here", values.nothing),
    Option(
        ("writeconfig",), "PATH", "write such a file of the options given; - is standard output", values.write_config
    ),
    Option(("nodefaults",), None, "no default devices", values.switch_on("nodefaults")),
    Option(("no-user-config",), None, "nothing: only -readconfig reads one", values.nothing),
    "Boot",
    Option(("kernel",), "PATH", "the guest: multiboot, ELF, Linux or flat image", values.set_to("kernel")),
    Option(("initrd",), "PATH", "its initial RAM disk, or multiboot modules", values.set_to("initrd")),
    Option(("append",), "TEXT", "its command line", values.set_to("append")),
    Option(
        ("boot",),
        "[order=]DRIVES[,PROP=VALUE...]",
        "what the guest's firmware tables say of boot order",
        values.boot,
        "boot-opts",
        values.BOOT,
    ),
    Option(("S",), None, "do not start the guest: `cont` does", values.switch_on("paused")),
    Option(
        ("preconfig",), None, "wait for x-exit-preconfig before the machine is built", values.switch_on("preconfig")
    ),
    Option(("no-reboot",), None, "the same as -action reboot=shutdown", values.set_action("reboot", "shutdown")),
    Option(("no-shutdown",), None, "the same as -action shutdown=pause", values.set_action("shutdown", "pause")),
    Option(
        ("action",),
        "EVENT=ACTION[,...]",
        "what reboot, shutdown, panic and watchdog lead to",
        values.action,
        "action",
        values.ACTION,
    ),
    Option(("watchdog-action",), "ACTION", "the same as -action watchdog=ACTION", values.set_action("watchdog", "")),
    Option(
        ("no-fd-bootchk",), None, "tell firmware not to check a floppy's boot sector", values.switch_off("fd_bootchk")
    ),
    "Disks",
    Option(
        ("blockdev",),
        "DRIVER,node-name=NAME[,PROP=VALUE...]",
        "a block node: file, raw, null-co, blkdebug",
        values.blockdev,
        "blockdev",
    ),
    Option(
        ("drive",),
        "if=none,id=ID,file=PATH[,format=raw][,PROP=VALUE...]",
        "a plain image; a device takes it by drive=ID",
        values.drive,
        "drive",
        values.DRIVE,
    ),
    "Monitors and character devices",
    Option(
        ("chardev",),
        "KIND,id=ID[,PROP=VALUE...]",
        "make a character device; `help` lists kinds",
        values.chardev,
        "chardev",
        values.CHARDEV,
    ),
    Option(
        ("mon",),
        "[chardev=]ID[,mode=control|readline][,pretty=on|off]",
        "a monitor on a character device",
        values.mon,
        "mon",
        values.MON,
    ),
    Option(
        ("qmp",), "WHERE", "a QMP monitor: stdio, unix:PATH,server=on, tcp:HOST:PORT, ...", values.monitor("control")
    ),
    Option(("qmp-pretty",), "WHERE", "the same, with indented JSON", values.monitor("control", pretty=True)),
    Option(("monitor",), "WHERE", "a human monitor", values.monitor("readline")),
    Option(("serial",), "WHERE", "a serial port: stdio, mon:stdio, file:PATH, null, chardev:ID, ...", values.serial),
    Option(("parallel",), "none", "there is no parallel port", values.nothing_but("parallel port", "none")),
    "Network",
    Option(("netdev",), "TYPE,id=ID[,PROP=VALUE...]", "a network back end: hubport or socket", values.netdev, "netdev"),
    Option(("net",), "none", "no network card by default", values.nothing_but("network", "none")),
    Option(("nic",), "none", "the same", values.nothing_but("network", "none")),
    "Display and sound (there are none)",
    Option(("display",), "none", "no display", values.nothing_but("display", "none")),
    Option(
        ("nographic",), None, "no display; -serial mon:stdio, unless another is given", values.switch_on("nographic")
    ),
    Option(("vga",), "none", "no graphics card", values.nothing_but("graphics card", "none")),
    Option(("audio",), "none", "no sound", values.nothing_but("sound", "none")),
    "Process, logs and tests",
    Option(
        ("msg",),
        "[timestamp=on|off][,guest-name=on|off]",
        "what errors and warnings begin with",
        values.msg,
        "msg",
        values.MSG,
    ),
    Option(
        ("overcommit",),
        "[mem-lock=off][,cpu-pm=off]",
        "nothing is locked, and nothing idles on its own",
        values.overcommit,
    ),
    Option(("sandbox",), "off", "no sandbox", values.nothing_but("sandbox", "off")),
    Option(("pidfile",), "PATH", "write the process id there", values.set_to("pidfile")),
    Option(("daemonize",), None, "go to the background once the machine is made", values.switch_on("daemonize")),
    Option(
        ("run-with",),
        "[exit-with-parent=on|off][,chroot=DIR][,user=NAME|UID:GID]",
        "end with the parent; give up rights once the machine is made",
        values.run_with,
        "run-with",
        values.RUN_WITH,
    ),
    Option(("D",), "PATH", "write logs there", values.set_to("log_file")),
    Option(("d",), "ITEM[,...]", "log these; `help` lists them", values.log_items),
    Option(
        ("trace",),
        "[enable=]PATTERN[,events=PATH][,file=PATH]",
        "trace events; `help` lists them",
        values.trace,
        "trace",
        values.TRACE,
    ),
    Option(("qtest",), "WHERE", "let a test program drive the machine", values.set_to("qtest")),
    Option(("qtest-log",), "PATH", "write that conversation there", values.set_to("qtest_log")),
)

REFUSED: Final = {
    "acpitable": "the ACPI tables are the machine's own",
    "add-fd": "a monitor takes no descriptors",
    "audiodev": "there is no sound",
    "bios": "there is no firmware; -kernel boots the guest",
    "cdrom": "there is no such disk; -kernel and -initrd boot the guest",
    "compat": "there is no policy for what is deprecated",
    "debugcon": "there is no such port; -serial has the output",
    "dtb": "there are no device trees on a PC",
    "fda": "there is no floppy disk",
    "fdb": "there is no floppy disk",
    "fsdev": "there are no shared directories",
    "gdb": "there is no stub for a debugger",
    "hda": "there is no IDE disk; -drive if=none and -device nvme are a disk",
    "hdb": "there is no IDE disk; -drive if=none and -device nvme are a disk",
    "hdc": "there is no IDE disk; -drive if=none and -device nvme are a disk",
    "hdd": "there is no IDE disk; -drive if=none and -device nvme are a disk",
    "icount": "-accel qtest has a virtual clock",
    "incoming": "there is no migration",
    "k": "there is no keyboard",
    "L": "there is no firmware to look for",
    "loadvm": "there are no snapshots of running guests",
    "mem-path": "-machine memory-backend= takes RAM from an object",
    "numa": "there is one node",
    "option-rom": "there is no firmware that would run it",
    "pflash": "there is no flash memory",
    "plugin": "there are no TCG plug-ins",
    "s": "there is no stub for a debugger",
    "smbios": "there are no SMBIOS tables",
    "snapshot": "work on a copy of the image",
    "spice": "there is no display",
    "tpmdev": "there is no TPM",
    "usb": "there is no USB",
    "usbdevice": "there is no USB",
    "virtfs": "there are no shared directories",
    "vnc": "there is no display",
}
"""Options of QEMU that cannot be honoured, and why."""

_TABLE: Final = {name: option for option in OPTIONS if not isinstance(option, str) for name in option.names}
_GROUPS: Final = {option.group: option for option in _TABLE.values() if option.group}
IMPLIED: Final = {
    "accel": "accel",
    "blockdev": "driver",
    "boot-opts": "order",
    "chardev": "backend",
    "device": "driver",
    "fw_cfg": "name",
    "machine": "type",
    "memory": "size",
    "mon": "chardev",
    "name": "guest",
    "netdev": "type",
    "object": "qom-type",
    "smp-opts": "cpus",
    "trace": "enable",
}
"""By group: the key of a first part that has none."""


def parse_command_line(arguments: Sequence[str]) -> Config:
    """What `arguments` (without the program's name) ask for.

    Raises UsageError: `-foo: invalid option`, `-m: requires an argument`, `-m x: Parameter 'size' expects ...`.
    """
    config = Config()
    words = iter(arguments)
    for word in words:
        option, shown = _find(word)
        text = ""
        if option.value is not None:
            argument = next(words, None)
            if argument is None:
                raise UsageError(f"{shown}: requires an argument")
            text = argument
            shown = f"{shown} {text}"
        if option.names == ("readconfig",):
            _read_config(config, text, shown)
            continue
        _apply(config, option, text, shown)
        if config.help is not None and config.help.topic in ("usage", "version"):
            return config
    if config.nographic and not config.nodefaults and not config.serials:
        values.serial(config, "mon:stdio")
    return config


def _apply(config: Config, option: Option, text: str, shown: str) -> None:
    try:
        option.apply(config, text)
    except UsageError as error:
        raise UsageError(f"{shown}: {error}") from None
    if option.group:
        config.given.append((option.group, text))


def _read_config(config: Config, path: str, shown: str) -> None:
    from vmm.ini import parse_ini

    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123  (a user's path)
            text = file.read(_LONGEST_CONFIG + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{shown}: Cannot read config file {path}: {reason}") from error
    if len(text) > _LONGEST_CONFIG:
        raise UsageError(f"{shown}: {path} has more than {_LONGEST_CONFIG} characters")
    for section in parse_ini(text, path):
        option = _GROUPS.get(section.group)
        where = f"{path}:{section.line}"
        if option is None:
            raise UsageError(f"{where}: there is no option group '{section.group}'; known are {', '.join(_GROUPS)}")
        given = dict(section.values)
        implied = IMPLIED.get(section.group, "")
        parts = [_doubled(given.pop(implied))] if given.get(implied) else []
        if section.id:
            parts.append(f"id={_doubled(section.id)}")
        parts += [f"{key}={_doubled(value)}" for key, value in given.items()]
        _apply(config, option, ",".join(parts), where)


_LONGEST_CONFIG: Final = 1 << 20


def _doubled(value: str) -> str:
    return value.replace(",", ",,")


def _find(word: str) -> tuple[Option, str]:
    if not word.startswith("-") or word == "-":
        raise UsageError(
            f"{word}: there is no disk to boot this from; -kernel {word} boots a kernel, -drive if=none is a disk"
        )
    name = word.removeprefix("-").removeprefix("-")
    option = _TABLE.get(name)
    if option is None:
        why = REFUSED.get(name)
        raise UsageError(f"{word}: not supported: {why}" if why else f"{word}: invalid option")
    return option, word
