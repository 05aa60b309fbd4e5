"""What must hold of irqfds, eoifds, source ids and lines, whatever order they come and go in: S1 to S20.

Each is a function that returns an empty string, or says what is wrong. There are two forms:

    state   holds whenever nothing is queued or running: `check(vm, ledger) -> str`
    step    is about one operation, with what was before and after it: `check(vm, ledger, step) -> str`

What a check needs to know and the kernel does not is *ghost*: a `Ledger` of what the user was told is bound, kept by
whoever drives the VM (`vmm/dispute/stage.py`; `Ledger.record` is all there is to call).

Some of the twenty are about other parts or about orders that a single thread does not have; `ELSEWHERE` says where
they are looked after. Liveness is not here: a search has to look for it (vmm/explore).

Ref: the thread under "[PATCH v5 2/4] kvm: KVM_EOIFD, an eventfd for EOIs"; Documentation/virt/kvm/api.rst, KVM_IRQFD
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from vmm.kernel.eoifd import EoiIrqfds, LevelIrqfd
from vmm.kernel.gsi import (
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID,
    KVM_PIT_IRQ_SOURCE_ID,
    KVM_USERSPACE_IRQ_SOURCE_ID,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.kernel.files import EventfdCtx
    from vmm.kernel.kvm import Vm
    from vmm.order import Mortal

_REMOTE_IRR, _LEVEL = 1 << 14, 1 << 15
"""Of a redirection entry. Ref: 82093AA, 3.2.4"""

Kind = Literal["I+", "I-", "E+", "E-", "C", "D", "SIG", "EOI", "VM"]
"""Assign and deassign an irqfd and an eoifd; close, dup and write an eventfd; the guest's EOI; the VM's last close."""


class View(NamedTuple):
    """What can be told apart of a VM when nothing is queued. `kernel` is all but `references`, the counts of files and
    contexts.
    """

    kernel: tuple[object, ...]
    references: tuple[object, ...]


class Step(NamedTuple):
    """One operation. `error` is its errno, 0 if it succeeded. `ctx`: the eventfd it is about; `other`: the irqfd's of
    an eoifd, or a resamplefd. `gsi`: -1 also for an EOI that had nothing to end. `signals`: how often each eventfd was
    signalled meanwhile. `last`: a close of the last descriptor.
    """

    kind: Kind
    error: int
    before: View
    after: View
    ctx: EventfdCtx | None = None
    other: EventfdCtx | None = None
    gsi: int = -1
    level: bool = False
    signals: Mapping[EventfdCtx, int] = {}
    last: bool = False


class Ledger:
    """What a user of the interface knows: what is bound, what has fired, what is closed."""

    def __init__(self, vm: Vm) -> None:
        self.static = {KVM_USERSPACE_IRQ_SOURCE_ID}
        """Source ids that are nobody's to take."""
        if vm.era.resample:
            self.static.add(KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID)
        if vm.era.fixed_pit_source:
            self.static.add(KVM_PIT_IRQ_SOURCE_ID)
        self.policy = vm.irqfds.policy if isinstance(vm.irqfds, EoiIrqfds) else None
        self.contexts: list[EventfdCtx] = []
        self.irqfds: dict[EventfdCtx, tuple[int, bool, EventfdCtx | None]] = {}
        """GSI, level or resampling, resamplefd of each irqfd, by its eventfd."""
        self.eoifds: dict[EventfdCtx, EventfdCtx] = {}
        """The irqfd's eventfd, by the eoifd's."""
        self.fired: set[EventfdCtx] = set()
        """Irqfds that asserted since the last EOI of their GSI."""
        self.closed: set[EventfdCtx] = set()
        self.vm_closed = False

    def record(self, step: Step) -> None:
        """Enter an operation, after it was checked."""
        ctx = step.ctx
        if step.kind == "EOI":
            # What nobody listens to stays asserted.
            heard = set(self.eoifds.values()) | {ctx for ctx, (_, _, resamplefd) in self.irqfds.items() if resamplefd}
            self.fired -= {ctx for ctx, (gsi, _, _) in self.irqfds.items() if gsi == step.gsi and ctx in heard}
        if step.error:
            return
        if step.kind == "VM":
            self.vm_closed = True
            self.irqfds.clear()
            self.eoifds.clear()
        if ctx is None:
            return
        if step.kind == "I+":
            self.irqfds[ctx] = step.gsi, step.level, step.other
            if ctx.count and step.level:
                self.fired.add(ctx)
        elif step.kind == "I-" and ctx in self.irqfds and self.irqfds[ctx][0] == step.gsi:
            self.forget(ctx)
        elif step.kind == "E+" and step.other is not None:
            self.eoifds[ctx] = step.other
        elif step.kind == "E-":
            del self.eoifds[ctx]
        elif step.kind == "SIG" and ctx in self.irqfds and self.irqfds[ctx][1]:
            self.fired.add(ctx)
        elif step.kind == "C" and step.last:
            self.closed.add(ctx)
            held = self.policy is not None and self.policy.holds_file and ctx in self.eoifds.values()
            if ctx in self.irqfds and not held:
                self.forget(ctx)
            if ctx in self.eoifds and self.policy is not None and self.policy.notices_close:
                named = self.eoifds.pop(ctx)
                if named in self.closed and named in self.irqfds and named not in self.eoifds.values():
                    self.forget(named)

    def forget(self, ctx: EventfdCtx) -> None:
        """An irqfd went."""
        del self.irqfds[ctx]
        self.fired.discard(ctx)
        if self.policy is not None and self.policy.unbinds_eoifds:
            self.eoifds = {f: e for f, e in self.eoifds.items() if e is not ctx}


