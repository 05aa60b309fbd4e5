"""The PIIX3 ISA bridge (00:01.0) and the power management function behind it (00:01.3).

The bridge routes the four PIRQ wires of the bus to ISA IRQs by PIRQRC[A:D] and resets the machine through port 0xcf9.
The power management function places the ACPI registers (PMBASE, PMREGMISC) in I/O space.
Ref: 290550 (82371SB, PIIX3), 2.2.7 (PIRQRC), 2.3 (RC); 290562 (82371AB, PIIX4), 7.1 (function 3); vectors
qemu-intx-paths.json, pc.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import construct as c

from devices.pci import config as cfg
from devices.pci.bus import PIRQS
from devices.pci.device import PciDevice
from vmm.errors import ConfigError
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.device import Board
    from devices.pci.bus import PciBus
    from vmm.lines import LevelLine

PIRQRC = 0x60
"""PIRQRC[A:D] are the bytes 0x60 to 0x63."""
PIRQRC_DISABLED = 0x80
ISA_IRQS = 16

RESET_CONTROL = 0xCF9
RESET_CPU = 0x04
RESET_SYSTEM = 0x02

PMBASE = 0x40
PMBASE_MASK = 0xFFC0
PMREGMISC = 0x80
PMIOSE = 0x01

PirqRouteControl = c.BitStruct("disable" / c.Flag, c.Padding(3), "irq" / c.BitsInteger(4))
"""PIRQRC. Ref: 290550, 2.2.7."""

ResetControl = c.BitStruct(c.Padding(5), "reset_cpu" / c.Flag, "system_reset" / c.Flag, c.Padding(1))
"""RC, port 0xcf9. Ref: 290550, 2.3."""


class PciRouteIrq(Event):
    """PIRQ `pirq` (0..3 for A..D) reaches ISA IRQ `irq` from now on; -1: none."""

    pirq: int
    irq: int


class Piix3(PciDevice):
    """The ISA bridge. On realize it connects the PIRQ wires of its bus to the board's IRQs."""

    driver = "PIIX3"
    description = "ISA bridge with PIRQ routing"
    user_creatable = False
    hotpluggable = False
    vendor_id, device_id, class_id = 0x8086, 0x7000, 0x0601

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **{"multifunction": True, **values})
        self.reset_control = 0
        self.routes: list[int | None] = [None] * PIRQS
        """The IRQ that each PIRQ reaches."""
        self._levels = [False] * PIRQS
        self._lines: list[LevelLine | None] = [None] * PIRQS

    def make_config(self) -> cfg.ConfigSpace:
        """Chipset registers from 0x40 on, with QEMU's values after reset. Ref: 290550, table 2-4."""
        config = super().make_config()
        config.define(cfg.STATUS, 2, 0x0200, clear=cfg.STATUS_WRITE_ONE_TO_CLEAR)
        config.define(0x40, 0xC0, 0, mask=(1 << 8 * 0xC0) - 1)
        for offset, value in (
            (0x4C, 0x4D),  # IORT: ISA I/O recovery timer
            (0x4E, 0x03),  # XBCS: X-bus chip select
            (0x69, 0x02),  # TOM: top of memory
            (0x70, 0x80),  # MBIRQ0
            (0x76, 0x0C),  # MBDMA0
            (0x77, 0x0C),  # MBDMA1
            (0x78, 0x02),  # PCSC
            (0xA0, 0x08),  # SMICNTL
            (0xA8, 0x0F),  # FTMR
        ):
            config.define(offset, 1, value, mask=0xFF)
        for pirq in range(PIRQS):
            config.define(PIRQRC + pirq, 1, PIRQRC_DISABLED, mask=0xFF)
        return config

    def realize(self, board: Board) -> None:
        """Listen to the PIRQ wires, say where they go, and answer at 0xcf9."""
        super().realize(board)
        bus = self._bus()
        for pirq, wire in enumerate(bus.pirqs):
            wire.connect(self._target(pirq))
            # One row for all that the guest will route it to: what a guest chooses is nothing that it must give back.
            self.holdings.hold("wire-holder", f"isa-irq of {wire.name}", partial(self._let_go, pirq))
        bus.set_router(self.routes.__getitem__)
        region = IoRegion("piix3-reset-control", 1, self.reset_read, self.reset_write)
        mapping = board.ports.map(RESET_CONTROL, region, priority=3)
        self.holdings.hold("port-region", f"{region.name}@{RESET_CONTROL:#x}", mapping.close)

    def _bus(self) -> PciBus:
        if self.bus is None:
            raise ConfigError(f"No 'PCI' bus found for device '{self.driver}'")
        return self.bus

    def _target(self, pirq: int) -> Any:
        def changed(level: bool) -> None:
            self._levels[pirq] = level
            line = self._lines[pirq]
            if line is not None:
                line.set(level)

        return changed

    def config_write(self, offset: int, size: int, value: int) -> None:
        """PIRQRC take effect at once."""
        super().config_write(offset, size, value)
        if offset + size > PIRQRC and offset < PIRQRC + PIRQS:
            self.update_routes()

    def reset(self) -> None:
        """No PIRQ reaches an IRQ."""
        super().reset()
        self.reset_control = 0
        self.update_routes()

    def update_routes(self) -> None:
        """Route as PIRQRC say. A level moves with its PIRQ: the new IRQs go high before the old ones are let go.

        A PIRQRC whose value is 16 or more (bit 7: disabled) routes nowhere. All of IRQ 0 to 15 can be routed, as in
        QEMU; the data sheet reserves 0, 1, 2, 8 and 13.
        """
        routes = [irq if irq < ISA_IRQS else None for irq in self.config.data[PIRQRC : PIRQRC + PIRQS]]
        moved = [pirq for pirq in range(PIRQS) if routes[pirq] != self.routes[pirq]]
        if not moved:
            return
        self.routes[:] = routes
        trace = self.board.trace
        if trace.on:
            for pirq in moved:
                irq = routes[pirq]
                trace.emit(PciRouteIrq(pirq, -1 if irq is None else irq))
        # Who asked hears of the route first, so that a level that moves finds it in place.
        self._bus().route_changed()
        old_lines = [self._take_line(pirq, routes[pirq]) for pirq in moved]
        for line in old_lines:
            if line is not None:
                line.close()

    def _take_line(self, pirq: int, irq: int | None) -> LevelLine | None:
        """The line it had, which is still held."""
        old = self._lines[pirq]
        line = None if irq is None else self.board.isa_irq(self._bus().pirqs[pirq].name, irq)
        self._lines[pirq] = line
        if line is not None:
            line.set(self._levels[pirq])
        return old

    def _let_go(self, pirq: int) -> None:
        line = self._take_line(pirq, None)
        if line is not None:
            line.close()

    # Reset control.

    def reset_read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """RC."""
        return self.reset_control

    def reset_write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """RC: bit 2 resets the machine, bit 1 says whether hard or soft and is kept."""
        if value & RESET_CPU:
            self.board.request_reset("guest-reset")
            return
        self.reset_control = value & RESET_SYSTEM


