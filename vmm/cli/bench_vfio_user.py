"""A served device beside libvfio-user's C sample: what a register access costs over the socket, by the same client.

    VINTX_BENCH_LIBVFIO_USER=build/samples/gpio-pci-idio-16 vintx bench -k vfio-user

Server and client are processes of their own. The client does nothing but send bytes that were made before and read what
comes back. A read is the median of many round trips. Posted writes go out a bunch at a time, each in a message of its
own, with a read behind the last, so that all of them have been carried out when the time is taken. An interrupt is:
raise it by a posted write, wait for the trigger eventfd, acknowledge by a posted write, unmask.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from vmm.cli.process import GuestLost
from vmm.errors import UsageError
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command

SAMPLE = "VINTX_BENCH_LIBVFIO_USER"
SUFFIX = "-c"
OPERATIONS = (
    ("vfio-user-read", "round trip of a register read over vfio-user", "us"),
    ("vfio-user-posted", "posted register write over vfio-user", "us"),
)
ROWS: tuple[tuple[str, str, str, float | None], ...] = (
    *((name, f"{what}; vintx serve", unit, None) for name, what, unit in OPERATIONS),
    *((name + SUFFIX, f"{what}; libvfio-user's gpio", unit, None) for name, what, unit in OPERATIONS),
    ("vfio-user-intx", "level interrupts over vfio-user; vintx serve", "/s", None),
)
READS, POSTED, BUNCH, INTERRUPTS = 4000, 20_000, 100, 3000
START_S = 20
_PATIENCE_S = 10


class Target(NamedTuple):
    """A register to access: region, offset, size."""

    region: int
    offset: int
    size: int


EDU = Target(0, 4, 4)
EDU_RAISE, EDU_ACK = 0x60, 0x64
GPIO = Target(2, 0, 1)


def measure(reads: int = READS, posted: int = POSTED, interrupts: int = INTERRUPTS) -> dict[str, float]:
    """Figures by name. Those of the C sample are missing where nobody says where it is."""
    with tempfile.TemporaryDirectory(prefix="vintx-bench-") as folder:
        path = f"{folder}/edu.sock"
        with _server(
            [sys.executable, "-m", "vmm.cli.vintx", "serve", "--device", "edu", "--socket", path], path
        ) as client:
            figures = _accesses(client, EDU, reads, posted)
            rate = client.interrupts(interrupts)
        sample = os.environ.get(SAMPLE)
        if sample:
            path = f"{folder}/gpio.sock"
            with _server([sample, path], path) as client:
                figures |= {name + SUFFIX: value for name, value in _accesses(client, GPIO, reads, posted).items()}
    return figures | {"vfio-user-intx": rate}


def _accesses(client: _Client, target: Target, reads: int, posted: int) -> dict[str, float]:
    return {"vfio-user-read": client.read_us(target, reads), "vfio-user-posted": client.posted_us(target, posted)}


class _server:  # noqa: N801 (used like a function)
    """A server process and a client of it."""

    def __init__(self, argv: list[str], path: str) -> None:
        self._path = path
        try:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except OSError as error:
            raise UsageError(f"{argv[0]}: {error.strerror}") from error

    def __enter__(self) -> _Client:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._client = _Client(self._path)
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise GuestLost(f"{self._path}: no vfio-user server there", "") from None
                time.sleep(0.01)
            else:
                return self._client

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_client"):
            self._client.socket.close()
        self._process.kill()
        self._process.wait()


class _Client:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(_PATIENCE_S)
        self.socket.connect(path)
        data = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}\0'
        self._call(Command.VERSION, p.Version.build({"major": 0, "minor": 1, "data": data}))

    def _call(self, command: int, payload: bytes, fds: tuple[int, ...] = ()) -> bytes:
        message = p.command_bytes(1, command, payload)
        if fds:
            socket.send_fds(self.socket, [message], fds)
        else:
            self.socket.sendall(message)
        reply = self.socket.recv(1 << 16)
        if int.from_bytes(reply[8:12], "little") & p.FLAG_ERROR:
            raise GuestLost(f"the server refuses command {command}: errno {int.from_bytes(reply[12:16], 'little')}", "")
        return reply

    def read_us(self, target: Target, count: int) -> float:
        """Microseconds of a round trip, median."""
        send, recv = self.socket.send, self.socket.recv
        self._call(Command.REGION_READ, p.REGION_ACCESS.pack(target.offset, target.region, target.size))
        message = p.command_bytes(
            2, Command.REGION_READ, p.REGION_ACCESS.pack(target.offset, target.region, target.size)
        )
        times = []
        for _ in range(count):
            began = time.perf_counter_ns()
            send(message)
            recv(4096)
            times.append(time.perf_counter_ns() - began)
        return statistics.median(times) / 1e3

    def posted_us(self, target: Target, count: int) -> float:
        """Microseconds of a posted write, by the median of the bunches."""
        send, recv = self.socket.send, self.socket.recv
        write = _posted(target.region, target.offset, 0, target.size)
        fence = p.command_bytes(3, Command.REGION_READ, p.REGION_ACCESS.pack(target.offset, target.region, target.size))
        times = []
        for _ in range(count // BUNCH):
            began = time.perf_counter_ns()
            for _ in range(BUNCH):
                send(write)
            send(fence)
            recv(4096)
            times.append(time.perf_counter_ns() - began)
        return statistics.median(times) / 1e3 / BUNCH

    def interrupts(self, count: int) -> float:
        """Level interrupts of edu a second, by the median of their times."""
        trigger = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            irq_set = {"argsz": p.IRQ_SET_SIZE, "index": p.IRQ_INTX, "start": 0, "count": 1, "data": b""}
            attach = p.IrqSet.build({**irq_set, "flags": p.IRQ_SET_DATA_EVENTFD | p.IRQ_SET_ACTION_TRIGGER})
            self._call(Command.DEVICE_SET_IRQS, attach, (trigger,))
            flags = p.IRQ_SET_DATA_NONE | p.IRQ_SET_ACTION_UNMASK
            unmask = p.command_bytes(4, Command.DEVICE_SET_IRQS, p.IrqSet.build({**irq_set, "flags": flags}))
            up, down = _posted(0, EDU_RAISE, 1, 4), _posted(0, EDU_ACK, 1, 4)
            poller = select.poll()
            poller.register(trigger, select.POLLIN)
            send, recv = self.socket.send, self.socket.recv
            times = []
            for _ in range(count):
                began = time.perf_counter_ns()
                send(up)
                if not poller.poll(1000 * _PATIENCE_S):
                    raise GuestLost("vfio-user: an interrupt did not come", "")
                os.eventfd_read(trigger)
                send(down)
                send(unmask)
                recv(4096)
                times.append(time.perf_counter_ns() - began)
            return 1e9 / statistics.median(times)
        finally:
            os.close(trigger)


def _posted(region: int, offset: int, value: int, size: int) -> bytes:
    payload = p.REGION_ACCESS.pack(offset, region, size) + value.to_bytes(size, "little")
    return p.HEADER.pack(5, Command.REGION_WRITE, p.HEADER_SIZE + len(payload), p.FLAG_NO_REPLY, 0) + payload
