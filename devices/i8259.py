"""The two cascaded 8259A interrupt controllers of a PC.

`Pic` is the pair, `PicChip` one of the two chips; neither reads a clock, so both can be explored. `I8259` is the device
that puts them at ports 0x20, 0xa0 and 0x4d0 (ELCR).

Two personalities, because the real models differ. `kvm` is the kernel's irqchip: a slave request reaches the master
as a pulse, the special mask is stored and ignored, a poll that finds nothing answers 7, ICW1 keeps the in-service
register and leaves INT as it is until the chip is next looked at. `qemu` is QEMU's isa-i8259: the slave's INT is a
level on IR2, the special mask works, such a poll answers 0, and ICW1 clears everything but ELCR.
Ref: 8259A data sheet (order 231468), "Programming the 8259A"; 82371AB (PIIX4), 4.2.4 for ELCR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import construct as c

from devices.device import Device, Property
from vmm import order
from vmm.errors import PropertyError
from vmm.memory import IoRegion
from vmm.trace import Event, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Board

Personality = Literal["kvm", "qemu"]

CASCADE = 2
"""The pin of the master that the slave's INT goes to."""

_FIELDS = (
    "last_irr",
    "irr",
    "imr",
    "isr",
    "priority_add",
    "irq_base",
    "read_reg_select",
    "poll",
    "special_mask",
    "init_state",
    "auto_eoi",
    "rotate_on_auto_eoi",
    "special_fully_nested_mode",
    "init4",
    "elcr",
    "elcr_mask",
)

PicState = c.Struct(*(name / c.Int8ul for name in _FIELDS))
"""State of one chip as KVM_GET_IRQCHIP gives it (struct kvm_pic_state, 16 bytes)."""

Icw1 = c.BitStruct(
    "_page" / c.BitsInteger(3),
    "one" / c.Const(1, c.Bit),
    "ltim" / c.Flag,
    "adi" / c.Flag,
    "sngl" / c.Flag,
    "ic4" / c.Flag,
)
Icw2 = c.BitStruct("vector_base" / c.BitsInteger(5), "_low" / c.BitsInteger(3))
Icw4 = c.BitStruct(
    "_zero" / c.BitsInteger(3), "sfnm" / c.Flag, "buf" / c.Flag, "ms" / c.Flag, "aeoi" / c.Flag, "upm" / c.Flag
)
Ocw2 = c.BitStruct(
    "r" / c.Flag, "sl" / c.Flag, "eoi" / c.Flag, "_two" / c.Const(0, c.BitsInteger(2)), "level" / c.BitsInteger(3)
)
Ocw3 = c.BitStruct(
    "_zero" / c.Bit,
    "esmm" / c.Flag,
    "smm" / c.Flag,
    "_one" / c.Const(1, c.BitsInteger(2)),
    "p" / c.Flag,
    "rr" / c.Flag,
    "ris" / c.Flag,
)

_LOWEST = tuple((n & -n).bit_length() - 1 if n else 8 for n in range(256))
"""Number of the lowest set bit; 8 if there is none."""


class PicSetIrq(Event):
    """A pin was driven: its number 0..15, the level after the OR of its sources, and what set_irq returned."""

    pin: int
    level: bool
    result: int


class PicInterrupt(Event):
    """An INTA cycle: the vector given, and whether it is a spurious one."""

    vector: int
    spurious: bool


class PicEoi(Event):
    """A pin left the in-service register."""

    pin: int


class AckNotifiers(Protocol):
    """Who hears that an interrupt was acknowledged (KVM's kvm_notify_acked_irq), or a pin masked or unmasked
    (kvm_fire_mask_notifiers)."""

    def notify_acked(self, pin: int) -> object: ...

    def mask_changed(self, pin: int, masked: bool) -> object: ...


