"""The console device: control messages, ports on character devices, unplug."""

from __future__ import annotations

import pytest

from devices.virtio import registers as r
from devices.virtio import serial as vs
from devices.virtio.serial import ControlMessage, VirtConsole, VirtioSerial, VirtSerialPort
from support.virtio import BUFFERS, VirtioBoard
from vmm.chardev import MemoryBackend
from vmm.errors import ConfigError, InUse, PropertyError

ROOM = 256


class SerialBoard(VirtioBoard):
    """A bus of four ports and a driver of it."""

    def __init__(self, max_ports=4, **values):
        self.backends = {name: MemoryBackend(name) for name in ("c0", "c1")}
        self.emitted = []
        super().__init__(
            VirtioSerial("vser0", max_ports=max_ports, **values),
            buses={},
            chardev=self.backends.get,
            emit=lambda name, data: self.emitted.append((name, data)),
        )
        self.next_buffer = BUFFERS

    def port(self, cls=VirtSerialPort, id="p", **values):
        port = cls(id, **{"chardev": "c0"} | values)
        port.bus = self.device.port_bus
        try:
            port.realize(self)
        except Exception:
            port.unwind()
            raise
        return port

    def room(self, queue, length=ROOM, count=1):
        """Offer buffers for the device to write to."""
        for _ in range(count):
            self.rings[queue].submit((self.next_buffer, length, True))
            self.next_buffer += length

    def written(self, queue):
        """What the device wrote since the last call, one string a buffer."""
        ring = self.rings[queue]
        found = []
        for head, length in ring.done():
            entry = r.Descriptor.parse(self.memory.read(ring.desc + 16 * head, 16))
            found.append(self.memory.read(entry.address, length))
        return found

    def messages(self):
        """Control messages to the driver: (port, event, value, text)."""
        found = []
        for raw in self.written(vs.CONTROL_RX):
            message = ControlMessage.parse(raw)
            found.append((message.id, message.event, message.value, raw[8:]))
        return found

    def say(self, number, event, value):
        """A control message of the driver."""
        self.memory.write(BUFFERS - 64, ControlMessage.build({"id": number, "event": event, "value": value}))
        self.rings[vs.CONTROL_TX].submit((BUFFERS - 64, 8, False))

    def send(self, queue, data):
        self.memory.write(BUFFERS - 0x1000, data)
        self.rings[queue].submit((BUFFERS - 0x1000, len(data), False))

    def bring_up(self):
        """Start, with room for control messages, and say that the driver is there."""
        self.start()
        self.room(vs.CONTROL_RX, 32, 16)
        self.say(0, vs.DEVICE_READY, 1)
        return self


class TestControl:
    def test_ports_are_told_once_the_driver_is_ready(self):
        board = SerialBoard()
        board.port(VirtConsole, "con")
        board.port(VirtSerialPort, "p1", name="org.example.0", chardev="c1")
        board.bring_up()
        assert board.messages() == [(0, vs.PORT_ADD, 1, b""), (1, vs.PORT_ADD, 1, b"")]
        board.say(0, vs.PORT_READY, 1)
        assert board.messages() == [(0, vs.CONSOLE_PORT, 1, b""), (0, vs.PORT_OPEN, 1, b"")]
        board.say(1, vs.PORT_READY, 1)
        assert board.messages() == [(1, vs.PORT_NAME, 1, b"org.example.0\0"), (1, vs.PORT_OPEN, 1, b"")]

    def test_messages_wait_for_room(self):
        board = SerialBoard()
        board.port()
        board.start()
        board.say(0, vs.DEVICE_READY, 1)
        assert board.messages() == []
        board.room(vs.CONTROL_RX)
        assert board.messages() == [(1, vs.PORT_ADD, 1, b"")]

    def test_plug_and_unplug_are_told(self):
        board = SerialBoard().bring_up()
        before = board.ledger.snapshot()
        port = board.port()
        assert board.messages() == [(1, vs.PORT_ADD, 1, b"")]
        port.unrealize()
        assert board.messages() == [(1, vs.PORT_REMOVE, 1, b"")]
        assert board.ledger.difference(before) == ([], [])
        assert board.backends["c0"].frontend is None

    def test_nonsense_is_ignored(self):
        board = SerialBoard().bring_up()
        board.port()
        board.messages()
        for number, event, value in ((9, vs.PORT_READY, 1), (1, 77, 1), (0xFFFF_FFFF, vs.PORT_OPEN, 1)):
            board.say(number, event, value)
        board.memory.write(BUFFERS - 64, bytes(8))
        board.rings[vs.CONTROL_TX].submit((BUFFERS - 64, 3, False))
        assert board.messages() == []
        assert not board.status & r.STATUS_NEEDS_RESET

    def test_control_buffer_that_is_too_small_breaks_the_device(self):
        board = SerialBoard()
        board.port()
        board.start()
        board.room(vs.CONTROL_RX, 4)
        board.say(0, vs.DEVICE_READY, 1)
        assert board.status & r.STATUS_NEEDS_RESET

    def test_messages_do_not_pile_up(self):
        board = SerialBoard()
        board.port(VirtConsole, "con")
        board.start()
        for _ in range(1000):
            board.say(0, vs.DEVICE_READY, 1)
            board.rings[vs.CONTROL_TX].done()
        board.room(vs.CONTROL_RX, 8, 16)
        assert len(board.device._messages) == vs.KEPT_MESSAGES - 16


