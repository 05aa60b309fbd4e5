"""The model beside the live KVM, over every order of what a user of an irqfd can do, up to a length.

    report = compare(depth=6)
    print(report)

An operation is one of: assign (KVM_IRQFD with a resamplefd), deassign, close, dup, signal, and the guest's EOI, on
eventfds and two level-triggered GSIs. Each sequence is run from a fresh start on both sides, until all that it queued
is done, and its last operation compared: errno, IRR, Remote IRR, the local APIC's IRR and ISR, the eventfds' counters.
What came before was compared when it was the end of a shorter sequence.

With one eventfd every order is run. Left out is only what is the same by name: the GSI that is named first is the lower
one, and nothing follows a call on an eventfd that has no descriptor (EBADF). With two eventfds there are millions, and
a sequence is not gone on with if a shorter one led to the same state of the model; `orders` counts what that stands
for.

Ref: Documentation/virt/kvm/api.rst, KVM_IRQFD; virt/kvm/eventfd.c
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import struct
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from devices.ioapic import REMOTE_IRR
from vmm.explore.heap import Arena
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC
from vmm.kernel.hostkvm import LAPIC_IRR, LAPIC_ISR, HostKvm, lapic_bits
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
from vmm.vectors.kvm import KvmReplay
from vmm.vectors.kvm_ops import EFD_NONBLOCK
from vmm.vectors.live import LAPIC_BASE, KvmLive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.queues import SimpleQueue

    from vmm.vectors.kvm_ops import EventFiles, VmIoctls

GSIS: Final = (5, 6)
VECTORS: Final = {5: 0x51, 6: 0x61}
ENTRY: Final = 0x8000
"""Level-triggered, unmasked; the vector is to be added."""
Kind = Literal["I+", "I-", "C", "D", "SIG", "EOI"]
QUEUES: Final = ("I+", "C", "SIG")
"""Operations that leave something to be done; a deassign waits for what it has queued."""
Sequence_ = tuple[int, ...]
_IOAPIC = struct.Struct("<Q4I24Q")


class Op(NamedTuple):
    """One operation; `name` of an eventfd, `gsi` of a GSI or 0."""

    kind: Kind
    name: str = ""
    gsi: int = 0

    def __str__(self) -> str:
        return " ".join(str(word) for word in self if word)


class Seen(NamedTuple):
    """What can be seen after an operation. `counts`: of each eventfd and resamplefd, None without a descriptor."""

    result: str
    irr: int
    remote_irr: tuple[bool, ...]
    lapic_irr: int
    lapic_isr: int
    counts: tuple[int | None, ...]

    def __str__(self) -> str:
        pins = ", ".join(
            f"GSI {gsi} IRR {self.irr >> gsi & 1} remote IRR {int(remote)}"
            for gsi, remote in zip(GSIS, self.remote_irr, strict=True)
        )
        return f"{self.result}; {pins}; LAPIC IRR {self.lapic_irr:#x} ISR {self.lapic_isr:#x}; counts {self.counts}"


def alphabet(eventfds: int) -> tuple[Op, ...]:
    """All operations; those on GSIs in pairs, the lower one first."""
    ops: list[Op] = []
    for name in names(eventfds):
        ops += [Op(kind, name, gsi) for kind in ("I+", "I-") for gsi in GSIS]
        ops += [Op(kind, name) for kind in ("C", "D", "SIG")]
    return (*ops, *(Op("EOI", "", gsi) for gsi in GSIS))


def names(eventfds: int) -> tuple[str, ...]:
    """Of eventfds: e, f. Their resamplefds are r-e, r-f."""
    return ("e", "f")[:eventfds]


class Side:
    """What both sides have in common: descriptors, and operations that come to an errno's name."""

    vm: VmIoctls
    files: EventFiles

    def __init__(self, eventfds: int) -> None:
        self.names = names(eventfds)
        self.open: dict[str, list[int]] = {}
        self.resamplefds: dict[str, int] = {}

    def begin(self) -> None:
        """Open the eventfds."""
        for name in self.names:
            self.open[name] = [self.files.eventfd(0, EFD_NONBLOCK, name)]
            self.resamplefds[name] = self.files.eventfd(0, EFD_NONBLOCK, f"r-{name}")

    def do(self, op: Op) -> str:
        """One operation, until what it queued is done: `ok` or an errno."""
        try:
            self._act(op)
            result = "ok"
        except OSError as error:
            result = errno.errorcode.get(error.errno or 0, "?")
        if op.kind in QUEUES:
            self.settle()
        return result

    def _act(self, op: Op) -> None:
        if op.kind == "EOI":
            self.end(VECTORS[op.gsi])
            return
        fds = self.open[op.name]
        fd = fds[-1] if fds else -1
        if op.kind == "I+":
            self.vm.irqfd(fd, op.gsi, KVM_IRQFD_FLAG_RESAMPLE, self.resamplefds[op.name])
        elif op.kind == "I-":
            self.vm.irqfd(fd, op.gsi, KVM_IRQFD_FLAG_DEASSIGN)
        elif op.kind == "SIG":
            self.files.write(fd, 1)
        elif op.kind == "D":
            fds.append(self.files.dup(fd))
        else:
            self.files.close(fds.pop(0) if fds else -1)

    def see(self, result: str) -> Seen:
        """Look at everything; reads the eventfds, so nothing is compared after it."""
        irr, entries = self.chip()
        lapic_irr, lapic_isr = self.lapic()
        counts = []
        for name in self.names:
            fds = self.open[name]
            counts += [self._count(fds[-1]) if fds else None, self._count(self.resamplefds[name])]
        remote = tuple(bool(entries[gsi] & REMOTE_IRR) for gsi in GSIS)
        return Seen(result, irr, remote, lapic_irr, lapic_isr, tuple(counts))

    def _count(self, fd: int) -> int:
        try:
            return self.files.read(fd)
        except BlockingIOError:
            return 0

    # What the sides do differently.

    def settle(self) -> None:
        """Let what is queued happen."""
        raise NotImplementedError

    def end(self, vector: int) -> None:
        """The guest takes the interrupt if it is pending, and writes its EOI register in any case."""
        raise NotImplementedError

    def chip(self) -> tuple[int, Sequence[int]]:
        """The IOAPIC's IRR and redirection table."""
        raise NotImplementedError

    def lapic(self) -> tuple[int, int]:
        """The local APIC's IRR and ISR, 256 bits each."""
        raise NotImplementedError


