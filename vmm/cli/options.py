"""The command line of `vintx-system-x86_64`: QEMU's options, from one table to a `Config`, and to --help.

Parsing is pure: it opens nothing and makes nothing. What is asked for is checked as far as words go; whether a
machine, device or file is there is found out by whoever acts on the `Config`. An option that is not known, or cannot
be honoured, is an error, never ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm.cli.keyval import (
    only,
    parse_bool,
    parse_choice,
    parse_keyval,
    parse_number,
    parse_properties,
    parse_size,
)
from vmm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Apply = Callable[["Config", str], None]

PROGRAM: Final = "vintx-system-x86_64"
MAX_CPUS: Final = 255
_LINE_WIDTH: Final = 100

ACTIONS: Final = {
    "reboot": ("reset", "shutdown"),
    "shutdown": ("poweroff", "pause"),
    "panic": ("pause", "shutdown", "exit-failure", "none"),
    "watchdog": ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
}
ACTION_DEFAULTS: Final = {"reboot": "reset", "shutdown": "poweroff", "panic": "shutdown", "watchdog": "reset"}


class HelpRequest(NamedTuple):
    """Help instead of a machine. `topic`: `usage`, `version`, or an option's name; `name`: the type asked about."""

    topic: str
    name: str = ""


class PropertySet(NamedTuple):
    """A `-device` or `-object`: its properties, whether their values are text, and the argument as given."""

    values: dict[str, Any]
    from_text: bool
    words: str


class MonitorSpec(NamedTuple):
    """A monitor. `where`: `chardev:ID`, or a backend as -serial takes it; `mode`: `control` (QMP) or `readline`."""

    where: str
    mode: str
    pretty: bool = False


class FwCfgSpec(NamedTuple):
    """An item of fw_cfg: the text of `string`, or the content of `file`."""

    name: str
    string: str | None
    file: str | None


class TraceSpec(NamedTuple):
    """A `-trace`: a pattern of event names, a file of patterns, the file to write to; empty if not given."""

    pattern: str
    events: str
    file: str


@dataclass(slots=True)
class Topology:
    """`-smp`. All are at least 1, and sockets * cores * threads == maxcpus >= cpus."""

    cpus: int = 1
    maxcpus: int = 1
    sockets: int = 1
    cores: int = 1
    threads: int = 1


@dataclass(slots=True)
class Config:
    """What the command line asks for. Sizes in bytes; paths as given."""

    machine: str | None = None
    """None: the default machine type."""
    machine_options: dict[str, str] = field(default_factory=dict)
    accels: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Engines with their properties, the preferred one first; the next is taken if one is not available."""
    ram_size: int | None = None
    smp: Topology = field(default_factory=Topology)
    cpu: str | None = None
    cpu_options: dict[str, str] = field(default_factory=dict)
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    devices: list[PropertySet] = field(default_factory=list)
    objects: list[PropertySet] = field(default_factory=list)
    """Without monitors: a `monitor-qmp` or `monitor-hmp` object is in `monitors`."""
    globals: list[tuple[str, str, str]] = field(default_factory=list)
    """Driver, property, value."""
    fw_cfg: list[FwCfgSpec] = field(default_factory=list)
    chardevs: list[str] = field(default_factory=list)
    """As `vmm.chardev_options.parse_chardev` takes them."""
    netdevs: list[tuple[dict[str, str], str]] = field(default_factory=list)
    """As `vmm.netdev.make_netdev` takes them, with the argument as given."""
    monitors: list[MonitorSpec] = field(default_factory=list)
    serials: list[str] = field(default_factory=list)
    """As `vmm.chardev_options.parse_serial` takes them."""
    nodefaults: bool = False
    nographic: bool = False
    paused: bool = False
    preconfig: bool = False
    actions: dict[str, str] = field(default_factory=lambda: dict(ACTION_DEFAULTS))
    """What a guest's `reboot`, `shutdown`, `panic` and `watchdog` lead to."""
    boot: dict[str, str] = field(default_factory=dict)
    rtc_base: str = "utc"
    rtc_clock: str = "host"
    name: str = ""
    uuid: str = "00000000-0000-0000-0000-000000000000"
    pidfile: str | None = None
    log_file: str | None = None
    log_items: list[str] = field(default_factory=list)
    traces: list[TraceSpec] = field(default_factory=list)
    qtest: str | None = None
    """Where qtest listens or connects, as -serial takes it."""
    qtest_log: str | None = None
    exit_with_parent: bool = False
    help: HelpRequest | None = None
    """The first help that was asked for; nothing else is to be done then."""


