"""Registers of the local APIC: where they are, which bits they have, and how they are declared.

Ref: Intel SDM vol. 3, table 11-1 (xAPIC addresses) and table 11-6 (x2APIC MSRs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from construct import Array, BitsInteger, BitStruct, ByteSwapped, Enum, Flag, Int32ul, Padded, Padding, Struct

if TYPE_CHECKING:
    from typing import Any

# Offsets in the xAPIC page; an x2APIC MSR is 0x800 + offset / 16.
ID = 0x020
VERSION = 0x030
TPR = 0x080
APR = 0x090
PPR = 0x0A0
EOI = 0x0B0
RRD = 0x0C0
LDR = 0x0D0
DFR = 0x0E0
SVR = 0x0F0
ISR = 0x100
TMR = 0x180
IRR = 0x200
ESR = 0x280
LVT_CMCI = 0x2F0
ICR = 0x300
ICR_HIGH = 0x310
LVT_TIMER = 0x320
LVT_THERMAL = 0x330
LVT_PERFORMANCE = 0x340
LVT_LINT0 = 0x350
LVT_LINT1 = 0x360
LVT_ERROR = 0x370
INITIAL_COUNT = 0x380
CURRENT_COUNT = 0x390
DIVIDE = 0x3E0
SELF_IPI = 0x3F0
PAGE_SIZE = 0x1000
STATE_SIZE = 0x400

MSR_APIC_BASE = 0x1B
MSR_TSC_DEADLINE = 0x6E0
MSR_X2APIC = 0x800

# IA32_APIC_BASE. Ref: SDM vol. 3, 11.4.4 and 11.12.1.
BASE_BSP = 1 << 8
BASE_X2APIC = 1 << 10
BASE_ENABLE = 1 << 11
BASE_RESERVED = 0x2FF
DEFAULT_BASE = 0xFEE0_0000

# Spurious-interrupt vector register. Ref: SDM vol. 3, 11.9.
SVR_ENABLED = 1 << 8
SVR_FOCUS_DISABLED = 1 << 9
SVR_SUPPRESS_EOI = 1 << 12
VERSION_SUPPRESS_EOI = 1 << 24

# Local vector table. Ref: SDM vol. 3, 11.5.1.
LVT_VECTOR = 0xFF
LVT_MODE = 0x700
LVT_STATUS = 1 << 12
LVT_POLARITY = 1 << 13
LVT_REMOTE_IRR = 1 << 14
LVT_LEVEL = 1 << 15
LVT_MASKED = 1 << 16
LVT_TIMER_MODE = 3 << 17
LVT_READ_ONLY = LVT_STATUS | LVT_REMOTE_IRR
_LINT = LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED
LVT_WRITABLE = {
    LVT_TIMER: LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE,
    LVT_THERMAL: LVT_VECTOR | LVT_MODE | LVT_MASKED,
    LVT_PERFORMANCE: LVT_VECTOR | LVT_MODE | LVT_MASKED,
    LVT_LINT0: _LINT,
    LVT_LINT1: _LINT,
    LVT_ERROR: LVT_VECTOR | LVT_MASKED,
    LVT_CMCI: LVT_VECTOR | LVT_MODE | LVT_MASKED,
}
"""The bits of each LVT entry that software may change."""

# Interrupt command register. Ref: SDM vol. 3, 11.6.1.
ICR_LOGICAL = 1 << 11
ICR_PENDING = 1 << 12
ICR_ASSERT = 1 << 14
ICR_LEVEL = 1 << 15
ICR_SHORTHAND_SHIFT = 18
ICR_RESERVED = 0xFFF3_2000
"""Of its low half. Bits 12 and 16, 17 are tolerated: older guests write them."""

# Error status register. Ref: SDM vol. 3, 11.5.3.
ESR_SEND_ILLEGAL_VECTOR = 1 << 5
ESR_RECEIVED_ILLEGAL_VECTOR = 1 << 6
ESR_ILLEGAL_REGISTER = 1 << 7

_MODES = {"fixed": 0, "lowest_priority": 1, "smi": 2, "reserved": 3, "nmi": 4, "init": 5, "startup": 6, "extint": 7}
_DeliveryMode = Enum(BitsInteger(3), **_MODES)

LvtEntry = ByteSwapped(
    BitStruct(
        Padding(13),
        "timer_mode" / Enum(BitsInteger(2), one_shot=0, periodic=1, tsc_deadline=2),
        "masked" / Flag,
        "level_triggered" / Flag,
        "remote_irr" / Flag,
        "active_low" / Flag,
        "delivery_status" / Flag,
        Padding(1),
        "delivery_mode" / _DeliveryMode,
        "vector" / BitsInteger(8),
    )
)
"""An entry of the local vector table. Ref: SDM vol. 3, figure 11-8."""

InterruptCommand = ByteSwapped(
    BitStruct(
        "destination" / BitsInteger(32),
        Padding(12),
        "shorthand" / Enum(BitsInteger(2), none=0, myself=1, all=2, others=3),
        Padding(2),
        "level_triggered" / Flag,
        "assert_level" / Flag,
        Padding(1),
        "delivery_status" / Flag,
        "logical" / Flag,
        "delivery_mode" / _DeliveryMode,
        "vector" / BitsInteger(8),
    )
)
"""The interrupt command register as an x2APIC has it; an xAPIC's destination is bits 63:56. Ref: figure 11-28."""

