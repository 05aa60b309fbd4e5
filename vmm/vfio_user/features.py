"""DEVICE_FEATURE and the migration stream, as a server answers them. Errors are OSError with the reply's errno.

    feature                 PROBE  GET  SET
    MIGRATION                 x     x         of a device that can be migrated
    MIG_DEVICE_STATE          x     x    x
    DMA_LOGGING_START         x          x    of every device
    DMA_LOGGING_STOP          x          x
    DMA_LOGGING_REPORT        x     x

Ref: QEMU docs/interop/vfio-user.rst, VFIO_USER_DEVICE_FEATURE; include/uapi/linux/vfio.h
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from vmm.vfio_user import migration
from vmm.vfio_user import protocol as p
from vmm.vfio_user.dma import DirtyLog, bitmap_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.vfio_user.dma import DmaMemory

_METHODS = p.FEATURE_GET | p.FEATURE_SET
_HEADER = p.DEVICE_FEATURE_SIZE
_REPORT_SIZE = 24
_END = 1 << 64
MAX_LOG_PAGE = 1 << 30


def _invalid(what: str) -> OSError:
    return OSError(errno.EINVAL, what)


class Features:
    """What a client may probe, get and set. `machine` is None for a device that cannot be migrated."""

    def __init__(self, memory: DmaMemory, machine: migration.Migration | None) -> None:
        self.memory = memory
        self.machine = machine
        self.max_transfer = p.MAX_DATA_XFER_SIZE
        """Bytes of migration data in one message."""
        self._known: dict[int, dict[int, Callable[[Any, bytes], bytes]]] = {
            p.FEATURE_DMA_LOGGING_START: {p.FEATURE_SET: self._start_logging},
            p.FEATURE_DMA_LOGGING_STOP: {p.FEATURE_SET: self._stop_logging},
            p.FEATURE_DMA_LOGGING_REPORT: {p.FEATURE_GET: self._report},
        }
        if machine is not None:
            self._known[p.FEATURE_MIGRATION] = {p.FEATURE_GET: self._get_migration}
            self._known[p.FEATURE_MIG_DEVICE_STATE] = {p.FEATURE_GET: self._get_state, p.FEATURE_SET: self._set_state}

    def handle(self, request: Any, payload: bytes) -> bytes:
        """The payload of the reply to a DEVICE_FEATURE, which is `payload` and parsed `request`."""
        methods = request.flags & _METHODS
        feature = self._known.get(request.flags & p.FEATURE_MASK)
        if feature is None or request.flags & ~(p.FEATURE_MASK | _METHODS | p.FEATURE_PROBE):
            raise _invalid(f"feature flags {request.flags:#x}")
        if request.flags & p.FEATURE_PROBE:
            if methods & ~sum(feature):
                raise _invalid(f"feature flags {request.flags:#x}: there is no such method")
            return payload
        operation = feature.get(methods)
        if operation is None:
            raise _invalid(f"feature flags {request.flags:#x}: one of GET and SET, that there is")
        return operation(request, payload)

    @staticmethod
    def _reply(request: Any, data: bytes) -> bytes:
        """Of a GET: the data has to fit into what the client has room for."""
        argsz = _HEADER + len(data)
        if request.argsz < argsz:
            raise _invalid(f"argsz {request.argsz}, not {argsz}")
        built: bytes = p.DeviceFeature.build({"argsz": argsz, "flags": request.flags, "data": data})
        return built

    # Migration.

    def _get_migration(self, request: Any, _payload: bytes) -> bytes:
        return self._reply(request, p.FeatureMigration.build({"flags": migration.FLAGS}))

    def _get_state(self, request: Any, _payload: bytes) -> bytes:
        assert self.machine is not None
        data = {"device_state": self.machine.state, "data_fd": -1}
        return self._reply(request, p.FeatureMigDeviceState.build(data))

    def _set_state(self, request: Any, payload: bytes) -> bytes:
        assert self.machine is not None
        wanted = p.FeatureMigDeviceState.parse(request.data)
        if request.argsz < _HEADER + p.FeatureMigDeviceState.sizeof():
            raise _invalid(f"argsz {request.argsz}")
        self.machine.set_state(wanted.device_state)
        return payload

    def mig_data_read(self, request: Any) -> bytes:
        """MIG_DATA_READ. The reply is as long as was asked for, as libvfio-user's client wants it; `size` counts."""
        if self.machine is None:
            raise _invalid("the device cannot be migrated")
        if request.size > self.max_transfer or request.argsz < p.MIG_DATA_SIZE + request.size:
            raise _invalid(f"{request.size} bytes of migration data, argsz {request.argsz}")
        data = self.machine.read(request.size)
        padded = data.ljust(request.size, b"\0")
        reply = {"argsz": p.MIG_DATA_SIZE + len(data), "size": len(data), "data": padded}
        built: bytes = p.MigData.build(reply)
        return built

    def mig_data_write(self, request: Any) -> bytes:
        """MIG_DATA_WRITE."""
        if self.machine is None:
            raise _invalid("the device cannot be migrated")
        size = request.size
        if size > self.max_transfer or request.argsz < p.MIG_DATA_SIZE + size or len(request.data) < size:
            raise _invalid(f"{size} bytes of migration data, argsz {request.argsz}, {len(request.data)} are there")
        self.machine.write(request.data[:size])
        return b""

    # The log of writes.

    def _start_logging(self, request: Any, payload: bytes) -> bytes:
        control = p.FeatureDmaLoggingControl.parse(request.data)
        size = control.page_size
        if not p.PAGE_SIZE <= size <= MAX_LOG_PAGE or size & (size - 1):
            raise _invalid(f"pages of {size} bytes")
        if any(not r.length or r.iova + r.length > _END for r in control.ranges):
            raise _invalid("a range that is empty or wraps")
        log = self.memory.log
        if log is None:
            self.memory.log = DirtyLog(size)
        elif log.page_size != size:
            raise _invalid(f"pages of {size} bytes; {log.page_size} are logged already")
        return payload

    def _stop_logging(self, _request: Any, payload: bytes) -> bytes:
        self.stop_logging()
        return payload

    def stop_logging(self) -> None:
        """Log no more. A second time does nothing."""
        self.memory.log = None

    def _report(self, request: Any, _payload: bytes) -> bytes:
        wanted = p.FeatureDmaLoggingReport.parse(request.data)
        room = request.argsz - _HEADER - _REPORT_SIZE
        bitmap = self.dirty_pages(wanted.iova, wanted.length, wanted.page_size, room)
        data = {"iova": wanted.iova, "length": wanted.length, "page_size": wanted.page_size, "bitmap": bitmap}
        return self._reply(request, p.FeatureDmaLoggingReport.build(data))

    def check_logging(self) -> DirtyLog:
        """The log. OSError EINVAL if there is none."""
        if self.memory.log is None:
            raise _invalid("writes are not logged")
        return self.memory.log

    def dirty_pages(self, address: int, length: int, page_size: int, room: int) -> bytes:
        """The bitmap of a range, which is clean afterwards."""
        log = self.check_logging()
        if not page_size or page_size & (page_size - 1) or not length or address + length > _END:
            raise _invalid(f"{address:#x}+{length:#x} in pages of {page_size}")
        if not self.memory.find(address, length):
            raise OSError(errno.ENOENT, f"nothing is mapped at {address:#x}+{length:#x}")
        size = bitmap_size(length, page_size)
        if size > min(room, p.MAX_BITMAP_SIZE):
            raise _invalid(f"a bitmap of {size} bytes, room for {room}")
        return log.take(address, length, page_size)
