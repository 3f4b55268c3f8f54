"""The teacher of a model that predicts features: its checkpoints say which it is, and do not hold its weights."""

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simmim_plugin.models.interface import load_frozen
from simmim_plugin.registry import build_part
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.meta import on_meta

if TYPE_CHECKING:
    from simmim_plugin.checkpoints.saved import Saved

BACKBONES = ('SimMIMViT', 'MaskedBackbone')
LOADING = ('type', 'checkpoint', 'prefix', 'adapt_channels')  # of its `init_cfg`


def with_teacher(saved: 'Saved') -> dict[str, Any]:
    """`Saved.built`, with the teacher, if there is one, built and loaded from the file that its config names.

    Raises:
        ValueError: The file is not on this machine (nothing is downloaded for a file), or is of another model.
    """
    config, noted = saved.built, saved.part('head').get('target')
    if type_name(config) != 'SimMIM' or not isinstance(noted, Mapping) or noted.get('type') != 'features':
        return config
    teacher, target = noted.get('teacher'), config['head']['target']
    given = teacher.get('init_cfg') if isinstance(teacher, Mapping) else None
    given = {key: given[key] for key in LOADING if key in given} if isinstance(given, Mapping) else {}
    path = given.get('checkpoint')
    if not isinstance(path, str) or not os.path.exists(path):
        raise ValueError(
            f'checkpoint {saved.path!r} is of a model that predicts features of a teacher, whose weights it does not '
            f'hold, and init_cfg.checkpoint={path!r} of the teacher is no file here; put the file there'
        )
    if type_name(target['teacher']) not in BACKBONES:
        kind = target['teacher'].get('type')
        raise ValueError(f'checkpoint {saved.path!r}: its teacher is a {kind!r}, not a {" or ".join(BACKBONES)}')
    if type_name(target['teacher']) == 'SimMIMViT':
        with on_meta():  # numbers in a file may be absurd: compared with the weights before memory is taken
            shapes = build_part(target['teacher'])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # that nothing is copied
            load_frozen(shapes, given)
    built = build_part(target['teacher'])
    load_frozen(built, given)
    return {**config, 'head': {**config['head'], 'target': {**target, 'teacher': built}}}
