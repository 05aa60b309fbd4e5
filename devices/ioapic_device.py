"""The I/O APIC as a device of the board: `-device ioapic` properties, its window in memory, reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.device import Device, Property
from devices.ioapic_kvm import KvmIoApic
from devices.ioapic_qemu import QemuIoApic
from vmm.errors import PropertyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.apic_bus import ApicBus
    from devices.device import Board
    from devices.ioapic import AckNotifiers, IoApic
    from vmm.order import WorkQueue


class IoApicDevice(Device):
    """The 82093AA. The board calls `wire` before `realize`, and finds the chip in `chip` afterwards."""

    driver = "ioapic"
    description = "82093AA I/O APIC"
    properties = (
        Property("version", "uint8", None, "contents of the version register: 0x20 (with EOI register) or 0x11"),
        Property("personality", "str", "kvm", "whose rules to follow: kvm or qemu"),
    )
    user_creatable = False

    def __init__(self, id: str | None = None, **values: object) -> None:
        super().__init__(id, **values)
        self.chip: IoApic
        self._bus: ApicBus
        self._acks: AckNotifiers | None = None
        self._queue: WorkQueue | None = None
        self._pic_read_irq: Callable[[], int] | None = None

    def wire(
        self,
        bus: ApicBus,
        acks: AckNotifiers | None = None,
        queue: WorkQueue | None = None,
        pic_read_irq: Callable[[], int] | None = None,
    ) -> None:
        """The APIC bus, who hears of EOIs, the queue that the storm limiter's work runs on, and the 8259 pair's
        acknowledge cycle, from which QEMU's chip takes the vector of an ExtINT entry."""
        self._bus = bus
        self._pic_read_irq = pic_read_irq
        self._acks = acks
        self._queue = queue

    def realize(self, board: Board) -> None:
        """Answer at 0xfec00000. PropertyError for a personality or version that there is none of."""
        super().realize(board)
        personality, version = self.values["personality"], self.values["version"]
        if personality == "kvm":
            if version not in (None, 0x11):
                raise PropertyError("ioapic: the kvm personality is version 0x11", self.driver, "version")
            self.chip = KvmIoApic(self._bus, board.clock, board.trace, self._acks, self._queue, self.id or self.driver)
        elif personality == "qemu":
            if version not in (None, 0x11, 0x20):
                raise PropertyError("IOAPIC version 0x11 or 0x20 supported", self.driver, "version")
            chip = QemuIoApic(self._bus, board.clock, board.trace, self._acks, self._queue, self.id or self.driver)
            chip.version = 0x20 if version is None else version
            if self._pic_read_irq is not None:
                chip.pic_read_irq = self._pic_read_irq
            self.chip = chip
        else:
            raise PropertyError(f"ioapic: personality {personality!r}: use kvm or qemu", self.driver, "personality")
        self.holdings.hold("apic-bus", self.chip.name, self.chip.close)
        self.map_memory(self.chip.base_address, self.chip.region)

    def reset(self) -> None:
        self.chip.reset()
