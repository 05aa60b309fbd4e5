"""The engine as a whole: time, kicks, life cycle, self-test; and the engine that runs nothing."""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.support.cpu_guest import Guest
from tests.support.cpu_programs import PROGRAMS
from vmm.cpu.engine import ExitReason, Registers
from vmm.cpu.none import NoneEngine
from vmm.cpu.unicorn import UnicornEngine, layout, library, selfmod, selftest, thunk
from vmm.errors import EngineError, EngineRefused

if TYPE_CHECKING:
    from collections.abc import Callable

MS = 1_000_000


def test_busy_guest_leaves_at_its_deadline(guest: Guest) -> None:
    guest.start("spin64")
    begin = time.monotonic_ns()
    assert guest.run(limit_ns=2 * MS) is ExitReason.DEADLINE
    assert time.monotonic_ns() - begin >= 2 * MS


def test_deadline_that_is_over_runs_nothing(guest: Guest) -> None:
    guest.start("count64")
    assert guest.engine.run(0, 0) is ExitReason.DEADLINE
    assert guest.gpr[0] == 0


def test_deadline_is_kept_beyond_the_slice_of_the_alarm(guest: Guest) -> None:
    guest.start("spin64")
    begin = time.monotonic_ns()
    assert guest.run(limit_ns=120 * MS) is ExitReason.DEADLINE
    assert time.monotonic_ns() - begin >= 120 * MS


def test_increments_of_a_guest_that_is_stopped_at_any_time_are_not_doubled(guest: Guest) -> None:
    guest.start("count64")
    for _ in range(100):
        assert guest.run(limit_ns=MS // 20) is ExitReason.DEADLINE
        in_memory, in_register = guest.word(fmt="<Q"), guest.gpr[0]
        assert in_memory - in_register in (0, 1)
    assert in_register > 1000


def test_kick_from_a_callback_ends_the_run(guest: Guest) -> None:
    guest.start("window64")
    guest.on_out[0x20] = lambda _value: guest.engine.kick()
    assert guest.run() is ExitReason.KICKED
    assert guest.run() is ExitReason.HALT
    assert [port for port, _ in guest.outs()] == [0x20, 0x21]


def test_kick_before_the_run_is_not_lost(guest: Guest) -> None:
    guest.start("spin64")
    guest.engine.kick()
    assert guest.run() is ExitReason.KICKED


def test_kicks_are_not_counted(guest: Guest) -> None:
    guest.start("int64")
    guest.engine.kick()
    guest.engine.kick()
    assert guest.run() is ExitReason.KICKED
    assert guest.run() is ExitReason.HALT


def test_kick_from_another_thread_ends_the_run(guest: Guest) -> None:
    guest.start("spin64")
    thread = threading.Thread(target=guest.engine.kick)
    thread.start()
    assert guest.run() is ExitReason.KICKED
    thread.join()


def test_kick_from_a_signal_handler_ends_the_run(guest: Guest) -> None:
    guest.start("spin64")
    before = signal.signal(signal.SIGALRM, lambda *_: guest.engine.kick())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        assert guest.run() is ExitReason.KICKED
    finally:
        signal.signal(signal.SIGALRM, before)


def test_pause_yields_only_when_asked(guest: Guest) -> None:
    guest.start("pausen64", rcx=100)
    assert guest.run() is ExitReason.HALT
    guest.start("pause64")
    guest.engine.yield_on_pause = True
    assert guest.engine.yield_on_pause
    assert [guest.run() for _ in range(3)] == [ExitReason.YIELD] * 3
    assert guest.gpr[0] == 2


def test_pause_loop_leaves_at_its_deadline(guest: Guest) -> None:
    guest.start("pause64")
    assert guest.run(limit_ns=2 * MS) is ExitReason.DEADLINE


def test_run_from_a_callback_is_an_error(guest: Guest) -> None:
    guest.start("window64")
    guest.on_out[0x20] = lambda _value: guest.run(1)
    with pytest.raises(EngineError, match="run called from a callback"):
        guest.run()


def test_close_from_a_callback_is_an_error(guest: Guest) -> None:
    guest.start("window64")
    guest.on_out[0x20] = lambda _value: guest.engine.close()
    with pytest.raises(EngineError, match="kick it"):
        guest.run()


def test_closed_engine_answers_and_runs_nothing() -> None:
    guest = Guest()
    guest.start("spin64")
    guest.run(limit_ns=MS // 10)
    guest.close()
    guest.engine.close()
    guest.engine.kick()
    assert guest.engine.vcpus[0].registers().rip == 0x1000
    guest.engine.invalidate(0x1000, 4096)
    assert guest.engine.run(0, time.monotonic_ns() + MS) is ExitReason.ERROR
    assert guest.engine.error == "the engine is closed"


def test_long_runs_of_instructions_that_leak_translator_temporaries_are_executed(guest: Guest) -> None:
    guest.start("leaky64")
    for offset in range(0, 0x2000, 2):
        guest.ram[0x40000 + offset : 0x40002 + offset] = b"\x9c\x9d"  # pushf; popf: two temporaries each
    guest.ram[0x42000] = 0xC3
    assert guest.run() is ExitReason.HALT
    assert guest.gpr[1] == 0


def test_two_engines_live_side_by_side() -> None:
    one, two = Guest(), Guest()
    one.start("int64")
    two.start("window64")
    assert (one.run(), two.run()) == (ExitReason.HALT, ExitReason.HALT)
    one.close()
    two.start("int64")
    assert two.run() is ExitReason.HALT
    two.close()


def test_engines_come_and_go_without_leaving_threads_or_descriptors() -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    for _ in range(3):
        Guest().close()
    assert held() == before


def test_signal_arrives_while_the_guest_runs_on(guest: Guest) -> None:
    arrived: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: arrived.append(number))
    try:
        guest.start("spin64")
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        assert guest.run(limit_ns=200 * MS) is ExitReason.DEADLINE
    finally:
        signal.signal(signal.SIGALRM, before)
    assert arrived == [signal.SIGALRM]


@pytest.mark.parametrize(("size", "cpus"), [(0, 1), (100, 1), (1 << 41, 1), (4096, 0)])
def test_engine_that_cannot_be_is_an_error(size: int, cpus: int) -> None:
    with pytest.raises(EngineError):
        UnicornEngine(mmap.mmap(-1, 4096), size, cpus, SimpleNamespace())  # type: ignore[arg-type]


# --- the self-test ---


def test_self_test_finds_nothing_against_the_pinned_library() -> None:
    assert selftest.self_test.__wrapped__() is None  # it raises EngineRefused at what it finds


@pytest.mark.parametrize("name", ["CS_HALTED", "UC_NESTED_LEVEL", "ENV_IS_INT", "UC_FLUSH_TLB", "CS_UC", "ENV_EIP"])
def test_wrong_offset_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(layout, name, getattr(layout, name) + 0x1008)
    with pytest.raises(EngineRefused, match="self-test") as refused:
        selftest.check_layout(library.load())
    assert "pip install 'unicorn==2.1.4'" in refused.value.remedy


def test_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "VERSION", (2, 1, 5))
    with pytest.raises(EngineRefused, match=r"version 2\.1\.4, not 2\.1\.5"):
        library.Library(library.find())


