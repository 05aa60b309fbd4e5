"""NVMe as declarations: controller registers, commands, completions, Identify data, log pages, status codes.

The controller works with plain integers; these layouts build what it answers once, explain what a guest wrote, and
are what the tests speak. Ref: NVM Express Base Specification 1.4.
"""

from __future__ import annotations

import construct as c

# Registers. Ref: NVMe 1.4, 3.1.

REG_CAP = 0x00
REG_VS = 0x08
REG_INTMS = 0x0C
REG_INTMC = 0x10
REG_CC = 0x14
REG_CSTS = 0x1C
REG_NSSR = 0x20
REG_AQA = 0x24
REG_ASQ = 0x28
REG_ACQ = 0x30
REG_DOORBELLS = 0x1000

VERSION_1_4 = 0x0001_0400

CC_EN = 0x1
CC_SHN = 0xC000
CC_WRITABLE = 0x00FF_FFF1
CSTS_RDY = 0x1
CSTS_CFS = 0x2
CSTS_SHST = 0xC
CSTS_SHST_COMPLETE = 0x8

Capabilities = c.Bitwise(
    c.Struct(
        c.Padding(6),
        "cmbs" / c.Default(c.Flag, False),
        "pmrs" / c.Default(c.Flag, False),
        "mpsmax" / c.BitsInteger(4),
        "mpsmin" / c.BitsInteger(4),
        c.Padding(2),
        "bps" / c.Default(c.Flag, False),
        "css" / c.BitsInteger(8),
        "nssrs" / c.Default(c.Flag, False),
        "dstrd" / c.Default(c.BitsInteger(4), 0),
        "to" / c.BitsInteger(8),
        c.Padding(5),
        "ams" / c.Default(c.BitsInteger(2), 0),
        "cqr" / c.Flag,
        "mqes" / c.BitsInteger(16),
    )
)
"""CAP, most significant byte first. Ref: NVMe 1.4, 3.1.1."""

ControllerConfiguration = c.Bitwise(
    c.Struct(
        c.Padding(8),
        "iocqes" / c.Default(c.BitsInteger(4), 4),
        "iosqes" / c.Default(c.BitsInteger(4), 6),
        "shn" / c.Default(c.BitsInteger(2), 0),
        "ams" / c.Default(c.BitsInteger(3), 0),
        "mps" / c.Default(c.BitsInteger(4), 0),
        "css" / c.Default(c.BitsInteger(3), 0),
        c.Padding(3),
        "en" / c.Flag,
    )
)
"""CC, most significant byte first. Ref: NVMe 1.4, 3.1.5."""

ControllerStatus = c.Bitwise(
    c.Struct(
        c.Padding(26),
        "pp" / c.Flag,
        "nssro" / c.Flag,
        "shst" / c.BitsInteger(2),
        "cfs" / c.Flag,
        "rdy" / c.Flag,
    )
)
"""CSTS, most significant byte first. Ref: NVMe 1.4, 3.1.6."""

ControllerRegisters = c.Struct(
    "cap" / c.Int64ul,
    "vs" / c.Int32ul,
    "intms" / c.Int32ul,
    "intmc" / c.Int32ul,
    "cc" / c.Int32ul,
    c.Padding(4),
    "csts" / c.Int32ul,
    "nssr" / c.Int32ul,
    "aqa" / c.Int32ul,
    "asq" / c.Int64ul,
    "acq" / c.Int64ul,
)
"""The first 56 bytes of BAR0. Ref: NVMe 1.4, 3.1."""

# Commands and completions. Ref: NVMe 1.4, 4.2 and 4.6.

SQE_SIZE = 64
CQE_SIZE = 16

Command = c.Struct(
    "opcode" / c.Int8ul,
    "flags" / c.Default(c.Int8ul, 0),
    "cid" / c.Default(c.Int16ul, 0),
    "nsid" / c.Default(c.Int32ul, 0),
    "cdw2" / c.Default(c.Int32ul, 0),
    "cdw3" / c.Default(c.Int32ul, 0),
    "mptr" / c.Default(c.Int64ul, 0),
    "prp1" / c.Default(c.Int64ul, 0),
    "prp2" / c.Default(c.Int64ul, 0),
    "cdw10" / c.Default(c.Int32ul, 0),
    "cdw11" / c.Default(c.Int32ul, 0),
    "cdw12" / c.Default(c.Int32ul, 0),
    "cdw13" / c.Default(c.Int32ul, 0),
    "cdw14" / c.Default(c.Int32ul, 0),
    "cdw15" / c.Default(c.Int32ul, 0),
)
"""A submission queue entry. `flags`: FUSE in bits 1:0, PSDT in bits 7:6."""

