"""Probes during pretraining: real runs at tiny size, with and without the hook."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.labelled import make_labelled
from helpers.paths import ROOT
from simmim_plugin import ProbeHook
from simmim_plugin.apis import train
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.config import load_config
from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
from simmim_plugin.evaluation.probes import LabelledFolder, run_probes

OPTIONS = {
    'model.backbone.arch.embed_dims': 16,
    'model.backbone.arch.num_layers': 2,
    'model.backbone.arch.num_heads': 2,
    'model.backbone.arch.feedforward_channels': 32,
    'model.backbone.drop_path_rate': 0.3,  # draws random numbers during training
    'train_dataloader.batch_size': 4,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.interval': 1,
    'train_cfg.max_epochs': 2,
}


@pytest.fixture(autouse=True)
def global_state():
    """A runner changes PyTorch's threads, cuDNN and random numbers for the whole process."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def data(tmp_path) -> Path:
    """Twelve labelled images for training, of which pretraining sees no label, and five for evaluation."""
    return make_labelled(tmp_path / 'data', dict(a=7, b=5), dict(a=3, b=2), side=64)


def build(data: Path, work_dir: Path, *hooks: dict, **options: object):
    cfg = load_config(
        str(ROOT / 'configs/simmim_vit-tiny_folder.py'), {**OPTIONS, 'data_root': str(data / 'train'), **options}
    )
    cfg.custom_hooks = list(hooks)
    cfg.experiment_name = f'{work_dir.name}_{work_dir.parent.name}'
    train.prepare(cfg, 'tiny.py', str(work_dir))
    return train.build_runner(cfg)


def scalars(work_dir: Path) -> list[dict]:
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def losses(work_dir: Path) -> list[float]:
    return [line['loss'] for line in scalars(work_dir) if 'loss' in line]


@pytest.mark.slow
def test_scores_are_logged_and_the_training_is_unchanged(data, tmp_path):
    build(data, tmp_path / 'without').train()
    hook = dict(type='ProbeHook', data_root=str(data), interval=1, k=3, workers=0)
    runner = build(data, tmp_path / 'with', hook)
    modes = []
    runner.register_hook(type('Modes', (ProbeHook.__base__,), {
        'before_train_iter': lambda self, runner, **kwargs: modes.append({m.training for m in runner.model.modules()})
    })())  # fmt: skip
    runner.train()

    assert modes == [{True}] * 6
    assert losses(tmp_path / 'without') == losses(tmp_path / 'with') and len(set(losses(tmp_path / 'with'))) == 6
    for epoch in (1, 2):
        one, other = (load_file(tmp_path / name / f'epoch_{epoch}.pth') for name in ('without', 'with'))
        assert one['state_dict'].keys() == other['state_dict'].keys()
        for name, value in one['state_dict'].items():
            assert torch.equal(value, other['state_dict'][name]), name
        for moments, others in zip(*(c['optimizer']['state'].values() for c in (one, other)), strict=True):
            assert torch.equal(moments['exp_avg'], others['exp_avg'])

    # The scores are those of the checkpoint of that epoch.
    found = [line for line in scalars(tmp_path / 'with') if 'probe/knn' in line]
    assert [line['step'] for line in found] == [1, 2]
    log = next((tmp_path / 'with').glob('*/*.log')).read_text()
    for line in found:
        extractor = FeatureExtractor(tmp_path / 'with' / f'epoch_{line["step"]}.pth')
        expected = run_probes(extractor, LabelledFolder(data), k=3)
        for name, score in expected.items():
            assert line[f'probe/{name}'] == pytest.approx(score.top1)
            assert line[f'probe/{name}_balanced'] == pytest.approx(score.balanced)
        listed = ', '.join(f'{n} {s.top1:.1f} % (balanced {s.balanced:.1f} %)' for n, s in expected.items())
        assert f'Probes, epoch {line["step"]}: {listed}; ' in log


@pytest.mark.slow
def test_interval_blocks_and_shares(data, tmp_path):
    hook = dict(type='ProbeHook', data_root=str(data), interval=2, blocks=[1, 2], linear=False, fraction=0.4, workers=1)
    runner = build(data, tmp_path / 'run', hook, **{'train_cfg.max_epochs': 3})
    runner.train()
    found = [line for line in scalars(tmp_path / 'run') if any(key.startswith('probe/') for key in line)]
    assert [line['step'] for line in found] == [2, 3]  # and the last
    names = {f'probe/block{b}_pooled_knn{more}' for b in (1, 2) for more in ('', '_balanced')}
    assert all({key for key in line if key.startswith('probe/')} == names for line in found)
    # 3 of 7 and 2 of 5 images have a label; k is 20, so that all vote.
    probe = next(hook for hook in runner.hooks if isinstance(hook, ProbeHook))
    assert np.bincount(probe.folder.labels['train']).tolist() == [3, 2]
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert len(re.findall(r'Probes, epoch \d', log)) == 2


def test_errors_come_before_training(data, tmp_path):
    for arguments, message in (
        (dict(interval=0), 'ProbeHook.interval=0 must be a whole number of at least 1'),
        (dict(linear=None), 'ProbeHook.linear=None must be True or False'),
        (dict(workers=-1), 'ProbeHook.workers=-1 must be a whole number of at least 0'),
        (dict(fraction=0), r'fraction=0 must be a number in \(0, 1\]; 0.1 keeps 10 % of the labels'),
        (dict(k=0), 'ProbeHook.k=0 must be a whole number of at least 1; e.g. 20'),
        (dict(temperature=0), 'ProbeHook.temperature=0 must be a number above 0; e.g. 0.07'),
    ):
        with pytest.raises(ValueError, match=message):
            ProbeHook(str(data), **arguments)
    with pytest.raises(ValueError, match='needs the folders train and val, with the same class folders in both'):
        build(data, tmp_path / 'folder', dict(type='ProbeHook', data_root=str(data / 'train')))
    runner = build(data, tmp_path / 'block', dict(type='ProbeHook', data_root=str(data), interval=1, blocks=3))
    with pytest.raises(ValueError, match=r'blocks=.*3.*: the model has blocks 1 \.\.\. 2'):
        runner.train()
    assert runner.iter == 0 and not list((tmp_path / 'block').glob('*.pth'))
