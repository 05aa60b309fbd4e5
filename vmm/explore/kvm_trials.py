"""Scenes run by real threads on the live KVM, again and again: what is seen there is among what the explorer found.

    trial = Trial(family, "assign")
    report = trial.run(kvm, 500)
    assert not report.strange

The threads of a scene start together, wait a random while before each call, and are not held anywhere: which order the
kernel gives them is chance. What can be seen when all that they queued is done is the *outcome*: what each call came
to, the pin's IRR and Remote IRR, the local APIC's IRR and ISR, the counters of the eventfds that still have a
descriptor. An outcome that no order of the explorer has would be a fault of the model.

A write to an eventfd that is closed meanwhile is EBADF there; in a scene it is signalled by whoever holds its context.
So what a signal came to is not compared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from devices.ioapic import REMOTE_IRR
from vmm.explore import scenes, user_calls
from vmm.explore.against_kvm import ENTRY, LiveSide
from vmm.explore.chip import FIRST_VECTOR
from vmm.explore.parts import GSI
from vmm.explore.search import explore
from vmm.kernel.hostkvm import LAPIC_IRR, lapic_bits
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE

if TYPE_CHECKING:
    from vmm.explore.board import Board
    from vmm.explore.scenes import Family
    from vmm.explore.user_calls import UserCall
    from vmm.kernel.hostkvm import HostKvm

LONGEST_WAIT = 200e-6
"""Seconds before a call: what a few calls and wake-ups of threads take."""


class Outcome(NamedTuple):
    """What can be seen in the end. `results`: of each thread's calls, signals left out; `counts`: by eventfd."""

    results: tuple[tuple[str, tuple[str, ...]], ...]
    irr: bool
    remote_irr: bool
    requested: bool
    in_service: bool
    counts: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        calls = "; ".join(f"{thread}: {', '.join(found) or 'nothing'}" for thread, found in self.results)
        counts = " ".join(f"{name}={count}" for name, count in self.counts)
        pin = f"IRR {self.irr:d} remote IRR {self.remote_irr:d}"
        return f"{calls}; {pin}, LAPIC IRR {self.requested:d} ISR {self.in_service:d}; {counts}"


@dataclass(slots=True)
class Report:
    """`seen`: each outcome on the live KVM and how often; `explored`: all that some order has."""

    scene: str
    trials: int
    explored: set[Outcome]
    seen: dict[Outcome, int] = field(default_factory=dict)
    states: int = 0

    @property
    def strange(self) -> list[Outcome]:
        """Outcomes that no order has."""
        return [outcome for outcome in self.seen if outcome not in self.explored]

    def __str__(self) -> str:
        text = f"{self.scene}: {self.trials} trials had {len(self.seen)} of the {len(self.explored)} outcomes that "
        return text + f"{self.states} states lead to, and {len(self.strange)} others"


class Trial:
    """One scene. NotKvms if the real KVM cannot play it."""

    def __init__(self, family: Family, scene: str) -> None:
        self.scene = scene
        board, scenario = scenes.set_up(family, scene, scenes.Setup())
        self.beginning = user_calls.beginning(board)
        self.threads = user_calls.threads(scenario)
        if any(call.kind in ("VM", "route") for calls in self.threads.values() for call in calls):
            raise user_calls.NotKvms("what is left of a VM that is closed cannot be looked at")
        self.explored: set[Outcome] = set()

        def note() -> None:
            self.explored.add(self._model(board))

        self.states = explore(scenario._replace(always=None, at_rest=note, live=(), atomic=None)).states

    def _model(self, board: Board) -> Outcome:
        results = tuple((name, _compared(board.results(name))) for name in self.threads)
        pin = board.pin
        closed = board.ledger().closed
        counts = tuple((name, ctx.count) for name, ctx in board.eventfds().items() if ctx not in closed)
        return Outcome(results, pin.irr, pin.remote_irr, pin.requested, pin.in_service, counts)

    def run(self, kvm: HostKvm, trials: int, seed: int = 0) -> Report:
        """So many trials. EngineRefused, EngineError."""
        report = Report(self.scene, trials, self.explored, states=self.states)
        draw = random.Random(seed)
        with contextlib.closing(_Host(kvm)) as host:
            for _ in range(trials):
                outcome = host.play(self, draw)
                report.seen[outcome] = report.seen.get(outcome, 0) + 1
        return report


