"""Which checkpoint in a work dir a training resumes from, and which files there it may write and remove."""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from torch.utils.data import DataLoader

from helpers.commands import SMALL, run
from helpers.commands import train as train_tiny
from helpers.paths import DATA, ROOT
from helpers.processes import children_of, gloo_environment
from helpers.runners import runner
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.engine.runners import work_dir
from simmim_plugin.engine.runners.work_dir import has_own_name, is_intact, newest_checkpoint

pytestmark = pytest.mark.core


def checkpoint(path: Path, iteration: object, run_id: str | None = None, **parts: object) -> Path:
    """Write a checkpoint of that many iterations."""
    meta = {'epoch': 1, 'iter': iteration, **({'run_id': run_id} if run_id else {})}
    torch.save({'meta': meta, 'optimizer': {}, 'state_dict': {'x': torch.rand(1000)}, **parts}, path)
    return path


def flip_a_bit(path: Path) -> None:
    """In the middle of the tensor, where PyTorch does not notice it."""
    data = bytearray(path.read_bytes())
    at = data.index(load_file(path)['state_dict']['x'].numpy().tobytes()) + 2000
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def logged(monkeypatch):
    """The lines that are logged."""
    lines: list[str] = []
    monkeypatch.setattr(work_dir, 'print_log', lambda text, *args: lines.append(text))
    return lines


def names_last(folder: Path, name: str) -> None:
    (folder / 'last_checkpoint').write_text(f'/moved/from/elsewhere/{name}')


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob('*.pth')}


def test_checkpoints_that_another_training_removes_meanwhile(tmp_path, logged, monkeypatch):
    paths = [checkpoint(tmp_path / f'iter_{i}.pth', i) for i in (1, 2, 3)]

    def look(path: Path) -> bool:
        paths[2].unlink(missing_ok=True)
        return is_intact(path)

    monkeypatch.setattr(work_dir, 'is_intact', look)
    assert newest_checkpoint(tmp_path) == str(paths[1]) and not logged


def test_the_newest_intact_checkpoint_is_found_and_damaged_ones_are_named(tmp_path, logged):
    assert newest_checkpoint(tmp_path) is None
    paths = [
        checkpoint(tmp_path / name, i) for i, name in ((10, 'iter_10.pth'), (30, 'epoch_3.pth'), (20, 'iter_20.pth'))
    ]
    torch.save({'meta': {'iter': 99}, 'state_dict': {}}, tmp_path / 'best_accuracy_epoch_9.pth')  # weights only
    (tmp_path / '.iter_40.pth.123.part').write_bytes(b'half')
    assert newest_checkpoint(tmp_path) == str(paths[1])
    flip_a_bit(paths[1])
    load_file(paths[1])  # nothing is noticed
    assert not is_intact(paths[1]) and is_intact(paths[2])
    assert not logged
    assert newest_checkpoint(tmp_path) == str(paths[2])
    assert logged == [f'{paths[1]} is damaged and skipped']
    paths[2].write_bytes(paths[2].read_bytes()[:2000])
    assert newest_checkpoint(tmp_path) == str(paths[0])
    paths[0].write_bytes(b'')
    with pytest.raises(
        ValueError, match=r'no checkpoint in .* can be read; damaged: .*Remove them to start from scratch'
    ):
        newest_checkpoint(tmp_path)


def test_the_checkpoint_written_last_is_followed_and_another_runs_are_never_taken(tmp_path, logged):
    for i in range(1, 6):
        checkpoint(tmp_path / f'epoch_{i}.pth', 10 * i, 'a')
    mine = [checkpoint(tmp_path / f'epoch_{i}.pth', 10 * i, 'b') for i in (1, 2)]
    with pytest.raises(ValueError, match=r'of several runs, e.g. epoch_5.pth and epoch_1.pth, .*say which: --resume'):
        newest_checkpoint(tmp_path)
    names_last(tmp_path, 'epoch_2.pth')
    assert newest_checkpoint(tmp_path) == str(mine[1])
    assert logged == [f'{tmp_path}/epoch_{i}.pth is of another run and skipped' for i in (3, 4, 5)]
    flip_a_bit(mine[1])
    assert newest_checkpoint(tmp_path) == str(mine[0])
    flip_a_bit(mine[0])
    with pytest.raises(ValueError, match=r'no checkpoint of this run in .* can be read; damaged: .*epoch_2.pth, '):
        newest_checkpoint(tmp_path)


