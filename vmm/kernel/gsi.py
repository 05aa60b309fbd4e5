"""GSIs: which pins and messages each one reaches, who drives it, and who hears of its EOI.

A GSI is driven by *irq sources*: id 0 is user space (wires, KVM_IRQ_LINE, plain irqfds), id 1 all resampling irqfds
together. The chips OR the sources of each pin. An EOI goes the other way: the chip names a pin, the reverse map names
the GSI that was routed to it last, and that GSI's ack notifiers are told.

Ref: virt/kvm/irqchip.c, arch/x86/kvm/irq.c (irq_comm.c before 6.17), virt/kvm/eventfd.c
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple, Protocol

from construct import Const, Int32ul, Padding, Struct, Switch, this

from vmm import order
from vmm.kernel.files import os_error
from vmm.order import State
from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vmm.order import Srcu
    from vmm.trace import Trace

KVM_USERSPACE_IRQ_SOURCE_ID = 0
KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID = 1
KVM_PIT_IRQ_SOURCE_ID = 2
"""Fixed since 6.17; before, the in-kernel PIT asked for a free one."""
SOURCE_IDS = 64
"""BITS_PER_LONG of the host kernel."""

KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC = 0, 1, 2
KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI = 1, 2
KVM_MSI_VALID_DEVID = 1
KVM_MAX_IRQ_ROUTES = 4096
IOAPIC_PINS = 24
PIC_PINS = 8

KvmIrqRoutingEntry = Struct(
    "gsi" / Int32ul,
    "type" / Int32ul,
    "flags" / Int32ul,
    "pad" / Const(0, Int32ul),
    "u"
    / Switch(
        this.type,
        {
            KVM_IRQ_ROUTING_IRQCHIP: Struct("irqchip" / Int32ul, "pin" / Int32ul, Padding(24)),
            KVM_IRQ_ROUTING_MSI: Struct(
                "address_lo" / Int32ul, "address_hi" / Int32ul, "data" / Int32ul, "devid" / Int32ul, Padding(16)
            ),
        },
        default=Padding(32),
    ),
)
"""`struct kvm_irq_routing_entry`, 48 bytes. Ref: Documentation/virt/kvm/api.rst, 4.52"""

KvmIrqLevel = Struct("irq" / Int32ul, "level" / Int32ul)
"""`struct kvm_irq_level`: what KVM_IRQ_LINE takes; KVM_IRQ_LINE_STATUS gives its status back in `irq`."""

POINTS = {
    "gsi.set-routing": "kvm_set_irq_routing: kvm->irq_lock held, before the new table is published",
    "gsi.ack": "kvm_notify_acked_irq: inside the SRCU read section, before each notifier",
    "gsi.unregister": "kvm_unregister_irq_ack_notifier: unlinked, before the grace period",
}


class Chip(Protocol):
    """An interrupt controller as its routes see it."""

    def set_irq(self, pin: int, source: int, level: bool) -> int:
        """Drive a pin from a source: above 0 delivered, 0 coalesced, below 0 ignored."""


class Route(NamedTuple):
    """One entry of the routing table. `chip`, `pin` of an irqchip route; `address`, `data` of an MSI."""

    gsi: int
    kind: int
    chip: int = 0
    pin: int = 0
    address: int = 0
    data: int = 0
    flags: int = 0
    devid: int = 0

    @classmethod
    def irqchip(cls, gsi: int, chip: int, pin: int) -> Route:
        """To a pin of a chip (KVM_IRQCHIP_*)."""
        return cls(gsi, KVM_IRQ_ROUTING_IRQCHIP, chip=chip, pin=pin)

    @classmethod
    def msi(cls, gsi: int, address: int, data: int) -> Route:
        """To a message."""
        return cls(gsi, KVM_IRQ_ROUTING_MSI, address=address, data=data)

    def build(self) -> bytes:
        """As `struct kvm_irq_routing_entry`."""
        if self.kind == KVM_IRQ_ROUTING_IRQCHIP:
            u = {"irqchip": self.chip, "pin": self.pin}
        else:
            u = {
                "address_lo": self.address & 0xFFFF_FFFF,
                "address_hi": self.address >> 32,
                "data": self.data,
                "devid": self.devid,
            }
        built: bytes = KvmIrqRoutingEntry.build({"gsi": self.gsi, "type": self.kind, "flags": self.flags, "u": u})
        return built

    @classmethod
    def parse(cls, data: bytes) -> Route:
        """From `struct kvm_irq_routing_entry`."""
        e = KvmIrqRoutingEntry.parse(data)
        if e.type == KVM_IRQ_ROUTING_IRQCHIP:
            return cls(e.gsi, e.type, chip=e.u.irqchip, pin=e.u.pin, flags=e.flags)
        if e.type == KVM_IRQ_ROUTING_MSI:
            address = e.u.address_hi << 32 | e.u.address_lo
            return cls(e.gsi, e.type, address=address, data=e.u.data, flags=e.flags, devid=e.u.devid)
        return cls(e.gsi, e.type, flags=e.flags)


def default_routing() -> tuple[Route, ...]:
    """What KVM_CREATE_IRQCHIP sets up: GSI 0-15 to the PICs and to the IOAPIC's pin of the same number, 16-23 to the
    IOAPIC alone. There is no override for GSI 0. Ref: vectors kvm-ioapic.json, default-gsi0-pin2
    """
    routes: list[Route] = []
    for gsi in range(IOAPIC_PINS):
        routes.append(Route.irqchip(gsi, KVM_IRQCHIP_IOAPIC, gsi))
        if gsi < 2 * PIC_PINS:
            routes.append(Route.irqchip(gsi, gsi // PIC_PINS, gsi % PIC_PINS))
    return tuple(routes)


class KvmSetIrq(Event):
    """A GSI was driven by a source."""

    gsi: int
    level: int
    source: int


class KvmAckIrq(Event):
    """A pin's interrupt was acknowledged; the GSI that was routed to it last, -1 if none."""

    chip: int
    pin: int
    gsi: int


