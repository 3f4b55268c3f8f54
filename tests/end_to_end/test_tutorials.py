"""Every command of every tutorial, as printed, in an empty folder."""

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
    return '\n'.join(re.findall(r'^```bash\n(.*?)^```$', page.read_text(encoding='utf-8'), re.M | re.S))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_work_as_printed(page, tmp_path):
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
    if page.stem == 'pretrain':
        assert float(re.search(r'-> (\S+) at the end', output)[1]) < float(
            re.search(r'visible mean: ([\d.]+)', output)[1]
        )
    if page.stem == 'few_labels':
        assert float(re.findall(r'^accuracy/top1: (\S+)', output, re.M)[-1]) > 20  # of ten classes
