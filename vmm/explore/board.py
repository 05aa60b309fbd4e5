"""The board that a scenario is written on: one VM, one level-triggered GSI, eventfds, devices, and threads that act.

    def explore_removal(board):
        user, other = board.thread("user"), board.thread("other")
        user.assign("e1", eoi="e2")
        other.deassign("e1")

Each call of a thread becomes an operation of the explorer; when it has returned, its result is judged by the
invariants that speak of one operation, and where nobody can act any more those that speak of a state are asked.
docs/explore.md is the guide.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from devices.ioapic_kvm import KvmIoApic
from devices.ioapic_qemu import QemuIoApic
from devices.vfio_irqs import VfioIntx
from vmm.errors import UsageError
from vmm.explore import rules
from vmm.explore.actors import Actor, NotDeterministic, Operation
from vmm.explore.alone import Atomic
from vmm.explore.calls import Acting, Call
from vmm.explore.chip import Chips
from vmm.explore.heap import Arena
from vmm.explore.own_code import Outside, callable_or_refuse, is_own, refuse_what_is_not_kept, state_or_refuse
from vmm.explore.parts import GSI, Guest, Hardware, Thread, Timer, Worker
from vmm.explore.search import Scenario
from vmm.kernel import invariants
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_LEVEL_IRQFD, KVM_IRQFD_FLAG_LEVEL, EoiIrqfds
from vmm.kernel.files import DescriptorTable, EventfdCtx, EventFile
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.invariants import Ledger
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_RESAMPLE, Irqfds
from vmm.kernel.kvm import Vm
from vmm.order import Executor, State, Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from devices.ioapic import IoApic
    from vmm.explore.actors import Guard
    from vmm.explore.search import Check
    from vmm.order import WorkQueue


ACTORS = 120
"""At most; a state has a byte for each step's actor."""


class Parts(NamedTuple):
    """The classes that a board is made of; a historical bug exchanges one of them."""

    irqfds: type[Irqfds] = Irqfds
    eoi_irqfds: type[EoiIrqfds] = EoiIrqfds
    intx: type[VfioIntx] = VfioIntx
    ctx: type[EventfdCtx] = EventfdCtx
    ioapic: type[IoApic] | None = None
    """None: the kernel's, or QEMU's if the irqchip is split."""
    chips: type[Chips] = Chips
    vm: type[Vm] = Vm
    hardware: type[Hardware] = Hardware
    monitor: type[Any] | None = None
    """Of a scene that has one: the monitor's side."""


