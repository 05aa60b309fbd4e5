"""What the table of options makes besides the parser: help, manual page, completion, query-command-line-options.

`vintx man` and `vintx completion` print the second and the third.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm import VERSION
from vmm.cli.keyval import flatten, parse_json_object, parse_keyval
from vmm.cli.options import IMPLIED, OPTIONS, PROGRAM, REFUSED
from vmm.errors import UsageError
from vmm.ini import Section, format_ini

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.cli.config import Config

_LINE_WIDTH = 100
TYPED = {"machine": "machine", "device": "device", "object": "object", "cpu": "cpu", "accel": "accel"}
"""Options whose first word is a type: their completion asks the program for `help`."""
PATHS = ("kernel", "initrd", "pidfile", "D", "qtest-log", "readconfig", "writeconfig")
WHERE = ("stdio", "unix:", "tcp:", "file:", "pipe:", "pty", "null", "none", "chardev:")
WORDS = {
    "qmp": WHERE,
    "qmp-pretty": WHERE,
    "monitor": WHERE,
    "serial": WHERE,
    "qtest": WHERE,
    "display": ("none",),
    "vga": ("none",),
    "audio": ("none",),
    "net": ("none",),
    "nic": ("none",),
    "parallel": ("none",),
    "watchdog-action": ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
}
"""Words that an argument may begin with."""


def usage(program: str = PROGRAM) -> str:
    """The text of --help."""
    lines = [f"usage: {program} [options]", "", "The options are QEMU's; they may begin with one dash or two."]
    for option in OPTIONS:
        if isinstance(option, str):
            lines += ["", f"{option}:"]
            continue
        names = ", ".join(f"-{name}" for name in option.names)
        start = f"  {names} {option.value}" if option.value else f"  {names}"
        lines += list(_columns(start, option.help))
    return "\n".join(lines) + "\n"


def _columns(start: str, text: str, column: int = 34) -> Iterator[str]:
    """`start`, and `text` beside it from `column` on, or below it where it does not fit."""
    if len(start) >= column - 1 or len(start) + len(text) > _LINE_WIDTH:
        yield start
        start = ""
    yield f"{start:<{column}}{text}"


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def man_page() -> str:
    """The manual page, for man(1)."""
    lines = [
        f'.TH {PROGRAM.upper()} 1 "" "vintx {VERSION}" "vintx"',
        ".SH NAME",
        _roff(f"{PROGRAM} - a virtual machine whose subject is the level-triggered interrupt"),
        ".SH SYNOPSIS",
        f".B {_roff(PROGRAM)}",
        "[options]",
        ".SH DESCRIPTION",
        _roff("The options are QEMU's; they may begin with one dash or two. A KEY=VALUE list separates its parts by"),
        _roff("commas; a doubled comma stands for one in a value. Options that take a type also take `help`."),
        _roff("An option that is not known, or cannot be honoured, is an error."),
        ".SH OPTIONS",
    ]
    for option in OPTIONS:
        if isinstance(option, str):
            lines += [f".SS {_roff(option)}"]
            continue
        names = ", ".join(f"\\fB{_roff('-' + name)}\\fR" for name in option.names)
        value = f" \\fI{_roff(option.value)}\\fR" if option.value else ""
        lines += [".TP", f"{names}{value}", _roff(option.help[:1].upper() + option.help[1:] + ".")]
        for param in option.params:
            about = f" ({param.help})" if param.help else ""
            lines += [".br", _roff(f"{param.name}=<{param.type}>{about}")]
    lines += [".SH OPTIONS THAT ARE REFUSED"]
    for name, why in sorted(REFUSED.items(), key=lambda item: item[0].lower()):
        lines += [".TP", f"\\fB{_roff('-' + name)}\\fR", _roff(why[:1].upper() + why[1:] + ".")]
    lines += [
        ".SH SIGNALS",
        "SIGINT, SIGTERM and SIGHUP end the machine; the exit status is 0.",
        ".SH EXIT STATUS",
        _roff("0, or what isa-debug-exit makes of the guest's word; 1 for an error, which is one line on stderr."),
        ".SH SEE ALSO",
        _roff("vintx(1), qemu-system-x86_64(1)"),
    ]
    return "\n".join(lines) + "\n"


def completion() -> str:
    """A script for bash, to be sourced."""
    options = [option for option in OPTIONS if not isinstance(option, str)]
    names = sorted({f"-{name}" for option in options for name in option.names}, key=str.lower)
    cases = []
    for option in options:
        if option.value is None:
            continue
        pattern = "|".join(f"-{name}|--{name}" for name in option.names)
        first = option.names[0]
        if first in TYPED:
            what = f'_vintx_types "$program" {first}'
        elif first in PATHS:
            cases.append(f'        {pattern}) COMPREPLY=($(compgen -f -- "$word")); return ;;')
            continue
        elif first in WORDS:
            what = f"echo {' '.join(WORDS[first])}"
        elif option.params:
            what = f"echo {' '.join(param.name + '=' for param in option.params)}"
        else:
            cases.append(f"        {pattern}) return ;;")
            continue
        cases.append(f'        {pattern}) words="$({what})" ;;')
    body = "\n".join(cases)
    return f"""# bash completion of {PROGRAM}; source it, or put it into /etc/bash_completion.d
_vintx_types() {{
    "$1" "-$2" help 2>/dev/null | sed -n \\
        -e 's/^name "\\([^"]*\\)".*/\\1/p' \\
        -e '/^name/!s/^ \\{{0,2\\}}\\([a-z][A-Za-z0-9_.-]*\\)\\( .*\\)\\{{0,1\\}}$/\\1/p'
}}
_vintx() {{
    local program=$1 word=$2 previous=$3 words=
    # A colon or an equals sign begins a word of its own for bash; ours go on.
    COMPREPLY=()
    case $previous in
{body}
        *) words='{" ".join(names)}' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ ${{COMPREPLY[0]}} == *[=:] ]]; then compopt -o nospace 2>/dev/null; fi
}}
complete -F _vintx {PROGRAM}
"""


def parameters_of_options() -> list[dict[str, Any]]:
    """`query-command-line-options`: the options that have a group, and their parameters."""
    rows = []
    for option in OPTIONS:
        if isinstance(option, str) or not option.group:
            continue
        parameters = [
            {"name": param.name} | ({"help": param.help} if param.help else {}) | {"type": param.type}
            for param in option.params
        ]
        rows.append({"parameters": parameters, "option": option.group})
    return rows


def config_file(config: Config) -> str:
    """What -readconfig reads, and understands as this command line. Options without a group are not in it."""
    sections = []
    for group, text in config.given:
        if text.startswith("{"):
            given = flatten(parse_json_object(text).values)
            sections.append(Section(group, str(given.pop("id", "")), given, 0))
        elif group == "global" and not text.startswith("driver="):
            driver, _, rest = text.partition(".")
            name, _, value = rest.partition("=")
            sections.append(Section(group, "", {"driver": driver, "property": name, "value": value}, 0))
        else:
            given = dict(parse_keyval(text, IMPLIED.get(group), flags=True).values)
            sections.append(Section(group, str(given.pop("id", "")), given, 0))
    for section in sections:
        for value in (section.id, *section.values.values()):
            if '"' in value or "\n" in value:
                raise UsageError(f"a config file cannot hold {value!r}: it has no way to write quotes and line ends")
    return format_ini(sections)
