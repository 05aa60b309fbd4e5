"""Records sequences of operations on the real KVM, in the format that `replay` reads.

with HostKvm() as kvm:
    recording = record(kvm, [{"name": "level-basic", "ops": [["redir", 5, "0000000000008051"], ["line", 5, 1]]}])
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmm.errors import ConfigError, EngineError
from vmm.vectors.generate import generate
from vmm.vectors.live import KvmLive, host_description, host_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm.kernel.hostkvm import HostKvm

FORMAT = 1


def record(
    kvm: HostKvm,
    sequences: Iterable[dict[str, Any]],
    on_sequence: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """A recording of `sequences`: each with `name`, `ops`, perhaps `ncpu`, `default_routing`, `seed`.

    Each is done twice; EngineError if the two differ, ConfigError for an operation that is not known.
    """
    recorded = []
    for sequence in sequences:
        trace = record_trace(kvm, sequence)
        if record_trace(kvm, sequence) != trace:
            raise EngineError(f"{sequence['name']}: two recordings of it differ: this host is not deterministic")
        recorded.append({key: value for key, value in sequence.items() if key != "trace"} | {"trace": trace})
        if on_sequence is not None:
            on_sequence(sequence["name"])
    host = host_profile(kvm)
    return {
        "format": FORMAT,
        "host": host_description() | {"vector_hashing": host.vector_hashing, "smm": host.smm},
        "nseq": len(recorded),
        "nops": sum(len(sequence["ops"]) for sequence in recorded),
        "seqs": recorded,
    }


def record_trace(kvm: HostKvm, sequence: dict[str, Any]) -> list[dict[str, Any]]:
    """Do one sequence: the state before it, then per operation its value and what has changed."""
    vm = KvmLive(kvm, sequence.get("ncpu", 1), sequence.get("default_routing", False))
    try:
        state = vm.state()
        trace: list[dict[str, Any]] = [{"chg": state}]
        for op in sequence["ops"]:
            ret = vm.run(op)
            before, state = state, vm.state()
            changed = {key: value for key, value in state.items() if before.get(key) != value}
            if vm.resampled:
                changed["resampled"] = vm.resampled
            entry: dict[str, Any] = {}
            if ret is not None:
                entry["ret"] = ret
            if changed:
                entry["chg"] = changed
            trace.append(entry)
    finally:
        vm.close()
    return trace


def from_seeds(kvm: HostKvm, seeds: Iterable[int], cpus: int | None = None) -> list[dict[str, Any]]:
    """Random sequences that this host can do, ready for `record`."""
    smi = not host_profile(kvm).smm
    made = []
    for seed in seeds:
        sequence = generate(seed, cpus, smi)
        made.append({"name": f"seed-{seed}", "ops": sequence.ops, "ncpu": sequence.cpus, "seed": seed})
        if sequence.default_routing:
            made[-1]["default_routing"] = True
    return made


def dump(recording: dict[str, Any]) -> str:
    """The text of a file: one sequence a line."""
    head = {key: value for key, value in recording.items() if key != "seqs"}
    lines = ",\n".join(json.dumps(sequence, separators=(",", ":")) for sequence in recording["seqs"])
    return f'{json.dumps(head, separators=(",", ":"))[:-1]},"seqs":[\n{lines}\n]}}\n'


def operations(recording: dict[str, Any], source: str) -> list[dict[str, Any]]:
    """The sequences of a recording of KVM, or of a file that has only their names and `ops`. ConfigError."""
    sequences = recording.get("seqs")
    if not isinstance(sequences, list):
        raise ConfigError(f"{source}: no 'seqs' in it: only sequences for KVM can be recorded")
    for sequence in sequences:
        if not isinstance(sequence, dict) or not {"name", "ops"} <= sequence.keys():
            raise ConfigError(f"{source}: a sequence without 'name' or 'ops'")
    return sequences
