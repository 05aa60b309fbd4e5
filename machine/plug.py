"""Plug and unplug: from a user's words to a device that answers, and back.

A plug takes id, bus and slot, realizes the device, and only then tells the guest; if any step fails the steps before
it are undone in reverse and the machine is as it was. An unplug is asked for by the user, done by the guest's eject
(or by a reset), and ends with DEVICE_DELETED once the ledger has no row of the device. Error texts are QEMU's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from machine import registry
from vmm.errors import ConfigError, DeviceNotFound, InUse, LifecycleError, QmpError
from vmm.lifecycle import Phase, Row, Who

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devices.device import Device
    from machine.machine import Machine

_ID = re.compile(r"[A-Za-z][A-Za-z0-9\-._]*")


class Bus(Protocol):
    """What a device can be plugged into."""

    name: str
    bus_type: str
    hotpluggable: bool


class SimpleBus:
    """A bus without slots: `isa.0`, `main-system-bus`."""

    def __init__(self, name: str, bus_type: str, hotpluggable: bool = False) -> None:
        self.name = name
        self.bus_type = bus_type
        self.hotpluggable = hotpluggable


def check_id(id: str) -> None:
    """QEMU's rule for ids: a letter, then letters, digits, `-`, `.`, `_`."""
    if not _ID.fullmatch(id):
        raise ConfigError(f"Invalid qdev ID '{id}'")


def global_values(machine: Machine, cls: type[Device]) -> dict[str, Any]:
    """The defaults that `-global` gives a driver; a later one wins."""
    names = {p.name: p for p in cls.properties}
    return {
        name: names[name].parse(cls.driver, value, from_text=True)
        for driver, name, value in machine.config.globals
        if driver in (cls.driver, *cls.aliases) and name in names
    }


def _class_of(machine: Machine, driver: str) -> type[Device]:
    if driver in registry.ABSTRACT_DEVICES:
        raise ConfigError("Parameter 'driver' expects a non-abstract device type")
    found = registry.device_type(driver)
    if found is None:
        raise ConfigError(f"'{driver}' is not a valid device model name")
    if not found.user_creatable or (machine.hotplugging and not found.hotpluggable and found.bus_type != "ISA"):
        raise ConfigError("Parameter 'driver' expects a pluggable device type")
    return found


def _bus_for(machine: Machine, cls: type[Device], name: object) -> Bus | None:
    if cls.bus_type == "CPU":
        if name is not None:
            raise ConfigError(f"Device '{cls.driver}' does not go on a bus")
        return None  # a CPU has a place of its own
    if name is None:
        for bus in machine.buses.values():
            if bus.bus_type == cls.bus_type:
                break
        else:
            raise ConfigError(f"No '{cls.bus_type}' bus found for device '{cls.driver}'")
    else:
        found = machine.buses.get(str(name))
        if found is None:
            raise ConfigError(f"Bus '{name}' not found")
        bus = found
        if bus.bus_type != cls.bus_type:
            raise ConfigError(f"Device '{cls.driver}' can't go on {bus.bus_type} bus")
    if machine.hotplugging and not bus.hotpluggable:
        raise ConfigError(f"Bus '{bus.name}' does not support hotplugging")
    return bus


def device_add(machine: Machine, given: Mapping[str, object], from_text: bool = False) -> Device:
    """Plug a device; the machine is as it was if this raises."""
    properties = dict(given)
    if "driver" not in properties:
        raise QmpError("Parameter 'driver' is missing")
    driver = properties.pop("driver")
    if not isinstance(driver, str):
        raise QmpError("Invalid parameter type for 'driver', expected: string")
    cls = _class_of(machine, driver)
    bus = _bus_for(machine, cls, properties.pop("bus", None))
    name = properties.pop("id", None)
    if not isinstance(name, str):
        name = None  # QEMU makes an anonymous device of an id that is no string
    else:
        check_id(name)
        if name in machine.peripherals:
            raise InUse(f"Duplicate device ID '{name}'", holder=machine.peripherals[name].path)
    values = cls.parse(properties, from_text)
    device = cls(name, **(global_values(machine, cls) | values))
    if bus is not None and hasattr(device, "bus"):
        device.bus = bus
    number = None
    if name is None:
        number = machine.next_anonymous()
        device.path = f"/machine/peripheral-anon/device[{number}]"
    device.hotplugged = machine.hotplugging
    device.life.device = name or device.path
    device.life.move("plug", Who.USER)
    try:
        device.realize(machine)  # type: ignore[arg-type]  # machines that have buses are Boards
    except Exception:
        device.life.move("fail", Who.MACHINE)
        device.unwind()
        device.life.move("gone", Who.MACHINE)
        raise
    device.holdings.hold("id", name or device.path, lambda: _forget(machine, device, number))
    if name is not None:
        machine.peripherals[name] = device
    else:
        assert number is not None
        machine.anonymous[number] = device
    device.life.move("realize", Who.MACHINE)
    if machine.hotplugging:
        announce = getattr(machine, "announce_plug", None)
        if announce is not None:
            announce(device)
    return device


