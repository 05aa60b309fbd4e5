"""A pair of 8259As as a guest sees it."""

from __future__ import annotations

from devices.i8259 import I8259
from tests.support.board import FakeBoard

MASTER, SLAVE = 0x20, 0xA0
EOI = 0x20


class Machine:
    """A guest's view of the pair: ports, lines and the INTA cycle."""

    def __init__(self, personality: str = "kvm", initialise: bool = True, trace: bool = False) -> None:
        self.board = FakeBoard(trace=trace)
        self.device = I8259(personality=personality)
        self.device.realize(self.board)
        self.pic = self.device.pic
        self.out = self.board.outb
        self.inb = self.board.inb
        if initialise:
            self.initialise()

    def initialise(self, icw4: int = 1, imr: int = 0) -> None:
        for base, vector, cascade in ((MASTER, 0x30, 4), (SLAVE, 0x38, 2)):
            self.out(base, 0x11)
            self.out(base + 1, vector)
            self.out(base + 1, cascade)
            self.out(base + 1, icw4)
            self.out(base + 1, imr)

    def line(self, pin: int, level: bool) -> int:
        return self.pic.set_irq(pin, 0, level)

    def pulse(self, *pins: int) -> None:
        for pin in pins:
            self.line(pin, True)
            self.line(pin, False)

    def irr(self, base: int) -> int:
        self.out(base, 0x0A)
        return self.inb(base)

    def isr(self, base: int) -> int:
        self.out(base, 0x0B)
        return self.inb(base)

    def eoi(self, pin: int) -> None:
        if pin >= 8:
            self.out(SLAVE, EOI)
        self.out(MASTER, EOI)
