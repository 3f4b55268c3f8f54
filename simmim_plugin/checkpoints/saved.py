"""What a checkpoint file holds: weights, and the config saved with them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from simmim_plugin.checkpoints.families import ANY_BACKBONE
from simmim_plugin.checkpoints.files import NOTE, load_file, tensors_of
from simmim_plugin.checkpoints.hf_configs import hf_configs
from simmim_plugin.checkpoints.hubs import HF_WEIGHTS, from_hf, from_timm, is_named
from simmim_plugin.checkpoints.noted_config import buildable, plain_copy
from simmim_plugin.checkpoints.swin_names import SWINS, masked_config
from simmim_plugin.models.layers.architecture import ARCHS
from simmim_plugin.models.layers.relative_position import Grid
from simmim_plugin.registry import MODELS, SCOPE, TRANSFORMS
from simmim_plugin.utils.arguments import sides, whole
from simmim_plugin.utils.configs import type_name

BACKBONES = ('SimMIMViT', 'MaskedBackbone')  # that are built from a file


class Saved(NamedTuple):
    """Weights of a checkpoint, and the config saved with them."""

    path: str  # for messages
    state: dict[str, Tensor]  # with the names in the file
    note: dict[str, Any]  # `checkpoint['simmim_plugin']`, plain data; {} without

    @property
    def model(self) -> dict[str, Any]:
        """Config of the model.

        Raises:
            ValueError: The checkpoint has none.
        """
        if not self.note:
            raise ValueError(
                f'checkpoint {self.path!r} carries no config of {SCOPE}; SimMIMCheckpointHook and '
                '`simmim convert SRC DST --to plugin` write one'
            )
        return self.note['model']

    @property
    def backbone(self) -> dict[str, Any]:
        """Config of the backbone.

        Raises:
            ValueError: The checkpoint has none, or the backbone is of another kind than `BACKBONES`.
        """
        backbone = self.model and self.part('backbone')  # raises without a model
        if backbone.get('type') in SWINS:
            backbone = masked_config(backbone)
        if type_name(backbone) not in BACKBONES:
            found = backbone.get('type')
            raise ValueError(
                f'checkpoint {self.path!r} holds a model with backbone {found!r}, not a {" or ".join(BACKBONES)}'
            )
        with named(self.path):
            return buildable(backbone, 'model.backbone', MODELS)

    @property
    def built(self) -> dict[str, Any]:
        """Config of what a tool builds: the whole SimMIM, or the backbone of another model.

        Raises:
            ValueError: The checkpoint has none, or it or a mask generator has a type that is not built from a file.
        """
        with named(self.path):
            for i, transform in enumerate(self.pipeline):
                if type_name(transform).endswith('MaskGenerator'):
                    buildable(transform, f'pipeline[{i}]', TRANSFORMS)
            if type_name(self.model) == 'SimMIM':
                return buildable(self.model, 'model', MODELS)
        return self.backbone

    @property
    def pipeline(self) -> list[dict[str, Any]]:
        """Training transforms, which say how images are read and masked."""
        return self.note.get('pipeline') or []

    def part(self, name: str) -> dict[str, Any]:
        """Config of a part of the model, such as 'backbone'; {} without."""
        part = self.note.get('model', {}).get(name)
        return part if isinstance(part, dict) else {}

    @property
    def head(self) -> dict[str, Any]:
        """What the head of a pretraining predicts, for a head of other sizes: its target and loss."""
        kept = ('target', 'normalize_target', 'loss')
        return {name: value for name, value in self.part('head').items() if name in kept}

    @property
    def num_heads(self) -> int | None:
        """Number of attention heads of the backbone; None if the checkpoint does not say."""
        arch = self.part('backbone').get('arch')
        return (arch if isinstance(arch, dict) else ARCHS.get(str(arch), {})).get('num_heads')

    def check_activation(self) -> None:
        """Raise ValueError for a model of Hugging Face with another activation function than that of our models."""
        act = self.part('backbone').get('hidden_act', 'gelu')
        if act != 'gelu':
            raise ValueError(
                f'hidden_act={act!r} in config.json, and SimMIMViT has gelu; it is another model; {ANY_BACKBONE}'
            )

    @property
    def img_size(self) -> tuple[int, int] | None:
        """Image height and width of the backbone in pixels; None if the checkpoint does not say."""
        size = self.part('backbone').get('img_size')
        with named(self.path):
            return None if size is None else sides('img_size', size)

    @property
    def grid(self) -> Grid | None:
        """`img_size` in patches."""
        with named(self.path):
            patch = whole('patch_size', self.part('backbone').get('patch_size', 16), 1)
        return self.img_size and (self.img_size[0] // patch, self.img_size[1] // patch)


def read(path: str | os.PathLike[str], objects: str = 'refuse') -> Saved:
    """Read a checkpoint of any kind that `simmim convert` knows, without running code in it.

    Args:
        path: The file; or a Hugging Face folder with `model.safetensors` or `pytorch_model.bin`, and `config.json`, or
            such a file in it; or `timm:NAME` or `hf:NAME`, see `hubs.py`.
        objects: See `load_file`.

    Raises:
        FileNotFoundError: There is no such file, or a name cannot be downloaded.
        ValueError: It has no named tensors, or `load_file` refuses it; or a hub has no such model.
    """
    if is_named(path):
        hub, _, name = os.fspath(path).partition(':')
        with named(path):
            if hub == 'hf':
                return read(from_hf(name), objects)._replace(path=os.fspath(path))
            state, model = from_timm(name)
            return Saved(os.fspath(path), state, dict(model=model))
    if os.path.isdir(path):
        return read(_hf_weights(Path(path)), objects)
    content = load_file(path, objects=objects)
    with named(path):
        saved = saved_of(os.fspath(path), content)
        model = hf_configs(Path(path).parent) if os.path.basename(path) in HF_WEIGHTS and not saved.note else {}
        return saved._replace(note=dict(model=model)) if model else saved


def saved_of(path: str, content: Mapping[str, Any]) -> Saved:
    """The weights and the config in the content of a checkpoint; `path` is for messages."""
    state = tensors_of(content)
    note = content.get(NOTE)
    if not isinstance(note, Mapping) or not isinstance(note.get('model'), Mapping):
        return Saved(path, state, {})
    return Saved(path, state, plain_copy(note))


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the name of the file in front of errors about its content, once."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(start := f'checkpoint {os.fspath(path)!r}'):
            raise
        raise ValueError(f'{start}: {error}') from error


def _hf_weights(source: Path) -> Path:
    """File of the weights in a Hugging Face folder.

    Raises:
        ValueError: It has none, or several.
    """
    weights = next((source / name for name in HF_WEIGHTS if (source / name).is_file()), None)
    if weights is None:
        raise ValueError(
            f'folder {os.fspath(source)!r} has neither {HF_WEIGHTS[0]} nor {HF_WEIGHTS[1]} (weights in several files: '
            'join them by save_pretrained(..., max_shard_size="100GB"))'
        )
    return weights
