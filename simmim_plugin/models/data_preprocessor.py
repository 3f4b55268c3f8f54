"""Batches of uint8 images and masks: to the device, then normalised there."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from simmim_plugin.registry import MODELS


@MODELS.register_module()
class SimMIMDataPreprocessor(BaseDataPreprocessor):
    """Move a batch to the device and normalise the images there; masks travel as one (B, h, w) tensor.

    Args:
        mean: Per-channel mean, in the units of the stored values (0 ... 255 for 8-bit images).
        std: Per-channel standard deviation, in the same units.
        non_blocking: Do not wait for the copy to the device.

    Raises:
        ValueError: `mean` and `std` differ in length, or a std is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], non_blocking: bool = True) -> None:
        super().__init__(non_blocking=non_blocking)
        if len(mean) != len(std) or not mean:
            raise ValueError(f'mean={mean} and std={std} must have one value per channel')
        if min(std) <= 0:
            raise ValueError(f'std={std} must be positive; `simmim statistics` prints fitting values')
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Normalise `inputs`, (B, C, H, W) of any dtype, into float32; other entries only move, `img_path` goes.

        Raises:
            ValueError: The images' channels are not those of `mean` and `std`.
        """
        data = self.cast_data({name: value for name, value in data.items() if name != 'img_path'})
        inputs = data['inputs']
        channels = self.mean.shape[0]
        if inputs.ndim != 4 or inputs.shape[1] != channels:
            raise ValueError(
                f'inputs of shape {tuple(inputs.shape)} do not fit mean and std for {channels} channels; expected '
                f'(B, {channels}, H, W). Set mean and std of the data_preprocessor (`simmim statistics` prints them), '
                'in_channels of the backbone and channels of LoadImage so that they agree'
            )
        floats = inputs.to(torch.float32, copy=True)
        return {**data, 'inputs': floats.sub_(self.mean).div_(self.std)}

    def denormalize(self, images: Tensor) -> Tensor:
        """Back to the units of the stored values: (B, C, H, W) -> (B, C, H, W)."""
        return images * self.std + self.mean
