"""Where things are inside libunicorn 2.1.4 (manylinux, x86-64), and the numbers it uses.

Offsets are in bytes. They come from the structures of the library's source (`uc_struct`, `CPUState`, `CPUX86State`)
and were confirmed in its machine code; `selftest.check_layout` confirms them again in every process.

Ref: Unicorn 2.1.4, include/uc_priv.h, qemu/include/hw/core/cpu.h, qemu/target/i386/cpu.h, qemu/target/i386/svm.h.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = (2, 1, 4)

# --- struct uc_struct -------------------------------------------------------------------------------------------------
UC_VM_START: Final = 0x100
"""Function that `uc_emu_start` calls; only compared, never called."""
UC_FLUSH_TLB: Final = 0x170
"""`tcg_flush_tlb(uc)`."""
UC_CPU: Final = 0x1B8
UC_L1_MAP: Final = 0x2E0
UC_L1_SIZE: Final = 0x2F0
UC_L1_SHIFT: Final = 0x2F4
UC_L2_LEVELS: Final = 0x2F8
"""Tree of pages by ram address, 10 bits a level; a leaf entry has 24 bytes and begins with the page's first code."""
UC_INVALID_ERROR: Final = 0x590
UC_NO_EXIT_REQUEST: Final = 0x7F2
"""u8. 1: emit no exit check after loads and stores, where an exit would run the instruction twice."""
UC_NESTED_LEVEL: Final = 0x39F8
"""i32. Which of the jump buffers is in use; 1 while a guest runs."""

# --- struct CPUState --------------------------------------------------------------------------------------------------
CS_CREATED: Final = 0x10
CS_STOPPED: Final = 0x12
CS_EXIT_REQUEST: Final = 0x15
CS_INTERRUPT_REQUEST: Final = 0x1C
CS_ENV: Final = 0x128
CS_ICOUNT: Final = 0x130
"""Pointer to the counter whose upper half, set to 0xffff, ends the chain of translation blocks."""
CS_HALTED: Final = 0x8198
CS_EXCEPTION: Final = 0x81A0
CS_UC: Final = 0x81A8
CS_SIZE: Final = 0x81C0
CS_TO_ENV: Final = 0x8A50
"""CPUX86State follows at this distance."""

INTERRUPT_NMI: Final = 0x200
INTERRUPT_VIRQ: Final = 0x100
"""Bits of `interrupt_request`. VIRQ is intercepted when the CPU would take it, and delivered with the armed vector."""

EXCP_INTERRUPT: Final = 0x10000
EXCP_HLT: Final = 0x10001
EXCP_DEBUG: Final = 0x10002
EXCP_HALTED: Final = 0x10003
"""What `cpu_exec` returns."""

# --- struct CPUX86State -----------------------------------------------------------------------------------------------
ENV_REGS: Final = 0x00
ENV_RCX: Final = 0x08
ENV_R11: Final = 0x58
ENV_EIP: Final = 0x80
ENV_EFLAGS: Final = 0x88
ENV_CC_SRC: Final = 0x98
ENV_CC_OP: Final = 0xA8
ENV_DF: Final = 0xAC
ENV_HFLAGS: Final = 0xB0
ENV_HFLAGS2: Final = 0xB4
ENV_SEGS: Final = 0xB8
SEGMENT_SIZE: Final = 24
"""u32 selector, u64 base at +8, u32 limit at +16, u32 flags at +20."""
ENV_CS: Final = 0xD0
ENV_SS: Final = 0xE8
ENV_LDT: Final = 0x148
ENV_TR: Final = 0x160
ENV_GDT: Final = 0x178
ENV_IDT: Final = 0x190
ENV_CR0: Final = 0x1A8
ENV_CR2: Final = 0x1B8
ENV_CR3: Final = 0x1C0
ENV_CR4: Final = 0x1C8
ENV_EFER: Final = 0x250
ENV_INIT_KEEPS: Final = (0x258, 0x14D0)
"""FPU, SSE and most MSRs: what INIT leaves as it is."""
ENV_FS_BASE: Final = 0x120
ENV_GS_BASE: Final = 0x138
ENV_SYSENTER_CS: Final = 0x12C0
ENV_SYSENTER_ESP: Final = 0x12C8
ENV_SYSENTER_EIP: Final = 0x12D0
ENV_STAR: Final = 0x12D8
ENV_LSTAR: Final = 0x12E8
ENV_CSTAR: Final = 0x12F0
ENV_FMASK: Final = 0x12F8
ENV_KERNEL_GS_BASE: Final = 0x1300
ENV_TSC_AUX: Final = 0x1320
ENV_XCR0: Final = 0x1328
ENV_MISC_ENABLE: Final = 0x1338
ENV_PAT: Final = 0x14A0
ENV_ERROR_CODE: Final = 0x1508
ENV_IS_INT: Final = 0x150C
ENV_DR6: Final = 0x1548
ENV_DR7: Final = 0x1550
ENV_OLD_EXCEPTION: Final = 0x1578
ENV_VMCB: Final = 0x1580
ENV_TSC_OFFSET: Final = 0x1588
ENV_INTERCEPT: Final = 0x1590
ENV_INTERCEPT_CR_READ: Final = 0x1598
ENV_INTERCEPT_CR_WRITE: Final = 0x159A
ENV_INTERCEPT_EXCEPTIONS: Final = 0x15A0
ENV_SAVED_SIZE: Final = 0x15C0
"""The state of one CPU; what follows belongs to the model and is shared."""

