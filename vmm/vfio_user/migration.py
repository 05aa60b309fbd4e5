"""Migration of a served device: the states that a client takes it through, and its state as a stream of bytes.

    RUNNING <-> PRE_COPY -> STOP_COPY <-> STOP <-> RESUMING        RUNNING <-> STOP

While the device is stopped its timers stand still. What is read in STOP_COPY is what the device was when that state was
entered; before that (PRE_COPY) there is nothing to read, because nothing here is so large that it would pay to begin
early. What was written in RESUMING takes effect when that state is left.

The stream is JSON: the driver's name, a version, and the plain values of the device's `save_state`.
Ref: QEMU docs/interop/vfio-user.rst, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE; include/uapi/linux/vfio.h
"""

from __future__ import annotations

import errno
import json
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from vmm.vfio_user.protocol import MIGRATION_PRE_COPY, MIGRATION_STOP_COPY, MigrationState

if TYPE_CHECKING:
    from collections.abc import Callable

ERROR, STOP, RUNNING = MigrationState.ERROR, MigrationState.STOP, MigrationState.RUNNING
STOP_COPY, RESUMING, PRE_COPY = MigrationState.STOP_COPY, MigrationState.RESUMING, MigrationState.PRE_COPY

ARCS = {
    STOP: (RUNNING, STOP_COPY, RESUMING),
    RUNNING: (STOP, PRE_COPY),
    STOP_COPY: (STOP,),
    RESUMING: (STOP,),
    PRE_COPY: (RUNNING, STOP_COPY),
}
"""What follows directly on what. From ERROR only a reset leads on."""
SAVING = frozenset((PRE_COPY, STOP_COPY))
MOVING = frozenset((RUNNING, PRE_COPY))
"""The device works."""
FLAGS = MIGRATION_STOP_COPY | MIGRATION_PRE_COPY
FORMAT_VERSION = 1
MAX_STATE = 64 << 20
"""Bytes of state that a client may send."""


def way(before: MigrationState, after: MigrationState) -> list[MigrationState] | None:
    """The states to go through, `after` being the last; None if it cannot be reached.

    The shortest way, on which a saving state is first or last only.
    """
    if before is STOP_COPY and after is PRE_COPY:
        return None
    came_from: dict[MigrationState, MigrationState] = {}
    queue = deque([before])
    while queue:
        at = queue.popleft()
        if at is after:
            steps = []
            while at is not before:
                steps.append(at)
                at = came_from[at]
            return steps[::-1]
        if at is not before and at in SAVING:
            continue
        for following in ARCS.get(at, ()):
            if following is not before and following not in came_from:
                came_from[following] = at
                queue.append(following)
    return None


class Migratable(Protocol):
    """A device that can be taken elsewhere."""

    @property
    def driver(self) -> str:
        """What kind of device it is."""

    def save_state(self) -> dict[str, Any]:
        """Its state, in values that JSON knows."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Be as `save_state` said. KeyError, TypeError, ValueError if that is no state of this device."""

    def reset(self) -> None:
        """Power-on state."""


class Migration:
    """The state machine of one device. OSError with the errno of the reply for what cannot be."""

    def __init__(self, device: Migratable, running: Callable[[bool], None]) -> None:
        """`running(False)` makes the device stand still."""
        self.device = device
        self.state = RUNNING
        self._running = running
        self._stream = bytearray()
        """In STOP_COPY what is still to be read, in RESUMING what was written."""

    @property
    def settled(self) -> bool:
        """Accesses may change the device: its state is neither being read nor being replaced."""
        return self.state not in (STOP_COPY, RESUMING, ERROR)

    def set_state(self, number: int) -> None:
        """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET: take every step there."""
        try:
            steps = way(self.state, MigrationState(number))
        except ValueError:
            steps = None
        if steps is None:
            raise OSError(errno.EINVAL, f"there is no way from {self.state.name} to {number}")
        for step in steps:
            self._enter(step)

    def _enter(self, state: MigrationState) -> None:
        before = self.state
        if state is STOP_COPY:
            self._stream = bytearray(self.save())
        elif before is RESUMING:
            self._load()
        if state is not STOP_COPY:
            self._stream = bytearray()
        if (before in MOVING) != (state in MOVING):
            self._running(state in MOVING)
        self.state = state

    def _load(self) -> None:
        if not self._stream:
            return  # nothing was brought, nothing changes
        try:
            self.load(bytes(self._stream))
        except Exception as error:
            # Half of it may have been taken over.
            self._stream = bytearray()
            self.device.reset()
            self.state = ERROR
            raise OSError(errno.EINVAL, f"{self.device.driver}: what came is no state of it: {error}") from error

    def save(self) -> bytes:
        """The device's state as bytes."""
        content = {"device": self.device.driver, "version": FORMAT_VERSION, "state": self.device.save_state()}
        return json.dumps(content, separators=(",", ":")).encode()

    def load(self, data: bytes) -> None:
        """Take over what `save` gave. ValueError, KeyError or TypeError if it is damaged or another device's."""
        content = json.loads(data)
        found = (content["device"], content["version"])
        if found != (self.device.driver, FORMAT_VERSION):
            raise ValueError(f"it is of {found[0]!r}, version {found[1]!r}")
        self.device.load_state(content["state"])

    def read(self, size: int) -> bytes:
        """MIG_DATA_READ: at most `size` bytes; fewer: that was all."""
        if self.state not in SAVING:
            raise OSError(errno.EINVAL, f"there is nothing to read in {self.state.name}")
        data = bytes(self._stream[:size])
        del self._stream[:size]
        return data

    def write(self, data: bytes) -> None:
        """MIG_DATA_WRITE."""
        if self.state is not RESUMING:
            raise OSError(errno.EINVAL, f"nothing is taken in {self.state.name}")
        if len(self._stream) + len(data) > MAX_STATE:
            raise OSError(errno.ENOSPC, f"a state of more than {MAX_STATE} bytes")
        self._stream += data

    def abandon(self) -> None:
        """The device was reset, or its client is gone: it works on from where it is."""
        self._stream = bytearray()
        if self.state not in MOVING:
            self._running(True)
        self.state = RUNNING
