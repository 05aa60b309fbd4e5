"""`monitor-qmp` and `monitor-hmp`: monitors as objects, that object-add makes on a character device while all runs."""

from __future__ import annotations

from typing import Any, ClassVar

from devices.device import Property
from vmm.errors import PropertyError, QmpError
from vmm.qmp.char_monitor import CharMonitor
from vmm.qmp.machine_target import monitor_of


class MonitorQmp:
    """A QMP monitor on the character device `chardev`."""

    qom_type: ClassVar[str] = "monitor-qmp"
    mode: ClassVar[str] = "control"
    properties: ClassVar[tuple[Property, ...]] = (
        Property("chardev", "str", None, "the character device"),
        Property("pretty", "bool", False, "indent JSON"),
    )

    def __init__(self, id: str, values: dict[str, Any], monitor: CharMonitor) -> None:
        self.id = id
        self.values = values
        self.in_use: str | None = None
        self._monitor = monitor

    @classmethod
    def create(cls, id: str, properties: dict[str, object], from_text: bool, board: Any) -> MonitorQmp:
        """PropertyError for an unknown property; QmpError or InUse if the device is not there, or has a user."""
        known = {prop.name: prop for prop in cls.properties}
        values: dict[str, Any] = {prop.name: prop.default for prop in cls.properties}
        for name, value in properties.items():
            if name not in known:
                raise PropertyError(f"Property '{cls.qom_type}.{name}' not found", cls.qom_type, name)
            values[name] = known[name].parse(cls.qom_type, value, from_text)
        if values["chardev"] is None:
            raise PropertyError("Parameter 'chardev' is missing", cls.qom_type, "chardev")
        backend = board.config.chardevs.get(values["chardev"])
        if backend is None:
            raise QmpError(f'chardev "{values["chardev"]}" not found')
        monitor = monitor_of(board, cls.mode, bool(values.get("pretty")))
        return cls(id, values, CharMonitor(monitor, backend))

    def close(self) -> None:
        """Its client hears no more; the character device stays."""
        self._monitor.close()


class MonitorHmp(MonitorQmp):
    """A human monitor on the character device `chardev`."""

    qom_type = "monitor-hmp"
    mode = "readline"
    properties = MonitorQmp.properties[:1]
