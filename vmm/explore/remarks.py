"""What is probably not meant in a scene, though it can be explored: told beside the verdict, and never one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm.explore.calls import Call
from vmm.kernel.eoifd import EoiIrqfds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.explore.actors import Actor
    from vmm.explore.board import Board


def unbound(board: Board, actors: Iterable[Actor]) -> list[str]:
    """Calls on eventfds that nothing ever binds: one is opened as it is named, so a slip of the pen makes a new one.

    Nothing is said of scenes with functions of their own, which may bind anything.
    """
    calls = [getattr(operation.function, "__self__", None) for actor in actors for operation in actor.operations]
    made = [call for call in calls if isinstance(call, Call)]
    if board.has_own_code:
        return []
    irqfds = board.vm.irqfds
    known = {id(ctx): name for name, ctx in board.eventfds().items()}
    names = {known.get(id(item.ctx), "") for item in irqfds.items}
    names |= {f"{device.name}.trigger" for device in board.devices}
    listeners = {known.get(id(item.resamplefd), "") for item in irqfds.items}
    listeners |= {f"{device.name}.unmask" for device in board.devices}
    if isinstance(irqfds, EoiIrqfds):
        listeners |= {known.get(id(item.ctx), "") for item in irqfds.eoifds}
    for call in made:
        words = call.text.split()
        if call.kind == "I+":
            names.add(words[1])
            listeners.update(words[2:])
        elif call.kind == "E+":
            listeners.add(words[1])
    return [text for call in made for text in _remarks(call, names, listeners)]


def _remarks(call: Call, irqfds: set[str], listeners: set[str]) -> list[str]:
    words = call.text.split()
    where = f"{Path(call.where[0]).name}:{call.where[1]}: {call.text}: "
    others = f"; there are {', '.join(sorted(irqfds))}" if irqfds else ""
    if call.kind == "I-" and words[1] not in irqfds:
        return [f"{where}nothing makes an irqfd of {words[1]}{others}"]
    if call.kind in ("E+", "E-") and words[2] not in irqfds:
        return [f"{where}nothing makes an irqfd of {words[2]}{others}"]
    if call.kind == "SIG" and words[1] not in irqfds | listeners:
        return [f"{where}nothing is bound to {words[1]}{others}"]
    return []
