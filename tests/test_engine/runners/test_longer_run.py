"""A training that is made longer when it is resumed: its schedule ends with it again."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import SMALL, run, scalars
from helpers.paths import ROOT
from simmim_plugin.engine.runners.longer_run import Length, extended

BASE = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
RATE, ITERATIONS = 1.5e-3, 3  # of an epoch of 12 images
CONFIG = """_base_ = {base!r}
data_root = {data!r}
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.1, end=1, convert_to_iter_based=True),
    dict(type={schedule}, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs={epochs})
custom_hooks = [dict(type='MaskRatioHook', start=0.1)]
"""
OPTIONS = [option for option in SMALL if 'custom_hooks' not in option]


@pytest.fixture
def training(image_folder, tmp_path):
    """Write the config and train it; returns what is printed."""

    def train(schedule: str, epochs: int, *options: str, flags: tuple = ('--resume',), ok: bool = True) -> str:
        path = tmp_path / 'config.py'
        path.write_text(CONFIG.format(base=BASE, data=str(image_folder), schedule=schedule, epochs=epochs))
        command = [sys.executable, ROOT / 'tools/train.py', path, '--work-dir', tmp_path / 'work', *flags]
        return run(*command, '--cfg-options', *OPTIONS, *options, ok=ok)

    return train


def rates(work_dir: Path) -> dict[int, float]:
    """Iteration, from 0 -> rate; the last of several."""
    return {line['iter'] - 1: line['lr'] for line in scalars(work_dir)}


def cosine(iteration: int, epochs: int) -> float:
    """By hand: from the end of the first epoch to that of the last."""
    share = (iteration - ITERATIONS) / ((epochs - 1) * ITERATIONS)
    return RATE * (1 + math.cos(math.pi * share)) / 2


def test_a_cosine_that_ended_with_the_run_ends_with_the_longer_one(training, tmp_path):
    short = "'CosineAnnealingLR', begin=1, end=3"
    training(short, 3)
    work = tmp_path / 'work'
    assert rates(work)[8] == pytest.approx(cosine(8, 3), rel=1e-5)
    output = training(short, 3, 'train_cfg.max_epochs=5')
    assert (
        'max_epochs=5 (max_epochs=3 before), and the schedule ends with it: the rate goes on with 0.00075' in output
    ), output
    assert 'The ramp of mask_ratio now ends at iteration 15 (9 before)' in output, output
    longer = {iteration: pytest.approx(cosine(iteration, 5), rel=1e-5) for iteration in range(9, 15)}
    assert {i: rate for i, rate in rates(work).items() if i >= 9} == longer

    # Killed and started again by the same line, or with the config edited instead; its rates are the same.
    for epochs, options in ((3, ['train_cfg.max_epochs=5']), (5, [])):
        (work / 'epoch_5.pth').unlink()
        (work / 'last_checkpoint').write_text(str(work / 'epoch_4.pth'))
        again = training(short.replace('3', str(epochs)), epochs, *options)
        assert 'ends with it: the rate' not in again and 'iter: 12' in again
        assert {i: rate for i, rate in rates(work).items() if i >= 9} == longer
    error = training(short, 3, ok=False)
    assert 'error: ' in error and '--cfg-options train_cfg.max_epochs=5' in error


def test_the_end_in_an_edited_config_moves_with_the_run(training, tmp_path):
    training("'CosineAnnealingLR', begin=1, end=2", 2)
    output = training("'CosineAnnealingLR', begin=1, end=4", 4)
    assert 'max_epochs=4 (max_epochs=2 before)' in output, output
    assert rates(tmp_path / 'work')[9] == pytest.approx(cosine(9, 4), rel=1e-5)


@pytest.mark.slow
def test_a_milestone_moves_unless_it_is_passed(training, tmp_path):
    training("'MultiStepLR', gamma=0.1, milestones=[1]", 2)
    error = training("'MultiStepLR', gamma=0.1, milestones=[3]", 4, ok=False)
    assert 'param_scheduler[1].milestones[0] is 1 in the checkpoint and 3 now' in error
    assert 'To keep the schedule: --cfg-options param_scheduler.1.milestones=[1]' in error
    training("'MultiStepLR', gamma=0.1, milestones=[3]", 4, 'param_scheduler.1.milestones=[1]')
    assert rates(tmp_path / 'work')[9] == pytest.approx(RATE / 10)


@pytest.mark.slow
def test_a_milestone_ahead_moves(training, tmp_path):
    """MMEngine lets a scheduler without `end` end with the shorter training, and would drop nothing."""
    training("'MultiStepLR', gamma=0.1, milestones=[2]", 2)
    training("'MultiStepLR', gamma=0.1, milestones=[3]", 3)
    training("'MultiStepLR', gamma=0.1, milestones=[4]", 5)
    found = rates(tmp_path / 'work')
    assert [found[i] for i in (8, 11, 12)] == pytest.approx([RATE, RATE, RATE / 10])


def test_what_ends_with_the_run_is_extended():
    warmup = dict(type='LinearLR', start_factor=0.01, end=10)
    schedulers: list[dict[str, Any]] = [
        dict(type='CosineAnnealingLR', begin=2, end=10), dict(type='CosineAnnealingLR', begin=2, T_max=8),
        dict(type='PolyLR', by_epoch=False, end=1000), dict(type='LinearLR', start_factor=1, end_factor=0, end=10),
        dict(type='CosineAnnealingLR', end=9), warmup, dict(type='MultiStepLR', milestones=[10]),
    ]  # fmt: skip
    assert extended(schedulers, Length(10, 1000), Length(15, 1500)) == [
        dict(type='CosineAnnealingLR', begin=2, end=15), dict(type='CosineAnnealingLR', begin=2, T_max=13),
        dict(type='PolyLR', by_epoch=False, end=1500), dict(type='LinearLR', start_factor=1, end_factor=0, end=15),
        *schedulers[4:],
    ]  # fmt: skip
    assert schedulers[0]['end'] == 10
    assert extended(dict(type='CosineAnnealingLR', end=10), Length(10, 1000), Length(15, 1500))['end'] == 15
    assert extended(None, Length(10, 1000), Length(15, 1500)) is None
