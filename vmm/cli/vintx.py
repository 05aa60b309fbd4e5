"""`vintx`: the tool-belt. Each subcommand is a module of this package and is imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from vmm.errors import VintxError

COMMANDS = {
    "bench": "figures of this machine, beside those of qemu-system-x86_64 where it is installed",
    "demo": "boot a guest, hot-plug two devices, let them interrupt, unplug them with their lines high",
    "dispute": "the sequences that the KVM_EOIFD thread argues with, under each rule that it proposes",
    "doctor": "which engines and oracles this machine has, and why not",
    "explore": "every order in which a scenario's actors can act: the invariants hold, or a shortest order that fails",
    "man": "the manual page of vintx-system-x86_64: vintx man | man -l -",
    "serve": "serve a PCI device over vfio-user, to a machine in another process",
    "trace": "what a trace file tells: which interrupts were spurious, and why",
    "vectors": "replay recordings of real interrupt controllers on the models; record and fuzz on this machine's KVM",
    "zoo": "historical bugs of irqfd, eoifd and VFIO: each found by the explorer, and not in the real class",
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand. Exit status: its own; 1 for an error of ours; 2 for a wrong command line; 130 and 141 as if the
    signals had done it: it was interrupted, or whoever read its output had seen enough.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us; a file that is opened later must not get its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    parser = argparse.ArgumentParser(prog="vintx", description="Tools around the level-triggered interrupt.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = (sys.argv[1:] if argv is None else argv)[:1]
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if [name] == chosen:
            module = importlib.import_module(f"vmm.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except VintxError as error:
        print(f"vintx {arguments.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough (`vintx ... | head`). What is left to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
