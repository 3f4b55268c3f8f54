"""Reconstructions, masks and features of single images, as shown by `simmim demo`."""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_plugin.apis.reconstruct import check_fills_holes, fit_image, reconstruct_image
from simmim_plugin.checkpoints.loading import load_pretrained
from simmim_plugin.datasets.images import read_image
from simmim_plugin.datasets.transforms.masking import PUBLISHED_RATIO, PUBLISHED_UNIT, SimMIMMaskGenerator
from simmim_plugin.models.interface import checked, features_after, layer_shapes
from simmim_plugin.models.masks import MASKS
from simmim_plugin.utils.configs import reading_arguments, transform_arguments
from simmim_plugin.utils.hardware import checked_device
from simmim_plugin.utils.random_state import fixed_seed
from simmim_plugin.visualization.features import LEAST_SIMILAR, pca_rgb, similarity
from simmim_plugin.visualization.sheets import enlarge, mark_patch, masked_images, to_display

SHOWN_PX = 320  # minimum side of pictures; small images are enlarged by an integer factor


class Reconstruction(NamedTuple):
    """Pictures, (H', W', 3) uint8, with the loss of what is masked."""

    masked: np.ndarray
    predicted: np.ndarray
    composite: np.ndarray
    loss: float
    hidden: float  # fraction of the patches


