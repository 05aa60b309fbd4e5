"""The bus between I/O APICs, local APICs and message-signalled interrupts.

Who accepts a message, and what the sender learns, follows Linux' in-kernel irqchip: `deliver` returns how many local
APICs took it, 0 if none did, and -1 if nobody was even addressed on the path that looks at each CPU in turn.
Ref: Intel SDM vol. 3, 11.6.2 (destinations) and 11.11 (messages); `vectors kvm-ioapic.json` for the return values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from construct import BitsInteger, BitStruct, ByteSwapped, Const, Flag, Padding

from vmm import order
from vmm.errors import InUse
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.ioapic import IoApic
    from devices.lapic_core import LapicCore
    from vmm.trace import Trace

FIXED, LOWEST_PRIORITY, SMI, REMOTE_READ, NMI, INIT, STARTUP, EXTINT = range(8)

FLAT, CLUSTER, X2APIC = "flat", "cluster", "x2apic"
"""How logical destinations are compared."""

MSI_BASE = 0xFEE0_0000
MSI_MASK = 0xFFF0_0000
BROADCAST = 0xFF
X2APIC_BROADCAST = 0xFFFF_FFFF

MsiAddress = ByteSwapped(
    BitStruct(
        "prefix" / Const(0xFEE, BitsInteger(12)),
        "destination" / BitsInteger(8),
        "reserved" / BitsInteger(8),
        "redirection_hint" / Flag,
        "logical" / Flag,
        Padding(2),
    )
)
"""The address of a message-signalled interrupt. Ref: Intel SDM vol. 3, 11.11.1."""

MsiData = ByteSwapped(
    BitStruct(
        "reserved" / BitsInteger(16),
        "level_triggered" / Flag,
        "assert_level" / Flag,
        Padding(3),
        "delivery_mode" / BitsInteger(3),
        "vector" / BitsInteger(8),
    )
)
"""Its data. Ref: Intel SDM vol. 3, 11.11.2."""


class ApicDeliverIrq(Event):
    """A message on the bus."""

    dest: int
    dest_mode: int
    delivery_mode: int
    vector_num: int
    trigger_mode: int


class ApicBus(order.State):
    """All local APICs and I/O APICs of a machine.

    `vector_hashing`: lowest-priority messages go to the vector'th of the possible CPUs, as Linux does by default; off,
    they go round. `smm`: CPUs take SMIs (a Linux without CONFIG_KVM_SMM refuses them).
    """

    WIRING: ClassVar[tuple[str, ...]] = ("smm", "trace", "vector_hashing")
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("aliased", "by_id", "ioapics", "lapics", "logical_mode", "slots")
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, trace: Trace, vector_hashing: bool = True, smm: bool = True) -> None:
        self.trace = trace
        self.vector_hashing = vector_hashing
        self.smm = smm
        self.lapics: list[LapicCore] = []
        self.ioapics: list[IoApic] = []
        self.by_id: dict[int, LapicCore] | None = None
        """Enabled local APICs by physical ID; None: an ID or mode has changed, make it anew."""
        self.aliased: frozenset[int] = frozenset()
        """Physical IDs that several local APICs have; `by_id` has only the first of them."""
        self.logical_mode: str | None = FLAT
        """The logical mode that all software-enabled local APICs have; None if they differ, or if one has several bits
        or those of another: then each is asked."""
        self.slots: dict[int, LapicCore | None] = {}
        """In such a mode, who has a place: cluster << 16 | bit."""

    # Members.

    def attach(self, lapic: LapicCore) -> None:
        """A CPU joins. InUse if its index is taken."""
        if any(other.index == lapic.index for other in self.lapics):
            raise InUse(f"there is a local APIC {lapic.index} on this bus", f"lapic{lapic.index}")
        self.lapics.append(lapic)
        self.lapics.sort(key=_index)
        self.changed()

    def detach(self, lapic: LapicCore) -> None:
        """A CPU leaves."""
        self.lapics.remove(lapic)
        self.changed()

    def attach_ioapic(self, ioapic: IoApic) -> None:
        """A chip joins: it hears of EOIs from now on."""
        self.ioapics.append(ioapic)
        self.request_scan()

    def detach_ioapic(self, ioapic: IoApic) -> None:
        """A chip leaves. A second time does nothing."""
        if ioapic in self.ioapics:
            self.ioapics.remove(ioapic)
            self.request_scan()

    def changed(self) -> None:
        """An ID, a mode or a logical destination of some local APIC has changed. (kvm_recalculate_apic_map)"""
        self.by_id = None
        self.request_scan()

    # Which EOIs go to the I/O APICs.

    def request_scan(self) -> None:
        """What the chips want to hear of may have changed: a redirection entry, a route, a resampler.

        Each CPU computes its bitmap anew before it next runs guest code. (kvm_make_scan_ioapic_request)
        """
        for lapic in self.lapics:
            lapic.scan_requested = True

    def request_scan_of(self, dest: int, logical: bool) -> None:
        """The same for the CPUs that a destination means, looked up as a message's would be: one whose APIC is
        software-disabled is not found by its logical address. (kvm_bitmap_or_dest_vcpus)"""
        by_id = self._recalculate() if self.by_id is None else self.by_id
        members: list[LapicCore | None]
        if dest != BROADCAST and not logical and dest not in self.aliased:
            members = [by_id.get(dest)]
        elif dest != BROADCAST and logical and self.logical_mode is not None:
            members = self._slots(dest)
        else:
            members = [a for a in self.lapics if a.matches(dest, logical)]
        for lapic in members:
            if lapic is not None:
                lapic.scan_requested = True

    def broadcast_eoi(self, vector: int, cpu: int, level: bool, suppressed: bool = False) -> None:
        """Local APIC `cpu` ended `vector`."""
        for ioapic in self.ioapics:
            ioapic.eoi(vector, cpu, level, suppressed)

    # Messages.

    def deliver(
        self,
        dest: int,
        logical: bool,
        delivery_mode: int,
        vector: int,
        level_trigger: bool,
        level: bool = True,
        reached: dict[int, int] | None = None,
        x2apic_source: bool = False,
        redirection_hint: bool = False,
    ) -> int:
        """Send a message. Returns how many local APICs took it, 0 if none, -1 if none was addressed at all.

        `dest`: 8 bits, or 32 from an x2APIC (`x2apic_source`). `level`: False only for the level de-assert of an ICR.
        `reached`: local APIC index -> vector, to which every APIC whose IRR was set is added. `redirection_hint`: one
        of those addressed is enough, as for lowest priority.
        """
        if self.trace.on:
            self.trace.emit(ApicDeliverIrq(dest, int(logical), delivery_mode, vector, int(level_trigger)))
        by_id = self.by_id
        if by_id is None:
            by_id = self._recalculate()
        lowest = delivery_mode == LOWEST_PRIORITY or redirection_hint
        if dest != (X2APIC_BROADCAST if x2apic_source else BROADCAST):
            if not logical:
                if dest not in self.aliased:
                    lapic = by_id.get(dest)
                    return 0 if lapic is None else lapic.accept(delivery_mode, vector, level_trigger, level, reached)
            elif self.logical_mode is not None:
                slots = self._slots(dest)
                if lowest:
                    slots = self._lowest(slots, vector)
                return _accept_each(slots, delivery_mode, vector, level_trigger, level, reached)
        elif not logical and lowest:
            # As lowest priority there is nothing to choose from: everybody takes it. With the hint one still does, and
            # whatever the mode was, it is fixed now.
            delivery_mode = FIXED
            lowest = redirection_hint
        # Nobody can be looked up: ask each.
        members: list[LapicCore | None] = [
            a for a in self.lapics if a.hardware_enabled and a.matches(dest, logical, x2apic_source)
        ]
        return self._accept_all(members, lowest, delivery_mode, vector, level_trigger, level, reached)

    def _accept_all(
        self,
        members: list[LapicCore | None],
        lowest: bool,
        delivery_mode: int,
        vector: int,
        level_trigger: bool,
        level: bool,
        reached: dict[int, int] | None,
    ) -> int:
        if lowest:
            members = self._lowest([a for a in members if a is not None and a.software_enabled], vector)
        if not members:
            return -1
        return _accept_each(members, delivery_mode, vector, level_trigger, level, reached)

    def _lowest(self, members: list[LapicCore | None], vector: int) -> list[LapicCore | None]:
        """The one of `members` that a lowest-priority message goes to. Hashing counts places that nobody has, too:
        the interrupt is lost there."""
        if self.vector_hashing:
            return members[vector % len(members) :][:1] if members else []
        present = [a for a in members if a is not None]
        return [min(present, key=_arbitration)] if present else []

    def _slots(self, dest: int) -> list[LapicCore | None]:
        """The places that a logical destination names, lowest first; None where there is no APIC.

        Only software-enabled APICs are in the table. (kvm_apic_map_get_logical_dest)
        """
        if self.logical_mode == FLAT:
            cluster, bits = 0, dest & 0xFF
        elif self.logical_mode == CLUSTER:
            cluster, bits = dest >> 4 & 0xF, dest & 0xF
        else:
            cluster, bits = dest >> 16, dest & 0xFFFF
        table = self.slots
        return [table.get(cluster << 16 | 1 << n) for n in range(16) if bits >> n & 1]

    def shorthand(
        self,
        source: LapicCore,
        to_self: bool,
        to_others: bool,
        delivery_mode: int,
        vector: int,
        level_trigger: bool,
        level: bool = True,
    ) -> int:
        """Send to a destination shorthand: self, all including self, or all but self. Returns as `deliver`."""
        if self.trace.on:
            self.trace.emit(ApicDeliverIrq(source.apic_id, 0, delivery_mode, vector, int(level_trigger)))
        members: list[LapicCore | None] = [
            a
            for a in self.lapics
            if a.hardware_enabled and ((to_self and a is source) or (to_others and a is not source))
        ]
        lowest = delivery_mode == LOWEST_PRIORITY
        return self._accept_all(members, lowest, delivery_mode, vector, level_trigger, level, None)

    def msi(self, address: int, data: int) -> int:
        """Send the message that a write of `data` to `address` is. Returns as `deliver`.

        As for KVM_SIGNAL_MSI the caller has decided that it is one: the bits of `address` that say so are not looked
        at, and neither is the assert level bit of a level message. Ref: Intel SDM vol. 3, 11.11
        """
        return self.deliver(
            address >> 12 & 0xFF,
            bool(address & 4),
            data >> 8 & 7,
            data & 0xFF,
            bool(data & 0x8000),
            redirection_hint=bool(address & 8),
        )

    def msi_from_cpu_side(self, address: int, data: int) -> int:
        """An MSI write that passes the CPUs' own address decoding, where the first page is their APIC registers.

        There only the sixteen bytes at offset 0 are an MSI; the rest is a write of a register, which no CPU sends. 0
        for an address outside the MSI window.
        """
        if address & 0xFFFF_FFFF_FFF0_0000 != MSI_BASE:
            return 0
        if 0 < address - MSI_BASE >> 4 <= 0xFF:
            return 0
        return self.msi(address, data)

    def _recalculate(self) -> dict[int, LapicCore]:
        """Make the tables anew. (kvm_recalculate_apic_map)"""
        by_id: dict[int, LapicCore] = {}
        aliased: set[int] = set()
        slots: dict[int, LapicCore | None] = {}
        mode: str | None = FLAT
        first = True
        for lapic in self.lapics:
            if not lapic.hardware_enabled:
                continue
            if by_id.setdefault(lapic.apic_id, lapic) is not lapic:
                aliased.add(lapic.apic_id)
            if not lapic.software_enabled or not lapic.ldr:
                continue
            if first:
                mode = lapic.logical_mode
                first = False
            bits, cluster = lapic.logical_bits()
            place = cluster << 16 | bits
            if lapic.logical_mode != mode or bits & (bits - 1) or place in slots:
                mode = None
            if bits:
                slots[place] = lapic
        self.aliased = frozenset(aliased)
        self.logical_mode = mode
        self.slots = slots
        self.by_id = by_id
        return by_id


def _accept_each(
    members: list[LapicCore | None],
    delivery_mode: int,
    vector: int,
    level_trigger: bool,
    level: bool,
    reached: dict[int, int] | None,
) -> int:
    """How many take it. Others may act between one and the next, so the place is kept in a local."""
    taken = i = 0
    while i < len(members):
        lapic = members[i]
        i += 1
        if lapic is not None:
            taken += lapic.accept(delivery_mode, vector, level_trigger, level, reached)
    return taken


def _index(lapic: LapicCore) -> int:
    return lapic.index


def _arbitration(lapic: LapicCore) -> int:
    return lapic.arb_prio
