"""What threads of a board do: each call is one operation of the explorer, judged when it has returned."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, ClassVar, Literal

from vmm.errors import UsageError
from vmm.explore import rules
from vmm.explore.actors import Actor, CannotExplore, Operation
from vmm.explore.own_code import is_never_run, is_own
from vmm.explore.parts import GSI, Thread
from vmm.kernel import invariants
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_DEASSIGN, KVM_EOIFD_FLAG_LEVEL_IRQFD, KVM_IRQFD_FLAG_LEVEL
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.invariants import Step, View
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, Irqfd
from vmm.order import State, Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.actors import Guard
    from vmm.explore.board import Board
    from vmm.kernel.files import EventfdCtx

Kind = Literal["I+", "I-", "E+", "E-", "C", "SIG", "EOI", "VM", "ioctl", ""]
_UNSEEN = View((), ())
_OURS = (__name__, "vmm.explore.board")


class Call(State):
    """One operation of a thread. `where`: file and line of the scenario that wrote it."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "ctx", "function", "kind", "text", "thread", "where")
    __slots__ = WIRING

    def __init__(
        self,
        board: Board,
        thread: Thread,
        text: str,
        function: Callable[[], object],
        kind: Kind = "",
        ctx: EventfdCtx | None = None,
    ) -> None:
        self.board = board
        self.thread = thread
        self.text = text
        self.function = function
        self.kind = kind
        self.ctx = ctx
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__") in _OURS and frame.f_back is not None:
            frame = frame.f_back
        self.where = frame.f_code.co_filename, frame.f_lineno

    def perform(self) -> None:
        """Do it. The errno of a call of the kernel's interface is a result; a scenario's own function has none."""
        thread = self.thread
        thread.busy = True
        began = self.board.finished() if self.board.is_quiet(1) else -1  # -1: nobody can tell
        bound = self.kind == "I-" and began >= 0 and self._is_bound()
        error = 0
        if self.kind:
            try:
                self.function()
            except OSError as refused:
                error = refused.errno or errno.EIO
        else:
            if is_never_run(self.function()):
                raise CannotExplore(f"{self.text} has a yield or is async: called, it does nothing")
            self.board.refuse_what_changed()
        if self.kind == "I-" and not error and not self.board.assigns:
            self._check_gone()
        thread.busy = False
        thread.note(f"{self.text} = {errno.errorcode[error] if error else 'ok'}")
        if began >= 0 and began + 1 == self.board.finished() and self.board.is_quiet():
            self.judge(error)
            if bound and not error and self.ctx is not None and self.ctx.count:
                wrong = "it was deassigned, and its next owner is given what was injected"
                self.board.report(Violation("S10", self.ctx, wrong))

    def _is_bound(self) -> bool:
        return any(item.ctx is self.ctx and item.gsi == GSI for item in self.board.vm.irqfds.items)

    def _check_gone(self) -> None:
        """S6: a deassign has returned, whoever else acts. Asked where nobody assigns meanwhile."""
        waiters = self.ctx.waiters if self.ctx is not None else ()
        if any(isinstance(irqfd := getattr(w.callback, "__self__", None), Irqfd) and not irqfd.active for w in waiters):
            wrong = "deassign returned, and an irqfd that is going is in the wait queue still"
            self.board.report(Violation("S6", self.ctx, wrong))

    def judge(self, error: int) -> None:
        """What the invariants say of this one operation. Nobody else did anything meanwhile, or is about to."""
        if self.kind in ("", "EOI", "SIG", "VM", "ioctl"):
            return
        vm = self.board.vm
        ledger = self.board.ledger()
        kind: invariants.Kind = self.kind  # type: ignore[assignment]
        step = Step(kind, error, _UNSEEN, _UNSEEN, self.ctx, None, GSI)
        for number in ("S9", "S20") if self.kind != "E-" else ("S20",):
            wrong = invariants.STEP[number](vm, ledger, step)
            if wrong:
                self.board.report(Violation(number, self.ctx, f"{self.thread.results[-1]}: {wrong}"))