def test_a_run_that_went_back_continues_from_where_it_is(tmp_path):
    """--resume epoch_1.pth after epoch_5.pth: the one written last has fewer iterations. Also without run ids."""
    for run_id in (None, 'a'):
        paths = [checkpoint(tmp_path / f'epoch_{i}.pth', 10 * i, run_id) for i in range(1, 6)]
        names_last(tmp_path, 'epoch_2.pth')
        assert newest_checkpoint(tmp_path) == str(paths[1])
        flip_a_bit(paths[1])
        assert newest_checkpoint(tmp_path) == str(paths[4])


def test_what_is_not_a_checkpoint_is_named_and_passed_over(tmp_path, logged):
    whole = checkpoint(tmp_path / 'epoch_1.pth', 10)
    (tmp_path / 'epoch_2.pth').symlink_to(tmp_path / 'gone.pth')
    (tmp_path / 'epoch_3.pth').mkdir()
    os.mkfifo(tmp_path / 'epoch_4.pth')
    (tmp_path / 'epoch_5.pth').symlink_to('epoch_5.pth')
    torch.save({'optimizer': {}, 'model': {}}, tmp_path / 'other.pth')
    torch.save([1], tmp_path / 'epoch_6.pth')
    for i, bad in enumerate(('20', None, True, -1, 2.5, [1]), 7):
        checkpoint(tmp_path / f'epoch_{i}.pth', bad)
    torch.save({'meta': 'nothing', 'optimizer': {}}, tmp_path / 'epoch_13.pth')
    torch.save({'meta': {'iter': 3}, 'optimizer': {}}, tmp_path / 'epoch_14.pth')
    (tmp_path / 'epoch_15.pth').write_text('a text')
    os.mkfifo(tmp_path / 'last_checkpoint')
    assert newest_checkpoint(tmp_path) == str(whole)
    skipped = ['other.pth', *(f'epoch_{i}.pth' for i in range(2, 16))]
    assert {line.split(' is ')[0] for line in logged} == {f'{tmp_path}/{name}' for name in skipped}
    assert all(line.endswith(' and skipped') for line in logged)
    whole.unlink()
    (tmp_path / 'epoch_15.pth').unlink()
    assert newest_checkpoint(tmp_path) is None


def test_a_flipped_bit_anywhere_is_passed_over_or_harmless(tmp_path):
    """In each of 1,000 places, most of them headers: the file before, or the same content."""
    before = checkpoint(tmp_path / 'epoch_1.pth', 10)
    path = tmp_path / 'epoch_2.pth'
    torch.save({'meta': {'epoch': 2, 'iter': 20}, 'optimizer': {'a': torch.arange(3)}, 'x': torch.arange(4.0)}, path)
    names_last(tmp_path, 'epoch_2.pth')
    good, places = path.read_bytes(), random.Random(0)
    taken = 0
    for _ in range(1000):
        data = bytearray(good)
        data[places.randrange(len(data))] ^= 1 << places.randrange(8)
        path.write_bytes(data)
        if newest_checkpoint(tmp_path) == str(before):
            continue
        taken += 1
        content = load_file(path)
        assert content['meta'] == {'epoch': 2, 'iter': 20} and content['x'].tolist() == [0, 1, 2, 3]
        assert content['optimizer']['a'].tolist() == [0, 1, 2]
    assert 0 < taken < 900