def _compared(results: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(result for result in results if not result.startswith("SIG "))


class _Host(LiveSide):
    """A VM for trials; its one thread that looks is pinned, those that act are not."""

    def __init__(self, kvm: HostKvm) -> None:
        super().__init__(kvm, 0)
        self.live.op_redir(GSI, f"{ENTRY | FIRST_VECTOR:x}")
        self._chip = self.live.vm.get_irqchip(2)
        self._cpus = sorted(os.sched_getaffinity(os.getppid())) or [0]
        self._fds: dict[str, int] = {}
        self._over = threading.Event()

    def play(self, trial: Trial, draw: random.Random) -> Outcome:
        """One trial."""
        self._fds = {}
        self.open = {}
        for name, count, semaphore in trial.beginning.eventfds:
            self._fds[name] = self.files.eventfd(count, os.EFD_NONBLOCK | semaphore * os.EFD_SEMAPHORE, name)
        for name, gsi, resamplefd in trial.beginning.irqfds:
            self._assign(name, gsi, resamplefd)
        results: dict[str, list[str]] = {name: [] for name in trial.threads}
        waits = {name: [draw.random() * LONGEST_WAIT for _ in calls] for name, calls in trial.threads.items()}
        self._over.clear()
        start = threading.Barrier(len(trial.threads))
        threads = {
            name: threading.Thread(target=self._live_through, args=(calls, waits[name], results[name], start))
            for name, calls in trial.threads.items()
        }
        for thread in threads.values():
            thread.start()
        guests = {name for name, calls in trial.threads.items() if any(call.kind == "take" for call in calls)}
        for name in threads.keys() - guests:
            threads[name].join()
        self._settle_everywhere()
        self._over.set()
        for thread in threads.values():
            thread.join()
        outcome = self._look({name: tuple(found) for name, found in results.items()})
        for name, fd in self._fds.items():
            if fd >= 0:
                self.vm.irqfd(fd, GSI, KVM_IRQFD_FLAG_DEASSIGN)
                self.files.close(fd)
                self._fds[name] = -1
        self.reset()
        return outcome

    def _assign(self, name: str, gsi: int, resamplefd: str) -> None:
        flags = KVM_IRQFD_FLAG_RESAMPLE if resamplefd else 0
        self.vm.irqfd(self._fds[name], gsi, flags, self._fds[resamplefd] if resamplefd else 0)

    def _settle_everywhere(self) -> None:
        """An injection is queued on the CPU of who wrote the eventfd."""
        mine = os.sched_getaffinity(0)
        for cpu in self._cpus:
            os.sched_setaffinity(0, {cpu})
            self.settle()
        os.sched_setaffinity(0, mine)

    def _live_through(
        self, calls: list[UserCall], waits: list[float], results: list[str], start: threading.Barrier
    ) -> None:
        os.sched_setaffinity(0, set(self._cpus))
        start.wait()
        for call, wait in zip(calls, waits, strict=True):
            time.sleep(wait)
            if call.kind == "take":
                if not self._take():
                    return
                result = "ok"
            else:
                try:
                    self._call(call)
                    result = "ok"
                except OSError as error:
                    result = errno.errorcode.get(error.errno or 0, "?")
            if call.kind != "SIG":
                results.append(f"{call.text} = {result}")

    def _call(self, call: UserCall) -> None:
        words = call.words
        if call.kind == "I+":
            edge = len(words) < 2 or words[1] == "edge"
            self._assign(words[0], GSI, "" if edge else words[1])
        elif call.kind == "I-":
            self.vm.irqfd(self._fds[words[0]], GSI, KVM_IRQFD_FLAG_DEASSIGN)
        elif call.kind == "C":
            fd, self._fds[words[0]] = self._fds[words[0]], -1
            self.files.close(fd)
        elif call.kind == "SIG":
            self.files.write(self._fds[words[0]], 1)
        elif call.kind == "line":
            self.vm.irq_line(GSI, call.value)
        elif call.kind == "EOI":
            self.guest.call(self.cpu, "write32", 0xFEE0_00B0, 0)
        else:
            entry = ENTRY | FIRST_VECTOR | (call.kind == "mask") << 16
            self.guest.call(self.cpu, "wreg", 0x10 + 2 * GSI, entry)

    def _take(self) -> bool:
        """Wait for an interrupt and take it; False if there is none, and everybody else is done."""
        while True:
            over = self._over.is_set()
            if lapic_bits(self.cpu.get_lapic(), LAPIC_IRR) >> FIRST_VECTOR & 1:
                return self.cpu.acknowledge() == FIRST_VECTOR
            if over:
                return False

    def _look(self, results: dict[str, tuple[str, ...]]) -> Outcome:
        irr, entries = self.chip()
        requested, in_service = self.lapic()
        counts = tuple((name, self._count(fd)) for name, fd in self._fds.items() if fd >= 0)
        return Outcome(
            tuple(results.items()),
            bool(irr >> GSI & 1),
            bool(entries[GSI] & REMOTE_IRR),
            bool(requested >> FIRST_VECTOR & 1),
            bool(in_service >> FIRST_VECTOR & 1),
            counts,
        )
