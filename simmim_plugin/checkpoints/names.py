"""Parameter names of Vision Transformers in other code bases: one table per family, from our names to theirs.

Our names are those of the reference implementation and timm's `Beit`. `{i}` is the index of a block. Where a family
stores attention differently, the table has it under names of its parts, which `layouts.py` splits and joins:
`attn.qkv.bias`, (3D,); or `attn.q.weight`, `attn.k_bias` and so on, one of query, key and value.
"""

import re
from collections.abc import Collection

from simmim_plugin.models.layers.relative_position import TABLE

BLOCK_TABLE = f'blocks.{{i}}.attn.{TABLE}'
SHARED_TABLE = f'rel_pos_bias.{TABLE}'


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f'{ours}.{kind}': f'{theirs}.{kind}' for kind in ('weight', 'bias')}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _same_both(*names: str) -> dict[str, str]:
    return {name: name for part in names for name in _both(part, part)}


# What each block of a Beit has instead of a bias of query, key and value in one.
_TWO_BIASES = _same('blocks.{i}.attn.q_bias', 'blocks.{i}.attn.v_bias', BLOCK_TABLE, SHARED_TABLE)
_TIMM = {
    **_same('cls_token', 'pos_embed', 'blocks.{i}.attn.qkv.weight'),
    **_same_both('patch_embed.proj', 'norm', 'fc_norm', 'blocks.{i}.norm1', 'blocks.{i}.norm2'),
    **_same_both('blocks.{i}.attn.proj', 'blocks.{i}.mlp.fc1', 'blocks.{i}.mlp.fc2'),
}
BEIT = {**_TIMM, **_TWO_BIASES, **_same('blocks.{i}.gamma_1', 'blocks.{i}.gamma_2')}  # timm's, and the reference's
PLUGIN = {**BEIT, **_same('mask_token', 'reg_token')}  # all parameters that a SimMIMViT may have
# timm's VisionTransformer; DeiT's and MAE's original files have its names as well.
VIT = {
    **_TIMM,
    **_same('reg_token', 'dist_token', 'blocks.{i}.attn.qkv.bias'),
    'blocks.{i}.gamma_1': 'blocks.{i}.ls1.gamma',
    'blocks.{i}.gamma_2': 'blocks.{i}.ls2.gamma',
}
DINOV2 = {**VIT, 'reg_token': 'register_tokens', 'mask_token': 'mask_token'}  # its original files

TORCHVISION = {
    'cls_token': 'class_token',
    'pos_embed': 'encoder.pos_embedding',
    **_both('patch_embed.proj', 'conv_proj'),
    **_both('norm', 'encoder.ln'),
    **_both('blocks.{i}.norm1', 'encoder.layers.encoder_layer_{i}.ln_1'),
    **_both('blocks.{i}.norm2', 'encoder.layers.encoder_layer_{i}.ln_2'),
    'blocks.{i}.attn.qkv.weight': 'encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight',
    'blocks.{i}.attn.qkv.bias': 'encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias',
    **_both('blocks.{i}.attn.proj', 'encoder.layers.encoder_layer_{i}.self_attention.out_proj'),
    **_both('blocks.{i}.mlp.fc1', 'encoder.layers.encoder_layer_{i}.mlp.0'),
    **_both('blocks.{i}.mlp.fc2', 'encoder.layers.encoder_layer_{i}.mlp.3'),
}
TORCHVISION_OLD = {  # its names until version 0.12, which its own models still read
    **TORCHVISION,
    **_both('blocks.{i}.mlp.fc1', 'encoder.layers.encoder_layer_{i}.mlp.linear_1'),
    **_both('blocks.{i}.mlp.fc2', 'encoder.layers.encoder_layer_{i}.mlp.linear_2'),
}

_MMPRETRAIN = {
    **_same('cls_token', 'pos_embed'),
    **_both('patch_embed.proj', 'patch_embed.projection'),
    **_both('norm', 'ln1'),
    **_both('fc_norm', 'ln2'),
    **_both('blocks.{i}.norm1', 'layers.{i}.ln1'),
    **_both('blocks.{i}.norm2', 'layers.{i}.ln2'),
    'blocks.{i}.attn.qkv.weight': 'layers.{i}.attn.qkv.weight',
    **_both('blocks.{i}.attn.proj', 'layers.{i}.attn.proj'),
    **_both('blocks.{i}.mlp.fc1', 'layers.{i}.ffn.layers.0.0'),
    **_both('blocks.{i}.mlp.fc2', 'layers.{i}.ffn.layers.1'),
}
MMPRETRAIN_BEIT = {
    **_MMPRETRAIN,
    **{ours: ours.replace('blocks.', 'layers.') for ours in _TWO_BIASES},
    'blocks.{i}.gamma_1': 'layers.{i}.gamma_1',
    'blocks.{i}.gamma_2': 'layers.{i}.gamma_2',
    'mask_token': 'mask_token',
}
MMPRETRAIN_VIT = {  # VisionTransformer, DistilledVisionTransformer, MAEViT
    **_MMPRETRAIN,
    'blocks.{i}.attn.qkv.bias': 'layers.{i}.attn.qkv.bias',
    'blocks.{i}.gamma_1': 'layers.{i}.attn.gamma1.weight',
    'blocks.{i}.gamma_2': 'layers.{i}.ffn.gamma2.weight',
    'dist_token': 'dist_token',
}

