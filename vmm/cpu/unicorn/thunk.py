"""Machine code that runs where Python must not.

The library delivers an exception by `siglongjmp` when the delivery itself faults (a stack page that is absent, a bad
gate). A jump over Python's frames would wreck the interpreter, so the hooks that deliver are machine code, and so is
what is called too often for Python: SYSCALL, and the loop around `cpu_exec` that swallows PAUSE.

`LISTING` is both the source and the code: assembler text to the right, its bytes to the left. The numbers of
`SYMBOLS` are the names in it.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Final

from vmm.cpu.unicorn import layout
from vmm.errors import EngineRefused

if TYPE_CHECKING:
    from vmm.cpu.unicorn.library import Library

# The control block ("T" in the listing): addresses for the code, and flags between the code and Python.
T_UC: Final = 0x00
T_CS: Final = 0x08
T_ENV: Final = 0x10
T_EXEC: Final = 0x18
T_DELIVER: Final = 0x20
T_EXIT: Final = 0x28
"""The Python handler of intercepts: int(exit code); non-zero: deliver the exception it has set up."""
T_RAISE: Final = 0x30
T_HFLAGS: Final = 0x38
T_FLAGS: Final = 0x40
T_STOP: Final = 0x48
"""Four flags of one byte each, any of which ends the run: kick, alarm, internal, unused."""
T_YIELD: Final = 0x4C
"""u32: leave at PAUSE."""
T_RF: Final = 0x50
T_RF_DEBUG: Final = 0x54
"""Bit n: vector n pushes RFLAGS with RF set; the second while DR7 enables a breakpoint."""
T_CODE: Final = 0x58
T_PREFIXES: Final = 0x60
T_REX: Final = 0x64
T_OPCODE: Final = 0x68
T_MODRM: Final = 0x6C
T_EXCEPTIONS: Final = 0x70
T_SYSCALLS: Final = 0x78
"""u64 counters."""
T_INTERRUPT: Final = 0x80
T_VECTOR: Final = 0x88
"""u32: the armed vector."""
T_EXTERNAL: Final = 0x8C
"""u32: an interrupt is being delivered."""
T_IN: Final = 0x90
T_OUT: Final = 0x98
"""The Python callbacks of IN and OUT."""
T_CHECK_IO: Final = 0xA0
"""Three functions that look at the I/O bitmap: for 1, 2 and 4 bytes."""
T_SIZE: Final = 0xC0
"""The code begins here."""

# The block of the page that `selfmod` uses: addresses of the library's own routines.
P_INVALIDATE: Final = 0x00
P_FLUSH: Final = 0x08
P_TRANSLATE: Final = 0x10

# The block of the page that `alarm` uses.
A_CONTROL: Final = 0x00
A_READ: Final = 0x08
A_COUNT: Final = 0x10
A_FD: Final = 0x18
A_QUIT: Final = 0x1C

STOP_KICK: Final = T_STOP
STOP_ALARM: Final = T_STOP + 1
STOP_INTERNAL: Final = T_STOP + 2

_FAULTS = (0, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19)
_RF_ALWAYS = sum(1 << v for v in _FAULTS if v not in (7, 14))
_RF_DEBUGGING = sum(1 << v for v in _FAULTS)
"""All faults push RF=1 (SDM 17.3.1.1). For #PF and #NM, the frequent ones, that is only done while a breakpoint is
enabled: code that runs with RF=1 is translated a second time, and nobody could tell the difference."""

RF: Final = 0x10000
_PREFIXES = ("A", "CS", "ENV", "EXCP", "EXIT", "HF", "INTERRUPT", "P", "RF", "SVM", "T", "TLB", "UC")
SYMBOLS: Final[dict[str, int]] = {
    name: value
    for table in (vars(layout), globals())
    for name, value in table.items()
    if isinstance(value, int) and name.split("_")[0] in _PREFIXES
}

LISTING: Final = """\
                             | # run(T): execute until the CPU halts or somebody asks to stop. PAUSE stays inside.
                             | run:
53                           |     push rbx
4889fb                       |     mov rbx, rdi
837b4800                     | 1:  cmp dword ptr [rbx+T_STOP], 0
751f                         |     jne 2f
488b3b                       |     mov rdi, [rbx+T_UC]
488b7308                     |     mov rsi, [rbx+T_CS]
ff5318                       |     call [rbx+T_EXEC]
3d00000100                   |     cmp eax, EXCP_INTERRUPT
750c                         |     jne 3f
837b4800                     |     cmp dword ptr [rbx+T_STOP], 0
7506                         |     jne 3f
837b4c00                     |     cmp dword ptr [rbx+T_YIELD], 0
74dd                         |     je 1b
5b                           | 3:  pop rbx
c3                           |     ret
b800000100                   | 2:  mov eax, EXCP_INTERRUPT
5b                           |     pop rbx
c3                           |     ret

                             |     .balign 16
                             | # interrupt(uc, number, T): hook of all exceptions and intercepts.
                             | interrupt:
81fe00010000                 |     cmp esi, EXIT_BASE
0f8204010000                 |     jb deliver
53                           |     push rbx
4154                         |     push r12
4155                         |     push r13
4889d3                       |     mov rbx, rdx
448da600ffffff               |     lea r12d, [rsi-EXIT_BASE]
c7838c00000000000000         |     mov dword ptr [rbx+T_EXTERNAL], 0
4183fc64                     |     cmp r12d, SVM_VINTR
7476                         |     je acknowledge
4183fc20                     |     cmp r12d, 0x20
720c                         |     jb fetch
4183fc72                     |     cmp r12d, SVM_CPUID
7406                         |     je fetch
4183fc7c                     |     cmp r12d, SVM_MSR
7551                         |     jne ask
                             | # An intercepted instruction: count prefixes, note REX, opcode and ModRM.
                             | fetch:
4531ed                       |     xor r13d, r13d
44896b64                     |     mov dword ptr [rbx+T_REX], r13d
e88e000000                   | 4:  call ldub
83f80f                       |     cmp eax, 0x0f
741b                         |     je 5f
89c1                         |     mov ecx, eax
81e1f0000000                 |     and ecx, 0xf0
83f940                       |     cmp ecx, 0x40
7402                         |     je 6f
31c0                         |     xor eax, eax
894364                       | 6:  mov [rbx+T_REX], eax
41ffc5                       |     inc r13d
4183fd0e                     |     cmp r13d, 14
72db                         |     jb 4b
44896b60                     | 5:  mov [rbx+T_PREFIXES], r13d
41ffc5                       |     inc r13d
e862000000                   |     call ldub
894368                       |     mov [rbx+T_OPCODE], eax
4183fc20                     |     cmp r12d, 0x20
7310                         |     jae ask
83f806                       |     cmp eax, 0x06
740b                         |     je ask
41ffc5                       |     inc r13d
e84c000000                   |     call ldub
89436c                       |     mov [rbx+T_MODRM], eax
                             | ask:
4489e7                       |     mov edi, r12d
ff5328                       |     call [rbx+T_EXIT]
4889da                       |     mov rdx, rbx
415d                         |     pop r13
415c                         |     pop r12
5b                           |     pop rbx
85c0                         |     test eax, eax
7570                         |     jnz deliver
c3                           |     ret
                             | # The CPU takes the armed interrupt: accepted, and delivered only then.
                             | acknowledge:
488b4308                     |     mov rax, [rbx+T_CS]
81601cfffeffff               |     and dword ptr [rax+CS_INTERRUPT_REQUEST], ~INTERRUPT_VIRQ
488b7b10                     |     mov rdi, [rbx+T_ENV]
8bb388000000                 |     mov esi, [rbx+T_VECTOR]
ba01000000                   |     mov edx, 1
89938c000000                 |     mov [rbx+T_EXTERNAL], edx
ff9380000000                 |     call [rbx+T_INTERRUPT]
c7838c00000000000000         |     mov dword ptr [rbx+T_EXTERNAL], 0
415d                         |     pop r13
415c                         |     pop r12
5b                           |     pop rbx
c3                           |     ret
                             | # The code byte at CS:RIP + r13. May raise #PF, which leaves through cpu_exec.
                             | ldub:
488b7b10                     |     mov rdi, [rbx+T_ENV]
488bb780000000               |     mov rsi, [rdi+ENV_EIP]
4c01ee                       |     add rsi, r13
f787b000000000800000         |     test dword ptr [rdi+ENV_HFLAGS], HF_CS64
7509                         |     jnz 7f
4803b7d8000000               |     add rsi, [rdi+ENV_CS+8]
89f6                         |     mov esi, esi
4883ec08                     | 7:  sub rsp, 8
ff5358                       |     call [rbx+T_CODE]
4883c408                     |     add rsp, 8
0fb6c0                       |     movzx eax, al
c3                           |     ret

0f1f8000000000               |     .balign 16
                             | # Deliver the exception of CPUState to the guest. rdx = T
                             | deliver:
53                           |     push rbx
488b5a10                     |     mov rbx, [rdx+T_ENV]
488b7a08                     |     mov rdi, [rdx+T_CS]
8b8fa0810000                 |     mov ecx, [rdi+CS_EXCEPTION]
83a3b0000000f7               |     and dword ptr [rbx+ENV_HFLAGS], ~HF_INHIBIT_IRQ
48ff4270                     |     inc qword ptr [rdx+T_EXCEPTIONS]
83bb0c15000000               |     cmp dword ptr [rbx+ENV_IS_INT], 0
756e                         |     jne 8f
8b4250                       |     mov eax, [rdx+T_RF]
f68350150000ff               |     test byte ptr [rbx+ENV_DR7], 0xff
7403                         |     jz 9f
8b4254                       |     mov eax, [rdx+T_RF_DEBUG]
0fa3c8                       | 9:  bt eax, ecx
730a                         |     jnc 25f
818b8800000000000100         |     or dword ptr [rbx+ENV_EFLAGS], RF
                             | # In long mode the library names a bad gate by 16 times its vector; it is 8 times.
f783b000000000400000         | 25: test dword ptr [rbx+ENV_HFLAGS], HF_LMA
7420                         |     jz 33f
8b8308150000                 |     mov eax, [rbx+ENV_ERROR_CODE]
83f90e                       |     cmp ecx, 14
7415                         |     je 33f
a802                         |     test al, 2
7411                         |     jz 33f
89c6                         |     mov esi, eax
83e607                       |     and esi, 7
c1e804                       |     shr eax, 4
8d04c6                       |     lea eax, [rsi+rax*8]
898308150000                 |     mov [rbx+ENV_ERROR_CODE], eax
                             | # A fault in the delivery of an interrupt has EXT set in its error code.
83ba8c00000000               | 33: cmp dword ptr [rdx+T_EXTERNAL], 0
7434                         |     je 10f
c7828c00000000000000         |     mov dword ptr [rdx+T_EXTERNAL], 0
8d41f6                       |     lea eax, [rcx-10]
83f803                       |     cmp eax, 3
7722                         |     ja 10f
838b0815000001               |     or dword ptr [rbx+ENV_ERROR_CODE], 1
eb19                         |     jmp 10f
b802000000                   | 8:  mov eax, 2
8d71fd                       |     lea esi, [rcx-3]
83fe01                       |     cmp esi, 1
7705                         |     ja 11f
b801000000                   |     mov eax, 1
48298380000000               | 11: sub [rbx+ENV_EIP], rax
ff5220                       | 10: call [rdx+T_DELIVER]
c7830c15000000000000         |     mov dword ptr [rbx+ENV_IS_INT], 0
5b                           |     pop rbx
c3                           |     ret

0f1f8000000000               |     .balign 16
                             | # undefined(uc, T): hook of #UD; true: handled. INT1 is none: it is a #DB trap.
                             | undefined:
53                           |     push rbx
4155                         |     push r13
4883ec08                     |     sub rsp, 8
4889f3                       |     mov rbx, rsi
4531ed                       |     xor r13d, r13d
e8f5feffff                   |     call ldub
3df1000000                   |     cmp eax, 0xf1
7519                         |     jne 26f
488b4308                     |     mov rax, [rbx+T_CS]
c780a081000001000000         |     mov dword ptr [rax+CS_EXCEPTION], 1
488b4310                     |     mov rax, [rbx+T_ENV]
48ff8080000000               |     inc qword ptr [rax+ENV_EIP]
4889da                       | 26: mov rdx, rbx
e806ffffff                   |     call deliver
b801000000                   |     mov eax, 1
4883c408                     |     add rsp, 8
415d                         |     pop r13
5b                           |     pop rbx
c3                           |     ret

660f1f840000000000           |     .balign 16
                             | # syscall(uc, T): hook of SYSCALL. The caller adds the instruction's length to RIP.
                             | syscall_entry:
53                           |     push rbx
4154                         |     push r12
4155                         |     push r13
4156                         |     push r14
4883ec08                     |     sub rsp, 8
4989f4                       |     mov r12, rsi
488b5e10                     |     mov rbx, [rsi+T_ENV]
f7835002000001000000         |     test dword ptr [rbx+ENV_EFER], 1
0f847a010000                 |     jz bad
f783a801000001000000         |     test dword ptr [rbx+ENV_CR0], 1
0f846a010000                 |     jz bad
49ff442478                   |     inc qword ptr [r12+T_SYSCALLS]
4531ed                       |     xor r13d, r13d
4889df                       | 12: mov rdi, rbx
488bb380000000               |     mov rsi, [rbx+ENV_EIP]
4c01ee                       |     add rsi, r13
f783b000000000800000         |     test dword ptr [rbx+ENV_HFLAGS], HF_CS64
7509                         |     jnz 13f
4803b3d8000000               |     add rsi, [rbx+ENV_CS+8]
89f6                         |     mov esi, esi
41ff542458                   | 13: call [r12+T_CODE]
3c0f                         |     cmp al, 0x0f
7409                         |     je 14f
41ffc5                       |     inc r13d
4183fd0d                     |     cmp r13d, 13
72cc                         |     jb 12b
4183c502                     | 14: add r13d, 2
4889df                       |     mov rdi, rbx
41ff542440                   |     call [r12+T_FLAGS]
25fffffeff                   |     and eax, ~RF
4989c6                       |     mov r14, rax
8b8bdc120000                 |     mov ecx, [rbx+ENV_STAR+4]
81e1fcff0000                 |     and ecx, 0xfffc
488bb380000000               |     mov rsi, [rbx+ENV_EIP]
4c01ee                       |     add rsi, r13
8b93b0000000                 |     mov edx, [rbx+ENV_HFLAGS]
f7c200400000                 |     test edx, HF_LMA
7432                         |     jz 15f
48897308                     |     mov [rbx+ENV_RCX], rsi
4c897358                     |     mov [rbx+ENV_R11], r14
488b83f8120000               |     mov rax, [rbx+ENV_FMASK]
48f7d0                       |     not rax
4921c6                       |     and r14, rax
4c8b83e8120000               |     mov r8, [rbx+ENV_LSTAR]
f7c200800000                 |     test edx, HF_CS64
7507                         |     jnz 16f
4c8b83f0120000               |     mov r8, [rbx+ENV_CSTAR]
ba009ba000                   | 16: mov edx, 0xa09b00
eb19                         |     jmp 17f
89f6                         | 15: mov esi, esi
48897308                     |     mov [rbx+ENV_RCX], rsi
4181e6fffdfdff               |     and r14d, ~0x20200
448b83d8120000               |     mov r8d, [rbx+ENV_STAR]
ba009bc000                   |     mov edx, 0xc09b00
898bd0000000                 | 17: mov [rbx+ENV_CS], ecx
48c783d800000000000000       |     mov qword ptr [rbx+ENV_CS+8], 0
c783e0000000ffffffff         |     mov dword ptr [rbx+ENV_CS+16], -1
8993e4000000                 |     mov [rbx+ENV_CS+20], edx
83c108                       |     add ecx, 8
81e1fcff0000                 |     and ecx, 0xfffc
898be8000000                 |     mov [rbx+ENV_SS], ecx
48c783f000000000000000       |     mov qword ptr [rbx+ENV_SS+8], 0
c783f8000000ffffffff         |     mov dword ptr [rbx+ENV_SS+16], -1
c783fc0000000093c000         |     mov dword ptr [rbx+ENV_SS+20], 0xc09300
4489f0                       |     mov eax, r14d
25d5080000                   |     and eax, 0x8d5
48898398000000               |     mov [rbx+ENV_CC_SRC], rax
c783a800000001000000         |     mov dword ptr [rbx+ENV_CC_OP], 1
4489f0                       |     mov eax, r14d
c1e809                       |     shr eax, 9
83e002                       |     and eax, 2
f7d8                         |     neg eax
ffc0                         |     inc eax
8983ac000000                 |     mov [rbx+ENV_DF], eax
4181e62af3ffff               |     and r14d, ~0xcd5
4183ce02                     |     or r14d, 2
4c89b388000000               |     mov [rbx+ENV_EFLAGS], r14
4d29e8                       |     sub r8, r13
4c898380000000               |     mov [rbx+ENV_EIP], r8
4889df                       |     mov rdi, rbx
41ff542438                   |     call [r12+T_HFLAGS]
4883c408                     |     add rsp, 8
415e                         |     pop r14
415d                         |     pop r13
415c                         |     pop r12
5b                           |     pop rbx
c3                           |     ret
                             | bad:
4889df                       |     mov rdi, rbx
be06000000                   |     mov esi, 6
31d2                         |     xor edx, edx
41ff542430                   |     call [r12+T_RAISE]
cc                           |     int3

0f1f4000                     |     .balign 16
                             | # allow(): hook of code fetches outside RAM; true: the read callbacks supply the code.
                             | allow:
b801000000                   |     mov eax, 1
c3                           |     ret

662e0f1f840000000000         |     .balign 16
                             | # alarm(cell): the thread of an engine's timer. Each expiry ends the run.
                             | alarm:
53                           |     push rbx
4889fb                       |     mov rbx, rdi
8b7b18                       | 18: mov edi, [rbx+A_FD]
488d7310                     |     lea rsi, [rbx+A_COUNT]
ba08000000                   |     mov edx, 8
ff5308                       |     call [rbx+A_READ]
837b1c00                     |     cmp dword ptr [rbx+A_QUIT], 0
7524                         |     jne 27f
4883f808                     |     cmp rax, 8
75e5                         |     jne 18b
488b03                       |     mov rax, [rbx+A_CONTROL]
c6404901                     |     mov byte ptr [rax+T_STOP+1], 1
488b4808                     |     mov rcx, [rax+T_CS]
488b9130010000               |     mov rdx, [rcx+CS_ICOUNT]
c6411501                     |     mov byte ptr [rcx+CS_EXIT_REQUEST], 1
66c74202ffff                 |     mov word ptr [rdx+2], 0xffff
ebc7                         |     jmp 18b
31c0                         | 27: xor eax, eax
5b                           |     pop rbx
c3                           |     ret

66662e0f1f8400000000000f1f4000 |     .balign 16
                             | # written(uc, pages, ram address, length, pc): rbp is the TLB entry of the store.
                             | # Let later stores take the fast path if no code is left on the page, and only then.
                             | written:
80bff207000001               |     cmp byte ptr [rdi+UC_NO_EXIT_REQUEST], 1
488d05d2faffff               |     lea rax, [rip+run-T_SIZE]
7402                         |     je 19f
ff20                         |     jmp [rax+P_INVALIDATE]
57                           | 19: push rdi
52                           |     push rdx
4883ec08                     |     sub rsp, 8
ff10                         |     call [rax+P_INVALIDATE]
4883c408                     |     add rsp, 8
5e                           |     pop rsi
5f                           |     pop rdi
48837d08ff                   |     cmp qword ptr [rbp+TLB_WRITE], -1
0f8487000000                 |     je 23f
48c1ee0c                     |     shr rsi, 12
4889f2                       |     mov rdx, rsi
8b8ff4020000                 |     mov ecx, [rdi+UC_L1_SHIFT]
48d3ea                       |     shr rdx, cl
486387f0020000               |     movsxd rax, dword ptr [rdi+UC_L1_SIZE]
48ffc8                       |     dec rax
4821c2                       |     and rdx, rax
488b87e0020000               |     mov rax, [rdi+UC_L1_MAP]
488d04d0                     |     lea rax, [rax+rdx*8]
8b8ff8020000                 |     mov ecx, [rdi+UC_L2_LEVELS]
6bc90a                       |     imul ecx, ecx, 10
488b00                       | 20: mov rax, [rax]
4885c0                       |     test rax, rax
7446                         |     jz 22f
85c9                         |     test ecx, ecx
7e15                         |     jle 21f
4889f2                       |     mov rdx, rsi
48d3ea                       |     shr rdx, cl
81e2ff030000                 |     and edx, 0x3ff
488d04d0                     |     lea rax, [rax+rdx*8]
83e90a                       |     sub ecx, 10
ebdf                         |     jmp 20b
81e6ff030000                 | 21: and esi, 0x3ff
488d3476                     |     lea rsi, [rsi+rsi*2]
48833cf000                   |     cmp qword ptr [rax+rsi*8], 0
741c                         |     je 22f
48837d10ff                   |     cmp qword ptr [rbp+TLB_CODE], -1
751d                         |     jne 23f
488b4508                     |     mov rax, [rbp+TLB_WRITE]
482500f0ffff                 |     and rax, -4096
480d00080000                 |     or rax, TLB_INVALID
48894510                     |     mov [rbp+TLB_CODE], rax
c3                           |     ret
48816508fffbffff             | 22: and qword ptr [rbp+TLB_WRITE], ~TLB_NOTDIRTY
c3                           | 23: ret

66662e0f1f8400000000006690   |     .balign 16
                             | # first_code(uc, ram address): a page gets its first code. Flush what could write there.
                             | first_code:
80bff207000001               |     cmp byte ptr [rdi+UC_NO_EXIT_REQUEST], 1
7511                         |     jne 24f
488bbfb8010000               |     mov rdi, [rdi+UC_CPU]
488d0509faffff               |     lea rax, [rip+run-T_SIZE]
ff6008                       |     jmp [rax+P_FLUSH]
c3                           | 24: ret

0f1f440000                   |     .balign 16
                             | # translate(cpu, block, limit): 64 instructions at most, however many are asked for.
                             | # The translator has room for 512 temporaries and does not look; some instructions leak.
                             | translate:
488b87a8810000               |     mov rax, [rdi+CS_UC]
80b8f207000001               |     cmp byte ptr [rax+UC_NO_EXIT_REQUEST], 1
488d05ebf9ffff               |     lea rax, [rip+run-T_SIZE]
750a                         |     jne 28f
b940000000                   |     mov ecx, 64
39ca                         |     cmp edx, ecx
0f47d1                       |     cmova edx, ecx
ff6010                       | 28: jmp [rax+P_TRANSLATE]

66662e0f1f84000000000090     |     .balign 16
                             | # port_in(uc, port, size, T), port_out(uc, port, size, value, T): hooks of IN and OUT.
                             | port_in:
4989c8                       |     mov r8, rcx
41b990000000                 |     mov r9d, T_IN
eb06                         |     jmp 29f
                             | port_out:
41b998000000                 |     mov r9d, T_OUT
498b4010                     | 29: mov rax, [r8+T_ENV]
448b98b0000000               |     mov r11d, [rax+ENV_HFLAGS]
41f7c380000000               |     test r11d, HF_PE
744b                         |     jz 31f
448b9088000000               |     mov r10d, [rax+ENV_EFLAGS]
41f7c200000200               |     test r10d, HF_VM
7511                         |     jnz 30f
4183e303                     |     and r11d, HF_CPL
41c1ea0c                     |     shr r10d, 12
4183e203                     |     and r10d, 3
4539d3                       |     cmp r11d, r10d
762a                         |     jbe 31f
                             | # Not privileged: the bitmap of the TSS decides. #GP leaves through cpu_exec.
57                           | 30: push rdi
56                           |     push rsi
52                           |     push rdx
51                           |     push rcx
4150                         |     push r8
4151                         |     push r9
4883ec08                     |     sub rsp, 8
4889c7                       |     mov rdi, rax
b8a0000000                   |     mov eax, T_CHECK_IO
d1ea                         |     shr edx, 1
488d04d0                     |     lea rax, [rax+rdx*8]
41ff1400                     |     call [r8+rax]
4883c408                     |     add rsp, 8
4159                         |     pop r9
4158                         |     pop r8
59                           |     pop rcx
5a                           |     pop rdx
5e                           |     pop rsi
5f                           |     pop rdi
43ff2408                     | 31: jmp [r8+r9]

"""


def _parse(listing: str) -> tuple[bytes, dict[str, int]]:
    code = bytearray()
    labels = {}
    for line in listing.splitlines():
        left, _, right = line.partition("|")
        name = right.strip()
        if name.endswith(":") and name[0].isalpha():
            labels[name[:-1]] = len(code)
        code += bytes.fromhex(left)
    return bytes(code), labels


CODE, LABELS = _parse(LISTING)


class Page:
    """An executable page: data of `data_size` bytes, then the code."""

    __slots__ = ("_anchor", "_memory", "address", "bytes", "quads", "words")

    def __init__(self, data_size: int = T_SIZE) -> None:
        try:
            self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError as error:
            reason = f"memory that is writable and executable is forbidden here ({error})"
            raise EngineRefused(
                "unicorn", reason, "Allow it (SELinux: execmem; systemd: MemoryDenyWriteExecute)"
            ) from error
        self._memory[T_SIZE : T_SIZE + len(CODE)] = CODE
        self._anchor = ctypes.c_ubyte.from_buffer(self._memory)
        self.address = ctypes.addressof(self._anchor)
        self.bytes = memoryview(self._memory)[:data_size]
        self.words = self.bytes.cast("I")
        self.quads = self.bytes.cast("Q")

    def entry(self, label: str) -> int:
        """Address of a routine."""
        return self.address + T_SIZE + LABELS[label]


def control_block(library: Library, uc: int, cs: int, env: int, handlers: tuple[int, int, int]) -> Page:
    """The page of one engine, ready to run. `handlers`: addresses of those for intercepts, IN and OUT."""
    page = Page()
    for offset, value in (
        (T_UC, uc),
        (T_CS, cs),
        (T_ENV, env),
        (T_EXEC, library.address("cpu_exec_x86_64")),
        (T_DELIVER, library.address("x86_cpu_do_interrupt_x86_64")),
        (T_EXIT, handlers[0]),
        (T_IN, handlers[1]),
        (T_OUT, handlers[2]),
        (T_RAISE, library.address("raise_exception_err_x86_64")),
        (T_HFLAGS, library.address("x86_update_hflags_x86_64")),
        (T_FLAGS, library.address("helper_read_eflags_x86_64")),
        (T_CODE, library.address("cpu_ldub_code_x86_64")),
        (T_CHECK_IO, library.address("helper_check_iob_x86_64")),
        (T_CHECK_IO + 8, library.address("helper_check_iow_x86_64")),
        (T_CHECK_IO + 16, library.address("helper_check_iol_x86_64")),
        (T_INTERRUPT, library.address("do_interrupt_x86_hardirq_x86_64")),
    ):
        page.quads[offset >> 3] = value
    page.words[T_RF >> 2] = _RF_ALWAYS
    page.words[T_RF_DEBUG >> 2] = _RF_DEBUGGING
    return page
