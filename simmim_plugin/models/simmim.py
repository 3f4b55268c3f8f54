"""SimMIM: a backbone that sees a masked image and a head that predicts the masked pixels."""

from collections.abc import Mapping
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from simmim_plugin.registry import MODELS, build_part
from simmim_plugin.utils.arguments import choice, parts

MODES = ('loss', 'tensor')


@MODELS.register_module()
class SimMIM(BaseModel):
    """SimMIM: a simple framework for masked image modelling (arXiv 2111.09886).

    Args:
        backbone: Config of a backbone (or a built one) with `forward(x, mask)`, such as `SimMIMViT`.
        head: Config of the head. `in_channels`, `patch_size` and `out_channels` default to the backbone's.
        data_preprocessor: Config of the preprocessor, such as `SimMIMDataPreprocessor`.
        init_cfg: See `mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        backbone: dict[str, Any] | nn.Module,
        head: dict[str, Any] | nn.Module | None = None,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        if data_preprocessor is not None:
            data_preprocessor = build_part(data_preprocessor, 'data_preprocessor')
        super().__init__(data_preprocessor, parts('init_cfg', init_cfg))
        self.backbone = build_part(backbone, 'backbone')
        fitting = dict(
            type='SimMIMHead',
            in_channels=self.backbone.embed_dims,
            patch_size=self.backbone.patch_size,
            out_channels=self.backbone.in_channels,
        )
        head = fitting if head is None else {**fitting, **head} if isinstance(head, Mapping) else head
        self.head = build_part(head, 'head')

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        mode: str = 'tensor',
        mask_local: Tensor | None = None,
        mask_global: Tensor | None = None,
    ) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Loss or features of normalised images.

        Args:
            inputs: (B, C, H, W).
            mask: (B, h, w) over the patches, 1 = masked. Needed by mode 'loss', unused by 'tensor'.
            mode: 'loss' returns what `SimMIMHead.loss` returns; 'tensor' the backbone's features without a mask.
            mask_local: The local one of two simultaneous masks; its error is logged.
            mask_global: The global one; its error is logged. `mask` is their union.

        Raises:
            ValueError: Unknown mode, or no mask where one is needed.
        """
        if choice('mode', mode, MODES) == 'tensor':
            return self.backbone(inputs)
        if mask is None:
            raise ValueError("mode='loss' needs a mask; add SimMIMMaskGenerator to the pipeline")
        return self.loss(inputs, mask, mask_local, mask_global)

    def loss(
        self,
        inputs: Tensor,
        mask: Tensor,
        mask_local: Tensor | None = None,
        mask_global: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Reconstruction loss: (B, C, H, W) normalised, (B, h, w) masks -> see `SimMIMHead.loss`."""
        features = self.backbone(inputs, mask)[-1]  # (B, embed_dims, h, w)
        return self.head.loss(features, inputs, mask, local=mask_local, global_=mask_global)

    def reconstruct(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Predict every pixel, visible ones included: (B, C, H, W), (B, h, w) -> (B, C, H, W), normalised.

        With the head's `normalize_target`, each patch gets its true mean and std, which the model does not know.
        """
        return self.head(self.backbone(inputs, mask)[-1], inputs)
