"""S1 to S20 under each rule of the dispute: random lives that keep what a rule claims, and a shortest one for each
invariant that it breaks.
"""

from __future__ import annotations

import errno

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.support.endurance import size
from vmm.dispute.row import TWO_OBJECTS
from vmm.dispute.stage import CLOSED, GSIS, Stage
from vmm.kernel import invariants
from vmm.kernel.gsi import AckNotifier
from vmm.kernel.invariants import BREAKS

E = st.sampled_from(["e1", "e2", "e3"])
F = st.sampled_from(["f1", "f2"])
GSI = st.sampled_from(["g", "h"])
PICK = st.integers(0, 2)
ANY = st.sampled_from(["e1", "e2", "e3", "f1", "f2", "e1b", "e2b", "f1b"])

CHECKED = (*invariants.STATE, *invariants.STEP, "S3")


def life(
    policy: str,
    numbers: set[str],
    sources: int = 2,
    listeners: int = 1,
    narrow: bool = False,
    closes: bool = True,
) -> type[RuleBasedStateMachine]:
    """A state machine over one VM that fails when one of `numbers` does not hold."""
    merged = policy == "resample"

    class Narrow(RuleBasedStateMachine):
        """The operations that the thread's sequences consist of, on one GSI."""

        last: tuple[str, ...] = ()

        def __init__(self) -> None:
            super().__init__()
            self.stage = Stage(policy, sources)

        def do(self, operation: str) -> None:
            for name in operation.split()[1:2]:
                if name.endswith("b") and name not in self.stage.descriptors:
                    return  # dups are made by `dup` only
            came = self.stage.do(operation)
            found = dict(came.broken)
            if operation.startswith("C ") and "S3" in numbers and came.result == "ok":
                found["S3"] = self.stage.close_equals_deassign(operation[2:])
            type(self).last = tuple(self.stage.history)
            wrong = {number: text for number, text in found.items() if number in numbers and text}
            assert not wrong, (self.stage.history, wrong)

        def bound(self, pick: int) -> tuple[str, str]:
            """An irqfd that there is, and its GSI; any other if there is none. `pick` 0: the last one."""
            names = {ctx: name for name, ctx in self.stage.contexts.items()}
            there = [(names[ctx], gsi) for ctx, (gsi, _, _) in self.stage.ledger.irqfds.items()]
            if not there:
                return "e1", "g"
            name, number = there[-1 - pick % len(there)]
            return name, next(gsi for gsi, n in GSIS.items() if n == number)

        @rule(e=st.sampled_from(["e1", "e2"]))
        def assign(self, e):
            self.do(f"I+ {e} g f1" if merged else f"I+ {e} g")

        @rule(f=F, pick=PICK)
        def listen(self, f, pick):
            e, _ = self.bound(pick)
            named = list(self.stage.ledger.eoifds.values()).count(self.stage.ctx_of.get(e))
            if e in self.stage.contexts and named < listeners:
                self.do(f"E+ {f} {e}")

        @rule(pick=PICK)
        def event(self, pick):
            self.do(f"SIG {self.bound(pick)[0]}")

        @rule()
        def eoi(self):
            self.do("EOI g")

        @rule(pick=PICK)
        def deassign(self, pick):
            e, gsi = self.bound(pick)
            self.do(f"I- {e} {gsi}")

        @rule(pick=PICK)
        def close_irqfd(self, pick):
            e, _ = self.bound(pick)
            if closes and e in self.stage.descriptors:
                self.do(f"C {e}")

        def teardown(self):
            left = self.stage.close_all()
            assert not numbers & set(left), (self.stage.history, left)

    if narrow:
        return Narrow

    class Life(Narrow):
        """All there is, sense or nonsense."""

        @rule(e=E, gsi=GSI, f=F)
        def assign_any(self, e, gsi, f):
            self.do(f"I+ {e} {gsi} {f}" if merged else f"I+ {e} {gsi}")

        @rule()
        def eoi_other(self):
            self.do("EOI h")

        @rule(pick=PICK)
        def unlisten(self, pick):
            names = {ctx: name for name, ctx in self.stage.contexts.items()}
            there = [(names[f], names[e]) for f, e in self.stage.ledger.eoifds.items()] or [("f1", "e1")]
            f, e = there[pick % len(there)]
            self.do(f"E- {f} {e}")

        @rule(name=ANY)
        def close(self, name):
            if name in self.stage.descriptors:
                self.do(f"C {name}")

        @rule(name=st.sampled_from(["e1", "e2", "f1"]))
        def dup(self, name):
            if self.stage.descriptors.get(name, CLOSED) != CLOSED and f"{name}b" not in self.stage.descriptors:
                self.do(f"D {name} {name}b")

        @rule(e=E, gsi=GSI)
        def assign_edge(self, e, gsi):
            self.do(f"I+ {e} {gsi} edge")

        @rule(e=E, gsi=GSI)
        def deassign_any(self, e, gsi):
            self.do(f"I- {e} {gsi}")

        @rule(f=F, e=E)
        def unlisten_any(self, f, e):
            self.do(f"E- {f} {e}")

        @rule(e=E)
        def event_any(self, e):
            self.do(f"SIG {e}")

    return Life


