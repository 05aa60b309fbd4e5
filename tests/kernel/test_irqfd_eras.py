"""What older kernels did differently, and that every point of the code is written down."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

import devices.vfio_irqs
import vmm.kernel.eoifd
import vmm.kernel.files
import vmm.kernel.gsi
import vmm.kernel.irqfd
from tests.support.kvm_rig import LEVEL, MASKED, KvmRig
from vmm.kernel.eras import ERAS
from vmm.kernel.files import POLLHUP, WaitEntry
from vmm.kernel.gsi import Route
from vmm.kernel.kvm import Vm
from vmm.kernel.poll import FdHandler
from vmm.order import WorkQueue


def rig_of(era: str, **options) -> KvmRig:
    rig = KvmRig(era=era, **options)
    rig.redir(5, LEVEL | 0x51)
    return rig


@pytest.mark.parametrize("era", [name for name in ERAS if name != "v5"])
def test_level_loop_works_in_every_era_that_has_resamplefd(era):
    rig = rig_of(era)
    a, r = rig.pair()
    for _ in range(3):
        rig.write(a)
        assert rig.inta() == 0x51
        rig.eoi()
        assert (rig.count(r), rig.irr()) == (1, False)
    rig.deassign(a)
    assert rig.vm.irqfds.resamplers == ()


@pytest.mark.parametrize(("era", "seen", "left"), [("3.8", 1, 3), ("5.11", 0, 0), ("6.18", 0, 0)])
def test_poller_in_user_space_sees_the_event_until_irqfds_consume_it(era, seen, left):
    rig = rig_of(era)
    a, _ = rig.pair()
    polled: list[int] = []
    FdHandler(rig.files, a, WorkQueue("loop", rig.executor), lambda: polled.append(1))
    rig.write(a, 3)
    assert rig.inta() == 0x51
    assert len(polled) == seen
    assert rig.files.file(a).ctx.count == left


@pytest.mark.parametrize("era", list(ERAS))
def test_events_from_before_the_assign_are_injected_once(era):
    rig = rig_of(era)
    a = rig.efd(3)
    rig.assign(a)
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.inta() == -1


@pytest.mark.parametrize("era", list(ERAS))
def test_message_needs_no_work_from_the_first_event_on(era):
    rig = rig_of(era)
    rig.vm.set_gsi_routing([Route.msi(5, 0xFEE00000, 0x41)])
    a = rig.efd()
    rig.assign(a)
    rig.files.write(a, 1)
    assert not rig.executor.pending
    assert rig.inta() == 0x41


@pytest.mark.parametrize("era", list(ERAS))
def test_close_is_heard_by_all_who_wait_for_an_irqfds_eventfd(era):
    rig = rig_of(era)
    a = rig.efd()
    heard: list[int] = []
    rig.assign(a)
    rig.files.file(a).ctx.add_wait_exclusive(WaitEntry(lambda key: bool(heard.append(key))))
    rig.close(a)
    assert heard == [POLLHUP]
    assert rig.vm.irqfds.items == ()


@pytest.mark.parametrize("era", list(ERAS))
def test_deassign_leaves_no_old_events_to_the_next_owner(era):
    rig = rig_of(era)
    a = rig.efd()
    rig.assign(a)
    for _ in range(3):
        rig.write(a)
    rig.deassign(a)
    assert rig.count(a) == 0


@pytest.mark.parametrize(("era", "accepted"), [("3.8", True), ("5.11", False), ("6.18", False)])
def test_resamplefd_with_a_split_irqchip_was_accepted_and_never_signalled(era, accepted):
    rig = KvmRig(era=era, irqchip="split")
    a, r = rig.efd(), rig.efd()
    if accepted:
        rig.assign(a, 5, r)
    else:
        with pytest.raises(OSError, match=rf"\[Errno {errno.EINVAL}\]"):
            rig.assign(a, 5, r)


@pytest.mark.parametrize(("era", "vector", "resampled"), [("5.11", 0x51, 0), ("6.3", -1, 1), ("6.18", -1, 1)])
def test_unmask_delivers_the_stale_level_before_6_3_and_asks_since(era, vector, resampled):
    rig = rig_of(era)
    a, r = rig.pair()
    rig.redir(5, MASKED | LEVEL | 0x51)
    rig.write(a)
    rig.redir(5, LEVEL | 0x51)
    assert (rig.inta(), rig.count(r)) == (vector, resampled)


@pytest.mark.parametrize(("era", "refused"), [("3.8", False), ("6.3", False), ("6.18", True)])
def test_eventfd_is_unique_per_vm_and_since_6_17_on_the_host(era, refused):
    rig = rig_of(era)
    a, _ = rig.pair()
    other = Vm(rig.files, rig.executor, era_name=era)
    if refused:
        with pytest.raises(OSError, match="on this host"):
            other.irqfd(a, 5)
    else:
        other.irqfd(a, 5)
    with pytest.raises(OSError, match="has an irqfd"):
        rig.assign(a, 6)


@pytest.mark.parametrize(
    "module", [vmm.kernel.files, vmm.kernel.gsi, vmm.kernel.irqfd, vmm.kernel.eoifd, devices.vfio_irqs]
)
def test_every_point_is_written_down_with_what_it_mirrors(module):
    used = set(re.findall(r'order\.hook\(\s*"([^"]+)"', Path(module.__file__).read_text()))
    assert used == set(module.POINTS)
