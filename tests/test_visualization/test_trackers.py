"""Weights & Biases and MLflow, by one line of config each, without a network (TensorBoard: test_cli.py)."""

import sys

import pytest

from helpers.commands import SMALL, run, scalars
from helpers.paths import ROOT

pytestmark = pytest.mark.slow

LEAF = """_base_ = {base!r}
visualizer = dict(vis_backends=[*_base_.visualizer.vis_backends, dict({backend})])
"""


CONFIG = ROOT / 'configs/simmim_vit-tiny_folder.py'


def train(images, tmp_path, *options, backend=None):
    """One epoch, into `run`."""
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(LEAF.format(base=str(CONFIG), backend=backend))
    command = (sys.executable, ROOT / 'tools/train.py', leaf if backend else CONFIG, '--work-dir', tmp_path / 'run')
    run(*command, '--cfg-options', f'data_root={images}', *SMALL, 'train_cfg.max_epochs=1', *options)


def test_weights_and_biases(image_folder, tmp_path):
    pytest.importorskip('wandb')
    backend = "type='WandbVisBackend', init_kwargs=dict(mode='offline', project='a')"
    train(image_folder, tmp_path, backend=backend)
    (log,) = (tmp_path / 'run').rglob('run-*.wandb')
    content = log.read_bytes()
    for name in (b'fixed/loss_visible_mean', b'base_lr', b'img_s'):
        assert name in content
    assert len(list(log.parent.rglob('reconstruction_*.png'))) == 2  # before and after the epoch


def test_mlflow(image_folder, tmp_path):
    mlflow = pytest.importorskip('mlflow')
    train(image_folder, tmp_path, backend="type='simmim_plugin.MLflowVisBackend'")
    (database,) = (tmp_path / 'run').rglob('mlflow.db')
    client = mlflow.MlflowClient(tracking_uri=f'sqlite:///{database}')
    (found,) = client.search_runs([client.get_experiment_by_name('simmim').experiment_id])
    losses = [point.value for point in client.get_metric_history(found.info.run_id, 'loss')]
    assert losses == pytest.approx([line['loss'] for line in scalars(tmp_path / 'run')], rel=1e-6)
    pictures = sorted(path.name for path in (database.parent / 'mlflow_artifacts').rglob('reconstruction_*.png'))
    assert pictures == ['reconstruction_0.png', 'reconstruction_1.png']
    assert not (ROOT / 'mlruns').exists()


def test_another_tracker_from_the_command_line(image_folder, tmp_path, monkeypatch):
    """One option, in place of TensorBoard."""
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    train(image_folder, tmp_path, 'visualizer.vis_backends.1.type=WandbVisBackend')
    assert list((tmp_path / 'run').rglob('run-*.wandb')) and not list((tmp_path / 'run').rglob('events.out*'))