class RoutingTable(State):
    """An immutable routing table; a new one replaces it whole, as RCU does in the kernel."""

    WIRING = ("by_gsi", "by_pin", "routes")
    __slots__ = WIRING

    def __init__(self, routes: Sequence[Route], pins: bool = True) -> None:
        """OSError EINVAL as KVM_SET_GSI_ROUTING gives it. `pins`: the irqchip is in the kernel, so its pins may be
        routed to.
        """
        by_gsi: dict[int, tuple[Route, ...]] = {}
        by_pin: dict[tuple[int, int], int] = {}
        if len(routes) > KVM_MAX_IRQ_ROUTES:
            raise os_error(errno.EINVAL, f"{len(routes)} routes, {KVM_MAX_IRQ_ROUTES} are possible")
        for given in routes:
            route = _checked(given, pins)
            others = by_gsi.get(route.gsi, ())
            for other in others:
                # One GSI may reach several chips, but each only once; anything else goes alone.
                if not route.kind == other.kind == KVM_IRQ_ROUTING_IRQCHIP or given.chip == other.chip:
                    raise os_error(errno.EINVAL, f"GSI {route.gsi} is routed twice: {other} and {route}")
            by_gsi[route.gsi] = (*others, route)
            if route.kind == KVM_IRQ_ROUTING_IRQCHIP:
                by_pin[route.chip, route.pin] = route.gsi
        self.routes = tuple(routes)
        self.by_gsi = by_gsi
        self.by_pin = by_pin

    def canonical(self) -> tuple[Route, ...]:
        """What tells two tables apart."""
        return self.routes


def _checked(route: Route, pins: bool) -> Route:
    """The route with the PIC's pin counted over both chips; OSError EINVAL."""
    bad = os_error(errno.EINVAL, f"no such route: {route}")
    if not 0 <= route.gsi < KVM_MAX_IRQ_ROUTES:
        raise bad
    if route.kind == KVM_IRQ_ROUTING_MSI:
        if route.flags & ~KVM_MSI_VALID_DEVID:
            raise bad
        return route
    if route.kind != KVM_IRQ_ROUTING_IRQCHIP or route.flags or not pins or route.pin < 0:
        raise bad
    if route.chip == KVM_IRQCHIP_IOAPIC and route.pin < IOAPIC_PINS:
        return route
    if route.chip in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE) and route.pin < PIC_PINS:
        return route._replace(pin=route.pin + PIC_PINS * route.chip)
    raise bad


class AckNotifier(State):
    """Somebody who hears of each EOI of a GSI. `acked` runs inside the SRCU read section, chip locks dropped."""

    WIRING = ("acked", "gsi")
    __slots__ = WIRING

    def __init__(self, gsi: int, acked: Callable[[], None]) -> None:
        self.gsi = gsi
        self.acked = acked