class ModelSide(Side):
    """Our kernel, I/O APIC and local APIC."""

    def __init__(self, eventfds: int) -> None:
        super().__init__(eventfds)
        self.replay = KvmReplay()
        for gsi in GSIS:
            self.replay.op_redir(gsi, f"{ENTRY | VECTORS[gsi]:x}")
        self.vm, self.files = self.replay.vm, self.replay.files
        self.begin()
        self._ctxs = {name: self._ctx(fds[0]) for name, fds in self.open.items()}
        self._fds = {name: fds[0] for name, fds in self.open.items()}
        roots = (self.replay.vm, self.replay.files, self.replay.executor, self.replay.ioapic, self.replay.bus)
        self.replay.bus.changed()  # its tables are made anew when they are asked for, so none are there to be kept
        self._arena = Arena(*roots, *self.replay.cpus)
        self._start = self._arena.take()

    def _ctx(self, fd: int) -> Any:
        return self.replay.files.file(fd).ctx  # type: ignore[attr-defined]

    def reset(self) -> None:
        """As it was."""
        self._arena.put(self._start)
        self.open = {name: [fd] for name, fd in self._fds.items()}

    def settle(self) -> None:
        self.replay.executor.drain()

    def end(self, vector: int) -> None:
        lapic = self.replay.cpus[0]
        if lapic.irr >> vector & 1:
            lapic.acknowledge(vector)
            self.replay.bus.changed()
            self.replay.ioapic.restore_rtc(lapic)
        self.replay.op_eoi(0)

    def chip(self) -> tuple[int, Sequence[int]]:
        return self.replay.ioapic.irr, self.replay.ioapic.redir

    def lapic(self) -> tuple[int, int]:
        lapic = self.replay.cpus[0]
        return lapic.irr, lapic.isr

    def state(self) -> tuple[object, ...]:
        """All on which the future depends, and nothing else."""
        chip, lapic = self.replay.ioapic, self.replay.cpus[0]
        eventfds = tuple((len(self.open[name]), ctx.count > 0) for name, ctx in self._ctxs.items())
        known = {id(ctx): name for name, ctx in self._ctxs.items()}
        irqfds = tuple((known[id(item.ctx)], item.gsi) for item in self.replay.vm.irqfds.items)
        members = tuple((r.gsi, tuple(known[id(m.ctx)] for m in r.members)) for r in self.replay.vm.irqfds.resamplers)
        pins = tuple((chip.sources[gsi], chip.redir[gsi]) for gsi in GSIS)
        return eventfds, irqfds, members, pins, chip.irr, lapic.irr, lapic.isr, lapic.tmr


