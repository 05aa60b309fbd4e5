"""A VM on which a sequence of the dispute is played, one operation at a time, with a guest's half at the other end.

    stage = Stage("eoifd-v5", sources=1)
    stage.do("I+ e1 g"); stage.do("E+ e2 e1"); stage.do("I- e1 g")
    stage.do("I+ e3 g").result           # 'EFAULT'

GSIs `g` and `h` go to an IOAPIC pin each, level-triggered and unmasked, in front of a local APIC whose CPU takes an
interrupt when an EOI is asked for. After each operation all that it queued has run. The notation is that of
`vmm/dispute/row.py`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from devices.apic_bus import ApicBus
from devices.ioapic import IOREDTBL
from devices.ioapic_kvm import KvmIoApic
from devices.lapic import LocalApic
from vmm.clock import VirtualClock
from vmm.errors import UsageError
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_DEASSIGN, KVM_EOIFD_FLAG_LEVEL_IRQFD, KVM_IRQFD_FLAG_LEVEL
from vmm.kernel.files import EFD_NONBLOCK, DescriptorTable, EventFile
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.invariants import Kind, Ledger, Step, View, broken, holding, s3, view
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
from vmm.kernel.kvm import Vm
from vmm.order import Executor
from vmm.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.kernel.files import EventfdCtx

GSIS: Final = {"g": 10, "h": 11}
VECTORS: Final = {"g": 0x5A, "h": 0x6B}
LEVEL: Final = 0x8000
CLOSED: Final = 1 << 20
"""A descriptor that nobody has."""


class Came(NamedTuple):
    """What an operation came to: `ok` or the errno's name, dynamic source ids in use, GSIs that are high, eventfds that
    were signalled by an EOI, and the invariants that do not hold now (number: what is wrong).
    """

    operation: str
    result: str
    ids: int
    line: tuple[str, ...]
    signalled: tuple[str, ...]
    broken: dict[str, str]


class NoCpu:
    """A CPU that takes an interrupt when it is told to."""

    def interrupt_changed(self) -> None:
        """Nothing to do."""

    def nmi(self) -> None:
        """Nothing to do."""

    def smi(self) -> None:
        """Nothing to do."""

    def init(self) -> None:
        """Nothing to do."""

    def sipi(self, vector: int) -> None:
        """Nothing to do."""


class Stage:
    """See the module. `policy` with its options; `sources`: how many source ids there are to give out."""

    def __init__(self, policy: str, sources: int = 62) -> None:
        self.policy = policy
        self.sources = sources
        self.executor = Executor()
        self.files = DescriptorTable()
        trace = Trace()
        self.vm = Vm(self.files, self.executor, trace, policy_name=policy)
        bus = ApicBus(trace)
        clock = VirtualClock()
        self.lapic = LocalApic(0, NoCpu(), bus, clock, trace)
        self.lapic.mmio_write(0xF0, 4, 0x1FF)
        self.ioapic = KvmIoApic(bus, clock, trace)
        self.vm.connect(ioapic=self.ioapic, bus=bus)
        self.vm.set_gsi_routing([Route.irqchip(gsi, KVM_IRQCHIP_IOAPIC, gsi) for gsi in GSIS.values()])
        for name, pin in GSIS.items():
            for half, value in ((1, 0), (0, LEVEL | VECTORS[name])):
                self.ioapic.mmio_write(0, 4, IOREDTBL + 2 * pin + half)
                self.ioapic.mmio_write(0x10, 4, value)
        self.ledger = Ledger(self.vm)
        pool = self.vm.gsis.sources
        if not 0 <= sources <= pool.capacity:
            raise UsageError(f"{sources} source ids: a VM has from 0 to {pool.capacity - len(self.ledger.static)}")
        pool.capacity = min(pool.capacity, len(self.ledger.static) + sources)
        self.descriptors: dict[str, int] = {}
        self.contexts: dict[str, EventfdCtx] = {}
        """By the name they were opened with."""
        self.ctx_of: dict[str, EventfdCtx] = {}
        self.history: list[str] = []
        self.ended = False
        """The last EOI had an interrupt to end."""

    def do(self, operation: str, check: bool = True) -> Came:
        """Do one operation. UsageError if it is none. `check`: look at the invariants as well."""
        words = operation.split()
        act, least, gsi_at = _ACTS.get(words[0], (None, 0, 0)) if words else (None, 0, 0)
        if act is None:
            raise UsageError(f"{operation!r} is no operation; they begin with {', '.join(_ACTS)}")
        if not least <= len(words) - 1 <= least + (words[0] == "I+"):
            raise UsageError(f"{operation!r}: {words[0]} takes {least} names")
        if gsi_at and words[gsi_at] not in GSIS:
            raise UsageError(f"{operation!r}: there is no GSI {words[gsi_at]}; there are {', '.join(GSIS)}")
        for name in self._eventfds(words):
            if name not in self.descriptors:
                self.open(name)
        before = self.view() if check else None
        counts = {ctx: ctx.count for ctx in self.contexts.values()}
        error = 0
        target = self.ctx_of.get(words[1]) if len(words) > 1 else None
        last = words[0] == "C" and self._is_last(words[1])
        try:
            act(self, *words[1:])
        except OSError as refused:
            error = refused.errno or errno.EIO
        self.executor.drain()
        self.history.append(operation)
        own = (target,) if words[0] in ("SIG", "I-", "C") else ()
        signals = {c: c.count - n for c, n in counts.items() if c.count > n and c not in own}
        found: dict[str, str] = {}
        if before is not None:
            step = self._step(words, error, before, signals, last)
            found = broken(self.vm, self.ledger, step)
            self.ledger.record(step)
        line = tuple(name for name, gsi in GSIS.items() if holding(self.vm, gsi))
        signalled = tuple(sorted(name for name, ctx in self.contexts.items() if signals.get(ctx)))
        return Came(operation, errno.errorcode[error] if error else "ok", self.ids, line, signalled, found)

    def _step(self, words: list[str], error: int, before: View, signals: dict[EventfdCtx, int], last: bool) -> Step:
        kind: Kind = words[0]  # type: ignore[assignment]
        gsi = next((GSIS[word] for word in words[1:] if word in GSIS), -1)
        if kind == "EOI" and not self.ended:
            gsi = -1
        names = self._eventfds(words)
        ctx = self.ctx_of[names[0]] if names else None
        other = self.ctx_of[names[1]] if len(names) > 1 and kind != "D" else None
        level = other is not None if self.ledger.policy is None else "edge" not in words
        return Step(kind, error, before, self.view(), ctx, other, gsi, level, signals, last)

    @staticmethod
    def _eventfds(words: list[str]) -> list[str]:
        names = [word for word in words[1:] if word not in GSIS and word != "edge"]
        return names[:1] if words[0] == "D" else names

    def _is_last(self, name: str) -> bool:
        fd = self.descriptors[name]
        return fd != CLOSED and sum(file is self.files.files[fd] for file in self.files.files) == 1

    @property
    def ids(self) -> int:
        """Source ids that were given out and not given back."""
        return self.vm.gsis.sources.live() - len(self.ledger.static)

    def view(self) -> View:
        """What can be told apart now."""
        return view(self.vm, self.contexts)

    def close_equals_deassign(self, name: str) -> str:
        """S3 of the close of `name` that was the last operation; empty if it holds or there is nothing to compare.

        The run is made again up to that close, with a deassign in its stead.
        """
        *before, close = self.history
        twin = Stage(self.policy, self.sources)
        assert close == f"C {name}"
        for operation in before:
            twin.do(operation)
        ctx = twin.ctx_of.get(name)
        if ctx is None or twin.descriptors[name] == CLOSED or not twin._is_last(name):
            return ""
        if ctx in twin.ledger.irqfds:
            gsi = twin.ledger.irqfds[ctx][0]
            twin.do(f"I- {name} {next(g for g, n in GSIS.items() if n == gsi)}")
        elif ctx in twin.ledger.eoifds:
            irqfd = twin.ledger.eoifds[ctx]
            names = [n for n, c in twin.ctx_of.items() if c is irqfd and twin.descriptors[n] != CLOSED]
            if not names:
                return ""
            twin.do(f"E- {name} {names[0]}")
        else:
            return ""
        return s3(self.view(), twin.view())

    # The operations.

    def open(self, name: str) -> None:
        """A new eventfd."""
        fd = self.files.eventfd(flags=EFD_NONBLOCK, name=name)
        file = self.files.file(fd)
        assert isinstance(file, EventFile)
        self.descriptors[name] = fd
        self.contexts[name] = self.ctx_of[name] = file.ctx
        self.ledger.contexts.append(file.ctx)

    def assign(self, name: str, gsi: str, kind: str = "") -> None:
        """I+"""
        fd = self.descriptors[name]
        if kind == "edge":
            self.vm.irqfd(fd, GSIS[gsi])
        elif kind:
            self.vm.irqfd(fd, GSIS[gsi], KVM_IRQFD_FLAG_RESAMPLE, self.descriptors[kind])
        else:
            self.vm.irqfd(fd, GSIS[gsi], KVM_IRQFD_FLAG_LEVEL if self.ledger.policy is not None else 0)

    def deassign(self, name: str, gsi: str) -> None:
        """I-"""
        self.vm.irqfd(self.descriptors[name], GSIS[gsi], KVM_IRQFD_FLAG_DEASSIGN)

    def listen(self, name: str, irqfd: str) -> None:
        """E+"""
        self.vm.eoifd(self.descriptors[name], KVM_EOIFD_FLAG_LEVEL_IRQFD, self.descriptors[irqfd])

    def unlisten(self, name: str, irqfd: str) -> None:
        """E-"""
        flags = KVM_EOIFD_FLAG_LEVEL_IRQFD | KVM_EOIFD_FLAG_DEASSIGN
        self.vm.eoifd(self.descriptors[name], flags, self.descriptors[irqfd])

    def close(self, name: str) -> None:
        """C"""
        self.files.close(self.descriptors[name])
        self.descriptors[name] = CLOSED

    def duplicate(self, name: str, new: str) -> None:
        """D"""
        if new in self.descriptors:
            raise UsageError(f"D {name} {new}: {new} is taken")
        self.descriptors[new] = self.files.dup(self.descriptors[name])
        self.ctx_of[new] = self.ctx_of[name]

    def signal(self, name: str) -> None:
        """SIG"""
        self.files.write(self.descriptors[name])

    def eoi(self, gsi: str) -> None:
        """EOI: the CPU takes the GSI's interrupt, if it has one, and ends it."""
        self.ended = bool(self.lapic.irr >> VECTORS[gsi] & 1)
        if self.ended:
            self.lapic.acknowledge(VECTORS[gsi])
            self.lapic.mmio_write(0xB0, 4, 0)

    def close_vm(self) -> None:
        """VM"""
        self.vm.close()

    def close_all(self) -> dict[str, str]:
        """Close the VM and every descriptor; what does not hold then (S2)."""
        self.do("VM")
        for name, fd in self.descriptors.items():
            if fd != CLOSED:
                self.do(f"C {name}", check=False)
        self.executor.drain()
        return broken(self.vm, self.ledger)


_ACTS: Final[dict[str, tuple[Callable[..., None], int, int]]] = {
    "I+": (Stage.assign, 2, 2),
    "I-": (Stage.deassign, 2, 2),
    "E+": (Stage.listen, 2, 0),
    "E-": (Stage.unlisten, 2, 0),
    "C": (Stage.close, 1, 0),
    "D": (Stage.duplicate, 2, 0),
    "SIG": (Stage.signal, 1, 0),
    "EOI": (Stage.eoi, 1, 1),
    "VM": (Stage.close_vm, 0, 0),
}
"""How it is done, how many names it takes at least, and which of them is a GSI."""


def play(operations: Sequence[str], policy: str, sources: int = 62) -> list[Came]:
    """A whole sequence on a stage of its own. The last step also tells of S2, and each close of S3."""
    stage = Stage(policy, sources)
    came = []
    for operation in operations:
        result = stage.do(operation)
        words = operation.split()
        if words[0] == "C" and result.result == "ok":
            wrong = stage.close_equals_deassign(words[1])
            if wrong:
                result.broken["S3"] = wrong
        came.append(result)
    came[-1].broken.update(stage.close_all())
    return came
