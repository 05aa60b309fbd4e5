# hotplug: an operating system's side of ACPI PCI hot-plug, with an edu driver.
#
# Waits for the SCI. What is plugged into bus 0 is enumerated, given addresses and enabled; an edu device is then
# driven through n interrupts. What shall be unplugged is ejected. Runs until `quit` and a newline arrive on COM1, or
# until the power button.
#
# Command line: n=<interrupts for each device, default 1000> hold ignore-eject cycle
#   hold          afterwards every device is left with its line high and the pin masked, so that it is unplugged so
#   ignore-eject  remove requests are seen and never followed
#   cycle         few words, for thousands of cycles: `+4` added and driven, `-4` ejected
# Output on COM1:
#   hotplug: start
#   hotplug: found slot 3                           (there already; then as if added)
#   hotplug: ready
#   hotplug: add slot 4 pin 11                      (pin 0: it has none)
#   hotplug: slot 4 id 1234:11e8 bar0 f1000000      (after addresses were assigned; bar0 0: it has none)
#   hotplug: slot 4 handled 1000 spurious 0         (edu only)
#   hotplug: slot 4 line held high                  (edu, with `hold`)
#   hotplug: remove slot 4                          (requested)
#   hotplug: ejected slot 4
#   hotplug: pin 10 stuck high                      (interrupts for nobody without end: the pin was masked)
#   hotplug: added 3 ejected 3 handled 3000 spurious 0   (at the end)
#   hotplug: done
# Exit: after `quit` isa-debug-exit value 0, 1 if an interrupt was lost or a pin stuck; after the power button: soft off.
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"

        .equ    SCI_VECTOR,             0x41
        .equ    COM1_VECTOR,            0x31
        .equ    SLOTS,                  32
        .equ    MEMORY_WINDOW,          0xf0000000      # each slot has 4 MiB here
        .equ    MEMORY_SHIFT,           22
        .equ    IO_WINDOW,              0xe000          # and 128 ports here
        .equ    IO_SHIFT,               7

        .section .rodata
        .globl  image_name
image_name:
        .asciz  "hotplug"
option_n:
        .ascii  "n="
option_hold:
        .ascii  "hold"
option_ignore:
        .ascii  "ignore-eject"
option_cycle:
        .ascii  "cycle"
quit_command:
        .ascii  "quit"

        .text
        .globl  main
main:
        say     "hotplug: start\n"
        movl    $option_n, %eax
        movl    $2, %edx
        call    option
        testl   %eax, %eax
        jz      1f
        call    number
        movl    %eax, interrupts_each
1:      movl    $option_hold, %eax
        movl    $4, %edx
        call    option
        movl    %eax, hold
        movl    $option_ignore, %eax
        movl    $12, %edx
        call    option
        movl    %eax, ignore_eject
        movl    $option_cycle, %eax
        movl    $5, %edx
        call    option
        movl    %eax, cycle
        call    input_init
        call    found_devices
        call    acpi_init
        say     "hotplug: ready\n"

        # One event after the other; interrupts only while halted or while a device is driven.
.Lnext_event:
        cmpl    $0, quit_asked
        jne     .Lquit
        cmpl    $0, power_button
        jne     .Lpower_button
        call    report_stuck
        # Removals first: a slot that was emptied and filled again is both.
        bsfl    slots_down, %ebx
        jz      1f
        btrl    %ebx, slots_down
        call    remove
        jmp     .Lnext_event
1:      bsfl    slots_up, %ebx
        jz      2f
        btrl    %ebx, slots_up
        call    add
        jmp     .Lnext_event
2:      sti
        hlt
        cli
        jmp     .Lnext_event

.Lquit:
        call    summary
        movl    failed, %eax
        ret
.Lpower_button:
        call    summary
        jmp     power_off

summary:
        say     "hotplug: added "
        movl    total_added, %eax
        call    put_decimal
        say     " ejected "
        movl    total_ejected, %eax
        call    put_decimal
        say     " handled "
        movl    total_handled, %eax
        call    put_decimal
        say     " spurious "
        movl    spurious_total, %eax
        call    put_decimal
        say     "\nhotplug: done\n"
        ret

# ---------------------------------------------------------------- ACPI

acpi_init:
        movl    $SCI_VECTOR, %eax
        movl    $sci, %edx
        call    set_handler
        movl    $SCI_PIN, %eax
        movl    $RTE_LEVEL | SCI_VECTOR, %edx
        call    ioapic_route
        movl    $PM1_CONTROL, %edx
        inw     %dx, %ax
        testb   $PM1_SCI_EN, %al
        jnz     1f
        movb    $SMI_ACPI_ENABLE, %al
        outb    %al, $SMI_COMMAND
1:      movl    $PM1_ENABLE, %edx
        movl    $PM1_POWER_BUTTON, %eax
        outw    %ax, %dx
        movl    $GPE0_STATUS, %edx                      # write one to clear
        movb    $0xff, %al
        outb    %al, %dx
        movl    $GPE0_ENABLE, %edx
        movb    $GPE0_PCI_HOTPLUG, %al
        outb    %al, %dx
        # What was plugged before anybody listened.
        jmp     read_slots

# The SCI: status is cleared before the registers are read, so that nothing falls between.
sci:
        movl    $PM1_STATUS, %edx
        inw     %dx, %ax
        testl   $PM1_POWER_BUTTON, %eax
        jz      1f
        movl    $PM1_POWER_BUTTON, %eax
        outw    %ax, %dx
        movl    $1, power_button
1:      movl    $GPE0_STATUS, %edx
        inb     %dx, %al
        testb   $GPE0_PCI_HOTPLUG, %al
        jz      2f
        movb    $GPE0_PCI_HOTPLUG, %al
        outb    %al, %dx
        call    read_slots
2:      movl    $0, LAPIC_EOI
        ret

# Collect the slots of bus 0 that changed. Reading PCIU clears it; a bit of PCID stays until its slot is ejected.
read_slots:
        call    select_bus
        movl    $PCIHP_UP, %edx
        inl     %dx, %eax
        orl     %eax, slots_up
        movl    $PCIHP_DOWN, %edx
        inl     %dx, %eax
        andl    %eax, slots_ignored
        movl    slots_ignored, %ecx
        notl    %ecx
        andl    %ecx, %eax
        orl     %eax, slots_down
        ret

select_bus:
        movl    $PCIHP_BUS, %edx
        xorl    %eax, %eax
        outl    %eax, %dx
        ret

# ---------------------------------------------------------------- slots

# Edu devices that were there from the start.
found_devices:
        push    %ebx
        movl    $1, %ebx
1:      leal    (,%ebx,8), %eax
        movl    $PCI_ID, %edx
        call    pci_read
        cmpl    $EDU_ID, %eax
        jne     2f
        btsl    %ebx, slots_up
        cmpl    $0, cycle
        jne     2f
        say     "hotplug: found slot "
        movl    %ebx, %eax
        call    put_decimal
        call    newline
2:      incl    %ebx
        cmpl    $SLOTS, %ebx
        jb      1b
        pop     %ebx
        ret

# add(EBX = slot)
add:
        push    %esi
        push    %edi
        leal    (,%ebx,8), %edi                         # devfn
        movl    %edi, %eax
        movl    $PCI_ID, %edx
        call    pci_read
        movl    %eax, %esi
        cmpl    $-1, %eax
        je      .Ladd_over                              # gone again
        incl    total_added
        call    find_pin
        movl    %eax, slot_pin(,%ebx,4)
        cmpl    $0, cycle
        jne     1f
        say     "hotplug: add slot "
        movl    %ebx, %eax
        call    put_decimal
        say     " pin "
        movl    slot_pin(,%ebx,4), %eax
        call    put_decimal
        call    newline
1:      call    assign_addresses
        movl    %edi, %eax
        call    pci_enable
        cmpl    $0, cycle
        jne     1f
        say     "hotplug: slot "
        movl    %ebx, %eax
        call    put_decimal
        say     " id "
        movzwl  %si, %eax
        movl    $4, %edx
        call    put_hex
        movb    $':', %al
        call    putc
        movl    %esi, %eax
        shrl    $16, %eax
        movl    $4, %edx
        call    put_hex
        say     " bar0 "
        movl    slot_bar(,%ebx,4), %eax
        movl    $8, %edx
        call    put_hex
        call    newline
