"""What a command line asks for, as `vmm.cli.options` understands it and `vmm.cli.system` carries it out."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

PROGRAM: Final = "vintx-system-x86_64"
MAX_CPUS: Final = 255

ACTIONS: Final = {
    "reboot": ("reset", "shutdown"),
    "shutdown": ("poweroff", "pause"),
    "panic": ("pause", "shutdown", "exit-failure", "none"),
    "watchdog": ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
}
ACTION_DEFAULTS: Final = {"reboot": "reset", "shutdown": "poweroff", "panic": "shutdown", "watchdog": "reset"}


class HelpRequest(NamedTuple):
    """Help instead of a machine. `topic`: `usage`, `version`, or an option's name; `name`: the type asked about."""

    topic: str
    name: str = ""


class PropertySet(NamedTuple):
    """A `-device`, `-object` or `-blockdev`: properties, whether their values are text, the argument as given."""

    values: dict[str, Any]
    from_text: bool
    words: str


class MonitorSpec(NamedTuple):
    """A monitor. `where`: `chardev:ID`, or a backend as -serial takes it; `mode`: `control` (QMP) or `readline`."""

    where: str
    mode: str
    pretty: bool = False


class FwCfgSpec(NamedTuple):
    """An item of fw_cfg: the text of `string`, or the content of `file`."""

    name: str
    string: str | None
    file: str | None


class TraceSpec(NamedTuple):
    """A `-trace`: a pattern of event names, a file of patterns, the file to write to; empty if not given."""

    pattern: str
    events: str
    file: str


class Topology(NamedTuple):
    """`-smp`. All are at least 1, and sockets * cores * threads == maxcpus >= cpus."""

    cpus: int = 1
    maxcpus: int = 1
    sockets: int = 1
    cores: int = 1
    threads: int = 1


class Config:
    """What the command line asks for. Sizes in bytes; paths as given."""

    # No dataclass: whoever waits for a monitor's greeting would wait for `inspect` too.

    def __init__(self) -> None:
        self.machine: str | None = None
        """None: the default machine type."""
        self.machine_options: dict[str, str] = {}
        self.accels: list[tuple[str, dict[str, str]]] = []
        """Engines with their properties, the preferred one first; the next is taken if one is not available."""
        self.ram_size: int | None = None
        self.smp = Topology()
        self.cpu: str | None = None
        self.cpu_options: dict[str, str] = {}
        self.kernel: str | None = None
        self.initrd: str | None = None
        self.append = ""
        self.devices: list[PropertySet] = []
        self.objects: list[PropertySet] = []
        """Without monitors: a `monitor-qmp` or `monitor-hmp` object is in `monitors`."""
        self.globals: list[tuple[str, str, str]] = []
        """Driver, property, value."""
        self.fw_cfg: list[FwCfgSpec] = []
        self.chardevs: list[str] = []
        """As `vmm.chardev_options.parse_chardev` takes them."""
        self.blockdevs: list[PropertySet] = []
        """Checked, with members of JSON types."""
        self.drives: list[tuple[str, PropertySet]] = []
        """Ids, and options as of a blockdev."""
        self.monitors: list[MonitorSpec] = []
        self.netdevs: list[tuple[dict[str, str], str]] = []
        """As `vmm.netdev.make_netdev` takes them, with the argument as given."""
        self.serials: list[str] = []
        """As `vmm.chardev_options.parse_serial` takes them."""
        self.muxes: list[tuple[str, str]] = []
        """Character devices that a serial port and a monitor share: ids, and backends as -serial takes them."""
        self.nodefaults = False
        self.nographic = False
        self.paused = False
        self.preconfig = False
        self.actions: dict[str, str] = dict(ACTION_DEFAULTS)
        """What a guest's `reboot`, `shutdown`, `panic` and `watchdog` lead to."""
        self.boot: dict[str, str] = {}
        self.fd_bootchk = True
        self.rtc_base = "utc"
        self.rtc_clock = "host"
        self.name = ""
        self.process_name = ""
        """What ps shows; empty: what it is."""
        self.uuid = "00000000-0000-0000-0000-000000000000"
        self.msg: dict[str, bool] = {}
        """`timestamp`, `guest-name`: what errors begin with."""
        self.pidfile: str | None = None
        self.daemonize = False
        self.run_with: dict[str, str] = {}
        """`chroot`, `user`."""
        self.log_file: str | None = None
        self.log_items: list[str] = []
        self.traces: list[TraceSpec] = []
        self.qtest: str | None = None
        """Where qtest listens or connects, as -serial takes it."""
        self.qtest_log: str | None = None
        self.exit_with_parent = False
        self.given: list[tuple[str, str]] = []
        """Option groups and arguments in their order, for -writeconfig."""
        self.write_config: str | None = None
        self.help: HelpRequest | None = None
        """The first help that was asked for; nothing else is to be done then."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        default = vars(Config())
        given = {name: value for name, value in vars(self).items() if value != default[name]}
        return f"Config({', '.join(f'{name}={value!r}' for name, value in given.items())})"
