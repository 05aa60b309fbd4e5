"""Commands of block nodes: what -blockdev can make, at run time."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import ConfigError, QmpError
from vmm.qmp import types
from vmm.qmp.command import (
    BOOL,
    INT,
    STR,
    UINT64,
    Alternate,
    Arg,
    CommandGroup,
    Enum,
    Later,
    ListOf,
    Struct,
    Union,
)

if TYPE_CHECKING:
    from vmm.block_graph import InjectError
    from vmm.qmp.call import Call
    from vmm.qmp.command import ArgType, Arguments

GROUP = CommandGroup()

_CONFIG_LIMIT: Final = 1 << 20

_REF: Final[ArgType] = Alternate("BlockdevRef", STR, Later(lambda: BLOCKDEV_OPTIONS))
_CACHE = Struct((Arg("direct", BOOL, optional=True), Arg("no-flush", BOOL, optional=True)), name="BlockdevCacheOptions")
_RULE = Struct(
    (
        Arg("event", Enum(("read_aio", "write_aio", "flush_to_disk"), "BlkdebugEvent")),
        Arg("errno", INT, optional=True, doc="5, EIO, unless told otherwise"),
        Arg("sector", INT, optional=True, doc="only accesses that touch it"),
        Arg("once", BOOL, optional=True),
    ),
    name="BlkdebugInjectErrorOptions",
)
BLOCKDEV_OPTIONS: Final[Union] = Union(
    "BlockdevOptions",
    (
        Arg("driver", Enum(("blkdebug", "file", "null-co", "raw"), "BlockdevDriver")),
        Arg("node-name", STR, optional=True, doc="its name; the outermost node must have one"),
        Arg("discard", Enum(("ignore", "unmap"), "BlockdevDiscardOptions"), optional=True),
        Arg("cache", _CACHE, optional=True, doc="accepted; the host's page cache is always used"),
        Arg("read-only", BOOL, optional=True),
        Arg("auto-read-only", BOOL, optional=True, doc="read-only, if it cannot be written"),
        Arg("force-share", BOOL, optional=True),
        Arg("detect-zeroes", Enum(("off", "on", "unmap"), "BlockdevDetectZeroesOptions"), optional=True),
    ),
    "driver",
    {
        "blkdebug": Struct(
            (
                Arg("image", _REF),
                Arg("config", STR, optional=True, doc="a file of rules; a FIFO is waited for"),
                Arg("inject-error", ListOf(_RULE), optional=True),
            )
        ),
        "file": Struct(
            (
                Arg("filename", STR),
                Arg("locking", Enum(("auto", "on", "off"), "OnOffAuto"), optional=True, doc="it is always locked"),
                Arg("aio", Enum(("threads", "native", "io_uring"), "BlockdevAioOptions"), optional=True),
            )
        ),
        "null-co": Struct(
            (
                Arg("size", INT, optional=True, doc="bytes; 1 GiB unless told otherwise"),
                Arg("latency-ns", UINT64, optional=True),
                Arg("read-zeroes", BOOL, optional=True, doc="it always reads as zeroes"),
            )
        ),
        "raw": Struct((Arg("file", _REF), Arg("offset", INT, optional=True), Arg("size", INT, optional=True))),
    },
)


@GROUP.command("blockdev-add", union=BLOCKDEV_OPTIONS)
async def blockdev_add(call: Call, arguments: Arguments) -> None:
    """Make a block node. Commands after it wait until it is there; those out of band do not."""
    rules: list[InjectError] = []
    if arguments["driver"] == "blkdebug" and arguments.get("config"):
        from vmm.block_graph import parse_blkdebug_config

        path = arguments["config"]
        rules = parse_blkdebug_config(path, (await _read(path)).decode("utf-8", "replace"))
    call.target.blocks.add(arguments, rules)


async def _read(path: str) -> bytes:
    """A file's content. A FIFO's is there when its writers have come and gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"Could not read blkdebug config file: {reason}") from error
    loop = asyncio.get_running_loop()
    content = bytearray()
    try:
        while True:
            readable = loop.create_future()
            try:
                loop.add_reader(fd, _resolve, readable)
            except OSError:  # a plain file cannot be polled: it is always readable
                readable.set_result(None)
            try:
                await readable
            finally:
                loop.remove_reader(fd)
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                continue
            content += data
            if not data:
                return bytes(content)
            if len(content) > _CONFIG_LIMIT:
                raise ConfigError(f"blkdebug config file {path} has more than {_CONFIG_LIMIT} bytes")
    except OSError as error:
        raise ConfigError(f"Could not read blkdebug config file: {error.strerror}") from error
    finally:
        os.close(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@GROUP.command("blockdev-del", Arg("node-name", STR))
def blockdev_del(call: Call, arguments: Arguments) -> None:
    """Delete a node that nobody uses, with those that were made for it."""
    call.target.blocks.remove(arguments["node-name"])


@GROUP.command(
    "block_resize",
    Arg("device", STR, optional=True, doc="a drive"),
    Arg("node-name", STR, optional=True, doc="or a node"),
    Arg("size", INT, doc="bytes"),
)
def block_resize(call: Call, arguments: Arguments) -> None:
    """Make an image longer or shorter; its device tells the guest."""
    names = [arguments[key] for key in ("device", "node-name") if key in arguments]
    if len(names) != 1:
        raise QmpError("Need exactly one of 'device' and 'node-name'")
    if arguments["size"] < 0:
        raise QmpError("Parameter 'size' expects a >0 size")
    call.target.blocks.resize(names[0], arguments["size"])


@GROUP.command("query-block", returns=ListOf(types.BLOCK_INFO))
def query_block(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """Drives, and the nodes that devices use."""
    return call.target.blocks.query_drives()


@GROUP.command("query-named-block-nodes", Arg("flat", BOOL, optional=True), returns=ListOf(types.BLOCK_DEVICE_INFO))
def query_named_block_nodes(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """All block nodes."""
    return call.target.blocks.query_nodes()
