# smp_intx: every processor raises INTx of its share of the edu devices on bus 0, N times each; any processor may be
# the one that handles it.
#
# Command line: n=<rounds, default 1000> rotate
#   default       the pins deliver to the processor of lowest priority of all (logical destination, flat)
#   rotate        fixed delivery to one processor; every handler hands the pin on to the next, before its EOI
# Output on COM1:
#   smp_intx: start
#   smp_intx: online 4                                   (at most 8 take part)
#   smp_intx: dev 00:04.0 pin 11 raised 1000 handled 1000 (one per device)
#   smp_intx: cpu 1 handled 250 spurious 0               (one per processor, by APIC id)
#   smp_intx: done
# Device i is raised by processor i modulo their number, which waits until it was handled before it raises it again.
# Spurious counts the interrupts at which no device on the pin had anything to say.
# Exit: isa-debug-exit value 0 when all were handled, 1 when there is no device or not every processor came up.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

        .equ    MAX_DEVICES,            32
        .equ    FLAT_CPUS,              8
        .equ    RTE_LOGICAL,            0x00800
        .equ    RTE_LOWEST_PRIORITY,    0x00100

        .equ    DEV_FUNCTION,           0               # a device in the table
        .equ    DEV_BAR,                4
        .equ    DEV_PIN,                8
        .equ    DEV_RAISED,             12
        .equ    DEV_HANDLED,            16
        .equ    DEV_SIZE,               32

        .section .rodata
        .globl  image_name
image_name:
        .asciz  "smp_intx"
option_n:
        .ascii  "n="
option_rotate:
        .ascii  "rotate"

        .text
        .globl  main
main:
        say     "smp_intx: start\n"
        movl    $option_n, %eax
        movl    $2, %edx
        call    option
        testl   %eax, %eax
        jz      1f
        call    number
        movl    %eax, rounds
1:      movl    $option_rotate, %eax
        movl    $6, %edx
        call    option
        movl    %eax, rotate
        call    count_processors
        cmpl    $FLAT_CPUS, %eax
        ja      .Lfailed
        call    start_processors
        say     "smp_intx: online "
        movl    online, %eax
        call    put_decimal
        call    newline
        movl    online, %eax
        cmpl    cpus, %eax
        jne     .Lfailed
        call    set_logical_id
        call    find_devices
        cmpl    $0, device_count
        je      .Lfailed
        movl    $1, go
        call    raise_share
        lock incl finished
        sti
1:      pause
        movl    finished, %eax
        cmpl    cpus, %eax
        jb      1b
        cli
        call    report
        xorl    %eax, %eax
        ret
.Lfailed:
        say     "smp_intx: failed\n"
        movl    $EXIT_FAILED, %eax
        ret

# An application processor: take part, then wait for interrupts.
        .globl  processor_ready
processor_ready:
        call    set_logical_id
        sti
1:      pause
        cmpl    $0, go
        je      1b
        call    raise_share
        lock incl finished
2:      sti
        hlt
        jmp     2b

# set_logical_id(): logical APIC id 1 << APIC id, flat model.
set_logical_id:
        call    this_cpu
        movl    %eax, %ecx
        movl    $1 << 24, %eax
        shll    %cl, %eax
        movl    $-1, LAPIC_DFR
        movl    %eax, LAPIC_LDR
        ret

# this_cpu() -> EAX = APIC id
this_cpu:
        movl    LAPIC_ID, %eax
        shrl    $24, %eax
        ret

# raise_share(): all rounds of this processor's devices. They are raised together, then waited for.
raise_share:
        push    %ebx
        push    %esi
        push    %edi
        push    %ebp
        call    this_cpu
        imull   $DEV_SIZE, %eax, %edi
        addl    $devices, %edi                          # the first of its devices
        imull   $DEV_SIZE, cpus, %esi                   # from one to the next
        xorl    %ebp, %ebp
1:      cmpl    rounds, %ebp
        jae     6f
        incl    %ebp
        movl    %edi, %ebx
2:      cmpl    devices_end, %ebx
        jae     3f
        movl    DEV_BAR(%ebx), %eax
        incl    DEV_RAISED(%ebx)
        movl    %ebp, EDU_INTERRUPT_RAISE(%eax)
        addl    %esi, %ebx
        jmp     2b
3:      movl    %edi, %ebx
4:      cmpl    devices_end, %ebx
        jae     1b
5:      sti
        pause
        cmpl    %ebp, DEV_HANDLED(%ebx)
        jb      5b
        addl    %esi, %ebx
        jmp     4b
6:      pop     %ebp
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

# The handler: ask every device on this vector's pin.
handle:
        push    %ebx
        push    %esi
        push    %edi
        push    %eax
        movl    vector_pin(,%eax,4), %esi
        xorl    %edi, %edi                              # devices that were pending
        movl    $devices, %ebx
1:      cmpl    %esi, DEV_PIN(%ebx)
        jne     2f
        movl    DEV_BAR(%ebx), %edx
        movl    EDU_INTERRUPT_STATUS(%edx), %eax
        testl   %eax, %eax
        jz      2f
        movl    %eax, EDU_INTERRUPT_ACK(%edx)
        lock incl DEV_HANDLED(%ebx)
        incl    %edi
