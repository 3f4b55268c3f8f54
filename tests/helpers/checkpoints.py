"""Write small checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.models import TINY
from simmim_plugin import SimMIM


def write_checkpoint(path, backbone=TINY, **mask):
    """A checkpoint of an untrained model, like one of a pretraining."""
    parts = dict(backbone=backbone, data_preprocessor=dict(type='SimMIMDataPreprocessor', mean=[120] * 3, std=[60] * 3))
    torch.manual_seed(0)
    model = SimMIM(**parts)
    pipeline = [dict(type='LoadImage'), dict(type='SimMIMMaskGenerator', **mask), dict(type='PackSimMIMInputs')]
    note: dict[str, Any] = dict(model=dict(type='SimMIM', **parts), pipeline=pipeline)
    torch.save(dict(state_dict=model.state_dict(), simmim_plugin=note), path)
    return path


MEAN, STD = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
PIPELINE = [dict(type='LoadImage'), dict(type='SimMIMMaskGenerator', input_size=64)]


def random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Make all weights random, bias tables and norms included, so that a missing one is noticed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def save(path: Path, model: nn.Module, backbone: dict, preprocessor: dict | None, pipeline: list = PIPELINE) -> Path:
    note: dict[str, Any] = dict(model=dict(type='SimMIM', backbone=backbone), pipeline=pipeline)
    if preprocessor is not None:
        note['model']['data_preprocessor'] = preprocessor
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note}, path)
    return path


def pretrained(path: Path, mean: list = MEAN, std: list = STD, pipeline: list = PIPELINE, **kwargs: object) -> SimMIM:
    """A tiny pretrained model, and its checkpoint at `path`."""
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=mean, std=std)
    model = random_weights(SimMIM(backbone=TINY | kwargs, data_preprocessor=preprocessor))
    save(path, model, TINY | kwargs, preprocessor, pipeline)
    return model.eval()