def run(machine: type[RuleBasedStateMachine], examples: int, steps: int = 30) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def breaks(policy: str, steps: tuple[str, ...], sources: int) -> set[str]:
    """What a life breaks before it is torn down."""
    stage = Stage(policy, sources)
    found: set[str] = set()
    for step in steps:
        came = stage.do(step)
        found |= set(came.broken)
        if step.startswith("C ") and came.result == "ok" and stage.close_equals_deassign(step[2:]):
            found.add("S3")
    return found


def found_and_shrunk(policy: str, number: str, listeners: int = 1) -> tuple[str, ...]:
    """A life that breaks an invariant, without the steps that it does not need; empty if none was found."""
    fanout = number == "S7"
    machine = life(policy, {number}, pool(number), listeners, narrow=True, closes=not fanout)
    try:
        run(machine, 300, 40)
    except AssertionError:
        steps = machine.last
    else:
        return ()
    shrinking = True
    while shrinking:
        shrinking = False
        for i in reversed(range(len(steps))):
            fewer = steps[:i] + steps[i + 1 :]
            if number in breaks(policy, fewer, pool(number)):
                steps, shrinking = fewer, True
    return steps


def pool(number: str) -> int:
    """How many source ids are enough to break an invariant."""
    return 2 if number == "S7" else 1


@pytest.mark.parametrize("policy", BREAKS)
def test_rule_keeps_every_invariant_that_it_claims(policy):
    claimed = set(CHECKED) - BREAKS[policy] - ({"S10"} if policy != "resample" else set())
    run(life(policy, claimed), size(25, 1000))
    run(life(policy, claimed - {"S7"}, sources=3, listeners=2), size(10, 1000))


# What each rule breaks, in its shortest form.

PAIR = ("I+ e1 g", "E+ f1 e1")
DEASSIGN, CLOSE = (*PAIR, "I- e1 g"), (*PAIR, "C e1")
HIGH_DEASSIGN, HIGH_CLOSE = (*PAIR, "SIG e1", "I- e1 g"), (*PAIR, "SIG e1", "C e1")
SPLIT = (*DEASSIGN, "I+ e1 g", "SIG e1", "EOI g")
V5 = "eoifd-v5:eoifd-close=deassigns"
SHORTEST = {
    (V5, "S1"): DEASSIGN,
    (V5, "S5"): HIGH_DEASSIGN,
    (V5, "S7"): SPLIT,
    (V5, "S20"): (*DEASSIGN, "I+ e2 g"),
    ("deassign-fails", "S1"): CLOSE,
    ("deassign-fails", "S3"): CLOSE,
    ("deassign-fails", "S5"): HIGH_CLOSE,
    ("deassign-fails", "S20"): (*CLOSE, "I+ e2 g"),
    ("assign-busy", "S1"): DEASSIGN,
    ("assign-busy", "S5"): HIGH_DEASSIGN,
    ("assign-busy", "S20"): (*DEASSIGN, "I+ e2 g"),
    ("assign-rebinds", "S1"): DEASSIGN,
    ("assign-rebinds", "S5"): HIGH_DEASSIGN,
    ("assign-rebinds", "S20"): (*DEASSIGN, "I+ e2 g"),
    ("eoifd-holds-file", "S1"): DEASSIGN,
    ("eoifd-holds-file", "S3"): CLOSE,
    ("eoifd-holds-file", "S5"): HIGH_DEASSIGN,
    ("eoifd-holds-file", "S7"): SPLIT,
    ("eoifd-holds-file", "S20"): (*DEASSIGN, "I+ e2 g"),
}
TWO_LISTENERS = ("I+ e1 g", "E+ f1 e1", "E+ f2 e1", "SIG e1", "EOI g")


def test_every_invariant_that_a_rule_breaks_has_a_shortest_life():
    assert {(policy, number) for policy, numbers in BREAKS.items() for number in numbers} == set(SHORTEST)


