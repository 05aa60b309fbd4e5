# exits: what leaving the guest costs. Each kind of exit is made n times in a row and timed with the TSC.
#
# Command line: n=<exits of each kind, default 10000>
# Output on COM1:
#   exits: start
#   exits: port-out 10000 cycles 123456         (port 80h, which nobody reads)
#   exits: port-in 10000 cycles 123456
#   exits: lapic-write 10000 cycles 123456      (TPR)
#   exits: lapic-read 10000 cycles 123456       (LDR)
#   exits: ioapic-write 10000 cycles 123456     (IOREGSEL)
#   exits: ioapic-read 10000 cycles 123456      (IOWIN, the version)
#   exits: edu-write 10000 cycles 123456        (liveness; only with an edu on bus 0, the first one)
#   exits: edu-read 10000 cycles 123456
#   exits: self-ipi 10000 cycles 123456         (ICR write, interrupt, EOI)
#   exits: edge 10000 cycles 123456             (only with pc-testdev: line up, edge by the IOAPIC, EOI, line down)
#   exits: halt 100 cycles 123456               (n / 100 times: local APIC timer set to 100 us, HLT until it expired)
#   exits: done
# Exit: isa-debug-exit value 0.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

        .equ    POST_PORT,              0x80
        .equ    TESTDEV_DATA,           0xe0            # pc-testdev: a register,
        .equ    TESTDEV_LINES,          0x2000          # and one port for each interrupt line
        .equ    EDU_LIVENESS,           0x04
        .equ    EDGE_PIN,               5
        .equ    EDGE_VECTOR,            0x61
        .equ    IPI_VECTOR,             0x71
        .equ    TIMER_VECTOR,           0x81
        .equ    TIMER_TICKS,            100000          # of a nanosecond: the timer is divided by 1

        .section .rodata
        .globl  image_name
image_name:
        .asciz  "exits"
option_n:
        .ascii  "n="

        .text
# What `measure` is given: a name, what to do, how often.
        .macro  timed name, routine, times=count
        .section .rodata
.Lname\@:
        .asciz  "\name"
        .text
        movl    $.Lname\@, %eax
        movl    $\routine, %edx
        movl    \times, %ecx
        call    measure
        .endm

        .globl  main
main:
        say     "exits: start\n"
        movl    $option_n, %eax
        movl    $2, %edx
        call    option
        testl   %eax, %eax
        jz      1f
        call    number
        testl   %eax, %eax
        jz      1f
        movl    %eax, count
1:      xorl    %edx, %edx
        movl    count, %eax
        movl    $100, %ecx
        divl    %ecx
        testl   %eax, %eax
        jnz     1f
        incl    %eax
1:      movl    %eax, halts
        timed   "port-out", port_out
        timed   "port-in", port_in
        timed   "lapic-write", lapic_write
        timed   "lapic-read", lapic_read
        movl    $IOAPIC_VERSION, IOAPIC_IOREGSEL
        timed   "ioapic-write", ioapic_select
        timed   "ioapic-read", ioapic_window
        call    find_edu
        testl   %eax, %eax
        jz      1f
        movl    %eax, edu
        timed   "edu-write", edu_write
        timed   "edu-read", edu_read
1:      movl    $IPI_VECTOR, %eax
        movl    $arrive, %edx
        call    set_handler
        sti
        timed   "self-ipi", self_ipi
        call    have_testdev
        testl   %eax, %eax
        jz      1f
        movl    $EDGE_VECTOR, %eax
        movl    $arrive, %edx
        call    set_handler
        movl    $EDGE_PIN, %eax
        movl    $EDGE_VECTOR, %edx                      # fixed, edge, active high
        call    ioapic_route
        timed   "edge", edge
1:      cli
        movl    $TIMER_VECTOR, %eax
        movl    $arrive, %edx
        call    set_handler
        movl    $TIMER_DIVIDE_BY_1, LAPIC_TIMER_DIVIDE
        movl    $TIMER_VECTOR, LAPIC_LVT_TIMER          # one-shot
        timed   "halt", halt, halts
        movl    $LVT_MASKED, LAPIC_LVT_TIMER
        say     "exits: done\n"
        xorl    %eax, %eax
        ret

