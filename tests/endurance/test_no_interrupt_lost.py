"""No level interrupt is lost and none is invented: the guest's counts are the device's own."""

from __future__ import annotations

import random

import pytest

import guest_images as g
from support.endurance import DEBUG_EXIT, EDU, FORWARDED, IRQFD, PASSED, ROADS, plug, size
from vmm.attribution import Attribution

INTERRUPTS = size(1_000, 100_000)
SHARED = size(500, 50_000)
BY_ANY_CPU = size(200, 25_000)
BY_THEMSELVES = size(300, 20_000)


def boot(vm, image, append, roads, sink=None, **more):
    """A guest with one edu for each road, all on one pin; `sink` gets the trace."""
    guest = vm("pc", kernel=g.path(image), append=append, devices=[DEBUG_EXIT], trace=False, **more)
    if sink is not None:
        guest.machine.trace.listen(sink)
    return guest, [plug(guest.machine, road, f"d{i}", 4 + 4 * i) for i, road in enumerate(roads)]


def check_counts(guest, devices, n):
    """Every interrupt that the devices raised was handled once."""
    lines = list(g.INTX_LOOP_DEVICE.finditer(guest.serial))
    assert [(int(line["raised"]), int(line["handled"])) for line in lines] == [(n, n)] * len(devices)
    # The guest acknowledges once more at the start, whatever may be left from before it.
    assert [device.stats() for device in devices] == [{"raised": n, "acked": n + 1}] * len(devices)
    return sum(int(line["spurious"]) for line in lines[:1])


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
@pytest.mark.parametrize("road", ROADS)
def test_a_device_alone_on_its_pin_loses_no_interrupt_and_gets_no_spurious_one(vm, road, ioapic, cpus):
    guest, devices = boot(vm, "intx_loop", f"n={INTERRUPTS}", [road], cpus=cpus, options={"ioapic": ioapic})
    assert guest.wait_exit() == PASSED
    assert check_counts(guest, devices, INTERRUPTS) == 0


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
@pytest.mark.parametrize(
    "roads",
    [(EDU, EDU), (EDU, IRQFD), (EDU, FORWARDED), (IRQFD, IRQFD), (IRQFD, FORWARDED), (FORWARDED, FORWARDED)],
    ids=" and ".join,
)
def test_two_devices_on_one_pin_lose_no_interrupt_and_each_spurious_one_has_a_cause(vm, roads, ioapic, cpus):
    trace = Attribution()
    guest, devices = boot(vm, "intx_loop", f"n={SHARED}", roads, trace, cpus=cpus, options={"ioapic": ioapic})
    assert guest.wait_exit() == PASSED
    assert check_counts(guest, devices, SHARED) == len(trace.spurious)
    assert trace.unattributed == []
    assert trace.taken >= SHARED


@pytest.mark.parametrize("append", ["", "rotate"], ids=["lowest priority", "rotating"])
@pytest.mark.parametrize("cpus", [2, 4])
@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
def test_interrupts_that_any_cpu_raises_and_any_cpu_handles_are_all_handled(vm, ioapic, cpus, append):
    roads = (EDU, IRQFD, IRQFD, FORWARDED)
    trace = Attribution()
    options = {"ioapic": ioapic}
    guest, devices = boot(vm, "smp_intx", f"n={BY_ANY_CPU} {append}", roads, trace, cpus=cpus, options=options)
    assert guest.wait_exit() == PASSED
    lines = list(g.SMP_INTX_DEVICE.finditer(guest.serial))
    assert [(int(line["raised"]), int(line["handled"])) for line in lines] == [(BY_ANY_CPU, BY_ANY_CPU)] * len(roads)
    assert [device.stats()["raised"] for device in devices] == [BY_ANY_CPU] * len(roads)
    processors = list(g.SMP_INTX_CPU.finditer(guest.serial))
    assert sum(int(cpu["handled"]) for cpu in processors) == len(roads) * BY_ANY_CPU
    if append:
        assert all(int(cpu["handled"]) > 0 for cpu in processors)
    assert sum(int(cpu["spurious"]) for cpu in processors) == len(trace.spurious)
    assert trace.unattributed == []


