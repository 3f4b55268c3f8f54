"""Find data sets and transforms in a config."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config


def training_data(cfg: Config) -> Any:
    """Config of the training data set, see `innermost`; {} if there is none."""
    return innermost(cfg.train_dataloader.dataset) if cfg.get('train_dataloader') else {}


def datasets_of(cfg: Config) -> list[Any]:
    """Configs of the data sets of training, validation and test, see `innermost`."""
    loaders = [cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')]
    return [innermost(loader.dataset) for loader in loaders if loader]


def innermost(dataset: Any) -> Any:
    """Config of the data set inside wrappers such as RepeatDataset."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


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
    return {k: v for k, v in transform_arguments(pipeline, 'LoadImage').items() if k in ('channels', 'dtype')}


def without_variables(text: str) -> str:
    """Text of a config in which MMEngine replaces nothing: two braces in a string are written as an escape and one.

    MMEngine replaces {{ fileBasename }}, {{$NAME:default}} and {{ _base_.x }} in the text of a config file before it
    runs it, also inside strings, such as a path of the data.
    """
    return re.sub(r'\{(?=\{)', r'\\x7b', text)
