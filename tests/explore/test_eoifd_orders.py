"""KVM_EOIFD in every order: nothing freed is touched under any rule, and only one rule leaves nothing behind."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.explored import GSI, Model
from vmm.explore.actors import Actor, Operation
from vmm.explore.search import Finding, Scenario, explore
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_LEVEL_IRQFD, EoiIrqfds
from vmm.kernel.policies import POLICIES

TWO_OBJECTS = [name for name in POLICIES if name != "resample"]
LEFT = "a source id without an irqfd"


def binding(policy: str, close: bool = False, fires: bool = False, eoi_irqfds: type[EoiIrqfds] = EoiIrqfds) -> Scenario:
    """An irqfd is bound to an eoifd by one thread and removed by another; if it `fires` the guest ends that."""
    model = Model(policy=policy, eoi_irqfds=eoi_irqfds)
    vm, files, pin = model.vm, model.files, model.pin
    e, f = model.efd("e"), model.efd("f")
    trigger, eoi = files.ctx_fdget(e), files.ctx_fdget(f)
    vm.irqfd(e, GSI, 2)

    def bind() -> None:
        with contextlib.suppress(OSError):  # the irqfd, or its descriptor, went first
            vm.eoifd(f, KVM_EOIFD_FLAG_LEVEL_IRQFD, e)

    def remove() -> None:
        if close:
            files.close(e)
            return
        with contextlib.suppress(OSError):  # refused: an eoifd is bound
            vm.irqfd(e, GSI, 1)

    def at_rest() -> str | None:
        irqfds = vm.irqfds
        sources = vm.gsis.sources.live() - 1
        if sources != len(irqfds.items):
            return LEFT
        if len(vm.gsis.notifiers.get(GSI, ())) != len(irqfds.eoifds):
            return "a notifier without an eoifd"
        if not sources and (pin.held or trigger.refs > 2 or eoi.refs > 2):
            return "the line is high, or a reference is left"
        return None

    actors = [
        Actor("binder", (Operation("bind", bind),)),
        Actor("remover", (Operation("remove", remove),)),
        model.worker(vm.irqfds.cleanup_queue, "cleanup"),
    ]
    if fires:
        actors += [
            Actor("device", (Operation("signal", trigger.signal),)),
            Actor("vcpu", (Operation("take", pin.take, pin.can_take), Operation("eoi", pin.eoi))),
            model.worker(vm.irqfds.inject_queue, "inject"),
        ]
    return Scenario(model.roots(), tuple(actors), None, at_rest)


@pytest.mark.parametrize("close", [False, True], ids=["deassign", "close"])
@pytest.mark.parametrize("policy", TWO_OBJECTS)
def test_which_rule_leaves_a_zombie(policy, close):
    """Nothing but the zombie itself may be found: no use after free, no second shutdown, no deadlock."""
    finding = explore(binding(policy, close, fires=close and policy == "eoifd-follows-irqfd")).finding
    clean = policy == "eoifd-follows-irqfd"
    clean |= policy == "deassign-fails" and not close
    clean |= policy == "eoifd-holds-file" and close
    if clean:
        assert finding is None, str(finding)
    else:
        assert isinstance(finding, Finding)
        assert finding.rule == LEFT, str(finding)


def test_eoifd_born_an_orphan_is_found_if_the_second_look_is_left_out():
    class Blind(type(POLICIES["eoifd-follows-irqfd"])):
        def may_bind(self, irqfd) -> bool:  # noqa: ARG002
            return True

    class BlindIrqfds(EoiIrqfds):
        __slots__ = ()

        def __init__(self, *rest) -> None:
            super().__init__(*rest[:-1], Blind())

    finding = explore(binding("eoifd-follows-irqfd", eoi_irqfds=BlindIrqfds)).finding
    assert finding is not None
    assert finding.rule == LEFT
    steps = [step for _, step in finding.trail]
    assert steps.index("eoifd.assign.looked-up") < steps.index("remove")
