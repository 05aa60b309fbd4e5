# hotplug's edu driver: interrupts one after the other, lines held high, pins that are masked and opened.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

        .equ    SLOTS,                  32
        .equ    STUCK,                  1000            # interrupts in a row that were for nobody

        .text

# slots_on_pin(EAX = pin, ECX = slots) -> ECX = those of them that are on the pin; EAX is kept
        .globl  slots_on_pin
slots_on_pin:
        push    %ebx
        push    %esi
        xorl    %esi, %esi
1:      bsfl    %ecx, %ebx
        jz      2f
        btrl    %ebx, %ecx
        cmpl    %eax, slot_pin(,%ebx,4)
        jne     1b
        btsl    %ebx, %esi
        jmp     1b
2:      movl    %esi, %ecx
        pop     %esi
        pop     %ebx
        ret

# open_pin(EAX = pin) -> EAX = its vector, 0 when there are none left
        .globl  open_pin
open_pin:
        btrl    %eax, pins_masked
        btrl    %eax, pins_stuck
        movl    $0, for_nobody
        movl    $handle, %edx
        jmp     route_pin

# mask_pin(EAX = pin)
mask_pin:
        btsl    %eax, pins_masked
        leal    IOAPIC_REDTBL(,%eax,2), %eax
        push    %eax
        call    ioapic_read
        orl     $RTE_MASKED, %eax
        movl    %eax, %edx
        pop     %eax
        jmp     ioapic_write

# drive(EBX = slot): n interrupts, one after the other; then hold, if asked to.
        .globl  drive
drive:
        push    %esi
        push    %edi
        push    %ebp
        movl    slot_bar(,%ebx,4), %edi
        movl    EDU_INTERRUPT_STATUS(%edi), %eax        # a leftover
        movl    %eax, EDU_INTERRUPT_ACK(%edi)
        # Neighbours whose lines are held high let go of them for the time being.
        movl    slot_pin(,%ebx,4), %eax
        movl    slots_held, %ecx
        call    slots_on_pin
1:      bsfl    %ecx, %esi
        jz      2f
        btrl    %esi, %ecx
        btrl    %esi, slots_held
        movl    slot_bar(,%esi,4), %edx
        movl    EDU_INTERRUPT_STATUS(%edx), %ebp
        movl    %ebp, EDU_INTERRUPT_ACK(%edx)
        jmp     1b
2:      movl    $0, slot_handled(,%ebx,4)
        btsl    %ebx, slots_driven
        call    open_pin
        movl    spurious_total, %esi
        xorl    %ebp, %ebp
3:      cmpl    interrupts_each, %ebp
        jae     5f
        incl    %ebp
        movl    %ebp, EDU_INTERRUPT_RAISE(%edi)
4:      cmpl    %ebp, slot_handled(,%ebx,4)
        jae     3b
        btl     %ebx, slots_down                        # whoever asks for its removal need not wait for the rest
        jc      5f
        movl    quit_asked, %eax
        orl     power_button, %eax
        jnz     5f
        sti
        hlt
        cli
        jmp     4b
5:      cmpl    slot_handled(,%ebx,4), %ebp
        je      6f
        movl    $EXIT_FAILED, failed
6:      cmpl    $0, cycle
        jne     7f
        say     "hotplug: slot "
        movl    %ebx, %eax
        call    put_decimal
        say     " handled "
        movl    slot_handled(,%ebx,4), %eax
        call    put_decimal
        say     " spurious "
        movl    spurious_total, %eax
        subl    %esi, %eax
        call    put_decimal
        call    newline
7:      cmpl    $0, hold
        je      8f
        call    hold_lines
8:      pop     %ebp
        pop     %edi
        pop     %esi
        ret

# hold_lines(EBX = slot): every driven device on this slot's pin raises its line and keeps it; the handler, which is
# told not to acknowledge, masks the pin.
hold_lines:
        movl    slot_pin(,%ebx,4), %eax
        movl    slots_driven, %ecx
        call    slots_on_pin
        orl     %ecx, slots_held
1:      bsfl    %ecx, %esi
        jz      2f
        btrl    %esi, %ecx
        movl    slot_bar(,%esi,4), %edx
        movl    $1, EDU_INTERRUPT_RAISE(%edx)
        jmp     1b
2:      movl    slot_pin(,%ebx,4), %eax
3:      btl     %eax, pins_masked
        jc      4f
        btl     %ebx, slots_down
        jc      5f
        movl    quit_asked, %ecx
        orl     power_button, %ecx
        jnz     5f
        sti
        hlt
        cli
        jmp     3b
4:      cmpl    $0, cycle
        jne     5f
        say     "hotplug: slot "
        movl    %ebx, %eax
        call    put_decimal
        say     " line held high\n"
5:      ret

# The handler: ask every driven device on this vector's pin.
handle:
        push    %ebx
        push    %esi
        movl    vector_pin(,%eax,4), %eax
        movl    slots_driven, %ecx
        call    slots_on_pin
        xorl    %esi, %esi                              # devices that were pending
1:      bsfl    %ecx, %ebx
        jz      3f
        btrl    %ebx, %ecx
        push    %eax
        movl    slot_bar(,%ebx,4), %edx
        movl    EDU_INTERRUPT_STATUS(%edx), %eax
        testl   %eax, %eax
        jz      2f
        incl    %esi
        btl     %ebx, slots_held
        jc      4f
        movl    %eax, EDU_INTERRUPT_ACK(%edx)
        incl    slot_handled(,%ebx,4)
        incl    total_handled
2:      pop     %eax
        jmp     1b
4:      movl    (%esp), %eax
        push    %ecx
        call    mask_pin
        pop     %ecx
        jmp     2b
3:      testl   %esi, %esi
        jnz     5f
        incl    spurious_total
        incl    for_nobody
        cmpl    $STUCK, for_nobody
        jb      6f
        btsl    %eax, pins_stuck
        call    mask_pin
5:      movl    $0, for_nobody
6:      movl    $0, LAPIC_EOI
        pop     %esi
        pop     %ebx
        ret

        .globl  report_stuck
report_stuck:
        push    %ebx
1:      bsfl    pins_stuck, %ebx
        jz      2f
        btrl    %ebx, pins_stuck
        movl    $EXIT_FAILED, failed
        say     "hotplug: pin "
        movl    %ebx, %eax
        call    put_decimal
        say     " stuck high\n"
        jmp     1b
2:      pop     %ebx
        ret

        .bss
        .balign 4
        .globl  slots_driven
slots_driven:
        .skip   4
        .globl  slots_held
slots_held:
        .skip   4
        .globl  pins_masked
pins_masked:
        .skip   4
pins_stuck:
        .skip   4
for_nobody:
        .skip   4
        .globl  spurious_total
spurious_total:
        .skip   4
        .globl  total_handled
total_handled:
        .skip   4
        .globl  slot_bar
slot_bar:
        .skip   SLOTS * 4
        .globl  slot_pin
slot_pin:
        .skip   SLOTS * 4
slot_handled:
        .skip   SLOTS * 4