class TestPorts:
    def test_output_reaches_the_character_device(self):
        board = SerialBoard()
        board.port()
        board.bring_up()
        board.say(1, vs.PORT_OPEN, 1)
        board.send(5, b"hello")
        assert board.backends["c0"].output == b"hello"
        assert board.rings[5].done() == [(0, 0)]

    def test_output_of_a_port_that_is_not_there_is_lost(self):
        board = SerialBoard().bring_up()
        board.send(5, b"hello")
        assert board.rings[5].done() == [(0, 0)]

    def test_input_waits_until_the_guest_opens_the_port_and_has_room(self):
        board = SerialBoard()
        board.port()
        board.bring_up()
        board.backends["c0"].feed(b"0123456789")
        board.room(4, 4)
        assert board.written(4) == []
        board.say(1, vs.PORT_OPEN, 1)
        assert board.written(4) == [b"0123"]
        board.room(4, 4)
        board.room(4, 4)
        assert board.written(4) == [b"4567", b"89"]
        assert board.irq

    def test_first_port_has_the_first_queues(self):
        board = SerialBoard()
        board.port(VirtConsole, "con")
        board.bring_up()
        board.room(0, 8)
        board.backends["c0"].feed(b"in")
        assert board.written(0) == [b"in"]
        board.send(1, b"out")
        assert board.backends["c0"].output == b"out"

    def test_driver_without_control_messages_has_the_first_port(self):
        board = SerialBoard()
        board.port(VirtConsole, "con")
        board.start(r.F_VERSION_1)
        board.room(0, 8)
        board.backends["c0"].feed(b"in")
        assert board.written(0) == [b"in"]

    def test_open_and_close_are_events_of_the_monitor(self):
        board = SerialBoard()
        board.port(id="chan")
        board.bring_up()
        board.say(1, vs.PORT_OPEN, 1)
        board.say(1, vs.PORT_OPEN, 1)
        board.status = 0
        assert board.emitted == [
            ("VSERPORT_CHANGE", {"id": "chan", "open": True}),
            ("VSERPORT_CHANGE", {"id": "chan", "open": False}),
        ]

    def test_output_that_is_refused_is_sent_later(self):
        board = SerialBoard()
        board.port()
        board.bring_up()
        board.say(1, vs.PORT_OPEN, 1)
        backend = board.backends["c0"]
        taken = []
        backend.write = lambda data: taken.append(data[:3]) or len(data[:3])
        board.send(5, b"abcdefgh")
        assert board.rings[5].done() == []
        backend.frontend.writable()
        assert board.rings[5].done() == []
        backend.frontend.writable()
        assert board.rings[5].done() == [(0, 0)]
        assert b"".join(taken) == b"abcdefgh"

    def test_reset_forgets_output_that_was_refused(self):
        board = SerialBoard()
        board.port()
        board.bring_up()
        board.backends["c0"].write = lambda _: 0
        board.send(5, b"abc")
        board.status = 0
        board.backends["c0"].frontend.writable()
        board.bring_up()
        assert board.rings[5].done() == []

    def test_other_side_that_comes_and_goes_is_told(self):
        board = SerialBoard()
        port = board.port()
        board.bring_up()
        board.messages()
        port.char_event("closed")
        port.char_event("opened")
        port.char_event("break")
        assert board.messages() == [(1, vs.PORT_OPEN, 0, b""), (1, vs.PORT_OPEN, 1, b"")]


