"""Exceptions, their delivery, and instructions that must fault."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.support.cpu_guest import GDT, IDT, SCRATCH, STACK, STUBS, TSS
from vmm.cpu.engine import ExitReason

if TYPE_CHECKING:
    from tests.support.cpu_guest import Guest

RF, TF = 1 << 16, 1 << 8
DB, BP, UD, DF, NP, GP, PF = 1, 3, 6, 8, 11, 13, 14


@pytest.mark.parametrize(
    ("name", "vector", "error_code", "offset"),
    [
        ("div64", 0, 0, 2),
        ("ud64", UD, 0, 0),
        ("ud32", UD, 0, 0),
        ("gp64", GP, 0, 10),
        ("gp32", GP, 0x1000, 5),
        ("pf64", PF, 2, 7),
        ("int3", BP, 0, 1),
        ("int1", DB, 0, 1),
        ("rdpmc64", GP, 0, 2),
        ("vmmcall64", UD, 0, 0),
        ("monitor64", UD, 0, 2),
    ],
)
def test_fault_reaches_its_gate_with_error_code_and_rip(
    guest: Guest, name: str, vector: int, error_code: int, offset: int
) -> None:
    guest.start(name)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:3] == (vector, error_code, 0x1000 + offset)


def test_page_fault_of_a_fetch_says_so_and_sets_cr2(guest: Guest) -> None:
    guest.start("pffetch64")
    guest.run()
    assert guest.fault is not None
    assert guest.fault[:3] == (PF, 1 << 4, 0x4000_0000)
    assert guest.cpu.registers().cr2 == 0x4000_0000


@pytest.mark.parametrize(("name", "set_in_image"), [("ud64", True), ("gp64", True), ("int3", False)])
def test_fault_pushes_rf_and_trap_does_not(guest: Guest, name: str, set_in_image: bool) -> None:
    guest.start(name)
    guest.run()
    assert guest.fault is not None
    assert bool(guest.fault[3] & RF) is set_in_image


def test_software_interrupt_returns_behind_it(guest: Guest) -> None:
    guest.start("int64")
    assert guest.run() is ExitReason.HALT
    assert guest.outs() == [(0x50, 0x80)]
    assert guest.cpu.registers().rip == 0x1003


@pytest.mark.parametrize(("name", "vector"), [("int64", 0x80), ("int3", 3), ("ud64", 6)])
def test_absent_gate_gives_not_present_at_the_instruction(guest: Guest, name: str, vector: int) -> None:
    guest.start(name)
    guest.gate(vector, STUBS + 16 * vector, present=False)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:3] == (NP, vector * 8 + 2, 0x1000)


def test_contributory_fault_in_delivery_is_a_double_fault(guest: Guest) -> None:
    guest.start("gp64")
    guest.gate(GP, STUBS + 16 * GP, present=False)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:2] == (DF, 0)


def test_page_fault_of_the_stack_in_delivery_is_a_double_fault_on_its_ist_stack(guest: Guest) -> None:
    guest.start("pf64")
    guest.gate(DF, STUBS + 16 * DF, ist=1)
    struct.pack_into("<Q", guest.ram, TSS + 36, STACK)
    state = guest.cpu.registers()
    state.gpr[4] = 0x5000_0000
    guest.cpu.set_registers(state)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:2] == (DF, 0)


def test_exception_that_a_handler_of_ours_raises_can_nest_too(guest: Guest) -> None:
    # RDMSR of an unknown MSR: #GP is set up by the exit handler, and its gate is absent.
    guest.start("rdmsr64", rcx=0x999)
    guest.gate(GP, STUBS + 16 * GP, present=False)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:2] == (DF, 0)


def test_triple_fault_is_a_shutdown_and_the_cpu_can_be_reset(guest: Guest) -> None:
    guest.start("triple64")
    assert guest.run() is ExitReason.SHUTDOWN
    guest.cpu.reset()
    assert guest.cpu.registers().rip == 0xFFF0
    guest.start("int64")
    assert guest.run() is ExitReason.HALT


def test_trap_flag_traps_after_an_intercepted_instruction(guest: Guest) -> None:
    guest.start("step64")
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    # POPF sets TF; CPUID is the first instruction that runs under it; the trap points behind it.
    assert guest.fault[:3] == (DB, 0, 0x1000 + 6 + 2)
    assert guest.fault[3] & TF


def test_null_selector_for_ltr_is_a_fault_and_changes_nothing(guest: Guest) -> None:
    guest.start("ltr32")
    before = guest.cpu.registers().segments["tr"]
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:3] == (GP, 0, 0x1002)
    assert not guest.fault[3] & TF
    assert guest.cpu.registers().segments["tr"] == before


def test_ltr_loads_a_tss_and_faults_at_a_bad_one(guest: Guest) -> None:
    guest.start("ltrmem32")
    struct.pack_into("<I", guest.ram, SCRATCH + 4, 0x10)  # a data segment
    assert guest.run() is ExitReason.HALT
    assert guest.outs(0x20) == [(0x20, 0x40)]
    assert guest.ram[GDT + 0x40 + 5] & 0xF == 0xB  # busy
    assert guest.fault is not None
    assert guest.fault[:2] == (GP, 0x10)
    assert not guest.fault[3] & TF


def test_interrupt_during_ltr_sees_no_trap_flag(guest: Guest) -> None:
    guest.start("ltrmem32")
    guest.cpu.nmi()
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[0] == 2
    assert not guest.fault[3] & TF


def test_lmsw_and_clts_change_the_low_bits_only(guest: Guest) -> None:
    guest.start("lmsw32")
    assert guest.run() is ExitReason.HALT
    gpr = guest.gpr
    assert gpr[3] & 0xF == 0xF
    assert gpr[1] & 0xF == 0x1
    assert guest.fault is None


def test_user_mode_fault_switches_to_the_stack_of_the_tss(guest: Guest) -> None:
    guest.start("syscall64")
    guest.place("user64")
    guest.ram[0x1100:0x1102] = b"\x0f\x0b"  # ud2
    state = guest.cpu.registers()
    state.gpr[4] = 0xF800
    guest.cpu.set_registers(state)
    guest.cpu.msrs[0xC0000081] = 0
    setup_star(guest)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:3] == (UD, 0, 0x1100)
    assert guest.gpr[4] > STACK - 64


def setup_star(guest: Guest) -> None:
    """SYSCALL and SYSRET selectors as in the GDT of the support module."""
    from vmm.cpu.unicorn import layout

    guest.cpu.quads[layout.ENV_STAR >> 3] = 0x0020_0008 << 32


def test_vectors_of_the_idt_are_where_the_support_module_says(guest: Guest) -> None:
    guest.start("int64")
    assert guest.cpu.registers().idt == (IDT, 0xFFF)


def test_breakpoint_of_one_vcpu_does_not_stop_another_and_survives_the_switch(guest: Guest) -> None:
    guest.start("breakpoint64")
    guest.place("ap16")
    guest.on_out[0x20] = lambda _value: guest.engine.kick()
    assert guest.run() is ExitReason.KICKED
    guest.engine.vcpus[1].sipi(6)
    assert guest.run(1) is ExitReason.HALT
    assert guest.outs(0x60) == [(0x60, 0)]
    assert guest.fault is None
    assert guest.run(0) is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:3] == (DB, 0, 0x6000)
    assert guest.outs(0x60) == [(0x60, 0)]
