"""Input devices: a keyboard, a mouse and a tablet, each an evdev of the guest. Ref: VIRTIO 1.2, 5.8.

There is no display whose window would make events: `send` takes them, in Linux' numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import construct as c

from devices.device import Property
from devices.virtio import registers as r
from devices.virtio.pci import VirtioPci
from devices.virtio.queue import QueueBroken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devices.virtio.queue import Virtqueue

CONFIG_SIZE = 136
CFG_ID_NAME, CFG_ID_SERIAL, CFG_ID_DEVIDS, CFG_PROP_BITS, CFG_EV_BITS, CFG_ABS_INFO = 1, 2, 3, 0x10, 0x11, 0x12

EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_LED, EV_REP = 0x00, 0x01, 0x02, 0x03, 0x11, 0x14
BTN_LEFT, BTN_RIGHT, BTN_MIDDLE, BTN_SIDE, BTN_EXTRA, BTN_GEAR_DOWN, BTN_GEAR_UP = (
    *range(0x110, 0x115),
    0x150,
    0x151,
)
REL_X, REL_Y, REL_WHEEL = 0, 1, 8
ABS_X, ABS_Y = 0, 1
ABS_MAX = 0x7FFF
BUS_VIRTUAL = 6
KEPT_EVENTS = 1024
"""Events that wait for buffers of the driver at most."""

InputConfig = c.Struct(
    "select" / c.Int8ul,
    "subselect" / c.Int8ul,
    "size" / c.Int8ul,
    c.Padding(5),
    "data" / c.Padded(128, c.GreedyBytes),
)
"""What `select` and `subselect` ask for is in the first `size` bytes of `data`. Ref: VIRTIO 1.2, 5.8.4."""

InputEvent = c.Struct("type" / c.Int16ul, "code" / c.Int16ul, "value" / c.Int32sl)
EVENT_SIZE = 8
DeviceIds = c.Struct("bus" / c.Int16ul, "vendor" / c.Int16ul, "product" / c.Int16ul, "version" / c.Int16ul)
AbsInfo = c.Struct(*(name / c.Int32ul for name in ("min", "max", "fuzz", "flat", "res")))


def bitmap(bits: Iterable[int]) -> bytes:
    """The bytes of a bitmap with `bits` set, without zeros at the end."""
    value = sum(1 << bit for bit in set(bits))
    return value.to_bytes((value.bit_length() + 7) // 8, "little")


class VirtioInput(VirtioPci):
    """Base: an event queue to the driver, a status queue from it (LEDs)."""

    virtio_id, class_id, interrupt_pin = r.ID_INPUT, 0x0980, 1
    queue_sizes = (64, 64)
    config_size = CONFIG_SIZE
    properties = (*VirtioPci.properties, Property("serial", "str", None, "what the guest reads as serial number"))
    product: ClassVar[str] = ""
    product_id: ClassVar[int] = 0
    events: ClassVar[dict[int, tuple[int, ...]]] = {}
    """By event type, the codes that it may send or take."""

    def __init__(self, id: str | None = None, **values: Any) -> None:
        self._selected_item = (0, 0)
        self._pending: list[tuple[int, int, int]] = []
        self.leds: dict[int, int] = {}
        """What the driver set the LEDs to, by code."""
        super().__init__(id, **values)

    def restart(self) -> None:
        """Nothing selected, nothing to tell."""
        self._selected_item = (0, 0)
        self._pending.clear()
        self.leds.clear()

    def config_bytes(self) -> bytes:
        select, subselect = self._selected_item
        data = self._item(select, subselect)
        found: bytes = InputConfig.build({"select": select, "subselect": subselect, "size": len(data), "data": data})
        return found

    def _item(self, select: int, subselect: int) -> bytes:
        if select == CFG_EV_BITS:
            return bitmap(self.events.get(subselect, ()))
        if select == CFG_ABS_INFO:
            known = subselect in self.events.get(EV_ABS, ())
            return AbsInfo.build({"min": 0, "max": ABS_MAX, "fuzz": 0, "flat": 0, "res": 0}) if known else b""
        if subselect:
            return b""
        if select == CFG_ID_NAME:
            return self.product.encode()
        if select == CFG_ID_SERIAL:
            return (self.values["serial"] or "").encode()[:128]
        if select == CFG_ID_DEVIDS:
            ids = {"bus": BUS_VIRTUAL, "vendor": 0x0627, "product": self.product_id, "version": 1}
            return bytes(DeviceIds.build(ids))
        return b""

    def config_written(self, data: bytes) -> None:
        self._selected_item = (data[0], data[1])

    def send(self, *events: tuple[int, int, int]) -> None:
        """Tell the driver of events (type, code, value) that belong together. Dropped while it is not ready."""
        if not self.driver_ok or len(self._pending) + len(events) >= KEPT_EVENTS:
            return
        self._pending += [*events, (EV_SYN, 0, 0)]
        self.wake(self.queues[0])

    def handle(self, queue: Virtqueue) -> int | None:
        """An event for the driver, or an LED from it."""
        if queue.index == 0 and not self._pending:
            return None
        element = queue.pop()
        if element is None:
            return None
        size = EVENT_SIZE
        if queue.index == 0:
            if element.writable_length < size:
                raise QueueBroken(f"an event buffer of {element.writable_length} bytes")
            kind, code, value = self._pending.pop(0)
            self.dma.scatter(element.writable, InputEvent.build({"type": kind, "code": code, "value": value}))
            queue.push(element, size)
            return size
        raw = self.dma.gather(element.readable, 0, size)
        if len(raw) == size:
            event = InputEvent.parse(raw)
            if event.type == EV_LED and event.code in self.events.get(EV_LED, ()):
                self.leds[event.code] = event.value
        queue.push(element, 0)
        return size


class VirtioKeyboard(VirtioInput):
    """`-device virtio-keyboard-pci`: the keys of a PC keyboard, three LEDs."""

    driver = "virtio-keyboard-pci"
    description = "keyboard"
    class_id = 0x0900
    product, product_id = "QEMU Virtio Keyboard", 1
    events = {
        EV_KEY: (*range(1, 84), *range(85, 89), *range(96, 112), *range(113, 120), 125, 126, 127, 183, 184, 185),
        EV_REP: (0, 1),
        EV_LED: (0, 1, 2),
    }


class VirtioMouse(VirtioInput):
    """`-device virtio-mouse-pci`: five buttons, movement, a wheel."""

    driver = "virtio-mouse-pci"
    description = "mouse"
    class_id = 0x0902
    product, product_id = "QEMU Virtio Mouse", 2
    events = {
        EV_KEY: (BTN_LEFT, BTN_RIGHT, BTN_MIDDLE, BTN_SIDE, BTN_EXTRA, BTN_GEAR_DOWN, BTN_GEAR_UP),
        EV_REL: (REL_X, REL_Y, REL_WHEEL),
    }


class VirtioTablet(VirtioInput):
    """`-device virtio-tablet-pci`: a pointer at absolute places, 0 to 0x7fff each way."""

    driver = "virtio-tablet-pci"
    description = "tablet"
    product, product_id = "QEMU Virtio Tablet", 3
    events = {
        EV_KEY: (BTN_LEFT, BTN_RIGHT, BTN_MIDDLE, BTN_SIDE, BTN_EXTRA, BTN_GEAR_DOWN, BTN_GEAR_UP),
        EV_REL: (REL_WHEEL,),
        EV_ABS: (ABS_X, ABS_Y),
    }
