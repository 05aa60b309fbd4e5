"""Why an interrupt came when nobody had asked: reads a trace and names the cause of each spurious level interrupt.

A level interrupt is followed from the I/O APIC's pin (Remote IRR set) to the CPU that takes its vector and to that
CPU's EOI. It was for somebody if a device on the pin drove its INTx when the CPU took it, or raised and lowered it
before the EOI. All others are spurious, and each has one of these causes, or is unattributed, which is a bug of the
machine:

    member-left-asserted  a member left its GSI's resampler while others stay: the line stays high until the next EOI
    latched-until-eoi     an eventfd carries an assertion, no level: the device was served, its GSI is high until EOI
    eoi-before-ack        the guest sent the EOI first and acknowledged the device afterwards, in the same handler
    withdrawn             the device lowered its line when a local APIC had already accepted the vector
    device-left           the device was unplugged at such a moment

A device in another process (vfio-user) drives its INTx where no trace sees it; what it asserts is taken for wanted.

Ref: Linux, virt/kvm/eventfd.c, irqfd_resampler_shutdown (the first); Intel SDM 3A, 11.8.4 (an accepted vector stays in
IRR, whatever its pin does).
"""

from __future__ import annotations

import enum
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm.trace import Record

SCI_GSI = 9
_LEVEL, _VECTOR = 1 << 15, 0xFF


class Cause(enum.Enum):
    """Why a spurious interrupt came. See the module."""

    MEMBER_LEFT = "member-left-asserted"
    LATCHED = "latched-until-eoi"
    EOI_FIRST = "eoi-before-ack"
    WITHDRAWN = "withdrawn"
    DEVICE_LEFT = "device-left"
    UNATTRIBUTED = "unattributed"


class Spurious(NamedTuple):
    """One spurious interrupt: when a CPU took it (ns), which pin it came from, why, and through which device."""

    time: int
    cpu: int
    vector: int
    pin: int
    cause: Cause
    device: str

    def text(self) -> str:
        """One line."""
        by = f" by {self.device}" if self.device else ""
        return f"{self.time / 1e9:.9f} cpu {self.cpu} vector {self.vector:#x} pin {self.pin}: {self.cause.value}{by}"


class _Pin:
    """A pin of the I/O APIC, and the GSI of the same number."""

    __slots__ = ("asserted", "ended", "entry", "left", "sent", "wanted")

    def __init__(self) -> None:
        self.entry = 1 << 16
        self.sent = False
        """It delivered, and no EOI has come yet."""
        self.wanted: dict[str, bool] = {}
        """Who drove its INTx when the pin delivered, and since before the EOI that made it deliver again."""
        self.asserted: set[str] = set()
        """Devices behind VFIO that asserted the GSI since its last EOI."""
        self.left: set[str] = set()
        """Those of them that left it with others staying."""
        self.ended: set[str] | None = None
        """Who drove its INTx when the EOI at hand began."""


class _Service(NamedTuple):
    """A CPU is in its handler."""

    time: int
    pins: list[tuple[int, dict[str, bool]]]
    served: set[str]
    """Who wanted something and was found."""
    raised: set[str]


