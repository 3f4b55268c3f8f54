"""The command that goes on is the one that ran, with --resume once and without its path."""

import shlex

import pytest

from simmim_plugin.utils import invocation


@pytest.mark.parametrize(
    ('program', 'words', 'command'),
    [
        ('simmim pretrain', ['my images', '--out', 'x'], "simmim pretrain 'my images' --out x --resume"),
        ('simmim train', ['c.py', '--resume', '--amp'], 'simmim train c.py --amp --resume'),
        ('simmim train', ['c.py', '--resume', 'a.pth', '--amp'], 'simmim train c.py --amp --resume'),
        ('simmim train', ['c.py', '--amp', '--resume'], 'simmim train c.py --amp --resume'),
        ('python tools/train.py', ['c.py', '--resume=a.pth'], 'python tools/train.py c.py --resume'),
    ],
)
def test_the_command_that_goes_on(program, words, command, monkeypatch):
    monkeypatch.setattr(invocation, '_words', [])
    assert invocation.resuming_command() == '--resume'  # called from Python
    invocation.note_command(program, words)
    assert invocation.resuming_command() == command


def test_the_launcher_is_called_again_not_its_ranks(monkeypatch):
    monkeypatch.setattr(invocation, '_words', [])
    monkeypatch.setenv(invocation.COMMAND, shlex.join(['tools/dist_train.sh', 'my config.py', '2']) + ' ')
    invocation.note_command('python tools/train.py', ['my config.py', '--launcher', 'pytorch'])
    assert invocation.resuming_command() == "tools/dist_train.sh 'my config.py' 2 --resume"
