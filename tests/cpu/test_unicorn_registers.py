"""MSRs, CPUID, control registers, SYSCALL, and the register file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cpu_guest import SCRATCH, STACK, TABLES, Guest
from vmm.cpu.engine import ExitReason, Registers, Segment
from vmm.cpu.unicorn import msr
from vmm.cpu.unicorn.cpuid import BUS_HZ, tsc_ratio
from vmm.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

UD, GP = 6, 13
CF, IF = 1, 1 << 9
M64 = (1 << 64) - 1


@pytest.fixture(scope="module")
def shared() -> Iterator[Guest]:
    """One guest for the many small programs."""
    made = Guest()
    yield made
    made.close()


def write_msr(guest: Guest, number: int, value: int) -> int | None:
    """WRMSR, then RDMSR. What was read; None: #GP(0) at the WRMSR."""
    guest.start("wrmsr64", rcx=number, rax=value & 0xFFFF_FFFF, rdx=value >> 32)
    assert guest.run() is ExitReason.HALT
    if guest.fault is not None:
        assert guest.fault[:3] == (GP, 0, 0x1000)
        return None
    return guest.gpr[0] | guest.gpr[2] << 32


def read_msr(guest: Guest, number: int) -> int | None:
    """RDMSR. None: #GP(0)."""
    guest.start("rdmsr64", rcx=number)
    assert guest.run() is ExitReason.HALT
    if guest.fault is not None:
        assert guest.fault[:3] == (GP, 0, 0x1000)
        return None
    return guest.gpr[0] | guest.gpr[2] << 32


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (msr.SYSENTER_CS, 0x10),
        (msr.SYSENTER_ESP, 0x7FFF_1234_5678),
        (msr.SYSENTER_EIP, 0xFFFF_8000_0000_0000),
        (msr.STAR, 0x1234_5678_9ABC_DEF0),
        (msr.LSTAR, 0xFFFF_FFFF_8100_0000),
        (msr.CSTAR, 0x1000),
        (msr.FMASK, 0x47700),
        (msr.FS_BASE, 0x7F00_0000_1000),
        (msr.GS_BASE, 0xFFFF_8880_0000_0000),
        (msr.KERNEL_GS_BASE, 0x1234),
        (msr.TSC_AUX, 0x11),
        (msr.TSC_ADJUST, 0),
        (msr.SPEC_CTRL, 0b101 | 1 << 10),
        (msr.MISC_ENABLE, 1 | 1 << 11),
        (msr.PAT, 0x0007_0406_0001_0506),
        (msr.MTRR_DEF_TYPE, 0xC06),
        (msr.MTRR_PHYS_BASE0, 0x8000_0006),
        (msr.MTRR_PHYS_BASE0 + 1, 0xFF_8000_0800),
        (msr.MTRR_FIXED[0], 0x0606_0606_0606_0606),
        (msr.MCG_STATUS, 0),
        (msr.MCG_CTL, M64),
        (msr.MC0_CTL, 0),
        (msr.MC0_CTL + 2, 0x1234),
        (msr.EFER, 0x901 | msr.EFER_LMA),
    ],
)
def test_cpu_msr_keeps_what_was_written(shared: Guest, number: int, value: int) -> None:
    assert write_msr(shared, number, value) == value
    assert [e for e in shared.log if e[0] in ("rdmsr", "wrmsr")] == []


