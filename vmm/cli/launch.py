"""From a `Config` to a machine that runs: what `vintx-system-x86_64` does after its monitors have greeted."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.cli.config import PROGRAM, TraceSpec
from vmm.cli.keyval import parse_bool
from vmm.cli.system import blaming, message_start
from vmm.errors import TraceError, UsageError
from vmm.lean_imports import asyncio

if TYPE_CHECKING:
    from typing import TextIO

    from devices.memory_backend import MemoryBackendRam
    from machine.machine import Machine, MachineConfig
    from vmm.block_graph import BlockGraph
    from vmm.chardev import CharBackend
    from vmm.cli.config import Config
    from vmm.cli.daemon import Daemon
    from vmm.cli.system import FrontEnd
    from vmm.netdev import Netdev

_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the machine."""
LOG_ITEMS = {
    "int": "cpu_takes_interrupt",
    "cpu_reset": "system_reset",
    "ioapic": "ioapic_*",
    "apic": "apic_*",
    "pci": "pci_*",
    "irqfd": "kvm_*",
}
"""`-d` items and the events they log; `trace:PATTERN` is any."""


def launch(config: Config, accel: str, front: FrontEnd, daemon: Daemon | None) -> int:
    """Build the machine and run it to its end; the exit status. UsageError for what cannot be had."""
    if config.exit_with_parent:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if config.process_name:
        Path("/proc/self/comm").write_text(config.process_name[:15])
    with contextlib.ExitStack() as cleanup:
        # What a start makes lasts. Nobody need look through it for garbage, neither now nor while the guest runs.
        gc.disable()
        cleanup.callback(gc.enable)
        cleanup.callback(gc.unfreeze)
        netdevs = _netdevs(config, cleanup)
        serial = [front.backend(f"-serial {text}", text, f"serial{n}") for n, text in enumerate(config.serials)]
        machine = _build(config, accel, serial, front, netdevs)
        _trace(config, machine, cleanup)  # what happens as the machine is closed is traced, too
        cleanup.callback(machine.close)
        for given in config.objects:
            with blaming(f"-object {given.words}"):
                machine.object_add(given.values, given.from_text)
        for given in config.devices:
            with blaming(f"-device {given.words}"):
                machine.device_add(given.values, given.from_text)
        if front.waiting:
            from vmm.qmp.machine_target import MachineMonitor, listen

            listen(machine, front.events)
            target = MachineMonitor(machine, _options)
            for monitor in front.waiting:
                monitor.call.target = target
        if config.qtest is not None:
            _open_qtest(config, machine, front, cleanup)
        if config.pidfile is not None:
            path = Path(config.pidfile).absolute()
            path.write_text(f"{os.getpid()}\n")
            cleanup.callback(path.unlink, missing_ok=True)
        if config.run_with:
            from vmm.cli.daemon import give_up_rights

            give_up_rights(config.run_with.get("chroot"), config.run_with.get("user"))
        return asyncio.run(_serve(machine, front, daemon))


async def _serve(machine: Machine, front: FrontEnd, daemon: Daemon | None) -> int:
    """Serve monitors and character devices, and run the machine to its end."""
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, machine.quit, "host-signal")
    for backend in front.chardevs.values():
        backend.on_exit = machine.quit
    front.chardevs.serve(loop)
    for netdev in machine.netdevs.values():
        netdev.start(loop)
    if daemon is not None:
        daemon.ready()
    gc.freeze()
    gc.enable()
    status = await machine.run()
    for monitor in front.monitors:
        monitor.close()
    for backend in front.chardevs.values():
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


def _options() -> list[dict[str, Any]]:
    """What query-command-line-options tells."""
    from vmm.cli.reference import parameters_of_options

    return parameters_of_options()


def write_config(config: Config) -> None:
    """-writeconfig."""
    from vmm.cli.reference import config_file

    text = config_file(config)
    if config.write_config == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with blaming(f"-writeconfig {config.write_config}"):
        try:
            Path(config.write_config or "").write_text(text)
        except OSError as error:
            raise UsageError(f"Cannot write config file: {error.strerror}") from error


def _logged(item: str) -> TraceSpec:
    """A `-d` item as a trace."""
    kind, colon, pattern = item.partition(":")
    if kind == "trace" and colon:
        return TraceSpec(pattern, "", "")
    if item not in LOG_ITEMS:
        known = ", ".join((*LOG_ITEMS, "trace:PATTERN"))
        raise UsageError(f"-d {item}: there is no such log; known are {known}")
    return TraceSpec(LOG_ITEMS[item], "", "")


def _boot_items(boot: dict[str, str]) -> list[tuple[str, bytes]]:
    """What fw_cfg tells firmware of -boot."""
    items = []
    if "splash-time" in boot:
        items.append(("etc/boot-menu-wait", int(boot["splash-time"], 0).to_bytes(2, "little")))
    if "reboot-timeout" in boot:
        items.append(("etc/boot-fail-wait", int(boot["reboot-timeout"], 0).to_bytes(4, "little", signed=True)))
    if "splash" in boot:
        try:
            picture = Path(boot["splash"]).read_bytes()
        except OSError as error:
            raise UsageError(f"-boot splash={boot['splash']}: {error.strerror}") from error
        kinds = {b"\xff\xd8": "bootsplash.jpg", b"BM": "bootsplash.bmp"}
        name = kinds.get(picture[:2])
        if name is None:
            raise UsageError(f"-boot splash={boot['splash']}: splash file format not recognized; must be JPEG or BMP")
        items.append((name, picture))
    return items


