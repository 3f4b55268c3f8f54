"""Arguments of the schedulers; their values are in tests/test_models/test_reference.py."""

import math
import re

import pytest
import torch
from torch import nn

from simmim_plugin import LinearWarmupLR, WarmupCosineLR

WHOLE, POSITIVE = 'must be a whole number of at least 1', 'must be a number above 0'


@pytest.mark.parametrize(
    ('scheduler', 'arguments', 'words'),
    [
        (LinearWarmupLR, dict(end=0), f'LinearWarmupLR.end=0 {WHOLE}'),
        (LinearWarmupLR, dict(end=5.0), f'LinearWarmupLR.end=5.0 {WHOLE}'),
        (LinearWarmupLR, dict(end='5'), f"LinearWarmupLR.end='5' {WHOLE}"),
        (WarmupCosineLR, dict(warmup=0, end=0), f'WarmupCosineLR.end=0 {POSITIVE}'),
        (WarmupCosineLR, dict(warmup=0, end=math.inf), f'WarmupCosineLR.end=inf {POSITIVE}'),
        (WarmupCosineLR, dict(warmup=0, end=None), f'WarmupCosineLR.end=None {POSITIVE}'),
        (WarmupCosineLR, dict(warmup=-1, end=2), 'WarmupCosineLR.warmup=-1 must be a number in [0, 2]'),
        (WarmupCosineLR, dict(warmup=math.nan, end=2), 'WarmupCosineLR.warmup=nan must be a number in [0, 2]'),
        (
            WarmupCosineLR,
            dict(warmup=1, end=2, floor_ratio=2),
            'WarmupCosineLR.floor_ratio=2 must be a number in [0, 1]',
        ),
    ],
)
def test_wrong_arguments_are_named(scheduler, arguments, words):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=f'^{re.escape(words)}'):
        scheduler(optimizer, **arguments)


@pytest.mark.parametrize(
    ('scheduler', 'arguments', 'words'),
    [
        (LinearWarmupLR, dict(end=None), f'LinearWarmupLR.end=None {POSITIVE}'),
        (LinearWarmupLR, dict(end=0.001), f'LinearWarmupLR.end=0 {WHOLE}'),  # rounded down to iterations
        (WarmupCosineLR, dict(warmup=0, end='2'), f"WarmupCosineLR.end='2' {POSITIVE}"),
        (WarmupCosineLR, dict(warmup=None, end=2), 'WarmupCosineLR.warmup=None must be a number in [0, 2]'),
        (WarmupCosineLR, dict(warmup=3, end=2), 'WarmupCosineLR.warmup=3 must be a number in [0, 2]'),
    ],
)
def test_wrong_lengths_in_epochs_are_named(scheduler, arguments, words):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=f'^{re.escape(words)}'):
        scheduler.build_iter_from_epoch(optimizer, **arguments, epoch_length=100)
