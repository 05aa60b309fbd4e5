"""KVM_EOIFD and the rules that were proposed for it: what each sequence of the dispute comes to under each rule.

e1, e2, ... are irqfds' eventfds, f their eoifds'. Sequences are named as in docs/eoifd.md.
"""

from __future__ import annotations

import errno

import pytest

from tests.support.kvm_rig import LEVEL, KvmRig
from vmm.errors import ConfigError
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_DEASSIGN, KVM_EOIFD_FLAG_LEVEL_IRQFD, KvmEoifd
from vmm.kernel.files import DescriptorTable
from vmm.kernel.kvm import Vm
from vmm.kernel.policies import POLICIES, policy
from vmm.order import Executor

TWO_OBJECTS = [name for name in POLICIES if name != "resample"]
LEVEL_FLAG = 2


class Rig(KvmRig):
    """A VM under one policy, with a pool of `free` source ids."""

    def __init__(self, name: str, free: int = 3) -> None:
        self.policy_name = name
        super().__init__(era="v5", policy=name)
        self.vm.gsis.sources.capacity = 1 + free
        self.redir(5, LEVEL | 0x51)
        self.redir(6, LEVEL | 0x61)

    def level(self, fd: int, gsi: int = 5) -> None:
        """Assign a level irqfd."""
        self.vm.irqfd(fd, gsi, LEVEL_FLAG)
        self.drain()

    def eoifd(self, fd: int, irqfd: int) -> None:
        self.vm.eoifd(fd, KVM_EOIFD_FLAG_LEVEL_IRQFD, irqfd)
        self.drain()

    def uneoifd(self, fd: int, irqfd: int) -> None:
        self.vm.eoifd(fd, KVM_EOIFD_FLAG_LEVEL_IRQFD | KVM_EOIFD_FLAG_DEASSIGN, irqfd)
        self.drain()

    def bound(self, gsi: int = 5) -> tuple[int, int]:
        """A level irqfd and its eoifd."""
        e, f = self.efd(), self.efd()
        self.level(e, gsi)
        self.eoifd(f, e)
        return e, f

    @property
    def ids(self) -> int:
        """Source ids in use, user space's not counted."""
        return self.vm.gsis.sources.live() - 1

    @property
    def eoifds(self) -> int:
        return len(self.vm.irqfds.eoifds)

    def works(self, e: int, f: int) -> bool:
        """An event of e reaches the guest, and its EOI comes back as an event of f with the line low."""
        self.write(e)
        if self.inta() != 0x51:
            return False
        self.eoi()
        return self.count(f) == 1 and not self.irr()


@pytest.fixture(params=TWO_OBJECTS)
def rig(request) -> Rig:
    return Rig(request.param)


def refused(number: int):
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


# What all of them agree on


def test_bound_pair_asserts_at_the_event_and_lowers_and_signals_at_the_eoi(rig):
    e, f = rig.bound()
    for _ in range(3):
        assert rig.works(e, f)
    rig.write(e)
    rig.write(e)
    assert rig.inta() == 0x51
    rig.write(e)
    rig.eoi()
    assert (rig.count(f), rig.irr()) == (1, False)


def test_eoi_of_a_line_that_is_not_ours_is_not_told(rig):
    _, f = rig.bound()
    rig.line(5, 1)
    assert rig.inta() == 0x51
    rig.line(5, 0)
    rig.eoi()
    assert rig.count(f) == 0


def test_two_pairs_on_one_gsi_have_a_source_each_and_only_who_asserted_is_told(rig):
    e1, f1 = rig.bound()
    _, f2 = rig.bound()
    assert rig.ids == 2
    rig.write(e1)
    rig.inta()
    rig.eoi()
    assert (rig.count(f1), rig.count(f2)) == (1, 0)


def test_orderly_removal_gives_everything_back_and_can_be_repeated_for_ever(rig):
    for _ in range(10):
        e, f = rig.bound()
        assert rig.works(e, f)
        ctxs = [rig.files.file(fd).ctx for fd in (e, f)]
        rig.uneoifd(f, e)
        rig.vm.irqfd(e, 5, 1)
        assert (rig.ids, rig.eoifds, rig.vm.gsis.notifiers) == (0, 0, {})
        rig.close(e)
        rig.close(f)
        assert [ctx.refs for ctx in ctxs] == [0, 0]