class Board:
    """See the module. `policy` and `era`: irqfd-policy and irqfd-era; `sources`: how many irq source ids there are to
    give out (all that there are, if None); `parts`: classes other than the real ones; `scale`: scenes may be that much
    larger than they are shipped. With a split irqchip the I/O APIC is QEMU's, in user space.

    ConfigError, UsageError for what is not there.
    """

    def __init__(
        self,
        policy: str = "resample",
        era: str | None = None,
        sources: int | None = None,
        parts: Parts = Parts(),  # noqa: B008
        irqchip: Literal["full", "split"] = "full",
        scale: int = 1,
    ) -> None:
        self.scale = scale
        slots = {"__slots__": (), "irqfds_class": parts.irqfds, "eoi_irqfds_class": parts.eoi_irqfds}
        kind: type[Vm] = type("BoardVm", (parts.vm,), slots)
        self.parts = parts
        self.executor = Executor()
        self.files = DescriptorTable()
        self.vm = kind(self.files, self.executor, era_name=era, policy_name=policy, irqchip=irqchip)
        ioapic = parts.ioapic or (KvmIoApic if irqchip == "full" else QemuIoApic)
        # A class of its own, so that a scene may set its limits.
        self.chip_class: type[IoApic] = type("BoardIoApic", (ioapic,), {"__slots__": (), "WIRING": ()})
        self.chips = parts.chips(self.vm.trace, self.vm.irqfds.inject_queue, self.chip_class)
        if irqchip == "full":
            self.vm.connect(self.chips.ioapic, bus=self.chips.bus)
            self.vm.set_gsi_routing([Route.irqchip(GSI, KVM_IRQCHIP_IOAPIC, GSI)])
        else:
            self.vm.connect(bus=self.chips.bus)
        self.pin = self.chips.pin(GSI)
        self.static = tuple(Ledger(self.vm).static)
        pool = self.vm.gsis.sources
        if sources is not None:
            if not 0 <= sources <= pool.capacity - len(self.static):
                raise UsageError(f"{sources} source ids: a VM has from 0 to {pool.capacity - len(self.static)}")
            pool.capacity = len(self.static) + sources
        self.devices: list[Hardware] = []
        self._fds: dict[str, int] = {}
        self._ctxs: dict[str, EventfdCtx] = {}
        self._acting: dict[str, Acting] = {}
        self._threads: dict[str, Thread] = {}
        self._for_ever = False
        self._always: Check | None = None
        self._at_rest: Check | None = None
        self._states: list[State] = []
        self._guests: list[Actor] = []
        self._workers: tuple[Actor, ...] | None = None
        self.nests_locks = False
        self._own: list[object] = []
        """The scene's own functions that act."""
        self._outside: Outside | None = None
        self.remarks: list[str] = []
        """What may not be meant, or is not asked."""
        self.assigns = 0
        """How many calls of the scene's threads assign an irqfd."""
        self._live: list[tuple[str, Callable[[], bool]]] = []
        self._returns = False
        self.compare: Check | None = None
        """S3, for who explores two scenes: asked before the other invariants."""
        self.notes: dict[str, str] | None = None
        """Where what is wrong is noted, by its rule, and the search goes on. None: the first is reported."""

    def __repr__(self) -> str:
        return f"<board {self.vm.era.name}>"

    @property
    def merged(self) -> bool:
        """One object, one assign: there is no KVM_EOIFD."""
        return not isinstance(self.vm.irqfds, EoiIrqfds)

    # Writing a scenario.

    def thread(self, name: str, any_order: bool = False, unordered: bool = False, for_ever: bool = False) -> Acting:
        """A new thread. `unordered`: in which order its calls came is forgotten, for many calls in any order;
        `for_ever`: when it has made its calls it begins anew, unless it stops between two of them, as it may. What one
        call comes to is not judged then, neither its nor another's.

        UsageError if there is one of that name, or if calls are to come for ever and in any order.
        """
        if name in self._acting:
            raise UsageError(f"there is a thread {name!r} already")
        if any_order and for_ever:
            raise UsageError(f"thread {name!r} makes its calls for ever, or in any order, not both")
        thread = self._threads[name] = Thread(name, unordered, for_ever)
        self._for_ever |= for_ever
        acting = self._acting[name] = Acting(self, thread, any_order)
        return acting

    def eventfd(self, name: str, count: int = 0, semaphore: bool = False) -> int:
        """A new eventfd: its descriptor. UsageError if there is one of that name."""
        if not isinstance(name, str) or not name or not name.isprintable() or " " in name:
            raise UsageError(f"{name!r} is no name of an eventfd: a text without blanks")
        if name in self._fds:
            raise UsageError(f"there is an eventfd {name!r} already")
        ctx = self.parts.ctx(self.files.domain, name, count, semaphore)
        file = EventFile(ctx)
        file.nonblock = True
        self._ctxs[name] = ctx
        fd = self._fds[name] = self.files.install(file)
        return fd

    def vfio(self, name: str, assign: bool = True, irqfd: bool = True) -> Hardware:
        """A device behind VFIO: eventfds NAME.trigger and NAME.unmask, the irqfd and its resamplefd.

        Not yet assigned if not `assign`; without `irqfd` user space holds both eventfds.
        """
        hardware = self.parts.hardware(name)
        hardware.intx = self.parts.intx(name, hardware, self.files, self.executor, self.vm.trace)
        trigger, unmask = f"{name}.trigger", f"{name}.unmask"
        self.eventfd(trigger)
        self.eventfd(unmask)
        self.devices.append(hardware)
        if irqfd:
            hardware.intx.enable(self.held(trigger))
            hardware.intx.enable_virqfd(self.fd(unmask))
            if assign:
                self.vm.irqfd(self.fd(trigger), GSI, KVM_IRQFD_FLAG_RESAMPLE, self.fd(unmask))
        return hardware

    def bind(self, name: str, eoi: str) -> None:
        """Before anybody acts: an irqfd on `name`, and `eoi` told of its EOIs (resamplefd or eoifd)."""
        fd, other = self.fd(name), self.fd(eoi)
        if self.merged:
            self.vm.irqfd(fd, GSI, KVM_IRQFD_FLAG_RESAMPLE, other)
        else:
            self.vm.irqfd(fd, GSI, KVM_IRQFD_FLAG_LEVEL)
            self.vm.eoifd(other, KVM_EOIFD_FLAG_LEVEL_IRQFD, fd)

    def always(self, check: Check) -> None:
        """Ask `check` in every state: a text says what is wrong, None that nothing is."""
        self._always = _text_or_none(check)

    def at_rest(self, check: Check) -> None:
        """Ask `check` wherever nobody can act any more."""
        self._at_rest = _text_or_none(check)

    def live(self, rule: str, goal: Callable[[], bool]) -> None:
        """`goal` (pure) comes true again and again, whatever happens; else `rule` is broken."""
        callable_or_refuse(goal, "a goal")
        self._live.append((rule, goal))

    def guest(self, serve: bool = True) -> None:
        """A CPU that takes each interrupt there is, lets the devices be served if `serve`, and ends it: for ever."""
        guest = Guest(self.pin, tuple(self.devices) if serve else ())
        self._states.append(guest)
        self._guests.append(Actor("guest", (Operation("interrupt", guest.interrupt, self.pin.can_take),), repeats=True))

    def throttle(self, limit: int, when: Guard | None = None) -> None:
        """So many EOIs in a row with the line high delay the next delivery, until a timer that may expire any time, or
        only `when` it may.
        """
        self.chip_class.max_successive_eois = limit
        timer = Timer(self.chips.ioapic.eoi_inject, when)
        self._states.append(timer)
        self._guests.append(Actor("timer", (Operation("expire", timer.expire, timer.is_armed),), repeats=True))

    def worker(self, name: str, function: Callable[[], object], ready: Guard) -> None:
        """One more that acts again and again, whenever it is `ready`; what it makes must have an end (`order.Mortal`).

        Its doings are nobody's calls: what others' come to is judged as if it had done nothing.
        """
        self.own(function, "what a worker does")
        self.own(ready, "when a worker is ready")
        self._guests.append(Actor(name, (Operation(name, function, ready, is_own(function)),), repeats=True))

    def pool(self, *workers: Actor) -> None:
        """Other workers than one for each queue."""
        self._workers = workers

    def eventually(self, *numbers: str) -> None:
        """Goals of `vmm.explore.rules`: each comes true again and again. L4 is one of each thread."""
        for number in numbers:
            if number == "L4":
                self._returns = True
            elif number in rules.GOALS:
                self.live(number, partial(rules.GOALS[number], self))
            else:
                raise UsageError(f"there is no goal {number!r}; there are {', '.join(sorted({'L4', *rules.GOALS}))}")

    def nest_locks(self) -> None:
        """Ask S15 of the scene as well: locks are taken in one order."""
        self.nests_locks = True

    def another_cpu(self) -> int:
        """One more CPU: its number."""
        return self.chips.add_cpu()

    def refuse_cpu(self, cpu: int) -> None:
        """UsageError for a CPU that there is not."""
        count = len(self.chips.lapics)
        if cpu not in range(count):
            raise UsageError(f"there is no CPU {cpu!r}; there are {count}, from 0, and board.another_cpu() adds one")

    def state(self, *objects: State) -> None:
        """Objects of the scenario's own that operations change."""
        self._states += map(state_or_refuse, objects)

    @property
    def has_own_code(self) -> bool:
        """Functions of the scene's own act."""
        return bool(self._own)

    def own(self, function: object, what: str) -> None:
        """Something of the scene's own acts, or says when somebody may: UsageError if it is no function."""
        callable_or_refuse(function, what)
        self._own.append(function)

    def refuse_what_changed(self) -> None:
        """NotDeterministic if the scene's own functions have changed what the search does not put back."""
        changed = self._outside.changed() if self._outside is not None else None
        if changed is None:
            return
        name, function = changed
        fault = NotDeterministic(
            f"{name!r} changes, and is no State that the board knows, so it is not put back when another order is "
            f"tried: keep it in a vmm.order.State, and name that by board.state()"
        )
        fault.where = function.__code__.co_filename, function.__code__.co_firstlineno
        raise fault

    # Asking.

    def fd(self, name: str) -> int:
        """The descriptor of an eventfd, opened if there is none yet."""
        return self._fds[name] if name in self._fds else self.eventfd(name)

    def ctx(self, name: str) -> EventfdCtx:
        """The context of an eventfd."""
        self.fd(name)
        return self._ctxs[name]

    def eventfds(self) -> dict[str, EventfdCtx]:
        """All that were opened, by name."""
        return dict(self._ctxs)

    def held(self, name: str) -> EventfdCtx:
        """The same with a reference of the caller's own."""
        return self.ctx(name).get()

    def device(self, name: str) -> Hardware:
        """A device. UsageError."""
        for hardware in self.devices:
            if hardware.name == name:
                return hardware
        raise UsageError(f"there is no device {name!r}; there are {', '.join(d.name for d in self.devices) or 'none'}")

    def results(self, thread: str) -> tuple[str, ...]:
        """What the calls of a thread came to so far, as `I+ e1 = ok`. UsageError."""
        if thread not in self._threads:
            raise UsageError(f"there is no thread {thread!r}; there are {', '.join(self._threads) or 'none'}")
        return self._threads[thread].results

    def result_of(self, thread: str) -> str:
        """What the last call of a thread came to; empty if it is none of the scenario's, or has made none."""
        found = self._threads.get(thread)
        return found.results[-1] if found is not None and found.results and not found.unordered else ""

    def failure_of(self, thread: str) -> str:
        """The same, if it failed."""
        result = self.result_of(thread)
        return "" if result.endswith("= ok") else result

    def is_quiet(self, acting: int = 0) -> bool:
        """Nothing is queued or runs, and but for the `acting` thread nobody is in the middle of a call."""
        if self.executor.pending or self.executor.running:
            return False
        return sum(thread.busy for thread in self._threads.values()) <= acting

    def finished(self) -> int:
        """How many calls have returned; -1 if somebody makes calls for ever."""
        if self._for_ever:
            return -1
        return sum(len(thread.results) for thread in self._threads.values())

    def listeners(self) -> tuple[tuple[EventfdCtx, ...], int]:
        """The scenario's eventfds that are to be told of an EOI now, and the sources of irqfds that it is to lower."""
        irqfds = self.vm.irqfds
        mine = 0
        if not isinstance(irqfds, EoiIrqfds):
            told = [irqfd.resamplefd for resampler in irqfds.resamplers for irqfd in resampler.members]
            return tuple(ctx for ctx in told if ctx is not None and not ctx.waiters and told.count(ctx) == 1), mine
        found: list[EventfdCtx] = []
        for irqfd in invariants.level_irqfds(self.vm):
            assert irqfd.source is not None
            if self.pin.held >> irqfd.source.source & 1:
                listening = [e.ctx for e in irqfds.eoifds if e.level_irqfd is irqfd.ctx]
                if listening:
                    mine |= 1 << irqfd.source.source
                found += listening
        return tuple(found), mine

    def strangers(self) -> tuple[EventfdCtx, ...]:
        """Eoifds whose irqfd went, and whose irqfd's eventfd has another one now: no EOI concerns them."""
        irqfds = self.vm.irqfds
        if not isinstance(irqfds, EoiIrqfds):
            return ()
        now = {id(item.ctx): getattr(item, "source", None) for item in irqfds.items}
        return tuple(
            e.ctx for e in irqfds.eoifds if id(e.level_irqfd) in now and now[id(e.level_irqfd)] is not e.source
        )

    def ledger(self) -> Ledger:
        """What a user knows, as far as it can be told from the state."""
        ledger = Ledger(self.vm)
        opened = {file.ctx for file in self.files.files if isinstance(file, EventFile)}
        ledger.closed = {ctx for ctx in self._ctxs.values() if ctx not in opened}
        ledger.contexts = list(self._ctxs.values())
        ledger.vm_closed = self.vm.fd < 0
        return ledger

    def view(self) -> tuple[object, ...]:
        """What can be told apart of the kernel where nobody can act."""
        return invariants.view(self.vm, self._ctxs).kernel

    def _view_all(self) -> invariants.View:
        """The same and the references."""
        return invariants.view(self.vm, self._ctxs)

    # Judging.

    def report(self, violation: Violation) -> None:
        """An operation broke a rule: raise it, or note it and let the operation go on."""
        if self.notes is None:
            raise violation
        self.notes.setdefault(violation.rule, str(violation))

    def wrong_at_rest(self) -> str | None:
        """The invariants of a state, where nobody can act any more: the first that does not hold, or all in `notes`."""
        for wrong in self._wrongs_at_rest():
            if self.notes is None:
                return wrong
            self.notes.setdefault(wrong.partition(":")[0], wrong)
        return None

    def _wrongs_at_rest(self) -> Iterator[str]:
        if self.compare is not None:
            differs = self.compare()
            if differs is not None:
                yield differs
        vm, ledger = self.vm, self.ledger()
        zombies = [] if self.merged else self._zombies(ledger)
        if zombies and ledger.policy is not None and not ledger.policy.unbinds_eoifds:
            nameless = [e for e in zombies if not self._removable(e.ctx, e.level_irqfd, ledger)]
            if nameless:
                yield f"S1: {nameless[0]!r} keeps source id {nameless[0].source.source}, and nobody can name it"
        wanted = sum(1 << source for source in ledger.static)
        wanted |= sum(1 << i.source.source for i in invariants.level_irqfds(vm) if i.source is not None)
        wanted |= sum(1 << e.source.source for e in zombies if e.source is not None)
        extra = vm.gsis.sources.used & ~wanted
        if extra:
            yield f"S1: source ids {extra:#x} are in use and nobody has them"
        for number in ("S2", "S4", "S5", "S8", "S12", "S14"):
            wrong = invariants.STATE[number](vm, ledger)
            if number == "S5" and zombies and (self.pin.requested or self.pin.in_service):
                continue  # the next EOI lowers it
            if wrong:
                yield f"{number}: {wrong}"
        for number, check in (("S17", rules.s17), ("L1", rules.l1)):
            wrong = check(self)
            if wrong:
                yield f"{number}: {wrong}"
        own = self._at_rest() if self._at_rest is not None else None
        if own is not None:
            yield own

    def _zombies(self, ledger: Ledger) -> list:  # type: ignore[type-arg]
        assert isinstance(self.vm.irqfds, EoiIrqfds)
        live = [i.source for i in invariants.level_irqfds(self.vm)]
        unbinds = ledger.policy is not None and ledger.policy.unbinds_eoifds
        return [] if unbinds else [e for e in self.vm.irqfds.eoifds if e.source not in live]

    def _removable(self, ctx: EventfdCtx, irqfd: EventfdCtx | None, ledger: Ledger) -> bool:
        if ctx in ledger.closed:
            return False
        return irqfd not in ledger.closed or (ledger.policy is not None and ledger.policy.notices_close)

    def line_is_high(self) -> bool:
        """Somebody wants service now: a device behind VFIO, or user space by KVM_IRQ_LINE."""
        return any(hardware.level for hardware in self.devices) or bool(self.pin.held & 1)

    def describe(self) -> str:
        """Pin, source ids and bindings in a few words, for stories."""
        pin, irqfds = self.pin, self.vm.irqfds
        words = [f"held by {self._ids(pin.held)}" if pin.held else "low"]
        words += ["requested"] if pin.requested else []
        words += ["in service"] if pin.in_service else []
        words += ["remote IRR"] if pin.remote_irr and not (pin.requested or pin.in_service) else []
        words += ["masked"] if pin.masked else []
        used = self.vm.gsis.sources.used & ~sum(1 << source for source in self.static)
        text = f"pin {', '.join(words)}; ids {self._ids(used) or '-'}"
        names = {id(ctx): name for name, ctx in self._ctxs.items()}
        bound = [names.get(id(item.ctx), "?") for item in irqfds.items]
        text += f"; irqfds {' '.join(bound) or '-'}"
        if isinstance(irqfds, EoiIrqfds):
            pairs = [f"{names.get(id(e.ctx), '?')}({e.source.source if e.source else '-'})" for e in irqfds.eoifds]
            text += f"; eoifds {' '.join(pairs) or '-'}"
        for hardware in self.devices:
            text += f"; {hardware.name} {'high' if hardware.level else 'low'}{' masked' if hardware.depth else ''}"
        return text

    @staticmethod
    def _ids(mask: int) -> str:
        return " ".join(str(n) for n in range(mask.bit_length()) if mask >> n & 1)

    def scenario(self) -> Scenario:
        """For the search."""
        self.chips.settle()
        actors = [actor for acting in self._acting.values() for actor in acting.actors()]
        if not actors:
            raise UsageError("nobody acts: give the board a thread, and the thread a call")
        actors += self._guests
        actors += self._queue_workers() if self._workers is None else self._workers
        roots = (self.vm, self.files, self.executor, self.pin, *self._threads.values(), *self._ctxs.values())
        states = (*roots, *self.devices, *self._states)
        for state in self._states:
            if type(state).__module__.partition(".")[0] not in ("vmm", "devices"):
                refuse_what_is_not_kept(state)
        if len(actors) > ACTORS:
            raise UsageError(f"{len(actors)} actors: there can be {ACTORS}")
        if self._own:
            self._outside = Outside(self._own, Arena(*states).names)
        live = [*self._live]
        if self._returns:
            live += [("L4", partial(rules.returned, thread)) for thread in self._threads.values()]
        atomic = Atomic(self.is_quiet, self._view_all, self._failures(actors), partial(rules.careless, self))
        return Scenario(states, tuple(actors), self._always, self.wrong_at_rest, tuple(live), atomic)

    def _failures(self, actors: Iterable[Actor]) -> dict[int, Callable[[], str]]:
        """Of the threads that make calls of the kernel's interface."""
        failures: dict[int, Callable[[], str]] = {}
        for n, actor in enumerate(actors):
            calls = [getattr(operation.function, "__self__", None) for operation in actor.operations]
            if any(isinstance(call, Call) and call.kind for call in calls):
                failures[n] = partial(self.failure_of, actor.name)
        return failures

    def _queue_workers(self) -> Iterator[Actor]:
        """A worker for each queue."""
        queues: list[tuple[str, WorkQueue]] = [
            ("cleanup", self.vm.irqfds.cleanup_queue),
            ("inject", self.vm.irqfds.inject_queue),
        ]
        for hardware in self.devices:
            queues += [(f"virqfd {hardware.name}", hardware.intx.events), ("vfio cleanup", hardware.intx.cleanup)]
        for name, queue in queues:
            yield Actor(name, (Operation("work", Worker(self.executor, queue).run, queue.has_next),), repeats=True)


def _text_or_none(check: Check) -> Check:
    """A check that is reported with its line if it returns something else. UsageError if it is no function."""
    callable_or_refuse(check, "a check")

    @functools.wraps(check)
    def checked() -> str | None:
        said: object = check()
        if said is None or (isinstance(said, str) and said):
            return said
        code = getattr(check, "__code__", None)
        where = f"{code.co_filename}:{code.co_firstlineno}: " if code is not None else ""
        raise UsageError(f"{where}a check returns a text that says what is wrong, or None, and not {said!r}")

    return checked
