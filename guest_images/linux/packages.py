"""Debian packages through apt, as any user: fetched and unpacked below a folder of ours, never installed.

apt gets lists and a cache of its own, so that nothing of the host changes and root is not needed. Sources and keys are
those of the host; for another suite than the host's its mirror is asked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from vmm.errors import VintxError

if TYPE_CHECKING:
    from pathlib import Path

KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PARTS: Final = re.compile(r"linux-(?:image|modules|binary|base-image)-[^\s,|(]+")
"""What a kernel's package may be split into; the rest of what it depends on is for an installation."""


class PackagesRefused(VintxError):
    """apt or dpkg did not do what was asked. `command`: what; `output`: what they said."""

    def __init__(self, reason: str, command: str = "", output: str = "") -> None:
        said = [line for line in output.strip().splitlines() if line.startswith("E:")][-1:]
        super().__init__(": ".join([reason, *said]))
        self.command = command
        self.output = output


class Apt:
    """apt with its state below `folder`. `suite` None: the host's sources, else that suite of the host's mirror."""

    def __init__(self, folder: Path, suite: str | None = None) -> None:
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(program) is None:
                raise PackagesRefused(f"there is no {program} here")
        self._folder = folder / (suite or "host")
        self._suite = suite
        self._updated = False
        for name in ("state/lists/partial", "cache/archives/partial", "debs"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        status = self._folder / "state/status"
        status.touch()
        settings = {
            "Dir::State": self._folder / "state",
            "Dir::State::status": status,
            "Dir::Cache": self._folder / "cache",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "APT::Architecture": "amd64",
        }
        if suite is not None:
            sources = self._folder / "sources.list"
            sources.write_text(f"deb [signed-by={KEYRING}] {self._mirror()} {suite} main\n")
            settings |= {"Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": "/dev/null"}
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    @staticmethod
    def _mirror() -> str:
        """Where the host gets Debian from."""
        targets = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        for uri in targets.split():
            if uri.rstrip("/").endswith("/debian"):
                return uri
        return "http://deb.debian.org/debian"

    def update(self) -> None:
        """Fetch the lists, once."""
        if not self._updated:
            _run(["apt-get", *self._options, "-q", "update"])
            self._updated = True

    def unpack(self, package: str, into: Path) -> list[str]:
        """Fetch `package` and what belongs to its kernel, and unpack them; "NAME VERSION" of each."""
        self.update()
        wanted = [package]
        done: list[str] = []
        while wanted:
            name = wanted.pop()
            record = _run(["apt-cache", *self._options, "show", "--no-all-versions", name])
            fields = dict(line.split(": ", 1) for line in record.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
            known = {row.split()[0] for row in done} | {name, *wanted}
            wanted += sorted({part for part in _PARTS.findall(fields.get("Depends", "")) if part not in known})
            deb = self._download(name, fields)
            _run(["dpkg-deb", "-x", str(deb), str(into)])
            done.append(f"{name} {fields['Version']}")
        return done

    def _download(self, name: str, fields: dict[str, str]) -> Path:
        folder = self._folder / "debs"
        file = folder / fields["Filename"].rpartition("/")[2]
        escaped = folder / f"{name}_{fields['Version'].replace(':', '%3a')}_{fields['Architecture']}.deb"
        size = int(fields["Size"])
        if not escaped.exists() or escaped.stat().st_size != size:
            _run(["apt-get", *self._options, "-q", "download", f"{name}={fields['Version']}"], folder)
        return escaped if escaped.exists() else file


def _run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    if done.returncode:
        verb = next((word for word in command[1:] if word.isalpha()), "")
        raise PackagesRefused(f"{command[0]} {verb} failed", " ".join(command), done.stderr or done.stdout)
    return done.stdout
