"""Draw what SimMIMHead predicts, where it is not an image: gradients as strokes, features as colours."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simmim_plugin.models.targets import HOG, Features
from simmim_plugin.visualization.features import pca_rgb

SIDE_PX = 320  # least side of a picture: strokes of 8 px are hard to tell apart


def drawn(target: Any, truth: Tensor, predicted: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """Pictures of a true and a predicted map, in the same colours.

    Args:
        target: Target of a head, see `models/targets.py`.
        truth: (B, D, h, w).
        predicted: Same shape.
        size: Height and width of the images in pixels.

    Returns:
        (B, 3, k*H, k*W) each in [0, 1], k a whole number; None for a target that is an image.
    """
    side = math.ceil(SIDE_PX / max(size)) * size[0] // truth.shape[2]  # of a cell
    if isinstance(target, HOG):
        return strokes(truth, target.bins, side), strokes(predicted, target.bins, side)
    if isinstance(target, Features):
        return _components(truth, truth, side), _components(predicted, truth, side)
    return None


def strokes(histograms: Tensor, bins: int, side: int) -> Tensor:
    """Histograms of gradients as strokes along the edges, across the gradients, as they are usually drawn.

    The brightness of a stroke is the value of its bin, mean over the channels, negative ones as 0. Histograms have
    length 1, so that faint texture is as bright as strong edges.

    Args:
        histograms: (B, C * bins, h, w), see `hog`.
        bins: Number of directions.
        side: Side of a drawn cell in pixels.

    Returns:
        (B, 3, h * side, w * side) in [0, 1].
    """
    weights = histograms.unflatten(1, (-1, bins)).mean(dim=1).clamp_min(0)  # (B, bins, h, w)
    line = torch.arange(side, device=weights.device, dtype=weights.dtype) - (side - 1) / 2
    angles = (torch.arange(bins, device=weights.device, dtype=weights.dtype) + 0.5) * math.pi / bins
    sine, cosine = angles.sin()[:, None, None], angles.cos()[:, None, None]  # the gradient points cosine down
    across, along = line[:, None] * cosine + line * sine, line * cosine - line[:, None] * sine
    templates = (1.2 - across.abs()).clamp(0, 1) * (along.abs() <= side / 2)  # (bins, side, side), soft edges
    cells = (weights[:, :, :, None, :, None] * templates[:, None, :, None]).amax(dim=1)  # (B, h, side, w, side)
    return cells.flatten(3, 4).flatten(1, 2).clamp(0, 1)[:, None].expand(-1, 3, -1, -1)


def _components(maps: Tensor, truth: Tensor, side: int) -> Tensor:
    """Principal components of the truth, of each image, as colours: (B, D, h, w) -> (B, 3, h * side, w * side)."""
    pairs = zip(maps.movedim(1, -1), truth.movedim(1, -1))
    colours = torch.stack([pca_rgb(*pair) for pair in pairs]).movedim(-1, 1)
    return colours.repeat_interleave(side, 2).repeat_interleave(side, 3)