@pytest.mark.parametrize(
    ("fd", "flags", "irqfd", "number"),
    [
        ("f", 0, "e", errno.EINVAL),
        ("f", 4 | 2, "e", errno.EINVAL),
        (99, 2, "e", errno.EBADF),
        ("f", 2, 99, errno.EBADF),
        (0, 2, "e", errno.EINVAL),
        ("f", 2, 0, errno.EINVAL),
        ("f", 2, "f", errno.ENODEV),
        ("f", 2, "edge", errno.EINVAL),
        ("used", 2, "e", errno.EBUSY),
        ("f", 3, "e", errno.ENOENT),
        (99, 3, "e", errno.EBADF),
    ],
)
def test_eoifd_that_makes_no_sense_is_refused_and_leaves_nothing(rig, fd, flags, irqfd, number):
    e, used = rig.bound()
    names = {"e": e, "used": used, "f": rig.efd(), "edge": rig.efd()}
    rig.assign(names["edge"], 6)
    before = [rig.files.file(n).ctx.refs for n in names.values()]
    with refused(number):
        rig.vm.eoifd(names.get(fd, fd), flags, names.get(irqfd, irqfd))
    assert [rig.files.file(n).ctx.refs for n in names.values()] == before
    assert [rig.files.file(n).refs for n in names.values() if n != e] == [1, 1, 1]
    assert rig.eoifds == 1
    assert rig.works(e, used)


def test_level_irqfd_that_finds_no_id_is_efault_and_leaves_nothing(rig):
    pairs = [rig.bound() for _ in range(3)]
    e = rig.efd()
    with refused(errno.EFAULT):
        rig.level(e)
    assert rig.files.file(e).ctx.refs == 1
    rig.assign(e, 6)  # an edge irqfd needs no id
    assert rig.works(*pairs[0])


def test_edge_irqfd_beside_a_pair_pulses_and_disturbs_nothing(rig):
    e, f = rig.bound()
    edge = rig.efd()
    rig.assign(edge, 5)
    rig.write(edge)
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.count(f) == 0
    assert rig.works(e, f)


def test_second_listener_of_one_irqfd_starves(rig):
    """Sequence h: what was asserted is kept per source, and the first who is told takes it."""
    e, f1 = rig.bound()
    f2 = rig.efd()
    rig.eoifd(f2, e)
    rig.write(e)
    rig.inta()
    rig.eoi()
    assert sorted((rig.count(f1), rig.count(f2))) == [0, 1]


def test_vm_that_is_closed_takes_both_along(rig):
    """Sequence j."""
    (e, f), _ = rig.bound(), rig.bound()
    rig.write(e)
    rig.vm.close()
    assert (rig.ids, rig.eoifds, rig.vm.irqfds.items, rig.vm.gsis.notifiers) == (0, 0, (), {})
    assert not rig.irr()
    assert [rig.files.file(fd).refs for fd in (e, f)] == [1, 1]
    assert [rig.files.file(fd).ctx.refs for fd in (e, f)] == [1, 1]


def test_eventfd_has_one_irqfd_whatever_the_gsi(rig):
    """Sequence c."""
    e, _ = rig.bound()
    with refused(errno.EBUSY):
        rig.level(e, 6)
    assert rig.ids == 1


def test_nothing_comes_of_a_pair_once_deassign_has_returned(rig):
    e, f = rig.bound()
    rig.write(e)
    assert rig.inta() == 0x51
    rig.vm.eoifd(f, KVM_EOIFD_FLAG_LEVEL_IRQFD | KVM_EOIFD_FLAG_DEASSIGN, e)
    assert (rig.vm.gsis.notifiers, list(rig.executor.pending)) == ({}, [])
    rig.files.write(e)
    rig.vm.irqfd(e, 5, 1)
    assert (rig.ids, list(rig.executor.pending)) == (0, [])
    rig.eoi()
    assert (rig.count(f), rig.irr()) == (0, False)


