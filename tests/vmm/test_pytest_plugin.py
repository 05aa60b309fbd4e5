"""The pytest plug-in, used as a stranger uses it: a test file of their own, and the README's example."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def run_pytest(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_theirs.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_theirs.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_readmes_example_passes_as_it_stands(tmp_path):
    section = README.read_text().partition("## From pytest")[2].partition("\n## ")[0]
    code = "\n".join(line[4:] for line in re.findall(r"^(?: {4}.*)?$", section, re.MULTILINE))
    assert "def test_unplug_leaves_nothing_behind(vm):" in code
    done = run_pytest(tmp_path, f"import guest_images\n\n{code}")
    assert "1 passed" in done.stdout, done.stdout


def test_guest_that_ends_too_early_fails_the_test_and_shows_its_serial_output(tmp_path):
    done = run_pytest(
        tmp_path,
        """
import guest_images


def test_it(vm):
    exit_port = {"driver": "isa-debug-exit", "iobase": 0xF4, "iosize": 4}
    guest = vm("pc", kernel=guest_images.path("intx_loop"), append="n=1", devices=[exit_port])
    guest.wait_serial("never said")
""",
    )
    assert done.returncode == 1
    assert "the machine ended before serial output 'never said'" in done.stdout
    assert "intx_loop: no devices" in done.stdout


def test_machines_of_a_test_are_closed_whatever_becomes_of_it(tmp_path):
    done = run_pytest(
        tmp_path,
        """
import pytest

made = []


def test_fails(vm):
    made.append(vm("pc", accel="qtest").machine)
    made[0].device_add({"driver": "edu", "id": "e0"})
    raise RuntimeError("theirs")


def test_sees_it_closed():
    assert made[0].ledger.rows() == []
""",
    )
    assert "1 failed, 1 passed" in done.stdout
    assert "RuntimeError: theirs" in done.stdout
