"""Commands that look at interrupts, and at who holds what. Looking never changes anything.

`x-query-irq` and `x-query-interrupt-controllers` are QEMU's, for people; `x-query-irqchip`, `x-query-unplug` and
`x-query-ledger` are this monitor's own, for programs, and may be sent out of band: they answer while an in-band command
is stuck.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.qmp import types
from vmm.qmp.command import STR, Arg, CommandGroup, ListOf
from vmm.qmp.hmp import format_irq, format_pic

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()


@GROUP.command("x-query-irq", returns=types.HUMAN_READABLE)
def x_query_irq(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """`info irq`."""
    return {"human-readable-text": format_irq(call.target.irqchips())}


@GROUP.command("x-query-interrupt-controllers", returns=types.HUMAN_READABLE)
def x_query_interrupt_controllers(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """`info pic`."""
    return {"human-readable-text": format_pic(call.target.irqchips())}


@GROUP.command("x-query-irqchip", returns=types.IRQCHIP_INFO, oob=True)
def x_query_irqchip(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """IOAPICs, PICs and local APICs: registers as numbers, vectors as lists."""
    return call.target.irqchips().as_qmp()


@GROUP.command("x-query-unplug", returns=ListOf(types.UNPLUG_ROW), oob=True)
def x_query_unplug(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """Devices that the guest was asked to let go of and has not: since when, and whose turn it is."""
    return [row.as_qmp() for row in call.target.unplugs()]


@GROUP.command("x-query-ledger", Arg("owner", STR, optional=True), returns=ListOf(types.LEDGER_ROW), oob=True)
def x_query_ledger(call: Call, arguments: Arguments) -> Any:
    """The resources that are held, of one owner or of all."""
    owner = arguments.get("owner")
    return [row.as_qmp() for row in call.target.ledger() if owner is None or row.owner == owner]