1:      cmpl    $EDU_ID, %esi
        jne     .Ladded
        cmpl    $0, slot_bar(,%ebx,4)
        je      .Ladded
        cmpl    $0, slot_pin(,%ebx,4)
        je      .Ladded
        call    drive
.Ladded:
        cmpl    $0, cycle
        je      .Ladd_over
        movb    $'+', %al
        call    putc
        movl    %ebx, %eax
        call    put_decimal
        call    newline
.Ladd_over:
        pop     %edi
        pop     %esi
        ret

# find_pin(EBX = slot, EDI = devfn) -> EAX = IOAPIC pin by the PIIX3's routing, 0 if none; also INTERRUPT_LINE.
find_pin:
        movl    %edi, %eax
        movl    $PCI_INTERRUPT_LINE, %edx
        call    pci_read
        movzbl  %ah, %ecx                               # INTERRUPT_PIN: 1 is INTA
        xorl    %eax, %eax
        testl   %ecx, %ecx
        jz      1f
        leal    -2(%ebx,%ecx), %ecx                     # (slot - 1 + pin - 1) & 3
        andl    $3, %ecx
        push    %ecx
        movl    $PIIX3_DEVFN, %eax
        movl    $PIIX3_PIRQRC, %edx
        call    pci_read
        pop     %ecx
        shll    $3, %ecx
        shrl    %cl, %eax
        andl    $0x8f, %eax
        cmpl    $0x80, %eax                             # bit 7: not routed
        jb      2f
        xorl    %eax, %eax
        ret
2:      push    %eax
        movl    %eax, %ecx
        movl    %edi, %eax
        movl    $PCI_INTERRUPT_LINE, %edx
        call    pci_write
        pop     %eax
1:      ret

# assign_addresses(EBX = slot, EDI = devfn): sizes the BARs and gives each a place in the slot's own windows, which
# the next device there gets again. A BAR 0 in memory becomes slot_bar. An address it has already is kept.
assign_addresses:
        push    %esi
        push    %ebp
        movl    $0, slot_bar(,%ebx,4)
        movl    %ebx, %eax
        shll    $MEMORY_SHIFT, %eax
        addl    $MEMORY_WINDOW, %eax
        movl    %eax, memory_next
        addl    $1 << MEMORY_SHIFT, %eax
        movl    %eax, memory_end
        movl    %ebx, %eax
        shll    $IO_SHIFT, %eax
        addl    $IO_WINDOW, %eax
        movl    %eax, io_next
        addl    $1 << IO_SHIFT, %eax
        movl    %eax, io_end
        movl    $PCI_BAR0, %esi
.Lbar:
        movl    %edi, %eax
        movl    %esi, %edx
        call    pci_read
        movl    %eax, %ebp                              # from here on: its low bits, the type
        andl    $~15, %eax
        jnz     .Laddress_known
        movl    $-1, %ecx
        call    write_bar
        movl    %edi, %eax
        movl    %esi, %edx
        call    pci_read
        movl    %eax, %ebp
        testl   %eax, %eax
        jz      .Lnext_bar
        movl    $memory_next, %edx
        movl    $~15, %ecx
        testl   $1, %ebp
        jz      1f
        movl    $io_next, %edx
        movl    $~3, %ecx
1:      andl    %ecx, %eax
        movl    %eax, %ecx
        negl    %ecx
        andl    %eax, %ecx                              # size: the lowest bit that stuck; 0 is 4 GiB or more
        jz      .Lno_room
        movl    (%edx), %eax
        decl    %eax
        addl    %ecx, %eax
        negl    %ecx
        andl    %ecx, %eax                              # the next multiple of the size
        negl    %ecx
        addl    %eax, %ecx
        jc      .Lno_room
        cmpl    4(%edx), %ecx
        ja      .Lno_room
        movl    %ecx, (%edx)
        jmp     2f
.Lno_room:
        say     "hotplug: no room for a BAR\n"
        xorl    %eax, %eax
