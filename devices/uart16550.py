"""The 16550A UART on a character device: what `isa-serial` and `pci-serial` have in common.

By default the line is infinitely fast: a character leaves the moment it is written, so the transmitter is always
empty unless the character device takes no more. With `x-paced=on` characters take the time that divisor and frame
format say. As on QEMU's serial port, OUT2 does not gate the interrupt.
Ref: National PC16550D (1995), section 8.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import construct as c

from vmm.errors import PropertyError
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Device
    from vmm.chardev import CharBackend, CharEvent

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

IER_RDA = 0x01
IER_THRE = 0x02
IER_RLS = 0x04
IER_MSI = 0x08

IIR_NONE = 0x01
IIR_MSI = 0x00
IIR_THRE = 0x02
IIR_RDA = 0x04
IIR_RLS = 0x06
IIR_CTI = 0x0C
IIR_FIFO = 0xC0

LCR_DLAB = 0x80
MCR_LOOP = 0x10

LSR_DR = 0x01
LSR_OE = 0x02
LSR_PE = 0x04
LSR_FE = 0x08
LSR_BI = 0x10
LSR_THRE = 0x20
LSR_TEMT = 0x40
LSR_ERRORS = LSR_OE | LSR_PE | LSR_FE | LSR_BI

MSR_TERI = 0x04
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_LINES = 0xF0

FIFO_SIZE = 16
TRIGGER = (1, 4, 8, 14)
"""Receive trigger levels by bits 7:6 of FCR."""
BAUD_CLOCK = 115200
"""Characters per second times bits per character, at divisor 1: 1.8432 MHz / 16."""

InterruptEnable = c.BitStruct(
    "_zero" / c.BitsInteger(4), "edssi" / c.Flag, "elsi" / c.Flag, "etbei" / c.Flag, "erbfi" / c.Flag
)
InterruptIdentification = c.BitStruct("fifos" / c.BitsInteger(2), "_zero" / c.BitsInteger(2), "id" / c.BitsInteger(4))
FifoControl = c.BitStruct(
    "trigger" / c.BitsInteger(2),
    "_reserved" / c.BitsInteger(2),
    "dma" / c.Flag,
    "clear_transmit" / c.Flag,
    "clear_receive" / c.Flag,
    "enable" / c.Flag,
)
LineControl = c.BitStruct(
    "dlab" / c.Flag,
    "set_break" / c.Flag,
    "stick_parity" / c.Flag,
    "even_parity" / c.Flag,
    "parity" / c.Flag,
    "stop" / c.BitsInteger(1),
    "word_length" / c.BitsInteger(2),
)
ModemControl = c.BitStruct(
    "_zero" / c.BitsInteger(3),
    "loop" / c.Flag,
    "out2" / c.Flag,
    "out1" / c.Flag,
    "rts" / c.Flag,
    "dtr" / c.Flag,
)
LineStatus = c.BitStruct(
    "fifo_error" / c.Flag,
    "temt" / c.Flag,
    "thre" / c.Flag,
    "bi" / c.Flag,
    "fe" / c.Flag,
    "pe" / c.Flag,
    "oe" / c.Flag,
    "dr" / c.Flag,
)
ModemStatus = c.BitStruct(
    "dcd" / c.Flag,
    "ri" / c.Flag,
    "dsr" / c.Flag,
    "cts" / c.Flag,
    "ddcd" / c.Flag,
    "teri" / c.Flag,
    "ddsr" / c.Flag,
    "dcts" / c.Flag,
)

_BYTE = tuple(bytes((n,)) for n in range(256))


class SerialWrite(Event):
    """The guest wrote a register (offset 0..7)."""

    addr: int
    val: int


class SerialRead(Event):
    """The guest read a register (offset 0..7)."""

    addr: int
    val: int


def find_backend(owner: Device) -> CharBackend | None:
    """The character device that the `chardev` property of a device names. PropertyError if there is none of that id."""
    name = owner.values["chardev"]
    if name is None:
        return None
    find = getattr(owner.board, "chardev", None)
    backend: CharBackend | None = find(name) if find is not None else None
    if backend is None:
        raise PropertyError(f"Property '{owner.driver}.chardev' can't find value '{name}'", owner.driver, "chardev")
    return backend


class Uart16550:
    """The chip: eight registers, an interrupt output, a character device as the other end of the cable.

    Whose port it is (an ISA or a PCI device) makes it while being realized: `set_irq` takes the level of its interrupt
    output, `backend` is its character device (None: nothing is at the other end), and what it holds is given back with
    `holdings`. `region` are its registers, for whoever maps them. InUse if another front end has the character device.
    """

    def __init__(
        self,
        owner: Device,
        set_irq: Callable[[bool], None],
        backend: CharBackend | None,
        paced: bool = False,
    ) -> None:
        board = owner.board
        self.paced = paced
        self.backend = backend
        self.region = IoRegion("serial", 8, self._read, self._write, max_access=1)
        self._set_irq = set_irq
        self._clock = board.clock
        self._trace = board.trace
        self._receive_timer = board.clock.timer(f"{owner.path}/receive", self._receive_timeout)
        self._transmit_timer = board.clock.timer(f"{owner.path}/transmit", self._shifted)
        owner.holdings.hold("timer", "serial", self._cancel_timers)
        self._clear()
        self.msr = MSR_CTS | MSR_DSR | MSR_DCD
        if backend is not None:
            backend.connect(self)
            owner.holdings.hold("chardev", backend.id, self._let_go)

    def _clear(self) -> None:
        self.ier = 0
        self.fcr = 0
        self.lcr = 0
        self.mcr = 0
        self.lsr = LSR_THRE | LSR_TEMT
        self.msr = 0
        self.scr = 0
        self.divisor = 12
        self.received: deque[int] = deque()
        self.transmit: deque[int] = deque()
        self._last = 0
        """What is in the holding register, which goes on showing it once it was read."""
        self.thre_pending = False
        """The THRE interrupt is pending: set when the transmitter ran empty, cleared by its IIR or by new data."""
        self.timeout_pending = False
        self._trigger = 1
        self._shifting = False
        self._char_ns = 10 * 12 * 1_000_000_000 // BAUD_CLOCK

    # Life.

    def _cancel_timers(self) -> None:
        self._receive_timer.cancel()
        self._transmit_timer.cancel()

    def _let_go(self) -> None:
        if self.backend is not None:
            self.backend.disconnect()
            self.backend = None

    def reset(self) -> None:
        """Power-on state: FIFOs off and empty, no interrupt."""
        self._cancel_timers()
        self._clear()
        self.msr = MSR_CTS | MSR_DSR | MSR_DCD
        self._set_irq(False)
        if self.backend is not None:
            self.backend.accept_input()

    # Interrupts.

    def _pending(self) -> int:
        """Interrupt identification, highest priority first. Ref: PC16550D, table IV."""
        ier = self.ier
        if ier:
            lsr = self.lsr
            if ier & IER_RLS and lsr & LSR_ERRORS:
                return IIR_RLS
            if ier & IER_RDA:
                if self.timeout_pending:
                    return IIR_CTI
                if lsr & LSR_DR and (not self.fcr & 1 or len(self.received) >= self._trigger):
                    return IIR_RDA
            if ier & IER_THRE and self.thre_pending:
                return IIR_THRE
            if ier & IER_MSI and self.msr & 0x0F:
                return IIR_MSI
        return IIR_NONE

    def _update(self) -> None:
        self._set_irq(self._pending() != IIR_NONE)

    # The guest's side.

    def _read(self, offset: int, _size: int) -> int:
        if offset == LSR:
            value = self.lsr
            if value & LSR_ERRORS:
                self.lsr = value & ~LSR_ERRORS
                self._update()
        else:
            value = self._read_register(offset)
        if self._trace.on:
            self._trace.emit(SerialRead(offset, value))
        return value

    def _read_register(self, offset: int) -> int:
        if offset == RBR:
            return self.divisor & 0xFF if self.lcr & LCR_DLAB else self._pop()
        if offset == IER:
            return self.divisor >> 8 if self.lcr & LCR_DLAB else self.ier
        if offset == IIR:
            pending = self._pending()
            if pending == IIR_THRE:
                self.thre_pending = False
                self._update()
            return pending | (IIR_FIFO if self.fcr & 1 else 0)
        if offset == LCR:
            return self.lcr
        if offset == MCR:
            return self.mcr
        if offset == MSR:
            value = self.msr
            if value & 0x0F:
                self.msr = value & MSR_LINES
                self._update()
            return value
        return self.scr

    def _write(self, offset: int, _size: int, value: int) -> None:
        value &= 0xFF
        if self._trace.on:
            self._trace.emit(SerialWrite(offset, value))
        if offset == THR:
            if not self.lcr & LCR_DLAB:
                self._send(value)
            else:
                self._set_divisor(self.divisor & 0xFF00 | value)
        elif offset == IER:
            if self.lcr & LCR_DLAB:
                self._set_divisor(self.divisor & 0xFF | value << 8)
            else:
                self._set_ier(value & 0x0F)
        elif offset == FCR:
            self._set_fcr(value)
        elif offset == LCR:
            self.lcr = value
            self._set_divisor(self.divisor)
        elif offset == MCR:
            self._set_mcr(value & 0x1F)
        elif offset == SCR:
            self.scr = value
        # LSR and MSR are read-only.

    def _set_ier(self, value: int) -> None:
        if (value ^ self.ier) & IER_THRE:
            # Enabling it with an empty transmitter interrupts at once; drivers test for that.
            self.thre_pending = bool(value & IER_THRE and self.lsr & LSR_THRE)
        self.ier = value
        self._update()

    def _set_fcr(self, value: int) -> None:
        if not value & 1:
            value = 0
        toggled = (value ^ self.fcr) & 1
        if toggled or value & 2:
            self.received.clear()
            self.lsr &= ~LSR_DR
            self._receive_timer.cancel()
            self.timeout_pending = False
        if toggled or value & 4:
            self.transmit.clear()
            self.lsr |= LSR_THRE if self._shifting else LSR_THRE | LSR_TEMT
            self.thre_pending = True
        self.fcr = value & 0xC9
        self._trigger = TRIGGER[value >> 6]
        self._update()
        if self.backend is not None:
            self.backend.accept_input()

    def _set_divisor(self, value: int) -> None:
        self.divisor = value
        lcr = self.lcr
        bits = 1 + 5 + (lcr & 3) + (lcr >> 3 & 1) + 1 + (lcr >> 2 & 1)
        self._char_ns = bits * max(value, 1) * 1_000_000_000 // BAUD_CLOCK

    def _set_mcr(self, value: int) -> None:
        self.mcr = value
        if value & MCR_LOOP:
            # In loop-back the four outputs come back as the four inputs. Ref: PC16550D, 8.7.
            lines = (value & 0x02) << 3 | (value & 0x01) << 5 | (value & 0x04) << 4 | (value & 0x08) << 4
        else:
            lines = MSR_CTS | MSR_DSR | MSR_DCD
        self._set_modem_lines(lines)

    def _set_modem_lines(self, lines: int) -> None:
        old = self.msr
        changed = (old ^ lines) & MSR_LINES
        if changed:
            delta = changed >> 4 & ~MSR_TERI
            if changed & MSR_RI and not lines & MSR_RI:
                delta |= MSR_TERI
            self.msr = lines | old & 0x0F | delta
            self._update()

    # Output.

    def _send(self, value: int) -> None:
        self.thre_pending = False
        if self.ier:
            self._update()
        if not (self.paced or self.transmit or self.mcr & MCR_LOOP):
            backend = self.backend
            if backend is None or backend.write(_BYTE[value]):
                self.thre_pending = True
                if self.ier:
                    self._update()
                return
        transmit = self.transmit
        if len(transmit) >= (FIFO_SIZE if self.fcr & 1 else 1):
            transmit.pop()  # written without looking at THRE: the last one is overwritten
        transmit.append(value)
        self.lsr &= ~(LSR_THRE | LSR_TEMT)
        if not self._shifting:
            self._transmit_more()

    def _transmit_more(self) -> None:
        """Send what waits: at once, or one character now and the next when its time is over."""
        transmit = self.transmit
        while transmit:
            value = transmit[0]
            if self.mcr & MCR_LOOP:
                self._push(value, 0)
            elif self.backend is not None and not self.backend.write(_BYTE[value]):
                return  # `writable` goes on
            transmit.popleft()
            if self.paced:
                self._shifting = True
                self._transmit_timer.arm(self._clock.now() + self._char_ns)
                break
        if not transmit:
            self.lsr |= LSR_THRE if self._shifting else LSR_THRE | LSR_TEMT
            self.thre_pending = True
            self._update()

    def _shifted(self) -> None:
        self._shifting = False
        if self.transmit:
            self._transmit_more()
        else:
            self.lsr |= LSR_TEMT

    def writable(self) -> None:
        """The character device takes output again."""
        if self.transmit and not self._shifting:
            self._transmit_more()

    # Input.

    def can_receive(self) -> int:
        """Room in the receiver, in characters; nothing is received in loop-back."""
        if self.mcr & MCR_LOOP:
            return 0
        return (FIFO_SIZE if self.fcr & 1 else 1) - len(self.received)

    def receive(self, data: bytes) -> None:
        """Characters from the other side."""
        if not self.mcr & MCR_LOOP:
            for value in data:
                self._push(value, 0)

    def char_event(self, event: CharEvent) -> None:
        """A break is received as a NUL with the break bit set."""
        if event == "break" and not self.mcr & MCR_LOOP:
            self._push(0, LSR_BI)

    def _push(self, value: int, errors: int) -> None:
        received = self.received
        if len(received) >= (FIFO_SIZE if self.fcr & 1 else 1):
            errors |= LSR_OE
            if not self.fcr & 1:
                received[0] = value  # the holding register is overwritten, a full FIFO is not
        else:
            received.append(value)
        self.lsr |= LSR_DR | errors
        if not self.fcr & 1:
            self._last = value
        else:
            self._receive_timer.arm(self._clock.now() + 4 * self._char_ns)
        self._update()

    def _pop(self) -> int:
        received = self.received
        if not received:
            return 0 if self.fcr & 1 else self._last
        value = received.popleft()
        self.timeout_pending = False
        if not received:
            self.lsr &= ~LSR_DR
            self._receive_timer.cancel()
        elif self.fcr & 1:
            self._receive_timer.arm(self._clock.now() + 4 * self._char_ns)
        self._update()
        if self.backend is not None:
            self.backend.accept_input()
        return value

    def _receive_timeout(self) -> None:
        if self.received:
            self.timeout_pending = True
            self._update()