class IrqSourceIds(State):
    """The irq source ids of a VM, a bitmap of one host word. `reserved` are never given out."""

    WIRING = ("capacity",)
    BOOKKEEPING = ("used",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, reserved: Iterable[int], capacity: int = SOURCE_IDS) -> None:
        self.capacity = capacity
        self.used = 0
        for source in reserved:
            self.used |= 1 << source

    def request(self) -> int:
        """The lowest free id. OSError EFAULT, the kernel's choice, if there is none. (kvm_request_irq_source_id)"""
        source = (~self.used & self.used + 1).bit_length() - 1
        if source >= self.capacity:
            raise os_error(errno.EFAULT, f"all {self.capacity} irq source ids are in use")
        self.used |= 1 << source
        return source

    def free(self, source: int) -> None:
        """Give an id back; one out of range is ignored. (kvm_free_irq_source_id)"""
        if 0 <= source < self.capacity:
            self.used &= ~(1 << source)

    def live(self) -> int:
        """How many are in use, the reserved ones included."""
        return self.used.bit_count()


class Gsis(State):
    """The GSIs of one VM: routing table, ack notifiers, source ids.

    `chips` maps KVM_IRQCHIP_* to the chip; `deliver_msi(address, data) -> int` is the APIC bus; `rescan` is told when
    the set of vectors whose EOI matters may have changed; `on_routes` hears of each new table with `lock` held;
    `on_mask[gsi]` hears when a pin that the GSI is routed to is masked (True) or unmasked.
    """

    WIRING = ("chips", "deliver_msi", "irq_srcu", "lock", "on_mask", "on_routes", "pins", "rescan", "trace")
    VISIBLE = ("table",)
    BOOKKEEPING = ("notifiers", "sources")
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, srcu: Srcu, trace: Trace, sources: IrqSourceIds, pins: bool) -> None:
        self.irq_srcu = srcu
        self.trace = trace
        self.lock = order.Lock("kvm.irq_lock")
        self.chips: dict[int, Chip] = {}
        self.deliver_msi: Callable[[int, int], int] = _no_apic
        self.rescan: Callable[[], None] = _nothing
        self.on_mask: dict[int, Callable[[bool], None]] = {}
        self.on_routes: Callable[[], None] = _nothing
        self.pins = pins
        self.sources = sources
        self.table = RoutingTable(default_routing() if pins else (), pins)
        self.notifiers: dict[int, tuple[AckNotifier, ...]] = {}

    # Towards the chips.

    def set_irq(self, source: int, gsi: int, level: int, line_status: bool = False) -> int:
        """Drive a GSI: the sum of what its chips delivered (0: coalesced), -1 if all ignored it or it has no route.

        Ref: vectors kvm-ioapic.json, unrouted-gsi, one-gsi-two-pins. (kvm_set_irq)
        """
        if self.trace.on:
            self.trace.emit(KvmSetIrq(gsi, level, source))
        status = -1
        high = bool(level)
        routes = self.table.by_gsi.get(gsi, ())
        count = len(routes)
        i = 0
        while i < count:
            route = routes[i]
            i += 1
            if route.kind == KVM_IRQ_ROUTING_MSI:
                # A message has no level to lower. (kvm_set_msi)
                got = self.deliver_msi(route.address, route.data) if high else -1
            elif (chip := self.chips.get(route.chip)) is None:
                continue
            elif line_status and route.chip == KVM_IRQCHIP_IOAPIC:
                got = chip.set_irq(route.pin, source, high, True)  # type: ignore[call-arg]
            else:
                got = chip.set_irq(route.pin, source, high)
            if got >= 0:
                status = got if status < 0 else status + got
        return status

    def clear_irq(self, source: int, gsi: int) -> bool:
        """Let a source go at every pin of a GSI, where it holds one; False, and nothing done, where it held none.

        A message holds nothing, nor does a chip without `clear_irq`. (kvm_clear_irq, posted in July 2012)
        """
        held = False
        for route in self.table.by_gsi.get(gsi, ()):
            if route.kind == KVM_IRQ_ROUTING_IRQCHIP:
                clear = getattr(self.chips.get(route.chip), "clear_irq", None)
                if clear is not None and clear(route.pin, source):
                    held = True
        if held and self.trace.on:
            self.trace.emit(KvmSetIrq(gsi, 0, source))
        return held

    def snapshot(self, gsi: int) -> Route | None:
        """What an irqfd caches of its GSI: the route if there is exactly one, else None. (irqfd_update)"""
        routes = self.table.by_gsi.get(gsi, ())
        return routes[0] if len(routes) == 1 else None

    def set_routing(self, routes: Sequence[Route]) -> None:
        """Replace the table. Lines that are high stay high where they are. OSError EINVAL, nothing changed.

        Ref: vectors kvm-ioapic.json, reroute-resample-asserted. (kvm_set_irq_routing)
        """
        table = RoutingTable(routes, self.pins)
        with self.lock:
            if order.hook is not None:
                order.hook("gsi.set-routing", self)
            self.table = table
            self.on_routes()
        if not self.pins:
            # With the IOAPIC in user space only: its entries are in the routes. (kvm_arch_post_irq_routing_update)
            self.rescan()
        self.irq_srcu.synchronize_expedited()

    # Back from the chips.

    def register(self, notifier: AckNotifier) -> None:
        """Tell `notifier` of each EOI of its GSI from now on; the last registered is told first.

        (kvm_register_irq_ack_notifier)
        """
        with self.lock:
            self.notifiers[notifier.gsi] = (notifier, *self.notifiers.get(notifier.gsi, ()))
        self.rescan()

    def unregister(self, notifier: AckNotifier) -> None:
        """Once this returns the notifier is not being told and will not be. (kvm_unregister_irq_ack_notifier)"""
        with self.lock:
            rest = tuple(n for n in self.notifiers.get(notifier.gsi, ()) if n is not notifier)
            if rest:
                self.notifiers[notifier.gsi] = rest
            else:
                self.notifiers.pop(notifier.gsi, None)
        if order.hook is not None:
            order.hook("gsi.unregister", self)
        self.irq_srcu.synchronize_expedited()
        self.rescan()

    def notify_acked(self, chip: int, pin: int) -> None:
        """An EOI reached a pin. No chip lock is held. (kvm_notify_acked_irq)"""
        gsi = self.table.by_pin.get((chip, pin), -1)
        if self.trace.on:
            self.trace.emit(KvmAckIrq(chip, pin, gsi))
        nesting = self.irq_srcu.read_lock() if order.hook is not None else 0
        notifiers = self.notifiers.get(gsi, ())
        i = 0
        while i < len(notifiers):
            notifier = notifiers[i]
            i += 1
            if order.hook is not None:
                order.hook("gsi.ack", notifier)
            notifier.acked()
        if order.hook is not None:
            self.irq_srcu.read_unlock(nesting)

    def mask_changed(self, chip: int, pin: int, masked: bool) -> None:
        """The guest masked or unmasked a pin. (kvm_fire_mask_notifiers)"""
        notify = self.on_mask.get(self.table.by_pin.get((chip, pin), -1))
        if notify is not None:
            notify(masked)

    def has_notifier(self, chip: int, pin: int) -> bool:
        """Somebody wants this pin's EOIs. (kvm_irq_has_notifier)"""
        gsi = self.table.by_pin.get((chip, pin), -1)
        return gsi in self.notifiers


