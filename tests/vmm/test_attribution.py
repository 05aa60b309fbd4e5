"""Which spurious interrupt has which cause, told event by event."""

from __future__ import annotations

import json

import pytest

from vmm.attribution import Attribution, Cause
from vmm.errors import TraceError

LEVEL_51 = 0x8051
PIN = 11


class Story:
    """Builds a trace: devices a and b on the pin's PIRQ, one CPU."""

    def __init__(self):
        self.events = []
        self("pci_route_irq", pirq=3, irq=PIN)
        self("ioapic_write_redirection", pin=PIN, entry=LEVEL_51)
        for device in "ab":
            self("pci_wire_intx", device=device, bus="pci.0", pirq=3, wired=True)

    def __call__(self, event, **fields):
        self.events.append({"t": 1000 * len(self.events), "n": len(self.events), "event": event, **fields})

    def line(self, device, level):
        self("pci_set_intx", device=device, level=level, disabled=False)

    def deliver(self):
        self("ioapic_set_remote_irr", pin=PIN)

    def take(self):
        self("cpu_takes_interrupt", cpu=0, vector=0x51, pic=False)

    def eoi(self, again=False):
        self("apic_eoi", cpu=0, vector=0x51)
        self("ioapic_eoi_broadcast", vector=0x51)
        self("kvm_ack_irq", chip=2, pin=PIN, gsi=PIN)
        self("ioapic_clear_remote_irr", pin=PIN, vector=0x51)
        if again:
            self.deliver()

    def serve(self, again=False):
        self.take()
        self.eoi(again)

    def vfio(self, device, road="kvm"):
        self("vfio_intx_enable", device=device, user=f"{device}-user", road=road, gsi=PIN)

    def interrupt(self, device):
        self.line(device, True)
        self("vfio_intx_interrupt", device=device, signalled=True)

    def causes(self):
        found = Attribution().read(f"{json.dumps(event)}\n" for event in self.events)
        return found.taken, [(one.cause, one.device) for one in found.spurious]


@pytest.fixture
def story():
    return Story()


def test_an_interrupt_that_its_device_wants_is_not_spurious(story):
    story.line("a", True)
    story.deliver()
    story.take()
    story.line("a", False)
    story.eoi()
    assert story.causes() == (1, [])


def test_a_device_that_comes_while_the_handler_looks_makes_it_wanted(story):
    story.line("a", True)
    story.deliver()
    story.line("a", False)
    story.take()
    story.line("b", True)
    story.line("b", False)
    story.eoi()
    assert story.causes() == (1, [])


def test_a_device_that_comes_too_late_for_the_handler_does_not(story):
    story.line("a", True)
    story.deliver()
    story.line("a", False)
    story.take()
    story.line("b", True)
    story.eoi(again=True)
    story.take()
    story.line("b", False)
    story.eoi()
    assert story.causes() == (2, [(Cause.WITHDRAWN, "a")])


def test_an_eoi_before_the_acknowledgement_is_told_from_a_withdrawn_line(story):
    story.line("a", True)
    story.deliver()
    story.serve(again=True)
    story.line("a", False)
    story.serve()
    assert story.causes() == (2, [(Cause.EOI_FIRST, "a")])


def test_an_unplug_behind_the_delivery_is_the_cause(story):
    story.line("a", True)
    story.deliver()
    story("pci_wire_intx", device="a", bus="pci.0", pirq=3, wired=False)
    story.serve()
    assert story.causes() == (1, [(Cause.DEVICE_LEFT, "a")])


def test_a_member_that_leaves_while_asserted_is_the_cause_until_the_next_eoi_only(story):
    story.vfio("a")
    story.vfio("b")
    story.interrupt("a")
    story("vfio_intx_disable", device="a")
    story.deliver()
    story.serve()
    story.deliver()
    story.serve()
    assert story.causes() == (2, [(Cause.MEMBER_LEFT, "a"), (Cause.UNATTRIBUTED, "")])


