"""Load checkpoint weights into a model, or rebuild the model from the checkpoint."""

import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from simmim_plugin.checkpoints import swin
from simmim_plugin.checkpoints.inner_weights import check_inner, check_untold, fit_inner
from simmim_plugin.checkpoints.saved import Saved, named, read, saved_of
from simmim_plugin.checkpoints.state_dicts import to_plugin
from simmim_plugin.checkpoints.swin_names import SWINS
from simmim_plugin.checkpoints.teachers import with_teacher
from simmim_plugin.models.data_preprocessor import SimMIMDataPreprocessor
from simmim_plugin.models.differences import names_of
from simmim_plugin.models.fit import NOTHING, Asked, Fitted, asked_for, check_fits, fit_state, without_prefix
from simmim_plugin.models.masked_backbone import MaskedBackbone
from simmim_plugin.models.vit import SimMIMViT
from simmim_plugin.registry import WEIGHT_INITIALIZERS, build_part
from simmim_plugin.utils.arguments import text
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.meta import on_meta

FIRST_BLOCK = 'blocks.0.norm1.weight'  # a name that every SimMIMViT has
PART = re.compile(r'blocks\.\d+\.(?!attn\.relative_position_bias_table).*')
TRAINING_ONLY = ('frozen_stages', 'with_cp', 'out_indices')  # arguments of SimMIMViT


def build_backbone(saved: Saved, **changes: Any) -> Any:
    """Build the backbone of a checkpoint of this package, pretrained or fine-tuned, with its weights.

    Args:
        saved: A checkpoint from a run of this package, or from `simmim convert SRC DST --to plugin`.
        changes: Arguments of the backbone that replace those of the training, such as `out_type` of a `SimMIMViT`. With
            another `img_size`, its bias tables and position embedding are interpolated once, here.

    Returns:
        The backbone (see `models/interface.py`), in evaluation mode.

    Raises:
        ValueError: It is not a checkpoint of this package, or an argument does not fit it.
    """
    config = saved.backbone | changes
    state = without_prefix(saved.state, 'backbone.')
    if type_name(config) != 'SimMIMViT':
        state = swin.masked_state(state) if saved.part('backbone').get('type') in SWINS else state
        return _built(config, state, saved.path).eval()
    config = {name: value for name, value in saved.backbone.items() if name not in TRAINING_ONLY} | changes
    with torch.device('meta'):  # numbers in a file may be absurd: compared with its weights before memory is taken
        backbone = build_part(config)
    if not state:
        raise ValueError(f"checkpoint {saved.path!r} has no weights whose names start with 'backbone.'")
    norm, others = ('fc_norm', 'featmap, cls_token or raw')
    if backbone.out_type != 'avg_featmap':
        norm, others = 'norm', 'avg_featmap'
    if f'{norm}.weight' not in state:
        raise ValueError(f'--out-type {backbone.out_type} needs {norm}, which this checkpoint lacks; use {others}')
    state.setdefault('mask_token', torch.zeros(1, 1, backbone.embed_dims))  # unused without a mask
    with named(saved.path):
        fitted = fit_state(backbone, state, saved.grid)
        check_fits(backbone.state_dict(), fitted.state | {name: state[name] for name in fitted.skipped})
    backbone = build_part(config)
    backbone.load_state_dict(fitted.state)
    return backbone.eval()


def build_data_preprocessor(saved: Saved) -> SimMIMDataPreprocessor:
    """Build the data preprocessor of a checkpoint's model, of SimMIM or MMPretrain, for images in RGB.

    Raises:
        ValueError: The checkpoint has no mean and std, or the model was trained on images in BGR.
    """
    noted = saved.part('data_preprocessor')
    if not isinstance(noted.get('mean'), list | tuple) or not isinstance(noted.get('std'), list | tuple):
        raise ValueError(
            f'checkpoint {saved.path!r} has no mean and std of the images; data_preprocessor of its model needs them'
        )
    # OpenCV reads BGR, LoadImage RGB.
    loaders = {type_name(transform) for transform in saved.pipeline}
    blue_first = 'LoadImageFromFile' in loaders and 'LoadImage' not in loaders
    if len(noted['mean']) == 3 and blue_first != bool(noted.get('to_rgb', False)):
        raise ValueError(
            f'checkpoint {saved.path!r} was trained on images with blue first (to_rgb={noted.get("to_rgb", False)} of '
            'its data_preprocessor); extract its features in Python: FeatureExtractor.from_model(model) uses the model '
            'as it is'
        )
    return SimMIMDataPreprocessor(noted['mean'], noted['std'])


def load_pretrained(path: str | os.PathLike[str], device: str = 'cpu') -> tuple[Any, list[dict[str, Any]]]:
    """Rebuild a pretrained model from nothing but its checkpoint.

    Args:
        path: A pretraining checkpoint, written by `SimMIMCheckpointHook`.
        device: Device of the model.

    Returns:
        The model (`SimMIM`, in evaluation mode) and the pipeline of its training.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint of this package, or not one of a pretraining.
    """
    saved = read(path)
    kind = type_name(saved.model)
    if kind != 'SimMIM':
        raise ValueError(
            f'checkpoint {saved.path!r} holds a {kind}, which cannot reconstruct images; give a pretraining checkpoint '
            '(for features: `simmim features`, for accuracy: `simmim test`)'
        )
    return _built(with_teacher(saved), saved.state, saved.path).to(device).eval(), saved.pipeline


def _built(config: dict[str, Any], state: Mapping[str, Tensor], path: str) -> nn.Module:
    """A model of a config from a file, with the weights of the file, all of them.

    Numbers in a file may be absurd: they are compared with its weights before memory is taken.

    Raises:
        ValueError: The weights are of another model.
    """
    with named(path):
        swin.check_depths(config.get('backbone') or {}, state)
        for part, start in ((config, ''), (config.get('backbone') or {}, 'backbone.')):
            if type_name(part) == 'MaskedBackbone':
                check_inner(part, state, start)
        if 'MaskedBackbone' in (type_name(config), type_name(config.get('backbone') or {})):
            model = build_part(config)  # other libraries do not run on the device 'meta'
        else:
            with on_meta():
                model = build_part(config)
        check_fits(model.state_dict(), state)
    if any(each.is_meta for each in model.parameters()):
        model = build_part(config)
    model.load_state_dict(state)
    return model


def fit_checkpoint(model: nn.Module, checkpoint: dict[str, Any], asked: Asked = NOTHING) -> Fitted | None:
    """Reduce a checkpoint to what a model can load, with the backbone's weights fitted (`fit_state`), and log it.

    Args:
        model: A model with a SimMIMViT, a MaskedBackbone, or a Swin of MMPretrain or MMDetection in it; other models
            and their checkpoints are left unchanged.
        checkpoint: Content of a file of any kind that `simmim convert` knows; its `state_dict` is replaced.
        asked: See `fit_state`.

    Returns:
        What was loaded, left and kept; None for other models.

    Raises:
        ValueError: Nothing fits the backbone, or its shapes do not.
    """
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, SimMIMViT | MaskedBackbone)]
    present = model.state_dict()
    prefix = (f'{found[0][0]}.' if found[0][0] else '') if found else swin.prefix_in(present)
    if prefix is None:
        return None
    saved = saved_of('load_from', checkpoint)
    outside = {name: value for name, value in present.items() if not name.startswith(prefix)}
    if found:
        fitted = _fit(found[0][1], saved, asked, prefix, outside)
    else:
        fitted = _fit_swin(without_prefix(present, prefix), saved, asked, prefix, outside, swin.kind_of(present))
    print_log(fitted.report('load_from'), 'current')
    # The rest comes from the model, so that MMEngine does not warn about it. A sharded model loads full tensors only.
    rest = {name: x for name, x in present.items() if name not in fitted.state and not isinstance(x, DTensor)}
    checkpoint['state_dict'] = fitted.state | rest
    return fitted


