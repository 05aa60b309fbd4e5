"""Character devices over UNIX and TCP sockets, server or client, one peer at a time."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

from vmm.chardev import FdBackend
from vmm.errors import ConfigError
from vmm.unix_socket import UnixListener

if TYPE_CHECKING:
    import asyncio


class SocketAddress(NamedTuple):
    """A UNIX socket's `path`, or a TCP `host` and `port`."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else f"tcp:{self.host}:{self.port}"

    def connect(self) -> socket.socket:
        """A connected socket. OSError."""
        if self.path is None:
            return socket.create_connection((self.host or "localhost", self.port))
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.connect("\0" + self.path[1:] if self.path.startswith("@") else self.path)
        except OSError:
            peer.close()
            raise
        return peer


BACKLOG = 16
"""Peers that may wait for the one before them to leave."""


class SocketBackend(FdBackend):
    """A stream socket. While nobody is connected output is lost, as on QEMU's.

    A server with `wait` holds `start` until somebody connects. A client with `reconnect` (seconds) tries again after
    it lost its peer.
    """

    kind = "socket"

    def __init__(
        self,
        id: str,
        address: SocketAddress,
        server: bool = False,
        wait: bool = True,
        nodelay: bool = False,
        reconnect: float = 0,
    ) -> None:
        super().__init__(id, None, None)
        self.address = address
        self.server = server
        self.nodelay = nodelay
        self.reconnect = reconnect
        self.open = False
        self._wait = wait
        self._peer: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._unix: UnixListener | None = None
        self._accepting = False
        self._retry: asyncio.TimerHandle | None = None
        try:
            if server:
                if address.path is not None:
                    self._unix = UnixListener(address.path, BACKLOG)
                    self._listener = self._unix.socket
                else:
                    self._listener = socket.create_server((address.host, address.port), backlog=BACKLOG)
                    host, port = self._listener.getsockname()[:2]
                    self.address = SocketAddress(host=host, port=port)
                self._listener.setblocking(False)
            elif not reconnect:
                self._adopt(address.connect())
        except (OSError, ValueError) as error:
            verb = "listen on" if server else "connect to"
            raise ConfigError(
                f"chardev {id}: cannot {verb} {address}: {getattr(error, 'strerror', None) or error}"
            ) from error

    @property
    def filename(self) -> str:
        state = "" if self.open else "disconnected:"
        return f"{state}{self.address}{',server=on' if self.server else ''}"

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.server and self._wait and self._peer is None and self._listener is not None:
            print(f"info: waiting for connection on: {self.filename}", file=sys.stderr, flush=True)
            import selectors

            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.select()
            self._accept()
        self._accepting = False
        super().start(loop)
        self._listen_again()
        if not self.server and self._peer is None and self.reconnect:
            self._try_connect()

    def _listen_again(self) -> None:
        wanted = self._listener is not None and self._peer is None
        if self._loop is None or self._listener is None or wanted == self._accepting:
            return
        if wanted:
            self._loop.add_reader(self._listener, self._accept)
        else:
            self._loop.remove_reader(self._listener)
        self._accepting = wanted

    def _accept(self) -> None:
        if self._listener is None or self._peer is not None:
            return
        try:
            peer, _ = self._listener.accept()
        except OSError:  # it went away before we looked
            return
        self._adopt(peer)
        self._listen_again()

    def _try_connect(self) -> None:
        self._retry = None
        try:
            self._adopt(self.address.connect())
        except OSError:
            if self._loop is not None:
                self._retry = self._loop.call_later(self.reconnect, self._try_connect)

    def _adopt(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if self.nodelay and self.address.path is None:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._in_fd = self._out_fd = peer.fileno()
        self._event("opened")
        self.accept_input()

    def _end_of_input(self) -> None:
        self._drop_peer()
        self._listen_again()
        if not self.server and self.reconnect and self._loop is not None:
            self._retry = self._loop.call_later(self.reconnect, self._try_connect)

    def _drop_peer(self) -> None:
        peer, self._peer = self._peer, None
        if peer is None:
            return
        self._stop_reading()
        if self._waiting and self._loop is not None:
            self._loop.remove_writer(peer)
            self._waiting = False
        self._in_fd = self._out_fd = None
        self.flush()  # nobody will take it: it goes nowhere, and a front end that waited goes on
        peer.close()
        self._event("closed")

    def hang_up(self) -> None:
        if self._peer is not None:
            self._end_of_input()

    def close(self) -> None:
        self.flush()
        self._drop_peer()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._listener is not None:
            if self._accepting and self._loop is not None:
                self._loop.remove_reader(self._listener)
            self._accepting = False
            self._listener.close()
            self._listener = None
            if self._unix is not None:
                self._unix.close()
        super().close()
