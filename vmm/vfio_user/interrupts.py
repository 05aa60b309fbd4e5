"""Interrupts over eventfds, as the server of a device keeps them: INTx, a level made of edges, and messages.

The trigger eventfd of INTx is signalled once, and then the interrupt is masked until the client unmasks it: by a
message, or through the unmask eventfd, which KVM signals at the guest's EOI. If the level is still high then, the
trigger is signalled again, so no interrupt is lost, and none comes for a level that went low meanwhile.

A vector of MSI or MSI-X is an event: its eventfd is signalled each time. One that comes while the client has the vector
masked is kept, once, until it unmasks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vmm.vfio_user.events import VfioUserIntxTrigger, VfioUserIntxUnmask
from vmm.vfio_user.protocol import (
    IRQ_ERR,
    IRQ_INFO_AUTOMASKED,
    IRQ_INFO_EVENTFD,
    IRQ_INFO_MASKABLE,
    IRQ_INTX,
    IRQ_REQ,
    IRQ_SET_ACTION_MASK,
    IRQ_SET_ACTION_TRIGGER,
    IRQ_SET_ACTION_UNMASK,
    IRQ_SET_ACTIONS,
    IRQ_SET_DATA_BOOL,
    IRQ_SET_DATA_EVENTFD,
    IRQ_SET_DATA_MASK,
    IRQ_SET_DATA_NONE,
    NUM_IRQS,
)
from vmm.vfio_user.transport import is_eventfd

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.trace import Trace

_DATA = (IRQ_SET_DATA_NONE, IRQ_SET_DATA_BOOL, IRQ_SET_DATA_EVENTFD)
_ACTIONS = (IRQ_SET_ACTION_MASK, IRQ_SET_ACTION_UNMASK, IRQ_SET_ACTION_TRIGGER)
_INTX_TRIGGER = (IRQ_INTX, IRQ_SET_ACTION_TRIGGER, 0)


@dataclass(frozen=True, slots=True)
class IrqSetRequest:
    """DEVICE_SET_IRQS: `flags` are one kind of data and one action."""

    flags: int
    index: int
    start: int
    count: int
    data: bytes


def _invalid(what: str) -> OSError:
    return OSError(errno.EINVAL, what)


class Interrupts:
    """All interrupts of a function. `has_intx`: it has a pin; `msi`, `msix`: how many vectors it has of each."""

    def __init__(self, has_intx: bool, msi: int = 0, msix: int = 0) -> None:
        self.trace: Trace | None = None
        self.name = ""
        """What traces call the device."""
        self.counts = [int(has_intx), msi, msix, 1, 1]
        self.level = False
        self.masked = False
        self._fds: dict[tuple[int, int, int], int] = {}
        """Eventfds by index, action and vector; ours."""
        self._vectors_masked: set[tuple[int, int]] = set()
        self._vectors_pending: set[tuple[int, int]] = set()
        """What came while masked, as (index, vector)."""
        self.watched: dict[int, Callable[[], None]] = {}
        """Eventfds that the client signals, and what to do when they are readable."""

    def info(self, index: int) -> tuple[int, int]:
        """(flags, count) of DEVICE_GET_IRQ_INFO. OSError EINVAL for an index there is not."""
        if not 0 <= index < NUM_IRQS:
            raise _invalid(f"irq index {index}")
        masks = IRQ_INFO_MASKABLE | IRQ_INFO_AUTOMASKED if index == IRQ_INTX else 0
        return IRQ_INFO_EVENTFD | masks, self.counts[index]

    # The device's side.

    def set_level(self, level: bool) -> None:
        """The function's interrupt line, INTx disable already looked at."""
        self.level = level
        self.evaluate()

    def evaluate(self) -> None:
        """Signal the trigger if the level is to be told."""
        if self.level and not self.masked:
            fd = self._fds.get(_INTX_TRIGGER)
            if fd is not None:
                self.masked = True
                if self.trace is not None and self.trace.on:
                    self.trace.emit(VfioUserIntxTrigger(self.name))
                signal(fd)

    def unmask(self) -> None:
        """The client has seen the last interrupt to its end."""
        self.masked = False
        if self.trace is not None and self.trace.on:
            self.trace.emit(VfioUserIntxUnmask(self.name, self.level))
        self.evaluate()

    def mask(self) -> None:
        """Keep quiet until unmasked."""
        self.masked = True

    def send(self, index: int, vector: int) -> None:
        """The device's message: a vector of MSI or MSI-X."""
        if (index, vector) in self._vectors_masked:
            self._vectors_pending.add((index, vector))
        else:
            self._signal(index, vector)

    def reset(self) -> None:
        """Nothing masked, no message pending; eventfds stay."""
        self._vectors_masked.clear()
        self._vectors_pending.clear()
        self.masked = False
        self.evaluate()

    def request_release(self) -> None:
        """Ask the client to let go of the device."""
        self._signal(IRQ_REQ, 0)

    def _signal(self, index: int, vector: int) -> None:
        fd = self._fds.get((index, IRQ_SET_ACTION_TRIGGER, vector))
        if fd is not None:
            signal(fd)

    # The client's side.

    def set_irqs(self, request: IrqSetRequest, fds: list[int]) -> None:
        """DEVICE_SET_IRQS. Takes what it keeps out of `fds`. OSError EINVAL for what makes no sense."""
        self._check(request, fds)
        kind, action = request.flags & IRQ_SET_DATA_MASK, request.flags & IRQ_SET_ACTIONS
        vectors = range(request.start, request.start + request.count)
        if not request.count:
            self._disable(request.index)
        elif kind == IRQ_SET_DATA_EVENTFD:
            for vector in vectors:
                self._attach(request.index, action, vector, fds.pop(0) if fds else None)
        else:
            for vector in vectors:
                if kind == IRQ_SET_DATA_NONE or request.data[vector - request.start]:
                    self._act(request.index, action, vector)

    def _act(self, index: int, action: int, vector: int) -> None:
        if action == IRQ_SET_ACTION_TRIGGER:
            self._signal(index, vector)  # loopback
        elif index == IRQ_INTX:
            if action == IRQ_SET_ACTION_UNMASK:
                self.unmask()
            else:
                self.mask()
        elif action == IRQ_SET_ACTION_MASK:
            self._vectors_masked.add((index, vector))
        else:
            self._vectors_masked.discard((index, vector))
            if (index, vector) in self._vectors_pending:
                self._vectors_pending.discard((index, vector))
                self._signal(index, vector)

    def _check(self, request: IrqSetRequest, fds: list[int]) -> None:
        flags, index, start, count, data = request.flags, request.index, request.start, request.count, request.data
        kind, action = flags & IRQ_SET_DATA_MASK, flags & IRQ_SET_ACTIONS
        if flags & ~(IRQ_SET_DATA_MASK | IRQ_SET_ACTIONS) or kind not in _DATA or action not in _ACTIONS:
            raise _invalid(f"irq flags {flags:#x}: one kind of data and one action")
        if index >= NUM_IRQS:
            raise _invalid(f"irq index {index}")
        if not count:
            if start or fds or flags != IRQ_SET_DATA_NONE | IRQ_SET_ACTION_TRIGGER:
                raise _invalid("a count of 0 disables an index: no data, action TRIGGER, start 0")
            return
        if start + count > self.counts[index]:
            raise _invalid(f"irq {index} has {self.counts[index]}, not {start}+{count}")
        if action != IRQ_SET_ACTION_TRIGGER and index in (IRQ_ERR, IRQ_REQ):
            raise _invalid(f"irq {index} cannot be masked")
        if kind == IRQ_SET_DATA_EVENTFD:
            if len(fds) not in (0, count) or not all(map(is_eventfd, fds)):
                raise _invalid(f"{len(fds)} descriptors, not {count} eventfds")
        elif fds:
            raise _invalid("descriptors with a request that takes none")
        if kind == IRQ_SET_DATA_BOOL and len(data) != count:
            raise _invalid(f"{len(data)} bytes of data for {count}")

    def _attach(self, index: int, action: int, vector: int, fd: int | None) -> None:
        self._detach((index, action, vector))
        if fd is not None:
            self._fds[index, action, vector] = fd
            if action != IRQ_SET_ACTION_TRIGGER:
                self.watched[fd] = partial(self._act, index, action, vector)
        if index == IRQ_INTX and action == IRQ_SET_ACTION_TRIGGER:
            self.masked = False
            self.evaluate()

    def _detach(self, key: tuple[int, int, int]) -> None:
        fd = self._fds.pop(key, None)
        if fd is not None:
            self.watched.pop(fd, None)
            os.close(fd)

    def _disable(self, index: int) -> None:
        for key in [key for key in self._fds if key[0] == index]:
            self._detach(key)
        for known in (self._vectors_masked, self._vectors_pending):
            known -= {vector for vector in known if vector[0] == index}
        if index == IRQ_INTX:
            self.masked = False

    def close(self) -> None:
        """The client is gone: its eventfds go, nothing is masked, the level stays."""
        for index in range(NUM_IRQS):
            self._disable(index)


def signal(fd: int) -> None:
    """Signal an eventfd of a peer, without waiting for room: where there is none it is seen anyway.

    It is not made O_NONBLOCK for that. Its owner has the same open file, and may want to sleep in its reads.
    """
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    with contextlib.suppress(OSError):  # whatever it is by now, that is the peer's own doing
        if poller.poll(0):
            os.eventfd_write(fd, 1)


def consume(fd: int) -> bool:
    """Read an eventfd that a peer signals, without waiting. False if there was nothing."""
    try:
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
    except OSError:
        return False
    return True
