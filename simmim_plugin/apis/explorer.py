"""A pretrained model and one image at a time: what the page of `simmim demo` shows, without the page."""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from torch import Tensor

from simmim_plugin.apis.reconstruct import check_fills_holes, fit_image, reconstruct_image
from simmim_plugin.checkpoints.loading import checked_backbone, load_pretrained
from simmim_plugin.datasets.images import read_image
from simmim_plugin.datasets.transforms.masking import PUBLISHED_RATIO, PUBLISHED_UNIT, SimMIMMaskGenerator
from simmim_plugin.models.masks import MASKS
from simmim_plugin.utils.configs import reading_arguments, transform_arguments
from simmim_plugin.utils.hardware import checked_device
from simmim_plugin.utils.random_state import fixed_seed
from simmim_plugin.visualization.features import LEAST_SIMILAR, pca_rgb, similarity
from simmim_plugin.visualization.sheets import enlarge, mark_patch, masked_images, to_display

SHOWN_PX = 320  # at least; small images are enlarged by whole numbers


class Reconstruction(NamedTuple):
    """Pictures, (H', W', 3) uint8, and the masked-pixel loss."""

    masked: np.ndarray
    predicted: np.ndarray
    composite: np.ndarray
    loss: float
    hidden: float  # share of the patches


