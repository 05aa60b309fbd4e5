"""`vintx-system-x86_64`: a machine from QEMU's command line.

Help and errors need no machine; a machine is imported and built only when there is one to run. Errors are one line on
stderr, in QEMU's form, and exit status 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.chardev_options import parse_chardev, parse_serial
from vmm.cli.options import PROGRAM, parse_command_line
from vmm.errors import InUse, TraceError, UsageError, VintxError
from vmm.trace import json_sink, text_sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from devices.memory_backend import MemoryBackendRam
    from machine.machine import Machine, MachineConfig
    from vmm.chardev import CharBackend
    from vmm.cli.options import Config, MonitorSpec
    from vmm.netdev import Netdev
    from vmm.qmp.char_monitor import CharMonitor

_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the machine."""
_MONITOR_OPTION = {"control": "qmp", "readline": "monitor"}
ACCELERATORS = ("qtest", "tcg")


def main(argv: list[str] | None = None) -> int:
    """Run the machine that `argv` (without the program's name) asks for; its exit status.

    Once a machine has ended, the signals that would end it are ignored: the process is as good as gone.
    """
    try:
        config = parse_command_line(sys.argv[1:] if argv is None else argv)
        if config.help is not None:
            from vmm.cli.help import show

            with contextlib.suppress(BrokenPipeError):  # `-device help | head`: the reader has seen enough
                show(config.help)
                sys.stdout.flush()
                return 0
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _run(config)
    except VintxError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{PROGRAM}: {error.filename or 'I/O'}: {error.strerror or error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _blaming(option: str) -> Iterator[None]:
    """Errors inside begin with the words of the command line that led to them."""
    try:
        yield
    except VintxError as error:
        raise UsageError(f"{option}: {error}") from error


def _run(config: Config) -> int:
    for item in config.log_items:
        raise UsageError(f"-d {item}: there is no such log; -trace PATTERN writes events")
    accel = _accelerator(config)
    if config.exit_with_parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.ExitStack() as cleanup:
        # What a start makes lasts. Nobody need look through it for garbage, neither now nor while the guest runs.
        gc.disable()
        cleanup.callback(gc.enable)
        cleanup.callback(gc.unfreeze)
        # Whatever a character device holds back is written out last, after the machine is gone.
        chardevs: dict[str, CharBackend] = {}
        cleanup.callback(_close_all, chardevs)
        for text in config.chardevs:
            with _blaming(f"-chardev {text}"):
                _add_chardev(chardevs, parse_chardev(text))
        netdevs = _netdevs(config, cleanup)
        serial = [_backend(f"-serial {text}", text, f"serial{n}", chardevs) for n, text in enumerate(config.serials)]
        machine = _build(config, accel, serial, chardevs, netdevs)
        _trace(config, machine, cleanup)  # what happens as the machine is closed is traced, too
        cleanup.callback(machine.close)
        for given in config.objects:
            with _blaming(f"-object {given.words}"):
                machine.object_add(given.values, given.from_text)
        for given in config.devices:
            with _blaming(f"-device {given.words}"):
                machine.device_add(given.values, given.from_text)
        monitors = [
            (_backend(f"-{_MONITOR_OPTION[spec.mode]} {spec.where}", spec.where, f"compat_monitor{n}", chardevs), spec)
            for n, spec in enumerate(config.monitors)
        ]
        if config.qtest is not None:
            _open_qtest(config, machine, chardevs, cleanup)
        if config.pidfile is not None:
            path = Path(config.pidfile)
            path.write_text(f"{os.getpid()}\n")
            cleanup.callback(path.unlink, missing_ok=True)
        return asyncio.run(_serve(machine, chardevs, monitors))


async def _serve(
    machine: Machine, chardevs: dict[str, CharBackend], monitors: list[tuple[CharBackend | None, MonitorSpec]]
) -> int:
    """Open monitors and character devices, and run the machine to its end."""
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, machine.quit, "host-signal")
    open_monitors: list[CharMonitor] = []
    if monitors:
        from vmm.qmp.char_monitor import CharMonitor
        from vmm.qmp.machine_target import monitor_of

        for backend, spec in monitors:
            if backend is not None:
                open_monitors.append(CharMonitor(monitor_of(machine, spec.mode, spec.pretty), backend))
    for backend in chardevs.values():
        backend.start(loop)
    for netdev in machine.netdevs.values():
        netdev.start(loop)
    gc.freeze()
    gc.enable()
    status = await machine.run()
    for monitor in open_monitors:
        monitor.close()
    for backend in chardevs.values():
        backend.flush()
    _ignore_ending(loop)
    return status


