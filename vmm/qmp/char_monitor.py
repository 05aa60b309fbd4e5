"""A monitor on a character device (`-mon chardev=ID`): any backend of `vmm.chardev` may carry one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.qmp.monitor import OUTPUT_LIMIT

if TYPE_CHECKING:
    from vmm.chardev import CharBackend, CharEvent
    from vmm.qmp.hmp_session import HmpSession
    from vmm.qmp.monitor import Monitor
    from vmm.qmp.session import Session

_READ_SIZE = 4096
_WRITE_SIZE = 64 << 10


class CharMonitor:
    """The front end of a character device: each peer that comes gets a session of its own.

    Raises InUse if the device has a front end already.
    """

    def __init__(self, monitor: Monitor, backend: CharBackend) -> None:
        self._monitor = monitor
        self._backend = backend
        self._session: Session | HmpSession | None = None
        self._unsent = bytearray()
        self._pushing = False
        backend.connect(self)

    def close(self) -> None:
        """End the session, hand over what the backend takes, and leave it. May be repeated."""
        self._end_session()
        if self._backend.frontend is self:
            self._push()
            self._unsent.clear()
            self._backend.disconnect()
        self._monitor.cancel()

    # What a backend calls.

    def can_receive(self) -> int:
        """No input while commands wait: the peer's bytes stay in the kernel."""
        return _READ_SIZE if self._session is not None and self._session.wants_input else 0

    def receive(self, data: bytes) -> None:
        """Bytes of the peer."""
        if self._session is not None:
            self._session.feed(data)

    def char_event(self, event: CharEvent) -> None:
        """A peer came or went."""
        if event == "opened":
            self._end_session()
            self._unsent.clear()
            self._session = self._monitor.session(self._write, self._backend.accept_input)
            self._session.greet()
            self._backend.accept_input()
        elif event == "closed":
            self._end_session()
            self._unsent.clear()

    def writable(self) -> None:
        """The backend takes more."""
        if self._push() and self._session is not None:
            self._session.release()
            self._backend.accept_input()

    def _push(self) -> bool:
        """Offer the backend what is unsent; True if it took all. It may call `writable` meanwhile."""
        if self._pushing:
            return False
        self._pushing = True
        try:
            while self._unsent:
                chunk = bytes(self._unsent[:_WRITE_SIZE])
                taken = self._backend.write(chunk)
                del self._unsent[:taken]
                if taken < len(chunk):
                    break
        finally:
            self._pushing = False
        return not self._unsent

    def _write(self, data: bytes) -> None:
        waiting = bool(self._unsent)
        self._unsent += data
        if waiting or not self._push():
            if self._session is not None:
                self._session.hold()
            if len(self._unsent) > OUTPUT_LIMIT:
                import logging

                log = logging.getLogger(__name__)
                log.warning("monitor on chardev %s: its peer does not read; session ended", self._backend.id)
                self._end_session()
                self._unsent.clear()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
