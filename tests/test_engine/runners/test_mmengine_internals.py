"""Both of MMEngine's runners have what the package uses: the public protocol, and the private attributes."""

import multiprocessing
import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import DataLoader

from helpers.models import TINY
from helpers.paths import ROOT
from simmim_plugin import SimMIM
from simmim_plugin.engine.runners import mmengine_internals as internals
from simmim_plugin.utils.runner_protocol import TrainingRunner


@pytest.fixture(params=[Runner, FlexibleRunner])
def runner_of(request, tmp_path):
    def build(**settings):
        loader = DataLoader([dict(inputs=torch.zeros(3, 64, 64), mask=torch.ones(4, 4))] * 2, batch_size=2)
        return request.param(
            model=SimMIM(TINY), work_dir=str(tmp_path), train_dataloader=loader, experiment_name=str(time.time_ns()),
            train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
            log_level='ERROR', **settings,
        )  # fmt: skip

    return build


class Check(Hook):
    fits = False

    def before_train(self, runner):
        self.fits = isinstance(runner, TrainingRunner)


def test_both_runners_have_the_protocol(runner_of):
    runner, check = runner_of(), Check()
    runner.register_hook(check)
    runner.train()
    assert check.fits
    assert not isinstance(SimpleNamespace(**{name: None for name in dir(runner) if name != 'seed'}), TrainingRunner)


def test_settings_of_a_runner_are_read(runner_of):
    runner = runner_of(randomness=dict(seed=3, diff_rank_seed=True), resume=True)
    assert internals.has_seed_per_rank(runner)
    assert internals.is_resuming(runner)
    runner = runner_of(randomness=dict(seed=3))
    assert not internals.has_seed_per_rank(runner)
    assert not internals.is_resuming(runner)


def test_the_learning_rate_is_scaled_by_a_later_setting(runner_of):
    """A batch of two, for a rate that was found with one."""
    runner = runner_of()
    internals.set_auto_scale_lr(runner, dict(enable=True, base_batch_size=1))
    runner.train()
    assert runner.optim_wrapper.get_lr()['lr'] == [1.0]


def test_a_config_is_written_under_another_name():
    cfg = Config.fromfile(ROOT / 'configs/quickstart.py')
    internals.set_filename(cfg, '/elsewhere/renamed.py')
    assert cfg.filename == '/elsewhere/renamed.py'


def test_workers_end():
    loader = DataLoader(torch.arange(4), num_workers=1, persistent_workers=True)
    assert next(iter(loader)).item() == 0
    workers = multiprocessing.active_children()
    assert len(workers) == 1
    internals.end_workers(loader)
    assert not workers[0].is_alive()
    internals.end_workers(DataLoader(torch.arange(4)))  # without workers there is nothing to end


def test_fused_optimizers_skip_steps_themselves():
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    fused, plain = (torch.optim.AdamW([weight], fused=fused) for fused in (True, False))
    assert not internals.skips_steps_itself(plain)
    assert internals.skips_steps_itself(fused)
    fused.found_inf = torch.ones(())  # type: ignore[attr-defined] # as GradScaler does
    fused.step()
    assert weight.item() == 1