def add_block_nodes(config: Config, blocks: BlockGraph) -> None:
    """-blockdev and -drive."""
    if not (config.blockdevs or config.drives):
        return
    from vmm.cli.text_values import from_text
    from vmm.qmp.commands.block import BLOCKDEV_OPTIONS

    for option, name, given in [
        *(("blockdev", "", given) for given in config.blockdevs),
        *(("drive", name, given) for name, given in config.drives),
    ]:
        with blaming(f"-{option} {given.words}"):
            values = from_text(BLOCKDEV_OPTIONS, given.values) if given.from_text else given.values
            BLOCKDEV_OPTIONS.check_members(values)
            if option == "drive":
                blocks.add_drive(name, values)
            else:
                blocks.add(values)


def _netdevs(config: Config, cleanup: contextlib.ExitStack) -> dict[str, Netdev]:
    """-netdev."""
    made: dict[str, Netdev] = {}
    if config.netdevs:
        from vmm.netdev import add_netdev

        for options, words in config.netdevs:
            with blaming(f"-netdev {words}"):
                cleanup.callback(add_netdev(made, options).close)
    return made


def _build(
    config: Config,
    accel: str,
    serial: list[CharBackend | None],
    front: FrontEnd,
    netdevs: dict[str, Netdev],
) -> Machine:
    from machine.machine import Machine, MachineConfig

    settings = MachineConfig(
        cpus=config.smp.cpus,
        max_cpus=config.smp.maxcpus,
        topology=(config.smp.sockets, config.smp.cores, config.smp.threads),
        accel=accel,
        cpu_model=config.cpu,
        cpu_options=dict(config.cpu_options),
        kernel=config.kernel,
        initrd=config.initrd,
        append=config.append,
        options={name.replace("_", "-"): value for name, value in config.machine_options.items()},
        globals=list(config.globals),
        serial=serial,
        chardevs=front.chardevs,
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
        boot_order=config.boot.get("order", "cad"),
        boot_once=config.boot.get("once"),
        boot_menu=parse_bool("menu", config.boot.get("menu", "off")),
        fd_bootchk=config.fd_bootchk,
    )
    if config.ram_size is not None:
        settings.ram_size = config.ram_size
        settings.ram_given = True
    settings.fw_cfg += _boot_items(config.boot)
    add_block_nodes(config, settings.blocks)
    for item in config.fw_cfg:
        content = item.string.encode() if item.string is not None else Path(item.file or "").read_bytes()
        settings.fw_cfg.append((item.name, content))
    name = settings.options.pop("memory-backend", None)
    if name is not None:
        settings.memory_backend = _memory_backend(config, name, settings)
    machine = Machine.create(config.machine or "pc", settings)
    for warning in machine.warnings:
        print(f"{message_start(config)}{PROGRAM}: warning: {warning}", file=sys.stderr)
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
    with blaming(f"-object {given.words}"):
        backend = kind.create(name, rest, given.from_text, None)
    size = backend.values["size"]
    if config.ram_size not in (None, size):
        raise UsageError(f"-m: {config.ram_size} bytes of RAM, and memory backend '{name}' has {size}")
    settings.ram_size = size
    backend.in_use = "machine"
    return backend


def _open_qtest(config: Config, machine: Machine, front: FrontEnd, cleanup: contextlib.ExitStack) -> None:
    """-qtest: a test program drives the machine. The conversation goes to stderr, or where -qtest-log says."""
    from vmm.qtest import QtestServer

    backend = front.backend(f"-qtest {config.qtest}", config.qtest or "", "qtest")
    if backend is None:
        return
    log: TextIO | None = None
    if config.qtest_log is None:
        log = sys.stderr
    elif config.qtest_log not in ("none", os.devnull):
        with blaming(f"-qtest-log {config.qtest_log}"):
            log = _open_for_writing(config.qtest_log, cleanup)
    cleanup.callback(QtestServer(machine, backend, log).close)


def _trace(config: Config, machine: Machine, cleanup: contextlib.ExitStack) -> None:
    """-trace and -d: text to stderr or a file; JSON lines to a file whose name ends in .json or .jsonl."""
    from vmm.trace import json_sink, text_sink

    files: dict[str, TextIO] = {}
    for spec in [*config.traces, *map(_logged, config.log_items)]:
        patterns = [spec.pattern] if spec.pattern else []
        if spec.events:
            patterns += [line.strip() for line in Path(spec.events).read_text().splitlines() if line.strip()]
        target = spec.file or config.log_file
        stream: TextIO = sys.stderr
        if target:
            if target not in files:
                with blaming("-trace"):
                    files[target] = _open_for_writing(target, cleanup)
                machine.loop.before_poll.append(files[target].flush)
            stream = files[target]
        sink = (json_sink if target and target.endswith((".json", ".jsonl")) else text_sink)(stream)
        for pattern in patterns or ["*"]:
            machine.trace.listen(sink, pattern)


def _open_for_writing(path: str, cleanup: contextlib.ExitStack) -> TextIO:
    try:
        return cleanup.enter_context(open(path, "w", encoding="utf-8"))  # noqa: PTH123 (a user's path, as it is)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
