"""Recognise by its names which code base a state dict is from, and which part of another model differs from ours."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from simmim_plugin.checkpoints.files import tensors_of
from simmim_plugin.checkpoints.names import (
    BEIT,
    DINOV2,
    HF_BEIT,
    HF_DINOV2,
    HF_IN_MEMORY,
    HF_PREFIXES,
    HF_VIT,
    MMPRETRAIN_BEIT,
    MMPRETRAIN_VIT,
    PLUGIN,
    TORCHVISION,
    TORCHVISION_OLD,
    VIT,
    inverse,
)
from simmim_plugin.models.layers.relative_position import INDEX

FAMILIES = (
    'this package, SimMIM (ViT), timm (Beit, VisionTransformer: augreg, DeiT ...), torchvision (vit_*), MAE and DINOv2 '
    '(original files), Hugging Face (Beit, ViT, ViTMAE, ViTMSN, DeiT, Dinov2, with registers), MMPretrain (BEiTViT, '
    'VisionTransformer, DeiT, MAE)'
)
ANY_BACKBONE = 'docs/backbones.md says how to use it as it is'
FIRST = 10  # names in a message about an unknown checkpoint

# Names from each family's tables to ours. Those of a Beit and of an ordinary ViT are told apart where the same
# names mean something else together: `gamma_1` next to `qkv.bias`, or `reg_token` next to `q_bias`, is an EVA.
_TABLES = {
    'official': inverse(PLUGIN),
    'beit': inverse(BEIT),
    'timm': inverse(VIT),
    'mae': inverse(VIT),
    'dinov2': inverse(DINOV2),
    'torchvision': inverse(TORCHVISION, TORCHVISION_OLD),
    'hf': inverse(HF_BEIT, HF_VIT, HF_DINOV2),
    'mmpretrain': inverse(MMPRETRAIN_BEIT, MMPRETRAIN_VIT),
}
# Prefixes of the names of a backbone, and, where it has none, of other parts.
PREFIXES: dict[str, tuple[str, ...]] = {'official': ('encoder.',), 'hf': HF_PREFIXES}
OTHER_PARTS = (
    'head.', 'head_dist.', 'heads.', 'neck.', 'fc.', 'classifier.', 'cls_classifier.', 'distillation_classifier.',
    'lm_head.', 'decode_head.', 'auxiliary_head.', 'fpn', 'pre_logits.', 'pooler.dense.', 'decoder.', 'decoder_',
)  # fmt: skip
CLASSIFIERS = ('head', 'head.fc', 'head.layers.head', 'heads.head', 'classifier', 'cls_classifier')
# With these, the logits are not those of one linear layer.
NOT_LINEAR = re.compile(
    r'^(head\.layers\.|heads\.)?(pre_logits|head_dist)\.|^head\.head_dist\.|^distillation_classifier'
)
CHUNK = re.compile(r'^blocks\.\d+\.(?=\d+\.)')  # DINOv2's training files group blocks, and number them through

# Names by which families are told apart.
HF_PATCHES = re.compile(r'embeddings\.patch_embeddings\.projection\.weight$')
HF_BLOCK = re.compile(r'(^|\.)layers?\.0\.attention\.')
SIGNATURES = {
    'mmpretrain': {'layers.0.ln1.weight', 'layers.0.attn.qkv.weight', 'patch_embed.projection.weight'},
    'torchvision': {'conv_proj.weight', 'class_token', 'encoder.layers.encoder_layer_0.ln_1.weight'},
    'timm': {'blocks.0.norm1.weight', 'patch_embed.proj.weight'},
}

# What other backbones have, by their names: the first that is found is named.
DIFFERENT = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (r'\blayers\.\d+\.blocks\.\d+\.|\bstages\.\d+\.blocks\.\d+\.attn\.w_msa', 'a Swin Transformer'),
        (r'depthwise_conv|\bdwconv\.|\bconv_dw\.|\bdownsample_layers\.', 'a ConvNeXt or another convolutional network'),
        (r'\blayer[1-4]\.\d+\.conv1\.|\bstages\.\d+\.layers\.\d+\.layer\.\d+\.convolution', 'a ResNet'),
        (r'\b[qk]_norm\.', 'normalised queries and keys (QK-norm)'),
        (r'\bmlp\.(w12|w3|w1|w2|fc1_g|fc1_x|weights_in|gate_proj)\.|\bffn\.w12\.', 'a gated MLP (SwiGLU)'),
        (
            r'\brope|rotary|\bfreqs|inv_freq|\bperiods|qkv\.bias_mask|storage_tokens|patch_embeddings\.weight$',
            'rotary position embedding (RoPE, as in EVA-02 and DINOv3)',
        ),
        (r'\bnorm_pre\.|\bpre_norm\.|\bpre_layrnorm\.|\bln_pre\.', 'a norm in front of the first block (CLIP)'),
        (r'\battns\.|\bffns\.|\bin_norm\.|\bmlp_out_proj\.', 'attention and MLP in parallel'),
        (r'\battn\.(inner_)?norm\.|\bmlp\.norm\.|\bffn_layernorm\.|\binner_attn_ln\.', 'norms in attention or MLP'),
        (r'\battn_pool\.|\bhead\.probe$', 'pooling by attention instead of a class token (SigLIP)'),
        (r'\bpatch_embed(dings)?\.(backbone|stem|conv|proj\.\d)|\bconv_proj\.\w+\.', 'a convolutional stem'),
        (r'\bgamma_[12]$', "EVA's LayerScale (gamma_1 next to qkv.bias), which goes with rotary position embedding"),
    )
)  # fmt: skip


def recognise(state: Mapping[str, Any]) -> str:
    """Detect from its names which code base a state dict (or a checkpoint with one) is from.

    A bare `Beit` is 'timm', and one with a mask token 'plugin': their names are the same, so both convert alike.

    Returns:
        'plugin', 'official' (microsoft/SimMIM), 'timm', 'mae' (with its decoder), 'dinov2' (original names),
        'torchvision', 'hf' or 'mmpretrain'.

    Raises:
        ValueError: It is from none of them.
    """
    names = list(tensors_of(state))
    bare = {CHUNK.sub('blocks.', name.removeprefix('backbone.')) for name in names}
    if any(name.startswith('encoder.blocks.') for name in names):
        return 'official'
    if any(HF_PATCHES.search(name) for name in names) and any(HF_BLOCK.search(name) for name in names):
        return 'hf'
    for kind, wanted in SIGNATURES.items():
        if wanted <= bare:
            return kind if kind != 'timm' else _with_names_of_timm(names, bare)
    part = different_part(names)
    what = f'it has {part}; {ANY_BACKBONE}' if part else f'the families known are {FAMILIES}'
    raise ValueError(f'this is no state dict of a ViT that is known here: {what}. It starts with {first(names)}')


def _with_names_of_timm(names: list[str], bare: set[str]) -> str:
    if 'blocks.0.attn.qkv.bias' in bare:
        decoder = any(name.startswith(('decoder_embed.', 'decoder_blocks.')) for name in bare)
        return 'mae' if decoder else 'dinov2' if {'mask_token', 'register_tokens'} & bare else 'timm'
    if any(name.startswith('backbone.') for name in names) or 'mask_token' in bare:
        return 'plugin'
    return 'official' if any(name.endswith(INDEX) for name in names) else 'timm'


def table_of(kind: str, names: Collection[str]) -> dict[str, str]:
    """Table from the names of a state dict of this kind, without prefixes, to ours; see `names.py`."""
    if kind == 'plugin':
        kind = 'official' if 'mask_token' in names else 'beit'  # every SimMIMViT has a mask token
    elif kind == 'timm' and 'blocks.0.attn.qkv.bias' not in names:
        kind = 'beit'
    return _TABLES[kind]


def plain_name(name: str, kind: str) -> str:
    """The name without the prefix of a backbone, as its family writes it to disk."""
    prefixes = PREFIXES.get(kind, ('backbone.',))
    bare = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
    if kind == 'hf':
        for pattern, replacement in HF_IN_MEMORY:
            bare = pattern.sub(replacement, bare)
    return CHUNK.sub('blocks.', bare)


def head_name(name: str, kind: str) -> str | None:
    """Our name of a parameter of a classifier or decoder; None if SimMIM has no such part."""
    if kind == 'plugin' and name.startswith('head.'):
        return f'head.fc.{name[5:]}' if name in ('head.weight', 'head.bias') else name
    owner, _, last = name.rpartition('.')
    if owner in CLASSIFIERS:
        return f'head.fc.{last}'
    return f'head.decoder.{last}' if owner == 'decoder.0' and kind in ('official', 'hf') else None


def different_part(names: Collection[str]) -> str:
    """What these names of another backbone are, in words; '' if that is not known."""
    return next((part for pattern, part in DIFFERENT if any(pattern.search(name) for name in names)), '')


def first(names: Collection[str]) -> str:
    """The first names of a checkpoint, for a message."""
    listed = list(names)
    return ', '.join(listed[:FIRST]) + (f' ... ({len(listed)} names)' if len(listed) > FIRST else '')
