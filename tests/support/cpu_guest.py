"""A guest for tests of a CPU engine: RAM, a small program, and callbacks that write everything down.

Memory: program at 0x1000, stubs of exception handlers at 0x2000, what they share at 0x3000 and 0x3100, scratch at
0x5000, IDT at 0x8000, GDT at 0x9000, TSS at 0x9100, page tables from 0xa000, stack below 0xf000 (user: 0xf800).
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import TYPE_CHECKING

from tests.support.cpu_programs import PROGRAMS, Program
from vmm.cpu.engine import ExitReason, Registers, Segment
from vmm.cpu.unicorn import UnicornEngine

if TYPE_CHECKING:
    from collections.abc import Callable

STACK = 0xF000
IDT, GDT, TSS, TABLES = 0x8000, 0x9000, 0x9100, 0xA000
SCRATCH = 0x5000
STUBS = 0x2000
WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17))
CR0_PE, CR0_PG = 1, 1 << 31
LIMIT_NS = 20_000_000_000


class Guest:
    """An engine and what it did. `log` has the accesses in order; `on_out[port]` is called at a write to the port."""

    def __init__(self, ncpus: int = 1, ram_size: int = 1 << 20) -> None:
        self.ram = mmap.mmap(-1, ram_size)
        self.log: list[tuple[object, ...]] = []
        self.on_out: dict[int, Callable[[int], None]] = {}
        self.inputs: dict[int, int] = {}
        self.mmio: dict[int, int] = {}
        self.on_mmio: Callable[[int], None] = lambda _gpa: None
        self.msrs: dict[int, int] = {}
        self.tpr = 0
        self.on_ack: Callable[[int], None] = lambda _vector: None
        self.change_cpuid: Callable[[int, int], None] = lambda _leaf, _subleaf: None
        self.engine = UnicornEngine(self.ram, ram_size, ncpus, self)
        self.cpu = self.engine.vcpus[0]

    # --- CpuCallbacks ---

    def port_read(self, port: int, size: int) -> int:
        self.log.append(("in", port, size))
        return self.inputs.get(port, 0xFFFF_FFFF)

    def port_write(self, port: int, size: int, value: int) -> None:
        self.log.append(("out", port, size, value & (1 << 8 * size) - 1))
        if port in self.on_out:
            self.on_out[port](value)

    def mmio_read(self, gpa: int, size: int) -> int:
        self.log.append(("read", gpa, size))
        self.on_mmio(gpa)
        return self.mmio.get(gpa, -1)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self.log.append(("write", gpa, size, value & (1 << 8 * size) - 1))
        self.on_mmio(gpa)

    def rdmsr(self, msr: int) -> int | None:
        self.log.append(("rdmsr", msr))
        return self.msrs.get(msr)

    def wrmsr(self, msr: int, value: int) -> bool:
        self.log.append(("wrmsr", msr, value))
        if msr in self.msrs:
            self.msrs[msr] = value
        return msr in self.msrs

    def cpuid(self, leaf: int, subleaf: int, native: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        self.change_cpuid(leaf, subleaf)
        return native

    def cr8_write(self, tpr: int) -> None:
        self.tpr = tpr

    def cr8_read(self) -> int:
        return self.tpr

    def acknowledged(self, vector: int) -> None:
        self.log.append(("ack", vector))
        self.on_ack(vector)

    # --- setting up ---

    def place(self, program: Program | str) -> Program:
        """Copy a program to its address."""
        if isinstance(program, str):
            program = PROGRAMS[program]
        self.ram[program.address : program.address + len(program.code)] = program.code
        self.engine.invalidate(program.address, len(program.code))
        return program

    def start(self, name: str, **registers: int) -> Program:
        """Place a program and set vCPU 0 to its first instruction: real mode, flat 32-bit, or 64-bit by its width.

        All vectors have gates; below 0x30 they report the exception and halt, above they report and return.
        `registers`: initial rax, rcx, rdx, rbx.
        """
        program = self.place(name)
        bits = program.bits
        self.log.clear()
        gpr = [registers.get(r, 0) for r in ("rax", "rcx", "rdx", "rbx")] + [STACK] + [0] * 11
        state = Registers(gpr=gpr, rip=program.address, gdt=(GDT, 0x4F), idt=(IDT, 0xFFF), cr0=0x10)
        if bits == 16:
            flat = Segment(0, 0, 0xFFFF, 0x9300)
            state.segments = {"cs": Segment(0, 0, 0xFFFF, 0x9B00), **dict.fromkeys(("ss", "ds", "es"), flat)}
        else:
            self._tables(bits)
            code = 0xAF9B00 if bits == 64 else 0xCF9B00
            flat = Segment(0x10, 0, 0xFFFF_FFFF, 0xCF9300)
            state.segments = {"cs": Segment(8, 0, 0xFFFF_FFFF, code), **dict.fromkeys(("ss", "ds", "es"), flat)}
            state.segments["tr"] = Segment(0x40, TSS, 0x67, 0x8B00)
            state.cr0 |= CR0_PE
        if bits == 64:
            state.cr0 |= CR0_PG
            state.cr3, state.cr4, state.efer = TABLES, 0x20, 0x901
        self.cpu.reset()
        self.cpu.set_registers(state)
        return program

    def _tables(self, bits: int) -> None:
        code = 0x00AF_9B00_0000_FFFF if bits == 64 else 0x00CF_9B00_0000_FFFF
        user = (0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF)
        tss = 0x67 | (TSS & 0xFFFF) << 16 | 0x89 << 40
        descriptors = (0, code, 0x00CF_9300_0000_FFFF, 0, *user, 0, tss, 0)
        struct.pack_into(f"<{len(descriptors)}Q", self.ram, GDT, *descriptors)
        struct.pack_into("<Q", self.ram, TSS + 4, STACK)  # RSP0; in the 32-bit layout ESP0 and SS0 are set below
        if bits == 32:
            struct.pack_into("<II", self.ram, TSS + 4, STACK, 0x10)
        report = self.place(f"report{bits}")
        back = self.place(f"return{bits}")
        for vector in range(0x100):
            target = back if vector >= 0x30 else report
            stub = b"" if vector in WITH_ERROR_CODE else b"\x6a\x00"  # push 0
            stub += b"\x68" + struct.pack("<I", vector)  # push vector
            address = STUBS + 16 * vector if vector < 0x100 else 0
            stub += b"\xe9" + struct.pack("<i", target.address - address - len(stub) - 5)  # jmp
            self.ram[address : address + len(stub)] = stub
            self.gate(vector, address, bits)
        if bits == 64:
            pages = [TABLES + 0x1000 | 7, TABLES + 0x2000 | 7, 0x87]
            for i, entry in enumerate(pages):
                struct.pack_into("<Q", self.ram, TABLES + 0x1000 * i, entry)
            struct.pack_into("<QQ", self.ram, TABLES + 0x1000 + 16, 0x1_0000 | 7, 0x1_1000 | 7)  # 2 to 4 GiB: MMIO
            for table, base in ((0x10000, 0x8000_0000), (0x11000, 0xC000_0000)):
                for i in range(512):
                    struct.pack_into("<Q", self.ram, table + 8 * i, base + (i << 21) | 0x87)

    def gate(self, vector: int, address: int, bits: int = 64, *, present: bool = True, ist: int = 0) -> None:
        """An interrupt gate to ring 0."""
        low = (
            address & 0xFFFF | 8 << 16 | ist << 32 | (0xEE if present else 0x6E) << 40 | (address >> 16 & 0xFFFF) << 48
        )
        if bits == 64:
            struct.pack_into("<QQ", self.ram, IDT + 16 * vector, low, address >> 32)
        else:
            struct.pack_into("<Q", self.ram, IDT + 8 * vector, low)

    # --- running ---

    def run(self, index: int = 0, limit_ns: int = LIMIT_NS) -> ExitReason:
        """Until something ends it. The limit is for a guest gone wild only; no test waits for it."""
        return self.engine.run(index, time.monotonic_ns() + limit_ns)

    def resume(self, index: int = 0) -> ExitReason:
        """Run on after a HLT, as if something had woken the CPU."""
        self.engine.vcpus[index].halted = False
        return self.run(index)

    @property
    def gpr(self) -> list[int]:
        """RAX RCX RDX RBX RSP RBP RSI RDI R8..R15 of vCPU 0."""
        return self.cpu.registers().gpr

    def outs(self, *ports: int) -> list[tuple[int, int]]:
        """(port, value) of the writes to these ports, or to all."""
        return [(e[1], e[3]) for e in self.log if e[0] == "out" and (not ports or e[1] in ports)]

    def order(self) -> list[object]:
        """The ports written and the vectors acknowledged, in order; an acknowledge is its vector as a string."""
        return [f"ack {e[1]:#x}" if e[0] == "ack" else e[1] for e in self.log if e[0] in ("out", "ack")]

    @property
    def fault(self) -> tuple[int, int, int, int] | None:
        """Vector, error code, RIP and RFLAGS of the exception that was reported."""
        seen = dict(self.outs(0x40, 0x41, 0x42, 0x43))
        return (seen[0x40], seen[0x41], seen[0x42], seen[0x43]) if 0x40 in seen else None

    def word(self, address: int = SCRATCH, fmt: str = "<I") -> int:
        """A number in guest RAM."""
        return int(struct.unpack_from(fmt, self.ram, address)[0])

    def close(self) -> None:
        """Close the engine and its RAM."""
        self.engine.close()
        self.ram.close()
