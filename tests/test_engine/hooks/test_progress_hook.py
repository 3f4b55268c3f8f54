"""The bar on a terminal."""

import io
import logging
import sys

import torch
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from helpers.models import TINY
from simmim_plugin import SimMIM
from simmim_plugin.engine.hooks.progress_hook import ProgressHook


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(tmp_path, name):
    data = [dict(inputs=torch.rand(3, 64, 64), mask=torch.ones(4, 4)) for _ in range(4)]
    runner = Runner(
        model=SimMIM(backbone=TINY), work_dir=str(tmp_path), train_dataloader=DataLoader(data, batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=3), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[ProgressHook()], experiment_name=name,
    )  # fmt: skip
    levels = [handler.level for handler in runner.logger.handlers]
    runner.train()
    assert [handler.level for handler in runner.logger.handlers] == levels
    log = next(handler for handler in runner.logger.handlers if isinstance(handler, logging.FileHandler))
    return open(log.baseFilename).read()


def test_a_terminal_sees_the_bar_and_the_file_every_line(tmp_path, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    log = train(tmp_path, 'bar')
    assert '6/6' in terminal.getvalue() and 'loss=' in terminal.getvalue() and 'epoch=3' in terminal.getvalue()
    assert 'Saving checkpoint at 3 epochs' in log and 'Saving checkpoint' not in capsys.readouterr().out


def test_elsewhere_nothing_changes(tmp_path, capsys):
    train(tmp_path, 'plain')
    printed = capsys.readouterr()
    assert '6/6' not in printed.err and 'Saving checkpoint at 3 epochs' in printed.out + printed.err
