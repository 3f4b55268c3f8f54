"""Recognise by its names which code base a state dict is from, and which part of another model differs from ours."""

import re
from collections.abc import Collection

FAMILIES = (
    'this package, SimMIM (ViT), timm (Beit, VisionTransformer: augreg, DeiT ...), torchvision (vit_*), MAE and DINOv2 '
    '(original files), Hugging Face (Beit, ViT, ViTMAE, ViTMSN, DeiT, Dinov2, with registers), MMPretrain (BEiTViT, '
    'VisionTransformer, DeiT, MAE); and Swin of the official code, timm, Hugging Face, MMPretrain and MMDetection'
)
ANY_BACKBONE = 'docs/backbones.md says how to use it as it is'
FIRST = 10  # names in a message about an unknown checkpoint

HF_PREFIXES = ('beit.', 'data2vec_vision.', 'vit.', 'deit.', 'dinov2.', 'dinov2_with_registers.')
# Names of a model in memory in transformers 5 -> names on disk, one after the other. (`mlp.fc1` is Dinov2's.)
HF_IN_MEMORY = (
    (re.compile(r'^shared_position_bias\.'), 'encoder.relative_position_bias.'),
    (re.compile(r'^(?:encoder\.)?layers?\.(\d+)\.'), r'encoder.layer.\1.'),
    (re.compile(r'\.attention\.o_proj\.'), '.attention.output.dense.'),
    (re.compile(r'\.attention\.q_proj\.'), '.attention.attention.query.'),
    (re.compile(r'\.attention\.k_proj\.'), '.attention.attention.key.'),
    (re.compile(r'\.attention\.v_proj\.'), '.attention.attention.value.'),
    (
        re.compile(r'^encoder\.layer\.(\d+)\.relative_position_bias\.'),
        r'encoder.layer.\1.attention.attention.relative_position_bias.',
    ),
)
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

# Names that distinguish families.
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
        (
            r'\blayers\.\d+\.blocks\.\d+\.|\bstages\.\d+\.blocks\.\d+\.attn\.w_msa',
            'stages of blocks (Swin Transformer)',
        ),
        (r'depthwise_conv|\bdwconv\.|\bconv_dw\.|\bdownsample_layers\.', 'depthwise convolutions (ConvNeXt)'),
        (
            r'\blayer[1-4]\.\d+\.conv1\.|\bstages\.\d+\.layers\.\d+\.layer\.\d+\.convolution',
            'residual blocks of convolutions (ResNet)',
        ),
        (r'\b[qk]_norm\.', 'normalised queries and keys (QK-norm)'),
        (r'\bmlp\.(w12|w3|w1|w2|fc1_g|fc1_x|weights_in|gate_proj)\.|\bffn\.w12\.', 'a gated MLP (SwiGLU)'),
        (
            r'\brope|rotary|\bfreqs|inv_freq|\bperiods|qkv\.bias_mask|storage_tokens|patch_embeddings\.weight$',
            'rotary position embedding (RoPE, as in EVA-02 and DINOv3)',
        ),
        (
            r'^(backbone\.)?(norm_pre|pre_norm)\.|\bpre_layrnorm\.|\bln_pre\.',
            'a norm in front of the first block (CLIP)',
        ),
        (r'\battns\.|\bffns\.|\bin_norm\.|\bmlp_out_proj\.', 'attention and MLP in parallel'),
        (r'\battn\.(inner_)?norm\.|\bmlp\.norm\.|\bffn_layernorm\.|\binner_attn_ln\.', 'norms in attention or MLP'),
        (r'\battn_pool\.|\bhead\.probe$', 'pooling by attention instead of a class token (SigLIP)'),
        (r'\bpatch_embed(dings)?\.(backbone|stem|conv|proj\.\d)|\bconv_proj\.\w+\.', 'a convolutional stem'),
    )
)
SCALE = re.compile(r'\bgamma_[12]$')


def kind_of(names: Collection[str]) -> str:
    """Code base that a state dict with these names is from; see `state_dicts.recognise`."""
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
    raise ValueError(f'this is no state dict of a ViT that is known here: {what}. It starts with {listed(names)}')


def _with_names_of_timm(names: Collection[str], bare: set[str]) -> str:
    if 'blocks.0.attn.qkv.bias' in bare:
        decoder = any(name.startswith(('decoder_embed.', 'decoder_blocks.')) for name in bare)
        return 'mae' if decoder else 'dinov2' if {'mask_token', 'register_tokens'} & bare else 'timm'
    if any(name.startswith('backbone.') for name in names) or 'mask_token' in bare:
        return 'plugin'
    return 'official' if any(name.endswith('relative_position_index') for name in names) else 'timm'


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
    if names and all(SCALE.search(name) for name in names):
        return "EVA's LayerScale (gamma_1 next to qkv.bias), which goes with rotary position embedding"
    return next((part for pattern, part in DIFFERENT if any(pattern.search(name) for name in names)), '')


def listed(names: Collection[str]) -> str:
    """The first names of a checkpoint, for a message."""
    start = ', '.join(list(names)[:FIRST])
    return start + (f' ... ({len(names)} names)' if len(names) > FIRST else '')
