"""The PC's serial ports COM1 to COM4: a 16550A at I/O ports, on an ISA interrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.device import Device, Property
from devices.uart16550 import Uart16550, find_backend
from vmm.errors import PropertyError

if TYPE_CHECKING:
    from devices.device import Board
    from vmm.chardev import CharBackend


class IsaSerial(Device):
    """One serial port. `backend` is its character device; without one nothing is at the other end of the cable.

    `uart` is the chip, from realize on.
    """

    driver = "isa-serial"
    description = "16550A serial port"
    bus_type = "ISA"
    properties = (
        Property("index", "uint32", None, "0..3: COM1..COM4; sets iobase and irq"),
        Property("iobase", "uint32", None, "first port (0x3f8)"),
        Property("irq", "uint32", None, "ISA IRQ (4)"),
        Property("chardev", "str", None, "id of a character device"),
        Property("x-paced", "bool", False, "characters take as long as the baud rate says"),
    )
    PORTS = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
    IRQS = (4, 3, 4, 3)

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        index = self.values["index"] or 0
        if index >= len(self.PORTS):
            raise PropertyError(f"Max. supported number of ISA serial ports is {len(self.PORTS)}", self.driver, "index")
        base, irq = self.values["iobase"], self.values["irq"]
        self.iobase: int = self.PORTS[index] if base is None else base
        self.irq: int = self.IRQS[index] if irq is None else irq
        if self.irq > 15:
            raise PropertyError(f"isa-serial: there is no ISA IRQ {self.irq} (0..15)", self.driver, "irq")
        if self.iobase + 8 > 1 << 16:
            raise PropertyError(f"isa-serial: iobase {self.iobase:#x} leaves the I/O ports", self.driver, "iobase")
        self.backend: CharBackend | None = None
        self.uart: Uart16550

    def realize(self, board: Board) -> None:
        """Take the IRQ, the character device and the ports. PropertyError or InUse if the device is not to be had."""
        super().realize(board)
        backend = self.backend or find_backend(self)
        line = self.isa_irq(self.irq)
        self.uart = Uart16550(self, line.set, backend, self.values["x-paced"])
        self.map_ports(self.iobase, self.uart.region)

    def reset(self) -> None:
        """Power-on state of the chip."""
        self.uart.reset()
