"""Describe a converted model to other code bases: configs, and the line of Python that builds it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from simmim_plugin.checkpoints.files import save_file
from simmim_plugin.checkpoints.hubs import HF_WEIGHTS
from simmim_plugin.checkpoints.other_projects import Facts, check_mean_std, classifier_config

EPS = 1e-6  # of the LayerNorms of timm's models and MMPretrain's
# timm's names of the published models, by width, number of blocks, number of heads and hidden width of the MLP.
TIMM_NAMES = {
    'VisionTransformer': {
        (192, 12, 3, 768): 'vit_tiny_patch16_224',
        (384, 12, 6, 1536): 'vit_small_patch16_224',
        (768, 12, 12, 3072): 'vit_base_patch16_224',
        (1024, 24, 16, 4096): 'vit_large_patch16_224',
        (1280, 32, 16, 5120): 'vit_huge_patch14_224',
        (1408, 40, 16, 6144): 'vit_giant_patch14_224',
        (1664, 48, 16, 8192): 'vit_gigantic_patch14_224',
    },
    'Beit': {(768, 12, 12, 3072): 'beit_base_patch16_224', (1024, 24, 16, 4096): 'beit_large_patch16_224'},
}
HF_TYPES = {
    'Beit': 'beit',
    'ViT': 'vit',
    'Dinov2': 'dinov2',
    'Dinov2WithRegisters': 'dinov2_with_registers',
}


def mmpretrain_config(facts: Facts, family: str) -> dict[str, Any]:
    """Config of MMPretrain's ImageClassifier with `BEiTViT` or `VisionTransformer`, see `family_of`."""
    backbone: dict[str, Any] = dict(
        type=f'mmpretrain.{family}',
        arch=facts.arch,
        img_size=facts.img_size,
        patch_size=facts.patch_size,
        in_channels=facts.in_channels,
        final_norm=not facts.pooled,
        out_type=facts.out_type,
        layer_scale_init_value=0.1 if facts.layer_scale else 0.0,
    )
    if facts.norm_eps != EPS:
        backbone['norm_cfg'] = dict(type='LN', eps=facts.norm_eps)
    if family == 'BEiTViT':
        backbone |= dict(
            use_abs_pos_emb=facts.absolute,
            use_rel_pos_bias=facts.block_tables,
            use_shared_rel_pos_bias=facts.shared_table,
        )
    return classifier_config(backbone, facts)


def timm_line(facts: Facts, family: str, path: str, patches_only: bool = False) -> str:
    """The call of `timm.create_model` that builds the model with its weights, as Python.

    Args:
        facts: The architecture.
        family: 'Beit' or 'VisionTransformer', see `family_of`.
        path: File of the weights.
        patches_only: The position embedding has no row for the class token.
    """
    arch = facts.arch
    names = TIMM_NAMES[family]
    name = names.get((arch['embed_dims'], arch['num_layers'], arch['num_heads'], arch['feedforward_channels']))
    arguments: dict[str, Any] = dict(
        checkpoint_path=path,
        img_size=facts.img_size,
        patch_size=facts.patch_size,
        in_chans=facts.in_channels,
        num_classes=facts.classes,
        global_pool='avg' if facts.pooled else 'token',
        init_values=0.1 if facts.layer_scale else None,
    )
    if name is None:  # the widths of a published model are replaced
        name = next(iter(TIMM_NAMES['Beit'].values())) if family == 'Beit' else names[768, 12, 12, 3072]
        arguments |= dict(
            embed_dim=arch['embed_dims'],
            depth=arch['num_layers'],
            num_heads=arch['num_heads'],
            mlp_ratio=_mlp_ratio(arch),
        )
    if family == 'Beit':
        arguments |= dict(
            use_abs_pos_emb=facts.absolute,
            use_rel_pos_bias=facts.block_tables,
            use_shared_rel_pos_bias=facts.shared_table,
        )
    if facts.registers:
        arguments['reg_tokens'] = facts.registers
    if patches_only:
        arguments['no_embed_class'] = True
    texts = [f'{key}={value!r}' for key, value in arguments.items()]
    if facts.norm_eps != EPS:
        texts.append(f'norm_layer=functools.partial(torch.nn.LayerNorm, eps={facts.norm_eps!r})')
    return f'timm.create_model({name!r}, {", ".join(texts)})'