class Option(NamedTuple):
    """One option. `value`: how --help shows its argument, None if it takes none."""

    names: tuple[str, ...]
    value: str | None
    help: str
    apply: Apply


# --- the machine -------------------------------------------------------------------------------------------------


def _ask(config: Config, topic: str, name: str = "") -> None:
    if config.help is None:
        config.help = HelpRequest(topic, name)


def _machine(config: Config, text: str) -> None:
    given = parse_keyval(text, "type")
    if given.help:
        _ask(config, "machine", given.values.get("type", ""))
        return
    for key, value in given.values.items():
        if key == "type":
            config.machine = value
        elif key == "accel":
            config.accels = [(name, {}) for name in str(value).split(":") if name]
        else:
            config.machine_options[key] = value


def _accel(config: Config, text: str) -> None:
    given = parse_keyval(text, "accel")
    if given.help:
        _ask(config, "accel", given.values.get("accel", ""))
        return
    options = dict(given.values)
    if "accel" not in options:
        raise UsageError("Parameter 'accel' is missing")
    config.accels.append((options.pop("accel"), options))


def _memory(config: Config, text: str) -> None:
    values = parse_keyval(text, "size").values
    only(values, ("size", "slots", "maxmem"))
    if "slots" in values or "maxmem" in values:
        raise UsageError("there is no memory hot-plug: slots= and maxmem= cannot be honoured")
    size = parse_size("size", values.get("size", ""), "m")
    if size == 0:
        raise UsageError("Parameter 'size' expects at least 1M")
    config.ram_size = size


def _smp(config: Config, text: str) -> None:
    values = parse_keyval(text, "cpus").values
    only(values, ("cpus", "maxcpus", "sockets", "cores", "threads"))
    given = {key: parse_number(key, value, 1, MAX_CPUS) for key, value in values.items()}
    cpus, maxcpus = given.get("cpus", 0), given.get("maxcpus", 0)
    sockets, cores, threads = (given.get(key, 0) for key in ("sockets", "cores", "threads"))
    if not maxcpus and not cpus:
        maxcpus = cpus = (sockets or 1) * (cores or 1) * (threads or 1)
    cpus = cpus or maxcpus
    maxcpus = maxcpus or max(cpus, (sockets or 1) * (cores or 1) * (threads or 1))
    # What is left open goes to cores first, then sockets, then threads.
    if not cores:
        sockets, threads = sockets or 1, threads or 1
        cores = maxcpus // (sockets * threads)
    elif not sockets:
        threads = threads or 1
        sockets = maxcpus // (cores * threads)
    elif not threads:
        threads = maxcpus // (cores * sockets)
    if sockets * cores * threads != maxcpus:
        raise UsageError(
            "Invalid CPU topology: product of the hierarchy must match maxcpus: "
            f"sockets ({sockets}) * cores ({cores}) * threads ({threads}) != maxcpus ({maxcpus})"
        )
    if cpus > maxcpus:
        raise UsageError(f"Invalid CPU topology: maxcpus must be equal to or greater than smp: {maxcpus} < {cpus}")
    config.smp = Topology(cpus, maxcpus, sockets, cores, threads)