2:      push    %eax
        movl    %eax, %ecx
        call    write_bar
        pop     %eax
        testl   $1, %ebp
        jnz     .Laddress_known
        testl   $4, %ebp
        jz      .Laddress_known
        push    %eax
        addl    $4, %esi                                # the high half of a 64-bit BAR
        xorl    %ecx, %ecx
        call    write_bar
        subl    $4, %esi
        pop     %eax
.Laddress_known:
        testl   $1, %ebp
        jnz     .Lnext_bar
        cmpl    $PCI_BAR0, %esi
        jne     3f
        movl    %eax, slot_bar(,%ebx,4)
3:      testl   $4, %ebp
        jz      .Lnext_bar
        addl    $4, %esi
.Lnext_bar:
        addl    $4, %esi
        cmpl    $PCI_BAR0 + 6 * 4, %esi
        jb      .Lbar
        pop     %ebp
        pop     %esi
        ret

# write_bar(EDI = devfn, ESI = offset, ECX = value)
write_bar:
        movl    %edi, %eax
        movl    %esi, %edx
        jmp     pci_write

# remove(EBX = slot)
remove:
        cmpl    $0, cycle
        jne     1f
        say     "hotplug: remove slot "
        movl    %ebx, %eax
        call    put_decimal
        call    newline
1:      cmpl    $0, ignore_eject
        je      2f
        btsl    %ebx, slots_ignored
        ret
2:      btrl    %ebx, slots_driven
        btrl    %ebx, slots_held
        call    select_bus
        movl    $PCIHP_EJECT, %edx
        xorl    %eax, %eax
        btsl    %ebx, %eax
        outl    %eax, %dx
        incl    total_ejected
        cmpl    $0, cycle
        jne     3f
        say     "hotplug: ejected slot "
        jmp     4f
3:      movb    $'-', %al
        call    putc
4:      movl    %ebx, %eax
        call    put_decimal
        call    newline
        # A pin that was masked for this slot's sake is opened again, unless another slot is still held on it.
        xorl    %eax, %eax
        xchgl   %eax, slot_pin(,%ebx,4)
        btl     %eax, pins_masked
        jnc     6f
        movl    slots_held, %ecx
        call    slots_on_pin
        testl   %ecx, %ecx
        jnz     6f
        call    open_pin
6:      ret

# ---------------------------------------------------------------- input

input_init:
        movl    $COM1_VECTOR, %eax
        movl    $input, %edx
        call    set_handler
        movl    $COM1_PIN, %eax
        movl    $COM1_VECTOR, %edx
        call    ioapic_route
        movl    $COM1_IER, %edx
        movb    $IER_RECEIVED, %al
        outb    %al, %dx
        ret

# A line that is exactly `quit` ends the guest; every other one is nothing.
input:
        push    %esi
        push    %edi
1:      call    getc
        testl   %eax, %eax
        js      4f
        movl    line_length, %ecx
        cmpb    $'\n', %al
        je      2f
        cmpb    $'\r', %al
        je      2f
        cmpl    $LINE, %ecx
        jae     1b
        movb    %al, line(%ecx)
        incl    line_length
        jmp     1b
2:      movl    $0, line_length
        cmpl    $4, %ecx
        jne     1b
        movl    line, %eax
        cmpl    quit_command, %eax
        jne     1b
        movl    $1, quit_asked
        jmp     1b
4:      movl    $0, LAPIC_EOI
        pop     %edi
        pop     %esi
        ret

        .data
        .balign 4
        .globl  interrupts_each
interrupts_each:
        .long   1000

        .bss
        .balign 4
        .globl  hold
hold:   .skip   4
ignore_eject:
        .skip   4
        .globl  cycle
cycle:  .skip   4
        .globl  failed
failed: .skip   4
        .globl  quit_asked
quit_asked:
        .skip   4
        .globl  power_button
power_button:
        .skip   4
slots_up:
        .skip   4
        .globl  slots_down
slots_down:
        .skip   4
slots_ignored:
        .skip   4
total_added:
        .skip   4
total_ejected:
        .skip   4
memory_next:                                            # each with its end behind it
        .skip   4
memory_end:
        .skip   4
io_next:
        .skip   4
io_end: .skip   4
        .equ    LINE,                   16
line_length:
        .skip   4
line:   .skip   LINE
