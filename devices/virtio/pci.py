"""Virtio over PCI: one transitional function for legacy and for modern drivers.

BAR0 is the legacy interface in I/O ports, BAR4 the modern one in memory, told by capabilities; BAR1 is MSI-X if there
is any. On the pin, ISR status says why it is high, and reading it lets the pin go. A queue that the guest broke stops
the device (DEVICE_NEEDS_RESET) and nothing else. Layout and identity as in QEMU's `virtio-*-pci`.
Ref: VIRTIO 1.2, 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from devices.device import Property
from devices.pci import config as cfg
from devices.pci.device import PciDevice
from devices.pci.dma import Dma
from devices.pci.msi import Msix
from devices.virtio import registers as r
from devices.virtio.queue import QueueBroken, Virtqueue
from vmm.errors import ConfigError, PropertyError
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.device import Board
    from devices.pci.config import ConfigSpace
    from vmm.clock import Timer

BATCH_BYTES = 1 << 20
BATCH_CHAINS = 64
"""After so much the guest and the monitors get a turn."""
MSIX_BAR, MSIX_SIZE, MSIX_PBA = 1, 0x1000, 0x800
MAX_VECTORS = MSIX_PBA // 16
_M32 = 0xFFFF_FFFF
_WINDOW = (1, 2, 4)


class VirtioSetStatus(Event):
    """The driver wrote the device status."""

    device: str
    value: int


class VirtioQueueNotify(Event):
    """The driver says that a queue has something."""

    device: str
    queue: int


class VirtioNotify(Event):
    """The device interrupts; `isr` is ISR status, `vector` the MSI-X vector or 0xffff."""

    device: str
    isr: int
    vector: int


class VirtioError(Event):
    """The guest broke a queue; the device does nothing until it is reset."""

    device: str
    reason: str


class VirtioPci(PciDevice):
    """Base of virtio devices. A subclass sets the class attributes and extends `handle`, `features`, `config_bytes`.

    `queues` are there from realize on. What a subclass holds it takes in `acquire`; `restart` is told of a reset by the
    driver or the machine, `started` of DRIVER_OK.
    """

    virtio_id: ClassVar[int] = 0
    transitional_id: ClassVar[int] = 0
    """PCI device id of the transitional function; 0: there is no legacy interface."""
    queue_sizes: tuple[int, ...] = ()
    default_vectors: ClassVar[int] = 2
    """What `vectors` is where test programs expect MSI-X."""
    config_size: int = 0
    """Bytes of the device's own configuration."""
    interrupt_pin = 1
    qom_parts = ("virtio-backend",)
    """What QEMU has as an object of its own behind the function; clients hear of its end, too."""
    properties = (
        *PciDevice.properties,
        Property("disable-legacy", "str", "auto", "on: no legacy interface"),
        Property("disable-modern", "bool", False, "on: no modern interface"),
        Property("vectors", "uint32", None, "MSI-X vectors; 0: interrupts go by the pin"),
        Property("indirect_desc", "bool", True, "offer indirect descriptors"),
        Property("event_idx", "bool", True, "offer event indices"),
        Property("notify_on_empty", "bool", True, "offer it to legacy drivers"),
        Property("any_layout", "bool", True, "offer it"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        legacy = self.values["disable-legacy"]
        if legacy not in ("auto", "on", "off"):
            raise PropertyError(f"Parameter 'disable-legacy' does not accept value '{legacy}'", self.driver)
        self.legacy = bool(self.transitional_id) and legacy != "on"
        self.modern = not self.values["disable-modern"]
        if not (self.legacy or self.modern):
            raise ConfigError(
                "device cannot work as neither modern nor legacy mode is enabled; "
                "Set either disable-modern or disable-legacy to 'off'"
            )
        self.queues: list[Virtqueue] = []
        self.dma: Dma
        self._timer: Timer
        self._window = 0
        self._power_on()

    def _power_on(self) -> None:
        self.status = 0
        self.isr = 0
        self.driver_features = 0
        self.broken = ""
        """How the guest broke a queue; empty if it has not."""
        self.generation = 0
        self._select = self._feature_select = self._driver_select = 0
        self._config_vector = r.NO_VECTOR
        self._waiting: dict[int, Virtqueue] = {}

    # What a subclass says.

    def acquire(self) -> None:
        """Take what is behind the device. Called by realize before the features are asked for."""

    def features(self) -> int:
        """Feature bits of the device type that it offers."""
        return 0

    def config_bytes(self) -> bytes:
        """The device's own configuration, `config_size` bytes."""
        return b""

    def config_written(self, data: bytes) -> None:
        """The driver wrote to it: all of it, as it would be then."""

    def handle(self, queue: Virtqueue) -> int | None:  # noqa: ARG002 (for subclasses)
        """Serve one chain of `queue`: what it cost, in bytes; None if there was nothing to serve."""
        return None

    def started(self) -> None:
        """The driver is ready."""

    def restart(self) -> None:
        """Forget what the driver told; the queues are empty."""

    # Life.

    def make_config(self) -> ConfigSpace:
        """Identity as QEMU's: a transitional function is of revision 0 and shows its type as subsystem."""
        if self.legacy:
            self.device_id, self.revision, self.subsystem = self.transitional_id, 0, (0x1AF4, self.virtio_id)
        else:
            self.device_id, self.revision = r.MODERN_DEVICE_ID + self.virtio_id, 1
        return super().make_config()

    def realize(self, board: Board) -> None:
        """Take slot, line and BARs."""
        super().realize(board)
        self.dma = Dma(self)
        self.queues = [Virtqueue(i, size, self.dma) for i, size in enumerate(self.queue_sizes)]
        self.acquire()
        self.host_features = self._offered()
        self._timer = board.clock.timer(f"{self.path}/queues", self._work)
        self.holdings.hold("timer", "virtio", self._timer.cancel)
        self._budgeted = board.clock.moves
        vectors = self.values["vectors"]
        if vectors is None:
            vectors = self.default_vectors if getattr(board, "default_msix", False) else 0
        if vectors > MAX_VECTORS:
            raise PropertyError(f"vectors={vectors}: at most {MAX_VECTORS}", self.driver, "vectors")
        if self.modern:
            self._add_capabilities()
            region = IoRegion("virtio-pci", r.MODERN_SIZE, self._modern_read, self._modern_write, max_access=4)
            self.register_bar(r.MODERN_BAR, region, mem64=True, prefetchable=True)
        if vectors:
            self.msix = Msix(self, vectors, MSIX_BAR, table=0, pba=MSIX_PBA)
            empty = IoRegion("virtio-msix", MSIX_SIZE, lambda _offset, _size: 0, lambda _offset, _size, _value: None)
            self.register_bar(MSIX_BAR, self.msix.wrap(empty))
        if self.legacy:
            size = 1 << (r.LEGACY_CONFIG_MSIX + self.config_size - 1).bit_length()
            region = IoRegion("virtio-pci-legacy", size, self._legacy_read, self._legacy_write, max_access=4)
            self.register_bar(0, region, io=True)

    def _offered(self) -> int:
        values = self.values
        return (
            self.features()
            | (r.F_INDIRECT_DESC if values["indirect_desc"] else 0)
            | (r.F_EVENT_IDX if values["event_idx"] else 0)
            | (r.F_ANY_LAYOUT if values["any_layout"] else 0)
            | (r.F_NOTIFY_ON_EMPTY if values["notify_on_empty"] and self.legacy else 0)
            | (r.F_VERSION_1 if self.modern else 0)
        )

    def _add_capabilities(self) -> None:
        """In QEMU's order, which is the reverse of how a driver finds them."""
        config = self.config
        cap = {"bar": r.MODERN_BAR, "length": r.AREA_SIZE, "cap_len": 16}
        areas = ((r.CAP_COMMON, r.AREA_COMMON), (r.CAP_ISR, r.AREA_ISR), (r.CAP_DEVICE, r.AREA_DEVICE))
        for kind, offset in areas:
            config.add_capability(r.CAP_VENDOR, r.Capability.build(cap | {"cfg_type": kind, "offset": offset}))
        notify = cap | {"cap_len": 20, "cfg_type": r.CAP_NOTIFY, "offset": r.AREA_NOTIFY}
        body = r.NotifyCapability.build({"cap": notify, "notify_off_multiplier": r.NOTIFY_MULTIPLIER})
        config.add_capability(r.CAP_VENDOR, body)
        body = r.PciCapability.build({"cap": {"cap_len": 20, "cfg_type": r.CAP_PCI}})
        writable = bytearray(len(body))
        for start, end in ((r.PCI_CAP_BAR, r.PCI_CAP_BAR + 1), (r.PCI_CAP_OFFSET, r.PCI_CAP_SIZE)):
            writable[start - 2 : end - 2] = b"\xff" * (end - start)
        self._window = config.add_capability(r.CAP_VENDOR, body, bytes(writable))

    def reset(self) -> None:
        """Power-on state."""
        super().reset()
        self._restart()

    def _restart(self) -> None:
        """What 0 in the device status does."""
        self._power_on()
        self._timer.cancel()
        for queue in self.queues:
            queue.reset()
        self.restart()
        self._update_pin()

    # Features and status.

    def has(self, feature: int) -> bool:
        """Whether a feature was offered and accepted."""
        return bool(self.driver_features & feature)

    @property
    def driver_ok(self) -> bool:
        """Whether the driver is ready and the device works."""
        return bool(self.status & r.STATUS_DRIVER_OK) and not self.broken

    def _accept_features(self, value: int) -> None:
        if self.status & r.STATUS_FEATURES_OK:
            return  # negotiation is over
        self.driver_features = value
        event_idx = bool(value & self.host_features & r.F_EVENT_IDX)
        for queue in self.queues:
            queue.event_idx = event_idx

    def _set_status(self, value: int) -> None:
        if self.board.trace.on:
            self.board.trace.emit(VirtioSetStatus(self.label, value))
        if not value:
            self._restart()
            return
        new = value & ~self.status
        if new & r.STATUS_FEATURES_OK and self.driver_features & ~self.host_features:
            value &= ~r.STATUS_FEATURES_OK  # the driver reads it back and gives up
        self.status = value & ~r.STATUS_NEEDS_RESET | self.status & r.STATUS_NEEDS_RESET
        if new & r.STATUS_DRIVER_OK:
            self.started()
            for queue in self.queues:
                self.wake(queue)

    # Interrupts.

    def _update_pin(self) -> None:
        self.set_intx(bool(self.isr) and not (self.msix is not None and self.msix.enabled))

    def _interrupt(self, isr: int, vector: int) -> None:
        self.isr |= isr
        if self.board.trace.on:
            self.board.trace.emit(VirtioNotify(self.label, self.isr, vector))
        if self.msix is not None and self.msix.enabled:
            if vector != r.NO_VECTOR:
                self.msix.notify(vector)
        else:
            self.set_intx(True)

    def config_interrupt(self) -> None:
        """Tell the driver that the device's own configuration changed. Sets both bits of ISR status, as QEMU does."""
        self.generation = (self.generation + 1) & 0xFF
        if self.status & r.STATUS_DRIVER_OK:
            self._interrupt(r.ISR_QUEUE | r.ISR_CONFIG, self._config_vector)

    def notify(self, queue: Virtqueue) -> None:
        """Interrupt for what was given back on `queue`, if the driver wants to hear of it."""
        try:
            wanted = queue.wants_interrupt(self.has(r.F_NOTIFY_ON_EMPTY))
        except QueueBroken as reason:
            self.fail(str(reason))
            return
        if wanted:
            self._interrupt(r.ISR_QUEUE, queue.vector)

    def fail(self, reason: str) -> None:
        """The guest broke the rules: do nothing until it resets the device. Ref: VIRTIO 1.2, 2.1.2."""
        if self.broken:
            return
        self.broken = reason
        self._waiting.clear()
        self._timer.cancel()
        if self.board.trace.on:
            self.board.trace.emit(VirtioError(self.label, reason))
        if self.has(r.F_VERSION_1):
            self.status |= r.STATUS_NEEDS_RESET
            self.config_interrupt()

    # Queues.

    def ready(self, queue: Virtqueue) -> bool:
        """Whether the device may look into a queue. A legacy driver may use one before it says DRIVER_OK."""
        if not queue.enabled or self.broken:
            return False
        return bool(self.status & r.STATUS_DRIVER_OK) or not self.has(r.F_VERSION_1)

    def wake(self, queue: Virtqueue) -> None:
        """Serve a queue now, and what is too much for one turn later."""
        if self.ready(queue):
            self._serve(queue)
            self._go_on()

    def _notified(self, index: int) -> None:
        if index >= len(self.queues):
            return
        if self.board.trace.on:
            self.board.trace.emit(VirtioQueueNotify(self.label, index))
        if index not in self._waiting:
            self.wake(self.queues[index])

    def _serve(self, queue: Virtqueue) -> None:
        budget, chains = BATCH_BYTES, BATCH_CHAINS
        self._waiting.pop(queue.index, None)
        before = queue.used_index
        try:
            while (cost := self.handle(queue)) is not None:
                budget -= cost
                chains -= 1
                if (budget <= 0 or chains <= 0) and self._budgeted:
                    self._waiting[queue.index] = queue
                    break
        except QueueBroken as reason:
            self.fail(str(reason))
            return
        if queue.used_index != before:
            self.notify(queue)

    def _go_on(self) -> None:
        if self._waiting and self._timer.deadline is None:
            self._timer.arm(self.board.clock.now())

    def _work(self) -> None:
        for queue in list(self._waiting.values()):
            if self.ready(queue):
                self._serve(queue)
        self._go_on()

    # The driver's view of a queue, shared by both interfaces.

    @property
    def _selected(self) -> Virtqueue | None:
        return self.queues[self._select] if self._select < len(self.queues) else None

    def _vector(self, value: int) -> int:
        count = self.msix.vectors if self.msix is not None else 0
        return value if value < count else r.NO_VECTOR

    # Legacy interface. Ref: VIRTIO 1.2, 4.1.4.10.

    def _legacy_config(self) -> int:
        msix_on = self.msix is not None and self.msix.enabled
        return r.LEGACY_CONFIG_MSIX if msix_on else r.LEGACY_CONFIG

    def _legacy_read(self, offset: int, size: int) -> int:
        config = self._legacy_config()
        if offset >= config:
            return self._own_read(offset - config, size)
        queue = self._selected
        if offset == r.LEGACY_FEATURES:
            return self.host_features & _M32
        if offset == r.LEGACY_DRIVER_FEATURES:
            return self.driver_features & _M32
        if offset == r.LEGACY_QUEUE_ADDRESS:
            return queue.desc // r.LEGACY_ALIGN & _M32 if queue is not None else 0
        if offset == r.LEGACY_QUEUE_SIZE:
            return queue.max_size if queue is not None else 0
        if offset == r.LEGACY_QUEUE_SELECT:
            return self._select
        if offset == r.LEGACY_STATUS:
            return self.status
        if offset == r.LEGACY_ISR:
            return self._read_isr()
        if offset == r.LEGACY_CONFIG_VECTOR:
            return self._config_vector
        if offset == r.LEGACY_QUEUE_VECTOR:
            return queue.vector if queue is not None else r.NO_VECTOR
        return _M32

    def _read_isr(self) -> int:
        value, self.isr = self.isr, 0
        self.set_intx(False)
        return value

    def _legacy_write(self, offset: int, size: int, value: int) -> None:
        config = self._legacy_config()
        queue = self._selected
        if offset >= config:
            self._own_write(offset - config, size, value)
        elif offset == r.LEGACY_DRIVER_FEATURES:
            self._accept_features(value & self.host_features & _M32)
        elif offset == r.LEGACY_QUEUE_ADDRESS:
            if not value:
                self._restart()
            elif queue is not None:
                queue.place_legacy((value & _M32) * r.LEGACY_ALIGN)
        elif offset == r.LEGACY_QUEUE_SELECT:
            self._select = value & 0xFFFF
        elif offset == r.LEGACY_QUEUE_NOTIFY:
            self._notified(value & 0xFFFF)
        elif offset == r.LEGACY_STATUS:
            if value & r.STATUS_DRIVER_OK and not self.bus_master:
                # Linux before 2.6.34 forgot it; QEMU does the same for it.
                command = self.config.get(cfg.COMMAND, 2)
                self.config.set(cfg.COMMAND, 2, command | cfg.COMMAND_MASTER)
            self._set_status(value & 0xFF)
        elif offset == r.LEGACY_CONFIG_VECTOR:
            self._config_vector = self._vector(value & 0xFFFF)
        elif offset == r.LEGACY_QUEUE_VECTOR and queue is not None:
            queue.vector = self._vector(value & 0xFFFF)

    # Modern interface. Ref: VIRTIO 1.2, 4.1.4.3 to 4.1.4.6.

    def _modern_read(self, offset: int, size: int) -> int:
        area, at = offset & ~(r.AREA_SIZE - 1), offset & r.AREA_SIZE - 1
        if area == r.AREA_COMMON:
            return self._common_read(at)
        if area == r.AREA_ISR:
            return self._read_isr() if not at else 0
        if area == r.AREA_DEVICE:
            return self._own_read(at, size)
        return 0

    def _modern_write(self, offset: int, size: int, value: int) -> None:
        area, at = offset & ~(r.AREA_SIZE - 1), offset & r.AREA_SIZE - 1
        if area == r.AREA_NOTIFY:
            self._notified(at // r.NOTIFY_MULTIPLIER)
        elif area == r.AREA_COMMON:
            self._common_write(at, value)
        elif area == r.AREA_DEVICE:
            self._own_write(at, size, value)

    def _common_read(self, at: int) -> int:
        if at < r.COMMON_CONFIG_VECTOR:
            if at == r.COMMON_DEVICE_FEATURE:
                return (self.host_features & ~r.LEGACY_ONLY) >> 32 * self._feature_select & _M32
            if at == r.COMMON_DRIVER_FEATURE:
                return self.driver_features >> 32 * self._driver_select & _M32
            select = {r.COMMON_DEVICE_FEATURE_SELECT: self._feature_select}
            return select.get(at, self._driver_select if at == r.COMMON_DRIVER_FEATURE_SELECT else 0)
        if at < r.COMMON_QUEUE_SIZE:
            return {
                r.COMMON_CONFIG_VECTOR: self._config_vector,
                r.COMMON_NUM_QUEUES: len(self.queues),
                r.COMMON_STATUS: self.status,
                r.COMMON_GENERATION: self.generation,
                r.COMMON_QUEUE_SELECT: self._select,
            }.get(at, 0)
        queue = self._selected
        if queue is None:
            return r.NO_VECTOR if at == r.COMMON_QUEUE_VECTOR else 0
        if at >= r.COMMON_QUEUE_DESC:
            address = {0: queue.desc, 1: queue.avail, 2: queue.used}.get(at - r.COMMON_QUEUE_DESC >> 3, 0)
            return address >> 8 * (at & 4) & _M32
        return {
            r.COMMON_QUEUE_SIZE: queue.size,
            r.COMMON_QUEUE_VECTOR: queue.vector,
            r.COMMON_QUEUE_ENABLE: int(queue.enabled),
            r.COMMON_QUEUE_NOTIFY_OFF: queue.index,
        }.get(at, 0)

    def _common_write(self, at: int, value: int) -> None:
        if at == r.COMMON_DEVICE_FEATURE_SELECT:
            self._feature_select = min(value, 2)  # beyond the second word there are no features
        elif at == r.COMMON_DRIVER_FEATURE_SELECT:
            self._driver_select = min(value, 2)
        elif at == r.COMMON_DRIVER_FEATURE:
            shift = 32 * self._driver_select
            if shift < 64:
                self._accept_features(self.driver_features & ~(_M32 << shift) | (value & _M32) << shift)
        elif at == r.COMMON_STATUS:
            self._set_status(value & 0xFF)
        elif at == r.COMMON_QUEUE_SELECT:
            self._select = value & 0xFFFF
        elif at == r.COMMON_CONFIG_VECTOR:
            self._config_vector = self._vector(value & 0xFFFF)
        elif at >= r.COMMON_QUEUE_SIZE and (queue := self._selected) is not None:
            self._queue_write(queue, at, value)

    def _queue_write(self, queue: Virtqueue, at: int, value: int) -> None:
        if at == r.COMMON_QUEUE_VECTOR:
            queue.vector = self._vector(value & 0xFFFF)
        elif queue.enabled:
            return  # the rest is set once
        elif at == r.COMMON_QUEUE_SIZE:
            size = value & 0xFFFF
            if size and not size & (size - 1) and size <= queue.max_size:
                queue.size = size
        elif at == r.COMMON_QUEUE_ENABLE:
            queue.enabled = value & 0xFFFF == 1
        elif r.COMMON_QUEUE_DESC <= at < r.COMMON_QUEUE_DEVICE + 8 and not at & 3:
            shift = 8 * (at & 4)
            keep, part = ~(_M32 << shift), (value & _M32) << shift
            if at < r.COMMON_QUEUE_DRIVER:
                queue.desc = queue.desc & keep | part
            elif at < r.COMMON_QUEUE_DEVICE:
                queue.avail = queue.avail & keep | part
            else:
                queue.used = queue.used & keep | part

    # The device's own configuration.

    def _own_read(self, at: int, size: int) -> int:
        return int.from_bytes(self.config_bytes()[at : at + size], "little")

    def _own_write(self, at: int, size: int, value: int) -> None:
        if at + size <= self.config_size:
            data = bytearray(self.config_bytes())
            data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            self.config_written(bytes(data))

    # Configuration space: the window, MSI-X.

    def config_read(self, offset: int, size: int) -> int:
        """pci_cfg_data reads what the window shows."""
        window = self._window
        if window and window + r.PCI_CAP_DATA < offset + size and offset < window + r.PCI_CAP_SIZE:
            found = self._through_window()
            if found is not None:
                region, at, length = found
                self.config.set(window + r.PCI_CAP_DATA, length, region.read(at, length) & (1 << 8 * length) - 1)
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A write to pci_cfg_data goes where the window shows; enabling MSI-X lets go of the pin."""
        super().config_write(offset, size, value)
        window = self._window
        if window and window + r.PCI_CAP_DATA < offset + size and offset < window + r.PCI_CAP_SIZE:
            found = self._through_window()
            if found is not None:
                region, at, length = found
                region.write(at, length, self.config.get(window + r.PCI_CAP_DATA, length))
        if self.msix is not None and offset >= cfg.HEADER_SIZE:
            self._update_pin()

    def _through_window(self) -> tuple[IoRegion, int, int] | None:
        """The region, offset and length that the window shows; None if it shows nothing."""
        data = self.config.get
        bar, at = data(self._window + r.PCI_CAP_BAR, 1), data(self._window + r.PCI_CAP_OFFSET, 4)
        length = data(self._window + r.PCI_CAP_LENGTH, 4)
        region = next((b.region for b in self.bars if b.index == bar), None)
        if region is None or length not in _WINDOW or at % length or at + length > region.size:
            return None
        return None if length < region.min_access else (region, at, length)
