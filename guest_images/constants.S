# Ports, registers and bits that the guest images use, by their names in the datasheets.
# Included by every source file; it emits nothing.
# SPDX-License-Identifier: GPL-2.0-or-later

# --- 16550 (PC16550D, table II)
        .equ    COM1,                   0x3f8
        .equ    COM1_IER,               COM1 + 1
        .equ    IER_RECEIVED,           0x01
        .equ    COM1_PIN,               4               # IOAPIC pin of ISA interrupt 4, edge-triggered
        .equ    COM1_FCR,               COM1 + 2
        .equ    COM1_LCR,               COM1 + 3
        .equ    COM1_MCR,               COM1 + 4
        .equ    COM1_LSR,               COM1 + 5
        .equ    LCR_8N1,                0x03
        .equ    LCR_DLAB,               0x80
        .equ    LSR_DATA_READY,         0x01
        .equ    LSR_THR_EMPTY,          0x20

# --- PCI configuration mechanism #1 (PCI 2.1, 3.7.4.1; header: 6.1)
        .equ    PCI_ADDRESS,            0xcf8
        .equ    PCI_DATA,               0xcfc
        .equ    PCI_ID,                 0x00
        .equ    PCI_COMMAND,            0x04
        .equ    PCI_HEADER_TYPE,        0x0e
        .equ    PCI_BAR0,               0x10
        .equ    PCI_INTERRUPT_LINE,     0x3c
        .equ    PCI_INTERRUPT_PIN,      0x3d
        .equ    COMMAND_IO,             0x0001
        .equ    COMMAND_MEMORY,         0x0002
        .equ    COMMAND_MASTER,         0x0004
        .equ    COMMAND_INTX_DISABLE,   0x0400
        .equ    PIIX3_DEVFN,            0x08            # 00:01.0
        .equ    PIIX3_PIRQRC,           0x60            # 82371SB, 2.2.10: PIRQRC[A:D], bit 7 = not routed

# --- 8259A
        .equ    PIC_MASTER_DATA,        0x21
        .equ    PIC_SLAVE_DATA,         0xa1

# --- local APIC (SDM vol. 3, table 10-1), default base
        .equ    LAPIC,                  0xfee00000
        .equ    LAPIC_ID,               LAPIC + 0x020
        .equ    LAPIC_TPR,              LAPIC + 0x080
        .equ    LAPIC_EOI,              LAPIC + 0x0b0
        .equ    LAPIC_LDR,              LAPIC + 0x0d0
        .equ    LAPIC_DFR,              LAPIC + 0x0e0
        .equ    LAPIC_SVR,              LAPIC + 0x0f0
        .equ    LAPIC_ICR_LOW,          LAPIC + 0x300
        .equ    LAPIC_ICR_HIGH,         LAPIC + 0x310
        .equ    LAPIC_LVT_TIMER,        LAPIC + 0x320
        .equ    LAPIC_LVT_LINT0,        LAPIC + 0x350
        .equ    LAPIC_TIMER_INITIAL,    LAPIC + 0x380
        .equ    LAPIC_TIMER_DIVIDE,     LAPIC + 0x3e0
        .equ    TIMER_DIVIDE_BY_1,      0xb
        .equ    SVR_ENABLE,             0x100
        .equ    SPURIOUS_VECTOR,        0xff
        .equ    LVT_MASKED,             0x10000
        .equ    ICR_FIXED,              0x00000
        .equ    ICR_INIT,               0x00500
        .equ    ICR_STARTUP,            0x00600
        .equ    ICR_PENDING,            0x01000
        .equ    ICR_ASSERT,             0x04000
        .equ    ICR_SELF,               0x40000
        .equ    ICR_ALL_BUT_SELF,       0xc0000

# --- IOAPIC (82093AA, 3.1 and 3.2)
        .equ    IOAPIC_IOREGSEL,        0xfec00000
        .equ    IOAPIC_IOWIN,           0xfec00010
        .equ    IOAPIC_VERSION,         0x01
        .equ    IOAPIC_REDTBL,          0x10
        .equ    PINS,                   24
        .equ    RTE_ACTIVE_LOW,         0x02000
        .equ    RTE_REMOTE_IRR,         0x04000
        .equ    RTE_LEVEL,              0x08000
        .equ    RTE_MASKED,             0x10000

# --- the edu device (QEMU docs/specs/edu.rst), offsets in BAR 0
        .equ    EDU_ID,                 0x11e81234      # device 11e8, vendor 1234
        .equ    EDU_IDENTIFICATION,     0x00
        .equ    EDU_INTERRUPT_STATUS,   0x24
        .equ    EDU_INTERRUPT_RAISE,    0x60
        .equ    EDU_INTERRUPT_ACK,      0x64

# --- ways out
        .equ    DEBUG_EXIT,             0xf4            # isa-debug-exit: status = (value << 1) | 1
        .equ    EXIT_PASSED,            0
        .equ    EXIT_FAILED,            1

# --- PIIX4 power management, where SeaBIOS puts it, and the ACPI hot-plug block
        .equ    PM1_STATUS,             0x600
        .equ    PM1_ENABLE,             0x602
        .equ    PM1_CONTROL,            0x604
        .equ    PM1_POWER_BUTTON,       0x0100
        .equ    PM1_SCI_EN,             0x0001
        .equ    PM1_SLP_EN_S5,          0x2000          # SLP_TYP 0 is S5 here
        .equ    SMI_COMMAND,            0xb2
        .equ    SMI_ACPI_ENABLE,        0xf1
        .equ    GPE0_STATUS,            0xafe0
        .equ    GPE0_ENABLE,            0xafe2
        .equ    GPE0_PCI_HOTPLUG,       0x02            # bit 1
        .equ    PCIHP_UP,               0xae00
        .equ    PCIHP_DOWN,             0xae04
        .equ    PCIHP_EJECT,            0xae08
        .equ    PCIHP_REMOVABLE,        0xae0c
        .equ    PCIHP_BUS,              0xae10
        .equ    SCI_PIN,                9

# --- our own conventions
        .equ    CODE_SELECTOR,          0x08
        .equ    DATA_SELECTOR,          0x10
        .equ    MULTIBOOT_LOADED,       0x2badb002

# Print a literal. Clobbers what a call may clobber.
        .macro  say text
        .section .rodata
.Lsay\@:
        .asciz  "\text"
        .text
        movl    $.Lsay\@, %eax
        call    puts
        .endm
