from __future__ import annotations

import re
import shlex
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.cli.options import (
    OPTIONS,
    REFUSED,
    Config,
    FwCfgSpec,
    HelpRequest,
    MonitorSpec,
    Topology,
    TraceSpec,
    parse_command_line,
)
from vmm.cli.reference import usage
from vmm.errors import UsageError

NAMES = [name for option in OPTIONS if not isinstance(option, str) for name in option.names]


def parse(line: str) -> Config:
    return parse_command_line(shlex.split(line))


def test_command_line_of_qemus_test_library_is_understood() -> None:
    config = parse(
        "-qtest unix:P.sock -qtest-log /dev/null -chardev socket,path=P.qmp,id=char0 -mon chardev=char0,mode=control "
        "-display none -audio none -run-with exit-with-parent=on -machine pc -device virtio-mouse-pci,id=d "
        "-device \"{'driver':'edu','addr':'1d.3'}\" -accel qtest"
    )
    assert (config.qtest, config.qtest_log, config.machine) == ("unix:P.sock", "/dev/null", "pc")
    assert config.chardevs == ["socket,path=P.qmp,id=char0"]
    assert config.monitors == [MonitorSpec("chardev:char0", "control")]
    assert config.accels == [("qtest", {})]
    assert [(d.values, d.from_text) for d in config.devices] == [
        ({"driver": "virtio-mouse-pci", "id": "d"}, True),
        ({"driver": "edu", "addr": "1d.3"}, False),
    ]
    assert config.exit_with_parent


def test_nothing_given_is_the_default_config() -> None:
    assert parse("") == Config()


def test_one_dash_and_two_are_the_same() -> None:
    assert parse("--machine none --S --m 1G") == parse("-machine none -S -m 1G")
    assert parse("-M none") == parse("-machine none")


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("-m 512", "ram_size", 512 << 20),
        ("-m size=1G", "ram_size", 1 << 30),
        ("-smp 4", "smp", Topology(4, 4, 1, 4, 1)),
        ("-smp 2,maxcpus=4", "smp", Topology(2, 4, 1, 4, 1)),
        ("-smp 8,sockets=2,threads=2", "smp", Topology(8, 8, 2, 2, 2)),
        ("-smp cores=3,threads=2", "smp", Topology(6, 6, 1, 3, 2)),
        ("-smp 6,cores=3", "smp", Topology(6, 6, 2, 3, 1)),
        ("-smp 8,cores=2,sockets=2", "smp", Topology(8, 8, 2, 2, 2)),
        ("-machine pc,accel=kvm:tcg,usb=off -M x=1", "machine_options", {"usb": "off", "x": "1"}),
        ("-machine accel=kvm:tcg", "accels", [("kvm", {}), ("tcg", {})]),
        ("-accel kvm -accel tcg,thread=single", "accels", [("kvm", {}), ("tcg", {"thread": "single"})]),
        ("-enable-kvm", "accels", [("kvm", {})]),
        ("-cpu qemu64,apic-id=0", "cpu", "qemu64"),
        ("-kernel a -initrd b,c -append 'x y=z'", "append", "x y=z"),
        ("-global ICH9-LPC.noreboot=a,b", "globals", [("ICH9-LPC", "noreboot", "a,b")]),
        ("-global driver=edu,property=p,value=1", "globals", [("edu", "p", "1")]),
        ("-fw_cfg name=opt/x,string=a,,b", "fw_cfg", [FwCfgSpec("opt/x", "a,b", None)]),
        ("-fw_cfg opt/x,file=f", "fw_cfg", [FwCfgSpec("opt/x", None, "f")]),
        ("-nographic", "serials", ["chardev:mux0"]),
        ("-nographic", "muxes", [("mux0", "stdio,signal=off")]),
        ("-serial mon:pty", "monitors", [MonitorSpec("chardev:mux0", "readline")]),
        ("-nographic -serial null", "serials", ["null"]),
        ("-nographic -nodefaults", "serials", []),
        ("-serial a -serial b", "serials", ["a", "b"]),
        (
            "-no-reboot",
            "actions",
            {"reboot": "shutdown", "shutdown": "poweroff", "panic": "shutdown", "watchdog": "reset"},
        ),
        (
            "-no-shutdown -action panic=none,reboot=reset -watchdog-action pause",
            "actions",
            {"reboot": "reset", "shutdown": "pause", "panic": "none", "watchdog": "pause"},
        ),
        (
            "-cpu qemu64,apic-id=0,+x2apic,-hypervisor",
            "cpu_options",
            {"apic-id": "0", "x2apic": "on", "hypervisor": "off"},
        ),
        ("-name guest=g,debug-threads=on", "name", "g"),
        ("-name g", "name", "g"),
        ("-uuid 12345678-ABCD-1234-1234-1234567890AB", "uuid", "12345678-abcd-1234-1234-1234567890ab"),
        ("-rtc base=2006-06-17T16:01:21,clock=vm", "rtc_base", "2006-06-17T16:01:21"),
        ("-rtc clock=vm", "rtc_clock", "vm"),
        ("-boot d", "boot", {"order": "d"}),
        ("-boot order=c,menu=on", "boot", {"order": "c", "menu": "on"}),
        ("-d int,cpu_reset -D log", "log_items", ["int", "cpu_reset"]),
        ("-trace 'apic_*,file=t'", "traces", [TraceSpec("apic_*", "", "t")]),
        (
            "-trace events=e -trace ioapic_set_irq",
            "traces",
            [TraceSpec("", "e", ""), TraceSpec("ioapic_set_irq", "", "")],
        ),
        ("-qmp unix:p,server=on,wait=off", "monitors", [MonitorSpec("unix:p,server=on,wait=off", "control")]),
        ("-qmp-pretty stdio -monitor none", "monitors", [MonitorSpec("stdio", "control", True)]),
        (
            "-mon c0 -monitor stdio",
            "monitors",
            [MonitorSpec("chardev:c0", "readline"), MonitorSpec("stdio", "readline")],
        ),
        ("-object monitor-qmp,id=m,chardev=c,pretty=on", "monitors", [MonitorSpec("chardev:c", "control", True)]),
        (
            '-object \'{"qom-type":"monitor-hmp","id":"m","chardev":"c"}\'',
            "monitors",
            [MonitorSpec("chardev:c", "readline")],
        ),
        (
            "-display none -vga none -net none -nic none -audio driver=none -parallel none -no-user-config",
            "devices",
            [],
        ),
    ],
)
def test_option_sets_its_field(line: str, field: str, value: object) -> None:
    assert getattr(parse(line), field) == value


