# intx_loop: raise INTx of every edu device on bus 0 N times, one round after the other, and count what arrives.
#
# Command line: n=<rounds, default 1000> devices=<at most so many, default all> burst active-high
#   burst        interrupts stay enabled and the CPU spins instead of halting; prints TSC cycles
#   active-high  program polarity 0; the default is PCI's active low, 1
# Output on COM1:
#   intx_loop: start
#   intx_loop: dev 00:03.0 pin 11 raised 1000 handled 1000 spurious 0     (one per device)
#   intx_loop: burst 1000 cycles 123456                                   (burst only)
#   intx_loop: done
# Spurious counts the interrupts of the device's pin at which no device on that pin had anything to say.
# Exit: isa-debug-exit value 0 when all were handled, 1 when not or when there is no device.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

        .equ    MAX_DEVICES,            64

        .equ    DEV_FUNCTION,           0               # a device in the table
        .equ    DEV_BAR,                4
        .equ    DEV_PIN,                8
        .equ    DEV_RAISED,             12
        .equ    DEV_HANDLED,            16
        .equ    DEV_SIZE,               32

        .section .rodata
        .globl  image_name
image_name:
        .asciz  "intx_loop"
option_n:
        .ascii  "n="
option_devices:
        .ascii  "devices="
option_burst:
        .ascii  "burst"
option_active_high:
        .ascii  "active-high"

        .text
        .globl  main
main:
        say     "intx_loop: start\n"
        movl    $option_n, %eax
        movl    $2, %edx
        call    option
        testl   %eax, %eax
        jz      1f
        call    number
        movl    %eax, rounds
1:      movl    $option_devices, %eax
        movl    $8, %edx
        call    option
        testl   %eax, %eax
        jz      1f
        call    number
        cmpl    $MAX_DEVICES, %eax
        ja      1f
        movl    %eax, device_limit
1:      movl    $option_burst, %eax
        movl    $5, %edx
        call    option
        movl    %eax, burst
        movl    $option_active_high, %eax
        movl    $11, %edx
        call    option
        testl   %eax, %eax
        jz      1f
        andl    $~RTE_ACTIVE_LOW, entry_flags
1:      call    find_devices
        cmpl    $0, device_count
        jne     1f
        say     "intx_loop: no devices\n"
        movl    $EXIT_FAILED, %eax
        ret
1:      rdtsc
        movl    %eax, start_cycles
        movl    %edx, start_cycles + 4
        movl    $1, %ebp                                # the round; also the value that is raised
.Lround:
        cmpl    rounds, %ebp
        ja      .Lrounds_over
        call    raise_all
        call    wait_all
        incl    %ebp
        jnz     .Lround
.Lrounds_over:
        rdtsc
        cli
        subl    start_cycles, %eax
        sbbl    start_cycles + 4, %edx
        movl    %eax, start_cycles                      # from here on: the difference
        movl    %edx, start_cycles + 4
        call    report
        ret

# Raise on every device. Without burst this is done with interrupts off, so that devices that share a pin are
# all pending when the handler runs.
raise_all:
        push    %ebx
        movl    $devices, %ebx
1:      movl    DEV_BAR(%ebx), %eax
        incl    DEV_RAISED(%ebx)
        movl    %ebp, EDU_INTERRUPT_RAISE(%eax)
        addl    $DEV_SIZE, %ebx
        cmpl    devices_end, %ebx
        jne     1b
        pop     %ebx
        ret

# Wait until every device was handled in this round.
wait_all:
        push    %ebx
        movl    $devices, %ebx
1:      cmpl    %ebp, DEV_HANDLED(%ebx)
        jae     3f
        cmpl    $0, burst
        jne     2f
        sti                                             # takes effect after HLT has begun
        hlt
        cli
        jmp     1b
2:      sti
        pause
        jmp     1b
3:      addl    $DEV_SIZE, %ebx
        cmpl    devices_end, %ebx
        jne     1b
        pop     %ebx
        ret

# The handler: ask every device on this vector's pin.
handle:
        push    %ebx
        push    %esi
        push    %edi
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
        incl    DEV_HANDLED(%ebx)
        incl    %edi
2:      addl    $DEV_SIZE, %ebx
        cmpl    devices_end, %ebx
        jne     1b
        testl   %edi, %edi
        jnz     3f
        incl    pin_spurious(,%esi,4)
3:      movl    $0, LAPIC_EOI
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

find_devices:
        push    %ebx
        push    %esi
        push    %edi
        movl    $devices, %esi
        xorl    %ebx, %ebx                              # devfn
.Lfunction:
        movl    device_count, %eax
        cmpl    device_limit, %eax
        jae     .Lfound_all
        movl    %ebx, %eax
        movl    $PCI_ID, %edx
        call    pci_read
        cmpl    $EDU_ID, %eax
        jne     .Lnext_function
        movl    %ebx, %eax
        movl    $PCI_BAR0, %edx
        call    pci_read
        andl    $~15, %eax
        movl    %eax, %edi
        jz      .Lunusable                              # nobody gave it an address
        movl    %ebx, %eax
        movl    $PCI_INTERRUPT_LINE, %edx
        call    pci_read
        testb   %ah, %ah                                # INTERRUPT_PIN 0: it has no INTx
        jz      .Lunusable
        movzbl  %al, %eax
        cmpl    $PINS, %eax
        jae     .Lunusable
        movl    %ebx, DEV_FUNCTION(%esi)
        movl    %edi, DEV_BAR(%esi)
        movl    %eax, DEV_PIN(%esi)
        movl    %ebx, %eax
        call    pci_enable
        movl    EDU_INTERRUPT_STATUS(%edi), %eax        # a leftover from before us
        movl    %eax, EDU_INTERRUPT_ACK(%edi)
        addl    $DEV_SIZE, %esi
        incl    device_count
        movl    %esi, devices_end
        movl    DEV_PIN - DEV_SIZE(%esi), %eax
        movl    $handle, %edx
        call    route_pin
        testl   %eax, %eax
        jnz     .Lnext_function
        decl    device_count
        subl    $DEV_SIZE, %esi
        movl    %esi, devices_end
.Lunusable:
        say     "intx_loop: skipped "
        movl    %ebx, %eax
        call    put_function
        say     ", no address or no pin\n"
.Lnext_function:
        movl    %ebx, %eax
        call    pci_next
        movl    %eax, %ebx
        cmpl    $256, %ebx
        jb      .Lfunction
.Lfound_all:
        pop     %edi
        pop     %esi
        pop     %ebx
        ret

# report() -> EAX = value for isa-debug-exit
report:
        push    %ebx
        push    %esi
        xorl    %esi, %esi
        movl    $devices, %ebx
1:      say     "intx_loop: dev "
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
        say     " spurious "
        movl    DEV_PIN(%ebx), %eax
        movl    pin_spurious(,%eax,4), %eax
        call    put_decimal
        call    newline
        movl    DEV_HANDLED(%ebx), %eax
        cmpl    DEV_RAISED(%ebx), %eax
        je      2f
        movl    $EXIT_FAILED, %esi
2:      addl    $DEV_SIZE, %ebx
        cmpl    devices_end, %ebx
        jne     1b
        cmpl    $0, burst
        je      3f
        say     "intx_loop: burst "
        movl    rounds, %eax
        call    put_decimal
        say     " cycles "
        movl    start_cycles, %eax
        movl    start_cycles + 4, %edx
        call    put_decimal64
        call    newline
3:      say     "intx_loop: done\n"
        movl    %esi, %eax
        pop     %esi
        pop     %ebx
        ret

        .data
        .balign 4
rounds:
        .long   1000
device_limit:
        .long   MAX_DEVICES
devices_end:
        .long   devices

        .bss
        .balign 8
start_cycles:
        .skip   8
burst:  .skip   4
device_count:
        .skip   4
pin_spurious:
        .skip   PINS * 4
        .balign 64
devices:
        .skip   MAX_DEVICES * DEV_SIZE
