"""Backbones of timm, Transformers and OpenMMLab: build one from plain data, and read its feature maps."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from simmim_plugin.models.differences import described
from simmim_plugin.registry import build_part
from simmim_plugin.utils.arguments import choice, whole

# Model types of Transformers that give a map, or tokens of square patches in rows.
HF_TYPES = (
    'beit', 'convnext', 'convnextv2', 'data2vec-vision', 'deit', 'dinov2', 'dinov2_with_registers', 'dinov3_vit',
    'ijepa', 'resnet', 'vit', 'vit_msn',
)  # fmt: skip
# First parts of names that belong to a task rather than to features.
TASKS = (
    'aux_head', 'classif', 'classifier', 'decoder', 'fc', 'head', 'head_dist', 'heads', 'last_linear', 'lm_head',
    'pooler',
)  # fmt: skip
NOT_IN_WEIGHTS = ('num_attention_heads', 'hidden_act', 'layer_norm_eps', 'rope_theta')  # of Transformers
LARGEST, DEEPEST = 1 << 16, 1 << 10  # far above any backbone: numbers come from files, too
WEIGHTS = "init_cfg=dict(type='Pretrained', checkpoint=PATH)"
# Arguments of timm.create_model that this package sets itself, or that would read other files.
REFUSED = {
    'in_chans': 'set in_channels of MaskedBackbone',
    'in_channels': 'set in_channels of MaskedBackbone',
    'num_channels': 'set in_channels of MaskedBackbone',
    'num_classes': 'it is built without a classifier',
    'features_only': 'all maps are read anyway; choose some by out_indices of MaskedBackbone',
    'out_indices': 'set out_indices of MaskedBackbone',
    'checkpoint_path': f'give {WEIGHTS}',
    'cache_dir': 'set HF_HOME',
}

Layer = tuple[Tensor, Tensor | None]  # map (B, C, h, w), class token (B, C)
Layers = Sequence[int] | None  # numbers of layers from 0, rising; None: all


class WrongWeightsError(ValueError):
    """Downloaded weights are of another model."""


class Inner(NamedTuple):
    """A model of another library, and how to read it."""

    model: nn.Module
    read: Callable[[nn.Module, Tensor, Layers], list[Layer]]
    img_size: Any  # that it is for
    patch_embed: nn.Module | None  # whose outputs are tokens of patches


def build_inner(config: Mapping[str, Any], in_channels: int) -> Inner:
    """Build a model; nothing is downloaded without `pretrained`, and no code from elsewhere is run.

    Args:
        config: See `MaskedBackbone`.
        in_channels: Channels of the images.

    Raises:
        ValueError: Type, name or an argument is unknown or not taken from here; or weights cannot be downloaded.
    """
    if not isinstance(config, Mapping) or 'type' not in config:
        raise ValueError(
            f"model={config!r} must be a dict with a 'type': 'timm', 'transformers', or a backbone of OpenMMLab such "
            "as 'mmpretrain.ConvNeXt'"
        )
    check_numbers(config, 'model')
    arguments = {name: value for name, value in config.items() if name not in ('type', '_scope_')}
    if config['type'] == 'timm':
        return _timm(arguments, in_channels)
    if config['type'] == 'transformers':
        return _hf(arguments, in_channels)
    return _openmmlab(config, in_channels)


def check_numbers(value: Any, name: str) -> None:
    """Raise a ValueError that names a number far above what any backbone has."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_numbers(item, f'{name}.{key}')
    elif isinstance(value, list | tuple):
        for item in [*value, len(value)]:
            check_numbers(item, name)
    elif isinstance(value, int | float):
        last = name.rsplit('.', maxsplit=1)[-1]
        limit = DEEPEST if 'depth' in last or 'layers' in last else LARGEST
        if not abs(value) <= limit:
            raise ValueError(f'{name}={value!r} must be at most {limit}')


def timm_name(name: Any) -> str:
    """A name in timm's own registry, with or without a tag of pretrained weights.

    Raises:
        ValueError: It is none: names of hubs and folders are not taken.
    """
    if not isinstance(name, str) or ':' in name or not timm.is_model(name):
        raise ValueError(f'model.name={name!r} is no model of timm {timm.__version__}; see timm.list_models()')
    return name


def _timm(arguments: dict[str, Any], in_channels: int) -> Inner:
    name = timm_name(arguments.pop('name', None))
    _refuse(arguments, REFUSED)
    with refusals(arguments, 'timm refuses it', name, arguments.get('pretrained')):
        model = timm.create_model(name, in_chans=in_channels, num_classes=0, **arguments)
    return _of_timm(model)


