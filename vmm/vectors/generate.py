"""Random sequences of operations for the fuzzer and the recorder. One seed is one sequence, on every machine.

They stay off what would stop the guest that does the register accesses (INIT, NMI, and SMI where the host has it) and
lean towards what has gone wrong before: few pins, few vectors, so that they meet; lines that stay high; entries that
change while an interrupt is in service; routes that share a pin.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from devices.ioapic import DESTINATION_SHIFT, IOAPIC_BASE, IOREDTBL, IOREGSEL, IOWIN, LEVEL, LOGICAL, MASKED, PINS
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_RESAMPLE

REMOTE_IRR = 1 << 14
POLARITY = 1 << 13
SMI, NMI, INIT = 2, 4, 5
VECTORS = ((0x50, 0x51, 0x61), (0x41, 0x81, 0xE8), (0x5F, 0x6D, 0x31, 0xEF), (0x10, 0x0F, 0x55), (0x30, 0x31))
MSI_BASE = 0xFEE0_0000

PIC_SHARE = 0.1
"""How many of the sequences are about the PICs."""

Op = list[Any]


class Sequence(NamedTuple):
    """A sequence to run: `ops` for a VM of `cpus` CPUs, with KVM's default routing (PICs too) or without."""

    seed: int
    cpus: int
    ops: list[Op]
    default_routing: bool = False


def generate(seed: int, cpus: int | None = None, smi: bool = True) -> Sequence:
    """The sequence of a seed. `cpus`: how many CPUs, else the seed chooses from 1 to 3. `smi`: the host ignores
    SMIs, so they may be sent."""
    if random.Random(f"kind {seed}").random() < PIC_SHARE:
        return _PicGenerator(seed).sequence()
    return _Generator(seed, cpus, smi).sequence()


