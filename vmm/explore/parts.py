"""What stands around the explored road: a device's interrupt pin, workers of queues, threads that make calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vmm import order
from vmm.order import State, Violation

if TYPE_CHECKING:
    from devices.vfio_irqs import VfioIntx
    from vmm.explore.actors import Guard
    from vmm.explore.chip import ApicPin
    from vmm.order import DelayedWork, Executor, WorkQueue

GSI = 5
"""The one GSI of a board."""


class Hardware(State):
    """A device's interrupt pin: high until its driver serves it. `depth`: how often it is masked (disable depth).

    `gone`: it was unplugged; whoever touches it then is told so.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("intx", "name")
    VISIBLE: ClassVar[tuple[str, ...]] = ("depth", "level")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("gone",)
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    intx: VfioIntx

    def __init__(self, name: str) -> None:
        self.name = name
        self.level = False
        self.depth = 0
        self.gone = False

    def _touch(self, step: str) -> None:
        if self.gone:
            raise Violation("use-after-free", self, "unplugged", step)

    def pending(self) -> bool:
        """It asserts INTx, masked or not."""
        self._touch("pending")
        return self.level

    def mask(self) -> None:
        """disable_irq"""
        self._touch("disable_irq")
        self.depth += 1

    def unmask(self) -> None:
        """enable_irq"""
        self._touch("enable_irq")
        self.depth -= 1
        if not self.depth and self.level:
            self.intx.handler()

    def request(self, masked: bool) -> None:
        """request_irq; without IRQF_NO_AUTOEN the handler may be called from here."""
        self._touch("request_irq")
        self.depth = int(masked)
        if not masked and self.level:
            self.intx.handler()

    def free(self) -> None:
        """free_irq"""
        self._touch("free_irq")
        self.depth = 1

    def assert_intx(self) -> None:
        """It wants service."""
        if self.gone:
            return
        self.level = True
        if not self.depth:
            self.intx.handler()

    def serve(self) -> None:
        """Its driver's handler ran, or it was reset."""
        self.level = False

    def unplug(self) -> None:
        """It is pulled out, and its memory freed."""
        self.level = False
        self.gone = True

    def __repr__(self) -> str:
        return f"<device {self.name}>"


class Worker(State):
    """A worker of a queue: takes what is queued, one after the other."""

    WIRING: ClassVar[tuple[str, ...]] = ("executor", "queue")
    __slots__ = WIRING

    def __init__(self, executor: Executor, queue: WorkQueue) -> None:
        self.executor = executor
        self.queue = queue

    def run(self) -> None:
        """Take one work and run it."""
        self.executor.run_next(self.queue)


class Guest(State):
    """A CPU that goes on for ever: takes an interrupt, serves, ends it."""

    WIRING: ClassVar[tuple[str, ...]] = ("devices", "pin")
    __slots__ = WIRING

    def __init__(self, pin: ApicPin, devices: tuple[Hardware, ...]) -> None:
        self.pin = pin
        self.devices = devices

    def interrupt(self) -> None:
        """One of them."""
        self.pin.take()
        i = 0
        while i < len(self.devices):
            self.devices[i].serve()
            i += 1
        point("guest.served", self)
        self.pin.eoi()


class Timer(State):
    """The timer of a delayed work: once armed it may expire at any time."""

    WIRING: ClassVar[tuple[str, ...]] = ("when", "work")
    __slots__ = WIRING

    def __init__(self, work: DelayedWork, when: Guard | None = None) -> None:
        self.work = work
        self.when = when

    def is_armed(self) -> bool:
        """It would expire some time."""
        return self.work.armed and (self.when is None or self.when())

    def expire(self) -> None:
        """It does."""
        self.work.expire()


class Thread(State):
    """Somebody who acts. `busy`: in the middle of a call; `results`: what its calls came to, in their order, or sorted
    if they are `unordered`, so that it does not tell states apart which was first; the last one only of one who makes
    its calls `for_ever`.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("for_ever", "name", "unordered")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("busy", "results")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, name: str, unordered: bool = False, for_ever: bool = False) -> None:
        self.name = name
        self.unordered = unordered
        self.for_ever = for_ever
        self.busy = False
        self.results: tuple[str, ...] = ()

    def is_idle(self) -> bool:
        """Its last call has returned."""
        return not self.busy

    def note(self, result: str) -> None:
        """A call came to this."""
        results = (result,) if self.for_ever else (*self.results, result)
        self.results = tuple(sorted(results)) if self.unordered else results


def point(name: str, subject: object) -> None:
    """A place of a scenario's own function where others may act first."""
    if order.hook is not None:
        order.hook(name, subject)
