"""Block nodes and drives: what -blockdev, -drive and blockdev-add make, and devices are given by name.

    -blockdev driver=file,node-name=f0,filename=disk.img  -blockdev driver=raw,node-name=d0,file=f0
    -drive if=none,id=d0,file=disk.img,format=raw          -device nvme,serial=s,drive=d0

A node has one driver: `file` is a file or block device of the host, `null-co` reads as zeroes and keeps nothing, `raw`
shows a part of another node, `blkdebug` makes another node fail when it is told to. A node has at most one user: a
device, or the node above it. A drive is a node by another name, that the command line made and nobody deletes.

Ref: QEMU qapi/block-core.json, docs/devel/testing/blkdebug.rst.
"""

from __future__ import annotations

import errno
import itertools
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from vmm.block import FileImage
from vmm.errors import ConfigError, InUse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Buffers = Sequence[memoryview | bytearray]
    Data = Sequence[bytes | memoryview | bytearray]

DRIVERS = ("blkdebug", "file", "null-co", "raw")
CHILD = {"raw": "file", "blkdebug": "image"}
"""What a driver calls the node below."""
NULL_SIZE = 1 << 30
"""What null-co has unless told otherwise, in bytes."""


class Image(Protocol):
    """What a device reads and writes. Offsets and sizes in bytes; OSError when the host fails."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    def read(self, offset: int, buffers: Buffers) -> None: ...
    def write(self, offset: int, buffers: Data) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class Resizable(Protocol):
    """An image that can become longer or shorter."""

    def resize(self, size: int) -> None: ...


class NullImage:
    """Reads as zeroes; what is written is gone."""

    def __init__(self, size: int = NULL_SIZE, readonly: bool = False) -> None:
        self.path = "null-co://"
        self.size = size
        self.readonly = readonly

    def read(self, offset: int, buffers: Buffers) -> None:  # noqa: ARG002
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))

    def write(self, offset: int, buffers: Data) -> None:
        """Nothing is kept."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Nothing is kept."""

    def flush(self) -> None:
        """There is nothing."""

    def resize(self, size: int) -> None:
        """Another size."""
        self.size = size

    def close(self) -> None:
        """There is nothing."""


class PartOfImage:
    """`size` bytes of another image from `offset` on."""

    def __init__(self, below: Image, offset: int = 0, size: int | None = None) -> None:
        rest = below.size - offset
        if rest < 0 or (size is not None and size > rest):
            wanted = "offset" if rest < 0 else f"sum of offset ({offset}) and size ({size})"
            raise ConfigError(f"The {wanted} has to be smaller or equal to the actual size of the containing file")
        self._below = below
        self._offset = offset
        self._whole = size is None
        self.path = below.path
        self.size = rest if size is None else size
        self.readonly = below.readonly

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise OSError(errno.EIO, f"{self.path} ends at {self.size:#x}")

    def read(self, offset: int, buffers: Buffers) -> None:
        self._check(offset, sum(map(len, buffers)))
        self._below.read(self._offset + offset, buffers)

    def write(self, offset: int, buffers: Data) -> None:
        self._check(offset, sum(map(len, buffers)))
        self._below.write(self._offset + offset, buffers)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self._below.write_zeroes(self._offset + offset, length)

    def flush(self) -> None:
        self._below.flush()

    def resize(self, size: int) -> None:
        """Another size, of the image below, too. ConfigError if that is not its end or has no other size."""
        if not (self._whole and isinstance(self._below, Resizable)):
            raise ConfigError(f"{self.path} cannot be resized")
        self._below.resize(self._offset + size)
        self.size = size

    def close(self) -> None:
        """The node below is closed by itself."""


class InjectError(NamedTuple):
    """A rule of blkdebug: `event` (`read_aio`, `write_aio`, `flush_to_disk`) fails with errno `error`."""

    event: str
    error: int = errno.EIO
    sector: int = -1
    """Only accesses that touch this sector of 512 bytes; -1: all."""
    once: bool = False


class FailingImage(PartOfImage):
    """blkdebug: the other image, with failures."""

    EVENTS = ("read_aio", "write_aio", "flush_to_disk")

    def __init__(self, below: Image, rules: Sequence[InjectError] = ()) -> None:
        super().__init__(below)
        self.rules = list(rules)
        for rule in self.rules:
            if rule.event not in self.EVENTS:
                raise ConfigError(
                    f"blkdebug: event '{rule.event}' does not happen here; known are {', '.join(self.EVENTS)}"
                )

    def _fail(self, event: str, offset: int = 0, length: int = 1 << 64) -> None:
        for rule in self.rules:
            if rule.event == event and (rule.sector < 0 or offset <= rule.sector * 512 < offset + length):
                if rule.once:
                    self.rules.remove(rule)
                raise OSError(rule.error, os.strerror(rule.error), self.path)

    def read(self, offset: int, buffers: Buffers) -> None:
        self._fail("read_aio", offset, sum(map(len, buffers)))
        super().read(offset, buffers)

    def write(self, offset: int, buffers: Data) -> None:
        self._fail("write_aio", offset, sum(map(len, buffers)))
        super().write(offset, buffers)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._fail("write_aio", offset, length)
        super().write_zeroes(offset, length)

    def flush(self) -> None:
        self._fail("flush_to_disk")
        super().flush()


