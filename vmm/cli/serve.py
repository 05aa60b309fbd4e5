"""`vintx serve`: one PCI device in a process of its own, for a machine that takes it over vfio-user."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from devices.pci.device import PciDevice
from machine.registry import device_type, device_types
from vmm.cli.keyval import parse_properties
from vmm.errors import ConfigError, TraceError, UsageError
from vmm.trace import json_sink, text_sink
from vmm.vfio_user.server import Server, tell_mistakes

if TYPE_CHECKING:
    from vmm.block_graph import BlockGraph
    from vmm.cli.keyval import Properties
    from vmm.trace import Sink

LIST = "DEVICES"
"""Stands for the list of devices in the help text: it is made only for who reads it."""
OF_A_MACHINE = frozenset({"ivshmem-plain", "pvpanic-pci"})
"""Devices that want what only a machine has: memory backends, panics."""


class _HelpWithDevices(argparse.HelpFormatter):
    def add_text(self, text: str | None) -> None:
        super().add_text(f"Devices of ours: {', '.join(servable())}." if text == LIST else text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx serve`."""
    parser.formatter_class = _HelpWithDevices
    parser.epilog = LIST
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "device",
        nargs="?",
        metavar="FILE.py:CLASS[,prop=value...]",
        help="a PciDevice of your own; mistakes that it makes while it is used are told on stderr",
    )
    text = "a PCI device of ours; --device help tells what each is, --device DRIVER,help its properties"
    what.add_argument("--device", dest="driver", metavar="DRIVER[,prop=value...]", help=text)
    parser.add_argument("--socket", metavar="PATH", help="where to listen; DRIVER.sock if not given")
    for option, what_for in (("drive", "file=IMAGE,if=none,id=ID"), ("blockdev", "driver=raw,node-name=ID,...")):
        text = f"a disk for drive=ID, as vintx-system-x86_64 takes -{option}"
        parser.add_argument(f"--{option}", metavar=what_for, action="append", default=[], help=text)
    text = "trace events to stderr, or to FILE (JSON lines if that ends in .jsonl); PATTERN is as for -trace: '*_intx*'"
    parser.add_argument("--trace", metavar="PATTERN[,file=FILE]", action="append", default=[], help=text)
    text = "do not serve it: use all its registers, timers and its pin as guests might, and say what is wrong"
    parser.add_argument("--check", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; with --check, status 1 if a mistake was found."""
    given = parse_properties(arguments.device if arguments.driver is None else arguments.driver, "driver")
    values = dict(given.values)
    name = str(values.pop("driver", ""))
    if given.help:
        return _help(name, arguments.driver is None)
    if not name:
        raise UsageError("which device? FILE.py:CLASS, or --device DRIVER; --device help lists ours")
    cls = _from_file(name) if arguments.driver is None else _driver(name)
    device_id = values.pop("id", None)
    if device_id is not None and not isinstance(device_id, str):
        raise UsageError(f"id {device_id!r}: text is wanted")
    if arguments.check:
        return _check(cls, values, given)
    device = cls(device_id, **cls.parse(values, given.from_text))
    if arguments.driver is None:
        tell_mistakes(device)
    path = arguments.socket or f"{cls.driver or cls.__name__.lower()}.sock"
    with contextlib.ExitStack() as cleanup:
        blocks = _blocks(arguments, cleanup)
        sinks = _sinks(arguments.trace, cleanup)  # what happens as the server is closed is traced, too
        server = cleanup.enter_context(Server(device, path, blocks))
        for pattern, sink in sinks:
            server.trace.listen(sink, pattern)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: server.stop())
        print(f"vintx serve: {cls.driver or cls.__name__} at {path}", flush=True)
        server.run()
    return 0


def _check(cls: type[PciDevice], values: dict[str, object], given: Properties) -> int:
    from devices.trial import check

    report = check(cls, **cls.parse(values, given.from_text))
    for mistake in report:
        print(f"{cls.driver or cls.__name__}: {mistake}")
    print(f"vintx serve: {cls.driver or cls.__name__}: {report.text()}")
    return 1 if report else 0


def _blocks(arguments: argparse.Namespace, cleanup: contextlib.ExitStack) -> BlockGraph | None:
    """The disks of --drive and --blockdev."""
    if not (arguments.drive or arguments.blockdev):
        return None
    from vmm.block_graph import BlockGraph
    from vmm.cli import option_values
    from vmm.cli.config import Config
    from vmm.cli.launch import add_block_nodes

    config = Config()
    for text in arguments.blockdev:
        option_values.blockdev(config, text)
    for text in arguments.drive:
        option_values.drive(config, text)
    blocks = BlockGraph()
    cleanup.callback(blocks.close)
    add_block_nodes(config, blocks)
    return blocks


def _sinks(texts: list[str], cleanup: contextlib.ExitStack) -> list[tuple[str, Sink]]:
    """Patterns and where their events go, as --trace says; lines are whole when the process ends, however."""
    found = []
    for text in texts:
        given = parse_properties(text, "enable").values
        unknown = sorted(set(given) - {"enable", "file"})
        if unknown:
            raise UsageError(f"--trace {text}: '{unknown[0]}' is not known; there are PATTERN and file=")
        target = str(given.get("file", ""))
        stream: TextIO = sys.stderr
        if target:
            stream = cleanup.enter_context(_lines_to(target))
        sink = json_sink if target.endswith((".json", ".jsonl")) else text_sink
        found.append((str(given.get("enable", "*")), sink(stream)))
    return found


def _lines_to(path: str) -> TextIO:
    try:
        return open(path, "w", encoding="utf-8", buffering=1)  # noqa: PTH123 (a user's path, as it is)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error


def servable() -> dict[str, str]:
    """Every PCI device that can be served, and what it is."""
    return {cls.driver: cls.description for cls in device_types() if _can_be_served(cls) is None}


def _can_be_served(cls: type) -> str | None:
    """Why not; None if it can."""
    if not issubclass(cls, PciDevice) or not cls.user_creatable or hasattr(cls, "wants_host_object"):
        return "it is no PCI device that stands by itself"
    if cls.driver in OF_A_MACHINE:
        return "it wants what only a machine has"
    return None


def _driver(name: str) -> type[PciDevice]:
    cls = device_type(name)
    if cls is None:
        raise ConfigError(f"'{name}' is not a valid device model name; vintx serve --device help lists those to be had")
    why = _can_be_served(cls)
    if why is not None:
        raise ConfigError(f"'{name}' cannot be served: {why}")
    assert issubclass(cls, PciDevice)
    return cls


def _help(name: str, of_file: bool) -> int:
    if of_file:
        raise UsageError("FILE.py:CLASS says itself what properties it has")
    if name:
        from vmm.cli.config import HelpRequest
        from vmm.cli.help import show

        _driver(name)
        show(HelpRequest("device", name))
    else:
        for driver, about in servable().items():
            print(f"{driver:<22}{about}")
    return 0


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