# Looking


def view(vm: Vm, contexts: Mapping[str, EventfdCtx]) -> View:
    """A VM as it is now; `contexts` gives eventfds their names."""
    names = {id(ctx): name for name, ctx in contexts.items()}
    irqfds = tuple(
        sorted((names.get(id(i.ctx), "?"), i.gsi, isinstance(i, LevelIrqfd) and i.level) for i in vm.irqfds.items)
    )
    eoifds: tuple[tuple[str, str], ...] = ()
    if isinstance(vm.irqfds, EoiIrqfds):
        eoifds = tuple(sorted((names.get(id(e.ctx), "?"), names.get(id(e.level_irqfd), "?")) for e in vm.irqfds.eoifds))
    notifiers = tuple(sorted((gsi, len(found)) for gsi, found in vm.gsis.notifiers.items()))
    resamplers = tuple(sorted((r.gsi, len(r.members)) for r in vm.irqfds.resamplers))
    held = tuple((gsi, sources) for gsi in sorted(vm.gsis.table.by_gsi) if (sources := holding(vm, gsi)))
    kernel = (irqfds, eoifds, notifiers, resamplers, vm.gsis.sources.used, held)
    references = (
        tuple(sorted((name, ctx.refs, ctx.count, len(ctx.waiters)) for name, ctx in contexts.items())),
        tuple(0 if file is None else file.refs for file in vm.files.files),
    )
    return View(kernel, references)


def holding(vm: Vm, gsi: int) -> int:
    """The sources that hold a GSI's IOAPIC pin high, a bit each."""
    sources = 0
    chip = vm.gsis.chips.get(KVM_IRQCHIP_IOAPIC)
    pins = getattr(chip, "sources", ())
    for route in vm.gsis.table.by_gsi.get(gsi, ()):
        if route.kind == KVM_IRQ_ROUTING_IRQCHIP and route.chip == KVM_IRQCHIP_IOAPIC and route.pin < len(pins):
            sources |= pins[route.pin]
    return sources


def level_irqfds(vm: Vm) -> list[LevelIrqfd]:
    """The irqfds with a source of their own."""
    return [i for i in vm.irqfds.items if isinstance(i, LevelIrqfd) and i.source is not None]


def _mask(ids: set[int]) -> int:
    return sum(1 << source for source in ids)


# State


def s1(vm: Vm, ledger: Ledger) -> str:
    """No source-id leak: the ids in use are the static ones and those of the level irqfds that there are."""
    wanted = _mask(ledger.static | {i.source.source for i in level_irqfds(vm) if i.source is not None})
    leaked = vm.gsis.sources.used & ~wanted
    missing = wanted & ~vm.gsis.sources.used
    return f"source ids {leaked:#x} are in use and no irqfd has them; missing {missing:#x}" if leaked | missing else ""


