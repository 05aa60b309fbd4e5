"""Long runs: their sizes, what a machine holds, and devices by the road of their interrupt."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

from devices.ioapic import IOREDTBL, LEVEL, MASKED

FULL = os.environ.get("VINTX_FULL") == "1"
"""The long forms, as `make endurance` runs them."""
EDU, IRQFD, FORWARDED = "edu", "vfio-pci", "vfio-pci,x-no-kvm-intx=on"
ROADS = (EDU, IRQFD, FORWARDED)
DEBUG_EXIT = {"driver": "isa-debug-exit", "iobase": 0xF4, "iosize": 4}
PASSED = 1
"""Exit status of a process whose guest wrote EXIT_PASSED to isa-debug-exit."""
OURS = ("devices.", "machine.", "vmm.")


def size(short, full):
    """`short`, or `full` when the long forms were asked for."""
    return full if FULL else short


def plug(machine, road, id, slot):
    """Plug an edu on that road into a slot, with no monitor in between. Returns the edu itself."""
    if road == EDU:
        return machine.device_add({"driver": "edu", "id": id, "addr": f"{slot:#x}"})
    machine.object_add({"qom-type": "vfio-host-device", "id": f"{id}-host", "driver": "edu"})
    machine.device_add(arguments(road, id, slot))
    return machine.objects[f"{id}-host"].device


def arguments(road, id, slot):
    """device_add arguments of `plug`; a vfio-pci takes the host device `id`-host."""
    if road == EDU:
        return {"driver": "edu", "id": id, "addr": f"{slot:#x}"}
    more = {"x-no-kvm-intx": True} if road == FORWARDED else {}
    return {"driver": "vfio-pci", "id": id, "addr": f"{slot:#x}", "x-host-object": f"{id}-host", **more}


def set_mask(machine, pin, masked):
    """Mask or unmask a level pin of the I/O APIC as another CPU would: the index register stays as the guest had it."""
    chip = machine.ioapic
    if chip.redir[pin] & LEVEL and bool(chip.redir[pin] & MASKED) != masked:
        index = chip.ioregsel
        chip.mmio_write(0, 4, IOREDTBL + 2 * pin)
        chip.mmio_write(16, 4, chip.redir[pin] & 0xFFFF_FFFF ^ MASKED)
        chip.mmio_write(0, 4, index)
        machine.executor.drain()


def held(machine):
    """Everything that a device could leave behind, to compare before a plug and after the unplug."""
    kvm, gsis = machine.kvm, machine.kvm.gsis
    return {
        "host descriptors": sorted(
            f"{fd} {target}" for fd, target in _descriptors() if not target.startswith(("socket:", "/dev/pts"))
        ),
        "descriptors": [repr(file) for file in machine.files.files if file is not None],
        "ledger": [str(row) for row in machine.ledger.rows()],
        "irqfds": [repr(irqfd) for irqfd in kvm.irqfds.items],
        "resamplers": [repr(resampler) for resampler in kvm.irqfds.resamplers],
        "ack notifiers": {gsi: len(notifiers) for gsi, notifiers in gsis.notifiers.items()},
        "source ids": gsis.sources.used,
        "wires high": [wire.name for wire in (*machine.gsi_wires, *machine.pci.pirqs) if wire.high],
        "holders": [sorted(line.name for line in wire.holders) for wire in (*machine.gsi_wires, *machine.pci.pirqs)],
        "pins high": [pin for pin, sources in enumerate(machine.ioapic.sources) if sources],
        "route subscriptions": len(machine.pci.route_subscriptions),
        "work": len(machine.executor.pending),
        "slots": [device.address_text for device in machine.pci.all_devices()],
        "names": (sorted(machine.peripherals), sorted(machine.anonymous), sorted(machine.objects)),
    }


def _descriptors():
    for entry in Path("/proc/self/fd").iterdir():
        try:
            yield entry.name, str(entry.readlink())
        except FileNotFoundError:
            continue  # the one that lists the directory


def resident():
    """Resident memory of this process in bytes (VmRSS)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS in /proc/self/status")


def live_objects():
    """How many objects of each class of ours are alive."""
    gc.collect()
    return Counter(
        f"{type(o).__module__}.{type(o).__qualname__}"
        for o in gc.get_objects()
        if str(type(o).__module__).startswith(OURS)  # others have a descriptor for a name
    )
