"""`-device vfio-pci`: a host device in the machine, its level interrupt on the shortest road.

With KVM's irqfd the trigger eventfd asserts the GSI from an inject work, and the guest's EOI signals VFIO's unmask
eventfd; nothing of the monitor runs in between:

    host line -> VFIO masks, signals trigger -> irqfd -> GSI ... EOI -> resampler -> unmask eventfd -> VFIO unmasks

Without it (`x-no-kvm-intx=on`, no route, or KVM refuses) the monitor goes between: the trigger's handler raises the
device's own PCI line, and an ack notifier of its GSI lowers the line and unmasks. The EOI is not guessed from BAR
accesses: every EOI of the GSI is seen, so none is lost and none is invented.

Everything is acquired in the order whose reverse is the safe order of taking down; `Holdings` keeps both the same:

    1  nobody tells us of routes any more         6  own PCI line low, nothing pending
    2  VFIO masks                                 8  descriptor handler off, trigger closed
    3  irqfd deassigned (synchronous)             9  interrupt mode NONE
    4  unmask eventfd off, closed                10  BARs unmapped, the VFIO device closed
    5  VFIO's INTx disabled (host irq freed)

(7, the timer that maps BARs directly again, has no counterpart: BAR accesses are always trapped.)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from devices import vfio
from devices.device import Board, Property
from devices.pci import config as cfg
from devices.pci.device import PciDevice
from vmm.errors import ConfigError, DeviceNotFound
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_DEASSIGN, KVM_EOIFD_FLAG_LEVEL_IRQFD
from vmm.kernel.files import EFD_NONBLOCK
from vmm.kernel.gsi import AckNotifier
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
from vmm.kernel.poll import FdHandler
from vmm.lifecycle import Holdings
from vmm.memory import IoRegion
from vmm.order import WorkQueue
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.vfio_host import VfioHostDevice
    from vmm.kernel.files import DescriptorTable
    from vmm.kernel.kvm import Vm
    from vmm.order import Executor

MASK = vfio.VFIO_IRQ_SET_DATA_NONE | vfio.VFIO_IRQ_SET_ACTION_MASK
UNMASK = vfio.VFIO_IRQ_SET_DATA_NONE | vfio.VFIO_IRQ_SET_ACTION_UNMASK
DISABLE = vfio.VFIO_IRQ_SET_DATA_NONE | vfio.VFIO_IRQ_SET_ACTION_TRIGGER
INTX = vfio.VFIO_PCI_INTX_IRQ_INDEX


class KvmBoard(Board, Protocol):
    """A board with the host kernel's side: a VM, the monitor's descriptors, deferred works, objects."""

    kvm: Vm
    files: DescriptorTable
    executor: Executor
    objects: dict[str, Any]


class VfioInterface(Protocol):
    """What VFIO offers of a device, as `devices.vfio.VfioDevice` does; OSError as there."""

    name: str

    def config_read(self, offset: int, size: int, /) -> int:
        """A read of 1, 2 or 4 bytes inside one dword."""

    def config_write(self, offset: int, size: int, value: int, /) -> None:
        """A write of 1, 2 or 4 bytes inside one dword."""

    def bar_read(self, index: int, offset: int, size: int, /) -> int:
        """One access inside a BAR."""

    def bar_write(self, index: int, offset: int, size: int, value: int, /) -> None:
        """One access inside a BAR."""

    def reset(self) -> None:
        """VFIO_DEVICE_RESET."""

    def set_irqs(self, flags: int, index: int, start: int, count: int, /) -> None:
        """VFIO_DEVICE_SET_IRQS without data."""

    def set_irq_eventfd(self, index: int, action: int, fd: int, /) -> None:
        """Attach an eventfd to an action of an interrupt; -1 detaches."""


class VfioIntxEnable(Event):
    """INTx of a host device is on for the vfio-pci device `user`; `road` is kvm or user."""

    device: str
    user: str
    road: str
    gsi: int


class VfioIntxDisable(Event):
    """INTx is off, and everything for it given back."""

    device: str


class VfioIntxUpdate(Event):
    """The pin's PIRQ was routed elsewhere; -1: nowhere."""

    device: str
    old: int
    new: int


class VfioIntxKvmRefused(Event):
    """KVM did not take the irqfd; the monitor goes between."""

    device: str
    reason: str


class VfioIntxEoi(Event):
    """The guest's EOI reached the monitor: line low, VFIO unmasked."""

    device: str


