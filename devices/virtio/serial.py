"""The console device: a bus of serial ports, each on a character device. Ref: VIRTIO 1.2, 5.3.

-device virtio-serial-pci,id=vser0 -device virtserialport,bus=vser0.0,chardev=c0,name=org.example.0
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

import construct as c

from devices.device import Device, Property
from devices.uart16550 import find_backend
from devices.virtio import registers as r
from devices.virtio.pci import VirtioPci
from devices.virtio.queue import QueueBroken
from vmm.errors import ConfigError, InUse, PropertyError
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.device import Board
    from devices.virtio.queue import Element, Virtqueue
    from vmm.chardev import CharBackend, CharEvent

F_MULTIPORT = 1 << 1
CONTROL_RX, CONTROL_TX = 2, 3
"""The control queues: messages to the driver, and from it. Ref: VIRTIO 1.2, 5.3.2."""
DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)
BUS_TYPE = "virtio-serial-bus"
MAX_PORTS = 31
CHUNK = 4096
LARGEST = 1 << 20
"""Bytes of one buffer that are sent; drivers give 32 KiB at most."""
KEPT_MESSAGES = 256
"""Control messages that wait for buffers of the driver at most."""

ConsoleConfig = c.Struct(
    "cols" / c.Default(c.Int16ul, 0),
    "rows" / c.Default(c.Int16ul, 0),
    "max_nr_ports" / c.Int32ul,
    "emerg_wr" / c.Default(c.Int32ul, 0),
)
ControlMessage = c.Struct("id" / c.Int32ul, "event" / c.Int16ul, "value" / c.Int16ul)
"""Ref: VIRTIO 1.2, 5.3.6.2."""
CONTROL_SIZE = 8


class VirtioSerialControl(Event):
    """A control message; `to_driver` says which way."""

    device: str
    port: int
    event: int
    value: int
    to_driver: bool


class PortBus:
    """What ports are plugged into."""

    bus_type = BUS_TYPE
    hotpluggable = True
    unplugs_at_once = True
    """No guest need let go of a port first."""

    def __init__(self, name: str, device: VirtioSerial) -> None:
        self.name = name
        self.device = device


class VirtioSerial(VirtioPci):
    """`-device virtio-serial-pci,id=ID`: makes the bus ID.0, which virtconsole and virtserialport go on."""

    driver = "virtio-serial-pci"
    description = "bus of serial ports"
    virtio_id, transitional_id, class_id = r.ID_CONSOLE, 0x1003, 0x0780
    config_size = 12
    properties = (
        *VirtioPci.properties,
        Property("max_ports", "uint32", MAX_PORTS, "ports that there may be, 1 to 31"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        self.ports: dict[int, VirtioPort] = {}
        self._messages: deque[bytes] = deque()
        self.driver_ready = False
        super().__init__(id, **values)
        count = self.values["max_ports"]
        if not 1 <= count <= MAX_PORTS:
            raise PropertyError(f"maximum ports supported: {MAX_PORTS}", self.driver, "max_ports")
        self.queue_sizes = (128, 128, 32, 32, *[128] * (2 * count - 2))
        self.port_bus = PortBus("", self)

    def acquire(self) -> None:
        """Make the bus of the ports."""
        buses: dict[str, Any] | None = getattr(self.board, "buses", None)
        if buses is not None:
            name = f"{self.id}.0" if self.id else _free_name(buses)
            if name in buses:
                raise InUse(f"there is a bus '{name}'", holder=name)
            self.port_bus.name = name
            buses[name] = self.port_bus
            self.holdings.hold("bus", name, lambda: buses.pop(name))

    @property
    def children(self) -> list[Device]:
        """Devices that go when this one goes."""
        return [*self.ports.values()]

    def features(self) -> int:
        return F_MULTIPORT

    def config_bytes(self) -> bytes:
        return bytes(ConsoleConfig.build({"max_nr_ports": self.values["max_ports"]}))

    def restart(self) -> None:
        """No driver, no port that it has open."""
        self._messages.clear()
        self.driver_ready = False
        for port in self.ports.values():
            port.forget()

    def free_number(self, first: int) -> int:
        """The number of the next port. ConfigError if there is none left."""
        for number in range(first, self.values["max_ports"]):
            if number not in self.ports:
                return number
        raise ConfigError("A port could not be allocated: maximum port limit for this device reached")

    # Ports.

    def attach(self, port: VirtioPort) -> None:
        """A port was plugged."""
        self.ports[port.number] = port
        if self.driver_ready:
            self.tell(port.number, PORT_ADD, 1)

    def detach(self, port: VirtioPort) -> None:
        """A port is gone."""
        del self.ports[port.number]
        if self.driver_ready:
            self.tell(port.number, PORT_REMOVE, 1)

    def receive_queue(self, number: int) -> Virtqueue:
        """Where what comes in at a port goes."""
        return self.queues[2 * number + 2 if number else 0]

    def send_queue(self, number: int) -> Virtqueue:
        """What the driver sends at a port."""
        return self.queues[2 * number + 3 if number else 1]

    def _port_of(self, index: int) -> VirtioPort | None:
        return self.ports.get(0 if index < 2 else index // 2 - 1)

    # Control messages.

    def tell(self, number: int, event: int, value: int, text: bytes = b"") -> None:
        """Send the driver a control message."""
        if len(self._messages) >= KEPT_MESSAGES or not self.has(F_MULTIPORT):
            return
        self._trace(number, event, value, True)
        self._messages.append(ControlMessage.build({"id": number, "event": event, "value": value}) + text)
        self.wake(self.queues[CONTROL_RX])

    def _trace(self, number: int, event: int, value: int, to_driver: bool) -> None:
        if self.board.trace.on:
            self.board.trace.emit(VirtioSerialControl(self.label, number, event, value, to_driver))

    def _control(self, raw: bytes) -> None:
        """What the driver says. What makes no sense is ignored."""
        if len(raw) < CONTROL_SIZE:
            return
        message = ControlMessage.parse(raw)
        self._trace(message.id, message.event, message.value, False)
        if message.event == DEVICE_READY:
            self.driver_ready = bool(message.value)
            if self.driver_ready:
                for number in sorted(self.ports):
                    self.tell(number, PORT_ADD, 1)
            return
        port = self.ports.get(message.id)
        if port is None:
            return
        if message.event == PORT_READY and message.value:
            if port.is_console:
                self.tell(port.number, CONSOLE_PORT, 1)
            if port.values["name"]:
                self.tell(port.number, PORT_NAME, 1, port.values["name"].encode() + b"\0")
            if port.host_open:
                self.tell(port.number, PORT_OPEN, 1)
        elif message.event == PORT_OPEN:
            port.guest_opened(bool(message.value))

    # Queues.

    def started(self) -> None:
        """A driver without control messages has one port, and it is open."""
        if not self.has(F_MULTIPORT) and 0 in self.ports:
            self.ports[0].guest_opened(True)

    def handle(self, queue: Virtqueue) -> int | None:
        """A control message, or what goes in or out at a port."""
        index = queue.index
        if index == CONTROL_RX:
            return self._send_message(queue)
        if index == CONTROL_TX:
            element = queue.pop()
            if element is None:
                return None
            self._control(self.dma.gather(element.readable, 0, CONTROL_SIZE))
            queue.push(element, 0)
            return CONTROL_SIZE
        port = self._port_of(index)
        if not index & 1:
            if port is not None:
                port.buffers_added()
            return None
        if port is not None:
            return port.transmit(queue)
        element = queue.pop()  # nobody is there: it is lost
        if element is None:
            return None
        queue.push(element, 0)
        return 0

    def _send_message(self, queue: Virtqueue) -> int | None:
        if not self._messages:
            return None
        element = queue.pop()
        if element is None:
            return None
        message = self._messages.popleft()
        if element.writable_length < CONTROL_SIZE:
            raise QueueBroken(f"a control buffer of {element.writable_length} bytes")
        queue.push(element, self.dma.scatter(element.writable, message))
        return len(message)


def _free_name(buses: dict[str, Any]) -> str:
    number = 0
    while f"virtio-serial-bus.{number}" in buses:
        number += 1
    return f"virtio-serial-bus.{number}"


class VirtioPort(Device):
    """A port: the front end of a character device. `bus` is set before realize."""

    bus_type = BUS_TYPE
    hotpluggable = True
    is_console: ClassVar[bool] = False
    first_number: ClassVar[int] = 1
    properties = (
        Property("chardev", "str", None, "id of a character device"),
        Property("name", "str", None, "what the guest finds the port by"),
        Property("nr", "uint32", None, "number of the port"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.bus: PortBus | None = None
        self.number = -1
        self.guest_open = False
        self._backend: CharBackend | None = None
        self._unsent = b""
        self._sending: Element | None = None

    def realize(self, board: Board) -> None:
        """Take a number and the character device. PropertyError or InUse if they are not to be had."""
        super().realize(board)
        bus = self.bus
        if bus is None:
            raise ConfigError(f"No '{BUS_TYPE}' bus found for device '{self.driver}'")
        hub, number = bus.device, self.values["nr"]
        if number is None:
            number = hub.free_number(self.first_number)
        elif number in hub.ports:
            raise InUse(f"A port already exists at id {number}", holder=hub.ports[number].path)
        elif number == 0 and not self.is_console:
            raise PropertyError(
                "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility.",
                self.driver,
                "nr",
            )
        elif number >= hub.values["max_ports"]:
            raise PropertyError(
                f"Out-of-range port id specified, max. allowed: {hub.values['max_ports'] - 1}", self.driver, "nr"
            )
        self.number = number
        self.values["nr"] = number
        backend = find_backend(self)
        if backend is not None:
            backend.connect(self)
            self._backend = backend
            self.holdings.hold("chardev", backend.id, backend.disconnect)
        hub.attach(self)
        self.holdings.hold("port", str(number), lambda: hub.detach(self))
        self.guest_open = self.is_console and hub.driver_ready

    @property
    def _hub(self) -> VirtioSerial:
        assert self.bus is not None
        return self.bus.device

    @property
    def host_open(self) -> bool:
        """Somebody is at the other side."""
        return self._backend is not None and self._backend.open

    # The driver's side.

    def guest_opened(self, opened: bool) -> None:
        """The guest opened the port, or closed it."""
        if opened == self.guest_open:
            return
        self.guest_open = opened
        tell = getattr(self.board, "emit", None)
        if tell is not None and self.id and not self.is_console:
            tell("VSERPORT_CHANGE", {"id": self.id, "open": opened})
        if opened:
            self.buffers_added()

    def forget(self) -> None:
        """The driver was reset."""
        self._sending = None
        self._unsent = b""
        self.guest_opened(False)

    def buffers_added(self) -> None:
        """The driver has room for input."""
        if self._backend is not None:
            self._backend.accept_input()

    def transmit(self, queue: Virtqueue) -> int | None:
        """Send what the driver offers next; None if there is nothing, or the other side takes no more."""
        if self._sending is not None:
            return None
        element = queue.pop()
        if element is None:
            return None
        data = self._hub.dma.gather(element.readable, 0, LARGEST)
        taken = len(data)
        if self._backend is not None and self._backend.open:
            taken = self._backend.write(data)
        if taken < len(data):
            self._sending, self._unsent = element, data[taken:]
            return None
        queue.push(element, 0)
        return len(data)

    # The character device's side.

    def writable(self) -> None:
        """It takes output again."""
        element, data = self._sending, self._unsent
        if element is None or self._backend is None:
            return
        taken = self._backend.write(data)
        self._unsent = data[taken:]
        if self._unsent:
            return
        self._sending = None
        hub = self._hub
        queue = hub.send_queue(self.number)
        try:
            queue.push(element, 0)
        except QueueBroken as reason:
            hub.fail(str(reason))
            return
        hub.notify(queue)
        hub.wake(queue)

    def can_receive(self) -> int:
        """As much as the driver's next buffer holds."""
        hub = self._hub
        queue = hub.receive_queue(self.number)
        if not (self.guest_open or self.is_console) or not hub.ready(queue):
            return 0
        try:
            element = queue.pop()
        except QueueBroken as reason:
            hub.fail(str(reason))
            return 0
        if element is None:
            return 0
        queue.unpop()
        return min(element.writable_length, CHUNK)

    def receive(self, data: bytes) -> None:
        """Into the driver's buffers; what finds no room, as there was, is lost."""
        hub = self._hub
        queue = hub.receive_queue(self.number)
        try:
            while data and (element := queue.pop()) is not None:
                written = hub.dma.scatter(element.writable, data)
                queue.push(element, written)
                data = data[written:]
        except QueueBroken as reason:
            hub.fail(str(reason))
            return
        hub.notify(queue)

    def char_event(self, event: CharEvent) -> None:
        """The other side came or went."""
        hub = self._hub
        if event != "break" and hub.driver_ready and hub.ports.get(self.number) is self:
            hub.tell(self.number, PORT_OPEN, int(event == "opened"))


class VirtSerialPort(VirtioPort):
    """`-device virtserialport,bus=ID.0,chardev=C,name=N`: a channel that the guest finds by name."""

    driver = "virtserialport"
    description = "serial port on a virtio-serial bus"


class VirtConsole(VirtioPort):
    """`-device virtconsole,bus=ID.0,chardev=C`: a console of the guest (hvc0)."""

    driver = "virtconsole"
    description = "console on a virtio-serial bus"
    is_console = True
    first_number = 0
