"""Every command of every tutorial, as printed, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = sorted(path for path in (ROOT / 'docs/tutorials').glob('*.md') if path.stem != 'index')


def commands_of(page: Path) -> str:
    """Its blocks of bash, one after the other."""
    return '\n'.join(re.findall(r'^```bash\n(.*?)^```$', page.read_text(encoding='utf-8'), re.M | re.S))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_work_as_printed(page, tmp_path):
    if page.stem == 'dense':
        pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")
    bin_ = Path(sys.executable).parent
    environment = {**os.environ, 'PATH': f'{bin_}:{os.environ["PATH"]}', 'OMP_NUM_THREADS': '2', 'MPLBACKEND': 'agg'}
    environment.pop('VIRTUAL_ENV', None)
    result = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', commands_of(page)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    for name in re.findall(r'--out (\S+\.png)', commands_of(page)):
        assert (tmp_path / name).stat().st_size > 1000