class TestNumbers:
    def test_numbers_are_given_in_order_and_0_is_for_consoles(self):
        board = SerialBoard()
        assert board.port(VirtSerialPort, "a").number == 1
        assert board.port(VirtConsole, "b", chardev=None).number == 0
        assert board.port(VirtConsole, "c", chardev=None).number == 2
        assert board.port(VirtSerialPort, "d", chardev=None, nr=3).number == 3
        with pytest.raises(ConfigError, match="maximum port limit"):
            board.port(VirtSerialPort, "e", chardev=None)

    def test_wrong_ones_are_refused_and_hold_nothing(self):
        board = SerialBoard()
        board.port(VirtSerialPort, "a")
        before = board.ledger.snapshot()
        for values, error, message in (
            ({"nr": 0, "chardev": None}, PropertyError, "reserved for virtconsole"),
            ({"nr": 1, "chardev": None}, InUse, "already exists at id 1"),
            ({"nr": 4, "chardev": None}, PropertyError, "max. allowed: 3"),
            ({"chardev": "c9"}, PropertyError, "can't find value 'c9'"),
            ({"chardev": "c0"}, InUse, "in use"),
        ):
            with pytest.raises(error, match=message):
                board.port(VirtSerialPort, "b", **values)
        assert board.ledger.difference(before) == ([], [])
        with pytest.raises(PropertyError, match="maximum ports"):
            VirtioSerial("v", max_ports=32)

    def test_layout_of_queues_and_configuration(self):
        board = SerialBoard(max_ports=31).start()
        assert board.common(r.COMMON_NUM_QUEUES, 2) == 64
        raw = b"".join(board.own(at, 4).to_bytes(4, "little") for at in (0, 4, 8))
        assert vs.ConsoleConfig.parse(raw).max_nr_ports == 31


def test_unplug_takes_ports_bus_and_lines_along(vm):
    guest = vm("pc", accel="qtest", trace=False)
    machine = guest.machine
    before = machine.ledger.snapshot()
    machine.device_add({"driver": "virtio-serial-pci", "id": "v0"})
    machine.device_add({"driver": "virtserialport", "id": "p0", "bus": "v0.0"})
    machine.device_add({"driver": "virtconsole", "id": "p1", "bus": "v0.0"})
    assert "v0.0" in machine.buses
    machine.device_del("p1")
    machine.device_del("v0")
    machine.reset()
    deleted = [e["data"] for e in guest.events if e["event"] == "DEVICE_DELETED"]
    assert deleted == [
        {"device": "p1", "path": "/machine/peripheral/p1"},
        {"device": "p0", "path": "/machine/peripheral/p0"},
        {"path": "/machine/peripheral/v0/virtio-backend"},
        {"device": "v0", "path": "/machine/peripheral/v0"},
    ]
    assert "v0.0" not in machine.buses
    assert machine.ledger.difference(before) == ([], [])


def test_port_without_a_bus_is_refused(vm):
    machine = vm("pc", accel="qtest", trace=False).machine
    with pytest.raises(ConfigError, match="No 'virtio-serial-bus' bus found for device 'virtserialport'"):
        machine.device_add({"driver": "virtserialport", "id": "p0"})
    with pytest.raises(ConfigError, match="Device 'virtserialport' can't go on PCI bus"):
        machine.device_add({"driver": "virtserialport", "id": "p0", "bus": "pci.0"})
