"""The real KVM behind the model's interface."""

import os
import struct

import pytest

from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, Route
from vmm.kernel.hostkvm import HostVm, pinned
from vmm.kernel.hostkvm_guest import MailboxGuest, UserMmio, UserPort
from vmm.kernel.hostkvm_probe import probe, probed
from vmm.lines import Wire

pytestmark = pytest.mark.kvm

EOI = 0xFEE0_00B0
REMOTE_IRR = 1 << 14


class Rig:
    """A VM with one CPU, GSI n on pin n, local APIC enabled."""

    def __init__(self, vm):
        self.vm = vm
        self.guest = MailboxGuest(vm)
        self.cpu = vm.add_cpu()
        self.guest.start(self.cpu)
        self.guest.call(self.cpu, "write32", 0xFEE0_00F0, 0x1FF)
        vm.set_gsi_routing([Route.irqchip(n, KVM_IRQCHIP_IOAPIC, n) for n in range(24)])

    def redir(self, pin, entry):
        self.guest.call(self.cpu, "wreg", 0x11 + 2 * pin, entry >> 32)
        self.guest.call(self.cpu, "wreg", 0x10 + 2 * pin, entry & 0xFFFF_FFFF)

    def eoi(self):
        self.guest.call(self.cpu, "write32", EOI, 0)

    def entry(self, pin):
        state = self.vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
        return struct.unpack_from("<Q", state, 24 + 8 * pin)[0]


@pytest.fixture
def rig(kvm):
    with pinned(), HostVm(kvm) as vm:
        yield Rig(vm)


@pytest.fixture
def eventfds():
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_resampling_irqfd_goes_round_the_kernels_loop(rig, eventfds):
    trigger, resample = eventfds
    rig.redir(10, 0x8061)
    rig.vm.irqfd(trigger, 10, 2, resample)
    os.eventfd_write(trigger, 1)
    rig.vm.settle()
    assert rig.cpu.acknowledge() == 0x61
    assert rig.entry(10) & REMOTE_IRR
    rig.eoi()
    assert os.eventfd_read(resample) == 1
    assert not rig.entry(10) & REMOTE_IRR
    assert rig.cpu.acknowledge() == -1


def test_wire_drives_the_kernels_pin(rig):
    rig.redir(7, 0x8051)
    wire = Wire("intx")
    wire.connect(rig.vm.gsi_target(7))
    holder = wire.hold("device")
    holder.set(True)
    assert rig.cpu.acknowledge() == 0x51
    holder.set(False)
    rig.eoi()
    assert not rig.entry(7) & REMOTE_IRR


def test_second_irqfd_of_an_eventfd_is_busy(rig, eventfds):
    rig.vm.irqfd(eventfds[0], 5)
    with pytest.raises(OSError, match="busy"):
        rig.vm.irqfd(eventfds[0], 6)


def test_message_to_nobody_returns_minus_one_as_the_model_does(rig):
    assert rig.vm.signal_msi(0xFEE0_0000, 0, 0x51) == 1
    assert rig.vm.signal_msi(0xFEE0_9004, 0, 0x51) in (0, -1)
    rig.guest.call(rig.cpu, "write32", 0xFEE0_00E0, 0x0FFF_FFFF)  # cluster model: CPUs are asked one by one
    rig.guest.call(rig.cpu, "write32", 0xFEE0_00D0, 0x1300_0000)
    assert rig.vm.signal_msi(0xFEE0_9004, 0, 0x51) == -1


def test_ioapic_state_goes_back_as_it_came(rig):
    rig.redir(3, 0x0100_0000_0000_0851)
    state = rig.vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
    rig.vm.set_irqchip(KVM_IRQCHIP_IOAPIC, state)
    assert rig.vm.get_irqchip(KVM_IRQCHIP_IOAPIC) == state
    assert len(state) == 216


def test_unknown_chip_is_refused_with_the_kernels_errno(rig):
    with pytest.raises(OSError, match="Invalid argument"):
        rig.vm.get_irqchip(3)


def test_settling_leaves_no_trace_in_the_pic(rig):
    before = rig.vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER)
    rig.vm.settle()
    rig.vm.settle()
    assert rig.vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER) == before


def test_access_that_nobody_in_the_kernel_answers_is_told(rig):
    assert rig.guest.call(rig.cpu, "read16", 0xFEC0_0100) == UserMmio(False, 0xFEC0_0100, 2)
    assert rig.guest.call(rig.cpu, "write8", 0xFED0_0000, 7) == UserMmio(True, 0xFED0_0000, 1)
    # and the guest goes on
    rig.guest.call(rig.cpu, "write64", 0x30000, 0x1122_3344_5566_7788)
    assert rig.guest.call(rig.cpu, "read8", 0x30001) == 0x77


def test_port_that_nobody_in_the_kernel_answers_is_told_and_reads_0(rig):
    assert rig.guest.call(rig.cpu, "out8", 0x99, 0xA5) == UserPort(True, 0x99, 1)
    assert rig.guest.call(rig.cpu, "in8", 0x99) == UserPort(False, 0x99, 1)
    assert rig.vm.memory[0x20018:0x20020] == bytes(8)
    rig.guest.call(rig.cpu, "write8", 0x30000, 9)
    assert rig.guest.call(rig.cpu, "read8", 0x30000) == 9
    assert rig.guest.call(rig.cpu, "in8", 0x21) == rig.vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER)[2]  # the PIC's mask


def test_closing_twice_is_fine_and_unpins_memory(kvm):
    vm = HostVm(kvm)
    vm.add_cpu()
    vm.close()
    vm.close()
    assert vm.memory.closed


def test_device_is_probed_once(kvm):  # noqa: ARG001
    assert probed() is probed()
    assert probed().reason == ""


def test_pinning_gives_the_threads_cpus_back():
    before = os.sched_getaffinity(0)
    with pinned():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_probe_of_a_working_device_says_what_it_is_good_for(kvm):
    found = probe(kvm.path)
    assert found.oracle
    assert found.reason == ""
    assert [step.name for step in found.steps[:4]] == ["open", "extensions", "run", "oracle"]
    assert [s.ok for s in found.steps if s.name == "faithful injection"] == [found.faithful_injection]
