"""CPU models and features by QEMU's names: what `-cpu MODEL,+feature,-feature` asks for, as CPUID bits.

The engine says what it executes; a model can only hide some of it. A feature that is asked for and not there is a
warning, as QEMU's TCG gives it, and stays off.
Ref: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Leaf = tuple[int, int, int, int]

EAX, EBX, ECX, EDX = range(4)
AMD_COUNTERS = range(0xC001_0000, 0xC001_0008)
"""PerfEvtSel[3:0] and PerfCtr[3:0]. Ref: AMD APM vol. 2, 13.2."""
AMD_EXTENDED_COUNTERS = range(0xC001_0200, 0xC001_020C)
FREQUENCY_LEAVES = (0x15, 0x16)
VENDOR_LEAVES = (0, 0x8000_0000)


class Model(NamedTuple):
    """A named model. `vendor` None: the engine's; `signature`: CPUID.1:EAX; `hide`: features it never had."""

    about: str
    vendor: str | None = None
    signature: int | None = None
    hide: str = ""


MODELS = {
    "qemu64": Model("all that the engine executes"),
    "max": Model("the same"),
    "Haswell": Model(
        "Intel Core Processor (Haswell)",
        "GenuineIntel",
        0x3_06_C4,
        "adx rdseed smap sha-ni clflushopt clwb umip gfni vaes rdpid sse4a 3dnowprefetch pdpe1gb misalignsse",
    ),
    "Opteron_G1": Model(
        "AMD Opteron 240 (Gen 1 Class Opteron)",
        "AuthenticAMD",
        0x0F_61,
        "ssse3 cx16 sse4.1 sse4.2 movbe popcnt aes xsave avx f16c rdrand pclmulqdq fsgsbase smep smap erms adx rdtscp "
        "pdpe1gb lahf-lm abm sse4a 3dnowprefetch invtsc spec-ctrl "
        "arch-capabilities",
    ),
}


class Feature(NamedTuple):
    """A CPUID bit."""

    leaf: int
    register: int
    bit: int


def _named(leaf: int, register: int, names: str) -> dict[str, Feature]:
    """`names`: one per bit from bit 0; `.` for none; alternatives joined by `/`."""
    return {
        name: Feature(leaf, register, bit)
        for bit, alternatives in enumerate(names.split())
        for name in alternatives.split("/")
        if name != "."
    }


