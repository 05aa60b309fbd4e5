"""ACPI tables of the `pc` machine, placed where a guest without firmware services scans for them.

RSDP, RSDT, XSDT, FADT, FACS and MADT; the DSDT comes from `vmm.boot.dsdt`. Addresses and values are those of QEMU's
`pc`: power management at 0x600, GPE block at 0xafe0, SCI 9, ACPI enabled by writing 0xf1 to port 0xb2. A guest of ACPI
1.0 reads the RSDP's first 20 bytes and the RSDT, a later one the XSDT; both name the same tables.
Ref: ACPI 6.4, 5.2 (RSDP of revision 2; FADT and MADT of revision 1, as QEMU's pc has).
"""

from __future__ import annotations

from construct import Array, Bytes, Const, GreedyRange, Int8ul, Int16ul, Int32ul, Int64ul, Struct, Switch, this

from vmm.boot.dsdt import LINK_IRQS, build
from vmm.boot.image import Piece, piece

RSDP_ADDRESS = 0xE0000
TABLES_ADDRESS = 0xE0040
"""FACS first (it wants 64-byte alignment), then the others."""
OEM_ID = b"VINTX "
OEM_TABLE_ID = b"VINTXPC "
CREATOR = b"VNTX"

LAPIC_BASE = 0xFEE00000
IOAPIC_BASE = 0xFEC00000
IOAPIC_ID = 0
SCI = 9
SMI_COMMAND = 0xB2
ACPI_ENABLE = 0xF1
ACPI_DISABLE = 0xF0
PM_BASE = 0x600
GPE0_BLOCK = 0xAFE0
GPE0_LENGTH = 4
PCI_GSIS = tuple(sorted((SCI, *LINK_IRQS)))
"""ISA interrupts that PCI uses here: level-triggered, and active high at the pin, unlike ISA's default."""
ACTIVE_HIGH_LEVEL = 0x000D
FADT_FLAGS = 0x000080A5
"""WBINVD, PROC_C1, SLP_BUTTON, RTC_S4, USE_PLATFORM_CLOCK."""
MAX_CPUS = 255
"""APIC ids are 8 bits here, and 255 addresses everybody."""

RsdpLayout = Struct(
    "signature" / Const(b"RSD PTR "),
    "checksum" / Int8ul,
    "oem_id" / Bytes(6),
    "revision" / Int8ul,
    "rsdt_address" / Int32ul,
    "length" / Const(36, Int32ul),
    "xsdt_address" / Int64ul,
    "extended_checksum" / Int8ul,
    "reserved" / Const(bytes(3)),
)
RSDP_FIRST_PART = 20
"""What ACPI 1.0 knows of the RSDP, and its checksum covers."""
HeaderLayout = Struct(
    "signature" / Bytes(4),
    "length" / Int32ul,
    "revision" / Int8ul,
    "checksum" / Int8ul,
    "oem_id" / Bytes(6),
    "oem_table_id" / Bytes(8),
    "oem_revision" / Int32ul,
    "creator_id" / Bytes(4),
    "creator_revision" / Int32ul,
)
FacsLayout = Struct(
    "signature" / Const(b"FACS"),
    "length" / Const(64, Int32ul),
    "hardware_signature" / Int32ul,
    "firmware_waking_vector" / Int32ul,
    "global_lock" / Int32ul,
    "flags" / Int32ul,
    "reserved" / Bytes(40),
)
FadtLayout = Struct(
    "firmware_ctrl" / Int32ul,
    "dsdt" / Int32ul,
    "int_model" / Int8ul,
    "preferred_pm_profile" / Int8ul,
    "sci_int" / Int16ul,
    "smi_cmd" / Int32ul,
    "acpi_enable" / Int8ul,
    "acpi_disable" / Int8ul,
    "s4bios_req" / Int8ul,
    "pstate_cnt" / Int8ul,
    "pm1a_evt_blk" / Int32ul,
    "pm1b_evt_blk" / Int32ul,
    "pm1a_cnt_blk" / Int32ul,
    "pm1b_cnt_blk" / Int32ul,
    "pm2_cnt_blk" / Int32ul,
    "pm_tmr_blk" / Int32ul,
    "gpe0_blk" / Int32ul,
    "gpe1_blk" / Int32ul,
    "pm1_evt_len" / Int8ul,
    "pm1_cnt_len" / Int8ul,
    "pm2_cnt_len" / Int8ul,
    "pm_tmr_len" / Int8ul,
    "gpe0_blk_len" / Int8ul,
    "gpe1_blk_len" / Int8ul,
    "gpe1_base" / Int8ul,
    "cst_cnt" / Int8ul,
    "p_lvl2_lat" / Int16ul,
    "p_lvl3_lat" / Int16ul,
    "flush_size" / Int16ul,
    "flush_stride" / Int16ul,
    "duty_offset" / Int8ul,
    "duty_width" / Int8ul,
    "day_alrm" / Int8ul,
    "mon_alrm" / Int8ul,
    "century" / Int8ul,
    "iapc_boot_arch" / Int16ul,
    "reserved" / Int8ul,
    "flags" / Int32ul,
)
LocalApicLayout = Struct("acpi_processor_id" / Int8ul, "apic_id" / Int8ul, "flags" / Int32ul)
IoApicLayout = Struct("ioapic_id" / Int8ul, "reserved" / Const(0, Int8ul), "address" / Int32ul, "gsi_base" / Int32ul)
OverrideLayout = Struct("bus" / Int8ul, "source" / Int8ul, "gsi" / Int32ul, "flags" / Int16ul)
LocalNmiLayout = Struct("acpi_processor_id" / Int8ul, "flags" / Int16ul, "lint" / Int8ul)
LOCAL_APIC, IO_APIC, OVERRIDE, LOCAL_NMI = 0, 1, 2, 4
MadtEntryLayout = Struct(
    "type" / Int8ul,
    "length" / Int8ul,
    "body"
    / Switch(
        this.type,
        {LOCAL_APIC: LocalApicLayout, IO_APIC: IoApicLayout, OVERRIDE: OverrideLayout, LOCAL_NMI: LocalNmiLayout},
        default=Bytes(this.length - 2),
    ),
)
MadtLayout = Struct("lapic_address" / Int32ul, "flags" / Int32ul, "entries" / GreedyRange(MadtEntryLayout))


