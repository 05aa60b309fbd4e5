"""The one tree of errors that host-side misuse raises. What a guest does is never an error here: it is an event.

    VintxError
    ├── UsageError            command line: an option or value that is not known
    ├── EngineRefused         this CPU engine must not be used here (wrong library, failed self-test, no /dev/kvm)
    ├── EngineError           an engine that ran came to a state it cannot leave
    ├── BootError             the kernel or initrd given is none, is damaged, or does not fit
    ├── ConfigError           a machine, device or object that cannot be made as asked
    │   ├── PropertyError     a property that does not exist or does not take the value
    │   └── InUse             an id, a slot or an address that somebody has
    ├── DeviceNotFound        no device of that id or path (QMP class DeviceNotFound)
    ├── LifecycleError        a transition that the life-cycle table does not have
    ├── LedgerError           a resource given back twice, or by who does not hold it
    ├── QmpError              a QMP error reply with its class and description
    └── TraceError            a trace file that cannot be written or read

`str(error)` is one sentence that a user can act on; the attributes say the same to a program. `qmp_class` is the
class of the QMP error reply that a command answers with when the error reaches it.
"""

from __future__ import annotations


class VintxError(Exception):
    """Root of all errors of vintx. `qmp_class`: the QMP error class this becomes."""

    qmp_class = "GenericError"


class UsageError(VintxError):
    """The command line asks for something that is not there; exit status 1."""


class EngineRefused(VintxError):
    """A CPU engine that must not be used. `engine`: its name; `reason`: what failed; `remedy`: what to do."""

    def __init__(self, engine: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"CPU engine {engine!r} refused: {reason}" + (f". {remedy}" if remedy else ""))
        self.engine = engine
        self.reason = reason
        self.remedy = remedy


class EngineError(VintxError):
    """The engine stopped in a state that it cannot leave (a bug of ours or of the library)."""


class BootError(VintxError):
    """A kernel, initrd or option that cannot be booted. `path`: the file, if one is to blame."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class ConfigError(VintxError):
    """A machine, device or object that cannot be made as asked. Nothing was changed."""


class PropertyError(ConfigError):
    """A property that is unknown or does not take the value. `driver`, `name`: whose and which."""

    def __init__(self, message: str, driver: str = "", name: str = "") -> None:
        super().__init__(message)
        self.driver = driver
        self.name = name


class InUse(ConfigError):
    """An id, slot or address that somebody has. `holder`: who."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class DeviceNotFound(VintxError):
    """No device has this id or path."""

    qmp_class = "DeviceNotFound"

    def __init__(self, device: str) -> None:
        super().__init__(f"Device '{device}' not found")
        self.device = device


class LifecycleError(VintxError):
    """A transition that the life-cycle table does not have. `device`, `state`, `action`."""

    def __init__(self, device: str, state: str, action: str, message: str = "") -> None:
        super().__init__(message or f"Device {device} is {state}: {action} is not possible now")
        self.device = device
        self.state = state
        self.action = action


class LedgerError(VintxError):
    """A resource given back twice, or one that was never taken. `row`: the resource."""

    def __init__(self, message: str, row: object) -> None:
        super().__init__(message)
        self.row = row


class QmpError(VintxError):
    """A QMP error reply: `qmp_class` is one of QEMU's error classes, `str(error)` its description."""

    def __init__(self, desc: str, qmp_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.qmp_class = qmp_class


class TraceError(VintxError):
    """A trace file that cannot be written or read."""