class Interrupter:
    """A device that raises its line whenever it is served, at times of its own: `n` times in all."""

    def __init__(self, machine, edu, n, seed):
        self.machine, self.edu, self.left = machine, edu, n
        self.random = random.Random(seed)
        self.timer = machine.clock.timer("interrupter", self.fire)
        self.again()

    def again(self):
        self.timer.arm(self.machine.clock.now() + self.random.randrange(500, 200_000))

    def fire(self):
        if not self.edu.irq_status:
            self.edu.raise_irq(1)
            self.left -= 1
        if self.left:
            self.again()


@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
@pytest.mark.parametrize(
    "roads", [(EDU, IRQFD), (IRQFD, IRQFD), (IRQFD, FORWARDED), (EDU, IRQFD, FORWARDED)], ids=" and ".join
)
def test_devices_that_raise_at_any_instruction_lose_no_interrupt(vm, roads, ioapic):
    trace = Attribution()
    guest, devices = boot(vm, "hotplug", "n=1", roads, trace, options={"ioapic": ioapic})
    guest.wait_serial(g.HOTPLUG_READY)
    for i in range(len(roads)):
        guest.wait_serial(f"slot {4 + 4 * i} handled 1 spurious 0$")
    raisers = [Interrupter(guest.machine, device, BY_THEMSELVES, seed) for seed, device in enumerate(devices)]
    guest.wait_for(lambda: not any(r.left or r.edu.irq_status for r in raisers), "end of all interrupts")
    guest.type(g.HOTPLUG_QUIT.decode())
    assert guest.wait_exit() == PASSED
    assert g.HOTPLUG_STUCK.search(guest.serial) is None
    summary = g.HOTPLUG_SUMMARY.search(guest.serial)
    assert int(summary["handled"]) == len(devices) * (BY_THEMSELVES + 1)
    assert [device.stats()["raised"] for device in devices] == [BY_THEMSELVES + 1] * len(devices)
    assert int(summary["spurious"]) == len(trace.spurious)
    assert trace.unattributed == []


class Latecomers:
    """Devices that raise their lines in the middle of a handler: just when it acknowledges another one. Often it has
    looked at them before. A sink of the trace; `left` raises are still to come."""

    def __init__(self, edus, n):
        self.edus, self.left = edus, n
        self.raised = 0

    def __call__(self, record):
        event = record.event
        if event.name == "pci_set_intx" and not event.level and self.left:
            names = [edu.label for edu in self.edus]
            if event.device in names:
                self.raise_next(names.index(event.device))

    def raise_next(self, after):
        """The first idle one behind that device."""
        for i in range(1, len(self.edus)):
            edu = self.edus[(after + i) % len(self.edus)]
            if not edu.irq_status:
                self.left -= 1
                self.raised += 1
                edu.raise_irq(1)
                return


@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
@pytest.mark.parametrize(
    "roads",
    [(EDU, EDU), (EDU, IRQFD), (IRQFD, IRQFD), (FORWARDED, FORWARDED), (EDU, IRQFD, FORWARDED)],
    ids=" and ".join,
)
def test_a_device_that_raises_behind_the_handlers_back_is_served_after_the_eoi(vm, roads, ioapic):
    trace = Attribution()
    guest, devices = boot(vm, "hotplug", "n=1", roads, trace, options={"ioapic": ioapic})
    guest.wait_serial(g.HOTPLUG_READY)
    for i in range(len(roads)):
        guest.wait_serial(f"slot {4 + 4 * i} handled 1 spurious 0$")
    latecomers = Latecomers(devices, BY_THEMSELVES)
    guest.machine.trace.listen(latecomers, "pci_set_intx")
    latecomers.raise_next(0)
    guest.wait_for(lambda: not latecomers.left and not any(d.irq_status for d in devices), "end of all interrupts")
    guest.type(g.HOTPLUG_QUIT.decode())
    assert guest.wait_exit() == PASSED
    summary = g.HOTPLUG_SUMMARY.search(guest.serial)
    assert int(summary["handled"]) == latecomers.raised + len(roads)
    assert int(summary["spurious"]) == len(trace.spurious)
    assert trace.unattributed == []
