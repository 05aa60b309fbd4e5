"""What the table of options makes: help, manual page, completion, config files, query-command-line-options."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.qmp_target import DATA
from vmm.cli import vintx
from vmm.cli.options import OPTIONS, REFUSED, parse_command_line
from vmm.cli.reference import completion, config_file, man_page, parameters_of_options
from vmm.errors import UsageError

NAMES = [name for option in OPTIONS if not isinstance(option, str) for name in option.names]
MANUAL = Path(__file__).parents[2] / "docs" / "vintx-system-x86_64.1"
LINE = (
    "-machine pc,ioapic=qemu -m size=64M -smp cpus=2,maxcpus=4 -device edu,id=e0,addr=5 -name a,,b "
    "-boot order=c,menu=on "
    "-chardev socket,id=c0,path=s,server=on,wait=off -mon c0,mode=control -global edu.dma_mask=0xff "
    "-object memory-backend-ram,id=m0,size=1M -rtc base=utc -drive if=none,id=d0,file=x,format=raw "
    "-blockdev driver=null-co,node-name=n0 -action reboot=shutdown -fw_cfg opt/x,string=y -trace enable=pci_*"
)


def test_manual_page_names_every_option_and_is_current() -> None:
    page = man_page()
    for name in (*NAMES, *REFUSED):
        assert f"\\fB\\-{name.replace('-', chr(92) + '-')}\\fR" in page, name
    assert MANUAL.read_text() == page, "it is old: vintx man > docs/vintx-system-x86_64.1"


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_manual_page_is_understood_by_man() -> None:
    done = subprocess.run(
        ["man", "--warnings", "-l", "-"], input=man_page(), capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "-readconfig PATH" in done.stdout


def complete(*words: str) -> set[str]:
    """What bash offers for the last word."""
    script = completion() + (
        f"COMP_WORDS=(); _vintx {shlex.quote(PROGRAM)} {shlex.quote(words[-1])} {shlex.quote(words[-2])}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


PROGRAM = str(Path(sys.executable).with_name("vintx-system-x86_64"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_options_words_and_types() -> None:
    assert {"-qmp", "-qmp-pretty"} <= complete("x", "-qm")
    assert complete("x", "-no-re") == {"-no-reboot"}
    assert "stdio" in complete("-qmp", "st")
    assert "splash-time=" in complete("-boot", "spl")
    assert "pause" in complete("-watchdog-action", "pa")
    assert complete("-device", "pci-test") == {"pci-testdev"}
    assert "none" in complete("-machine", "no")
    assert "memory-backend-ram" in complete("-object", "memory")


def test_man_and_completion_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert vintx.main(["man"]) == 0
    assert capsys.readouterr().out == man_page()
    assert vintx.main(["man", "--completion"]) == 0
    assert capsys.readouterr().out == completion()


def test_config_file_that_was_written_means_the_same_command_line(tmp_path: Path) -> None:
    direct = parse_command_line(shlex.split(LINE))
    path = tmp_path / "config"
    path.write_text(config_file(direct))
    read = parse_command_line(["-readconfig", str(path)])
    direct.given.clear()
    read.given.clear()
    assert [(d.values, d.from_text) for d in read.devices] == [(d.values, d.from_text) for d in direct.devices]
    for config in (direct, read):
        config.devices = config.objects = config.blockdevs = []
        config.drives = []
        config.chardevs = [",".join(sorted(text.removeprefix("backend=").split(","))) for text in config.chardevs]
    assert read == direct


def test_json_of_the_command_line_is_written_as_keys(tmp_path: Path) -> None:
    config = parse_command_line(
        ["-blockdev", "{'driver':'raw','node-name':'r','file':{'driver':'null-co','size':512}}"]
    )
    text = config_file(config)
    assert 'file.size = "512"' in text
    path = tmp_path / "config"
    path.write_text(text)
    (given,) = parse_command_line(["-readconfig", str(path)]).blockdevs
    assert given.values == {"driver": "raw", "node-name": "r", "file": {"driver": "null-co", "size": "512"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = 5", "config:1: parse error"),
        ('size = "5"', "config:1: no group defined"),
        ("[nosuch]", "config:1: there is no option group 'nosuch'"),
        ('\n[memory]\nsize = "x"', "config:2: Parameter 'size' expects"),
        ('[device "d0"]\n', "config:1: Parameter 'driver' is missing"),
    ],
)
def test_config_file_with_an_error_is_refused_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config").write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_command_line(["-readconfig", "config"])


def test_config_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="Cannot read config file nosuch: No such file"):
        parse_command_line(["-readconfig", "nosuch"])


def test_value_that_a_config_file_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="a config file cannot hold"):
        config_file(parse_command_line(["-fw_cfg", 'opt/x,string="']))


def test_groups_and_parameters_are_qemus_where_qemu_has_them() -> None:
    lines = (json.loads(line) for line in (DATA / "qemu-qmp-transcript.jsonl").open(encoding="utf-8"))
    recorded = next(line["raw"] for line in lines if '"help": "machine type"' in line["raw"] and line["dir"] == "<")
    qemu = set(re.findall(r'"option": "([^"]*)"', recorded))
    ours = {row["option"] for row in parameters_of_options()}
    assert {"machine", "memory", "smp-opts", "boot-opts", "chardev", "device", "drive"} <= ours
    if qemu:  # the recording is cut
        assert ours & qemu
    for row in parameters_of_options():
        assert {parameter["type"] for parameter in row["parameters"]} <= {"string", "boolean", "number", "size"}