def _refuse(arguments: Mapping[str, Any], refused: Collection[str]) -> None:
    for key in arguments:
        if key in refused or (key.startswith('pretrained') and key != 'pretrained'):
            raise ValueError(f'model.{key} is not taken here: {REFUSED.get(key, f"give {WEIGHTS}")}')


def _of_timm(model: Any) -> Inner:
    if not hasattr(model, 'forward_intermediates'):
        raise ValueError(f'{type(model).__name__} of timm gives no feature maps (forward_intermediates); take another')
    model.is_init = True  # by timm; MMEngine's init_weights would do it again
    embed = getattr(model, 'patch_embed', None)
    size = getattr(embed, 'img_size', None) or model.pretrained_cfg.get('input_size', (3, 224, 224))[1:]
    return Inner(model, _TimmReader(model), size, embed)


class _TimmReader:
    """Maps of timm's `forward_intermediates`; that of the last layer is the model's final, normalised one."""

    def __init__(self, model: Any) -> None:
        parameters = inspect.signature(model.forward_intermediates).parameters
        prefix = getattr(model, 'num_prefix_tokens', 0) and 'return_prefix_tokens' in parameters
        self.options = dict(return_prefix_tokens=True) if prefix else {}
        self.has_class_token = bool(prefix) and getattr(model, 'cls_token', None) is not None
        self.rows_last = getattr(model, 'output_fmt', 'NCHW') == 'NHWC'
        self.count = 0  # layers; known once all were read

    def __call__(self, model: Any, x: Tensor, layers: Layers) -> list[Layer]:
        indices = None if layers is None else list(layers)
        final, found = inside_of(model)[0].forward_intermediates(x, indices=indices, **self.options)
        pairs: list[Any] = [each if self.options else (each, None) for each in found]
        read = [(each, prefix[:, 0] if self.has_class_token else None) for each, prefix in pairs]
        if layers is None:
            self.count = len(read)
        if layers is None or layers[-1] == self.count - 1:
            grid = tuple(read[-1][0].shape[2:])
            token = final[:, 0] if self.has_class_token and final.ndim == 3 else None
            read[-1] = (_as_map(final.permute(0, 3, 1, 2) if self.rows_last else final, grid), token)
        return read


def _hf(arguments: dict[str, Any], in_channels: int) -> Inner:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ValueError("model.type='transformers' needs it: pip install 'simmim_plugin[hf]'") from error
    kind = choice('model.model_type', arguments.pop('model_type', None), HF_TYPES)
    pretrained = arguments.pop('pretrained', None)
    config = AutoConfig.for_model(kind)
    # Only what the model itself is made of: other arguments of a config name code and files.
    known = set(inspect.signature(type(config).__init__).parameters) - {'self', 'kwargs', 'num_channels'}
    for key in arguments:
        choice('an argument of model', key, sorted(known), f'{type(config).__name__} of Transformers has these')
    if 'patch_size' in arguments:
        whole('model.patch_size', arguments['patch_size'], 1, LARGEST, 'one side: patches are square')
    with refusals(arguments, 'Transformers refuses it', pretrained, pretrained):
        config = AutoConfig.for_model(kind, num_channels=in_channels, **arguments)
        if pretrained:
            stated = AutoConfig.from_pretrained(pretrained, trust_remote_code=False)
            _check_stated(pretrained, stated, config)
            model, info = AutoModel.from_pretrained(
                pretrained,
                config=config,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # listed below
            )
            _check_loaded(pretrained, info)
        else:
            model = AutoModel.from_config(config)
    model.is_init = True
    embed = getattr(getattr(model, 'embeddings', None), 'patch_embeddings', None)
    return Inner(model, _HFReader(model), getattr(config, 'image_size', 224), embed)


def _check_stated(pretrained: Any, stated: Any, config: Any) -> None:
    """Raise an error unless the config of downloaded weights agrees in what the weights do not tell."""
    for key in NOT_IN_WEIGHTS:
        theirs, ours = getattr(stated, key, None), getattr(config, key, None)
        if theirs != ours:
            raise WrongWeightsError(
                f'model.pretrained={pretrained!r} has {key}={theirs!r}, and model {ours!r}: give model {key}={theirs!r}'
            )


def _check_loaded(pretrained: Any, info: Mapping[str, Iterable[Any]]) -> None:
    """Raise an error if Transformers filled in weights at random, or left some out."""
    strange, missing = (
        sorted(name for name in info[f'{kind}_keys'] if not may_differ(name)) for kind in ('unexpected', 'missing')
    )
    shapes = sorted(key if isinstance(key, str) else key[0] for key in info['mismatched_keys'])
    if text := described(strange, missing, shapes):
        raise WrongWeightsError(
            f'model.pretrained={pretrained!r} has the weights of another model; {text}. Give model the arguments of '
            'its config.json (depth, widths, patch and image size)'
        )


