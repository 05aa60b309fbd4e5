"""`vintx demo` as a user runs it."""

import json
import subprocess
import sys


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmm.cli.vintx", "demo", *arguments], capture_output=True, text=True, timeout=120
    )


def test_demo_gives_each_device_its_verdict_and_shows_both_roads(tmp_path):
    trace = tmp_path / "trace.jsonl"
    done = demo("-n", "40", "--trace", str(trace))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("e0 (edu): OK: 40 of 40 interrupts, none spurious")
    assert lines[-1].startswith("v0 (vfio-pci (irqfd, resample)): OK: 40 of 40 interrupts, none spurious")
    for station in ("cpu_takes_interrupt", "apic_eoi", "ioapic_clear_remote_irr"):
        assert done.stdout.count(f"  {station} ") == 2, "on the road of each device"
    assert done.stdout.count("vfio_intx_unmask") == 1
    events = [json.loads(line)["event"] for line in trace.read_text().splitlines()]
    assert events.count("vfio_intx_interrupt") == 41, "40 and the one whose line is left high"


def test_demo_refuses_a_count_that_is_no_count():
    done = demo("-n", "0")
    assert done.returncode == 2
    assert "-n takes a positive number" in done.stderr
