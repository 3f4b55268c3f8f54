"""The config that a checkpoint carries is data from elsewhere: check it before anything is built from it or written.

MMEngine's registries import and call whatever a `type` names by its full path, and look it up in the package that a
`_scope_` names. So a config from a file may name only what is on a closed list.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.registry import Registry

from simmim_plugin.registry import SCOPE

PLAIN = (bool, int, float, str, type(None))
_ALLOWED = '; only numbers, strings, True, False, None, and lists and dicts of these are data'
# Types of other packages that are built from the config in a checkpoint; ours are those in our registries.
FOREIGN = (
    'mmpretrain.BEiTMaskGenerator',
    'mmpretrain.SimMIMMaskGenerator',
    'mmpretrain.SelfSupDataPreprocessor',
    'mmpretrain.SimMIMSwinTransformer',
)
# Models that a MaskedBackbone is built of from the config in a checkpoint, and the types in their configs. Names and
# arguments of those of timm and Transformers are checked by `build_inner`, for every config.
INNER = (
    'timm',
    'transformers',
    *(
        f'mmpretrain.{name}'
        for name in (
            'BEiTViT', 'ConvNeXt', 'EfficientNet', 'MobileNetV2', 'MobileNetV3', 'RegNet', 'ResNeXt', 'ResNet',
            'ResNetV1c', 'ResNetV1d', 'SwinTransformer', 'SwinTransformerV2', 'TIMMBackbone', 'VisionTransformer',
            'ViTEVA02',
        )
    ),
)  # fmt: skip
LAYERS = (
    'BN', 'BN1d', 'BN2d', 'Conv2d', 'GELU', 'GN', 'HSigmoid', 'HSwish', 'LN', 'LN2d', 'ReLU', 'ReLU6', 'SiLU', 'Swish',
    'SyncBN',
)  # fmt: skip

TEXTS = ('type', 'arch', 'model_name', 'out_type', 'padding', 'style')  # arguments that name no class


def plain_copy(note: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a config without the scopes that MMEngine notes in it.

    Raises:
        ValueError: A value is neither int, float, bool, str or None, nor a list, tuple or dict of these; the message
            has its key's path. (`load_file` has bounded depth and number.)
    """
    plain = {str(key): _plain(value, str(key)) for key, value in note.items()}
    for name, kind, words in (('model', dict, 'a dict'), ('pipeline', list, 'a list of dicts')):
        found = plain.get(name) or kind()
        if not isinstance(found, kind) or any(not isinstance(item, Mapping) for item in found if kind is list):
            raise ValueError(f'its config has {name}={found!r}, which must be {words}')
    return plain


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        if odd := [key for key in value if type(key) not in PLAIN]:
            raise ValueError(f'its config has {place!r} with a key of type {type(odd[0]).__name__}{_ALLOWED}')
        items = {key: item for key, item in value.items() if key != '_scope_'}
        return {key: _plain(item, f'{place}.{key}') for key, item in items.items()}
    if isinstance(value, list | tuple):
        found = [_plain(item, f'{place}[{i}]') for i, item in enumerate(value)]
        return found if isinstance(value, list) else tuple(found)
    if type(value) not in PLAIN:
        raise ValueError(f'its config has {place!r} of type {type(value).__name__}{_ALLOWED}')
    return value


def buildable(config: Any, place: str, registry: Registry) -> Any:
    """Copy of a part of a config, from which the registry may build; without `init_cfg`: the file has the weights.

    Args:
        config: The part, plain data.
        place: The path of its key, for messages.
        registry: Where its types are registered.

    Raises:
        ValueError: A type is neither registered in this package nor in `FOREIGN`; the message has its key's path.
    """
    if isinstance(config, list | tuple):
        return [buildable(item, f'{place}[{i}]', registry) for i, item in enumerate(config)]
    if not isinstance(config, Mapping):
        return config
    if 'type' in config and not is_known(config['type'], registry):
        raise ValueError(
            f'its config has {place}.type={config["type"]!r}, which is not built from a file: only the types of '
            f'{SCOPE} and {", ".join(FOREIGN)}'
        )
    kept = {key: value for key, value in config.items() if key != 'init_cfg'}
    if config.get('type') in ('MaskedBackbone', f'{SCOPE}.MaskedBackbone'):
        known = inspect.signature(registry.get('MaskedBackbone')).parameters
        if odd := [key for key in kept if key not in ('type', *known)]:
            raise ValueError(f'its config has {place}.{odd[0]}, which MaskedBackbone does not take')
        inner = _inner(kept.pop('model', None), f'{place}.model', INNER)
        return {'model': inner, **{key: buildable(value, f'{place}.{key}', registry) for key, value in kept.items()}}
    if config.get('type') in FOREIGN and (names := list(_texts(kept, place))):
        raise ValueError(f'its config has {names[0]}, a name, of which no part is built from a file; numbers only')
    return {key: buildable(value, f'{place}.{key}', registry) for key, value in kept.items()}


def _inner(config: Any, place: str, types: tuple[str, ...] = LAYERS) -> Any:
    """`buildable` for the model of a `MaskedBackbone`; without `pretrained`: nothing is downloaded for a file."""
    if isinstance(config, list | tuple):
        return [_inner(item, f'{place}[{i}]') for i, item in enumerate(config)]
    if not isinstance(config, Mapping):
        return config
    if 'type' in config and config['type'] not in types:
        raise ValueError(
            f'its config has {place}.type={config["type"]!r}, which is not built from a file: only {", ".join(types)}'
        )
    kept = {key: value for key, value in config.items() if key not in ('init_cfg', 'pretrained')}
    if types is INNER and str(config.get('type')).startswith('mmpretrain.'):
        given = {key: value for key, value in kept.items() if key not in TEXTS or not isinstance(value, str)}
        for text in _texts(given, place):
            raise ValueError(f'its config has {text}, a name, of which nothing is built from a file')
    return {key: _inner(value, f'{place}.{key}') for key, value in kept.items()}


def _texts(config: Any, place: str) -> Iterator[str]:
    """Arguments of another package's part that are strings: they may name classes there, without being a `type`."""
    if isinstance(config, list | tuple):
        config = dict(enumerate(config))
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key not in ('type', 'arch') or isinstance(value, Mapping):
                yield from _texts(value, f'{place}.{key}')
    elif isinstance(config, str):
        yield f'{place}={config!r}'


def is_known(name: Any, registry: Registry) -> bool:
    """Whether a type is on the closed list: registered in this package, or in `FOREIGN`."""
    registry.import_from_location()
    return isinstance(name, str) and (name in FOREIGN or name.removeprefix(f'{SCOPE}.') in registry.module_dict)
