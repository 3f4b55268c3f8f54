"""Losses and gradients that are not finite: the step is skipped, counted and logged; too many abort the training."""

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, default_collate

from helpers.models import TINY
from helpers.runners import runner
from simmim_plugin import SimMIM
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.engine.hooks.checkpoint_hook import SimMIMCheckpointHook
from simmim_plugin.engine.hooks.fault_hook import FaultHook, TooManySkippedStepsError
from simmim_plugin.engine.optimizers.autocast_optim_wrapper import AutocastOptimWrapper
from simmim_plugin.engine.step_records import Step

pytestmark = pytest.mark.core

PLAIN = dict(type='SimMIMDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)


def samples(bad: dict[int, float], count: int = 8) -> list[dict]:
    """Images with a mask on the upper half; those of `bad` have that value in a pixel."""
    torch.manual_seed(0)
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[:2] = 1
    found: list[dict[str, Any]] = [
        dict(inputs=torch.randn(3, 64, 64), mask=mask, img_path=f'/data/{i}.png') for i in range(count)
    ]
    for i, value in bad.items():
        found[i]['inputs'][1, 5, 5] = value
    return found


def train(work_dir: Path, data: list[dict], on_cpu: bool = False, fused: bool = True, **faults: object) -> Runner:
    """An iteration per sample."""
    torch.manual_seed(1)
    training = Runner(
        model=SimMIM(backbone={**TINY, 'drop_path_rate': 0.0}, data_preprocessor=PLAIN), work_dir=str(work_dir),
        train_dataloader=DataLoader(data, batch_size=1, collate_fn=default_collate),
        train_cfg=dict(by_epoch=True, max_epochs=1), experiment_name=str(time.time_ns()), log_level='ERROR',
        optim_wrapper=dict(type='simmim_plugin.AutocastOptimWrapper', on_cpu=on_cpu, clip_grad=dict(max_norm=5.0),
                           optimizer=dict(type='AdamW', lr=1e-3, fused=fused)),
        default_hooks=dict(runtime_info=dict(type='simmim_plugin.SimMIMRuntimeInfoHook'),
                           checkpoint=dict(type='simmim_plugin.SimMIMCheckpointHook', interval=1)),
        custom_hooks=[dict(type='simmim_plugin.FaultHook', **faults)],
    )  # fmt: skip
    training.train()
    return training


@pytest.mark.parametrize('on_cpu', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_bad_step_leaves_no_trace(value, fused, on_cpu, tmp_path, caplog):
    """The weights are those of a training without the bad images: a hidden pixel, whose loss alone is infinite."""
    bad = train(tmp_path / 'bad', samples({2: value, 5: value}), on_cpu, fused)
    good = train(tmp_path / 'good', [s for i, s in enumerate(samples({})) if i not in (2, 5)], on_cpu, fused)
    for (name, one), two in zip(bad.model.state_dict().items(), good.model.state_dict().values()):
        assert torch.equal(one, two), name
    assert bad.message_hub.get_info('skipped_steps') == 2
    lists = sorted((tmp_path / 'bad').glob('skipped_iter_*.txt'))
    assert [path.name for path in lists] == ['skipped_iter_3_rank0.txt', 'skipped_iter_6_rank0.txt']
    assert lists[0].read_text().splitlines()[1:] == ['/data/2.png']
    assert not list((tmp_path / 'good').glob('skipped_iter_*.txt'))


@pytest.mark.parametrize('fused', [False, True])
def test_running_statistics_go_back_to_those_before_a_skipped_step(fused):
    """Of two steps of two forward passes each; they are those of a batch norm that has seen the good ones alone."""
    torch.manual_seed(0)
    batches = torch.randn(6, 4, 2)
    batches[2, 0, 0] = float('nan')  # the first half of the second step
    model, alone = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)), torch.nn.BatchNorm1d(2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    wrapper = AutocastOptimWrapper(optimizer=optimizer, accumulative_counts=2)
    for number, batch in enumerate(batches):
        with wrapper.optim_context(model):
            loss = model(batch).square().sum()
        wrapper.update_params(loss)
        if number not in (2, 3):
            alone(batch)
    for name, buffer in alone.named_buffers():
        assert torch.equal(model[0].get_buffer(name), buffer), name


def test_statistics_that_are_not_finite_are_not_saved(tmp_path):
    training = runner(tmp_path, 1)
    training.model.norm = torch.nn.BatchNorm1d(2)
    training.model.norm.running_var[1] = float('nan')
    with pytest.raises(ValueError, match=r'^norm\.running_var are not finite at iteration 2, so no checkpoint'):
        training.train()


def test_an_infinite_loss_alone_would_not_show_in_the_gradient():
    """Why `backward` multiplies the loss: the gradient of an absolute difference is its sign, which is finite."""
    for skip, finite in ((False, True), (True, False)):
        weight = torch.nn.Parameter(torch.ones(2))
        wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD([weight], lr=0.1), skip_nonfinite=skip)
        wrapper.backward((weight - torch.tensor([0.0, float('inf')])).abs().sum())
        assert weight.grad.isfinite().all() == finite