def assert_needs_every_step(policy, number, steps):
    assert number in breaks(policy, steps, pool(number))
    for i in range(len(steps)):
        assert number not in breaks(policy, steps[:i] + steps[i + 1 :], pool(number)), f"without {steps[i]}"


@pytest.mark.parametrize(("policy", "number"), SHORTEST)
def test_shortest_life_breaks_its_invariant_and_needs_every_step(policy, number):
    assert_needs_every_step(policy, number, SHORTEST[policy, number])


SEARCHED = [(V5, "S1"), (V5, "S7"), (V5, "S20"), ("deassign-fails", "S3"), ("eoifd-holds-file", "S5")]
"""All of them with VINTX_FULL=1."""


@pytest.mark.parametrize(("policy", "number"), size(SEARCHED, SHORTEST))
def test_random_lives_break_what_a_rule_breaks_and_shrink_to_the_shortest(policy, number):
    found = found_and_shrunk(policy, number)
    assert number in breaks(policy, found, pool(number))
    assert len(found) == len(SHORTEST[policy, number]), found


@pytest.mark.parametrize("policy", TWO_OBJECTS)
def test_second_eoifd_of_an_irqfd_breaks_the_fan_out_under_every_rule(policy):
    assert_needs_every_step(policy, "S7", TWO_LISTENERS)


@pytest.mark.parametrize("policy", TWO_OBJECTS)
def test_event_can_be_read_as_well_in_era_v5_and_not_any_more(policy):
    steps = ("I+ e1 g", "SIG e1")
    assert_needs_every_step(policy, "S10", steps)
    assert breaks("resample", ("I+ e1 g f1", "SIG e1"), 1) == set()


def test_close_of_an_eoifd_that_nobody_watches_is_no_deassign():
    assert_needs_every_step("eoifd-v5", "S3", (*PAIR, "C f1"))
    assert breaks(V5, (*PAIR, "C f1"), 1) == set()


# That each check can fail: a VM whose state was damaged


def pair(policy: str = "eoifd-follows-irqfd") -> Stage:
    stage = Stage(policy)
    for step in ("I+ e1 g", "E+ f1 e1", "SIG e1"):
        assert not set(stage.do(step).broken) - {"S10"}
    return stage


def wrong(stage: Stage) -> set[str]:
    return set(invariants.broken(stage.vm, stage.ledger))


def test_leaked_source_id_breaks_s1():
    stage = pair()
    stage.vm.gsis.sources.request()
    assert wrong(stage) == {"S1"}


def test_dead_object_on_a_list_breaks_s4():
    stage = pair()
    stage.vm.irqfds.eoifds[0].free("a mistake")
    assert wrong(stage) == {"S4"}


def test_line_held_by_a_source_that_no_irqfd_has_breaks_s5():
    stage = pair()
    stage.vm.gsis.set_irq(7, GSIS["h"], 1)
    assert wrong(stage) == {"S5"}


def test_request_register_that_forgets_a_source_breaks_s8():
    stage = pair()
    stage.ioapic.irr = 0
    assert wrong(stage) == {"S8"}


def test_irqfd_listed_twice_breaks_s14():
    stage = pair()
    stage.vm.irqfds.items *= 2
    assert "S14" in wrong(stage)


def test_context_reference_that_is_not_given_back_breaks_s2():
    stage = pair()
    stage.contexts["e1"].get()
    assert set(stage.close_all()) == {"S2"}


def test_signal_of_an_eventfd_that_is_not_bound_breaks_s6():
    stage = pair()
    stage.do("I- e1 g")
    notifier = stage.vm.gsis.register
    stage.do("I+ e1 g")
    stage.do("SIG e1")
    notifier(AckNotifier(GSIS["g"], stage.contexts["f1"].signal))
    assert "S6" in stage.do("EOI g").broken


def test_failed_operation_that_takes_a_reference_breaks_s19(monkeypatch):
    stage = pair()
    ctx = stage.contexts["f1"]

    def leaky(*_args):
        ctx.get()
        raise OSError(errno.EINVAL, "leaky")

    monkeypatch.setattr(type(stage.vm), "eoifd", leaky)
    assert "S19" in stage.do("E+ f1 e1").broken


def test_deassign_that_does_nothing_breaks_s9(monkeypatch):
    stage = pair()
    monkeypatch.setattr(type(stage.vm), "irqfd", lambda *_args: None)
    assert set(stage.do("I- e1 g").broken) - {"S10"} == {"S9"}


def test_all_twenty_are_looked_after():
    numbers = {*invariants.STATE, *invariants.STEP, *invariants.ELSEWHERE}
    assert numbers == {f"S{n}" for n in range(1, 21)}
