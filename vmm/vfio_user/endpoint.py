"""A PCI function that answers vfio-user messages. No socket, no loop: `handle` takes a command and gives the reply.

Ref: QEMU docs/interop/vfio-user.rst; vectors conform-libvfio-user.txt says what the reference server answers to each
malformed message.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

import construct

from vmm.memory import AddressSpace
from vmm.shared_memory import SharedRegion
from vmm.vfio_user import protocol as p
from vmm.vfio_user.events import VfioUserRegionRead, VfioUserRegionWrite
from vmm.vfio_user.features import Features
from vmm.vfio_user.interrupts import Interrupts, IrqSetRequest
from vmm.vfio_user.migration import Migration
from vmm.vfio_user.protocol import Command

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.pci.device import Doorbell, PciDevice
    from vmm.vfio_user.dma import DmaMemory
    from vmm.vfio_user.stream import Message

CAPABILITIES: dict[str, Any] = {
    "max_msg_fds": p.MAX_MSG_FDS,
    "max_data_xfer_size": p.MAX_DATA_XFER_SIZE,
    "max_dma_maps": p.MAX_DMA_MAPS,
    "pgsizes": p.PAGE_SIZE,
    "write_multiple": True,
}
"""What VERSION is answered with: shorter than QEMU's request, which is all the room QEMU has for the reply."""
FAULTS_SHOWN = 10
"""Tracebacks of the device's own code that are written to stderr; a guest could cause any number."""
_BITMAP_HEADER = 16
_TAKES_FDS = frozenset({Command.DMA_MAP, Command.DEVICE_SET_IRQS})
_ACCESS = p.REGION_ACCESS.size
_NATURAL = frozenset({1, 2, 4})


def _invalid(what: str) -> OSError:
    return OSError(errno.EINVAL, what)


