# The serial console: polled output at 115200 8N1 on COM1, polled input.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"
        .text

        .globl  console_init
console_init:
        movl    $COM1_IER, %edx
        xorl    %eax, %eax
        outb    %al, %dx
        movl    $COM1_LCR, %edx
        movb    $LCR_DLAB, %al
        outb    %al, %dx
        movl    $COM1, %edx                             # divisor 1
        movb    $1, %al
        outb    %al, %dx
        incl    %edx
        xorl    %eax, %eax
        outb    %al, %dx
        movl    $COM1_LCR, %edx
        movb    $LCR_8N1, %al
        outb    %al, %dx
        movl    $COM1_FCR, %edx                         # FIFOs on and empty
        movb    $0x07, %al
        outb    %al, %dx
        movl    $COM1_MCR, %edx                         # DTR, RTS, OUT2 (lets interrupts through)
        movb    $0x0b, %al
        outb    %al, %dx
        ret

# putc(AL). Keeps every register: it is called in the middle of everything.
        .globl  putc
putc:
        push    %edx
        push    %eax
        movl    $COM1_LSR, %edx
1:      inb     %dx, %al
        testb   $LSR_THR_EMPTY, %al
        jz      1b
        movl    $COM1, %edx
        movl    (%esp), %eax
        outb    %al, %dx
        pop     %eax
        pop     %edx
        ret

# getc() -> EAX = the next input byte, or -1 if there is none.
        .globl  getc
getc:
        movl    $COM1_LSR, %edx
        inb     %dx, %al
        testb   $LSR_DATA_READY, %al
        jz      1f
        xorl    %eax, %eax
        movl    $COM1, %edx
        inb     %dx, %al
        ret
1:      movl    $-1, %eax
        ret

# puts(EAX = text ending in 0)
        .globl  puts
puts:
        push    %esi
        movl    %eax, %esi
1:      lodsb
        testb   %al, %al
        jz      2f
        call    putc
        jmp     1b
2:      pop     %esi
        ret

        .globl  newline
newline:
        movb    $'\n', %al
        jmp     putc

# put_decimal(EAX)
        .globl  put_decimal
put_decimal:
        xorl    %edx, %edx
# put_decimal64(EDX:EAX)
        .globl  put_decimal64
put_decimal64:
        push    %ebx
        push    %esi
        push    %edi
        movl    $10, %ebx
        movl    %edx, %esi                              # high half
        movl    %eax, %edi                              # low half
        xorl    %ecx, %ecx                              # digits on the stack
1:      movl    %esi, %eax
        xorl    %edx, %edx
        divl    %ebx
        movl    %eax, %esi
        movl    %edi, %eax
        divl    %ebx
        movl    %eax, %edi
        push    %edx
        incl    %ecx
        orl     %esi, %eax
        jnz     1b
2:      pop     %eax
        addb    $'0', %al
        call    putc
        loop    2b
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

# put_hex(EAX, EDX = number of digits)
        .globl  put_hex
put_hex:
        push    %ebx
        movl    %eax, %ebx
        leal    (,%edx,4), %ecx
1:      subl    $4, %ecx
        jl      2f
        movl    %ebx, %eax
        shrl    %cl, %eax
        andl    $15, %eax
        movb    hex_digits(%eax), %al
        call    putc
        jmp     1b
2:      pop     %ebx
        ret

        .section .rodata
hex_digits:
        .ascii  "0123456789abcdef"