def test_flags_switch_on() -> None:
    config = parse("-S -nodefaults -preconfig")
    assert (config.paused, config.nodefaults, config.preconfig) == (True, True, True)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("-h", HelpRequest("usage")),
        ("--help -foo", HelpRequest("usage")),
        ("-version", HelpRequest("version")),
        ("-device help", HelpRequest("device")),
        ("-device '?' -S", HelpRequest("device")),
        ("-device edu,help", HelpRequest("device", "edu")),
        ("-machine help", HelpRequest("machine")),
        ("-machine pc,help", HelpRequest("machine", "pc")),
        ("-accel help", HelpRequest("accel")),
        ("-cpu help", HelpRequest("cpu")),
        ("-object help", HelpRequest("object")),
        ("-object vfio-host-device,help", HelpRequest("object", "vfio-host-device")),
        ("-chardev help", HelpRequest("chardev")),
        ("-trace help", HelpRequest("trace")),
        ("-d help", HelpRequest("d")),
        ("-device help -machine help", HelpRequest("device")),
    ],
)
def test_help_is_asked_for(line: str, wanted: HelpRequest) -> None:
    config = parse(line)
    assert config.help == wanted
    assert config.devices == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-foo", "-foo: invalid option"),
        ("--foo", "--foo: invalid option"),
        ("---m 1", "---m: invalid option"),
        ("-S -m", "-m: requires an argument"),
        ("-m x", "-m x: Parameter 'size' expects a non-negative number below 2^64"),
        ("-m 0", "-m 0: Parameter 'size' expects at least 1M"),
        ("-m 1G,slots=2", "-m 1G,slots=2: there is no memory hot-plug"),
        ("-m 1G,sise=2", "-m 1G,sise=2: Invalid parameter 'sise'; known are size"),
        ("-smp 0", "-smp 0: Parameter 'cpus' expects a number from 1 to 255"),
        ("-smp 256", "-smp 256: Parameter 'cpus' expects a number from 1 to 255"),
        ("-smp 3,cores=2,sockets=1,threads=1", "product of the hierarchy must match maxcpus: sockets (1) * cores (2)"),
        (
            "-smp 4,maxcpus=2",
            "-smp 4,maxcpus=2: Invalid CPU topology: maxcpus must be equal to or greater than smp: 2 < 4",
        ),
        ("-machine pc,usb", "-machine pc,usb: Expected '=' after parameter 'usb'"),
        ("-device id=x", "-device id=x: Parameter 'driver' is missing"),
        ("-device \"{'driver': 5}\"", "Parameter 'driver' is missing"),
        ("-device '{'", "-device {: JSON parse error, premature EOI"),
        ("-object iothread", "-object iothread: Parameter 'id' is missing"),
        ("-object monitor-qmp,id=m", "-object monitor-qmp,id=m: Parameter 'chardev' is missing"),
        ("-global edu", "-global edu: Expected '=' after parameter 'edu'"),
        ("-global driver=a", "Parameter 'property' is missing"),
        ("-fw_cfg opt/x", "-fw_cfg opt/x: invalid argument(s): want name=NAME"),
        ("-fw_cfg " + "x" * 56 + ",string=", "name too long"),
        ("-mon mode=control", "-mon mode=control: Parameter 'chardev' is missing"),
        ("-mon c,mode=loud", "Parameter 'mode' does not accept value 'loud'; use readline, control"),
        ("-action reboot=no", "-action reboot=no: Parameter 'reboot' does not accept value 'no'; use reset, shutdown"),
        ("-uuid 5", "-uuid 5: failed to parse UUID string: wrong format"),
        ("-rtc base=noon", "invalid datetime format 'noon'"),
        ("-rtc driftfix=slew", "driftfix=slew is not supported"),
        ("-run-with async-teardown=on", "async-teardown=on is not supported"),
        ("-display gtk", "-display gtk: there is no display: only none can be honoured"),
        ("-nic user", "-nic user: there is no network"),
        ("-drive file=x", "-drive file=x: if=ide: there is no such controller; give if=none"),
        ("disk.img", "disk.img: there is no disk to boot this from; -kernel disk.img boots a kernel"),
        ("-cpu apic-id=0", "-cpu apic-id=0: Parameter 'model' is missing"),
        ("-accel thread=single", "Parameter 'accel' is missing"),
    ],
)
def test_bad_command_line_is_refused_naming_the_option(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse(line)


WORDS = st.sampled_from([f"-{name}" for name in [*NAMES, *REFUSED]]) | st.text("a=,help{}'\"-:0", max_size=8)


@given(st.lists(WORDS, max_size=6))
def test_any_words_are_a_config_or_a_usage_error(words: list[str]) -> None:
    with suppress(UsageError):
        assert isinstance(parse_command_line(words), Config)


def test_no_option_is_named_twice_or_both_known_and_refused() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES).isdisjoint(REFUSED)


def test_help_names_every_option_and_stays_within_a_line() -> None:
    text = usage("prog")
    assert text.startswith("usage: prog [options]\n")
    for name in NAMES:
        assert re.search(rf"(?m)^  (-\w+, )?-{name}\b", text), name
    assert max(map(len, text.splitlines())) <= 100
