"""A real eventfd of the host behaves as a file of the model, within the limits its module names."""

from __future__ import annotations

import os

import pytest

from vmm.kernel.files import DescriptorTable
from vmm.kernel.host_eventfd import HostEventFile, eventfd_id
from vmm.kernel.kvm import Vm
from vmm.order import Executor


class Pins:
    def __init__(self) -> None:
        self.log: list[tuple[int, int, bool]] = []

    def set_irq(self, pin: int, source: int, level: bool, _line_status: bool = False) -> int:
        self.log.append((pin, source, level))
        return 1


@pytest.fixture
def files() -> DescriptorTable:
    return DescriptorTable()


@pytest.fixture
def peer():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_write_by_the_peer_reaches_the_gsi_once_the_loop_looks(files, peer):
    executor = Executor()
    vm = Vm(files, executor)
    pins = Pins()
    vm.connect(chips={2: pins})
    watched: list[bool] = []
    fd = HostEventFile.open(files, os.dup(peer), on_watch=lambda _ctx, wanted: watched.append(wanted))
    resample = files.eventfd()
    vm.irqfd(fd, 10, 2, resample)
    assert watched == [True]
    os.eventfd_write(peer, 2)
    os.eventfd_write(peer, 1)
    files.file(fd).ctx.readable_now()
    executor.drain()
    assert pins.log == [(10, 1, True)]
    with pytest.raises(BlockingIOError):
        os.eventfd_read(peer)
    vm.irqfd(fd, 10, 1)
    assert watched == [True, False]


def test_resample_signal_is_seen_by_the_peer(files, peer):
    vm = Vm(files, Executor())
    vm.connect(chips={2: Pins()})
    trigger = files.eventfd()
    resample = HostEventFile.open(files, os.dup(peer))
    vm.irqfd(trigger, 10, 2, resample)
    vm.ioapic_acks.notify_acked(10)
    vm.ioapic_acks.notify_acked(10)
    assert os.eventfd_read(peer) == 2


def test_pending_events_are_drained_without_o_nonblock(files):
    peer = os.eventfd(0)  # blocking
    fd = HostEventFile.open(files, os.dup(peer))
    ctx = files.file(fd).ctx
    assert ctx.take() == 0
    os.eventfd_write(peer, 5)
    assert ctx.take() == 5
    assert ctx.take() == 0
    os.close(peer)


def test_last_reference_closes_the_host_descriptor(files, peer):
    host = os.dup(peer)
    fd = HostEventFile.open(files, host)
    ctx = files.ctx_fdget(fd)
    files.close(fd)
    os.fstat(host)
    ctx.put()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(host)


def test_same_eventfd_received_twice_is_one_to_kvm(files, peer):
    if eventfd_id(peer) is None:
        pytest.skip("this kernel does not show eventfd-id in /proc/self/fdinfo")
    vm = Vm(files, Executor())
    vm.connect(chips={2: Pins()})
    a = HostEventFile.open(files, os.dup(peer))
    b = HostEventFile.open(files, os.dup(peer))
    vm.irqfd(a, 10)
    with pytest.raises(OSError, match="has an irqfd"):
        vm.irqfd(b, 11)