class LiveSide(Side):
    """The real KVM. The thread is pinned to a CPU until `close`. EngineRefused, EngineError."""

    def __init__(self, kvm: HostKvm, eventfds: int) -> None:
        super().__init__(eventfds)
        self.live = KvmLive(kvm)
        for gsi in GSIS:
            self.live.op_redir(gsi, f"{ENTRY | VECTORS[gsi]:x}")
        self.vm, self.files = self.live.vm, self.live.files
        self.cpu, self.guest = self.live.cpus[0], self.live.guest
        self._chip = self.live.vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
        self._page = bytes(self.cpu.get_lapic())

    def reset(self) -> None:
        """Everything closed and lowered, the chips as they were, new eventfds."""
        for fds in self.open.values():
            if fds:
                for gsi in GSIS:
                    self.vm.irqfd(fds[-1], gsi, KVM_IRQFD_FLAG_DEASSIGN)
        self.live.files.close_all()
        if any(not fds for fds in self.open.values()):
            self.settle()  # an irqfd that was closed, not deassigned
        self.live.vm.set_irqchip(KVM_IRQCHIP_IOAPIC, self._chip)
        self.cpu.set_lapic(bytearray(self._page))
        self.guest.call(self.cpu, "ready")
        self.begin()

    def close(self) -> None:
        """Close the VM."""
        self.live.close()

    def settle(self) -> None:
        self.live.vm.settle()

    def end(self, vector: int) -> None:
        page = self.cpu.get_lapic()
        place, bit = vector // 32 * 16 + vector % 32 // 8, 1 << vector % 8
        if page[LAPIC_IRR + place] & bit:
            page[LAPIC_IRR + place] ^= bit
            page[LAPIC_ISR + place] |= bit
            self.cpu.set_lapic(page)
        self.guest.call(self.cpu, "write32", LAPIC_BASE + 0xB0, 0)

    def chip(self) -> tuple[int, Sequence[int]]:
        _, _, _, irr, _, *entries = _IOAPIC.unpack(self.vm.get_irqchip(KVM_IRQCHIP_IOAPIC))
        return irr, entries

    def lapic(self) -> tuple[int, int]:
        page = self.cpu.get_lapic()
        return lapic_bits(page, LAPIC_IRR), lapic_bits(page, LAPIC_ISR)


@dataclass(frozen=True, slots=True)
class Difference:
    """A sequence whose last operation comes to something else on the live KVM."""

    sequence: tuple[str, ...]
    model: Seen
    kernel: Seen

    def __str__(self) -> str:
        lines = [", ".join(self.sequence)]
        return "\n".join([*lines, f"  model:  {self.model}", f"  kernel: {self.kernel}"])


@dataclass(slots=True)
class Report:
    """`sequences` were run on both sides; they stand for `orders` (the GSIs' names exchanged, or merged states)."""

    depth: int
    eventfds: int
    sequences: int = 0
    orders: int = 0
    seconds: float = 0.0
    differences: list[Difference] = field(default_factory=list)

    def __str__(self) -> str:
        text = (
            f"every order of up to {self.depth} operations on {self.eventfds} eventfd{'s' * (self.eventfds > 1)} and "
        )
        text += f"{len(GSIS)} GSIs: {self.orders:,} orders, {self.sequences:,} sequences run on both, "
        return text + f"{len(self.differences)} differ; {self.seconds:.0f} s"


LIMIT: Final = 20
"""Differences that are kept of a report; one is enough to look into."""


