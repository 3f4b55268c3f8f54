"""The teacher of a model that predicts features: its checkpoints say which it is, and do not hold its weights."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

from simmim_plugin.checkpoints.saved import Saved, named
from simmim_plugin.models.interface import with_our_loader
from simmim_plugin.registry import WEIGHT_INITIALIZERS, build_part
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.meta import on_meta


def with_teacher(saved: Saved) -> dict[str, Any]:
    """`Saved.built`, with the teacher, if there is one, built and loaded from the file that its config names.

    Raises:
        ValueError: The file is not on this machine (nothing is downloaded for a file), or is of another model.
    """
    config, noted = saved.built, saved.part('head').get('target')
    if type_name(config) != 'SimMIM' or not isinstance(noted, Mapping) or noted.get('type') != 'features':
        return config
    teacher, target = noted.get('teacher'), config['head']['target']
    given = teacher.get('init_cfg') if isinstance(teacher, Mapping) else None
    init = with_our_loader(given)[-1] if isinstance(given, Mapping) and 'type' in given else {}
    path = init.get('checkpoint')
    if not isinstance(path, str) or not os.path.exists(path):
        raise ValueError(
            f'checkpoint {saved.path!r} is of a model that predicts features of a teacher, whose weights it does not '
            f'hold, and init_cfg.checkpoint={path!r} of the teacher is no file here; put the file there'
        )
    with named(saved.path):
        load = WEIGHT_INITIALIZERS.build({**init, 'type': 'simmim_plugin.PretrainedViT'})
        if type_name(target['teacher']) == 'SimMIMViT':
            with on_meta():  # numbers in a file may be absurd: compared with the weights before memory is taken
                shapes = build_part(target['teacher'])
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', UserWarning)  # that nothing is copied
                load(shapes)
        built = build_part(target['teacher'])
        load(built)
    return {**config, 'head': {**config['head'], 'target': {**target, 'teacher': built}}}
