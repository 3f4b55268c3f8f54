"""A terminal without MMEngine's dumps, which the log file keeps."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner

from simmim_plugin.utils.console import ShortLogRunner

DUMPS = ('System environment:', 'Config:', 'Hooks will be executed in the following order')


class Nothing(BaseModel):
    def forward(self, *args, **kwargs):
        return {}


def started(kind, folder: Path) -> tuple[Runner, str]:
    """A runner that has nothing to do, and its log file."""
    runner = kind(Nothing(), str(folder), cfg=Config(dict(work_dir=str(folder))), experiment_name=folder.name)
    return runner, Path(runner.logger.log_file).read_text(encoding='utf-8')


@pytest.mark.parametrize('kind', [Runner, ShortLogRunner])
def test_dumps_are_in_the_log_file_and_not_on_the_terminal(kind, tmp_path, capsys):
    runner, log = started(kind, tmp_path / f'of_{kind.__name__}')
    told = capsys.readouterr().out
    assert all(dump in log for dump in DUMPS)
    if kind is Runner:  # else the beginnings that are looked for are not MMEngine's any more
        assert all(dump in told for dump in DUMPS) and len(told.splitlines()) > 50
    else:
        assert told.splitlines()[-1].endswith(f'hooks are in {runner.logger.log_file}')
        assert len(told.splitlines()) == 1


def test_everything_else_comes_through(tmp_path, capsys):
    runner, _ = started(ShortLogRunner, tmp_path / 'other')
    runner.logger.warning('Loss spike')
    runner.logger.info('Epoch(train) [1][12/12]')
    told = capsys.readouterr().out
    assert 'Loss spike' in told and 'Epoch(train) [1][12/12]' in told
