"""The network card: frames out on one queue, in on another, and a queue of commands. Ref: VIRTIO 1.2, 5.1.

It offers no offloads: each frame has a header that says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Property
from devices.virtio import registers as r
from devices.virtio.pci import VirtioPci
from devices.virtio.queue import QueueBroken
from vmm.errors import PropertyError
from vmm.netdev import LARGEST_FRAME
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.virtio.queue import Element, Virtqueue
    from vmm.netdev import Netdev

F_MAC = 1 << 5
F_MRG_RXBUF = 1 << 15
F_STATUS = 1 << 16
F_CTRL_VQ = 1 << 17
F_CTRL_RX = 1 << 18
F_CTRL_RX_EXTRA = 1 << 20
F_GUEST_ANNOUNCE = 1 << 21
F_CTRL_MAC_ADDR = 1 << 23
S_LINK_UP, S_ANNOUNCE = 1, 2
RX, TX, CONTROL = range(3)
CTRL_RX, CTRL_MAC, CTRL_ANNOUNCE = 0, 1, 3
RX_MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
MAC_TABLE_SET, MAC_ADDRESS_SET = 0, 1
CONTROL_OK, CONTROL_ERROR = 0, 1
HEADER_SIZE, LEGACY_HEADER_SIZE = 12, 10
MAC_TABLE_ENTRIES = 64
ETHER_TYPE_RARP = 0x8035
_BROADCAST = b"\xff" * 6

NetConfig = c.Struct(
    "mac" / c.Bytes(6), "status" / c.Int16ul, "max_virtqueue_pairs" / c.Int16ul, "mtu" / c.Default(c.Int16ul, 0)
)
"""Ref: VIRTIO 1.2, 5.1.4."""

NetHeader = c.Struct(
    "flags" / c.Default(c.Int8ul, 0),
    "gso_type" / c.Default(c.Int8ul, 0),
    "hdr_len" / c.Default(c.Int16ul, 0),
    "gso_size" / c.Default(c.Int16ul, 0),
    "csum_start" / c.Default(c.Int16ul, 0),
    "csum_offset" / c.Default(c.Int16ul, 0),
    "num_buffers" / c.Default(c.Int16ul, 1),
)
"""Before each frame; a legacy driver without mergeable buffers has it without the last field."""

ControlHeader = c.Struct("class" / c.Int8ul, "command" / c.Int8ul)


class VirtioNetFrame(Event):
    """A frame was sent or received."""

    device: str
    length: int
    received: bool


def parse_mac(driver: str, text: str) -> bytes:
    """`52:54:00:12:34:56`. PropertyError for anything else."""
    parts = text.replace("-", ":").split(":")
    try:
        if len(parts) != 6 or any(len(part) != 2 for part in parts):
            raise ValueError
        return bytes(int(part, 16) for part in parts)
    except ValueError:
        raise PropertyError(f"Property '{driver}.mac' doesn't take value '{text}'", driver, "mac") from None


class VirtioNet(VirtioPci):
    """`-device virtio-net-pci,netdev=ID[,mac=...]`: without a netdev nothing is at the other end of the cable."""

    driver = "virtio-net-pci"
    description = "network card"
    virtio_id, transitional_id, class_id = r.ID_NET, 0x1000, 0x0200
    queue_sizes = (256, 256, 64)
    default_vectors = 4
    config_size = 12
    properties = (
        *VirtioPci.properties,
        Property("netdev", "str", None, "id of a network back end"),
        Property("mac", "str", None, "address of the card; made up if there is none"),
        Property("mrg_rxbuf", "bool", True, "offer mergeable receive buffers"),
        Property("ctrl_vq", "bool", True, "offer the queue of commands"),
        Property("guest_announce", "bool", True, "the guest announces itself when it is asked to"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        given = self.values["mac"]
        self._burnt_in = parse_mac(self.driver, given) if given is not None else b""
        self.mac = self._burnt_in
        self.netdev: Netdev | None = None
        self.sent = self.received = self.dropped = 0
        self._modes: dict[str, bool] = {}
        self._addresses: frozenset[bytes] = frozenset()
        self._announce = 0
        self._stopped = False
        self._listening()

    def _listening(self) -> None:
        """As after a reset: everything is received, which drivers without commands count on."""
        self._modes = dict.fromkeys(RX_MODES, False) | {"promiscuous": True}
        self._addresses = frozenset()

    def acquire(self) -> None:
        """Take the back end. PropertyError if there is none of that id; InUse if it is taken."""
        board = self.board
        if not self._burnt_in:
            self._burnt_in = self.mac = bytes((0x52, 0x54, 0x00, 0x12, 0x34, 0x56 + self.slot & 0xFF))
            self.values["mac"] = self.mac.hex(":")
        name = self.values["netdev"]
        if name is None:
            return
        netdev: Netdev | None = getattr(board, "netdevs", {}).get(name)
        if netdev is None:
            raise PropertyError(f"Property '{self.driver}.netdev' can't find value '{name}'", self.driver, "netdev")
        netdev.connect(self)
        self.netdev = netdev
        self.holdings.hold("netdev", name, netdev.disconnect)
        listen = getattr(board, "on_event", None)
        if listen is not None:
            self.holdings.hold("listener", "run-state", listen(self._run_state))

    def _run_state(self, name: str, _data: Any) -> None:
        """Nothing gets into the memory of a machine that is stopped."""
        if name == "STOP":
            self._stopped = True
        elif name == "RESUME":
            self._stopped = False
            if self.netdev is not None:
                self.netdev.accept_frames()

    def features(self) -> int:
        values = self.values
        commands = F_CTRL_VQ | F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR
        return (
            F_MAC | F_STATUS
            | (F_MRG_RXBUF if values["mrg_rxbuf"] else 0)
            | (commands if values["ctrl_vq"] else 0)
            | (F_GUEST_ANNOUNCE if values["ctrl_vq"] and values["guest_announce"] else 0)
        )  # fmt: skip

    def config_bytes(self) -> bytes:
        up = self.netdev is None or self.netdev.up
        status = (S_LINK_UP if up else 0) | self._announce
        return bytes(NetConfig.build({"mac": self.mac or bytes(6), "status": status, "max_virtqueue_pairs": 1}))

    def config_written(self, data: bytes) -> None:
        """A legacy driver may change the address here."""
        if not self.has(r.F_VERSION_1) and not self.has(F_CTRL_MAC_ADDR):
            self.mac = data[:6]

    def restart(self) -> None:
        """The card's own address, and everything is received."""
        self.mac = self._burnt_in
        self._announce = 0
        self._listening()

    @property
    def _header_size(self) -> int:
        return HEADER_SIZE if self.has(F_MRG_RXBUF | r.F_VERSION_1) else LEGACY_HEADER_SIZE

    # Queues.

    def handle(self, queue: Virtqueue) -> int | None:
        """Send a frame, carry out a command, or hear of room for frames."""
        if queue.index == RX:
            if self.netdev is not None:
                self.netdev.accept_frames()
            return None
        element = queue.pop()
        if element is None:
            return None
        if queue.index == CONTROL:
            if element.readable_length < 2 or not element.writable_length:
                raise QueueBroken("a command without header or answer")
            raw = self.dma.gather(element.readable, 0, 4096)
            self.dma.scatter(element.writable, bytes((self._command(raw),)))
            queue.push(element, 1)
            return len(raw)
        length = element.readable_length - self._header_size
        if length < 0 or element.writable_length:
            raise QueueBroken(f"a frame of {length} bytes without its header")
        if 0 < length <= LARGEST_FRAME:
            self._transmit(self.dma.gather(element.readable, self._header_size))
        else:
            self.dropped += 1
        queue.push(element, 0)
        return min(length, LARGEST_FRAME)

    def _transmit(self, frame: bytes) -> None:
        self.sent += 1
        if self.board.trace.on:
            self.board.trace.emit(VirtioNetFrame(self.label, len(frame), False))
        if self.netdev is not None:
            self.netdev.send(frame)

    # Commands. Ref: VIRTIO 1.2, 5.1.6.5.

    def _command(self, raw: bytes) -> int:
        kind, command, data = raw[0], raw[1], raw[2:]
        if kind == CTRL_RX and command < len(RX_MODES) and data:
            self._modes[RX_MODES[command]] = bool(data[0])
            return CONTROL_OK
        if kind == CTRL_MAC and command == MAC_ADDRESS_SET and len(data) >= 6:
            self.mac = data[:6]
            return CONTROL_OK
        if kind == CTRL_MAC and command == MAC_TABLE_SET:
            return self._set_table(data)
        if kind == CTRL_ANNOUNCE and command == 0 and self._announce:
            self._announce = 0
            return CONTROL_OK
        return CONTROL_ERROR

    def _set_table(self, data: bytes) -> int:
        """Unicast, then multicast addresses, each a count and as many of six bytes."""
        found: set[bytes] = set()
        for mode in ("all_unicast", "all_multicast"):
            if len(data) < 4:
                return CONTROL_ERROR
            count = int.from_bytes(data[:4], "little")
            end = 4 + 6 * count
            if len(data) < end:
                return CONTROL_ERROR
            if len(found) + count > MAC_TABLE_ENTRIES:
                self._modes[mode] = True  # too many to keep: let all of them in
            else:
                found.update(data[at : at + 6] for at in range(4, end, 6))
            data = data[end:]
        self._addresses = frozenset(found)
        return CONTROL_OK

    def wants(self, frame: bytes) -> bool:
        """Whether the driver asked for frames such as this one."""
        modes, address = self._modes, frame[:6]
        if modes["promiscuous"]:
            return True
        if address[:1] and address[0] & 1:
            if address == _BROADCAST:
                return not modes["no_broadcast"]
            return not modes["no_multicast"] and (modes["all_multicast"] or address in self._addresses)
        if modes["no_unicast"]:
            return False
        return modes["all_unicast"] or address == self.mac or address in self._addresses

    # The network's side.

    def can_take_frame(self) -> bool:
        """Whether the driver offers a buffer and the machine runs."""
        queue = self.queues[RX]
        if self._stopped or not self.ready(queue) or not self.status & r.STATUS_DRIVER_OK:
            return False
        try:
            return queue.available() > 0
        except QueueBroken as reason:
            self.fail(str(reason))
            return False

    def take_frame(self, frame: bytes) -> None:
        """Into the driver's buffers: one, or as many as it takes if they can be merged. Lost if they do not hold it."""
        if not self.wants(frame):
            return
        queue = self.queues[RX]
        head = self._header_size
        data = NetHeader.build({})[:head] + frame
        taken: list[tuple[Element, int]] = []
        done = 0
        try:
            while done < len(data):
                element = queue.pop() if not taken or self.has(F_MRG_RXBUF) else None
                if element is None:
                    break
                taken.append((element, self.dma.scatter(element.writable, data[done:])))
                done += taken[-1][1]
                if not taken[-1][1]:
                    raise QueueBroken("a receive buffer that cannot be written")
            if done < len(data):
                for _ in taken:
                    queue.unpop()
                self.dropped += 1
                return
            if head == HEADER_SIZE:
                first = taken[0][0]
                self.dma.scatter(first.writable, len(taken).to_bytes(2, "little"), LEGACY_HEADER_SIZE)
            for element, written in taken:
                queue.push(element, written)
        except QueueBroken as reason:
            self.fail(str(reason))
            return
        self.received += 1
        if self.board.trace.on:
            self.board.trace.emit(VirtioNetFrame(self.label, len(frame), True))
        self.notify(queue)

    def link_changed(self, up: bool) -> None:  # noqa: ARG002
        """Tell the driver of the cable."""
        self.config_interrupt()

    def announce(self) -> None:
        """Let the network know where the card is (announce-self): a RARP frame, and the guest's own if it offered."""
        if self.driver_ok and self.has(F_GUEST_ANNOUNCE) and self.has(F_CTRL_VQ):
            self._announce = S_ANNOUNCE
            self.config_interrupt()
        body = bytes.fromhex("0001080006040003") + self.mac + bytes(4) + self.mac + bytes(4)
        frame = _BROADCAST + self.mac + ETHER_TYPE_RARP.to_bytes(2, "big") + body
        if self.netdev is not None:
            self.netdev.send(frame.ljust(60, b"\0"))