class PmRegisters(Protocol):
    """Who answers at PMBASE: the ACPI power management block."""

    def set_base(self, base: int, enabled: bool) -> None:
        """Answer at I/O port `base` if `enabled`, else nowhere."""


class Piix4Pm(PciDevice):
    """Function 3, power management. `pm` answers where PMBASE says, while PMIOSE of PMREGMISC is set.

    Its interrupt is the SCI, which is hard-wired to IRQ 9; INTERRUPT_PIN says INTA# as in QEMU and drives nothing.
    """

    driver = "PIIX4_PM"
    description = "PM"
    user_creatable = False
    hotpluggable = False
    vendor_id, device_id, class_id, revision, interrupt_pin = 0x8086, 0x7113, 0x0680, 0x03, 1

    def __init__(self, id: str | None = None, *, pm: PmRegisters | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.pm = pm

    def make_config(self) -> cfg.ConfigSpace:
        """PMBASE, PMREGMISC, and the values QEMU shows for what is not there. Ref: 290562, 7.1."""
        config = super().make_config()
        config.define(cfg.STATUS, 2, 0x0280, clear=cfg.STATUS_WRITE_ONE_TO_CLEAR)
        config.define(PMBASE, 4, 0x0000_0001, mask=PMBASE_MASK)
        config.define(0x44, 0x3C, 0, mask=(1 << 8 * 0x3C) - 1)
        config.define(0x5F, 1, 0x10, mask=0xFF)  # DEVRESB: a parallel port
        config.define(0x63, 1, 0x60, mask=0xFF)  # DEVRESD: two serial ports
        config.define(PMREGMISC, 1, 0, mask=PMIOSE)
        config.define(0x90, 4, 0x0000_B101, mask=0xFFF0)  # SMBBA
        config.define(0xD2, 1, 0x09, mask=0xFF)  # SMBHSTCFG
        return config

    def config_write(self, offset: int, size: int, value: int) -> None:
        """PMBASE and PMREGMISC take effect at once."""
        super().config_write(offset, size, value)
        if PMBASE <= offset < PMBASE + 4 or offset == PMREGMISC:
            self.update_base()

    def reset(self) -> None:
        """The ACPI registers answer nowhere."""
        super().reset()
        self.update_base()

    def update_base(self) -> None:
        """Move the ACPI registers to where the configuration says."""
        if self.pm is not None:
            base = self.config.get(PMBASE, 4) & PMBASE_MASK
            self.pm.set_base(base, bool(self.config.data[PMREGMISC] & PMIOSE))