def _cpu(config: Config, text: str) -> None:
    if text in ("help", "?"):
        _ask(config, "cpu")
        return
    # The old way to write `feature=on` and `feature=off`.
    text = re.sub(r"(?<=,)([+-])([^,=]+)(?=,|$)", lambda m: f"{m[2]}={'on' if m[1] == '+' else 'off'}", text)
    options = dict(parse_keyval(text, "model", flags=True).values)
    config.cpu = options.pop("model", None)
    if config.cpu is None:
        raise UsageError("Parameter 'model' is missing")
    config.cpu_options = options


def _device(config: Config, text: str) -> None:
    given = parse_properties(text, "driver")
    driver = given.values.get("driver", "")
    if given.help:
        _ask(config, "device", driver)
        return
    if not isinstance(driver, str) or not driver:
        raise UsageError("Parameter 'driver' is missing")
    config.devices.append(PropertySet(given.values, given.from_text, text))


def _object(config: Config, text: str) -> None:
    given = parse_properties(text, "qom-type")
    kind = given.values.get("qom-type", "")
    if given.help:
        _ask(config, "object", kind)
        return
    for key in ("qom-type", "id"):
        if not isinstance(given.values.get(key), str) or not given.values[key]:
            raise UsageError(f"Parameter '{key}' is missing")
    if kind in ("monitor-qmp", "monitor-hmp"):
        only(given.values, ("qom-type", "id", "chardev", "pretty"))
        if not isinstance(given.values.get("chardev"), str):
            raise UsageError("Parameter 'chardev' is missing")
        pretty = given.values.get("pretty", False)
        if isinstance(pretty, str):
            pretty = parse_bool("pretty", pretty)
        mode = "control" if kind == "monitor-qmp" else "readline"
        config.monitors.append(MonitorSpec(f"chardev:{given.values['chardev']}", mode, pretty is True))
        return
    config.objects.append(PropertySet(given.values, given.from_text, text))


def _global(config: Config, text: str) -> None:
    found = re.fullmatch(r"([^.=,]+)\.([^=,]+)=(.*)", text, re.DOTALL)
    if found is not None:
        config.globals.append((found[1], found[2], found[3]))
        return
    values = parse_keyval(text).values
    only(values, ("driver", "property", "value"))
    for key in ("driver", "property", "value"):
        if key not in values:
            raise UsageError(f"Invalid 'global' format: Parameter '{key}' is missing; want DRIVER.PROPERTY=VALUE")
    config.globals.append((values["driver"], values["property"], values["value"]))


def _fw_cfg(config: Config, text: str) -> None:
    values = parse_keyval(text, "name").values
    only(values, ("name", "file", "string"))
    name = values.get("name", "")
    if not name or ("file" in values) == ("string" in values):
        raise UsageError("invalid argument(s): want name=NAME, and file=PATH or string=TEXT")
    if len(name.encode()) > 55:
        raise UsageError("name too long (max. 55 char)")
    config.fw_cfg.append(FwCfgSpec(name, values.get("string"), values.get("file")))


def _rtc(config: Config, text: str) -> None:
    values = parse_keyval(text).values
    only(values, ("base", "clock", "driftfix"))
    base = values.get("base", config.rtc_base)
    if base not in ("utc", "localtime") and not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d)?", base):
        raise UsageError(f"invalid datetime format '{base}'; valid formats: '2006-06-17T16:01:21' or '2006-06-17'")
    config.rtc_base = base
    config.rtc_clock = parse_choice("clock", values.get("clock", config.rtc_clock), ("host", "rt", "vm"))
    if values.get("driftfix", "none") != "none":
        raise UsageError("driftfix=slew is not supported: no tick is lost here")


def _action(config: Config, text: str) -> None:
    values = parse_keyval(text).values
    only(values, tuple(ACTIONS))
    for key, value in values.items():
        config.actions[key] = parse_choice(key, value, ACTIONS[key])


