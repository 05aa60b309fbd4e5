"""QEMU's PCI serial port: a 16550A behind an I/O BAR, on INTx.

Ref: QEMU docs/specs/pci-serial.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.device import Property
from devices.pci.device import PciDevice
from devices.uart16550 import Uart16550, find_backend

if TYPE_CHECKING:
    from devices.device import Board
    from devices.pci.config import ConfigSpace


class PciSerial(PciDevice):
    """`-device pci-serial,chardev=ID`: BAR0 is the eight ports of the chip, INTA# its interrupt.

    `uart` is the chip, from realize on. At unplug the character device is free for the next front end.
    """

    driver = "pci-serial"
    description = "16550A serial port"
    vendor_id, device_id, class_id, revision, interrupt_pin = 0x1B36, 0x0002, 0x0700, 1, 1
    properties = (
        *PciDevice.properties,
        Property("chardev", "str", None, "id of a character device"),
        Property("prog_if", "uint8", 2, "programming interface; 2: 16550 compatible"),
        Property("x-paced", "bool", False, "characters take as long as the baud rate says"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.uart: Uart16550

    def make_config(self) -> ConfigSpace:
        """As `prog_if` says."""
        self.prog_if = self.values["prog_if"]
        return super().make_config()

    def realize(self, board: Board) -> None:
        """Take slot, line and character device. PropertyError or InUse if the character device is not to be had."""
        super().realize(board)
        self.uart = Uart16550(self, self.set_intx, find_backend(self), self.values["x-paced"])
        self.register_bar(0, self.uart.region, io=True)

    def reset(self) -> None:
        """No BAR answers, the line is low, the chip is as at power-on."""
        super().reset()
        self.uart.reset()
