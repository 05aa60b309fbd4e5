"""What a PC's firmware and boot loader do before a guest runs: kernels into RAM, devices set up, ACPI tables."""

from __future__ import annotations

from vmm.boot.image import BootState
from vmm.boot.loader import load, prepare

__all__ = ["BootState", "load", "prepare"]