FEATURES = {
    **_named(
        1,
        EDX,
        "fpu vme de pse tsc msr pae mce cx8 apic . sep mtrr pge mca cmov pat pse36 pn clflush . ds acpi mmx fxsr sse "
        "sse2 ss ht tm ia64 pbe",
    ),
    **_named(
        1,
        ECX,
        "pni/sse3 pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid . fma cx16 xtpr pdcm . pcid dca sse4.1 "
        "sse4.2 x2apic movbe popcnt tsc-deadline aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    **_named(
        7,
        EBX,
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 . smep bmi2 erms invpcid rtm . . mpx . avx512f avx512dq rdseed adx smap "
        "avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    **_named(7, ECX, ". . umip pku ospke waitpkg . . gfni vaes . . . . . . la57 . . . . . rdpid"),
    **_named(
        7,
        EDX,
        ". . . . fsrm . . . . . md-clear . . . serialize . . . pconfig . . . . . . . spec-ctrl stibp . "
        "arch-capabilities",
    ),
    **_named(
        0x8000_0001, EDX, ". . . . . . . . . . . syscall . . . . . . . . nx . mmxext . . fxsr-opt pdpe1gb rdtscp . lm"
    ),
    **_named(
        0x8000_0001,
        ECX,
        "lahf-lm cmp-legacy svm extapic cr8legacy abm/lzcnt sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt",
    ),
    **_named(0x8000_0007, EDX, ". . . . . . . . invtsc"),
    **_named(0x8000_0008, EBX, ". . . . . . . . . wbnoinvd . . ibpb"),
    **_named(6, EAX, ". . arat"),
}
_PLAIN = ("kvm", "enforce", "check", "migratable", "host-cache-info", "host-phys-bits", "pmu", "apic-id")
"""Properties of QEMU's CPUs that are no CPUID bits: `off` (or `check`) is what is here anyway."""


class CpuModel:
    """What to hide. `warnings`: features that were asked for and are not there."""

    def __init__(self, model: str | None, options: Mapping[str, str]) -> None:
        if model is not None and model not in MODELS:
            if model in ("host", "kvm64"):
                raise ConfigError(f"CPU model '{model}' requires KVM")
            raise ConfigError(f"unable to find CPU model '{model}'; -cpu help lists them")
        self.name = model or "qemu64"
        chosen = MODELS[self.name]
        self._signature = chosen.signature
        self._vendor = chosen.vendor
        self._hide: dict[tuple[int, int], int] = {}
        for name in chosen.hide.split():
            self._switch_off(FEATURES[name])
        self._wanted: list[str] = []
        for name, value in options.items():
            name = name.replace("_", "-")
            if name == "vendor":
                if len(value) != 12 or not value.isascii():
                    raise ConfigError("Property 'vendor' expects 12 characters")
                self._vendor = value
                continue
            if value not in ("on", "off"):
                if name in _PLAIN or name in ("level", "family", "model", "stepping"):
                    raise ConfigError(f"Property 'qemu64-x86_64-cpu.{name}' cannot be set to '{value}' here")
                raise ConfigError(f"Parameter '{name}' expects 'on' or 'off'")
            if name in _PLAIN:
                continue
            feature = FEATURES.get(name)
            if feature is None:
                raise ConfigError(f"Property 'qemu64-x86_64-cpu.{name}' not found")
            if value == "off":
                self._switch_off(feature)
            else:
                self._wanted.append(name)

    def _switch_off(self, feature: Feature) -> None:
        key = (feature.leaf, feature.register)
        self._hide[key] = self._hide.get(key, 0) | 1 << feature.bit

    @property
    def x2apic(self) -> bool:
        """Whether the local APICs have x2APIC mode."""
        return not self.hides("x2apic")

    @property
    def tsc_deadline(self) -> bool:
        """Whether the local APIC timers have TSC-deadline mode."""
        return not self.hides("tsc-deadline")

    def hides(self, name: str) -> bool:
        """Whether a feature was switched off."""
        feature = FEATURES[name]
        return bool(self._hide.get((feature.leaf, feature.register), 0) >> feature.bit & 1)

    def has_idle_msr(self, msr: int) -> bool:
        """Whether `msr` is one that this CPU has and that does nothing here: AMD's performance counters, which every
        CPU of that vendor has, stand still.
        """
        return self._vendor == "AuthenticAMD" and (msr in AMD_COUNTERS or msr in AMD_EXTENDED_COUNTERS)

    def show(self, leaf: int, values: Leaf) -> Leaf:
        """CPUID leaf `leaf` as this model has it."""
        if leaf in FREQUENCY_LEAVES and self.hides("invtsc"):
            return 0, 0, 0, 0
        a, b, c, d = (values[r] & ~self._hide.get((leaf, r), 0) for r in range(4))
        if leaf == 1 and self._signature is not None:
            a = self._signature
        elif leaf in VENDOR_LEAVES and self._vendor is not None:
            b, d, c = (int.from_bytes(self._vendor[i : i + 4].encode(), "little") for i in (0, 4, 8))
        return a, b, c, d

    def missing(self, native: Callable[[int], Leaf]) -> list[str]:
        """QEMU's warnings for features that were asked for and that the engine has not."""
        rows = []
        for name in self._wanted:
            feature = FEATURES[name]
            if not native(feature.leaf)[feature.register] >> feature.bit & 1:
                register = ("EAX", "EBX", "ECX", "EDX")[feature.register]
                rows.append(
                    "TCG doesn't support requested feature: "
                    f"CPUID[eax={feature.leaf:02X}h].{register}.{name} [bit {feature.bit}]"
                )
        return rows
