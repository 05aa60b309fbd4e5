"""`vintx trace attribute`, on a trace that a machine wrote."""

from __future__ import annotations

import re

import pytest

import guest_images as g
from vmm.cli.vintx import main
from vmm.trace import json_sink


@pytest.fixture
def trace(vm, tmp_path):
    """The file of a guest's 20 interrupts of two devices on one pin."""
    path = tmp_path / "trace.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        guest = vm("pc", kernel=g.path("intx_loop"), append="n=20", trace=False)
        close = guest.machine.trace.listen(json_sink(stream))
        for slot in (4, 8):
            guest.machine.device_add({"driver": "edu", "addr": f"{slot:#x}"})
        guest.wait_serial(g.INTX_LOOP_DONE)
        close()
    return path


def test_attribute_counts_interrupts_and_passes_when_none_is_unattributed(trace, capsys):
    assert main(["trace", "attribute", str(trace)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\b11\W+20\W+0\b", out)
    assert "spurious 0, unattributed 0" in out


def test_attribute_names_an_unattributed_interrupt_and_fails(trace, capsys):
    lines = [line for line in trace.read_text().splitlines(keepends=True) if '"pci_set_intx"' not in line]
    trace.write_text("".join(lines))
    assert main(["trace", "attribute", str(trace)]) == 1
    out = capsys.readouterr().out
    assert "cpu 0 vector 0x51 pin 11: unattributed" in out
    assert "spurious 20, unattributed 20" in out


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"no trace\n", "line 1"), (b"\xff\n", "utf-8")]
)
def test_attribute_refuses_what_is_no_trace(tmp_path, capsys, content, message):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert main(["trace", "attribute", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"vintx trace: {path}: ")
    assert message in error
