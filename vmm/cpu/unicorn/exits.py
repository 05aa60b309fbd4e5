"""What happens at an intercepted instruction or event.

A handler does the instruction's work on the CPU state, moves RIP on, and returns 0; or it sets up an exception and
returns 1, and the machine code that called delivers it. It must not call anything in the library that could raise an
exception itself (`thunk` says why).

Ref: AMD64 APM volume 2, 15 and appendix C (exit codes); SDM volume 2, the instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.cpu.unicorn import layout as at
from vmm.cpu.unicorn import msr, thunk
from vmm.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.cpu.unicorn.engine import UnicornEngine
    from vmm.cpu.unicorn.vcpu import UnicornVcpu

DB: Final = 1
UD: Final = 6
GP: Final = 13
PF: Final = 14
_CONTRIBUTORY: Final = frozenset((0, 10, 11, 12, 13, 14))

_U32: Final = 0xFFFF_FFFF
_TF: Final = 1 << 8
_DR6_BS: Final = 1 << 14
_OSXSAVE: Final = 1 << 18

CR0_PE: Final = 1 << 0
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31
_CR0_KNOWN: Final = 0x3F | 1 << 16 | 1 << 18 | CR0_NW | CR0_CD | CR0_PG
_CR4_PAE: Final = 1 << 5
_CR4_BASE: Final = 0b111_1111_1100
"""TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT: every model has them. VME and PVI no model of TCG has."""
_CR4_FSGSBASE: Final = 1 << 16
_CR4_SMEP: Final = 1 << 20
_CR4_SMAP: Final = 1 << 21

_MOV_TO_CR: Final = 0x22
_MOV_FROM_CR: Final = 0x20
_CLTS: Final = 0x06

_EIP: Final = at.ENV_EIP >> 3
_EFLAGS: Final = at.ENV_EFLAGS >> 3
_HFLAGS: Final = at.ENV_HFLAGS >> 2
_HFLAGS2: Final = at.ENV_HFLAGS2 >> 2
_ERROR: Final = at.ENV_ERROR_CODE >> 2
_DR6: Final = at.ENV_DR6 >> 3
_CR0: Final = at.ENV_CR0 >> 3
_CR4: Final = at.ENV_CR4 >> 3
_EFER: Final = at.ENV_EFER >> 3
_INTERCEPT: Final = at.ENV_INTERCEPT >> 3
_INTERCEPT_CR: Final = at.ENV_INTERCEPT_CR_READ >> 2
_INTERCEPT_EXCEPTIONS: Final = at.ENV_INTERCEPT_EXCEPTIONS >> 2
_PREFIXES: Final = thunk.T_PREFIXES >> 2
_REX: Final = thunk.T_REX >> 2
_OPCODE: Final = thunk.T_OPCODE >> 2
_MODRM: Final = thunk.T_MODRM >> 2


class ExitHandlers:
    """The handlers of one engine, for the vCPU that is loaded."""

    def __init__(self, engine: UnicornEngine) -> None:
        self._engine = engine
        self._words = engine.live_words
        self._quads = engine.live_quads
        callbacks = engine.callbacks
        self._callbacks = callbacks
        self._cr8_read: Callable[[], int] = callbacks.cr8_read
        self._table: dict[int, Callable[[], int]] = {
            at.SVM_READ_CR0 + 8: self._read_cr8,
            at.SVM_WRITE_CR0: self._write_cr0,
            at.SVM_WRITE_CR0 + 4: self._write_cr4,
            at.SVM_WRITE_CR0 + 8: self._write_cr8,
            at.SVM_TR_WRITE: self._load_task_register,
            at.SVM_RDPMC: self._rdpmc,
            at.SVM_CPUID: self._cpuid,
            at.SVM_MSR: self._msr,
            at.SVM_SHUTDOWN: self._shutdown,
        }
        leaf7 = engine.cpuid_table.get(7, 0, osxsave=False)[1]
        self._cr4_known = _CR4_BASE | _OSXSAVE
        for bit, feature in ((_CR4_FSGSBASE, 0), (_CR4_SMEP, 7), (_CR4_SMAP, 20)):
            if leaf7 >> feature & 1:
                self._cr4_known |= bit
        self._step: _Step | None = None

    def dispatch(self, code: int) -> int:
        """Handle one intercept. Exceptions stay inside: the caller is machine code."""
        engine = self._engine
        try:
            if engine.armed >= 0:
                engine.acknowledge_if_taken()
            handler = self._table.get(code)
            if handler is not None:
                return handler()
            if at.SVM_EXCEPTION <= code < at.SVM_EXCEPTION + 32 and self._step is not None:
                return self._stepped(code - at.SVM_EXCEPTION)
            raise EngineError(f"intercept {code:#x} at {self._quads[_EIP]:#x} is not one that was asked for")
        except BaseException as error:
            engine.fail(error)
            return 0

    # --- the end of an emulated instruction ---

    def raise_exception(self, vector: int, error_code: int = 0) -> int:
        """Let the caller deliver this exception, at the current RIP."""
        words = self._words
        self._engine.cs_words[at.CS_EXCEPTION >> 2] = vector
        words[_ERROR] = error_code
        words[at.ENV_IS_INT >> 2] = 0
        if vector in _CONTRIBUTORY:
            words[at.ENV_OLD_EXCEPTION >> 2] = vector
        return 1

    def _advance(self, length: int) -> int:
        quads, words = self._quads, self._words
        flags = words[_HFLAGS]
        eip = quads[_EIP] + length
        if not flags & at.HF_CS64:
            eip &= _U32 if flags & at.HF_CS32 else 0xFFFF
        quads[_EIP] = eip
        words[_HFLAGS] = flags & ~at.HF_INHIBIT_IRQ
        if quads[_EFLAGS] & _TF:
            quads[_DR6] |= _DR6_BS
            return self.raise_exception(DB)
        return 0

    @property
    def _vcpu(self) -> UnicornVcpu:
        vcpu = self._engine.loaded
        assert vcpu is not None
        return vcpu

    # --- instructions ---

    def _cpuid(self) -> int:
        quads = self._quads
        leaf, subleaf = quads[0] & _U32, quads[1] & _U32
        native = self._engine.cpuid_table.get(leaf, subleaf, bool(quads[_CR4] & _OSXSAVE))
        eax, ebx, ecx, edx = self._callbacks.cpuid(leaf, subleaf, native)
        quads[0] = eax & _U32
        quads[3] = ebx & _U32
        quads[1] = ecx & _U32
        quads[2] = edx & _U32
        return self._advance(self._engine.control_words[_PREFIXES] + 2)

    def _msr(self) -> int:
        quads = self._quads
        number = quads[1] & _U32
        if self._words[_ERROR] & 1:
            value = (quads[0] & _U32) | (quads[2] & _U32) << 32
            done = msr.write(self._vcpu, number, value)
            if done is None:
                done = self._callbacks.wrmsr(number, value)
            if not done:
                return self.raise_exception(GP)
        else:
            got = msr.read(self._vcpu, number)
            if got is None:
                got = self._callbacks.rdmsr(number)
                if got is None:
                    return self.raise_exception(GP)
            quads[0] = got & _U32
            quads[2] = got >> 32 & _U32
        return self._advance(self._engine.control_words[_PREFIXES] + 2)

    def _rdpmc(self) -> int:
        return self.raise_exception(GP)

    def _shutdown(self) -> int:
        # Only INIT, NMI and reset leave this state; an interrupt that is pending must not be delivered any more.
        self._words[_HFLAGS2] &= ~at.HF2_GIF
        self._engine.shutdown = True
        self._engine.stop_internal()
        return 0

    # --- control registers ---

    def _operand(self) -> int:
        """Register number of the general register in MOV to or from CR."""
        control = self._engine.control_words
        return control[_MODRM] & 7 | (control[_REX] & 1) << 3

    def _moved_value(self) -> int:
        value: int = self._quads[self._operand()]
        return value if self._words[_HFLAGS] & at.HF_CS64 else value & _U32

    def _mov_cr_length(self) -> int:
        return self._engine.control_words[_PREFIXES] + 3

    def _read_cr8(self) -> int:
        self._quads[self._operand()] = self._cr8_read() & 0xF
        return self._advance(self._mov_cr_length())

    def _write_cr8(self) -> int:
        value = self._moved_value()
        if value > 0xF:
            return self.raise_exception(GP)
        self._callbacks.cr8_write(value)
        return self._advance(self._mov_cr_length())

    def _write_cr0(self) -> int:
        quads = self._quads
        opcode = self._engine.control_words[_OPCODE]
        old = quads[_CR0]
        if opcode == _CLTS:
            self._engine.library.cpu_x86_update_cr0(self._engine.env, old & ~8)
            return self._advance(self._engine.control_words[_PREFIXES] + 2)
        if opcode != _MOV_TO_CR:  # LMSW, which can neither fault for its value nor touch paging
            return self._step_natively(_INTERCEPT_CR, 1 << 16, None)
        new = self._moved_value()
        if new >> 32 or not self._cr0_valid(old, new):
            return self.raise_exception(GP)
        self._engine.library.cpu_x86_update_cr0(self._engine.env, new & _CR0_KNOWN)
        return self._advance(self._mov_cr_length())

    def _cr0_valid(self, old: int, new: int) -> bool:
        if new & CR0_PG and not new & CR0_PE:
            return False
        if new & CR0_NW and not new & CR0_CD:
            return False
        efer = self._quads[_EFER]
        if efer & msr.EFER_LME and new & CR0_PG and not old & CR0_PG:
            cs_long = self._words[(at.ENV_CS >> 2) + 5] & at.DESC_L
            return bool(self._quads[_CR4] & _CR4_PAE) and not cs_long
        return not (efer & msr.EFER_LMA and not new & CR0_PG and self._words[_HFLAGS] & at.HF_CS64)

    def _write_cr4(self) -> int:
        quads = self._quads
        new = self._moved_value()
        if new & ~self._cr4_known or (quads[_EFER] & msr.EFER_LMA and not new & _CR4_PAE):
            return self.raise_exception(GP)
        self._engine.library.cpu_x86_update_cr4(self._engine.env, new)
        return self._advance(self._mov_cr_length())

    # --- one instruction by the library itself ---

    def _load_task_register(self) -> int:
        return self._step_natively(_INTERCEPT, at.intercept(at.SVM_TR_WRITE), self._check_task_register)

    def _check_task_register(self) -> bool:
        """LTR with a null selector is #GP(0). The library takes it, and aborts the process when the TSS is used."""
        return bool(self._words[(at.ENV_TR >> 2) + 5] & at.DESC_P)

    def _step_natively(self, word: int, bit: int, check: Callable[[], bool] | None) -> int:
        """Let the library execute the instruction: without this intercept, with TF, all exceptions intercepted."""
        self._step = _Step(self, word, bit, check)
        return 0

    def _stepped(self, vector: int) -> int:
        step, self._step = self._step, None
        assert step is not None
        fine = step.finish(vector)
        if vector == DB:
            if not fine:
                return self.raise_exception(GP)
            if step.single_stepped_by_guest:
                self._quads[_DR6] |= _DR6_BS
                return self.raise_exception(DB)
            return 0
        if vector == PF:
            self._quads[at.ENV_CR2 >> 3] = self._engine.vmcb_quads[at.VMCB_EXIT_INFO_2 >> 3]
        return self.raise_exception(vector, self._words[_ERROR])


