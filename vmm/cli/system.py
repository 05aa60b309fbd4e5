"""`vintx-system-x86_64`: a machine from QEMU's command line.

Help and errors need no machine. Monitors come first, as in QEMU: a client that is there is greeted, and only then is
the rest of the program imported (`vmm.cli.launch`), the machine built and anything read that the client says. Errors
are one line on stderr, in QEMU's form, and exit status 1.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vmm.cli.config import PROGRAM
from vmm.cli.options import parse_command_line
from vmm.errors import UsageError, VintxError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from vmm.chardev import CharBackend, Chardevs
    from vmm.cli.config import Config
    from vmm.qmp.char_monitor import CharMonitor
    from vmm.qmp.events import Events
    from vmm.qmp.monitor import Monitor

_MONITOR_OPTION = {"control": "qmp", "readline": "monitor"}
ACCELERATORS = ("qtest", "tcg")


def main(argv: list[str] | None = None) -> int:
    """Run the machine that `argv` (without the program's name) asks for; its exit status.

    Once a machine has ended, the signals that would end it are ignored: the process is as good as gone.
    """
    config = None
    try:
        config = parse_command_line(sys.argv[1:] if argv is None else argv)
        if config.help is not None:
            return _show_help(config)
        return _run(config)
    except VintxError as error:
        print(f"{message_start(config)}{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"{message_start(config)}{PROGRAM}: {error.filename or 'I/O'}: {error.strerror or error}", file=sys.stderr
        )
        return 1


def message_start(config: Config | None) -> str:
    """What -msg wants a message to begin with."""
    start = ""
    if config is not None and config.msg.get("timestamp"):
        from datetime import UTC, datetime

        start = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ} "
    if config is not None and config.msg.get("guest-name") and config.name:
        start += f"{config.name} "
    return start


def _show_help(config: Config) -> int:
    from vmm.cli.help import show

    assert config.help is not None
    try:  # `-device help | head`: the reader has seen enough
        show(config.help)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class blaming:  # noqa: N801  (it is used as a function)
    """Errors inside begin with the words of the command line that led to them."""

    def __init__(self, option: str) -> None:
        self._option = option

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, VintxError):
            raise UsageError(f"{self._option}: {error}") from error


def _run(config: Config) -> int:
    accel = accelerator(config)
    daemon = None
    if config.write_config is not None:
        from vmm.cli.launch import write_config

        write_config(config)
    if config.daemonize:
        from vmm.cli.daemon import daemonize

        _refuse_terminal(config)
        daemon = daemonize()
    front = FrontEnd(config)
    try:
        front.open()
        from vmm.cli.launch import launch

        return launch(config, accel, front, daemon)
    finally:
        # Whatever a character device holds back is written out last, after the machine is gone.
        front.close()


def _refuse_terminal(config: Config) -> None:
    if config.nographic:
        raise UsageError("-nographic cannot be used with -daemonize")
    words: Iterable[str] = [*config.serials, *config.chardevs, *(spec.where for spec in config.monitors)]
    if any(word.partition(",")[0] == "stdio" for word in words):
        raise UsageError("cannot use stdio with -daemonize")


class FrontEnd:
    """Character devices and monitors: what the world sees of the process while there is no machine yet."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.monitors: list[CharMonitor] = []
        self.waiting: list[Monitor] = []
        """What each of the monitors' clients talks to; it wants a machine."""
        self.chardevs: Chardevs
        self.events: Events

    def open(self) -> None:
        """Open what the command line names, and greet who is there. UsageError if something cannot be opened."""
        from vmm.chardev import Chardevs

        self.chardevs = Chardevs()
        for text in self._config.chardevs:
            from vmm.chardev_options import parse_chardev

            with blaming(f"-chardev {text}"):
                self.chardevs.add(parse_chardev(text))
        for name, where in self._config.muxes:
            from vmm.chardev_mux import MuxBackend
            from vmm.chardev_options import parse_serial

            with blaming(f"-serial mon:{where}"):
                below = parse_serial(where, name, self.chardevs)
                if below is None or below.id != name:
                    raise UsageError("mon: wants a device of its own: stdio, pty, unix:, tcp:, ...")
                self.chardevs.add(MuxBackend(below))
        for n, spec in enumerate(self._config.monitors):
            from vmm import VERSION
            from vmm.qmp.char_monitor import CharMonitor
            from vmm.qmp.events import Events
            from vmm.qmp.monitor import Monitor, make_call

            option = f"-{_MONITOR_OPTION[spec.mode]} {spec.where}"
            backend = self.backend(option, spec.where, f"compat_monitor{n}")
            if backend is None:
                continue
            if not self.waiting:
                self.events = Events()
            monitor = Monitor(make_call(None, f"vintx {VERSION}"), self.events, spec.mode, spec.pretty)
            self.waiting.append(monitor)
            with blaming(option):
                self.monitors.append(CharMonitor(monitor, backend))
            backend.flush()

    def backend(self, option: str, where: str, name: str) -> CharBackend | None:
        """The character device that -serial, -qmp and the like name or ask for; None for `none`."""
        from vmm.chardev_options import parse_serial

        with blaming(option):
            backend = parse_serial(where, name, self.chardevs)
            shared = None if backend is None else backend.shared()
            if shared is not None:
                return shared
            if backend is not None and self.chardevs.get(backend.id) is not backend:
                self.chardevs.add(backend)
            return backend

    def close(self) -> None:
        """Say the last words, and close everything. May be repeated."""
        for monitor in self.monitors:
            monitor.close()
        if hasattr(self, "chardevs"):
            self.chardevs.close()


def accelerator(config: Config) -> str:
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


if __name__ == "__main__":
    sys.exit(main())
