"""Run QEMU's own qtest programs on vintx-system-x86_64, unmodified, and print what came of them.

    python tests/conformance/run_qtest.py BUILD [PROGRAM ...]

BUILD is a build directory of QEMU's in which `ninja tests/qtest/PROGRAM` was run. A program runs whole; as it stops at
the first case that fails, those behind it are then run by themselves. How many cases of each must pass was written
down before (data/qtest-programs.json). Exit status 1 if it was less anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PLAN = Path(__file__).parent / "data" / "qtest-programs.json"
BINARY = Path(sys.executable).with_name("vintx-system-x86_64")
_RESULT = re.compile(r"^(not )?ok \d+ (\S+)(?: # SKIP ?(.*))?")
_REASON = re.compile(r"assertion failed|Assertion|vintx-system-x86_64: |unknown command|exit status")
_OPENING = 55
"""Seconds after which a program gives up on a machine that does not start."""


class Program:
    """One program and its cases: `passed`, `skipped` and `failed` by case, with a reason."""

    def __init__(self, build: Path, binary: Path, name: str, plan: dict[str, Any], patience: int) -> None:
        self.name = name
        self.plan = plan
        self._build = build
        self._patience = patience
        self._environment = os.environ | {
            "QTEST_QEMU_BINARY": str(binary),
            "QTEST_QEMU_IMG": str(build / "qemu-img"),
        }
        self.passed: list[str] = []
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def _call(self, *arguments: str) -> tuple[list[str], str]:
        command = [str(self._build / "tests" / "qtest" / self.name), "--tap", "-k", *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=self._build,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._patience,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            output = late.stdout or b""
            return output.decode("utf-8", "replace").splitlines(), f"no end after {self._patience} s"
        said = [line for line in done.stderr.splitlines() if _REASON.search(line)]
        return done.stdout.splitlines(), said[0].strip() if said else f"exit status {done.returncode}"

    def run(self) -> None:
        """Run every case that is not left out."""
        left_out = self.plan.get("leave_out", {})
        lines, _ = self._call("-l")
        cases = [line for line in lines if line.startswith("/")]
        wanted = [case for case in cases if not any(part in case for part in left_out)]
        if not wanted:
            return
        skip = [word for case in cases if case not in wanted for word in ("-s", case)]
        self._take(wanted, *self._call(*skip))
        for case in wanted:
            if case not in self.passed and case not in self.skipped and case not in self.failed:
                lines, reason = self._call("-p", case)
                self._take([case], lines, reason)
                if case not in self.passed and case not in self.skipped:
                    self.failed[case] = reason

    def _take(self, wanted: list[str], lines: list[str], reason: str) -> None:
        for line in lines:
            found = _RESULT.match(line)
            if found is None:
                continue
            bad, case, why = found.groups()
            if case not in wanted:
                continue
            if bad:
                self.failed[case] = reason
            elif why is not None:
                self.skipped[case] = why
            else:
                self.passed.append(case)

    @property
    def expected(self) -> int:
        """How many cases must pass."""
        wanted = self.plan["expected"]
        return len(self.passed) + len(self.skipped) + len(self.failed) if wanted == "all" else int(wanted)

    def row(self) -> str:
        """The program's line of the table."""
        why = [f"`{case.split('/', 2)[-1]}`: {reason}" for case, reason in self.failed.items()]
        skipped = "; ".join(sorted({reason for reason in self.skipped.values() if reason}))
        cells = (
            self.name,
            self.plan["theirs"],
            self.plan.get("less", ""),
            self.expected,
            len(self.passed),
            f"{len(self.skipped)}: {skipped}" if self.skipped else "",
            "; ".join(why),
        )
        return "| " + " | ".join(map(str, cells)) + " |"


def main(argv: list[str] | None = None) -> int:
    """The table on stdout, a line for each program as it ends."""
    parser = argparse.ArgumentParser(description="Run QEMU's qtest programs.")
    parser.add_argument("build", type=Path, help="a build directory of QEMU's")
    parser.add_argument("program", nargs="*", help="only these")
    parser.add_argument("--binary", type=Path, default=BINARY, help=f"what to test ({BINARY.name} of this Python)")
    parser.add_argument("--patience", type=int, default=_OPENING + 65, help="seconds that one run may take")
    arguments = parser.parse_args(argv)
    plan = json.loads(PLAN.read_text(encoding="utf-8"))
    names = arguments.program or list(plan)
    for name in names:
        if name not in plan:
            parser.error(f"{name}: not one of {', '.join(plan)}")
        if not (arguments.build / "tests" / "qtest" / name).is_file():
            parser.error(f"{arguments.build}: there is no tests/qtest/{name}; build it with: ninja tests/qtest/{name}")
    if not arguments.binary.is_file():
        parser.error(f"there is no {arguments.binary}; give one with --binary")
    print("| program | QEMU's cases | less | expected | passed | skipped | failed, and why |")
    print("|---|---|---|---|---|---|---|", flush=True)
    short = False
    for name in names:
        program = Program(arguments.build.absolute(), arguments.binary.absolute(), name, plan[name], arguments.patience)
        program.run()
        print(program.row(), flush=True)
        short = short or bool(program.failed) or len(program.passed) < program.expected
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
