"""A difference in full: what was done before, and all of what was recorded beside all of what the model has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from devices.ioapic import MASKED
from vmm.vectors.kvm import KvmReplay
from vmm.vectors.qemu import QemuReplay, replay_qemu
from vmm.vectors.report import QEMU_PARTS

if TYPE_CHECKING:
    from vmm.vectors.difference import Difference
    from vmm.vectors.kvm import HostProfile

Fields = dict[str, Any]


def explain(recording: dict[str, Any], difference: Difference, host: HostProfile | None = None) -> str:
    """Several lines, for a `difference` that a replay of `recording` with the same `host` has found."""
    for sequence in recording.get("seqs", ()):
        if sequence["name"] == difference.sequence:
            return _kvm(sequence, difference, host)
    for part, version in QEMU_PARTS.items():
        for sequence in recording.get(part, ()):
            if sequence["name"] == difference.sequence and replay_qemu(sequence, version) == difference:
                return _qemu(sequence, version, difference)
    return str(difference)


def _kvm(sequence: dict[str, Any], difference: Difference, host: HostProfile | None) -> str:
    recorded: Fields = {}
    for entry in sequence["trace"][: difference.step + 1]:
        recorded |= {"resampled": {}} | entry.get("chg", {})
    recorded = {"ret": sequence["trace"][difference.step].get("ret")} | recorded
    vm = KvmReplay(sequence.get("ncpu", 1), sequence.get("default_routing", False), host)
    try:
        ret = None
        for op in sequence["ops"][: difference.step]:
            ret = vm.run(op)
        model = {"ret": ret, "resampled": vm.resampled} | vm.state()
    finally:
        vm.close()
    return _text(difference, sequence["ops"], recorded, model)


def _qemu(sequence: dict[str, Any], version: int, difference: Difference) -> str:
    steps = sequence["steps"][: difference.step]
    ops = [step["op"] for step in sequence["steps"]]
    chip = QemuReplay(version)
    value = None
    for op in ops[: difference.step]:
        value = chip.run(op)
    if difference.op is None:
        return _text(difference, ops, {difference.field: difference.expected}, {difference.field: difference.got})
    # The recording tells of changes: what it says nothing of is what the model has, unless that is what differs.
    recorded: Fields = {"v": steps[-1].get("v"), "d": steps[-1].get("d", [])}
    model: Fields = {"v": value, "d": chip.messages()} | chip.state()
    if difference.field != "c":
        model["c"] = {pin: entry for pin, entry in model["c"].items() if entry != hex(MASKED)}
    if difference.field in ("irr", "id", "sel", "c"):
        recorded[difference.field] = difference.expected
    return _text(difference, ops, recorded, model)


def _text(difference: Difference, ops: list[Any], recorded: Fields, model: Fields) -> str:
    lines = [f"{difference.sequence}: step {difference.step} of {len(ops)} differs in {difference.field!r}"]
    for number, op in enumerate(ops[: difference.step], 1):
        lines.append(f"{'>' if number == difference.step else ' '}{number:4} {json.dumps(op)}")
    width = max(len(name) for name in recorded | model)
    for name in recorded | model:
        expected, got = recorded.get(name), model.get(name)
        if name not in recorded or expected == got:
            lines.append(f"  {name:<{width}}  {_short(got)}")
        else:
            lines.append(f"! {name:<{width}}  recorded  {_short(expected)}")
            lines.append(f"  {'':<{width}}  model     {_short(got)}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, separators=(",", ":"))
