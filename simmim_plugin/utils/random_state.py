"""Seed the random number generators of Python, NumPy and PyTorch."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from simmim_plugin.utils.arguments import whole

LARGEST_SEED = 2**32 - 1  # of NumPy's


def seed_everything(*key: int) -> None:
    """Seed Python, NumPy and PyTorch (also on GPUs in use) from non-negative integers.

    The seeds are hashed, since neighbouring seeds of PyTorch are not independent; this is faster than NumPy's
    `SeedSequence`. NumPy's seed has 32 bits: beyond about 100,000 samples a few pairs have the same mask, but their
    crops and flips differ.
    """
    digest = hashlib.blake2b(repr(tuple(map(int, key))).encode(), digest_size=16).digest()
    random.seed(int.from_bytes(digest[:8], 'little'))
    np.random.seed(int.from_bytes(digest[8:12], 'little'))
    seed = int.from_bytes(digest[12:], 'little')
    if torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:  # torch.manual_seed would queue a call for CUDA, with a traceback, each time
        torch.default_generator.manual_seed(seed)


@contextmanager
def fixed_seed(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and PyTorch (CPU) within the context, and restore their states afterwards.

    Raises:
        ValueError: The seed is not a whole number of 32 bits.
    """
    whole('seed', seed, 0, LARGEST_SEED)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
