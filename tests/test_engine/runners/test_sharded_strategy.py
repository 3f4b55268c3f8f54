"""Sharded training (FSDP) on two gloo ranks: losses and checkpoints equal those of data-parallel training."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.paths import ROOT
from helpers.processes import gloo_environment
from simmim_plugin import ShardedStrategy
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.checkpoints.loading import load_pretrained

pytestmark = pytest.mark.slow

CONFIG = """
_base_ = {base!r}
model = dict(backbone=dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2), drop_path_rate=0.0, with_cp=True))
train_dataloader = dict(batch_size=2, num_workers=1)
optim_wrapper = dict(clip_grad=dict(max_norm=0.5))
auto_scale_lr = dict(enable=False)
param_scheduler = [dict(type='LinearWarmupLR', start_factor=0.1, end=4, convert_to_iter_based=True)]
custom_hooks = [dict(type='ReconstructionHook', interval=2, num_images=2, num_measured=4)]
train_cfg = dict(max_epochs=4)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1), logger=dict(interval=1))
"""
SHARDED = """
runner_type = 'FlexibleRunner'
strategy = dict(type='simmim_plugin.ShardedStrategy')
"""


@pytest.fixture
def train(image_folder, tmp_path):
    """Run a training: name of its work dir, sharded or not, number of processes, options -> losses, norms, output."""

    def run(name, sharded, processes=2, *options, flags=(), code=0, more=''):
        config = tmp_path / f'{"sharded" if sharded else "ddp"}.py'
        text = CONFIG.format(base=str(ROOT / 'configs/simmim_vit-tiny_folder.py'))
        config.write_text(text + (SHARDED if sharded else '') + more)
        launcher = ['bash', ROOT / 'tools/dist_train.sh', config, processes]
        if processes == 1:
            launcher = [sys.executable, ROOT / 'tools/train.py', config]
        data = ['--cfg-options', f'data_root={image_folder}', *options]
        command = [str(word) for word in (*launcher, '--work-dir', tmp_path / name, *flags, *data)]
        result = subprocess.run(
            command, env=gloo_environment(), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        output = result.stdout + result.stderr
        assert result.returncode == code, output[-3000:]
        logs = sorted((tmp_path / name).glob('*/vis_data/scalars.json'))
        lines = [json.loads(line) for line in logs[-1].read_text().splitlines()] if logs else []
        return [(line['loss'], line['grad_norm']) for line in lines if 'loss' in line], output

    return run


def assert_same_weights(one: Path, other: Path, tolerance: float) -> None:
    first, second = load_file(one)['state_dict'], load_file(other)['state_dict']
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (value - second[name]).abs().max() <= tolerance, name


def test_losses_and_checkpoints_are_those_of_data_parallel_training(train, tmp_path):
    ddp, _ = train('ddp', False)
    sharded, output = train('sharded', True)
    assert len(ddp) == len(sharded) == 12
    torch.testing.assert_close(torch.tensor(sharded), torch.tensor(ddp), rtol=1e-4, atol=0)
    assert 'FSDPSimMIM' not in (tmp_path / 'sharded/sharded.py').read_text() and 'at the start ->' in output
    assert (tmp_path / 'sharded/reconstructions/epoch_4.png').exists()
    assert_same_weights(tmp_path / 'ddp/epoch_4.pth', tmp_path / 'sharded/epoch_4.pth', 1e-4)

    model, _ = load_pretrained(tmp_path / 'sharded/epoch_4.pth')  # one process, without a process group
    assert model.reconstruct(torch.zeros(1, 3, 64, 64), torch.ones(1, 8, 8)).isfinite().all()

    # A sharded run and a single process resume from the sharded checkpoint as if never interrupted.
    for name, as_sharded, processes, batch in (('again', True, 2, 2), ('alone', False, 1, 4)):
        start = tmp_path / 'sharded/epoch_2.pth'
        losses, _ = train(
            name, as_sharded, processes, f'train_dataloader.batch_size={batch}', flags=('--resume', start)
        )
        assert len(losses) == 6
        assert_same_weights(tmp_path / 'sharded/epoch_4.pth', tmp_path / name / 'epoch_4.pth', 1e-4)
        if as_sharded:
            torch.testing.assert_close(torch.tensor(losses), torch.tensor(sharded[6:]), rtol=1e-6, atol=0)
    # With one process nothing is sharded. (The log's losses are of the first process's images; the norm is of all.)
    one, _ = train('one', True, 1, 'train_dataloader.batch_size=4')
    torch.testing.assert_close(torch.tensor(one)[:, 1], torch.tensor(sharded)[:, 1], rtol=1e-4, atol=0)
    # And the other way round.
    losses, _ = train('from_ddp', True, 2, flags=('--resume', tmp_path / 'ddp/epoch_2.pth'))
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(ddp[6:]), rtol=1e-4, atol=0)


def test_wrong_layers_are_named():
    for layers in ('Block', None, [1]):
        words = re.escape(f"ShardedStrategy.layers={layers!r} must be a list of names; e.g. ['Block']")
        with pytest.raises(ValueError, match=f'^{words}$'):
            ShardedStrategy(layers)


def test_combinations_that_are_rejected(train):
    _, output = train('compiled', True, flags=('--compile',), code=1)
    assert '--compile (CompileHook) cannot be combined with ShardedStrategy' in output
    _, output = train('averaged', True, code=1, more="custom_hooks = [dict(type='EMAHook')]")
    assert 'EMAHook cannot be combined with ShardedStrategy' in output
    _, output = train('other_layers', True, 2, "strategy.layers=['Layer']", code=1)
    assert "layers=('Layer',) of ShardedStrategy: SimMIM has no such modules" in output