@pytest.mark.parametrize(
    ("number", "value"),
    [
        *((n, 0x8000_0000_0000) for n in (0x175, 0x176, 0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102)),
        *((n, 1 << 63) for n in (0x175, 0xC0000082, 0xC0000102)),
        (msr.EFER, 0x901 | 1 << 12),  # SVME
        (msr.EFER, 0x801),  # LME cannot change while paging is on
        (msr.EFER, 0x901 | 1 << 32),
        (msr.FMASK, 1 << 32),
        (msr.TSC_AUX, 1 << 32),
        (msr.PAT, 2),
        (msr.PAT, 8 << 56),
        (msr.MTRR_DEF_TYPE, 0x1006),
        (msr.MTRR_DEF_TYPE, 2),
        (msr.MTRR_PHYS_BASE0, 2),
        (msr.MTRR_PHYS_BASE0, 1 << 40),
        (msr.MTRR_PHYS_BASE0 + 1, 1),
        (msr.MTRR_FIXED[3], 7),
        (msr.MCG_CTL, 1),
        (msr.MC0_CTL, 5),
        (msr.MC0_CTL + 1, 1),
        (msr.MTRR_CAP, 0),
        (msr.MCG_CAP, 0),
        (msr.DEBUGCTL, 1),
        (msr.ARCH_CAPABILITIES, 0),
        (msr.SPEC_CTRL, 1 << 3),
        (msr.PRED_CMD, 2),
    ],
)
def test_reserved_value_of_an_msr_is_a_general_protection_fault(shared: Guest, number: int, value: int) -> None:
    assert write_msr(shared, number, value) is None


def test_msr_of_the_machine_goes_to_the_callbacks(shared: Guest) -> None:
    shared.msrs = {0x1B: 0xFEE0_0900}
    try:
        assert write_msr(shared, 0x1B, 0xFEE0_0D00) == 0xFEE0_0D00
        assert shared.log == [("wrmsr", 0x1B, 0xFEE0_0D00), ("rdmsr", 0x1B)]
    finally:
        shared.msrs = {}


@pytest.mark.parametrize("number", [0x1B, 0x800, 0x6E0, 0x1234_5678, 0x4B56_4D00, 0xC001_0015])
def test_msr_that_nobody_knows_is_a_general_protection_fault(shared: Guest, number: int) -> None:
    assert read_msr(shared, number) is None
    assert write_msr(shared, number, 0) is None


def test_writing_the_tsc_moves_tsc_and_tsc_adjust_alike(shared: Guest) -> None:
    before = read_msr(shared, msr.TSC)
    assert before is not None
    after = write_msr(shared, msr.TSC, 1 << 50)
    assert after is not None
    assert 1 << 50 <= after < (1 << 50) + (1 << 40)
    adjust = shared.cpu.msrs[msr.TSC_ADJUST]
    assert 0 <= (1 << 50) - before - adjust < 1 << 40
    assert msr.write(shared.cpu, msr.TSC_ADJUST, 0)
    assert 0 < shared.cpu.tsc() - before < 1 << 40


def test_reset_brings_the_tsc_back_in_step(shared: Guest) -> None:
    before = shared.cpu.tsc()
    msr.write(shared.cpu, msr.TSC, 1 << 50)
    shared.cpu.reset()
    assert 0 < shared.cpu.tsc() - before < 1 << 40
    assert shared.cpu.msrs[msr.TSC_ADJUST] == 0


def test_tsc_runs_at_tsc_hz(shared: Guest) -> None:
    first = read_msr(shared, msr.TSC)
    second = shared.cpu.tsc()
    assert first is not None
    assert 0 < second - first < shared.engine.tsc_hz * 60
    assert 1e8 < shared.engine.tsc_hz < 1e11


def test_prefixes_before_an_intercepted_instruction_are_skipped(shared: Guest) -> None:
    shared.start("prefixed64")
    assert shared.run() is ExitReason.HALT
    assert [port for port, _ in shared.outs()] == [0x20]


