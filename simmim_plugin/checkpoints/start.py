"""The model that a checkpoint is for, to start a training from it: `simmim pretrain --init`, `simmim finetune`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simmim_plugin.checkpoints.families import kind_of
from simmim_plugin.checkpoints.hubs import is_named
from simmim_plugin.checkpoints.other_projects import assumptions, backbone_config, check_stated_heads, facts_of
from simmim_plugin.checkpoints.saved import Saved, named, read
from simmim_plugin.checkpoints.state_dicts import to_plugin
from simmim_plugin.models.data_preprocessor import SimMIMDataPreprocessor
from simmim_plugin.models.layers.architecture import ARCH_KEYS, arch_settings
from simmim_plugin.utils.arguments import flag, number, sides, whole
from simmim_plugin.utils.configs import type_name

DEFAULTS = dict(
    arch='base', img_size=224, patch_size=16, in_channels=3, layer_scale_init_value=0.1, use_abs_pos_embed=False,
    use_shared_rel_pos_bias=True, use_rel_pos_bias=False, num_registers=0, norm_eps=1e-6,
)  # of SimMIMViT  # fmt: skip
TABLES = ('use_shared_rel_pos_bias', 'use_rel_pos_bias')


class Start(NamedTuple):
    """What a training must know of the checkpoint that it starts from.

    All values are checked: they are data from elsewhere, which is written into a program.
    """

    source: str  # for `load_from`
    arch: dict[str, int]
    settings: dict[str, Any]  # further arguments of SimMIMViT; img_size is (height, width)
    preprocessor: dict[str, list[float]]  # mean and std; {} if the checkpoint does not state them
    resumed: bool = False  # taken from the config of the training to resume
    assumed: tuple[str, ...] = ()  # lines about what the checkpoint does not say

    def side(self, given: int | None) -> int:
        """Side of the images: the given one, or the checkpoint's if its height and width are the same.

        Raises:
            ValueError: They are not.
        """
        height, width = self.settings['img_size']
        if given is None and height != width:
            raise ValueError(
                f'{self.source!r} was trained at {height} x {width} px (height x width); give one side by --img-size'
            )
        return height if given is None else given

    def check_heads(self, given: int | None) -> None:
        """Raise ValueError if `--num-heads` is another number than the checkpoint's."""
        if given not in (None, heads := self.arch['num_heads']):
            raise ValueError(f'--num-heads {given}: {self.source!r} states {heads}; leave it out')


def read_start(checkpoint: str, num_heads: int | None = None) -> Start:
    """Read the architecture off a checkpoint of any kind that `simmim convert` knows, or of a name in a hub.

    Args:
        checkpoint: The file, folder or name.
        num_heads: Number of attention heads, for weights that do not say it; None: see `facts_of`.

    Raises:
        FileNotFoundError: There is no such file or model.
        ValueError: It is of another architecture than SimMIMViT, it says another number of heads, a value is of another
            type or out of range, or the images are no RGB images, for which these commands have no recipe.
    """
    saved = read(checkpoint, objects='known')
    backbone, assumed = backbone_of(saved, num_heads)
    with named(checkpoint):
        start = checked_start(source_of(checkpoint), backbone, saved.part('data_preprocessor'))
    start.check_heads(num_heads)
    return start._replace(assumed=tuple(assumed))


def source_of(checkpoint: str) -> str:
    """What a config of a checkpoint's training has as `load_from`: the absolute path, or a name in a hub."""
    return checkpoint if is_named(checkpoint) else str(Path(checkpoint).resolve())


def checked_start(source: str, backbone: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Start:
    """Check the configs of a backbone and of a data preprocessor for `load_from=source`.

    Raises:
        ValueError: A value is of another type or out of range, or the images are no RGB images.
    """
    value = {**DEFAULTS, **backbone}
    arch = dict(zip(ARCH_KEYS, arch_settings(value['arch'])))
    settings = dict(
        img_size=sides('img_size', value['img_size']),
        patch_size=whole('patch_size', value['patch_size'], 1),
        layer_scale_init_value=number('layer_scale_init_value', value['layer_scale_init_value'], 0),
    )
    rarer = dict(
        num_registers=whole('num_registers', value['num_registers'], 0),
        norm_eps=number('norm_eps', value['norm_eps'], 0, ends='(]'),
    )
    settings |= {name: value for name, value in rarer.items() if value != DEFAULTS[name]}  # as earlier versions wrote
    settings |= {name: flag(name, value[name]) for name in ('use_abs_pos_embed', *TABLES)}
    if (channels := value['in_channels']) != 3:
        raise ValueError(
            f'in_channels={channels!r}, images of as many channels, for which there is no recipe; write a config '
            '(docs/pretrain.md, docs/finetune.md)'
        )
    return Start(source, arch, settings, _mean_and_std(preprocessor))


def backbone_of(saved: Saved, num_heads: int | None = None) -> tuple[Mapping[str, Any], list[str]]:
    """Config of the SimMIMViT in a checkpoint: the one noted in it, or, of another project, that of its weights.

    The lines say what was assumed.
    """
    noted = saved.part('backbone')
    if type_name(noted) == 'SimMIMViT':
        return saved.backbone, []
    with named(saved.path):
        if 'type' in noted:
            raise ValueError(
                f'it holds a {type_name(noted)}, for which this command has no recipe; write a config '
                '(docs/backbones.md)'
            )
        saved.check_activation()
        assumed: list[str] = []
        state = to_plugin(saved.state, saved.num_heads is not None, saved.grid, assumed=assumed).state
        check_stated_heads(saved.num_heads, state)
        if not {'backbone.norm.weight', 'backbone.fc_norm.weight'} & state.keys():  # without heads; then it is new
            state['backbone.norm.weight'] = state['backbone.cls_token']
        eps = noted.get('norm_eps', DEFAULTS['norm_eps'])
        heads = num_heads if saved.num_heads is None else saved.num_heads
        facts = facts_of(state, saved.img_size, heads, eps)
        return backbone_config(facts), assumed + assumptions(facts, kind_of(saved.state), noted)


def _mean_and_std(noted: Mapping[str, Any]) -> dict[str, list[float]]:
    if noted.get('mean') is None or noted.get('std') is None:
        return {}
    mean, std = list(noted['mean']), list(noted['std'])
    if len(mean) != 3:
        raise ValueError(f'mean={mean!r} must have three values, for RGB')
    SimMIMDataPreprocessor(mean, std)  # raises
    return dict(mean=[float(value) for value in mean], std=[float(value) for value in std])
