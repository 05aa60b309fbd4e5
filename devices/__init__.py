"""Device models: one device, one file.

A device of your own starts from `PciDevice`, and `serve` gives it to a machine in another process:

    from devices import IoRegion, PciDevice, serve

`check` tries one out before a guest has it. docs/device-author.md leads through all of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devices.device import Property
    from devices.pci.device import PciDevice
    from devices.trial import check
    from vmm.memory import IoRegion
    from vmm.vfio_user.server import serve

__all__ = ["IoRegion", "PciDevice", "Property", "check", "serve"]

_PLACES = {
    "IoRegion": "vmm.memory",
    "PciDevice": "devices.pci.device",
    "Property": "devices.device",
    "check": "devices.trial",
    "serve": "vmm.vfio_user.server",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: whoever wants one device does not pay for all that these need.
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