class _Step:
    """The state to restore around an instruction that the library executes under TF."""

    __slots__ = ("_bit", "_check", "_eip", "_handlers", "_hflags2", "_saved", "_word", "single_stepped_by_guest")

    def __init__(self, handlers: ExitHandlers, word: int, bit: int, check: Callable[[], bool] | None) -> None:
        quads, words = handlers._quads, handlers._words
        self._handlers = handlers
        self._check = check
        self._word = word
        self._bit = bit
        self._eip = quads[_EIP]
        self._saved = bytes(handlers._engine.live_bytes[at.ENV_TR : at.ENV_TR + at.SEGMENT_SIZE]), quads[_DR6]
        self.single_stepped_by_guest = bool(quads[_EFLAGS] & _TF)
        self._hflags2 = words[_HFLAGS2]
        words[_HFLAGS2] &= ~at.HF2_GIF  # no interrupt or NMI in between: it would push our TF
        self._set_intercept(on=False)
        words[_INTERCEPT_EXCEPTIONS] = _U32
        quads[_EFLAGS] |= _TF
        words[_HFLAGS] |= at.HF_TF

    def _set_intercept(self, on: bool) -> None:
        view = self._handlers._quads if self._word == _INTERCEPT else self._handlers._words
        view[self._word] = view[self._word] | self._bit if on else view[self._word] & ~self._bit

    def finish(self, vector: int) -> bool:
        """Restore. False: the instruction was executed and must fault after all; it is undone then."""
        quads, words = self._handlers._quads, self._handlers._words
        words[_HFLAGS2] = self._hflags2
        words[_INTERCEPT_EXCEPTIONS] = 0
        self._set_intercept(on=True)
        if not self.single_stepped_by_guest:
            quads[_EFLAGS] &= ~_TF
            words[_HFLAGS] &= ~at.HF_TF
        if vector != DB:
            return True
        quads[_DR6] = self._saved[1]
        if self._check is not None and not self._check():
            self._handlers._engine.live_bytes[at.ENV_TR : at.ENV_TR + at.SEGMENT_SIZE] = self._saved[0]
            quads[_EIP] = self._eip
            return False
        return True
