"""irqfd and resamplefd as recorded on Linux 6.18: one test per row of the table in docs/irqfd.md, rows 1 to 24.

A is the irqfd's eventfd, R its resamplefd; GSI 5 reaches IOAPIC pin 5, level-triggered and unmasked.
"""

from __future__ import annotations

import errno

import pytest

from tests.support.kvm_rig import LEVEL, MASKED, KvmRig
from vmm.kernel.files import EFD_SEMAPHORE, POLLIN
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
from vmm.kernel.kvm import Vm
from vmm.kernel.poll import FdHandler
from vmm.order import WorkQueue


@pytest.fixture
def rig() -> KvmRig:
    rig = KvmRig()
    rig.redir(5, LEVEL | 0x51)
    return rig


def refused(number: int):
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


@pytest.mark.parametrize("flags", [0, 2])
def test_row_01_irqfd_without_an_irqchip_is_einval(flags):
    rig = KvmRig(irqchip="none")
    with refused(errno.EINVAL):
        rig.vm.irqfd(rig.efd(), 5, flags, rig.efd())


def test_row_02_split_irqchip_takes_plain_irqfds_only():
    rig = KvmRig(irqchip="split")
    a, r = rig.efd(), rig.efd()
    with refused(errno.EINVAL):
        rig.vm.irqfd(a, 5, 2, r)
    rig.vm.irqfd(a, 5)


@pytest.mark.parametrize("gsi", [5, 6])
@pytest.mark.parametrize("resample", [True, False])
def test_row_03_second_irqfd_on_an_eventfd_is_ebusy_and_the_first_unharmed(rig, gsi, resample):
    a, r = rig.pair()
    q = rig.efd()
    with refused(errno.EBUSY):
        rig.assign(a, gsi, q if resample else None)
    rig.write(a)
    assert rig.inta() == 0x51
    rig.eoi()
    assert (rig.count(r), rig.count(q)) == (1, 0)
    assert len(rig.vm.irqfds.resamplers) == 1


def test_row_04_dup_of_an_assigned_eventfd_is_ebusy(rig):
    a, _ = rig.pair()
    with refused(errno.EBUSY):
        rig.assign(rig.files.dup(a), 6)


def test_row_05_eventfd_of_another_vm_is_ebusy(rig):
    a, _ = rig.pair()
    other = Vm(rig.files, rig.executor)
    with refused(errno.EBUSY):
        other.irqfd(a, 5)
    rig.deassign(a)
    other.irqfd(a, 5)


def test_row_05_older_kernels_let_two_vms_have_it_and_one_starves():
    rig = KvmRig(era="5.11")
    rig.redir(5, LEVEL | 0x51)
    a = rig.efd()
    rig.assign(a, 5)
    second = Vm(rig.files, rig.executor, era_name="5.11")
    second.irqfd(a, 5)
    rig.write(a)
    assert rig.inta() == -1  # the priority waiter that came last took it


def test_row_06_events_from_before_are_injected_once_and_not_consumed_until_the_next(rig):
    a, r = rig.efd(3), rig.efd()
    rig.assign(a, 5, r)
    assert rig.inta() == 0x51
    assert rig.files.read(a) == 3
    rig.eoi()
    assert rig.inta() == -1
    rig.write(a)
    assert rig.inta() == 0x51
    assert rig.count(a) == 0


def test_row_07_write_injects_once_whatever_its_value_and_no_poller_sees_it(rig):
    seen: list[int] = []
    a, _ = rig.pair()
    FdHandler(rig.files, a, WorkQueue("loop", rig.executor), lambda: seen.append(1))
    rig.write(a, 7)
    assert rig.inta() == 0x51
    assert rig.count(a) == 0
    assert seen == []
    rig.eoi()
    assert rig.inta() == -1


def test_row_08_write_of_zero_injects(rig):
    a, _ = rig.pair()
    rig.write(a, 0)
    assert rig.inta() == 0x51


def test_row_09_semaphore_injects_once_per_write_and_keeps_the_rest(rig):
    a, r = rig.efd(0, EFD_SEMAPHORE), rig.efd()
    rig.assign(a, 5, r)
    rig.write(a, 3)
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.inta() == -1
    assert rig.files.file(a).ctx.count == 2


def test_row_10_writes_before_the_eoi_are_absorbed(rig):
    a, r = rig.pair()
    rig.write(a)
    rig.write(a)
    assert rig.inta() == 0x51
    rig.write(a)
    rig.eoi()
    assert rig.count(r) == 1
    assert not rig.irr()
    assert rig.inta() == -1


def test_row_11_eoi_lowers_the_line_and_signals_r_each_time(rig):
    a, r = rig.pair()
    for _ in range(3):
        rig.write(a)
        assert rig.irr()
        assert rig.inta() == 0x51
        rig.eoi()
        assert not rig.irr()
        assert not rig.remote_irr()
        assert rig.count(r) == 1


def test_row_12_eoi_of_a_user_space_line_signals_r_too(rig):
    _, r = rig.pair()
    rig.line(5, 1)
    assert rig.inta() == 0x51
    rig.line(5, 0)
    rig.eoi()
    assert rig.count(r) == 1


