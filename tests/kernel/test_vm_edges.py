"""What a VM passes on to its chips and its bus, seen by stand-ins for them."""

from __future__ import annotations

import errno

import pytest

from devices.i8259 import Pic
from tests.support.kvm_rig import LEVEL, MASKED, KvmRig
from vmm.kernel.eoifd import KvmEoifdSignal
from vmm.kernel.files import DescriptorTable
from vmm.kernel.gsi import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_USERSPACE_IRQ_SOURCE_ID,
    KvmAckIrq,
    KvmSetIrq,
    Route,
    default_routing,
)
from vmm.kernel.ioctl import KVM_SET_GSI_ROUTING
from vmm.kernel.irqfd import KvmIrqfdAssign, KvmIrqfdInject, KvmIrqfdShutdown, KvmResample
from vmm.kernel.kvm import Vm
from vmm.lines import Wire
from vmm.order import Executor

RTC = 8
"""The pin whose ticks KVM_IRQ_LINE_STATUS counts, and nothing else."""


def refused(number: int):
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


class Bus:
    """Writes down messages and requests to look at the I/O APIC's entries again."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.scans = 0

    def msi(self, address: int, data: int) -> int:
        self.messages.append((address, data))
        return 1

    def request_scan(self) -> None:
        self.scans += 1


@pytest.fixture
def bus() -> Bus:
    return Bus()


def connected(bus: Bus, irqchip: str = "full") -> Vm:
    kvm = Vm(DescriptorTable(), Executor(), irqchip=irqchip)
    kvm.connect(bus=bus)
    return kvm


def test_message_has_both_halves_of_its_address(bus):
    kvm = connected(bus)
    assert kvm.signal_msi(0xFEE0_1004, 0x1_0200, 0x41) == 1
    assert bus.messages == [(0x1_0200_FEE0_1004, 0x41)]


def test_line_that_is_routed_to_a_message_sends_the_routes_message(bus):
    kvm = connected(bus)
    kvm.set_gsi_routing([Route.msi(40, 0x2_FEE0_3000, 0x99)])
    kvm.irq_line(40, 1)
    assert bus.messages == [(0x2_FEE0_3000, 0x99)]


def test_irqfd_sends_the_message_of_the_route_that_is_there_now(bus):
    kvm = connected(bus)
    kvm.set_gsi_routing([Route.msi(40, 0xFEE0_0000, 0x41)])
    fd = kvm.files.eventfd()
    kvm.irqfd(fd, 40)
    kvm.set_gsi_routing([Route.msi(40, 0xFEE0_1000, 0x42)])
    kvm.files.write(fd, 1)
    kvm.executor.drain()
    assert bus.messages == [(0xFEE0_1000, 0x42)]


@pytest.mark.parametrize(("irqchip", "scans"), [("full", 0), ("split", 1)])
def test_new_routes_make_a_split_irqchip_look_again(bus, irqchip, scans):
    kvm = connected(bus, irqchip)
    kvm.set_gsi_routing([Route.msi(5, 0xFEE0_0000, 0x41)])
    assert bus.scans == scans


def test_resampler_makes_the_apics_look_again_when_it_comes_and_when_it_goes(bus):
    kvm = connected(bus)
    a, r = kvm.files.eventfd(), kvm.files.eventfd()
    kvm.irqfd(a, 5, 2, r)
    assert bus.scans == 1
    kvm.irqfd(a, 5, 1)
    kvm.executor.drain()
    assert bus.scans == 2


def test_route_of_an_unknown_kind_is_einval():
    kvm = Vm(DescriptorTable(), Executor())
    entry = (5).to_bytes(4, "little") + (9).to_bytes(4, "little") + bytes(40)
    with refused(errno.EINVAL):
        kvm.ioctl(KVM_SET_GSI_ROUTING, (1).to_bytes(4, "little") + bytes(4) + entry)


def test_masking_of_a_pin_is_told_to_who_asked_for_its_gsi():
    rig = KvmRig()
    heard: list[tuple[int, bool]] = []
    for gsi in (5, 7):
        rig.vm.gsis.on_mask[gsi] = lambda masked, gsi=gsi: heard.append((gsi, masked))
    rig.route({7: 5, 5: 6})
    rig.redir(5, LEVEL | 0x55)
    rig.redir(5, LEVEL | MASKED | 0x55)
    assert heard == [(7, False), (7, True)]


def test_vm_is_closed_once():
    kvm = Vm(DescriptorTable(), Executor())
    fd = kvm.fd
    kvm.close()
    assert kvm.fd < 0
    assert kvm.files.eventfd() == fd
    kvm.close()
    assert kvm.files.file(fd).refs == 1


# Where a VM's own rules end


def test_gsi_of_an_irqfd_is_any_number_of_32_bits(bus):
    kvm = connected(bus)
    for gsi in (0, 0xFFFF_FFFF):
        fd = kvm.files.eventfd()
        kvm.irqfd(fd, gsi)
        assert [irqfd.gsi for irqfd in kvm.irqfds.items] == [gsi]
        kvm.irqfd(fd, gsi, 1)
    for gsi in (-1, 1 << 32, 1 << 33):
        with refused(errno.EINVAL):
            kvm.irqfd(kvm.files.eventfd(), gsi)


def test_resamplefd_that_is_left_out_is_descriptor_0():
    files = DescriptorTable()
    r, a = files.eventfd(), files.eventfd()
    kvm = Vm(files, Executor())
    kvm.irqfd(a, 5, 2)
    assert kvm.irqfds.items[0].resamplefd is files.file(r).ctx


def test_table_may_be_full():
    kvm = Vm(DescriptorTable(), Executor())
    kvm.set_gsi_routing([Route.msi(gsi, 0xFEE0_0000, 0x41) for gsi in range(4096)])
    assert len(kvm.gsis.table.routes) == 4096


@pytest.mark.parametrize(("irqchip", "flags"), [("none", 0), ("none", 1), ("split", 1), ("full", 1)])
def test_routing_without_a_chip_or_with_flags_is_einval(irqchip, flags):
    kvm = Vm(DescriptorTable(), Executor(), irqchip=irqchip)
    with refused(errno.EINVAL):
        kvm.set_gsi_routing([Route.msi(5, 0xFEE0_0000, 0x41)], flags)


def test_wire_of_the_board_drives_its_gsi_for_user_space():
    rig = KvmRig()
    rig.redir(5, LEVEL | 0x55)
    wire = Wire("gsi-5", rig.vm.gsi_target(5))
    line = wire.hold("device")
    line.set(True)
    assert rig.ioapic.sources[5] == 1 << KVM_USERSPACE_IRQ_SOURCE_ID
    assert rig.inta() == 0x55
    line.close()
    assert not rig.irr()


def test_message_of_a_vm_without_apics_reaches_nobody():
    kvm = Vm(DescriptorTable(), Executor())
    assert kvm.signal_msi(0xFEE0_0000, 0, 0x41) == -1


def test_events_on_the_rtcs_pin_are_no_ticks_unless_their_caller_looks():
    """A tick that comes before the last one's EOI is coalesced; another event is latched."""
    rig = KvmRig()
    rig.redir(RTC, 0x58)
    a = rig.efd()
    rig.assign(a, RTC)

    def pulse() -> None:
        rig.vm.irq_line(RTC, 1)
        rig.vm.irq_line(RTC, 0)

    for act in (pulse, lambda: rig.write(a)):
        for _ in range(2):
            act()
        assert rig.inta() == 0x58
        act()
        rig.eoi()
        assert rig.inta() == 0x58
        rig.eoi()
    assert [rig.line(RTC, 1), rig.line(RTC, 0), rig.line(RTC, 1)] == [1, 1, 0]