class _HFReader:
    """Maps of a model of Transformers; that of the last layer is `last_hidden_state`."""

    def __init__(self, model: Any) -> None:
        self.patch: Any = getattr(model.config, 'patch_size', None)
        self.has_class_token = hasattr(getattr(model, 'embeddings', None), 'cls_token')
        embed = getattr(getattr(model, 'embeddings', None), 'patch_embeddings', None)
        self.size = tuple(getattr(embed, 'image_size', ()))  # that its position embeddings are for; (): any
        self.resizes = 'interpolate_pos_encoding' in inspect.signature(model.forward).parameters
        self.count = 0  # layers; known once all were read

    def __call__(self, model: Any, x: Tensor, layers: Layers) -> list[Layer]:
        only_last = layers is not None and tuple(layers) == (self.count - 1,)
        other = bool(self.size) and tuple(x.shape[2:]) != self.size
        if other and self.size[0] != self.size[1]:  # Transformers takes their grid for a square one
            raise ValueError(
                f'images of {x.shape[2]} x {x.shape[3]} px do not fit model.image_size={list(self.size)}: Transformers '
                'interpolates position embeddings of square images only; give images of that size'
            )
        options = dict(interpolate_pos_encoding=True) if other and self.resizes else {}
        output = model(x, output_hidden_states=not only_last, **options)
        states = [output.last_hidden_state]
        if not only_last:
            states = [*output.hidden_states[1:-1], output.last_hidden_state]  # the first is the embedding
            self.count = len(states)
            states = states if layers is None else [states[i] for i in layers]
        grid = (0, 0) if states[0].ndim == 4 else (x.shape[2] // self.patch, x.shape[3] // self.patch)
        return [(_as_map(each, grid), each[:, 0] if self.has_class_token else None) for each in states]


def _openmmlab(config: Mapping[str, Any], in_channels: int) -> Inner:
    kind = str(config['type']).rsplit('.', maxsplit=1)[-1]
    arguments = dict(config)
    if kind == 'TIMMBackbone':
        timm_name(config.get('model_name'))
        _refuse(config, ('checkpoint_path', 'cache_dir'))
        arguments['in_channels'] = in_channels
    elif in_channels != 3:
        arguments.setdefault('in_channels', in_channels)
    with refusals(config, f'{config["type"]} refuses it', config.get('model_name'), config.get('pretrained')):
        model = build_part(arguments)
    inner, _ = inside_of(model)
    size = getattr(model, 'img_size', None) or config.get('img_size')
    if inner is not model and hasattr(inner, 'forward_intermediates'):
        return _of_timm(inner)._replace(model=model)
    return Inner(model, _read_tuple, size or 224, getattr(model, 'patch_embed', None))


def may_differ(name: str) -> bool:
    """Whether a weight, by the name that its library gives it, is of a head, or a mask token."""
    return name.split('.', maxsplit=1)[0] in TASKS or name.endswith('mask_token')


def inside_of(model: Any) -> tuple[Any, str]:
    """The model inside MMPretrain's `TIMMBackbone`, and the prefix of its names; any other as it is."""
    return (model.timm_model, 'timm_model.') if hasattr(model, 'timm_model') else (model, '')


def _read_tuple(model: nn.Module, x: Tensor, layers: Layers) -> list[Layer]:
    """The outputs of a backbone of OpenMMLab, those of its own `out_indices`."""
    output = model(x)
    maps = output if isinstance(output, list | tuple) else [output]
    return [(each, None) for each in (maps if layers is None else [maps[i] for i in layers])]


def _as_map(features: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Tokens (B, N, C), of which the last h*w are patches, as a map (B, C, h, w); a map as it is."""
    if features.ndim != 3:
        return features
    prefix = features.shape[1] - grid[0] * grid[1]
    return features[:, prefix:].transpose(1, 2).unflatten(2, grid)


@contextmanager
def refusals(config: Mapping[str, Any], what: str, name: Any = None, pretrained: Any = None) -> Iterator[None]:
    """Turn whatever a library raises for a config, or a failed download, into one line."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, WrongWeightsError):
        raise
    except Exception as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        if not pretrained or not isinstance(error, OSError):
            raise ValueError(f'model={str(dict(config))[:300]}: {what} ({reason})') from error
        raise ValueError(
            f'model.pretrained={pretrained!r}: the weights of {name!r} cannot be downloaded here ({reason}); where '
            f'there is no network, leave it out and give {WEIGHTS}'
        ) from error
