"""The wire formats of virtio over PCI: header, capabilities, rings, and each device's configuration space.

Declarations explain, build and test; the handlers use plain integers. Everything is little-endian: the legacy interface
has the guest's order, which on a PC is the same. Ref: VIRTIO 1.2, chapters 2, 4.1 and 5.
"""

from __future__ import annotations

import construct as c

# Device status. Ref: VIRTIO 1.2, 2.1.
STATUS_ACKNOWLEDGE = 0x01
STATUS_DRIVER = 0x02
STATUS_DRIVER_OK = 0x04
STATUS_FEATURES_OK = 0x08
STATUS_NEEDS_RESET = 0x40
STATUS_FAILED = 0x80

# Feature bits that all devices share. Ref: VIRTIO 1.2, 6 and 6.3.
F_NOTIFY_ON_EMPTY = 1 << 24
F_ANY_LAYOUT = 1 << 27
F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
LEGACY_ONLY = F_NOTIFY_ON_EMPTY

# ISR status. Ref: VIRTIO 1.2, 4.1.4.5.
ISR_QUEUE = 1
ISR_CONFIG = 2

NO_VECTOR = 0xFFFF
MAX_QUEUE_SIZE = 1024

# Rings. Ref: VIRTIO 1.2, 2.7.
DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4
AVAIL_F_NO_INTERRUPT = 1
LEGACY_ALIGN = 4096

Descriptor = c.Struct("address" / c.Int64ul, "length" / c.Int32ul, "flags" / c.Int16ul, "next" / c.Int16ul)
"""Ref: VIRTIO 1.2, 2.7.5."""

UsedElement = c.Struct("id" / c.Int32ul, "length" / c.Int32ul)
"""Ref: VIRTIO 1.2, 2.7.8."""

LegacyHeader = c.Struct(
    "device_features" / c.Int32ul,
    "driver_features" / c.Int32ul,
    "queue_address" / c.Int32ul,
    "queue_size" / c.Int16ul,
    "queue_select" / c.Int16ul,
    "queue_notify" / c.Int16ul,
    "device_status" / c.Int8ul,
    "isr_status" / c.Int8ul,
)
"""BAR0; the device's own configuration follows, after two vectors while MSI-X is enabled. Ref: VIRTIO 1.2, 4.1.4.10."""

LEGACY_FEATURES = 0
LEGACY_DRIVER_FEATURES = 4
LEGACY_QUEUE_ADDRESS = 8
LEGACY_QUEUE_SIZE = 12
LEGACY_QUEUE_SELECT = 14
LEGACY_QUEUE_NOTIFY = 16
LEGACY_STATUS = 18
LEGACY_ISR = 19
LEGACY_CONFIG_VECTOR = 20
LEGACY_QUEUE_VECTOR = 22
LEGACY_CONFIG = 20
LEGACY_CONFIG_MSIX = 24

CommonConfig = c.Struct(
    "device_feature_select" / c.Int32ul,
    "device_feature" / c.Int32ul,
    "driver_feature_select" / c.Int32ul,
    "driver_feature" / c.Int32ul,
    "config_msix_vector" / c.Int16ul,
    "num_queues" / c.Int16ul,
    "device_status" / c.Int8ul,
    "config_generation" / c.Int8ul,
    "queue_select" / c.Int16ul,
    "queue_size" / c.Int16ul,
    "queue_msix_vector" / c.Int16ul,
    "queue_enable" / c.Int16ul,
    "queue_notify_off" / c.Int16ul,
    "queue_desc" / c.Int64ul,
    "queue_driver" / c.Int64ul,
    "queue_device" / c.Int64ul,
)
"""Ref: VIRTIO 1.2, 4.1.4.3."""

COMMON_DEVICE_FEATURE_SELECT = 0
COMMON_DEVICE_FEATURE = 4
COMMON_DRIVER_FEATURE_SELECT = 8
COMMON_DRIVER_FEATURE = 12
COMMON_CONFIG_VECTOR = 16
COMMON_NUM_QUEUES = 18
COMMON_STATUS = 20
COMMON_GENERATION = 21
COMMON_QUEUE_SELECT = 22
COMMON_QUEUE_SIZE = 24
COMMON_QUEUE_VECTOR = 26
COMMON_QUEUE_ENABLE = 28
COMMON_QUEUE_NOTIFY_OFF = 30
COMMON_QUEUE_DESC = 32
COMMON_QUEUE_DRIVER = 40
COMMON_QUEUE_DEVICE = 48

# Capabilities. Ref: VIRTIO 1.2, 4.1.4.
CAP_VENDOR = 0x09
CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI = 1, 2, 3, 4, 5

Capability = c.Struct(
    "cap_len" / c.Int8ul,
    "cfg_type" / c.Int8ul,
    "bar" / c.Default(c.Int8ul, 0),
    "id" / c.Default(c.Int8ul, 0),
    c.Padding(2),
    "offset" / c.Default(c.Int32ul, 0),
    "length" / c.Default(c.Int32ul, 0),
)
"""A capability behind its id and next pointer. Ref: VIRTIO 1.2, 4.1.4."""

NotifyCapability = c.Struct("cap" / Capability, "notify_off_multiplier" / c.Int32ul)
"""Ref: VIRTIO 1.2, 4.1.4.4."""

PciCapability = c.Struct("cap" / Capability, "pci_cfg_data" / c.Default(c.Int32ul, 0))
"""A window to the BARs in configuration space. Ref: VIRTIO 1.2, 4.1.4.9."""

PCI_CAP_BAR, PCI_CAP_OFFSET, PCI_CAP_LENGTH, PCI_CAP_DATA, PCI_CAP_SIZE = 4, 8, 12, 16, 20
"""Where they are in it, counted from its id."""

MODERN_BAR = 4
MODERN_SIZE = 0x4000
AREA_COMMON, AREA_ISR, AREA_DEVICE, AREA_NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
AREA_SIZE = 0x1000
NOTIFY_MULTIPLIER = 4

# Device types. Ref: VIRTIO 1.2, 5.
ID_NET, ID_BLOCK, ID_CONSOLE, ID_RNG, ID_BALLOON, ID_INPUT = 1, 2, 3, 4, 5, 18
MODERN_DEVICE_ID = 0x1040
"""A device that is not transitional has this PCI device id plus its type."""