class PicChip(order.State):
    """One 8259A. Registers are plain ints named as in KVM's struct kvm_pic_state."""

    WIRING = ("base_pin", "elcr_mask", "kvm", "name")
    VISIBLE = tuple(f for f in _FIELDS if f != "elcr_mask")
    BOOKKEEPING = ("single_mode",)
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    last_irr: int
    """Level of each pin as it was last driven: the edge-sense latches."""
    irr: int
    imr: int
    isr: int
    priority_add: int
    """The pin with the highest priority."""
    irq_base: int
    read_reg_select: int
    poll: int
    special_mask: int
    init_state: int
    """0: initialised; 1, 2, 3: ICW2, ICW3, ICW4 comes next."""
    auto_eoi: int
    rotate_on_auto_eoi: int
    special_fully_nested_mode: int
    init4: int
    elcr: int

    def __init__(self, name: str, base_pin: int, elcr_mask: int, kvm: bool) -> None:
        self.name = name
        self.base_pin = base_pin
        self.elcr_mask = elcr_mask
        self.kvm = kvm
        self.single_mode = False
        for field in self.VISIBLE:
            setattr(self, field, 0)

    def reset(self) -> None:
        """Power-on state, ELCR included."""
        self.single_mode = False
        for field in self.VISIBLE:
            setattr(self, field, 0)

    def first(self, mask: int) -> int:
        """The pin of highest priority in `mask`, as a distance from the top (0..7); 8 if there is none."""
        add = self.priority_add
        return _LOWEST[(mask >> add | mask << (8 - add)) & 0xFF]

    def pending(self) -> int:
        """The pin this chip asks service for, -1 if none. Ref: 8259A, "Fully Nested Mode", "Special Mask Mode"."""
        mask = self.irr & ~self.imr
        if not mask:
            return -1
        add = self.priority_add
        priority = _LOWEST[(mask >> add | mask << (8 - add)) & 0xFF]
        served = self.isr
        if served:
            if self.special_mask and not self.kvm:
                served &= ~self.imr
            if self.special_fully_nested_mode and not self.base_pin:
                served &= ~(1 << CASCADE)
            if priority >= self.first(served):
                return -1
        return (priority + add) & 7

    def set_irq(self, pin: int, level: bool) -> int:
        """Drive a pin. 1: the request is new, 0: it joined one that was pending, -1: the pin is masked.

        A level that does not change anything counts as 1, as KVM_IRQ_LINE_STATUS has it.
        """
        bit = 1 << pin
        result = 1
        if level:
            if self.elcr & bit or not self.last_irr & bit:
                if self.irr & bit:
                    result = 0
                self.irr |= bit
            self.last_irr |= bit
        else:
            if self.elcr & bit:
                self.irr &= ~bit
            self.last_irr &= ~bit
        return -1 if self.imr & bit else result

    def icw1(self, value: int) -> int:
        """Begin initialisation. Returns the edge requests that this drops."""
        dropped = self.irr & ~self.elcr
        self.last_irr = self.imr = self.priority_add = self.special_mask = self.read_reg_select = 0
        self.irr &= self.elcr
        self.init4 = value & 1
        if not self.kvm:
            self.isr = self.irq_base = self.poll = self.rotate_on_auto_eoi = 0
        if not self.kvm or not self.init4:
            self.special_fully_nested_mode = self.auto_eoi = 0
        self.single_mode = bool(value & 2) and not self.kvm
        self.init_state = 1
        return dropped

    def icw(self, value: int) -> None:
        """ICW2, ICW3 or ICW4, whichever is expected."""
        if self.init_state == 1:
            self.irq_base = value & 0xF8
            if self.single_mode:
                self.init_state = 3 if self.init4 else 0
            else:
                self.init_state = 2
        elif self.init_state == 2:
            self.init_state = 3 if self.init4 else 0
        else:
            self.special_fully_nested_mode = value >> 4 & 1
            self.auto_eoi = value >> 1 & 1
            self.init_state = 0

    def state(self) -> dict[str, int]:
        """The registers under KVM's names, fit for `PicState.build`."""
        return {name: getattr(self, name) for name in _FIELDS}

    def set_state(self, state: Any) -> None:
        """Take over registers, each cut to 8 bits; the ELCR mask of this chip stays."""
        for name in self.VISIBLE:
            setattr(self, name, state[name] & 0xFF)
        self.priority_add &= 7
        self.init_state &= 3


