"""Convert checkpoint files of Swin Transformers, with the configs that belong to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simmim_plugin.checkpoints.files import NOTE, save_file
from simmim_plugin.checkpoints.inner_weights import check_inner
from simmim_plugin.checkpoints.other_projects import check_mean_std, with_input
from simmim_plugin.checkpoints.resizing import check_sizes, take_decoder
from simmim_plugin.checkpoints.saved import Saved, named
from simmim_plugin.checkpoints.swin import check_stated, from_ours, kind_of, masked_state, side_of, to_ours, window_of
from simmim_plugin.checkpoints.swin_names import BUFFERS, FINAL, OPTIONAL, PATCHES, POSITIONS, depths_of
from simmim_plugin.checkpoints.their_configs import write_hf
from simmim_plugin.models.differences import differences
from simmim_plugin.models.fit import adapt_channels
from simmim_plugin.models.layers.relative_position import TABLE
from simmim_plugin.registry import build_part
from simmim_plugin.utils.arguments import grid_of, sides, whole
from simmim_plugin.utils.meta import on_meta

MASK_TOKEN = 'backbone.mask_token'
# timm's names of the published models, by width and depths.
TIMM_SIZES = {
    (96, 2, 2, 6, 2): 'tiny',
    (96, 2, 2, 18, 2): 'small',
    (128, 2, 2, 18, 2): 'base',
    (192, 2, 2, 18, 2): 'large',
}


class SwinFacts(NamedTuple):
    """Architecture of a Swin Transformer, inferred from its weights."""

    arch: dict[str, Any]  # embed_dims; depths and num_heads of each stage
    windows: list[int]  # of each stage, in its tokens
    ffn_ratio: float
    patch_size: int
    in_channels: int
    img_size: tuple[int, int]
    absolute: bool  # position embedding
    classes: int  # 0: no classifier
    stride: int  # of the features, in pixels
    decodes: bool  # has a decoder

    @property
    def width(self) -> int:
        """Channels of the features."""
        return int(self.arch['embed_dims']) << (len(self.windows) - 1)


def facts_of(
    state: Mapping[str, Tensor], img_size: tuple[int, int] | None = None, any_target: bool = False
) -> SwinFacts:
    """Infer the architecture from weights with our names.

    Args:
        state: As `swin.to_ours` returns it.
        img_size: Image height and width in pixels; None: square, from a position embedding; else such that the last
            stage is one window, as in the published models.
        any_target: The decoder may predict something else than pixels.

    Raises:
        ValueError: Windows are not square, or the decoder is not that of the features' stride.
    """
    weight = state[f'backbone.{PATCHES}']
    embed_dims, in_channels, patch_size = weight.shape[:3]
    depths = depths_of(name.removeprefix('backbone.') for name in state)
    tables = [state[f'backbone.stages.{i}.blocks.0.attn.w_msa.{TABLE}'] for i in range(len(depths))]
    windows = [window_of(f'the bias table of stage {i}', table) for i, table in enumerate(tables)]
    stride = patch_size << (len(depths) - 1)
    side = stride * windows[-1]
    positions = state.get(f'backbone.{POSITIONS}')
    if positions is not None and img_size is None:
        side = patch_size * side_of(positions)
    decoder = state.get('head.decoder.weight')
    if decoder is not None and not any_target and decoder.shape[0] != in_channels * stride**2:
        raise ValueError(
            f'the decoder predicts {decoder.shape[0]} values for each feature, not {in_channels} channels of {stride} '
            f'x {stride} px, the stride of the features'
        )
    return SwinFacts(
        arch=dict(embed_dims=embed_dims, depths=depths, num_heads=[table.shape[1] for table in tables]),
        windows=windows,
        ffn_ratio=state['backbone.stages.0.blocks.0.ffn.layers.0.0.weight'].shape[0] / embed_dims,
        patch_size=patch_size,
        in_channels=in_channels,
        img_size=img_size or (side, side),
        absolute=positions is not None,
        classes=state['head.fc.weight'].shape[0] if 'head.fc.weight' in state else 0,
        stride=stride,
        decodes=any(name.startswith('head.decoder.') for name in state),
    )


def convert(
    saved: Saved,
    target: Path,
    to: str,
    img_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    patch_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_channels: int | None = None,
    channels: str = 'repeat',
) -> tuple[str, int, list[str], list[str]]:
    """Convert a checkpoint of a Swin; see `convert_file`, also for the arguments.

    Returns:
        Kind of the source, number of tensors written, names left out, and notes.

    Raises:
        ValueError: It is no Swin that MMPretrain's represents, or an argument does not fit.
    """
    if num_heads is not None:
        raise ValueError(f"--num-heads {num_heads}: a Swin's bias tables say how many heads it has; leave it out")
    if patch_size is not None:
        raise ValueError(f'--patch-size {patch_size}: the patches of a Swin keep their size; leave it out')
    kind = kind_of(saved.state)
    check_stated(saved)
    state, left_out = to_ours(saved.state)
    _check_dimensions(state)
    weight = state[f'backbone.{PATCHES}']
    if in_channels is not None and whole('--in-channels', in_channels, 1) != weight.shape[1]:
        check_sizes(**{'--in-channels': weight[:, 0].numel() * in_channels})
        state[f'backbone.{PATCHES}'] = adapt_channels(weight, in_channels, channels)
        left_out += take_decoder(state)  # predicts pixels of the old channels
    other = _has_other_target(saved)
    if other and to != 'plugin':
        left_out += take_decoder(state)  # of a target that the other kinds do not have
    facts = facts_of(state, saved.img_size if img_size is None else sides('--img-size', img_size), other)
    _check_size(facts, state, img_size)
    _check_built(facts, state)
    _check_target(facts, to)
    adapted = facts.in_channels != weight.shape[1]
    notes = []
    if img_size is None and saved.img_size is None and not facts.absolute:
        notes.append(f'assumed: images of {facts.img_size[0]} x {facts.img_size[1]} px; others: --img-size')
    if to == 'plugin' and facts.decodes and MASK_TOKEN not in state:
        state[MASK_TOKEN] = torch.zeros(1, 1, facts.arch['embed_dims'])
        notes.append(f'added: {MASK_TOKEN}, zeros (it is used with a mask only)')
    noted = saved.part('data_preprocessor')
    given = (noted.get('mean'), noted.get('std')) if mean is None and std is None and not adapted else (mean, std)
    converted, not_held = from_ours(state, to)
    if to == 'hf':
        write_hf(target, converted, hf_config(facts), 'Swin', facts.img_size, facts.in_channels, given)
        notes.append(f'model: transformers.{hf_config(facts)["architectures"][0]}.from_pretrained({str(target)!r})')
    elif to == 'timm':
        save_file(converted, target)
        notes.append(f'model: {timm_line(facts, str(target))}')
    else:
        wrapped: dict[str, Any] = {'model' if to == 'official' else 'state_dict': converted}
        if to == 'plugin':
            same = not adapted and (img_size is None or facts.img_size == saved.img_size)
            keeps = same and kind == 'plugin' and 'pipeline' in saved.note and (mean, std) == (None, None)
            new = None if keeps else note_of(facts, *check_mean_std(facts.in_channels, *given), saved.head)
            wrapped[NOTE] = new or _kept_note(saved, converted)
        save_file(wrapped, target)
    if to in ('mmpretrain', 'backbone'):
        notes.append(f'model = {mmpretrain_config(facts) if to == "mmpretrain" else backbone_config(facts, False)}')
    return kind, len(converted), left_out + not_held, notes


def _has_other_target(saved: Saved) -> bool:
    """Whether the decoder predicts something else than pixels."""
    target = saved.head.get('target')
    return (target.get('type') if isinstance(target, Mapping) else target) in ('hog', 'features')


def _kept_note(saved: Saved, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config in a checkpoint of this package, if it is that of the weights."""
    if saved.built:  # raises, if it is not for tools
        with named(saved.path):
            check_inner(saved.backbone, masked_state(_backbone(state)), '')
    return saved.note


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the backbone, by bare names."""
    return {name.removeprefix('backbone.'): x for name, x in state.items() if name.startswith('backbone.')}


def _check_dimensions(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a weight with another number of dimensions than in any Swin."""
    for name, value in state.items():
        wanted = 1 if name.endswith('.bias') or 'norm' in name else 4 if name.endswith(PATCHES) else 2
        if value.ndim != (3 if name.endswith(OPTIONAL) else wanted):
            raise ValueError(f'{name} is of shape {tuple(value.shape)}, which that of no Swin is')


def _check_built(facts: SwinFacts, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the weights are those of the model that their facts describe."""
    found = _backbone(state)
    with on_meta():
        own = build_part(backbone_config(facts, 'mask_token' in found)).state_dict()
    own = {name: value for name, value in own.items() if not name.endswith(BUFFERS)}
    if text := differences(own, found, lambda name: FINAL.fullmatch(name) is not None):
        raise ValueError(f'its weights are not those of a Swin with {facts.arch}; {text}')


def _check_size(facts: SwinFacts, state: Mapping[str, Tensor], img_size: tuple[int, int] | None) -> None:
    """Raise ValueError unless a given image size is one of the weights'."""
    if img_size is None:
        return
    height, width = img_size
    grid_of('--img-size', img_size, facts.stride, f'it is the stride of {len(facts.windows)} stages')
    if facts.absolute:
        rows = state[f'backbone.{POSITIONS}'].shape[1]
        if rows != (wanted := height * width // facts.patch_size**2):
            raise ValueError(
                f'--img-size {height} {width}: the position embedding has {rows} rows, not {wanted}; leave it out '
                '(load_from resizes the embedding to the size of the model)'
            )


def _check_target(facts: SwinFacts, to: str) -> None:
    """Raise ValueError if the target has no place for a part of the model."""
    if to == 'timm' and facts.absolute:
        raise ValueError(f"--to timm: timm's Swin has no position embedding ({POSITIONS}); try hf or official")
    if to == 'hf' and facts.img_size[0] != facts.img_size[1]:
        height, width = facts.img_size
        raise ValueError(f'--to hf: images of {height} x {width} px; config.json has one side for both; try timm')


def backbone_config(facts: SwinFacts, masked: bool) -> dict[str, Any]:
    """Config of MMPretrain's Swin, or, `masked`, of the one that takes masks."""
    ratio = {} if facts.ffn_ratio == 4 else dict(ffn_ratio=facts.ffn_ratio)
    blocks = [dict(window_size=window, **ratio) for window in facts.windows]
    same = len(set(facts.windows)) == 1
    config: dict[str, Any] = dict(
        type='mmpretrain.SimMIMSwinTransformer' if masked else 'mmpretrain.SwinTransformer',
        arch=facts.arch,
        img_size=list(facts.img_size),
        in_channels=facts.in_channels,
        out_indices=[len(facts.windows) - 1],
        stage_cfgs=dict(block_cfgs=blocks[0]) if same else [dict(block_cfgs=each) for each in blocks],
    )
    if facts.patch_size != 4:
        config['patch_cfg'] = dict(kernel_size=facts.patch_size, stride=facts.patch_size)
    if facts.absolute:
        config['use_abs_pos_embed'] = True
    return config


def note_of(
    facts: SwinFacts, mean: Sequence[float], std: Sequence[float], head: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Config of model and pipeline for `checkpoint['simmim_plugin']`: SimMIM with a decoder, else a classifier."""
    if not facts.decodes:
        return with_input(_classifier(facts), facts.img_size, facts.in_channels, mean, std)
    sizes = dict(in_channels=facts.width, patch_size=facts.stride, out_channels=facts.in_channels)
    head = dict(type='simmim_plugin.SimMIMHead', **sizes, **(head or {}))
    model = dict(type='simmim_plugin.SimMIM', backbone=backbone_config(facts, True), head=head)
    masks = (facts.stride, facts.patch_size)
    return with_input(model, facts.img_size, facts.in_channels, mean, std, masks)


def _classifier(facts: SwinFacts) -> dict[str, Any]:
    head = dict(type='mmpretrain.LinearClsHead', num_classes=facts.classes, in_channels=facts.width)
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone_config(facts, False),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=head if facts.classes else None,
    )


def mmpretrain_config(facts: SwinFacts) -> dict[str, Any]:
    """Config of MMPretrain's own SimMIM, or of its classifier, for weights converted to 'mmpretrain'."""
    if not facts.decodes:
        return _classifier(facts)
    loss = dict(type='mmpretrain.PixelReconstructionLoss', criterion='L1', channel=facts.in_channels)
    return dict(
        type='mmpretrain.SimMIM',
        backbone=backbone_config(facts, True),
        neck=dict(type='mmpretrain.SimMIMLinearDecoder', in_channels=facts.width, encoder_stride=facts.stride),
        head=dict(type='mmpretrain.SimMIMHead', patch_size=facts.patch_size, loss=loss),
    )


def timm_arguments(facts: SwinFacts) -> dict[str, Any]:
    """Arguments of timm's `SwinTransformer`, which shrinks windows that are larger than the map, as the original."""
    return dict(
        img_size=facts.img_size,
        patch_size=facts.patch_size,
        in_chans=facts.in_channels,
        num_classes=facts.classes,
        embed_dim=facts.arch['embed_dims'],
        depths=tuple(facts.arch['depths']),
        num_heads=tuple(facts.arch['num_heads']),
        window_size=max(facts.windows),
        mlp_ratio=facts.ffn_ratio,
    )


def timm_line(facts: SwinFacts, path: str) -> str:
    """The call of `timm.create_model` that builds the model with its weights, as Python; `path` is their file."""
    size = TIMM_SIZES.get((facts.arch['embed_dims'], *facts.arch['depths']), 'tiny')  # arguments replace its widths
    arguments = dict(checkpoint_path=path, **timm_arguments(facts))
    texts = [f'{name}={value!r}' for name, value in arguments.items()]
    return f"timm.create_model('swin_{size}_patch4_window7_224', {', '.join(texts)})"


def hf_config(facts: SwinFacts) -> dict[str, Any]:
    """Content of Hugging Face's config.json."""
    kind = 'ForImageClassification' if facts.classes else 'ForMaskedImageModeling' if facts.decodes else 'Model'
    config: dict[str, Any] = dict(
        architectures=[f'Swin{kind}'],
        model_type='swin',
        image_size=facts.img_size[0],
        patch_size=facts.patch_size,
        num_channels=facts.in_channels,
        embed_dim=facts.arch['embed_dims'],
        depths=facts.arch['depths'],
        num_heads=facts.arch['num_heads'],
        window_size=max(facts.windows),
        mlp_ratio=facts.ffn_ratio,
        encoder_stride=facts.stride,
        use_absolute_embeddings=facts.absolute,
    )
    if facts.classes:
        config['id2label'] = {str(i): f'LABEL_{i}' for i in range(facts.classes)}
        config['label2id'] = {f'LABEL_{i}': i for i in range(facts.classes)}
    return config