class Acting:
    """What a scenario tells a thread to do, call by call. `any_order`: the search also chooses the order of the calls.
    A thread that acts for ever begins anew after the last one, or stops somewhere between two.

    The eventfds are named; a name is opened when it is used first, by the thread that sets the board up.
    """

    def __init__(self, board: Board, thread: Thread, any_order: bool) -> None:
        self._board = board
        self._thread = thread
        if not isinstance(thread.name, str) or not thread.name or not thread.name.isprintable():
            raise UsageError(f"{thread.name!r} is no name of a thread: a text")
        self._any_order = any_order
        self._operations: list[Operation] = []

    def _call(
        self,
        text: str,
        function: Callable[[], object],
        kind: Kind = "",
        name: str = "",
        when: Guard | None = None,
        own: bool = False,
    ) -> None:
        if own:
            self._board.own(function, f"what {self._thread.name} runs as {text!r}")
        if when is not None and is_own(when):
            self._board.own(when, f"`when` of {text}")
            own = True
        if self._any_order:
            when = self._idle_and(when)
        call = Call(self._board, self._thread, text, function, kind, self._board.ctx(name) if name else None)
        self._operations.append(Operation(text, call.perform, when, own))

    def _idle_and(self, when: Guard | None) -> Guard:
        is_idle = self._thread.is_idle
        return is_idle if when is None else lambda: is_idle() and when()

    def actors(self) -> tuple[Actor, ...]:
        """As the search wants them: a thread, or one for each call if they come in any order."""
        if self._any_order:
            return tuple(Actor(self._thread.name, (operation,)) for operation in self._operations)
        thread = self._thread
        operations = tuple(self._operations)
        return (Actor(thread.name, operations, thread.for_ever, not thread.for_ever),) if operations else ()

    # The interface of the kernel.

    def _ioctl(self, call: Callable[[], object]) -> Callable[[], None]:
        """A call of the VM through its descriptor, whose file it holds: EBADF once that is closed; a close meanwhile
        leaves the VM's release to its end. (ioctl(2))
        """
        files, fd = self._board.files, self._board.vm.fd

        def perform() -> None:
            file = files.file(fd).get()
            try:
                call()
            finally:
                file.put()

        return perform

    def assign(self, name: str, eoi: str = "", edge: bool = False, when: Guard | None = None) -> None:
        """KVM_IRQFD: bind eventfd `name` to the GSI. Under the policy `resample`, `eoi` is its resamplefd; under the
        others, where an eoifd is bound by a call of its own, it does not count.
        """
        board, fd = self._board, self._board.fd(name)
        board.assigns += 1
        flags, resamplefd = (0 if edge else KVM_IRQFD_FLAG_LEVEL), 0
        text = f"I+ {name}{' edge' if edge else ''}"
        if board.merged:
            flags = KVM_IRQFD_FLAG_RESAMPLE if eoi and not edge else 0
            resamplefd = board.fd(eoi) if flags else 0
            text += f" {eoi}" if flags else ""
        self._call(text, self._ioctl(lambda: board.vm.irqfd(fd, GSI, flags, resamplefd)), "I+", name, when)

    def deassign(self, name: str, when: Guard | None = None) -> None:
        """KVM_IRQFD with KVM_IRQFD_FLAG_DEASSIGN."""
        board, fd = self._board, self._board.fd(name)
        self._call(
            f"I- {name}", self._ioctl(lambda: board.vm.irqfd(fd, GSI, KVM_IRQFD_FLAG_DEASSIGN)), "I-", name, when
        )

    def eoifd(self, name: str, irqfd: str, when: Guard | None = None) -> None:
        """KVM_EOIFD: tell `name` of the EOIs of the irqfd of `irqfd`. Left out under `resample`: assign did it."""
        board, fd, other = self._board, self._board.fd(name), self._board.fd(irqfd)
        if not board.merged:
            flags = KVM_EOIFD_FLAG_LEVEL_IRQFD
            self._call(f"E+ {name} {irqfd}", self._ioctl(lambda: board.vm.eoifd(fd, flags, other)), "E+", name, when)

    def deassign_eoifd(self, name: str, irqfd: str, when: Guard | None = None) -> None:
        """KVM_EOIFD with KVM_EOIFD_FLAG_DEASSIGN. Left out under `resample`."""
        board, fd, other = self._board, self._board.fd(name), self._board.fd(irqfd)
        if not board.merged:
            flags = KVM_EOIFD_FLAG_LEVEL_IRQFD | KVM_EOIFD_FLAG_DEASSIGN
            self._call(f"E- {name} {irqfd}", self._ioctl(lambda: board.vm.eoifd(fd, flags, other)), "E-", name, when)

    def close(self, name: str, when: Guard | None = None) -> None:
        """close(2) of the descriptor."""
        board, fd = self._board, self._board.fd(name)
        self._call(f"C {name}", lambda: board.files.close(fd), "C", name, when)

    def signal(self, name: str, when: Guard | None = None) -> None:
        """eventfd_signal by whoever holds the context: also after the descriptor was closed."""
        self._call(f"SIG {name}", self._board.held(name).signal, "SIG", name, when)

    def close_vm(self, when: Guard | None = None) -> None:
        """close(2) of the VM's descriptor."""
        self._call("VM", self._board.vm.close, "VM", "", when)

    # The guest and the devices.

    def assert_intx(self, device: str, when: Guard | None = None) -> None:
        """The device wants service."""
        self._call(f"{device} asserts", self._board.device(device).assert_intx, "", "", when)

    def interrupt(self, serve: bool = False, cpu: int = 0) -> None:
        """A CPU takes the GSI's interrupt, lets every device be served if `serve`, and ends it."""
        self.take(serve, cpu)
        self.eoi(cpu)

    def take(self, serve: bool = False, cpu: int = 0) -> None:
        """The first half of it."""
        board = self._board
        board.refuse_cpu(cpu)

        def handle() -> None:
            board.pin.take(cpu)
            if serve:
                for hardware in board.devices:
                    hardware.serve()

        text = "take, serve" if serve else "take"
        self._call(text + _on(cpu), handle, "", "", lambda: board.pin.can_take(cpu))

    def eoi(self, cpu: int = 0) -> None:
        """The second half."""
        self._board.refuse_cpu(cpu)
        self._call("EOI" + _on(cpu), Eoi(self._board, cpu).end, "EOI")

    def serve(self, device: str) -> None:
        """A device's driver runs: it lets its line go."""
        self._call(f"serve {device}", self._board.device(device).serve)

    def mask(self) -> None:
        """The guest masks the pin."""
        self._call("mask", self._board.pin.mask)

    def unmask(self) -> None:
        """The guest unmasks the pin; S11 is asked of what is delivered then."""
        self._call("unmask", Unmask(self._board).write)

    def line(self, level: int, when: Guard | None = None) -> None:
        """KVM_IRQ_LINE of the GSI, which is source 0."""
        board = self._board
        if level not in (0, 1):
            raise UsageError(f"a line is at 0 or 1, and not at {level!r}")
        self._call(f"line {level:d}", lambda: board.vm.irq_line(GSI, level), "ioctl", "", when)

    def reroute(self, pin: int, gsi: int = GSI) -> None:
        """KVM_SET_GSI_ROUTING: `pin` of the I/O APIC belongs to `gsi` from now on, and no other pin to any."""
        board, routes = self._board, [Route.irqchip(gsi, KVM_IRQCHIP_IOAPIC, pin)]
        self._call(f"route {gsi} to pin {pin}", lambda: board.vm.set_gsi_routing(routes), "ioctl")

    def run(self, text: str, function: Callable[[], object], when: Guard | None = None) -> None:
        """Anything. What it raises is a fault of the scenario, unless the kernel's code raised it."""
        if not isinstance(text, str) or not text:
            raise UsageError(f"what is run is called by a text, and not {text!r}")
        self._call(text, function, "", "", when, own=True)