def cpuid(guest: Guest, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX."""
    guest.start("cpuid64", rax=leaf, rcx=subleaf)
    assert guest.run() is ExitReason.HALT
    eax, ecx, edx, ebx = guest.gpr[:4]
    return eax, ebx, ecx, edx


def test_cpuid_shows_what_is_executed_only(shared: Guest) -> None:
    _, _, ecx, edx = cpuid(shared, 1)
    assert ecx & (1 << 21 | 1 << 24 | 1 << 31) == 1 << 21 | 1 << 24 | 1 << 31  # x2APIC, TSC deadline, hypervisor
    assert not ecx & (1 << 3 | 1 << 5 | 1 << 27 | 1 << 28)  # MONITOR, VMX, OSXSAVE, AVX
    assert edx & 1 << 9  # APIC, for the machine to mask
    ebx = cpuid(shared, 7)[1]
    assert not ebx & (1 << 3 | 1 << 5 | 1 << 8)  # BMI1, AVX2, BMI2
    assert not cpuid(shared, 0x8000_0001)[2] & 1 << 2  # SVM
    assert cpuid(shared, 0xD)[0] == 3
    assert cpuid(shared, 0x8000_0008)[0] & 0xFF == 40


def test_tsc_is_invariant_and_its_frequency_can_be_computed_in_32_bits(shared: Guest) -> None:
    assert cpuid(shared, 0x8000_0007)[3] & 1 << 8
    denominator, numerator, crystal, _ = cpuid(shared, 0x15)
    assert crystal // 1000 * numerator < 1 << 32
    assert abs(crystal * numerator / denominator / shared.engine.tsc_hz - 1) < 1e-6
    assert cpuid(shared, 0x16)[0] == round(shared.engine.tsc_hz / 1e6)
    assert cpuid(shared, 0x14) == (0, 0, 0, 0)


@given(st.floats(5e8, 1e10))
def test_tsc_ratio_of_any_frequency_is_exact_and_the_crystal_near_the_bus(hz: float) -> None:
    denominator, numerator, crystal = tsc_ratio(hz)
    assert 0 < numerator * (crystal // 1000) < 1 << 32
    assert abs(crystal * numerator / denominator / hz - 1) < 1e-6
    assert abs(crystal / BUS_HZ - 1) < 2e-3


def test_cpuid_beyond_the_last_leaf_repeats_it(shared: Guest) -> None:
    last = cpuid(shared, 0)[0]
    assert cpuid(shared, last + 0x1000) == cpuid(shared, last)
    assert cpuid(shared, 0x8FFF_FFFF) == cpuid(shared, last)


def test_cpuid_cache_does_not_grow_with_leaves_that_a_guest_makes_up(shared: Guest) -> None:
    table = shared.engine.cpuid_table
    for leaf in range(0x100, 0x400):
        table.get(leaf, leaf, osxsave=False)
        table.get(4, leaf, osxsave=False)
        table.get(0x8000_0000 + leaf, 0, osxsave=False)
    assert len(table._cache) < 100


def test_osxsave_of_cpuid_follows_cr4(shared: Guest) -> None:
    shared.start("osxsave64")
    assert shared.run() is ExitReason.HALT
    assert not shared.gpr[8] & 1 << 27
    assert shared.gpr[1] & 1 << 27


def test_cr8_is_the_machines_and_its_reserved_bits_fault(shared: Guest) -> None:
    shared.start("cr8")
    assert shared.run() is ExitReason.HALT
    assert shared.tpr == 9
    assert shared.gpr[9] == 9
    assert shared.fault is not None
    assert shared.fault[:2] == (GP, 0)


def test_control_registers_written_back_are_unchanged(shared: Guest) -> None:
    shared.start("cr9")
    assert shared.run() is ExitReason.HALT
    state = shared.cpu.registers()
    assert (state.gpr[9], state.gpr[10]) == (state.cr0, state.cr4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cr0", 0x8000_0010),  # PG without PE
        ("cr0", 0x11),  # PG off in 64-bit code
        ("cr0", 0xA000_0011),  # NW without CD
        ("cr0", 0x1_8000_0011),
        ("cr4", 0),  # PAE off in long mode
        ("cr4", 0x20 | 1),  # VME, which no model has
        ("cr4", 0x20 | 1 << 12),  # LA57
        ("cr4", 0x20 | 1 << 13),  # VMXE
        ("cr4", 0x20 | 1 << 17),  # PCIDE
        ("cr4", 0x20 | 1 << 22),  # PKE
        ("cr4", 0x20 | 1 << 32),
    ],
)
def test_invalid_control_register_value_is_a_general_protection_fault(shared: Guest, name: str, value: int) -> None:
    shared.start(name, rax=value)
    before = shared.cpu.registers()
    assert shared.run() is ExitReason.HALT
    after = shared.cpu.registers()
    assert shared.fault is not None
    assert shared.fault[:3] == (GP, 0, 0x1000)
    assert (after.cr0, after.cr4) == (before.cr0, before.cr4)


@pytest.mark.parametrize(("program", "length"), [("user64", 2), ("userrex64", 3)])
def test_syscall_and_sysret_switch_rings(guest: Guest, program: str, length: int) -> None:
    kernel = guest.start("syscall64").labels["kernel"]
    guest.place(program)
    write_words(guest, star=0x0020_0008 << 32, lstar=kernel, fmask=IF | 1 << 10)
    assert guest.run() is ExitReason.HALT
    assert guest.word(SCRATCH, "<Q") == 0x1101 + length  # RCX: behind the SYSCALL
    saved, masked = guest.word(SCRATCH + 8, "<Q"), guest.word(SCRATCH + 16, "<Q")
    assert saved & (CF | IF) == CF | IF
    assert masked == saved & ~(IF | 1 << 10)
    assert (guest.word(SCRATCH + 24), guest.word(SCRATCH + 28)) == (8, 0x10)
    assert guest.engine.counts == {"exceptions": 0, "syscalls": 1}


def write_words(guest: Guest, **values: int) -> None:
    """Set SYSCALL's MSRs of vCPU 0."""
    for name, value in values.items():
        assert msr.write(guest.cpu, getattr(msr, name.upper()), value)


@pytest.mark.parametrize(
    ("iopl", "allowed", "expected"),
    [
        (3, (), [0x20, 0x3F8]),
        (0, (), []),
        (0, (0x20,), [0x20]),
        (0, (0x20, 0x3F8, 0x3F9, 0x3FA), [0x20]),
        (0, (0x20, 0x3F8, 0x3F9, 0x3FA, 0x3FB), [0x20, 0x3F8]),
    ],
)
def test_user_mode_io_needs_iopl_or_the_bitmap_of_the_tss(
    guest: Guest, iopl: int, allowed: tuple[int, ...], expected: list[int]
) -> None:
    kernel = guest.start("syscall64", rcx=0).labels["kernel"]
    guest.place("userout64")
    bitmap = bytearray(b"\xff" * 0x81)
    for port in allowed:
        bitmap[port >> 3] &= ~(1 << (port & 7))
    guest.ram[0x9100 + 0x66 : 0x9100 + 0x68] = (0x68).to_bytes(2, "little")
    guest.ram[0x9100 + 0x68 : 0x9100 + 0x68 + len(bitmap)] = bitmap
    state = guest.cpu.registers()
    state.segments["tr"] = Segment(0x40, 0x9100, 0x68 + len(bitmap) - 1, 0x8B00)
    guest.cpu.set_registers(state)
    guest.ram[0x100A:0x100E] = (0x202 | iopl << 12).to_bytes(4, "little")  # the RFLAGS that SYSRET loads
    guest.engine.invalidate(0x1000, 0x20)
    write_words(guest, star=0x0020_0008 << 32, lstar=kernel)
    assert guest.run() is ExitReason.HALT
    assert [port for port, _ in guest.outs(0x20, 0x3F8)] == expected
    if len(expected) < 2:
        assert guest.fault is not None
        assert guest.fault[:2] == (GP, 0)


def test_syscall_of_compatibility_mode_enters_at_cstar(guest: Guest) -> None:
    kernel = guest.place("syscall64").labels["kernel"]
    guest.start("compat32")
    guest.place("usercompat")
    guest.ram[0x1200:0x1201] = b"\xf4"
    write_words(guest, star=0x0020_0008 << 32, lstar=kernel, cstar=0x1200)
    assert guest.run() is ExitReason.HALT
    state = guest.cpu.registers()
    assert (state.rip, state.segments["cs"].selector, state.gpr[1]) == (0x1201, 8, 0x1103)


def test_syscall_without_sce_is_an_undefined_opcode(guest: Guest) -> None:
    guest.start("syscallbad64")
    write_words(guest, efer=0x900)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:3] == (UD, 0, 0x1001)