def test_names_of_checkpoints_by_hand():
    for name in ('epoch_3.pth', 'iter_120.pth'):
        assert has_own_name(name) and has_own_name(f'best_accuracy_top1_{name}', best=True)
        assert not has_own_name(f'best_accuracy_top1_{name}')
        for other in (f'../{name}', f'/a/{name}', f'best_/../{name}', f'{name}\n', f'x{name}', f'{name}.txt', 3, None):
            assert not has_own_name(other, best=True), other
    assert not has_own_name('epoch_.pth') and not has_own_name('weights.pth') and not has_own_name('epoch_1xpth')
    assert has_own_name('a.5.b', 'a.{}.b') and has_own_name('a_05', 'a_{:02d}') and not has_own_name('axb', 'a{}b')


class Score(BaseMetric):
    """A metric that rises by one at each evaluation."""

    value = 0

    def process(self, data_batch: object, data_samples: object) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        type(self).value += 1
        return {'score': float(self.value)}


def scored(work_dir: Path, epochs: int, **kwargs: object):
    """A training with validation, which keeps the best checkpoint."""
    samples = [dict(inputs=torch.rand(3, 64, 64))]
    result = runner(
        work_dir, epochs, checkpoint=dict(save_best='score', rule='greater', max_keep_ckpts=2),
        val_dataloader=DataLoader(samples, batch_size=1), val_cfg=dict(), val_evaluator=Evaluator([Score()]), **kwargs,
    )  # fmt: skip
    result.model.val_step = lambda data: [0]
    return result


def test_a_resumed_copy_leaves_the_files_of_the_first_run_alone(tmp_path):
    first, second = tmp_path / 'a', tmp_path / 'b'
    scored(first, 2).train()
    assert {path.name for path in first.glob('*.pth')} == {'epoch_1.pth', 'epoch_2.pth', 'best_score_epoch_2.pth'}
    before = digests(first)
    shutil.copytree(first, second)
    scored(second, 4, resume=True, load_from=str(second / 'epoch_2.pth')).train()
    assert digests(first) == before
    assert {path.name for path in second.glob('*.pth')} == {'epoch_3.pth', 'epoch_4.pth', 'best_score_epoch_4.pth'}
    runs = {load_file(path)['meta']['run_id'] for path in (*first.glob('*.pth'), *second.glob('*.pth'))}
    assert len(runs) == 1 and re.fullmatch('[0-9a-f]{32}', runs.pop())


def test_files_that_a_checkpoint_names_elsewhere_are_never_removed(tmp_path):
    work = tmp_path / 'work'
    scored(work, 1).train()
    victims = [tmp_path / name for name in ('mine.txt', 'epoch_7.pth', 'best_score_epoch_7.pth')]
    victims += [work / name for name in ('notes.txt', 'config.py', 'sub/epoch_7.pth', 'sub/a.txt')]
    for path in victims:
        path.parent.mkdir(exist_ok=True)
        path.write_text('mine')
    content = torch.load(work / 'epoch_1.pth', weights_only=True)  # not mapped: the file is overwritten
    info = content['message_hub']['runtime_info']
    listed = [str(path) for path in victims] + ['../mine.txt', '../epoch_7.pth', 'notes.txt', 'sub/epoch_7.pth', 3]
    for best in (str(victims[0]), '../best_score_epoch_7.pth', str(work / 'notes.txt'), 'sub', 5):
        info.update(kept_checkpoints=listed, keep_ckpt_ids=['1/../sub', '../sub', 8, 9, 10], best_ckpt=best)
        torch.save(content, work / 'epoch_1.pth')
        scored(work, 3, resume=True, load_from=str(work / 'epoch_1.pth')).train()
        assert all(path.read_text() == 'mine' for path in victims), best
        assert {path.name for path in work.glob('epoch_*.pth')} == {'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth'}


