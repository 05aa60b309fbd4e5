"""What each option of the command line does with its argument: text in, a changed `Config` out.

Everything here is pure. Errors are UsageErrors in QEMU's words, without the option's name: the caller puts that first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm.cli.config import (
    ACTIONS,
    MAX_CPUS,
    Config,
    FwCfgSpec,
    HelpRequest,
    MonitorSpec,
    PropertySet,
    Topology,
    TraceSpec,
)
from vmm.cli.keyval import (
    flatten,
    nest,
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
    from collections.abc import Callable

    Apply = Callable[[Config, str], None]


class Param(NamedTuple):
    """A parameter of an option, as query-command-line-options shows it: `string`, `boolean`, `number` or `size`."""

    name: str
    type: str = "string"
    help: str = ""


def _names(params: tuple[Param, ...]) -> tuple[str, ...]:
    return tuple(param.name for param in params)


ACCEL: Final = (Param("accel"),)
ACTION: Final = tuple(Param(name, help="|".join(values)) for name, values in ACTIONS.items())
BOOT: Final = (
    Param("order", help="drive letters"),
    Param("once", help="the same, until the first reset"),
    Param("menu", "boolean"),
    Param("strict", "boolean"),
    Param("splash", help="a picture: JPEG or BMP"),
    Param("splash-time", "number", "milliseconds that it is shown"),
    Param("reboot-timeout", "number", "milliseconds until a boot that failed is tried again; -1: never"),
)
CHARDEV: Final = (
    Param("backend"),
    *(Param(name) for name in ("path", "host", "port", "input-path", "logfile")),
    *(
        Param(name, "boolean")
        for name in ("server", "wait", "nodelay", "signal", "append", "mux", "telnet", "logappend")
    ),
    *(Param(name, "number") for name in ("reconnect", "reconnect-ms")),
    Param("size", "size"),
)
DRIVE: Final = (
    Param("if", help="none"),
    Param("file", help="the image, or null-co://"),
    Param("format", help="raw"),
    Param("media", help="disk"),
    *(Param(name, "boolean") for name in ("readonly", "read-only", "auto-read-only", "snapshot")),
    Param("cache"),
    Param("aio"),
    Param("discard"),
    Param("detect-zeroes"),
    Param("werror", help="report"),
    Param("rerror", help="report"),
    Param("file.driver"),
    Param("file.filename"),
    Param("file.locking"),
    Param("file.size", "size"),
    Param("file.read-zeroes", "boolean"),
)
FW_CFG: Final = (Param("name"), Param("file"), Param("string"))
GLOBAL: Final = (Param("driver"), Param("property"), Param("value"))
MEMORY: Final = (Param("size", "size"), Param("slots", "number"), Param("maxmem", "size"))
MON: Final = (Param("mode", help="readline|control"), Param("chardev"), Param("pretty", "boolean"))
MSG: Final = (Param("timestamp", "boolean"), Param("guest-name", "boolean"))
NAME: Final = (Param("guest"), Param("process"), Param("debug-threads", "boolean"))
RTC: Final = (Param("base"), Param("clock", help="host|rt|vm"), Param("driftfix"))
RUN_WITH: Final = (
    Param("exit-with-parent", "boolean"),
    Param("async-teardown", "boolean"),
    Param("chroot", help="a directory"),
    Param("user", help="a name, or UID:GID"),
)
SMP: Final = tuple(
    Param(name, "number") for name in ("cpus", "maxcpus", "sockets", "dies", "modules", "cores", "threads")
)
TRACE: Final = (Param("enable"), Param("events"), Param("file"))

# --- the machine -------------------------------------------------------------------------------------------------


def ask(config: Config, topic: str, name: str = "") -> None:
    if config.help is None:
        config.help = HelpRequest(topic, name)


def machine(config: Config, text: str) -> None:
    given = parse_keyval(text, "type")
    if given.help:
        ask(config, "machine", given.values.get("type", ""))
        return
    for key, value in given.values.items():
        if key == "type":
            config.machine = value
        elif key == "accel":
            config.accels = [(name, {}) for name in str(value).split(":") if name]
        else:
            config.machine_options[key] = value


def accel(config: Config, text: str) -> None:
    given = parse_keyval(text, "accel")
    if given.help:
        ask(config, "accel", given.values.get("accel", ""))
        return
    options = dict(given.values)
    if "accel" not in options:
        raise UsageError("Parameter 'accel' is missing")
    config.accels.append((options.pop("accel"), options))


def memory(config: Config, text: str) -> None:
    values = parse_keyval(text, "size").values
    only(values, _names(MEMORY))
    if "slots" in values or "maxmem" in values:
        raise UsageError("there is no memory hot-plug: slots= and maxmem= cannot be honoured")
    size = parse_size("size", values.get("size", ""), "m")
    if size == 0:
        raise UsageError("Parameter 'size' expects at least 1M")
    config.ram_size = size


def smp(config: Config, text: str) -> None:
    values = parse_keyval(text, "cpus").values
    only(values, _names(SMP))
    given = {key: parse_number(key, value, 1, MAX_CPUS) for key, value in values.items()}
    for level in ("dies", "modules"):
        if given.pop(level, 1) != 1:
            raise UsageError(f"{level} > 1 not supported by this machine's CPU topology")
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


def cpu(config: Config, text: str) -> None:
    if text in ("help", "?"):
        ask(config, "cpu")
        return
    # The old way to write `feature=on` and `feature=off`.
    text = re.sub(r"(?<=,)([+-])([^,=]+)(?=,|$)", lambda m: f"{m[2]}={'on' if m[1] == '+' else 'off'}", text)
    options = dict(parse_keyval(text, "model", flags=True).values)
    config.cpu = options.pop("model", None)
    if config.cpu is None:
        raise UsageError("Parameter 'model' is missing")
    config.cpu_options = options


def device(config: Config, text: str) -> None:
    given = parse_properties(text, "driver")
    driver = given.values.get("driver", "")
    if given.help:
        ask(config, "device", driver)
        return
    if not isinstance(driver, str) or not driver:
        raise UsageError("Parameter 'driver' is missing")
    config.devices.append(PropertySet(given.values, given.from_text, text))


def object_(config: Config, text: str) -> None:
    given = parse_properties(text, "qom-type")
    kind = given.values.get("qom-type", "")
    if given.help:
        ask(config, "object", kind)
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


def global_(config: Config, text: str) -> None:
    found = re.fullmatch(r"([^.=,]+)\.([^=,]+)=(.*)", text, re.DOTALL)
    if found is not None:
        config.globals.append((found[1], found[2], found[3]))
        return
    values = parse_keyval(text).values
    only(values, _names(GLOBAL))
    for key in _names(GLOBAL):
        if key not in values:
            raise UsageError(f"Invalid 'global' format: Parameter '{key}' is missing; want DRIVER.PROPERTY=VALUE")
    config.globals.append((values["driver"], values["property"], values["value"]))


def fw_cfg(config: Config, text: str) -> None:
    values = parse_keyval(text, "name").values
    only(values, _names(FW_CFG))
    name = values.get("name", "")
    if not name or ("file" in values) == ("string" in values):
        raise UsageError("invalid argument(s): want name=NAME, and file=PATH or string=TEXT")
    if len(name.encode()) > 55:
        raise UsageError("name too long (max. 55 char)")
    config.fw_cfg.append(FwCfgSpec(name, values.get("string"), values.get("file")))


def rtc(config: Config, text: str) -> None:
    values = parse_keyval(text).values
    only(values, _names(RTC))
    base = values.get("base", config.rtc_base)
    if base not in ("utc", "localtime") and not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d)?", base):
        raise UsageError(f"invalid datetime format '{base}'; valid formats: '2006-06-17T16:01:21' or '2006-06-17'")
    config.rtc_base = base
    config.rtc_clock = parse_choice("clock", values.get("clock", config.rtc_clock), ("host", "rt", "vm"))
    if values.get("driftfix", "none") != "none":
        raise UsageError("driftfix=slew is not supported: no tick is lost here")


def action(config: Config, text: str) -> None:
    values = parse_keyval(text).values
    only(values, tuple(ACTIONS))
    for key, value in values.items():
        config.actions[key] = parse_choice(key, value, ACTIONS[key])


def set_action(key: str, value: str) -> Apply:
    def apply(config: Config, text: str) -> None:
        config.actions[key] = parse_choice(key, value or text, ACTIONS[key])

    return apply


def boot(config: Config, text: str) -> None:
    values = parse_keyval(text, "order").values
    only(values, _names(BOOT))
    for key in ("menu", "strict"):
        parse_bool(key, values.get(key, "off"))
    for key, low, what in (("splash-time", 0, "splash-time is"), ("reboot-timeout", -1, "reboot timeout is")):
        if key in values:
            try:
                number = int(values[key], 0)
            except ValueError:
                raise UsageError(f"Parameter '{key}' expects a number") from None
            if not low <= number <= 0xFFFF:
                raise UsageError(f"{what} invalid, it should be a value between {low} and 65535")
    for key in ("order", "once"):
        letters = values.get(key, "")
        for letter in letters:
            if not "a" <= letter <= "p":
                raise UsageError(f"Invalid boot device '{letter}'")
            if letters.count(letter) > 1:
                raise UsageError(f"Boot device '{letter}' was given twice")
    config.boot.update(values)


def uuid(config: Config, text: str) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise UsageError("failed to parse UUID string: wrong format")
    config.uuid = text.lower()


def name(config: Config, text: str) -> None:
    values = parse_keyval(text, "guest").values
    only(values, _names(NAME))
    parse_bool("debug-threads", values.get("debug-threads", "off"))  # All threads have names here.
    if values.get("process"):
        config.process_name = values["process"]
    config.name = values.get("guest", config.name)


# --- monitors, character devices, logs ---------------------------------------------------------------------------


def chardev(config: Config, text: str) -> None:
    kind = text.partition(",")[0]
    if kind in ("help", "?"):
        ask(config, "chardev")
        return
    config.chardevs.append(text)


def netdev(config: Config, text: str) -> None:
    given = parse_properties(text, "type")
    if given.help:
        ask(config, "netdev")
        return
    config.netdevs.append((given.values if given.from_text else flatten(given.values), text))


def mon(config: Config, text: str) -> None:
    values = parse_keyval(text, "chardev", flags=True).values
    only(values, (*_names(MON), "id"))
    if "chardev" not in values:
        raise UsageError("Parameter 'chardev' is missing")
    mode = parse_choice("mode", values.get("mode", "readline"), ("readline", "control"))
    pretty = parse_bool("pretty", values.get("pretty", "off"))
    config.monitors.append(MonitorSpec(f"chardev:{values['chardev']}", mode, pretty))


def monitor(mode: str, pretty: bool = False) -> Apply:
    def apply(config: Config, text: str) -> None:
        if text != "none":
            config.monitors.append(MonitorSpec(text, mode, pretty))

    return apply


def serial(config: Config, text: str) -> None:
    if text.startswith("mon:"):
        # The port, and a human monitor beside it; who wants Ctrl-C as a signal can have it from `stdio` alone.
        name = f"mux{len(config.muxes)}"
        where = text.removeprefix("mon:")
        config.muxes.append((name, "stdio,signal=off" if where == "stdio" else where))
        config.monitors.append(MonitorSpec(f"chardev:{name}", "readline"))
        text = f"chardev:{name}"
    config.serials.append(text)


def trace(config: Config, text: str) -> None:
    given = parse_keyval(text, "enable")
    if given.help:
        ask(config, "trace")
        return
    only(given.values, _names(TRACE))
    config.traces.append(TraceSpec(*(given.values.get(key, "") for key in _names(TRACE))))


def log_items(config: Config, text: str) -> None:
    if text in ("help", "?"):
        ask(config, "d")
        return
    config.log_items += [item for item in text.split(",") if item]


def run_with(config: Config, text: str) -> None:
    values = parse_keyval(text).values
    only(values, _names(RUN_WITH))
    for key, value in values.items():
        if key in ("chroot", "user"):
            config.run_with[key] = value
            continue
        wanted = parse_bool(key, value)
        if key == "exit-with-parent":
            config.exit_with_parent = wanted
        elif wanted:
            raise UsageError("async-teardown=on is not supported: the host takes this process's memory back at once")


def blockdev(config: Config, text: str) -> None:
    given = parse_properties(text, "driver")
    if given.help:
        ask(config, "blockdev")
        return
    values = nest(given.values) if given.from_text else given.values
    for key in ("driver", "node-name"):
        if not values.get(key):
            raise UsageError(f"Parameter '{key}' is missing")
    config.blockdevs.append(PropertySet(values, given.from_text, text))


def drive(config: Config, text: str) -> None:
    values = dict(parse_keyval(text).values)
    only(values, (*_names(DRIVE), "id"))
    interface = values.pop("if", "ide")
    if interface != "none":
        raise UsageError(f"if={interface}: there is no such controller; give if=none, and -device nvme,drive=ID")
    if values.pop("format", "raw") != "raw":
        raise UsageError("only format=raw is known: qemu-img convert -O raw makes one")
    for key, only_this in (("media", "disk"), ("snapshot", "off"), ("werror", "report"), ("rerror", "report")):
        if values.pop(key, only_this) != only_this:
            raise UsageError(f"{key}: only {only_this} is supported")
    drive_id = values.pop("id", "")
    file: dict[str, Any] = nest({"file": {}} | {k: v for k, v in values.items() if k.startswith("file.")})["file"]
    name = values.get("file", file.get("filename", ""))
    if not drive_id or not (name or file.get("driver")):
        raise UsageError(f"Parameter '{'file' if drive_id else 'id'}' is missing")
    if name.startswith("null-co://") or file.get("driver") == "null-co":
        file["driver"] = "null-co"
        file.pop("filename", None)
    else:
        file |= {"driver": file.get("driver", "file"), "filename": name}
    options: dict[str, Any] = {"driver": "raw", "file": file}
    readonly = values.get("readonly", values.get("read-only"))
    if readonly is not None:
        options["read-only"] = "on" if parse_bool("read-only", readonly) else "off"
    for key in ("discard", "detect-zeroes", "auto-read-only"):
        if key in values:
            options[key] = values[key]
    config.drives.append((drive_id, PropertySet(options, True, text)))


def msg(config: Config, text: str) -> None:
    given = parse_keyval(text).values
    only(given, _names(MSG))
    for key, value in given.items():
        config.msg[key] = parse_bool(key, value)


def overcommit(_config: Config, text: str) -> None:
    given = parse_keyval(text).values
    only(given, ("mem-lock", "cpu-pm"))
    for key, value in given.items():
        if parse_bool(key, value):
            raise UsageError(f"{key}=on is not supported")


def write_config(config: Config, text: str) -> None:
    config.write_config = text


# --- small ones --------------------------------------------------------------------------------------------------


def set_to(name: str) -> Apply:
    """The argument is the value."""
    return lambda config, text: setattr(config, name, text)


def switch_on(name: str) -> Apply:
    """The option switches something on."""
    return lambda config, _text: setattr(config, name, True)


def switch_off(name: str) -> Apply:
    """The option switches something off."""
    return lambda config, _text: setattr(config, name, False)


def nothing(_config: Config, _text: str) -> None:
    """Nothing is to be remembered."""


def append_to(name: str) -> Apply:
    """The argument is one more of several."""
    return lambda config, text: getattr(config, name).append(text)


def nothing_but(what: str, *accepted: str) -> Apply:
    """Only an argument that asks for what is so anyway."""

    def apply(_config: Config, text: str) -> None:
        if text.removeprefix("driver=").removeprefix("type=") not in accepted:
            raise UsageError(f"there is no {what}: only {' or '.join(accepted)} can be honoured")

    return apply


def enable_kvm(config: Config, _text: str) -> None:
    config.accels.append(("kvm", {}))


def asks(topic: str) -> Apply:
    return lambda config, _text: ask(config, topic)