def hf_class(facts: Facts, family: str) -> str:
    """Name of Hugging Face's class for a model: with a classifier or a decoder where the family has one."""
    if facts.classes and family in ('Beit', 'ViT'):
        return f'{family}ForImageClassification'
    return 'ViTForMaskedImageModeling' if facts.decoder_layers == 1 and family == 'ViT' else f'{family}Model'


def hf_config(facts: Facts, family: str, mask_token: bool) -> dict[str, Any]:
    """Content of Hugging Face's config.json.

    Args:
        facts: The architecture.
        family: 'Beit', 'ViT', 'Dinov2' or 'Dinov2WithRegisters', see `family_of`.
        mask_token: The weights have one. (A ViT has one in `ViTForMaskedImageModeling` only.)
    """
    config: dict[str, Any] = dict(
        architectures=[hf_class(facts, family)],
        model_type=HF_TYPES[family],
        hidden_size=facts.arch['embed_dims'],
        num_hidden_layers=facts.arch['num_layers'],
        num_attention_heads=facts.arch['num_heads'],
        hidden_act='gelu',
        layer_norm_eps=facts.norm_eps,
        image_size=facts.img_size[0],
        patch_size=facts.patch_size,
        num_channels=facts.in_channels,
    )
    if family.startswith('Dinov2'):
        config |= dict(mlp_ratio=_mlp_ratio(facts.arch), drop_path_rate=0.0, use_mask_token=mask_token)
    else:
        config['intermediate_size'] = facts.arch['feedforward_channels']
    if facts.registers:
        config['num_register_tokens'] = facts.registers
    if family == 'ViT':
        config['encoder_stride'] = facts.patch_size
    if family == 'Beit':
        config |= dict(
            use_mask_token=mask_token,
            use_absolute_position_embeddings=facts.absolute,
            use_relative_position_bias=facts.block_tables,
            use_shared_relative_position_bias=facts.shared_table,
            layer_scale_init_value=0.1 if facts.layer_scale else 0.0,
            drop_path_rate=0.0,
            use_mean_pooling=facts.pooled,
        )
    if facts.classes and not family.startswith('Dinov2'):
        config['id2label'] = {str(i): f'LABEL_{i}' for i in range(facts.classes)}
        config['label2id'] = {f'LABEL_{i}': i for i in range(facts.classes)}
    return config


def hf_preprocessor(
    img_size: tuple[int, int], family: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Content of Hugging Face's preprocessor_config.json: resize, scale to 0 ... 1, normalise."""
    size = dict(height=img_size[0], width=img_size[1])
    return dict(
        image_processor_type='BeitImageProcessor' if family == 'Beit' else 'ViTImageProcessor',
        do_resize=True,
        size=size,
        resample=3,  # bicubic
        do_center_crop=False,
        crop_size=size,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[value / 255 for value in mean],
        image_std=[value / 255 for value in std],
    )


def _mlp_ratio(arch: dict[str, int]) -> float:
    """Ratio from which the libraries get the hidden width back: they truncate the product."""
    width, hidden = arch['embed_dims'], arch['feedforward_channels']
    ratio = hidden / width if hidden % width else hidden // width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def write_hf(
    folder: Path,
    state: dict[str, Tensor],
    config: Mapping[str, Any],
    family: str,
    img_size: tuple[int, int],
    in_channels: int,
    given: tuple[Any, Any],
) -> None:
    """Write weights and configs of Hugging Face; that of the preprocessor only if mean and std are known.

    Args:
        folder: Where to.
        state: The weights.
        config: Content of config.json.
        family: See `hf_preprocessor`.
        img_size: Image height and width in pixels.
        in_channels: Channels of the images.
        given: Mean and std, or None: ImageNet's for three channels.

    Raises:
        ValueError: Mean and std do not fit; nothing was written.
    """
    configs = {'config.json': config}
    if in_channels == 3 or given != (None, None):
        normalisation = check_mean_std(in_channels, *given)
        configs['preprocessor_config.json'] = hf_preprocessor(img_size, family, *normalisation)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / HF_WEIGHTS[0])
    for name, content in configs.items():
        (folder / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
