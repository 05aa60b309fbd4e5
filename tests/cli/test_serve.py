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