class Explorer:
    """Reconstructions and features of single images.

    Args:
        checkpoint: Checkpoint of a pretraining; it also defines how images are read.
        device: Device of the model.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It is not from a pretraining, or the device cannot be used.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], device: str = 'cpu') -> None:
        self.model, pipeline = load_pretrained(checkpoint, checked_device(device))
        self.reading = reading_arguments(pipeline)
        self.backbone = checked(self.model.backbone, f'checkpoint {os.fspath(checkpoint)!r}: its backbone')
        self.patch_size, self.size = self.backbone.patch_size, self.backbone.img_size
        # Layers with maps of the last one's size: the pictures of all have the same patches.
        self.layers = [i for i, (_, stride) in enumerate(layer_shapes(self.backbone)) if stride == self.patch_size]
        self.scale = max(1, -(-SHOWN_PX // max(self.size)))
        self.masking = transform_arguments(pipeline, 'SimMIMMaskGenerator')
        self.more_masks = _more_masks(pipeline)
        self._in_use = threading.Lock()  # the random state is shared by all threads: one draw or forward pass at a time

    def training_masks(self) -> dict[str, dict[str, float]]:
        """Ratio and unit of the local and the global mask of the training; a ratio of 0 means no such mask.

        If the training had another generator (see `more_masks`): the published masks, in units of whole patches.
        """
        published = -(-PUBLISHED_UNIT // self.patch_size) * self.patch_size
        if 'local' in self.masking or 'global_' in self.masking:
            local, coarse = self.masking.get('local'), self.masking.get('global_')
        else:
            ratio, unit = (self.masking.get(name) for name in ('mask_ratio', 'mask_patch_size'))
            local, coarse = dict(ratio=PUBLISHED_RATIO if ratio is None else ratio, unit=unit or published), None
        found = {
            'local': dict(local or dict(ratio=0.0, unit=2 * self.patch_size)),
            'global': dict(coarse or dict(ratio=0.0, unit=2 * published)),
        }
        for part in found.values():  # those of a training may be finer than the stride of its features
            part['unit'] = -(-part['unit'] // self.patch_size) * self.patch_size
        return found

    def read(self, path: str | os.PathLike[str]) -> Tensor:
        """Read an image file as in training, resized and cropped to the model's size: (C, H, W).

        Raises:
            ValueError: It is not an image of this kind; the message begins with the file's name.
        """
        try:
            return fit_image(read_image(path, **self.reading), self.size)
        except ValueError as error:
            raise ValueError(str(error).replace(os.fspath(path), os.path.basename(path))) from error

    def picture(self, image: Tensor) -> np.ndarray:
        """Picture of an image from `read`: (H', W', 3) uint8."""
        return self._enlarged(to_display(image[None].float(), image[None].float())[0])

    def random_masks(self, local: Mapping[str, float], coarse: Mapping[str, float], seed: int = 0) -> dict[str, Tensor]:
        """Draw masks.

        Args:
            local: `ratio` and `unit` (pixels) of the local mask; a ratio of 0: none.
            coarse: The same for the global mask.
            seed: The same seed draws the same masks.

        Returns:
            `mask`, and if both are given also `mask_local` and `mask_global`: (1, h, w), 1 = masked.

        Raises:
            ValueError: Nothing would be masked, or everything at a ratio below 1, or a unit is not a multiple of the
                patch.
        """
        parts: dict[str, Any] = {
            name: dict(part) for name, part in (('local', local), ('global_', coarse)) if part['ratio'] > 0
        }
        if not parts:
            raise ValueError('both ratios are 0, so nothing is masked; raise one')
        with self._in_use, fixed_seed(seed):
            drawn = SimMIMMaskGenerator(model_patch_size=self.patch_size, input_size=self.size, **parts)({})
        return {name: torch.from_numpy(drawn[name])[None] for name in MASKS if name in drawn}

    def painted_mask(self, cells: str) -> dict[str, Tensor]:
        """Mask the painted patches.

        Args:
            cells: A digit per patch, row by row; 1 = masked, 0 = visible.

        Returns:
            `mask`, (1, h, w), 1 = masked.

        Raises:
            ValueError: The length is wrong, or the model cannot fill in hidden patches.
        """
        check_fills_holes(self.model, 'a painted mask')
        rows, columns = (side // self.patch_size for side in self.size)
        if len(cells) != rows * columns or set(cells) - {'0', '1'}:
            raise ValueError(f'a painted mask needs {rows * columns} digits of 0 and 1, got {len(cells)} characters')
        return {'mask': torch.tensor([int(cell) for cell in cells], dtype=torch.uint8).reshape(1, rows, columns)}

    def reconstruct(self, image: Tensor, masks: Mapping[str, Tensor]) -> Reconstruction:
        """Mask an image from `read` and reconstruct it, or the map that the model predicts."""
        with self._in_use:
            row, loss = reconstruct_image(self.model, image, masks)
        original = truth = to_display(row['inputs'], row['inputs'])
        predicted, scale = row['predicted'], self.scale
        if 'truth' in row:  # pictures, larger than the image
            truth, scale = row['truth'], 1
        else:
            predicted = to_display(predicted, row['inputs'])
        parts = (row['mask_local'], row['mask_global']) if 'mask_local' in row else None
        hidden = row['filled'].to(original.dtype)
        weight = F.interpolate(hidden, truth.shape[2:])
        return Reconstruction(
            self._enlarged(masked_images(original, row['mask'], parts)[0]),
            enlarge(predicted[0].movedim(0, -1), scale),
            enlarge((truth * (1 - weight) + predicted * weight)[0].movedim(0, -1), scale),
            loss,
            float(hidden.mean()),
        )

    @torch.no_grad()
    def features(self, image: Tensor) -> list[Tensor]:
        """Patch features (h, w, D) of the unmasked image after each of `layers`."""
        inputs = self.model.data_preprocessor(dict(inputs=image[None]))['inputs']
        with self._in_use:
            return [patches[0].cpu() for patches, *_ in features_after(self.backbone, inputs, self.layers)]

    def pca_picture(self, features: Tensor) -> np.ndarray:
        """First three principal components of the features as red, green and blue."""
        return enlarge(pca_rgb(features), self.scale * self.patch_size)

    def similarity_picture(self, features: Tensor, patch: tuple[int, int]) -> tuple[np.ndarray, float]:
        """Cosine similarity of all patches to one, which is framed; the lowest (at most 0.99) is dark, 1 is yellow.

        Returns:
            The picture, and the lowest value.
        """
        near = similarity(features, patch)
        low = min(float(near.min()), LEAST_SIMILAR)
        colours = matplotlib.colormaps['viridis'](((near - low) / (1 - low)).numpy())[..., :3]
        side = self.scale * self.patch_size
        return mark_patch(enlarge(colours, side), patch, side), low

    def patch_at(self, x: int, y: int) -> tuple[int, int]:
        """Row and column of the patch under a pixel of one of these pictures."""
        side = self.scale * self.patch_size
        last = [length // self.patch_size - 1 for length in self.size]
        return min(max(y // side, 0), last[0]), min(max(x // side, 0), last[1])

    def _enlarged(self, image: Tensor) -> np.ndarray:
        """(3, H, W) in [0, 1] -> (H', W', 3) uint8."""
        return enlarge(image.movedim(0, -1), self.scale)


def _more_masks(pipeline: Sequence[dict[str, Any]]) -> str:
    """A sentence on what `training_masks` leaves out of the training's masks; empty if nothing."""
    own = transform_arguments(pipeline, 'SimMIMMaskGenerator')
    if not own and (others := [str(t['type']) for t in pipeline if str(t.get('type')).endswith('MaskGenerator')]):
        return f'It was trained with masks of {others[0]}; the sliders draw square units.'
    more = ['adapt'] if own.get('adapt') else []
    more += ['local.region_ratio'] if (own.get('local') or {}).get('region_ratio', 1) != 1 else []
    return f'Its training also had {" and ".join(more)}, which the sliders leave out.' if more else ''
