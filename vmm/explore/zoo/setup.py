"""Bugs of setting up and tearing down: what a failed step leaves, what a reset forgets, what goes too soon."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from devices.ioapic_qemu import QemuIoApic
from vmm.explore.board import Parts
from vmm.explore.consumer import IntxUser
from vmm.explore.parts import GSI, point
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.explore.zoo.monitor import SlowUser, listeners_of, put_on_list
from vmm.kernel.files import EFD_NONBLOCK, os_error
from vmm.kernel.gsi import AckNotifier
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
from vmm.kernel.poll import FdHandler
from vmm.order import Mortal, State

if TYPE_CHECKING:
    from vmm.explore.board import Board
    from vmm.explore.parts import Hardware
    from vmm.kernel.files import DescriptorTable, EventfdCtx

NOW = Setup("resample")


def _with(kind: type[State]) -> Setup:
    return Setup("resample", None, None, Parts(monitor=kind))


# A fast road that fails at its last step.


class FastRoad(State):
    """Switches a device with INTx to an irqfd; VFIO may refuse the unmask eventfd, and then all is as before."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "intx", "trigger")
    __slots__ = WIRING

    def __init__(self, board: Board, name: str) -> None:
        self.board = board
        self.intx = board.vfio(name, assign=False).intx
        self.trigger = board.fd(f"{name}.trigger")

    def enable(self) -> None:
        """Unmask eventfd, irqfd, VFIO: EBUSY, because VFIO has one."""
        board = self.board
        unmask = board.files.eventfd(0, EFD_NONBLOCK, "unmask")
        board.vm.irqfd(self.trigger, GSI, KVM_IRQFD_FLAG_RESAMPLE, unmask)
        try:
            self.intx.enable_virqfd(unmask)
        except OSError:
            self.unwind(unmask)

    def unwind(self, unmask: int) -> None:
        """Everything that was taken, in reverse."""
        self.board.vm.irqfd(self.trigger, GSI, KVM_IRQFD_FLAG_DEASSIGN)
        self.board.files.close(unmask)


