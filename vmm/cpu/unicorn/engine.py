"""The engine: guest memory, hooks, and the loop that runs a vCPU."""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import TYPE_CHECKING, Any, Final

from vmm.cpu.engine import ExitReason
from vmm.cpu.unicorn import layout as at
from vmm.cpu.unicorn import msr, selfmod, thunk
from vmm.cpu.unicorn.alarm import Alarm
from vmm.cpu.unicorn.cpuid import CpuidTable
from vmm.cpu.unicorn.exits import ExitHandlers
from vmm.cpu.unicorn.library import ExitHandler, Library, MmioRead, MmioWrite, PortRead, PortWrite, load
from vmm.cpu.unicorn.vcpu import UnicornVcpu
from vmm.errors import EngineError, EngineRefused
from vmm.memory import FOUR_GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.cpu.engine import CpuCallbacks, EngineVcpu

PAGE: Final = 4096
PHYSICAL_BITS: Final = 40
"""Guest-physical addresses that paging can name; beyond, TCG finds reserved bits set."""
_HIDDEN: Final = 1 << 41
"""Where VMCB and MSR bitmap live: no guest address leads here."""
_SLICE_NS: Final = 5_000_000
"""At least this often the loop comes back to Python, so that its signal handlers (Ctrl-C) and other threads run. They
switch as often anyway: a guest runs with the GIL held, because letting go of it is a fifth of what an exit costs."""
_IREQ: Final = at.CS_INTERRUPT_REQUEST >> 2
_HALTED: Final = at.CS_HALTED >> 2
_EXCEPTION: Final = at.CS_EXCEPTION >> 2
_MINUS_1: Final = 0xFFFF_FFFF


