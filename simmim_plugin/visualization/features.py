"""Draw feature maps: principal components as colours, similarity and attention of a patch."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_plugin.visualization.sheets import PANEL_PX, draw_table, enlarge, mark_patch, to_display

COLUMNS = ('image and patch', 'PCA of features', 'similarity', 'attention, root scale')
LEAST_SIMILAR = 0.99  # upper limit of the colour scale's low end, so that a uniform map looks uniform


def pca_rgb(features: Tensor, reference: Tensor | None = None) -> Tensor:
    """Map the first three principal components of the features to red, green and blue.

    Each is scaled from its 1st to its 99th percentile, with the sign that makes its largest weight positive. A
    constant component is 0.5 everywhere.

    Args:
        features: (h, w, D) with D >= 3.
        reference: Same shape: the components and their range are those of this map; None: of `features`.

    Returns:
        (h, w, 3) in [0, 1], float32.

    Raises:
        ValueError: The shape is another one.
    """
    if features.ndim != 3 or features.shape[2] < 3:
        raise ValueError(f'features of shape {tuple(features.shape)}: expected (h, w, D) with D of 3 or more')
    values = (features if reference is None else reference).flatten(0, 1).double()  # (h*w, D)
    mean = values.mean(dim=0)
    centred = values - mean
    weights = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)  # (D, 3), largest variance first
    largest = weights.gather(0, weights.abs().argmax(dim=0, keepdim=True))
    components = centred @ (weights * largest.sign())  # (h*w, 3)
    low, high = torch.quantile(components, torch.tensor([0.01, 0.99]).to(components), dim=0)
    flat = high - low <= 1e-5 * values.abs().max()  # do not amplify rounding errors of float32
    if reference is not None:
        components = (features.flatten(0, 1).double() - mean) @ (weights * largest.sign())
    stretched = ((components - low) / (high - low).masked_fill(flat, 1)).clamp(0, 1)
    return stretched.masked_fill(flat, 0.5).float().reshape(*features.shape[:2], 3)


def similarity(features: Tensor, query: tuple[int, int]) -> Tensor:
    """Cosine similarity of each patch to the query patch: (h, w, D), (row, column) -> (h, w) in [-1, 1]."""
    return F.cosine_similarity(features, features[query], dim=-1).clamp(-1, 1)


def feature_sheet(
    image: Tensor, maps: Sequence[tuple[Tensor, Tensor | None]], query: tuple[int, int], names: Sequence[str]
) -> np.ndarray:
    """One row per block: image with the query patch | PCA | similarity | attention, mean over the heads.

    Similarity is coloured from the map's minimum, at most 0.99 (dark), to 1 (yellow); the square root of attention from
    0 to its maximum, since few patches often get most of it. Captions give these values. PCA colours differ by row.

    Args:
        image: (C, H, W) in the units of the stored values, at the size that the model gets.
        maps: One pair per row: features (h, w, D) and attention (heads, h, w) of the query patch, or None in all rows,
            whose column is left out. Each row may have a grid of its own.
        query: Row and column of the patch in the grid of the last row.
        names: One per row, the start of its caption.

    Returns:
        (height, width, 3) uint8.
    """
    scale = math.ceil(PANEL_PX / image.shape[2])
    last = maps[-1][0].shape[:2]
    shown = to_display(image[None].float(), image[None].float())[0].permute(1, 2, 0)  # (H, W, 3)
    photo = mark_patch(enlarge(shown, scale), query, scale * image.shape[1] // last[0])
    rows, captions = [], []
    for (features, heads), name in zip(maps, names):
        patch = scale * image.shape[1] // features.shape[0]  # its side in the sheet
        row, column = (int((i + 0.5) * n / m) for i, n, m in zip(query, features.shape, last))
        near = similarity(features, (row, column))
        low = min(float(near.min()), LEAST_SIMILAR)
        coloured = [('viridis', (near - low) / (1 - low))]
        caption = f'{name};  similarity {low:.2f} ... 1'
        if heads is not None:
            attention = heads.mean(dim=0)
            most = float(attention.max())
            coloured.append(('inferno', (attention / most).sqrt()))
            caption += f',  attention 0 ... {100 * most:.2g} %'
        tiles = [
            mark_patch(enlarge(matplotlib.colormaps[colours](values.numpy())[..., :3], patch), (row, column), patch)
            for colours, values in coloured
        ]
        rows.append(np.stack((photo, enlarge(pca_rgb(features), patch), *tiles)))
        captions.append(caption)
    return draw_table(np.stack(rows), COLUMNS[: rows[0].shape[0]], captions)
