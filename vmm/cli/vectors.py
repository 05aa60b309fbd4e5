"""`vintx vectors`: recordings of real interrupt controllers, replayed on the models, made anew, and searched for more.

vintx vectors replay FILE          do the models what was recorded?
vintx vectors record -o FILE       record on this machine's KVM
vintx vectors fuzz                 the models beside this machine's KVM on random sequences
"""

from __future__ import annotations

import contextlib
import fnmatch
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vmm.errors import EngineRefused, UsageError
from vmm.kernel.hostkvm import DEFAULT_PATH, HostKvm
from vmm.vectors import HostProfile, chip_of, load, replay
from vmm.vectors.explain import explain
from vmm.vectors.fuzz import fuzz
from vmm.vectors.kvm import KvmReplay

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from vmm.vectors.difference import Difference

PROFILE_KEYS = ("vector_hashing", "smm", "suppress_eoi")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx vectors`."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    replay_ = commands.add_parser("replay", help="replay a recording on the models; status 1 if anything differs")
    replay_.add_argument("file", type=Path, metavar="FILE")
    replay_.add_argument("--chip", choices=("kvm", "qemu"), help="whose rules the recording has (default: as it looks)")
    replay_.add_argument(
        "--host-profile",
        metavar="KEY=on|off,...",
        help=(
            "what the recorded host was like, if not as the file says: vector_hashing (kvm's module parameter; decides "
            "lowest-prio-*), smm (CONFIG_KVM_SMM; decides delivery-mode-2-*), suppress_eoi (EOI-broadcast suppression)"
        ),
    )
    replay_.add_argument("-k", dest="names", metavar="PATTERN", help="only sequences with such names (*, ?)")
    replay_.add_argument("-a", "--all", action="store_true", help="show all that differ, not only the first")
    replay_.set_defaults(action_run=_replay)

    record_ = commands.add_parser("record", help="record sequences on this machine's KVM")
    record_.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    record_.add_argument("--from", dest="source", type=Path, metavar="FILE", help="the sequences of this file, anew")
    record_.add_argument("-k", dest="names", metavar="PATTERN", help="of those, only such names (*, ?)")
    _add_seeds(record_, 0)
    record_.set_defaults(action_run=_record)

    fuzz_ = commands.add_parser("fuzz", help="compare the models with this machine's KVM on random sequences")
    _add_seeds(fuzz_, 1000)
    fuzz_.add_argument("--keep-going", action="store_true", help="do all, also after a difference")
    fuzz_.set_defaults(action_run=_fuzz)


def _add_seeds(parser: argparse.ArgumentParser, count: int) -> None:
    parser.add_argument("-s", "--seed", type=int, default=0, metavar="S", help="the first random sequence (default 0)")
    parser.add_argument(
        "-n", "--count", type=int, default=count, metavar="N", help=f"how many random sequences (default {count})"
    )
    parser.add_argument("--cpus", type=int, choices=(1, 2, 3), help="CPUs of random sequences (default: the seed says)")
    parser.add_argument("--kvm", default=DEFAULT_PATH, metavar="DEVICE", help=f"default {DEFAULT_PATH}")


def run(arguments: argparse.Namespace) -> int:
    """0 if nothing differs, 1 if something does."""
    status: int = arguments.action_run(arguments)
    return status


# replay


def host_profile(recording: dict[str, Any], text: str | None) -> HostProfile:
    """What the file says of its host, with what the user says on top. UsageError for a key that is not known."""
    told = {key: value for key, value in recording.get("host", {}).items() if key in PROFILE_KEYS}
    for part in filter(None, (text or "").split(",")):
        key, _, value = part.partition("=")
        key = key.replace("-", "_")
        if key not in PROFILE_KEYS:
            raise UsageError(f"--host-profile: there is no {key!r}; there are {', '.join(PROFILE_KEYS)}")
        if value not in ("on", "off"):
            raise UsageError(f"--host-profile: {key} takes on or off")
        told[key] = value == "on"
    return HostProfile(**told)


def _replay(arguments: argparse.Namespace) -> int:
    recording = load(arguments.file)
    chip = chip_of(recording)
    if arguments.chip not in (None, chip):
        raise UsageError(f"{arguments.file} was recorded from {chip}, not from {arguments.chip}")
    host = host_profile(recording, arguments.host_profile)
    wanted = partial(_matches, arguments.names)
    began = time.perf_counter()
    with _progress("replaying", _count(recording, wanted)) as advance:
        report = replay(recording, host, wanted, advance)
    if not report.sequences:
        raise UsageError(f"{arguments.file}: no sequence is called {arguments.names}")
    shown: list[Difference] = report.differences if arguments.all else report.differences[:1]
    for difference in shown:
        print(explain(recording, difference, host))
    print(f"{report} ({chip}, {time.perf_counter() - began:.1f} s)")
    return int(not report.ok)


def _matches(pattern: str | None, name: str) -> bool:
    return pattern is None or fnmatch.fnmatchcase(name, pattern)


def _count(recording: dict[str, Any], wanted: Callable[[str], bool]) -> int:
    parts = [value for value in recording.values() if isinstance(value, list)]
    return sum(isinstance(s, dict) and wanted(s.get("name", "")) for part in parts for s in part)


# record and fuzz


def _seeds(arguments: argparse.Namespace) -> range:
    if arguments.count < 0 or arguments.seed < 0:
        raise UsageError("--seed and --count take numbers from 0 up")
    return range(arguments.seed, arguments.seed + arguments.count)


def _open(path: str) -> HostKvm:
    """The oracle. EngineRefused with the probe's reason if this machine has none."""
    from vmm.kernel.hostkvm_probe import probe

    found = probe(path)
    if not found.oracle:
        raise EngineRefused("kvm", found.reason, "`vintx doctor` tells more")
    return HostKvm(path)


def _record(arguments: argparse.Namespace) -> int:
    from vmm.vectors.record import dump, from_seeds, operations, record

    seeds = _seeds(arguments)
    if arguments.source is None and not seeds:
        raise UsageError("nothing to record: give --from FILE, or --count N for random sequences")
    sequences = [] if arguments.source is None else operations(load(arguments.source), str(arguments.source))
    if arguments.names is not None:
        sequences = [s for s in sequences if fnmatch.fnmatchcase(s["name"], arguments.names)]
        if not sequences:
            raise UsageError(f"{arguments.source}: no sequence is called {arguments.names}")
    with _open(arguments.kvm) as kvm:
        sequences = [*sequences, *from_seeds(kvm, seeds, arguments.cpus)]
        with _progress("recording", len(sequences)) as advance:
            recording = record(kvm, sequences, advance)
    try:
        arguments.output.write_text(dump(recording), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{arguments.output}: {error.strerror}") from error
    count = f"{recording['nseq']} sequences, {recording['nops']} steps"
    print(f"{arguments.output}: {count}, recorded on {recording['host']['kernel']}")
    return 0


def _fuzz(arguments: argparse.Namespace) -> int:
    from vmm.vectors.live import KvmLive
    from vmm.vectors.live import host_profile as live_profile

    seeds = _seeds(arguments)
    if not seeds:
        raise UsageError("--count takes a positive number")
    began = time.perf_counter()
    with _open(arguments.kvm) as kvm:
        host = live_profile(kvm)
        limit = len(seeds) if arguments.keep_going else 1
        model, oracle = partial(KvmReplay, host=host), partial(KvmLive, kvm)
        with _progress("comparing", len(seeds)) as advance:
            report = fuzz(seeds, model, oracle, arguments.cpus, not host.smm, limit, advance)
    for finding in report.findings:
        print(f"{finding}\n")
    print(f"{report} ({time.perf_counter() - began:.1f} s)")
    return int(bool(report.findings))


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on standard error, if that is a terminal; gives the function that moves it by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    disable = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=disable) as progress:
        task = progress.add_task(what, total=total)

        def advance(*_: object) -> None:
            progress.advance(task)

        yield advance