def test_row_13_eoi_with_nothing_in_service_does_nothing(rig):
    _, r = rig.pair()
    rig.eoi()
    assert rig.count(r) == 0


def test_row_14_edge_pin_signals_r_at_eoi_as_well(rig):
    rig.redir(5, 0x51)
    a, r = rig.pair()
    rig.write(a)
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.count(r) == 1


def test_row_15_eoi_while_masked_lowers_signals_and_clears_remote_irr(rig):
    a, r = rig.pair()
    rig.write(a)
    rig.inta()
    rig.redir(5, MASKED | LEVEL | 0x51)
    rig.eoi()
    assert rig.count(r) == 1
    assert not rig.irr()
    assert not rig.remote_irr()


def masked_with_pending_event(rig: KvmRig) -> tuple[int, int]:
    a, r = rig.pair()
    rig.redir(5, MASKED | LEVEL | 0x51)
    rig.write(a)
    assert rig.irr()
    return a, r


def test_row_u_unmask_asks_the_resampler_instead_of_delivering(rig):
    a, r = masked_with_pending_event(rig)
    rig.redir(5, LEVEL | 0x51)
    assert rig.inta() == -1
    assert not rig.irr()
    assert rig.count(r) == 1
    rig.write(a)
    assert rig.inta() == 0x51


def test_row_u_forgotten_source_bit_fires_again_with_a_user_space_line_of_0(rig):
    masked_with_pending_event(rig)
    rig.redir(5, LEVEL | 0x51)
    rig.line(5, 0)
    assert rig.inta() == 0x51


def test_row_u_line_of_user_space_is_forgotten_until_its_next_call(rig):
    masked_with_pending_event(rig)
    rig.line(5, 1)
    rig.redir(5, LEVEL | 0x51)
    assert rig.inta() == -1
    rig.line(5, 1)
    assert rig.inta() == 0x51


def test_row_u_without_a_resampler_unmask_delivers(rig):
    rig.redir(5, MASKED | LEVEL | 0x51)
    rig.line(5, 1)
    rig.redir(5, LEVEL | 0x51)
    assert rig.inta() == 0x51


def test_row_16_every_eoi_signals_both_members_whoever_asserted(rig):
    a, r = rig.pair()
    b, q = rig.pair()
    rig.write(a)
    rig.inta()
    rig.eoi()
    assert (rig.count(r), rig.count(q)) == (1, 1)
    rig.write(b)
    rig.inta()
    rig.eoi()
    assert (rig.count(r), rig.count(q)) == (1, 1)


def test_row_17_two_members_with_one_r_add_two(rig):
    a, r = rig.pair()
    rig.assign(rig.efd(), 5, r)
    rig.write(a)
    rig.inta()
    rig.eoi()
    assert rig.count(r) == 2


def test_row_18_one_r_serves_two_gsis(rig):
    rig.redir(6, LEVEL | 0x61)
    a, r = rig.pair()
    b = rig.efd()
    rig.assign(b, 6, r)
    rig.write(a)
    rig.write(b)
    assert rig.inta() == 0x61
    rig.eoi()
    assert rig.count(r) == 1
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.count(r) == 1


def test_row_19_line_stays_when_one_of_two_leaves_and_the_other_is_told(rig):
    a, r = rig.pair()
    _, q = rig.pair()
    rig.write(a)
    rig.deassign(a)
    assert rig.irr()
    assert rig.inta() == 0x51
    rig.eoi()
    assert not rig.irr()
    assert (rig.count(r), rig.count(q)) == (0, 1)


def test_row_20_last_member_lowers_the_line_what_was_sent_is_still_taken(rig):
    a, r = rig.pair()
    rig.write(a)
    rig.deassign(a)
    assert not rig.irr()
    assert rig.inta() == 0x51
    rig.eoi()
    assert not rig.remote_irr()
    assert rig.count(r) == 0
    assert rig.inta() == -1


def test_row_21_line_of_user_space_survives_the_last_member(rig):
    a, _ = rig.pair()
    rig.line(5, 1)
    rig.write(a)
    rig.deassign(a)
    assert rig.irr()


def test_row_22_deassign_ignores_r(rig):
    a, _ = rig.pair()
    rig.deassign(a, 5, KVM_IRQFD_FLAG_DEASSIGN, -1)
    assert rig.vm.irqfds.items == ()


@pytest.mark.parametrize("which", ["right", "another", "none"])
def test_row_23_deassign_with_the_resample_flag_never_looks_at_r(rig, which):
    a, r = rig.pair()
    resamplefd = {"right": r, "another": a, "none": -1}[which]
    rig.deassign(a, 5, KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE, resamplefd)
    assert rig.vm.irqfds.items == ()


def test_row_24_deassign_without_a_match_succeeds_and_does_nothing(rig):
    a, _ = rig.pair()
    for gsi in (6, 9999):
        rig.deassign(a, gsi)
    rig.deassign(rig.efd(), 5)
    rig.write(a)
    assert rig.inta() == 0x51
    rig.deassign(a)
    rig.deassign(a)
    assert rig.files.poll(a) & POLLIN == 0
