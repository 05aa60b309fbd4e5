"""`-device vfio-user-pci`: a PCI device that another process has, over a UNIX socket.

    -device vfio-user-pci,socket.type=unix,socket.path=/run/edu.sock
    -device '{"driver": "vfio-user-pci", "socket": {"type": "unix", "path": "/run/edu.sock"}}'

It is wired exactly like `vfio-pci`; VFIO's interface just leads to another process. Trigger and unmask are eventfds of
the host, shared with that process, so an interrupt goes from its line to the guest and the guest's EOI back to it
without a message:

    server: level, masks itself, signals trigger -> irqfd -> GSI ... EOI -> resampler -> unmask eventfd -> server

Messages (`devices.vfio_user_msi`) are eventfds, too. Parts of a BAR that the server lets us map are memory here, and
writes that it takes by eventfd (doorbells) are signals: both without a message.

When the server goes, or does what no server may do, that is seen at once: the event VFIO_USER_DISCONNECTED is emitted,
the line goes low, every access reads all ones and is lost, and an unplug works as ever. With `x-reconnect-ms` a server
that returns with the same device gets COMMAND, BARs and interrupts as they were; VFIO_USER_CONNECTED says so.

Ref: QEMU docs/interop/vfio-user.rst; docs/vfio-user.md
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from devices.device import Property
from devices.pci import config as cfg
from devices.pci.device import PciDevice
from devices.pci.msi import MESSAGE_CONTROL
from devices.vfio_pci import KvmBoard, VfioPci
from devices.vfio_user_msi import Messages
from vmm.errors import ConfigError, PropertyError
from vmm.kernel.host_eventfd import HostEventfdCtx, HostEventFile
from vmm.kernel.poll import FdHandler
from vmm.memory import ALL_ONES, IoRegion
from vmm.trace import Event
from vmm.vfio_user.client import RemoteDevice
from vmm.vfio_user.interrupts import signal
from vmm.vfio_user.protocol import REGION_CONFIG
from vmm.vfio_user.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devices.device import Board
    from vmm.lifecycle import Holdings
    from vmm.loop import Loop
    from vmm.shared_memory import SharedRegion
    from vmm.vfio_user.remote_region import RemoteDoorbell

LOOKED_AT = 4
"""Eventfds that are looked at after every access; others are seen by the event loop."""
_BAR_IO = 0x1
_BAR_TYPE_64 = 0x4
_BAR_TYPE = 0x6
_BAR_PREFETCHABLE = 0x8


class LoopBoard(KvmBoard, Protocol):
    """A board with an event loop and a monitor that hears events."""

    loop: Loop

    def emit(self, name: str, data: dict[str, Any]) -> None:
        """A QMP event."""


class VfioUserDisconnected(Event):
    """The server is gone, and why."""

    device: str
    reason: str


class VfioUserConnected(Event):
    """A server has the device."""

    device: str
    path: str


class _HostFdHandler(FdHandler):
    """Polls an eventfd whose counter only the host knows."""

    __slots__ = ()

    def _run(self) -> None:
        if not self.closed and self.ctx.readable():
            self.handler()


class VfioUserPci(VfioPci):
    """The monitor's side of a device that a vfio-user server has. `remote` is that server."""

    driver = "vfio-user-pci"
    description = "VFIO over socket PCI device assignment"
    properties = (
        *PciDevice.properties,
        Property("socket", "str", None, "where the server listens: socket.type=unix,socket.path=PATH, or as JSON"),
        Property("x-no-kvm-intx", "bool", False, "let the monitor forward INTx instead of irqfd"),
        Property("x-msg-timeout", "uint32", 5000, "how long an answer may take, in milliseconds"),
        # QEMU posts by default. Here the guest would go on for a slice before its interrupt is looked for.
        Property("x-no-posted-writes", "bool", True, "wait for an answer to writes to memory BARs, too"),
        Property("x-reconnect-ms", "uint32", 0, "look for a server that went every so many milliseconds; 0: never"),
    )
    fd_handler = _HostFdHandler
    board: LoopBoard

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.remote: RemoteDevice
        self._watch: Watch
        self._socket_fds: list[int] = []
        self._retry: asyncio.TimerHandle | None = None
        self._signals: list[HostEventfdCtx] = []
        """Eventfds that the server signals; the first ones are looked at after every access."""
        self._messages: Messages
        self._doorbells: dict[int, dict[tuple[int, int], RemoteDoorbell]] = {}
        """By BAR, then by offset and size."""
        self._mapped: dict[int, SharedRegion] = {}
        """BARs that are memory here, in part or in whole."""

    @classmethod
    def parse(cls, given: Mapping[str, object], from_text: bool = False) -> dict[str, Any]:
        """As every device's; `socket` is an object of its own, which a key=value list writes with dotted keys."""
        rest = dict(given)
        socket = rest.pop("socket", None)
        dotted = {key: rest.pop(key) for key in list(rest) if key.startswith("socket.")}
        if dotted and socket is None and from_text:
            socket = {key.partition(".")[2]: value for key, value in dotted.items()}
        elif dotted:
            raise PropertyError(f"Property '{cls.driver}.{next(iter(dotted))}' not found", cls.driver, "socket")
        values = super().parse(rest, from_text)
        values["socket"] = cls._parse_socket(socket)
        return values

    @classmethod
    def _parse_socket(cls, socket: object) -> str:
        def refused(text: str) -> PropertyError:
            return PropertyError(text, cls.driver, "socket")

        if socket is None:
            raise refused("'socket' property must be set: socket.type=unix,socket.path=PATH")
        if not isinstance(socket, dict):
            raise refused("Invalid parameter type for 'socket', expected: object")
        for name in ("type", "path"):
            if name not in socket:
                raise refused(f"Parameter 'socket.{name}' is missing")
            if not isinstance(socket[name], str):
                raise refused(f"Invalid parameter type for 'socket.{name}', expected: string")
        for name in socket:
            if name not in ("type", "path"):
                raise refused(f"Parameter 'socket.{name}' is unexpected")
        if socket["type"] != "unix":
            raise refused(f"Unsupported socket type '{socket['type']}': descriptors only travel over 'unix'")
        path = str(socket["path"])
        if not path or len(os.fsencode(path)) > 107:
            raise refused(f"UNIX socket path '{path}' is empty or too long: at most 107 bytes")
        return path

    # Life.

    def realize(self, board: Board) -> None:
        """Connect, show the device to the guest, switch INTx on. ConfigError if the server cannot be had."""
        if not hasattr(board, "kvm") or not hasattr(board, "loop"):
            raise ConfigError(f"{self.driver}: this machine has no kernel side to hand a device over with")
        self.board = board  # type: ignore[assignment]  # as was just checked
        name = self.id or self.path
        self.vfio = self.remote = RemoteDevice(
            name,
            self.values["socket"],
            board.memory,
            self.board.files,
            self._lost,
            self.values["x-msg-timeout"] / 1000,
            not self.values["x-no-posted-writes"],
        )
        self.remote.attach()
        try:
            self._take_remote_identity()
            PciDevice.realize(self, board)
            self.remote.name = self.label  # what traces call it: to them, the device in the other process is this one
            self._messages = Messages(self)
            self._messages.mirror()
        except BaseException:
            self.remote.close()
            raise
        self._watch = Watch(self.board.loop)
        self.holdings.hold("vfio-user", self.remote.path, self._detach)
        self._watch_socket()
        for bar in self._remote_bars():
            self.register_bar(*bar)
        self.holdings.hold("interrupt", "INTx", self._disable_interrupts)
        self._enable_intx()
        if not self.remote.attached:
            raise ConfigError(f"vfio-user server at '{self.remote.path}': it went, or refused the trigger eventfd")

    def _identity(self) -> list[int]:
        """What must be the same of a server that returns."""
        read = self.remote.config_read
        return [read(0, 4), read(8, 4), read(cfg.SUBSYSTEM_VENDOR_ID, 4), read(cfg.INTERRUPT_PIN, 1)]

    def _take_remote_identity(self) -> None:
        self._known = self._identity()
        ids, kind, subsystem, self.interrupt_pin = self._known
        if not self.remote.attached or ids & 0xFFFF == 0xFFFF:
            raise ConfigError(f"vfio-user server at '{self.remote.path}': failed to read device config space")
        if self.interrupt_pin > 4:
            raise ConfigError(f"vfio-user server at '{self.remote.path}': interrupt pin {self.interrupt_pin}")
        self.vendor_id, self.device_id = ids & 0xFFFF, ids >> 16
        self.revision, self.prog_if, self.class_id = kind & 0xFF, kind >> 8 & 0xFF, kind >> 16
        self.subsystem = (subsystem & 0xFFFF, subsystem >> 16)
        self._known_sizes = list(self.remote.region_sizes)

    def _remote_bars(self) -> list[tuple[int, IoRegion, bool, bool, bool]]:
        bars = []
        for index in range(6):
            size = self.remote.region_sizes[index]
            if not size:
                continue
            bits = self.remote.config_read(cfg.BASE_ADDRESS_0 + 4 * index, 4)
            io = bool(bits & _BAR_IO)
            mem64 = not io and bits & _BAR_TYPE == _BAR_TYPE_64
            bars.append(
                (index, self._bar_region(index, size, io), io, mem64, not io and bool(bits & _BAR_PREFETCHABLE))
            )
        return bars

    def _bar_region(self, index: int, size: int, io: bool) -> IoRegion:
        name = f"{self.id or self.driver} BAR {index}"
        read, write = partial(self._bar_read, index), partial(self._bar_write, index, io)
        if self._take_doorbells(index):
            write = partial(self._bell_write, index, io)
        region = IoRegion(name, size, read, write)
        if self._map(index, io):
            self.remote.posted = False  # a write to memory must not overtake one that was posted before it
            region = IoRegion(name, size, partial(self._mapped_read, index), partial(self._mapped_write, index, io))
        if self.msix is not None and self.msix.bar == index:
            try:
                region = self.msix.wrap(region)
            except ConfigError:
                self.msix = None  # it does not fit into its BAR: the guest sees it, and that it does nothing
        return region

    def _map(self, index: int, io: bool) -> bool:
        """Map what the server lets us map of a BAR. False if that is nothing."""
        write = self._bell_write if index in self._doorbells else self._bar_write
        name = f"{self.id or self.driver} BAR {index}"
        found = self.remote.regions[index].map(name, partial(self._bar_read, index), partial(write, index, io))
        if found is not None:
            self._mapped[index] = found
        return found is not None

    def _mapped_read(self, index: int, offset: int, size: int) -> int:
        mapped = self._mapped.get(index)
        return self._bar_read(index, offset, size) if mapped is None else mapped.read(offset, size)

    def _mapped_write(self, index: int, io: bool, offset: int, size: int, value: int) -> None:
        mapped = self._mapped.get(index)
        if mapped is None:
            self._bar_write(index, io, offset, size, value)
        else:
            mapped.write(offset, size, value)

    def _take_doorbells(self, index: int) -> bool:
        bells = {(bell.offset, bell.size): bell for bell in self.remote.doorbells(index)}
        if bells:
            self._doorbells[index] = bells
        return bool(bells)

    def _drop_shortcuts(self) -> None:
        """Doorbells and mappings are of a server that is gone, or that we leave."""
        mapped, self._mapped = self._mapped, {}
        for region in mapped.values():
            region.close()
        doorbells, self._doorbells = self._doorbells, {}
        for bells in doorbells.values():
            for bell in bells.values():
                os.close(bell.fd)

    def _watch_socket(self) -> None:
        self._socket_fds = self.remote.filenos()
        for fd in self._socket_fds:
            self._watch.add(fd, self.remote.service)
        trace = self.board.trace
        if trace.on:
            trace.emit(VfioUserConnected(self.remote.name, self.remote.path))

    def _detach(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._watch.close()
        self.remote.close()
        self._drop_shortcuts()

    def reset(self) -> None:
        """As vfio-pci's; a device that is gone only forgets what the guest had set up."""
        self._messages.disable()
        if self.remote.attached:
            super().reset()
        else:
            PciDevice.reset(self)

    # Accesses. What the server did before it answered is seen before the guest goes on: its interrupt, too.

    def _bar_read(self, index: int, offset: int, size: int) -> int:
        value = self.remote.bar_read(index, offset, size)
        self._look_at_signals()
        return value

    def _bar_write(self, index: int, io: bool, offset: int, size: int, value: int) -> None:
        (self.remote.port_write if io else self.remote.bar_write)(index, offset, size, value)
        self._look_at_signals()

    def _bell_write(self, index: int, io: bool, offset: int, size: int, value: int) -> None:
        bell = self._doorbells.get(index, {}).get((offset, size))
        if bell is None or bell.datamatch not in (None, value) or not self.remote.attached:
            self._bar_write(index, io, offset, size, value)
        else:
            signal(bell.fd)

    def _look_at_signals(self) -> None:
        for ctx in self._signals[:LOOKED_AT]:
            if self.remote.offer.logged and ctx.readable():
                self.remote.synchronize()
            ctx.readable_now()

    def config_read(self, offset: int, size: int) -> int:
        return super().config_read(offset, size) if self.remote.attached else ALL_ONES[size]

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        if offset >= cfg.HEADER_SIZE:
            self._follow_messages()
        self._look_at_signals()  # INTx disable was cleared with an interrupt pending

    # Interrupts.

    def _eventfd(self, name: str) -> int:
        """An eventfd of the host."""
        files = self.board.files
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            number = HostEventFile.open(files, fd, f"{self.remote.name}.{name}", self._watched)
        except OSError:
            os.close(fd)
            raise
        file = files.file(number)
        file.nonblock = True
        return number

    new_eventfd = _eventfd

    def new_holdings(self) -> Holdings:
        """Rows of the ledger of their own, to be given back before the device goes."""
        return self._holdings()

    def _watched(self, ctx: HostEventfdCtx, wanted: bool) -> None:
        """Somebody waits for an eventfd, or no more: the server signals it, so poll it."""
        if wanted and ctx not in self._signals:
            self._signals.append(ctx)
            self._watch.add(ctx.fd, partial(self._signalled, ctx))
        elif not wanted and ctx in self._signals:
            self._signals.remove(ctx)
            self._watch.remove(ctx.fd)

    def _signalled(self, ctx: HostEventfdCtx) -> None:
        self.remote.synchronize()
        ctx.readable_now()

    def _follow_messages(self) -> None:
        """The guest wrote a capability: interrupts go by the pin, or by messages."""
        wanted, messages = self._messages.wanted(), self._messages
        if wanted is messages.active:
            messages.control_changed()
        elif self.remote.attached:
            self._disable_interrupts()
            self._enable_interrupts()

    def _enable_interrupts(self) -> None:
        wanted = self._messages.wanted()
        if wanted is None:
            self._enable_intx()
        else:
            self._messages.enable(wanted)

    def _disable_interrupts(self) -> None:
        self._messages.disable()
        self._disable_intx()

    def _enable_intx(self) -> None:
        try:
            super()._enable_intx()
        except OSError as error:
            self.remote.lose(f"INTx cannot be enabled: {error.strerror or error}")

    # Loss and return.

    def _lost(self, reason: str) -> None:
        """The server is gone; we may be in the middle of anything."""
        self._drop_shortcuts()
        fds, self._socket_fds = self._socket_fds, []
        if fds:
            for fd in fds:
                self._watch.remove(fd)
            self.board.loop.request(partial(self._disconnected, reason))

    def _disconnected(self, reason: str) -> None:
        """Between slices: take the line down and say so."""
        if self.remote.attached or not len(self.holdings):
            return  # unplugged meanwhile
        self._disable_interrupts()
        trace = self.board.trace
        if trace.on:
            trace.emit(VfioUserDisconnected(self.remote.name, reason))
        self.board.emit("VFIO_USER_DISCONNECTED", {**self._who(), "reason": reason})
        self._try_again()

    def _who(self) -> dict[str, Any]:
        return ({"device": self.id} if self.id is not None else {}) | {"path": self.path}

    def _try_again(self) -> None:
        after = self.values["x-reconnect-ms"]
        if after:
            self._retry = asyncio.get_running_loop().call_later(after / 1000, self._reconnect)

    def _reconnect(self) -> None:
        self._retry = None
        try:
            self.remote.attach()
        except ConfigError:
            self._try_again()
            return
        if self.remote.region_sizes != self._known_sizes or self._identity() != self._known:
            self.remote.close()  # another device
            self._try_again()
            return
        self._watch_socket()
        for bar in self.bars:
            self._take_doorbells(bar.index)
            self._map(bar.index, bar.io)
        self._restore()
        self._enable_interrupts()
        if self.remote.attached:
            self.board.emit("VFIO_USER_CONNECTED", self._who())
        self.board.loop.wake()

    def _restore(self) -> None:
        """Let the server's configuration space be what the guest wrote: what can be written, COMMAND last."""
        places = [(offset, 4) for offset in range(cfg.BASE_ADDRESS_0, cfg.BASE_ADDRESS_END, 4)]
        places.append((cfg.INTERRUPT_LINE, 1))
        for vectors in (self.msi, self.msix):
            if vectors is not None:
                places.append((vectors.at + MESSAGE_CONTROL, 2))
        places.append((cfg.COMMAND, 2))
        get = self.config.get
        self.remote.write_several([(REGION_CONFIG, offset, size, get(offset, size)) for offset, size in places])
