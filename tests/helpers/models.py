"""A tiny model, and comparison with the reference numbers."""

from typing import Any

import numpy as np
import torch

# The size that the reference numbers were computed at (tests/data/README.md).
TINY: dict[str, Any] = dict(
    type='simmim_plugin.SimMIMViT',
    arch=dict(embed_dims=48, num_layers=3, num_heads=4, feedforward_channels=192),
    img_size=64,
    patch_size=16,
)


def our_name(name: str) -> str:
    """The reference's name of a pretraining parameter -> ours."""
    return name.replace('encoder.', 'backbone.').replace('decoder.0', 'head.decoder')


def assert_close(actual: torch.Tensor, expected: np.ndarray | float, tolerance: float = 1e-5) -> None:
    """Largest difference, relative to the largest value, at most `tolerance`."""
    reference = torch.as_tensor(np.asarray(expected)).double()
    difference = actual.detach().double().reshape(reference.shape) - reference
    scale = reference.abs().max().clamp_min(1e-12)
    assert (difference.abs().max() / scale).item() <= tolerance
