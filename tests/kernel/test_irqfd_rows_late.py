"""irqfd and resamplefd as recorded on Linux 6.18: rows 25 to 49 of the table in docs/irqfd.md."""

from __future__ import annotations

import errno

import pytest

from tests.support.kvm_rig import LEVEL, MASKED, KvmRig
from vmm.kernel.files import POLLERR, U64_MAX, File
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.kvm import Vm


@pytest.fixture
def rig() -> KvmRig:
    rig = KvmRig()
    rig.redir(5, LEVEL | 0x51)
    return rig


def refused(number: int):
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


def test_row_25_deassign_through_a_dup_works(rig):
    a, _ = rig.pair()
    rig.deassign(rig.files.dup(a))
    assert rig.vm.irqfds.items == ()


def test_row_26_deassign_drains_a_and_pending_counts_inject_at_the_next_assign(rig):
    a, r = rig.efd(3), rig.efd()
    rig.redir(5, MASKED | LEVEL | 0x51)
    rig.assign(a, 5, r)
    rig.deassign(a)
    assert rig.count(a) == 0
    rig.write(a, 2)
    assert rig.files.file(a).ctx.count == 2
    rig.assign(a, 5, r)
    assert rig.irr()


def test_row_27_reassign_in_service_lowers_and_the_next_eoi_signals(rig):
    a, r = rig.pair()
    rig.write(a)
    rig.inta()
    rig.deassign(a)
    rig.assign(a, 5, r)
    assert not rig.irr()
    rig.eoi()
    assert rig.count(r) == 1


@pytest.mark.parametrize("when", ["idle", "asserted", "in service"])
def test_row_28_close_of_the_last_reference_is_a_deassign(rig, when):
    a, r = rig.pair()
    if when != "idle":
        rig.write(a)
    if when == "in service":
        assert rig.inta() == 0x51
    rig.close(a)
    assert not rig.irr()
    assert rig.vm.irqfds.resamplers == ()
    if when == "asserted":
        assert rig.inta() == 0x51
    if when != "idle":
        rig.eoi()
        assert not rig.remote_irr()
    assert rig.count(r) == 0


def test_row_29_irqfd_lives_through_a_dup_or_a_child_until_the_last_goes(rig):
    a, _ = rig.pair()
    b = rig.files.dup(a)
    child = rig.files.fork()
    rig.close(a)
    rig.write(b)
    assert rig.inta() == 0x51
    rig.close(b)
    assert len(rig.vm.irqfds.items) == 1
    child.close_all()
    rig.drain()
    assert rig.vm.irqfds.items == ()


def test_row_30_close_of_r_changes_nothing(rig):
    a, r = rig.pair()
    other = rig.files.dup(r)
    rig.close(r)
    rig.write(a)
    rig.inta()
    rig.eoi()
    assert rig.count(other) == 1
    rig.close(other)
    rig.write(a)
    assert rig.inta() == 0x51
    rig.eoi()
    assert not rig.irr()


def test_row_31_r_saturates_without_an_error(rig):
    a, r = rig.pair()
    rig.files.write(r, U64_MAX - 1)
    for _ in range(2):
        rig.write(a)
        rig.inta()
        rig.eoi()
    assert rig.files.file(r).ctx.count == U64_MAX
    assert rig.files.poll(r) & POLLERR


def test_row_32_a_as_its_own_r_asserts_for_ever_until_deassigned(rig):
    a = rig.efd()
    rig.assign(a, 5, a)
    rig.write(a)
    for _ in range(5):
        assert rig.inta() == 0x51
        rig.eoi()
    rig.deassign(a)
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.inta() == -1
    assert rig.files.domain.refused == 0


def test_row_33_plain_irqfd_on_a_level_pin_pulses_and_is_lost_if_masked(rig):
    a = rig.efd()
    rig.assign(a)
    rig.write(a)
    assert not rig.irr()
    assert rig.remote_irr()
    assert rig.inta() == 0x51
    rig.eoi()
    rig.redir(5, MASKED | LEVEL | 0x51)
    rig.write(a)
    rig.redir(5, LEVEL | 0x51)
    assert rig.inta() == -1