class Pic(order.State):
    """The pair. Pins 0..7 are the master's, 8..15 the slave's.

    `output(level)` is called when INT changes, `changed()` when another request may have come first while it stays
    high. `ack_notifiers.notify_acked(pin)` is called when a pin leaves the
    in-service register, with the chip's lock dropped as in the kernel, so that it may drive pins of this very chip.
    `accepts()` says whether any CPU takes interrupts from INT (the kernel acknowledges edge requests that ICW1 drops
    only then).
    """

    WIRING = ("accepts", "ack_notifiers", "changed", "chips", "kvm", "lock", "master", "output", "slave", "trace")
    VISIBLE = ("high",)
    BOOKKEEPING = ("irq_states",)
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, personality: Personality = "kvm", trace: Trace | None = None) -> None:
        self.kvm = personality == "kvm"
        self.lock = order.Lock("pic.lock", spin=True)
        self.master = PicChip("master", 0, 0xF8, self.kvm)
        self.slave = PicChip("slave", 8, 0xDE, self.kvm)
        self.chips = (self.master, self.slave)
        self.trace = trace or Trace()
        self.output: Callable[[bool], object] | None = None
        self.ack_notifiers: AckNotifiers | None = None
        self.changed: Callable[[], object] | None = None
        self.accepts: Callable[[], bool] | None = None
        self.high = False
        """The INT output."""
        self.irq_states = [0] * 16
        """For each pin the sources that hold it high, a bit each."""

    def reset(self) -> None:
        """Power-on state. Who holds a pin high goes on holding it; the request is made by the next edge."""
        for chip in self.chips:
            chip.reset()
        self._drive(False)

    # The pins.

    def set_irq(self, pin: int, source: int, level: bool) -> int:
        """One source (0..63) drives a pin (0..15); the chip sees the OR of the pin's sources.

        Returns what KVM_IRQ_LINE_STATUS does: 1 delivered, 0 coalesced, -1 masked.
        """
        if order.hook is not None:
            self.lock.acquire()
        sources = self.irq_states[pin] | 1 << source if level else self.irq_states[pin] & ~(1 << source)
        self.irq_states[pin] = sources
        chip = self.chips[pin >> 3]
        result = chip.set_irq(pin & 7, sources != 0)
        self._update(chip)
        if order.hook is not None:
            self.lock.release()
        if self.trace.on:
            self.trace.emit(PicSetIrq(pin, sources != 0, result))
        return result

    def clear_irq(self, pin: int, source: int) -> bool:
        """Let a source go if it holds the pin; whether it did. (kvm_clear_irq as posted in July 2012, never merged)"""
        held = bool(self.irq_states[pin] >> source & 1)
        if held:
            self.set_irq(pin, source, False)
        return held

    def clear_source(self, source: int) -> None:
        """A source is gone: lower every pin it holds."""
        for pin, sources in enumerate(self.irq_states):
            if sources >> source & 1:
                self.set_irq(pin, source, False)

    def _update(self, chip: PicChip) -> None:
        master, slave = self.master, self.slave
        if self.kvm:
            if not (self.high or master.irr & ~master.imr or slave.irr & ~slave.imr):
                return  # nothing asks, nothing asked: as ever, once the I/O APIC has taken over
            if slave.pending() >= 0:
                # A pulse, so that a slave request that outlives the master's service is seen again.
                master.set_irq(CASCADE, True)
                master.set_irq(CASCADE, False)
        elif chip is slave:
            master.set_irq(CASCADE, slave.pending() >= 0)
        high = master.pending() >= 0
        if high != self.high:
            self._drive(high)
        elif high and self.changed is not None:
            self.changed()

    def _drive(self, high: bool) -> None:
        if high != self.high:
            self.high = high
            if self.output is not None:
                self.output(high)

    # The CPU's side.

    def peek(self) -> int | None:
        """The vector `intack` would give now, without side effects; None while INT is low."""
        pin = self.master.pending()
        if pin < 0:
            return self.master.irq_base + 7 if self.high else None
        if pin != CASCADE:
            return self.master.irq_base + pin
        pin = self.slave.pending()
        return self.slave.irq_base + (pin if pin >= 0 else 7)

    def intack(self) -> int:
        """An INTA cycle: the vector. With nothing pending it is the spurious one, IR7 of the chip that has nothing.

        Ref: 8259A, "Interrupt Sequence", "Edge and Level Triggered Modes" (default IR7).
        """
        if order.hook is not None:
            self.lock.acquire()
        master, slave = self.chips
        spurious = False
        pin = master.pending()
        if pin < 0:
            spurious = True
            vector = master.irq_base + 7
        elif pin == CASCADE:
            if self.kvm:
                self._acknowledge(master, CASCADE)
            pin = slave.pending()
            if pin >= 0:
                self._acknowledge(slave, pin)
                if not self.kvm:
                    self._update(slave)
            else:
                spurious = True
                pin = 7
            vector = slave.irq_base + pin
            if not self.kvm:
                self._acknowledge(master, CASCADE)
        else:
            vector = master.irq_base + pin
            self._acknowledge(master, pin)
        self._update(master)
        if order.hook is not None:
            self.lock.release()
        if self.trace.on:
            self.trace.emit(PicInterrupt(vector, spurious))
        return vector

    def _acknowledge(self, chip: PicChip, pin: int) -> None:
        bit = 1 << pin
        chip.isr |= bit
        if not chip.elcr & bit:
            chip.irr &= ~bit
        if chip.auto_eoi:
            if chip.rotate_on_auto_eoi:
                chip.priority_add = (pin + 1) & 7
            self._clear_isr(chip, pin)

    def _clear_isr(self, chip: PicChip, pin: int) -> None:
        chip.isr &= ~(1 << pin)
        if self.trace.on:
            self.trace.emit(PicEoi(chip.base_pin + pin))
        # Linux pic_clear_isr() drops the chip's lock around the notifiers, which may drive this chip again.
        if order.hook is not None:
            self.lock.release()
            order.hook("pic.eoi.before-ack", self)
        if self.ack_notifiers is not None:
            self.ack_notifiers.notify_acked(chip.base_pin + pin)
        if order.hook is not None:
            self.lock.acquire()

    # The guest's side.

    def read(self, chip: PicChip, offset: int) -> int:
        """A read of the chip's even (`offset` 0) or odd port."""
        if chip.poll:
            if order.hook is not None:
                self.lock.acquire()
            value = self._poll_read(chip)
            chip.poll = 0
            if order.hook is not None:
                self.lock.release()
            return value
        if offset & 1:
            return chip.imr
        return chip.isr if chip.read_reg_select else chip.irr

    def _poll_read(self, chip: PicChip) -> int:
        pin = chip.pending()
        if not self.kvm:
            if pin < 0:
                return 0
            self._acknowledge(chip, pin)
            self._update(chip)
            return 0x80 | pin
        if pin < 0:
            self._update(chip)
            return 7
        if chip is self.slave:
            self.master.isr &= ~(1 << CASCADE)
            self.master.irr &= ~(1 << CASCADE)
        chip.irr &= ~(1 << pin)
        self._clear_isr(chip, pin)
        if chip is self.slave or pin != CASCADE:
            self._update(chip)
        return 0x80 | pin

    def write(self, chip: PicChip, offset: int, value: int) -> None:
        """A write of the chip's even (ICW1, OCW2, OCW3) or odd port (ICW2-4, OCW1)."""
        if order.hook is not None:
            self.lock.acquire()
        self._write(chip, offset, value)
        if order.hook is not None:
            self.lock.release()

    def _write(self, chip: PicChip, offset: int, value: int) -> None:
        if offset & 1:
            if chip.init_state:
                chip.icw(value)
            else:
                changed = chip.imr ^ value
                chip.imr = value
                if changed and self.ack_notifiers is not None:
                    for pin in range(8):
                        if changed >> pin & 1:
                            self.ack_notifiers.mask_changed(chip.base_pin + pin, bool(value >> pin & 1))
                self._update(chip)
        elif value & 0x10:
            self._icw1(chip, value)
        elif value & 0x08:
            if value & 0x04:
                chip.poll = 1
            if value & 0x02:
                chip.read_reg_select = value & 1
            if value & 0x40:
                chip.special_mask = value >> 5 & 1
                if not self.kvm:
                    self._update(chip)
        else:
            self._ocw2(chip, value)

    def _icw1(self, chip: PicChip, value: int) -> None:
        dropped = chip.icw1(value)
        if not self.kvm:
            self._update(chip)
        elif dropped and (self.accepts is None or self.accepts()):
            for pin in range(8):
                if dropped >> pin & 1:
                    self._clear_isr(chip, pin)

    def _ocw2(self, chip: PicChip, value: int) -> None:
        command = value >> 5
        pin = value & 7
        if command in (0, 4):
            chip.rotate_on_auto_eoi = command >> 2
            return
        if command == 2:  # no operation
            return
        if command == 6:
            chip.priority_add = (pin + 1) & 7
        else:
            if command in (1, 5):
                first = chip.first(chip.isr)
                if first == 8:
                    return
                pin = (first + chip.priority_add) & 7
            if command & 4:
                chip.priority_add = (pin + 1) & 7
            self._clear_isr(chip, pin)
        self._update(chip)

    def write_elcr(self, chip: PicChip, value: int) -> None:
        """Set which pins are level-triggered. Pins 0, 1, 2, 8 and 13 cannot be."""
        chip.elcr = value & chip.elcr_mask

    # State as a whole.

    def state(self, index: int) -> bytes:
        """struct kvm_pic_state of the master (0) or the slave (1)."""
        return bytes(PicState.build(self.chips[index].state()))

    def set_state(self, index: int, data: bytes) -> None:
        """Take over a struct kvm_pic_state; INT follows at once."""
        self.chips[index].set_state(PicState.parse(data))
        self._update(self.chips[index])

    def info(self) -> list[str]:
        """The lines of the monitor's `info pic`."""
        return [
            f"pic{i}: irr={x.irr:02x} imr={x.imr:02x} isr={x.isr:02x} hprio={x.priority_add} irq_base={x.irq_base:02x} "
            f"rr_sel={x.read_reg_select} elcr={x.elcr:02x} fnm={x.special_fully_nested_mode}"
            for i, x in enumerate(self.chips)
        ]