def test_library_without_the_internal_symbols_is_refused() -> None:
    with pytest.raises(EngineRefused, match="does not export uc_version"):
        library.Library(Path("libc.so.6"))


def test_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EngineRefused, match="not installed") as refused:
        library.find()
    assert refused.value.engine == "unicorn"


@pytest.mark.parametrize(("host", "machine"), [("darwin", "x86_64"), ("linux", "aarch64")])
def test_other_hosts_are_refused(monkeypatch: pytest.MonkeyPatch, host: str, machine: str) -> None:
    monkeypatch.setattr(sys, "platform", host)
    monkeypatch.setattr(library.platform, "machine", lambda: machine)
    with pytest.raises(EngineRefused, match="x86_64 only"):
        library.find()


def test_other_machine_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfmod, "_AFTER", b"\x90\x90\x90")
    with pytest.raises(EngineRefused, match="notdirty_write"):
        selfmod.install.__wrapped__(library.load())


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda e: ctypes.c_uint8.from_address(e.uc + layout.UC_NO_EXIT_REQUEST).__setattr__("value", 0), "stopped"),
        (lambda e: e.live_quads.__setitem__(layout.ENV_INTERCEPT >> 3, 0), "delivered"),
    ],
)
def test_self_test_notices_a_lost_fix(
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[UnicornEngine], None], complaint: str
) -> None:
    whole = UnicornEngine._prepare_cpu

    def prepare(engine: UnicornEngine) -> None:
        whole(engine)
        damage(engine)
        engine.reset_image = bytes(engine.live_bytes)

    monkeypatch.setattr(UnicornEngine, "_prepare_cpu", prepare)
    with pytest.raises(EngineRefused, match=complaint):
        selftest.self_test.__wrapped__()


# --- the machine code ---


def test_listing_assembles_to_its_bytes(tmp_path: Path) -> None:
    if shutil.which("as") is None or shutil.which("objcopy") is None:
        pytest.skip("needs an assembler (binutils) to check the listing against its bytes")
    source = [".intel_syntax noprefix", *(f".set {name}, {value}" for name, value in thunk.SYMBOLS.items())]
    for line in thunk.LISTING.splitlines():
        text = line.partition("|")[2]
        source.append("" if text.strip().startswith("#") else text)
    (tmp_path / "thunk.s").write_text("\n".join(source) + "\n")
    subprocess.run(["as", "thunk.s", "-o", "thunk.o"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "thunk.o", "thunk.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "thunk.bin").read_bytes() == thunk.CODE


def test_routines_that_are_used_are_in_the_listing() -> None:
    used = set(
        re.findall(r'entry\("(\w+)"\)', "".join(p.read_text() for p in Path(thunk.__file__).parent.glob("*.py")))
    )
    assert len(used) == 11
    assert used <= set(thunk.LABELS)


def test_test_programs_are_named_once() -> None:
    assert len(PROGRAMS) > 40


# --- the engine that runs nothing ---


def test_none_engine_keeps_registers_and_halts() -> None:
    engine = NoneEngine(2)
    cpu = engine.vcpus[1]
    cpu.set_registers(Registers(rip=0x1234))
    cpu.set_interrupt(0x40)
    assert cpu.registers().rip == 0x1234
    assert not cpu.runnable
    assert engine.run(1, time.monotonic_ns() + MS) is ExitReason.HALT
    assert engine.current == 1
    cpu.reset()
    assert cpu.registers().rip == 0xFFF0


def test_none_engine_reports_a_kick_once() -> None:
    engine = NoneEngine(1)
    engine.kick()
    assert [engine.run(0, 0), engine.run(0, 0)] == [ExitReason.KICKED, ExitReason.HALT]


def test_none_engine_without_cpus_is_an_error() -> None:
    with pytest.raises(EngineError, match="at least one"):
        NoneEngine(0)
