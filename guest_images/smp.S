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
        .equ    TRAMPOLINE,             0x8000          # SIPI vector 8
        .equ    MAX_CPUS,               64
        .equ    AP_STACK,               1024
        .equ    PATIENCE_HIGH,          8               # TSC cycles / 2^32 that processors have to come up

        .equ    RSDP_FIRST,             0xe0000
        .equ    RSDP_END,               0x100000
        .equ    RSDP_RSDT,              16
        .equ    TABLE_LENGTH,           4
        .equ    TABLE_BODY,             36
        .equ    MADT_ENTRIES,           44
        .equ    MADT_ENABLED,           1
        .equ    FW_CFG_SELECTOR,        0x510
        .equ    FW_CFG_DATA,            0x511
        .equ    FW_CFG_NB_CPUS,         5

        .section .rodata
        .globl  image_name
image_name:
        .asciz  "smp"
option_n:
        .ascii  "n="
rsdp_signature:
        .ascii  "RSD PTR "

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
1:      call    cpus_by_madt
        testl   %eax, %eax
        jnz     1f
        call    cpus_by_fw_cfg
1:      movl    %eax, cpus
        say     "smp: cpus "
        movl    cpus, %eax
        call    put_decimal
        call    newline
        cmpl    $MAX_CPUS, cpus
        ja      .Lfailed
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
        cmpl    $1, cpus
        je      1f
        call    start_processors
1:      say     "smp: online "
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

# ---------------------------------------------------------------- how many

# cpus_by_madt() -> EAX = enabled local APICs in the MADT, 0 without a good one
cpus_by_madt:
        push    %ebx
        push    %esi
        push    %edi
        movl    $RSDP_FIRST, %ebx
1:      movl    %ebx, %esi
        movl    $rsdp_signature, %edi
        movl    $8, %ecx
        repe cmpsb
        jne     2f
        movl    %ebx, %eax
        movl    $20, %edx
        call    checksum
        jz      3f
2:      addl    $16, %ebx
        cmpl    $RSDP_END, %ebx
        jb      1b
        xorl    %eax, %eax
        jmp     .Lmadt_over
3:      movl    RSDP_RSDT(%ebx), %esi
        movl    TABLE_LENGTH(%esi), %edi
        addl    %esi, %edi                              # its end
        addl    $TABLE_BODY, %esi
4:      xorl    %eax, %eax
        cmpl    %edi, %esi
        jae     .Lmadt_over
        lodsl
        cmpl    $0x43495041, (%eax)                     # "APIC"
        jne     4b
        movl    %eax, %ebx
        movl    TABLE_LENGTH(%ebx), %edx
        call    checksum
        jnz     4b
        xorl    %eax, %eax
        movl    TABLE_LENGTH(%ebx), %edx
        addl    %ebx, %edx
        addl    $MADT_ENTRIES, %ebx
5:      cmpl    %edx, %ebx
        jae     .Lmadt_over
        cmpb    $0, (%ebx)                              # a local APIC
        jne     6f
        testb   $MADT_ENABLED, 4(%ebx)
        jz      6f
        incl    %eax
6:      movzbl  1(%ebx), %ecx
        addl    %ecx, %ebx
        testl   %ecx, %ecx
        jnz     5b
.Lmadt_over:
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

# checksum(EAX = first byte, EDX = length) -> ZF set if the bytes add up to 0
checksum:
        xorl    %ecx, %ecx
1:      addb    (%eax), %cl
        incl    %eax
        decl    %edx
        jnz     1b
        testb   %cl, %cl
        ret

# cpus_by_fw_cfg() -> EAX = what fw_cfg says, 1 if there is no fw_cfg (signature, item 0)
cpus_by_fw_cfg:
        xorl    %eax, %eax
        call    fw_cfg_word
        cmpw    $0x4551, %ax                            # "QE"
        movl    $1, %eax
        jne     1f
        movl    $FW_CFG_NB_CPUS, %eax
        call    fw_cfg_word
        movzwl  %ax, %eax
1:      ret

# fw_cfg_word(EAX = item) -> AX = its first two bytes
fw_cfg_word:
        movl    $FW_CFG_SELECTOR, %edx
        outw    %ax, %dx
        movl    $FW_CFG_DATA, %edx
        inb     %dx, %al
        movb    %al, %cl
        inb     %dx, %al
        movb    %al, %ah
        movb    %cl, %al
        ret

# ---------------------------------------------------------------- start

start_processors:
        push    %ebx
        push    %esi
        push    %edi
        movl    $trampoline, %esi
        movl    $TRAMPOLINE, %edi
        movl    $trampoline_end - trampoline, %ecx
        rep movsb
        movl    $ICR_ALL_BUT_SELF | ICR_ASSERT | ICR_INIT, %eax
        call    send
        movl    $10000, %eax                            # 10 ms on hardware
        call    wait_microseconds
        movl    $2, %ebx
1:      movl    $ICR_ALL_BUT_SELF | ICR_ASSERT | ICR_STARTUP | TRAMPOLINE >> 12, %eax
        call    send
        movl    $200, %eax
        call    wait_microseconds
        decl    %ebx
        jnz     1b
        rdtsc
        movl    %edx, %esi
2:      movl    online, %eax
        cmpl    cpus, %eax
        jae     3f
        pause
        rdtsc
        subl    %esi, %edx
        cmpl    $PATIENCE_HIGH, %edx
        jb      2b
3:      pop     %edi
        pop     %esi
        pop     %ebx
        ret

# wait_microseconds(EAX): a read of port 80h takes one on an ISA bus. On a faster machine the wait is shorter; it
# is only hardware that needs it.
wait_microseconds:
        movl    %eax, %ecx
        shrl    $2, %ecx
1:      inb     $0x80, %al
        loop    1b
        ret

# send(EAX = ICR low half): wait for the one before, then write. The destination was written already.
send:
1:      testl   $ICR_PENDING, LAPIC_ICR_LOW
        jz      2f
        pause
        jmp     1b
2:      movl    %eax, LAPIC_ICR_LOW
        ret

        .code16
trampoline:
        cli
        movw    %cs, %ax
        movw    %ax, %ds
        lgdtl   trampoline_gdt - trampoline
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE_SELECTOR, $processor
trampoline_gdt:
        .word   23
        .long   gdt
trampoline_end:
        .code32

# An application processor, in protected mode, with no stack yet.
processor:
        movl    $DATA_SELECTOR, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        movl    $1, %eax
        lock xaddl %eax, stacks_taken
        cmpl    $MAX_CPUS, %eax
        jae     2f
        incl    %eax
        imull   $AP_STACK, %eax
        leal    stacks(%eax), %esp
        lidt    idt_pointer
        call    lapic_init
        movl    LAPIC_ID, %eax
        shrl    $24, %eax
        movb    $1, present(%eax)
        lock incl online
1:      sti
        hlt
        jmp     1b
2:      cli
        hlt
        jmp     2b

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
online: .long   1                                       # the boot processor

        .bss
        .balign 8
start_cycles:
        .skip   8
cpus:   .skip   4
stacks_taken:
        .skip   4
boot_destination:
        .skip   4
ipis:   .skip   256 * 4
broadcasts:
        .skip   256 * 4
present:
        .skip   256
        .balign 16
stacks: .skip   MAX_CPUS * AP_STACK