def s2(vm: Vm, ledger: Ledger) -> str:
    """Conservation: with the VM gone and every descriptor closed nothing is left. (Says nothing before that.)"""
    if not ledger.vm_closed or any(file is not None for file in vm.files.files):
        return ""
    left: list[object] = [ctx for ctx in ledger.contexts if ctx.refs or ctx.alive]
    left += vm.irqfds.items
    left += vm.irqfds.resamplers
    left += vm.irqfds.eoifds if isinstance(vm.irqfds, EoiIrqfds) else ()
    left += vm.gsis.notifiers
    left += vm.executor.pending
    if vm.gsis.sources.used != _mask(ledger.static):
        left.append(f"source ids {vm.gsis.sources.used:#x}")
    return f"left behind: {left}" if left else ""


def s4(vm: Vm, ledger: Ledger) -> str:  # noqa: ARG001
    """What is listed is alive and was never shut down. (A use after free is an `order.Violation` as it happens.)"""
    listed: list[Mortal | None] = list(vm.irqfds.items)
    listed += vm.irqfds.resamplers
    listed += [i.source for i in level_irqfds(vm)]
    if isinstance(vm.irqfds, EoiIrqfds):
        listed += vm.irqfds.eoifds
        listed += [e.source for e in vm.irqfds.eoifds]
    dead = [item for item in listed if item is not None and (item.freed_by or item.shutdowns)]
    return f"listed, and dead: {dead}" if dead else ""


def s5(vm: Vm, ledger: Ledger) -> str:
    """Line ownership: whatever holds a GSI high besides user space is an irqfd that is there."""
    for gsi in vm.gsis.table.by_gsi:
        owners = {i.source.source for i in level_irqfds(vm) if i.source is not None and i.gsi == gsi}
        owners |= {KVM_USERSPACE_IRQ_SOURCE_ID}
        owners |= {KVM_PIT_IRQ_SOURCE_ID} & ledger.static
        if vm.irqfds.find_resampler(gsi) is not None:
            owners.add(KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID)
        stray = holding(vm, gsi) & ~_mask(owners)
        if stray:
            return f"GSI {gsi} is held high by sources {stray:#x}, which no irqfd has"
    return ""


def s8(vm: Vm, ledger: Ledger) -> str:  # noqa: ARG001
    """Level OR: a level pin's IRR is set exactly while some source holds the pin.

    But an unmask that asked a resampler instead clears the bit and leaves its source (kernel 6.3): source 1, alone.
    """
    chip = vm.gsis.chips.get(KVM_IRQCHIP_IOAPIC)
    irr: int = getattr(chip, "irr", 0)
    asked = 1 << KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID if vm.era.resample_on_unmask else 0
    for pin, (entry, sources) in enumerate(zip(getattr(chip, "redir", ()), getattr(chip, "sources", ()), strict=True)):
        pending = bool(irr >> pin & 1)
        if entry & _LEVEL and pending != bool(sources) and (pending or sources != asked):
            return f"pin {pin}: IRR {irr >> pin & 1}, sources {sources:#x}"
    return ""


def s12(vm: Vm, ledger: Ledger) -> str:  # noqa: ARG001
    """Remote IRR discipline: a pin that waits for an EOI has its vector in some CPU's IRR or ISR.

    Not if the guest gave the pin another vector in service, or suppressed the broadcast: then it is the guest's to end.
    """
    chip = vm.gsis.chips.get(KVM_IRQCHIP_IOAPIC)
    lapics = getattr(vm.bus, "lapics", ())
    for pin, entry in enumerate(getattr(chip, "redir", ())):
        waits = entry & (_LEVEL | _REMOTE_IRR) == _LEVEL | _REMOTE_IRR
        if waits and not any((lapic.irr | lapic.isr) >> (entry & 0xFF) & 1 for lapic in lapics):
            return f"pin {pin} waits for an EOI of vector {entry & 0xFF:#x}, which no CPU has"
    return ""


def s14(vm: Vm, ledger: Ledger) -> str:  # noqa: ARG001
    """Uniqueness: an eventfd has at most one irqfd."""
    seen = [id(item.ctx) for item in vm.irqfds.items]
    return f"two irqfds on one eventfd: {vm.irqfds.items}" if len(seen) != len(set(seen)) else ""


# Step


