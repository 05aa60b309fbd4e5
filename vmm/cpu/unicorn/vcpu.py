"""One virtual CPU: its state, saved or loaded.

There is one TCG CPU in the library, so that all vCPUs share translated code and see each other's modifications. A
vCPU is a copy of its state: `bytes`, `words`, `quads` are views of the saved copy, or of the live state while the
vCPU is the loaded one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.cpu.engine import Registers, Segment
from vmm.cpu.unicorn import layout as at
from vmm.cpu.unicorn import msr, thunk
from vmm.errors import EngineError

if TYPE_CHECKING:
    from vmm.cpu.unicorn.engine import UnicornEngine

_U64 = (1 << 64) - 1
_IF = 1 << 9
_CR0_PE = 1 << 0
_CR0_PG = 1 << 31
_CR4_OSFXSR = 1 << 9
_CR4_SMAP = 1 << 21
_DR7_ENABLES = 0xFF

_EFLAGS = at.ENV_EFLAGS >> 3
_HFLAGS = at.ENV_HFLAGS >> 2
_EIP = at.ENV_EIP >> 3
_CR0 = at.ENV_CR0 >> 3
_CR4 = at.ENV_CR4 >> 3
_EFER = at.ENV_EFER >> 3
_DR7 = at.ENV_DR7 >> 3
_TSC_OFFSET = at.ENV_TSC_OFFSET >> 3
_IREQ = at.CS_INTERRUPT_REQUEST >> 2

_RECOMPUTED = (
    at.HF_CPL | at.HF_CS32 | at.HF_SS32 | at.HF_ADDSEG | at.HF_PE | at.HF_TF | at.HF_MP | at.HF_EM | at.HF_TS
    | at.HF_IOPL | at.HF_LMA | at.HF_CS64 | at.HF_VM | at.HF_OSFXSR | at.HF_SMAP | at.HF_INHIBIT_IRQ
)  # fmt: skip


class UnicornVcpu:
    """See `vmm.cpu.engine.EngineVcpu`.

    vCPU 0 is the bootstrap processor; the others wait for SIPI after power-on and INIT.
    """

    __slots__ = (
        "_deferred",
        "_own",
        "armed",
        "bytes",
        "engine",
        "halted",
        "index",
        "msrs",
        "quads",
        "request",
        "waiting_for_sipi",
        "words",
    )

    def __init__(self, engine: UnicornEngine, index: int, image: bytes) -> None:
        self.engine = engine
        self.index = index
        self.halted = False
        self.waiting_for_sipi = index != 0
        self.armed = -1
        """Vector that may be injected, -1: none. Of the loaded vCPU, `engine.armed` holds it."""
        self.request = 0
        """`interrupt_request`, while not loaded."""
        self._deferred: str | None = None
        self._own = memoryview(bytearray(image))
        self.bytes: memoryview = self._own
        self.words: memoryview = self._own.cast("I")
        self.quads: memoryview = self._own.cast("Q")
        self.msrs = msr.power_on()

    # --- switching (called by the engine) ---

    def load(self) -> None:
        """Make this the CPU of the library. Another vCPU must not be loaded."""
        engine = self.engine
        engine.live_bytes[: at.ENV_SAVED_SIZE] = self._own
        self.bytes, self.words, self.quads = engine.live_bytes, engine.live_words, engine.live_quads
        engine.cs_words[_IREQ] = self.request
        engine.cs_words[at.CS_HALTED >> 2] = self.halted
        engine.armed = self.armed
        if self.armed >= 0:
            engine.control_words[thunk.T_VECTOR >> 2] = self.armed
        dr7 = self.quads[_DR7]
        if dr7 & _DR7_ENABLES:
            self.quads[_DR7] = dr7 & ~_DR7_ENABLES
            engine.library.cpu_x86_update_dr7(engine.env, dr7)
        engine.library.tlb_flush(engine.cs)

    def unload(self) -> None:
        """Save the state of the library's CPU, and its breakpoints out of the shared lists."""
        engine = self.engine
        dr7 = self.quads[_DR7]
        if dr7 & _DR7_ENABLES:
            engine.library.cpu_x86_update_dr7(engine.env, dr7 & ~_DR7_ENABLES)
            self.quads[_DR7] = dr7
        self._own[:] = engine.live_bytes[: at.ENV_SAVED_SIZE]
        self.bytes, self.words, self.quads = self._own, self._own.cast("I"), self._own.cast("Q")
        self.request = engine.cs_words[_IREQ]
        self.armed = engine.armed

    # --- reset, INIT, SIPI ---

    def reset(self) -> None:
        """Power-on state: CS F000 base FFFF0000, EIP FFF0, paging off; not halted.

        The TSC counts since the engine was made, without TSC_ADJUST: all vCPUs stay in step.
        From a callback of the vCPU that runs, it happens at the end of the translation block.
        """
        if not self._defer("reset"):
            self._power_on(keep=False)
            # Code that was invalidated keeps its place in the translation buffer until the buffer is full; a guest
            # that is loaded anew at every reset would fill it. Not under the feet of another vCPU that runs.
            if not self.engine.running and self.engine.loaded is not None:
                self.engine.library.tb_flush(self.engine.cs)

    def init(self) -> None:
        """INIT: as reset, but FPU, SSE and MSRs stay; then wait for SIPI, except for the bootstrap processor."""
        if not self._defer("init"):
            self._power_on(keep=True)

    def _defer(self, what: str) -> bool:
        engine = self.engine
        if not (engine.running and engine.loaded is self):
            return False
        if self._deferred != "reset":
            self._deferred = what
        engine.stop_internal()
        return True

    def settle(self) -> bool:
        """Do what was deferred. True if anything was."""
        what, self._deferred = self._deferred, None
        if what is None:
            return False
        self._power_on(keep=what == "init")
        return True

    def _power_on(self, keep: bool) -> None:
        engine = self.engine
        loaded = engine.loaded is self
        if loaded and self.quads[_DR7] & _DR7_ENABLES:
            engine.library.cpu_x86_update_dr7(engine.env, self.quads[_DR7] & ~_DR7_ENABLES)
        first, last = at.ENV_INIT_KEEPS
        kept = bytes(self.bytes[first:last]) if keep else b""
        tsc_offset = self.quads[_TSC_OFFSET]
        self.bytes[: at.ENV_SAVED_SIZE] = engine.reset_image
        if keep:
            self.bytes[first:last] = kept
            self.quads[_TSC_OFFSET] = tsc_offset
        else:
            self.msrs = msr.power_on()
        self.halted = False
        self.waiting_for_sipi = self.index != 0
        self.armed = -1
        self.request = 0
        self._deferred = None
        if loaded:
            engine.armed = -1
            engine.cs_words[_IREQ] = 0
            engine.cs_words[at.CS_HALTED >> 2] = 0
            engine.library.tlb_flush(engine.cs)

    def sipi(self, vector: int) -> None:
        """Start at CS = vector << 8, IP = 0. Ignored unless waiting for SIPI (SDM 8.4.4)."""
        if not self.waiting_for_sipi:
            return
        self.words[at.ENV_CS >> 2] = (vector & 0xFF) << 8
        self.quads[(at.ENV_CS >> 3) + 1] = (vector & 0xFF) << 12
        self.quads[_EIP] = 0
        self.waiting_for_sipi = False

    # --- registers ---

    def registers(self) -> Registers:
        """All of them. While this vCPU runs (from a callback) RIP may lie some instructions behind."""
        quads, words, engine = self.quads, self.words, self.engine
        segments = {}
        for name, offset in at.SEGMENTS.items():
            selector, base = words[offset >> 2] & 0xFFFF, quads[(offset >> 3) + 1]
            segments[name] = Segment(selector, base, words[(offset >> 2) + 4], words[(offset >> 2) + 5] & 0xFFFF00)
        rflags = quads[_EFLAGS]
        if engine.running and engine.loaded is self:
            rflags = engine.library.helper_read_eflags(engine.env)
        return Registers(
            gpr=list(quads[:16]),
            rip=quads[_EIP],
            rflags=rflags,
            segments=segments,
            gdt=(quads[(at.ENV_GDT >> 3) + 1], words[(at.ENV_GDT >> 2) + 4]),
            idt=(quads[(at.ENV_IDT >> 3) + 1], words[(at.ENV_IDT >> 2) + 4]),
            cr0=quads[_CR0],
            cr2=quads[at.ENV_CR2 >> 3],
            cr3=quads[at.ENV_CR3 >> 3],
            cr4=quads[_CR4],
            efer=quads[_EFER],
        )

    def set_registers(self, registers: Registers) -> None:
        """Set all but the segments and tables that `registers` leaves out. EngineError while the vCPU runs.

        With CR0.PG and EFER.LME the vCPU is in long mode. A vCPU that waits for SIPI goes on waiting.
        """
        if self.engine.running and self.engine.loaded is self:
            raise EngineError(f"registers of vCPU {self.index} cannot be set while it runs: kick it first")
        quads, words = self.quads, self.words
        for i, value in enumerate(registers.gpr):
            quads[i] = value & _U64
        quads[_EIP] = registers.rip & _U64
        quads[_EFLAGS] = registers.rflags & 0x3F_7FD7 | 2
        for name, segment in registers.segments.items():
            offset = at.SEGMENTS[name]
            flags = segment.flags
            if name == "tr":  # the library aborts at a task register that is not one
                flags = (flags & ~(0xF00 | at.DESC_BUSY_TSS)) | 0x900 | at.DESC_P
            words[offset >> 2] = segment.selector
            quads[(offset >> 3) + 1] = segment.base & _U64
            words[(offset >> 2) + 4] = segment.limit
            words[(offset >> 2) + 5] = flags
        for offset, table in ((at.ENV_GDT, registers.gdt), (at.ENV_IDT, registers.idt)):
            if table is not None:
                quads[(offset >> 3) + 1] = table[0] & _U64
                words[(offset >> 2) + 4] = table[1]
        efer = registers.efer & ~msr.EFER_LMA
        if efer & msr.EFER_LME and registers.cr0 & _CR0_PG:
            efer |= msr.EFER_LMA
        quads[_CR0] = registers.cr0 | 0x10
        quads[at.ENV_CR2 >> 3] = registers.cr2
        quads[at.ENV_CR3 >> 3] = registers.cr3
        quads[_CR4] = registers.cr4
        quads[_EFER] = efer
        self.halted = False
        if self.engine.loaded is self:
            self.engine.cs_words[at.CS_HALTED >> 2] = 0
        self.update_hflags()
        self.flush_tlb()

    def update_hflags(self) -> None:
        """Derive the flags that translation depends on from the registers."""
        quads, words = self.quads, self.words
        cr0, eflags = quads[_CR0], quads[_EFLAGS]
        cs, ss = words[(at.ENV_CS >> 2) + 5], words[(at.ENV_SS >> 2) + 5]
        flags = words[_HFLAGS] & ~_RECOMPUTED
        flags |= (ss >> 13) & at.HF_CPL
        flags |= eflags & (at.HF_TF | at.HF_VM | at.HF_IOPL)
        flags |= at.HF_PE if cr0 & _CR0_PE else 0
        flags |= (cr0 << 8) & (at.HF_MP | at.HF_EM | at.HF_TS)
        flags |= at.HF_OSFXSR if quads[_CR4] & _CR4_OSFXSR else 0
        flags |= at.HF_SMAP if quads[_CR4] & _CR4_SMAP else 0
        if quads[_EFER] & msr.EFER_LMA:
            flags |= at.HF_LMA
        if flags & at.HF_LMA and cs & at.DESC_L:
            flags |= at.HF_CS32 | at.HF_SS32 | at.HF_CS64
        else:
            flags |= at.HF_CS32 if cs & at.DESC_B else 0
            flags |= at.HF_SS32 if ss & at.DESC_B else 0
            bases = (quads[(at.SEGMENTS[name] >> 3) + 1] for name in ("ds", "es", "ss"))
            if not cr0 & _CR0_PE or eflags & at.HF_VM or not flags & at.HF_CS32 or any(bases):
                flags |= at.HF_ADDSEG
        words[_HFLAGS] = flags

    def flush_tlb(self) -> None:
        """Forget translations of this vCPU. One that is not loaded has none."""
        if self.engine.loaded is self:
            self.engine.library.tlb_flush(self.engine.cs)

    # --- time stamp counter ---

    def tsc(self) -> int:
        """What RDTSC would give now."""
        return (self.engine.host_tsc() + self.quads[_TSC_OFFSET]) & _U64

    def shift_tsc(self, delta: int) -> None:
        """Add `delta` (modulo 2**64) to the TSC."""
        self.quads[_TSC_OFFSET] = (self.quads[_TSC_OFFSET] + delta) & _U64

    # --- events ---

    def set_interrupt(self, vector: int | None) -> None:
        """Arm the one vector that may be injected as soon as IF and the interrupt shadow allow; None disarms."""
        engine = self.engine
        if engine.loaded is self:
            words = engine.cs_words
            if vector is None:
                engine.armed = -1
                words[_IREQ] &= ~at.INTERRUPT_VIRQ
            else:
                engine.armed = vector
                engine.control_words[thunk.T_VECTOR >> 2] = vector
                words[_IREQ] |= at.INTERRUPT_VIRQ
                if engine.running:
                    engine.icount[1] = 0xFFFF
        elif vector is None:
            self.armed = -1
            self.request &= ~at.INTERRUPT_VIRQ
        else:
            self.armed = vector
            self.request |= at.INTERRUPT_VIRQ

    def nmi(self) -> None:
        """One NMI; blocked while the handler of another runs, until its IRET. One is kept pending."""
        engine = self.engine
        if engine.loaded is self:
            engine.cs_words[_IREQ] |= at.INTERRUPT_NMI
            if engine.running:
                engine.icount[1] = 0xFFFF
        else:
            self.request |= at.INTERRUPT_NMI

    @property
    def deliverable(self) -> bool:
        """Whether an event is pending that would wake a halted CPU. Not for the one that runs."""
        request = self.engine.cs_words[_IREQ] if self.engine.loaded is self else self.request
        if request & at.INTERRUPT_NMI and not self.words[at.ENV_HFLAGS2 >> 2] & at.HF2_NMI:
            return True
        return bool(request & at.INTERRUPT_VIRQ and self.quads[_EFLAGS] & _IF)

    @property
    def runnable(self) -> bool:
        """True when `run` would execute something: not waiting for SIPI, and not halted without a wake-up."""
        return not self.waiting_for_sipi and (not self.halted or self.deliverable)
