# Entry of every image: Multiboot header, segments, stack, interrupt table, command line; then `main`.
#
# Calls pass arguments in EAX, EDX, ECX and return in EAX; those three are clobbered, the others are kept.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

        .equ    HEADER_MAGIC,           0x1badb002
        .equ    HEADER_FLAGS,           0x00000003      # page-aligned modules, memory information

        .section .multiboot, "a"
        .balign 4
        .long   HEADER_MAGIC, HEADER_FLAGS, -(HEADER_MAGIC + HEADER_FLAGS)

        .text
        .globl  _start
_start:
        cli
        cld
        movl    $stack_top, %esp
        movl    %eax, %ebp
        lgdt    gdt_pointer
        ljmp    $CODE_SELECTOR, $1f
1:      movl    $DATA_SELECTOR, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        call    console_init
        cmpl    $MULTIBOOT_LOADED, %ebp
        jne     2f
        testb   $4, (%ebx)                              # flags: cmdline is valid
        jz      2f
        movl    16(%ebx), %esi
        movl    $command_line, %edi
        movl    $command_line_end - command_line - 1, %ecx
3:      lodsb
        stosb
        testb   %al, %al
        jz      2f
        loop    3b
2:      call    interrupts_init
        call    main
        # `main` returned: EAX is the value for isa-debug-exit.
        .globl  leave
leave:
        cli
        movl    $DEBUG_EXIT, %edx
        outl    %eax, %dx
        # No such device: power off, and where that is not there either, stop.
        .globl  power_off
power_off:
        cli
        movl    $PM1_CONTROL, %edx
        movl    $PM1_SLP_EN_S5, %eax
        outw    %ax, %dx
1:      hlt
        jmp     1b

# option(EAX = name with its length in EDX) -> EAX = what follows the name in the word of the command line that
# begins with it, or 0. The first word is the kernel's own name and is not looked at.
        .globl  option
option:
        push    %ebx
        push    %esi
        push    %edi
        movl    %eax, %ebx
        movl    $command_line, %esi
.Lskip_word:
        lodsb
        testb   %al, %al
        jz      .Labsent
        cmpb    $' ', %al
        jne     .Lskip_word
        movl    %ebx, %edi
        movl    %edx, %ecx
        push    %esi
        repe cmpsb
        movl    %esi, %eax
        pop     %esi
        jne     .Lskip_word
        # The whole name matched; a flag must also end here, a `name=` has its value here.
        cmpb    $'=', -1(%eax)
        je      .Lfound
        cmpb    $' ', (%eax)
        je      .Lfound
        cmpb    $0, (%eax)
        jne     .Lskip_word
        jmp     .Lfound
.Labsent:
        xorl    %eax, %eax
.Lfound:
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

# number(EAX = text) -> EAX = the decimal number there (0 if none).
        .globl  number
number:
        push    %esi
        movl    %eax, %esi
        xorl    %eax, %eax
        xorl    %ecx, %ecx
1:      movb    (%esi), %cl
        subb    $'0', %cl
        cmpb    $9, %cl
        ja      2f
        imull   $10, %eax
        addl    %ecx, %eax
        incl    %esi
        jmp     1b
2:      pop     %esi
        ret

        .section .rodata
        .balign 8
        .globl  gdt
gdt:    .quad   0
        .quad   0x00cf9b000000ffff                      # code: 4 GiB, 32-bit, accessed
        .quad   0x00cf93000000ffff                      # data: 4 GiB
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt

        .bss
        .globl  command_line
command_line:
        .skip   512
command_line_end:
        .balign 16
        .skip   16384
stack_top:
