"""Virtio devices on PCI: the transport, the virtqueues, and what is behind them.

`pci` is the transport (legacy ports and modern capabilities in one transitional function), `queue` the split virtqueue;
each other module is a device. Ref: Virtual I/O Device (VIRTIO) 1.2.
"""
