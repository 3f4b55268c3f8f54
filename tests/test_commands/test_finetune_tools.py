"""Fine-tuning, evaluation and probes as a user runs them, at tiny size."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from helpers.checkpoints import pretrained
from helpers.commands import run
from helpers.labelled import make_labelled
from helpers.paths import ROOT
from helpers.processes import gloo_environment
from simmim_plugin import cli
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
from simmim_plugin.evaluation.probes import LabelledFolder, run_probes

CONFIG = ROOT / 'configs/finetune/vit-tiny_folder.py'
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
SMALL = [
    *(f'model.backbone.arch.{name}={value}' for name, value in ARCH.items()),
    'model.head.in_channels=32',
    'train_dataloader.batch_size=4',
    'val_dataloader.batch_size=3',
    'test_dataloader.batch_size=4',
    *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
    *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')),
    'auto_scale_lr.base_batch_size=4',
    'optim_wrapper.optimizer.betas=[0.9,0.95]',
    'param_scheduler.0.warmup=1',
    'param_scheduler.0.end=3',
    'train_cfg.max_epochs=3',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.logger.interval=1',
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    """Folder with data, a checkpoint of pretraining at 32 px, one of another width, and a finished fine-tuning."""
    folder = tmp_path_factory.mktemp('finetune')
    make_labelled(folder / 'data', dict(a=9, b=7, c=5), dict(a=5, b=4, c=2), side=64)
    for path in (folder / 'data').rglob('*.png'):
        Image.open(path).save(path.with_suffix('.jpg'), quality=95)
        path.unlink()
    pretrained(folder / 'pretrained.pth', arch=ARCH, img_size=32, patch_size=8)
    pretrained(folder / 'wide.pth', arch=ARCH | dict(embed_dims=48), img_size=32, patch_size=8)
    log = run(
        sys.executable, ROOT / 'tools/train.py', CONFIG, '--work-dir', folder / 'work', '--cfg-options', *SMALL,
        f'data_root={folder / "data"}', f'load_from={folder / "pretrained.pth"}', cwd=folder,
    )  # fmt: skip
    (folder / 'output.txt').write_text(log)
    return folder


@pytest.fixture
def tool(capsys):
    """Run a command in this process; returns its output, or the message of its exit."""
    threads = torch.get_num_threads()

    def call(name: str, *arguments: object) -> str:
        try:
            cli.main([name, *map(str, arguments)])
        except SystemExit as error:
            return str(error)
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def numbers(printed: str) -> dict[str, float]:
    """The metrics among the lines of tools/test.py."""
    lines = [line.split(': ') for line in printed.splitlines() if line.startswith('accuracy/')]
    return {name: float(value) for name, value in lines}


def last_validation(work_dir: Path) -> dict[str, float]:
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    last = [line for line in lines if 'accuracy/top1' in line][-1]
    return {name: value for name, value in last.items() if name.startswith('accuracy/')}


def test_resuming_a_finished_run_evaluates_it_again(place, tmp_path):
    """It may have been stopped between its last checkpoint and its last evaluation."""
    work = tmp_path / 'work'
    shutil.copytree(place / 'work', work)
    (work / 'last_checkpoint').write_text(str(work / 'epoch_3.pth'))
    (scalars,) = work.glob('*/vis_data/scalars.json')
    before = last_validation(work)
    scalars.unlink()
    log = run(
        sys.executable, ROOT / 'tools/train.py', CONFIG, '--work-dir', work, '--resume', '--cfg-options', *SMALL,
        f'data_root={place / "data"}', cwd=tmp_path,
    )  # fmt: skip
    assert 'Epoch(train)' not in log and last_validation(work) == pytest.approx(before)
    (scalars,) = work.glob('*/vis_data/scalars.json')
    assert json.loads(scalars.read_text().splitlines()[-1])['step'] == 3


def test_loading_report_and_classes_from_the_folders(place):
    log = (place / 'output.txt').read_text()
    state = load_file(place / 'pretrained.pth')['state_dict']
    tuned = load_file(place / 'work/epoch_3.pth')
    # Not loaded: the decoder and the norm of single tokens.
    skipped = [name for name in state if name not in tuned['state_dict'] and 'rel_pos_bias.' not in name]
    report = {
        line.split(' ')[0]: line for line in log.splitlines() if line.startswith(('Loaded ', 'Skipped', 'Resized'))
    }
    loaded = next(line for line in log.splitlines() if 'Loaded ' in line)
    common = [name for name in state if name in tuned['state_dict']]
    assert f'Loaded {len(common) + 2} tensors of load_from; new ones, as initialised: ' in loaded  # a table per block
    for name in ('backbone.fc_norm.weight', 'head.fc.weight', 'head.fc.bias'):
        assert name in loaded
    assert {'head.decoder.weight', 'backbone.norm.weight'} <= set(skipped)
    assert set(report['Skipped,'].split(': ')[1].split(', ')) == set(skipped)
    tables = [f'backbone.blocks.{i}.attn.relative_position_bias_table 4x4 -> 8x8' for i in (0, 1)]
    assert [name.removeprefix('backbone.') for name in report['Resized'].split(': ')[1].split(', ')] == [
        name.removeprefix('backbone.') for name in tables
    ]
    assert tuned['simmim_plugin']['model']['head']['num_classes'] == 3
    assert tuned['state_dict']['head.fc.weight'].shape == (3, 32)
    assert sorted(last_validation(place / 'work')) == ['accuracy/balanced', 'accuracy/top1']
    assert 'Total batch 4 = 1 processes x 4 images x 1 accumulated; 5 iterations per epoch' in log


def test_evaluation_gives_the_accuracy_of_the_last_validation(place):
    printed = run(
        sys.executable, ROOT / 'tools/test.py', CONFIG, place / 'work/epoch_3.pth', '--work-dir', place / 'test',
        '--cfg-options', *SMALL, f'data_root={place / "data"}', cwd=place,
    )  # fmt: skip
    expected = last_validation(place / 'work')
    assert numbers(printed) == {name: pytest.approx(value, abs=0.006) for name, value in expected.items()}

    # By hand: the input of the classifier is the pooled features of the last block.
    extractor = FeatureExtractor(place / 'work/epoch_3.pth')
    val = LabelledFolder(place / 'data').features(extractor, 'val')
    head = load_file(place / 'work/epoch_3.pth')['state_dict']
    scores = val.features['pooled'] @ head['head.fc.weight'].numpy().T + head['head.fc.bias'].numpy()
    predicted = scores.argmax(axis=1)
    assert len(set(predicted)) > 1
    assert numbers(printed)['accuracy/top1'] == pytest.approx(100 * (predicted == val.labels).mean(), abs=0.006)
    balanced = 100 * balanced_accuracy_score(val.labels, predicted)
    assert numbers(printed)['accuracy/balanced'] == pytest.approx(balanced, abs=0.006)
    assert f'picture: {place / "test/confusion_matrix.png"}' in printed
    assert np.asarray(Image.open(place / 'test/confusion_matrix.png')).std() > 10

    # 11 images for two processes in batches of 4: MMEngine's sampler repeats one, which must not count.
    environment = gloo_environment()
    command = ['bash', ROOT / 'tools/dist_test.sh', CONFIG, place / 'work/epoch_3.pth', 2, '--work-dir', place / 'two']
    command += ['--cfg-options', *SMALL, f'data_root={place / "data"}']
    result = subprocess.run(
        [str(word) for word in command], env=environment, cwd=place, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert numbers(result.stdout) == numbers(printed) and result.stdout.count('accuracy/top1: ') >= 1
    assert result.stdout.count('picture: ') == 1
    one, two = (np.asarray(Image.open(place / name / 'confusion_matrix.png')) for name in ('test', 'two'))
    assert np.array_equal(one, two)


def test_probes_of_the_pretrained_checkpoint(place, tool):
    out = place / 'scores.json'
    printed = run(
        sys.executable, ROOT / 'tools/probe.py', place / 'pretrained.pth', place / 'data', '--blocks', 'all',
        '--k', 5, '--workers', 0, '--size', 64, '--out', out, cwd=place,
    )  # fmt: skip
    extractor = FeatureExtractor(place / 'pretrained.pth', size=64, blocks='all')
    expected = run_probes(extractor, LabelledFolder(place / 'data'), k=5)
    assert '3 classes, 21 train and 11 val images; k-NN with k=5, temperature 0.07' in printed
    assert list(expected) == [f'block{b}_pooled_{kind}' for b in (1, 2) for kind in ('knn', 'linear')]
    for name, score in expected.items():
        assert f'{name:24} {score.top1:5.1f} %    {score.balanced:5.1f} %' in printed
    assert json.loads(out.read_text()) == {
        name: dict(top1=pytest.approx(score.top1), balanced=pytest.approx(score.balanced))
        for name, score in expected.items()
    }
    printed = tool('probe', place / 'work/epoch_3.pth', place / 'data', '--fraction', 0.2, '--workers', 0, '--k', 1)
    assert '3 classes, 5 train and 11 val images' in printed and '\nlinear   ' in printed  # 1.8, 1.4 and 1, rounded up


def test_errors_of_the_tools(place, tool, tmp_path):
    data = f'data_root={place / "data"}'
    evaluate = ['--work-dir', tmp_path / 'work', '--cfg-options', *SMALL]
    message = tool('test', CONFIG, tmp_path / 'gone.pth', *evaluate, data)
    assert message.startswith('error: ') and "gone.pth' does not exist" in message
    message = tool('test', CONFIG, place / 'pretrained.pth', *evaluate, data)
    assert message.startswith('error: the checkpoint is of another architecture: ')
    message = tool('test', ROOT / 'configs/simmim_vit-tiny_folder.py', place / 'pretrained.pth', '--work-dir', tmp_path)
    assert message.startswith('error: the config has no test_dataloader and test_evaluator')

    other = make_labelled(tmp_path / 'other', dict(a=2, b=2), dict(a=2, d=2))
    for name, *more in (('test', place / 'work/epoch_3.pth'), ('train',)):
        message = tool(name, CONFIG, *more, *evaluate, f'data_root={other}')
        assert message.startswith(
            f"error: '{other}/val' must have the classes a, b as in the training data, found a, d "
            '(missing: b; only here: d); '
        )
    message = tool('train', CONFIG, *evaluate, data, f'load_from={place / "wide.pth"}')
    assert message.startswith('error: the checkpoint is of another architecture: ')
    assert '48) instead of (' in message and '32)' in message
    message = tool('train', CONFIG, *evaluate, data, f'load_from={tmp_path / "gone.pth"}')
    assert message.startswith('error: ') and 'gone.pth' in message

    checkpoint = place / 'pretrained.pth'
    for arguments, expected in (
        ([tmp_path / 'gone.pth', place / 'data'], "gone.pth' does not exist"),
        ([checkpoint, other], "needs the folders train and val, with the same class folders in both; found ['a'"),
        ([checkpoint, place / 'data', '--kinds', 'patches'], '--kinds patches: probes take one vector per image'),
        ([checkpoint, place / 'data', '--temperature', 0], '--temperature=0.0 must be a number above 0'),
        (
            [checkpoint, place / 'data', '--k', 0],
            'k=0 must be a whole number from 1 to 21; there are 21 training images',
        ),
        ([checkpoint, place / 'data', '--blocks', 3], 'the model has blocks 1 ... 2'),
    ):
        message = tool('probe', *arguments, '--workers', 0)
        assert message.startswith('error: ') and expected in message