Completion = c.Struct(
    "result" / c.Int32ul,
    "_reserved" / c.Default(c.Int32ul, 0),
    "sq_head" / c.Int16ul,
    "sq_id" / c.Int16ul,
    "cid" / c.Int16ul,
    "status" / c.Int16ul,
)
"""A completion queue entry. `status`: phase tag in bit 0, then SC (8 bits), SCT (3), CRD (2), more, do not retry."""

ADMIN_DELETE_SQ = 0x00
ADMIN_CREATE_SQ = 0x01
ADMIN_GET_LOG_PAGE = 0x02
ADMIN_DELETE_CQ = 0x04
ADMIN_CREATE_CQ = 0x05
ADMIN_IDENTIFY = 0x06
ADMIN_ABORT = 0x08
ADMIN_SET_FEATURES = 0x09
ADMIN_GET_FEATURES = 0x0A
ADMIN_ASYNC_EVENT = 0x0C

NVM_FLUSH = 0x00
NVM_WRITE = 0x01
NVM_READ = 0x02
NVM_WRITE_ZEROES = 0x08

NSID_ALL = 0xFFFF_FFFF

# Status codes: SCT << 8 | SC, and the do-not-retry bit above. Ref: NVMe 1.4, 4.6.1.

DNR = 0x4000
SUCCESS = 0x000
INVALID_OPCODE = 0x001
INVALID_FIELD = 0x002
DATA_TRANSFER_ERROR = 0x004
ABORT_REQUESTED = 0x007
INVALID_NAMESPACE = 0x00B
COMMAND_SEQUENCE = 0x00C
INVALID_PRP_OFFSET = 0x013
NAMESPACE_WRITE_PROTECTED = 0x020
LBA_OUT_OF_RANGE = 0x080
CQ_INVALID = 0x100
INVALID_QUEUE_ID = 0x101
INVALID_QUEUE_SIZE = 0x102
AER_LIMIT_EXCEEDED = 0x105
INVALID_VECTOR = 0x108
INVALID_LOG_PAGE = 0x109
INVALID_QUEUE_DELETION = 0x10C
FEATURE_NOT_SAVEABLE = 0x10D
FEATURE_NOT_CHANGEABLE = 0x10E
WRITE_FAULT = 0x280
UNRECOVERED_READ = 0x281

TRANSIENT = frozenset({DATA_TRANSFER_ERROR, ABORT_REQUESTED, AER_LIMIT_EXCEEDED, WRITE_FAULT, UNRECOVERED_READ})
"""What may go well when it is tried again; the other errors have the do-not-retry bit."""

# Features. Ref: NVMe 1.4, 5.21.1.

FEATURE_ARBITRATION = 0x01
FEATURE_POWER = 0x02
FEATURE_TEMPERATURE = 0x04
FEATURE_ERROR_RECOVERY = 0x05
FEATURE_WRITE_CACHE = 0x06
FEATURE_QUEUES = 0x07
FEATURE_COALESCING = 0x08
FEATURE_VECTOR = 0x09
FEATURE_ATOMICITY = 0x0A
FEATURE_ASYNC_EVENT = 0x0B

# Identify. Ref: NVMe 1.4, 5.15.

CNS_NAMESPACE = 0x00
CNS_CONTROLLER = 0x01
CNS_NAMESPACE_LIST = 0x02
CNS_NAMESPACE_DESCRIPTORS = 0x03
IDENTIFY_SIZE = 4096

ONCS_WRITE_ZEROES = 0x08
VWC_PRESENT = 0x1
VWC_FLUSH_ALL = 0x6
"""Flush takes the broadcast NSID."""


def _at(start: int, end: int) -> c.Construct:
    """Reserved bytes, or ones that are zero in this controller."""
    return c.Padding(end - start)


