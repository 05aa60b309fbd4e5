"""The machine's side of vfio-user: a remote device with the interface that VFIO gives to a local one.

    remote = RemoteDevice("v0", "/run/edu.sock", memory, files, on_lost)
    remote.attach()
    remote.config_read(0, 4); remote.bar_write(0, 0x60, 4, 1); remote.set_irq_eventfd(...)
    state = remote.save_state(); other.load_state(state)

While an answer is awaited the server's DMA is served, so a device may reach memory from inside a register access.
The server is another process, maybe a hostile one: it can answer wrongly or not at all, and all that comes of it is
that the device is gone, which `on_lost` is told once. Accesses to a device that is gone read all ones.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import construct

from vmm.errors import ConfigError
from vmm.kernel.host_eventfd import HostEventFile
from vmm.memory import ALL_ONES
from vmm.vfio_user import protocol as p
from vmm.vfio_user import remote_region
from vmm.vfio_user.offer import Offer
from vmm.vfio_user.protocol import Command, MigrationState
from vmm.vfio_user.stream import close_all
from vmm.vfio_user.transport import Connection, PeerGone, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.kernel.files import DescriptorTable
    from vmm.memory import GuestMemory
    from vmm.vfio_user.remote_region import RemoteDoorbell, RemoteRegion
    from vmm.vfio_user.stream import Message

CAPABILITIES = {
    "max_msg_fds": p.MAX_MSG_FDS,
    "max_data_xfer_size": p.MAX_DATA_XFER_SIZE,
    "max_dma_maps": p.MAX_DMA_MAPS,
    "pgsizes": p.PAGE_SIZE,
    "twin_socket": {"supported": True},
    "write_multiple": True,
    "migration": {"pgsize": p.PAGE_SIZE},
}
MAX_STATE = 1 << 30
"""Bytes of state that a server may have."""
_BURST = 64
"""Commands of the server that are served in one go."""


class RemoteDevice:
    """A device that a vfio-user server at `path` has. `timeout`: seconds that a reply may take.

    Guest RAM is offered by `offer`. `posted`: writes to memory are not waited for.
    `on_lost(reason)` is called from where the loss is noticed.
    """

    def __init__(
        self,
        name: str,
        path: str,
        memory: GuestMemory,
        files: DescriptorTable,
        on_lost: Callable[[str], None],
        timeout: float = 5.0,
        posted: bool = True,
    ) -> None:
        self.name = name
        self.path = path
        self.timeout = timeout
        self.on_lost = on_lost
        self.posted = posted
        self.can_reset = False
        self.regions: list[RemoteRegion] = []
        """Of BARs, ROM and configuration space, by their index."""
        self.offer = Offer(memory)
        self._files = files
        self._connection: Connection | None = None
        self._twin: Connection | None = None
        """The second socket, if the server has one: its commands and our replies."""
        self._capabilities: dict[str, Any] = {}
        self._next_id = 0

    @property
    def attached(self) -> bool:
        """The device is there."""
        return self._connection is not None

    def filenos(self) -> list[int]:
        """For pollers: one of them is readable when `service` has something to do. Empty while not attached."""
        return [one.fileno() for one in (self._connection, self._twin) if one is not None]

    # Coming and going.

    def attach(self) -> None:
        """Connect, negotiate, ask what there is, offer guest RAM. ConfigError, naming the socket, if it fails."""
        try:
            self._connection = connect(self.path, self.timeout)
        except OSError as error:
            raise ConfigError(f"Failed to connect to '{self.path}': {error.strerror or error}") from error
        try:
            self._negotiate()
        except (OSError, ValueError, construct.ConstructError) as error:
            self._hang_up()
            raise ConfigError(f"vfio-user server at '{self.path}': {_words(error)}") from error

    def _negotiate(self) -> None:
        data = json.dumps({"capabilities": CAPABILITIES}).encode() + b"\0"
        request = p.Version.build({"major": p.MAJOR, "minor": p.MINOR, "data": data})
        twins: list[int] = []
        try:
            version = p.Version.parse(self._exchange(Command.VERSION, request, received=twins))
            self._capabilities = p.parse_capabilities(version.data, strict=False)
            index = self._capabilities["twin_socket"]
            if index is not None:
                if index >= len(twins):
                    raise ValueError("it names a second socket and does not send it")
                self._twin = Connection(socket.socket(fileno=twins[index]))
                twins.pop(index)
        finally:
            close_all(twins)
        if version.major != p.MAJOR or version.minor > p.MINOR:
            raise ValueError(f"incompatible server version {version.major}.{version.minor}")
        layout = p.DeviceInfo
        request = layout.build({"argsz": layout.sizeof(), "flags": 0, "num_regions": 0, "num_irqs": 0})
        info = layout.parse(self._exchange(Command.DEVICE_GET_INFO, request))
        if not info.flags & p.DEVICE_FLAGS_PCI:
            raise ValueError("this isn't a PCI device")
        if info.num_regions <= p.REGION_CONFIG or not info.num_irqs:
            raise ValueError(f"unexpected number of regions {info.num_regions} or irqs {info.num_irqs}")
        self.can_reset = bool(info.flags & p.DEVICE_FLAGS_RESET)
        self.regions = []
        for index in range(p.REGION_CONFIG + 1):
            self.regions.append(self._ask_region(index))
        if self.regions[p.REGION_CONFIG].size < 256:
            raise ValueError(f"a configuration space of {self.regions[p.REGION_CONFIG].size} bytes")
        self.offer.make(self._exchange)

    def _ask_region(self, index: int) -> RemoteRegion:
        room = p.REGION_INFO_SIZE
        while True:
            fds: list[int] = []
            payload = self._exchange(Command.DEVICE_GET_REGION_INFO, remote_region.request(index, room), received=fds)
            region, needed = remote_region.parse(index, payload, fds)
            if needed <= room or region.fd >= 0:
                return region
            room = needed

    @property
    def region_sizes(self) -> list[int]:
        """Bytes of each region, by index."""
        return [region.size for region in self.regions]

    def doorbells(self, index: int) -> list[RemoteDoorbell]:
        """Writes to a region that may be made by eventfd. Their descriptors are the caller's."""
        room = p.REGION_IO_FDS_SIZE
        fds: list[int] = []
        try:
            for _ in range(2):  # the first answer tells how much room it takes
                request = {"argsz": room, "flags": 0, "index": index, "count": 0, "sub_regions": b""}
                payload = self._call(Command.DEVICE_GET_REGION_IO_FDS, p.RegionIoFds.build(request), received=fds)
                reply = p.RegionIoFds.parse(payload)
                if reply.argsz <= room:
                    break
                room = min(reply.argsz, remote_region.MAX_INFO_SIZE)
        except (OSError, construct.ConstructError):
            close_all(fds)
            return []  # a server need not have any
        return remote_region.parse_doorbells(self.regions[index].size, payload, fds)

    def close(self) -> None:
        """Hang up: the server forgets our memory and eventfds. A second close does nothing."""
        self._hang_up()

    def _hang_up(self) -> None:
        gone = (self._connection, self._twin)
        self._connection = self._twin = None
        for connection in gone:
            if connection is not None:
                connection.close()
        for region in self.regions:
            region.close()

    def lose(self, reason: str) -> None:
        """Give the device up: the server is gone, or cannot be worked with."""
        if self._connection is not None:
            self._hang_up()
            self.on_lost(reason)

    def service(self) -> None:
        """What the server sent without being asked: DMA, or its end."""
        try:
            for _ in range(_BURST):
                for connection in (self._connection, self._twin):
                    message = None if connection is None else connection.receive()
                    if connection is not None and message is not None:
                        self._serve(message, connection)
                        break
                else:
                    return
        except PeerGone as error:
            self.lose(_words(error))

    # Exchanging messages.

    def _exchange(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), received: list[int] | None = None
    ) -> bytes:
        """The payload of the reply; its descriptors go into `received`, or are closed.

        OSError with the server's errno if it refused, PeerGone if it is not there.
        """
        connection = self._connection
        if connection is None:
            raise PeerGone("not attached")
        self._next_id = msg_id = self._next_id + 1 & 0xFFFF
        connection.send(p.command_bytes(msg_id, command, payload), fds, self.timeout)
        deadline = time.monotonic() + self.timeout
        while True:
            message = connection.wait(deadline) if self._twin is None else self._wait_for_both(connection, deadline)
            if message is None or time.monotonic() > deadline:
                if message is not None:
                    message.close()  # a server that asks for DMA on and on has not answered either
                raise PeerGone(f"no reply within {self.timeout:g} s")
            if not message.is_reply and not message.fault:
                self._serve(message, connection)
                continue
            unexpected = message.fault or message.msg_id != msg_id or message.command != command
            if received is not None and not unexpected and not message.failure:
                received += message.fds
                message.fds = []
            message.close()
            if unexpected:
                raise PeerGone("an unexpected reply")
            if message.failure:
                raise OSError(message.failure, f"{self.name}: the server refused command {command}")
            return message.payload

    def _wait_for_both(self, connection: Connection, deadline: float) -> Message | None:
        """What comes on the first socket; commands on the second are served meanwhile."""
        twin = self._twin
        assert twin is not None
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        poller.register(twin, select.POLLIN)
        while True:
            message = connection.receive()
            left = deadline - time.monotonic()
            if message is not None or left <= 0:
                return message
            command = twin.receive()
            if command is not None:
                self._serve(command, twin)
            else:
                poller.poll(left * 1000)

    def _post(self, command: int, payload: bytes) -> None:
        if self._connection is None:
            raise PeerGone("not attached")
        self._next_id = self._next_id + 1 & 0xFFFF
        data = p.command_bytes(self._next_id, command, payload, p.FLAG_NO_REPLY)
        self._connection.send(data, patience=self.timeout)

    def _call(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), received: list[int] | None = None
    ) -> bytes:
        """As `_exchange`, for a device in use: whoever is gone is gone for good."""
        try:
            return self._exchange(command, payload, fds, received)
        except PeerGone as error:
            self.lose(_words(error))
            raise

    def _serve(self, message: Message, connection: Connection) -> None:
        """A command of the server: DMA. PeerGone if it is none."""
        message.close()
        if message.is_reply or message.fault:
            raise PeerGone("an unexpected reply")
        try:
            error, payload = 0, self.offer.serve(message)
        except OSError as refusal:
            error, payload = refusal.errno or errno.EIO, b""
        if message.wants_reply:
            reply = (
                p.error_bytes(message.msg_id, message.command, error)
                if error
                else p.reply_bytes(message.msg_id, message.command, payload)
            )
            connection.send(reply, patience=self.timeout)

    # Regions.

    def region_read(self, region: int, offset: int, count: int) -> int:
        """A little-endian integer of `count` bytes; all ones if the server refuses or is gone."""
        try:
            payload = self._call(Command.REGION_READ, p.REGION_ACCESS.pack(offset, region, count))
        except OSError:
            return ALL_ONES[count]
        if len(payload) != p.REGION_ACCESS.size + count:
            self.lose("a reply of the wrong size")
            return ALL_ONES[count]
        if self.offer.logged:
            self.synchronize()
        return int.from_bytes(payload[p.REGION_ACCESS.size :], "little")

    def region_write(self, region: int, offset: int, count: int, value: int, posted: bool = False) -> None:
        """Store; lost if the server refuses or is gone."""
        payload = p.REGION_ACCESS.pack(offset, region, count) + value.to_bytes(count, "little")
        try:
            if posted:
                self._post(Command.REGION_WRITE, payload)
            else:
                self._call(Command.REGION_WRITE, payload)
        except PeerGone as error:
            self.lose(_words(error))
        except OSError:
            pass  # refused: a guest hears nothing of that either

    def write_several(self, writes: Sequence[tuple[int, int, int, int]]) -> None:
        """Store (region, offset, count, value) in that order: in one message if the server takes such."""
        if not self._capabilities.get("write_multiple"):
            for region, offset, count, value in writes:
                self.region_write(region, offset, count, value)
            return
        entries = [
            {"offset": offset, "region": region, "count": count, "data": value.to_bytes(8, "little")}
            for region, offset, count, value in writes
        ]
        with contextlib.suppress(OSError):
            self._call(Command.REGION_WRITE_MULTI, p.RegionWriteMulti.build({"writes": entries}))

    def synchronize(self) -> None:
        """The device said that it did something: what it wrote to RAM without us is heard of now."""
        if self.offer.logged:
            with contextlib.suppress(OSError):
                self.offer.synchronize(self._call)

    def config_read(self, offset: int, size: int) -> int:
        """Configuration space."""
        return self.region_read(p.REGION_CONFIG, offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Configuration space."""
        self.region_write(p.REGION_CONFIG, offset, size, value)

    def bar_read(self, index: int, offset: int, size: int) -> int:
        """A guest's access to a BAR."""
        return self.region_read(index, offset, size)

    def bar_write(self, index: int, offset: int, size: int, value: int) -> None:
        """A guest's access to a memory BAR."""
        self.region_write(index, offset, size, value, self.posted)

    def port_write(self, index: int, offset: int, size: int, value: int) -> None:
        """A guest's access to an I/O BAR, which is never posted."""
        self.region_write(index, offset, size, value)

    def reset(self) -> None:
        """DEVICE_RESET, if the device has it."""
        if self.can_reset:
            with contextlib.suppress(OSError):
                self._call(Command.DEVICE_RESET)

    # Interrupts.

    def set_irqs(self, flags: int, index: int, start: int, count: int) -> None:
        """DEVICE_SET_IRQS without data. Nothing happens if the server refuses or is gone."""
        with contextlib.suppress(OSError):
            self._set_irqs(flags, index, start, count, ())

    def set_irq_eventfd(self, index: int, action: int, fd: int) -> None:
        """Attach the eventfd at `fd` of the descriptor table to one action of one interrupt; -1 detaches.

        OSError if the server refuses to attach or is gone.
        """
        flags = p.IRQ_SET_DATA_EVENTFD | action
        if fd < 0:
            self.set_irqs(flags, index, 0, 1)
            return
        file = self._files.file(fd)
        if not isinstance(file, HostEventFile):
            raise OSError(errno.EINVAL, f"{self.name}: only an eventfd of the host can go to another process")
        self._set_irqs(flags, index, 0, 1, (file.host_fd,))

    def set_vectors(self, index: int, start: int, files: Sequence[int]) -> None:
        """Attach eventfds of the descriptor table to vectors of MSI or MSI-X, from `start` on. OSError as above."""
        flags = p.IRQ_SET_DATA_EVENTFD | p.IRQ_SET_ACTION_TRIGGER
        fds = []
        for number in files:
            file = self._files.file(number)
            assert isinstance(file, HostEventFile)
            fds.append(file.host_fd)
        most = max(1, min(self._capabilities["max_msg_fds"], p.SCM_MAX_FD))
        for at in range(0, len(fds), most):
            some = fds[at : at + most]
            self._set_irqs(flags, index, start + at, len(some), some)

    def _set_irqs(self, flags: int, index: int, start: int, count: int, fds: Sequence[int]) -> None:
        request = {"argsz": p.IRQ_SET_SIZE, "flags": flags, "index": index, "start": start, "count": count}
        self._call(Command.DEVICE_SET_IRQS, p.IrqSet.build({**request, "data": b""}), fds)

    # Migration.

    def save_state(self) -> bytes:
        """Stop the device and read what it is; `set_state` lets it go on. OSError if it cannot be, or is gone."""
        self.set_state(MigrationState.STOP_COPY)
        most = min(p.CHUNK, self._capabilities["max_data_xfer_size"])
        state = bytearray()
        while True:
            request = p.MigData.build({"argsz": p.MIG_DATA_SIZE + most, "size": most, "data": b""})
            reply = p.MigData.parse(self._call(Command.MIG_DATA_READ, request))
            state += reply.data[: reply.size]
            if reply.size < most:
                return bytes(state)
            if len(state) > MAX_STATE:
                raise OSError(errno.EFBIG, f"{self.name}: a state of more than {MAX_STATE} bytes")

    def load_state(self, state: bytes) -> None:
        """Make the device what another one was, and let it run. OSError if it does not take that, or is gone."""
        self.set_state(MigrationState.RESUMING)
        most = min(p.CHUNK, self._capabilities["max_data_xfer_size"])
        for at in range(0, len(state), most):
            data = state[at : at + most]
            request = {"argsz": p.MIG_DATA_SIZE + len(data), "size": len(data), "data": data}
            self._call(Command.MIG_DATA_WRITE, p.MigData.build(request))
        self.set_state(MigrationState.RUNNING)

    def set_state(self, state: MigrationState) -> None:
        """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE. OSError as above."""
        data = p.FeatureMigDeviceState.build({"device_state": state, "data_fd": -1})
        flags = p.FEATURE_SET | p.FEATURE_MIG_DEVICE_STATE
        request = {"argsz": p.DEVICE_FEATURE_SIZE + len(data), "flags": flags, "data": data}
        self._call(Command.DEVICE_FEATURE, p.DeviceFeature.build(request))


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
