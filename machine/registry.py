"""Which machine and device types there are.

Ours are listed by driver name and imported when they are first needed, so that a start pays only for what it uses.
Third parties add theirs through the entry-point groups `vintx.machines` and `vintx.devices` (name = driver name).
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import TYPE_CHECKING, Any, Protocol

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.device import Device
    from machine.machine import Machine


class UserObject(Protocol):
    """An object that `-object` makes."""

    qom_type: str
    in_use: str | None
    """The id of the device that uses it; it cannot be deleted meanwhile."""

    @classmethod
    def create(cls, id: str, properties: dict[str, object], from_text: bool, board: Any) -> UserObject:
        """Make one, or raise a ConfigError and leave nothing behind."""

    def close(self) -> None:
        """Give back what it holds."""


_DEVICES = {
    "edu": "devices.edu:Edu",
    "fw_cfg": "devices.fw_cfg:FwCfg",
    "Haswell-x86_64-cpu": "machine.x86_cpu:HaswellCpu",
    "i440FX": "devices.pci.host:I440FX",
    "i440FX-pcihost": "devices.pci.host:I440FXPciHost",
    "ib700": "devices.ib700:Ib700",
    "ioapic": "devices.ioapic_device:IoApicDevice",
    "isa-debug-exit": "devices.debug_exit:DebugExit",
    "isa-i8259": "devices.i8259:I8259",
    "isa-pit": "devices.i8254:I8254",
    "isa-serial": "devices.isa_serial:IsaSerial",
    "ivshmem-plain": "devices.ivshmem:IvshmemPlain",
    "mc146818rtc": "devices.mc146818:Mc146818",
    "max-x86_64-cpu": "machine.x86_cpu:MaxCpu",
    "nvme": "devices.nvme:Nvme",
    "Opteron_G1-x86_64-cpu": "machine.x86_cpu:OpteronG1Cpu",
    "pc-testdev": "devices.pc_testdev:PcTestdev",
    "pci-serial": "devices.pci_serial:PciSerial",
    "pci-testdev": "devices.pci_testdev:PciTestdev",
    "PIIX3": "devices.pci.piix3:Piix3",
    "PIIX4_PM": "devices.pci.piix3:Piix4Pm",
    "pvpanic": "devices.pvpanic:PvPanicIsa",
    "pvpanic-pci": "devices.pvpanic:PvPanicPci",
    "qemu64-x86_64-cpu": "machine.x86_cpu:X86Cpu",
    "vfio-pci": "devices.vfio_pci:VfioPci",
    "vfio-user-pci": "devices.vfio_user_pci:VfioUserPci",
    "virtconsole": "devices.virtio.serial:VirtConsole",
    "virtio-balloon-pci": "devices.virtio.balloon:VirtioBalloon",
    "virtio-blk-pci": "devices.virtio.blk:VirtioBlk",
    "virtio-keyboard-pci": "devices.virtio.input:VirtioKeyboard",
    "virtio-mouse-pci": "devices.virtio.input:VirtioMouse",
    "virtio-net-pci": "devices.virtio.net:VirtioNet",
    "virtio-rng-pci": "devices.virtio.rng:VirtioRng",
    "virtio-serial-pci": "devices.virtio.serial:VirtioSerial",
    "virtio-tablet-pci": "devices.virtio.input:VirtioTablet",
    "virtserialport": "devices.virtio.serial:VirtSerialPort",
}
_DEVICE_ALIASES = {
    f"virtio-{kind}": f"virtio-{kind}-pci"
    for kind in ("balloon", "blk", "keyboard", "mouse", "net", "rng", "serial", "tablet")
}
"""Other names that device_add takes, as QEMU's does."""
_OBJECTS = {
    "memory-backend-file": "devices.memory_file:MemoryBackendFile",
    "memory-backend-memfd": "devices.memory_backend:MemoryBackendMemfd",
    "memory-backend-ram": "devices.memory_backend:MemoryBackendRam",
    "monitor-hmp": "vmm.qmp.monitor_object:MonitorHmp",
    "monitor-qmp": "vmm.qmp.monitor_object:MonitorQmp",
    "rng-builtin": "devices.rng_backend:RngBuiltin",
    "rng-random": "devices.rng_backend:RngRandom",
    "vfio-host-device": "devices.vfio_host:VfioHostDevice",
}
_MACHINES = {"pc": "machine.pc:PcMachine", "none": "machine.none:NoneMachine"}
_MACHINE_ALIASES = {"pc-i440fx": "pc"}
ABSTRACT_DEVICES = {
    "device": None,
    "pci-device": "device",
    "isa-device": "device",
    "sys-bus-device": "device",
    "virtio-serial-port": "device",
    "cpu": "device",
}
"""Abstract device types and their parents, as qom-list-types shows them."""
ABSTRACT_OF_BUS = {
    "PCI": "pci-device",
    "ISA": "isa-device",
    "System": "sys-bus-device",
    "virtio-serial-bus": "virtio-serial-port",
    "CPU": "cpu",
}


def _load(reference: str) -> type:
    module, _, name = reference.partition(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    return found


@functools.cache
def _plugged(group: str) -> dict[str, str]:
    from importlib.metadata import entry_points  # slow to import; few starts ask for what is not ours

    return {point.name: point.value for point in entry_points(group=group)}


def device_names() -> list[str]:
    """Every concrete driver name, sorted as `-device help` lists them."""
    return sorted({*_DEVICES, *_plugged("vintx.devices")}, key=str.lower)


@functools.cache
def device_type(driver: str) -> type[Device] | None:
    """The class of a driver; None if there is none. ConfigError if a third party's cannot be imported."""
    driver = _DEVICE_ALIASES.get(driver, driver)
    reference = _DEVICES.get(driver) or _plugged("vintx.devices").get(driver)
    if reference is None:
        return None
    try:
        return _load(reference)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"device type {driver!r} cannot be loaded from {reference}: {error}") from error


def device_types() -> Iterator[type[Device]]:
    """Every concrete device type; a third party's that cannot be imported is left out, with a warning in the log."""
    for name in device_names():
        try:
            found = device_type(name)
        except ConfigError as error:
            logging.getLogger(__name__).warning("%s", error)
            continue
        if found is not None:
            yield found


def machine_names() -> list[str]:
    """Every machine type, sorted."""
    return sorted({*_MACHINES, *_plugged("vintx.machines")})


def machine_type(name: str) -> type[Machine]:
    """The class of a machine type. ConfigError, in QEMU's words, if there is none."""
    name = _MACHINE_ALIASES.get(name, name)
    reference = _MACHINES.get(name) or _plugged("vintx.machines").get(name)
    if reference is None:
        raise ConfigError(f"unsupported machine type: '{name}'. Use -machine help to list supported machines")
    try:
        return _load(reference)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"machine type {name!r} cannot be loaded from {reference}: {error}") from error


def object_names() -> list[str]:
    """Every object type that `-object` can make."""
    return sorted(_OBJECTS)


@functools.cache
def object_type(name: str) -> type[UserObject] | None:
    """The class of an object type; None if there is none."""
    reference = _OBJECTS.get(name)
    return None if reference is None else _load(reference)
