"""`vintx doctor`, on machines that lack things."""

import json
import os

from vmm.cli import doctor
from vmm.cli.doctor import Check
from vmm.cli.vintx import main


def test_machine_without_kvm_and_qemu_is_healthy_and_told_why_not(tmp_path, capsys):
    absent = str(tmp_path / "kvm")
    assert main(["doctor", "--kvm", absent, "--qemu", "no-such-qemu"]) == 0
    out = capsys.readouterr().out
    assert "unicorn 2.1.4 passes its self-test in" in out
    assert f"oracle ({absent}): no" in out
    assert f"{absent}: No such file or directory" in out
    assert "modprobe" in out
    assert "no-such-qemu           not installed" in out
    assert "can run guests on this machine" in out


def test_json_says_the_same(capsys):
    assert main(["doctor", "--json", "--kvm", os.devnull, "--qemu", "no-such-qemu"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert document["kvm"]["oracle"] is False
    assert "is not KVM" in document["kvm"]["reason"]
    assert document["qemu"] == {
        "name": "no-such-qemu",
        "ok": False,
        "detail": "not installed",
        "hint": "Debian: apt-get install qemu-system-x86",
    }
    assert [engine["name"] for engine in document["engines"]] == ["tcg", "qtest"]
    assert {tool["name"] for tool in document["tools"]} == set(doctor.PURPOSES)
    assert {"construct", "unicorn", "greenlet"} <= {package["name"] for package in document["packages"]}


def test_refused_default_engine_ends_with_one(monkeypatch, capsys):
    refused = Check("tcg", False, "version 2.0.0, not 2.1.4", "pip install unicorn==2.1.4")
    monkeypatch.setattr(doctor, "check_unicorn", lambda: refused)
    assert main(["doctor", "--kvm", os.devnull]) == 1
    out = capsys.readouterr().out
    assert "version 2.0.0, not 2.1.4" in out
    assert "pip install unicorn==2.1.4" in out
    assert "can not run guests" in out


def test_refusal_of_the_self_test_is_passed_on(monkeypatch):
    monkeypatch.setattr(doctor, "_SELF_TEST", 'print(\'{"reason": "lost fix", "remedy": "reinstall"}\')')
    assert doctor.check_unicorn() == Check("tcg", False, "lost fix", "reinstall")


def test_library_that_kills_the_process_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor, "_SELF_TEST", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    check = doctor.check_unicorn()
    assert not check.ok
    assert "signal 11" in check.detail


def test_kvm_that_kills_the_process_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    found = doctor.check_kvm("/dev/kvm")
    assert not found.oracle
    assert found.reason == "run: the probe died with status -11"


def test_kvm_that_never_returns_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "import signal; signal.pause()")
    monkeypatch.setattr(doctor, "_LIMIT", 0.05)
    assert "has not ended" in doctor.check_kvm("/dev/kvm").reason


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda _: ["no-such-package>=1", "rich>=13", 'pytest>=8; extra == "dev"'])
    missing, rich = doctor.check_packages()
    assert (missing.ok, missing.hint) == (False, "pip install 'no-such-package>=1'")
    assert rich.ok


def test_program_that_fails_is_not_counted(tmp_path, monkeypatch):
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    check = doctor.check_program("broken", "--version", "reinstall")
    assert not check.ok
    assert "exit status 3" in check.detail
