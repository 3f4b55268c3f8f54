"""Two gloo processes on one machine through tools/dist_train.sh, against one process on the joint batch."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import ROOT

from simmim_plugin.checkpoint import load_file

# One step of plain SGD at rate 1 without decay, so that the change of a weight is its (averaged) gradient.
# Each image's crop and mask depend on its index only, so that both runs see the same joint batch.
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['fixed_samples'])
model = dict(backbone=dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2), drop_path_rate=0.0))
train_dataloader = dict(
    num_workers=0, persistent_workers=False, sampler=dict(shuffle=False), dataset=dict(type='FixedSamples')
)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=1.0))
auto_scale_lr = dict(enable=False)
param_scheduler = []
custom_hooks = []
train_cfg = dict(max_epochs=1)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""
DATASET = """
from mmengine.registry import DATASETS
from simmim_plugin import ImageFolder
from simmim_plugin.reconstruction_hook import fixed_seed

@DATASETS.register_module()
class FixedSamples(ImageFolder):
    def prepare_data(self, idx):
        with fixed_seed(idx):
            return super().prepare_data(idx)
"""


@pytest.mark.slow
def test_averaged_gradient_of_two_processes_is_that_of_the_joint_batch(image_folder, tmp_path):
    config = tmp_path / 'one_step.py'
    config.write_text(CONFIG.format(base=str(ROOT / 'configs/simmim_vit-tiny_folder.py')))
    (tmp_path / 'fixed_samples.py').write_text(DATASET)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, 'PORT': str(port), 'PYTHONPATH': str(tmp_path),
    }  # fmt: skip

    def step(name, launcher, batch, *options):
        command = [*launcher, '--work-dir', tmp_path / name, '--cfg-options', f'data_root={image_folder}']
        command = [str(word) for word in (*command, f'train_dataloader.batch_size={batch}', *options)]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
        return load_file(tmp_path / name / 'epoch_1.pth')['state_dict'], result.stdout + result.stderr

    two, log = step('two', ['bash', ROOT / 'tools/dist_train.sh', config, 2], 6)
    assert 'Total batch 12 = 2 processes x 6 images x 1 accumulated; 1 iterations per epoch' in log
    one, _ = step('one', [sys.executable, ROOT / 'tools/train.py', config], 12)
    still, _ = step('still', [sys.executable, ROOT / 'tools/train.py', config], 12, 'optim_wrapper.optimizer.lr=0.0')
    assert two.keys() == one.keys()
    for name in one:
        gradients = [(still[name] - state[name]).double() for state in (one, two)]
        scale = gradients[0].abs().max().clamp_min(1e-6)
        assert ((gradients[0] - gradients[1]).abs().max() / scale).item() < 1e-3, name
        assert name.endswith('mask_token') or gradients[0].any(), name
