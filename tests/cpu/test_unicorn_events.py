"""Interrupts, NMI, halting, INIT and SIPI."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from vmm.cpu.engine import ExitReason

if TYPE_CHECKING:
    from tests.support.cpu_guest import Guest

VECTOR = 0x55


def test_armed_interrupt_waits_for_if_and_for_the_shadow_of_sti(guest: Guest) -> None:
    guest.start("shadow64")
    guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    # STI; OUT 0x20 is in the shadow; then the handler (port 0x50), then OUT 0x21.
    assert guest.order() == [0x20, f"ack {VECTOR:#x}", 0x50, 0x21]
    assert guest.outs(0x50) == [(0x50, VECTOR)]


def test_interrupt_is_acknowledged_once_and_not_taken_again(guest: Guest) -> None:
    guest.start("shadow64")
    guest.cpu.set_interrupt(VECTOR)
    guest.run()
    assert [e for e in guest.log if e[0] == "ack"] == [("ack", VECTOR)]
    assert not guest.cpu.runnable


def test_armed_interrupt_is_taken_in_the_window_between_sti_and_cli(guest: Guest) -> None:
    guest.start("window64")
    guest.on_out[0x20] = lambda _value: guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert guest.order() == [0x20, f"ack {VECTOR:#x}", 0x50, 0x21]


def test_disarmed_interrupt_is_not_taken(guest: Guest) -> None:
    guest.start("shadow64")
    guest.cpu.set_interrupt(VECTOR)
    guest.cpu.set_interrupt(None)
    assert guest.run() is ExitReason.HALT
    assert guest.order() == [0x20, 0x21]


def test_arming_replaces_what_was_armed(guest: Guest) -> None:
    guest.start("shadow64")
    guest.cpu.set_interrupt(VECTOR)
    guest.cpu.set_interrupt(0x77)
    guest.run()
    assert guest.outs(0x50) == [(0x50, 0x77)]
    assert ("ack", 0x77) in guest.log


def test_interrupt_armed_by_a_callback_is_taken_at_the_next_block(guest: Guest) -> None:
    guest.start("selfarm64")
    guest.on_out[0x30] = lambda _value: guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert guest.order() == [0x30, f"ack {VECTOR:#x}", 0x50, 0x21]


def test_acknowledge_comes_before_the_handlers_eoi(guest: Guest) -> None:
    program = guest.start("eoi64")
    guest.gate(VECTOR, program.labels["eoi"])
    guest.on_out[0x30] = lambda _value: guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert [e for e in guest.log if e[0] in ("ack", "write")] == [("ack", VECTOR), ("write", 0xFEE0_00B0, 4, 0)]


def test_next_vector_armed_by_acknowledged_is_taken_too(guest: Guest) -> None:
    pending = [0x66, 0x77]
    guest.on_ack = lambda _vector: guest.cpu.set_interrupt(pending.pop(0) if pending else None)
    guest.start("selfarm64")
    guest.on_out[0x30] = lambda _value: guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert guest.outs(0x50) == [(0x50, VECTOR), (0x50, 0x66), (0x50, 0x77)]
    assert [e[1] for e in guest.log if e[0] == "ack"] == [VECTOR, 0x66, 0x77]


def test_interrupt_whose_gate_is_bad_is_accepted_once(guest: Guest) -> None:
    # #NP through a trap gate leaves IF set: an interrupt that came back would come back for ever.
    guest.start("stihlt64")
    guest.gate(VECTOR, 0x2000, present=False)
    guest.ram[0x8000 + 16 * 11 + 5] = 0xEF
    guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:2] == (11, VECTOR * 8 + 2 + 1)  # from the IDT, EXT
    assert [e for e in guest.log if e[0] == "ack"] == [("ack", VECTOR)]


def test_interrupt_that_ends_in_a_triple_fault_is_one_shutdown(guest: Guest) -> None:
    guest.start("stihlt64")
    state = guest.cpu.registers()
    state.idt = (0x5000, 0)
    guest.cpu.set_registers(state)
    guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.SHUTDOWN
    assert [e for e in guest.log if e[0] == "ack"] == [("ack", VECTOR)]


def test_halt_with_interrupts_off_stays_halted_while_one_is_armed(guest: Guest) -> None:
    guest.start("clihlt64")
    guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert guest.cpu.halted
    assert not guest.cpu.runnable
    assert guest.run() is ExitReason.HALT
    assert guest.order() == []


def test_halt_with_interrupts_on_does_not_sleep_while_one_is_armed(guest: Guest) -> None:
    guest.start("stihlt64")
    guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert guest.order() == [f"ack {VECTOR:#x}", 0x50, 0x20]


def test_arming_wakes_a_halted_cpu(guest: Guest) -> None:
    guest.start("stihlt64")
    assert guest.run() is ExitReason.HALT
    assert not guest.cpu.runnable
    guest.cpu.set_interrupt(VECTOR)
    assert guest.cpu.runnable
    assert guest.run() is ExitReason.HALT
    assert guest.order() == [f"ack {VECTOR:#x}", 0x50, 0x20]


def test_nmi_ignores_if_and_the_next_waits_for_iret(guest: Guest) -> None:
    program = guest.start("nmi64")
    guest.gate(2, program.labels["nmi"])
    guest.on_out[0x30] = lambda _value: guest.cpu.nmi()
    guest.on_out[0x31] = lambda _value: guest.cpu.nmi() if len(guest.outs(0x31)) == 1 else None
    assert guest.run() is ExitReason.HALT
    assert [port for port, _ in guest.outs()] == [0x30, 0x23, 0x31, 0x24, 0x23, 0x31, 0x24]


def test_nmi_wakes_a_halted_cpu_with_interrupts_off(guest: Guest) -> None:
    program = guest.start("nmi64")
    guest.gate(2, program.labels["nmi"])
    assert guest.run() is ExitReason.HALT
    assert not guest.cpu.runnable
    guest.log.clear()
    guest.cpu.nmi()
    assert guest.cpu.runnable
    assert guest.run() is ExitReason.HALT
    assert [port for port, _ in guest.outs()] == [0x23, 0x31, 0x24]


def test_interrupt_for_a_vcpu_that_is_not_loaded_is_taken_when_it_runs(guest: Guest) -> None:
    guest.start("stihlt64")
    guest.run()
    ap = guest.engine.vcpus[1]
    guest.place("ap16")
    ap.sipi(6)
    assert guest.run(1) is ExitReason.HALT
    guest.cpu.set_interrupt(VECTOR)  # vCPU 1 is loaded now
    guest.log.clear()
    assert guest.run(0) is ExitReason.HALT
    assert guest.order() == [f"ack {VECTOR:#x}", 0x50, 0x20]
    assert guest.engine.current == 0


def test_application_processor_waits_for_sipi_and_starts_at_its_vector(guest: Guest) -> None:
    ap = guest.engine.vcpus[1]
    guest.place("ap16")
    assert not ap.runnable
    assert guest.run(1) is ExitReason.HALT
    assert guest.log == []
    ap.sipi(6)
    assert ap.runnable
    assert guest.run(1) is ExitReason.HALT
    assert guest.outs() == [(0x60, 0)]
    cs = ap.registers().segments["cs"]
    assert (cs.selector, cs.base) == (0x600, 0x6000)


def test_second_sipi_is_ignored(guest: Guest) -> None:
    ap = guest.engine.vcpus[1]
    guest.place("ap16")
    ap.sipi(6)
    guest.run(1)
    rip = ap.registers().rip
    ap.sipi(7)
    assert ap.registers().rip == rip
    assert ap.registers().segments["cs"].base == 0x6000


def test_init_from_a_callback_of_the_same_vcpu_takes_effect_after_the_instruction(guest: Guest) -> None:
    ap = guest.engine.vcpus[1]
    guest.place("ap16")
    ap.sipi(6)
    guest.on_out[0x60] = lambda _value: ap.init()
    assert guest.run(1) is ExitReason.HALT
    assert not ap.halted
    assert not ap.runnable
    assert ap.registers().rip == 0xFFF0
    guest.on_out.clear()
    ap.sipi(6)
    assert guest.run(1) is ExitReason.HALT
    assert len(guest.outs(0x60)) == 2


def test_bootstrap_processor_runs_from_the_reset_vector_after_init(guest: Guest) -> None:
    guest.cpu.init()
    assert guest.cpu.runnable
    registers = guest.cpu.registers()
    assert (registers.segments["cs"].base, registers.rip) == (0xFFFF_0000, 0xFFF0)


def test_two_vcpus_share_memory_and_see_each_others_code(guest: Guest) -> None:
    smp1 = guest.place("smp1")
    guest.start("smp0", rbx=smp1.labels["patch"])
    guest.engine.yield_on_pause = True
    guest.on_out[0x30] = lambda _value: guest.engine.vcpus[1].sipi(6)
    reasons = set()
    for turn in range(1000):
        if not any(v.runnable for v in guest.engine.vcpus):
            break
        if guest.engine.vcpus[turn & 1].runnable:
            reasons.add(guest.run(turn & 1))
    assert guest.word() & 0xFFFF == 7
    assert reasons == {ExitReason.YIELD, ExitReason.HALT}


@pytest.mark.parametrize("vector", [0x30, 0xEF, 0xFF])
def test_any_vector_can_be_injected(guest: Guest, vector: int) -> None:
    guest.start("stihlt64")
    guest.cpu.set_interrupt(vector)
    guest.run()
    assert guest.outs(0x50) == [(0x50, vector)]


def test_intercepted_instruction_ends_the_shadow_of_sti(guest: Guest) -> None:
    guest.start("shadowexit64")
    guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert guest.order() == [f"ack {VECTOR:#x}", 0x50, 0x21]


def test_interrupt_armed_by_a_callback_breaks_a_chain_of_blocks(guest: Guest) -> None:
    guest.start("chained64", rcx=20)
    guest.on_out[0x31] = lambda _value: guest.cpu.set_interrupt(VECTOR) if len(guest.outs(0x31)) == 10 else None
    assert guest.run() is ExitReason.HALT
    assert guest.order() == [0x31] * 10 + [f"ack {VECTOR:#x}", 0x50] + [0x31] * 10


def test_nmi_raised_while_the_library_executes_one_instruction_comes_after_it(guest: Guest) -> None:
    program = guest.start("ltrirq32")
    guest.gate(VECTOR, program.labels["handler"], bits=32)
    guest.on_ack = lambda _vector: guest.cpu.nmi()
    guest.cpu.set_interrupt(VECTOR)
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert (guest.fault[0], guest.fault[3] & 1 << 8) == (2, 0)
    assert guest.fault[2] > program.labels["handler"]


def test_vcpus_do_not_see_each_others_mappings(guest: Guest) -> None:
    guest.start("alias0")
    guest.place("alias1")
    for i in range(512):
        struct.pack_into("<Q", guest.ram, 0x12000 + 8 * i, i << 12 | 7)
    struct.pack_into("<Q", guest.ram, 0x12000 + 8 * 7, 0x5007)
    struct.pack_into("<Q", guest.ram, 0xC000, 0x12007)
    struct.pack_into("<I", guest.ram, 0x5000, 0x5555)
    struct.pack_into("<I", guest.ram, 0x7000, 0x7777)
    guest.on_out[0x20] = lambda _value: guest.engine.kick()
    guest.engine.vcpus[1].sipi(6)
    assert guest.run(0) is ExitReason.KICKED
    assert guest.run(1) is ExitReason.HALT
    assert guest.run(0) is ExitReason.HALT
    assert guest.outs() == [(0x20, 0x5555), (0x61, 0x7777), (0x21, 0x5555)]
