"""Routes, source ids, structures, and the parts of the VM's interface that are not irqfds."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.i8259 import Pic
from tests.support.kvm_rig import LEVEL, KvmRig
from vmm.errors import ConfigError
from vmm.kernel.eoifd import KVM_CAP_IRQFD_LEVEL
from vmm.kernel.files import DescriptorTable
from vmm.kernel.gsi import (
    KVM_IRQ_ROUTING_IRQCHIP,
    IrqSourceIds,
    KvmIrqLevel,
    KvmIrqRoutingEntry,
    Route,
    RoutingTable,
    default_routing,
)
from vmm.kernel.irqfd import KvmIrqfd
from vmm.kernel.kvm import KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQFD, KVM_CAP_IRQFD_RESAMPLE, Vm
from vmm.order import Executor


def refused(number: int):
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


def vm(**options) -> Vm:
    return Vm(DescriptorTable(), Executor(), **options)


@pytest.mark.parametrize(
    "route",
    [
        Route.irqchip(5, 2, 24),
        Route.irqchip(5, 3, 0),
        Route.irqchip(5, 0, 8),
        Route.irqchip(5, 1, 8),
        Route.irqchip(4096, 2, 5),
        Route.irqchip(5, 2, 5)._replace(flags=1),
        Route.msi(5, 0xFEE00000, 0x41)._replace(flags=2),
        Route(5, 4),
    ],
)
def test_route_that_cannot_be_is_einval_and_the_old_table_stays(route):
    kvm = vm()
    before = kvm.gsis.table
    with refused(errno.EINVAL):
        kvm.set_gsi_routing([route])
    assert kvm.gsis.table is before


def test_gsi_reaches_each_chip_once_and_a_message_alone():
    RoutingTable([Route.irqchip(5, 0, 5), Route.irqchip(5, 2, 5)])
    for second in (Route.irqchip(5, 2, 6), Route.msi(5, 0xFEE00000, 0x41)):
        with refused(errno.EINVAL):
            RoutingTable([Route.irqchip(5, 2, 5), second])


def test_too_many_routes_are_einval():
    with refused(errno.EINVAL):
        vm().set_gsi_routing([Route.msi(n % 4096, 0xFEE00000, 0) for n in range(4097)])


def test_split_irqchip_takes_messages_only_and_line_drives_them():
    rig = KvmRig(irqchip="split")
    with refused(errno.EINVAL):
        rig.vm.set_gsi_routing([Route.irqchip(5, 2, 5)])
    rig.vm.set_gsi_routing([Route.msi(5, 0xFEE00000, 0x41)])
    assert rig.line(5, 1) == 1
    assert rig.line(5, 0) == -1
    assert rig.inta() == 0x41
    with refused(errno.ENXIO):
        rig.vm.get_irqchip(2)


def test_default_routing_reaches_pic_and_ioapic_of_one_gsi_and_sums_their_answers():
    rig = KvmRig()
    pic = Pic("kvm")
    rig.vm.connect(pic=pic)
    rig.vm.set_gsi_routing(default_routing())
    rig.redir(5, LEVEL | 0x51)
    assert rig.line(5, 1) == 2
    assert rig.line(5, 0) == 2
    assert rig.line(16, 1) == -1
    assert rig.vm.get_irqchip(0)[1] == 0x20  # irr of the master: edge pins latch


def test_pic_eoi_reaches_the_resampler_of_its_gsi():
    rig = KvmRig()
    pic = Pic("kvm")
    rig.vm.connect(pic=pic)
    rig.vm.set_gsi_routing(default_routing())
    for gsi in (5, 13):
        _, r = rig.pair(gsi)
        rig.vm.pic_acks.notify_acked(gsi)
        assert rig.count(r) == 1


def test_irqfd_on_a_message_route_injects_without_a_work():
    rig = KvmRig()
    rig.vm.set_gsi_routing([Route.msi(5, 0xFEE00000, 0x41)])
    a = rig.efd()
    rig.assign(a)
    rig.files.write(a, 1)
    assert not rig.executor.pending
    assert rig.inta() == 0x41


def test_route_change_renews_what_irqfds_cached():
    rig = KvmRig()
    a = rig.efd()
    rig.assign(a)
    rig.vm.set_gsi_routing([Route.msi(5, 0xFEE00000, 0x41)])
    rig.write(a)
    assert rig.inta() == 0x41


def test_signal_msi_delivers_and_refuses_unknown_flags():
    rig = KvmRig()
    assert rig.vm.signal_msi(0xFEE00000, 0, 0x41) == 1
    with refused(errno.EINVAL):
        rig.vm.signal_msi(0xFEE00000, 0, 0x41, flags=2)
    with refused(errno.EINVAL):
        vm(irqchip="none").signal_msi(0xFEE00000, 0, 0x41)


def test_irqchip_state_survives_get_and_set():
    rig = KvmRig()
    rig.redir(5, LEVEL | 0x51)
    data = rig.vm.get_irqchip(2)
    assert len(data) == 216
    rig.redir(5, 0x61)
    rig.vm.set_irqchip(2, data)
    assert rig.vm.get_irqchip(2) == data
    with refused(errno.ENXIO):
        rig.vm.get_irqchip(0)  # no PIC is connected


def test_extensions_depend_on_the_era():
    assert vm().check_extension(KVM_CAP_IRQFD_RESAMPLE) == 1
    assert vm().check_extension(KVM_CAP_IRQFD_LEVEL) == 0
    assert vm(era_name="v5").check_extension(KVM_CAP_IRQFD_LEVEL) == 1
    assert vm().check_extension(KVM_CAP_IRQ_ROUTING) == 4096
    assert (vm().check_extension(KVM_CAP_IRQFD), vm().check_extension(9999)) == (1, 0)


def test_unknown_era_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"v5, 3\.8, 5\.11, 6\.3, 6\.18"):
        vm(era_name="7.0")


@pytest.mark.parametrize(("era", "reserved"), [("6.18", 3), ("6.3", 2), ("v5", 1)])
def test_fixed_source_ids_of_each_era(era, reserved):
    assert vm(era_name=era).gsis.sources.live() == reserved


def test_source_ids_are_given_lowest_first_until_efault():
    ids = IrqSourceIds([0, 2], capacity=4)
    assert [ids.request(), ids.request()] == [1, 3]
    with refused(errno.EFAULT):
        ids.request()
    ids.free(1)
    ids.free(99)
    assert ids.request() == 1
    ids.free(0)
    assert ids.request() == 0
    assert IrqSourceIds([], capacity=1).request() == 0


@given(st.lists(st.integers(0, 9), max_size=40))
def test_source_id_given_is_always_the_lowest_free(frees):
    ids = IrqSourceIds([0], capacity=10)
    used = {0}
    for source in frees:
        if source in used and source:
            ids.free(source)
            used.discard(source)
        elif len(used) < 10:
            got = ids.request()
            assert got == min(set(range(10)) - used)
            used.add(got)
    assert ids.live() == len(used)


def test_structures_have_the_sizes_of_linux_kvm_h():
    assert KvmIrqfd.sizeof() == 32
    assert KvmIrqLevel.sizeof() == 8
    for route in (Route.irqchip(5, 2, 7), Route.msi(9, 0x1_FEE0_0000, 0x4041)):
        data = route.build()
        assert len(data) == 48
        assert Route.parse(data) == route
    assert KvmIrqRoutingEntry.parse(Route.irqchip(5, 2, 7).build()).type == KVM_IRQ_ROUTING_IRQCHIP


def test_table_tells_its_routes():
    routes = (Route.irqchip(5, 2, 5), Route.msi(6, 0xFEE00000, 0x41))
    assert RoutingTable(list(routes)).routes == routes


def test_tables_are_told_apart_by_their_routes():
    one, same, other = ([Route.irqchip(5, 2, pin)] for pin in (5, 5, 6))
    assert RoutingTable(one).canonical() == RoutingTable(same).canonical()
    assert RoutingTable(one).canonical() != RoutingTable(other).canonical()


def test_routes_bytes_are_those_of_the_structure():
    pin = struct.pack("<6I24x", 5, 1, 0, 0, 2, 7)
    message = struct.pack("<8I16x", 9, 2, 1, 0, 0xFEE0_1004, 1, 0x4041, 3)
    assert Route.irqchip(5, 2, 7).build() == pin
    assert Route.parse(pin) == Route(gsi=5, kind=1, chip=2, pin=7, address=0, data=0, flags=0, devid=0)
    assert Route.msi(9, 0x1_FEE0_1004, 0x4041)._replace(flags=1, devid=3).build() == message
    assert Route.parse(message) == Route(
        gsi=9, kind=2, chip=0, pin=0, address=0x1_FEE0_1004, data=0x4041, flags=1, devid=3
    )


def test_route_of_a_message_has_no_device_id_unless_it_is_given():
    assert Route.parse(Route.msi(6, 0xFEE00000, 0x41).build()).devid == 0
    assert (Route(5, 1).chip, Route(5, 1).pin) == (0, 0)
