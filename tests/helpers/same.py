"""Compare checkpoints bit by bit."""

import torch

TIMES = ('train/time', 'train/data_time')


def same(one, two, name=''):
    """Values of two checkpoints are equal bit by bit; returns how many tensors were compared."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), name
        return sum(same(one[key], two[key], f'{name}.{key}') for key in one if key not in TIMES)
    if isinstance(one, list | tuple):
        assert len(one) == len(two), name
        return sum(same(a, b, f'{name}.{i}') for i, (a, b) in enumerate(zip(one, two)))
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), name
        return 1
    assert one == two, (name, one, two)
    return 0
