# The interrupt table, the local APIC, the 8259A pair out of the way, and IOAPIC entries.
#
# 256 stubs push their vector and meet in one place; `set_handler` says who is called there. A handler gets the
# vector in EAX, may clobber EAX, ECX and EDX, and sends its own EOI.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"
        .equ    FIRST_VECTOR,           0x51
        .equ    VECTOR_STEP,            0x10
        .equ    MAX_PINS,               10
        .text

        .globl  interrupts_init
interrupts_init:
        push    %edi
        xorl    %ecx, %ecx
        movl    $idt, %edi
        movl    $stubs, %eax
1:      movw    %ax, (%edi)                             # interrupt gate, ring 0
        movw    $CODE_SELECTOR, 2(%edi)
        movw    $0x8e00, 4(%edi)
        movl    %eax, %edx
        shrl    $16, %edx
        movw    %dx, 6(%edi)
        movl    $unexpected, handlers(,%ecx,4)
        addl    $8, %edi
        addl    $16, %eax
        incl    %ecx
        cmpl    $256, %ecx
        jne     1b
        lidt    idt_pointer
        # Nothing may come through the 8259A pair any more.
        movb    $0xff, %al
        outb    %al, $PIC_MASTER_DATA
        outb    %al, $PIC_SLAVE_DATA
        movl    $SPURIOUS_VECTOR, %eax
        movl    $spurious, %edx
        call    set_handler
        pop     %edi
# lapic_init(): enable this CPU's local APIC and take every priority.
        .globl  lapic_init
lapic_init:
        movl    $LVT_MASKED, LAPIC_LVT_LINT0            # no ExtINT from the 8259A
        movl    $0, LAPIC_TPR
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR
        ret

# set_handler(EAX = vector, EDX = function)
        .globl  set_handler
set_handler:
        movl    %edx, handlers(,%eax,4)
        ret

# ioapic_read(EAX = register) -> EAX
        .globl  ioapic_read
ioapic_read:
        movl    %eax, IOAPIC_IOREGSEL
        movl    IOAPIC_IOWIN, %eax
        ret

# ioapic_write(EAX = register, EDX = value)
        .globl  ioapic_write
ioapic_write:
        movl    %eax, IOAPIC_IOREGSEL
        movl    %edx, IOAPIC_IOWIN
        ret

# ioapic_route(EAX = pin, EDX = low half of the entry): masked first, then to this CPU, then as asked.
        .globl  ioapic_route
ioapic_route:
        push    %ebx
        push    %edx
        leal    IOAPIC_REDTBL(,%eax,2), %ebx
        movl    %ebx, %eax
        movl    $RTE_MASKED, %edx
        call    ioapic_write
        leal    1(%ebx), %eax
        movl    LAPIC_ID, %edx
        andl    $0xff000000, %edx
        call    ioapic_write
        movl    %ebx, %eax
        pop     %edx
        call    ioapic_write
        pop     %ebx
        ret

# route_pin(EAX = IOAPIC pin, EDX = handler) -> EAX = its vector, 0 when there are none left. Level-triggered, to
# this CPU, with `entry_flags`. A pin keeps the vector it got first; each has a priority class of its own.
        .globl  route_pin
route_pin:
        push    %ebx
        push    %esi
        movl    %eax, %esi
        movl    pin_vector(,%esi,4), %ebx
        testl   %ebx, %ebx
        jnz     1f
        movl    pins_used, %ecx
        xorl    %eax, %eax
        cmpl    $MAX_PINS, %ecx
        jae     2f
        incl    pins_used
        imull   $VECTOR_STEP, %ecx, %ebx
        addl    $FIRST_VECTOR, %ebx
        movl    %ebx, pin_vector(,%esi,4)
        movl    %esi, vector_pin(,%ebx,4)
1:      movl    %ebx, %eax
        call    set_handler
        movl    entry_flags, %edx
        orl     %ebx, %edx
        movl    %esi, %eax
        call    ioapic_route
        movl    %ebx, %eax
2:      pop     %esi
        pop     %ebx
        ret

# Where all stubs meet. Stack: vector, error code, EIP, CS, EFLAGS.
common:
        push    %eax
        push    %ecx
        push    %edx
        movl    12(%esp), %eax
        call    *handlers(,%eax,4)
        pop     %edx
        pop     %ecx
        pop     %eax
        addl    $8, %esp
        iret

# The local APIC had nothing after all: no EOI (SDM vol. 3, 10.9).
spurious:
        ret

# An exception, or a vector nobody asked for: say so and leave.
unexpected:
        movl    %esp, %ebx
        push    %eax
        movl    $image_name, %eax
        call    puts
        say     ": unexpected vector "
        pop     %eax
        call    put_decimal
        say     " error "
        movl    20(%ebx), %eax
        movl    $8, %edx
        call    put_hex
        say     " eip "
        movl    24(%ebx), %eax
        movl    $8, %edx
        call    put_hex
        movl    %cr2, %eax
        push    %eax
        say     " cr2 "
        pop     %eax
        movl    $8, %edx
        call    put_hex
        call    newline
        movl    $EXIT_FAILED, %eax
        jmp     leave

# One stub per vector, 16 bytes each. Vectors 8, 10-14, 17, 21, 29 and 30 bring an error code of their own.
        .balign 16
stubs:
        .set    vector, 0
        .rept   256
        .balign 16, 0xcc
        .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
        push    $0
        .endif
        pushl   $vector
        jmp     common
        .set    vector, vector + 1
        .endr
        .balign 16, 0xcc

        .section .rodata
        .balign 4
        .globl  idt_pointer
idt_pointer:
        .word   256 * 8 - 1
        .long   idt

        .data
        .balign 4
        .globl  entry_flags
entry_flags:
        .long   RTE_LEVEL | RTE_ACTIVE_LOW

        .bss
        .balign 8
        .globl  vector_pin
vector_pin:
        .skip   256 * 4
pin_vector:
        .skip   PINS * 4
pins_used:
        .skip   4
        .balign 8
idt:    .skip   256 * 8
handlers:
        .skip   256 * 4