def test_registers_read_back_as_set(guest: Guest) -> None:
    guest.start("int64")
    state = guest.cpu.registers()
    state.gpr = [n << 32 | n for n in range(16)]
    state.cr2 = 0x1234_5000
    state.segments["fs"] = Segment(0, 0x7F00_0000_0000, 0, 0)
    guest.cpu.set_registers(state)
    assert guest.cpu.registers() == state


def test_registers_of_a_saved_vcpu_survive_a_switch(guest: Guest) -> None:
    guest.start("spin64", rax=77)
    state = guest.cpu.registers()
    guest.place("ap16")
    guest.engine.vcpus[1].sipi(6)
    guest.run(1)
    assert guest.cpu.registers() == state
    state.cr3 = TABLES | 8
    guest.cpu.set_registers(state)
    guest.run(0, limit_ns=1000)
    assert guest.cpu.registers().gpr[0] == 77
    assert guest.cpu.registers().cr3 == TABLES | 8


def test_registers_left_out_stay_as_they_are(guest: Guest) -> None:
    guest.start("int64")
    before = guest.cpu.registers()
    guest.cpu.set_registers(Registers(gpr=before.gpr, rip=before.rip, cr0=before.cr0, efer=before.efer))
    after = guest.cpu.registers()
    assert (after.segments, after.gdt, after.idt) == (before.segments, before.gdt, before.idt)


