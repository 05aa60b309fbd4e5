"""The qtest server: a line is a command and gets one reply; IRQ lines come before the reply of what caused them.

A malformed command, on which QEMU ends with an assertion, is answered with FAIL and the reason here.
"""

from __future__ import annotations

import base64
import re
import time
from typing import TYPE_CHECKING

from machine import qom
from vmm.clock import VirtualClock
from vmm.errors import VintxError
from vmm.qtest import intercept
from vmm.qtest.space import GuestSpace

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from devices.device import Device
    from machine.machine import Machine
    from vmm.chardev import CharBackend, CharEvent

    Command = Callable[["QtestServer", list[str]], str]

READ_SIZE = 64 << 10
LONGEST = 256 << 20
"""Bytes that one read or write may move, and so, twice, characters that a line may have."""
_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}


class _Refusal(Exception):
    """The reply to a command that cannot be carried out."""


def number(words: list[str], index: int, name: str, bits: int = 64) -> int:
    """A number as C's strtoull takes it with base 0: 0x for hexadecimal, 0 for octal; a negative one wraps around.

    The refusal of a word that is missing, that is no number, or that does not fit names the argument.
    """
    if index >= len(words):
        raise _Refusal(f"FAIL {words[0]}: {name} is missing")
    word = words[index]
    if not _NUMBER.fullmatch(word):
        raise _Refusal(f"FAIL {words[0]}: {name} is no number: '{word}'")
    digits = word.lstrip("+-")
    octal = digits[0] == "0" and digits.isdigit()
    value = int(digits, 8 if octal else 0)
    if value >> bits:
        raise _Refusal(f"FAIL {words[0]}: {name} is out of range: {word}")
    return -value & (1 << bits) - 1 if word[0] == "-" else value


