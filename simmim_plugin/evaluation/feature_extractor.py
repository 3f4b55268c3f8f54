"""Extract features of unmasked images from a trained backbone: pooled, class token or patch features of any block."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from simmim_plugin.checkpoints.loading import build_backbone, build_data_preprocessor
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.datasets.images import ImageReadError, read_image
from simmim_plugin.models.interface import checked, features_after, has_class_token, layer_shapes, trained_layers
from simmim_plugin.models.layers.architecture import block_numbers
from simmim_plugin.utils.arguments import choice, grid_of, names, sides
from simmim_plugin.utils.configs import reading_arguments
from simmim_plugin.utils.hardware import checked_device

KINDS = ('pooled', 'cls', 'patches')
COVER = (256, 224)  # images are resized to cover 256/224 of the input size and cropped at the centre


class FeatureExtractor:
    """Extract features of unmasked images with the backbone of a checkpoint.

    Features are taken after a block. Those of the last block pass the model's final norm, like its output; pooled ones
    of a fine-tuned model are the input of its classifier (`fc_norm` of the mean). Other blocks' have no norm. Of models
    without blocks, such as ConvNeXt in a `MaskedBackbone`, blocks are the stages.

    Args:
        checkpoint: Written by a pretraining or fine-tuning run with `SimMIMCheckpointHook`.
        device: Device of the backbone.
        size: Side, or (height, width), in pixels, multiples of the patch, to which `load` resizes and crops images.
            None: the backbone's `img_size`.
        blocks: Numbers of blocks, from 1, or 'all'. None: the last.
        kinds: Features to return, some of 'pooled' (mean of the patch tokens), 'cls' (class token), 'patches' (one
            vector per patch).

    Attributes:
        backbone: The backbone, see `models/interface.py`.
        data_preprocessor: Normalises images: `data_preprocessor({'inputs': images})['inputs']`.
        reading: Arguments of `read_image`, to read images as in training.
        source: Path, size and modification time of the checkpoint; None for a model in memory.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It is no checkpoint of this kind, or an argument is out of range; the message names it.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        device: str = 'cpu',
        size: int | Sequence[int] | None = None,
        blocks: int | Sequence[int] | str | None = None,
        kinds: Sequence[str] = ('pooled',),
    ) -> None:
        checked_device(device)
        saved = read(checkpoint)
        self.backbone = build_backbone(saved).to(device)
        self.data_preprocessor: nn.Module = build_data_preprocessor(saved).to(device)
        self.flips_channels = False
        self.reading = _reading(saved.pipeline, self.backbone)
        status = os.stat(checkpoint)
        self.source: dict[str, Any] | None = dict(
            checkpoint=os.path.realpath(checkpoint), bytes=status.st_size, modified=status.st_mtime_ns
        )
        self._choose(size, blocks, kinds)

    @classmethod
    def from_model(
        cls,
        model: Any,
        size: int | Sequence[int] | None = None,
        blocks: int | Sequence[int] | str | None = None,
        kinds: Sequence[str] = ('pooled',),
        pipeline: Sequence[dict[str, Any]] = (),
    ) -> 'FeatureExtractor':
        """Make an extractor of a model in memory, such as one in training; its weights are shared, not copied.

        Each call uses the current weights, in evaluation mode, and restores the modes of the modules.

        Args:
            model: A model with a `backbone` (see `models/interface.py`) and a `data_preprocessor`, such as `SimMIM`
                and MMPretrain's `ImageClassifier`.
            size: See the class.
            blocks: See the class.
            kinds: See the class.
            pipeline: Transforms of the training, which define how `load` reads images.

        Raises:
            ValueError: The backbone lacks something, or an argument is out of range.
        """
        self = cls.__new__(cls)
        self.backbone = checked(model.backbone, 'the backbone of the model')
        self.data_preprocessor = model.data_preprocessor
        # MMPretrain's preprocessor is made for images of OpenCV (BGR) and would turn RGB into BGR.
        self.flips_channels = (
            bool(getattr(model.data_preprocessor, 'to_rgb', False)) and model.backbone.in_channels == 3
        )
        self.reading, self.source = _reading(pipeline, self.backbone), None
        self._choose(size, blocks, kinds)
        return self

    def _choose(
        self, size: int | Sequence[int] | None, blocks: int | Sequence[int] | str | None, kinds: Sequence[str]
    ) -> None:
        self.layers = layer_shapes(self.backbone)
        count = len(self.layers)
        kinds = (kinds,) if isinstance(kinds, str) else names('--kinds', kinds, f'choose some of {", ".join(KINDS)}')
        if not kinds:
            raise ValueError(f'--kinds={kinds!r} must not be empty; choose some of {", ".join(KINDS)}')
        for kind in kinds:
            choice('--kinds', kind, KINDS)
        if 'cls' in kinds and not has_class_token(self.backbone):
            raise ValueError(f"--kinds={kinds!r}: this model has no class token; choose of 'pooled' and 'patches'")
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        wanted = (blocks,) if isinstance(blocks, int) else blocks
        if wanted is None:
            wanted = (trained_layers(self.backbone),)
        self.blocks = tuple(block_numbers(wanted, count))
        size = self.backbone.img_size if size is None else size
        self.size = sides('--size', size[0] if isinstance(size, Sequence) and len(size) == 1 else size)
        grid_of('--size', self.size, self.backbone.patch_size)

    @property
    def width(self) -> int:
        """Length of a feature vector of the last of `blocks`."""
        return self.layers[self.blocks[-1] - 1][0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the features of one image of `size`, by name; see `names`."""
        found: dict[str, tuple[int, ...]] = {}
        for block in self.blocks:
            width, stride = self.layers[block - 1]
            h, w = (side // stride for side in self.size)
            for kind in self.kinds:
                found[_name(block, kind, self.blocks)] = (h, w, width) if kind == 'patches' else (width,)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the features: the kinds, or with several blocks 'block8_pooled' and so on."""
        return tuple(self.shapes)

    @torch.no_grad()
    def __call__(self, images: Tensor | np.ndarray) -> dict[str, np.ndarray]:
        """Extract the features of a batch of images.

        Args:
            images: (B, C, H, W), uint8 or float, in the units of the stored values (RGB of 0 ... 255 for photos). H
                and W may be any multiples of the patch size.

        Returns:
            One float32 array per name (see `names`): 'pooled' and 'cls' (B, width), 'patches' (B, h, w, width).

        Raises:
            ValueError: The shape is another, or the channels are not those of the model.
        """
        images = torch.as_tensor(images)
        if images.ndim != 4:
            hint = '; for a single image, give image[None]' if images.ndim == 3 else ''
            raise ValueError(f'images of shape {tuple(images.shape)}: expected (B, C, H, W){hint}')
        device = next(self.backbone.parameters()).device
        images = images.flip(1) if self.flips_channels else images
        inputs = self.data_preprocessor({'inputs': images.to(device)})['inputs']
        found = {}
        for block, (patches, cls) in zip(self.blocks, self._after_blocks(inputs)):
            for kind in self.kinds:
                if kind == 'cls':
                    values = cls
                elif kind == 'patches':
                    values = patches
                else:
                    values = patches.mean(dim=(1, 2))
                    if block == len(self.layers) and hasattr(self.backbone, 'fc_norm'):
                        values = self.backbone.fc_norm(values)
                found[_name(block, kind, self.blocks)] = values.float().cpu().numpy()
        return found

    def load(self, path: str | os.PathLike[str]) -> Tensor:
        """Read an image, resize it (bicubic) to cover 256/224 of `size`, and crop the centre to `size`.

        As in the evaluation of fine-tuned classifiers: at 224 px, the shorter side becomes 256.

        Args:
            path: The file.

        Returns:
            (C, height, width), uint8 or float32 as in training.

        Raises:
            ImageReadError: The file cannot be read as an image of this kind.
        """
        return load_image(path, self.size, self.reading)

    def _after_blocks(self, inputs: Tensor) -> list[tuple[Any, ...]]:
        """See `features_after`, after each of `blocks`, in evaluation mode."""
        modes = {module: module.training for module in self.backbone.modules()}
        try:
            self.backbone.eval()
            return features_after(self.backbone, inputs, [block - 1 for block in self.blocks])
        finally:
            for module, mode in modes.items():
                module.training = mode


def load_image(path: str | os.PathLike[str], size: tuple[int, int], reading: dict[str, Any]) -> Tensor:
    """See `FeatureExtractor.load`; `reading` has the arguments of `read_image`."""
    image = read_image(path, **reading)
    height, width = image.shape[1:]
    over, under = COVER
    tall, wide = (round(side * over / under) for side in size)
    cover = [tall, tall * width // height] if tall * width >= wide * height else [wide * height // width, wide]
    return TF.center_crop(TF.resize(image, cover, InterpolationMode.BICUBIC, antialias=True), list(size))


def _reading(pipeline: Sequence[dict[str, Any]], backbone: Any) -> dict[str, Any]:
    return {'channels': backbone.in_channels, **reading_arguments(pipeline)}


def _name(block: int, kind: str, blocks: Sequence[int]) -> str:
    return kind if len(blocks) == 1 else f'block{block}_{kind}'


class SizedImages(Dataset[Any]):
    """Images resized and cropped to one size, by index; for an unreadable one, the reason instead."""

    def __init__(self, paths: Sequence[str], size: tuple[int, int], reading: dict[str, Any]) -> None:
        self.paths, self.size, self.reading = paths, size, reading

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, load_image(self.paths[index], self.size, self.reading)
        except ImageReadError as error:
            return index, str(error)

    @staticmethod
    def collate(samples: Sequence[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor, dict[int, str]]:
        """Indices of the readable images, the images (B, C, H, W), and by index the reasons of the unreadable ones."""
        good = {number: value for number, value in samples if isinstance(value, Tensor)}
        bad = {number: value for number, value in samples if isinstance(value, str)}
        return list(good), torch.stack(list(good.values())) if good else torch.empty(0), bad