@pytest.mark.parametrize("chip", [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC])
def test_chips_state_is_read_and_set_by_its_number(chip):
    rig = KvmRig()
    pic = Pic("kvm")
    rig.vm.connect(pic=pic)
    before = {n: rig.vm.get_irqchip(n) for n in range(3)}
    pic.write(pic.master, 1, 0xFE)
    pic.write(pic.slave, 1, 0xFD)
    rig.redir(5, LEVEL | 0x51)
    changed = {n: rig.vm.get_irqchip(n) for n in range(3)}
    assert all(before[n] != changed[n] for n in range(3))
    rig.vm.set_irqchip(chip, before[chip])
    assert {n: rig.vm.get_irqchip(n) for n in range(3)} == {**changed, chip: before[chip]}


@pytest.mark.parametrize("irqchip", ["full", "split", "none"])
def test_chip_that_is_not_in_the_kernel_has_no_state_there(irqchip):
    rig = KvmRig(irqchip=irqchip)
    state = bytes(216)
    for chip in (0, 1, 2, 3):
        here = irqchip == "full" and chip == KVM_IRQCHIP_IOAPIC
        for call in (rig.vm.get_irqchip, lambda chip: rig.vm.set_irqchip(chip, state)):
            if here:
                call(chip)
                continue
            with refused(errno.ENXIO):  # KvmRig has no PIC
                call(chip)
    rig.vm.connect(ioapic=rig.ioapic, pic=Pic("kvm"))
    for call in (rig.vm.get_irqchip, lambda chip: rig.vm.set_irqchip(chip, state)):
        for chip in (3, -1):
            with refused(errno.EINVAL if irqchip == "full" else errno.ENXIO):
                call(chip)
        if irqchip != "full":
            for chip in (0, 1, 2):
                with refused(errno.ENXIO):
                    call(chip)


