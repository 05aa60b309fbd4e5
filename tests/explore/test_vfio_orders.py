"""VFIO's INTx in every order: device, unmask eventfd, its close, and the ioctl that takes it all down."""

from __future__ import annotations

from devices.vfio_irqs import VfioIntx, Virqfd
from tests.support.explored import Hardware, Run
from vmm.explore.actors import Actor, Operation
from vmm.explore.search import Scenario, explore
from vmm.kernel.files import EFD_NONBLOCK, DescriptorTable
from vmm.order import Executor, WorkQueue
from vmm.trace import Trace


class Device:
    """An enabled INTx with an unmask eventfd, and the contexts that others hold."""

    def __init__(self, kind: type[VfioIntx] = VfioIntx) -> None:
        self.executor = Executor()
        self.files = DescriptorTable()
        self.hardware = Hardware()
        self.intx = kind("d", self.hardware, self.files, self.executor, Trace())
        self.hardware.intx = self.intx
        self.trigger = self.files.eventfd(0, EFD_NONBLOCK, "trigger")
        self.unmask = self.files.eventfd(0, EFD_NONBLOCK, "unmask")
        self.trigger_ctx = self.files.ctx_fdget(self.trigger)
        self.unmask_ctx = self.files.ctx_fdget(self.unmask)
        self.intx.enable(self.files.ctx_fdget(self.trigger))
        self.intx.enable_virqfd(self.unmask)

    def worker(self, queue: WorkQueue, name: str) -> Actor:
        return Actor(name, (Operation("work", Run(self.executor, queue).next, queue.has_next),), repeats=True)

    def disable(self) -> None:
        with self.intx.igate:
            self.intx.disable()

    def exchange_trigger(self) -> None:
        with self.intx.igate:
            if self.intx.ctx is not None:
                self.intx.set_trigger(None)

    def close_unmask(self) -> None:
        self.files.close(self.unmask)

    def actors(self, *more: Actor) -> tuple[Actor, ...]:
        return (*more, self.worker(self.intx.events, "virqfd"), self.worker(self.intx.cleanup, "cleanup"))

    def scenario(self, at_rest, *more: Actor) -> Scenario:
        roots = (self.intx, self.files, self.executor, self.hardware, self.trigger_ctx, self.unmask_ctx)
        return Scenario(roots, self.actors(*more), None, at_rest)


def one(name: str, function) -> Actor:
    return Actor(name, (Operation(name, function),))


def teardown(kind: type[VfioIntx] = VfioIntx) -> Scenario:
    device = Device(kind)

    def at_rest() -> str | None:
        if (device.trigger_ctx.refs, device.unmask_ctx.refs) != (2, 1):
            return "a context reference is left, or one too many was put"
        if device.intx.ctx is not None or device.unmask_ctx.waiters:
            return "something is left"
        return None

    return device.scenario(
        at_rest,
        one("assert", device.hardware.assert_intx),
        one("resample", device.unmask_ctx.signal),
        one("close", device.close_unmask),
        one("disable", device.disable),
    )


def test_taking_down_in_any_order_touches_nothing_dead_and_leaves_nothing():
    result = explore(teardown())
    assert result.finding is None, str(result.finding)
    assert result.states > 1000


class TwoOwners(VfioIntx):
    """Disable queues the shutdown without looking who else has."""

    __slots__ = ()

    def disable_virqfd(self, ctx) -> None:
        virqfd: Virqfd | None = ctx.unmask
        if virqfd is not None:
            virqfd.queue_shutdown()
        self.cleanup.flush()
        ctx.unmask = None


def test_virqfd_with_two_owners_is_shut_down_twice():
    finding = explore(teardown(TwoOwners)).finding
    assert finding is not None
    assert "virqfd" in finding.rule or "freed" in finding.rule or "reference" in finding.rule, str(finding)


class NoFlush(VfioIntx):
    """The old trigger is put without waiting for the virqfd's thread."""

    __slots__ = ()

    def flush_virqfd(self, ctx) -> None: ...


def exchange(kind: type[VfioIntx] = VfioIntx) -> Scenario:
    device = Device(kind)
    device.hardware.level = True
    device.intx.handler()  # masked, with the line high: an unmask signals again from the thread
    device.trigger_ctx.put()  # nobody but VFIO and the file has it
    device.files.close(device.trigger)
    return device.scenario(
        lambda: None,
        one("resample", device.unmask_ctx.signal),
        one("exchange", device.exchange_trigger),
    )


def test_old_trigger_is_put_only_when_nobody_can_signal_it():
    result = explore(exchange())
    assert result.finding is None, str(result.finding)


def test_trigger_put_before_the_thread_is_over_is_a_use_after_free():
    finding = explore(exchange(NoFlush)).finding
    assert finding is not None
    assert finding.rule.startswith("use-after-free"), str(finding)
    assert ("virqfd", "vfio.intx.signal") in finding.trail


def test_line_that_stays_high_is_signalled_after_every_unmask_in_any_order():
    device = Device()

    def forgotten() -> str | None:
        if device.hardware.level and not device.trigger_ctx.count:
            return "the line is high and nobody was told"
        return None

    def consume() -> None:
        device.trigger_ctx.drain()
        device.unmask_ctx.signal()

    result = explore(
        device.scenario(
            forgotten,
            one("assert", device.hardware.assert_intx),
            Actor("driver", (Operation("consume", consume, device.trigger_ctx.readable),) * 2),
        )
    )
    assert result.finding is None, str(result.finding)


def test_intx_disable_races_with_unmask_and_never_signals_while_set():
    device = Device()
    intx = device.intx
    device.hardware.level = True
    intx.handler()
    device.trigger_ctx.drain()

    def at_rest() -> str | None:
        assert intx.ctx is not None
        if device.hardware.masked != intx.ctx.masked:
            return "the hardware's mask and VFIO's differ"
        if intx.virq_disabled and not intx.ctx.masked:
            return "not masked while the guest disabled INTx"
        return None

    result = explore(
        device.scenario(
            at_rest,
            one("guest", lambda: intx.set_virq_disabled(True)),
            one("resample", device.unmask_ctx.signal),
            one("serve", device.hardware.serve),
        )
    )
    assert result.finding is None, str(result.finding)
