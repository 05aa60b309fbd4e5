"""One character device for several users: `mux=on`, and `mon:` of -serial.

    -serial mon:stdio        the serial port and a human monitor on the terminal; Ctrl-A c changes between them

Whoever has the focus gets the input; all write. Ctrl-A is the escape: `Ctrl-A h` prints the keys. A user hears
`opened` when it has the focus for the first time, so that a monitor does not greet into a serial log.

Ref: QEMU docs/system/mux-chardev.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.chardev import CharBackend

if TYPE_CHECKING:
    import asyncio

    from vmm.chardev import CharEvent, CharFrontend

ESCAPE: Final = 0x01
HELP: Final = (
    "\r\nC-a h    print this help\r\nC-a x    exit emulator\r\nC-a b    send break (magic sysrq)\r\n"
    "C-a c    switch between console and monitor\r\nC-a C-a  sends C-a\r\n"
)


class MuxPort(CharBackend):
    """What one user of a `MuxBackend` has of it."""

    kind = "mux"

    def __init__(self, mux: MuxBackend) -> None:
        super().__init__(mux.id)
        self._mux = mux
        self.open = False
        self.greeted = False
        """It has had the focus."""

    @property
    def filename(self) -> str:
        return self._mux.filename

    def connect(self, frontend: CharFrontend) -> None:
        super().connect(frontend)
        self._mux.connected(self)

    def disconnect(self) -> None:
        super().disconnect()
        self._mux.disconnected(self)

    def write(self, data: bytes) -> int:
        return self._mux.below.write(data)

    def flush(self) -> None:
        self._mux.below.flush()

    def accept_input(self) -> None:
        self._mux.pass_on()

    def tell(self, event: CharEvent) -> None:
        """An event of the device, or of the focus."""
        self._event(event)


class MuxBackend(CharBackend):
    """A device with several users. `shared` gives one more a port."""

    kind = "mux"

    def __init__(self, below: CharBackend) -> None:
        super().__init__(below.id)
        self.below = below
        self.ports: list[MuxPort] = []
        self._focus = -1
        self._escaped = False
        self._waiting = bytearray()
        """Input for who has the focus."""
        self._there = False
        self._started = False
        """Everybody who is there from the start is: until then nobody has the focus for good."""
        below.connect(self)

    @property
    def filename(self) -> str:
        return self.below.filename

    def shared(self) -> MuxPort:
        """A port for another user."""
        return MuxPort(self)

    # The ports' side.

    def connected(self, port: MuxPort) -> None:
        """A user came: it has the focus."""
        self.ports.append(port)
        self.frontend = port.frontend
        self._set_focus(len(self.ports) - 1)

    def disconnected(self, port: MuxPort) -> None:
        """A user left."""
        place = self.ports.index(port)
        self.ports.remove(port)
        if self._focus >= place:
            self._focus = max(self._focus - 1, 0 if self.ports else -1)
        self.frontend = self.ports[-1].frontend if self.ports else None

    def _set_focus(self, place: int) -> None:
        self._focus = place
        port = self.ports[place]
        if self._there and self._started and not port.greeted:
            port.greeted = True
            port.tell("opened")

    def pass_on(self) -> None:
        """Hand over input as fast as the one with the focus takes it."""
        while self._waiting and self._focus >= 0:
            port = self.ports[self._focus]
            frontend = port.frontend
            room = frontend.can_receive() if frontend is not None else 0
            if room <= 0 or frontend is None:
                return
            data = bytes(self._waiting[:room])
            del self._waiting[: len(data)]
            frontend.receive(data)
        self.below.accept_input()

    # What the device below calls.

    def can_receive(self) -> int:
        """Nothing while somebody has not taken what came before; else what one read gives."""
        return 0 if self._waiting else 256

    def receive(self, data: bytes) -> None:
        """Input, with escapes."""
        for byte in data:
            if self._escaped:
                self._escaped = False
                self._key(byte)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                self._waiting.append(byte)
        self.pass_on()

    def _key(self, byte: int) -> None:
        key = chr(byte).lower()
        if byte == ESCAPE:
            self._waiting.append(byte)
        elif key in "h?":
            self.below.write(HELP.encode())
        elif key == "x":
            self.below.write(b"vintx: Terminated\r\n")
            self.on_exit()
        elif key == "b" and self._focus >= 0:
            self.ports[self._focus].tell("break")
        elif key == "c" and self.ports:
            self.pass_on()
            self._waiting.clear()
            self._set_focus((self._focus + 1) % len(self.ports))

    def char_event(self, event: CharEvent) -> None:
        """The other side came or went."""
        if event == "break":
            if self._focus >= 0:
                self.ports[self._focus].tell("break")
            return
        self.open = self._there = event == "opened"
        if event == "opened" and self._focus >= 0:
            self._set_focus(self._focus)
        elif event == "closed":
            for port in self.ports:
                port.greeted = False
                port.tell("closed")

    def writable(self) -> None:
        """The device takes more."""
        for port in list(self.ports):
            if port.frontend is not None:
                port.frontend.writable()

    # A device of its own right.

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._started = True
        self.below.start(loop)
        if self._focus >= 0:
            self._set_focus(self._focus)
        self.pass_on()

    def flush(self) -> None:
        self.below.flush()

    def close(self) -> None:
        self.below.close()
        self.open = False
