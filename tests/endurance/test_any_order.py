"""Plug, interrupt, mask, eject, reset, stop and power button in any order: what is held is always explained, and at the
end every device is served and can be taken away without a trace."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from qemu.qmp import ExecuteError

import guest_images as g
from machine.machine import Machine, MachineConfig, RunState
from support.endurance import EDU, FULL, ROADS, arguments, held, plug, set_mask, size
from vmm.chardev import MemoryBackend
from vmm.pytest_plugin import Guest
from vmm.trace import Recording

PINS = (10, 11)
SLOTS = range(3, 9)
RESETS = ("system_reset", "port 0xcf9", "port 0x64", "triple fault")

OPERATIONS = st.one_of(
    st.tuples(st.just("plug"), st.sampled_from(ROADS), st.sampled_from(SLOTS)),
    st.tuples(st.sampled_from(["raise", "lower", "unplug"]), st.sampled_from(SLOTS)),
    st.tuples(st.sampled_from(["mask", "unmask"]), st.sampled_from(PINS)),
    st.tuples(st.just("reset"), st.sampled_from(RESETS)),
    st.tuples(st.sampled_from(["stop", "cont", "powerdown", "settle", "turn"])),
)


def reset(guest, how):
    """Reset the machine, from outside or as its guest would."""
    machine = guest.machine
    if how == "port 0xcf9":
        machine.ports.write(0xCF9, 1, 0x06)
    elif how == "port 0x64":
        machine.ports.write(0x64, 1, 0xFE)
    elif how == "triple fault":
        vcpu = machine.engine.vcpus[0]
        registers = vcpu.registers()
        registers.idt = (0, 0)
        vcpu.set_registers(registers)
        vcpu.nmi()
    else:
        guest.qmp("system_reset")


class Stress:
    """One machine with the hot-plug guest, and what may happen to it."""

    def __init__(self, ioapic, cpus):
        self.stack = contextlib.ExitStack()
        runner = self.stack.enter_context(asyncio.Runner())
        self.serial = MemoryBackend("serial0")
        self.machine = Machine.create(
            "pc",
            MachineConfig(
                ram_size=8 << 20,
                cpus=cpus,
                kernel=str(g.path("hotplug")),
                append="n=3 cycle",
                serial=[self.serial],
                options={"ioapic": ioapic},
                no_shutdown=True,
            ),
        )
        self.guest = Guest(self.machine, self.serial, Recording(), runner)
        self.stack.callback(self.guest.close)
        self.machine.on_event(self.heard)
        self.devices = {}
        self.guest.wait_serial(g.HOTPLUG_READY)
        self.before = held(self.machine)

    def heard(self, name, data):
        """A machine that was reset says what it says anew; a device that is gone is gone."""
        if name == "RESET":
            self.serial.take()
        elif name == "DEVICE_DELETED" and data.get("device") in self.machine.peripherals:
            raise AssertionError("DEVICE_DELETED came before the device was gone")

    # Operations.

    def plug(self, road, slot):
        with contextlib.suppress(ExecuteError):
            name = f"s{slot}"
            if road != EDU:
                self.guest.qmp("object-add", qom_type="vfio-host-device", id=f"{name}-host", driver="edu")
            self.guest.qmp("device_add", **arguments(road, name, slot))

    def edu(self, slot):
        """The device itself, if it is there and the guest drives it."""
        name = f"s{slot}"
        if name not in self.machine.peripherals or f"+{slot}\n" not in self.guest.serial:
            return None
        host = self.machine.objects.get(f"{name}-host")
        return self.machine.peripherals[name] if host is None or host.in_use is None else host.device

    def raise_(self, slot):
        device = self.edu(slot)
        if device is not None:
            device.raise_irq(1)

    def lower(self, slot):
        device = self.edu(slot)
        if device is not None:
            device.lower(device.irq_status)

    def unplug(self, slot):
        with contextlib.suppress(ExecuteError):
            self.guest.qmp("device_del", id=f"s{slot}")

    def mask(self, pin):
        set_mask(self.machine, pin, True)

    def unmask(self, pin):
        set_mask(self.machine, pin, False)

    def reset(self, how):
        reset(self.guest, how)

    def powerdown(self):
        self.guest.qmp("system_powerdown")

    def stop(self):
        self.guest.qmp("stop")

    def cont(self):
        with contextlib.suppress(ExecuteError):  # after a shutdown that only a reset can leave
            self.guest.qmp("cont")

    def turn(self):
        """Let the machine go on a little."""
        turns = iter(range(3))
        self.guest.wait_for(lambda: next(turns, 3) == 2)

    def settle(self):
        """Running, ready, and every line low because its device was served."""
        self.guest.wait_for(lambda: self.powered_off() or self.quiet(), "a quiet machine")

    def powered_off(self):
        """The power button was pressed before, and has its effect now: press the other one."""
        machine = self.machine
        if machine.state is RunState.SHUTDOWN:
            machine.reset()
            machine.cont()
        elif machine.state is not RunState.RUNNING:
            machine.cont()
        return False

    def quiet(self):
        for pin in PINS:
            self.unmask(pin)
        serial = self.guest.serial
        return (
            g.HOTPLUG_READY in serial
            and not any(self.machine.ioapic.sources[pin] for pin in PINS)
            and all(f"+{device.slot}\n" in serial for device in self.machine.peripherals.values())
            and not self.machine.executor.pending
        )

    def do(self, operation):
        name, *details = operation
        getattr(self, "raise_" if name == "raise" else name)(*details)
        self.check()

    # What is always true.

    def check(self):
        machine = self.machine
        irqfds = machine.kvm.irqfds
        by_irqfd = [d for d in machine.peripherals.values() if getattr(d, "road", "") == "kvm"]
        assert len(irqfds.items) == len(by_irqfd)
        assert {r.gsi for r in irqfds.resamplers} == {d.gsi for d in by_irqfd}
        assert sum(len(r.members) for r in irqfds.resamplers) == len(by_irqfd)
        for wire in (*machine.pci.pirqs, *machine.gsi_wires):
            assert wire.count == sum(line.level for line in wire.holders)
        here = {line.name for wire in machine.pci.pirqs for line in wire.holders}
        assert {name for name in here if name.startswith("s")} == set(machine.peripherals)

    def finish(self):
        """Everything can be taken away, and nothing is left."""
        self.settle()
        for device in list(self.machine.peripherals.values()):
            self.unplug(device.slot)  # refused if an earlier request comes true just now
        self.guest.wait_for(lambda: self.powered_off() or not self.machine.peripherals, "empty slots")
        for name in list(self.machine.objects):
            self.guest.qmp("object-del", id=name)
        self.settle()
        assert held(self.machine) == self.before


@given(
    operations=st.lists(OPERATIONS, min_size=1, max_size=size(12, 40)),
    ioapic=st.sampled_from(["kvm", "qemu"]),
    cpus=st.sampled_from([1, 2]),
)
@settings(
    max_examples=size(12, 5_000),
    deadline=None,
    derandomize=not FULL,
    # To find the shortest failing order may take minutes, if each of them hangs.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, *size((), (Phase.shrink,))),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_in_any_order_what_is_held_is_explained_and_at_the_end_nothing_is_left(operations, ioapic, cpus):
    stress = Stress(ioapic, cpus)
    with stress.stack:
        for operation in operations:
            stress.do(operation)
        stress.finish()


@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
@pytest.mark.parametrize("how", RESETS)
@pytest.mark.parametrize("road", ROADS)
def test_a_reset_while_the_line_is_high_lowers_it_and_leaves_the_device_usable(vm, monkeypatch, road, how, ioapic):
    guest = vm("pc", kernel=g.path("hotplug"), append="n=3 hold cycle", options={"ioapic": ioapic}, trace=False)
    machine = guest.machine
    device = plug(machine, road, "d", 4)
    levels = []
    power_on = machine.power_on

    def watched():
        levels.append((device.intx_level, any(machine.ioapic.sources)))
        power_on()
        levels.append((device.intx_level, any(machine.ioapic.sources)))

    for _ in range(size(2, 50)):
        guest.wait_serial(r"^\+4$")
        monkeypatch.setattr(machine, "power_on", watched)
        raised = device.stats()["raised"]
        guest.forget()
        reset(guest, how)
        guest.wait_serial(r"^\+4$")
        assert levels[-2:] == [(True, True), (False, False)]
        assert device.stats()["raised"] == raised + 4