2:      addl    $DEV_SIZE, %ebx
        cmpl    devices_end, %ebx
        jb      1b
        call    this_cpu
        addl    %edi, cpu_handled(,%eax,4)
        testl   %edi, %edi
        jnz     3f
        incl    cpu_spurious(,%eax,4)
3:      pop     %edx
        cmpl    $0, rotate
        je      4f
        incl    %eax
        cmpl    cpus, %eax
        jb      5f
        xorl    %eax, %eax
5:      shll    $24, %eax
        movl    %eax, %edx
        leal    IOAPIC_REDTBL + 1(,%esi,2), %eax
        call    write_entry
4:      movl    $0, LAPIC_EOI
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

# write_entry(EAX = register, EDX = value): one processor at a time uses the index register. Interrupts are off.
write_entry:
        movl    $1, %ecx
1:      xchgl   %ecx, ioapic_lock
        testl   %ecx, %ecx
        jz      2f
        pause
        jmp     1b
2:      call    ioapic_write
        movl    $0, ioapic_lock
        ret

# find_devices(): the table, with every pin open.
find_devices:
        push    %ebx
        push    %esi
        push    %edi
        movl    $devices, %esi
        xorl    %ebx, %ebx                              # devfn
1:      cmpl    $MAX_DEVICES, device_count
        jae     4f
        movl    %ebx, %eax
        movl    $PCI_ID, %edx
        call    pci_read
        cmpl    $EDU_ID, %eax
        jne     3f
        movl    %ebx, %eax
        movl    $PCI_BAR0, %edx
        call    pci_read
        andl    $~15, %eax
        movl    %eax, %edi
        jz      3f                                      # nobody gave it an address
        movl    %ebx, %eax
        movl    $PCI_INTERRUPT_LINE, %edx
        call    pci_read
        testb   %ah, %ah                                # INTERRUPT_PIN 0: it has no INTx
        jz      3f
        movzbl  %al, %eax
        cmpl    $PINS, %eax
        jae     3f
        movl    %ebx, DEV_FUNCTION(%esi)
        movl    %edi, DEV_BAR(%esi)
        movl    %eax, DEV_PIN(%esi)
        movl    %ebx, %eax
        call    pci_enable
        movl    EDU_INTERRUPT_STATUS(%edi), %eax        # a leftover from before us
        movl    %eax, EDU_INTERRUPT_ACK(%edi)
        movl    DEV_PIN(%esi), %eax
        call    open_pin
        addl    $DEV_SIZE, %esi
        incl    device_count
        movl    %esi, devices_end
3:      movl    %ebx, %eax
        call    pci_next
        movl    %eax, %ebx
        cmpl    $256, %ebx
        jb      1b
4:      pop     %edi
        pop     %esi
        pop     %ebx
        ret

# open_pin(EAX = pin): first to this processor, then, unless it rotates, to whoever has the lowest priority.
open_pin:
        push    %ebx
        push    %esi
        movl    %eax, %esi
        movl    $handle, %edx
        call    route_pin
        cmpl    $0, rotate
        jne     1f
        movl    %eax, %ebx
        orl     entry_flags, %ebx
        orl     $RTE_LOGICAL | RTE_LOWEST_PRIORITY, %ebx
        movl    cpus, %ecx
        movl    $1, %edx
        shll    %cl, %edx
        decl    %edx
        shll    $24, %edx
        leal    IOAPIC_REDTBL + 1(,%esi,2), %eax
        call    ioapic_write
        movl    %ebx, %edx
        leal    IOAPIC_REDTBL(,%esi,2), %eax
        call    ioapic_write
1:      pop     %esi
        pop     %ebx
        ret

report:
        push    %ebx
        movl    $devices, %ebx
1:      say     "smp_intx: dev "
        movl    DEV_FUNCTION(%ebx), %eax
        call    put_function
        say     " pin "
        movl    DEV_PIN(%ebx), %eax
        call    put_decimal
        say     " raised "
        movl    DEV_RAISED(%ebx), %eax
        call    put_decimal
        say     " handled "
        movl    DEV_HANDLED(%ebx), %eax
        call    put_decimal
        call    newline
        addl    $DEV_SIZE, %ebx
        cmpl    devices_end, %ebx
        jb      1b
        xorl    %ebx, %ebx
2:      say     "smp_intx: cpu "
        movl    %ebx, %eax
        call    put_decimal
        say     " handled "
        movl    cpu_handled(,%ebx,4), %eax
        call    put_decimal
        say     " spurious "
        movl    cpu_spurious(,%ebx,4), %eax
        call    put_decimal
        call    newline
        incl    %ebx
        cmpl    cpus, %ebx
        jb      2b
        say     "smp_intx: done\n"
        pop     %ebx
        ret

        .data
        .balign 4
rounds: .long   1000
devices_end:
        .long   devices

        .bss
        .balign 4
rotate: .skip   4
go:     .skip   4
finished:
        .skip   4
ioapic_lock:
        .skip   4
device_count:
        .skip   4
cpu_handled:
        .skip   256 * 4
cpu_spurious:
        .skip   256 * 4
        .balign 64
devices:
        .skip   MAX_DEVICES * DEV_SIZE