class QtestServer:
    """Serves one test program on a character device. Raises InUse if the device has a front end already.

    `log`: where the conversation is written, [R] for what was received, [S] for what was sent; None: nowhere.
    """

    def __init__(self, machine: Machine, backend: CharBackend, log: TextIO | None = None) -> None:
        self.machine = machine
        self._ports = machine.ports
        self._space = GuestSpace(machine)
        self._pending = machine.executor.pending
        self._drain = machine.executor.drain
        self._intercepted: Device | None = None
        self._levels: dict[int, bool] = {}
        self._paths: dict[str, Device] = {}
        self._plugged: tuple[str, ...] = ()
        self._line = bytearray()
        self._overlong = False
        self._out: list[str] = []
        self._unsent = bytearray()
        self._pushing = False
        self._again = False
        self._busy = False
        self._log = log
        self._opened_at = 0
        self._backend = backend
        backend.connect(self)

    def close(self) -> None:
        """Leave the character device. May be repeated."""
        if self._backend.frontend is self:
            self._push()
            self._backend.disconnect()

    # What a backend calls.

    def can_receive(self) -> int:
        """No commands are read while replies wait for the test to read them."""
        return 0 if self._unsent else READ_SIZE

    def receive(self, data: bytes) -> None:
        """Commands, in pieces of any size."""
        lines = data.split(b"\n")
        if len(lines) == 1:
            self._keep(data)
            return
        if self._line or self._overlong:
            self._keep(lines[0])
            lines[0] = b"" if self._overlong else bytes(self._line)
            if self._overlong:
                self._out.append(f"FAIL line of more than {2 * LONGEST} characters\n")
            self._line.clear()
            self._overlong = False
        rest = lines.pop()
        self._busy = True
        try:
            for line in lines:
                self._execute(line)
        finally:
            self._busy = False
        if rest:
            self._keep(rest)
        self._flush()

    def char_event(self, event: CharEvent) -> None:
        """A test came or went. What it intercepted stays so; to a new one every line is low at first."""
        if event == "opened":
            self._levels.clear()
            self._line.clear()
            self._unsent.clear()
            self._overlong = False
            self._opened_at = time.monotonic_ns()
            self._note("I", "OPENED")
            self._backend.accept_input()
        elif event == "closed":
            self._note("I", "CLOSED")

    def writable(self) -> None:
        """The backend takes more."""
        self._again = True
        self._push()
        if not self._unsent:
            self._backend.accept_input()

    # Lines in, lines out.

    def _keep(self, data: bytes) -> None:
        if len(self._line) + len(data) > 2 * LONGEST:
            self._overlong = True
            self._line.clear()
        elif not self._overlong:
            self._line += data

    def _execute(self, line: bytes) -> None:
        text = line.decode("latin-1")
        if self._log is not None:
            self._note("R", text)
        words = text.split(" ")
        command = _COMMANDS.get(words[0])
        if command is None:
            if text:
                self._out.append(f"FAIL Unknown command '{words[0]}'\n")
            return
        try:
            reply = command(self, words)
        except _Refusal as refusal:
            reply = str(refusal)
        if self._pending:
            self._drain()
        self._out.append(reply + "\n")

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._log is not None:
            for reply in out:
                self._note("S", reply.rstrip("\n"))
        self._unsent += "".join(out).encode("latin-1", "replace")
        self._push()
        self._backend.flush()

    def _push(self) -> None:
        """Offer the backend what is unsent; it may say `writable` meanwhile."""
        if self._pushing:
            return
        self._pushing = True
        try:
            while self._unsent:
                self._again = False
                chunk = bytes(self._unsent[:READ_SIZE])
                taken = self._backend.write(chunk)
                del self._unsent[:taken]
                if taken < len(chunk) and not self._again:
                    return
        finally:
            self._pushing = False

    def _note(self, kind: str, text: str) -> None:
        if self._log is not None:
            elapsed = (time.monotonic_ns() - self._opened_at) / 1e9
            self._log.write(f"[{kind} +{elapsed:.6f}] {text}\n")
            self._log.flush()

    # IRQ lines.

    def _changed(self, line: int, level: bool) -> None:
        if self._levels.get(line, False) == level:
            return
        self._levels[line] = level
        self._out.append(f"IRQ {'raise' if level else 'lower'} {line}\n")
        if not self._busy:
            self._flush()

    def _device(self, words: list[str]) -> Device:
        """The device of a QOM path, which may be partial."""
        if len(words) < 2:
            raise _Refusal(f"FAIL {words[0]}: path is missing")
        machine = self.machine
        plugged = tuple(machine.peripherals)
        if plugged != self._plugged:
            self._paths.clear()
            self._plugged = plugged
        path = words[1]
        device = self._paths.get(path)
        if device is None:
            try:
                device = qom.resolve(machine, path).device
            except VintxError:
                device = None
            if device is None:
                raise _Refusal("FAIL Unknown device")
            if device in machine.unattached:
                self._paths[path] = device
        return device

    def _intercept(self, words: list[str], out: bool) -> str:
        device = self._device(words)
        name = words[2] if len(words) > 2 else None
        if name is not None and not out:
            return "FAIL Interception of named in-GPIOs not yet supported"
        if self._intercepted is not None:
            return "OK" if self._intercepted is device else "FAIL IRQ intercept already enabled"
        if not out:
            intercept.intercept_in(self.machine, device, self._changed)
        elif not intercept.intercept_out(device, name, self._changed):
            return "FAIL No intercepts installed"
        self._intercepted = device
        return "OK"

    def irq_intercept_in(self, words: list[str]) -> str:
        """irq_intercept_in PATH"""
        return self._intercept(words, out=False)

    def irq_intercept_out(self, words: list[str]) -> str:
        """irq_intercept_out PATH [NAME]"""
        return self._intercept(words, out=True)

    def set_irq_in(self, words: list[str]) -> str:
        """set_irq_in PATH NAME NUMBER LEVEL"""
        device = self._device(words)
        if len(words) < 5:
            return "FAIL set_irq_in: want PATH NAME NUMBER LEVEL"
        line, level = number(words, 3, "number"), number(words, 4, "level")
        if not intercept.set_input(self.machine, device, words[2], line, level != 0):
            return f"FAIL No input {line} of '{words[2]}'"
        return "OK"

    # Ports and memory.

    def _port(self, words: list[str]) -> int:
        return number(words, 1, "port", 16)

    def read_sized(self, words: list[str], size: int) -> str:
        """readb, readw, readl, readq ADDRESS"""
        return f"OK 0x{self._space.load(number(words, 1, 'address'), size):016x}"

    def write_sized(self, words: list[str], size: int) -> str:
        """writeb, writew, writel, writeq ADDRESS VALUE"""
        self._space.store(number(words, 1, "address"), size, number(words, 2, "value"))
        return "OK"

    def port_in(self, words: list[str], size: int) -> str:
        """inb, inw, inl PORT"""
        return f"OK 0x{self._ports.read(self._port(words), size):04x}"

    def port_out(self, words: list[str], size: int) -> str:
        """outb, outw, outl PORT VALUE"""
        self._ports.write(self._port(words), size, number(words, 2, "value") & (1 << 8 * size) - 1)
        return "OK"

    def _range(self, words: list[str], least: int = 1, most: int = LONGEST) -> tuple[int, int]:
        address, length = number(words, 1, "address"), number(words, 2, "size")
        if not least <= length <= most:
            raise _Refusal(f"FAIL {words[0]}: size is out of range: {length}")
        return address, length

    def read(self, words: list[str]) -> str:
        """read ADDRESS SIZE"""
        return f"OK 0x{self._space.read(*self._range(words)).hex()}"

    def write(self, words: list[str]) -> str:
        """write ADDRESS SIZE 0xHEX: what the digits lack is zero, what they have too much is cut off"""
        address, length = self._range(words)
        digits = words[3] if len(words) > 3 else ""
        if len(digits) < 3 or not digits.startswith("0x"):
            return "ERR invalid argument size"
        digits = digits[2 : 2 + 2 * length]
        try:
            data = bytes.fromhex(digits[: len(digits) & ~1])
        except ValueError:
            return f"FAIL write: data is not hexadecimal: '{words[3][:32]}'"
        self._space.write(address, data.ljust(length, b"\0"))
        return "OK"

    def b64read(self, words: list[str]) -> str:
        """b64read ADDRESS SIZE"""
        return "OK " + base64.b64encode(self._space.read(*self._range(words))).decode()

    def b64write(self, words: list[str]) -> str:
        """b64write ADDRESS SIZE BASE64: no more is written than there is data"""
        address, length = self._range(words)
        if len(words) < 4 or not words[3]:
            return "ERR invalid argument size"
        try:
            data = base64.b64decode(words[3], validate=True)
        except ValueError:  # binascii.Error is one, and so is what is not ASCII
            return "FAIL b64write: data is not base64"
        self._space.write(address, data[:length])
        return "OK"

    def memset(self, words: list[str]) -> str:
        """memset ADDRESS SIZE BYTE"""
        address, length = self._range(words, 0, max(LONGEST, self.machine.memory.size))
        self._space.fill(address, length, number(words, 3, "value"))
        return "OK"

    def endianness(self, _words: list[str]) -> str:
        """endianness"""
        return "OK little"

    # Time, where it stands still otherwise.

    def _clock(self, words: list[str]) -> VirtualClock:
        clock = self.machine.clock
        if not isinstance(clock, VirtualClock):
            raise _Refusal(f"FAIL Unknown command '{words[0]}'")
        return clock

    def clock_step(self, words: list[str]) -> str:
        """clock_step [NS]: without NS, to the next timer"""
        clock = self._clock(words)
        before = clock.now()
        if not clock.step(number(words, 1, "time", 63) if len(words) > 1 else None):
            return "FAIL cannot advance clock to the next deadline because there is no pending deadline"
        if clock.now() == before:
            return "FAIL could not advance time"
        return f"OK {clock.now()}"

    def clock_set(self, words: list[str]) -> str:
        """clock_set NS"""
        clock = self._clock(words)
        time_ns = number(words, 1, "time", 63)
        if time_ns < clock.now():
            return f"FAIL {clock.now()}"
        clock.set(time_ns)
        return f"OK {time_ns}"

    def module_load(self, words: list[str]) -> str:
        """module_load PREFIX NAME: there are no modules to load"""
        return "FAIL" if len(words) > 2 else "FAIL module_load: want PREFIX NAME"


def _sized(method: Callable[[QtestServer, list[str], int], str], size: int) -> Command:
    def command(server: QtestServer, words: list[str]) -> str:
        return method(server, words, size)

    return command


_COMMANDS: dict[str, Command] = {
    method.__name__: method
    for method in (
        QtestServer.b64read,
        QtestServer.b64write,
        QtestServer.clock_set,
        QtestServer.clock_step,
        QtestServer.endianness,
        QtestServer.irq_intercept_in,
        QtestServer.irq_intercept_out,
        QtestServer.memset,
        QtestServer.module_load,
        QtestServer.read,
        QtestServer.set_irq_in,
        QtestServer.write,
    )
}
for _suffix, _size in _WIDTHS.items():
    _COMMANDS[f"read{_suffix}"] = _sized(QtestServer.read_sized, _size)
    _COMMANDS[f"write{_suffix}"] = _sized(QtestServer.write_sized, _size)
    if _size <= 4:
        _COMMANDS[f"in{_suffix}"] = _sized(QtestServer.port_in, _size)
        _COMMANDS[f"out{_suffix}"] = _sized(QtestServer.port_out, _size)