class Node:
    """A block node. `user`: who has it, `""` for nobody; `below`: the node it is made on."""

    def __init__(self, name: str, driver: str, image: Image, below: Node | None, named: bool) -> None:
        self.name = name
        self.driver = driver
        self.image = image
        self.below = below
        self.named = named
        """Made by -blockdev or blockdev-add as a node of its own; blockdev-del may delete it."""
        self.user = ""
        self.device: BlockUse | None = None
        self.cache: dict[str, bool] = {"writeback": True, "direct": False, "no-flush": False}
        self.detect_zeroes = "off"

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type BlockDeviceInfo."""
        image = self.image
        shown: dict[str, Any] = {"virtual-size": image.size, "filename": image.path, "format": self.driver}
        with suppress(OSError):
            shown["actual-size"] = os.stat(image.path).st_blocks * 512  # noqa: PTH116  (a user's path, as it is)
        return {
            "iops_rd": 0,
            "detect_zeroes": self.detect_zeroes,
            "active": True,
            "image": shown,
            "iops_wr": 0,
            "children": [] if self.below is None else [{"child": CHILD[self.driver], "node-name": self.below.name}],
            "ro": image.readonly,
            "node-name": self.name,
            "backing_file_depth": 0,
            "drv": self.driver,
            "iops": 0,
            "bps_wr": 0,
            "write_threshold": 0,
            "encrypted": False,
            "bps": 0,
            "bps_rd": 0,
            "cache": dict(self.cache),
            "file": image.path,
        }


class BlockUse:
    """A device's hold on a node; an `Image`. `close` flushes and gives the node back."""

    def __init__(self, node: Node, holder: str, readonly: bool) -> None:
        self.node = node
        self.path = node.image.path
        self.size = node.image.size
        self.readonly = readonly
        node.user = holder
        node.device = self
        self.on_resize: Callable[[], None] = lambda: None
        """Called when `size` has changed."""
        # As cheap as the image itself.
        self.read = node.image.read
        self.write = node.image.write
        self.write_zeroes = node.image.write_zeroes
        self.flush = node.image.flush

    def resized(self, size: int) -> None:
        """The image has another size."""
        self.size = size
        self.on_resize()

    def close(self) -> None:
        """A second close does nothing."""
        if self.node.device is self:
            with suppress(OSError):  # the host could not: nobody is left to be told
                if not self.readonly:
                    self.node.image.flush()
            self.node.user = ""
            self.node.device = None