def _set_action(key: str, value: str) -> Apply:
    def apply(config: Config, text: str) -> None:
        config.actions[key] = parse_choice(key, value or text, ACTIONS[key])

    return apply


def _boot(config: Config, text: str) -> None:
    values = parse_keyval(text, "order").values
    only(values, ("order", "once", "menu", "strict", "splash", "splash-time", "reboot-timeout"))
    config.boot.update(values)


def _uuid(config: Config, text: str) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise UsageError("failed to parse UUID string: wrong format")
    config.uuid = text.lower()


def _name(config: Config, text: str) -> None:
    values = parse_keyval(text, "guest").values
    only(values, ("guest", "debug-threads"))
    parse_bool("debug-threads", values.get("debug-threads", "off"))  # All threads have names here.
    config.name = values.get("guest", config.name)


# --- monitors, character devices, logs ---------------------------------------------------------------------------


def _chardev(config: Config, text: str) -> None:
    kind = text.partition(",")[0]
    if kind in ("help", "?"):
        _ask(config, "chardev")
        return
    config.chardevs.append(text)


def _netdev(config: Config, text: str) -> None:
    given = parse_keyval(text, "type")
    if given.help:
        _ask(config, "netdev")
        return
    config.netdevs.append((dict(given.values), text))


def _mon(config: Config, text: str) -> None:
    values = parse_keyval(text, "chardev", flags=True).values
    only(values, ("chardev", "mode", "pretty", "id"))
    if "chardev" not in values:
        raise UsageError("Parameter 'chardev' is missing")
    mode = parse_choice("mode", values.get("mode", "readline"), ("readline", "control"))
    pretty = parse_bool("pretty", values.get("pretty", "off"))
    config.monitors.append(MonitorSpec(f"chardev:{values['chardev']}", mode, pretty))


def _monitor(mode: str, pretty: bool = False) -> Apply:
    def apply(config: Config, text: str) -> None:
        if text != "none":
            config.monitors.append(MonitorSpec(text, mode, pretty))

    return apply


def _trace(config: Config, text: str) -> None:
    given = parse_keyval(text, "enable")
    if given.help:
        _ask(config, "trace")
        return
    only(given.values, ("enable", "events", "file"))
    config.traces.append(TraceSpec(*(given.values.get(key, "") for key in ("enable", "events", "file"))))


def _log_items(config: Config, text: str) -> None:
    if text in ("help", "?"):
        _ask(config, "d")
        return
    config.log_items += [item for item in text.split(",") if item]


def _run_with(config: Config, text: str) -> None:
    values = parse_keyval(text).values
    for key, value in values.items():
        wanted = parse_bool(key, value) if key in ("exit-with-parent", "async-teardown") else True
        if key == "exit-with-parent":
            config.exit_with_parent = wanted
        elif wanted:
            raise UsageError(f"{key} is not supported; exit-with-parent=on|off is")


# --- small ones --------------------------------------------------------------------------------------------------


def _set(name: str) -> Apply:
    """The argument is the value."""
    return lambda config, text: setattr(config, name, text)


def _flag(name: str) -> Apply:
    """The option switches something on."""
    return lambda config, _text: setattr(config, name, True)


def _append_to(name: str) -> Apply:
    """The argument is one more of several."""
    return lambda config, text: getattr(config, name).append(text)


def _nothing_but(what: str, *accepted: str) -> Apply:
    """Only an argument that asks for what is so anyway."""

    def apply(_config: Config, text: str) -> None:
        if text.removeprefix("driver=").removeprefix("type=") not in accepted:
            raise UsageError(f"there is no {what}: only {' or '.join(accepted)} can be honoured")

    return apply


def _kvm(config: Config, _text: str) -> None:
    config.accels.append(("kvm", {}))


def _asks(topic: str) -> Apply:
    return lambda config, _text: _ask(config, topic)