def test_only_halves_of_own_checkpoints_are_removed(tmp_path):
    own = [tmp_path / f'.{name}.77.part' for name in ('epoch_9.pth', 'best_a_epoch_1.pth', 'last_checkpoint')]
    others = [tmp_path / f'.{name}.77.part' for name in ('features.npz', 'config.py', 'weights.pth')]
    for path in (*own, *others):
        path.write_bytes(b'half')
    runner(tmp_path, 1).train()
    assert sorted(tmp_path.glob('.*.part')) == sorted(others)


def tiny(work_dir: Path, images: Path, *options: object) -> list[object]:
    command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/simmim_vit-tiny_folder.py']
    return [*command, '--work-dir', work_dir, *options, '--cfg-options', f'data_root={images}', *SMALL]


def test_a_new_training_does_not_start_among_the_checkpoints_of_another(image_folder, tmp_path):
    work = tmp_path / 'work'
    train_tiny(image_folder, work, 'train_cfg.max_epochs=2')
    before = digests(work)
    refused = rf'error: {work} holds checkpoints of another training \(epoch_1.pth ...\): continue that with --resume'
    output = train_tiny(image_folder, work, 'randomness.seed=5', ok=False)
    assert re.search(refused, output) and 'traceback' not in output
    copy = tmp_path / 'copy.pth'
    shutil.copy(work / 'epoch_1.pth', copy)
    train_tiny(image_folder, tmp_path / 'other', 'train_cfg.max_epochs=1')
    flags = ('--resume', tmp_path / 'other/epoch_1.pth')
    output = train_tiny(image_folder, work, 'train_cfg.max_epochs=2', flags=flags, ok=False)
    assert re.search(refused, output)
    assert digests(work) == before
    # The run's own checkpoint, from a copy, is fine.
    output = train_tiny(image_folder, work, 'train_cfg.max_epochs=3', flags=('--resume', copy))
    assert 'resumed epoch: 1, iter: 3' in output and (work / 'epoch_3.pth').exists()


def test_other_data_are_rejected_and_another_name_of_the_folder_is_not(image_folder, tmp_path):
    work = tmp_path / 'work'
    train_tiny(image_folder, work, 'train_cfg.max_epochs=1')
    other = tmp_path / 'other'
    shutil.copytree(image_folder, other)
    output = train_tiny(other, work, 'train_cfg.max_epochs=2', flags=('--resume',), ok=False)
    words = f"of another training: data.data_root is '{image_folder}' in the checkpoint and '{other}' now"
    assert words in output, output
    output = train_tiny(
        image_folder, work, 'train_cfg.max_epochs=2', 'mask.mask_ratio=0.3', flags=('--resume',), ok=False
    )
    assert re.search(r'data.pipeline\[\d\].mask_ratio is 0.6 in the checkpoint and 0.3 now', output), output
    link = tmp_path / 'link'
    link.symlink_to(image_folder)
    assert 'resumed epoch: 1' in train_tiny(link, work, 'train_cfg.max_epochs=2', flags=('--resume',))


def test_a_run_without_ids_resumes(image_folder, tmp_path):
    """Checkpoints of earlier versions have none; the run goes on without."""
    arch = ['embed_dims=16', 'num_layers=2', 'num_heads=2', 'feedforward_channels=32']
    options = [f'model.backbone.arch.{option}' for option in arch]
    work = tmp_path / 'work'
    work.mkdir()
    shutil.copy(DATA / 'revision_2b0f184/epoch_1.pth', work)
    for epochs in (2, 3):
        output = train_tiny(image_folder, work, *options, f'train_cfg.max_epochs={epochs}', flags=('--resume',))
        assert f'resumed epoch: {epochs - 1}, iter: {3 * (epochs - 1)}' in output


