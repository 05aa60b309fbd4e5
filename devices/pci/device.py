"""The base of all PCI functions: configuration space, BARs, INTx and DMA.

A device is a page:

    class Counter(PciDevice):
        driver = "counter"
        vendor_id, device_id, class_id, interrupt_pin = 0x1234, 0x0001, 0x00FF, 1

        def realize(self, board):
            super().realize(board)
            self.register_bar(0, IoRegion("counter-mmio", 0x1000, self.read, self.write, min_access=4, max_access=4))

        def read(self, offset, size):
            return self.count

        def write(self, offset, size, value):
            self.count = value
            self.set_intx(value > 100)

The base takes the slot, follows COMMAND and the BARs as the guest writes them, and gives everything back at unplug:
the line goes low and no address answers any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from devices.device import Device, Property
from devices.pci import config as cfg
from devices.pci.bus import function_of, pirq_of, slot_of
from devices.pci.info import CLASS_DESCRIPTIONS, UNMAPPED, PciDeviceInfo, PciRegionInfo
from vmm.errors import ConfigError
from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Board
    from devices.pci.bus import PciBus
    from devices.pci.msi import Msi, Msix
    from vmm.lines import LevelLine
    from vmm.memory import IoRegion, Mapping

MAPPING_PRIORITY_IO = 1
"""A BAR is decoded positively, ISA ports are what is left over."""
MAPPING_PRIORITY_MEMORY = -1
"""The IOAPIC and the local APICs answer before the PCI bus sees an access."""

_BAR_IO = 0x1
_BAR_MEMORY_64 = 0x4
_BAR_PREFETCHABLE = 0x8
_LAST_32 = 0xFFFF_FFFF
_LAST_64 = 0xFFFF_FFFF_FFFF_FFFF


class PciCfgWrite(Event):
    """A guest wrote to configuration space."""

    device: str
    slot: int
    function: int
    offset: int
    value: int


class PciUpdateMappingsAdd(Event):
    """A BAR answers at `address` from now on."""

    device: str
    bar: int
    address: int
    size: int


class PciUpdateMappingsDel(Event):
    """A BAR answers at `address` no more."""

    device: str
    bar: int
    address: int
    size: int


class PciWireIntx(Event):
    """A device's interrupt pin was connected to a PIRQ (0 to 3) of its bus, or taken off it."""

    device: str
    bus: str
    pirq: int
    wired: bool


class PciSetIntx(Event):
    """A device drives its interrupt pin; `disabled` is INTx disable of COMMAND, which keeps it off the wire."""

    device: str
    level: bool
    disabled: bool


class Bar:
    """A base address register and the region behind it. `address` is -1 while it answers nowhere."""

    __slots__ = ("address", "index", "io", "mapping", "mem64", "prefetchable", "region")

    def __init__(self, index: int, region: IoRegion, io: bool, mem64: bool, prefetchable: bool) -> None:
        self.index = index
        self.region = region
        self.io = io
        self.mem64 = mem64
        self.prefetchable = prefetchable
        self.address = UNMAPPED
        self.mapping: Mapping | None = None

    def decode(self, config: cfg.ConfigSpace) -> int:
        """Where COMMAND and the register say it answers; -1 for nowhere.

        As in QEMU, address 0 and a range that reaches the end of what the register can hold are no addresses:
        software writes all ones there to find the size.
        """
        command = config.data[cfg.COMMAND]
        offset = cfg.BASE_ADDRESS_0 + 4 * self.index
        size = self.region.size
        if self.io:
            if not command & cfg.COMMAND_IO:
                return UNMAPPED
            address = config.get(offset, 4) & ~(size - 1) & ~3
            return UNMAPPED if address == 0 or address + size - 1 >= _LAST_32 else address
        if not command & cfg.COMMAND_MEMORY:
            return UNMAPPED
        address = config.get(offset, 8 if self.mem64 else 4) & ~(size - 1) & ~0xF
        last = _LAST_64 if self.mem64 else _LAST_32
        return UNMAPPED if address == 0 or address + size - 1 >= last else address

    def info(self) -> PciRegionInfo:
        """As `query-pci` shows it."""
        kind = "io" if self.io else "memory"
        return PciRegionInfo(self.index, kind, self.region.size, self.address, self.prefetchable, self.mem64)


