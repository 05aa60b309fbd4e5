"""Model-specific registers that belong to the CPU itself.

Those of the local APIC (APIC_BASE, x2APIC, TSC_DEADLINE) and any other unknown to this file are the machine's: they
go to `CpuCallbacks.rdmsr` and `wrmsr`. What must fault faults: reserved bits, addresses that are not canonical.

Ref: SDM volume 4, 2.1; SDM volume 3, 11.11 (MTRRs), 15.3 (machine check), 17.17.3 (TSC_ADJUST).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.cpu.unicorn import layout as at

if TYPE_CHECKING:
    from vmm.cpu.unicorn.vcpu import UnicornVcpu

TSC: Final = 0x10
PLATFORM_ID: Final = 0x17
EBL_CR_POWERON: Final = 0x2A
SMI_COUNT: Final = 0x34
TSC_ADJUST: Final = 0x3B
SPEC_CTRL: Final = 0x48
PRED_CMD: Final = 0x49
UCODE_WRITE: Final = 0x79
UCODE_REV: Final = 0x8B
MTRR_CAP: Final = 0xFE
ARCH_CAPABILITIES: Final = 0x10A
SYSENTER_CS: Final = 0x174
SYSENTER_ESP: Final = 0x175
SYSENTER_EIP: Final = 0x176
MCG_CAP: Final = 0x179
MCG_STATUS: Final = 0x17A
MCG_CTL: Final = 0x17B
PERF_STATUS: Final = 0x198
MISC_ENABLE: Final = 0x1A0
DEBUGCTL: Final = 0x1D9
MTRR_PHYS_BASE0: Final = 0x200
MTRR_FIXED: Final = (0x250, 0x258, 0x259, *range(0x268, 0x270))
PAT: Final = 0x277
MTRR_DEF_TYPE: Final = 0x2FF
MC0_CTL: Final = 0x400
EFER: Final = 0xC000_0080
STAR: Final = 0xC000_0081
LSTAR: Final = 0xC000_0082
CSTAR: Final = 0xC000_0083
FMASK: Final = 0xC000_0084
FS_BASE: Final = 0xC000_0100
GS_BASE: Final = 0xC000_0101
KERNEL_GS_BASE: Final = 0xC000_0102
TSC_AUX: Final = 0xC000_0103

EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NX: Final = 1 << 11

_SPEC_CTRL_BITS: Final = 0b111 | 1 << 10
"""IBRS, STIBP, SSBD, BHI_DIS_S."""
_PRED_CMD_IBPB: Final = 1
NOT_VULNERABLE: Final = sum(1 << bit for bit in (0, 1, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62))
"""RDCL_NO, IBRS_ALL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO,
RFDS_NO, ITS_NO: translated code has none of these errata, and what a guest does against them would not reach the host's
CPU. It would cost: two page tables for each process are two TLB flushes for each system call."""

_U64: Final = (1 << 64) - 1
_PHYSICAL: Final = (1 << 40) - 1
MTRR_COUNT: Final = 8
BANKS: Final = 10
_MCG_CTL_P: Final = 1 << 8
_MEMORY_TYPES: Final = frozenset((0, 1, 4, 5, 6))
_PAT_TYPES: Final = frozenset((0, 1, 4, 5, 6, 7))

IN_ENV: Final[dict[int, int]] = {
    SYSENTER_ESP: at.ENV_SYSENTER_ESP >> 3,
    SYSENTER_EIP: at.ENV_SYSENTER_EIP >> 3,
    MISC_ENABLE: at.ENV_MISC_ENABLE >> 3,
    PAT: at.ENV_PAT >> 3,
    EFER: at.ENV_EFER >> 3,
    STAR: at.ENV_STAR >> 3,
    LSTAR: at.ENV_LSTAR >> 3,
    CSTAR: at.ENV_CSTAR >> 3,
    FMASK: at.ENV_FMASK >> 3,
    FS_BASE: at.ENV_FS_BASE >> 3,
    GS_BASE: at.ENV_GS_BASE >> 3,
    KERNEL_GS_BASE: at.ENV_KERNEL_GS_BASE >> 3,
    TSC_AUX: at.ENV_TSC_AUX >> 3,
}
"""MSR: index of its 64-bit word in the CPU state. The library reads these itself and reads them right."""

_CANONICAL: Final = frozenset((SYSENTER_ESP, SYSENTER_EIP, LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE))
_CONSTANT: Final[dict[int, int]] = {
    PLATFORM_ID: 0,
    SMI_COUNT: 0,
    MTRR_CAP: MTRR_COUNT | 1 << 8 | 1 << 10,
    MCG_CAP: BANKS | _MCG_CTL_P,
    PERF_STATUS: 1000 | 4 << 40,
    ARCH_CAPABILITIES: NOT_VULNERABLE,
}
_ZERO_OR_IGNORED: Final = frozenset((EBL_CR_POWERON, DEBUGCTL))
_PLAIN: Final = frozenset((MTRR_DEF_TYPE, MCG_STATUS, MCG_CTL, UCODE_REV, *_ZERO_OR_IGNORED, *MTRR_FIXED))


def permission_bitmap() -> bytes:
    """SVM's MSR bitmap: bit 2n is set to intercept reads of MSR n, bit 2n+1 writes; all but reads of `IN_ENV`."""
    bitmap = bytearray(b"\xff" * at.MSRPM_SIZE)
    for number in IN_ENV:
        bit = 2 * (number if number < 0x2000 else number - 0xC000_0000 + 0x2000)
        bitmap[bit >> 3] &= ~(1 << (bit & 7))
    return bytes(bitmap)