class I8259(Device):
    """Both 8259As at their ports. `pic` is the pair; who makes the machine wires its pins and outputs."""

    driver = "isa-i8259"
    description = "pair of 8259A interrupt controllers"
    bus_type = "ISA"
    user_creatable = False
    properties = (Property("personality", "str", "kvm", "whose behaviour where models differ: kvm or qemu"),)

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        personality = self.values["personality"]
        if personality not in ("kvm", "qemu"):
            raise PropertyError(
                f"Property '{self.driver}.personality' doesn't take value '{personality}': it is kvm or qemu",
                self.driver,
                "personality",
            )
        self.pic = Pic(personality)

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.pic.trace = board.trace
        for base, chip in zip((0x20, 0xA0), self.pic.chips, strict=True):
            self.map_ports(base, self._chip_region(chip))
        self.map_ports(0x4D0, IoRegion("elcr", 2, self._read_elcr, self._write_elcr, max_access=1))

    def _chip_region(self, chip: PicChip) -> IoRegion:
        pic = self.pic
        return IoRegion(
            f"pic-{chip.name}",
            2,
            lambda offset, _size: pic.read(chip, offset),
            lambda offset, _size, value: pic.write(chip, offset, value & 0xFF),
            max_access=1,
        )

    def _read_elcr(self, offset: int, _size: int) -> int:
        return self.pic.chips[offset].elcr

    def _write_elcr(self, offset: int, _size: int, value: int) -> None:
        self.pic.write_elcr(self.pic.chips[offset], value)

    def reset(self) -> None:
        self.pic.reset()
