"""Replay of recorded vectors against the models: the proof that they do what real systems did.

    report = replay_file("kvm-ioapic.json")
    print(report)                       # 330 sequences, 7803 steps, 0 differ
    for difference in report.differences:
        print(difference)

`vectors kvm-ioapic.json` was recorded from Linux' in-kernel irqchip, `vectors qemu-ioapic.json` from QEMU's user-space
I/O APIC; the formats are described beside the files.
"""

from vmm.vectors.difference import Difference
from vmm.vectors.kvm import HostProfile, replay_kvm
from vmm.vectors.qemu import replay_qemu
from vmm.vectors.report import Report, chip_of, load, replay, replay_file

__all__ = [
    "Difference",
    "HostProfile",
    "Report",
    "chip_of",
    "load",
    "replay",
    "replay_file",
    "replay_kvm",
    "replay_qemu",
]
