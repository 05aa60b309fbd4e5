"""The five that were written down before they were asked, and what their small models would notice besides the bug."""

from __future__ import annotations

import pytest

from vmm.explore import zoo
from vmm.explore.scenes import run
from vmm.explore.zoo import irqchip, setup
from vmm.explore.zoo.expected import EXPECTED


@pytest.mark.parametrize("number", EXPECTED)
def test_verdict_is_the_one_that_was_written_down_before(number):
    expected = EXPECTED[number]
    verdict = zoo.show(zoo.bug(number)).verdict()
    assert (verdict.text, verdict.fix, verdict.right) == (expected.verdict, "clean", True)
    assert zoo.bug(number).breaks == (expected.verdict,)
    assert zoo.bug(number).reference.startswith(expected.ref)


def explored(number, kind):
    """The first rule that the bug's scene breaks with another class in the place of the bug's, all states or not."""
    bug = zoo.bug(number)
    wears = bug.broken._replace(parts=bug.broken.parts._replace(monitor=kind))
    result = run(bug.family()._replace(wears=wears), number, wears).result
    return result.finding.rule.partition(":")[0] if result.finding else ("clean" if result.complete else "not finished")


def test_line_that_fell_while_disabled_and_is_not_given_back_to_the_host_is_never_seen_to_rise_again():
    class KeepsHostActive(irqchip.MappedIrq):
        __slots__ = ()

        def resample(self):
            self.line_level = self.high

    assert explored("Z45", KeepsHostActive) == "L1"


def test_irqfd_that_is_made_anew_without_an_unmask_leaves_the_device_masked():
    class DoesNotUnmask(irqchip.RoutedUser):
        __slots__ = ()

        def update(self):
            self.mask()
            self.deassign()
            self.lower()
            self.assign()

    assert explored("Z73", DoesNotUnmask) == "L1"


def test_device_that_is_gone_and_still_on_the_list_is_noticed():
    class StaysOnTheList(irqchip.AssignedDevice):
        __slots__ = ()

        def stop_listening(self):
            pass

    assert explored("Z72", StaysOnTheList) == "use-after-free"


def test_irqchip_that_is_there_in_time_hides_the_unchecked_scan():
    def scene(board):
        vm = irqchip.NewVm(board)
        vm.create_irqchip()
        board.state(vm)
        vcpu = board.thread("vcpu")
        vcpu.run("create", vm.create_vcpu)
        vcpu.run("SINT", vm.set_sint)
        vcpu.run("run", vm.run_vcpu)

    bug = zoo.bug("Z43")
    result = run(bug.family(infected=True)._replace(scenes={"Z43": scene}), "Z43", bug.broken).result
    assert result.complete
    assert result.finding is None


def test_irqchip_whose_creation_failed_is_as_none_to_the_scan():
    def scene(board):
        vm = irqchip.NewVm(board)
        vm.starve()
        vm.create_irqchip()
        board.state(vm)
        vcpu = board.thread("vcpu")
        vcpu.run("SINT", vm.set_sint)
        vcpu.run("run", vm.run_vcpu)

    bug = zoo.bug("Z43")
    found = {}
    for infected in (False, True):
        family = bug.family(infected)._replace(scenes={"Z43": scene})
        found[infected] = run(family, "Z43", bug.broken if infected else bug.real).result.finding
    assert found[False] is None
    assert found[True].rule.startswith("raised AttributeError")


def test_edge_on_the_slow_road_is_late_but_not_lost():
    def scene(board):
        zoo.bug("Z79").scene(board)
        irq = next(state for state in board._states if isinstance(state, setup.EdgeIrq))
        board.at_rest(lambda: "L1: lost" if irq.fired and not board.results("vcpu") else None)

    bug = zoo.bug("Z79")
    result = run(bug.family(infected=True)._replace(scenes={"Z79": scene}), "Z79", bug.broken).result
    assert result.complete
    assert result.finding is None


def test_edge_that_nobody_forwards_is_noticed():
    class Forgets(setup.ResamplesAll):
        __slots__ = ()

        def forward(self):
            pass

    assert explored("Z79", Forgets) == "L1"