def _forget(machine: Machine, device: Device, number: int | None) -> None:
    if device.id is not None:
        machine.peripherals.pop(device.id, None)
    elif number is not None:
        machine.anonymous.pop(number, None)


def find(machine: Machine, name: str) -> Device:
    """A device by id, or by QOM path if the name has a slash. DeviceNotFound, or what QEMU says of a non-device."""
    if "/" not in name:
        device = machine.peripherals.get(name)
        if device is None:
            raise DeviceNotFound(name)
        return device
    for device in [*machine.peripherals.values(), *machine.anonymous.values(), *machine.unattached]:
        if device.path == name:
            return device
    from machine import qom

    if qom.exists(machine, name):
        if name == "/machine/i440fx":
            raise ConfigError("Bus 'main-system-bus' does not support hotplugging")
        raise ConfigError(f"{name} is not a device")
    raise DeviceNotFound(name)


def device_del(machine: Machine, name: str) -> None:
    """Ask the guest to let go of a device. It goes when the guest ejects it, or at the next reset."""
    device = _hotplugged(machine, name)
    if getattr(getattr(device, "bus", None), "unplugs_at_once", False):
        device.life.move("request-unplug", Who.USER)
        remove(machine, device)
        return
    request = getattr(machine, "request_unplug", None)
    if request is None:
        raise ConfigError(f"machine '{machine.type_name}' has nobody to ask for an unplug")
    request(device)
    device.life.move("request-unplug", Who.USER)


def device_pull(machine: Machine, name: str) -> None:
    """Pull a card out, with all its functions, as a hand would: nobody is asked, and the guest is not told."""
    device = _hotplugged(machine, name)
    pulled = getattr(machine, "card_pulled", None)
    for function in [device] if pulled is None else pulled(device):
        remove(machine, function, Who.USER)


def _hotplugged(machine: Machine, name: str) -> Device:
    """A device that can be unplugged now, by its name; or the reason why it cannot."""
    device = find(machine, name)
    if device.bus_type == "CPU":
        raise ConfigError(f"Device '{device.driver}' cannot be unplugged: no guest lets go of a CPU here")
    if device in machine.unattached or not getattr(getattr(device, "bus", None), "hotpluggable", False):
        bus = getattr(device, "bus", None)
        bus_name = bus.name if bus is not None else "isa.0" if device.bus_type == "ISA" else "main-system-bus"
        raise ConfigError(f"Bus '{bus_name}' does not support hotplugging")
    if not device.hotpluggable:
        raise ConfigError(f"Device '{device.driver}' does not support hotplugging")
    if device.life.phase not in (Phase.REALIZED, Phase.UNPLUG_REQUESTED):
        raise LifecycleError(name, device.life.phase.value, "device_del")
    return device


def remove(machine: Machine, device: Device, who: Who = Who.MACHINE, announce: bool = True) -> None:
    """Unrealize a device and forget it: the end of an unplug. Emits DEVICE_DELETED if `announce`.

    What is plugged into the device goes first.
    """
    for child in getattr(device, "children", ()):
        remove(machine, child, who, announce)
    device.life.move("unrealize", who)
    device.unrealize()
    device.life.move("gone", Who.MACHINE)
    if announce:
        for part in getattr(device, "qom_parts", ()):
            machine.emit("DEVICE_DELETED", {"path": f"{device.path}/{part}"})
        data = {"device": device.id} if device.id is not None else {}
        machine.emit("DEVICE_DELETED", {**data, "path": device.path})


def object_add(machine: Machine, given: Mapping[str, object], from_text: bool = False) -> None:
    """Make an object of `-object` or object-add."""
    properties = dict(given)
    kind = properties.pop("qom-type", None)
    if kind is None:
        raise QmpError("Parameter 'qom-type' is missing")
    name = properties.pop("id", None)
    if name is None:
        raise QmpError("Parameter 'id' is missing")
    if not isinstance(name, str):
        raise QmpError("Invalid parameter type for 'id', expected: string")
    cls = registry.object_type(str(kind))
    if cls is None:
        raise ConfigError(f"Parameter 'qom-type' does not accept value '{kind}'")
    if not _ID.fullmatch(name):
        raise ConfigError("Parameter 'id' expects an identifier")
    if name in machine.objects:
        raise InUse(f"attempt to add duplicate property '{name}' to object (type 'container')", f"/objects/{name}")
    machine.objects[name] = cls.create(name, properties, from_text, machine)
    machine.ledger.take(Row("machine", "object", name))


def object_del(machine: Machine, id: str) -> None:
    """Remove an object that nobody uses."""
    made = machine.objects.get(id)
    if made is None:
        raise ConfigError(f"object '{id}' not found")
    if getattr(made, "in_use", None):
        raise InUse(f"object '{id}' is in use, can not be deleted", holder=str(made.in_use))
    made.close()
    del machine.objects[id]
    machine.ledger.give_back(Row("machine", "object", id))
