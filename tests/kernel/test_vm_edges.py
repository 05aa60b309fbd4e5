"""What a VM passes on to its chips and its bus, seen by stand-ins for them."""

from __future__ import annotations

import errno

import pytest

from tests.support.kvm_rig import LEVEL, MASKED, KvmRig
from vmm.kernel.files import DescriptorTable
from vmm.kernel.gsi import Route
from vmm.kernel.ioctl import KVM_SET_GSI_ROUTING
from vmm.kernel.kvm import Vm
from vmm.order import Executor


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
    with pytest.raises(OSError, match=rf"\[Errno {errno.EINVAL}\]"):
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