def _fit(
    backbone: SimMIMViT | MaskedBackbone,
    saved: Saved,
    asked: Asked,
    prefix: str = '',
    outside: Mapping[str, Tensor] | None = None,
) -> Fitted:
    """What of a checkpoint goes into a model: the only place that decides it, so that reports cannot differ from it.

    Args:
        backbone: The model's backbone.
        saved: A checkpoint of any kind that `simmim convert` knows.
        asked: See `fit_state`.
        prefix: Of the backbone's weights in the model, and in the file, if they have our names (else: converted).
        outside: The model's state dict without the backbone. It takes what has the same name and shape.

    Raises:
        ValueError: See `to_plugin` and `fit_state`.
    """
    outside = outside or {}
    own = without_prefix(saved.state, prefix)
    others: dict[str, Tensor] = {}
    assumed: list[str] = []
    if isinstance(backbone, MaskedBackbone):
        fitted, others, left = fit_inner(backbone, saved.state, asked)
        check_untold(backbone, saved)
    else:
        if FIRST_BLOCK in own:
            state, left = to_plugin(own, like=saved.grid or backbone.grid, assumed=assumed)
            others = {name: value for name, value in saved.state.items() if not name.startswith(prefix)}
        else:  # names of another project
            state, left = to_plugin(saved.state, like=saved.grid or backbone.grid, assumed=assumed)
        others |= {name: value for name, value in state.items() if not name.startswith('backbone.')}
        fitted = fit_state(backbone, without_prefix(state, 'backbone.'), saved.grid, asked)
        _check_same(backbone, saved, fitted, asked)
        for line in assumed:
            print_log(line, 'current')
    return _with_others(fitted, others, left, prefix, outside)


def _with_others(
    fitted: Fitted, others: Mapping[str, Tensor], left: list[str], target: str, outside: Mapping[str, Tensor]
) -> Fitted:
    """Add the weights of other parts than the backbone, by name and shape.

    Args:
        fitted: The backbone's, without prefix.
        others: All others of the file that the model may have.
        left: Names of the file that it has no place for.
        target: Prefix of the backbone's weights in the model.
        outside: The model's state dict without the backbone.
    """
    taken = {name: value for name, value in others.items() if name in outside and outside[name].shape == value.shape}
    lost = [name for name in others if name not in taken]
    left = left + [f'{name} of shape {tuple(others[name].shape)}' if name in outside else name for name in lost]
    loaded = {target + name: value for name, value in fitted.state.items()} | taken
    kept = [*(target + name for name in fitted.kept), *(name for name in outside if name not in taken)]
    return Fitted(loaded, [*(target + name for name in fitted.skipped), *left], fitted.resized, kept)


def _check_same(backbone: SimMIMViT, saved: Saved, fitted: Fitted, asked: Asked) -> None:
    """Raise ValueError if the model would compute something else with these weights than their own model.

    Bias tables, position embeddings and the norm behind the blocks may be new or left: they are what fine-tuning
    changes. An epsilon that differs is logged.
    """
    saved.check_activation()
    ours = backbone.blocks[0].attn.num_heads  # type: ignore[union-attr]
    if saved.num_heads not in (None, ours):
        raise ValueError(
            f'the checkpoint has {saved.num_heads} attention heads and the model {ours}; set num_heads of arch'
        )
    kept = asked.without_new(fitted.kept, backbone.num_layers)
    for names, where, other in ((fitted.skipped, 'checkpoint', 'model'), (kept, 'model', 'checkpoint')):
        if odd := [name for name in names if name == 'reg_token' or PART.fullmatch(name)]:
            scaled = any(name.endswith(('gamma_1', 'gamma_2')) for name in odd)
            wanted = ['layer_scale_init_value (0: none)'] * scaled + ['num_registers'] * ('reg_token' in odd)
            advice = f'set {" and ".join(wanted)} of SimMIMViT' if wanted else 'it is another model'
            raise ValueError(f'the {where} has {names_of(odd)} and the {other} has not; {advice}')
    noted = saved.part('backbone')
    eps = noted.get('norm_eps', 1e-6 if type_name(noted) == 'SimMIMViT' else None)  # our default is not noted
    if eps is not None and eps != (mine := backbone.blocks[0].norm1.eps):  # type: ignore[union-attr]
        print_log(f'The checkpoint was trained with norm_eps={eps}, the model has {mine}: see SimMIMViT', 'current')