class _Generator:
    def __init__(self, seed: int, cpus: int | None, smi: bool) -> None:
        self.seed = seed
        self.random = r = random.Random(seed)
        drawn = r.choice((1, 1, 1, 2, 2, 2, 3))
        self.cpus = drawn if cpus is None else cpus
        self.smi = smi
        self.pins = r.sample(range(PINS), r.choice((1, 2, 2, 3, 4)))
        if r.random() < 0.2:
            self.pins[0] = 8  # the RTC's rules are its own
        self.vectors = r.choice(VECTORS)
        self.pairs = r.choice((0, 0, 1, 2, 3))
        self.open: set[str] = set()
        self.length = r.choice((12, 25, 40, 60))

    def sequence(self) -> Sequence:
        ops: list[Op] = []
        for n in range(self.pairs):
            ops += [self._new(f"a{n}"), self._new(f"r{n}")]
            ops.append(self._assign(n, self.random.choice(self.pins), f"a{n}"))
        for pin in self.pins:
            ops.append(["redir", pin, f"{self._entry():016x}"])
        while len(ops) < self.length:
            ops.append(self._op())
        return Sequence(self.seed, self.cpus, ops)

    # Parts.

    def _mode(self, value: int) -> int:
        """`value` with a delivery mode that leaves the guest running."""
        return value & ~0x700 if value >> 8 & 7 in ((NMI, INIT) if self.smi else (SMI, NMI, INIT)) else value

    def _entry(self) -> int:
        r = self.random
        entry = r.choice(self.vectors)
        if r.random() < 0.6:
            entry |= LEVEL
        if r.random() < 0.2:
            entry |= MASKED
        if r.random() < 0.1:
            entry |= POLARITY
        if r.random() < 0.2:
            entry |= r.choice((1, 1, 1, 3, 6, 7, 2)) << 8
        destination = 0
        if self.cpus > 1 or r.random() < 0.15:
            kind = r.random()
            if kind < 0.35:
                destination = r.randrange(self.cpus)
            elif kind < 0.7:
                entry |= LOGICAL
                destination = r.choice((1, 2, 3, 3, 4, 7, 0xFF, 0x80, 0))
            elif kind < 0.8:
                destination = 0xFF
            elif kind < 0.85:
                destination = 9
        return self._mode(entry) | destination << DESTINATION_SHIFT

    def _cpu(self) -> int:
        return self.random.randrange(self.cpus)

    def _pin(self) -> int:
        return self.random.choice(self.pins)

    def _gsi(self) -> int:
        return self._pin() if self.random.random() < 0.97 else self.random.choice((24, 40, 0))

    def _new(self, name: str) -> Op:
        self.open.add(name)
        return ["efd", name] if self.random.random() < 0.9 else ["efd", name, self.random.choice((1, 3))]

    def _assign(self, n: int, gsi: int, trigger: str) -> Op:
        r = self.random
        op: Op = ["irqfd", trigger, gsi]
        resample = f"r{r.choice((n, n, n, r.randrange(self.pairs)))}"
        if r.random() < 0.05:
            resample = f"a{r.randrange(self.pairs)}"  # a signal that is a trigger in turn
        if r.random() < 0.7 and resample in self.open:
            op += [KVM_IRQFD_FLAG_RESAMPLE, resample]
        return op

    def _msi(self) -> tuple[int, int]:
        r = self.random
        address = MSI_BASE | r.choice((0, 1, 2, 0xFF)) << 12 | r.choice((0, 0, 4, 8, 12))
        if r.random() < 0.05:
            address ^= r.choice((1 << 20, 1 << 28, 0x10, 1 << 32))
        data = r.choice(self.vectors) | r.choice((0, 0x8000, 0xC000, 0x4000, 0x100, 0x300))
        return address, self._mode(data)

    # Operations.

    def _op(self) -> Op:
        r = self.random
        chance = r.random()
        for limit, make in _WEIGHTS:
            if chance < limit:
                return getattr(self, make)()  # type: ignore[no-any-return]
        return self._eventfd() if self.pairs else self._line()

    def _line(self) -> Op:
        return ["line", self._gsi(), self.random.randrange(2)]

    def _line_status(self) -> Op:
        return ["line_status", self._gsi(), self.random.randrange(2)]

    def _inta(self) -> Op:
        return ["inta", self._cpu()]

    def _eoi(self) -> Op:
        return ["eoi", self._cpu()]

    def _redir(self) -> Op:
        return ["redir", self._pin(), f"{self._entry():016x}"]

    def _half(self) -> Op:
        if self.random.random() < 0.75:
            return ["redir_lo", self._pin(), self._entry() & 0xFFFF_FFFF]
        return ["redir_hi", self._pin(), self._entry() >> 32]

    def _set_ioapic(self) -> Op:
        r = self.random
        change: dict[str, Any] = {}
        if r.random() < 0.4:
            change["redir"] = {str(self._pin()): f"{self._entry() | r.choice((0, REMOTE_IRR)):016x}"}
        if r.random() < 0.3:
            change["irr"] = r.choice((0, 1 << self._pin()))
        return ["set_ioapic", change]

    def _priority(self) -> Op:
        r = self.random
        if r.random() < 0.7:
            return ["tpr", self._cpu(), r.choice((0, 0, 0x50, 0x60, 0x41, 0xFF))]
        return ["svr", self._cpu(), r.choice((0x1FF, 0x1FF, 0xFF))]

    def _routing(self) -> Op:
        r = self.random
        routes: list[list[Any]] = []
        for gsi in range(PINS):
            chance = r.random()
            if chance < 0.05:
                continue
            if chance < 0.1:
                routes.append([gsi, "msi", *self._msi()])
                continue
            routes.append([gsi, "irqchip", 2, self._pin() if chance < 0.25 else gsi])
        if r.random() < 0.1:
            # Refused: a second pin of the same chip, or a pin or a chip that there is not.
            routes.append(r.choice(([5, "irqchip", 2, 6], [5, "irqchip", 2, 24], [5, "irqchip", 3, 1])))
        if r.random() < 0.1:
            routes.append([40, "irqchip", 2, self._pin()])
        return ["routing", routes]

    def _send(self) -> Op:
        return ["msi", *self._msi()]

    def _register(self) -> Op:
        r = self.random
        register = r.choice((0, 1, 2, 3, IOREDTBL + 2 * self._pin(), IOREDTBL + 1 + 2 * self._pin(), 0x3F, 0x40, 0xFF))
        if r.random() < 0.4:
            return ["reg", register]
        value = r.getrandbits(32)
        if r.random() < 0.7:
            value = value & ~0xFF | r.choice(self.vectors)
        return ["wreg", register, self._mode(value)]

    def _mmio(self) -> Op:
        r = self.random
        offset = r.choice((IOREGSEL, IOWIN, IOWIN, IOWIN, 0x20, 0x40, 4, 0x14, 0x100))
        bits = r.choice((8, 16, 32, 64))
        if r.random() < 0.4:
            return ["mmio", f"r{bits}", IOAPIC_BASE + offset]
        if offset == IOREGSEL:
            value = IOREDTBL + 2 * self._pin() + r.randrange(2)
        else:
            value = self._entry() & 0xFFFF_FFFF | r.choice((0, 0, r.getrandbits(32) << 32))
        return ["mmio", f"w{bits}", IOAPIC_BASE + offset, self._mode(value & (1 << bits) - 1)]

    def _eventfd(self) -> Op:
        r = self.random
        n = r.randrange(self.pairs)
        trigger, resample, twin = f"a{n}", f"r{n}", f"d{n}"
        for name in (trigger, resample):
            if name not in self.open:
                return self._new(name)
        chance = r.random()
        if chance > 0.97:
            # Of a descriptor's twin only the last one to close ends the irqfd.
            if twin not in self.open:
                self.open.add(twin)
                return ["efd_dup", trigger, twin]
            if r.random() < 0.5:
                self.open.discard(twin)
                return ["efd_close", twin]
            trigger = twin
            chance = r.random() * 0.9
        if chance < 0.55:
            return ["efd_write", trigger, r.choice((1, 1, 3, 0))]
        if chance < 0.68:
            return ["unassign", trigger, self._gsi()]
        if chance < 0.86:
            return self._assign(n, self._gsi(), trigger)
        if chance < 0.9:
            return ["efd_read", trigger]
        if chance < 0.93:
            return ["efd_write", resample, 1]
        if chance < 0.96:
            name = r.choice((trigger, trigger, resample))
            self.open.discard(name)
            return ["efd_close", name]
        return ["unassign", trigger, self._pin(), KVM_IRQFD_FLAG_RESAMPLE, resample]


