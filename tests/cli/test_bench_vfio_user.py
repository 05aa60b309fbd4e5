"""The bench of a served device: its figures, and what it says when the C sample is none."""

from __future__ import annotations

import pytest

from vmm.cli import bench_vfio_user
from vmm.errors import UsageError, VintxError


def test_figures_of_our_server_alone(monkeypatch):
    monkeypatch.delenv(bench_vfio_user.SAMPLE, raising=False)
    figures = bench_vfio_user.measure(reads=20, posted=200, interrupts=20)
    assert set(figures) == {"vfio-user-read", "vfio-user-posted", "vfio-user-intx"}
    assert set(figures) < {row[0] for row in bench_vfio_user.ROWS}
    assert all(value > 0 for value in figures.values())


def test_sample_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(bench_vfio_user.SAMPLE, str(tmp_path / "gpio"))
    with pytest.raises(UsageError, match="gpio: No such file"):
        bench_vfio_user.measure(reads=2, posted=100, interrupts=2)


def test_sample_that_serves_nothing_is_told(monkeypatch):
    monkeypatch.setenv(bench_vfio_user.SAMPLE, "/bin/false")
    with pytest.raises(VintxError, match="no vfio-user server there"):
        bench_vfio_user.measure(reads=2, posted=100, interrupts=2)
