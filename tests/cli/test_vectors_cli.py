"""`vintx vectors` from the command line; what needs a KVM is in tests/oracle."""

import json
import os
from pathlib import Path

import pytest

from vmm.cli.vintx import main

DATA = Path(__file__).parents[1] / "conformance" / "data"
LOOP = {
    "name": "level-loop",
    "ops": [["redir", 5, "0000000000008051"], ["line", 5, 1], ["inta"], ["line", 5, 0], ["eoi"]],
    "trace": [
        {"chg": {"irr": "000000", "redir": {}, "sel": 0, "id": 0, "cpu": [{"irr": [], "isr": [], "tmr": []}]}},
        {"chg": {"redir": {"5": "0000000000008051"}, "sel": 26}},
        {
            "chg": {
                "irr": "000020",
                "redir": {"5": "000000000000c051"},
                "cpu": [{"irr": [81], "isr": [], "tmr": [81]}],
            }
        },
        {"ret": 81, "chg": {"cpu": [{"irr": [], "isr": [81], "tmr": [81]}]}},
        {"chg": {"irr": "000000"}},
        {"chg": {"redir": {"5": "0000000000008051"}, "cpu": [{"irr": [], "isr": [], "tmr": [81]}]}},
    ],
}


def write(folder, *sequences, **head):
    path = folder / "small.json"
    path.write_text(json.dumps(head | {"seqs": list(sequences)}))
    return str(path)


def run(*arguments):
    return main(["vectors", *arguments])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("kvm-ioapic.json", "330 sequences, 7803 steps, 0 differ (kvm, "),
        ("kvm-ioapic-smp.json", "36 sequences, 1877 steps, 0 differ (kvm, "),
        ("kvm-ioapic-fuzz.json", "60 sequences, 1699 steps, 0 differ (kvm, "),
        ("kvm-pic.json", "32 sequences, 898 steps, 0 differ (kvm, "),
        ("qemu-ioapic.json", "103 sequences, 3142 steps, 0 differ (qemu, "),
    ],
)
def test_every_recorded_file_replays_without_a_difference(capsys, name, line):
    assert run("replay", str(DATA / name)) == 0
    assert capsys.readouterr().out.startswith(line)


def test_wrong_expectation_ends_with_one_and_shows_the_step_in_full(tmp_path, capsys):
    wrong = json.loads(json.dumps(LOOP))
    wrong["trace"][3]["ret"] = 82
    assert run("replay", write(tmp_path, LOOP, wrong | {"name": "wrong"})) == 1
    out = capsys.readouterr().out
    assert "wrong: step 3 of 5 differs in 'ret'" in out
    assert '>   3 ["inta"]' in out
    assert "! ret        recorded  82\n             model     81" in out
    assert '  redir      {"5":"000000000000c051"}' in out
    assert "2 sequences, 10 steps, 1 differ" in out


def test_wrong_state_shows_both_states(tmp_path, capsys):
    wrong = json.loads(json.dumps(LOOP))
    wrong["trace"][2]["chg"]["irr"] = "000040"
    assert run("replay", write(tmp_path, wrong)) == 1
    assert '! irr        recorded  "000040"\n             model     "000020"' in capsys.readouterr().out


def test_only_the_first_difference_is_shown_unless_all_are_asked_for(tmp_path, capsys):
    wrong = json.loads(json.dumps(LOOP))
    wrong["trace"][3]["ret"] = 82
    path = write(tmp_path, wrong, wrong | {"name": "second"})
    run("replay", path)
    assert "second:" not in capsys.readouterr().out
    run("replay", path, "--all")
    assert "second:" in capsys.readouterr().out


def test_wrong_step_of_a_qemu_recording_is_shown(tmp_path, capsys):
    recording = json.loads((DATA / "qemu-ioapic.json").read_text())
    sequence = next(s for s in recording["ioapic_version_0x20"] if s["name"] == "level-fixed")
    step = next(n for n, s in enumerate(sequence["steps"], 1) if s.get("d"))
    sequence["steps"][step - 1]["d"] = []
    path = tmp_path / "qemu.json"
    path.write_text(json.dumps({"ioapic_version_0x20": [sequence]}))
    assert run("replay", str(path)) == 1
    out = capsys.readouterr().out
    assert f"level-fixed: step {step} of {len(sequence['steps'])} differs in 'd'" in out
    assert "! d    recorded  []" in out