class BlockGraph:
    """All nodes and drives of a machine."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.drives: dict[str, Node] = {}
        self._numbers = itertools.count(100)

    def add(self, options: Mapping[str, Any], rules: Sequence[InjectError] = ()) -> Node:
        """blockdev-add, with options that were checked. `rules`: those that blkdebug's `config` has.

        ConfigError or InUse in QEMU's words; nothing is left behind then.
        """
        if not options.get("node-name"):
            raise ConfigError("'node-name' must be specified for the root node")
        return self._make(options, rules, named=True)

    def add_drive(self, id: str, options: Mapping[str, Any]) -> Node:
        """-drive: a node without a name of its own."""
        if id in self.drives:
            raise InUse(f"Duplicate ID '{id}' for drive", holder=id)
        if id in self.nodes:
            raise InUse(f"Device with id '{id}' already exists", holder=id)
        node = self._make(options, (), named=False)
        self.drives[id] = node
        return node

    def remove(self, name: str) -> None:
        """blockdev-del."""
        node = self.nodes.get(name)
        if node is None:
            raise ConfigError(f"Failed to find node with node-name='{name}'")
        if not node.named:
            raise ConfigError(f"Node {name} is not owned by the monitor")
        if node.user:
            raise InUse(f"Node {name} is in use", holder=node.user)
        self._drop(node)

    def use(self, name: str, holder: str, readonly: bool = False, sector_size: int = 512) -> BlockUse:
        """The image of a drive or node, for a device; it is `holder`'s until it is closed."""
        node = self.drives.get(name) or self.nodes.get(name)
        if node is None:
            raise ConfigError(f"Property 'drive' can't find value '{name}': there is no such drive or block node")
        if node.user:
            raise InUse(f"Drive '{name}' is already in use by another block device", holder=node.user)
        if node.image.readonly and not readonly:
            raise ConfigError(f"Block node is read-only: '{name}'")
        if node.image.size % sector_size:
            raise ConfigError(
                f"image '{node.image.path}' of {node.image.size} bytes does not end with a sector of {sector_size} "
                f"bytes; round it up: truncate -s %{sector_size} '{node.image.path}'"
            )
        return BlockUse(node, holder, readonly)

    def resize(self, name: str, size: int) -> None:
        """block_resize. ConfigError if there is no such drive or node, or it cannot have that size."""
        node = self.drives.get(name) or self.nodes.get(name)
        if node is None:
            raise ConfigError(f"Cannot find device='{name}' nor node-name='{name}'")
        if not isinstance(node.image, Resizable) or node.image.readonly or size <= 0:
            raise ConfigError(f"Image of '{name}' cannot be resized to {size} bytes")
        try:
            node.image.resize(size)
        except OSError as error:
            raise ConfigError(f"Failed to resize '{name}': {error.strerror}") from error
        if node.device is not None:
            node.device.resized(size)

    def readonly(self, name: str) -> bool:
        """Whether a drive or node can only be read; False if there is none."""
        node = self.drives.get(name) or self.nodes.get(name)
        return node is not None and node.image.readonly

    def query_nodes(self) -> list[dict[str, Any]]:
        """query-named-block-nodes."""
        return [node.as_qmp() for node in reversed(self.nodes.values())]

    def query_drives(self) -> list[dict[str, Any]]:
        """query-block: drives, and nodes that devices have."""
        names = {id(node): name for name, node in self.drives.items()}
        rows = []
        for node in self.nodes.values():
            drive = names.get(id(node))
            if drive is None and not node.user.startswith("/"):
                continue
            row: dict[str, Any] = {"device": drive or ""}
            if node.user:
                row["qdev"] = node.user
            row |= {"locked": False, "removable": False, "inserted": node.as_qmp(), "type": "unknown"}
            rows.append(row)
        return rows

    def close(self) -> None:
        """Let every file go. May be repeated."""
        for node in reversed(list(self.nodes.values())):
            node.image.close()
        self.nodes.clear()
        self.drives.clear()

    def _make(self, options: Mapping[str, Any], rules: Sequence[InjectError], named: bool) -> Node:
        name = options.get("node-name") or f"#block{next(self._numbers)}"
        if name in self.nodes:
            raise InUse(f"Duplicate nodes with node-name='{name}'", holder=name)
        if name in self.drives:
            raise InUse(f"node-name={name} is conflicting with a device id", holder=name)
        driver = options["driver"]
        readonly = bool(options.get("read-only", False))
        below: Node | None = None
        image: Image
        if driver == "file":
            image = _open_file(options["filename"], readonly, bool(options.get("auto-read-only", False)))
        elif driver == "null-co":
            image = NullImage(options.get("size", NULL_SIZE), readonly)
        else:
            below = self._child(options[CHILD[driver]], name, readonly)
            try:
                if driver == "raw":
                    image = PartOfImage(below.image, options.get("offset", 0), options.get("size"))
                else:
                    inline = [_rule(rule) for rule in options.get("inject-error", ())]
                    image = FailingImage(below.image, [*rules, *inline])
            except ConfigError:
                self._release(below)
                raise
            image.readonly = image.readonly or readonly
        node = Node(name, driver, image, below, named)
        node.cache |= {key: bool(value) for key, value in options.get("cache", {}).items()}
        node.detect_zeroes = options.get("detect-zeroes", "off")
        self.nodes[name] = node
        return node

    def _child(self, given: str | Mapping[str, Any], parent: str, readonly: bool) -> Node:
        if isinstance(given, str):
            node = self.nodes.get(given)
            if node is None:
                raise ConfigError(f"Cannot find device='' nor node-name='{given}'")
            if node.user:
                raise InUse(f"Node '{given}' is in use", holder=node.user)
        else:
            if given.get("driver") == "blkdebug" and given.get("config"):
                raise ConfigError("blkdebug: 'config' is for the node that blockdev-add names; use 'inject-error' here")
            node = self._make({"read-only": readonly} | dict(given), (), named=bool(given.get("node-name")))
        node.user = parent
        return node

    def _release(self, node: Node) -> None:
        node.user = ""
        if not node.named:
            self._drop(node)

    def _drop(self, node: Node) -> None:
        node.image.close()
        del self.nodes[node.name]
        if node.below is not None:
            self._release(node.below)


def _open_file(path: str, readonly: bool, auto: bool) -> FileImage:
    path = path.removeprefix("file:")
    if auto and not readonly and not os.access(path, os.W_OK):
        readonly = True
    return FileImage(path, readonly, sector_size=1)


def _rule(given: Mapping[str, Any]) -> InjectError:
    return InjectError(
        given["event"], given.get("errno", errno.EIO), given.get("sector", -1), bool(given.get("once", False))
    )


def parse_blkdebug_config(path: str, text: str) -> list[InjectError]:
    """The rules of a blkdebug file: sections [inject-error] with event, errno, sector, once. ConfigError."""
    from vmm.ini import parse_ini

    rules = []
    for section in parse_ini(text, path):
        if section.group != "inject-error":
            raise ConfigError(f"{path}: section [{section.group}] is not supported; [inject-error] is")
        given: dict[str, Any] = {"event": ""}
        for key, value in section.values.items():
            if key in ("errno", "sector"):
                try:
                    given[key] = int(value, 0)
                except ValueError:
                    raise ConfigError(f"{path}: Parameter '{key}' expects a number") from None
            elif key == "once":
                given[key] = value in ("on", "yes", "true", "y")
            elif key == "event":
                given[key] = value
            else:
                raise ConfigError(f"{path}: Invalid parameter '{key}'; known are event, errno, sector, once")
        rules.append(_rule(given))
    return rules
