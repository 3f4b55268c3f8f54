"""MMEngine's runner with a tiny training."""

import time
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from helpers.models import TINY
from simmim_plugin import SimMIM


def runner(work_dir: Path, epochs: int, checkpoint: Any = (), **kwargs: Any) -> Runner:
    """A tiny training of two iterations per epoch."""
    hook = dict(type='simmim_plugin.SimMIMCheckpointHook', interval=1, max_keep_ckpts=1)
    samples = [dict(inputs=torch.rand(3, 64, 64), mask=torch.ones(4, 4)) for _ in range(4)]
    return Runner(
        model=SimMIM(backbone=TINY), work_dir=str(work_dir), train_dataloader=DataLoader(samples, batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint={**hook, **dict(checkpoint)}),
        experiment_name=str(time.time_ns()), log_level='ERROR', **kwargs,
    )  # fmt: skip
