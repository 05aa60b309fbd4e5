"""The loop that serves one PCI function on a UNIX socket.

    from devices import PciDevice, serve
    serve(Thermometer(), "/run/thermometer.sock")

One client at a time has the device; another one is shown the door. When the client goes, whatever way, its memory and
eventfds go with it and the device keeps its state for the next. The device's code runs on the thread of `run`.

DMA to memory that the client did not share goes by message, and a client may not be able to serve it while it waits
for a reply itself (QEMU is not), unless it has a second socket for that (`twin_socket`). So a write is acknowledged
before the device's own DMA waits for anything. Commands that come while the device waits for DMA are kept for later, in
order: posted writes always, the others while a register access is being carried out, unless the client seems to wait
for them before it goes on (`GRACE`). DMA that is not answered is given up after a while.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, cast

from devices.mistakes import Watcher
from devices.pci.bus import PciBus, pirq_of
from devices.vfio_host import HostBoard
from vmm.clock import HostClock
from vmm.errors import ConfigError
from vmm.trace import Trace
from vmm.vfio_user import protocol as p
from vmm.vfio_user.dma import DmaMemory
from vmm.vfio_user.endpoint import Endpoint
from vmm.vfio_user.events import VfioUserClient
from vmm.vfio_user.interrupts import consume
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.stream import close_all
from vmm.vfio_user.transport import AHEAD, Connection, PeerGone, listen

if TYPE_CHECKING:
    from devices.pci.device import PciDevice
    from vmm.block_graph import BlockGraph
    from vmm.memory import GuestMemory
    from vmm.vfio_user.stream import Message

DMA_PATIENCE = 2.0
"""Seconds that a DMA by message may take: less than the time after which QEMU gives up waiting for our reply."""
GRACE = 0.1
"""Seconds for which commands are held back in favour of the access that waits for DMA."""
BATCH = 64
"""Messages that are carried out before timers and eventfds get their turn."""
MAX_DEPTH = 8
"""How deep commands may be carried out inside waits for DMA; the DMA of one that is deeper fails."""
ACCESSES = frozenset({int(Command.REGION_READ), int(Command.REGION_WRITE), int(Command.REGION_WRITE_MULTI)})
"""Commands that change nothing about what there is to poll."""
MAX_HELD = 4096
"""Commands that may be held back; a client that sends more is not one to wait for."""


class Server:
    """Serves `device`, which is not realized yet, at `path`. InUse or ConfigError if that cannot be.

    `blocks`: drives that the device may name; they stay the caller's.
    """

    def __init__(self, device: PciDevice, path: str, blocks: BlockGraph | None = None) -> None:
        self.device = device
        self.blocks = blocks
        self.path = path
        self.clock = HostClock()
        self.trace = Trace(self.clock.now)
        self._messenger = _Messenger(self)
        self.memory = DmaMemory(self._messenger)
        self._connection: Connection | None = None
        self._twin: Connection | None = None
        """The second socket, where the client supports one: our commands and their replies."""
        self._held: deque[Message] = deque()
        """Commands that wait for the access at hand to end."""
        self._handling = 0
        self._frozen = False
        self._stopped = False
        self._poller = select.poll()
        self._polled: list[int] = []
        """What the poller looks at."""
        self._changed = True
        """There may be something else to look at."""
        self._client_fd = -1
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.endpoint = self._realize()
            self._listener = listen(path)
        except BaseException:
            device.unwind()
            self._close_pipe()
            raise

    def _close_pipe(self) -> None:
        os.close(self._wake)
        os.close(self._waker)

    def _realize(self) -> Endpoint:
        device = self.device
        if device.bus is not None:
            raise ConfigError(f"{device.driver}: the device is on a bus already; serve a new one")
        device.bus = bus = PciBus("vfio-user")
        # Devices reach memory by `read` and `write`, which is what both have.
        board = HostBoard(cast("GuestMemory", self.memory), self.clock, self.trace)
        board.blocks = self.blocks
        device.realize(board)
        endpoint = Endpoint(device, self.memory, self._set_running)
        endpoint.make_twin = self._make_twin
        if device.interrupt_pin:
            bus.pirqs[pirq_of(device.devfn, device.interrupt_pin)].connect(endpoint.interrupts.set_level)
        return endpoint

    def _set_running(self, running: bool) -> None:
        """A client migrates the device: its timers stand still, or go on."""
        self._frozen = not running
        if running:
            self.clock.resume()
        else:
            self.clock.stop()

    @property
    def connected(self) -> bool:
        """A client has the device."""
        return self._connection is not None

    # The loop.

    def run(self) -> None:
        """Serve until `stop`."""
        if threading.current_thread() is not threading.main_thread():
            self._run()
            return
        # A signal just before we sleep is only noticed if it ends the sleep.
        before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            self._run()
        finally:
            signal.set_wakeup_fd(before)

    def _run(self) -> None:
        while not self._stopped:
            self.turn(None)

    def stop(self) -> None:
        """Make `run` return. Safe from other threads and from signal handlers."""
        self._stopped = True
        self.wake()

    def wake(self) -> None:
        """End a `turn` that waits. Safe as `stop` is."""
        with contextlib.suppress(BlockingIOError):  # so many that it will wake
            os.write(self._waker, b"\0")

    def turn(self, timeout: float | None = 0) -> None:
        """Wait until there is something to do, for `timeout` seconds at most, and do it."""
        clock = self.clock
        due = None if self._frozen else clock.next_deadline()
        if due is not None:
            self._run_timers()
            due = clock.next_deadline()
            if due is not None:
                left = max(0, due - clock.now()) / 1e9
                timeout = left if timeout is None else min(timeout, left)
        ready = self._poll(timeout)
        if due is not None:
            self._run_timers()
        if self._connection is not None:
            # Also when only an eventfd is ready: what the client sent before it signalled comes first.
            self._serve(BATCH)
        if len(ready) > 1 or (ready and ready[0] != self._client_fd):
            self._attend(ready)

    def _attend(self, ready: list[int]) -> None:
        """Whatever is readable beside the client's connection."""
        for fd, action in list(self.endpoint.watched().items()):
            if fd in ready and consume(fd):
                action()
        if self._listener.fileno() in ready:
            self._accept()
        if self._wake in ready:
            os.read(self._wake, 4096)

    def _run_timers(self) -> None:
        if self._frozen:
            return
        try:
            self.clock.run_due()
        except Exception:
            self.endpoint.show_fault()

    def _poll(self, timeout: float | None) -> list[int]:
        connection = self._connection
        if connection is not None and (self._held or connection.queue or connection.closed):
            timeout = 0
        if self._changed:
            self._changed = False
            self._look_at(connection)
        return [fd for fd, _ in self._poller.poll(None if timeout is None else timeout * 1000)]

    def _look_at(self, connection: Connection | None) -> None:
        wanted = [self._wake, self._listener.fileno()]
        self._client_fd = -1
        if connection is not None and not connection.closed:  # or else it is cleared up next
            self._client_fd = connection.fileno()
            wanted += [self._client_fd, *self.endpoint.watched()]
        if wanted != self._polled:
            self._polled = wanted
            self._poller = select.poll()
            for fd in wanted:
                self._poller.register(fd, select.POLLIN)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it went away before we looked, or there is no descriptor left for it
            return
        if self._connection is None:
            self._connection = Connection(sock, AHEAD)
            self._changed = True
            self._trace_client(True)
        else:
            sock.close()

    def _trace_client(self, connected: bool) -> None:
        if self.trace.on:
            self.trace.emit(VfioUserClient(self.endpoint.name, connected))

    def _make_twin(self) -> int:
        ours, theirs = socket.socketpair()
        self._twin = Connection(ours)
        return theirs.detach()

    def _serve(self, limit: int) -> None:
        """Carry out what the client has sent."""
        connection = self._connection
        try:
            for _ in range(limit):
                if connection is None or connection.closed:
                    break
                message = self._held.popleft() if self._held else connection.receive()
                if message is None:
                    return
                self._dispatch(connection, message)
                if connection.drained and not (connection.queue or self._held or connection.closed):
                    return
        except PeerGone:
            pass
        else:
            if connection is not None and not connection.closed:
                return
        self._disconnect(connection)

    def _dispatch(self, connection: Connection, message: Message) -> None:
        if (
            message.flags & p.TYPE_MASK
            and message.is_reply
            and not message.fault
            and self._messenger.take_reply(message)
        ):
            return
        endpoint = self.endpoint
        self._handling += 1
        try:
            reply = endpoint.handle(message)
        finally:
            self._handling -= 1
        if message.command not in ACCESSES:
            self._changed = True
        if endpoint.reply_fds:
            fds, endpoint.reply_fds = endpoint.reply_fds, []
            try:
                if reply is not None:
                    connection.send(reply, fds)
            finally:
                close_all(fds)
        elif reply is not None:
            connection.send(reply)
        if endpoint.rejected:
            raise PeerGone("the client did not negotiate")

    def _disconnect(self, connection: Connection | None) -> None:
        self._changed = True
        if connection is not None:
            connection.close()
        if self._connection is connection:
            self._connection = None
            if self._twin is not None:
                self._twin.close()
                self._twin = None
            while self._held:
                self._held.popleft().close()
            self.endpoint.disconnect()
            if connection is not None:
                self._trace_client(False)

    def close(self) -> None:
        """Ask the client to let go, hang up, switch the device off, remove the socket."""
        self.endpoint.interrupts.request_release()
        self._disconnect(self._connection)
        self._listener.close()
        if os.path.exists(self.path):  # noqa: PTH110 (as given)
            os.unlink(self.path)  # noqa: PTH108
        self.device.unrealize()
        self._close_pipe()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Messenger:
    """DMA by message. A wait carries out commands meanwhile; that may lead to further waits inside."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._next_id = 0
        self._waiting: dict[int, Message | None] = {}
        self._depth = 0

    def take_reply(self, message: Message) -> bool:
        """Whether the message answers a command of ours, also one that was given up."""
        message.close()
        if message.msg_id in self._waiting:
            self._waiting[message.msg_id] = message
        return message.command in (Command.DMA_READ, Command.DMA_WRITE)

    def dma_read(self, address: int, count: int) -> bytes | None:
        """Memory of the client; None if it refused, did not answer in time, or is gone."""
        reply = self._exchange(Command.DMA_READ, p.DMA_ACCESS.pack(address, count))
        if reply is None or reply.failure or len(reply.payload) != p.DMA_ACCESS.size + count:
            return None
        return reply.payload[p.DMA_ACCESS.size :]

    def dma_write(self, address: int, data: bytes) -> None:
        """Store into memory of the client, in order with everything that follows."""
        self._exchange(Command.DMA_WRITE, p.DMA_ACCESS.pack(address, len(data)) + data)

    def _exchange(self, command: int, payload: bytes) -> Message | None:
        server = self._server
        connection = server._connection
        if connection is None or connection.closed or self._depth >= MAX_DEPTH:
            return None
        self._next_id = msg_id = self._next_id + 1 & 0xFFFF
        self._waiting[msg_id] = None
        self._depth += 1
        try:
            for early in server.endpoint.acknowledge():
                connection.send(early)
            (server._twin or connection).send(p.command_bytes(msg_id, command, payload))
            deadline = time.monotonic() + DMA_PATIENCE
            while self._waiting[msg_id] is None:
                if not self._step(connection, deadline):
                    return None
            return self._waiting[msg_id]
        except PeerGone:
            connection.close()  # the loop clears up
            return None
        finally:
            self._depth -= 1
            del self._waiting[msg_id]

    def _step(self, connection: Connection, deadline: float) -> bool:
        """Take one message; False if none came in time."""
        server = self._server
        held = server._held
        if time.monotonic() > deadline:
            return False
        if server._twin is not None:
            message = server._twin.wait(deadline)
            if message is not None and (not message.is_reply or message.fault or not self.take_reply(message)):
                message.close()
                raise PeerGone("what came on the second socket is no reply to a command of ours")
            return message is not None
        message = connection.wait(min(deadline, time.monotonic() + GRACE) if server._handling else deadline)
        if message is None:
            if not held:
                return time.monotonic() < deadline
            server._dispatch(connection, held.popleft())
        elif message.is_reply and not message.fault:
            server._dispatch(connection, message)
        else:
            held.append(message)
            if not server._handling and (message.wants_reply or len(held) > MAX_HELD):
                # Its sender waits for it, and may be who would serve our DMA; or they are too many to keep.
                while held and not connection.closed:
                    server._dispatch(connection, held.popleft())
            elif len(held) > MAX_HELD:
                raise PeerGone("it sends commands and does not serve DMA")
        return True


def serve(device: PciDevice, path: str, watch: bool = True) -> None:
    """Serve a device at a UNIX socket until the process is told to end (SIGINT raises KeyboardInterrupt as ever).

    `watch`: write the classic mistakes of its author to stderr when the device makes them (devices/mistakes.py).
    """
    if watch:
        tell_mistakes(device)
    with Server(device, path) as server:
        server.run()


def tell_mistakes(device: PciDevice) -> None:
    """Have the device watched, and each mistake that it makes written to stderr."""
    name = device.driver or type(device).__name__
    Watcher(device, lambda mistake: print(f"{name}: {mistake}", file=sys.stderr, flush=True))
