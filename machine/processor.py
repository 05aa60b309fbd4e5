"""Where the local APICs, the PICs and a CPU engine meet.

A `Processor` is one CPU as its local APIC sees it: it keeps the engine told which vector may be injected, and tells
the chip it came from when the CPU took it. `Processors` answers everything that running guests do: ports, memory,
MSRs, CPUID.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.i8259 import Pic
    from devices.lapic import LocalApic
    from machine.cpu_model import CpuModel
    from vmm.cpu.engine import Engine, EngineVcpu, Registers
    from vmm.loop import Loop
    from vmm.memory import AddressSpace
    from vmm.trace import Trace


class CpuTakesInterrupt(Event):
    """A CPU took a vector; `pic`: it came from the 8259s as ExtINT."""

    cpu: int
    vector: int
    pic: bool


class Processor:
    """One CPU: a local APIC in front of an engine's vCPU. Implements `devices.lapic.CpuSignals`."""

    __slots__ = ("_armed", "_from_pic", "_loop", "_pic", "_trace", "lapic", "taken", "vcpu")

    def __init__(self, vcpu: EngineVcpu, loop: Loop, pic: Pic, trace: Trace) -> None:
        self.vcpu = vcpu
        self._trace = trace
        self.lapic: LocalApic
        self._loop = loop
        self._pic = pic
        self._armed: int | None = None
        self._from_pic = False
        self.taken = [0] * 256
        """How often it took each vector."""

    def interrupt_changed(self) -> None:
        """The injectable vector may have changed: arm the engine anew. An ExtINT goes first, as in KVM."""
        lapic = self.lapic
        vector = self._pic.peek() if self._pic.high and lapic.accept_pic_intr else None
        self._from_pic = vector is not None
        if vector is None:
            vector = lapic.pending
        if vector != self._armed:
            self._armed = vector
            slept = self.vcpu.halted
            self.vcpu.set_interrupt(vector)
            if vector is not None and slept:
                # Another CPU may be waiting for this one in a loop: give it a turn now, not when the slice is over.
                self._loop.preempt(self.vcpu.index)

    def acknowledged(self, vector: int) -> None:
        """The CPU took `vector`: the interrupt acknowledge cycle of the chip that offered it."""
        self._armed = None
        self.taken[vector] += 1
        if self._trace.on:
            self._trace.emit(CpuTakesInterrupt(self.vcpu.index, vector, self._from_pic))
        lapic = self.lapic
        if self._from_pic:
            self._pic.intack()
        else:
            lapic.acknowledge(vector)
        if self._pic.high or lapic.pending != self._armed:  # else the local APIC has told us already
            self.interrupt_changed()

    def nmi(self) -> None:
        self.vcpu.nmi()
        self._loop.preempt(self.vcpu.index)

    def smi(self) -> None:
        """No system management mode here: an SMI does nothing, as on a CPU whose firmware set none up."""

    def init(self) -> None:
        self.vcpu.init()
        self._armed = None
        self.interrupt_changed()

    def sipi(self, vector: int) -> None:
        self.vcpu.sipi(vector)
        self._loop.preempt(self.vcpu.index)

    def reset(self) -> None:
        """Power-on: the engine's vCPU starts over with nothing armed."""
        self._armed = None
        self._from_pic = False


class Processors:
    """The machine's answer to whatever a running guest does. Implements `vmm.cpu.engine.CpuCallbacks`."""

    def __init__(
        self, ports: AddressSpace, mmio: AddressSpace, model: CpuModel, pending: object, drain: Callable[[], None]
    ) -> None:
        self._model = model
        self.all: list[Processor] = []
        self.engine: Engine
        self._ports = ports
        self._mmio = mmio
        self._pending = pending
        self._drain = drain

    @property
    def current(self) -> Processor:
        """The CPU that runs, or ran last."""
        return self.all[self.engine.current]

    # CpuCallbacks. Work that a handler queued runs before the guest goes on, as if another host CPU had done it.

    def port_read(self, port: int, size: int) -> int:
        value = self._ports.read(port, size)
        if self._pending:
            self._drain()
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        self._ports.write(port, size, value)
        if self._pending:
            self._drain()

    def mmio_read(self, gpa: int, size: int) -> int:
        lapic = self.all[self.engine.current].lapic
        if gpa >> 12 == lapic.page:
            return lapic.mmio_read(gpa & 0xFFF, size)
        value = self._mmio.read(gpa, size)
        if self._pending:
            self._drain()
        return value

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        lapic = self.all[self.engine.current].lapic
        if gpa >> 12 == lapic.page:
            lapic.mmio_write(gpa & 0xFFF, size, value)
        else:
            self._mmio.write(gpa, size, value)
        if self._pending:
            self._drain()

    def rdmsr(self, msr: int) -> int | None:
        value = self.current.lapic.msr_read(msr)
        return 0 if value is None and self._model.has_idle_msr(msr) else value

    def wrmsr(self, msr: int, value: int) -> bool:
        accepted = self.current.lapic.msr_write(msr, value) or self._model.has_idle_msr(msr)
        if self._pending:
            self._drain()
        return accepted

    def cpuid(self, leaf: int, subleaf: int, native: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        eax, ebx, ecx, edx = native
        lapic = self.current.lapic
        count = len(self.all)
        if leaf == 1:
            ebx = (ebx & 0x0000_FFFF) | (lapic.apic_id & 0xFF) << 24 | (count if count > 1 else 1) << 16
            edx = edx | 1 << 28 if count > 1 else edx & ~(1 << 28)
            edx = edx | 1 << 9 if lapic.enabled else edx & ~(1 << 9)
        elif leaf == 0xB:
            # One thread a core, all cores in one package, as QEMU's -smp N.
            width = max(count - 1, 0).bit_length()
            if subleaf == 0:
                eax, ebx, ecx = 0, 1, 0x100
            elif subleaf == 1:
                eax, ebx, ecx = width, count, 0x201
            else:
                eax, ebx, ecx = 0, 0, subleaf & 0xFF
            edx = lapic.apic_id
        return self._model.show(leaf, (eax, ebx, ecx, edx))

    def cr8_write(self, tpr: int) -> None:
        self.current.lapic.tpr = tpr << 4

    def cr8_read(self) -> int:
        return self.current.lapic.tpr >> 4

    def acknowledged(self, vector: int) -> None:
        self.all[self.engine.current].acknowledged(vector)

    # The rest of the machine.

    def pic_output(self, level: bool) -> None:
        """The PICs' INT output is the LINT0 input of every CPU."""
        for processor in self.all:
            processor.lapic.lint0(level)

    def interrupts_changed(self) -> None:
        """The PICs offer another vector, maybe."""
        for processor in self.all:
            processor.interrupt_changed()

    def reset(self, boot: Registers | None) -> None:
        """Power-on of all CPUs; the first starts with `boot` (or at the reset vector), the others wait for SIPI."""
        for i, processor in enumerate(self.all):
            processor.reset()
            if i == 0:
                processor.vcpu.reset()
                if boot is not None:
                    processor.vcpu.set_registers(boot)
            else:
                processor.vcpu.init()
            processor.vcpu.set_interrupt(None)
            processor.interrupt_changed()
