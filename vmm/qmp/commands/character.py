"""Commands of character devices."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

from vmm.chardev import MemoryBackend, PtyBackend
from vmm.errors import QmpError
from vmm.qmp import types
from vmm.qmp.command import BOOL, INT, STR, Arg, CommandGroup, Enum, ListOf, Struct, Union

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()

_COMMON = (
    Arg("logfile", STR, optional=True, doc="all output goes there, too"),
    Arg("logappend", BOOL, optional=True),
)
_FORMAT = Arg("format", Enum(("utf8", "base64"), "DataFormat"), optional=True)


def _data(name: str, *members: Arg) -> Struct:
    return Struct((Arg("data", Struct((*members, *_COMMON), name=name)),))


_ADDRESS: Final = Union(
    "SocketAddressLegacy",
    (Arg("type", Enum(("inet", "unix"), "SocketAddressType")),),
    "type",
    {
        "inet": Struct((Arg("data", Struct((Arg("host", STR), Arg("port", STR)), name="InetSocketAddress")),)),
        "unix": Struct((Arg("data", Struct((Arg("path", STR),), name="UnixSocketAddress")),)),
    },
)
CHARDEV_BACKEND: Final = Union(
    "ChardevBackend",
    (Arg("type", Enum(("file", "null", "pipe", "pty", "ringbuf", "socket", "stdio"), "ChardevBackendKind")),),
    "type",
    {
        "file": _data(
            "ChardevFile", Arg("out", STR), Arg("in", STR, optional=True), Arg("append", BOOL, optional=True)
        ),
        "null": _data("ChardevCommon"),
        "pipe": _data("ChardevHostdev", Arg("device", STR)),
        "pty": _data("ChardevPty"),
        "ringbuf": _data("ChardevRingbuf", Arg("size", INT, optional=True)),
        "socket": _data(
            "ChardevSocket",
            Arg("addr", _ADDRESS),
            Arg("server", BOOL, optional=True, doc="true unless told otherwise"),
            Arg("wait", BOOL, optional=True),
            Arg("nodelay", BOOL, optional=True),
            Arg("reconnect-ms", INT, optional=True),
        ),
        "stdio": _data("ChardevStdio", Arg("signal", BOOL, optional=True)),
    },
)


@GROUP.command("query-chardev", returns=ListOf(types.CHARDEV_INFO), preconfig=True)
def query_chardev(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """All character devices."""
    return [
        {"frontend-open": backend.frontend is not None, "filename": backend.filename, "label": backend.id}
        for backend in reversed(call.target.chardevs.values())
    ]


@GROUP.command("query-chardev-backends", returns=ListOf(types.CHARDEV_BACKEND_INFO), preconfig=True)
def query_chardev_backends(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The kinds of character devices."""
    from vmm.chardev_options import chardev_kinds

    return [{"name": name} for name in chardev_kinds()]


def _options(backend: Arguments) -> dict[str, str]:
    """The options of -chardev that say the same."""
    given = dict(backend["data"])
    kind = backend["type"]
    options: dict[str, Any] = {}
    if kind == "socket":
        address = given.pop("addr")["data"]
        server = given.pop("server", True)
        options |= {"server": server, **address}
        if server:
            options["wait"] = given.pop("wait", False)
    renamed = {"file": {"out": "path", "in": "input-path"}, "pipe": {"device": "path"}}.get(kind, {})
    options |= {renamed.get(key, key): value for key, value in given.items()}
    return {
        key: ("on" if value else "off") if isinstance(value, bool) else str(value) for key, value in options.items()
    }


@GROUP.command("chardev-add", Arg("id", STR), Arg("backend", CHARDEV_BACKEND), returns=types.CHARDEV_RETURN)
async def chardev_add(call: Call, arguments: Arguments) -> Any:
    """Make a character device."""
    import asyncio

    from vmm.chardev_options import make_chardev

    name, backend = arguments["id"], arguments["backend"]
    chardevs = call.target.chardevs
    if name in chardevs:
        raise QmpError(f"Chardev with id '{name}' already exists")
    options = _options(backend)
    if options.get("wait") == "on":
        raise QmpError("a monitor cannot wait for a connection: give wait as false")
    made = make_chardev(backend["type"], name, options)
    chardevs.add(made, asyncio.get_running_loop())
    return {"pty": made.name} if isinstance(made, PtyBackend) else {}


def _find(call: Call, name: str) -> Any:
    backend = call.target.chardevs.get(name)
    if backend is None:
        raise QmpError(f"Chardev '{name}' not found")
    return backend


@GROUP.command("chardev-remove", Arg("id", STR))
def chardev_remove(call: Call, arguments: Arguments) -> None:
    """Delete a character device that nobody uses."""
    backend = _find(call, arguments["id"])
    if backend.frontend is not None:
        raise QmpError(f"Chardev '{backend.id}' is busy")
    call.target.chardevs.remove(backend.id)


@GROUP.command("chardev-send-break", Arg("id", STR))
def chardev_send_break(call: Call, arguments: Arguments) -> None:
    """A break, as if the line's other end had sent it."""
    _find(call, arguments["id"]).send_break()


def _ring(call: Call, name: str) -> MemoryBackend:
    backend = call.target.chardevs.get(name)
    if backend is None:
        raise QmpError(f"Device '{name}' not found")
    if not isinstance(backend, MemoryBackend):
        raise QmpError(f"{name} is not a ringbuf device")
    return backend


@GROUP.command("ringbuf-write", Arg("device", STR), Arg("data", STR), _FORMAT)
def ringbuf_write(call: Call, arguments: Arguments) -> None:
    """Put data into a ring buffer."""
    ring = _ring(call, arguments["device"])
    data = arguments["data"].encode()
    if arguments.get("format") == "base64":
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error:
            raise QmpError("Base64 data is not valid base64") from None
    ring.write(data)
    ring.flush()


@GROUP.command("ringbuf-read", Arg("device", STR), Arg("size", INT), _FORMAT, returns=STR)
def ringbuf_read(call: Call, arguments: Arguments) -> Any:
    """Take the oldest data out of a ring buffer."""
    ring = _ring(call, arguments["device"])
    if arguments["size"] <= 0:
        raise QmpError("size must be greater than zero")
    data = ring.take(arguments["size"])
    return base64.b64encode(data).decode() if arguments.get("format") == "base64" else data.decode("utf-8", "replace")