def _ignore_ending(loop: asyncio.AbstractEventLoop) -> None:
    """The machine has ended: a signal that asks for it comes too late to make the exit status that of a death."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    for number in _ENDING:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _close_all(chardevs: dict[str, CharBackend]) -> None:
    for backend in chardevs.values():
        backend.close()


def _accelerator(config: Config) -> str:
    """The first engine of the list that is here."""
    names = config.accels or [("tcg", {})]
    for name, options in names:
        if name not in ACCELERATORS:
            continue
        for key, value in options.items():
            # One host thread runs all vCPUs in turn, which is what thread=single asks for and thread=multi allows.
            if (name, key) != ("tcg", "thread") or value not in ("single", "multi"):
                raise UsageError(f"-accel {name},{key}={value}: Property '{name}-accel.{key}' not found")
        return name
    tried = ":".join(name for name, _ in names)
    if "kvm" in tried:
        raise UsageError(f"-accel {tried}: there is no KVM engine; use -accel tcg, or kvm:tcg to fall back to it")
    raise UsageError(f"-accel {tried}: invalid accelerator {names[0][0]}; known are {', '.join(ACCELERATORS)}")


def _add_chardev(chardevs: dict[str, CharBackend], backend: CharBackend) -> None:
    if backend.id in chardevs:
        backend.close()
        raise InUse(f"Chardev with id '{backend.id}' already exists", holder=backend.id)
    chardevs[backend.id] = backend


def _backend(option: str, where: str, name: str, chardevs: dict[str, CharBackend]) -> CharBackend | None:
    """The character device that -serial, -qmp and the like name or ask for; None for `none`."""
    with _blaming(option):
        backend = parse_serial(where, name, chardevs)
        if backend is not None and chardevs.get(backend.id) is not backend:
            _add_chardev(chardevs, backend)
        return backend


def _netdevs(config: Config, cleanup: contextlib.ExitStack) -> dict[str, Netdev]:
    """-netdev."""
    made: dict[str, Netdev] = {}
    if config.netdevs:
        from vmm.netdev import HubPort, make_netdev

        hubs: dict[int, list[HubPort]] = {}
        for options, words in config.netdevs:
            with _blaming(f"-netdev {words}"):
                netdev = make_netdev(options, hubs)
                cleanup.callback(netdev.close)
                if netdev.id in made:
                    raise InUse(f"Duplicate ID '{netdev.id}' for netdev", holder=netdev.id)
                made[netdev.id] = netdev
    return made


def _build(
    config: Config,
    accel: str,
    serial: list[CharBackend | None],
    chardevs: dict[str, CharBackend],
    netdevs: dict[str, Netdev],
) -> Machine:
    from machine.machine import Machine, MachineConfig

    settings = MachineConfig(
        cpus=config.smp.cpus,
        max_cpus=config.smp.maxcpus,
        accel=accel,
        cpu_model=config.cpu,
        cpu_options=dict(config.cpu_options),
        kernel=config.kernel,
        initrd=config.initrd,
        append=config.append,
        options={name.replace("_", "-"): value for name, value in config.machine_options.items()},
        globals=list(config.globals),
        serial=serial,
        chardevs=chardevs,
        netdevs=netdevs,
        start_paused=config.paused,
        preconfig=config.preconfig,
        no_reboot=config.actions["reboot"] == "shutdown",
        no_shutdown=config.actions["shutdown"] == "pause",
        panic=config.actions["panic"],
        watchdog=config.actions["watchdog"],
        name=config.name or None,
        uuid=config.uuid,
        rtc_base=config.rtc_base,
        boot_order=config.boot.get("order", ""),
        boot_menu=config.boot.get("menu", "off") in ("on", "yes"),
    )
    for name in config.boot:
        if name not in ("order", "menu"):
            raise UsageError(f"-boot {name}: not supported; there is no firmware that would heed it")
    if config.ram_size is not None:
        settings.ram_size = config.ram_size
    for item in config.fw_cfg:
        content = item.string.encode() if item.string is not None else Path(item.file or "").read_bytes()
        settings.fw_cfg.append((item.name, content))
    name = settings.options.pop("memory-backend", None)
    if name is not None:
        settings.memory_backend = _memory_backend(config, name, settings)
    machine = Machine.create(config.machine or "pc", settings)
    for warning in machine.warnings:
        print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)
    return machine


def _memory_backend(config: Config, name: str, settings: MachineConfig) -> MemoryBackendRam:
    """The object of -object that the machine's RAM is to be in; it gives RAM its size unless -m does."""
    from devices.memory_backend import MemoryBackendRam
    from machine.registry import object_type

    for given in config.objects:
        kind = object_type(str(given.values.get("qom-type")))
        if given.values.get("id") == name and kind is not None and issubclass(kind, MemoryBackendRam):
            break
    else:
        raise UsageError(f"-machine memory-backend={name}: no -object memory-backend-memfd has this id")
    config.objects.remove(given)
    rest = {key: value for key, value in given.values.items() if key not in ("qom-type", "id")}
    with _blaming(f"-object {given.words}"):
        backend = kind.create(name, rest, given.from_text, None)
    size = backend.values["size"]
    if config.ram_size not in (None, size):
        raise UsageError(f"-m: {config.ram_size} bytes of RAM, and memory backend '{name}' has {size}")
    settings.ram_size = size
    backend.in_use = "machine"
    return backend


