"""What every CPU engine offers, and what it asks of the machine.

An engine executes instructions and nothing else. The local APIC, the IOAPIC and the PICs are Python models and
the same under every engine: the machine tells an engine *which vector may be injected now* (`set_interrupt`), and
the engine tells it *which one the CPU took* (`take_ack`). Everything the guest does to the outside arrives as a
call of `CpuCallbacks`, on the thread that called `run`.

Engines: `unicorn` (default), `none` (qtest drives, no instruction is run).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExitReason(enum.Enum):
    """Why `Engine.run` came back."""

    HALT = "halt"
    """HLT with nothing to deliver; `EngineVcpu.halted` is True until an interrupt, NMI, INIT or SIPI."""
    DEADLINE = "deadline"
    """The host time given to `run` is over."""
    KICKED = "kicked"
    """`Engine.kick` was called."""
    YIELD = "yield"
    """PAUSE while `Engine.yield_on_pause` is set."""
    SHUTDOWN = "shutdown"
    """Triple fault. The machine resets, as a PC does."""
    ERROR = "error"
    """The engine cannot go on (`Engine.error` says why)."""


@dataclass(slots=True)
class Segment:
    """One segment register with its hidden part. `flags` are bits 8-23 of the descriptor's second dword."""

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    flags: int = 0


@dataclass(slots=True)
class Registers:
    """The architectural state that boot code sets and that `info registers` prints.

    `gpr` is in encoding order: RAX RCX RDX RBX RSP RBP RSI RDI R8..R15.
    """

    gpr: list[int] = field(default_factory=lambda: [0] * 16)
    rip: int = 0
    rflags: int = 2
    segments: dict[str, Segment] = field(default_factory=dict)
    """Keys `es cs ss ds fs gs ldt tr`; one that is missing is left as it is by `set_registers`."""
    gdt: tuple[int, int] | None = None
    """(base, limit); None: leave as it is."""
    idt: tuple[int, int] | None = None
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0


class CpuCallbacks(Protocol):
    """What the machine does for a running guest. `Engine.current` names the vCPU that runs.

    None of these may raise: whatever a guest does is answered (all ones, ignored, #GP).
    """

    def port_read(self, port: int, size: int) -> int: ...
    def port_write(self, port: int, size: int, value: int) -> None: ...
    def mmio_read(self, gpa: int, size: int) -> int: ...
    def mmio_write(self, gpa: int, size: int, value: int) -> None: ...

    def rdmsr(self, msr: int) -> int | None:
        """The value, or None for #GP(0)."""

    def wrmsr(self, msr: int, value: int) -> bool:
        """False for #GP(0)."""

    def cpuid(self, leaf: int, subleaf: int, native: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX to show, given what the engine itself executes (`native`)."""

    def cr8_write(self, tpr: int) -> None:
        """MOV to CR8: bits 7:4 of TPR as 0..15."""

    def cr8_read(self) -> int:
        """MOV from CR8: bits 7:4 of TPR as 0..15."""

    def acknowledged(self, vector: int) -> None:
        """The current vCPU took the interrupt that `set_interrupt` armed: move IRR to ISR, arm the next."""


class EngineVcpu(Protocol):
    """One virtual CPU. All calls on the machine's thread."""

    index: int
    halted: bool

    def reset(self) -> None:
        """Power-on state: CS F000 base FFFF0000, EIP FFF0, paging off; not halted. All but vCPU 0 wait for SIPI."""

    def init(self) -> None:
        """INIT: as reset, but FPU and most MSRs stay; then all but vCPU 0 wait for SIPI."""

    def sipi(self, vector: int) -> None:
        """Start at CS = vector << 8, IP = 0. Ignored unless waiting for SIPI."""

    def registers(self) -> Registers: ...
    def set_registers(self, registers: Registers) -> None: ...

    def set_interrupt(self, vector: int | None) -> None:
        """Arm the one vector that may be injected as soon as IF and the interrupt shadow allow; None disarms.

        Replaces what was armed before. Arming wakes a halted vCPU whose IF is set.
        """

    def nmi(self) -> None: ...

    def tsc(self) -> int:
        """The time stamp counter, as RDTSC would give it now; it counts `Engine.tsc_hz` times a second."""

    @property
    def runnable(self) -> bool:
        """True when `run` would execute something: not waiting for SIPI, and not halted without a wake-up."""


class Engine(Protocol):
    """The CPU of a machine: N vCPUs over one guest memory."""

    name: str
    vcpus: Sequence[EngineVcpu]
    current: int
    """Index of the vCPU that runs, or ran last."""
    yield_on_pause: bool
    """Leave with YIELD at PAUSE; the machine sets it while another vCPU is runnable."""
    error: str | None

    @property
    def tsc_hz(self) -> float: ...

    def run(self, index: int, deadline_ns: int) -> ExitReason:
        """Run one vCPU until something ends it; `deadline_ns` is host CLOCK_MONOTONIC time."""

    def kick(self) -> None:
        """Make `run` return soon (next translation block). From callbacks, signal handlers and other threads."""

    def invalidate(self, gpa: int, length: int) -> None:
        """Host code wrote guest RAM: forget translated code there."""

    def close(self) -> None: ...
