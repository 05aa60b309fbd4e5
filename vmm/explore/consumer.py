"""A monitor's side of a device's INTx: how it is taken down for unplug and reset, step by step.

The ten steps are those of `devices/vfio_pci.py`, whose `Holdings` give back in this order; here each is a method, so
that a scene can take them in another order and a bug of the zoo can change one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from vmm.explore.parts import GSI
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
from vmm.order import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.board import Board
    from vmm.explore.parts import Hardware

NONE, INTX, MSIX = "NONE", "INTx", "MSI-X"
STEPS: Final = (
    "stop listening to routes",
    "mask",
    "deassign the irqfd",
    "unmask eventfd off",
    "disable INTx",
    "lower the line",
    "drop the timer",
    "close the trigger",
    "mode NONE",
    "free",
)
"""The ten, in the order that is always right."""
BEFORE: Final = {"close the trigger": ("deassign the irqfd",), "free": STEPS[:-1]}
"""What must come before what: a descriptor that is closed names nothing, or another eventfd, and all of it touches the
device. Between the others the kernel does not mind."""


class IntxUser(State):
    """Who has a device's INTx. `mode`: NONE, INTx or MSI-X. `done`: the steps of tearing down that were taken,
    a bit each."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "hardware")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("done", "listening", "mode", "timer", "trigger", "unmask")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, board: Board, name: str) -> None:
        """Takes `name`, whose INTx is on with an irqfd."""
        self.board = board
        self.hardware: Hardware = board.vfio(name)
        self.trigger = board.fd(f"{name}.trigger")
        self.unmask = board.fd(f"{name}.unmask")
        self.mode = INTX
        self.listening = True
        self.timer = True
        self.done = 0
        board.state(self)

    # The steps.

    def step(self, name: str) -> Callable[[], None]:
        """One of STEPS as an operation."""
        functions: dict[str, Callable[[], None]] = dict(zip(STEPS, self._functions(), strict=True))
        function, bit = functions[name], 1 << STEPS.index(name)

        def take() -> None:
            function()
            self.done |= bit

        return take

    def skip(self, *names: str) -> None:
        """Steps that the scene has taken before anybody acts."""
        for name in names:
            self.step(name)()

    def may(self, name: str) -> Callable[[], bool]:
        """Whether a step may be taken now."""
        first = sum(1 << STEPS.index(other) for other in BEFORE.get(name, ()))
        return lambda: self.done & first == first

    def _functions(self) -> tuple[Callable[[], None], ...]:
        return (
            self.stop_listening,
            self.mask,
            self.deassign,
            self.unmask_off,
            self.disable,
            self.lower,
            self.drop_timer,
            self.close_trigger,
            self.leave_mode,
            self.hardware.unplug,
        )

    def stop_listening(self) -> None:
        """Nobody tells us of routes any more."""
        self.listening = False

    def mask(self) -> None:
        """VFIO_IRQ_SET_ACTION_MASK; EINVAL, which nobody minds, if INTx is off."""
        intx = self.hardware.intx
        with intx.igate:
            if intx.ctx is not None:
                intx.mask()

    def deassign(self) -> None:
        """KVM_IRQFD_FLAG_DEASSIGN: synchronous."""
        self.board.vm.irqfd(self.trigger, GSI, KVM_IRQFD_FLAG_DEASSIGN)

    def unmask_off(self) -> None:
        """The unmask eventfd is taken from VFIO and closed."""
        intx = self.hardware.intx
        with intx.igate:
            if intx.ctx is not None:
                intx.disable_virqfd(intx.ctx)
        self.board.files.close(self.unmask)
        self.unmask = -1

    def disable(self) -> None:
        """VFIO_IRQ_SET_DATA_NONE, ACTION_TRIGGER, count 0: the host's interrupt is freed."""
        intx = self.hardware.intx
        with intx.igate:
            intx.disable()

    def lower(self) -> None:
        """Our own line, in case the slow road had raised it."""
        self.board.vm.irq_line(GSI, 0)

    def drop_timer(self) -> None:
        """The timer that maps BARs directly again."""
        self.timer = False

    def close_trigger(self) -> None:
        """The trigger's handler is gone, and its descriptor."""
        self.board.files.close(self.trigger)
        self.trigger = -1

    def leave_mode(self) -> None:
        """There is no interrupt mode."""
        self.mode = NONE

    # All of it.

    def tear_down(self, last: str = "free") -> None:
        """The ten in order, as far as `last`."""
        functions = self._functions()
        i = 0
        while i <= STEPS.index(last):
            functions[i]()
            i += 1

    def assign(self) -> None:
        """KVM_IRQFD_FLAG_RESAMPLE with the eventfds that there are."""
        self.board.vm.irqfd(self.trigger, GSI, KVM_IRQFD_FLAG_RESAMPLE, self.unmask)

    def unmask_intx(self) -> None:
        """VFIO_IRQ_SET_ACTION_UNMASK: if it is still high it signals again."""
        intx = self.hardware.intx
        with intx.igate:
            if intx.ctx is not None:
                intx.unmask()

    def set_up(self) -> None:
        """INTx on again, with new eventfds."""
        board, intx, name = self.board, self.hardware.intx, self.hardware.name
        self.trigger = board.files.eventfd(0, 0, f"{name}.trigger again")
        self.unmask = board.files.eventfd(0, 0, f"{name}.unmask again")
        with intx.igate:
            intx.enable(board.files.ctx_fdget(self.trigger))
            intx.enable_virqfd(self.unmask)
        self.assign()
        self.mode = INTX

    def left(self) -> str | None:
        """S18: what is left of it."""
        intx, board = self.hardware.intx, self.board
        if self.mode != NONE or intx.ctx is not None:
            return f"S18: {self.hardware.name} is gone, and its interrupt mode is {self.mode}"
        if board.vm.irqfds.items or board.vm.irqfds.resamplers or board.vm.gsis.notifiers:
            return f"S18: {self.hardware.name} is gone, and the VM has {board.vm.irqfds.items}"
        if self.trigger >= 0 or self.unmask >= 0:
            return f"S18: {self.hardware.name} is gone, and its descriptors are open"
        if board.pin.held:
            return f"S5: {self.hardware.name} is gone, and its line is high"
        return None
