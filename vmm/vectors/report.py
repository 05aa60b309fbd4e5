"""Replays a whole file and counts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.errors import ConfigError
from vmm.vectors.kvm import HostProfile, replay_kvm
from vmm.vectors.qemu import replay_qemu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.vectors.difference import Difference

QEMU_PARTS = {"ioapic_version_0x20": 0x20, "ioapic_version_0x11": 0x11}


@dataclass(slots=True)
class Report:
    """What a replay found. `ok` is True if nothing differs and something was replayed."""

    sequences: int = 0
    steps: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every sequence went as recorded."""
        return self.sequences > 0 and not self.differences

    def __str__(self) -> str:
        return f"{self.sequences} sequences, {self.steps} steps, {len(self.differences)} differ"


def replay(
    recording: dict[str, Any],
    host: HostProfile | None = None,
    wanted: Callable[[str], bool] | None = None,
    on_sequence: Callable[[str, Difference | None], None] | None = None,
) -> Report:
    """Replay a recording of either kind, or those of its sequences whose name is `wanted`.

    `host`: what the recorded host was like, if not as `HostProfile()`. `on_sequence` is told of each one as it ends.
    ConfigError for a sequence that lacks something or has an operation that is not known.
    """
    report = Report()
    for name, steps, run in _sequences(recording, host):
        if wanted is not None and not wanted(name):
            continue
        difference = run()
        report.sequences += 1
        report.steps += steps
        if difference is not None:
            report.differences.append(difference)
        if on_sequence is not None:
            on_sequence(name, difference)
    return report


def replay_file(
    path: str | Path,
    host: HostProfile | None = None,
    wanted: Callable[[str], bool] | None = None,
    on_sequence: Callable[[str, Difference | None], None] | None = None,
) -> Report:
    """Replay a file of vectors. ConfigError if it cannot be read or is none."""
    return replay(load(path), host, wanted, on_sequence)


def load(path: str | Path) -> dict[str, Any]:
    """A file of vectors of either kind. ConfigError if it cannot be read or is none."""
    try:
        recording = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a file of vectors: {error}") from error
    if not isinstance(recording, dict) or not ("seqs" in recording or QEMU_PARTS.keys() & recording.keys()):
        raise ConfigError(f"{path}: neither 'seqs' nor {' nor '.join(map(repr, QEMU_PARTS))} in it: not a known format")
    return recording


def chip_of(recording: dict[str, Any]) -> str:
    """Whose rules a recording has: "kvm" or "qemu"."""
    return "kvm" if "seqs" in recording else "qemu"


def _sequences(
    recording: dict[str, Any], host: HostProfile | None
) -> Iterator[tuple[str, int, Callable[[], Difference | None]]]:
    for sequence in recording.get("seqs", ()):
        _check(sequence, "name", "ops", "trace")
        if len(sequence["trace"]) != len(sequence["ops"]) + 1:
            raise ConfigError(f"sequence {sequence['name']}: the trace must have one entry more than there are ops")
        yield sequence["name"], len(sequence["ops"]), partial(replay_kvm, sequence, host)
    for part, version in QEMU_PARTS.items():
        for sequence in recording.get(part, ()):
            _check(sequence, "name", "steps")
            yield sequence["name"], len(sequence["steps"]), partial(replay_qemu, sequence, version)


def _check(sequence: dict[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in sequence]
    if missing:
        raise ConfigError(f"sequence {sequence.get('name', '?')} has no {', '.join(map(repr, missing))}")
