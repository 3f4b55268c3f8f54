"""Find data sets and transforms in a config."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

READING = ('channels', 'dtype', 'max_bytes', 'nodata')  # arguments of LoadImage that read_image has, too


def training_data(cfg: Config) -> Any:
    """Config of the (first) training data set, see `innermost`; {} if there is none."""
    return innermost(cfg.train_dataloader.dataset) if cfg.get('train_dataloader') else {}


def datasets_of(cfg: Config) -> list[Any]:
    """Configs of all data sets of training, validation and test, see `inside`."""
    loaders = [cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')]
    return [data for loader in loaders if loader for data in inside(loader.dataset)]


def innermost(dataset: Any) -> Any:
    """Config of the data set inside wrappers such as RepeatDataset; of several, the first."""
    return inside(dataset)[0]


def inside(dataset: Any) -> list[Any]:
    """Configs of the data sets inside wrappers such as RepeatDataset (one) and ConcatDataset (several)."""
    if 'dataset' in dataset:
        return inside(dataset['dataset'])
    if 'datasets' in dataset:
        return [data for part in dataset['datasets'] for data in inside(part)]
    return [dataset]


def type_name(cfg: Mapping[str, Any]) -> str:
    """Type of a part without its scope; 'None' if it has no type."""
    return str(cfg.get('type')).split('.')[-1]


def transform_arguments(pipeline: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Arguments of the first transform of a type, without its type; {} if there is none."""
    for transform in pipeline:
        if type_name(transform) == name:
            return {key: value for key, value in transform.items() if key != 'type'}
    return {}


def reading_arguments(pipeline: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Arguments of `read_image` to read images as the pipeline does."""
    return {k: v for k, v in transform_arguments(pipeline, 'LoadImage').items() if k in READING}


def without_variables(text: str) -> str:
    """Text of a config in which MMEngine replaces nothing: two braces in a string are written as an escape and one.

    MMEngine replaces {{ fileBasename }}, {{$NAME:default}} and {{ _base_.x }} in the text of a config file before it
    runs it, also inside strings, such as a path of the data.
    """
    return re.sub(r'\{(?=\{)', r'\\x7b', text)
