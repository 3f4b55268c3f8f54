"""ForeachEMA gives the same numbers as MMEngine's average, with fewer operators."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from simmim_plugin import ForeachEMA
from simmim_plugin.utils.counters import OperatorCounter

pytestmark = pytest.mark.core


def model():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)), nn.BatchNorm1d(4))


@pytest.mark.parametrize('settings', [{}, dict(update_buffers=True), dict(interval=2)], ids=str)
def test_equals_mmengines(settings):
    source = model()
    averages = [kind(source, momentum=0.1, **settings) for kind in (ExponentialMovingAverage, ForeachEMA)]
    for step in range(5):
        with torch.no_grad():
            for x in source.state_dict().values():
                x.add_(step)
        for average in averages:
            average.update_parameters(source)
    copies = [kind(source, momentum=0.1, **settings) for kind in (ExponentialMovingAverage, ForeachEMA)]
    for copied, average in zip(copies, averages):
        copied.load_state_dict(average.state_dict())  # resumes from there
        copied.update_parameters(model())
    averages += copies
    for first, second in zip(averages[::2], averages[1::2]):
        for a, b in zip(first.state_dict().values(), second.state_dict().values()):
            assert torch.allclose(a, b, rtol=1e-6)


def test_takes_few_operators():
    source = model()
    counts = []
    for kind in (ExponentialMovingAverage, ForeachEMA):
        average = kind(copy.deepcopy(source), momentum=0.1)
        average.update_parameters(source)
        with OperatorCounter() as counter:
            average.update_parameters(source)
        counts.append(sum(n for name, n in counter.counts.items() if name not in ('detach', 'alias')))
    assert counts[1] <= 10 < counts[0]