OPTIONS: Final[tuple[Option | str, ...]] = (
    "Help",
    Option(("h", "help"), None, "show this text", _asks("usage")),
    Option(("version",), None, "show the version", _asks("version")),
    "Machine",
    Option(("machine", "M"), "TYPE[,PROP=VALUE...]", "the machine type; `help` lists them", _machine),
    Option(("accel",), "NAME[,PROP=VALUE...]", "the CPU engine; repeat it for a second choice", _accel),
    Option(("enable-kvm",), None, "the same as -accel kvm", _kvm),
    Option(("m",), "[size=]MEGABYTES", "guest RAM; suffix k, M, G", _memory),
    Option(("smp",), "[cpus=]N[,maxcpus=N][,sockets=N][,cores=N][,threads=N]", "the vCPUs", _smp),
    Option(("cpu",), "MODEL[,PROP=VALUE...]", "the CPU model; `help` lists them", _cpu),
    Option(("device",), "DRIVER[,PROP=VALUE...]", "plug a device; also `help`, and `DRIVER,help`", _device),
    Option(("object",), "TYPE,id=ID[,PROP=VALUE...]", "make an object; `help` lists types", _object),
    Option(("global",), "DRIVER.PROP=VALUE", "another default for a driver's property", _global),
    Option(("fw_cfg",), "[name=]NAME,file=PATH|string=TEXT", "add an item to fw_cfg", _fw_cfg),
    Option(("rtc",), "[base=utc|localtime|DATETIME][,clock=host|rt|vm]", "the real-time clock", _rtc),
    Option(("name",), "NAME", "the guest's name", _name),
    Option(("uuid",), "UUID", "the guest's UUID", _uuid),
    Option(("nodefaults",), None, "no default devices", _flag("nodefaults")),
    Option(("no-user-config",), None, "nothing: there are no configuration files", lambda _config, _text: None),
    "Boot",
    Option(("kernel",), "PATH", "the guest: multiboot, ELF, Linux or flat image", _set("kernel")),
    Option(("initrd",), "PATH", "its initial RAM disk, or multiboot modules", _set("initrd")),
    Option(("append",), "TEXT", "its command line", _set("append")),
    Option(("boot",), "[order=]DRIVES[,PROP=VALUE...]", "what the guest's firmware tables say of boot order", _boot),
    Option(("S",), None, "do not start the guest: `cont` does", _flag("paused")),
    Option(("preconfig",), None, "wait for x-exit-preconfig before the machine is built", _flag("preconfig")),
    Option(("no-reboot",), None, "the same as -action reboot=shutdown", _set_action("reboot", "shutdown")),
    Option(("no-shutdown",), None, "the same as -action shutdown=pause", _set_action("shutdown", "pause")),
    Option(("action",), "EVENT=ACTION[,...]", "what reboot, shutdown, panic and watchdog lead to", _action),
    Option(("watchdog-action",), "ACTION", "the same as -action watchdog=ACTION", _set_action("watchdog", "")),
    "Monitors and character devices",
    Option(("chardev",), "KIND,id=ID[,PROP=VALUE...]", "make a character device; `help` lists kinds", _chardev),
    Option(("mon",), "[chardev=]ID[,mode=control|readline][,pretty=on|off]", "a monitor on a character device", _mon),
    Option(("qmp",), "WHERE", "a QMP monitor: stdio, unix:PATH,server=on, tcp:HOST:PORT, ...", _monitor("control")),
    Option(("qmp-pretty",), "WHERE", "the same, with indented JSON", _monitor("control", pretty=True)),
    Option(("monitor",), "WHERE", "a human monitor", _monitor("readline")),
    Option(("serial",), "WHERE", "a serial port: stdio, file:PATH, null, chardev:ID, ...", _append_to("serials")),
    Option(("parallel",), "none", "there is no parallel port", _nothing_but("parallel port", "none")),
    "Network",
    Option(("netdev",), "TYPE,id=ID[,PROP=VALUE...]", "a network back end: hubport or socket", _netdev),
    Option(("net",), "none", "no network card by default", _nothing_but("network", "none")),
    Option(("nic",), "none", "the same", _nothing_but("network", "none")),
    "Display and sound (there are none)",
    Option(("display",), "none", "no display", _nothing_but("display", "none")),
    Option(("nographic",), None, "no display, and the first serial port on stdio", _flag("nographic")),
    Option(("vga",), "none", "no graphics card", _nothing_but("graphics card", "none")),
    Option(("audio",), "none", "no sound", _nothing_but("sound", "none")),
    "Process, logs and tests",
    Option(("pidfile",), "PATH", "write the process id there", _set("pidfile")),
    Option(("run-with",), "exit-with-parent=on|off", "end when the parent process ends", _run_with),
    Option(("D",), "PATH", "write logs there", _set("log_file")),
    Option(("d",), "ITEM[,...]", "log these; `help` lists them", _log_items),
    Option(("trace",), "[enable=]PATTERN[,events=PATH][,file=PATH]", "trace events; `help` lists them", _trace),
    Option(("qtest",), "WHERE", "let a test program drive the machine", _set("qtest")),
    Option(("qtest-log",), "PATH", "write that conversation there", _set("qtest_log")),
)

