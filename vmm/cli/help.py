"""What `-device help`, `-machine help` and the like print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import VERSION
from vmm.block_graph import DRIVERS
from vmm.cli.config import PROGRAM
from vmm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.cli.config import HelpRequest


def show(request: HelpRequest) -> None:
    """Print the help that was asked for. UsageError for a type that is not there."""
    print(text_of(request), end="")


def text_of(request: HelpRequest) -> str:
    """The text, with a newline at its end."""
    if request.topic == "usage":
        from vmm.cli.reference import usage

        return usage()
    if request.topic == "version":
        return f"{PROGRAM} (vintx) {VERSION}, with the monitor of QEMU 11.1.3\n"
    topics: dict[str, Callable[[str], str]] = {
        "machine": _machines,
        "accel": lambda _: "Accelerators supported by vintx:\ntcg\nqtest\n",
        "device": _devices,
        "object": _objects,
        "cpu": _cpus,
        "chardev": _chardevs,
        "netdev": _netdevs,
        "trace": _events,
        "blockdev": lambda _: "Supported block drivers:\n" + "".join(f"  {name}\n" for name in DRIVERS),
        "d": _log_items,
    }
    return topics[request.topic](request.name)


def _log_items(_: str) -> str:
    from vmm.cli.launch import LOG_ITEMS

    lines = ["Log items (comma separated):", *(f"{name:<16} {events}" for name, events in LOG_ITEMS.items())]
    return "\n".join([*lines, "trace:PATTERN    the events of a pattern; -trace help lists them"]) + "\n"


def _machines(name: str) -> str:
    from machine import registry

    if name:
        cls = registry.machine_type(name)
        lines = [f"{cls.type_name}-machine options:"]
        lines += [f"  {p.name}=<{p.type_name}> - {p.description}" for p in cls.properties]
        return "\n".join(lines) + "\n"
    lines = ["Supported machines are:"]
    for each in registry.machine_names():
        default = " (default)" if each == "pc" else ""
        lines.append(f"{each:<20} {registry.machine_type(each).description}{default}")
    return "\n".join(lines) + "\n"


def _devices(name: str) -> str:
    from machine import registry

    if name:
        cls = registry.device_type(name)
        if cls is None or name in registry.ABSTRACT_DEVICES:
            raise UsageError(f"-device {name},help: '{name}' is not a valid device model name")
        lines = [f"{name} options:"]
        for p in sorted(cls.properties, key=lambda p: p.name):
            default = "" if p.default is None else f" (default: {str(p.default).lower()})"
            about = f" - {p.description}" if p.description else ""
            lines.append(f"  {p.name}=<{p.type_name}>{about}{default}")
        return "\n".join(lines) + "\n"
    lines = []
    for each in registry.device_types():
        if each.user_creatable:
            about = f', desc "{each.description}"' if each.description else ""
            lines.append(f'name "{each.driver}", bus {each.bus_type}{about}')
    return "\n".join(lines) + "\n"


def _objects(name: str) -> str:
    from machine import registry

    if name and name not in registry.object_names():
        raise UsageError(f"-object {name},help: '{name}' is not a valid object type")
    lines = ["List of user creatable objects:", *(f"  {each}" for each in registry.object_names())]
    return "\n".join(lines) + "\n"


def _cpus(_: str) -> str:
    from machine.cpu_model import FEATURES, MODELS

    lines = ["Available CPUs:", *(f"  {name:<20} {model.about}" for name, model in MODELS.items())]
    lines += ["", "Recognized CPUID flags:", "  " + " ".join(sorted(FEATURES))]
    return "\n".join(lines) + "\n"


def _netdevs(_: str) -> str:
    from vmm.netdev import KINDS

    return "Available netdev backend types:\n" + "".join(f"  {kind}\n" for kind in KINDS)


def _chardevs(_: str) -> str:
    from vmm.chardev_options import chardev_kinds

    return "Available chardev backend types:\n" + "".join(f"  {kind}\n" for kind in chardev_kinds())


def _events(_: str) -> str:
    from machine import registry
    from vmm.trace import Event

    # The classes are where their devices are: load those, and all events are there.
    for name in registry.machine_names():
        registry.machine_type(name)
    for _device in registry.device_types():
        pass

    def all_names(cls: type[Event]) -> set[str]:
        return {name for sub in cls.__subclasses__() for name in {sub.name} | all_names(sub)}

    return "".join(f"{name}\n" for name in sorted(all_names(Event)))
