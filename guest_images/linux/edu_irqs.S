# edu_irqs ROUNDS UIO RESOURCE0 CONFIG [UIO RESOURCE0 CONFIG]
#
# Level interrupts of one or two edu devices under uio_pci_generic, for a Linux guest on x86-64, without a C library.
# In round n device n mod 2 raises its interrupt; the program waits for it, finds it in the status register,
# acknowledges it, and lets INTx through again (bit 10 of the command register, which the driver has set). In every
# eighth round both raise theirs before either is waited for, so that the pin has two reasons to be high.
#
# Exit status: 0, or 1 for a wrong command line, 2 for a file that cannot be opened or mapped, 3 for an interrupt
# without a cause, 4 for a read or write that failed.
# SPDX-License-Identifier: GPL-2.0-or-later
        .intel_syntax noprefix
        .set SYS_read, 0
        .set SYS_write, 1
        .set SYS_open, 2
        .set SYS_mmap, 9
        .set SYS_pread64, 17
        .set SYS_pwrite64, 18
        .set SYS_exit, 60
        .set O_RDWR_SYNC, 0x101002
        .set PROT_READ_WRITE, 3
        .set MAP_SHARED, 1
        .set EDU_STATUS, 0x24
        .set EDU_RAISE, 0x60
        .set EDU_ACK, 0x64
        .set COMMAND_HIGH, 5
        .set DISINTX, 0x04

        # A device: its descriptors and registers, 32 bytes.
        .set UIO, 0
        .set CONFIG, 8
        .set BASE, 16
        .set COMMAND, 24

        .bss
        .balign 16
devices: .skip 64
count:  .skip 8

        .text
        .globl _start
_start:
        mov     r12, [rsp]              # argc
        lea     r13, [rsp + 16]         # argv[1]
        mov     edi, 1
        cmp     r12, 5
        je      1f
        cmp     r12, 8
        jne     leave
1:      mov     rsi, [r13]              # ROUNDS
        xor     r14d, r14d
2:      movzx   eax, byte ptr [rsi]
        test    eax, eax
        jz      3f
        sub     eax, '0'
        cmp     eax, 9
        ja      leave
        imul    r14, r14, 10
        add     r14, rax
        inc     rsi
        jmp     2b
3:      lea     rbx, [rip + devices]
        lea     rbp, [r13 + 8]
        call    attach
        cmp     r12, 5
        je      4f
        lea     rbx, [rip + devices + 32]
        lea     rbp, [r13 + 32]
        call    attach
        jmp     9f
4:      movups  xmm0, [rbx]             # one device: it is both, and by the same descriptor, which knows what it has seen
        movups  xmm1, [rbx + 16]
        movups  [rbx + 32], xmm0
        movups  [rbx + 48], xmm1
9:

        xor     r15d, r15d              # round
5:      cmp     r15, r14
        je      8f
        lea     rbx, [rip + devices]
        lea     rbp, [rip + devices + 32]
        test    r15d, 1
        jz      6f
        xchg    rbx, rbp
6:      mov     rax, [rbx + BASE]
        mov     dword ptr [rax + EDU_RAISE], 1
        test    r15d, 7
        jnz     7f
        cmp     r12, 5
        je      7f
        mov     rax, [rbp + BASE]
        mov     dword ptr [rax + EDU_RAISE], 1
        call    service
        mov     rbx, rbp
7:      call    service
        inc     r15
        jmp     5b
8:      xor     edi, edi
leave:  mov     eax, SYS_exit
        syscall

# Open the files named at rbp (UIO, RESOURCE0, CONFIG) for the device at rbx.
attach: mov     rdi, [rbp]
        call    open
        mov     [rbx + UIO], rax
        mov     rdi, [rbp + 16]
        call    open
        mov     [rbx + CONFIG], rax
        mov     rdi, [rbp + 8]
        call    open
        mov     r8, rax
        xor     edi, edi
        mov     esi, 4096
        mov     edx, PROT_READ_WRITE
        mov     r10d, MAP_SHARED
        xor     r9d, r9d
        mov     eax, SYS_mmap
        syscall
        mov     edi, 2
        test    rax, rax
        js      leave
        mov     [rbx + BASE], rax
        mov     rdi, [rbx + CONFIG]
        lea     rsi, [rbx + COMMAND]
        mov     edx, 1
        mov     r10d, COMMAND_HIGH
        mov     eax, SYS_pread64
        syscall
        mov     edi, 4
        cmp     rax, 1
        jne     leave
        and     byte ptr [rbx + COMMAND], ~DISINTX
        ret

open:   mov     esi, O_RDWR_SYNC
        mov     eax, SYS_open
        syscall
        mov     edi, 2
        test    rax, rax
        js      leave
        ret

# Wait for the interrupt of the device at rbx, acknowledge it, let the next one through.
service:
        mov     rdi, [rbx + UIO]
        lea     rsi, [rip + count]
        mov     edx, 4
        mov     eax, SYS_read
        syscall
        mov     edi, 4
        cmp     rax, 4
        jne     leave
        mov     rax, [rbx + BASE]
        mov     edi, 3
        cmp     dword ptr [rax + EDU_STATUS], 1
        jne     leave
        mov     dword ptr [rax + EDU_ACK], 1
        mov     rdi, [rbx + CONFIG]
        lea     rsi, [rbx + COMMAND]
        mov     edx, 1
        mov     r10d, COMMAND_HIGH
        mov     eax, SYS_pwrite64
        syscall
        mov     edi, 4
        cmp     rax, 1
        jne     leave
        ret
