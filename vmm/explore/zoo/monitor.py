"""Bugs of the monitor's side: how a device's interrupts are switched on, switched over, and taken down."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from devices.apic_bus import MSI_BASE
from vmm import order
from vmm.explore.board import Parts
from vmm.explore.chip import FIRST_VECTOR
from vmm.explore.consumer import INTX, MSIX, IntxUser
from vmm.explore.parts import GSI
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.kernel.files import EFD_NONBLOCK
from vmm.kernel.gsi import Route
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
from vmm.kernel.poll import FdHandler
from vmm.order import State

if TYPE_CHECKING:
    from vmm.explore.board import Board
    from vmm.explore.parts import Hardware
    from vmm.kernel.files import EventfdCtx

NOW = Setup("resample")
SPLIT = Setup("resample", irqchip="split")


def _with(monitor: type[State], irqchip: Literal["full", "split"] = "full") -> Setup:
    return Setup("resample", None, None, Parts(monitor=monitor), irqchip)


LEVEL_MESSAGE = 0x8000 | FIRST_VECTOR
MSI_GSI = GSI + 20


# A device with MSI-X.


class MsixUser(IntxUser):
    """Who has a device that also has MSI-X: one vector, an irqfd on a GSI of its own. To leave MSI-X is to be in INTx,
    as the hardware is.
    """

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("msix",)
    __slots__ = BOOKKEEPING

    def __init__(self, board: Board, name: str) -> None:
        super().__init__(board, name)
        self.tear_down("mode NONE")
        self.msix = board.files.eventfd(0, EFD_NONBLOCK, f"{name}.msix")
        board.vm.gsis.set_routing([*board.vm.gsis.table.routes, Route.msi(MSI_GSI, MSI_BASE, FIRST_VECTOR + 1)])
        board.vm.irqfd(self.msix, MSI_GSI)
        self.mode = MSIX

    def leave_msix(self) -> None:
        """MSI-X off: the device is in INTx again."""
        self.board.vm.irqfd(self.msix, MSI_GSI, KVM_IRQFD_FLAG_DEASSIGN)
        self.board.files.close(self.msix)
        self.msix = -1
        self.set_up()

    def disable_interrupts(self) -> None:
        """To mode NONE, whatever the mode is."""
        if self.mode == MSIX:
            self.leave_msix()
        if self.mode == INTX:
            self.tear_down("mode NONE")

    def unplug(self) -> None:
        """Interrupts off, then the device is gone."""
        self.disable_interrupts()
        self.hardware.unplug()


class StopsAtIntx(MsixUser):
    """One mode is left, and that is that."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def disable_interrupts(self) -> None:
        if self.mode == MSIX:
            self.leave_msix()
        elif self.mode == INTX:
            self.tear_down("mode NONE")


def unplugged_in_msix(board: Board) -> None:
    """A device in MSI-X is unplugged while it sends a message."""
    kind: type[MsixUser] = board.parts.monitor or MsixUser
    user = kind(board, "a")
    board.at_rest(user.left)
    board.thread("device a").run("a sends MSI-X", board.files.ctx_fdget(user.msix).signal)
    board.thread("unplug").run("unplug a", user.unplug)


# A slow road: the monitor forwards.


class SlowUser(State):
    """INTx without irqfd: the trigger's handler raises the GSI, the guest's driver and we lower it."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "handler", "hardware", "trigger")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("pending",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, board: Board, name: str) -> None:
        self.board = board
        self.hardware: Hardware = board.vfio(name, irqfd=False)
        self.hardware.intx.enable(board.held(f"{name}.trigger"))
        self.trigger = board.ctx(f"{name}.trigger")
        self.pending = False
        fd, queue = board.fd(f"{name}.trigger"), board.vm.irqfds.inject_queue
        self.handler = FdHandler(board.files, fd, queue, self.triggered, f"{name}.handler")
        board.state(self, self.handler)

    def triggered(self) -> None:
        """VFIO masked the device and signalled."""
        if self.trigger.drain():
            self.pending = True
            self.board.vm.irq_line(GSI, 1)

    def lower(self) -> None:
        """Nothing is pending."""
        self.pending = False
        self.board.vm.irq_line(GSI, 0)

    def unplug(self) -> None:
        """Mask, disable, handler off, and the line low: last, so that the handler cannot raise it again."""
        intx = self.hardware.intx
        with intx.igate:
            intx.disable()
        self.handler.close()
        self.handler.work.flush()
        self.lower()
        self.hardware.unplug()


class KeepsLine(SlowUser):
    """Unrealize leaves the line as it is."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def lower(self) -> None:
        pass


def pulled(board: Board) -> None:
    """A device that the monitor forwards for is unplugged with its interrupt pending."""
    kind: type[SlowUser] = board.parts.monitor or SlowUser
    user = kind(board, "a")
    board.thread("device a").assert_intx("a")
    board.thread("unplug").run("unplug a", user.unplug)

    def high() -> str | None:
        return "S5: a is gone, and its line is high" if board.pin.held else None

    board.at_rest(high)