def test_two_trainings_in_one_work_dir(image_folder, tmp_path):
    work = tmp_path / 'work'
    command = [str(word) for word in tiny(work, image_folder)]
    first = subprocess.Popen(
        [*command, 'train_cfg.max_epochs=1000', 'default_hooks.checkpoint.max_keep_ckpts=1'],
        env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        while not (work / 'epoch_2.pth').exists():
            assert first.poll() is None, first.communicate()[0][-3000:]
            time.sleep(0.01)
        config = (work / 'simmim_vit-tiny_folder.py').read_bytes()
        for flags in ((), ('--resume',)):
            output = train_tiny(image_folder, work, 'randomness.seed=5', flags=flags, ok=False)
            words = f"'{work}' is in use by another training (process {first.pid} on {os.uname().nodename}): wait"
            assert words in output and 'traceback' not in output, output
        assert (work / 'simmim_vit-tiny_folder.py').read_bytes() == config
        done = {path.name for path in work.glob('*.pth')}
        while {path.name for path in work.glob('*.pth')} <= done:  # it goes on
            assert first.poll() is None, first.communicate()[0][-3000:]
            time.sleep(0.01)
    finally:
        first.kill()
        first.communicate()
    epochs = int(re.search(r'epoch_(\d+)', newest_checkpoint(work))[1]) + 1
    flags = ('--resume',)
    options = (f'train_cfg.max_epochs={epochs}', 'default_hooks.checkpoint.max_keep_ckpts=1')
    assert 'resumed epoch' in train_tiny(image_folder, work, *options, flags=flags)


@pytest.mark.slow
def test_two_trainings_of_two_processes_in_one_work_dir(image_folder, tmp_path):
    """Rank 0 holds the lock: the second is refused as a whole, and when all are killed a third goes on at once."""
    work = tmp_path / 'work'

    def start(*flags: str) -> subprocess.Popen:
        command = ['bash', ROOT / 'tools/dist_train.sh', ROOT / 'configs/simmim_vit-tiny_folder.py', 2, *flags]
        command += ['--work-dir', work, '--cfg-options', f'data_root={image_folder}', *SMALL]
        command += ['train_dataloader.batch_size=2', 'train_cfg.max_epochs=1000']
        return subprocess.Popen(
            [str(word) for word in command], env=gloo_environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def send(launcher: subprocess.Popen, signal_: signal.Signals) -> None:
        for process in (*children_of(launcher.pid), launcher.pid):
            os.kill(process, signal_)

    started = []
    try:
        for flags in ((), ('--resume',)):
            started.append(start(*flags))
            before = {path.name for path in work.glob('*.pth')}
            while {path.name for path in work.glob('*.pth')} <= before:
                assert started[-1].poll() is None, started[-1].communicate()[0][-3000:]
                time.sleep(0.05)
            if not flags:
                send(started[-1], signal.SIGSTOP)  # it holds the lock still, and leaves the CPUs to the second
                second = start('--resume')
                output, _ = second.communicate(timeout=120)
                assert second.returncode == 1 and 'is in use by another training (process ' in output, output[-3000:]
                assert started[-1].poll() is None
            send(started[-1], signal.SIGKILL)
            output, _ = started[-1].communicate(timeout=60)
        assert 'resumed epoch: ' in output
    finally:
        for process in started:
            if process.poll() is None:
                send(process, signal.SIGKILL)


def test_pretrain_does_not_touch_a_folder_in_use(image_folder, tmp_path):
    from simmim_plugin.utils.files import lock_folder, unlock_folder

    work = tmp_path / 'work'
    simmim = (sys.executable, '-c', 'from simmim_plugin.cli import main; main()')
    command = (*simmim, 'pretrain', image_folder, '--arch', 'tiny', '--batch-size', 1, '--out', work, '--dry-run')
    run(*command)
    config = (work / 'config.py').read_bytes()
    lock_folder(work)
    output = run(*command, '--epochs', 7, ok=False)
    unlock_folder(work)
    assert f'is in use by another training (process {os.getpid()} on ' in output
    assert (work / 'config.py').read_bytes() == config