IdentifyController = c.Padded(
    IDENTIFY_SIZE,
    c.Struct(
        "vid" / c.Int16ul,
        "ssvid" / c.Int16ul,
        "sn" / c.Bytes(20),
        "mn" / c.Bytes(40),
        "fr" / c.Bytes(8),
        "rab" / c.Int8ul,
        "ieee" / c.Bytes(3),
        "cmic" / c.Int8ul,
        "mdts" / c.Int8ul,
        "cntlid" / c.Int16ul,
        "ver" / c.Int32ul,
        "rtd3r" / c.Int32ul,
        "rtd3e" / c.Int32ul,
        "oaes" / c.Int32ul,
        "ctratt" / c.Int32ul,
        _at(100, 111),
        "cntrltype" / c.Int8ul,
        _at(112, 256),
        "oacs" / c.Int16ul,
        "acl" / c.Int8ul,
        "aerl" / c.Int8ul,
        "frmw" / c.Int8ul,
        "lpa" / c.Int8ul,
        "elpe" / c.Int8ul,
        "npss" / c.Int8ul,
        "avscc" / c.Int8ul,
        "apsta" / c.Int8ul,
        "wctemp" / c.Int16ul,
        "cctemp" / c.Int16ul,
        _at(270, 512),
        "sqes" / c.Int8ul,
        "cqes" / c.Int8ul,
        "maxcmd" / c.Int16ul,
        "nn" / c.Int32ul,
        "oncs" / c.Int16ul,
        "fuses" / c.Int16ul,
        "fna" / c.Int8ul,
        "vwc" / c.Int8ul,
        "awun" / c.Int16ul,
        "awupf" / c.Int16ul,
        _at(530, 536),
        "sgls" / c.Int32ul,
        _at(540, 768),
        "subnqn" / c.PaddedString(256, "ascii"),
        _at(1024, 2048),
        "psd0_mp" / c.Int16ul,
        _at(2050, 2052),
        "psd0_enlat" / c.Int32ul,
        "psd0_exlat" / c.Int32ul,
    ),
)
"""Ref: NVMe 1.4, figure 247."""

LbaFormat = c.Struct("ms" / c.Int16ul, "lbads" / c.Int8ul, "rp" / c.Int8ul)

IdentifyNamespace = c.Padded(
    IDENTIFY_SIZE,
    c.Struct(
        "nsze" / c.Int64ul,
        "ncap" / c.Int64ul,
        "nuse" / c.Int64ul,
        "nsfeat" / c.Int8ul,
        "nlbaf" / c.Int8ul,
        "flbas" / c.Int8ul,
        "mc" / c.Int8ul,
        "dpc" / c.Int8ul,
        "dps" / c.Int8ul,
        "nmic" / c.Int8ul,
        "rescap" / c.Int8ul,
        "fpi" / c.Int8ul,
        "dlfeat" / c.Int8ul,
        _at(34, 99),
        "nsattr" / c.Int8ul,
        _at(100, 128),
        "lbaf" / LbaFormat[1],
    ),
)
"""Ref: NVMe 1.4, figure 245."""

NSATTR_WRITE_PROTECTED = 0x1
NIDT_UUID = 3

NamespaceDescriptor = c.Struct(
    "nidt" / c.Int8ul,
    "nidl" / c.Rebuild(c.Int8ul, c.len_(c.this.nid)),
    c.Padding(2),
    "nid" / c.Bytes(c.this.nidl),
)
"""Ref: NVMe 1.4, figure 246."""

# Log pages. Ref: NVMe 1.4, 5.14.1.

LOG_ERROR = 0x01
LOG_SMART = 0x02
LOG_FIRMWARE = 0x03

ErrorLogEntry = c.Padded(
    64,
    c.Struct(
        "count" / c.Int64ul,
        "sq_id" / c.Int16ul,
        "cid" / c.Int16ul,
        "status" / c.Int16ul,
        "parameter" / c.Int16ul,
        "lba" / c.Int64ul,
        "nsid" / c.Int32ul,
    ),
)
"""Ref: NVMe 1.4, figure 194."""

SmartLog = c.Padded(
    512,
    c.Struct(
        "critical_warning" / c.Default(c.Int8ul, 0),
        "temperature" / c.Int16ul,
        "available_spare" / c.Int8ul,
        "spare_threshold" / c.Int8ul,
        "percentage_used" / c.Default(c.Int8ul, 0),
        c.Padding(26),
        "data_units_read" / c.BytesInteger(16, swapped=True),
        "data_units_written" / c.BytesInteger(16, swapped=True),
        "host_reads" / c.BytesInteger(16, swapped=True),
        "host_writes" / c.BytesInteger(16, swapped=True),
        c.Padding(64),
        "media_errors" / c.BytesInteger(16, swapped=True),
        "error_entries" / c.BytesInteger(16, swapped=True),
    ),
)
"""SMART / health information; data units are thousands of 512 bytes. Ref: NVMe 1.4, figure 195."""

FirmwareLog = c.Padded(512, c.Struct("active" / c.Int8ul, c.Padding(7), "slot1" / c.Bytes(8)))
"""Ref: NVMe 1.4, figure 196."""

EVENT_ERROR = 0
EVENT_INVALID_DOORBELL_REGISTER = 0
EVENT_INVALID_DOORBELL_VALUE = 1
AsyncEvent = c.BitStruct(
    c.Padding(8), "log" / c.BitsInteger(8), "info" / c.BitsInteger(8), c.Padding(5), "type" / c.BitsInteger(3)
)
"""DW0 of a completed Asynchronous Event Request, most significant byte first. Ref: NVMe 1.4, figure 147."""
