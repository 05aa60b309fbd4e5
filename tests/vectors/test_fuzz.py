"""The fuzzer against stand-ins for the kernel: what it finds, and how short it makes it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.ioapic import REMOTE_IRR
from vmm.errors import ConfigError, EngineError
from vmm.vectors.fuzz import compare, find, fuzz
from vmm.vectors.generate import Sequence, generate
from vmm.vectors.kvm import KvmReplay
from vmm.vectors.shrink import shrink


class Forgetful(KvmReplay):
    """Remote IRR stays set after an EOI."""

    def op_eoi(self, cpu=0):
        stuck = [pin for pin, entry in enumerate(self.ioapic.redir) if entry & REMOTE_IRR]
        super().op_eoi(cpu)
        for pin in stuck:
            self.ioapic.redir[pin] |= REMOTE_IRR


class Crashing(KvmReplay):
    """Falls over a task priority."""

    def op_tpr(self, cpu, value):
        raise ZeroDivisionError(f"{cpu} {value}")


class Dead(KvmReplay):
    """A host whose guest cannot go on."""

    def op_eoi(self, cpu=0):
        raise EngineError(f"CPU {cpu} left its guest")


def test_equal_sides_have_no_difference():
    report = fuzz(range(60), KvmReplay, KvmReplay)
    assert str(report) == f"60 sequences, {report.steps} steps, 0 differ"
    assert report.steps > 1000


@pytest.mark.parametrize("cpus", [1, 2])
def test_difference_is_found_and_every_operation_left_is_needed(cpus):
    report = fuzz(range(100), KvmReplay, Forgetful, cpus=cpus)
    (finding,) = report.findings
    names = [op[0] for op in finding.sequence.ops]
    assert len(names) <= 7
    assert names[-1] == "eoi"
    assert "inta" in names
    assert compare(finding.sequence, KvmReplay, Forgetful) == len(finding.sequence.ops)
    for place in range(len(finding.sequence.ops)):
        shorter = finding.sequence.ops[:place] + finding.sequence.ops[place + 1 :]
        with contextlib.suppress(ConfigError):  # without the eventfd that a later operation names
            assert compare(finding.sequence._replace(ops=shorter), KvmReplay, Forgetful) is None


def test_finding_shows_both_traces_and_where_they_part():
    ops = [["redir", 5, "0000000000008051"], ["line", 5, 1], ["line", 5, 0], ["inta"], ["tpr", 0, 0], ["eoi"]]
    text = str(find(Sequence(7, 1, ops), KvmReplay, Forgetful))
    assert text.splitlines()[0] == "seed 7, 1 CPU: differs after 5 operations (of 6)"
    assert '  5 ["eoi"]' in text
    assert 'model:  redir {"5":"0000000000008051"}, cpu' in text
    assert 'kernel: cpu [{"irr":[],"isr":[],"tmr":[81]}]' in text
    assert text.count("both:") == 4


def test_exception_of_the_model_is_a_finding():
    (finding,) = fuzz(range(100), Crashing, KvmReplay).findings
    assert [op[0] for op in finding.sequence.ops] == ["tpr"]
    assert "raised ZeroDivisionError" in str(finding)


def test_oracle_that_cannot_go_on_is_a_finding():
    (finding,) = fuzz(range(20), KvmReplay, Dead).findings
    assert "left its guest" in str(finding)


def test_limit_says_how_many_findings_end_the_search():
    assert len(fuzz(range(100), KvmReplay, Dead, limit=3).findings) == 3


def test_every_sequence_is_told_of():
    counts = []
    fuzz(range(4), KvmReplay, KvmReplay, on_sequence=lambda report: counts.append(report.sequences))
    assert counts == [1, 2, 3, 4]


def test_vms_are_closed_when_sides_differ():
    closed = []

    class Closing(Forgetful):
        def close(self):
            closed.append(self)
            super().close()

    made = []

    def make(*setup):
        made.append(Closing(*setup))
        return made[-1]

    fuzz(range(30), KvmReplay, make)
    assert len(made) == len(closed) > 0


# The generator.


def test_some_sequences_are_about_the_pics_and_spare_the_canarys_pin():
    about = [sequence for sequence in map(generate, range(300)) if sequence.default_routing]
    assert 10 < len(about) < 60
    ops = [op for sequence in about for op in sequence.ops]
    assert {"in", "out", "get_pic", "set_pic", "line", "line_status"} == {op[0] for op in ops}
    assert all(op[1] != 7 for op in ops if op[0].startswith("line"))
    assert all(op[2] < 0x80 for op in ops if op[:2] == ["out", 0x4D0])


def test_seed_gives_the_same_sequence_always():
    assert generate(5) == generate(5)
    assert generate(5).ops != generate(6).ops


@given(st.integers(0, 10**9), st.booleans())
def test_no_message_stops_the_guest_that_does_the_accesses(seed, smi):
    forbidden = {4, 5} if smi else {2, 4, 5}
    for op in generate(seed, smi=smi).ops:
        values = []
        if op[0] == "redir":
            values = [int(op[2], 16)]
        elif op[0] in ("redir_lo", "msi", "wreg"):
            values = [op[2]]
        elif op[0] == "mmio" and op[1][0] == "w":
            values = [op[3]]
        elif op[0] == "routing":
            values = [route[3] for route in op[1] if route[1] == "msi"]
        elif op[0] == "set_ioapic":
            values = [int(entry, 16) for entry in op[1].get("redir", {}).values()]
        assert not {value >> 8 & 7 for value in values} & forbidden


@given(st.integers(0, 10**9), st.sampled_from([1, 2]))
def test_operations_name_cpus_that_there_are(seed, cpus):
    sequence = generate(seed, cpus)
    assert sequence.cpus == (1 if sequence.default_routing else cpus)
    assert all(op[1] < cpus for op in sequence.ops if op[0] in ("inta", "eoi", "tpr", "svr"))


# The shrinker.


@given(st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_what_is_needed_stays_and_nothing_else(noise, needed, data):
    """With `needed` hidden in order among noise, a failure that asks for just that sub-sequence shrinks to it."""
    ops = [["x", n] for n in noise]
    place = 0
    for n in needed:
        place = data.draw(st.integers(place, len(ops)))
        ops.insert(place, ["x", n])
        place += 1

    def fails(candidate):
        rest = iter(op[1] for op in candidate)
        return all(n in rest for n in needed)

    assert shrink(ops, fails) == [["x", n] for n in needed]


def test_values_become_plain():
    ops = [["redir", 5, "ff0000000000a951"], ["efd", "a", 3], ["set_ioapic", {"irr": 1, "redir": {"5": "1"}}]]

    def fails(candidate):
        return [op[0] for op in candidate] == [op[0] for op in ops] and int(candidate[0][2], 16) & 0x8000

    assert shrink(ops, fails) == [["redir", 5, "0000000000008051"], ["efd", "a"], ["set_ioapic", {}]]
