"""What SimMIMHead predicts: `SimMIMHead(target=...)`.

A target is a map of a batch of images, (B, D, h*s, w*s): each of the h x w patches has s x s cells of D values. One
that is not the image itself is a function of the whole image, unmasked.

| target | D | s | map |
|---|---|---|---|
| 'pixels' | C | patch | the image (SimMIM, arXiv 2111.09886) |
| 'normalized_pixels' | C | patch | the image, each patch by its own mean and deviation (MAE, arXiv 2111.06377) |
| 'low_pass' | C | patch | the image without high frequencies (PixMIM, arXiv 2303.02416) |
| 'hog' | C * bins | patch / cell | histograms of oriented gradients (MaskFeat, arXiv 2112.09133) |
| 'features' | width of the teacher | 1 | features of a frozen model (EVA, arXiv 2211.07636; MILAN, arXiv 2208.06049) |
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_plugin.models.interface import checked, load_frozen
from simmim_plugin.models.losses import normalize_patches, wide
from simmim_plugin.registry import MODELS, build_part
from simmim_plugin.utils.arguments import choice, number, whole

TARGETS = ('pixels', 'normalized_pixels', 'low_pass', 'hog', 'features')
RADIUS_SIZE = 224  # side in pixels of the images that the radius of `low_pass` is stated for
LARGEST = 2**16  # bins, and sides in pixels


def hog(images: Tensor, cell: int = 8, bins: int = 9, window: int = 0) -> Tensor:
    """Histograms of oriented gradients of each channel, as MaskFeat predicts them (arXiv 2112.09133).

    Gradients are Sobel's, with the image mirrored at its edges. Their directions, without sign, fall into `bins` equal
    parts of the half circle; the first starts at the vertical gradient. The histogram of a cell sums the magnitudes and
    has length 1, or is 0 where nothing changes. So a factor and an offset of a channel, such as those of a data
    preprocessor, change nothing (but for directions on the border of two bins, which rounding decides).

    With 3 channels and cells of 8 px these are the values of MMPretrain's `HOGGenerator`. `skimage.feature.hog` with
    blocks of one cell differs: its gradients are central differences, 0 at the edges, and of the strongest channel
    alone, and its first bin starts at the horizontal gradient.

    Args:
        images: (B, C, H, W), in any units.
        cell: Side of a cell in pixels; divides H and W.
        bins: Number of directions.
        window: Side in pixels of squares, from the top left, in which magnitudes are weighted by a Gaussian of
            deviation `window // 2` around the centre; divides H and W. 0: no weights.

    Returns:
        (B, C * bins, H / cell, W / cell), the bins of a channel together.

    Raises:
        ValueError: A side is no multiple of the cell or the window.
    """
    size = images.shape[2:]
    for name, side in (('cell', cell), ('window', window)):
        if side and (size[0] % side or size[1] % side):
            raise ValueError(f'{name}={side} of hog does not divide images of {size[0]} x {size[1]} px')
    x = F.pad(wide(images), (1, 1, 1, 1), mode='reflect')
    down = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    across = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    dx, dy = down[..., :-2] - down[..., 2:], across[..., :-2, :] - across[..., 2:, :]
    magnitude = torch.hypot(dx, dy)
    if window:
        line = torch.arange(window, device=x.device, dtype=x.dtype) - (window - 1) / 2
        weights = torch.exp(-0.5 * (line / max(1, window // 2)) ** 2)
        magnitude = magnitude * (weights.repeat(size[0] // window)[:, None] * weights.repeat(size[1] // window))
    part = (torch.atan2(dx, dy) / math.pi * bins).floor() % bins
    # Bin by bin: one tensor of all would take `bins` times the memory of the images, and adding to it is not exact.
    sums = [F.avg_pool2d(magnitude * (part == i), cell, divisor_override=1) for i in range(bins)]
    return F.normalize(torch.stack(sums, dim=2), dim=2).flatten(1, 2)


def low_pass(images: Tensor, radius: float) -> Tensor:
    """Images without their high frequencies: an ideal filter in the Fourier domain, as in PixMIM (arXiv 2303.02416).

    Waves of more than `radius` cycles per 224 px are set to 0, whatever the size of the image and the direction: the
    paper's 40 keeps what is longer than 5.6 px. The mean stays, so that the filter and the normalisation of images may
    change places. The released code (`LowFreqTargetGenerator` of MMSelfSup) is the same for odd sides; for even ones
    the centre of its circle lies half a frequency off, and it takes the modulus of the complex result.

    Args:
        images: (B, C, H, W).
        radius: Largest frequency that stays, in cycles per 224 px.

    Returns:
        Same shape.
    """
    images = wide(images)
    options: Any = dict(dtype=torch.float64, device=images.device)
    down, across = torch.fft.fftfreq(images.shape[2], **options), torch.fft.rfftfreq(images.shape[3], **options)
    squares = (down[:, None] ** 2 + across**2) * RADIUS_SIZE**2
    kept = squares <= radius**2 * (1 + 1e-9)  # on the circle is within it, in spite of rounding
    return torch.fft.irfft2(torch.fft.rfft2(images) * kept, s=images.shape[2:])


@MODELS.register_module('pixels')
class Pixels:
    """The image itself. The other targets have the same attributes and methods.

    Args:
        patch_size: Stride of the features that are decoded, in pixels.
        in_channels: Channels of the images, C.
    """

    unit = 'pixel'  # what the map has a vector of values for
    no_colours = ''  # what is predicted, if a hidden patch cannot be painted with it

    def __init__(self, patch_size: int, in_channels: int) -> None:
        self.patch_size = patch_size
        self.cells = patch_size  # per side of a patch, s
        self.channels = in_channels  # of the map, D

    def __call__(self, images: Tensor) -> Tensor:
        """The map as it is drawn: (B, C, H, W), normalised -> (B, D, h*s, w*s)."""
        return images

    def normalized(self, maps: Tensor, images: Tensor) -> Tensor:
        """A map as it is drawn -> as the head predicts it; `images` are the true ones, (B, C, H, W)."""
        return maps

    def restored(self, maps: Tensor, images: Tensor) -> Tensor:
        """A map as the head predicts it -> as it is drawn; `images` are the true ones, (B, C, H, W)."""
        return maps

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply to all tensors what `nn.Module._apply` applies, such as a move to another device."""


