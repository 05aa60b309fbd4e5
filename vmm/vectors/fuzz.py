"""The model and an oracle side by side on random sequences; the first difference of one is made short and explained.

with HostKvm() as kvm:
    report = fuzz(range(1000), KvmReplay, partial(KvmLive, kvm))
print(report)
for finding in report.findings:
    print(finding)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmm.errors import ConfigError, VintxError
from vmm.vectors.generate import Sequence, generate
from vmm.vectors.shrink import shrink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm.vectors.kvm_ops import KvmOps

    Op = list[Any]
    Maker = Callable[[int, bool], KvmOps]
    """Makes a VM with that many CPUs, with default routing or without."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, and what came of it. `crash` is what the side said if it could not go on."""

    op: Op
    ret: Any
    changed: dict[str, Any]
    resampled: dict[str, int]
    crash: str = ""

    def __str__(self) -> str:
        if self.crash:
            return self.crash
        parts = [] if self.ret is None else [f"returns {_short(self.ret)}"]
        parts += [f"{key} {_short(value)}" for key, value in self.changed.items()]
        parts += [f"{name} += {count}" for name, count in self.resampled.items()]
        return ", ".join(parts) or "-"


@dataclass(frozen=True, slots=True)
class Finding:
    """A sequence on which the two differ in its last step, and both traces of it. `original`: how long it was."""

    sequence: Sequence
    model: list[Step]
    oracle: list[Step]
    original: int

    def __str__(self) -> str:
        seed, cpus, ops, default_routing = self.sequence
        setup = f"{cpus} CPU{'s' * (cpus > 1)}{', default routing' * default_routing}"
        lines = [f"seed {seed}, {setup}: differs after {len(ops)} operations (of {self.original})"]
        for number, (mine, real) in enumerate(zip(self.model, self.oracle, strict=True), 1):
            lines.append(f"{number:3} {json.dumps(mine.op)}")
            if (mine.ret, mine.changed, mine.resampled, mine.crash) == (
                real.ret,
                real.changed,
                real.resampled,
                real.crash,
            ):
                lines.append(f"      both:   {mine}")
            else:
                lines += [f"      model:  {mine}", f"      kernel: {real}"]
        return "\n".join(lines)


@dataclass(slots=True)
class FuzzReport:
    """How many sequences and steps were compared, and what differed."""

    sequences: int = 0
    steps: int = 0
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.sequences} sequences, {self.steps} steps, {len(self.findings)} differ"


def fuzz(
    seeds: Iterable[int],
    model: Maker,
    oracle: Maker,
    cpus: int | None = None,
    smi: bool = True,
    limit: int = 1,
    on_sequence: Callable[[FuzzReport], None] | None = None,
) -> FuzzReport:
    """Compare the sequences of `seeds` until `limit` of them have differed. `cpus`, `smi`: as in `generate`."""
    report = FuzzReport()
    for seed in seeds:
        sequence = generate(seed, cpus, smi)
        steps = compare(sequence, model, oracle)
        report.sequences += 1
        report.steps += len(sequence.ops) if steps is None else steps
        if steps is not None:
            report.findings.append(find(sequence._replace(ops=sequence.ops[:steps]), model, oracle))
        if on_sequence is not None:
            on_sequence(report)
        if len(report.findings) >= limit:
            break
    return report


def compare(sequence: Sequence, model: Maker, oracle: Maker) -> int | None:
    """How many operations it takes until the two differ; None if they do not. ConfigError: an impossible sequence."""
    real = oracle(sequence.cpus, sequence.default_routing)
    try:
        mine = model(sequence.cpus, sequence.default_routing)
        try:
            for number, op in enumerate(sequence.ops, 1):
                crash, ret = _try(mine, op)
                real_crash, real_ret = _try(real, op)
                if crash or real_crash or ret != real_ret or mine.resampled != real.resampled:
                    return number
                if mine.snapshot() != real.snapshot():
                    return number
        finally:
            mine.close()
    finally:
        real.close()
    return None


def find(sequence: Sequence, model: Maker, oracle: Maker) -> Finding:
    """Make a sequence that differs short."""

    def differs(candidate: list[Op]) -> bool:
        try:
            return compare(sequence._replace(ops=candidate), model, oracle) is not None
        except ConfigError:
            return False

    short = sequence._replace(ops=shrink(sequence.ops, differs))
    short = short._replace(ops=short.ops[: compare(short, model, oracle)])
    setup = short.cpus, short.default_routing
    return Finding(short, trace_of(short.ops, model(*setup)), trace_of(short.ops, oracle(*setup)), len(sequence.ops))


def trace_of(ops: list[Op], vm: KvmOps) -> list[Step]:
    """Run a sequence on a new VM, which is closed at the end; what each operation did."""
    steps = []
    try:
        before = vm.state()
        for op in ops:
            crash, ret = _try(vm, op)
            after = vm.state()
            changed = {key: value for key, value in after.items() if before.get(key) != value}
            steps.append(Step(op, ret, changed, vm.resampled, crash))
            before = after
    finally:
        vm.close()
    return steps


def _try(vm: KvmOps, op: Op) -> tuple[str, Any]:
    """What went wrong, and the value. Anything but a wrong sequence is a finding, an exception of the model too."""
    try:
        return "", vm.run(op)
    except ConfigError:
        raise
    except VintxError as error:
        return str(error), None
    except Exception as error:
        return f"raised {type(error).__name__}: {error}", None


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