class Endpoint:
    """One function and its client. `device` is realized; its INTx line drives `interrupts`.

    `negotiated` is False until the client's VERSION was accepted, and again after `disconnect`.
    """

    def __init__(self, device: PciDevice, memory: DmaMemory, running: Callable[[bool], None] = lambda _: None) -> None:
        """`running(False)` makes the device's timers stand still."""
        self.device = device
        self.memory = memory
        msi, msix = (0 if vectors is None else vectors.vectors for vectors in (device.msi, device.msix))
        self.name = device.label
        """What traces call the device."""
        self.trace = device.board.trace
        self.interrupts = Interrupts(bool(device.interrupt_pin), msi, msix)
        self.interrupts.trace, self.interrupts.name = self.trace, self.name
        device.message_sink = self.interrupts.send
        self.migration = Migration(device, running) if device.migratable else None
        self.features = Features(memory, self.migration)
        self.negotiated = False
        self.rejected = False
        """The first message was not a VERSION that we can go on with: the connection is to be closed."""
        self.capabilities = p.parse_capabilities(b"")
        """The client's."""
        self.make_twin: Callable[[], int] | None = None
        """Makes a second connection, for our own commands, and returns the client's end of it."""
        self.reply_fds: list[int] = []
        """Descriptors that go with the reply that `handle` just gave; whoever sends it closes them."""
        self.writing: list[Message] = []
        """REGION_WRITEs that the device is at, outermost first; see `acknowledge`."""
        self._faults = 0
        self._ioeventfds: dict[Doorbell, int] = {}
        """Eventfds that a client signals instead of writing, ours."""
        self._bars: dict[int, AddressSpace] = {}
        for bar in device.bars:
            space = self._bars[bar.index] = AddressSpace(f"BAR{bar.index}", bar.region.size)
            space.map(0, bar.region)
        self._shared = {bar.index: bar.region for bar in device.bars if isinstance(bar.region, SharedRegion)}
        self._config_size = len(bytes(device.config))
        self._sizes = {index: space.size for index, space in self._bars.items()} | {p.REGION_CONFIG: self._config_size}
        self._handlers: dict[int, Callable[[Message], bytes]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._get_info,
            Command.DEVICE_GET_REGION_INFO: self._get_region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._get_region_io_fds,
            Command.DEVICE_GET_IRQ_INFO: self._get_irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.DEVICE_RESET: self._reset,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_FEATURE: self._device_feature,
            Command.MIG_DATA_READ: self._mig_data_read,
            Command.MIG_DATA_WRITE: self._mig_data_write,
        }

        self._quick: dict[int, Callable[[Message], bytes]] = {
            int(Command.REGION_READ): self._region_read,
            int(Command.REGION_WRITE): self._region_write,
        }
        """What a guest does all the time, and brings nothing along to look after."""

    # One command.

    def handle(self, message: Message) -> bytes | None:
        """Carry out a command; the reply to send, None if none is wanted. Closes descriptors that it did not keep."""
        error = 0
        quick = self._quick.get(message.command)
        try:
            if quick is None or message.flags & p.TYPE_MASK or message.fault or message.fds or not self.negotiated:
                payload = self._carry_out(message)
            else:
                payload = quick(message)
        except OSError as refusal:
            error, payload = refusal.errno or errno.EIO, b""
        except (ValueError, construct.ConstructError, struct.error):
            error, payload = errno.EINVAL, b""
        if message.fds:
            message.close()
        if not self.negotiated:
            self.rejected = True
        if message.flags & p.FLAG_NO_REPLY:
            return None
        if error:
            return p.error_bytes(message.msg_id, message.command, error)
        return p.reply_bytes(message.msg_id, message.command, payload)

    def _carry_out(self, message: Message) -> bytes:
        if message.fault:
            raise OSError(message.fault, "what came is no message")
        if message.is_reply:
            raise _invalid("a reply that nobody waits for")
        handler = self._handlers.get(message.command)
        if handler is None:
            raise _invalid(f"there is no command {message.command} here")
        if self.negotiated == (message.command == Command.VERSION):
            raise _invalid("VERSION comes first, and once")
        if len(message.fds) > p.MAX_MSG_FDS:
            raise _invalid(f"{len(message.fds)} descriptors; there may be {p.MAX_MSG_FDS}")
        if message.fds and message.command not in _TAKES_FDS:
            message.close()
        return handler(message)

    def show_fault(self) -> None:
        """The device's own code raised what is being handled: tell its author, a few times."""
        self._faults += 1
        if self._faults <= FAULTS_SHOWN:
            traceback.print_exc(file=sys.stderr)
            if self._faults == FAULTS_SHOWN:
                print(f"{self.device.driver}: no more errors of this device are shown", file=sys.stderr)

    def disconnect(self) -> None:
        """The client is gone: its memory and eventfds go; the device stays as it is for the next one."""
        self.negotiated = self.rejected = False
        self.capabilities = p.parse_capabilities(b"")
        self.interrupts.close()
        self.features.stop_logging()
        if self.migration is not None:
            self.migration.abandon()
        self.memory.clear()
        while self._ioeventfds:
            os.close(self._ioeventfds.popitem()[1])

    def watched(self) -> dict[int, Callable[[], None]]:
        """Eventfds that the client signals, and what to do when one is readable."""
        if not self._ioeventfds:
            return self.interrupts.watched
        rung = {fd: partial(self._rung, doorbell) for doorbell, fd in self._ioeventfds.items()}
        return {**self.interrupts.watched, **rung}

    # Negotiation.

    def _version(self, message: Message) -> bytes:
        request = p.Version.parse(message.payload)
        if request.major != p.MAJOR:
            raise _invalid(f"version {request.major}.{request.minor}")
        self.capabilities = p.parse_capabilities(request.data)
        largest = self.capabilities["max_data_xfer_size"]
        self.memory.max_transfer = min(p.CHUNK, largest)
        self.features.max_transfer = min(p.MAX_DATA_XFER_SIZE, largest)
        self.negotiated = True
        offered = dict(CAPABILITIES)
        if self.migration is not None:
            offered["migration"] = {"pgsize": p.PAGE_SIZE}
        if self.make_twin is not None and self.capabilities["twin_socket"] is not None:
            self.reply_fds.append(self.make_twin())
            offered["twin_socket"] = {"supported": True, "fd_index": 0}
        data = json.dumps({"capabilities": offered}, separators=(",", ":")).encode() + b"\0"
        reply: bytes = p.Version.build({"major": p.MAJOR, "minor": min(request.minor, p.MINOR), "data": data})
        return reply

    # DMA.

    def _dma_map(self, message: Message) -> bytes:
        request = self._parse(message, p.DmaMap)
        if len(message.fds) > 1:
            raise _invalid(f"{len(message.fds)} descriptors for one mapping")
        fd = message.fds[0] if message.fds else -1
        self.memory.map(request.address, request.size, request.flags, fd, request.offset)
        message.fds.clear()
        return b""

    def _dma_unmap(self, message: Message) -> bytes:
        request = self._parse(message, p.DmaUnmap)
        fixed = p.DmaUnmap.sizeof()
        bitmap = b""
        if request.flags == p.DMA_UNMAP_ALL:
            if request.address or request.size:
                raise _invalid("unmapping all takes no range")
            self.memory.clear()
        elif request.flags == p.DMA_UNMAP_GET_DIRTY_BITMAP:
            wanted = p.DirtyBitmap.parse(message.payload[fixed:])
            self.features.check_logging()
            self.memory.check_mapped(request.address, request.size)
            room = request.argsz - fixed - _BITMAP_HEADER
            bits = self.features.dirty_pages(request.address, request.size, wanted.pgsize, min(room, wanted.size))
            self.memory.unmap(request.address, request.size)
            bitmap = p.DirtyBitmap.build({"pgsize": wanted.pgsize, "size": len(bits), "data": bits})
        elif request.flags or request.argsz > p.MAX_DATA_XFER_SIZE:
            raise _invalid(f"unmap flags {request.flags:#x}, argsz {request.argsz}")
        else:
            self.memory.unmap(request.address, request.size)
        return message.payload[:fixed] + bitmap

    # Information.

    def _parse(self, message: Message, layout: construct.Construct, fixed: int = 0) -> Any:
        """A payload that begins with argsz, which must not be less than what is there at least."""
        request = layout.parse(message.payload)
        if request.argsz < (fixed or layout.sizeof()):
            raise _invalid(f"argsz {request.argsz}")
        return request

    def _get_info(self, message: Message) -> bytes:
        self._parse(message, p.DeviceInfo)
        reply: bytes = p.DeviceInfo.build(
            {
                "argsz": p.DeviceInfo.sizeof(),
                "flags": p.DEVICE_FLAGS_RESET | p.DEVICE_FLAGS_PCI,
                "num_regions": p.NUM_REGIONS,
                "num_irqs": p.NUM_IRQS,
            }
        )
        return reply

    def _get_region_info(self, message: Message) -> bytes:
        request = self._parse(message, p.RegionInfo, p.REGION_INFO_SIZE)
        if request.index >= p.NUM_REGIONS:
            raise _invalid(f"region {request.index}")
        size = self._region_size(request.index)
        reply = {
            "argsz": p.REGION_INFO_SIZE,
            "flags": p.REGION_READABLE | p.REGION_WRITABLE if size else 0,
            "index": request.index,
            "cap_offset": 0,
            "size": size,
            "offset": 0,
            "capabilities": b"",
        }
        region = self._shared.get(request.index)
        if region is not None:
            self._describe_mapping(reply, region, request.argsz)
        built: bytes = p.RegionInfo.build(reply)
        return built

    def _describe_mapping(self, reply: dict[str, Any], region: SharedRegion, room: int) -> None:
        """Which parts of a region may be mapped, and the descriptor for it, if the client has room for the list.

        A client that has not learns how much it takes, and asks again. QEMU takes REGION_CAPS without the list for an
        error.
        """
        areas = [{"offset": offset, "size": size} for offset, size in region.areas]
        header = {"id": p.CAP_SPARSE_MMAP, "version": 1, "next": 0}
        capability = p.SparseMmap.build({"header": header, "areas": areas})
        reply["flags"] |= p.REGION_MMAP
        reply["argsz"] = p.REGION_INFO_SIZE + len(capability)
        reply["offset"] = region.file_offset
        if room >= reply["argsz"]:
            reply["flags"] |= p.REGION_CAPS
            reply["cap_offset"] = p.REGION_INFO_SIZE
            reply["capabilities"] = capability
            self.reply_fds.append(os.dup(region.fd))

    def _region_size(self, index: int) -> int:
        if index == p.REGION_CONFIG:
            return self._config_size
        space = self._bars.get(index)
        return 0 if space is None else space.size

    def _get_region_io_fds(self, message: Message) -> bytes:
        request = self._parse(message, p.RegionIoFds, p.REGION_IO_FDS_SIZE)
        if not self._region_size(request.index) or request.flags or request.count:
            raise _invalid(f"region {request.index}, flags {request.flags:#x}, count {request.count}")
        if request.argsz > p.MAX_DATA_XFER_SIZE:
            raise _invalid(f"argsz {request.argsz}")
        doorbells = [bell for bell in self.device.doorbells if bell.bar == request.index]
        doorbells = doorbells[: self.capabilities["max_msg_fds"]]
        entry = p.SubRegionIoFd.sizeof()
        needed = p.REGION_IO_FDS_SIZE + entry * len(doorbells)
        reply = {"argsz": needed, "flags": 0, "index": request.index, "count": 0, "sub_regions": b""}
        if request.argsz >= needed and doorbells:
            reply["count"] = len(doorbells)
            reply["sub_regions"] = b"".join(self._sub_region(bell) for bell in doorbells)
        built: bytes = p.RegionIoFds.build(reply)
        return built

    def _sub_region(self, doorbell: Doorbell) -> bytes:
        fd = self._ioeventfds.get(doorbell)
        if fd is None:
            fd = self._ioeventfds[doorbell] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.reply_fds.append(os.dup(fd))
        match = doorbell.datamatch
        io = any(bar.io for bar in self.device.bars if bar.index == doorbell.bar)
        built: bytes = p.SubRegionIoFd.build(
            {
                "offset": doorbell.offset,
                "size": doorbell.size,
                "fd_index": len(self.reply_fds) - 1,
                "type": p.IO_FD_TYPE_IOEVENTFD,
                "flags": (p.IOEVENTFD_PIO if io else 0) | (p.IOEVENTFD_DATAMATCH if match is not None else 0),
                "datamatch": match or 0,
            }
        )
        return built

    def _rung(self, doorbell: Doorbell) -> None:
        """The client signalled instead of writing."""
        try:
            self._bars[doorbell.bar].write(doorbell.offset, doorbell.size, doorbell.datamatch or 0)
        except Exception:
            self.show_fault()

    def _get_irq_info(self, message: Message) -> bytes:
        request = self._parse(message, p.IrqInfo)
        flags, count = self.interrupts.info(request.index)
        reply: bytes = p.IrqInfo.build({"argsz": 16, "flags": flags, "index": request.index, "count": count})
        return reply

    def _set_irqs(self, message: Message) -> bytes:
        argsz, flags, index, start, count = p.IRQ_SET.unpack_from(message.payload)  # p.IrqSet, once an interrupt
        if argsz < p.IRQ_SET_SIZE:
            raise _invalid(f"argsz {argsz}")
        data = message.payload[p.IRQ_SET_SIZE :]
        self.interrupts.set_irqs(IrqSetRequest(flags, index, start, count, data), message.fds)
        return b""

    # Regions.

    def _check_access(self, region: int, offset: int, count: int) -> None:
        size = self._sizes.get(region, 0)
        if not size or count > p.MAX_DATA_XFER_SIZE or offset + count > size:
            raise _invalid(f"region {region} has {size:#x} bytes, not {offset:#x}+{count:#x}")

    def _check_settled(self) -> None:
        """A device whose state is read, or replaced, takes no writes."""
        if self.migration is not None and not self.migration.settled:
            raise _invalid(f"a write in migration state {self.migration.state.name}")

    def _region_read(self, message: Message) -> bytes:
        payload = message.payload[:_ACCESS]
        offset, region, count = p.REGION_ACCESS.unpack(payload)
        if count > p.MAX_DATA_XFER_SIZE or offset + count > self._sizes.get(region, -1):
            self._check_access(region, offset, count)
        read = self.device.config_read if region == p.REGION_CONFIG else self._bars[region].read
        try:
            if count in _NATURAL and not offset & (count - 1):
                value = read(offset, count)
                if self.trace.on:
                    self.trace.emit(VfioUserRegionRead(self.name, region, offset, count, value))
                return payload + value.to_bytes(count, "little")
            pieces = [read(at, size).to_bytes(size, "little") for at, size in _accesses(region, offset, count)]
        except Exception as error:
            raise self._fault() from error
        return payload + b"".join(pieces)

    def _fault(self) -> OSError:
        self.show_fault()
        return OSError(errno.EIO, f"{self.device.driver}: its own code failed")

    def _region_write(self, message: Message) -> bytes:
        payload = message.payload
        offset, region, count = p.REGION_ACCESS.unpack_from(payload)
        if len(payload) != _ACCESS + count:
            raise _invalid(f"{len(payload)} bytes of payload for a write of {count}")
        if count > p.MAX_DATA_XFER_SIZE or offset + count > self._sizes.get(region, -1):
            self._check_access(region, offset, count)
        if self.migration is not None:
            self._check_settled()
        self.writing.append(message)
        try:
            self._write(region, offset, payload[_ACCESS:])
        finally:
            self.writing.pop()
        return payload[:_ACCESS]

    def _write(self, region: int, offset: int, data: bytes) -> None:
        write = self.device.config_write if region == p.REGION_CONFIG else self._bars[region].write
        size = len(data)
        places = ((offset, size),) if size in _NATURAL and not offset & (size - 1) else _accesses(region, offset, size)
        try:
            for at, size in places:
                value = int.from_bytes(data[at - offset : at - offset + size], "little")
                if self.trace.on:
                    self.trace.emit(VfioUserRegionWrite(self.name, region, at, size, value))
                write(at, size, value)
        except Exception as error:
            raise self._fault() from error

    def acknowledge(self) -> list[bytes]:
        """The replies of writes that the device is still at, to be sent now; they will not be given again.

        The client may be unable to serve our DMA before it has them.
        """
        replies = []
        for message in self.writing:
            if message.wants_reply:
                replies.append(p.reply_bytes(message.msg_id, message.command, message.payload[: p.REGION_ACCESS.size]))
                message.flags |= p.FLAG_NO_REPLY
        return replies

    def _region_write_multi(self, message: Message) -> bytes:
        payload = message.payload
        count = int.from_bytes(payload[:8], "little")
        if len(payload) != 8 + count * p.WRITE_MULTI_ENTRY.size:
            raise _invalid(f"{len(payload)} bytes of payload for {count} writes")
        writes = list(p.WRITE_MULTI_ENTRY.iter_unpack(payload[8:]))
        for offset, region, size, _ in writes:
            if size > 8:
                raise _invalid(f"a write of {size} bytes among several")
            self._check_access(region, offset, size)
        self._check_settled()
        for offset, region, size, data in writes:
            self._write(region, offset, data[:size])
        return payload[:8]

    def _reset(self, message: Message) -> bytes:  # noqa: ARG002 (it has no payload)
        try:
            self.device.reset()
        except Exception as error:
            raise self._fault() from error
        self.interrupts.reset()
        if self.migration is not None:
            self.migration.abandon()
        return b""

    # Features and migration.

    def _device_feature(self, message: Message) -> bytes:
        request = self._parse(message, p.DeviceFeature, p.DEVICE_FEATURE_SIZE)
        return self._guarded(lambda: self.features.handle(request, message.payload))

    def _mig_data_read(self, message: Message) -> bytes:
        request = self._parse(message, p.MigData, p.MIG_DATA_SIZE)
        return self._guarded(lambda: self.features.mig_data_read(request))

    def _mig_data_write(self, message: Message) -> bytes:
        request = self._parse(message, p.MigData, p.MIG_DATA_SIZE)
        return self._guarded(lambda: self.features.mig_data_write(request))

    def _guarded(self, operation: Callable[[], bytes]) -> bytes:
        """An operation that runs the device's own code."""
        try:
            return operation()
        except (OSError, construct.ConstructError, struct.error):
            raise
        except Exception as error:
            raise self._fault() from error


def _accesses(region: int, offset: int, count: int) -> list[tuple[int, int]]:
    """(offset, size) of the naturally aligned accesses that `count` bytes are; configuration space takes 4 at most."""
    widest = 4 if region == p.REGION_CONFIG else 8
    pieces = []
    end = offset + count
    while offset < end:
        size = min(widest, offset & -offset or widest, 1 << (end - offset).bit_length() - 1)
        pieces.append((offset, size))
        offset += size
    return pieces
