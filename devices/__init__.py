"""Device models: one device, one file.

A device of your own starts from `PciDevice`, and `serve` gives it to a machine in another process:

    from devices import PciDevice, serve
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devices.pci.device import PciDevice
    from vmm.vfio_user.server import serve

__all__ = ["PciDevice", "serve"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: whoever wants one device does not pay for all that these two need.
    if name == "PciDevice":
        from devices.pci.device import PciDevice

        return PciDevice
    if name == "serve":
        from vmm.vfio_user.server import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