def s6(vm: Vm, ledger: Ledger, step: Step) -> str:  # noqa: ARG001
    """No event after unbind: an eventfd that is not bound moves no line, an eoifd that is not bound hears nothing."""
    for ctx, times in step.signals.items():
        named = any(resamplefd is ctx for _, _, resamplefd in ledger.irqfds.values())
        if times and not (named or ctx in ledger.eoifds):
            return f"{ctx!r} was signalled, and is not bound"
    lines = step.before.kernel[-1] != step.after.kernel[-1]
    if step.kind == "SIG" and lines and step.ctx is not None and step.ctx not in ledger.irqfds:
        return f"{step.ctx!r} moved a line, and is not bound: {step.after.kernel[-1]}"
    return ""


def s7(vm: Vm, ledger: Ledger, step: Step) -> str:
    """EOI fan-out: each eoifd whose irqfd had asserted, and each resamplefd of the GSI, is signalled once, no other is,
    and what had asserted is lowered. Whose an eoifd is, is what the user was told: the eventfd that it named.
    """
    if step.kind != "EOI" or ledger.vm_closed:
        return ""
    for ctx, (gsi, level, resamplefd) in ledger.irqfds.items():
        if gsi != step.gsi or not level:
            continue
        if ledger.policy is None:
            listeners = [] if resamplefd is None else [resamplefd]
        else:
            listeners = [f for f, e in ledger.eoifds.items() if e is ctx] if ctx in ledger.fired else []
        for f in listeners:
            if f not in ledger.closed and step.signals.get(f, 0) != sum(
                other[2] is f and other[0] == gsi for other in ledger.irqfds.values()
            ) + (f in ledger.eoifds):
                return f"{f!r} was signalled {step.signals.get(f, 0)} times at the EOI of {ctx!r}"
        if listeners and ctx in ledger.fired:
            mine = {i.source.source for i in level_irqfds(vm) if i.ctx is ctx and i.source is not None}
            if holding(vm, gsi) & _mask(mine):
                return f"the EOI did not lower GSI {gsi}, which {ctx!r} holds"
    for f, e in ledger.eoifds.items():
        if step.signals.get(f) and e not in ledger.fired and e in ledger.irqfds:
            return f"{f!r} was signalled for an interrupt that was not its irqfd's"
    return ""


def s9(vm: Vm, ledger: Ledger, step: Step) -> str:  # noqa: ARG001
    """Honest interface: after a deassign that returned 0 nothing that matches it is left."""
    if step.error:
        return ""
    if step.kind == "I-" and any(i.ctx is step.ctx and i.gsi == step.gsi for i in vm.irqfds.items):
        return f"deassign returned 0, and {step.ctx!r} still has its irqfd"
    if step.kind == "E-" and isinstance(vm.irqfds, EoiIrqfds):
        left = [e for e in vm.irqfds.eoifds if e.ctx is step.ctx and e.level_irqfd is step.other]
        return f"deassign returned 0, and left {left}" if left else ""
    return ""


def s10(vm: Vm, ledger: Ledger, step: Step) -> str:  # noqa: ARG001
    """Single consumer: an event of a bound eventfd is not seen by who reads the eventfd, then or later."""
    ctx = step.ctx
    if step.kind == "SIG" and not step.error and ctx in ledger.irqfds and ctx is not None and ctx.count:
        return f"{ctx!r} was injected, and can be read as well"
    if step.kind != "I-" or step.error or ctx is None or ctx not in ledger.irqfds:
        return ""
    if ledger.irqfds[ctx][0] == step.gsi and ctx.count:
        return f"{ctx!r} was unbound, and still has what was injected"
    return ""


def s19(vm: Vm, ledger: Ledger, step: Step) -> str:  # noqa: ARG001
    """Error atomicity: an operation that fails changes nothing, references included."""
    if step.error and step.before != step.after:
        return f"{step.kind} failed with {errno.errorcode[step.error]}, and changed {step.before} to {step.after}"
    return ""


def s20(vm: Vm, ledger: Ledger, step: Step) -> str:
    """EBUSY precision: EBUSY only for what user space can see and remove, EFAULT only if every id has its irqfd."""
    if step.kind not in ("I+", "E+"):
        return ""
    if step.error == errno.EFAULT:
        room = vm.gsis.sources.capacity - len(ledger.static)
        have = len(level_irqfds(vm))
        return f"no source id for the {have + 1}. level irqfd of {room}" if have < room else ""
    if step.error == errno.EBUSY:
        eoifds = vm.irqfds.eoifds if isinstance(vm.irqfds, EoiIrqfds) else ()
        if step.kind == "E+":
            users: list[object] = [e for e in eoifds if e.ctx is step.ctx]
        else:
            users = [i for i in vm.irqfds.items if i.ctx is step.ctx]
            users += [e for e in eoifds if e.level_irqfd is step.ctx and e.ctx not in ledger.closed]
        return "" if users else f"{step.ctx!r} is EBUSY, and nothing that can be removed has it"
    return ""


