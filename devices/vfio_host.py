"""A PCI device of the host, bound to its vfio-pci driver and waiting to be handed to a machine.

    -object vfio-host-device,id=h0,driver=edu[,PROPERTY=VALUE...] -device vfio-pci,x-host-object=h0

`driver` is any PCI device type; it is realized on a bus and a board of the host, where its interrupt wire ends in
VFIO's handler and its DMA goes to the machine's memory at guest-physical addresses, as behind an IOMMU. It has power
as long as the object exists; one vfio-pci at a time can have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.pci.bus import PciBus, pirq_of
from devices.pci.device import PciDevice
from devices.vfio import VfioDevice
from vmm.errors import ConfigError, InUse, PropertyError
from vmm.lifecycle import Ledger
from vmm.memory import AddressSpace

if TYPE_CHECKING:
    from vmm.block_graph import BlockGraph
    from vmm.clock import Clock
    from vmm.kernel.files import DescriptorTable
    from vmm.lines import LevelLine
    from vmm.memory import GuestMemory
    from vmm.order import Executor
    from vmm.trace import Trace

_OWN = {"x-pci-2-3": True}
"""Properties of the object itself; all others go to the device."""


class HostBoard:
    """What the host-side device sees: address spaces of the host, the machine's memory and clock."""

    def __init__(self, memory: GuestMemory, clock: Clock, trace: Trace) -> None:
        self.ports = AddressSpace.ports()
        self.mmio = AddressSpace.memory()
        self.memory = memory
        self.clock = clock
        self.trace = trace
        self.ledger = Ledger()
        self.blocks: BlockGraph | None = None
        """Drives, where there are any."""

    def isa_irq(self, holder: str, irq: int) -> LevelLine:
        """ConfigError: a PCI device has no ISA interrupt."""
        raise ConfigError(f"{holder}: there is no ISA interrupt {irq} on the host's PCI bus")

    def request_reset(self, reason: str) -> None:
        """A device of a machine's user does not reset the host."""

    def request_shutdown(self, reason: str, status: int = 0) -> None:
        """Nor does it end the host."""


class VfioHostDevice:
    """The object. `in_use` is the id of the vfio-pci that has the device, `device` the host-side device."""

    qom_type = "vfio-host-device"

    def __init__(self, id: str, device: PciDevice, board: HostBoard, pci_2_3: bool) -> None:
        self.id = id
        self.device = device
        self.in_use: str | None = None
        self._pci_2_3 = pci_2_3
        self._handle: VfioDevice | None = None
        if device.interrupt_pin:
            assert device.bus is not None
            device.bus.pirqs[pirq_of(device.devfn, device.interrupt_pin)].connect(self._line_changed)
        self.ledger = board.ledger

    @classmethod
    def create(cls, id: str, properties: dict[str, object], from_text: bool, board: Any) -> VfioHostDevice:
        """Realize the device on the host. PropertyError or ConfigError, and nothing is left, if that fails."""
        given = dict(properties)
        driver = given.pop("driver", None)
        if driver is None:
            raise PropertyError("Parameter 'driver' is missing", cls.qom_type, "driver")
        own = {name: given.pop(name, default) for name, default in _OWN.items()}
        pci_2_3 = own["x-pci-2-3"]
        if from_text and isinstance(pci_2_3, str):
            pci_2_3 = {"on": True, "off": False}.get(pci_2_3, pci_2_3)
        if not isinstance(pci_2_3, bool):
            raise PropertyError("Parameter 'x-pci-2-3' expects 'on' or 'off'", cls.qom_type, "x-pci-2-3")
        kind = board.device_class(str(driver))
        if kind is None:
            raise ConfigError(f"'{driver}' is not a valid device model name")
        if not issubclass(kind, PciDevice) or not kind.user_creatable or hasattr(kind, "wants_host_object"):
            raise ConfigError(f"{cls.qom_type}: '{driver}' is no PCI device that a host could have")
        device = kind(id, **kind.parse(given, from_text))
        device.path = device.life.device = f"/objects/{id}"
        device.bus = PciBus(f"host-{id}")
        host = HostBoard(board.memory, board.clock, board.trace)
        try:
            device.realize(host)
        except Exception:
            device.holdings.close()
            raise
        return cls(id, device, host, pci_2_3)

    def open(self, user: str, files: DescriptorTable, executor: Executor, trace: Trace) -> VfioDevice:
        """Hand the device to `user`. InUse if somebody has it."""
        if self._handle is not None:
            holder = self.in_use or "monitor"
            raise InUse(f"host device '{self.id}' is in use by '{holder}'", holder=holder)
        handle = self.open_by_hand(files, executor, trace)
        self.in_use = user
        return handle

    def open_by_hand(self, files: DescriptorTable, executor: Executor, trace: Trace) -> VfioDevice:
        """Hand the device to a monitor's commands, until the object is deleted; the same again if they have it."""
        if self._handle is None:
            self._handle = VfioDevice(self.device, files, executor, trace, self._pci_2_3)
        return self._handle

    def release(self) -> None:
        """The user gives the device back: interrupts off, reset. A second time does nothing."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        self.in_use = None

    def _line_changed(self, level: bool) -> None:
        if self._handle is not None:
            self._handle.line_changed(level)

    def close(self) -> None:
        """Switch the device off."""
        self.release()
        self.device.unrealize()
