"""The I/O APIC, local APIC, PIC and irqfd models against what real systems did, and proof that the check can fail."""

import copy
import json
from pathlib import Path

import pytest

from devices.apic_bus import ApicBus
from devices.ioapic import LEVEL, REMOTE_IRR
from devices.ioapic_kvm import KvmIoApic
from devices.ioapic_qemu import QemuIoApic
from vmm.errors import ConfigError
from vmm.vectors import HostProfile, replay, replay_file, replay_kvm, replay_qemu

DATA = Path(__file__).parent / "data"
KVM = json.loads((DATA / "kvm-ioapic.json").read_text())
SMP = json.loads((DATA / "kvm-ioapic-smp.json").read_text())
QEMU = json.loads((DATA / "qemu-ioapic.json").read_text())
KVM_BY_NAME = {s["name"]: s for s in KVM["seqs"]}


def test_kvm_recording_replays_without_a_difference():
    report = replay(KVM)
    assert report.differences == []
    assert str(report) == "330 sequences, 7803 steps, 0 differ"


def test_kvm_recording_with_several_cpus_replays_without_a_difference():
    report = replay(SMP)
    assert report.differences == []
    assert str(report) == "36 sequences, 1877 steps, 0 differ"


@pytest.mark.parametrize(
    ("part", "version", "count"), [("ioapic_version_0x20", 0x20, 92), ("ioapic_version_0x11", 0x11, 11)]
)
def test_qemu_recording_replays_without_a_difference(part, version, count):
    assert [replay_qemu(s, version) for s in QEMU[part]] == [None] * count


def test_replay_file_counts_what_it_replayed():
    report = replay_file(DATA / "kvm-ioapic.json", wanted=lambda name: name.startswith("unmask-resamples"))
    assert report.ok
    assert report.sequences == sum(name.startswith("unmask-resamples") for name in KVM_BY_NAME) > 3


def test_replay_tells_of_each_sequence():
    told = []
    replay({"seqs": KVM["seqs"][:3]}, on_sequence=lambda name, difference: told.append((name, difference)))
    assert told == [(s["name"], None) for s in KVM["seqs"][:3]]


def test_replay_of_nothing_is_not_ok():
    assert not replay({"seqs": []}).ok


# A changed recording, or a changed model, is noticed.


def test_changed_return_value_is_reported_with_its_step():
    sequence = copy.deepcopy(KVM_BY_NAME["level-basic"])
    step = next(i for i, t in enumerate(sequence["trace"]) if "ret" in t)
    sequence["trace"][step]["ret"] = 7
    difference = replay_kvm(sequence)
    assert (difference.step, difference.field, difference.expected) == (step, "ret", 7)
    assert "level-basic" in str(difference)


def test_changed_state_is_reported():
    sequence = copy.deepcopy(KVM_BY_NAME["level-basic"])
    sequence["trace"][-1].setdefault("chg", {})["irr"] = "800000"
    assert replay_kvm(sequence).field == "irr"


def test_forgotten_resample_signal_is_reported():
    sequence = copy.deepcopy(KVM_BY_NAME["resample-loop"])
    for entry in sequence["trace"]:
        entry.get("chg", {}).pop("resampled", None)
    assert replay_kvm(sequence).field == "resampled"


def test_other_version_of_the_chip_does_not_fit_the_recording():
    differ = [s["name"] for s in QEMU["ioapic_version_0x20"] if replay_qemu(s, 0x11)]
    assert {"reset-values", "level-fixed", "eoi-storm-delayed"} <= set(differ)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (HostProfile(smm=True), "delivery-mode-2-edge"),
        (HostProfile(vector_hashing=False), "lowest-prio-vec-52"),
        (HostProfile(suppress_eoi=True), "directed-eoi-suppressed"),
    ],
)
def test_host_dependent_sequence_differs_on_another_host(host, name):
    assert replay_kvm(KVM_BY_NAME[name]) is None
    assert replay_kvm(KVM_BY_NAME[name], host) is not None


def _no_remote_irr(self, pin, *args):
    result = EVALUATE[type(self)](self, pin, *args)
    self.redir[pin] &= ~REMOTE_IRR
    return result


def _edge_is_level(self, pin, *args):
    self.redir[pin] |= LEVEL
    return EVALUATE[type(self)](self, pin, *args)


def _deaf(_self, _pin, *_args):
    return -1


EVALUATE = {KvmIoApic: KvmIoApic.evaluate, QemuIoApic: QemuIoApic.evaluate}


@pytest.mark.parametrize("wrong", [_no_remote_irr, _edge_is_level, _deaf])
def test_wrong_evaluate_is_noticed(monkeypatch, wrong):
    monkeypatch.setattr(KvmIoApic, "evaluate", wrong)
    monkeypatch.setattr(QemuIoApic, "evaluate", wrong)
    assert len(replay(KVM).differences) > 50
    assert len(replay(QEMU).differences) > 20


def _everybody_scans(self, _dest, _logical):
    self.request_scan()


def _lowest_of_those_present(_self, members, vector):
    present = [a for a in members if a is not None]
    return [present[vector % len(present)]] if present else []


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("request_scan_of", _everybody_scans),
        ("_lowest", _lowest_of_those_present),
    ],
)
def test_wrong_choice_of_cpus_is_noticed(monkeypatch, method, wrong):
    monkeypatch.setattr(ApicBus, method, wrong)
    assert replay(SMP).differences


@pytest.mark.parametrize("text", ["", "[1]", '{"other": []}'])
def test_file_that_is_no_recording_is_refused(tmp_path, text):
    path = tmp_path / "vectors.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"vectors\.json"):
        replay_file(path)


def test_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.json"):
        replay_file(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("recording", "complaint"),
    [
        ({"seqs": [{"name": "x", "ops": [["levitate"]], "trace": [KVM["seqs"][0]["trace"][0], {}]}]}, "levitate"),
        ({"seqs": [{"name": "x", "ops": [["eoi"]], "trace": [{}]}]}, "one entry more"),
        ({"seqs": [{"name": "x", "ops": []}]}, "trace"),
        ({"ioapic_version_0x20": [{"name": "x", "steps": [{"op": ["levitate"]}]}]}, "levitate"),
    ],
)
def test_damaged_recording_is_refused(recording, complaint):
    with pytest.raises(ConfigError, match=complaint):
        replay(recording)