# Where they part: the thread's counter-example


def test_deassign_first_then_a_new_level_irqfd_then_close_the_eoifd():
    """Sequence a, in a VM with room for one: assign irqfd, assign eoifd, deassign irqfd, assign irqfd2, close eoifd."""
    came_to = {}
    for name in TWO_OBJECTS:
        rig = Rig(name, free=1)
        e1, f = rig.bound()
        e3 = rig.efd()
        try:
            rig.vm.irqfd(e1, 5, 1)
            rig.level(e3)
            came_to[name] = "works"
        except OSError as error:
            came_to[name] = errno.errorcode[error.errno]
        rig.close(f)
    assert came_to == {
        "eoifd-v5": "EFAULT",
        "deassign-fails": "EBUSY",
        "eoifd-follows-irqfd": "works",
        "assign-busy": "EFAULT",
        "assign-rebinds": "EFAULT",
        "eoifd-holds-file": "EFAULT",
    }


def test_loop_of_assign_both_and_deassign_the_irqfd_runs_dry():
    """Sequence e: how many turns until something is refused."""
    turns = {}
    for name in TWO_OBJECTS:
        rig = Rig(name, free=3)
        turns[name] = 0
        try:
            for _ in range(10):
                e, _ = rig.bound()
                rig.vm.irqfd(e, 5, 1)
                turns[name] += 1
        except OSError:
            pass
    assert turns == {
        "eoifd-v5": 3,
        "deassign-fails": 0,
        "eoifd-follows-irqfd": 10,
        "assign-busy": 3,
        "assign-rebinds": 3,
        "eoifd-holds-file": 3,
    }


def test_same_eventfd_assigned_again_is_the_split_binding():
    """Sequence a': whose source does the eoifd listen to now?"""
    came_to = {}
    for name in TWO_OBJECTS:
        if name == "deassign-fails":
            continue
        rig = Rig(name)
        e, f = rig.bound()
        rig.vm.irqfd(e, 5, 1)
        try:
            rig.level(e)
        except OSError as error:
            came_to[name] = errno.errorcode[error.errno]
            continue
        if rig.works(e, f):
            came_to[name] = "works"
        else:
            assert rig.count(f) == 0
            came_to[name] = "stuck" if rig.irr() else "deaf"
    assert came_to == {
        "eoifd-v5": "stuck",
        "eoifd-follows-irqfd": "stuck",  # a level irqfd without an eoifd: nobody lowers its line
        "assign-busy": "EBUSY",
        "assign-rebinds": "works",
        "eoifd-holds-file": "stuck",
    }


def test_after_follow_a_new_pair_on_the_same_eventfd_works():
    rig = Rig("eoifd-follows-irqfd")
    e, f = rig.bound()
    rig.vm.irqfd(e, 5, 1)
    assert rig.eoifds == 0
    rig.level(e)
    rig.eoifd(f, e)
    assert rig.works(e, f)


def test_close_of_the_irqfd_leaves_a_zombie_unless_the_rule_cares():
    """Sequence b: (irqfds left, eoifds left, ids in use) after the last close of e."""
    left = {}
    for name in TWO_OBJECTS:
        rig = Rig(name)
        e, f = rig.bound()
        rig.close(e)
        left[name] = (len(rig.vm.irqfds.items), rig.eoifds, rig.ids)
        with refused(errno.EBADF):
            rig.uneoifd(f, e)
    assert left == {
        "eoifd-v5": (0, 1, 1),
        "deassign-fails": (0, 1, 1),
        "eoifd-follows-irqfd": (0, 0, 0),
        "assign-busy": (0, 1, 1),
        "assign-rebinds": (0, 1, 1),
        "eoifd-holds-file": (1, 1, 1),
    }


def test_held_file_keeps_the_irqfd_alive_until_the_eoifd_goes():
    rig = Rig("eoifd-holds-file")
    e, f = rig.bound()
    device = rig.files.ctx_fdget(e)  # VFIO has the trigger
    rig.close(e)
    device.signal()
    rig.drain()
    assert rig.inta() == 0x51
    rig.eoi()
    assert rig.count(f) == 1
    rig.close(f)
    assert (len(rig.vm.irqfds.items), rig.eoifds, rig.ids) == (0, 0, 0)