SEGMENTS: Final = {
    "es": ENV_SEGS,
    "cs": ENV_CS,
    "ss": ENV_SS,
    "ds": ENV_SEGS + 3 * SEGMENT_SIZE,
    "fs": ENV_SEGS + 4 * SEGMENT_SIZE,
    "gs": ENV_SEGS + 5 * SEGMENT_SIZE,
    "ldt": ENV_LDT,
    "tr": ENV_TR,
}

# --- struct CPUTLBEntry -----------------------------------------------------------------------------------------------
TLB_WRITE: Final = 0x08
TLB_CODE: Final = 0x10
TLB_INVALID: Final = 0x800
TLB_NOTDIRTY: Final = 0x400
"""Stores to the page take the slow path, which looks for translated code."""

# hflags: what translation depends on. The lower bits sit where EFLAGS has them.
HF_CPL: Final = 3
HF_INHIBIT_IRQ: Final = 1 << 3
HF_CS32: Final = 1 << 4
HF_SS32: Final = 1 << 5
HF_ADDSEG: Final = 1 << 6
HF_PE: Final = 1 << 7
HF_TF: Final = 1 << 8
HF_MP: Final = 1 << 9
HF_EM: Final = 1 << 10
HF_TS: Final = 1 << 11
HF_IOPL: Final = 3 << 12
HF_LMA: Final = 1 << 14
HF_CS64: Final = 1 << 15
HF_VM: Final = 1 << 17
HF_GUEST: Final = 1 << 21
HF_OSFXSR: Final = 1 << 22
HF_SMAP: Final = 1 << 23
HF2_GIF: Final = 1 << 0
HF2_HIF: Final = 1 << 1
HF2_NMI: Final = 1 << 2
"""An NMI handler runs; cleared by IRET."""
HF2_VINTR: Final = 1 << 3

DESC_B: Final = 1 << 22
DESC_L: Final = 1 << 21
DESC_P: Final = 1 << 15
DESC_BUSY_TSS: Final = 1 << 9

# --- Secure Virtual Machine -------------------------------------------------------------------------------------------
VMCB_MSRPM: Final = 0x48
VMCB_EXIT_INFO_2: Final = 0x80
MSRPM_SIZE: Final = 0x2000

EXIT_BASE: Final = 0x100
"""An intercept arrives as interrupt number 0x100 + exit code."""
SVM_READ_CR0: Final = 0x00
SVM_WRITE_CR0: Final = 0x10
SVM_EXCEPTION: Final = 0x40
SVM_INTR: Final = 0x60
SVM_VINTR: Final = 0x64
SVM_TR_WRITE: Final = 0x6D
SVM_RDPMC: Final = 0x6F
SVM_CPUID: Final = 0x72
SVM_MSR: Final = 0x7C
SVM_SHUTDOWN: Final = 0x7F


def intercept(*codes: int) -> int:
    """The `intercept` word for these exit codes (0x60 and up)."""
    word = 0
    for code in codes:
        word |= 1 << (code - SVM_INTR)
    return word


# --- public interface of the library ----------------------------------------------------------------------------------
ARCH_X86: Final = 4
MODE_64: Final = 8
PROT_ALL: Final = 7
HOOK_INTR: Final = 1 << 0
HOOK_INSN: Final = 1 << 1
HOOK_MEM_FETCH_PROT: Final = 1 << 9
HOOK_INSN_INVALID: Final = 1 << 14
HOOK_EDGE_GENERATED: Final = 1 << 15
INS_IN: Final = 218
INS_OUT: Final = 500
INS_SYSCALL: Final = 699
REG_RIP: Final = 41
CTL_USE_EXITS: Final = 4 | 1 << 26 | 1 << 30
"""uc_ctl(UC_CTL_UC_USE_EXITS, one argument, write)."""