class Pulses(SlowUser):
    """The line goes up and down at once, as an edge."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def triggered(self) -> None:
        super().triggered()
        self.board.vm.irq_line(GSI, 0)


def second_while_served(board: Board) -> None:
    """The device interrupts while the guest serves another interrupt of the pin."""
    kind: type[SlowUser] = board.parts.monitor or SlowUser
    user = kind(board, "a")
    board.bind("e1", "e2")
    board.thread("other").signal("e1")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.interrupt()
    pin = board.pin

    def lost() -> str | None:
        gone = user.hardware.level and user.hardware.depth and not (pin.held & 1 or pin.on_its_way())
        ended = board.results("vcpu")[-1:] == ("EOI = ok",)
        return "L1: a wants service, and its pulse was lost in another one's interrupt" if gone and ended else None

    board.at_rest(lost)


# A split irqchip: the EOI comes to the monitor, which tells whom it may concern.


class ResampleList(State):
    """Who is to be told of a GSI's EOI, newest first. It is the I/O APIC's `AckNotifiers`."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("records",)
    __slots__ = BOOKKEEPING

    def __init__(self) -> None:
        self.records: tuple[tuple[int, EventfdCtx], ...] = ()

    def insert(self, gsi: int, ctx: EventfdCtx) -> None:
        """Tell `ctx` from now on."""
        self.records = ((gsi, ctx), *self.records)

    def remove(self, gsi: int, ctx: EventfdCtx) -> None:
        """Do not tell it any more."""
        self.records = tuple(record for record in self.records if record != (gsi, ctx))

    def notify(self, gsi: int) -> None:
        """The GSI's interrupt was ended."""
        records = self.records
        i = 0
        while i < len(records):
            if records[i][0] == gsi:
                records[i][1].signal()
            i += 1

    def has_notifier(self, pin: int) -> bool:
        """Pins and GSIs are the same here."""
        return any(gsi == pin for gsi, _ in self.records)

    def notify_acked(self, pin: int) -> None:
        """The I/O APIC saw an EOI."""
        self.notify(pin)

    def mask_changed(self, pin: int, masked: bool) -> None:
        """Nobody wants to know."""

    def resample(self, pin: int) -> bool:  # noqa: ARG002
        """QEMU's I/O APIC does not ask."""
        return False


class FirstMatch(ResampleList):
    """Records are looked up by GSI alone."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def remove(self, gsi: int, ctx: EventfdCtx) -> None:  # noqa: ARG002
        i = [record[0] for record in self.records].index(gsi)
        self.records = (*self.records[:i], *self.records[i + 1 :])

    def notify(self, gsi: int) -> None:
        records = self.records
        i = 0
        while i < len(records):
            if records[i][0] == gsi:
                records[i][1].signal()
                return
            i += 1


def listeners_of(board: Board, kind: type[ResampleList] = ResampleList) -> ResampleList:
    """The GSI is a level-triggered message, and the list hears the EOI."""
    board.vm.set_gsi_routing([Route.msi(GSI, MSI_BASE, LEVEL_MESSAGE)])
    listeners = kind()
    board.chips.ioapic.acks = listeners
    board.state(listeners)
    return listeners


def put_on_list(board: Board, name: str, listeners: ResampleList) -> None:
    """A device whose unmask eventfd the list tells of EOIs."""
    board.vfio(name, assign=False)
    listeners.insert(GSI, board.ctx(f"{name}.unmask"))
    board.vm.irqfd(board.fd(f"{name}.trigger"), GSI)


def two_on_a_list(board: Board) -> None:
    """Two devices on a GSI of a split irqchip; the one that was enabled first interrupts."""
    listeners = listeners_of(board, board.parts.monitor or ResampleList)
    put_on_list(board, "a", listeners)
    put_on_list(board, "b", listeners)
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.interrupt()
    vcpu.interrupt(serve=True)


class Enabler(State):
    """Switches a device's INTx to the fast road of a split irqchip."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "listeners")
    __slots__ = WIRING

    def __init__(self, board: Board, listeners: ResampleList) -> None:
        self.board = board
        self.listeners = listeners

    def enable(self) -> None:
        """The irqfd first: who has no irqfd is not on the list. EBUSY here means the slow road."""
        board = self.board
        fd = board.files.eventfd(0, EFD_NONBLOCK, "unmask")
        ctx = board.files.ctx_fdget(fd)
        try:
            self.commit(board.fd("e1"), ctx)
        except OSError:
            ctx.put()
            board.files.close(fd)

    def commit(self, fd: int, ctx: EventfdCtx) -> None:
        """Both, or none."""
        self.board.vm.irqfd(fd, GSI)
        self.listeners.insert(GSI, ctx)


