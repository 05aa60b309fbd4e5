"""The 8042 keyboard controller: reset and A20 lines, and a keyboard that nobody types on.

The keyboard answers its commands, so that an operating system finds it and goes on; there is no mouse. Output goes out
on IRQ 1, and on IRQ 12 for what the loop-back command puts there.
Ref: IBM PS/2 hardware interface technical reference, "Keyboard and auxiliary device controller".
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Device
from vmm.memory import IoRegion
from vmm.trace import Event, Trace

if TYPE_CHECKING:
    from devices.device import Board
    from vmm.lines import LevelLine

DATA = 0x60
COMMAND = 0x64

STATUS_OBF = 0x01
STATUS_SYSTEM = 0x04
STATUS_COMMAND = 0x08
STATUS_UNLOCKED = 0x10
STATUS_AUX = 0x20
STATUS_TIMEOUT = 0x40

MODE_KBD_INT = 0x01
MODE_AUX_INT = 0x02
MODE_SYSTEM = 0x04
MODE_DISABLE_KBD = 0x10
MODE_DISABLE_AUX = 0x20

OUTPUT_RESET = 0x01
"""Low: the CPU is held in reset."""
OUTPUT_A20 = 0x02
OUTPUT_POWER_ON = 0xCF

SELF_TEST_OK = 0x55
ACK = 0xFA
RESEND = 0xFE
KEYBOARD_OK = 0xAA
SCAN_CODE_SET = 0xF0
"""Keyboard command: choose a set, or with parameter 0 tell which one is chosen."""
QUEUE_SIZE = 16

Status = c.BitStruct(
    "parity_error" / c.Flag,
    "timeout" / c.Flag,
    "aux" / c.Flag,
    "unlocked" / c.Flag,
    "command" / c.Flag,
    "system" / c.Flag,
    "ibf" / c.Flag,
    "obf" / c.Flag,
)
CommandByte = c.BitStruct(
    c.Padding(1),
    "translate" / c.Flag,
    "disable_aux" / c.Flag,
    "disable_kbd" / c.Flag,
    c.Padding(1),
    "system" / c.Flag,
    "aux_int" / c.Flag,
    "kbd_int" / c.Flag,
)


class I8042Command(Event):
    """The guest wrote port 0x64."""

    val: int


class I8042(Device):
    """The controller. Pulsing or writing its reset line low resets the machine."""

    driver = "i8042"
    description = "keyboard controller"
    bus_type = "ISA"
    user_creatable = False

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.trace = Trace()
        self._kbd_line: LevelLine
        self._aux_line: LevelLine
        self._clear()

    def _clear(self) -> None:
        self.mode = MODE_KBD_INT | MODE_AUX_INT
        self.status = STATUS_COMMAND | STATUS_UNLOCKED
        self.output_port = OUTPUT_POWER_ON
        self.queue: deque[tuple[int, bool]] = deque(maxlen=QUEUE_SIZE)
        """Bytes for the guest, each with whether it is the auxiliary device's."""
        self.last = 0
        self._parameter_of: int | None = None
        """A controller command whose parameter is to be written to port 0x60."""
        self._keyboard_parameter_of: int | None = None

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.trace = board.trace
        self._kbd_line = self.isa_irq(1)
        self._aux_line = self.isa_irq(12)
        self.map_ports(DATA, IoRegion("i8042-data", 1, self._read_data, self._write_data, max_access=1))
        self.map_ports(COMMAND, IoRegion("i8042-cmd", 1, self._read_status, self._write_command, max_access=1))

    def reset(self) -> None:
        self._clear()
        self._update()

    # Output to the guest.

    def _put(self, *values: int, aux: bool = False) -> None:
        self.queue.extend((value, aux) for value in values)
        self._update()

    def _update(self) -> None:
        aux = bool(self.queue and self.queue[0][1])
        kbd = bool(self.queue) and not aux
        self._kbd_line.set(kbd and bool(self.mode & MODE_KBD_INT))
        self._aux_line.set(aux and bool(self.mode & MODE_AUX_INT))

    def _read_data(self, _offset: int, _size: int) -> int:
        if self.queue:
            self.last, aux = self.queue.popleft()
            # The line falls between two bytes, so that each is an edge.
            (self._aux_line if aux else self._kbd_line).set(False)
            self._update()
        return self.last

    def _read_status(self, _offset: int, _size: int) -> int:
        if not self.queue:
            return self.status
        return self.status | STATUS_OBF | (STATUS_AUX if self.queue[0][1] else 0)

    # Commands.

    def _write_command(self, _offset: int, _size: int, value: int) -> None:
        value &= 0xFF
        if self.trace.on:
            self.trace.emit(I8042Command(value))
        self.status = self.status & ~STATUS_TIMEOUT | STATUS_COMMAND
        self._parameter_of = None
        if value >= 0xF0:
            self._pulse(value & 0x0F)
        elif value == 0x20:
            self._put(self.mode)
        elif value in (0x60, 0xD1, 0xD2, 0xD3, 0xD4):
            self._parameter_of = value
        elif value in (0xA7, 0xA8):
            self._set_mode(MODE_DISABLE_AUX, value == 0xA7)
        elif value == 0xA9:
            self._put(0x00)
        elif value == 0xAA:
            self.status |= STATUS_SYSTEM
            self._put(SELF_TEST_OK)
        elif value == 0xAB:
            self._put(0x00)
        elif value in (0xAD, 0xAE):
            self._set_mode(MODE_DISABLE_KBD, value == 0xAD)
        elif value == 0xC0:
            self._put(0x80)
        elif value == 0xD0:
            self._put(self.output_port)
        elif value in (0xDD, 0xDF):
            a20 = OUTPUT_A20 if value == 0xDF else 0
            self.output_port = self.output_port & ~OUTPUT_A20 | a20
        # What else there is does nothing here.

    def _set_mode(self, bit: int, on: bool) -> None:
        self.mode = self.mode | bit if on else self.mode & ~bit

    def _pulse(self, lines: int) -> None:
        """Pull the output lines whose bits are clear low for a moment; line 0 is the CPU's reset."""
        if not lines & OUTPUT_RESET:
            self.board.request_reset("guest-reset")

    def _write_data(self, _offset: int, _size: int, value: int) -> None:
        value &= 0xFF
        command, self._parameter_of = self._parameter_of, None
        if command is None:
            self.status &= ~(STATUS_COMMAND | STATUS_TIMEOUT)
            self._keyboard(value)
        elif command == 0x60:
            self.mode = value
            self.status = self.status & ~STATUS_SYSTEM | (STATUS_SYSTEM if value & MODE_SYSTEM else 0)
            self._update()
        elif command == 0xD1:
            self.output_port = value
            self._pulse(value)
        elif command == 0xD2:
            self._put(value)
        elif command == 0xD3:
            self._put(value, aux=True)
        else:  # 0xD4: nobody is at the other end of the auxiliary port
            self.status |= STATUS_TIMEOUT
            self._put(RESEND, aux=True)

    def _keyboard(self, value: int) -> None:
        """A byte for the keyboard."""
        command, self._keyboard_parameter_of = self._keyboard_parameter_of, None
        if command is not None and value < 0xEC:
            if command == SCAN_CODE_SET and value == 0:
                self._put(ACK, 2)
            else:
                self._put(ACK)
            return
        if value == 0xFF:
            self.queue.clear()
            self._put(ACK, KEYBOARD_OK)
        elif value == 0xF2:
            self._put(ACK, 0xAB, 0x83)
        elif value == 0xEE:
            self._put(0xEE)
        elif value in (0xED, SCAN_CODE_SET, 0xF3):
            self._keyboard_parameter_of = value
            self._put(ACK)
        elif value in (0xF4, 0xF5, 0xF6):
            self._put(ACK)
        else:
            self._put(RESEND)
