# smp: start every application processor by INIT and SIPI, then send interrupts between the processors and count them.
#
# Command line: n=<rounds, default 1000>
# Output on COM1:
#   smp: start
#   smp: cpus 4                                (from the MADT, else fw_cfg, else 1)
#   smp: online 4
#   smp: cpu 1 ipis 1000 broadcasts 1000       (one per application processor, by APIC id)
#   smp: cycles 123456                         (TSC of all rounds)
#   smp: done
# First n interrupts go to one processor after the other; then n go to all but the boot processor at once, which
# halts until each of them has answered with an interrupt.
# Exit: isa-debug-exit value 0, or 1 when not every processor came up.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

        .equ    IPI_VECTOR,             0x61
        .equ    BROADCAST_VECTOR,       0x62
        .equ    ANSWER_VECTOR,          0x63

        .section .rodata
        .globl  image_name
image_name:
        .asciz  "smp"
option_n:
        .ascii  "n="

        .text
        .globl  main
main:
        say     "smp: start\n"
        movl    $option_n, %eax
        movl    $2, %edx
        call    option
        testl   %eax, %eax
        jz      1f
        call    number
        movl    %eax, rounds
1:      call    count_processors
        say     "smp: cpus "
        movl    cpus, %eax
        call    put_decimal
        call    newline
        movl    $IPI_VECTOR, %eax
        movl    $count_ipi, %edx
        call    set_handler
        movl    $BROADCAST_VECTOR, %eax
        movl    $count_broadcast, %edx
        call    set_handler
        movl    $ANSWER_VECTOR, %eax
        movl    $answer, %edx
        call    set_handler
        movl    LAPIC_ID, %eax
        andl    $0xff000000, %eax
        movl    %eax, boot_destination
        call    start_processors
        say     "smp: online "
        movl    online, %eax
        call    put_decimal
        call    newline
        movl    online, %eax
        cmpl    cpus, %eax
        jne     .Lfailed
        rdtsc
        movl    %eax, start_cycles
        movl    %edx, start_cycles + 4
        call    send_ipis
        call    send_broadcasts
        rdtsc
        subl    start_cycles, %eax
        sbbl    start_cycles + 4, %edx
        movl    %eax, start_cycles
        movl    %edx, start_cycles + 4
        call    report
        xorl    %eax, %eax
        ret
.Lfailed:
        say     "smp: failed\n"
        movl    $EXIT_FAILED, %eax
        ret

report:
        push    %ebx
        movl    $1, %ebx
1:      cmpb    $0, present(%ebx)
        je      2f
        say     "smp: cpu "
        movl    %ebx, %eax
        call    put_decimal
        say     " ipis "
        movl    ipis(,%ebx,4), %eax
        call    put_decimal
        say     " broadcasts "
        movl    broadcasts(,%ebx,4), %eax
        call    put_decimal
        call    newline
2:      incl    %ebx
        cmpl    $256, %ebx
        jb      1b
        say     "smp: cycles "
        movl    start_cycles, %eax
        movl    start_cycles + 4, %edx
        call    put_decimal64
        say     "\nsmp: done\n"
        pop     %ebx
        ret

# An application processor: wait for interrupts.
        .globl  processor_ready
processor_ready:
        sti
        hlt
        jmp     processor_ready

# ---------------------------------------------------------------- interrupts between processors

send_ipis:
        push    %ebx
        push    %esi
        movl    $1, %ebx                                # APIC id
1:      cmpb    $0, present(%ebx)
        je      5f
        xorl    %esi, %esi
2:      cmpl    rounds, %esi
        jae     5f
        incl    %esi
        movl    %ebx, %eax
        shll    $24, %eax
        movl    %eax, LAPIC_ICR_HIGH
        movl    $ICR_ASSERT | ICR_FIXED | IPI_VECTOR, %eax
        call    send
3:      cmpl    %esi, ipis(,%ebx,4)
        jae     2b
        pause
        jmp     3b
5:      incl    %ebx
        cmpl    $256, %ebx
        jb      1b
        pop     %esi
        pop     %ebx
        ret

send_broadcasts:
        push    %ebx
        push    %esi
        cmpl    $1, cpus
        je      5f
        xorl    %esi, %esi
1:      cmpl    rounds, %esi
        jae     5f
        incl    %esi
        movl    $ICR_ALL_BUT_SELF | ICR_ASSERT | ICR_FIXED | BROADCAST_VECTOR, %eax
        call    send
        movl    $1, %ebx
2:      cmpb    $0, present(%ebx)
        je      4f
3:      cmpl    %esi, broadcasts(,%ebx,4)
        jae     4f
        sti                                             # each one counts before it answers, so the last wakes us
        hlt
        cli
        jmp     3b
4:      incl    %ebx
        cmpl    $256, %ebx
        jb      2b
        jmp     1b
5:      pop     %esi
        pop     %ebx
        ret

count_ipi:
        movl    LAPIC_ID, %eax
        shrl    $24, %eax
        incl    ipis(,%eax,4)
        movl    $0, LAPIC_EOI
        ret

count_broadcast:
        movl    LAPIC_ID, %eax
        shrl    $24, %eax
        incl    broadcasts(,%eax,4)
        movl    boot_destination, %eax
        movl    %eax, LAPIC_ICR_HIGH
        movl    $ICR_ASSERT | ICR_FIXED | ANSWER_VECTOR, %eax
        call    send
        movl    $0, LAPIC_EOI
        ret

answer:
        movl    $0, LAPIC_EOI
        ret

        .data
        .balign 4
rounds: .long   1000

        .bss
        .balign 8
start_cycles:
        .skip   8
boot_destination:
        .skip   4
ipis:   .skip   256 * 4
broadcasts:
        .skip   256 * 4