class Eoi(State):
    """The guest's EOI, and S7: who listens to what it ended is told once."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "cpu")
    __slots__ = WIRING

    def __init__(self, board: Board, cpu: int = 0) -> None:
        self.board = board
        self.cpu = cpu

    def end(self) -> None:
        """End the interrupt in service."""
        board = self.board
        finished = board.finished()
        quiet = finished >= 0 and board.is_quiet(1)
        listeners, mine = board.listeners() if quiet else ((), 0)
        counts = tuple(ctx.count for ctx in listeners)
        strangers = board.strangers() if quiet else ()
        told = tuple(ctx.count for ctx in strangers)
        board.pin.eoi(self.cpu)
        if not quiet or finished != board.finished() or not board.is_quiet(1):
            return
        for ctx, count in zip(listeners, counts, strict=True):
            if ctx.count != count + 1:
                wrong = f"signalled {ctx.count - count} times at the EOI of the irqfd it listens to"
                board.report(Violation("S7", ctx, wrong))
        if board.pin.held & mine:
            board.report(Violation("S7", board, f"GSI {GSI} is held by {board.pin.held & mine:#x} after the EOI"))
        for ctx, count in zip(strangers, told, strict=True):
            if ctx.count != count:
                wrong = (
                    "told of an EOI, though the eventfd that it names has another irqfd than the one it was bound to"
                )
                board.report(Violation("S6", ctx, wrong))


class Unmask(State):
    """The guest's unmask, and S11: what is delivered by it is of a line that is high now."""

    WIRING: ClassVar[tuple[str, ...]] = ("board",)
    __slots__ = WIRING

    def __init__(self, board: Board) -> None:
        self.board = board

    def write(self) -> None:
        """Unmask the pin."""
        board = self.board
        high, finished = board.line_is_high(), board.finished()
        quiet = finished >= 0 and board.is_quiet(1) and not board.pin.requested
        board.pin.unmask()
        if quiet and finished == board.finished() and board.is_quiet(1):
            wrong = rules.s11(board.pin.requested, high)
            if wrong:
                board.report(Violation("S11", board, wrong))


def _on(cpu: int) -> str:
    return f" on CPU {cpu}" if cpu else ""
