"""Masked patches by their indices, so that work can be done on them alone."""

import torch
from torch import Tensor


def masked_tokens(mask: Tensor, count: int | None = None) -> Tensor:
    """Indices of the masked patches of every image.

    Args:
        mask: (B, h, w), 1 = masked.
        count: The largest number of masked patches of an image, where it is known; reading it off a mask on a device
            waits for the device.

    Returns:
        (B, K) int64 indices into h*w, with K the count, at least 1. Of each image first the masked patches in rising
        order; images with fewer are filled up with visible ones (whose mask is 0).
    """
    flat = mask.flatten(1).to(torch.uint8)
    if count is None:
        count = largest_count(mask)
    return flat.argsort(dim=1, descending=True, stable=True)[:, :count]


def largest_count(mask: Tensor) -> int:
    """The largest number of masked patches of an image of a batch, at least 1: (B, h, w) -> int."""
    return max(1, *mask.flatten(1).sum(1).int().tolist())


def take(x: Tensor, tokens: Tensor) -> Tensor:
    """Rows of each sample: (B, N, D), (B, K) -> (B, K, D)."""
    return x.gather(1, tokens.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