def test_names_choose_sequences(capsys):
    assert run("replay", str(DATA / "kvm-ioapic.json"), "-k", "level-bas*") == 0
    assert capsys.readouterr().out.startswith("1 sequences, ")


@pytest.mark.parametrize(
    ("profile", "differ"),
    [
        ("smm=on", {"delivery-mode-2-edge", "delivery-mode-2-level"}),
        ("vector_hashing=off", {"lowest-prio-vec-50", "lowest-prio-vec-52"}),
    ],
)
def test_host_profile_decides_what_depends_on_the_host(capsys, profile, differ):
    assert run("replay", str(DATA / "kvm-ioapic.json"), "--all", "--host-profile", profile, "-k", "*-prio-*") + run(
        "replay", str(DATA / "kvm-ioapic.json"), "--all", "--host-profile", profile, "-k", "delivery-mode-*"
    )
    out = capsys.readouterr().out
    assert {name for name in differ if f"{name}: step" in out} == differ


def test_profile_of_the_file_is_taken_unless_the_user_says_otherwise(tmp_path, capsys):
    sequence = next(
        s for s in json.loads((DATA / "kvm-ioapic.json").read_text())["seqs"] if s["name"] == "lowest-prio-vec-50"
    )
    path = write(tmp_path, sequence, host={"vector_hashing": False})
    assert run("replay", path) == 1
    assert run("replay", path, "--host-profile", "vector-hashing=on") == 0
    assert "1 sequences, 4 steps, 0 differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["replay", "absent.json"], "absent.json: No such file"),
        (["replay", str(DATA / "qemu-qom-types.json")], "not a known format"),
        (["replay", str(DATA / "README.md")], "not a file of vectors"),
        (["replay", str(DATA)], "Is a directory"),
        (["replay", str(DATA / "kvm-ioapic.json"), "--chip", "qemu"], "recorded from kvm, not from qemu"),
        (["replay", str(DATA / "qemu-ioapic.json"), "--chip", "kvm"], "recorded from qemu, not from kvm"),
        (["replay", str(DATA / "kvm-ioapic.json"), "-k", "no-such-*"], "no sequence is called no-such-*"),
        (["replay", str(DATA / "kvm-ioapic.json"), "--host-profile", "moon=on"], "there is no 'moon'"),
        (["replay", str(DATA / "kvm-ioapic.json"), "--host-profile", "smm=1"], "smm takes on or off"),
        (["fuzz", "--count", "0"], "positive"),
        (["fuzz", "--kvm", os.devnull], "is not KVM"),
        (["record", "-o", "x.json"], "nothing to record"),
        (["record", "-o", "x.json", "-n", "-3"], "from 0 up"),
        (["record", "-o", "x.json", "--from", str(DATA / "qemu-ioapic.json")], "only sequences for KVM"),
        (["record", "-o", "x.json", "-n", "1", "--kvm", "absent"], "absent: No such file"),
    ],
)
def test_what_cannot_be_done_is_said_and_ends_with_one(capsys, arguments, complaint):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("vintx vectors: ")


@pytest.mark.parametrize(
    ("op", "complaint"),
    [
        (["levitate"], "levitate"),
        (["line", 5], "level"),
        (["efd_write", "a"], "no eventfd 'a'"),
        (["redir", 5, "xyz"], "hexadecimal"),
        (["mmio", "w24", 0], "w24"),
        (["in", 0x70], "port 0x70"),
        (["set_pic", 0, "zz"], "hexadecimal"),
        (["set_pic", 0, "00"], "16 bytes, not 1"),
    ],
)
def test_damaged_operation_is_named(tmp_path, capsys, op, complaint):
    trace = [LOOP["trace"][0], {}]
    assert run("replay", write(tmp_path, {"name": "damaged", "ops": [op], "trace": trace})) == 1
    assert complaint in capsys.readouterr().err
