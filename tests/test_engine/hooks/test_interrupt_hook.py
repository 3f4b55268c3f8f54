"""A terminated training ends the worker processes of its data loader."""

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
from simmim_plugin.config import load_config
from simmim_plugin.engine.hooks import interrupt_hook
from simmim_plugin.engine.hooks.interrupt_hook import InterruptHook
from simmim_plugin.registry import DATASETS


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
    """From the third iteration on, reading hangs, as from a file server that is gone; then the signal is sent."""

    def prepare_data(self, idx):
        if idx.iteration >= 2:
            time.sleep(3)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM] if torch.utils.data.get_worker_info() else [])
            os.kill(os.getppid() if torch.utils.data.get_worker_info() else os.getpid(), signal.SIGTERM)
            time.sleep(1000)
        return super().prepare_data(idx)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_worker_that_is_stuck_does_not_keep_the_signal_from_ending_the_run(
    workers, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(interrupt_hook, 'PATIENCE', 1)
    options = [option for option in SMALL if not option.startswith(('train_dataloader.num_workers', 'custom_hooks'))]
    command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/simmim_vit-tiny_folder.py', '--work-dir',
               tmp_path / 'work', '--cfg-options', f'data_root={image_folder}', *options,
               f'train_dataloader.num_workers={workers}', 'train_dataloader.dataset.type=StuckImages',
               'custom_hooks=[]']  # fmt: skip
    start = time.monotonic()
    code, output, errors = run_streams(*command)
    assert code == 75, (output + errors)[-3000:]
    assert time.monotonic() - start < 60
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
