"""The object tree that qom-list and qom-get show: /machine, its devices, /objects.

The tree is made anew for each question from what the machine has; nothing is kept twice. Paths are QOM's: absolute,
or partial ("ioapic"), which find the one node whose path ends that way.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from machine import registry
from vmm.errors import ConfigError, DeviceNotFound, QmpError
from vmm.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.device import Device, Property
    from machine.machine import Machine


@dataclass(slots=True)
class Node:
    """One object: its type, its properties as (type, how to read it), its children by name."""

    type: str
    properties: dict[str, tuple[str, Callable[[], Any]]] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)
    device: Device | None = None

    def listing(self) -> list[tuple[str, str]]:
        """(name, type) of each property and child, as qom-list shows them."""
        rows = [("type", "string")]
        rows += [(name, kind) for name, (kind, _) in self.properties.items()]
        rows += [(name, f"child<{child.type}>") for name, child in self.children.items()]
        return rows


@dataclass(frozen=True, slots=True)
class Type:
    """A type of qom-list-types."""

    name: str
    parent: str
    abstract: bool


def _device_node(device: Device) -> Node:
    node = Node(device.driver, device=device)
    bus = getattr(device, "bus", None)
    node.properties["parent_bus"] = ("link<bus>", lambda: getattr(bus, "path", bus.name if bus else ""))
    node.properties["realized"] = (
        "bool",
        lambda: (
            device.life.phase in (Phase.REALIZED, Phase.UNPLUG_REQUESTED) or not device.path.startswith("/machine/p")
        ),
    )
    node.properties["hotplugged"] = ("bool", lambda: device.hotplugged)
    node.properties["hotpluggable"] = ("bool", lambda: device.hotpluggable)
    for prop in device.properties:
        node.properties[prop.name] = (prop.type_name, functools.partial(device.values.get, prop.name))
    shown = getattr(device, "qom_values", None)
    if shown is not None:
        for name, (kind, _) in shown().items():
            node.properties[name] = (kind, functools.partial(_shown, shown, name))
    return node


def _shown(shown: Callable[[], dict[str, tuple[str, Any]]], name: str) -> Any:
    return shown()[name][1]


def _object_node(made: Any) -> Node:
    node = Node(made.qom_type)
    for prop in getattr(made, "properties", ()):
        node.properties[prop.name] = (prop.type_name, functools.partial(made.values.get, prop.name))
    return node


def _container(children: dict[str, Node]) -> Node:
    return Node("container", children=children)


def tree(machine: Machine) -> Node:
    """The root, with all there is beneath it."""
    board = Node(f"{machine.type_name}-machine")
    for prop in machine.properties:
        board.properties[prop.name] = (prop.type_name, functools.partial(machine.values.get, prop.name))
    board.children["peripheral"] = _container({k: _device_node(d) for k, d in machine.peripherals.items()})
    board.children["peripheral-anon"] = _container(
        {f"device[{n}]": _device_node(d) for n, d in machine.anonymous.items()}
    )
    board.children["unattached"] = _container(
        {f"device[{i}]": _device_node(d) for i, d in enumerate(machine.unattached)}
    )
    for name, device in machine.named_board_devices().items():
        parent = board
        *path, last = name.split("/")
        for part in path:
            parent = parent.children[part]
        parent.children[last] = _device_node(device)
    objects = _container({name: _object_node(made) for name, made in machine.objects.items()})
    return _container({"machine": board, "objects": objects, "chardevs": _container({})})


def _walk(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    for name, child in node.children.items():
        yield f"{path}/{name}", child
        yield from _walk(child, f"{path}/{name}")


def resolve(machine: Machine, path: str) -> Node:
    """The node of a path. DeviceNotFound if there is none or a partial path is ambiguous."""
    root = tree(machine)
    if path.startswith("/"):
        node = root
        for part in path.split("/"):
            if part:
                child = node.children.get(part)
                if child is None:
                    raise DeviceNotFound(path)
                node = child
        return node
    found = [node for where, node in _walk(root, "") if where.endswith(f"/{path}")]
    if not path or not found:
        raise DeviceNotFound(path)
    if len(found) > 1 and any(n.device is not found[0].device for n in found):
        raise QmpError(f"Path '{path}' does not uniquely identify an object")
    return found[0]


def exists(machine: Machine, path: str) -> bool:
    """Whether something is at an absolute path."""
    try:
        resolve(machine, path)
    except DeviceNotFound:
        return False
    return True


def get(machine: Machine, path: str, name: str) -> Any:
    """A property's value. ConfigError, in QEMU's words, if the object has none of that name."""
    node = resolve(machine, path)
    if name == "type":
        return node.type
    if name not in node.properties:
        raise ConfigError(f"Property '{node.type}.{name}' not found")
    return node.properties[name][1]()


def refuse_set(machine: Machine, path: str, name: str) -> None:
    """What qom-set says: no property of ours can be set once its object is realized."""
    node = resolve(machine, path)
    if name == "type":
        raise ConfigError(f"Property '{node.type}.type' is not writable")
    if name not in node.properties:
        raise ConfigError(f"Property '{node.type}.{name}' not found")
    if node.device is not None:
        whose = f"device '{node.device.id}'" if node.device.id else "anonymous device"
        raise ConfigError(f"Attempt to set property '{name}' on {whose} (type '{node.type}') after it was realized")
    raise ConfigError(f"Property '{node.type}.{name}' is not writable")


def types(implements: str | None = None, abstract: bool = False) -> list[Type]:
    """qom-list-types: our device, machine, object and accelerator types and their abstract parents."""
    rows: list[tuple[Type, set[str]]] = [(Type("object", "", True), set())]
    for cls in registry.device_types():
        parent = registry.ABSTRACT_OF_BUS.get(cls.bus_type, "device")
        rows.append((Type(cls.driver, parent, False), {parent, "device"}))
    for name, above in registry.ABSTRACT_DEVICES.items():
        rows.append((Type(name, above or "object", True), {"device"}))
    rows += [(Type(name, "object", True), set()) for name in ("machine", "accel")]
    rows += [(Type(f"{name}-machine", "machine", False), {"machine"}) for name in registry.machine_names()]
    rows += [(Type(name, "object", False), {"user-creatable"}) for name in registry.object_names()]
    rows += [(Type(name, "accel", False), {"accel"}) for name in ("tcg-accel", "qtest-accel")]
    return [
        row
        for row, ancestors in rows
        if (abstract or not row.abstract) and (implements is None or implements in {row.name, "object", *ancestors})
    ]


def properties_of(driver: str) -> tuple[Property, ...]:
    """What device_add takes for a driver. DeviceNotFound, or what QEMU says of an abstract type."""
    if driver in registry.ABSTRACT_DEVICES:
        raise ConfigError("Parameter 'typename' expects a non-abstract device type")
    cls = registry.device_type(driver)
    if cls is None:
        raise DeviceNotFound(driver)
    return cls.properties