def test_the_last_member_must_lower_the_line_so_it_is_no_excuse(story):
    story.vfio("a")
    story.interrupt("a")
    story("vfio_intx_disable", device="a")
    story.deliver()
    story.serve()
    assert story.causes() == (1, [(Cause.UNATTRIBUTED, "")])


def test_a_member_that_left_without_asserting_is_no_excuse(story):
    story.vfio("a")
    story.vfio("b")
    story("vfio_intx_disable", device="a")
    story.deliver()
    story.serve()
    assert story.causes() == (1, [(Cause.UNATTRIBUTED, "")])


@pytest.mark.parametrize("road", ["kvm", "user"])
def test_an_assertion_excuses_only_until_its_eoi(story, road):
    story.vfio("a", road)
    story.interrupt("a")
    story.line("a", False)
    story.deliver()
    story.serve()
    story.deliver()
    story.serve()
    assert story.causes() == (2, [(Cause.LATCHED, "a"), (Cause.UNATTRIBUTED, "")])


def test_the_line_that_a_monitor_raises_for_its_host_device_is_not_a_device_of_its_own(story):
    story.vfio("a", "user")
    story.interrupt("a")
    story("pci_wire_intx", device="a-user", bus="pci.0", pirq=3, wired=True)
    story.line("a-user", True)
    story.line("a", False)
    story.deliver()
    story.serve()
    assert story.causes() == (1, [(Cause.LATCHED, "a")])


def test_what_a_device_in_another_process_asserts_is_taken_for_wanted_once(story):
    story("vfio_intx_enable", device="r", user="r", road="kvm", gsi=PIN)
    story("kvm_irqfd_inject", gsi=PIN, resample=True)
    story.deliver()
    story.serve()
    story.deliver()
    story.serve()
    assert story.causes() == (2, [(Cause.UNATTRIBUTED, "")])


def test_the_line_that_a_monitor_raises_for_a_device_in_another_process_counts(story):
    story("vfio_intx_enable", device="r", user="r", road="user", gsi=PIN)
    story.line("r", True)
    story.deliver()
    story.take()
    story.eoi()
    story.line("r", False)
    assert story.causes() == (1, [])


def test_a_disabled_line_wants_nothing(story):
    story("pci_set_intx", device="a", level=True, disabled=True)
    story.deliver()
    story.serve()
    assert story.causes() == (1, [(Cause.UNATTRIBUTED, "")])


def test_a_device_that_was_routed_elsewhere_since_is_still_found(story):
    story.line("a", True)
    story.deliver()
    story("pci_route_irq", pirq=3, irq=10)
    story.serve()
    assert story.causes() == (1, [])


def test_a_vector_of_no_level_pin_is_not_counted(story):
    story("cpu_takes_interrupt", cpu=0, vector=0x61, pic=False)
    story("apic_eoi", cpu=0, vector=0x61)
    story("cpu_takes_interrupt", cpu=0, vector=0x51, pic=True)
    story("apic_eoi", cpu=0, vector=0x51)
    assert story.causes() == (0, [])


def test_a_reset_forgets_what_cpus_had_taken(story):
    story.deliver()
    story.take()
    story("system_reset", reason="host-qmp-system-reset")
    story("apic_eoi", cpu=0, vector=0x51)
    assert story.causes() == (1, [])


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["nonsense\n"], "line 1 is no trace event"),
        (["[]\n"], "line 1 is no trace event"),
        ([json.dumps({"t": 0, "event": "ioapic_set_remote_irr"}) + "\n"], "has no field 'pin'"),
        ([], "no apic_eoi, cpu_takes_interrupt, ioapic_write_redirection in the trace"),
    ],
)
def test_what_is_no_whole_trace_is_refused(lines, match):
    with pytest.raises(TraceError, match=match):
        Attribution().read(lines)


def test_an_unfinished_last_line_is_left_for_later(story):
    lines = [f"{json.dumps(event)}\n" for event in story.events]
    story.deliver()
    story.serve()
    lines = [f"{json.dumps(event)}\n" for event in story.events]
    assert Attribution().read([*lines, '{"t": 5, "eve']).taken == 1