# measure(EAX = name, EDX = routine, ECX = how often): once to get translated and warm, then with the clock.
measure:
        push    %ebx
        push    %esi
        push    %edi
        push    %ebp
        movl    %eax, %ebx
        movl    %edx, %esi
        movl    %ecx, %edi
        movl    %ecx, %ebp
        call    *%esi
        rdtsc
        movl    %eax, start_cycles
        movl    %edx, start_cycles + 4
1:      call    *%esi
        decl    %ebp
        jnz     1b
        rdtsc
        subl    start_cycles, %eax
        sbbl    start_cycles + 4, %edx
        movl    %eax, start_cycles
        movl    %edx, start_cycles + 4
        say     "exits: "
        movl    %ebx, %eax
        call    puts
        movb    $' ', %al
        call    putc
        movl    %edi, %eax
        call    put_decimal
        say     " cycles "
        movl    start_cycles, %eax
        movl    start_cycles + 4, %edx
        call    put_decimal64
        call    newline
        pop     %ebp
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

port_out:
        outb    %al, $POST_PORT
        ret

port_in:
        inb     $POST_PORT, %al
        ret

lapic_write:
        movl    $0, LAPIC_TPR
        ret

lapic_read:
        movl    LAPIC_LDR, %eax
        ret

ioapic_select:
        movl    $IOAPIC_VERSION, IOAPIC_IOREGSEL
        ret

ioapic_window:
        movl    IOAPIC_IOWIN, %eax
        ret

edu_write:
        movl    edu, %edx
        movl    %edx, EDU_LIVENESS(%edx)
        ret

edu_read:
        movl    edu, %edx
        movl    EDU_LIVENESS(%edx), %eax
        ret

self_ipi:
        movl    arrived, %ecx
        movl    $ICR_SELF | ICR_ASSERT | ICR_FIXED | IPI_VECTOR, LAPIC_ICR_LOW
1:      cmpl    arrived, %ecx
        jne     2f
        pause
        jmp     1b
2:      ret

edge:
        movl    arrived, %ecx
        movl    $TESTDEV_LINES + EDGE_PIN, %edx
        movb    $1, %al
        outb    %al, %dx
1:      cmpl    arrived, %ecx
        jne     2f
        pause
        jmp     1b
2:      xorl    %eax, %eax
        outb    %al, %dx
        ret

halt:
        movl    arrived, %ecx
        movl    $TIMER_TICKS, LAPIC_TIMER_INITIAL
1:      sti                                             # takes effect after HLT has begun
        hlt
        cli
        cmpl    arrived, %ecx
        je      1b
        ret

# The handler of all three. Interrupted code counts on ECX and EDX, which the common entry keeps.
arrive:
        incl    arrived
        movl    $0, LAPIC_EOI
        ret

# have_testdev() -> EAX = 0 if there is no pc-testdev: what is written to its register comes back.
have_testdev:
        movl    $0x5a0f3c69, %eax
        movl    %eax, %ecx
        outl    %eax, $TESTDEV_DATA
        xorl    %eax, %eax
        inl     $TESTDEV_DATA, %eax
        cmpl    %ecx, %eax
        je      1f
        xorl    %eax, %eax
1:      ret

# find_edu() -> EAX = address of the registers of the first edu on bus 0 that has one, or 0
find_edu:
        push    %ebx
        xorl    %ebx, %ebx
1:      movl    %ebx, %eax
        movl    $PCI_ID, %edx
        call    pci_read
        cmpl    $EDU_ID, %eax
        jne     2f
        movl    %ebx, %eax
        movl    $PCI_BAR0, %edx
        call    pci_read
        andl    $~15, %eax
        jz      2f
        push    %eax
        movl    %ebx, %eax
        call    pci_enable
        pop     %eax
        jmp     3f
2:      movl    %ebx, %eax
        call    pci_next
        movl    %eax, %ebx
        xorl    %eax, %eax
        cmpl    $256, %ebx
        jb      1b
3:      pop     %ebx
        ret

        .data
        .balign 4
count:  .long   10000

        .bss
        .balign 8
start_cycles:
        .skip   8
halts:  .skip   4
edu:    .skip   4
arrived:
        .skip   4