def test_registers_cannot_be_set_while_the_vcpu_runs(guest: Guest) -> None:
    guest.start("window64")
    guest.on_out[0x20] = lambda _value: guest.cpu.set_registers(Registers())
    with pytest.raises(EngineError, match="while it runs"):
        guest.run()


def test_registers_read_from_a_callback_have_the_arithmetic_flags(guest: Guest) -> None:
    seen = []
    guest.start("window64")
    guest.ram[0x1000:0x1002] = b"\xf9\x90"  # stc; nop
    guest.ram[0x1002:0x1006] = b"\xe6\x20\xf4\xf4"
    guest.engine.invalidate(0x1000, 6)
    guest.on_out[0x20] = lambda _value: seen.append(guest.cpu.registers().rflags & CF)
    guest.run()
    assert seen == [CF]


@given(st.integers(0, M64))
def test_canonical_is_sign_extension_of_bit_47(address: int) -> None:
    assert msr.canonical(address) is (address >> 47 in (0, (1 << 17) - 1))


@given(st.sampled_from(sorted(msr.IN_ENV)))
def test_permission_bitmap_lets_reads_of_kept_msrs_pass_and_no_write(number: int) -> None:
    bitmap = msr.permission_bitmap()
    bit = 2 * (number if number < 0x2000 else number - 0xC000_0000 + 0x2000)
    assert bitmap[bit >> 3] >> (bit & 7) & 3 == 2


def test_init_keeps_cpu_msrs(guest: Guest) -> None:
    assert msr.write(guest.cpu, msr.SYSENTER_ESP, 0x1234)
    assert msr.write(guest.cpu, msr.MTRR_DEF_TYPE, 0xC06)
    guest.cpu.init()
    assert (msr.read(guest.cpu, msr.SYSENTER_ESP), msr.read(guest.cpu, msr.MTRR_DEF_TYPE)) == (0x1234, 0xC06)
    guest.cpu.reset()
    assert (msr.read(guest.cpu, msr.SYSENTER_ESP), msr.read(guest.cpu, msr.MTRR_DEF_TYPE)) == (0, 0)


def test_xcr0_is_x87_only_after_reset(guest: Guest) -> None:
    guest.start("xgetbv64")
    assert guest.run() is ExitReason.HALT
    assert (guest.gpr[0], guest.gpr[2]) == (1, 0)


def test_ip_wraps_at_64_kib_after_an_intercepted_instruction(guest: Guest) -> None:
    guest.start("wrap16")
    guest.place("wrapped16")
    guest.place("wraptarget16")
    assert guest.run() is ExitReason.HALT
    assert [port for port, _ in guest.outs()] == [0x22]


def test_task_register_of_reset_can_be_used(guest: Guest) -> None:
    guest.start("ring3_32")
    state = guest.cpu.registers()
    del state.segments["tr"]
    guest.cpu.reset()
    guest.cpu.set_registers(state)
    guest.ram[0x1100:0x1102] = b"\x0f\x0b"
    guest.ram[4:12] = (STACK).to_bytes(4, "little") + (0x10).to_bytes(4, "little")
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:3] == (UD, 0, 0x1100)
