"""What signals do to a training and to the workers of its data loader."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.commands import SMALL, run_streams
from helpers.paths import ROOT
from helpers.processes import command_of
from simmim_plugin import ImageFolder
from simmim_plugin.apis import train
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.config import load_config
from simmim_plugin.engine.hooks import interrupt_hook
from simmim_plugin.engine.hooks.interrupt_hook import InterruptHook
from simmim_plugin.registry import DATASETS
from simmim_plugin.utils import files


@pytest.mark.parametrize(
    ('signals', 'words'),
    [
        (['SIGSOON'], r"InterruptHook.signals='SIGSOON' is unknown; choose one of 'SIGABRT', .*'SIGTERM', .*"),
        (['SIGTERM', 'SIGKILL'], "InterruptHook.signals='SIGKILL' is unknown; choose one of .*"),
        ('SIGTERM', r"InterruptHook.signals='SIGTERM' must be a list of names; e.g. \['SIGTERM', 'SIGUSR1'\]"),
        ([15], r'InterruptHook.signals=\[15\] must be a list of names; .*'),
    ],
)
def test_wrong_signals_are_named(signals, words):
    with pytest.raises(ValueError, match=f'^{words}$'):
        InterruptHook(signals)


@pytest.mark.slow
def test_no_worker_outlives_a_terminated_training(image_folder, tmp_path):
    options = {
        'data_root': image_folder, 'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True, 'default_hooks.logger.interval': 1,
        'train_cfg.max_epochs': 10_000,
    }  # fmt: skip
    command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/simmim_vit-tiny_folder.py']
    command += ['--work-dir', tmp_path / 'work', '--cfg-options', *(f'{k}={v}' for k, v in options.items())]
    log = tmp_path / 'log'
    with (
        log.open('w') as output,
        subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT) as training,
    ):
        for _ in range(1200):
            if '[3][3/3]' in log.read_text() or training.poll() is not None:
                break
            time.sleep(0.1)
        tasks = Path(f'/proc/{training.pid}/task')
        children = {pid for task in tasks.iterdir() for pid in (task / 'children').read_text().split()}
        workers = [pid for pid in children if 'train.py' in command_of(pid)]
        training.terminate()
        assert training.wait(timeout=60) == 75  # see InterruptHook
    assert len(workers) == 2, log.read_text()[-2000:]
    for _ in range(100):
        left = [pid for pid in workers if command_of(pid)]
        if not left:
            break
        time.sleep(0.1)
    assert not left


@DATASETS.register_module()
class StuckImages(ImageFolder):
    """From an iteration on, reading hangs, as from a file server that is gone; then the signal is sent."""

    first = 2

    def prepare_data(self, idx):
        if idx.iteration >= self.first:
            time.sleep(3)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM] if torch.utils.data.get_worker_info() else [])
            os.kill(os.getppid() if torch.utils.data.get_worker_info() else os.getpid(), signal.SIGTERM)
            time.sleep(1000)
        return super().prepare_data(idx)


@pytest.mark.parametrize(('workers', 'first'), [(0, 2), (2, 2), (2, 0)])
def test_a_worker_that_is_stuck_does_not_keep_the_signal_from_ending_the_run(
    workers, first, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(interrupt_hook, 'PATIENCE', 1)
    monkeypatch.setattr(StuckImages, 'first', first)
    options = [option for option in SMALL if not option.startswith(('train_dataloader.num_workers', 'custom_hooks'))]
    command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/simmim_vit-tiny_folder.py', '--work-dir',
               tmp_path / 'work', '--cfg-options', f'data_root={image_folder}', *options,
               f'train_dataloader.num_workers={workers}', 'train_dataloader.dataset.type=StuckImages',
               'custom_hooks=[]']  # fmt: skip
    start = time.monotonic()
    code, output, errors = run_streams(*command)
    assert time.monotonic() - start < 60
    if not first:  # there is nothing to save
        assert code == 128 + signal.SIGTERM and 'Stopped without a checkpoint' in output + errors
        return
    assert code == 75, (output + errors)[-3000:]
    assert (tmp_path / 'work/iter_2.pth').exists() and 'stopped after iteration 2; ' in output + errors
    assert torch.load(tmp_path / 'work/iter_2.pth', weights_only=True)['meta']['iter'] == 2


def test_after_the_training_the_signal_ends_the_workers(image_folder, tmp_path):
    """Required where the process continues: the garbage collector ends the workers by SIGTERM."""
    options = {
        'data_root': str(image_folder), 'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': 1,
        'train_dataloader.persistent_workers': True, 'train_cfg.max_epochs': 1, 'log_level': 'ERROR',
    }  # fmt: skip
    config = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
    runner = train.build_runner(train.prepare(load_config(config, options), config, str(tmp_path)))
    runner.train()
    (worker,) = runner.train_dataloader._iterator._workers
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


@DATASETS.register_module()
class SignallingImages(ImageFolder):
    """In the third iteration a signal is sent; by `signal_in_save` a second one, while the checkpoint is written."""

    number = 0

    def prepare_data(self, idx):
        if getattr(idx, 'iteration', 0) == 2 and self.number:  # an int for the fixed images of hooks
            os.kill(os.getpid(), self.number)
            type(self).number = 0
        return super().prepare_data(idx)


@pytest.mark.parametrize(
    ('first', 'second', 'code', 'written'),
    [
        ('SIGINT', None, 130, True), ('SIGINT', 'SIGINT', 130, False), ('SIGINT', 'SIGTERM', 130, True),
        ('SIGHUP', 'SIGHUP', 75, True), ('SIGTERM', 'SIGTERM', 75, True), ('SIGTERM', 'SIGINT', 75, True),
    ],
)  # fmt: skip
def test_a_second_signal_during_the_save(first, second, code, written, image_folder, tmp_path, monkeypatch):
    """Only after Ctrl-C, a second Ctrl-C ends the training before the checkpoint is whole; nothing is left then."""
    sync = files._sync

    def signal_in_save(path):
        if second and path.name.startswith('.iter_'):
            os.kill(os.getpid(), signal.Signals[second])
        sync(path)

    monkeypatch.setattr(files, '_sync', signal_in_save)
    monkeypatch.setattr(SignallingImages, 'number', signal.Signals[first])
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is SIG_IGN
    command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/simmim_vit-tiny_folder.py', '--work-dir',
               tmp_path / 'work', '--cfg-options', f'data_root={image_folder}', *SMALL,
               'train_dataloader.dataset.type=SignallingImages']  # fmt: skip
    ended, output, errors = run_streams(*command)
    signal.signal(signal.SIGINT, previous)
    assert ended == code, (output + errors)[-3000:]
    left = {path.name for path in tmp_path.glob('work/*.pth')} | {path.name for path in tmp_path.glob('work/.*.part')}
    assert left == ({'iter_3.pth'} if written else set())
    if written:
        assert load_file(tmp_path / 'work/iter_3.pth')['meta']['iter'] == 3
        assert 'Continue with python tools/train.py ' in output + errors
    else:
        assert errors.endswith('interrupted\n')
    assert 'Traceback' not in errors


@pytest.mark.parametrize('name', ['SIGHUP', 'SIGINT'])
def test_what_nohup_and_background_jobs_ignore_stays_ignored(name, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(SignallingImages, 'number', signal.Signals[name])
    previous = signal.signal(signal.Signals[name], signal.SIG_IGN)
    command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/simmim_vit-tiny_folder.py', '--work-dir',
               tmp_path / 'work', '--cfg-options', f'data_root={image_folder}', *SMALL,
               'train_dataloader.dataset.type=SignallingImages', 'train_cfg.max_epochs=2']  # fmt: skip
    code, output, errors = run_streams(*command)
    signal.signal(signal.Signals[name], previous)
    assert code == 0, (output + errors)[-3000:]
    assert {path.name for path in tmp_path.glob('work/*.pth')} == {'epoch_1.pth', 'epoch_2.pth'}


def seed_slowly(seed):
    """PyTorch calls it in a worker before `worker_init_fn`, and has its own handler of SIGTERM by then."""
    if torch.utils.data.get_worker_info() is None and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGTERM)
    return torch.default_generator.manual_seed(seed)


def test_a_signal_does_not_end_a_worker_that_starts(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr('torch.utils.data._utils.worker.torch.manual_seed', seed_slowly)
    options = {
        'data_root': str(image_folder), 'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': 1,
        'train_cfg.max_epochs': 1, 'log_level': 'ERROR',
    }  # fmt: skip
    config = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
    runner = train.build_runner(train.prepare(load_config(config, options), config, str(tmp_path)))
    runner.train()
    assert runner.iter == 3
