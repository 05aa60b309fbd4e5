"""`-chardev` and `-serial`: from the words of the command line to character devices.

    -chardev BACKEND,id=ID[,OPTION=VALUE...]
    -serial  null | none | stdio | pty | file:PATH | pipe:PATH | unix:PATH | tcp:HOST:PORT | ringbuf | chardev:ID

The short forms of -serial take options after a comma, too: `unix:/tmp/s,server=on,wait=off`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.chardev import (
    CharBackend,
    FileBackend,
    MemoryBackend,
    NullBackend,
    PipeBackend,
    PtyBackend,
    StdioBackend,
)
from vmm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Options = dict[str, str]

_SOCKET = ("path", "host", "port", "server", "wait", "nodelay", "reconnect", "reconnect-ms", "telnet")
_COMMON = ("logfile", "logappend", "mux")


class Kind(NamedTuple):
    """One backend: its options, which of them must be there, and how it is made."""

    options: tuple[str, ...]
    required: tuple[str, ...]
    make: Callable[[str, Options], CharBackend]


def split_options(text: str) -> list[str]:
    """The parts of a `key=value,...` list; a doubled comma stands for a comma."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def flag(options: Mapping[str, str], name: str, default: bool) -> bool:
    """An on/off option. UsageError for anything else."""
    value = options.get(name)
    if value is None:
        return default
    if value in ("on", "yes", "true", "y"):
        return True
    if value in ("off", "no", "false", "n"):
        return False
    raise UsageError(f"Parameter '{name}' expects 'on' or 'off'")


def _number(options: Mapping[str, str], name: str, default: int | None) -> int | None:
    value = options.get(name)
    if value is None:
        return default
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if number < 0:
        raise UsageError(f"Parameter '{name}' expects a number")
    return number


def _make_socket(id: str, options: Options) -> CharBackend:
    if flag(options, "telnet", False):
        raise UsageError(f"chardev {id}: telnet is not supported; use a plain socket")
    if ("path" in options) == ("port" in options):
        raise UsageError(f"chardev {id}: socket: want path=, or host= and port=")
    port = _number(options, "port", 0) or 0
    if port > 65535:
        raise UsageError(f"chardev {id}: port {port} is out of range (0..65535)")
    server = flag(options, "server", False)
    milliseconds = _number(options, "reconnect-ms", None)
    reconnect = (_number(options, "reconnect", 0) or 0) if milliseconds is None else milliseconds / 1000
    if server and reconnect:
        raise UsageError(f"chardev {id}: 'reconnect' option is incompatible with 'server=on'")
    if not server and "wait" in options:
        raise UsageError(f"chardev {id}: 'wait' option is incompatible with socket in client connect mode")
    from vmm.chardev_socket import SocketAddress, SocketBackend  # sockets take a while to import

    address = SocketAddress(options.get("path"), options.get("host", ""), port)
    return SocketBackend(id, address, server, flag(options, "wait", True), flag(options, "nodelay", False), reconnect)


_KINDS: dict[str, Kind] = {
    "null": Kind((), (), lambda name, _options: NullBackend(name)),
    "stdio": Kind(("signal",), (), lambda name, o: StdioBackend(name, flag(o, "signal", True))),
    "pty": Kind((), (), lambda name, _options: PtyBackend(name)),
    "pipe": Kind(("path",), ("path",), lambda name, o: PipeBackend(name, o["path"])),
    "file": Kind(
        ("path", "append", "input-path"),
        ("path",),
        lambda name, o: FileBackend(name, o["path"], flag(o, "append", False), o.get("input-path")),
    ),
    "ringbuf": Kind(("size",), (), lambda name, o: MemoryBackend(name, _number(o, "size", 65536))),
    "socket": Kind(_SOCKET, (), _make_socket),
}


def chardev_kinds() -> list[str]:
    """The backends that `-chardev help` lists."""
    return sorted(_KINDS)


def make_chardev(kind: str, id: str, options: Options) -> CharBackend:
    """A backend. UsageError for an unknown kind or option, ConfigError if the host refuses."""
    entry = _KINDS.get(kind)
    if entry is None:
        raise UsageError(f"-chardev: '{kind}' is not a valid char driver name; known are {', '.join(chardev_kinds())}")
    for name in options:
        if name not in entry.options and name not in _COMMON:
            raise UsageError(f"-chardev {kind}: Invalid parameter '{name}'")
    for name in entry.required:
        if not options.get(name):
            raise UsageError(f"chardev: {kind}: no {name} given")
    backend = entry.make(id, options)
    if "logfile" in options:
        try:
            backend.log_to(options["logfile"], flag(options, "logappend", False))
        except Exception:
            backend.close()
            raise
    if flag(options, "mux", False):
        from vmm.chardev_mux import MuxBackend

        return MuxBackend(backend)
    return backend


def _parse(parts: list[str], option: str) -> Options:
    options: Options = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:  # the old way to write a flag
            key, value = (key[2:], "off") if key.startswith("no") and key != "nodelay" else (key, "on")
        if not key:
            raise UsageError(f"{option}: there is an empty parameter")
        options[key] = value
    return options


def parse_chardev(text: str) -> CharBackend:
    """What `-chardev TEXT` asks for."""
    kind, *rest = split_options(text)
    options = _parse(rest, f"-chardev {text}")
    kind = options.pop("backend", kind)
    name = options.pop("id", "")
    if not name:
        raise UsageError(f"-chardev {text}: Parameter 'id' is missing")
    return make_chardev(kind, name, options)


def parse_serial(text: str, id: str, chardevs: Mapping[str, CharBackend]) -> CharBackend | None:
    """What `-serial TEXT` asks for; None for `none`. `id` names a backend that is made; `chardevs` are the others."""
    kind, colon, rest = text.partition(":")
    if kind == "chardev":
        if rest not in chardevs:
            raise UsageError(f"-serial {text}: Chardev '{rest}' not found")
        return chardevs[rest]
    if not colon:
        kind, *parts = split_options(text)
        if kind == "none" and not parts:
            return None
        if kind in ("file", "pipe", "unix", "tcp", "socket"):
            raise UsageError(f"-serial {text}: want {kind}:WHERE")
        return make_chardev(kind, id, _parse(parts, f"-serial {text}"))
    where, *parts = split_options(rest)
    options = _parse(parts, f"-serial {text}")
    if kind in ("file", "pipe"):
        return make_chardev(kind, id, {"path": where, **options})
    if kind == "unix":
        return make_chardev("socket", id, {"path": where, **options})
    if kind == "tcp":
        host, _, port = where.rpartition(":")
        return make_chardev("socket", id, {"host": host.strip("[]"), "port": port, **options})
    raise UsageError(
        f"-serial {text}: not supported; known are null, none, stdio, pty, ringbuf, file:, pipe:, unix:, tcp:, chardev:"
    )