class Explorer:
    """Reconstructions and features of single images.

    Args:
        checkpoint: Of a pretraining; how images are read is taken from it.
        device: Where the model shall live.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It is none of a pretraining of a `SimMIMViT`, or the device cannot be used.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], device: str = 'cpu') -> None:
        self.model, pipeline = load_pretrained(checkpoint, checked_device(device))
        self.reading = reading_arguments(pipeline)
        self.backbone = checked_backbone(self.model, checkpoint)
        self.patch_size, self.size = self.backbone.patch_size, self.backbone.img_size
        self.scale = max(1, -(-SHOWN_PX // max(self.size)))
        self.masking = transform_arguments(pipeline, 'SimMIMMaskGenerator')
        self.more_masks = _more_masks(pipeline)
        self._in_use = threading.Lock()  # the random state is the process's, so one drawing or pass at a time

    def training_masks(self) -> dict[str, dict[str, float]]:
        """Ratio and unit of the local and of the global mask that the model was trained with; a ratio of 0: none.

        Without such masks in the checkpoint (see `more_masks`): the published ones, in units of whole patches.
        """
        published = -(-PUBLISHED_UNIT // self.patch_size) * self.patch_size
        if 'local' in self.masking or 'global_' in self.masking:
            local, whole = self.masking.get('local'), self.masking.get('global_')
        else:
            ratio, unit = (self.masking.get(name) for name in ('mask_ratio', 'mask_patch_size'))
            local, whole = dict(ratio=PUBLISHED_RATIO if ratio is None else ratio, unit=unit or published), None
        return {
            'local': dict(local or dict(ratio=0.0, unit=2 * self.patch_size)),
            'global': dict(whole or dict(ratio=0.0, unit=2 * published)),
        }

    def read(self, path: str | os.PathLike[str]) -> Tensor:
        """An image file as the training read it, resized and cropped to the model's size: (C, H, W).

        Raises:
            ValueError: It is no image of this kind; the message begins with the file's name.
        """
        try:
            return fit_image(read_image(path, **self.reading), self.size)
        except ValueError as error:
            raise ValueError(str(error).replace(os.fspath(path), os.path.basename(path))) from error

    def picture(self, image: Tensor) -> np.ndarray:
        """An image of `read` for the eye: (H', W', 3) uint8."""
        return self._enlarged(to_display(image[None].float(), image[None].float())[0])

    def random_masks(self, local: Mapping[str, float], whole: Mapping[str, float], seed: int = 0) -> dict[str, Tensor]:
        """Draw masks.

        Args:
            local: `ratio` and `unit` (pixels) of the local mask; a ratio of 0: none.
            whole: Likewise of the global one.
            seed: The same seed draws the same masks.

        Returns:
            `mask`, and where both are asked for `mask_local` and `mask_global`: (1, h, w), 1 = masked.

        Raises:
            ValueError: Nothing or, unasked, everything would be masked, or a unit is no multiple of the patch.
        """
        parts: dict[str, Any] = {
            name: dict(part) for name, part in (('local', local), ('global_', whole)) if part['ratio'] > 0
        }
        if not parts:
            raise ValueError('both ratios are 0, so nothing is masked; raise one')
        with self._in_use, fixed_seed(seed):
            drawn = SimMIMMaskGenerator(model_patch_size=self.patch_size, input_size=self.size, **parts)({})
        return {name: torch.from_numpy(drawn[name])[None] for name in MASKS if name in drawn}

    def painted_mask(self, cells: str) -> dict[str, Tensor]:
        """Hide the patches that were painted on.

        Args:
            cells: A 0 or 1 per patch, row by row; 1 = hidden.

        Returns:
            `mask`, (1, h, w), 1 = masked.

        Raises:
            ValueError: Of another length, or the model cannot fill in what it does not see.
        """
        check_fills_holes(self.model, 'a painted mask')
        rows, columns = (side // self.patch_size for side in self.size)
        if len(cells) != rows * columns or set(cells) - {'0', '1'}:
            raise ValueError(f'a painted mask needs {rows * columns} digits of 0 and 1, got {len(cells)} characters')
        return {'mask': torch.tensor([int(cell) for cell in cells], dtype=torch.uint8).reshape(1, rows, columns)}

    def reconstruct(self, image: Tensor, masks: Mapping[str, Tensor]) -> Reconstruction:
        """Hide parts of an image of `read` and have the model fill them in."""
        with self._in_use:
            row, loss = reconstruct_image(self.model, image, masks)
        original, predicted = (to_display(row[name], row['inputs']) for name in ('inputs', 'predicted'))
        parts = (row['mask_local'], row['mask_global']) if 'mask_local' in row else None
        hidden = row['filled'].to(original.dtype)
        return Reconstruction(
            self._enlarged(masked_images(original, row['mask'], parts)[0]),
            self._enlarged(predicted[0]),
            self._enlarged((original * (1 - hidden) + predicted * hidden)[0]),
            loss,
            float(hidden.mean()),
        )

    @torch.no_grad()
    def features(self, image: Tensor) -> list[Tensor]:
        """Patch features (h, w, D) after each block, of the whole image without a mask."""
        inputs = self.model.data_preprocessor(dict(inputs=image[None]))['inputs']
        with self._in_use:
            _, maps = self.backbone.forward_intermediates(inputs)
        rows = [features[0].permute(1, 2, 0) for features in maps]
        return [x.cpu() for x in (*rows[:-1], self.backbone.norm(rows[-1]))]

    def pca_picture(self, features: Tensor) -> np.ndarray:
        """The features' first three principal components as red, green and blue."""
        return enlarge(pca_rgb(features), self.scale * self.patch_size)

    def similarity_picture(self, features: Tensor, patch: tuple[int, int]) -> tuple[np.ndarray, float]:
        """Cosine similarity of all patches to one, which is framed; the least one (0.99 at most) is dark, 1 yellow.

        Returns:
            The picture, and the value that is dark.
        """
        near = similarity(features, patch)
        low = min(float(near.min()), LEAST_SIMILAR)
        colours = matplotlib.colormaps['viridis'](((near - low) / (1 - low)).numpy())[..., :3]
        side = self.scale * self.patch_size
        return mark_patch(enlarge(colours, side), patch, side), low

    def patch_at(self, x: int, y: int) -> tuple[int, int]:
        """Row and column of the patch under a pixel of a picture made here."""
        side = self.scale * self.patch_size
        last = [length // self.patch_size - 1 for length in self.size]
        return min(max(y // side, 0), last[0]), min(max(x // side, 0), last[1])

    def _enlarged(self, image: Tensor) -> np.ndarray:
        """(3, H, W) in [0, 1] -> (H', W', 3) uint8."""
        return enlarge(image.movedim(0, -1), self.scale)


def _more_masks(pipeline: Sequence[dict[str, Any]]) -> str:
    """What the training's masks had that `training_masks` does not say, in a sentence; empty: nothing."""
    own = transform_arguments(pipeline, 'SimMIMMaskGenerator')
    if not own and (others := [str(t['type']) for t in pipeline if str(t.get('type')).endswith('MaskGenerator')]):
        return f'It was trained with masks of {others[0]}; the sliders draw square units.'
    more = ['adapt'] if own.get('adapt') else []
    more += ['local.region_ratio'] if (own.get('local') or {}).get('region_ratio', 1) != 1 else []
    return f'Its training had {" and ".join(more)}, too, which the sliders leave out.' if more else ''
