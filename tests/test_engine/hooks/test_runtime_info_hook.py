"""Scalars for the log: the same values as MMEngine's own hook, read rarely, in histories of limited length."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.logging import MessageHub
from mmengine.runner import LogProcessor
from torch.utils.data import DataLoader

from simmim_plugin import AutocastOptimWrapper, SimMIMLogProcessor, SimMIMRuntimeInfoHook
from simmim_plugin.engine.hooks.runtime_info_hook import KEPT_VALUES
from simmim_plugin.engine.step_records import paths_of


class Loader(DataLoader):
    def __init__(self, length: int) -> None:
        super().__init__(torch.zeros(length))


@pytest.fixture
def runner_of():
    made = iter(range(100))

    def build(hook, interval=4, length=10):
        weight = torch.nn.Parameter(torch.zeros(3))
        wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD([weight], lr=0.1), clip_grad=dict(max_norm=1.0))
        hub = MessageHub(f'test_runtime_info_{next(made)}')
        wrapper.message_hub = hub
        calls = []
        runner = SimpleNamespace(
            message_hub=hub, optim_wrapper=wrapper, hooks=[hook, LoggerHook(interval)], train_dataloader=Loader(length),
            epoch=0, iter=0, max_epochs=1, max_iters=length,
            calls=calls, call_hook=lambda name, steps: calls.append([step.iteration for step in steps]),
        )  # fmt: skip
        return runner, weight

    return build


def step(runner, weight, hook, i):
    """One iteration with the gradient (i, 0, 0) and the loss i."""
    hook.before_train_iter(runner, i)
    runner.optim_wrapper.update_params((weight * torch.tensor([float(i), 0, 0])).sum())
    hook.after_train_iter(runner, i, None, dict(loss=torch.tensor(float(i), requires_grad=True)))
    runner.iter += 1


def test_histories_equal_mmengines_own(runner_of):
    histories = []
    for hook in (RuntimeInfoHook(), SimMIMRuntimeInfoHook()):
        runner, weight = runner_of(hook)
        hook.before_train(runner)
        for i in range(10):
            step(runner, weight, hook, i)
        hook.after_train(runner)
        histories.append({name: x.data[0].tolist() for name, x in runner.message_hub.log_scalars.items()})
    assert histories[0] == histories[1]
    assert histories[1]['train/grad_norm'] == list(range(10)) == histories[1]['train/loss']


def test_values_come_with_the_log_line_and_at_the_end_of_an_epoch(runner_of):
    hook = SimMIMRuntimeInfoHook()
    runner, weight = runner_of(hook)
    hook.before_train(runner)
    lengths = []
    for i in range(10):
        step(runner, weight, hook, i)
        scalars = runner.message_hub.log_scalars
        lengths.append(len(scalars['train/loss'].data[0]) if 'train/loss' in scalars else 0)
    assert lengths == [0, 0, 0, 4, 4, 4, 4, 8, 8, 10]
    assert runner.calls == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]  # what FaultHook sees


def test_values_of_other_shapes_and_kinds_are_taken(runner_of):
    hook = SimMIMRuntimeInfoHook()
    runner, _ = runner_of(hook, interval=1)
    hook.before_train(runner)
    outputs = dict(loss=torch.tensor([2.0]), integer=torch.tensor(3), number=4.5, array=np.array(1.5))
    hook.after_train_iter(runner, 0, None, outputs)
    found = {name: x.current() for name, x in runner.message_hub.log_scalars.items()}
    assert found == {'train/loss': 2, 'train/integer': 3, 'train/number': 4.5, 'train/array': 1.5}


@pytest.mark.parametrize(
    ('settings', 'intervals', 'windows'),
    [({}, (4,), [4, 4, 2]), ({}, (3, 5), [3, 2, 1, 3, 1]), (dict(window_size=7), (4,), [7, 7, 7])],
)
def test_a_line_averages_over_the_iterations_since_the_last_one(settings, intervals, windows, monkeypatch):
    """In an epoch of ten iterations with a line at its end, unless the config gives the window."""
    formatter, found = SimMIMLogProcessor(**settings), []
    runner = SimpleNamespace(hooks=[LoggerHook(interval, ignore_last=False) for interval in intervals])
    monkeypatch.setattr(LogProcessor, 'get_log_after_iter', lambda self, *_: found.append(self.window_size))
    for i in range(10):
        if i == 9 or any((i + 1) % interval == 0 for interval in intervals):
            formatter.get_log_after_iter(runner, i, 'train')
    assert found == windows


def test_a_checkpoint_in_between_has_all_values(runner_of):
    hook = SimMIMRuntimeInfoHook()
    runner, weight = runner_of(hook)
    hook.before_train(runner)
    for i in range(6):
        step(runner, weight, hook, i)
    checkpoint = dict(message_hub=runner.message_hub.state_dict())
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint['message_hub']['log_scalars']['train/loss'].data[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_wrapper_alone_logs_the_norm_as_mmengine_does(runner_of):
    runner, weight = runner_of(RuntimeInfoHook())
    runner.optim_wrapper.update_params((weight * 3).sum())
    assert runner.message_hub.get_scalar('train/grad_norm').current() == pytest.approx(3 * 3**0.5)


@pytest.mark.slow
def test_a_million_iterations_leave_histories_and_time_flat(runner_of):
    hook = SimMIMRuntimeInfoHook()
    runner, _ = runner_of(hook, interval=50, length=1_000_000)
    runner.optim_wrapper.get_lr = lambda: dict(lr=[0.1])
    hook.before_train(runner)
    loss, seconds, lengths = dict(loss=0.5), [], []
    for part in range(20):
        start = time.process_time()
        for i in range(part * 50_000, (part + 1) * 50_000):
            hook.before_train_iter(runner, i)
            hook.after_train_iter(runner, i, None, loss)
        seconds.append(time.process_time() - start)
        lengths.append(max(len(x.data[0]) for x in runner.message_hub.log_scalars.values()))
    assert max(lengths) <= 2 * KEPT_VALUES + 50
    assert np.median(seconds[-5:]) < 2 * np.median(seconds[:5])
    assert np.median(seconds) / 50_000 < 1e-3  # of a second, per iteration


def test_paths_of_a_batch_in_any_format():
    samples = [SimpleNamespace(img_path='a.jpg'), SimpleNamespace()]
    assert paths_of(dict(data_samples=samples)) == ['a.jpg']
    assert paths_of(dict(img_path=['b.jpg'], data_samples=samples)) == ['b.jpg']
    for batch in (dict(data_samples=torch.zeros(2)), dict(inputs=torch.zeros(2)), torch.zeros(2), dict(img_path=None)):
        assert paths_of(batch) == []
