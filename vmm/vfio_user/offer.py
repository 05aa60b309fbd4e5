"""Guest RAM as a client offers it to a server: by descriptor, or by message.

By descriptor the server reads and writes the file that RAM is in (`-machine memory-backend=`) without asking. A CPU
engine that translates code must hear of such writes before the guest runs what was written, so then the server has to
log them (DMA_LOGGING_START), and `synchronize` asks for the log; one that cannot log gets its DMA by message, where
every write passes `GuestMemory.write`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from vmm.vfio_user import protocol as p
from vmm.vfio_user.dma import bitmap_size
from vmm.vfio_user.protocol import Command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm.memory import GuestMemory
    from vmm.vfio_user.stream import Message


class Exchange(Protocol):
    """Sends a command and waits for its reply."""

    def __call__(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """The payload of the reply. OSError if the server refused or is gone."""


class Offer:
    """RAM in the hands of one server. `shared`: it has the file; `logged`: it tells what it wrote there."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.shared = self.logged = False

    def make(self, exchange: Exchange) -> None:
        """Tell the server of all of RAM. OSError if it will not have it."""
        memory = self.memory
        self.logged = memory.fd >= 0 and memory.on_write is not None and self._start_logging(exchange)
        self.shared = memory.fd >= 0 and (memory.on_write is None or self.logged)
        for address, length in memory.ranges():
            request = {
                "argsz": p.DmaMap.sizeof(),
                "flags": p.DMA_MAP_READ | p.DMA_MAP_WRITE,
                "offset": memory.locate(address, length) if self.shared else 0,
                "address": address,
                "size": length,
            }
            exchange(Command.DMA_MAP, p.DmaMap.build(request), (memory.fd,) if self.shared else ())

    @staticmethod
    def _start_logging(exchange: Exchange) -> bool:
        control = p.FeatureDmaLoggingControl.build({"page_size": p.PAGE_SIZE, "ranges": []})
        request = {
            "argsz": p.DEVICE_FEATURE_SIZE + len(control),
            "flags": p.FEATURE_SET | p.FEATURE_DMA_LOGGING_START,
            "data": control,
        }
        try:
            exchange(Command.DEVICE_FEATURE, p.DeviceFeature.build(request))
        except ConnectionError:
            raise
        except OSError:
            return False  # it does not log
        return True

    def synchronize(self, exchange: Exchange) -> None:
        """Let the CPU engine hear of what the server wrote since the last time. OSError if the server is gone."""
        written = self.memory.on_write
        if not self.logged or written is None:
            return
        for address, length in self.memory.ranges():
            for start, size in self._dirty(exchange, address, length):
                written(start, size)

    def _dirty(self, exchange: Exchange, address: int, length: int) -> Iterator[tuple[int, int]]:
        report = {"iova": address, "length": length, "page_size": p.PAGE_SIZE, "bitmap": b""}
        data = p.FeatureDmaLoggingReport.build(report)
        size = bitmap_size(length, p.PAGE_SIZE)
        request = {
            "argsz": p.DEVICE_FEATURE_SIZE + len(data) + size,
            "flags": p.FEATURE_GET | p.FEATURE_DMA_LOGGING_REPORT,
            "data": data,
        }
        try:
            reply = exchange(Command.DEVICE_FEATURE, p.DeviceFeature.build(request))
        except ConnectionError:
            raise
        except OSError:
            reply = b""
        bitmap = reply[p.DEVICE_FEATURE_SIZE + len(data) :]
        if len(bitmap) != size:
            yield address, length  # it lost its log, so anything may have been written
            return
        bits = int.from_bytes(bitmap, "little") & (1 << -(-length // p.PAGE_SIZE)) - 1
        first = 0
        while bits:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            run = (~bits & bits + 1).bit_length() - 1
            bits >>= run
            first += skip
            start = address + first * p.PAGE_SIZE
            yield start, min(run * p.PAGE_SIZE, address + length - start)
            first += run

    # DMA by message.

    def serve(self, message: Message) -> bytes:
        """Carry out a DMA command of the server: the payload of the reply. OSError with the errno to answer with."""
        if message.command not in (Command.DMA_READ, Command.DMA_WRITE):
            raise OSError(errno.ENOSYS, f"command {message.command}")
        if len(message.payload) < p.DMA_ACCESS.size:
            raise OSError(errno.EINVAL, "a short payload")
        address, count = p.DMA_ACCESS.unpack_from(message.payload)
        if count > p.MAX_DATA_XFER_SIZE:
            raise OSError(errno.E2BIG, f"{count} bytes")
        if self.memory.locate(address, count) < 0:
            raise OSError(errno.EFAULT, f"{address:#x}+{count:#x} is no RAM")
        head = message.payload[: p.DMA_ACCESS.size]
        if message.command == Command.DMA_READ:
            return head + self.memory.read(address, count)
        if len(message.payload) != p.DMA_ACCESS.size + count:
            raise OSError(errno.EINVAL, f"{len(message.payload)} bytes of payload for {count}")
        self.memory.write(address, message.payload[p.DMA_ACCESS.size :])
        return head
