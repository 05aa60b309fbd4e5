"""The recordings against the kernel of this machine, and the models beside it on fresh sequences."""

import json
from functools import partial
from pathlib import Path

import pytest

from vmm.cli.vintx import main
from vmm.vectors import HostProfile, replay_file, replay_kvm
from vmm.vectors.fuzz import fuzz
from vmm.vectors.kvm import KvmReplay
from vmm.vectors.live import KvmLive, host_profile
from vmm.vectors.record import from_seeds, record, record_trace

pytestmark = pytest.mark.kvm

FILES = ("kvm-ioapic.json", "kvm-ioapic-smp.json", "kvm-ioapic-fuzz.json", "kvm-pic.json")
DATA = Path(__file__).parents[1] / "conformance" / "data"


def _sequences(name):
    return json.loads((DATA / name).read_text())["seqs"]


def _some():
    """What was written by hand, and each sixth of the random ones."""
    sequences = [s for name in FILES for s in _sequences(name)]
    random = [s for s in sequences if "seed" in s]
    return [s for s in sequences if "seed" not in s] + random[::6]


def test_kernel_still_does_what_was_recorded(kvm):
    host = host_profile(kvm)
    changed = []
    for sequence in _some():
        trace = record_trace(kvm, sequence)
        # What depends on the host is compared with the model of such a host, the rest with the file.
        if host == HostProfile() or replay_kvm(sequence, host) is None:
            same = trace == sequence["trace"]
        else:
            same = replay_kvm(sequence | {"trace": trace}, host) is None
        if not same:
            changed.append(sequence["name"])
    assert changed == []


@pytest.mark.parametrize(("first", "cpus"), [(1_000_000, None), (1_001_000, 2)])
def test_model_and_kernel_agree_on_fresh_sequences(kvm, first, cpus):
    host = host_profile(kvm)
    report = fuzz(
        range(first, first + 100), partial(KvmReplay, host=host), partial(KvmLive, kvm), cpus=cpus, smi=not host.smm
    )
    assert not report.findings, str(report.findings[0])
    assert report.sequences == 100


def test_recording_of_seeds_replays_on_the_model(kvm):
    recording = record(kvm, from_seeds(kvm, range(5), cpus=2))
    assert [replay_kvm(s, host_profile(kvm)) for s in recording["seqs"]] == [None] * 5
    assert recording["nops"] == sum(len(s["ops"]) for s in recording["seqs"])
    assert {s["ncpu"] for s in recording["seqs"] if "default_routing" not in s} == {2}


def test_wrong_model_is_found_and_its_sequence_made_short(kvm):
    class NeverCoalesces(KvmReplay):
        def op_line_status(self, gsi, level):
            return abs(super().op_line_status(gsi, level))

    report = fuzz(range(50), NeverCoalesces, partial(KvmLive, kvm))
    assert len(report.findings) == 1
    # A line that is raised although its pin is masked: -1.
    assert [op[0] for op in report.findings[0].sequence.ops] == ["line_status"]


def test_record_command_writes_a_file_that_replay_reads(kvm, tmp_path, capsys):
    path = tmp_path / "new.json"
    source = str(DATA / "kvm-ioapic.json")
    assert main(["vectors", "record", "-o", str(path), "--from", source, "-k", "level-*", "-n", "2"]) == 0
    written = json.loads(path.read_text())
    assert f"{written['nseq']} sequences, {written['nops']} steps" in capsys.readouterr().out
    assert {s["name"] for s in written["seqs"]} >= {"level-basic", "seed-0", "seed-1"}
    assert replay_file(path, host_profile(kvm)).ok
    assert main(["vectors", "replay", str(path)]) == 0


def test_fuzz_command_counts_what_it_compared(kvm, capsys):
    assert kvm.fd >= 0
    assert main(["vectors", "fuzz", "--seed", "7", "--count", "3", "--cpus", "1"]) == 0
    assert capsys.readouterr().out.startswith("3 sequences, ")