def test_close_of_the_eoifd_is_noticed_by_all_but_the_posted_code():
    """Sequence i: the level irqfd stays, and its next assert is never lowered."""
    for name in TWO_OBJECTS:
        rig = Rig(name)
        e, f = rig.bound()
        rig.close(f)
        assert rig.eoifds == (1 if name == "eoifd-v5" else 0), name
        rig.write(e)
        assert rig.inta() == 0x51
        rig.eoi()
        assert rig.irr() == (name != "eoifd-v5"), name


def test_edge_irqfd_on_an_eventfd_that_an_eoifd_names():
    """Sequence d."""
    for name in TWO_OBJECTS:
        if name == "deassign-fails":
            continue
        rig = Rig(name)
        e, f = rig.bound()
        rig.vm.irqfd(e, 5, 1)
        if name in ("assign-busy", "assign-rebinds"):
            with refused(errno.EBUSY):
                rig.assign(e, 5)
            assert rig.files.file(e).ctx.refs == 2  # the file's, the eoifd's
            continue
        rig.assign(e, 5)
        rig.write(e)
        assert rig.inta() == 0x51
        rig.eoi()
        assert rig.count(f) == 0


def test_rebind_to_another_gsi_is_busy():
    rig = Rig("assign-rebinds")
    e, _ = rig.bound()
    rig.vm.irqfd(e, 5, 1)
    with refused(errno.EBUSY):
        rig.level(e, 6)
    assert rig.ids == 1


def test_rebind_needs_no_free_id():
    rig = Rig("assign-rebinds", free=1)
    e, f = rig.bound()
    rig.vm.irqfd(e, 5, 1)
    rig.level(e)
    assert rig.works(e, f)


def test_zombie_can_still_be_removed_by_its_two_eventfds():
    for name in ("eoifd-v5", "assign-busy", "assign-rebinds", "eoifd-holds-file"):
        rig = Rig(name)
        e, f = rig.bound()
        rig.write(e)
        rig.vm.irqfd(e, 5, 1)
        assert rig.irr()  # whoever is left lowers it
        rig.uneoifd(f, e)
        assert (rig.ids, rig.eoifds, rig.irr()) == (0, 0, False)


def test_refused_deassign_changes_nothing():
    rig = Rig("deassign-fails")
    e, f = rig.bound()
    with refused(errno.EBUSY):
        rig.vm.irqfd(e, 5, 1)
    assert rig.works(e, f)
    rig.uneoifd(f, e)
    rig.vm.irqfd(e, 5, 1)
    assert rig.ids == 0


# Knobs


def test_policies_and_eras_that_do_not_go_together_are_refused():
    def vm(**options):
        return Vm(DescriptorTable(), Executor(), **options)

    assert vm(policy_name="assign-busy").era.name == "v5"
    assert vm(policy_name="resample").era.name == "6.18"
    assert vm(policy_name="resample", era_name="5.11").era.name == "5.11"
    assert vm(era_name="v5").irqfds.policy is policy("eoifd-v5")
    for options in ({"policy_name": "assign-busy", "era_name": "6.18"}, {"policy_name": "resample", "era_name": "v5"}):
        with pytest.raises(ConfigError, match="do not go together"):
            vm(**options)
    with pytest.raises(ConfigError, match="eoifd-v5, deassign-fails"):
        vm(policy_name="none")


def test_released_kernels_have_no_eoifd_and_v5_no_resamplefd():
    rig = KvmRig()
    with refused(errno.ENOTTY):
        rig.vm.eoifd(rig.efd(), KVM_EOIFD_FLAG_LEVEL_IRQFD, rig.efd())


def test_structure_has_the_size_that_was_posted():
    assert KvmEoifd.sizeof() == 32
    assert KvmEoifd.parse(KvmEoifd.build({"fd": 3, "flags": 2, "irqfd": 5})).irqfd == 5