def _open_qtest(
    config: Config, machine: Machine, chardevs: dict[str, CharBackend], cleanup: contextlib.ExitStack
) -> None:
    """-qtest: a test program drives the machine. The conversation goes to stderr, or where -qtest-log says."""
    from vmm.qtest import QtestServer

    backend = _backend(f"-qtest {config.qtest}", config.qtest or "", "qtest", chardevs)
    if backend is None:
        return
    log: TextIO | None = None
    if config.qtest_log is None:
        log = sys.stderr
    elif config.qtest_log not in ("none", os.devnull):
        with _blaming(f"-qtest-log {config.qtest_log}"):
            log = _open_for_writing(config.qtest_log, cleanup)
    cleanup.callback(QtestServer(machine, backend, log).close)


def _trace(config: Config, machine: Machine, cleanup: contextlib.ExitStack) -> None:
    """-trace: text to stderr or a file; JSON lines to a file whose name ends in .json or .jsonl."""
    for spec in config.traces:
        patterns = [spec.pattern] if spec.pattern else []
        if spec.events:
            patterns += [line.strip() for line in Path(spec.events).read_text().splitlines() if line.strip()]
        target = spec.file or config.log_file
        stream: TextIO = sys.stderr
        if target:
            with _blaming("-trace"):
                stream = _open_for_writing(target, cleanup)
            machine.loop.before_poll.append(stream.flush)
        sink = (json_sink if target and target.endswith((".json", ".jsonl")) else text_sink)(stream)
        for pattern in patterns or ["*"]:
            machine.trace.listen(sink, pattern)


def _open_for_writing(path: str, cleanup: contextlib.ExitStack) -> TextIO:
    try:
        return cleanup.enter_context(open(path, "w", encoding="utf-8"))  # noqa: PTH123 (a user's path, as it is)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
