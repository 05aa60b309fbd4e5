"""What CPUID tells a guest: what this engine executes, and nothing else.

The library's default model is a Haswell without what TCG lacks. Corrections, each found by running the instructions:

* BMI1 and BMI2 are announced, but their VEX forms raise #UD (a kernel's decompressor dies of it): off.
* XSAVE leaf 0xd announces AVX state that CPUID.1 does not have: off.
* x2APIC, the TSC deadline and TSC_ADJUST are models of ours: on. Hypervisor: on.
* The TSC is the host's, at one rate for all vCPUs: invariant, and its frequency is in leaves 0x15 and 0x16, so that
  guests need not measure it, nor doubt it when their host is busy.
* OSXSAVE follows CR4.
"""

from __future__ import annotations

import ctypes
from fractions import Fraction
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.cpu.unicorn.library import Library

Leaf = tuple[int, int, int, int]

LEAF1_ECX_CLEAR: Final = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 17 | 1 << 27
"""MONITOR, VMX, SMX, PCID, OSXSAVE."""
LEAF1_ECX_SET: Final = 1 << 21 | 1 << 24 | 1 << 31
"""x2APIC, TSC deadline, hypervisor."""
LEAF1_OSXSAVE: Final = 1 << 27
LEAF7_EBX_CLEAR: Final = 1 << 3 | 1 << 8
"""BMI1, BMI2."""
LEAF7_EBX_SET: Final = 1 << 1
"""TSC_ADJUST."""
LEAF7_EDX_SET: Final = 1 << 26 | 1 << 29
"""SPEC_CTRL (with IBPB) and ARCH_CAPABILITIES, which says that there is nothing to mitigate."""
LEAF7_SUBLEAVES: Final = 2
LEAF7_2_EDX: Final = 1 << 4
"""BHI_CTRL: Linux sets a bit once, where it would run a loop at each system call in spite of BHI_NO."""
EXT7_EDX_SET: Final = 1 << 8
"""Invariant TSC: the host's, at one rate for all vCPUs."""
TSC_LEAF: Final = 0x15
FREQUENCY_LEAF: Final = 0x16
HIGHEST_LEAF: Final = FREQUENCY_LEAF
BUS_HZ: Final = 1_000_000_000
"""What local APIC timers count, before they divide, and what the crystal is as near as can be."""
_LARGEST_NUMERATOR: Final = 4_200
"""Linux multiplies it by the crystal's kHz in 32 bits."""
EXT1_ECX_CLEAR: Final = 1 << 2
"""SVM."""
XCR0_VALID: Final = 0b11
"""x87 and SSE."""

_SUBLEAVES: Final = {0x4: 4, 0x7: 2, 0xB: 2, 0xD: 63}
"""Leaves that look at ECX, and how far. Others are asked with 0, so that the cache stays small."""


class CpuidTable:
    """Leaves as the engine executes them, before the machine adds its topology. `osxsave` is added by `get`."""

    def __init__(self, library: Library, env: int, tsc_hz: Callable[[], float]) -> None:
        self._tsc_hz = tsc_hz
        self._call = library.cpu_x86_cpuid
        self._env = env
        self._registers = (ctypes.c_uint32 * 4)()
        base = ctypes.addressof(self._registers)
        self._pointers = (base, base + 4, base + 8, base + 12)
        self._cache: dict[int, Leaf] = {}
        self._engine_limit = self._raw(0, 0)[0]
        self.limit = max(self._engine_limit, HIGHEST_LEAF)
        self.extended_limit = self._raw(0x8000_0000, 0)[0]

    def _raw(self, leaf: int, subleaf: int) -> Leaf:
        self._call(self._env, leaf, subleaf, *self._pointers)
        eax, ebx, ecx, edx = self._registers
        return eax, ebx, ecx, edx

    def get(self, leaf: int, subleaf: int, osxsave: bool) -> Leaf:
        """EAX, EBX, ECX, EDX. A leaf beyond the limits reads as the highest basic one does (SDM, CPUID)."""
        if 0x4000_0000 <= leaf < 0x4000_0100:
            return 0, 0, 0, 0
        if leaf > (self.extended_limit if leaf >= 0x8000_0000 else self.limit):
            leaf = self.limit
        last = _SUBLEAVES.get(leaf, 0)
        subleaf = min(subleaf, last + 1) if last else 0
        key = leaf << 8 | subleaf
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = self._filter(leaf, subleaf, self._raw(leaf, subleaf))
        if leaf == 1 and osxsave:
            return found[0], found[1], found[2] | LEAF1_OSXSAVE, found[3]
        return found

    def _filter(self, leaf: int, subleaf: int, raw: Leaf) -> Leaf:
        eax, ebx, ecx, edx = raw
        if leaf == 0:
            eax = self.limit
        elif leaf == TSC_LEAF:
            return *tsc_ratio(self._tsc_hz()), 0
        elif leaf == FREQUENCY_LEAF:
            mhz = round(self._tsc_hz() / 1e6)
            return mhz, mhz, 0, 0
        elif self._engine_limit < leaf <= HIGHEST_LEAF:
            return 0, 0, 0, 0
        elif leaf == 1:
            ecx = (ecx & ~LEAF1_ECX_CLEAR) | LEAF1_ECX_SET
        elif leaf == 7:
            if subleaf:
                return 0, 0, 0, LEAF7_2_EDX if subleaf == LEAF7_SUBLEAVES else 0
            eax = LEAF7_SUBLEAVES
            ebx = (ebx & ~LEAF7_EBX_CLEAR) | LEAF7_EBX_SET
            edx |= LEAF7_EDX_SET
        elif leaf == 0xD:
            if subleaf == 0:
                eax, ebx, ecx, edx = XCR0_VALID, 0x240, 0x240, 0
            elif subleaf > 1:
                return 0, 0, 0, 0
        elif leaf == 0x8000_0001:
            ecx &= ~EXT1_ECX_CLEAR
        elif leaf == 0x8000_0007:
            edx |= EXT7_EDX_SET
        return eax, ebx, ecx, edx


def tsc_ratio(hz: float) -> tuple[int, int, int]:
    """Denominator, numerator and crystal of leaf 0x15 for a TSC of `hz`.

    The ratio must be one that a guest can multiply; what it is off by is put into the crystal.
    """
    ratio = Fraction(hz / BUS_HZ)
    nearest = ratio.limit_denominator(max(1, int(_LARGEST_NUMERATOR / ratio) - 1))
    return nearest.denominator, nearest.numerator, round(hz / 1000 / nearest) * 1000
