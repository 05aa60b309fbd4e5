"""The engine that runs nothing: qtest drives, and the CPUs stand still.

Interrupts are armed and never taken, which is what QEMU's `-accel qtest` does too: a test reads the state of the
chips instead of a handler's traces.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm.cpu.engine import ExitReason, Registers
from vmm.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.cpu.engine import EngineVcpu

TSC_HZ = 1_000_000_000


class NoneVcpu:
    """A CPU that keeps its registers and never runs. See `vmm.cpu.engine.EngineVcpu`."""

    __slots__ = ("_registers", "armed", "halted", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.halted = True
        self.armed: int | None = None
        self._registers = Registers(rip=0xFFF0, cr0=0x6000_0010)

    def reset(self) -> None:
        """Registers as after power-on."""
        self._registers = Registers(rip=0xFFF0, cr0=0x6000_0010)
        self.armed = None

    def init(self) -> None:
        """As `reset`."""
        self.reset()

    def sipi(self, vector: int) -> None:
        """Nothing would run."""

    def registers(self) -> Registers:
        return replace(self._registers)

    def set_registers(self, registers: Registers) -> None:
        self._registers = replace(registers)

    def set_interrupt(self, vector: int | None) -> None:
        """Remembered in `armed`, for tests."""
        self.armed = vector

    def nmi(self) -> None:
        """Lost: nobody takes it."""

    def tsc(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    @property
    def runnable(self) -> bool:
        return False


class NoneEngine:
    """See `vmm.cpu.engine.Engine`."""

    name = "none"

    def __init__(self, ncpus: int) -> None:
        if ncpus < 1:
            raise EngineError(f"{ncpus} vCPUs: at least one is needed")
        self.vcpus: Sequence[EngineVcpu] = tuple(NoneVcpu(i) for i in range(ncpus))
        self.current = 0
        self.yield_on_pause = False
        self.error: str | None = None
        self.tsc_hz = float(TSC_HZ)
        self._kicked = False

    def run(self, index: int, deadline_ns: int) -> ExitReason:
        """KICKED if somebody kicked, else HALT at once."""
        del deadline_ns
        self.current = index
        if self._kicked:
            self._kicked = False
            return ExitReason.KICKED
        return ExitReason.HALT

    def kick(self) -> None:
        self._kicked = True

    def invalidate(self, gpa: int, length: int) -> None:
        """There is no translated code."""

    def close(self) -> None:
        """Nothing to give back."""
