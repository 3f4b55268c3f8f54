"""Sample masks, and read the values of their units."""

import math

import numpy as np
import torch

from simmim_plugin import SimMIMMaskGenerator


def units_of(mask: np.ndarray, unit: int) -> np.ndarray:
    """Value of each unit; fails if a unit is not all one value."""
    rows, columns = (math.ceil(side / unit) for side in mask.shape)
    values = np.zeros((rows, columns), dtype=int)
    for i in range(rows):
        for j in range(columns):
            found = np.unique(mask[i * unit : (i + 1) * unit, j * unit : (j + 1) * unit])
            assert len(found) == 1
            values[i, j] = found[0]
    return values


def draw(generator: SimMIMMaskGenerator, seed: int, size=None) -> dict[str, np.ndarray]:
    np.random.seed(seed)
    return generator({} if size is None else {'img': torch.zeros(1, *size)})


def simultaneous(local_ratio=0.75, global_ratio=0.1, units=(32, 64), **kwargs) -> SimMIMMaskGenerator:
    local, coarse = dict(ratio=local_ratio, unit=units[0]), dict(ratio=global_ratio, unit=units[1])
    return SimMIMMaskGenerator(local=local, global_=coarse, **kwargs)
