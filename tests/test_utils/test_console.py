"""MMEngine's dumps are in the log file, not on the terminal."""

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
    """A runner without a training, and the text of its log file."""
    runner = kind(Nothing(), str(folder), cfg=Config(dict(work_dir=str(folder))), experiment_name=folder.name)
    return runner, Path(runner.logger.log_file).read_text(encoding='utf-8')


@pytest.mark.parametrize('kind', [Runner, ShortLogRunner])
def test_dumps_are_in_the_log_file_and_not_on_the_terminal(kind, tmp_path, capsys):
    runner, log = started(kind, tmp_path / f'of_{kind.__name__}')
    printed = capsys.readouterr().out
    assert all(dump in log for dump in DUMPS)
    if kind is Runner:  # fails if MMEngine's messages change
        assert all(dump in printed for dump in DUMPS) and len(printed.splitlines()) > 50
    else:
        assert printed.splitlines()[-1].endswith(f'hooks are in {runner.logger.log_file}')
        assert len(printed.splitlines()) == 1


def test_other_messages_are_shown(tmp_path, capsys):
    runner, _ = started(ShortLogRunner, tmp_path / 'other')
    runner.logger.warning('Loss spike')
    runner.logger.info('Epoch(train) [1][12/12]')
    printed = capsys.readouterr().out
    assert 'Loss spike' in printed and 'Epoch(train) [1][12/12]' in printed
