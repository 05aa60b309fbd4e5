# Application processors: how many there are, and how they are started by INIT and SIPI.
#
# An image that has this part says in `processor_ready` what each of them does then: it jumps there in protected mode,
# on a stack of its own, its local APIC enabled, interrupts off.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

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
rsdp_signature:
        .ascii  "RSD PTR "

        .text

# count_processors() -> EAX = processors of the machine, by the MADT, else fw_cfg, else 1; also in `cpus`.
        .globl  count_processors
count_processors:
        call    cpus_by_madt
        testl   %eax, %eax
        jnz     1f
        call    cpus_by_fw_cfg
1:      movl    %eax, cpus
        ret

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

# start_processors() -> EAX = how many are online, this one included, when all are or patience ends.
        .globl  start_processors
start_processors:
        cmpl    $MAX_CPUS, cpus
        ja      4f
        cmpl    $1, cpus
        je      4f
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
4:      movl    online, %eax
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
        .globl  send
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
        jmp     processor_ready
2:      cli
        hlt
        jmp     2b

        .data
        .balign 4
        .globl  online
online: .long   1                                       # the boot processor

        .bss
        .balign 4
        .globl  cpus
cpus:   .skip   4
stacks_taken:
        .skip   4
        .globl  present
present:                                                # by APIC id
        .skip   256
        .balign 16
stacks: .skip   MAX_CPUS * AP_STACK
