"""Several gloo ranks through tools/dist_train.sh, against one process on the joint batch."""

import subprocess
import sys

import pytest

from helpers.paths import ROOT
from helpers.processes import gloo_environment
from simmim_plugin.checkpoints.files import load_file

# One step of plain SGD at rate 1 without decay, so the change of a weight is its (averaged) gradient. Crops and masks
# depend on the index of the sample among all samples, so all runs see the same joint batch.
CONFIG = """
_base_ = {base!r}
model = dict(backbone=dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2), drop_path_rate=0.0))
train_dataloader = dict(num_workers=1)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=1.0))
auto_scale_lr = dict(enable=False)
param_scheduler = []
custom_hooks = [dict(type='ReconstructionHook', interval=1, num_images=2, num_measured=2)]
train_cfg = dict(max_epochs=1)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""


def assert_same_gradients(still, one, many):
    """Compare the gradients of two runs with one step of SGD at rate 1; `still` is the state without a step."""
    assert many.keys() == one.keys()
    for name in one:
        gradients = [(still[name] - state[name]).double() for state in (one, many)]
        scale = gradients[0].abs().max().clamp_min(1e-6)
        assert ((gradients[0] - gradients[1]).abs().max() / scale).item() < 1e-3, name
        assert gradients[0].any(), name


@pytest.mark.slow
def test_averaged_gradient_of_processes_is_that_of_the_joint_batch(image_folder, tmp_path):
    config = tmp_path / 'one_step.py'
    config.write_text(CONFIG.format(base=str(ROOT / 'configs/simmim_vit-tiny_folder.py')))

    def step(name, processes, batch, *options):
        launcher = ['bash', ROOT / 'tools/dist_train.sh', config, processes]
        if processes == 1:
            launcher = [sys.executable, ROOT / 'tools/train.py', config]
        command = [*launcher, '--work-dir', tmp_path / name, '--cfg-options', f'data_root={image_folder}']
        command = [str(word) for word in (*command, f'train_dataloader.batch_size={batch}', *options)]
        result = subprocess.run(
            command, env=gloo_environment(), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
        return load_file(tmp_path / name / 'epoch_1.pth')['state_dict'], result.stdout + result.stderr

    one, _ = step('one', 1, 12)
    still, _ = step('still', 1, 12, 'optim_wrapper.optimizer.lr=0.0')
    for processes in (2, 4):
        many, log = step(f'with_{processes}', processes, 12 // processes)
        assert f'Total batch 12 = {processes} processes x {12 // processes} images x 1 accumulated' in log
        assert_same_gradients(still, one, many)
        assert (
            log.count('at the start ->') == 1 and (tmp_path / f'with_{processes}/reconstructions/epoch_1.png').exists()
        )

    accumulated, log = step('accumulated', 1, 4, 'optim_wrapper.accumulative_counts=3')
    assert 'Total batch 12 = 1 processes x 4 images x 3 accumulated; 3 iterations per epoch' in log
    assert_same_gradients(still, one, accumulated)

    # Two machines, as two launchers on the loopback address.
    environment = gloo_environment()
    command = ['bash', ROOT / 'tools/dist_train.sh', config, '1', '--work-dir', tmp_path / 'nodes', '--cfg-options']
    command = [str(word) for word in (*command, f'data_root={image_folder}', 'train_dataloader.batch_size=6')]
    launchers = [
        subprocess.Popen(
            command, env={**environment, 'NNODES': '2', 'NODE_RANK': rank}, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in ('1', '0')
    ]  # fmt: skip
    outputs = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    assert 'Total batch 12 = 2 processes x 6 images' in outputs[1]
    assert_same_gradients(still, one, load_file(tmp_path / 'nodes/epoch_1.pth')['state_dict'])


@pytest.mark.slow
def test_an_error_of_a_rank_is_printed_by_the_launcher(tmp_path):
    environment = gloo_environment()
    command = ['bash', ROOT / 'tools/dist_train.sh', ROOT / 'configs/simmim_vit-tiny_folder.py', 2]
    command = [str(word) for word in (*command, '--work-dir', tmp_path, '--cfg-options', 'data_root=/nowhere')]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    summary = result.stderr[result.stderr.index('Root Cause') :]
    assert "data_root='/nowhere' is not a folder" in summary
