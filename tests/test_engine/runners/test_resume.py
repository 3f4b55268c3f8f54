"""Which checkpoints a training resumes from, which it rejects, and checkpoints on a full disk."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import run
from helpers.paths import ROOT
from helpers.runners import runner
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.engine.runners.resume import differences
from simmim_plugin.engine.runners.work_dir import is_intact, newest_checkpoint
from simmim_plugin.utils.files import whole_file

pytestmark = pytest.mark.core


def test_differences_by_hand():
    old = dict(arch='base', lr=[1e-4, 2e-4], masks=dict(unit=32, ratio=0.6), with_cp=False, steps=(1, 2))
    new = dict(arch='small', lr=[1e-4, 3e-4], masks=dict(unit=32), with_cp=True, steps=[1, 2])
    assert differences(old, old, 'model') == []
    assert differences(old, new, 'model') == [
        "model.arch is 'base' in the checkpoint and 'small' now",
        'model.lr[1] is 0.0002 in the checkpoint and 0.0003 now',
        'model.masks.ratio is 0.6 in the checkpoint and None now',
    ]
    assert differences([1], [1, 2], 'steps') == ['steps has 1 entries in the checkpoint and 2 now']


@pytest.mark.parametrize('failure', ['write', 'sync'])
def test_a_file_that_cannot_be_written_leaves_the_one_before(failure, tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    path.write_text('before')

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'), whole_file(path) as part:
        part.write_text('half')
        if failure == 'write':
            full(0)
    assert path.read_text() == 'before' and list(tmp_path.iterdir()) == [path]


def test_old_checkpoints_are_removed_after_the_new_one_is_written(tmp_path, monkeypatch):
    """The disk is full at the second checkpoint: the real write fails, by a limit of the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    first = runner(tmp_path, 1)
    first.train()
    size = (tmp_path / 'epoch_1.pth').stat().st_size
    second = runner(tmp_path, 2, resume=True)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
        with pytest.raises(OSError, match=r'checkpoint .*epoch_2.pth cannot be written \(File too large\)'):
            second.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth'] and is_intact(tmp_path / 'epoch_1.pth')
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')
    runner(tmp_path, 2, resume=True).train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_2.pth']


SMALL = [
    'model.backbone.arch.embed_dims=32', 'model.backbone.arch.num_layers=2', 'model.backbone.arch.num_heads=2',
    'train_dataloader.batch_size=4', 'train_dataloader.num_workers=1', 'default_hooks.checkpoint.interval=1',
    'auto_scale_lr.base_batch_size=4', 'custom_hooks.0.num_images=2', 'custom_hooks.0.num_measured=2',
]  # fmt: skip


def train(work_dir: Path, images: Path, *options: str, flags: tuple = (), launcher: tuple = (), **kwargs: Any):
    """Start a training as a user does."""
    launcher = launcher or (sys.executable, ROOT / 'tools/train.py')
    command = [launcher[0], launcher[1], ROOT / 'configs/simmim_vit-tiny_folder.py', *launcher[2:]]
    command += ['--work-dir', work_dir, *flags, '--cfg-options', f'data_root={images}', *SMALL, *options]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, 'PORT': '29571'}
    return subprocess.Popen([str(word) for word in command], env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, **kwargs)  # fmt: skip


def test_checkpoints_of_another_training_are_rejected(image_folder, tmp_path):
    work = tmp_path / 'work'
    config = tmp_path / 'hooks.py'
    hooks = [dict(type='ReconstructionHook', interval=10), dict(type='MaskRatioHook', start=0.4), dict(type='EMAHook')]
    config.write_text(f'_base_ = {str(ROOT / "configs/simmim_vit-tiny_folder.py")!r}\ncustom_hooks = {hooks}\n')
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', work]
    options = ['--cfg-options', f'data_root={image_folder}', *SMALL]
    run(*command, *options, 'train_cfg.max_epochs=1')
    for option, words in (
        ('custom_hooks.1.start=0.5', 'custom_hooks.MaskRatioHook.start is 0.4 in the checkpoint and 0.5 now'),
        ('custom_hooks.2.type=ProgressHook', 'custom_hooks.EMAHook is {} in the checkpoint and None now'),
        ('optim_wrapper.optimizer.lr=0.1', 'optim_wrapper.optimizer.lr is 0.0015 in the checkpoint and 0.1 now'),
        ('train_dataloader.batch_size=2', 'batch_of_an_iteration is 4 in the checkpoint and 2 now'),
        ('param_scheduler.1.end=50', 'param_scheduler[1].end is 60 in the checkpoint and 50 now'),
        ('model.head.loss.criterion=l2', "model.head.loss.criterion is 'l1' in the checkpoint and 'l2' now"),
    ):
        output = run(*command, '--resume', *options, option, ok=False)
        assert f'error: the checkpoint is of another training: {words}' in output, output
        assert 'load_from=CHECKPOINT' in output
    assert (work / 'epoch_1.pth').exists()


@pytest.mark.slow
def test_all_processes_stop_together_and_workers_that_die_of_the_signal_do_no_harm(image_folder, tmp_path):
    """As Slurm sends it: to the launcher, all ranks and their workers."""
    work = tmp_path / 'work'
    launcher = ('bash', ROOT / 'tools/dist_train.sh', 2)
    options = ('train_cfg.max_epochs=1000', 'train_dataloader.batch_size=2')
    process = train(work, image_folder, *options, launcher=launcher, start_new_session=True)
    while not (work / 'epoch_3.pth').exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output[-3000:]
    (path,) = work.glob('iter_*.pth')
    assert f'{path} is written. Continue with {ROOT}/tools/dist_train.sh {ROOT}/configs/' in output and is_intact(path)
    process = train(work, image_folder, *options, f'train_cfg.max_epochs={load_file(path)["meta"]["epoch"] + 2}',
                    launcher=launcher, flags=('--resume',))  # fmt: skip
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and f'iter: {path.stem[5:]}' in output, output[-3000:]