class LeavesOpen(FastRoad):
    """The eventfd stays open."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def unwind(self, unmask: int) -> None:  # noqa: ARG002
        self.board.vm.irqfd(self.trigger, GSI, KVM_IRQFD_FLAG_DEASSIGN)


def refused_at_last(board: Board) -> None:
    """The fast road fails at its last step, while the device interrupts."""
    kind: type[FastRoad] = board.parts.monitor or FastRoad
    road = kind(board, "a")
    board.state(road)
    before = len([file for file in board.files.files if file is not None])
    board.thread("user").run("to the fast road", road.enable)
    board.thread("device a").assert_intx("a")

    def left() -> str | None:
        now = len([file for file in board.files.files if file is not None])
        return f"S18: setting up failed, and left {now - before} descriptors open" if now != before else None

    board.at_rest(left)


# A fast road for an edge. VFIO does not mask it, so there is nothing to unmask.


class EdgeIrq(State):
    """An edge-triggered interrupt of a platform device, as VFIO has it: neither maskable nor automasked.

    `fired`: the device sent an edge. (vfio_platform_irq)
    """

    WIRING: ClassVar[tuple[str, ...]] = ("files",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("fired", "trigger")
    __slots__ = (*WIRING, *BOOKKEEPING)
    automasked: ClassVar[bool] = False
    """VFIO_IRQ_INFO_AUTOMASKED: of level-triggered ones only."""

    def __init__(self, files: DescriptorTable) -> None:
        self.files = files
        self.trigger: EventfdCtx | None = None
        self.fired = False

    def set_trigger(self, fd: int) -> None:
        """VFIO_IRQ_SET_ACTION_TRIGGER: its handler is there from now on."""
        self.trigger = self.files.ctx_fdget(fd)

    def set_unmask(self, _fd: int) -> None:
        """VFIO_IRQ_SET_ACTION_UNMASK: EINVAL without VFIO_IRQ_INFO_MASKABLE. (vfio_platform_set_irq_unmask)"""
        raise os_error(errno.EINVAL, "unmask of an interrupt that is not maskable")

    def is_requested(self) -> bool:
        """There is a handler."""
        return self.trigger is not None

    def fire(self) -> None:
        """An edge, and the handler. (vfio_irq_handler)"""
        self.fired = True
        if self.trigger is not None:
            self.trigger.signal()


class PlatformUser(State):
    """Puts a platform device's interrupt on an irqfd, or, if that fails, forwards it. `handler`: who forwards."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "ctx", "irq", "trigger", "unmask")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("handler",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, board: Board, irq: EdgeIrq) -> None:
        self.board = board
        self.irq = irq
        self.trigger = board.fd("a.trigger")
        self.unmask = board.fd("a.unmask")
        self.ctx = board.ctx("a.trigger")
        self.handler: FdHandler | None = None

    def start(self) -> None:
        """irqfd, trigger, unmask eventfd. (vfio_start_irqfd_injection)"""
        vm, resample = self.board.vm, self.wants_resamplefd()
        vm.irqfd(self.trigger, GSI, KVM_IRQFD_FLAG_RESAMPLE if resample else 0, self.unmask if resample else 0)
        self.irq.set_trigger(self.trigger)
        if not resample:
            return
        try:
            self.irq.set_unmask(self.unmask)
        except OSError:
            vm.irqfd(self.trigger, GSI, KVM_IRQFD_FLAG_DEASSIGN)
            self.forward()

    def wants_resamplefd(self) -> bool:
        """For what VFIO masks."""
        return self.irq.automasked

    def forward(self) -> None:
        """The slow road. (vfio_start_eventfd_injection)"""
        self.handler = FdHandler(self.board.files, self.trigger, self.board.vm.irqfds.inject_queue, self.triggered)

    def triggered(self) -> None:
        """The event loop's handler."""
        if self.ctx.drain():
            self.board.vm.irq_line(GSI, 1)
            self.board.vm.irq_line(GSI, 0)


class ResamplesAll(PlatformUser):
    """A resamplefd for whatever interrupt it is."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def wants_resamplefd(self) -> bool:
        return True


def edge_on_irqfd(board: Board) -> None:
    """An edge-triggered interrupt is put on the fast road, and comes as soon as it can."""
    kind: type[PlatformUser] = board.parts.monitor or PlatformUser
    irq = EdgeIrq(board.files)
    user = kind(board, irq)
    board.state(irq, user)
    board.pin.make_edge()
    board.thread("user").run("to the fast road", user.start)
    board.thread("device").run("edge", irq.fire, when=irq.is_requested)
    board.thread("vcpu").interrupt()

    def wrong() -> str | None:
        if irq.fired and not board.results("vcpu"):
            return "L1: the edge was lost"
        return "L2: an edge that KVM takes by itself is forwarded by hand" if user.handler is not None else None

    board.at_rest(wrong)


# The slow road, and how it learns of the EOI.


class Forwarder(SlowUser):
    """The monitor hears of each EOI of the GSI."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def __init__(self, board: Board, name: str) -> None:
        super().__init__(board, name)
        self.listen()

    def listen(self) -> None:
        """An ack notifier."""
        self.board.vm.gsis.register(AckNotifier(GSI, self.served))

    def served(self) -> None:
        """The guest has served the device, or was about to."""
        if self.pending:
            self.lower()
            intx = self.hardware.intx
            with intx.igate:
                intx.unmask()


class GuessesEoi(Forwarder):
    """An access to a BAR that is trapped for the purpose is taken for the EOI; this guest has it mapped still."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def listen(self) -> None:
        """`served` is called from the trap."""


def served_unseen(board: Board) -> None:
    """The guest serves the device without an access that anybody sees, and ends the interrupt."""
    kind: type[Forwarder] = board.parts.monitor or Forwarder
    user = kind(board, "a")
    board.throttle(2)
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.interrupt(serve=True)

    _unmasked_at_rest(board, user.hardware)


def _unmasked_at_rest(board: Board, hardware: Hardware) -> None:
    def masked() -> str | None:
        ended = board.results("vcpu")[-1:] == ("EOI = ok",)
        return "L6: a was served and its interrupt ended, and it stays masked" if ended and hardware.depth else None

    board.at_rest(masked)


class MissesExit(QemuIoApic):
    """The exit for an EOI is not handled."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def eoi(self, vector: int, cpu: int, level: bool = True, suppressed: bool = False) -> None:
        pass


