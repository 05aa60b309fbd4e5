"""`vintx doctor`: which engines and oracles this machine has, and why not.

Status 0 if the default engine works: that is what `vintx-system-x86_64` needs. Everything else is optional.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vmm.kernel.hostkvm import DEFAULT_PATH
from vmm.kernel.hostkvm_probe import Probe, ProbeStep

if TYPE_CHECKING:
    import argparse

QEMU = "qemu-system-x86_64"
TOOLS = {
    "as": "rebuilds the guest images (make images)",
    "ld": "rebuilds the guest images (make images)",
    "objdump": "makes the guest images' listings (make images)",
    "objcopy": "some tests assemble guests with it",
    "iasl": "a test disassembles our ACPI tables with it",
}
LINUX = "linux guest"
PURPOSES = TOOLS | {LINUX: "tests and benches boot it"}
BINUTILS = "Debian: apt-get install binutils"
TOOL_HINTS = dict.fromkeys(("as", "ld", "objdump", "objcopy"), BINUTILS) | {
    "iasl": "Debian: apt-get install acpica-tools"
}

_LIMIT = 60.0
_SELF_TEST = """
import json, time
from vmm.errors import EngineRefused
try:
    from vmm.cpu.unicorn.selftest import self_test
    began = time.perf_counter()
    self_test()
    print(json.dumps({"seconds": time.perf_counter() - began}))
except EngineRefused as error:
    print(json.dumps({"reason": error.reason, "remedy": error.remedy}))
"""


_PROBE = """
import dataclasses, json, sys
from vmm.kernel.hostkvm_probe import probe
print(json.dumps(dataclasses.asdict(probe(sys.argv[1]))))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor: what was looked for, whether it is there, what was seen, what to do if it is not."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx doctor`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--kvm", default=DEFAULT_PATH, metavar="DEVICE", help=f"default {DEFAULT_PATH}")
    parser.add_argument("--qemu", default=QEMU, metavar="PROGRAM", help=f"default {QEMU}")


def run(arguments: argparse.Namespace) -> int:
    """0 if the default engine works."""
    packages = check_packages()
    engines = [check_unicorn(), Check("qtest", True, "runs nothing; qtest drives the machine (-accel qtest)")]
    found = check_kvm(arguments.kvm)
    qemu = check_program(arguments.qemu, "--version", "Debian: apt-get install qemu-system-x86")
    tools = [check_program(name, "--version" if name != "iasl" else "-v", TOOL_HINTS[name]) for name in TOOLS]
    tools.append(check_linux())
    healthy = engines[0].ok and all(package.ok for package in packages)
    if arguments.json:
        print(json.dumps(_document(healthy, packages, engines, found, qemu, tools), indent=2))
    else:
        _print(healthy, packages, engines, found, qemu, tools)
    return int(not healthy)


def check_packages() -> list[Check]:
    """The Python packages that vintx cannot do without."""
    checks = []
    for requirement in requires("vintx") or ():
        name, _, condition = requirement.partition(";")
        if "extra" in condition:
            continue
        name = name.split("=")[0].rstrip("<>!~ ")
        try:
            checks.append(Check(name, True, version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, False, "not installed", f"pip install '{requirement.strip()}'"))
    return checks


def check_unicorn() -> Check:
    """The self-test of the default engine, in a process of its own: a wrong library may well end it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SELF_TEST], capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("tcg", False, f"the self-test has not ended after {_LIMIT:.0f} s", "Reinstall the unicorn wheel")
    try:
        verdict: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        died = f"signal {-done.returncode}" if done.returncode < 0 else last[0]
        return Check("tcg", False, f"the self-test died: {died}", "Reinstall the unicorn wheel")
    if "reason" in verdict:
        return Check("tcg", False, verdict["reason"], verdict["remedy"])
    detail = f"unicorn {version('unicorn')} passes its self-test in {verdict['seconds'] * 1000:.0f} ms (the default)"
    return Check("tcg", True, detail)


def check_kvm(path: str) -> Probe:
    """The probe of a KVM device, in a process of its own: a broken one may never return from KVM_RUN."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, path], capture_output=True, text=True, timeout=_LIMIT, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Probe(path, [ProbeStep("run", False, f"the probe has not ended after {_LIMIT:.0f} s")])
    except ValueError:
        return Probe(path, [ProbeStep("run", False, f"the probe died with status {done.returncode}")])
    return Probe(**found | {"steps": [ProbeStep(**step) for step in found["steps"]]})


def check_program(program: str, option: str, hint: str) -> Check:
    """A program on the PATH, and the first line of what it says of its version."""
    path = shutil.which(program)
    if path is None:
        return Check(program, False, "not installed", hint)
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, timeout=_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(program, False, f"{path}: {error}", hint)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        return Check(program, False, f"{path} {option}: exit status {done.returncode}", hint)
    return Check(program, True, f"{lines[0]}, {path}")


def check_linux() -> Check:
    """The Linux guest of `make guests`."""
    from guest_images import linux

    try:
        found = linux.find()
    except linux.GuestMissing as error:
        return Check(LINUX, False, "not fetched", str(error))
    return Check(LINUX, True, f"{found.release}, {found.kernel}")


def _document(
    healthy: bool, packages: list[Check], engines: list[Check], kvm: Probe, qemu: Check, tools: list[Check]
) -> dict[str, Any]:
    return {
        "ok": healthy,
        "vintx": version("vintx"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": [asdict(check) for check in packages],
        "engines": [asdict(check) for check in engines],
        "kvm": asdict(kvm) | {"reason": kvm.reason},
        "qemu": asdict(qemu),
        "tools": [asdict(check) for check in tools],
    }


def _print(
    healthy: bool, packages: list[Check], engines: list[Check], kvm: Probe, qemu: Check, tools: list[Check]
) -> None:
    console = Console(highlight=False, soft_wrap=True)

    def title(text: str) -> None:
        console.print(f"\n{text}", style="bold", markup=False)

    def line(check: Check, bad: str = "no") -> None:
        word, style = ("yes", "green") if check.ok else (bad, "yellow")
        console.print(f"  {word:<4}", style=style, end="")
        console.print(f" {check.name:<22} {check.detail}", markup=False)
        if check.hint and not check.ok:
            console.print(f"{'':30}{check.hint}", style="dim", markup=False)

    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    console.print(f"vintx {version('vintx')}, {python}")
    console.print(f"  {', '.join(f'{c.name} {c.detail}' for c in packages)}", markup=False)
    title("Engines")
    for check in engines:
        line(check)
    title(f"The kernel's irqchip as an oracle ({kvm.path}): {'yes' if kvm.oracle else 'no'}")
    for step in kvm.steps:
        line(Check(step.name, step.ok, step.detail, step.hint))
    title("Beside us, for comparison")
    line(qemu)
    title("Optional tools")
    for check in tools:
        line(Check(check.name, check.ok, f"{check.detail}; {PURPOSES[check.name]}", check.hint))
    console.print()
    if healthy:
        console.print("vintx-system-x86_64 can run guests on this machine.")
    else:
        console.print("vintx-system-x86_64 can not run guests on this machine: see the lines with 'no' above.")