class InsertsFirst(Enabler):
    """The record is made before the ioctl that may fail."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def commit(self, fd: int, ctx: EventfdCtx) -> None:
        self.listeners.insert(GSI, ctx)
        if order.hook is not None:
            order.hook("resample-list.inserted", self.listeners)
        self.board.vm.irqfd(fd, GSI)


def refused(board: Board) -> None:
    """The eventfd has an irqfd already, so the ioctl fails."""
    kind: type[Enabler] = board.parts.monitor or Enabler
    listeners = listeners_of(board)
    board.vm.irqfd(board.fd("e1"), GSI)
    enabler = kind(board, listeners)
    board.state(enabler)
    board.thread("user").run("enable", enabler.enable)
    board.thread("device").signal("e1")
    board.thread("vcpu").interrupt()


class FastRoad(State):
    """How a level device gets its irqfd."""

    __slots__ = ()
    flags = KVM_IRQFD_FLAG_RESAMPLE


class EdgeRoad(FastRoad):
    """As a message does."""

    __slots__ = ()
    flags = 0


def level_on_irqfd(board: Board) -> None:
    """A level device on an irqfd: who unmasks it after the EOI?"""
    kind: type[FastRoad] = board.parts.monitor or FastRoad
    hardware = board.vfio("a", assign=False)
    board.vm.irqfd(board.fd("a.trigger"), GSI, kind.flags, board.fd("a.unmask"))
    board.thread("device a").assert_intx("a")
    board.thread("vcpu").interrupt(serve=True)

    def masked() -> str | None:
        ended = board.results("vcpu")[-1:] == ("EOI = ok",)
        stays = hardware.depth and not board.pin.on_its_way()
        return "L6: a was served, and nobody will unmask it" if ended and stays else None

    board.at_rest(masked)


# Switching back to the slow road.


class Switcher(State):
    """Takes the irqfd off, and then polls the eventfd itself."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "ctx", "fd")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("handler", "took")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, board: Board) -> None:
        self.board = board
        self.ctx = board.ctx("e1")
        self.fd = board.fd("e1")
        self.handler: FdHandler | None = None
        self.took = 0

    def read(self) -> None:
        """The event loop's handler."""
        self.took += self.ctx.drain()

    def disable(self) -> None:
        """Deassign, which waits, and then poll."""
        self.release()
        self.handler = FdHandler(self.board.files, self.fd, self.board.vm.irqfds.inject_queue, self.read)

    def release(self) -> None:
        """Once this returns nothing comes from the irqfd."""
        self.board.vm.irqfd(self.fd, GSI, KVM_IRQFD_FLAG_DEASSIGN)


class DoesNotWait(Switcher):
    """It does not wait until the irqfd is gone, as a close of the eventfd does not."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def release(self) -> None:
        irqfds = self.board.vm.irqfds
        with irqfds.lock:
            for item in irqfds.items:
                item.deactivate()


def switched(board: Board) -> None:
    """An event comes while the fast road is switched to the slow one."""
    kind: type[Switcher] = board.parts.monitor or Switcher
    board.bind("e1", "e2")
    switcher = kind(board)
    board.state(switcher)
    board.thread("user").run("to the slow road", switcher.disable)
    board.thread("device").signal("e1")

    def twice() -> str | None:
        both = switcher.took and board.pin.requested
        return "S10: one event was injected by the irqfd, and read by the handler as well" if both else None

    board.at_rest(twice)


BUGS = (
    Bug(
        "Z71",
        "interrupts off ends in INTx mode",
        "QEMU b3e27c3aee",
        ("S18",),
        unplugged_in_msix,
        _with(StopsAtIntx),
        NOW,
    ),
    Bug(
        "Z74",
        "unplug leaves INTx asserted",
        "QEMU 3936161f1f, 4c92325b51",
        ("S5",),
        pulled,
        _with(KeepsLine),
        NOW,
    ),
    Bug(
        "Z75",
        "who is told of an EOI is looked up by GSI alone",
        "QEMU c82d9d43ed",
        ("L1",),
        two_on_a_list,
        _with(FirstMatch, "split"),
        SPLIT,
    ),
    Bug(
        "Z76",
        "a record is made before the ioctl that fails",
        "QEMU c82d9d43ed, by reading",
        ("use-after-free",),
        refused,
        _with(InsertsFirst, "split"),
        SPLIT,
    ),
    Bug(
        "Z78",
        "a level device is given an irqfd without resamplefd",
        "QEMU 23fe2b3f9e",
        ("L6",),
        level_on_irqfd,
        _with(EdgeRoad),
        NOW,
    ),
    Bug(
        "Z84",
        "INTx is injected as an edge",
        '"virtio/pci: Signal INTx interrupts as level instead of edge", kvmtool',
        ("L1",),
        second_while_served,
        _with(Pulses),
        NOW,
    ),
    Bug(
        "Z85",
        "the slow road is taken before the fast one is left",
        "QEMU ac8585b4ac, by reading",
        ("S10",),
        switched,
        _with(DoesNotWait)._replace(era="3.8"),
        NOW._replace(era="3.8"),
    ),
)