@MODELS.register_module('normalized_pixels')
class NormalizedPixels(Pixels):
    """The image, each patch normalised by its own mean and standard deviation (`normalize_patches`), as in MAE."""

    no_colours = 'patches normalised by their own mean and std, which are unknown for a hidden patch'

    def normalized(self, maps: Tensor, images: Tensor) -> Tensor:
        """By the patches of the images."""
        _, mean, std = normalize_patches(self._rows(images))
        return self._map((self._rows(maps) - mean) / std)

    def restored(self, maps: Tensor, images: Tensor) -> Tensor:
        """With mean and deviation of the true patches, which the model does not know."""
        _, mean, std = normalize_patches(self._rows(images))
        return self._map(self._rows(maps) * std + mean)

    def _rows(self, images: Tensor) -> Tensor:
        """(B, C, h*p, w*p) -> (B, h, w, C*p*p)."""
        return F.pixel_unshuffle(images, self.patch_size).permute(0, 2, 3, 1)

    def _map(self, rows: Tensor) -> Tensor:
        return F.pixel_shuffle(rows.permute(0, 3, 1, 2), self.patch_size)


@MODELS.register_module('low_pass')
class LowPass(Pixels):
    """The image without high frequencies: `low_pass`.

    Args:
        patch_size: See `Pixels`.
        in_channels: See `Pixels`.
        radius: Largest frequency that stays, in cycles per 224 px; the paper's is 40.

    Raises:
        ValueError: The radius is out of range.
    """

    def __init__(self, patch_size: int, in_channels: int, radius: float = 40) -> None:
        super().__init__(patch_size, in_channels)
        self.radius = number('SimMIMHead.target.radius', radius, 0, hint='PixMIM uses 40 at 224 px', ends='(]')

    def __call__(self, images: Tensor) -> Tensor:
        """Filter the images."""
        return low_pass(images, self.radius)