def checksummed(data: bytes, offset: int) -> bytes:
    """`data` with the byte at `offset` set so that all bytes add up to 0 modulo 256."""
    changed = bytearray(data)
    changed[offset] = 0
    changed[offset] = -sum(changed) & 0xFF
    return bytes(changed)


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A whole table: header, body, checksum."""
    header = HeaderLayout.build(
        {
            "signature": signature,
            "length": HeaderLayout.sizeof() + len(body),
            "revision": revision,
            "checksum": 0,
            "oem_id": OEM_ID,
            "oem_table_id": OEM_TABLE_ID,
            "oem_revision": 1,
            "creator_id": CREATOR,
            "creator_revision": 1,
        }
    )
    return checksummed(header + body, 9)


def madt(cpus: int) -> bytes:
    """The interrupt controllers: `cpus` local APICs (ids 0..), the IOAPIC, what PCI changes, NMI at LINT1."""
    if not 1 <= cpus <= MAX_CPUS:
        raise ValueError(f"{cpus} CPUs: the MADT takes 1 to {MAX_CPUS}")
    entries = [(LOCAL_APIC, {"acpi_processor_id": i, "apic_id": i, "flags": 1}) for i in range(cpus)]
    entries.append((IO_APIC, {"ioapic_id": IOAPIC_ID, "address": IOAPIC_BASE, "gsi_base": 0}))
    entries.append((OVERRIDE, {"bus": 0, "source": 0, "gsi": 2, "flags": 0}))
    entries += [(OVERRIDE, {"bus": 0, "source": i, "gsi": i, "flags": ACTIVE_HIGH_LEVEL}) for i in PCI_GSIS]
    entries.append((LOCAL_NMI, {"acpi_processor_id": 0xFF, "flags": 0, "lint": 1}))
    layouts = MadtEntryLayout.body.cases
    body = MadtLayout.build(
        {
            "lapic_address": LAPIC_BASE,
            "flags": 1,
            "entries": [{"type": t, "length": 2 + layouts[t].sizeof(), "body": body} for t, body in entries],
        }
    )
    return table(b"APIC", 1, body)


def fadt(facs_address: int, dsdt_address: int) -> bytes:
    """The fixed hardware: where the PIIX4's registers are and how ACPI mode is entered."""
    fields = dict.fromkeys((field.name for field in FadtLayout.subcons), 0) | {
        "firmware_ctrl": facs_address,
        "dsdt": dsdt_address,
        "int_model": 1,
        "sci_int": SCI,
        "smi_cmd": SMI_COMMAND,
        "acpi_enable": ACPI_ENABLE,
        "acpi_disable": ACPI_DISABLE,
        "pm1a_evt_blk": PM_BASE,
        "pm1a_cnt_blk": PM_BASE + 4,
        "pm_tmr_blk": PM_BASE + 8,
        "gpe0_blk": GPE0_BLOCK,
        "pm1_evt_len": 4,
        "pm1_cnt_len": 2,
        "pm_tmr_len": 4,
        "gpe0_blk_len": GPE0_LENGTH,
        "p_lvl2_lat": 0xFFF,
        "p_lvl3_lat": 0xFFF,
        "century": 0x32,
        "flags": FADT_FLAGS,
    }
    return table(b"FACP", 1, FadtLayout.build(fields))


def rsdp(rsdt_address: int, xsdt_address: int) -> bytes:
    """Where the tables begin. Two checksums: of its first part, then of the whole."""
    fields = {"checksum": 0, "oem_id": OEM_ID, "revision": 2, "extended_checksum": 0}
    whole = RsdpLayout.build(fields | {"rsdt_address": rsdt_address, "xsdt_address": xsdt_address})
    first = checksummed(whole[:RSDP_FIRST_PART], 8)
    return checksummed(first + whole[RSDP_FIRST_PART:], 32)


def tables(cpus: int, dsdt: bytes | None = None) -> tuple[Piece, ...]:
    """All tables of a machine with `cpus` CPUs, RSDP included; `dsdt` is other AML than ours, without its header.

    ValueError for a number of CPUs that has no MADT.
    """
    facs = FacsLayout.build(
        {
            "hardware_signature": 0,
            "firmware_waking_vector": 0,
            "global_lock": 0,
            "flags": 0,
            "reserved": bytes(40),
        }
    )
    placed = bytearray(facs)

    def place(content: bytes) -> int:
        placed.extend(bytes(-len(placed) % 16))
        address = TABLES_ADDRESS + len(placed)
        placed.extend(content)
        return address

    dsdt_address = place(table(b"DSDT", 1, build() if dsdt is None else dsdt))
    addresses = [place(fadt(TABLES_ADDRESS, dsdt_address)), place(madt(cpus))]
    rsdt_address = place(table(b"RSDT", 1, Array(len(addresses), Int32ul).build(addresses)))
    xsdt_address = place(table(b"XSDT", 1, Array(len(addresses), Int64ul).build(addresses)))
    return (
        piece(RSDP_ADDRESS, rsdp(rsdt_address, xsdt_address), "the RSDP"),
        piece(TABLES_ADDRESS, bytes(placed), "the ACPI tables"),
    )