class VfioPci(PciDevice):
    """The monitor's side of a VFIO device. After realize `vfio` is VFIO's interface to the host device."""

    driver = "vfio-pci"
    description = "VFIO-based PCI device assignment"
    properties = (
        *PciDevice.properties,
        Property("x-host-object", "link", None, "id of the vfio-host-device to hand over", required=True),
        Property("x-no-kvm-intx", "bool", False, "let the monitor forward INTx instead of irqfd"),
    )
    wants_host_object = True
    fd_handler: ClassVar[type[FdHandler]] = FdHandler
    """What polls the trigger where the monitor goes between."""
    board: KvmBoard

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.vfio: VfioInterface
        self.pending = False
        """User road: the line was raised and waits for an EOI."""
        self.mode = "NONE"
        """The interrupt type in use: NONE or INTx."""
        self.road = ""
        """How INTx travels: kvm, user, or nothing while it is off."""
        self.gsi: int | None = None
        self.trigger = -1
        """The trigger eventfd's descriptor."""
        self._intx: Holdings | None = None
        self._road: Holdings | None = None

    # Life.

    def realize(self, board: Board) -> None:
        """Take the host device, show it to the guest, switch INTx on. DeviceNotFound or InUse if it cannot be had."""
        name = self.values["x-host-object"]
        host = getattr(board, "objects", {}).get(name)
        if host is None or not hasattr(host, "open"):
            raise DeviceNotFound(name)
        if not hasattr(board, "kvm"):
            raise ConfigError(f"{self.driver}: this machine has no kernel side to hand a device over with")
        self._take_identity(host.device)
        super().realize(board)
        self._open(host)
        for bar in host.device.bars:
            region = IoRegion(
                f"{self.id or name} BAR {bar.index}",
                bar.region.size,
                partial(self.vfio.bar_read, bar.index),
                partial(self.vfio.bar_write, bar.index),
                bar.region.min_access,
                bar.region.max_access,
            )
            self.register_bar(bar.index, region, bar.io, bar.mem64, bar.prefetchable)
        self.holdings.hold("interrupt", "INTx", self._disable_intx)
        self._enable_intx()

    def _take_identity(self, device: PciDevice) -> None:
        get = device.config.get
        self.vendor_id, self.device_id = get(0, 2), get(2, 2)
        self.class_id, self.prog_if, self.revision = get(cfg.CLASS_DEVICE, 2), get(9, 1), get(8, 1)
        self.subsystem = (get(cfg.SUBSYSTEM_VENDOR_ID, 2), get(cfg.SUBSYSTEM_VENDOR_ID + 2, 2))
        self.interrupt_pin = get(cfg.INTERRUPT_PIN, 1)

    def _open(self, host: VfioHostDevice) -> None:
        board = self.board
        self.vfio = host.open(self.id or self.path, board.files, board.executor, board.trace)
        self.holdings.hold("vfio-device", host.id, host.release)

    def reset(self) -> None:
        """As a bus reset: INTx off, device reset, BARs and COMMAND cleared on both sides, INTx on again."""
        self._disable_intx()
        self.vfio.config_write(cfg.COMMAND, 2, 0)
        super().reset()
        self.vfio.reset()
        for offset in range(cfg.BASE_ADDRESS_0, cfg.BASE_ADDRESS_END, 4):
            self.vfio.config_write(offset, 4, 0)
        self._enable_intx()

    # Configuration space: BARs and header type are the machine's, everything else is what VFIO says.

    def config_read(self, offset: int, size: int) -> int:
        if cfg.BASE_ADDRESS_0 <= offset < cfg.BASE_ADDRESS_END or (offset == cfg.INTERRUPT_LINE and size == 1):
            return self.config.read(offset, size)
        value = self.vfio.config_read(offset, size)
        if offset <= cfg.HEADER_TYPE < offset + size:
            shift = 8 * (cfg.HEADER_TYPE - offset)
            value = value & ~(0xFF << shift) | self.config.data[cfg.HEADER_TYPE] << shift
        return value

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        self.vfio.config_write(offset, size, value)

    # INTx on and off.

    def _holdings(self) -> Holdings:
        return Holdings(self.board.ledger, self.holdings.owner)

    def _eventfd(self, name: str) -> int:
        """A new eventfd that VFIO and KVM can share: its descriptor."""
        return self.board.files.eventfd(0, EFD_NONBLOCK, f"{self.vfio.name}.{name}")

    def _enable_intx(self) -> None:
        """Acquire in the order of the module's list, read upwards."""
        if not self.interrupt_pin:
            return
        files = self.board.files
        self._intx = held = self._holdings()
        try:
            self.mode = "INTx"
            held.hold("interrupt-mode", "INTx", partial(setattr, self, "mode", "NONE"))
            self.trigger = self._eventfd("trigger")
            held.hold("fd", "trigger", partial(files.close, self.trigger))
            held.hold("level", "INTx", self._lower)
            self.vfio.set_irq_eventfd(INTX, vfio.VFIO_IRQ_SET_ACTION_TRIGGER, self.trigger)
            held.hold("vfio-irq", "INTx", partial(self.vfio.set_irqs, DISABLE, INTX, 0, 0))
            self.gsi = self.bus.intx_route(self) if self.bus is not None else None
            held.hold("road", "INTx", self._leave_road)
            self._take_road()
            if self.bus is not None:
                subscription = self.bus.on_route_change(self._route_changed)
                held.hold("notifier", "intx-route", subscription.close)
        except BaseException:
            self._disable_intx()
            raise

    def _disable_intx(self) -> None:
        """Give back in reverse, whatever was acquired. A second time does nothing."""
        held, self._intx = self._intx, None
        if held is None:
            return
        held.close()
        self.trigger = -1
        trace = self.board.trace
        if trace.on:
            trace.emit(VfioIntxDisable(self.vfio.name))

    def _lower(self) -> None:
        self.pending = False
        self.set_intx(False)

    def _route_changed(self) -> None:
        """Some PIRQ was routed elsewhere. What is pending stays pending in VFIO and comes by the new road."""
        assert self.bus is not None
        new = self.bus.intx_route(self)
        if new == self.gsi:
            return
        trace = self.board.trace
        if trace.on:
            trace.emit(VfioIntxUpdate(self.vfio.name, _number(self.gsi), _number(new)))
        self._leave_road()
        self.gsi = new
        self._take_road()

    # Roads. VFIO is masked between one and the next.

    def _take_road(self) -> None:
        self._mask()
        self.road = "user"
        if self.gsi is not None and not self.values["x-no-kvm-intx"]:
            self._road = held = self._holdings()
            try:
                self._take_kvm_road(held, self.gsi)
                self.road = "kvm"
            except OSError as error:
                held.close()
                trace = self.board.trace
                if trace.on:
                    trace.emit(VfioIntxKvmRefused(self.vfio.name, str(error)))
        if self.road == "user":
            self._road = held = self._holdings()
            self._take_user_road(held)
        trace = self.board.trace
        if trace.on:
            trace.emit(VfioIntxEnable(self.vfio.name, self.label, self.road, _number(self.gsi)))
        # If something came while masked, VFIO signals the trigger again.
        held.hold("vfio-unmasked", "INTx", self._mask)
        self._unmask()

    def _leave_road(self) -> None:
        held, self._road = self._road, None
        if held is not None:
            held.close()
        self.road = ""

    def _take_kvm_road(self, held: Holdings, gsi: int) -> None:
        """Trigger to the GSI, EOI to VFIO's unmask, without us."""
        files, kvm = self.board.files, self.board.kvm
        self._lower()
        unmask = self._eventfd("unmask")
        held.hold("fd", "unmask", partial(files.close, unmask))
        self.vfio.set_irq_eventfd(INTX, vfio.VFIO_IRQ_SET_ACTION_UNMASK, unmask)
        held.hold("vfio-irq", "unmask", partial(self.vfio.set_irq_eventfd, INTX, vfio.VFIO_IRQ_SET_ACTION_UNMASK, -1))
        # As posted in 2012 the EOI had an object of its own; what was merged has one for both. LEVEL is RESAMPLE's bit.
        kvm.irqfd(self.trigger, gsi, KVM_IRQFD_FLAG_RESAMPLE, 0 if kvm.era.eoifd else unmask)
        held.hold("irqfd", f"gsi-{gsi}", partial(kvm.irqfd, self.trigger, gsi, KVM_IRQFD_FLAG_DEASSIGN))
        if kvm.era.eoifd:
            kvm.eoifd(unmask, KVM_EOIFD_FLAG_LEVEL_IRQFD, self.trigger)
            flags = KVM_EOIFD_FLAG_LEVEL_IRQFD | KVM_EOIFD_FLAG_DEASSIGN
            held.hold("eoifd", f"gsi-{gsi}", partial(kvm.eoifd, unmask, flags, self.trigger))

    def _take_user_road(self, held: Holdings) -> None:
        """Trigger to our handler, EOI to our notifier. Without a GSI there is no EOI, and nothing to deliver to."""
        board = self.board
        handler = self.fd_handler(board.files, self.trigger, WorkQueue("main-loop", board.executor), self._triggered)
        held.hold("fd-handler", "trigger", handler.close)
        if self.gsi is not None:
            gsis = board.kvm.gsis
            notifier = AckNotifier(self.gsi, self._eoi)
            gsis.register(notifier)
            held.hold("eoi-notifier", f"gsi-{self.gsi}", partial(gsis.unregister, notifier))

    def _triggered(self) -> None:
        """VFIO masked the device and signalled the trigger."""
        self.board.files.read(self.trigger)
        self.pending = True
        self.set_intx(True)

    def _eoi(self) -> None:
        """The GSI's interrupt was acknowledged; it may have been another device's."""
        if not self.pending:
            return
        trace = self.board.trace
        if trace.on:
            trace.emit(VfioIntxEoi(self.vfio.name))
        self._lower()
        self._unmask()

    def _mask(self) -> None:
        self.vfio.set_irqs(MASK, INTX, 0, 1)

    def _unmask(self) -> None:
        self.vfio.set_irqs(UNMASK, INTX, 0, 1)


def _number(gsi: int | None) -> int:
    return -1 if gsi is None else gsi
