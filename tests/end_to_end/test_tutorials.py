"""Every command of every tutorial in an empty folder: as printed (`make test-tutorials`), or shorter.

Shorter: with fewer images and epochs.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.paths import ROOT

TIMEOUT = 1100  # seconds
AS_PRINTED = 'AS_PRINTED' in os.environ
FEWER = {
    'simmim sample photos photos\n': 'rm photos/[1-3]*.jpg  # 100 are left of 384\n',
    'simmim sample digits digits\n': 'rm digits/*/*/?[1-9]?.png  # a sixth is left\n',
}
# Per page, what is printed and what is run instead.
SHORTER = {
    'cluster': [('--epochs 8', '--epochs 3'), ('--epochs 4', '--epochs 2')],
    'dense': [
        ('1.end=10\n', '1.end=2\n'),
        ('max_epochs=10', 'max_epochs=2'),
        ('epoch_10', 'epoch_2'),
        ('max_iters=100', 'max_iters=20'),
        ('val_interval=50', 'val_interval=20'),
        ('iter_100', 'iter_20'),
        ('param_scheduler.0.end=20 ', 'param_scheduler.0.end=5 '),
        ('begin=20', 'begin=5'),
        ('end=100', 'end=20'),
        ('checkpoint.interval=100', 'checkpoint.interval=20'),
    ],
    'few_labels': [
        ('--epochs 12', '--epochs 2'),
        ('epoch_12', 'epoch_2'),
        ('finetune digits', 'finetune digits --epochs 2'),
        ('max_epochs=60, val_interval=20', 'max_epochs=4, val_interval=2'),
        ('warmup=6, end=60', 'warmup=1, end=4'),
        ('epoch_60', 'epoch_4'),
    ],
    'masks': [('max_epochs=10', 'max_epochs=2'), ('end=10', 'end=2'), ('epoch_10', 'epoch_2')],
    'pretrain': [('--epochs 40', '--epochs 4'), ('epoch_40', 'epoch_4'), ('= 40, 4$', '= 4, 1$')],
    'scans': [('max_epochs=20', 'max_epochs=2'), ('warmup=2, end=20', 'warmup=1, end=2'), ('epoch_20', 'epoch_2')],
    'wrong': [('--epochs 10', '--epochs 2'), ('epoch_10', 'epoch_2')],
}
# Output that each page promises.
CLAIMS = {
    'dense': [r'tensors of load_from', r'coco/bbox_mAP', r'mIoU: '],
    'cluster': [
        r'2 processes x 8 images',
        r'1 processes x 8 images x 2 accumulated',
        r'stopped with code 75',
        r'resumed epoch',
    ],
    'wrong': [r'Image skipped', r'predicting the visible mean'],
    'checkpoints': [r'torch\.Size\(\[1, 192\]\)', r'^192$', r'left out: head\.decoder'],
}
PAGES = sorted(path for path in (ROOT / 'docs/tutorials').glob('*.md') if path.stem != 'index')


def commands_of(page: Path) -> str:
    """The bash blocks of a page, joined."""
    commands = '\n'.join(re.findall(r'^```bash\n(.*?)^```$', page.read_text(encoding='utf-8'), re.M | re.S))
    for printed, shorter in () if AS_PRINTED else SHORTER.get(page.stem, ()):
        assert printed in commands, printed
        commands = commands.replace(printed, shorter)
    for command, fewer in {} if AS_PRINTED else FEWER.items():
        commands = commands.replace(command, command + fewer)
    return commands


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_work(page, tmp_path):
    if page.stem == 'dense':
        pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")
    bin_ = Path(sys.executable).parent
    environment = {**os.environ, 'PATH': f'{bin_}:{os.environ["PATH"]}', 'MPLBACKEND': 'agg'}
    environment.pop('VIRTUAL_ENV', None)
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(
            ['bash', '-euo', 'pipefail', '-c', commands_of(page)],
            cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        code = process.wait(TIMEOUT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    output = (tmp_path / 'log').read_text()
    assert code == 0, output[-4000:]
    for name in re.findall(r'--out (\S+\.png)', commands_of(page)):
        assert (tmp_path / name).stat().st_size > 1000
    for claim in CLAIMS.get(page.stem, ()):
        assert re.search(claim, output, re.M), claim
    if AS_PRINTED and page.stem == 'pretrain':
        assert float(re.search(r'-> (\S+) at the end', output)[1]) < float(
            re.search(r'visible mean: ([\d.]+)', output)[1]
        )
    if AS_PRINTED and page.stem == 'few_labels':
        assert float(re.findall(r'^accuracy/top1: (\S+)', output, re.M)[-1]) > 20  # of ten classes
