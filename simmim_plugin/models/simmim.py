"""SimMIM: a backbone that sees a masked image and a head that predicts what is masked."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from simmim_plugin.models.masks import MASKS, masks_of
from simmim_plugin.registry import MODELS, build_part
from simmim_plugin.utils.arguments import choice, parts

FITTING = dict(in_channels='embed_dims', patch_size='patch_size', out_channels='in_channels')  # of head and backbone
MODES = ('loss', 'predict', 'tensor')


@MODELS.register_module()
class SimMIM(BaseModel):
    """SimMIM: a simple framework for masked image modelling (arXiv 2111.09886).

    Args:
        backbone: Config of a backbone (or a built one) with `forward(x, mask)`, such as `SimMIMViT`.
        head: Config of the head. `in_channels`, `patch_size` and `out_channels` default to the backbone's `embed_dims`,
            `patch_size` and `in_channels`; of a backbone without them, or with features of another width and stride
            than its patches (Swin), they must be given.
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
        if head is None or isinstance(head, Mapping):
            head = {'type': 'SimMIMHead', **(head or {})}
            for name, of_backbone in FITTING.items():
                if name not in head and not hasattr(self.backbone, of_backbone):
                    raise ValueError(
                        f'{type(self.backbone).__name__} as backbone has no {of_backbone}; give head=dict({name}=...)'
                    )
                head.setdefault(name, getattr(self.backbone, of_backbone, None))
        self.head = build_part(head, 'head')

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        mode: str = 'tensor',
        mask_local: Tensor | None = None,
        mask_global: Tensor | None = None,
        data_samples: Sequence[Any] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]] | tuple[Tensor, ...]:
        """Loss or features of normalised images.

        Args:
            inputs: (B, C, H, W).
            mask: (B, h, w) over the patches that the backbone embeds, 1 = masked. Unused by mode 'tensor', needed by
                the others.
            mode: 'loss' returns what `SimMIMHead.loss` returns, 'predict' the same for each image, as MMEngine's
                validation needs it; 'tensor' the backbone's features without a mask.
            mask_local: The local one of two simultaneous masks; its error is logged.
            mask_global: The global one; its error is logged. `mask` is their union.
            data_samples: Per image a `DataSample` with these masks, from MMPretrain's `PackInputs`, instead of `mask`.

        Raises:
            ValueError: Unknown mode, or no mask where one is needed.
        """
        if choice('mode', mode, MODES) == 'tensor':
            return self.extract_feat(inputs)
        if mask is None:
            masks = {name: each.to(inputs.device) for name, each in masks_of(data_samples or ()).items()}
            mask, mask_local, mask_global = (masks.get(name) for name in MASKS)
        if mask is None:
            raise ValueError(f'mode={mode!r} needs a mask; add SimMIMMaskGenerator to the pipeline')
        if mode == 'predict':
            return self.losses_by_image(inputs, mask, mask_local, mask_global)
        return self.loss(inputs, mask, mask_local, mask_global)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The backbone's features without a mask, by the name that MMPretrain's tools call."""
        return self.backbone(inputs, None)  # MMPretrain's SimMIMSwinTransformer has no default

    def loss(
        self,
        inputs: Tensor,
        mask: Tensor,
        mask_local: Tensor | None = None,
        mask_global: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Reconstruction loss: (B, C, H, W) normalised, (B, h, w) masks -> see `SimMIMHead.loss`."""
        features = self.backbone(inputs, mask)[-1]  # (B, in_channels of the head, H / stride, W / stride)
        return self.head.loss(features, inputs, mask, local=mask_local, global_=mask_global)

    def losses_by_image(
        self,
        inputs: Tensor,
        mask: Tensor,
        mask_local: Tensor | None = None,
        mask_global: Tensor | None = None,
    ) -> list[dict[str, Tensor]]:
        """`loss` of each image alone. Ranks pad their last batches, so a mean over a batch would count some twice."""
        images = zip(*(x.split(1) for x in (self.backbone(inputs, mask)[-1], inputs, mask)))
        parts = [[None] * len(inputs) if x is None else x.split(1) for x in (mask_local, mask_global)]
        return [self.head.loss(*image, local=local, global_=global_) for image, local, global_ in zip(images, *parts)]

    def reconstruct(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Predict every patch, visible ones included: (B, C, H, W), (B, h, w) -> a map of the head's target.

        Of pixels it is (B, C, H, W), normalised as the inputs; with 'normalized_pixels', each patch gets its true mean
        and std, which the model does not know.
        """
        return self.head(self.backbone(inputs, mask)[-1], inputs)