def test_too_many_in_a_row_abort_the_training(tmp_path):
    with pytest.raises(
        TooManySkippedStepsError, match=r'3 steps in a row .* up to iteration 7.*There is no checkpoint'
    ):
        train(tmp_path, samples(dict.fromkeys(range(4, 8), float('nan'))), interval=1, max_in_a_row=2)
    train(tmp_path / 'fine', samples(dict.fromkeys((1, 2, 4, 5), float('nan'))), interval=3, max_in_a_row=2)


def test_accumulated_gradients_are_dropped_together():
    weight = torch.nn.Parameter(torch.ones(1))
    wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD([weight], lr=0.1), accumulative_counts=2)
    for factors, expected in (((1.0, float('nan')), 1.0), ((1.0, 2.0), 1.0 - 0.1 * (1 + 2) / 2)):
        for factor in factors:
            wrapper.update_params((weight * factor).sum())
        assert weight.item() == pytest.approx(expected)


def test_accumulating_iterations_are_no_steps(tmp_path, monkeypatch):
    """Two of four steps are skipped, each of two iterations: counted twice, not four times."""
    monkeypatch.setattr(
        'simmim_plugin.engine.optimizers.autocast_optim_wrapper.AutocastOptimWrapper.__init__', _accumulating
    )
    training = train(tmp_path, samples(dict.fromkeys((2, 4), float('nan'))), max_in_a_row=2)
    assert training.message_hub.get_info('skipped_steps') == 2


def test_a_checkpoint_between_two_reports_has_the_count(tmp_path, monkeypatch):
    def save(hook, runner, batch_idx, **kwargs):
        if batch_idx == 4:
            hook.save_now(runner, 5)

    monkeypatch.setattr(SimMIMCheckpointHook, 'after_train_iter', save)
    train(tmp_path, samples(dict.fromkeys((1, 3, 6), float('nan'))), interval=100)
    for name, count in (('iter_5', 2), ('epoch_1', 3)):
        assert load_file(tmp_path / f'{name}.pth')['message_hub']['runtime_info']['skipped_steps'] == count


def _accumulating(self, *args, init=AutocastOptimWrapper.__init__, **kwargs):
    init(self, *args, accumulative_counts=2, **kwargs)


def test_spikes_are_reported(monkeypatch):
    lines = []
    monkeypatch.setattr('simmim_plugin.engine.hooks.fault_hook.print_log', lambda text, *_: lines.append(text))
    hook = FaultHook(window=200)
    losses = [0.5] * 150 + [1.4] + [0.5] * 10 + [0.9]
    hook.after_steps_read(None, [Step(i + 1, dict(loss=loss), []) for i, loss in enumerate(losses)])
    assert lines == [
        'Loss spike: 1.4000 at iteration 151, the median of the last 162 is 0.5000 (1 since the last report)'
    ]


def test_a_missing_reader_is_named():
    with pytest.raises(ValueError, match=r'runtime_info=dict\(type=.simmim_plugin.SimMIMRuntimeInfoHook.\)'):
        FaultHook().before_train(SimpleNamespace(hooks=[RuntimeInfoHook()]))


@pytest.mark.parametrize(
    ('argument', 'value', 'words'),
    [
        ('interval', 0, 'FaultHook.interval=0 must be a whole number of at least 1'),
        ('interval', 2.0, 'FaultHook.interval=2.0 must be a whole number of at least 1'),
        ('spike', 1.0, 'FaultHook.spike=1.0 must be a number above 1; e.g. 2'),
        ('spike', float('nan'), 'FaultHook.spike=nan must be a number above 1; e.g. 2'),
        ('max_in_a_row', 0, 'FaultHook.max_in_a_row=0 must be a whole number of at least 1'),
        ('max_in_a_row', None, 'FaultHook.max_in_a_row=None must be a whole number of at least 1'),
        ('window', -1, 'FaultHook.window=-1 must be a whole number of at least 1'),
        ('window', '9', "FaultHook.window='9' must be a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_named(argument, value, words):
    with pytest.raises(ValueError, match=f'^{re.escape(words)}$'):
        FaultHook(**{argument: value})
