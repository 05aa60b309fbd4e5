"""Bugs of VFIO's INTx."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.vfio_irqs import IntxContext, VfioIntx, Virqfd
from vmm import order
from vmm.explore.board import Parts
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug

if TYPE_CHECKING:
    from vmm.explore.board import Board
    from vmm.kernel.files import EventfdCtx

NOW = Setup("resample")


def _disable(intx: VfioIntx) -> None:
    with intx.igate:
        intx.disable()


def _exchange(intx: VfioIntx) -> None:
    with intx.igate:
        if intx.ctx is not None:
            intx.set_trigger(None)


class EnablesFirst(VfioIntx):
    """request_irq enables the interrupt at once; the mask that the guest wants is put on afterwards."""

    __slots__ = ()

    def enable(self, trigger: EventfdCtx | None) -> None:
        ctx = IntxContext(self, trigger)
        self.ctx = ctx
        self.hardware.request(False)
        if order.hook is not None:
            order.hook("vfio.intx.enable", ctx)
        if self.virq_disabled:
            ctx.masked = True
            self.hardware.mask()


def enabled_disabled(board: Board) -> None:
    """INTx is enabled while the guest has it disabled and the line is high."""
    hardware = board.vfio("d", irqfd=False)
    intx, trigger = hardware.intx, board.held("d.trigger")
    hardware.level = True
    intx.virq_disabled = True
    board.thread("user").run("enable", lambda: intx.enable(trigger))
    board.thread("guest").run("clear INTx disable", lambda: intx.set_virq_disabled(False), lambda: intx.ctx is not None)


class MasksWithoutGate(VfioIntx):
    """The guest's COMMAND write does not take igate."""

    __slots__ = ()

    def set_virq_disabled(self, disabled: bool) -> None:
        if disabled and not self.virq_disabled:
            self.virq_disabled = True
            self.mask()
        elif not disabled and self.virq_disabled:
            self.virq_disabled = False
            self.unmask()


def command_write(board: Board) -> None:
    """The guest clears INTx disable while an ioctl takes INTx down, the line high."""
    hardware = board.vfio("d")
    intx = hardware.intx
    intx.set_virq_disabled(True)
    hardware.level = True
    board.thread("guest").run("clear INTx disable", lambda: intx.set_virq_disabled(False))
    board.thread("user").run("disable", lambda: _disable(intx))


class SignalsUnseen(VfioIntx):
    """Whoever signals the trigger does not look whether there is one."""

    __slots__ = ()

    def send(self, ctx: IntxContext) -> bool:
        if order.hook is not None:
            order.hook("vfio.intx.send", ctx)
            ctx.touch("vfio_send_intx_eventfd")
        if self.ctx is None or self.virq_disabled:
            return False
        ctx.trigger.signal()  # type: ignore[union-attr]
        return True


class DoesNotFlushThread(VfioIntx):
    """The old trigger is put without waiting for the thread of the unmask eventfd."""

    __slots__ = ()

    def flush_virqfd(self, ctx: IntxContext) -> None:
        pass


def trigger_removed(board: Board) -> None:
    """The trigger is removed while the unmask eventfd lives and is signalled with the line high."""
    hardware = board.vfio("d", assign=False)
    intx = hardware.intx
    hardware.level = True
    intx.handler()  # masked now, so that an unmask signals again
    board.files.close(board.fd("d.trigger"))  # nobody but VFIO has it now
    board.thread("resample").signal("d.unmask")
    board.thread("user").run("set trigger -1", lambda: _exchange(intx))


class TwoOwners(VfioIntx):
    """Disable queues the shutdown of the unmask eventfd without looking who else has."""

    __slots__ = ()

    def disable_virqfd(self, ctx: IntxContext) -> None:
        virqfd: Virqfd | None = ctx.unmask
        if order.hook is not None:
            order.hook("virqfd.disable", ctx)
        if virqfd is not None:
            virqfd.queue_shutdown()
        self.cleanup.flush()
        ctx.unmask = None


def closed_and_disabled(board: Board) -> None:
    """The unmask eventfd is closed while INTx is disabled."""
    hardware = board.vfio("d", assign=False)
    intx = hardware.intx
    board.thread("closer").close("d.unmask")
    board.thread("user").run("disable", lambda: _disable(intx))


def _with(intx: type[VfioIntx]) -> Setup:
    return Setup("resample", None, None, Parts(intx=intx))


BUGS = (
    Bug(
        "Z50",
        "INTx that is enabled masked is disabled twice",
        "fe9a7082684e, CVE-2024-27437",
        ("S17",),
        enabled_disabled,
        _with(EnablesFirst),
        NOW,
    ),
    Bug(
        "Z51",
        "INTx disable of the guest races with the ioctl",
        "810cd4bb5345, CVE-2024-26810",
        ("use-after-free",),
        command_write,
        _with(MasksWithoutGate),
        NOW,
    ),
    Bug(
        "Z52",
        "the trigger is removed under a live unmask eventfd",
        "18c198c96a81, CVE-2024-26812",
        ("raised AttributeError",),
        trigger_removed,
        _with(SignalsUnseen),
        NOW,
    ),
    Bug(
        "Z53",
        "the old trigger is put before the unmask thread is over",
        "b620ecbd17a0; 675daf435e9f, CVE-2024-26813",
        ("use-after-free",),
        trigger_removed,
        _with(DoesNotFlushThread),
        NOW,
    ),
    Bug(
        "Z54",
        "an unmask eventfd is shut down twice",
        "b68e7fa879cd",
        ("use-after-free", "double-free", "wait-entry-never-added", "double-put"),
        closed_and_disabled,
        _with(TwoOwners),
        NOW,
    ),
)
