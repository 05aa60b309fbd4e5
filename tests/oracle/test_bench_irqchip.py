"""The irqchip's figures: all there are, of the model anywhere, of KVM where there is one."""

import os

import pytest

from vmm.cli.bench_irqchip import KVM_SUFFIX, OPERATIONS, ROWS, measure

NAMES = {name for name, _, _ in OPERATIONS}


def test_machine_without_kvm_has_the_models_figures():
    figures = measure(os.devnull, stretch_s=1e-4, stretches=1)
    assert figures.keys() == NAMES
    assert all(value > 0 for value in figures.values())


@pytest.mark.kvm
def test_machine_with_kvm_has_both(kvm):
    figures = measure(kvm.path, stretch_s=1e-4, stretches=1)
    assert figures.keys() == {name for name, _, _, _ in ROWS} == NAMES | {name + KVM_SUFFIX for name in NAMES}