def _no_apic(_address: int, _data: int) -> int:
    return -1


def _nothing() -> None:
    pass


class ChipAcks(State):
    """What a chip is given as its `AckNotifiers`: `chip` is KVM_IRQCHIP_IOAPIC, or KVM_IRQCHIP_PIC_MASTER for both
    PICs. `notify_resampler(gsi) -> bool` signals the members of the GSI's resampler.
    """

    WIRING = ("chip", "gsis", "notify_resampler")
    __slots__ = WIRING

    def __init__(self, gsis: Gsis, chip: int, notify_resampler: Callable[[int], bool]) -> None:
        self.gsis = gsis
        self.chip = chip
        self.notify_resampler = notify_resampler

    def _chip(self, pin: int) -> int:
        return self.chip if self.chip == KVM_IRQCHIP_IOAPIC else pin // PIC_PINS

    def has_notifier(self, pin: int) -> bool:
        """The GSI routed to `pin` has an ack notifier."""
        return self.gsis.has_notifier(self._chip(pin), pin)

    def notify_acked(self, pin: int) -> None:
        """An EOI reached `pin`; no chip lock is held."""
        self.gsis.notify_acked(self._chip(pin), pin)

    def mask_changed(self, pin: int, masked: bool) -> None:
        """The guest masked or unmasked `pin`; the chip's lock may be held."""
        self.gsis.mask_changed(self._chip(pin), pin, masked)

    def resample(self, pin: int) -> bool:
        """Signal the resampler's members without lowering anything; False if the pin's GSI has no resampler. The chip's
        lock may be held. (kvm_notify_irqfd_resampler, 6.3)
        """
        gsi = self.gsis.table.by_pin.get((self._chip(pin), pin), -1)
        return gsi >= 0 and self.notify_resampler(gsi)