class Attribution:
    """Follows a trace event by event: `add` a `Record` (it is a sink), or `feed` what a JSON line has.

    `taken`: level interrupts of pins that CPUs took. `spurious`: those for nobody, in order.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.by_pin: Counter[int] = Counter()
        self.spurious: list[Spurious] = []
        self._now = 0
        self._pins = [_Pin() for _ in range(24)]
        self._irqs: dict[int, int] = {}
        self._wires: dict[str, int] = {}
        self._roads: dict[str, tuple[str, int]] = {}
        self._forwarders: set[str] = set()
        self._remote: set[str] = set()
        self._high: set[str] = set()
        self._gone: dict[str, Cause] = {}
        self._services: dict[tuple[int, int], _Service] = {}
        self._handlers = {
            name.removeprefix("_on_"): getattr(self, name) for name in dir(self) if name.startswith("_on_")
        }

    # Input.

    def __call__(self, record: Record) -> None:
        handler = self._handlers.get(record.event.name)
        if handler is not None:
            self._now = record.time
            handler(record.event.fields())

    def feed(self, name: str, time: int, fields: Mapping[str, Any]) -> None:
        """One event. TraceError if it lacks a field."""
        handler = self._handlers.get(name)
        if handler is not None:
            self._now = time
            try:
                handler(fields)
            except KeyError as error:
                raise TraceError(f"event {name} at {time} ns has no field {error}") from error

    def read(self, lines: Iterable[str]) -> Attribution:
        """A trace in JSON lines. TraceError if it is none, or lacks the events that are needed."""
        seen = set()
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break  # still being written
            try:
                event = json.loads(line)
                name, time = event["event"], event["t"]
            except (ValueError, TypeError, KeyError) as error:
                raise TraceError(
                    f"line {number} is no trace event: write it with -trace '*',file=NAME.jsonl"
                ) from error
            seen.add(name)
            self.feed(name, time, event)
        missing = {"ioapic_write_redirection", "cpu_takes_interrupt", "apic_eoi"} - seen
        if missing:
            raise TraceError(f"no {', '.join(sorted(missing))} in the trace: it must have all events from the start")
        return self

    # Results.

    def causes(self) -> Counter[Cause]:
        """How many spurious interrupts each cause has."""
        return Counter(one.cause for one in self.spurious)

    @property
    def unattributed(self) -> list[Spurious]:
        """Those without a legal cause."""
        return [one for one in self.spurious if one.cause is Cause.UNATTRIBUTED]

    # Who is where.

    def _gsi(self, device: str) -> int:
        """The GSI that a device's interrupt goes to now; -1: none."""
        road = self._roads.get(device)
        if road is not None:
            return road[1]
        wire = self._wires.get(device)
        return -1 if wire is None else self._irqs.get(wire, -1)

    def _wanting(self, pin: int) -> set[str]:
        return {device for device in self._high if self._gsi(device) == pin}

    def _on_pci_wire_intx(self, e: Mapping[str, Any]) -> None:
        device = e["device"]
        if not e["wired"]:
            self._lower(device, Cause.DEVICE_LEFT)
            self._wires.pop(device, None)
        elif e["bus"] == "pci.0":
            self._wires[device] = e["pirq"]

    def _on_pci_route_irq(self, e: Mapping[str, Any]) -> None:
        self._irqs[e["pirq"]] = e["irq"]

    def _on_vfio_intx_enable(self, e: Mapping[str, Any]) -> None:
        device = e["device"]
        self._leave(device)
        self._roads[device] = (e["road"], e["gsi"])
        if device == e["user"]:
            self._remote.add(device)
        else:
            self._forwarders.add(e["user"])
            self._high.discard(e["user"])

    def _on_vfio_intx_disable(self, e: Mapping[str, Any]) -> None:
        self._leave(e["device"])
        self._lower(e["device"], Cause.DEVICE_LEFT)

    def _leave(self, device: str) -> None:
        """A device behind VFIO leaves its GSI. Only if others share the line may it stay high."""
        road, gsi = self._roads.pop(device, ("", -1))
        if gsi < 0:
            return
        pin = self._pins[gsi]
        if device in pin.asserted:
            pin.asserted.discard(device)
            if road == "kvm" and ("kvm", gsi) in self._roads.values():
                pin.left.add(device)

    # What devices want.

    def _on_pci_set_intx(self, e: Mapping[str, Any]) -> None:
        device = e["device"]
        if device in self._forwarders:
            return
        if e["level"] and not (e["disabled"] and device not in self._roads):
            self._high.add(device)
            gsi = self._gsi(device)
            for service in self._services.values():
                if any(pin == gsi for pin, _ in service.pins):
                    service.raised.add(device)
        else:
            self._lower(device, Cause.WITHDRAWN)

    def _on_acpi_sci(self, e: Mapping[str, Any]) -> None:
        self._roads["sci"] = ("wire", SCI_GSI)
        self._on_pci_set_intx({"device": "sci", "level": e["level"], "disabled": False})

    def _lower(self, device: str, cause: Cause) -> None:
        if device in self._high:
            self._high.discard(device)
            self._gone[device] = cause
            for service in self._services.values():
                if device in service.raised:
                    service.served.add(device)

    def _on_vfio_intx_interrupt(self, e: Mapping[str, Any]) -> None:
        if e["signalled"]:
            self._asserts(e["device"])

    def _on_vfio_intx_unmask(self, e: Mapping[str, Any]) -> None:
        if e["pending"]:
            self._asserts(e["device"])

    def _on_kvm_irqfd_inject(self, e: Mapping[str, Any]) -> None:
        for device in self._remote:
            if self._gsi(device) == e["gsi"]:
                self._asserts(device)

    def _asserts(self, device: str) -> None:
        gsi = self._gsi(device)
        if gsi >= 0:
            self._pins[gsi].asserted.add(device)

    def _on_kvm_ack_irq(self, e: Mapping[str, Any]) -> None:
        """Every EOI lowers what eventfds had asserted; whoever still wants something asserts again after this."""
        gsi = e["gsi"]
        if 0 <= gsi < len(self._pins):
            pin = self._pins[gsi]
            pin.asserted.clear()
            pin.left.clear()

    # The road of the interrupt.

    def _on_ioapic_write_redirection(self, e: Mapping[str, Any]) -> None:
        pin = self._pins[e["pin"]]
        pin.entry = e["entry"]
        if not pin.entry & _LEVEL:
            pin.sent = False

    def _on_ioapic_eoi_broadcast(self, e: Mapping[str, Any]) -> None:
        for number, pin in enumerate(self._pins):
            if pin.entry & _VECTOR == e["vector"] and pin.sent:
                pin.ended = self._wanting(number)

    def _on_ioapic_clear_remote_irr(self, e: Mapping[str, Any]) -> None:
        self._pins[e["pin"]].sent = False

    def _on_ioapic_set_remote_irr(self, e: Mapping[str, Any]) -> None:
        pin = self._pins[e["pin"]]
        pin.sent = True
        before = pin.ended or set()
        pin.wanted = {device: device in before for device in self._wanting(e["pin"])}
        pin.ended = None

    def _on_cpu_takes_interrupt(self, e: Mapping[str, Any]) -> None:
        if e["pic"]:
            return
        vector = e["vector"]
        pins = []
        served: set[str] = set()
        for number, pin in enumerate(self._pins):
            if pin.entry & (_LEVEL | _VECTOR) == _LEVEL | vector and pin.sent:
                pins.append((number, pin.wanted))
                pin.ended = None
                # Its PIRQ may lead elsewhere by now; the handler finds it all the same.
                served |= self._wanting(number) | (self._high & pin.wanted.keys()) | (self._remote & pin.asserted)
        if pins:
            self.taken += 1
            self.by_pin.update(number for number, _ in pins)
            self._services[e["cpu"], vector] = _Service(self._now, pins, served, set())

    def _on_apic_eoi(self, e: Mapping[str, Any]) -> None:
        service = self._services.pop((e["cpu"], e["vector"]), None)
        if service is not None and not service.served:
            number, wanted = service.pins[0]
            cause, device = self._explain(self._pins[number], wanted)
            self.spurious.append(Spurious(service.time, e["cpu"], e["vector"], number, cause, device))

    def _explain(self, pin: _Pin, wanted: Mapping[str, bool]) -> tuple[Cause, str]:
        """Nobody wanted it when the CPU took it. `pin` is as at the EOI, whose ack has not come yet."""
        for device, since_eoi in wanted.items():
            # It did when the pin delivered.
            cause = self._gone.get(device, Cause.UNATTRIBUTED)
            return (Cause.EOI_FIRST if cause is Cause.WITHDRAWN and since_eoi else cause), device
        for device in pin.left:
            return Cause.MEMBER_LEFT, device
        for device in pin.asserted:
            if device not in self._high:
                return Cause.LATCHED, device
        return Cause.UNATTRIBUTED, ""

    def _on_system_reset(self, e: Mapping[str, Any]) -> None:  # noqa: ARG002
        """The machine was reset: what CPUs had taken is forgotten."""
        self._services.clear()
        for pin in self._pins:
            pin.entry = 1 << 16
            pin.sent = False
            pin.wanted = {}
            pin.ended = None
