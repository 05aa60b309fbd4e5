"""The calls of a scene that a user of the real KVM could make as well, in the words of a story.

`I+ e1 e2` assigns e1 with resamplefd e2, `I+ e1 edge` and `I+ e1` without; `I- e1` deassigns, `C e1` closes, `SIG e1`
writes 1; `VM` closes the VM; `line 1` is KVM_IRQ_LINE, `take`, `EOI`, `mask` and `unmask` are the guest's, and `route 5
to pin 6` is KVM_SET_GSI_ROUTING.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.errors import UsageError
from vmm.explore.calls import Call
from vmm.explore.parts import GSI, Guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.actors import Actor
    from vmm.explore.board import Board
    from vmm.explore.search import Scenario

WORDS: Final = ("I+", "I-", "C", "SIG", "VM", "line", "take", "EOI", "mask", "unmask", "route")
NO_EOIFD: Final = ("E+", "E-")
_KINDS: Final = frozenset({"Acting", "ApicPin", "Unmask", "Eoi", "EventfdCtx", "Vm"})


class NotKvms(UsageError):
    """A scene has something that the kernel as merged cannot be asked for."""


class UserCall(NamedTuple):
    """One call: the first word, and the others. `text` as it stands in the story."""

    kind: str
    words: tuple[str, ...]
    text: str

    @property
    def value(self) -> int:
        """Of `line`: the level; of `route`: the pin."""
        return int(self.words[-1])


class Beginning(NamedTuple):
    """What is there before anybody acts. `irqfds`: eventfd, GSI, resamplefd (empty: none)."""

    eventfds: tuple[tuple[str, int, bool], ...]
    irqfds: tuple[tuple[str, int, str], ...]


def parse(text: str, function: Callable[[], object] | None = None) -> UserCall:
    """A call by its words, and by what it does, if that is known: a scene's own function is none. NotKvms: why not."""
    kind, *words = text.split()
    if kind in NO_EOIFD:
        raise NotKvms(
            f"{text}: the kernel as merged has no KVM_EOIFD; an irqfd is given its resamplefd when it is made"
        )
    if function is not None and not _is_ours(function):
        raise NotKvms(f"{text}: a function of the scene's own, which no ioctl stands for")
    if kind not in WORDS or "CPU" in words or text.startswith("take,"):
        raise NotKvms(f"{text}: no call that a user of KVM could make")
    return UserCall(kind, tuple(words), text)


def _is_ours(function: Callable[[], object]) -> bool:
    owner = getattr(function, "__self__", None)
    kind = type(owner).__name__ if owner is not None else getattr(function, "__qualname__", "").partition(".")[0]
    return kind in _KINDS or kind.startswith("BoardVm")


def threads(scenario: Scenario) -> dict[str, list[UserCall]]:
    """The calls of each thread that acts, in its order. NotKvms: one of them is none, or they come in any order."""
    found: dict[str, list[UserCall]] = {}
    for actor in scenario.actors:
        if goes_on(actor) or isinstance(getattr(actor.operations[0].function, "__self__", None), Guest):
            raise NotKvms(f"{actor.name}: goes on for ever, and a trial has an end")
        if actor.repeats:
            continue
        if actor.name in found:
            raise NotKvms(f"{actor.name}: its calls come in any order, and a thread of the system makes them in one")
        found[actor.name] = [of(operation.name, operation.function) for operation in actor.operations]
    return found


def goes_on(actor: Actor) -> bool:
    """It is a thread of the scene, and makes its calls for ever."""
    return actor.repeats and isinstance(getattr(actor.operations[0].function, "__self__", None), Call)


def of(text: str, perform: Callable[[], object]) -> UserCall:
    """The call that an operation performs."""
    call = getattr(perform, "__self__", None)
    return parse(text, getattr(call, "function", perform))


def beginning(board: Board) -> Beginning:
    """What a scene has set up. NotKvms: devices, a split irqchip, eoifds, another era than the kernel's."""
    if not board.merged:
        raise NotKvms("the kernel as merged has the rule `resample` only; nobody can run another one there")
    if board.devices:
        raise NotKvms("a device behind VFIO is none of KVM's; its driver is not asked")
    if board.vm.irqchip != "full":
        raise NotKvms("there is no IOAPIC in the kernel with a split irqchip")
    known = {id(ctx): name for name, ctx in board.eventfds().items()}
    eventfds = tuple((name, ctx.count, bool(ctx.semaphore)) for name, ctx in board.eventfds().items())
    irqfds = []
    for item in board.vm.irqfds.items:
        resamplefd = "" if item.resamplefd is None else known[id(item.resamplefd)]
        irqfds.append((known[id(item.ctx)], item.gsi, resamplefd))
    if any(gsi != GSI for _, gsi, _ in irqfds):
        raise NotKvms(f"an irqfd of another GSI than {GSI}")
    return Beginning(eventfds, tuple(irqfds))