class _Walk:
    """Runs sequences on both sides."""

    def __init__(self, kvm: HostKvm, eventfds: int, report: Report) -> None:
        self.ops = alphabet(eventfds)
        self.model = ModelSide(eventfds)
        self.live = LiveSide(kvm, eventfds)
        self.report = report

    def run(self, sequence: Sequence_) -> tuple[bool, object]:
        """One sequence: whether anything can follow it, and the model's state."""
        model, live = self.model, self.live
        model.reset()
        live.reset()
        mine = real = ""
        for n in sequence:
            op = self.ops[n]
            mine, real = model.do(op), live.do(op)
        state = model.state()
        ours, theirs = model.see(mine), live.see(real)
        self.report.sequences += 1
        if ours != theirs and len(self.report.differences) < LIMIT:
            self.report.differences.append(Difference(tuple(str(self.ops[n]) for n in sequence), ours, theirs))
        return mine != "EBADF", state

    def following(self, sequence: Sequence_) -> Iterator[int]:
        """What may come next. While no GSI was named, only the lower one may be."""
        free = all(not self.ops[n].gsi for n in sequence)
        for n, op in enumerate(self.ops):
            if not (free and op.gsi == GSIS[1]):
                yield n

    def below(self, sequence: Sequence_, depth: int) -> None:
        """A sequence, and all that begin with it."""
        goes_on, _ = self.run(sequence)
        self.report.orders += 1 if all(not self.ops[n].gsi for n in sequence) else 2
        if goes_on and len(sequence) < depth:
            for n in self.following(sequence):
                self.below((*sequence, n), depth)


def _take_cpu(cpus: SimpleQueue[int]) -> None:
    """Each process has a CPU of its own: two that wait for the kernel's works on one would keep them waiting."""
    os.sched_setaffinity(0, {cpus.get()})


def _subtree(begin: Sequence_, depth: int, path: str) -> Report:
    """In a process of its own: every sequence that begins with `begin`."""
    report = Report(depth, 1)
    with HostKvm(path) as kvm, contextlib.closing(_Closing(kvm, 1, report)) as walk:
        walk.below(begin, depth)
    return report


class _Closing(_Walk):
    def close(self) -> None:
        self.live.close()


def compare(
    depth: int,
    eventfds: int = 1,
    jobs: int = 0,
    path: str = "/dev/kvm",
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """All orders up to `depth` on both sides. `jobs`: processes, 0 for one per CPU. EngineRefused, EngineError."""
    began = time.monotonic()
    report = _merged(depth, eventfds, path) if eventfds > 1 else _every(depth, jobs, path, on_progress)
    report.seconds = time.monotonic() - began
    return report


def _every(depth: int, jobs: int, path: str, on_progress: Callable[[int, int], None] | None) -> Report:
    total = Report(depth, 1)
    cpus = sorted(os.sched_getaffinity(0))
    jobs = min(jobs or len(cpus), len(cpus))
    with HostKvm(path) as kvm, contextlib.closing(_Closing(kvm, 1, total)) as walk:
        first = [(n,) for n in walk.following(())]
        begins: list[Sequence_] = []
        for sequence in first:
            goes_on, _ = walk.run(sequence)
            total.orders += 1 + bool(walk.ops[sequence[0]].gsi)
            if goes_on and depth > 1:
                begins += [(*sequence, n) for n in walk.following(sequence)]
        if jobs <= 1 or depth < 4:
            for begin in begins:
                walk.below(begin, depth)
            return total
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for cpu in cpus:
        free.put(cpu)
    with ProcessPoolExecutor(jobs, context, _take_cpu, (free,)) as pool:
        futures = [pool.submit(_subtree, begin, depth, path) for begin in begins]
        for done, future in enumerate(futures, 1):
            part = future.result()
            total.sequences += part.sequences
            total.orders += part.orders
            total.differences += part.differences[: LIMIT - len(total.differences)]
            if on_progress is not None:
                on_progress(done, len(futures))
    return total


def _merged(depth: int, eventfds: int, path: str) -> Report:
    report = Report(depth, eventfds)
    with HostKvm(path) as kvm, contextlib.closing(_Closing(kvm, eventfds, report)) as walk:
        seen: set[object] = set()
        level: list[Sequence_] = [()]
        graph: dict[object, list[object]] = {}
        start: object = walk.model.state()
        states: dict[Sequence_, object] = {(): start}
        seen.add(start)
        for _ in range(depth):
            following: list[Sequence_] = []
            for sequence in level:
                here = states.pop(sequence)
                edges = graph[here] = []
                for n in range(len(walk.ops)):
                    longer = (*sequence, n)
                    goes_on, state = walk.run(longer)
                    edges.append(state if goes_on else None)
                    if goes_on and state not in seen:
                        seen.add(state)
                        states[longer] = state
                        following.append(longer)
            level = following
    ways: dict[object, int] = {start: 1}
    for _ in range(depth):
        longer_ways: dict[object, int] = {}
        for state, times in ways.items():
            for target in graph.get(state, ()):
                report.orders += times
                if target is not None:
                    longer_ways[target] = longer_ways.get(target, 0) + times
        ways = longer_ways
    return report