def one_on_a_list(board: Board) -> None:
    """A device on a split irqchip: its EOI comes to the monitor as an exit."""
    put_on_list(board, "a", listeners_of(board))
    board.thread("device a").assert_intx("a")
    board.thread("vcpu").interrupt(serve=True)
    _unmasked_at_rest(board, board.device("a"))


# Resets and unplugs that forget.


class Resetter(State):
    """Resets a device: irqfd off, device reset, irqfd on."""

    WIRING: ClassVar[tuple[str, ...]] = ("user",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("refused",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, user: IntxUser) -> None:
        self.user = user
        self.refused = False

    def reset(self) -> None:
        """With the same eventfds."""
        self.switch_off()
        self.user.hardware.serve()
        try:
            self.user.assign()
        except OSError:
            self.refused = True

    def switch_off(self) -> None:
        """The irqfd goes."""
        self.user.deassign()


class ForgetsIrqfd(Resetter):
    """A reset forgets that there is an irqfd."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def switch_off(self) -> None:
        pass


def reset_and_again(board: Board) -> None:
    """A device is reset while it interrupts."""
    kind: type[Resetter] = board.parts.monitor or Resetter
    resetter = kind(IntxUser(board, "a"))
    board.state(resetter)
    board.thread("device a").assert_intx("a")
    board.thread("user").run("reset", resetter.reset)
    board.at_rest(lambda: "S18: after a reset the irqfd is EBUSY" if resetter.refused else None)


class Vectors(State):
    """An eventfd for each vector: had while interrupts are on."""

    WIRING: ClassVar[tuple[str, ...]] = ("source",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("ctx",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, source: EventfdCtx) -> None:
        self.source = source
        self.ctx: EventfdCtx | None = None

    def enable(self) -> None:
        """It fails, and gives back what it has taken."""
        self.ctx = self.source.get()
        point("vectors.enable", self)
        self.give_up()

    def give_up(self) -> None:
        """As if it had never been."""
        if self.ctx is not None:
            self.ctx.put()
            self.ctx = None

    def disable(self) -> None:
        """The guest sees interrupts on, and switches them off."""
        if self.ctx is not None:
            self.ctx.put()
            self.ctx = None


class KeepsPointer(Vectors):
    """What was given back is still pointed at."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def give_up(self) -> None:
        if self.ctx is not None:
            self.ctx.put()


def failed_then_off(board: Board) -> None:
    """Switching on fails; then it is switched off."""
    kind: type[Vectors] = board.parts.monitor or Vectors
    vectors = kind(board.ctx("e1"))
    board.state(vectors)
    user = board.thread("user")
    user.run("enable", vectors.enable)
    user.run("disable", vectors.disable)

    def wrong() -> str | None:
        refs = board.ctx("e1").refs
        return f"S4: the eventfd has {refs} references, and its file has one" if refs != 1 else None

    board.at_rest(wrong)


class Data(Mortal):
    """What a device's accesses use."""

    __slots__ = ()


class Device(State):
    """A device that is unplugged in two phases: first nobody finds it, then, when nobody is inside, its data go."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "data")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("mapped",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, board: Board) -> None:
        self.board = board
        self.data = Data()
        self.mapped = True

    def access(self) -> None:
        """A CPU accesses the device's memory."""
        srcu = self.board.vm.gsis.irq_srcu
        nesting = srcu.read_lock()
        if self.mapped:
            point("device.access", self)
            self.data.touch("access")
        srcu.read_unlock(nesting)

    def unplug(self) -> None:
        """unrealize, and after all readers finalize."""
        self.mapped = False
        self.await_readers()
        self.data.free("finalize")

    def await_readers(self) -> None:
        """Who is inside comes out."""
        self.board.vm.gsis.irq_srcu.synchronize()


class OnePhase(Device):
    """unrealize frees."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def await_readers(self) -> None:
        pass


def accessed_and_unplugged(board: Board) -> None:
    """A CPU is in the middle of an access when the device is unplugged."""
    kind: type[Device] = board.parts.monitor or Device
    device = kind(board)
    board.state(device)
    board.thread("vcpu").run("access", device.access)
    board.thread("user").run("unplug", device.unplug)


class Slots(State):
    """GSIs for devices that are plugged: one."""

    WIRING: ClassVar[tuple[str, ...]] = ("board",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("free", "refused")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, board: Board) -> None:
        self.board = board
        self.free = 1
        self.refused = False

    def plug(self) -> None:
        """Take a GSI, and bind the eventfd to it."""
        if not self.free:
            self.refused = True
            return
        self.free -= 1
        self.board.vm.irqfd(self.board.fd("e1"), GSI)

    def unplug(self) -> None:
        """Give both back."""
        self.board.vm.irqfd(self.board.fd("e1"), GSI, KVM_IRQFD_FLAG_DEASSIGN)
        self.give_back()

    def give_back(self) -> None:
        """The GSI."""
        self.free += 1


class KeepsGsi(Slots):
    """An unplug gives back the irqfd only."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def give_back(self) -> None:
        pass


def plugged_again(board: Board) -> None:
    """A device is plugged, unplugged and plugged again."""
    kind: type[Slots] = board.parts.monitor or Slots
    slots = kind(board)
    board.fd("e1")
    board.state(slots)
    user = board.thread("user")
    user.run("plug", slots.plug)
    user.run("unplug", slots.unplug)
    user.run("plug again", slots.plug)
    board.at_rest(lambda: "S18: the device cannot be plugged again: no GSI is left" if slots.refused else None)


BUGS = (
    Bug(
        "Z70",
        "a failed set-up leaves its eventfd open",
        "QEMU ac8585b4ac, by reading; 59567f3368",
        ("S18",),
        refused_at_last,
        _with(LeavesOpen),
        NOW,
    ),
    Bug(
        "Z77",
        "the EOI is guessed from an access to a BAR",
        "QEMU e23125995b; cloud-hypervisor issues 4999, 5239",
        ("L6",),
        served_unseen,
        _with(GuessesEoi),
        NOW,
    ),
    Bug(
        "Z79",
        "an edge is given a resamplefd, and so no irqfd",
        "QEMU a5b39cd3f6; vfio_platform_set_irq_unmask",
        ("L2",),
        edge_on_irqfd,
        _with(ResamplesAll),
        NOW,
    ),
    Bug(
        "Z80",
        "a reset forgets the irqfd",
        "QEMU a40227911c, 089fd80376",
        ("S18",),
        reset_and_again,
        _with(ForgetsIrqfd),
        NOW,
    ),
    Bug(
        "Z81",
        "switching on fails, and switching off gives back once more",
        "QEMU d964d3b5ab",
        ("S4",),
        failed_then_off,
        _with(KeepsPointer),
        NOW,
    ),
    Bug(
        "Z82",
        "unrealize frees what an access uses",
        "QEMU 77a10d04d0",
        ("use-after-free",),
        accessed_and_unplugged,
        _with(OnePhase),
        NOW,
    ),
    Bug(
        "Z83",
        "an unplug keeps its GSI",
        "cloud-hypervisor issues 473, 886",
        ("S18",),
        plugged_again,
        _with(KeepsGsi),
        NOW,
    ),
    Bug(
        "Z86",
        "the exit for an EOI is not handled",
        "cloud-hypervisor issue 5681",
        ("L6",),
        one_on_a_list,
        Setup("resample", None, None, Parts(ioapic=MissesExit), "split"),
        Setup("resample", irqchip="split"),
    ),
)
