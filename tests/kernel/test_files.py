"""Descriptors, files and eventfds: what a process sees of them, and what the holders of contexts see."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm import order
from vmm.kernel.files import (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EFD_SEMAPHORE,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    U64_MAX,
    DescriptorTable,
    EventfdCtx,
    EventfdDomain,
    EventFile,
    File,
    WaitEntry,
)
from vmm.kernel.poll import FdHandler
from vmm.order import Executor, OrderError, Violation, WorkQueue


@pytest.fixture
def files() -> DescriptorTable:
    return DescriptorTable()


def refused(number: int):
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


# Descriptors


def test_new_descriptor_gets_the_lowest_free_number(files):
    assert [files.eventfd() for _ in range(3)] == [0, 1, 2]
    files.close(1)
    assert files.eventfd() == 1
    assert files.eventfd() == 3


def test_descriptor_without_a_file_is_ebadf_everywhere(files):
    for call in (files.close, files.dup, files.read, files.write, files.poll, files.fget, files.ctx_fdget):
        for fd in (-1, 0, 77, 1 << 40):
            with refused(errno.EBADF):
                call(fd)


def test_closing_twice_is_ebadf(files):
    fd = files.eventfd()
    files.close(fd)
    with refused(errno.EBADF):
        files.close(fd)


def test_descriptors_at_the_limit_are_emfile_and_nothing_leaks():
    files = DescriptorTable(limit=2)
    files.eventfd()
    fd = files.eventfd()
    with refused(errno.EMFILE):
        files.eventfd()
    with refused(errno.EMFILE):
        files.dup(fd)
    assert files.file(fd).refs == 1
    files.close(0)
    assert files.eventfd() == 0


def test_dup2_closes_what_was_there(files):
    a, b = files.eventfd(5), files.eventfd(7)
    gone = files.file(b)
    assert files.dup2(a, b) == b
    assert not gone.alive
    assert files.read(b) == 5
    assert files.dup2(a, a) == a
    assert files.file(a).refs == 2


def test_target_of_dup2_may_be_any_number_below_the_limit():
    files = DescriptorTable(limit=4)
    fd = files.eventfd()
    for at in (3, 1, 0):
        assert files.dup2(fd, at) == at
    for at in (4, 5, -1):
        with refused(errno.EBADF):
            files.dup2(fd, at)
    assert files.file(fd).refs == 3


def test_table_has_1024_descriptors_unless_told_otherwise(files):
    assert files.install(File("last"), 1023) == 1023
    with refused(errno.EMFILE):
        files.install(File("one more"), 1024)


def test_reused_number_names_the_new_file(files):
    fd = files.eventfd(1)
    files.close(fd)
    assert files.eventfd(9) == fd
    assert files.read(fd) == 9


@given(st.lists(st.tuples(st.sampled_from(["eventfd", "dup", "close"]), st.integers(0, 7)), max_size=60))
def test_any_sequence_of_calls_keeps_numbers_lowest_first_and_references_counted(calls):
    files = DescriptorTable()
    model: dict[int, int] = {}
    serial = 0
    for call, fd in calls:
        free = next(n for n in range(99) if n not in model)
        if call == "eventfd":
            serial += 1
            assert files.eventfd(serial) == free
            model[free] = serial
        elif fd not in model:
            with refused(errno.EBADF):
                getattr(files, call)(fd)
        elif call == "dup":
            assert files.dup(fd) == free
            model[free] = model[fd]
        else:
            files.close(fd)
            del model[fd]
    for fd, identity in model.items():
        assert files.file(fd).refs == sum(1 for other in model.values() if other == identity)


# The counter


def test_eventfd_with_unknown_flags_or_a_huge_count_is_einval(files):
    for count, flags in ((0, 2), (0, 1 << 20), (1 << 32, 0), (-1, 0)):
        with refused(errno.EINVAL):
            files.eventfd(count, flags)
    assert files.eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC) == 0


def test_read_returns_the_sum_of_the_writes_and_clears_it(files):
    fd = files.eventfd(1, EFD_NONBLOCK)
    files.write(fd, 2)
    files.write(fd, 0)
    assert files.read(fd) == 3
    with refused(errno.EAGAIN):
        files.read(fd)


def test_semaphore_is_read_one_by_one(files):
    fd = files.eventfd(2, EFD_NONBLOCK | EFD_SEMAPHORE)
    assert [files.read(fd), files.read(fd)] == [1, 1]
    with refused(errno.EAGAIN):
        files.read(fd)


def test_short_buffers_are_einval(files):
    fd = files.eventfd(1)
    with refused(errno.EINVAL):
        files.read(fd, 7)
    with refused(errno.EINVAL):
        files.write(fd, 1, size=4)
    assert files.read(fd) == 1


def test_write_that_has_no_room_is_eagain_and_all_ones_einval(files):
    fd = files.eventfd(0, EFD_NONBLOCK)
    files.write(fd, U64_MAX - 1)
    with refused(errno.EAGAIN):
        files.write(fd, 1)
    with refused(errno.EINVAL):
        files.write(fd, U64_MAX)
    assert files.read(fd) == U64_MAX - 1


def test_call_that_would_sleep_for_ever_is_refused(files):
    fd = files.eventfd()
    with refused(errno.EDEADLK):
        files.read(fd)


def test_file_of_an_eventfd_blocks_unless_it_is_told_otherwise(files):
    fd = files.install(EventFile(EventfdCtx(files.domain, "e")))
    with refused(errno.EDEADLK):
        files.read(fd)


@pytest.mark.parametrize(("name", "told"), [("trigger", "trigger"), ("", "eventfd")])
def test_what_is_refused_is_told_with_the_eventfds_name(files, name, told):
    with pytest.raises(BlockingIOError, match=f"read of {told}$"):
        files.read(files.eventfd(0, EFD_NONBLOCK, name))


def test_nonblock_belongs_to_the_file_and_is_shared_by_dups(files):
    fd = files.eventfd()
    other = files.dup(fd)
    files.set_nonblock(fd, True)
    with refused(errno.EAGAIN):
        files.read(other)


def test_poll_shows_in_out_and_err(files):
    fd = files.eventfd()
    assert files.poll(fd) == POLLOUT
    files.write(fd, 1)
    assert files.poll(fd) == POLLIN | POLLOUT
    files.write(fd, U64_MAX - 2)
    assert files.poll(fd) == POLLIN
    ctx = files.ctx_fdget(fd)
    ctx.signal()
    assert files.poll(fd) == POLLIN | POLLERR
    ctx.signal()
    assert ctx.count == U64_MAX


@pytest.mark.parametrize("count", [0, 1, 2, U64_MAX - 3, U64_MAX - 2, U64_MAX - 1, U64_MAX])
def test_sleepers_wait_for_what_poll_shows(count):
    ctx = EventfdCtx(EventfdDomain(), "e", count)
    assert ctx.readable() == bool(ctx.poll() & POLLIN)
    assert ctx.writable() == bool(ctx.poll() & POLLOUT)


def test_context_counts_from_0_and_is_no_semaphore_unless_told_otherwise():
    ctx = EventfdCtx(EventfdDomain(), "e")
    assert ctx.drain() == 0
    ctx.add(2)
    assert ctx.drain() == 2


@pytest.mark.parametrize("call", ["read", "write"])
def test_call_that_would_block_sleeps_until_another_task_makes_room_or_writes(files, monkeypatch, call):
    fd = files.eventfd()
    if call == "write":
        files.write(fd, U64_MAX - 1)
    slept = []

    def wait(step, subject, ready, sleeps):
        if ready():  # a lock that is free
            return
        if slept or not sleeps:
            raise OrderError(f"{step}: {subject!r} sleeps again, or where it may not")
        slept.append(step)
        me, order.actor = order.actor, 7
        other = {"read": files.write, "write": files.read}[call]
        other(fd)
        order.actor = me
        assert ready()

    monkeypatch.setattr(order, "hook", lambda _point, _subject: None)
    monkeypatch.setattr(order, "wait", wait)
    assert getattr(files, call)(fd) == (1 if call == "read" else None)
    assert slept == [f"eventfd.{call}"]
    assert files.file(fd).ctx.count == (0 if call == "read" else 1)


def test_file_that_is_no_eventfd_is_einval(files):
    fd = files.install(File("stdin"))
    for call in (files.ctx_fdget, files.read, files.write):
        with refused(errno.EINVAL):
            call(fd)
    assert files.file(fd).refs == 1
    assert files.poll(fd) == 0


# Life


def waiter(log: list, name: str, consumes: bool = False) -> WaitEntry:
    def wake(key: int) -> bool:
        log.append((name, key))
        return consumes

    return WaitEntry(wake)


def test_hup_comes_once_with_the_last_file_reference_not_with_the_last_context(files):
    log: list = []
    fd = files.eventfd()
    ctx = files.ctx_fdget(fd)
    ctx.add_wait(waiter(log, "w"))
    other = files.dup(fd)
    child = files.fork()
    held = files.fget(fd)
    for release in (lambda: files.close(fd), lambda: files.close(other), held.put):
        release()
        assert log == []
    child.close_all()
    assert log == [("w", POLLHUP)]
    assert ctx.alive
    ctx.put()
    assert log == [("w", POLLHUP)]
    assert not ctx.alive


def test_context_can_be_signalled_after_its_file_is_gone(files):
    fd = files.eventfd()
    ctx = files.ctx_fdget(fd)
    files.close(fd)
    assert ctx.signal()
    assert ctx.count == 1


def test_put_without_a_reference_is_a_violation(files):
    fd = files.eventfd()
    ctx = files.ctx_fdget(fd)
    files.close(fd)
    ctx.put()
    with pytest.raises(Violation):
        ctx.put()


def test_file_without_a_reference_cannot_be_put():
    with pytest.raises(Violation, match="double-put"):
        File("stdin").put()


# The wait queue

WAYS_IN = ("add_wait", "add_wait_exclusive", "add_wait_priority", "add_wait_priority_exclusive")


def test_plain_waiters_are_all_woken_and_priority_ones_first(files):
    log: list = []
    fd = files.eventfd()
    ctx = files.ctx_fdget(fd)
    ctx.add_wait_exclusive(waiter(log, "last"))
    ctx.add_wait(waiter(log, "second"))
    ctx.add_wait(waiter(log, "first"))
    ctx.add_wait_priority(waiter(log, "priority"))
    ctx.add_wait(waiter(log, "behind priority"))
    files.write(fd)
    assert [name for name, _ in log] == ["priority", "behind priority", "first", "second", "last"]


def test_consuming_exclusive_waiter_hides_the_event_from_later_ones(files):
    log: list = []
    fd = files.eventfd()
    ctx = files.ctx_fdget(fd)
    ctx.add_wait(waiter(log, "poller", consumes=True))
    ctx.add_wait_priority(waiter(log, "irqfd", consumes=True))
    files.write(fd)
    assert log == [("irqfd", POLLIN)]


def test_plain_waiter_that_consumes_hides_nothing(files):
    log: list = []
    fd = files.eventfd()
    ctx = files.ctx_fdget(fd)
    for name in ("2", "1"):
        ctx.add_wait(waiter(log, name, consumes=True))
    files.write(fd)
    assert log == [("1", POLLIN), ("2", POLLIN)]


@pytest.mark.parametrize(
    "first", ["add_wait", "add_wait_exclusive", "add_wait_priority", "add_wait_priority_exclusive"]
)
@pytest.mark.parametrize(
    "again", ["add_wait", "add_wait_exclusive", "add_wait_priority", "add_wait_priority_exclusive"]
)
def test_entry_waits_in_one_place(files, first, again):
    ctx = files.ctx_fdget(files.eventfd())
    entry = waiter([], "w")
    getattr(ctx, first)(entry)
    with pytest.raises(Violation, match="added-twice"):
        getattr(ctx, again)(entry)
    ctx.remove_wait(entry)
    getattr(ctx, again)(entry)
    assert ctx.waiters == (entry,)


def test_second_priority_waiter_is_refused_by_the_exclusive_call_only(files):
    fd = files.eventfd()
    ctx = files.ctx_fdget(fd)
    first = waiter([], "1")
    assert ctx.add_wait_priority_exclusive(first)
    assert not ctx.add_wait_priority_exclusive(waiter([], "2"))
    ctx.add_wait_priority(waiter([], "3"))
    assert len(ctx.waiters) == 2
    with pytest.raises(Violation):
        ctx.add_wait(first)


def test_write_of_zero_wakes(files):
    log: list = []
    fd = files.eventfd()
    files.ctx_fdget(fd).add_wait(waiter(log, "w"))
    files.write(fd, 0)
    assert log == [("w", POLLIN)]


def test_read_wakes_writers_and_one_that_finds_nothing_wakes_nobody(files):
    log: list = []
    fd = files.eventfd(1, EFD_NONBLOCK)
    files.ctx_fdget(fd).add_wait(waiter(log, "w"))
    files.read(fd)
    assert log == [("w", POLLOUT)]
    with refused(errno.EAGAIN):
        files.read(fd)
    assert log == [("w", POLLOUT)]


def test_removing_a_waiter_that_drains_wakes_writers_and_one_that_finds_nothing_wakes_nobody(files):
    log: list = []
    ctx = files.ctx_fdget(files.eventfd(3))
    first, second = waiter(log, "1"), waiter(log, "2")
    ctx.add_wait(first)
    ctx.add_wait(second)
    ctx.add_wait(waiter(log, "3"))
    ctx.remove_wait_and_drain(first)
    assert log == [("3", POLLOUT), ("2", POLLOUT)]
    ctx.remove_wait_and_drain(second)
    assert log == [("3", POLLOUT), ("2", POLLOUT)]


def test_removing_a_waiter_drains_the_counter_in_the_same_step(files):
    fd = files.eventfd(3, EFD_NONBLOCK)
    ctx = files.ctx_fdget(fd)
    entry = waiter([], "w")
    ctx.add_wait(entry)
    assert ctx.remove_wait_and_drain(entry) == 3
    with refused(errno.EAGAIN):
        files.read(fd)


def test_removing_a_waiter_of_an_empty_semaphore_does_not_underflow(files):
    fd = files.eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE)
    ctx = files.ctx_fdget(fd)
    entry = waiter([], "w")
    ctx.add_wait(entry)
    assert ctx.remove_wait_and_drain(entry) == 0
    assert files.poll(fd) == POLLOUT


def test_removing_an_entry_that_was_never_added_is_a_violation(files):
    ctx = files.ctx_fdget(files.eventfd())
    with pytest.raises(Violation, match="never-added"):
        ctx.remove_wait(waiter([], "w"))


def test_signal_from_inside_a_wake_up_is_refused_and_counted(files):
    a, b = files.eventfd(), files.eventfd()
    target = files.ctx_fdget(b)
    results = []

    def wake(_key: int) -> bool:
        results.append(target.signal())
        return False

    files.ctx_fdget(a).add_wait(WaitEntry(wake))
    files.write(a)
    assert results == [False]
    assert target.count == 0
    assert files.domain.refused == 1
    assert target.signal()


# A poller in user space


def polled(files: DescriptorTable, fd: int):
    executor = Executor()
    got: list[int] = []
    handler = FdHandler(files, fd, WorkQueue("loop", executor), lambda: got.append(files.read(fd)))
    return executor, got, handler


def test_handler_reads_what_was_there_before_and_what_comes(files):
    fd = files.eventfd(4, EFD_NONBLOCK)
    executor, got, handler = polled(files, fd)
    executor.drain()
    files.write(fd, 2)
    files.write(fd, 1)
    executor.drain()
    assert got == [4, 3]
    handler.close()
    files.write(fd, 1)
    executor.drain()
    assert got == [4, 3]
    assert files.file(fd).ctx.refs == 1


def test_handler_of_a_semaphore_is_called_until_it_is_empty(files):
    fd = files.eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE)
    executor, got, _ = polled(files, fd)
    executor.drain()
    assert got == [1, 1, 1]


def test_handler_is_not_called_for_an_event_that_somebody_took_first(files):
    fd = files.eventfd(0, EFD_NONBLOCK)
    executor, got, _ = polled(files, fd)
    files.write(fd)
    assert files.read(fd) == 1
    executor.drain()
    assert got == []


def test_handler_that_does_not_read_is_not_called_for_ever(files):
    fd = files.eventfd(1, EFD_NONBLOCK)
    executor = Executor()
    calls: list[int] = []
    FdHandler(files, fd, WorkQueue("loop", executor), lambda: calls.append(1))
    executor.drain()
    assert calls == [1]
    files.write(fd)
    executor.drain()
    assert calls == [1, 1]


def test_eight_bytes_are_enough_and_seven_are_not(files):
    fd = files.eventfd(0, EFD_NONBLOCK)
    files.write(fd, 3, size=8)
    assert files.read(fd, size=8) == 3
    for call in (lambda: files.write(fd, 1, size=7), lambda: files.read(fd, size=7)):
        with refused(errno.EINVAL):
            call()


def test_handler_that_is_closed_leaves_the_queue_and_its_work(files):
    calls: list[int] = []
    fd = files.eventfd(1, EFD_NONBLOCK)
    ctx = files.ctx_fdget(fd)
    executor = Executor()
    handler = FdHandler(files, fd, WorkQueue("loop", executor), lambda: calls.append(1))
    handler.close()
    handler.close()
    assert not executor.pending
    ctx.signal()
    executor.drain()
    assert calls == []
    assert ctx.waiters == ()
    files.close(fd)


def test_handler_may_close_itself(files, monkeypatch):
    monkeypatch.setattr(order, "hook", lambda _point, _subject: None)
    calls: list[int] = []
    executor = Executor()

    def once() -> None:
        calls.append(1)
        handler.close()

    handler = FdHandler(files, files.eventfd(2, EFD_SEMAPHORE), WorkQueue("loop", executor), once)
    executor.drain()
    assert calls == [1]