def s3(by_close: View, by_deassign: View) -> str:
    """Close equals deassign: what is left after the last close of an eventfd is what a deassign would have left.

    Its form is neither: it compares two runs. Whoever drives the VM makes the second one.
    """
    if by_close.kernel == by_deassign.kernel:
        return ""
    return f"close leaves {by_close.kernel}, deassign leaves {by_deassign.kernel}"


STATE: Final[Mapping[str, Callable[[Vm, Ledger], str]]] = {
    "S1": s1,
    "S2": s2,
    "S4": s4,
    "S5": s5,
    "S8": s8,
    "S12": s12,
    "S14": s14,
}
STEP: Final[Mapping[str, Callable[[Vm, Ledger, Step], str]]] = {
    "S6": s6,
    "S7": s7,
    "S9": s9,
    "S10": s10,
    "S19": s19,
    "S20": s20,
}
ELSEWHERE: Final[Mapping[str, str]] = {
    "S3": "compares two runs: `s3`, with `vmm/dispute/stage.py`",
    "S11": "no phantom at unmask: the IOAPIC's tests and recordings",
    "S13": "quiesce before free: `order.Violation` as it happens (`wait-entry-never-added`, `use-after-free`)",
    "S15": "lock discipline: `order.Violation` under the explorer",
    "S16": "bounded and total: whatever is not an OSError of the operation is a failure, in every driver",
    "S17": "mask depth: the VFIO device's tests",
    "S18": "set-up and tear-down are symmetrical: the ledger of `vmm/lifecycle.py`",
}


def broken(vm: Vm, ledger: Ledger, step: Step | None = None) -> dict[str, str]:
    """All that does not hold, by number. Nothing may be queued."""
    found = {number: check(vm, ledger) for number, check in STATE.items()}
    if step is not None:
        found |= {number: check(vm, ledger, step) for number, check in STEP.items()}
    return {number: wrong for number, wrong in found.items() if wrong}


class Invariant(NamedTuple):
    """One of the twenty. `form`: `state`, `step` or `two runs`; `ghost`: what of the `Ledger` the check needs."""

    number: str
    form: str
    ghost: str
    says: str


_GHOST: Final[Mapping[str, str]] = {
    "S1": "which ids are nobody's to take",
    "S2": "every eventfd ever opened, whether the VM is closed",
    "S5": "which ids are nobody's to take",
    "S6": "what the user has bound",
    "S7": "what the user has bound, what has fired, what is closed",
    "S10": "what the user has bound",
    "S20": "what is closed",
}
BREAKS: Final[Mapping[str, frozenset[str]]] = {
    "eoifd-v5:eoifd-close=deassigns": frozenset({"S1", "S5", "S7", "S20"}),
    "deassign-fails": frozenset({"S1", "S3", "S5", "S20"}),
    "eoifd-follows-irqfd": frozenset(),
    "assign-busy": frozenset({"S1", "S5", "S20"}),
    "assign-rebinds": frozenset({"S1", "S5", "S20"}),
    "eoifd-holds-file": frozenset({"S1", "S3", "S5", "S7", "S20"}),
    "resample": frozenset(),
}
"""What some life breaks under each rule, with one eoifd to an irqfd; all else that is checked here the rule keeps.

Two eoifds on one irqfd break S7 under each rule that has eoifds. S10 is the era's: `v5` breaks it under all of them.
"""


def catalogue() -> list[Invariant]:
    """All that are checked here, in order."""
    found = [Invariant(n, "state", _GHOST.get(n, ""), _first(check)) for n, check in STATE.items()]
    found += [Invariant(n, "step", _GHOST.get(n, ""), _first(check)) for n, check in STEP.items()]
    found.append(Invariant("S3", "two runs", "", _first(s3)))
    return sorted(found, key=lambda invariant: int(invariant.number[1:]))


def _first(check: Callable[..., str]) -> str:
    """The first sentence of a check's docstring."""
    return " ".join((check.__doc__ or "").split()).partition(". ")[0].rstrip(".")