def _fit_swin(
    own: Mapping[str, Tensor],
    saved: Saved,
    asked: Asked,
    target: str,
    outside: Mapping[str, Tensor],
    kind: str,
) -> Fitted:
    """`_fit` for a model with a Swin in it, whose weights are `own`; `kind` is that of the model's names."""
    if not swin.kind_of(saved.state):
        raise ValueError(
            f'the model has a Swin Transformer, the checkpoint {names_of(list(saved.state))}: another model'
        )
    swin.check_stated(saved)
    state, left = swin.to_ours(saved.state)
    heads = {name: value for name, value in state.items() if not name.startswith('backbone.')}
    others = swin.from_ours(heads, kind)[0] | {name: saved.state[name] for name in left if name in outside}
    fitted = swin.fit_swin(own, without_prefix(state, 'backbone.'), asked)
    return _with_others(fitted, others, [name for name in left if name not in outside], target, outside)


@WEIGHT_INITIALIZERS.register_module()
class PretrainedViT:
    """Load a checkpoint into a `SimMIMViT` or `MaskedBackbone`, for which it is `init_cfg=dict(type='Pretrained')`.

    Unlike MMEngine's `Pretrained`, it runs no code in the file and refuses weights that do not fit.

    Args:
        checkpoint: Path, or URL for MMEngine's file clients (http://, s3:// ...), of a file of any kind that
            `simmim convert` knows, or a Hugging Face folder; for a `MaskedBackbone` see `fit_inner`.
        prefix: Load only weights with this prefix, like MMEngine's `Pretrained`; None: the kind is detected.
        adapt_channels: 'repeat' or 'mean': adapt weights for images of other channels, see `adapt_channels` of
            `models/fit.py`; None: they are an error.
        new_blocks: Number of the model's last blocks that the checkpoint has not, see `Asked` of `models/fit.py`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Nothing was loaded, or it does not fit; or `checkpoint` is not a path.
    """

    def __init__(
        self, checkpoint: Any, prefix: str | None = None, adapt_channels: str | None = None, new_blocks: int = 0
    ) -> None:
        if not isinstance(checkpoint, str | os.PathLike) or not os.fspath(checkpoint):
            raise ValueError(f'init_cfg: checkpoint={checkpoint!r} must be the path of a checkpoint file')
        self.checkpoint = os.fspath(checkpoint)
        self.prefix = text('init_cfg: prefix', '' if prefix is None else prefix, "e.g. 'backbone.'")
        self.asked = asked_for('init_cfg: ', adapt_channels, new_blocks)

    def __call__(self, module: SimMIMViT | MaskedBackbone) -> Fitted:
        """Load the weights; log what was loaded, and return it."""
        path = self.checkpoint
        with get_local_path(path) if '://' in path else nullcontext(path) as local:
            saved = read(local, objects='known')
        with named(path):
            chosen = without_prefix(saved.state, self.prefix)
            if self.prefix and not chosen:
                raise ValueError(f'nothing was loaded: no tensor has the prefix {self.prefix!r}; leave prefix out')
            fitted = _fit(module, saved._replace(state=chosen), self.asked)
            fitted.skipped.extend(name for name in saved.state if not name.startswith(self.prefix))
        module.load_state_dict({**module.state_dict(), **fitted.state})
        print_log(fitted.report(path), 'current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'{type(module).__name__}: loaded from {path}')
        return fitted