def test_extensions_that_are_there_are_1():
    kvm = Vm(DescriptorTable(), Executor())
    found = {number: value for number in range(300) if (value := kvm.check_extension(number))}
    assert found == {0: 1, 25: 4096, 26: 1, 32: 1, 77: 1, 82: 1, 121: 1}
    posted = Vm(DescriptorTable(), Executor(), era_name="v5")
    found = {number: value for number in range(300) if (value := posted.check_extension(number))}
    assert found == {0: 1, 25: 4096, 26: 1, 32: 1, 77: 1, 81: 1, 82: 1, 83: 1, 121: 1}


# Guests


def test_guests_eoi_at_the_pic_is_told_to_the_resampler_of_its_gsi():
    rig = KvmRig()
    pic = Pic("kvm")
    rig.vm.connect(pic=pic)
    rig.vm.set_gsi_routing(default_routing())
    for chip, vector in ((pic.master, 0x30), (pic.slave, 0x38)):
        for value in (vector, 4 if chip is pic.master else 2, 1, 0):
            if value == vector:
                pic.write(chip, 0, 0x11)
            pic.write(chip, 1, value)
    for gsi, vector in ((5, 0x35), (13, 0x3D)):
        a, r = rig.pair(gsi)
        rig.write(a)
        assert pic.intack() == vector
        assert rig.count(r) == 0
        for chip in (pic.slave, pic.master) if gsi > 7 else (pic.master,):
            pic.write(chip, 0, 0x20)
        assert rig.count(r) == 1
        assert not pic.irq_states[gsi]


def test_unmasking_asks_the_resampler_of_gsi_0():
    rig = KvmRig()
    a, r = rig.pair(0)
    rig.redir(0, MASKED | LEVEL | 0x50)
    rig.write(a)
    rig.redir(0, LEVEL | 0x50)
    assert (rig.inta(), rig.count(r)) == (-1, 1)


def test_unmasking_a_pin_without_a_gsi_asks_nobody():
    rig = KvmRig()
    _, r = rig.pair(5)
    rig.line(5, 1)
    rig.redir(5, MASKED | LEVEL | 0x55)
    rig.route({6: 6})
    rig.redir(5, LEVEL | 0x55)
    assert (rig.inta(), rig.count(r)) == (0x55, 0)


# What is told of it


def traced(rig: KvmRig) -> list:
    events = []
    rig.trace.listen(lambda record: events.append(record.event), "kvm_*")
    return events


def test_trace_tells_the_life_of_a_resampling_irqfd():
    rig = KvmRig()
    rig.redir(5, LEVEL | 0x55)
    events = traced(rig)
    a, r = rig.pair()
    rig.write(a)
    rig.inta()
    rig.eoi()
    rig.deassign(a)
    assert rig.count(r) == 1
    assert events == [
        KvmIrqfdAssign(a, 5, True),
        KvmIrqfdInject(5, True),
        KvmSetIrq(5, 1, 1),
        KvmAckIrq(KVM_IRQCHIP_IOAPIC, 5, 5),
        KvmSetIrq(5, 0, 1),
        KvmResample(5, 1),
        KvmSetIrq(5, 0, 1),
        KvmIrqfdShutdown(5),
    ]


def test_trace_tells_the_pulse_of_a_plain_irqfd_and_an_eoi_without_a_gsi():
    rig = KvmRig()
    rig.redir(5, LEVEL | 0x55)
    a = rig.efd()
    events = traced(rig)
    rig.assign(a)
    rig.write(a)
    rig.route({6: 6})
    rig.inta()
    rig.eoi()
    assert events == [
        KvmIrqfdAssign(a, 5, False),
        KvmIrqfdInject(5, False),
        KvmSetIrq(5, 1, 0),
        KvmSetIrq(5, 0, 0),
        KvmAckIrq(KVM_IRQCHIP_IOAPIC, 5, -1),
    ]


@pytest.mark.parametrize("rule", ["eoifd-v5", "eoifd-v5:deassert=clear-irq"])
def test_trace_tells_how_an_eoifd_lowers_its_line(rule):
    rig = KvmRig(policy=rule)
    rig.redir(5, LEVEL | 0x55)
    e, f = rig.efd(), rig.efd()
    rig.vm.irqfd(e, 5, 2)
    rig.vm.eoifd(f, 2, e)
    events = traced(rig)
    rig.write(e)
    rig.inta()
    rig.eoi()
    rig.line(5, 1)
    rig.inta()
    rig.eoi()
    assert events == [
        KvmIrqfdInject(5, True),
        KvmSetIrq(5, 1, 1),
        KvmAckIrq(KVM_IRQCHIP_IOAPIC, 5, 5),
        KvmSetIrq(5, 0, 1),
        KvmEoifdSignal(5, 1),
        KvmSetIrq(5, 1, 0),
        KvmAckIrq(KVM_IRQCHIP_IOAPIC, 5, 5),
    ]
