"""Proof, at start, that this library is the one the engine was written for.

A wrong offset or a lost fix would not crash: it would corrupt guests, rarely and silently. So each process first
compares the structures with what the machine code uses, then runs three small guests that fail at once without the
fixes. It takes a few tens of milliseconds, once.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import struct
import time
from typing import Final

from vmm.cpu.engine import ExitReason, Registers, Segment
from vmm.cpu.unicorn import layout as at
from vmm.cpu.unicorn.cpuid import HIGHEST_LEAF
from vmm.cpu.unicorn.engine import UnicornEngine
from vmm.cpu.unicorn.library import REMEDY, Library, load
from vmm.errors import EngineRefused

_ENTRY: Final = 0x1000
_RAM: Final = 0x10000
_LIMIT_NS: Final = 5_000_000_000

# Each write to 0x20000 kicks. A library that looks for a stop after every access would run the store for ever.
_COUNT: Final = 64
_STOPPED_STORE: Final = bytes.fromhex(
    "a300000200"  #     1:  mov [0x20000], eax
    "f0ff0500800000"  #     lock inc dword ptr [0x8000]
    "49"  #                 dec ecx
    "75f1"  #               jnz 1b
    "f4"  #                 hlt
)
# 0x40000 maps the page of 0x5000 a second time, NX. Its TLB entry is writable when the code is translated and changed.
_ALIAS: Final = bytes.fromhex(
    "890dfc0f0400"  #   1:  mov [0x40ffc], ecx
    "e8f53f0000"  #         call 0x5000
    "fe0501000400"  #       inc byte ptr [0x40001]
    "e8ea3f0000"  #         call 0x5000
    "01c2"  #               add edx, eax
    "e2e6"  #               loop 1b
    "f4"  #                 hlt
)
_ALIAS_CODE: Final = bytes.fromhex("b800000000c3")  # mov eax, 0; ret
# Vectors 6 and 0x30 have gates that are not present: delivery faults, #NP must come with the right error code and RIP.
_NESTED: Final = bytes.fromhex(
    "0f0b"  #               ud2
    "eb00"  #               jmp .+2
    "cd30"  #               int 0x30
    "b91b000000"  #         mov ecx, 0x1b
    "0f32"  #               rdmsr
    "0fa2"  #               cpuid
    "fb"  #                 sti
    "90"  #                 nop
    "f4"  #                 hlt
    "0f011d00810000"  #     lidt [0x8100]
    "0f0b"  #               ud2
    "58"  #             np: pop eax
    "5b"  #                 pop ebx
    "83c302"  #             add ebx, 2
    "e720"  #               out 0x20, eax
    "53"  #                 push ebx
    "cf"  #                 iretd
    "e621"  #           intr: out 0x21, al
    "cf"  #                 iretd
)
_NESTED_NP: Final = _ENTRY + 27
_NESTED_INTR: Final = _NESTED_NP + 9
_VECTOR: Final = 0x40


class _Recorder:
    """Callbacks that write down what the guest does; a write to memory that is no RAM kicks."""

    def __init__(self) -> None:
        self.engine: UnicornEngine
        self.log: list[tuple[str, int, int]] = []

    def port_read(self, port: int, size: int) -> int:
        self.log.append(("in", port, size))
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        self.log.append(("out", port, value & (1 << 8 * size) - 1))

    def mmio_read(self, gpa: int, size: int) -> int:
        self.log.append(("read", gpa, size))
        return -1

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self.log.append(("write", gpa, value & (1 << 8 * size) - 1))
        self.engine.kick()

    def rdmsr(self, msr: int) -> int | None:
        self.log.append(("rdmsr", msr, 0))
        return 0

    def wrmsr(self, msr: int, value: int) -> bool:
        self.log.append(("wrmsr", msr, value))
        return True

    def cpuid(self, leaf: int, subleaf: int, native: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        self.log.append(("cpuid", leaf, subleaf))
        return native

    def cr8_write(self, tpr: int) -> None:
        self.log.append(("cr8", tpr, 0))

    def cr8_read(self) -> int:
        return 0

    def acknowledged(self, vector: int) -> None:
        self.log.append(("ack", vector, 0))


@functools.cache
def self_test() -> None:
    """Run everything, once in a process. EngineRefused says what does not hold."""
    library = load()
    check_layout(library)
    ram = mmap.mmap(-1, _RAM)
    recorder = _Recorder()
    engine = UnicornEngine(ram, _RAM, 1, recorder, check_library=False)
    recorder.engine = engine
    try:
        _check_stopped_store(engine, ram)
        _check_alias(engine, ram)
        _check_delivery(engine, ram, recorder.log)
    finally:
        engine.close()
        ram.close()


def _refuse(reason: str) -> EngineRefused:
    return EngineRefused("unicorn", f"self-test: {reason}", REMEDY)


# --- structures -------------------------------------------------------------------------------------------------------


def check_layout(library: Library) -> None:
    """Compare `layout` with the pointers in a fresh engine, with the public interface, and with the machine code."""
    for function, size, offsets in (
        (
            "cpu_exec_x86_64",
            0x200,
            (at.UC_NESTED_LEVEL, at.CS_HALTED, at.CS_EXCEPTION, at.CS_UC, at.CS_ENV, at.ENV_IS_INT),
        ),
        ("uc_emu_start", 0x200, (at.UC_NESTED_LEVEL, at.UC_INVALID_ERROR, at.UC_VM_START)),
    ):
        code = ctypes.string_at(library.address(function), size)
        for offset in offsets:
            if struct.pack("<I", offset) not in code:
                raise _refuse(f"{function} does not use offset {offset:#x}: another build of the library")
    handle = ctypes.c_void_p()
    if library.uc_open(at.ARCH_X86, at.MODE_64, ctypes.byref(handle)):
        raise _refuse("uc_open failed")
    uc = int(handle.value or 0)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    pin = ctypes.c_ubyte.from_buffer(page)
    try:
        library.uc_mem_map_ptr(uc, 0, mmap.PAGESIZE, at.PROT_ALL, ctypes.addressof(pin))
        _check_pointers(library, uc)
    finally:
        library.uc_close(uc)


def _check_pointers(library: Library, uc: int) -> None:
    def pointer(address: int) -> int:
        return ctypes.c_uint64.from_address(address).value

    for what, offset, function in (
        ("vm_start", at.UC_VM_START, "vm_start_x86_64"),
        ("tcg_flush_tlb", at.UC_FLUSH_TLB, "tcg_flush_softmmu_tlb_x86_64"),
    ):
        if pointer(uc + offset) != library.address(function):
            raise _refuse(f"{what} is not at {offset:#x} of uc_struct")
    cs = pointer(uc + at.UC_CPU)
    if pointer(cs + at.CS_UC) != uc or pointer(cs + at.CS_ENV) != cs + at.CS_TO_ENV:
        raise _refuse("the CPU state is not where it should be")
    if not cs < pointer(cs + at.CS_ICOUNT) < cs + at.CS_TO_ENV:
        raise _refuse("the exit counter is not where it should be")
    value = ctypes.c_uint64()
    env = cs + at.CS_TO_ENV
    for register, offset in (*zip((35, 38, 40, 37), (0, 8, 16, 24), strict=True), (at.REG_RIP, at.ENV_EIP)):
        value.value = 0x1234_5678_0000 + register
        library.uc_reg_write(uc, register, ctypes.byref(value))
        if pointer(env + offset) != value.value:
            raise _refuse(f"register {register} is not at {offset:#x} of CPUX86State")


# --- guests -----------------------------------------------------------------------------------------------------------


def _start(engine: UnicornEngine, ram: mmap.mmap, code: bytes, **registers: int) -> None:
    """32-bit flat protected mode at `_ENTRY`, GDT at 0x7000, IDT at 0x6000, PAE tables at 0x2000."""
    ram[_ENTRY : _ENTRY + len(code)] = code
    ram[0x7000:0x7018] = struct.pack("<QQQ", 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    engine.invalidate(0, _RAM)
    vcpu = engine.vcpus[0]
    vcpu.reset()
    flat = Segment(0x10, 0, 0xFFFF_FFFF, 0xCF9300)
    vcpu.set_registers(
        Registers(
            gpr=[0, registers.get("ecx", 0), 0, 0, 0xF000, *[0] * 11],
            rip=_ENTRY,
            segments={"cs": Segment(8, 0, 0xFFFF_FFFF, 0xCF9B00), "ss": flat, "ds": flat, "es": flat},
            gdt=(0x7000, 0x17),
            idt=(0x6000, 0x7FF),
            cr0=registers.get("cr0", 0x11),
            cr3=0x2000,
            cr4=registers.get("cr4", 0),
            efer=registers.get("efer", 0),
        )
    )


def _run(engine: UnicornEngine) -> ExitReason:
    return engine.run(0, time.monotonic_ns() + _LIMIT_NS)


def _check_stopped_store(engine: UnicornEngine, ram: mmap.mmap) -> None:
    _start(engine, ram, _STOPPED_STORE, ecx=_COUNT)
    stops = 0
    while (reason := _run(engine)) is ExitReason.KICKED and stops <= _COUNT:
        stops += 1
    (counted,) = struct.unpack_from("<I", ram, 0x8000)
    if reason is not ExitReason.HALT or stops != _COUNT:
        raise _refuse(f"a guest that was stopped {stops} times instead of {_COUNT} ended with {reason}")
    if counted != _COUNT:
        raise _refuse(f"an instruction that was stopped was counted {counted} times instead of {_COUNT}")


def _check_alias(engine: UnicornEngine, ram: mmap.mmap) -> None:
    pages = [page << 12 | 3 for page in range(16)] + [0] * 48 + [1 << 63 | 0x5003]
    struct.pack_into("<Q", ram, 0x2000, 0x3001)
    struct.pack_into("<Q", ram, 0x3000, 0x4003)
    struct.pack_into(f"<{len(pages)}Q", ram, 0x4000, *pages)
    ram[0x5000 : 0x5000 + len(_ALIAS_CODE)] = _ALIAS_CODE
    rounds = 4
    _start(engine, ram, _ALIAS, ecx=rounds, cr0=0x8000_0011, cr4=0x20, efer=0x800)
    reason = _run(engine)
    total = engine.vcpus[0].registers().gpr[2]
    if reason is not ExitReason.HALT or total != sum(range(1, rounds + 1)):
        raise _refuse(f"code changed through another mapping gave {total} ({reason})")


def _check_delivery(engine: UnicornEngine, ram: mmap.mmap, log: list[tuple[str, int, int]]) -> None:
    for vector, target, kind in (
        (6, 0, 0x0E00),
        (0x30, 0, 0x0E00),
        (11, _NESTED_NP, 0x8E00),
        (_VECTOR, _NESTED_INTR, 0x8E00),
    ):
        struct.pack_into("<HHHH", ram, 0x6000 + 8 * vector, target & 0xFFFF, 8, kind, target >> 16)
    _start(engine, ram, _NESTED)
    engine.vcpus[0].set_interrupt(_VECTOR)
    log.clear()
    reasons = [_run(engine)]
    engine.vcpus[0].halted = False
    reasons.append(_run(engine))
    expected = [
        ("out", 0x20, 6 * 8 + 2),
        ("out", 0x20, 0x30 * 8 + 2),
        ("rdmsr", 0x1B, 0),
        ("cpuid", 0, 0x1B),
        ("ack", _VECTOR, 0),
        ("out", 0x21, HIGHEST_LEAF),
    ]
    if reasons != [ExitReason.HALT, ExitReason.SHUTDOWN] or log != expected:
        raise _refuse(f"events were delivered as {log}, ending with {reasons}")
