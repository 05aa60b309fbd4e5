"""`vintx serve`: one PCI device in a process of its own, for a machine that takes it over vfio-user."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from devices.pci.device import PciDevice
from machine.registry import device_type
from vmm.cli.keyval import parse_properties
from vmm.errors import ConfigError, UsageError
from vmm.vfio_user.server import Server

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx serve`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "device",
        nargs="?",
        metavar="FILE.py:CLASS[,prop=value...]",
        help="a PciDevice of your own; its socket's name is that of the class unless --socket says otherwise",
    )
    what.add_argument("--device", dest="driver", metavar="DRIVER[,prop=value...]", help="a PCI device of ours: edu")
    parser.add_argument("--socket", metavar="PATH", help="where to listen")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    given = parse_properties(arguments.driver or arguments.device, "driver")
    values = dict(given.values)
    name = values.pop("driver")
    if given.help or not isinstance(name, str):
        raise UsageError("no help for devices here; vintx-system-x86_64 -device DRIVER,help shows their properties")
    cls = _driver(name) if arguments.driver else _from_file(name)
    device_id = values.pop("id", None)
    if device_id is not None and not isinstance(device_id, str):
        raise UsageError(f"id {device_id!r}: text is wanted")
    device = cls(device_id, **cls.parse(values, given.from_text))
    path = arguments.socket or f"{cls.driver or cls.__name__.lower()}.sock"
    with Server(device, path) as server:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: server.stop())
        print(f"vintx serve: {cls.driver or cls.__name__} at {path}", flush=True)
        server.run()
    return 0


def _driver(name: str) -> type[PciDevice]:
    cls = device_type(name)
    if cls is None:
        raise ConfigError(f"'{name}' is not a valid device model name")
    if not issubclass(cls, PciDevice) or not cls.user_creatable or hasattr(cls, "wants_host_object"):
        raise ConfigError(f"'{name}' cannot be served: it is no PCI device that stands by itself")
    return cls


def _from_file(reference: str) -> type[PciDevice]:
    """The class in a Python file. The file's folder is searched for what it imports, as if it had been run."""
    name, colon, wanted = reference.rpartition(":")
    path = Path(name)
    if not colon or not wanted or path.suffix != ".py":
        raise UsageError(f"'{reference}': want FILE.py:CLASS, or --device DRIVER")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    cls = getattr(module, wanted, None)
    if not isinstance(cls, type) or not issubclass(cls, PciDevice):
        raise ConfigError(f"{path} has no class {wanted} that is a devices.PciDevice")
    return cls
