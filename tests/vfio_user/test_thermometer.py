"""The tutorial's thermometer (docs/device-author.md), served: Linux has its interrupts, in QEMU and here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.linux_shell import boot, needs_linux
from support.qemu_peer import MEMORY, lacking_qemu
from support.qemu_peer import boot as boot_qemu
from support.served import remote
from vmm.attribution import Attribution

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
ROUNDS = 5
ROUND = [
    ("pci_set_intx", {"level": True, "disabled": False}),
    ("vfio_user_intx_trigger", {}),
    ("pci_set_intx", {"level": True, "disabled": True}),
    ("pci_set_intx", {"level": False, "disabled": True}),
]
"""What each interrupt of the guest's script is, beside the unmask that its EOI is."""


@pytest.fixture
def thermometer(tmp_path):
    """A server of it: (socket, trace)."""
    path, trace = tmp_path / "t.sock", tmp_path / "t.jsonl"
    argv = [sys.executable, "-m", "vmm.cli.vintx", "serve", f"{EXAMPLES}/thermometer.py:Thermometer,period-us=20000"]
    argv += ["--socket", str(path), "--trace", f"*intx*,file={trace}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"vintx serve: thermometer at {path}\n"
    yield path, trace
    process.terminate()
    assert process.communicate()[1] == ""  # no mistakes
    assert process.returncode == 0


def check(shell, trace) -> None:
    script = (EXAMPLES / "thermometer.sh").read_text()
    said = shell.run(f"set -- {ROUNDS}; {script}")
    rounds = [int(n) for n in re.findall(r"^interrupt (\d+), temperature [23]\d\d\d$", said, re.MULTILINE)]
    assert rounds == list(range(rounds[0], rounds[0] + ROUNDS))
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    road = [(e["event"], {k: e[k] for k in ("level", "disabled") if k in e}) for e in events]
    road = [station for station in road if station[0] in ("pci_set_intx", "vfio_user_intx_trigger")]
    whole = [at for at in range(len(road)) if road[at : at + 4] == ROUND]
    assert len(whole) >= ROUNDS
    assert [e for e in events if e["event"] == "vfio_user_intx_unmask" and not e["level"]]


@pytest.mark.skipif(bool(lacking_qemu()), reason=lacking_qemu())
@needs_linux[1]
@pytest.mark.linux
def test_linux_in_qemu_has_its_interrupts(thermometer):
    path, trace = thermometer
    peer, shell = boot_qemu("pc", *MEMORY, devices=(remote(path),))
    with peer:
        check(shell, trace)


@needs_linux[1]
@pytest.mark.linux
def test_linux_in_vintx_has_its_interrupts(thermometer, vm):
    path, trace = thermometer
    shell = boot(vm, devices=[remote(path)], trace=True)
    check(shell, trace)
    attribution = Attribution()
    for record in shell.guest.trace:
        attribution(record)
    assert attribution.taken >= ROUNDS
    assert attribution.unattributed == []
