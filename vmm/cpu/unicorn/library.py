"""Loading libunicorn: the file of the installed wheel, its version, and the symbols that we call inside it.

The Python binding of the wheel is not imported: it loads constants of ten architectures, and none of its wrappers is
used. Functions that return quickly and never call back are `PYFUNCTYPE` (the GIL stays held).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
import sys
import time
from ctypes import PYFUNCTYPE, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from vmm.cpu.unicorn import layout
from vmm.errors import EngineRefused

REMEDY = "Install the build that vintx knows: pip install 'unicorn==2.1.4'"

# Each has one more argument, the hook's data. We give none, and an argument that is not converted costs nothing.
MmioRead = ctypes.CFUNCTYPE(c_uint64, c_void_p, c_uint64, c_uint32)
MmioWrite = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_uint64)
PortRead = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int)
PortWrite = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32)
ExitHandler = ctypes.CFUNCTYPE(c_int, c_uint32)

_INTERNAL: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "cpu_reset": (None, (c_void_p,)),
    "cpu_get_tsc_x86_64": (c_uint64, (c_void_p,)),
    "cpu_x86_cpuid_x86_64": (None, (c_void_p, c_uint32, c_uint32, c_void_p, c_void_p, c_void_p, c_void_p)),
    "cpu_x86_update_cr0_x86_64": (None, (c_void_p, c_uint32)),
    "cpu_x86_update_cr4_x86_64": (None, (c_void_p, c_uint32)),
    "cpu_x86_update_dr7_x86_64": (None, (c_void_p, c_uint32)),
    "helper_read_eflags_x86_64": (c_uint64, (c_void_p,)),
    "tb_flush_x86_64": (None, (c_void_p,)),
    "tb_invalidate_phys_range_x86_64": (None, (c_void_p, c_uint64, c_uint64)),
    "tlb_flush_x86_64": (None, (c_void_p,)),
    # Called by machine code only:
    "cpu_exec_x86_64": (c_int, (c_void_p, c_void_p)),
    "do_interrupt_x86_hardirq_x86_64": (None, (c_void_p, c_int, c_int)),
    "cpu_ldub_code_x86_64": (c_uint32, (c_void_p, c_uint64)),
    "gen_intermediate_code_x86_64": (None, (c_void_p, c_void_p, c_int)),
    "helper_check_iob_x86_64": (None, (c_void_p, c_uint32)),
    "helper_check_iow_x86_64": (None, (c_void_p, c_uint32)),
    "helper_check_iol_x86_64": (None, (c_void_p, c_uint32)),
    "raise_exception_err_x86_64": (None, (c_void_p, c_int, c_int)),
    "tb_gen_code_x86_64": (None, ()),  # only looked at
    "tb_invalidate_phys_page_fast_x86_64": (None, ()),
    "tlb_set_dirty_x86_64": (None, ()),  # only looked at
    "tlb_protect_code_x86_64": (None, ()),
    "tcg_flush_softmmu_tlb_x86_64": (None, (c_void_p,)),
    "vm_start_x86_64": (None, (c_void_p,)),
    "x86_cpu_do_interrupt_x86_64": (None, (c_void_p,)),
    "x86_update_hflags_x86_64": (None, (c_void_p,)),
}
_PUBLIC: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "uc_version": (c_uint32, (c_void_p, c_void_p)),
    "uc_open": (c_int, (c_int, c_int, c_void_p)),
    "uc_close": (c_int, (c_void_p,)),
    "uc_mem_map_ptr": (c_int, (c_void_p, c_uint64, c_size_t, c_uint32, c_void_p)),
    "uc_mmio_map": (c_int, (c_void_p, c_uint64, c_size_t, c_void_p, c_void_p, c_void_p, c_void_p)),
    "uc_reg_write": (c_int, (c_void_p, c_int, c_void_p)),
    "uc_emu_start": (c_int, (c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)),  # only looked at
    "uc_ctl": (c_int, (c_void_p, c_uint32, c_int)),
    "uc_hook_add": (c_int, (c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_uint64, c_uint64)),
}


class Library:
    """The loaded library. Attributes are the C functions by name, `_x86_64` dropped from internal ones."""

    def __init__(self, path: Path) -> None:
        try:
            self.dll = ctypes.CDLL(str(path))
        except OSError as error:
            raise EngineRefused("unicorn", f"{path} cannot be loaded ({error})", REMEDY) from error
        self.path = path
        self._addresses: dict[str, int] = {}
        for table in (_PUBLIC, _INTERNAL):
            for name, (result, arguments) in table.items():
                self._bind(name, result, arguments)
            if table is _PUBLIC:
                self._check_version()
        self._tsc_base = self._tsc_and_time()
        # Variadic in C: the instruction to hook is the eighth argument.
        self.uc_hook_insn_add: Any = PYFUNCTYPE(
            c_int, c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_uint64, c_uint64, c_int
        )(self._addresses["uc_hook_add"])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"libunicorn function {name!r} is not bound")

    def _bind(self, name: str, result: type | None, arguments: tuple[type, ...]) -> None:
        try:
            address = ctypes.cast(getattr(self.dll, name), c_void_p).value
        except AttributeError:
            raise EngineRefused("unicorn", f"{self.path} does not export {name}", REMEDY) from None
        assert address is not None
        self._addresses[name] = address
        setattr(self, name.removesuffix("_x86_64"), PYFUNCTYPE(result, *arguments)(address))

    def _check_version(self) -> None:
        word = self.uc_version(None, None)
        version = (word >> 24, word >> 16 & 0xFF, word >> 8 & 0xFF)
        if version != layout.VERSION:
            found, wanted = (".".join(map(str, v)) for v in (version, layout.VERSION))
            raise EngineRefused("unicorn", f"{self.path} is version {found}, not {wanted}", REMEDY)

    def _tsc_and_time(self) -> tuple[int, int]:
        """The host's TSC and CLOCK_MONOTONIC (ns) at the same moment, as well as can be."""
        best = None
        for _ in range(5):
            before, tsc, after = time.monotonic_ns(), self.cpu_get_tsc(None), time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, tsc, (before + after) // 2)
        assert best is not None
        return best[1:]

    def tsc_hz(self) -> float:
        """Frequency of the host's TSC, measured since the library was loaded; waits until that is 20 ms ago."""
        tsc, since = self._tsc_base
        elapsed = time.monotonic_ns() - since
        if elapsed < 20_000_000:
            time.sleep((20_000_000 - elapsed) / 1e9)
        now_tsc, now = self._tsc_and_time()
        return (now_tsc - tsc) * 1e9 / (now - since)

    def address(self, name: str) -> int:
        """Address of a function, by its full symbol name."""
        return self._addresses[name]


def find() -> Path:
    """The shared library of the installed wheel. EngineRefused when this host or the installation has none."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        host = f"{sys.platform} on {platform.machine()}"
        raise EngineRefused("unicorn", f"it is known for Linux on x86_64 only, this is {host}", "Use -accel qtest")
    spec = importlib.util.find_spec("unicorn")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise EngineRefused("unicorn", "the Python package 'unicorn' is not installed", REMEDY)
    path = Path(places[0]) / "lib" / "libunicorn.so.2"
    if not path.is_file():
        raise EngineRefused("unicorn", f"{path} is missing: this is not the wheel from PyPI", REMEDY)
    return path


@functools.cache
def load() -> Library:
    """The library, loaded once in a process."""
    return Library(find())
