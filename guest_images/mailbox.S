# mailbox: a guest that does what it is told, one numbered command at a time, and nothing else in between.
#
# Command line: pin=<IOAPIC pin, default 5>, which is level-triggered and unmasked
# Output on COM1:
#   mailbox: start
#   mailbox: pin 5 vector 81
#   mailbox: ready
#   mailbox: 1 took 81                  answers, each with the number of its command
#   mailbox: done
# Input on COM1, in lines: a number, a space, a word of which the first letter counts
#   1 take      let interrupts come if the pin's vector is pending, and take one, without EOI: "1 took 81" or "1 took 0"
#   2 eoi       write the EOI register: "2 ended"
#   3 mask      mask the pin's entry: "3 entry 0001e051", what it is then
#   4 unmask
#   5 read      "5 entry 0000e051"
#   6 quit
# What it does not know is answered "7 unknown". Interrupts are off but for the moment of `take`, so a delivery
# waits in the local APIC until it is asked for.
# Exit: isa-debug-exit value 0.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

        .equ    LAPIC_IRR,              LAPIC + 0x200

        .section .rodata
        .globl  image_name
image_name:
        .asciz  "mailbox"
option_pin:
        .ascii  "pin="

        .text
        .globl  main
main:
        say     "mailbox: start\n"
        movl    $option_pin, %eax
        movl    $4, %edx
        call    option
        testl   %eax, %eax
        jz      1f
        call    number
        cmpl    $PINS, %eax
        jae     1f
        movl    %eax, pin
1:      movl    pin, %eax
        movl    $taken, %edx
        call    route_pin
        movl    %eax, vector
        say     "mailbox: pin "
        movl    pin, %eax
        call    put_decimal
        say     " vector "
        movl    vector, %eax
        call    put_decimal
        say     "\nmailbox: ready\n"

# One line: ESI its number, BL its first letter (0: none yet), BH whether the number is over.
.Lline: xorl    %esi, %esi
        xorl    %ebx, %ebx
.Lbyte: call    getc
        testl   %eax, %eax
        js      .Lbyte
        cmpb    $'\n', %al
        je      .Lcommand
        cmpb    $'\r', %al
        je      .Lcommand
        testb   %bh, %bh
        jnz     .Lword
        leal    -'0'(%eax), %ecx
        cmpl    $9, %ecx
        ja      .Lnumber_over
        imull   $10, %esi
        addl    %ecx, %esi
        jmp     .Lbyte
.Lnumber_over:
        movb    $1, %bh
.Lword: cmpb    $' ', %al
        je      .Lbyte
        testb   %bl, %bl
        jnz     .Lbyte
        movb    %al, %bl
        jmp     .Lbyte

.Lcommand:
        testl   %ebx, %ebx
        jnz     1f
        testl   %esi, %esi
        jz      .Lline                                  # an empty line
1:      say     "mailbox: "
        movl    %esi, %eax
        call    put_decimal
        cmpb    $'t', %bl
        je      .Ltake
        cmpb    $'e', %bl
        je      .Leoi
        cmpb    $'m', %bl
        je      .Lmask
        cmpb    $'u', %bl
        je      .Lunmask
        cmpb    $'r', %bl
        je      .Lentry
        cmpb    $'q', %bl
        je      .Lquit
        say     " unknown\n"
        jmp     .Lline

.Ltake: movl    $0, took
        movl    vector, %ecx
        movl    %ecx, %eax
        shrl    $5, %eax
        shll    $4, %eax                                # a register of 32 vectors is 16 bytes on
        movl    LAPIC_IRR(%eax), %edx
        btl     %ecx, %edx                              # modulo 32
        jnc     1f
        sti
        nop
        nop
        cli
1:      say     " took "
        movl    took, %eax
        call    put_decimal
        call    newline
        jmp     .Lline

# The handler: note the vector; the EOI is a command of its own.
taken:
        movl    %eax, took
        ret

.Leoi:  movl    $0, LAPIC_EOI
        say     " ended\n"
        jmp     .Lline

.Lmask: call    entry
        orl     $RTE_MASKED, %edx
        call    ioapic_write
        jmp     .Lentry
.Lunmask:
        call    entry
        andl    $~RTE_MASKED, %edx
        call    ioapic_write
.Lentry:
        say     " entry "
        call    entry
        movl    %edx, %eax
        movl    $8, %edx
        call    put_hex
        call    newline
        jmp     .Lline

.Lquit: say     " bye\nmailbox: done\n"
        xorl    %eax, %eax
        ret

# entry() -> EAX = register of the pin's entry, low half; EDX = what it holds
entry:
        movl    pin, %eax
        leal    IOAPIC_REDTBL(,%eax,2), %eax
        push    %eax
        call    ioapic_read
        movl    %eax, %edx
        pop     %eax
        ret

        .data
        .balign 4
pin:    .long   5

        .bss
        .balign 4
vector: .skip   4
took:   .skip   4
