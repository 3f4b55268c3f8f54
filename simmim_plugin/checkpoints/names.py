"""Parameter names of the same model in four code bases: tables from our names to theirs.

Our names are those of the reference implementation and timm's `Beit`, so only MMPretrain's `BEiTViT` and Hugging
Face's `Beit` need a table. `{i}` is the index of a block.
"""

import re

from simmim_plugin.models.layers.relative_position import TABLE


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f'{ours}.{kind}': f'{theirs}.{kind}' for kind in ('weight', 'bias')}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


# The keys are all parameters that a SimMIMViT may have.
MMPRETRAIN = {
    **_same('cls_token', 'mask_token', 'pos_embed', f'rel_pos_bias.{TABLE}'),
    **_both('patch_embed.proj', 'patch_embed.projection'),
    **_both('norm', 'ln1'),
    **_both('fc_norm', 'ln2'),
    **_both('blocks.{i}.norm1', 'layers.{i}.ln1'),
    **_both('blocks.{i}.norm2', 'layers.{i}.ln2'),
    **_both('blocks.{i}.attn.proj', 'layers.{i}.attn.proj'),
    **_both('blocks.{i}.mlp.fc1', 'layers.{i}.ffn.layers.0.0'),
    **_both('blocks.{i}.mlp.fc2', 'layers.{i}.ffn.layers.1'),
    'blocks.{i}.attn.qkv.weight': 'layers.{i}.attn.qkv.weight',
    'blocks.{i}.attn.q_bias': 'layers.{i}.attn.q_bias',
    'blocks.{i}.attn.v_bias': 'layers.{i}.attn.v_bias',
    f'blocks.{{i}}.attn.{TABLE}': f'layers.{{i}}.attn.{TABLE}',
    'blocks.{i}.gamma_1': 'layers.{i}.gamma_1',
    'blocks.{i}.gamma_2': 'layers.{i}.gamma_2',
}

# The names that all versions of transformers write to disk. There, qkv.weight is three tensors, see state_dicts.py.
HF = {
    'cls_token': 'embeddings.cls_token',
    'mask_token': 'embeddings.mask_token',
    'pos_embed': 'embeddings.position_embeddings',
    f'rel_pos_bias.{TABLE}': f'encoder.relative_position_bias.{TABLE}',
    **_both('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
    **_both('norm', 'layernorm'),
    **_both('fc_norm', 'pooler.layernorm'),
    **_both('blocks.{i}.norm1', 'encoder.layer.{i}.layernorm_before'),
    **_both('blocks.{i}.norm2', 'encoder.layer.{i}.layernorm_after'),
    **_both('blocks.{i}.attn.proj', 'encoder.layer.{i}.attention.output.dense'),
    **_both('blocks.{i}.mlp.fc1', 'encoder.layer.{i}.intermediate.dense'),
    **_both('blocks.{i}.mlp.fc2', 'encoder.layer.{i}.output.dense'),
    'blocks.{i}.attn.qkv.weight': 'encoder.layer.{i}.attention.attention.qkv.weight',
    'blocks.{i}.attn.q_bias': 'encoder.layer.{i}.attention.attention.query.bias',
    'blocks.{i}.attn.v_bias': 'encoder.layer.{i}.attention.attention.value.bias',
    f'blocks.{{i}}.attn.{TABLE}': f'encoder.layer.{{i}}.attention.attention.relative_position_bias.{TABLE}',
    'blocks.{i}.gamma_1': 'encoder.layer.{i}.lambda_1',
    'blocks.{i}.gamma_2': 'encoder.layer.{i}.lambda_2',
}
HF_PREFIXES = ('beit.', 'data2vec_vision.')  # Data2VecVision is a Beit
# Names of a model in memory in transformers 5 -> names on disk.
HF_IN_MEMORY = (
    (re.compile(r'^shared_position_bias\.'), 'encoder.relative_position_bias.'),
    (re.compile(r'^layers\.(\d+)\.attention\.o_proj\.'), r'encoder.layer.\1.attention.output.dense.'),
    (re.compile(r'^layers\.(\d+)\.attention\.q_proj\.'), r'encoder.layer.\1.attention.attention.query.'),
    (re.compile(r'^layers\.(\d+)\.attention\.k_proj\.'), r'encoder.layer.\1.attention.attention.key.'),
    (re.compile(r'^layers\.(\d+)\.attention\.v_proj\.'), r'encoder.layer.\1.attention.attention.value.'),
    (
        re.compile(r'^layers\.(\d+)\.relative_position_bias\.'),
        r'encoder.layer.\1.attention.attention.relative_position_bias.',
    ),
    (re.compile(r'^layers\.(\d+)\.mlp\.fc1\.'), r'encoder.layer.\1.intermediate.dense.'),
    (re.compile(r'^layers\.(\d+)\.mlp\.fc2\.'), r'encoder.layer.\1.output.dense.'),
    (re.compile(r'^layers\.(\d+)\.'), r'encoder.layer.\1.'),
)

NUMBER = re.compile(r'(?<=^blocks\.)\d+(?=\.)|(?<=^layers\.)\d+(?=\.)|(?<=^encoder\.layer\.)\d+(?=\.)')


def translate(name: str, table: dict[str, str]) -> str | None:
    """Translate a name by a table, keeping the index of its block; None if the table lacks it."""
    found = NUMBER.search(name)
    if found is None:
        return table.get(name)
    translated = table.get(NUMBER.sub('{i}', name))
    return translated and translated.replace('{i}', found[0])


def inverse(table: dict[str, str]) -> dict[str, str]:
    """The table from their names to ours."""
    return {theirs: ours for ours, theirs in table.items()}