REFUSED: Final = {
    "bios": "there is no firmware; -kernel boots the guest",
    "cdrom": "there is no disk; -kernel and -initrd boot the guest",
    "daemonize": "run it with & or as a service; -pidfile tells its process id",
    "drive": "there is no disk; -kernel and -initrd boot the guest",
    "blockdev": "there is no disk; -kernel and -initrd boot the guest",
    "hda": "there is no disk; -kernel and -initrd boot the guest",
    "dtb": "there are no device trees on a PC",
    "icount": "-accel qtest has a virtual clock",
    "incoming": "there is no migration",
    "loadvm": "there are no snapshots of running guests",
    "usb": "there is no USB",
    "vnc": "there is no display",
    "readconfig": "there are no configuration files",
}
"""Options of QEMU that cannot be honoured, and why."""

_TABLE: Final = {name: option for option in OPTIONS if not isinstance(option, str) for name in option.names}


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
        try:
            option.apply(config, text)
        except UsageError as error:
            raise UsageError(f"{shown}: {error}") from None
        if config.help is not None and config.help.topic in ("usage", "version"):
            return config
    if config.nographic and not config.nodefaults and not config.serials:
        config.serials.append("stdio")
    return config


def _find(word: str) -> tuple[Option, str]:
    if not word.startswith("-") or word == "-":
        raise UsageError(f"{word}: there is no disk to boot this from; -kernel {word} boots a kernel")
    name = word.removeprefix("-").removeprefix("-")
    option = _TABLE.get(name)
    if option is None:
        why = REFUSED.get(name)
        raise UsageError(f"{word}: not supported: {why}" if why else f"{word}: invalid option")
    return option, word


def usage(program: str = PROGRAM) -> str:
    """The text of --help."""
    lines = [f"usage: {program} [options]", "", "The options are QEMU's; they may begin with one dash or two."]
    for option in OPTIONS:
        if isinstance(option, str):
            lines += ["", f"{option}:"]
            continue
        names = ", ".join(f"-{name}" for name in option.names)
        start = f"  {names} {option.value}" if option.value else f"  {names}"
        lines += list(_columns(start, option.help))
    return "\n".join(lines) + "\n"


def _columns(start: str, text: str, column: int = 34) -> Iterator[str]:
    """`start`, and `text` beside it from `column` on, or below it where it does not fit."""
    if len(start) >= column - 1 or len(start) + len(text) > _LINE_WIDTH:
        yield start
        start = ""
    yield f"{start:<{column}}{text}"


def parameters_of_options() -> list[dict[str, Any]]:
    """`query-command-line-options`: the options that take parameters, and which."""
    return []
