# PCI configuration space by mechanism #1. A function is named by its devfn on bus 0 (slot << 3 | function).
# SPDX-License-Identifier: GPL-2.0-or-later
        .include "constants.S"
        .text

# pci_read(EAX = devfn, EDX = offset) -> EAX = the aligned dword
        .globl  pci_read
pci_read:
        shll    $8, %eax
        andl    $0xfc, %edx
        leal    0x80000000(%eax,%edx), %eax
        movl    $PCI_ADDRESS, %edx
        outl    %eax, %dx
        movl    $PCI_DATA, %edx
        inl     %dx, %eax
        ret

# pci_write(EAX = devfn, EDX = offset, ECX = dword)
        .globl  pci_write
pci_write:
        shll    $8, %eax
        andl    $0xfc, %edx
        leal    0x80000000(%eax,%edx), %eax
        movl    $PCI_ADDRESS, %edx
        outl    %eax, %dx
        movl    $PCI_DATA, %edx
        movl    %ecx, %eax
        outl    %eax, %dx
        ret

# pci_enable(EAX = devfn): decoding, bus master, INTx; status bits (write one to clear) are left alone.
        .globl  pci_enable
pci_enable:
        push    %ebx
        movl    %eax, %ebx
        movl    $PCI_COMMAND, %edx
        call    pci_read
        movzwl  %ax, %ecx
        orl     $COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER, %ecx
        andl    $~COMMAND_INTX_DISABLE, %ecx
        movl    %ebx, %eax
        movl    $PCI_COMMAND, %edx
        call    pci_write
        pop     %ebx
        ret

# pci_next(EAX = devfn) -> EAX = the next devfn to look at; functions 1-7 only of a multi-function device. 256: done.
        .globl  pci_next
pci_next:
        push    %ebx
        movl    %eax, %ebx
        testl   $7, %eax
        jnz     1f
        movl    $PCI_HEADER_TYPE, %edx
        call    pci_read
        cmpl    $-1, %eax
        je      2f
        testl   $0x00800000, %eax
        jz      2f
1:      leal    1(%ebx), %eax
        pop     %ebx
        ret
2:      leal    8(%ebx), %eax
        andl    $~7, %eax
        pop     %ebx
        ret

# put_function(EAX = devfn): as 00:03.0
        .globl  put_function
put_function:
        push    %ebx
        movl    %eax, %ebx
        say     "00:"
        movl    %ebx, %eax
        shrl    $3, %eax
        movl    $2, %edx
        call    put_hex
        movb    $'.', %al
        call    putc
        movl    %ebx, %eax
        andl    $7, %eax
        movl    $1, %edx
        call    put_hex
        pop     %ebx
        ret
