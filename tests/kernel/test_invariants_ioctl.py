"""Structures that make no sense, as bytes: the kernel's errno, and nothing changed (S19)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.dispute.stage import Stage
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_DEASSIGN, KVM_EOIFD_FLAG_LEVEL_IRQFD, KvmEoifd
from vmm.kernel.files import File
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, KvmIrqLevel, Route
from vmm.kernel.invariants import broken
from vmm.kernel.ioctl import (
    KVM_EOIFD,
    KVM_IRQ_LINE,
    KVM_IRQ_LINE_STATUS,
    KVM_IRQFD,
    KVM_SET_GSI_ROUTING,
    KVM_SIGNAL_MSI,
    SIZES,
)
from vmm.kernel.irqfd import KvmIrqfd

RULES = ("eoifd-v5", "eoifd-follows-irqfd", "resample")
STDIN = 99


@pytest.fixture(params=RULES)
def stage(request) -> Stage:
    return made(request.param)


def made(rule: str) -> Stage:
    """e1 and f1 are bound to GSI 10; e2 and f2 are open; 99 is no eventfd."""
    stage = Stage(rule)
    for step in ("I+ e1 g f1",) if rule == "resample" else ("I+ e1 g", "E+ f1 e1"):
        assert stage.do(step).result == "ok"
    stage.open("e2")
    stage.open("f2")
    stage.files.install(File("stdin"), STDIN)
    return stage


def irqfd(fd, gsi=10, flags=0, resamplefd=0):
    return KvmIrqfd.build({"fd": fd & 0xFFFF_FFFF, "gsi": gsi, "flags": flags, "resamplefd": resamplefd & 0xFFFF_FFFF})


def eoifd(fd, flags, irqfd):
    return KvmEoifd.build({"fd": fd & 0xFFFF_FFFF, "flags": flags, "irqfd": irqfd & 0xFFFF_FFFF})


def refused(stage: Stage, request: int, data: bytes) -> int:
    """The errno; whatever it is, nothing may have changed."""
    before = stage.view()
    with pytest.raises(OSError, match="Errno") as info:
        stage.vm.ioctl(request, data)
    assert not stage.executor.pending
    assert stage.view() == before
    assert info.value.errno is not None
    return info.value.errno


def routes(*entries: bytes, count: int | None = None, flags: int = 0) -> bytes:
    header = (len(entries) if count is None else count).to_bytes(4, "little") + flags.to_bytes(4, "little")
    return header + b"".join(entries)


def test_request_that_is_not_known_is_enotty(stage):
    assert refused(stage, 0xAE00, b"") == errno.ENOTTY
    assert refused(stage, KVM_IRQFD + 1, bytes(64)) == errno.ENOTTY


@pytest.mark.parametrize(
    "request_", [KVM_IRQFD, KVM_EOIFD, KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING]
)
def test_structure_that_ends_early_is_efault(stage, request_):
    size = request_ >> 16 & 0x3FFF
    assert {refused(stage, request_, bytes(n)) for n in range(size)} == {errno.EFAULT}


def test_sizes_in_the_numbers_are_those_of_the_structures():
    assert {request: request >> 16 & 0x3FFF for request in SIZES} == SIZES


@pytest.mark.parametrize("bit", range(32))
def test_flag_that_is_not_known_is_einval(stage, bit):
    e2, f2 = stage.descriptors["e2"], stage.descriptors["f2"]
    if bit > 1:
        assert refused(stage, KVM_IRQFD, irqfd(e2, flags=1 << bit)) == errno.EINVAL
        wanted = errno.ENOTTY if stage.policy == "resample" else errno.EINVAL
        assert refused(stage, KVM_EOIFD, eoifd(f2, 1 << bit, e2)) == wanted
    if bit:
        assert refused(stage, KVM_SIGNAL_MSI, bytes(12) + (1 << bit).to_bytes(4, "little") + bytes(16)) == errno.EINVAL
    assert refused(stage, KVM_SET_GSI_ROUTING, routes(flags=1 << bit)) == errno.EINVAL


@pytest.mark.parametrize(("fd", "number"), [(-1, errno.EBADF), (77, errno.EBADF), (STDIN, errno.EINVAL)])
def test_descriptor_that_is_bad_or_no_eventfd_is_refused_wherever_it_stands(stage, fd, number):
    e1, e2, f2 = (stage.descriptors[name] for name in ("e1", "e2", "f2"))
    for flags in (0, 1):
        assert refused(stage, KVM_IRQFD, irqfd(fd, flags=flags)) == number
    if stage.policy == "resample":
        assert refused(stage, KVM_IRQFD, irqfd(e2, flags=2, resamplefd=fd)) == number
        return
    assert refused(stage, KVM_IRQFD, irqfd(fd, flags=2)) == number
    for flags in (2, 3):
        assert refused(stage, KVM_EOIFD, eoifd(fd, flags, e1)) == number
        assert refused(stage, KVM_EOIFD, eoifd(f2, flags, fd)) == number


def test_eventfd_that_has_an_irqfd_is_ebusy(stage):
    e1, f2 = stage.descriptors["e1"], stage.descriptors["f2"]
    assert refused(stage, KVM_IRQFD, irqfd(e1, 11)) == errno.EBUSY
    if stage.policy == "resample":
        assert refused(stage, KVM_IRQFD, irqfd(e1, 11, 2, f2)) == errno.EBUSY


def test_routing_table_with_one_bad_entry_replaces_nothing(stage):
    good = Route.irqchip(10, KVM_IRQCHIP_IOAPIC, 10).build()
    bad = Route.irqchip(11, KVM_IRQCHIP_IOAPIC, 24).build()
    table = stage.vm.gsis.table
    assert refused(stage, KVM_SET_GSI_ROUTING, routes(good, bad)) == errno.EINVAL
    assert refused(stage, KVM_SET_GSI_ROUTING, routes(good, count=2)) == errno.EFAULT
    assert refused(stage, KVM_SET_GSI_ROUTING, routes(good, good)) == errno.EINVAL
    assert refused(stage, KVM_SET_GSI_ROUTING, routes(count=4096)) == errno.EFAULT  # as many as there may be
    assert refused(stage, KVM_SET_GSI_ROUTING, routes(count=4097)) == errno.EINVAL
    assert stage.vm.gsis.table is table


def test_padding_and_what_follows_the_structure_are_not_looked_at(stage):
    e2 = stage.descriptors["e2"]
    assert stage.vm.ioctl(KVM_IRQFD, irqfd(e2, 11)[:16] + b"\xff" * 16 + b"more")[0] == 0
    stage.files.write(e2)
    stage.executor.drain()
    assert stage.lapic.irr >> 0x6B & 1
    entry = bytearray(Route.irqchip(10, KVM_IRQCHIP_IOAPIC, 10).build())
    entry[12:16] = b"\xff" * 4
    assert stage.vm.ioctl(KVM_SET_GSI_ROUTING, routes(bytes(entry)))[0] == 0


def test_eoifd_by_its_number_is_bound_and_gone_again():
    stage = made("eoifd-v5")
    e1, f2 = stage.descriptors["e1"], stage.descriptors["f2"]
    bind, unbind = (eoifd(f2, KVM_EOIFD_FLAG_LEVEL_IRQFD | more, e1) for more in (0, KVM_EOIFD_FLAG_DEASSIGN))
    before = stage.view()
    assert len(bind) == 32
    assert stage.vm.ioctl(KVM_EOIFD, bind) == (0, bind)
    assert stage.view() != before
    assert stage.vm.ioctl(KVM_EOIFD, unbind) == (0, unbind)
    assert stage.view() == before


def test_irq_line_status_writes_what_was_delivered(stage):
    high = KvmIrqLevel.build({"irq": 11, "level": 1})
    assert stage.vm.ioctl(KVM_IRQ_LINE_STATUS, high) == (0, KvmIrqLevel.build({"irq": 1, "level": 1}))
    assert stage.vm.ioctl(KVM_IRQ_LINE_STATUS, KvmIrqLevel.build({"irq": 999, "level": 1}))[1][:4] == b"\xff" * 4
    assert stage.vm.ioctl(KVM_IRQ_LINE, KvmIrqLevel.build({"irq": 11, "level": 0}))[0] == 0
    assert stage.ioapic.sources[11] == 0


@given(
    rule=st.sampled_from(RULES),
    request=st.sampled_from([KVM_IRQFD, KVM_EOIFD, KVM_IRQ_LINE, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING]),
    data=st.one_of(
        st.binary(max_size=64),
        st.lists(st.integers(0, 8), min_size=8, max_size=16).map(
            lambda w: b"".join(n.to_bytes(4, "little") for n in w)
        ),
    ),
)
def test_any_bytes_are_taken_or_refused_and_a_refusal_changes_nothing(rule, request, data):
    stage = made(rule)
    before, table = stage.view(), stage.vm.gsis.table
    number = 0
    try:
        stage.vm.ioctl(request, data)
    except OSError as error:
        number = error.errno
    if number:
        assert number in (
            errno.EINVAL,
            errno.EFAULT,
            errno.EBADF,
            errno.EBUSY,
            errno.ENODEV,
            errno.ENOENT,
            errno.ENOTTY,
        )
        assert (stage.view(), stage.vm.gsis.table) == (before, table)
    stage.executor.drain()
    assert not {"S4", "S14"} & set(broken(stage.vm, stage.ledger))
