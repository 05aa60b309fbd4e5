"""Commands that take each step of the life of an irqfd by hand, with a guest on top. Experimental, this monitor's own.

    x-eventfd-open -> {"fd": 3}        x-irqfd-assign {"fd": 3, "gsi": 10, "level": true}
    x-eventfd-open -> {"fd": 4}        x-eoifd-assign {"fd": 4, "irqfd": 3}
    x-eventfd-signal {"fd": 3}         the guest has its interrupt, and at its EOI fd 4 is signalled

What the kernel refuses is a GenericError whose description begins with the errno's name. An operation that is stopped
at a point of `x-point-hold` replies with where it is; `x-point-release` tells what it came to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm.qmp import types
from vmm.qmp.command import BOOL, STR, UINT8, UINT32, UINT64, Arg, CommandGroup, Enum, Integer, ListOf

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()
FD: Final = Integer(-(1 << 31), (1 << 31) - 1, "int32_t")


@GROUP.command(
    "x-eventfd-open",
    Arg("count", UINT32, optional=True),
    Arg("semaphore", BOOL, optional=True),
    Arg("nonblock", BOOL, optional=True),
    Arg("name", STR, optional=True),
    returns=types.OPERATION,
)
def x_eventfd_open(call: Call, arguments: Arguments) -> Any:
    """eventfd(2); O_NONBLOCK unless told otherwise: a read that would sleep is refused, as nobody could end it."""
    return call.target.host_kernel().eventfd_open(
        arguments.get("count", 0),
        arguments.get("semaphore", False),
        arguments.get("nonblock", True),
        arguments.get("name", ""),
    )


@GROUP.command("x-eventfd-dup", Arg("fd", FD), returns=types.OPERATION)
def x_eventfd_dup(call: Call, arguments: Arguments) -> Any:
    """dup(2); of an eventfd of the machine's own as well."""
    return call.target.host_kernel().eventfd_dup(arguments["fd"])


@GROUP.command("x-eventfd-close", Arg("fd", FD), returns=types.OPERATION)
def x_eventfd_close(call: Call, arguments: Arguments) -> Any:
    """close(2), of what was opened by these commands."""
    return call.target.host_kernel().eventfd_close(arguments["fd"])


@GROUP.command("x-eventfd-signal", Arg("fd", FD), Arg("value", UINT64, optional=True), returns=types.OPERATION)
def x_eventfd_signal(call: Call, arguments: Arguments) -> Any:
    """write(2); 1 unless told otherwise."""
    return call.target.host_kernel().eventfd_signal(arguments["fd"], arguments.get("value", 1))


@GROUP.command("x-eventfd-read", Arg("fd", FD), returns=types.OPERATION)
def x_eventfd_read(call: Call, arguments: Arguments) -> Any:
    """read(2)."""
    return call.target.host_kernel().eventfd_read(arguments["fd"])


@GROUP.command(
    "x-irqfd-assign",
    Arg("fd", FD),
    Arg("gsi", UINT32),
    Arg("level", BOOL, optional=True),
    Arg("resamplefd", FD, optional=True),
    returns=types.OPERATION,
)
def x_irqfd_assign(call: Call, arguments: Arguments) -> Any:
    """KVM_IRQFD: edge, or `level` under a rule with eoifds, or with a `resamplefd` under the merged one."""
    return call.target.host_kernel().irqfd_assign(
        arguments["fd"], arguments["gsi"], arguments.get("level", False), arguments.get("resamplefd")
    )


@GROUP.command("x-irqfd-deassign", Arg("fd", FD), Arg("gsi", UINT32), returns=types.OPERATION)
def x_irqfd_deassign(call: Call, arguments: Arguments) -> Any:
    """KVM_IRQFD with DEASSIGN; no match is no error."""
    return call.target.host_kernel().irqfd_deassign(arguments["fd"], arguments["gsi"])


@GROUP.command("x-eoifd-assign", Arg("fd", FD), Arg("irqfd", FD), returns=types.OPERATION)
def x_eoifd_assign(call: Call, arguments: Arguments) -> Any:
    """KVM_EOIFD."""
    return call.target.host_kernel().eoifd_assign(arguments["fd"], arguments["irqfd"])


@GROUP.command("x-eoifd-deassign", Arg("fd", FD), Arg("irqfd", FD), returns=types.OPERATION)
def x_eoifd_deassign(call: Call, arguments: Arguments) -> Any:
    """KVM_EOIFD with DEASSIGN."""
    return call.target.host_kernel().eoifd_deassign(arguments["fd"], arguments["irqfd"])


@GROUP.command("x-query-irqfds", returns=types.IRQFDS, oob=True)
def x_query_irqfds(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """Irqfds, eoifds, irq source ids in use, eventfds."""
    return call.target.host_kernel().query()


@GROUP.command(
    "x-vfio-set-irqs",
    Arg("id", STR),
    Arg("action", Enum(("mask", "unmask", "trigger"))),
    Arg("index", Enum(("intx", "req")), optional=True),
    Arg("start", UINT32, optional=True),
    Arg("count", UINT32, optional=True),
    Arg("data", UINT8, optional=True),
    Arg("fd", FD, optional=True),
    returns=types.OPERATION,
)
def x_vfio_set_irqs(call: Call, arguments: Arguments) -> Any:
    """VFIO_DEVICE_SET_IRQS of a vfio-host-device object; `trigger` without data fires its interrupt, by hand."""
    return call.target.host_kernel().vfio_set_irqs(
        arguments["id"],
        arguments.get("index", "intx"),
        arguments["action"],
        arguments.get("start", 0),
        arguments.get("count", 1),
        arguments.get("data"),
        arguments.get("fd"),
    )


@GROUP.command("x-point-hold", Arg("point", STR))
def x_point_hold(call: Call, arguments: Arguments) -> None:
    """Stop each operation of these commands that reaches a point."""
    call.target.host_kernel().hold(arguments["point"])


@GROUP.command("x-point-release", Arg("point", STR), returns=ListOf(types.OUTCOME))
def x_point_release(call: Call, arguments: Arguments) -> Any:
    """Let go whoever is held there: what each came to."""
    return call.target.host_kernel().release(arguments["point"])


@GROUP.command("x-query-points", returns=ListOf(types.POINT), oob=True)
def x_query_points(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The points, whether each can be held, and who is."""
    return call.target.host_kernel().points()