@MODELS.register_module('hog')
class HOG(Pixels):
    """Histograms of oriented gradients: `hog`.

    MaskFeat's loss is `dict(type='ReconstructionLoss', criterion='l2')`; the head's own default is 'l1'.

    Args:
        patch_size: See `Pixels`.
        in_channels: See `Pixels`.
        bins: Number of directions.
        cell: Side of a cell in pixels, which divides the patch; None: half the patch, as MaskFeat's 8 of 16.
        window: Side of the Gaussian windows in pixels, 0 for none. None: the patch, as MaskFeat's 16. Images that
            another window does not divide are an error.

    Raises:
        ValueError: An argument is out of range, or the patch is odd and no cell is given.
    """

    unit, no_colours = 'cell', 'histograms of gradients, which have no colours'

    def __init__(
        self, patch_size: int, in_channels: int, bins: int = 9, cell: int | None = None, window: int | None = None
    ) -> None:
        super().__init__(patch_size, in_channels)
        self.bins = whole('SimMIMHead.target.bins', bins, 1, LARGEST, 'MaskFeat uses 9')
        if cell is None and patch_size % 2:
            raise ValueError(
                f"SimMIMHead.target='hog': the patch of {patch_size} px is odd and has no half; give "
                f"target=dict(type='hog', cell={patch_size}), or another divisor of the patch"
            )
        self.cell = whole('SimMIMHead.target.cell', patch_size // 2 if cell is None else cell, 1, LARGEST)
        if patch_size % self.cell:
            raise ValueError(f'SimMIMHead.target.cell={cell} must divide the patch, {patch_size} px')
        self.window = whole('SimMIMHead.target.window', patch_size if window is None else window, 0, LARGEST)
        self.cells = patch_size // self.cell
        self.channels = in_channels * bins

    def __call__(self, images: Tensor) -> Tensor:
        """Histograms of the cells."""
        return hog(images, self.cell, self.bins, self.window)


@MODELS.register_module('features')
class Features(Pixels):
    """Features of a frozen teacher, which sees the whole image, each token normalised to mean 0 and deviation 1.

    The normalisation is a LayerNorm without weights, as in MaskDistill (arXiv 2210.10615), whose loss is 'smooth_l1';
    EVA and MILAN take the 'cosine' of features as they are.

    The teacher is no part of the model: it is not trained, averaged or sharded, and checkpoints do not hold it. It is
    built again from its config, and its weights are read from the file that `init_cfg` names. It gets the images that
    the model gets, so that mean and std of the data preprocessor must suit it.

    Args:
        patch_size: See `Pixels`.
        in_channels: See `Pixels`.
        teacher: Config of a backbone, `SimMIMViT` or `MaskedBackbone`, with weights: `init_cfg=dict(type='Pretrained',
            checkpoint=...)`, or `model=dict(..., pretrained=True)`; or a built one. Its stride is `patch_size`.

    Raises:
        ValueError: The teacher has no weights, is only in part in its file, or has another stride or other channels.
    """

    unit, no_colours = 'token', 'features of a teacher, which have no colours'

    def __init__(self, patch_size: int, in_channels: int, teacher: dict[str, Any] | nn.Module) -> None:
        super().__init__(patch_size, in_channels)
        self.teacher = checked(build_part(teacher, 'SimMIMHead.target.teacher'), 'SimMIMHead.target.teacher')
        if isinstance(teacher, Mapping):
            init, model = teacher.get('init_cfg'), teacher.get('model')
            if init or not (isinstance(model, Mapping) and model.get('pretrained')):
                load_frozen(self.teacher, init)
        self.teacher.requires_grad_(False).eval()  # and stays so: `train()` of the model does not reach it
        for name, ours in (('patch_size', patch_size), ('in_channels', in_channels)):
            if getattr(self.teacher, name) != ours:
                words = dict(patch_size='a stride of {} px', in_channels='images of {} channels')[name]
                raise ValueError(
                    f'SimMIMHead.target: the teacher has {words.format(getattr(self.teacher, name))}, the model '
                    f'{words.format(ours)}; they must agree'
                )
        self.cells, self.channels = 1, self.teacher.embed_dims

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised features of the images."""
        with torch.no_grad():
            features = self.teacher(images)[-1]
        if features.ndim != 4:
            raise ValueError(
                f"SimMIMHead.target: the teacher's features of shape {tuple(features.shape)} are not a map; set its "
                "out_type='featmap'"
            )
        return F.layer_norm(wide(features).movedim(1, -1), (self.channels,)).movedim(-1, 1)

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """With the head."""
        self.teacher._apply(function)

    def __deepcopy__(self, memo: dict[int, Any]) -> 'Features':
        """Itself: an average of the weights needs no second teacher."""
        return self


def build_target(target: str | Mapping[str, Any], patch_size: int, in_channels: int) -> Pixels:
    """Build a target from its name, or a dict with the name as `type` and settings.

    Raises:
        ValueError: The name is unknown, or a setting is out of range.
    """
    config = target if isinstance(target, Mapping) else dict(type=target)
    choice('SimMIMHead.target', config.get('type'), TARGETS)
    return build_part({**config, 'patch_size': patch_size, 'in_channels': in_channels}, 'target')