class _PicGenerator:
    """The two 8259s: lines, ports and raw state. GSI 7 and its pin are left alone, for the canary of `settle`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = r = random.Random(seed)
        self.gsis = r.sample([gsi for gsi in range(16) if gsi not in (2, 7)], r.choice((2, 3, 5)))

    def sequence(self) -> Sequence:
        r = self.random
        ops: list[Op] = []
        if r.random() < 0.8:
            for base, vector, cascade in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
                last = r.choice((1, 1, 1, 3, 0x11))
                ops += [["out", base, 0x11], *(["out", base + 1, value] for value in (vector, cascade, last))]
                ops.append(["out", base + 1, r.choice((0, 0, r.getrandbits(8)))])
        if r.random() < 0.4:
            ops += [["out", 0x4D0, r.getrandbits(8) & 0x7F], ["out", 0x4D1, r.getrandbits(8)]]
        for _ in range(r.choice((10, 20, 40))):
            op = self._op()
            ops.append(op)
            if op[0] in ("in", "out", "set_pic"):
                ops.append(["get_pic", r.randrange(2)])
        return Sequence(self.seed, 1, ops, True)

    def _op(self) -> Op:
        r = self.random
        chance = r.random()
        base = r.choice((0x20, 0xA0))
        if chance < 0.45:
            return [r.choice(("line", "line_status")), r.choice(self.gsis), r.randrange(2)]
        if chance < 0.6:
            return ["in", r.choice((base, base + 1, base, 0x4D0 + r.randrange(2)))]
        if chance < 0.72:
            return ["out", base, r.choice((0x0A, 0x0B, 0x0C, 0x0C, 0x0E, 0x68, 0x48, 0x28))]  # OCW3
        if chance < 0.88:
            return ["out", base, r.randrange(8) << 5 | r.choice((0, 0, r.randrange(8)))]  # OCW2
        if chance < 0.93:
            return ["out", base + 1, r.getrandbits(8)]
        if chance < 0.96:
            return ["out", base, 0x10 | r.choice((1, 1, 0, 3, 9))]  # ICW1
        if chance < 0.98:
            return ["out", 0x4D0, r.getrandbits(8) & 0x7F] if base == 0x20 else ["out", 0x4D1, r.getrandbits(8)]
        return self._set_pic()

    def _set_pic(self) -> Op:
        """KVM_SET_IRQCHIP with a state that a chip can have: `struct kvm_pic_state` in its order."""
        r = self.random
        chip = r.randrange(2)
        elcr_mask = (0xF8, 0xDE)[chip]
        last_irr, irr, imr, isr, elcr = (r.getrandbits(8) & r.getrandbits(8) for _ in range(5))
        select, poll, special, auto, rotate, fully_nested, icw4 = (r.random() < 0.2 for _ in range(7))
        low = (last_irr, irr, imr, isr, r.randrange(8), r.getrandbits(8) & 0xF8, select, poll, special)
        high = (r.choice((0, 0, 0, 1, 2, 3)), auto, rotate, fully_nested, icw4, elcr & elcr_mask & 0x7F, elcr_mask)
        return ["set_pic", chip, bytes((*low, *high)).hex()]


def _weights(*parts: tuple[float, str]) -> tuple[tuple[float, str], ...]:
    total = 0.0
    table = []
    for weight, name in parts:
        total += weight
        table.append((total, name))
    return tuple(table)


_WEIGHTS = _weights(
    (0.11, "_line"),
    (0.12, "_line_status"),
    (0.17, "_inta"),
    (0.16, "_eoi"),
    (0.07, "_redir"),
    (0.07, "_half"),
    (0.03, "_set_ioapic"),
    (0.03, "_priority"),
    (0.02, "_routing"),
    (0.02, "_send"),
    (0.02, "_register"),
    (0.02, "_mmio"),
)
"""The rest is for eventfds, or for lines where a sequence has none."""
