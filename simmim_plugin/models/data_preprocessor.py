"""Data preprocessor: move batches of uint8 images and masks to the device and normalise them there."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from simmim_plugin.registry import MODELS
from simmim_plugin.utils.arguments import flag, number

HINT = '`simmim statistics` prints the values of your images'


@MODELS.register_module()
class SimMIMDataPreprocessor(BaseDataPreprocessor):
    """Move a batch to the device and normalise the images there; masks are one (B, h, w) tensor.

    Args:
        mean: Per-channel mean, in the units of the stored values (0 ... 255 for 8-bit images).
        std: Per-channel standard deviation, in the same units.
        non_blocking: Do not wait for the copy to the device.

    Raises:
        ValueError: `mean` and `std` differ in length, or a value is not finite or a std not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], non_blocking: bool = True) -> None:
        super().__init__(non_blocking=flag('non_blocking', non_blocking))
        if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple) or not 0 < len(mean) == len(std):
            raise ValueError(f'mean={mean!r} and std={std!r} must have one value per channel')
        for channel, (mean_value, std_value) in enumerate(zip(mean, std)):
            number(f'mean[{channel}]', mean_value, hint=HINT)
            number(f'std[{channel}]', std_value, 0, hint=HINT, ends='(]')
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Normalise `inputs`, (B, C, H, W) of any dtype, to float32. Other entries are moved, `img_path` is dropped.

        Raises:
            ValueError: The number of channels differs from that of `mean` and `std`.
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
