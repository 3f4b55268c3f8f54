"""SimpleFeaturePyramid: feature maps of several strides from the single map of a Vision Transformer."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from simmim_plugin.registry import MODELS
from simmim_plugin.utils.arguments import parts, whole

MODELS.register_module('LayerNorm2d', module=LayerNorm2d)  # for `norm_cfg` of heads
SCALES = (4.0, 2.0, 1.0, 0.5)  # of the input map: stride 16 becomes 4, 8, 16, 32


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """The pyramid of ViTDet (arXiv 2203.16527, section 3): every level is computed from the last map alone.

    Transposed convolutions enlarge it by 4 and 2, max-pooling halves it; then, at each level, a 1 x 1 and a 3 x 3
    convolution, each followed by a LayerNorm over the channels. Each further level takes every second pixel of the
    previous one.

    Args:
        in_channels: Channels of the map: `embed_dims` of the backbone.
        out_channels: Channels of each level.
        num_outs: Number of levels.
        start_level: The first level, for a map of stride 16: 0 is stride 4 (Mask R-CNN), 1 is stride 8 (RetinaNet).
        init_cfg: See `mmengine.model.BaseModule`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        start_level: int = 0,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(parts('init_cfg', init_cfg))
        whole('SimpleFeaturePyramid.in_channels', in_channels, 4, hint='the embed_dims of the backbone')
        whole('SimpleFeaturePyramid.out_channels', out_channels, 1, hint='ViTDet uses 256')
        whole('SimpleFeaturePyramid.num_outs', num_outs, 1, hint='ViTDet uses 5')
        whole('SimpleFeaturePyramid.start_level', start_level, 0, len(SCALES) - 1, 'for strides 4, 8, 16, 32')
        scales = SCALES[start_level : start_level + num_outs]
        self.in_channels = in_channels
        self.num_pooled = num_outs - len(scales)
        self.levels = nn.ModuleList(_level(scale, in_channels, out_channels) for scale in scales)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of `num_outs` strides, (B, out_channels, h, w) each, finest first.

        Args:
            inputs: The backbone's map (B, in_channels, h, w), or a sequence of maps, of which the last is used.

        Raises:
            ValueError: The map has another number of channels.
        """
        x = inputs if isinstance(inputs, Tensor) else inputs[-1]
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'SimpleFeaturePyramid has in_channels={self.in_channels}, but got a map of shape {tuple(x.shape)}; '
                "set in_channels to the embed_dims of the backbone, and its out_type to 'featmap'"
            )
        outputs = [level(x) for level in self.levels]
        for _ in range(self.num_pooled):
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return tuple(outputs)


def _level(scale: float, in_channels: int, out_channels: int) -> nn.Sequential:
    half, quarter = in_channels // 2, in_channels // 4
    resize: list[nn.Module] = []
    channels = in_channels
    if scale == 4:
        resize = [
            nn.ConvTranspose2d(in_channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        ]
        channels = quarter
    elif scale == 2:
        resize, channels = [nn.ConvTranspose2d(in_channels, half, 2, stride=2)], half
    elif scale == 0.5:
        resize = [nn.MaxPool2d(2, stride=2, ceil_mode=True)]
    return nn.Sequential(
        *resize,
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )
