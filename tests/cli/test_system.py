"""`vintx-system-x86_64` as a process: what a user, a script and kvm-unit-tests' runner see."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import guest_images

PROGRAM = [sys.executable, "-m", "vmm.cli.system"]
EXIT = ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **options
    )


def intx_loop(*arguments: str, append: str = "n=10") -> list[str]:
    return [
        "-nodefaults",
        "-m",
        "16",
        *EXIT,
        "-kernel",
        str(guest_images.path("intx_loop")),
        "-append",
        append,
        *arguments,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-foo"], "-foo: invalid option"),
        (["-m"], "-m: requires an argument"),
        (["-device", "nosuch"], "-device nosuch: 'nosuch' is not a valid device model name"),
        (["-device", "edu,bogus=1"], "-device edu,bogus=1: Property 'edu.bogus' not found"),
        (["-device", "edu,addr=33"], "-device edu,addr=33: Property 'edu.addr' doesn't take value '33'"),
        (["-device", "edu,id=a", "-device", "edu,id=a"], "-device edu,id=a: Duplicate device ID 'a'"),
        (["-device", "vfio-pci,x-host-object=h"], "-device vfio-pci,x-host-object=h: Device 'h' not found"),
        (["-M", "nosuch"], "unsupported machine type: 'nosuch'. Use -machine help to list supported machines"),
        (["-M", "pc,nosuch=1"], "Property 'pc-machine.nosuch' not found"),
        (["-accel", "nosuch"], "-accel nosuch: invalid accelerator nosuch; known are qtest, tcg"),
        (["-cpu", "nosuch"], "unable to find CPU model 'nosuch'; -cpu help lists them"),
        (["-smp", "65"], "Invalid SMP CPUs 65. The max CPUs supported by machine 'pc' is 64"),
        (["-append", "x"], "-append and -initrd only allowed with -kernel option"),
        (["-serial", "nosuch:x"], None),
    ],
)
def test_what_is_not_known_is_one_line_on_stderr_and_status_1(arguments, message):
    done = run("-nodefaults", "-S", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vintx-system-x86_64: ")
    if message is not None:
        assert done.stderr == f"vintx-system-x86_64: {message}\n"


def test_kernel_that_is_missing_or_none_is_refused(tmp_path):
    assert "could not open kernel file" in run("-kernel", str(tmp_path / "none")).stderr
    text = tmp_path / "text"
    text.write_text("hello\n" * 200)
    done = run("-kernel", str(text))
    assert done.returncode == 1
    assert f"{text}: not a kernel" in done.stderr


def test_guest_runs_to_its_end_with_its_own_exit_status():
    done = run(*intx_loop("-serial", "stdio", "-device", "edu"))
    assert done.returncode == guest_images.EXIT_PASSED << 1 | 1
    match = guest_images.INTX_LOOP_DEVICE.search(done.stdout)
    assert match
    assert (match["raised"], match["handled"], match["spurious"]) == ("10", "10", "0")
    assert done.stderr == ""


def test_options_as_kvm_unit_tests_passes_them_are_taken():
    done = run(
        "--no-reboot", "-nodefaults", "-global", "kvm-pit.lost_tick_policy=discard", "-device", "pc-testdev", *EXIT,
        "-display", "none", "-serial", "stdio", "-device", "pci-testdev", "-machine", "accel=tcg,kernel_irqchip=split",
        "-kernel", str(guest_images.path("smp")), "-smp", "4", "-cpu", "qemu64,+x2apic,-svm", "-append", "n=5",
    )  # fmt: skip
    assert done.returncode == 1
    assert "smp: done" in done.stdout


def test_device_list_names_the_test_devices_as_qemus_does():
    listing = run("-device", "?").stdout
    assert '"pc-testdev"' in listing
    assert '"pci-testdev"' in listing
    assert 'name "edu", bus PCI' in listing


@pytest.mark.parametrize("topic", ["-M", "-accel", "-cpu", "-object", "-chardev", "-trace", "-device"])
def test_help_topics_print_something_and_exit_0(topic):
    done = run(topic, "help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 1
    assert done.stderr == ""


def test_feature_the_engine_has_not_is_a_warning_as_tcg_gives_it():
    done = run(*intx_loop("-serial", "stdio", "-device", "edu", "-cpu", "max,+avx512f"))
    assert done.returncode == 1
    assert "warning: TCG doesn't support requested feature: CPUID[eax=07h].EBX.avx512f [bit 16]" in done.stderr


def test_trace_files_are_text_or_json_lines_by_their_name(tmp_path):
    text, lines = tmp_path / "t.txt", tmp_path / "t.jsonl"
    done = run(
        *intx_loop("-serial", "null", "-device", "edu", "-trace", f"ioapic_*,file={text}", "-trace", f"*,file={lines}")
    )
    assert (done.returncode, done.stderr) == (1, "")
    names = {line.split()[1] for line in text.read_text().splitlines()}
    assert "ioapic_set_irq" in names
    assert all(name.startswith("ioapic_") for name in names)
    assert any(json.loads(line)["event"] == "cpu_takes_interrupt" for line in lines.read_text().splitlines())


def test_serial_file_gets_everything_the_guest_wrote(tmp_path):
    output = tmp_path / "serial"
    assert run(*intx_loop("-serial", f"file:{output}", "-device", "edu")).returncode == 1
    assert output.read_text().splitlines()[-1] == guest_images.INTX_LOOP_DONE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_machine_with_status_0_after_a_shutdown_event(tmp_path, number):
    path, pidfile = tmp_path / "qmp", tmp_path / "pid"
    process = subprocess.Popen(
        [*PROGRAM, "-nodefaults", "-m", "16", "-qmp", f"unix:{path},server=on,wait=on", "-pidfile", str(pidfile)],
        stdin=subprocess.DEVNULL,
    )
    try:
        with connect(path, process) as client, client.makefile("rw") as stream:
            assert "QMP" in json.loads(stream.readline())
            stream.write('{"execute": "qmp_capabilities"}')
            stream.flush()
            assert json.loads(stream.readline()) == {"return": {}}
            assert int(pidfile.read_text()) == process.pid
            process.send_signal(number)
            event = json.loads(stream.readline())
            assert (event["event"], event["data"]) == ("SHUTDOWN", {"guest": False, "reason": "host-signal"})
            assert stream.readline() == ""
        assert process.wait(30) == 0
        assert not path.exists()
        assert not pidfile.exists()
    finally:
        process.kill()
        process.wait()


def connect(path: Path, process: subprocess.Popen) -> socket.socket:
    """A connection to a monitor that is coming up; fails when its process ends first."""
    while process.poll() is None:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            os.sched_yield()
        else:
            return client
    pytest.fail(f"the process ended with {process.returncode} before its monitor was there")


def test_quit_over_stdio_ends_with_status_0():
    done = subprocess.run(
        [*PROGRAM, "-M", "none", "-nodefaults", "-qmp", "stdio"],
        input='{"execute":"qmp_capabilities"}{"execute":"query-status"}{"execute":"quit"}',
        capture_output=True,
        text=True,
        timeout=60,
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert replies[2] == {"return": {"status": "running", "running": True}}
    assert [r.get("event") for r in replies[3:]] == ["SHUTDOWN", None]
    assert done.returncode == 0
