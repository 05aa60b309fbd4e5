# code_alias ROUNDS
#
# Code that is rewritten through another mapping of its page, as just-in-time compilers and kernels do: a page of a
# memfd is mapped once to be executed and once to be written. Each round writes a function that returns the round's
# number through the one and calls it through the other; every 64th round a child of fork does so as well.
#
# Exit status: 0; 1 wrong command line; 2 no memory; 3 code that was overwritten was executed; 4 the same in a child.
# SPDX-License-Identifier: GPL-2.0-or-later
        .intel_syntax noprefix
        .set SYS_mmap, 9
        .set SYS_fork, 57
        .set SYS_exit, 60
        .set SYS_wait4, 61
        .set SYS_ftruncate, 77
        .set SYS_memfd_create, 319
        .set PROT_READ_WRITE, 3
        .set PROT_READ_EXEC, 5
        .set MAP_SHARED, 1

        .bss
status: .skip 8

        .data
name:   .asciz  "code"

        .text
        .globl _start
_start:
        mov     edi, 1
        cmp     qword ptr [rsp], 2
        jne     leave
        mov     rsi, [rsp + 16]
        xor     r14d, r14d
1:      movzx   eax, byte ptr [rsi]
        test    eax, eax
        jz      2f
        sub     eax, '0'
        cmp     eax, 9
        ja      leave
        imul    r14, r14, 10
        add     r14, rax
        inc     rsi
        jmp     1b
2:      lea     rdi, [rip + name]
        xor     esi, esi
        mov     eax, SYS_memfd_create
        syscall
        mov     rbp, rax
        mov     rdi, rbp
        mov     esi, 4096
        mov     eax, SYS_ftruncate
        syscall
        mov     edx, PROT_READ_WRITE
        call    map
        mov     r12, rax                # written here
        mov     edx, PROT_READ_EXEC
        call    map
        mov     r13, rax                # executed here

        xor     r15d, r15d
3:      cmp     r15, r14
        je      6f
        call    try
        mov     edi, 3
        jne     leave
        test    r15d, 63
        jnz     5f
        mov     eax, SYS_fork
        syscall
        test    rax, rax
        jnz     4f
        not     r15d                    # the child
        call    try
        setne   dil
        movzx   edi, dil
        jmp     leave
4:      mov     rdi, rax
        lea     rsi, [rip + status]
        xor     edx, edx
        xor     r10d, r10d
        mov     eax, SYS_wait4
        syscall
        mov     edi, 4
        cmp     dword ptr [rip + status], 0
        jne     leave
5:      inc     r15
        jmp     3b
6:      xor     edi, edi
leave:  mov     eax, SYS_exit
        syscall

# mov eax, r15d; ret: written to the one mapping, called in the other. ZF: it was that code.
try:    mov     byte ptr [r12], 0xb8
        mov     [r12 + 1], r15d
        mov     byte ptr [r12 + 5], 0xc3
        call    r13
        cmp     eax, r15d
        ret

map:    xor     edi, edi
        mov     esi, 4096
        mov     r10d, MAP_SHARED
        mov     r8, rbp
        xor     r9d, r9d
        mov     eax, SYS_mmap
        syscall
        mov     edi, 2
        test    rax, rax
        js      leave
        ret