def test_row_34_plain_and_resampling_irqfd_share_a_gsi(rig):
    _, r = rig.pair()
    b = rig.efd()
    rig.assign(b)
    rig.write(b)
    assert rig.inta() == 0x51
    rig.write(b)
    rig.eoi()
    assert rig.count(r) == 1
    assert rig.inta() == -1


def test_row_35_pulse_of_a_plain_irqfd_lowers_the_line_of_user_space(rig):
    a = rig.efd()
    rig.assign(a)
    rig.redir(5, MASKED | LEVEL | 0x51)
    rig.line(5, 1)
    rig.write(a)
    assert not rig.irr()


def test_row_36_line_0_of_user_space_does_not_lower_the_resample_source(rig):
    a, _ = rig.pair()
    rig.write(a)
    assert rig.line(5, 0) == -1
    assert rig.irr()


def test_row_37_eoi_with_both_sources_high_redelivers_for_user_space(rig):
    a, r = rig.pair()
    rig.line(5, 1)
    rig.write(a)
    rig.inta()
    rig.eoi()
    assert rig.count(r) == 1
    assert rig.irr()
    assert rig.inta() == 0x51


@pytest.mark.parametrize("gsi", [24, 100, 4095, 4096, 0xFFFF_FFFF])
@pytest.mark.parametrize("resample", [True, False])
def test_row_38_irqfd_on_a_gsi_without_a_route_is_accepted_and_swallows(rig, gsi, resample):
    a, r = rig.efd(), rig.efd()
    rig.assign(a, gsi, r if resample else None)
    rig.write(a)
    assert rig.count(a) == 0
    assert rig.inta() == -1
    rig.deassign(a, gsi)


def test_row_38_irqfd_works_once_its_gsi_is_routed(rig):
    a, r = rig.pair(100)
    rig.write(a)
    rig.route({100: 5})
    rig.write(a)
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.count(r) == 1


@pytest.mark.parametrize("flags", [4, 1 << 31, 5])
def test_row_39_unknown_flags_are_einval(rig, flags):
    with refused(errno.EINVAL):
        rig.vm.irqfd(rig.efd(), 5, flags)


def test_row_40_bad_descriptors_are_ebadf_and_others_einval_and_leave_nothing(rig):
    a = rig.efd()
    pipe = rig.files.install(File("pipe"))
    for bad, number in ((-1, errno.EBADF), (99, errno.EBADF), (0, errno.EINVAL), (pipe, errno.EINVAL)):
        for call in (
            lambda bad=bad: rig.vm.irqfd(bad, 5),
            lambda bad=bad: rig.vm.irqfd(a, 5, 2, bad),
            lambda bad=bad: rig.vm.irqfd(bad, 5, 1),
        ):
            with refused(number):
                call()
    with refused(errno.EINVAL):
        rig.vm.irqfd(rig.vm.fd, 5)
    assert rig.files.file(a).refs == 1
    assert rig.files.file(a).ctx.refs == 1
    assert (rig.vm.irqfds.items, rig.vm.irqfds.resamplers) == ((), ())
    rig.assign(a)


def test_row_41_reroute_while_asserted_leaves_the_old_pin_stuck_until_routed_back(rig):
    rig.redir(6, LEVEL | 0x61)
    a, r = rig.pair()
    rig.write(a)
    rig.route({5: 6})
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.irr(5)
    assert rig.count(r) == 0
    rig.write(a)
    assert rig.inta() == 0x61
    rig.eoi()
    assert not rig.irr(6)
    assert rig.count(r) == 1
    assert rig.inta() == 0x51  # pin 5 is still high
    rig.route({5: 5})
    rig.eoi()
    assert not rig.irr(5)
    assert rig.count(r) == 1


@pytest.mark.parametrize("msi", [True, False])
def test_row_42_route_that_goes_or_becomes_a_message_leaves_the_pin_high(rig, msi):
    a, r = rig.pair()
    rig.write(a)
    rig.vm.set_gsi_routing([Route.msi(5, 0xFEE00000, 0x45)] if msi else [])
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.irr()
    assert rig.inta() == 0x51
    assert rig.count(r) == 0
    rig.eoi()
    rig.inta()
    rig.write(a)
    assert bool(rig.cpus[0].irr >> 0x45 & 1) == msi