class Doorbell(NamedTuple):
    """A write to a BAR that tells no more than that it happened: `datamatch` at `offset`, or anything (None).

    A device that lists one in `doorbells` lets a remote client make this write by signalling an eventfd; the BAR's
    `write` is called as ever, once for what may have been several, with 0 for a value that is not told.
    """

    bar: int
    offset: int
    size: int
    datamatch: int | None = None


class PciDevice(Device):
    """A function on a PCI bus.

    The machine sets `bus` (and `hotplugged`) before realize. After it `devfn` says where the device is. Class
    attributes give the identity; a subclass adds its registers with `register_bar` and drives `set_intx`.
    """

    bus_type = "PCI"
    hotpluggable = True
    properties: ClassVar[tuple[Property, ...]] = (
        Property("addr", "devfn", -1, "Slot and optional function number, example: 06.0 or 06"),
        Property("multifunction", "bool", False, "on/off"),
        Property("acpi-index", "uint32", 0),
    )

    vendor_id: int = 0x1AF4
    device_id: int = 0
    class_id: int = 0x00FF
    """Base class << 8 | subclass."""
    prog_if: int = 0
    revision: int = 0
    subsystem: tuple[int, int] = (0x1AF4, 0x1100)
    """Subsystem vendor and subsystem id."""
    interrupt_pin: int = 0
    """0: none, 1..4: INTA#..INTD#."""

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.bus: PciBus | None = None
        self.hotplugged = False
        self.devfn = -1
        self.bars: list[Bar] = []
        self.config: cfg.ConfigSpace
        self.intx_level = False
        """What the device drives, whether or not it gets to the wire."""
        self.msi: Msi | None = None
        self.msix: Msix | None = None
        """Message signalled interrupts, set by a subclass that has them; see `devices.pci.msi`."""
        self.message_sink: Callable[[int, int], None] | None = None
        """Takes messages instead of memory, as (VFIO's interrupt index, vector)."""
        self.doorbells: list[Doorbell] = []
        """Writes that another process may make by eventfd."""
        self._intx_disabled = False
        self._line: LevelLine | None = None

    def make_config(self) -> cfg.ConfigSpace:
        """The configuration space at power-on, made by realize; a subclass may add to it."""
        return cfg.ConfigSpace(
            vendor_id=self.vendor_id,
            device_id=self.device_id,
            revision=self.revision,
            prog_if=self.prog_if,
            class_id=self.class_id,
            header_type=cfg.HEADER_TYPE_MULTIFUNCTION if self.multifunction else 0,
            subsystem_vendor_id=self.subsystem[0],
            subsystem_id=self.subsystem[1],
            interrupt_pin=self.interrupt_pin,
        )

    @property
    def multifunction(self) -> bool:
        """Whether function 0 says that there are others."""
        return bool(self.values["multifunction"])

    @property
    def slot(self) -> int:
        """Device number on the bus."""
        return slot_of(self.devfn)

    @property
    def function(self) -> int:
        """Function number in the slot."""
        return function_of(self.devfn)

    @property
    def address_text(self) -> str:
        """`bus:slot.function` in hexadecimal, as lspci writes it."""
        number = self.bus.number if self.bus is not None else 0
        return f"{number:02x}:{self.slot:02x}.{self.function:x}"

    @property
    def label(self) -> str:
        """What traces and wires call it: its id, or what it is and where."""
        return self.id or f"{self.driver}@{self.address_text}"

    # Life.

    def realize(self, board: Board) -> None:
        """Take the slot and the interrupt line. InUse or ConfigError in QEMU's words if the slot is not to be had."""
        super().realize(board)
        bus = self.bus
        if bus is None:
            raise ConfigError(f"No 'PCI' bus found for device '{self.driver}'")
        devfn = bus.find_devfn(self, self.values["addr"])
        self.config = self.make_config()
        bus.attach(self, devfn)
        self.devfn = devfn
        self.holdings.hold("pci-slot", self.address_text, lambda: bus.detach(devfn))
        self.values["addr"] = devfn
        if self.interrupt_pin:
            wire = bus.pirqs[pirq_of(devfn, self.interrupt_pin)]
            self._line = line = wire.hold(self.label)
            self.holdings.hold("wire-holder", wire.name, line.close)
            self._trace_wire(True)

    def unrealize(self) -> None:
        """Lower the line, unmap the BARs, leave the slot."""
        if self._line is not None:
            self._trace_wire(False)
        super().unrealize()
        self.intx_level = False
        self._line = None

    def _trace_wire(self, wired: bool) -> None:
        trace = self.board.trace
        if trace.on and self.bus is not None:
            trace.emit(PciWireIntx(self.label, self.bus.name, pirq_of(self.devfn, self.interrupt_pin), wired))

    def reset(self) -> None:
        """Configuration space as at power-on: no BAR answers, no bus master, the line is low."""
        if self.intx_level:
            self.intx_level = False
            if self.board.trace.on:
                self._trace_intx()
        self.config.reset()
        for vectors in (self.msi, self.msix):
            if vectors is not None:
                vectors.reset()
        self._intx_disabled = False
        if self._line is not None:
            self._line.set(False)
        self.update_mappings()

    # Configuration space.

    def config_read(self, offset: int, size: int) -> int:
        """A guest's read of 1, 2 or 4 bytes, naturally aligned or at least inside one dword."""
        return self.config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write. A subclass with registers of its own calls this first and looks at the result."""
        self.config.write(offset, size, value)
        trace = self.board.trace
        if trace.on:
            trace.emit(PciCfgWrite(self.driver, self.slot, self.function, offset, value))
        if offset < cfg.STATUS:
            if offset + size > cfg.COMMAND:
                self.update_intx()
                self.update_mappings()
        elif cfg.BASE_ADDRESS_0 <= offset < cfg.BASE_ADDRESS_END:
            self.update_mappings()
        elif offset >= cfg.HEADER_SIZE:
            for vectors in (self.msi, self.msix):
                if vectors is not None:
                    vectors.config_written(offset, size)

    # BARs.

    def register_bar(
        self, index: int, region: IoRegion, io: bool = False, mem64: bool = False, prefetchable: bool = False
    ) -> Bar:
        """Put `region` behind base address register `index`, from where the guest maps it.

        `io`: I/O ports, else memory; `mem64`: a 64-bit BAR, which takes register `index` + 1 too. The size must be a
        power of two, at least 4 (I/O) or 16 (memory) bytes, and I/O at most 256 (PCI 3.0, 6.2.5.1).
        """
        size = region.size
        what = f"{self.driver}: BAR{index}"
        if not 0 <= index <= (4 if mem64 else 5):
            raise ConfigError(f"{what}: there are BARs 0 to 5, and a 64-bit one takes two")
        if size & (size - 1) or size < (4 if io else 16) or (not mem64 and size > 1 << 31):
            fit = min(max(1 << (size - 1).bit_length(), 4 if io else 16), 1 << 31) if size > 0 else 0x1000
            raise ConfigError(
                f"{what}: a size of {size:#x} bytes is not a power of two that the register can hold; make it {fit:#x}"
            )
        if io and (mem64 or prefetchable):
            raise ConfigError(f"{what}: I/O space is neither 64-bit nor prefetchable")
        registers = {index, index + 1} if mem64 else {index}
        for bar in self.bars:
            if registers & ({bar.index, bar.index + 1} if bar.mem64 else {bar.index}):
                raise ConfigError(f"{what} overlaps BAR{bar.index} ({bar.region.name})")
        bar = Bar(index, region, io, mem64, prefetchable)
        flags = _BAR_IO if io else (_BAR_MEMORY_64 if mem64 else 0) | (_BAR_PREFETCHABLE if prefetchable else 0)
        width = 8 if mem64 else 4
        mask = ~(size - 1) & ((1 << 8 * width) - 1)
        self.config.define(cfg.BASE_ADDRESS_0 + 4 * index, width, flags, mask=mask)
        self.bars.append(bar)
        self.bars.sort(key=lambda b: b.index)
        self.holdings.hold("pci-bar", f"BAR{index}", lambda: self._drop_bar(bar))
        return bar

    def _drop_bar(self, bar: Bar) -> None:
        self._move(bar, UNMAPPED)
        self.bars.remove(bar)

    def update_mappings(self) -> None:
        """Let every BAR answer where COMMAND and its register say."""
        for bar in self.bars:
            address = bar.decode(self.config)
            if address != bar.address:
                self._move(bar, address)

    def _move(self, bar: Bar, address: int) -> None:
        trace = self.board.trace
        space = self.board.ports if bar.io else self.board.mmio
        size = bar.region.size
        if bar.mapping is not None:
            if trace.on:
                trace.emit(PciUpdateMappingsDel(self.driver, bar.index, bar.address, size))
            bar.mapping.close()
            bar.mapping = None
        bar.address = address
        if address != UNMAPPED and address + size <= space.size:  # an I/O BAR may point beyond the 64 Ki ports
            priority = MAPPING_PRIORITY_IO if bar.io else MAPPING_PRIORITY_MEMORY
            bar.mapping = space.map(address, bar.region, priority)
            if trace.on:
                trace.emit(PciUpdateMappingsAdd(self.driver, bar.index, address, size))

    # INTx.

    def set_intx(self, level: bool) -> None:
        """Drive the interrupt pin. STATUS shows the level; the wire follows unless COMMAND disables INTx.

        Ref: PCI 3.0, 6.2.2 (Interrupt Disable), 6.2.3 (Interrupt Status).
        """
        if level == self.intx_level:
            return
        self.intx_level = level
        data = self.config.data
        if level:
            data[cfg.STATUS] |= cfg.STATUS_INTERRUPT
        else:
            data[cfg.STATUS] &= ~cfg.STATUS_INTERRUPT & 0xFF
        if self.board.trace.on:
            self._trace_intx()
        line = self._line
        if line is not None:
            line.set(level and not self._intx_disabled)

    def update_intx(self) -> None:
        """Let the wire follow INTx disable of COMMAND."""
        disabled = bool(self.config.data[cfg.COMMAND + 1] & cfg.COMMAND_INTX_DISABLE >> 8)
        if disabled != self._intx_disabled:
            self._intx_disabled = disabled
            if self.intx_level and self.board.trace.on:
                self._trace_intx()
            if self._line is not None:
                self._line.set(self.intx_level and not disabled)

    def _trace_intx(self) -> None:
        self.board.trace.emit(PciSetIntx(self.label, self.intx_level, self._intx_disabled))

    # DMA.

    @property
    def bus_master(self) -> bool:
        """Whether the guest lets the device reach memory."""
        return bool(self.config.data[cfg.COMMAND] & cfg.COMMAND_MASTER)

    def dma_read(self, address: int, length: int) -> bytes:
        """Guest memory at a bus address; all ones if bus mastering is off, and where there is no RAM."""
        if not self.bus_master:
            return b"\xff" * length
        return self.board.memory.read(address, length)

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store into guest memory; lost if bus mastering is off, and where there is no RAM."""
        if self.bus_master:
            self.board.memory.write(address, data)

    # Migration. A subclass that can be taken to another process adds its registers.

    migratable: ClassVar[bool] = False
    """Whether `save_state` has all that the device is."""

    def save_state(self) -> dict[str, Any]:
        """What makes the function what it is now, in values that JSON knows."""
        state: dict[str, Any] = {"config": bytes(self.config).hex(), "intx": self.intx_level}
        for name, vectors in (("msi", self.msi), ("msix", self.msix)):
            if vectors is not None:
                state[name] = vectors.save_state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Be what `save_state` said. KeyError, TypeError or ValueError if that is no state of such a function."""
        self.config.load(bytes.fromhex(state["config"]))
        for name, vectors in (("msi", self.msi), ("msix", self.msix)):
            if vectors is not None:
                vectors.load_state(state[name])
        self.update_intx()
        self.update_mappings()
        self.set_intx(bool(state["intx"]))

    # Queries.

    def pci_info(self) -> PciDeviceInfo:
        """The function as `query-pci` shows it."""
        get = self.config.get
        return PciDeviceInfo(
            bus=self.bus.number if self.bus is not None else 0,
            slot=self.slot,
            function=self.function,
            vendor=get(0, 2),
            device=get(2, 2),
            class_code=get(cfg.CLASS_DEVICE, 2),
            class_desc=CLASS_DESCRIPTIONS.get(get(cfg.CLASS_DEVICE, 2), ""),
            subsystem_vendor=get(cfg.SUBSYSTEM_VENDOR_ID, 2),
            subsystem=get(cfg.SUBSYSTEM_VENDOR_ID + 2, 2),
            irq=get(cfg.INTERRUPT_LINE, 1),
            irq_pin=get(cfg.INTERRUPT_PIN, 1),
            qdev_id=self.id or "",
            regions=tuple(bar.info() for bar in self.bars),
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id or ''} at {self.address_text}>"