# The names that all versions of transformers write to disk.
_HF_ATTENTION = 'encoder.layer.{i}.attention.attention'
_HF = {
    'cls_token': 'embeddings.cls_token',
    'mask_token': 'embeddings.mask_token',
    'pos_embed': 'embeddings.position_embeddings',
    **_both('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
    **_both('norm', 'layernorm'),
    'blocks.{i}.attn.q.weight': f'{_HF_ATTENTION}.query.weight',
    'blocks.{i}.attn.k.weight': f'{_HF_ATTENTION}.key.weight',
    'blocks.{i}.attn.v.weight': f'{_HF_ATTENTION}.value.weight',
    'blocks.{i}.attn.q_bias': f'{_HF_ATTENTION}.query.bias',
    'blocks.{i}.attn.v_bias': f'{_HF_ATTENTION}.value.bias',
    **_both('blocks.{i}.attn.proj', 'encoder.layer.{i}.attention.output.dense'),
}
_HF_VIT = {
    **_HF,
    **_both('blocks.{i}.norm1', 'encoder.layer.{i}.layernorm_before'),
    **_both('blocks.{i}.norm2', 'encoder.layer.{i}.layernorm_after'),
    **_both('blocks.{i}.mlp.fc1', 'encoder.layer.{i}.intermediate.dense'),
    **_both('blocks.{i}.mlp.fc2', 'encoder.layer.{i}.output.dense'),
}
HF_BEIT = {
    **_HF_VIT,
    SHARED_TABLE: f'encoder.relative_position_bias.{TABLE}',
    **_both('fc_norm', 'pooler.layernorm'),
    BLOCK_TABLE: f'{_HF_ATTENTION}.relative_position_bias.{TABLE}',
    'blocks.{i}.gamma_1': 'encoder.layer.{i}.lambda_1',
    'blocks.{i}.gamma_2': 'encoder.layer.{i}.lambda_2',
}
HF_VIT = {  # ViT, ViTMAE, ViTMSN, DeiT
    **_HF_VIT,
    'blocks.{i}.attn.k_bias': f'{_HF_ATTENTION}.key.bias',
    'dist_token': 'embeddings.distillation_token',
}
HF_DINOV2 = {  # Dinov2, Dinov2WithRegisters
    **_HF,
    'blocks.{i}.attn.k_bias': f'{_HF_ATTENTION}.key.bias',
    'reg_token': 'embeddings.register_tokens',
    **_both('blocks.{i}.norm1', 'encoder.layer.{i}.norm1'),
    **_both('blocks.{i}.norm2', 'encoder.layer.{i}.norm2'),
    **_both('blocks.{i}.mlp.fc1', 'encoder.layer.{i}.mlp.fc1'),
    **_both('blocks.{i}.mlp.fc2', 'encoder.layer.{i}.mlp.fc2'),
    'blocks.{i}.gamma_1': 'encoder.layer.{i}.layer_scale1.lambda1',
    'blocks.{i}.gamma_2': 'encoder.layer.{i}.layer_scale2.lambda1',
}
NUMBER = re.compile(r'(?<=^blocks\.)\d+(?=\.)|(?<=^layers\.)\d+(?=\.)|(?<=^encoder\.layer\.)\d+(?=\.)|'
                    r'(?<=^encoder\.layers\.encoder_layer_)\d+(?=\.)')  # fmt: skip


def translate(name: str, table: dict[str, str]) -> str | None:
    """Translate a name by a table, keeping the index of its block; None if the table lacks it."""
    found = NUMBER.search(name)
    if found is None:
        return table.get(name)
    translated = table.get(NUMBER.sub('{i}', name))
    return translated and translated.replace('{i}', found[0])


def inverse(*tables: dict[str, str]) -> dict[str, str]:
    """The table from the names of one family, or of several, to ours."""
    return {theirs: ours for table in tables for ours, theirs in table.items()}


# Names from each family's tables to ours. A Beit and an ordinary ViT of timm's have tables of their own: `gamma_1` next
# to `qkv.bias`, or `reg_token` next to `q_bias`, is in neither, but in an EVA, which computes something else.
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


def table_of(kind: str, names: Collection[str]) -> dict[str, str]:
    """Table from the names of a state dict of this kind, without prefixes, to ours; see `names.py`."""
    if kind == 'plugin':
        kind = 'official' if 'mask_token' in names else 'beit'  # every SimMIMViT has a mask token
    elif kind == 'timm' and 'blocks.0.attn.qkv.bias' not in names:
        kind = 'beit'
    return _TABLES[kind]
