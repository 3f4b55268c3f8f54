"""Ordinary ViTs of other projects with random weights, and what their tokens are."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchvision
from mmengine.registry import MODELS, init_default_scope
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from helpers.other_projects import randomise
from simmim_plugin import SimMIMViT
from simmim_plugin.checkpoints.state_dicts import to_plugin

os.environ['HF_HUB_OFFLINE'] = '1'
SIZE, PATCH, WIDTH, DEPTH, HEADS, HIDDEN, CLASSES = 64, 16, 64, 2, 4, 128, 7
GRID = (SIZE // PATCH, SIZE // PATCH)  # which rows of a position embedding do not always tell
ARCH = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=HIDDEN)


class Family(NamedTuple):
    """A model of another project."""

    model: nn.Module
    tokens: Callable[[Tensor], Tensor]  # (B, 1 + registers + patches, D), behind the last norm
    kind: str  # as it is recognised
    left_out: tuple[str, ...] = ()  # names that SimMIM has no place for, up to the first dot
    eps: float = 1e-6
    state: dict[str, Tensor] | None = None  # of the original files, if the model is of another project

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict()) if self.state is None else self.state


def timm_vit(base: type = VisionTransformer, **changes: Any) -> nn.Module:
    sizes = dict(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=2)
    return randomise(base(**{**sizes, 'num_classes': CLASSES, **changes}))


def _timm(left_out: tuple[str, ...] = (), base: type = VisionTransformer, **changes: Any) -> Family:
    model: Any = timm_vit(base, **changes)
    return Family(model, model.forward_features, 'timm', left_out)


def _mae() -> Family:
    """The original files: an encoder of timm's names, a decoder of half the width, fixed positions of the patches."""
    family = _timm(num_classes=0)
    with torch.no_grad():
        family.model.pos_embed[:, 0] = 0
    decoder: Any = timm_vit(embed_dim=WIDTH // 2, depth=1, num_classes=0)
    names = {'blocks': 'decoder_blocks', 'norm': 'decoder_norm'}
    parts = {key.partition('.') for key in decoder.state_dict() if key.partition('.')[0] in names}
    state = {**family.model.state_dict(), 'mask_token': torch.randn(1, 1, WIDTH // 2)}
    state |= {f'{names[part]}.{rest}': decoder.state_dict()[f'{part}.{rest}'] for part, _, rest in parts}
    state |= {'decoder_pos_embed': decoder.pos_embed.detach(), 'decoder_embed.weight': torch.randn(WIDTH // 2, WIDTH)}
    state |= {'decoder_pred.weight': torch.randn(768, WIDTH // 2), 'decoder_embed.bias': torch.randn(WIDTH // 2)}
    left_out = ('decoder_blocks', 'decoder_embed', 'decoder_norm', 'decoder_pos_embed', 'decoder_pred', 'mask_token')
    return family._replace(kind='mae', left_out=left_out, state=state)


def _dinov2(registers: int) -> Family:
    """The original files: registers without positions, a class token with one, a mask token (1, D)."""
    model: Any = timm_vit(init_values=0.1, reg_tokens=registers, num_classes=0)
    state = dict(model.state_dict())
    if registers:  # timm's positions of registers are zeros here
        with torch.no_grad():
            model.pos_embed[:, 1 : 1 + registers] = 0
        positions = model.pos_embed.detach()
        state['pos_embed'] = torch.cat((positions[:, :1], positions[:, 1 + registers :]), dim=1)
        state['register_tokens'] = state.pop('reg_token')
    return Family(model, model.forward_features, 'dinov2', state={**state, 'mask_token': torch.randn(1, WIDTH)})


def _torchvision() -> Family:
    model = randomise(
        torchvision.models.VisionTransformer(SIZE, PATCH, DEPTH, HEADS, WIDTH, HIDDEN, num_classes=CLASSES)
    )

    def tokens(images: Tensor) -> Tensor:
        patches = model._process_input(images)
        return model.encoder(torch.cat((model.class_token.expand(len(images), -1, -1), patches), dim=1))

    return Family(model, tokens, 'torchvision')


def hf_model(name: str, **changes: Any) -> nn.Module:
    """A model of transformers by the name of its class."""
    import transformers

    family = next(
        part for part in ('ViTMAE', 'ViTMSN', 'ViT', 'DeiT', 'Dinov2WithRegisters', 'Dinov2') if name.startswith(part)
    )
    sizes: dict[str, Any] = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE)
    sizes |= dict(mlp_ratio=2, patch_size=PATCH) if family.startswith('Dino') else dict(intermediate_size=HIDDEN)
    decoder = dict(
        decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
        decoder_intermediate_size=64, mask_ratio=0.0,
    )  # fmt: skip
    config = getattr(transformers, f'{family}Config')(
        **{**sizes, **(decoder if family == 'ViTMAE' else {}), 'num_labels': CLASSES, **changes}
    )
    return randomise(getattr(transformers, name)(config))


def _hf(name: str, left_out: tuple[str, ...] = (), eps: float = 1e-12, **changes: Any) -> Family:
    model: Any = hf_model(name, **changes)
    inner = getattr(model, model.base_model_prefix, model)

    def tokens(images: Tensor) -> Tensor:
        if name.startswith('ViTMAE'):  # in their order, not shuffled
            order = torch.arange((SIZE // PATCH) ** 2, dtype=images.dtype)
            return inner(images, noise=order.expand(len(images), -1)).last_hidden_state
        return inner(images).last_hidden_state

    return Family(model, tokens, 'hf', left_out, eps)


def mmpretrain_vit(**changes: Any) -> dict[str, Any]:
    return (
        dict(type='mmpretrain.VisionTransformer', arch=ARCH, img_size=SIZE, patch_size=PATCH, out_type='raw') | changes
    )


def _mmpretrain(left_out: tuple[str, ...] = (), head: str = 'VisionTransformerClsHead', **changes: Any) -> Family:
    init_default_scope('mmpretrain')
    head_config = dict(type=f'mmpretrain.{head}', num_classes=CLASSES, in_channels=WIDTH)
    config = dict(type='mmpretrain.ImageClassifier', backbone=mmpretrain_vit(**changes), head=head_config)
    model: Any = randomise(MODELS.build(config))
    return Family(model, lambda images: model.backbone(images)[0], 'mmpretrain', left_out)


def _mmpretrain_mae() -> Family:
    init_default_scope('mmpretrain')
    neck = dict(num_patches=16, embed_dim=WIDTH, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    loss = dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2')
    model: Any = randomise(
        MODELS.build(
            dict(
                type='mmpretrain.MAE',
                backbone={**mmpretrain_vit(type='mmpretrain.MAEViT'), 'out_type': 'raw'},
                neck=dict(type='mmpretrain.MAEPretrainDecoder', **neck),
                head=dict(type='mmpretrain.MAEPretrainHead', patch_size=PATCH, loss=loss),
            )
        )
    )
    return Family(model, lambda images: model.backbone(images, mask=None)[0], 'mmpretrain', ('neck',))


FAMILIES: dict[str, Callable[[], Family]] = {
    'timm': _timm,
    'timm DeiT': lambda: _timm(('head', 'head_dist'), VisionTransformerDistilled),
    'timm DeiT III': lambda: _timm(no_embed_class=True, init_values=0.1),
    'timm DINOv2': lambda: _timm(init_values=0.1),
    'timm DINOv2 with registers': lambda: _timm(init_values=0.1, reg_tokens=4, no_embed_class=True),
    'timm registers with positions': lambda: _timm(reg_tokens=4),
    'MAE': _mae,
    'DINOv2': lambda: _dinov2(0),
    'DINOv2 with registers': lambda: _dinov2(4),
    'torchvision': _torchvision,
    'ViTModel': lambda: _hf('ViTModel', ('pooler',)),
    'ViTForImageClassification': lambda: _hf('ViTForImageClassification', layer_norm_eps=1e-6, eps=1e-6),
    'ViTForMaskedImageModeling': lambda: _hf('ViTForMaskedImageModeling'),
    'ViTMAEModel': lambda: _hf('ViTMAEModel'),
    'ViTMAEForPreTraining': lambda: _hf('ViTMAEForPreTraining', ('decoder',)),
    'ViTMSNModel': lambda: _hf('ViTMSNModel', eps=1e-6),
    'DeiTModel': lambda: _hf('DeiTModel', ('pooler',)),
    'DeiTForImageClassificationWithTeacher': lambda: _hf(
        'DeiTForImageClassificationWithTeacher', ('cls_classifier', 'distillation_classifier')
    ),
    'Dinov2Model': lambda: _hf('Dinov2Model', eps=1e-6),
    'Dinov2ForImageClassification': lambda: _hf('Dinov2ForImageClassification', ('classifier',), eps=1e-6),
    'Dinov2WithRegistersModel': lambda: _hf('Dinov2WithRegistersModel', eps=1e-6),
    'MMPretrain': _mmpretrain,
    'MMPretrain LayerScale': lambda: _mmpretrain(layer_scale_init_value=0.1, head='LinearClsHead'),
    'MMPretrain DeiT': lambda: _mmpretrain(('head',), 'DeiTClsHead', type='mmpretrain.DistilledVisionTransformer'),
    'MMPretrain MAE': _mmpretrain_mae,
}  # fmt: skip


def simmim_vit(state: dict[str, Tensor], eps: float = 1e-6, **changes: Any) -> SimMIMViT:
    """Our model with the weights of an ordinary ViT of any family, all of them and no others."""
    converted = to_plugin(state, like=GRID).state
    own = {name.removeprefix('backbone.'): value for name, value in converted.items() if name.startswith('backbone.')}
    arguments: dict[str, Any] = dict(
        arch=ARCH, img_size=SIZE, patch_size=PATCH, use_shared_rel_pos_bias=False, use_abs_pos_embed=True, norm_eps=eps,
        num_registers=own['reg_token'].shape[1] if 'reg_token' in own else 0, out_type='raw',
        layer_scale_init_value=0.1 if 'blocks.0.gamma_1' in own else 0.0,
    )  # fmt: skip
    model = SimMIMViT(**{**arguments, **changes}).to(own['cls_token'].dtype)
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert set(missing) <= {'mask_token'} and not unexpected
    return model.eval()
