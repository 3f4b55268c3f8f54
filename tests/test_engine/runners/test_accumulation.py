"""Accumulated gradients: no checkpoint falls between two steps, and the last window ends with the epoch."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from simmim_plugin.checkpoints.files import load_file

pytestmark = pytest.mark.core
BATCHES = [1.0, 2.0, 3.0, 4.0, 5.0]


class Linear(BaseModel):
    """loss = w x, whose gradient is x: a step of SGD with a rate of 1 subtracts the mean of its window."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x, mode='tensor'):
        return dict(loss=(self.w * x).mean())


class Interrupt(Hook):
    """A signal during an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGUSR1)


def train(work_dir: Path, wrapper: str = 'simmim_plugin.AutocastOptimWrapper', hooks: tuple = (), **options) -> float:
    """Five batches of one number, two accumulated; returns the weight."""
    train_cfg = options.pop('train_cfg', dict(type='simmim_plugin.ResumableTrainLoop', max_epochs=2))
    saving = {'interval': 1, **options.pop('saving', {})}
    loader = dict(
        dataset=[dict(x=torch.tensor(x)) for x in BATCHES], batch_size=1, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='default_collate'),
    )  # fmt: skip
    runner = Runner(
        model=Linear(), work_dir=str(work_dir), train_dataloader=loader, train_cfg=train_cfg,
        optim_wrapper=dict(type=wrapper, optimizer=dict(type='SGD', lr=1.0), accumulative_counts=2),
        default_hooks=dict(
            runtime_info=dict(type='simmim_plugin.SimMIMRuntimeInfoHook'),
            checkpoint=dict(type='simmim_plugin.SimMIMCheckpointHook', **saving),
        ),
        custom_hooks=[
            dict(type='simmim_plugin.IterationSeedHook'), dict(type='simmim_plugin.InterruptHook'), *hooks
        ],
        randomness=dict(seed=0), experiment_name=str(time.time_ns()), log_level='WARNING', **options,
    )  # fmt: skip
    assert isinstance(runner.train_loop.dataloader, DataLoader)
    runner.train()
    return runner.model.w.item()


@pytest.mark.parametrize('loop', ['simmim_plugin.ResumableTrainLoop', 'EpochBasedTrainLoop'])
@pytest.mark.parametrize('wrapper', ['simmim_plugin.AutocastOptimWrapper', 'OptimWrapper'])
def test_an_epoch_ends_with_a_step(loop, wrapper, tmp_path):
    """By hand: windows (1, 2), (3, 4), (5) subtract 1.5, 3.5 and 5."""
    loop = dict(type=loop, max_epochs=2)
    assert train(tmp_path, wrapper, train_cfg=loop) == -20
    assert load_file(tmp_path / 'epoch_1.pth')['state_dict']['w'].item() == -10
    (tmp_path / 'epoch_2.pth').unlink()
    assert train(tmp_path, wrapper, train_cfg=loop, resume=True, load_from=str(tmp_path / 'epoch_1.pth')) == -20


def test_by_iterations_the_checkpoint_waits_for_the_step(tmp_path):
    loop = dict(type='IterBasedTrainLoop', max_iters=9)
    options = dict(train_cfg=loop, saving=dict(interval=3, by_epoch=False))
    # Windows of the whole run: (1, 2), (3, 4), (5, 1), (2, 3), (4).
    assert train(tmp_path, **options) == -(1.5 + 3.5 + 3 + 2.5 + 4)
    for iteration, w in ((4, -5), (6, -8), (9, -14.5)):
        path = tmp_path / f'iter_{iteration}.pth'
        assert load_file(path)['state_dict']['w'].item() == w
        assert train(tmp_path / 'again', resume=True, load_from=str(path), **options) == -14.5
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_4.pth', 'iter_6.pth', 'iter_9.pth']


@pytest.mark.parametrize(('iteration', 'written'), [(1, 2), (2, 2), (3, 4), (5, 5), (6, 7), (8, 9)])
def test_a_signal_waits_for_the_step(iteration, written, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, hooks=(Interrupt(iteration),))
    assert stopped.value.code == 75
    path = tmp_path / f'iter_{written}.pth'
    capsys.readouterr()
    assert train(tmp_path / 'again', resume=True, load_from=str(path)) == -20
    assert 'lost' not in ''.join(capsys.readouterr())


def test_a_checkpoint_of_an_earlier_version_inside_a_window_is_named(tmp_path, capsys):
    train(tmp_path, train_cfg=dict(type='simmim_plugin.ResumableTrainLoop', max_epochs=1))
    checkpoint = load_file(tmp_path / 'epoch_1.pth')
    checkpoint['meta'].update(epoch=0, iter=3)
    torch.save(checkpoint, tmp_path / 'iter_3.pth')
    train(tmp_path / 'again', resume=True, load_from=str(tmp_path / 'iter_3.pth'))
    printed = ''.join(capsys.readouterr())
    assert 'iteration 3 is between two steps of accumulated gradients (accumulative_counts=2)' in printed