SpuriousVector = ByteSwapped(
    BitStruct(
        Padding(19),
        "suppress_eoi_broadcast" / Flag,
        Padding(2),
        "focus_disabled" / Flag,
        "enabled" / Flag,
        "vector" / BitsInteger(8),
    )
)
"""The spurious-interrupt vector register. Ref: SDM vol. 3, figure 11-23."""

ApicVersion = ByteSwapped(
    BitStruct(Padding(7), "suppress_eoi" / Flag, "max_lvt" / BitsInteger(8), Padding(8), "version" / BitsInteger(8))
)
"""The version register. Ref: SDM vol. 3, figure 11-7."""

ApicBase = ByteSwapped(
    BitStruct(
        Padding(12),
        "page" / BitsInteger(40),
        "enabled" / Flag,
        "x2apic" / Flag,
        Padding(1),
        "bsp" / Flag,
        Padding(8),
    )
)
"""IA32_APIC_BASE. Ref: SDM vol. 3, figures 11-5 and 11-26."""


def _register(count: int = 1) -> Any:
    slot = Padded(16, Int32ul)
    return slot if count == 1 else Array(count, slot)


LapicState = Struct(
    Padding(ID),
    "id" / _register(),
    "version" / _register(),
    Padding(TPR - VERSION - 0x10),
    "tpr" / _register(),
    "apr" / _register(),
    "ppr" / _register(),
    "eoi" / _register(),
    "rrd" / _register(),
    "ldr" / _register(),
    "dfr" / _register(),
    "svr" / _register(),
    "isr" / _register(8),
    "tmr" / _register(8),
    "irr" / _register(8),
    "esr" / _register(),
    Padding(LVT_CMCI - ESR - 0x10),
    "lvt_cmci" / _register(),
    "icr" / _register(),
    "icr_high" / _register(),
    "lvt_timer" / _register(),
    "lvt_thermal" / _register(),
    "lvt_performance" / _register(),
    "lvt_lint0" / _register(),
    "lvt_lint1" / _register(),
    "lvt_error" / _register(),
    "initial_count" / _register(),
    "current_count" / _register(),
    Padding(DIVIDE - CURRENT_COUNT - 0x10),
    "divide" / _register(),
    Padding(STATE_SIZE - DIVIDE - 0x10),
)
"""`struct kvm_lapic_state`: the register page as KVM_GET_LAPIC gives it."""


def words(bits: int) -> list[int]:
    """A 256-bit register as its eight 32-bit words, lowest first."""
    return [bits >> 32 * i & 0xFFFF_FFFF for i in range(8)]


def from_words(parts: list[int]) -> int:
    """The other way round."""
    bits = 0
    for i, word in enumerate(parts):
        bits |= (word & 0xFFFF_FFFF) << 32 * i
    return bits