class UnicornEngine:
    """See `vmm.cpu.engine.Engine`.

    `ram` is a writable buffer (an anonymous mmap) that the guest sees from address 0 to `ram_size`, a multiple of
    4096; the buffer cannot be closed before the engine is. With `below` the guest sees only so many bytes from address
    0 and the rest from 4 GiB. All other addresses of the guest, up to 40 bits, go to
    `callbacks.mmio_read` and `mmio_write`. EngineRefused if the installed library must not be used.
    """

    name = "unicorn"

    def __init__(
        self,
        ram: Any,
        ram_size: int,
        ncpus: int,
        callbacks: CpuCallbacks,
        *,
        below: int | None = None,
        check_library: bool = True,
    ) -> None:
        if ram_size <= 0 or ram_size % PAGE or ram_size > 1 << PHYSICAL_BITS:
            raise EngineError(f"guest RAM of {ram_size:#x} bytes: a multiple of {PAGE} below 1 TiB is needed")
        if ncpus < 1:
            raise EngineError(f"{ncpus} vCPUs: at least one is needed")
        self.library: Library = load()
        if check_library:
            from vmm.cpu.unicorn.selftest import self_test  # the self-test runs engines of its own

            self_test()
        self.callbacks = callbacks
        self.error: str | None = None
        self.current = 0
        self.running = False
        self.armed = -1
        self.shutdown = False
        self.loaded: UnicornVcpu | None = None
        self._failure: BaseException | None = None
        self._kept: list[Any] = []
        self._resources = contextlib.ExitStack()
        try:
            self._open(ram, ram_size, ram_size if below is None else below)
            self._vcpus = tuple(UnicornVcpu(self, i, self.reset_image) for i in range(ncpus))
            self.vcpus: Sequence[EngineVcpu] = self._vcpus
            self._alarm = Alarm(self._control.address)
            self._resources.callback(self._alarm.close)
        except BaseException:
            self._resources.close()
            raise
        self._alarm_at = 0
        self._vcpus[0].load()
        self.loaded = self._vcpus[0]

    # --- construction ---

    def _open(self, ram: Any, ram_size: int, below: int) -> None:
        library = self.library
        selfmod.install(library)
        handle = ctypes.c_void_p()
        self._must("uc_open", library.uc_open(at.ARCH_X86, at.MODE_64, ctypes.byref(handle)))
        uc = self.uc = int(handle.value or 0)
        self._resources.callback(self._close_library)
        self._hidden = ctypes.create_string_buffer(4 * PAGE)
        hidden = (ctypes.addressof(self._hidden) + PAGE - 1) & -PAGE
        self._pin = (ctypes.c_ubyte * ram_size).from_buffer(ram)
        # In this order: the library numbers bytes of RAM from the first block on, and `invalidate` counts on that.
        self._below, above = below, ram_size - below
        ram_at = ctypes.addressof(self._pin)
        self._must("uc_mem_map_ptr", library.uc_mem_map_ptr(uc, 0, below, at.PROT_ALL, ram_at))
        if above:
            status = library.uc_mem_map_ptr(uc, FOUR_GIB, above, at.PROT_ALL, ram_at + below)
            self._must("uc_mem_map_ptr", status)
        self._must("uc_mem_map_ptr", library.uc_mem_map_ptr(uc, _HIDDEN, 3 * PAGE, at.PROT_ALL, hidden))
        self.vmcb_quads = _view(hidden, PAGE).cast("Q")
        ctypes.memmove(hidden + PAGE, msr.permission_bitmap(), at.MSRPM_SIZE)
        ctypes.c_uint64.from_address(hidden + at.VMCB_MSRPM).value = _HIDDEN + PAGE
        self.cs = ctypes.c_uint64.from_address(uc + at.UC_CPU).value
        self.env = ctypes.c_uint64.from_address(self.cs + at.CS_ENV).value
        self.cs_bytes = _view(self.cs, at.CS_SIZE)
        self.cs_words = self.cs_bytes.cast("I")
        self.live_bytes = _view(self.env, at.ENV_SAVED_SIZE)
        self.live_words = self.live_bytes.cast("I")
        self.live_quads = self.live_bytes.cast("Q")
        self.icount = _view(ctypes.c_uint64.from_address(self.cs + at.CS_ICOUNT).value, 4).cast("H")
        self._tsc_hz = 0.0
        self.cpuid_table = CpuidTable(library, self.env, lambda: self.tsc_hz)
        holes = [(below, 1 << PHYSICAL_BITS)]
        if above:
            holes = [(below, FOUR_GIB), (FOUR_GIB + above, 1 << PHYSICAL_BITS)]
        self._add_hooks(holes)
        self._prepare_cpu()

    def _add_hooks(self, holes: list[tuple[int, int]]) -> None:
        """`holes`: first address and end of each range that is no RAM."""
        library, uc = self.library, self.uc
        handlers = ExitHandlers(self)
        self._kept.append(handlers)
        python = (
            self._keep(ExitHandler(handlers.dispatch)),
            self._keep(PortRead(self._port_read())),
            self._keep(PortWrite(self._port_write())),
        )
        self._control = thunk.control_block(library, uc, self.cs, self.env, python)
        self.control = self._control.bytes
        self.control_words = self._control.words
        block, entry = self._control.address, self._control.entry
        # The library ends its walk of the hooks of instructions after SYSCALL's when a stop is pending: SYSCALL first.
        for instruction, routine in (
            (at.INS_SYSCALL, entry("syscall_entry")),
            (at.INS_IN, entry("port_in")),
            (at.INS_OUT, entry("port_out")),
        ):
            out = ctypes.c_size_t()
            status = library.uc_hook_insn_add(uc, ctypes.byref(out), at.HOOK_INSN, routine, block, 1, 0, instruction)
            self._must("uc_hook_add", status)
        end = (1 << PHYSICAL_BITS) - 1
        for kind, routine, first, last in (
            (at.HOOK_INTR, entry("interrupt"), 1, 0),
            (at.HOOK_INSN_INVALID, entry("undefined"), 1, 0),
            (at.HOOK_MEM_FETCH_PROT, entry("allow"), holes[0][0], end),
        ):
            out = ctypes.c_size_t()
            self._must("uc_hook_add", library.uc_hook_add(uc, ctypes.byref(out), kind, routine, block, first, last))
        for first, behind in holes:
            if first < behind:
                read, write = self._mmio(first)
                status = library.uc_mmio_map(
                    uc, first, behind - first, self._keep(MmioRead(read)), None, self._keep(MmioWrite(write)), None
                )
                self._must("uc_mmio_map", status)
        self._must("uc_ctl", library.uc_ctl(uc, at.CTL_USE_EXITS, 1))
        run = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(entry("run"))
        self._kept.append(run)
        self._run: Callable[[int], int] = run

    def _prepare_cpu(self) -> None:
        """Bring the CPU to reset, in SVM guest mode with our intercepts; keep that state as the reset image."""
        library = self.library
        ctypes.c_uint8.from_address(self.uc + at.UC_NO_EXIT_REQUEST).value = 1
        ctypes.c_int32.from_address(self.uc + at.UC_NESTED_LEVEL).value = 1
        self._invalid_error = ctypes.c_int32.from_address(self.uc + at.UC_INVALID_ERROR)
        library.cpu_reset(self.cs)
        library.cpu_x86_update_cr4(self.env, 0)  # the library sets OSFXSR and FSGSBASE for running snippets
        self.cs_bytes[at.CS_STOPPED] = 0
        self.cs_bytes[at.CS_CREATED] = 1
        words, quads = self.live_words, self.live_quads
        quads[at.ENV_XCR0 >> 3] = 1
        words[(at.ENV_TR >> 2) + 5] = at.DESC_P | 0x900
        quads[at.ENV_MISC_ENABLE >> 3] = 1
        quads[at.ENV_VMCB >> 3] = _HIDDEN
        quads[at.ENV_TSC_OFFSET >> 3] = -self.host_tsc() & (1 << 64) - 1
        quads[at.ENV_INTERCEPT >> 3] = at.intercept(
            at.SVM_VINTR, at.SVM_TR_WRITE, at.SVM_RDPMC, at.SVM_CPUID, at.SVM_MSR, at.SVM_SHUTDOWN
        )
        words[at.ENV_INTERCEPT_CR_READ >> 2] = 1 << 8 | (1 << 0 | 1 << 4 | 1 << 8) << 16
        words[at.ENV_HFLAGS >> 2] |= at.HF_GUEST
        words[at.ENV_HFLAGS2 >> 2] |= at.HF2_GIF | at.HF2_HIF | at.HF2_VINTR
        self.reset_image = bytes(self.live_bytes)

    def _keep(self, function: Any) -> int:
        self._kept.append(function)
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        return address

    @staticmethod
    def _must(call: str, status: int) -> None:
        if status:
            raise EngineRefused("unicorn", f"{call} failed with error {status}")

    # --- callbacks of the guest: no exception may leave them, the frames below are C ---

    def _port_read(self) -> Callable[[Any, int, int], int]:
        words, read = self.cs_words, self.callbacks.port_read

        def port_read(_uc: Any, port: int, size: int) -> int:
            try:
                if self.armed >= 0 and not words[_IREQ] & at.INTERRUPT_VIRQ:
                    self._acknowledge()
                return read(port, size)
            except BaseException as error:
                self.fail(error)
                return _MINUS_1

        return port_read

    def _port_write(self) -> Callable[[Any, int, int, int], None]:
        words, write = self.cs_words, self.callbacks.port_write

        def port_write(_uc: Any, port: int, size: int, value: int) -> None:
            try:
                if self.armed >= 0 and not words[_IREQ] & at.INTERRUPT_VIRQ:
                    self._acknowledge()
                write(port, size, value)
            except BaseException as error:
                self.fail(error)

        return port_write

    def _mmio(self, base: int) -> tuple[Callable[[Any, int, int], int], Callable[[Any, int, int, int], None]]:
        words, read, write = self.cs_words, self.callbacks.mmio_read, self.callbacks.mmio_write

        def mmio_read(_uc: Any, offset: int, size: int) -> int:
            try:
                if self.armed >= 0 and not words[_IREQ] & at.INTERRUPT_VIRQ:
                    self._acknowledge()
                return read(base + offset, size)
            except BaseException as error:
                self.fail(error)
                return -1

        def mmio_write(_uc: Any, offset: int, size: int, value: int) -> None:
            try:
                if self.armed >= 0 and not words[_IREQ] & at.INTERRUPT_VIRQ:
                    self._acknowledge()
                write(base + offset, size, value)
            except BaseException as error:
                self.fail(error)

        return mmio_read, mmio_write

    def acknowledge_if_taken(self) -> None:
        """Tell the machine of the armed interrupt if the CPU has taken it."""
        if self.armed >= 0 and not self.cs_words[_IREQ] & at.INTERRUPT_VIRQ:
            self._acknowledge()

    def _acknowledge(self) -> None:
        vector, self.armed = self.armed, -1
        self.callbacks.acknowledged(vector)

    def fail(self, error: BaseException) -> None:
        """Remember the first exception of a callback; `run` raises it."""
        if self._failure is None:
            self._failure = error
        self.stop_internal()

    # --- running ---

    def run(self, index: int, deadline_ns: int) -> ExitReason:
        """Run one vCPU until something ends it; `deadline_ns` is host CLOCK_MONOTONIC time.

        An exception of a callback comes out of here, after the state of the vCPU was saved consistently.
        """
        if self.running:
            raise EngineError("run called from a callback of a vCPU that runs")
        if self.error is not None:
            return ExitReason.ERROR  # before anything is loaded: a closed engine has no memory to load it into
        vcpu = self._vcpus[index]
        if self.loaded is not vcpu:
            self._switch(vcpu)
        self.current = index
        control, words = self.control, self.cs_words
        while True:
            if control[thunk.STOP_KICK]:
                control[thunk.STOP_KICK] = 0
                return ExitReason.KICKED
            if not vcpu.runnable:
                return ExitReason.HALT
            now = time.monotonic_ns()
            if now >= deadline_ns:
                return ExitReason.DEADLINE
            if control[thunk.STOP_ALARM] or not now < self._alarm_at <= deadline_ns:
                self._alarm_at = min(deadline_ns, now + _SLICE_NS)
                control[thunk.STOP_ALARM] = 0
                self._alarm.set(self._alarm_at)
            vcpu.halted = False
            words[_HALTED] = 0
            words[_EXCEPTION] = _MINUS_1
            self.running = True
            try:
                status = self._run(self._control.address)
            finally:
                self.running = False
            if self.armed >= 0 and not words[_IREQ] & at.INTERRUPT_VIRQ:
                self._acknowledge()
            if words[_HALTED]:
                vcpu.halted = True
            if control[thunk.STOP_INTERNAL]:
                control[thunk.STOP_INTERNAL] = 0
                reason = self._internal(vcpu)
                if reason is not None:
                    return reason
            elif status == at.EXCP_INTERRUPT:
                if control[thunk.T_YIELD] and not self.control_words[thunk.T_STOP >> 2]:
                    return ExitReason.YIELD
            elif self._invalid_error.value or status not in (at.EXCP_HLT, at.EXCP_HALTED, at.EXCP_DEBUG):
                self.error = f"cpu_exec gave {status:#x}, error {self._invalid_error.value}, RIP {vcpu.quads[16]:#x}"
                return ExitReason.ERROR

    def _internal(self, vcpu: UnicornVcpu) -> ExitReason | None:
        """Why a handler of ours ended the run. None: no reason to tell the machine."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if vcpu.settle():
            return None
        if self.shutdown:
            self.shutdown = False
            vcpu.words[at.ENV_HFLAGS2 >> 2] |= at.HF2_GIF
            return ExitReason.SHUTDOWN
        return None

    def stop_internal(self) -> None:
        """Leave the run loop at the next translation block."""
        self.control[thunk.STOP_INTERNAL] = 1
        self.cs_bytes[at.CS_EXIT_REQUEST] = 1
        self.icount[1] = 0xFFFF

    def kick(self) -> None:
        """Make `run` return soon, the next one if none is under way. From callbacks, signal handlers and threads."""
        self.control[thunk.STOP_KICK] = 1
        self.cs_bytes[at.CS_EXIT_REQUEST] = 1
        self.icount[1] = 0xFFFF

    def _switch(self, vcpu: UnicornVcpu) -> None:
        if self.loaded is not None:
            self.loaded.unload()
        self.loaded = None
        vcpu.load()
        self.loaded = vcpu

    @property
    def yield_on_pause(self) -> bool:
        """Leave with YIELD at PAUSE; the machine sets it while another vCPU is runnable."""
        return bool(self.control[thunk.T_YIELD])

    @yield_on_pause.setter
    def yield_on_pause(self, on: bool) -> None:
        self.control[thunk.T_YIELD] = on

    # --- memory and time ---

    def invalidate(self, gpa: int, length: int) -> None:
        """Host code wrote guest RAM: forget translated code there."""
        if length > 0 and self.loaded is not None:
            if gpa >= FOUR_GIB:
                gpa -= FOUR_GIB - self._below
            self.library.tb_invalidate_phys_range(self.uc, gpa, gpa + length)

    def host_tsc(self) -> int:
        """The host's time stamp counter, which the guest's is an offset of."""
        tsc: int = self.library.cpu_get_tsc(self.env)
        return tsc

    @property
    def tsc_hz(self) -> float:
        """Frequency of the TSC, measured; the same for all engines of a process."""
        if not self._tsc_hz:
            self._tsc_hz = self.library.tsc_hz()
        return self._tsc_hz

    @property
    def counts(self) -> dict[str, int]:
        """How many exceptions and SYSCALLs the guest had since the engine was made; they never reach Python."""
        block = self.control.cast("Q")
        return {"exceptions": block[thunk.T_EXCEPTIONS >> 3], "syscalls": block[thunk.T_SYSCALLS >> 3]}

    # --- end ---

    def close(self) -> None:
        """Give everything back. A second close does nothing; running a closed engine is an EngineError."""
        if self.running:
            raise EngineError("close called from a callback of a vCPU that runs: kick it, and close when run is over")
        if self.loaded is not None:
            self.loaded.unload()
            self.loaded = None
        self._resources.close()

    def _close_library(self) -> None:
        ctypes.c_int32.from_address(self.uc + at.UC_NESTED_LEVEL).value = 0
        self.library.uc_close(self.uc)
        self.error = "the engine is closed"
        del self._pin
        self._kept.clear()
        # A late kick from another thread must hit nothing of what was freed.
        self.control = self.cs_bytes = memoryview(bytearray(at.CS_SIZE))
        self.control_words = self.cs_words = self.cs_bytes.cast("I")
        self.icount = memoryview(bytearray(4)).cast("H")


def _view(address: int, size: int) -> memoryview:
    """Memory of the library as bytes."""
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