def power_on() -> dict[int, int]:
    """The MSRs that the library does not keep, as they are after power-on. INIT leaves them as they are."""
    values = dict.fromkeys((*_PLAIN, TSC_ADJUST, SPEC_CTRL), 0)
    values[MCG_CTL] = _U64
    values[UCODE_REV] = 1 << 32
    values.update(dict.fromkeys(range(MTRR_PHYS_BASE0, MTRR_PHYS_BASE0 + 2 * MTRR_COUNT), 0))
    values.update(dict.fromkeys(range(MC0_CTL, MC0_CTL + 4 * BANKS), 0))
    values.update(dict.fromkeys(range(MC0_CTL, MC0_CTL + 4 * BANKS, 4), _U64))
    return values


def canonical(address: int) -> bool:
    """Whether bits 63:47 are all equal."""
    return address < 1 << 47 or address >= _U64 + 1 - (1 << 47)


def read(vcpu: UnicornVcpu, number: int) -> int | None:
    """The value of a CPU MSR. None: it is not one of them."""
    word = IN_ENV.get(number)
    if word is not None:
        return vcpu.quads[word]
    value = vcpu.msrs.get(number)
    if value is not None:
        return value
    if number == TSC:
        return vcpu.tsc()
    if number == SYSENTER_CS:
        return vcpu.words[at.ENV_SYSENTER_CS >> 2]
    return _CONSTANT.get(number)


def write(vcpu: UnicornVcpu, number: int, value: int) -> bool | None:
    """Set a CPU MSR. False: #GP(0). None: it is not one of them."""
    word = IN_ENV.get(number)
    if word is not None:
        return _write_env(vcpu, number, word, value)
    if number in vcpu.msrs:
        return _write_kept(vcpu, number, value)
    if number == TSC:
        delta = (value - vcpu.tsc()) & _U64
        vcpu.shift_tsc(delta)
        vcpu.msrs[TSC_ADJUST] = (vcpu.msrs[TSC_ADJUST] + delta) & _U64
        return True
    if number == SYSENTER_CS:
        vcpu.words[at.ENV_SYSENTER_CS >> 2] = value & 0xFFFF_FFFF
        return True
    if number == UCODE_WRITE:
        return True
    if number == PRED_CMD:
        return not value & ~_PRED_CMD_IBPB
    return False if number in _CONSTANT else None


def _write_env(vcpu: UnicornVcpu, number: int, word: int, value: int) -> bool:
    if number in _CANONICAL:
        if not canonical(value):
            return False
    elif number == EFER:
        return _write_efer(vcpu, value)
    elif number == PAT:
        if not all(byte in _PAT_TYPES for byte in value.to_bytes(8, "little")):
            return False
    elif number in (FMASK, TSC_AUX) and value >> 32:
        return False
    vcpu.quads[word] = value
    return True


def _write_efer(vcpu: UnicornVcpu, value: int) -> bool:
    word = at.ENV_EFER >> 3
    old = vcpu.quads[word]
    if value & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NX):
        return False
    if (value ^ old) & EFER_LME and vcpu.quads[at.ENV_CR0 >> 3] >> 31:
        return False
    vcpu.quads[word] = (value & ~EFER_LMA) | (old & EFER_LMA)
    if (value ^ old) & EFER_NX:
        vcpu.flush_tlb()
    return True


def _write_kept(vcpu: UnicornVcpu, number: int, value: int) -> bool:
    if number == TSC_ADJUST:
        vcpu.shift_tsc((value - vcpu.msrs[TSC_ADJUST]) & _U64)
    elif number == SPEC_CTRL:
        if value & ~_SPEC_CTRL_BITS:
            return False
    elif number in _ZERO_OR_IGNORED or number == UCODE_REV:
        return value == 0 or number == UCODE_REV
    elif number in MTRR_FIXED:
        if not all(byte in _MEMORY_TYPES for byte in value.to_bytes(8, "little")):
            return False
    elif number == MTRR_DEF_TYPE:
        if value & ~0xCFF or value & 0xFF not in _MEMORY_TYPES:
            return False
    elif number == MCG_CTL:
        if value not in (0, _U64):
            return False
    elif MTRR_PHYS_BASE0 <= number < MTRR_PHYS_BASE0 + 2 * MTRR_COUNT:
        low = 0x7FF if number & 1 else 0xF00
        if value & ~_PHYSICAL or value & low or (not number & 1 and value & 0xFF not in _MEMORY_TYPES):
            return False
    elif number >= MC0_CTL:
        kind = number & 3
        if kind == 0 and value not in (0, _U64, _U64 - 1):  # Linux clears bit 0 of bank 4 for an old erratum
            return False
        if kind == 1 and value:
            return False
    vcpu.msrs[number] = value
    return True