def test_row_43_of_two_gsis_on_a_pin_the_last_routed_is_acked(rig):
    rig.vm.set_gsi_routing([Route.irqchip(5, KVM_IRQCHIP_IOAPIC, 5), Route.irqchip(40, KVM_IRQCHIP_IOAPIC, 5)])
    a, r = rig.pair(5)
    _, q = rig.pair(40)
    rig.write(a)
    rig.inta()
    rig.eoi()
    assert (rig.count(r), rig.count(q)) == (0, 1)
    assert not rig.irr()  # both GSIs drive the pin from source 1


def test_row_44_two_pins_with_one_vector_are_both_acked(rig):
    rig.redir(6, LEVEL | 0x51)
    a, r = rig.pair(5)
    _, q = rig.pair(6)
    rig.write(a)
    rig.inta()
    rig.eoi()
    assert (rig.count(r), rig.count(q)) == (1, 1)


def test_row_45_each_cpus_eoi_of_a_broadcast_signals():
    rig = KvmRig(ncpu=2)
    rig.redir(5, 0xFF << 56 | LEVEL | 0x51)
    a, r = rig.pair()
    rig.write(a)
    for cpu in (0, 1):
        assert rig.inta(cpu) == 0x51
        rig.eoi(cpu)
        assert rig.count(r) == 1


def test_row_46_vector_changed_in_service_leaves_remote_irr_stuck(rig):
    a, r = rig.pair()
    rig.write(a)
    rig.inta()
    rig.redir(5, LEVEL | 0x61)
    rig.eoi()
    assert rig.count(r) == 0
    assert rig.irr()
    assert rig.remote_irr()


def test_row_47_level_to_edge_in_service_then_eoi_lowers_and_signals(rig):
    a, r = rig.pair()
    rig.write(a)
    rig.inta()
    rig.redir(5, MASKED | 0x51)
    rig.redir(5, LEVEL | 0x51 | MASKED)
    rig.eoi()
    assert not rig.irr()
    assert rig.count(r) == 1


def test_row_48_closed_vm_gives_the_eventfd_back(rig):
    a, r = rig.pair()
    rig.write(a)
    rig.vm.close()
    rig.vm.close()
    assert not rig.irr()
    rig.inta()
    rig.eoi()
    assert rig.count(r) == 0
    rig.write(a, 2)
    assert rig.count(a) == 2
    assert Vm(rig.files, rig.executor).irqfd(a, 5) is None


def test_row_49_line_of_an_unknown_gsi_is_ignored(rig):
    for gsi in (24, 4096, 0xFFFF_FFFF):
        assert rig.line(gsi, 1) == -1
        rig.vm.irq_line(gsi, 1)
    assert rig.line(5, 2) == 1
    assert rig.line(5, 0xFFFF_FFFF) == -1


def test_row_49_line_without_an_irqchip_is_enxio():
    rig = KvmRig(irqchip="none")
    with refused(errno.ENXIO):
        rig.vm.irq_line(5, 1)


@pytest.mark.parametrize("resample", [True, False])
def test_everything_is_given_back_after_deassign_and_close(rig, resample):
    a, r = rig.efd(), rig.efd()
    ctxs = [rig.files.file(fd).ctx for fd in (a, r)]
    rig.assign(a, 5, r if resample else None)
    rig.write(a)
    rig.deassign(a)
    rig.close(a)
    rig.close(r)
    assert [ctx.refs for ctx in ctxs] == [0, 0]
    assert rig.vm.gsis.notifiers == {}


def test_nothing_comes_of_an_irqfd_once_deassign_has_returned(rig):
    a = rig.efd()
    rig.assign(a)
    rig.files.write(a)
    rig.vm.irqfd(a, 5, 1)
    assert not rig.executor.pending
    assert rig.inta() == 0x51  # of the event that came before
    rig.eoi()
    assert rig.inta() == -1
