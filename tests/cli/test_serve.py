"""`vintx serve`: what it serves, and what it says to words it cannot act on."""

import pytest

from vmm.cli import vintx

DEVICE = """
from devices import PciDevice
class Thermometer(PciDevice):
    driver, vendor_id, device_id, class_id = "thermometer", 0x1234, 0x7E40, 0xFF
class Other:
    pass
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    path = tmp_path / "thermometer_of_a_test.py"
    path.write_text(DEVICE)
    return path.name


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--device", "nothing"], "'nothing' is not a valid device model name"),
        (["--device", "ioapic"], "'ioapic' cannot be served"),
        (["--device", "vfio-user-pci"], "'vfio-user-pci' cannot be served"),
        (["--device", "pvpanic-pci"], "'pvpanic-pci' cannot be served: it wants what only a machine has"),
        (["--device", "virtio-blk-pci"], "drive property not set"),
        (["--device", "virtio-blk-pci,drive=d0"], "there are no drives here"),
        (["--device", "virtio-blk-pci,drive=d0", "--drive", "file=no/where,if=none,id=d0"], "no/where"),
        (["--device", ""], "which device?"),
        (["--device", "nothing,help"], "'nothing' is not a valid device model name"),
        (["{source}:Thermometer,help"], "says itself what properties it has"),
        (["--device", "edu", "--trace", "*,fiel=x"], "--trace *,fiel=x: 'fiel' is not known"),
        (["--device", "edu", "--trace", "*,file=no/where"], "no/where: No such file or directory"),
        (["--device", "edu,nonsense=1"], "Property 'edu.nonsense' not found"),
        (["--device", "edu,dma_mask=x"], "Parameter 'dma_mask' expects uint64"),
        (["--device", "edu", "--socket", "no/where.sock"], "no/where.sock: cannot listen there"),
        (["nowhere.py:Thermometer"], "nowhere.py: no such file"),
        (["thermometer"], "want FILE.py:CLASS, or --device DRIVER"),
        (["{source}:Nobody"], "has no class Nobody"),
        (["{source}:Other"], "has no class Other that is a devices.PciDevice"),
        (["{source}:Thermometer,nonsense=1"], "Property 'thermometer.nonsense' not found"),
    ],
)
def test_words_that_cannot_be_acted_on_are_one_line_and_status_1(source, capsys, argv, words):
    assert vintx.main(["serve", *(word.format(source=source) for word in argv)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_file_that_cannot_be_loaded_is_told_with_its_error(source, capsys, tmp_path):
    (tmp_path / source).write_text("1 / 0")
    assert vintx.main(["serve", f"{source}:Thermometer"]) == 1
    assert "cannot be loaded: ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_no_device_at_all_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        vintx.main(["serve"])
    assert ended.value.code == 2
    assert "--device" in capsys.readouterr().err


def test_help_names_every_device_that_can_be_served(capsys):
    with pytest.raises(SystemExit) as ended:
        vintx.main(["serve", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    assert vintx.main(["serve", "--device", "help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"edu", "nvme", "virtio-blk-pci"} <= set(listed)
    assert not {"vfio-user-pci", "ioapic", "pvpanic-pci"} & set(listed)
    assert all(name in text for name in listed)


def test_properties_of_a_device_are_told(capsys):
    assert vintx.main(["serve", "--device", "nvme,help"]) == 0
    assert "serial=<str>" in capsys.readouterr().out


def test_check_of_a_good_device_is_one_line_and_status_0(capsys):
    assert vintx.main(["serve", "--device", "edu", "--check"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("vintx serve: edu: ")
    assert printed.endswith("the pin was high, no mistakes\n")


def test_check_of_a_bad_device_names_its_mistakes_and_status_is_1(source, capsys, tmp_path):
    (tmp_path / source).write_text(DEVICE.replace("0xFF\n", "0xFF0000\n"))
    assert vintx.main(["serve", f"{source}:Thermometer", "--check"]) == 1
    mistake, verdict = capsys.readouterr().out.splitlines()
    assert mistake.startswith("thermometer: class_id is 16711680; it is 0 to 0xffff")
    assert verdict.endswith("1 mistake")
