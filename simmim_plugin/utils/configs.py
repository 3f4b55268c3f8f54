"""Find data sets and transforms in a config."""

import copy
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


TTA_MODELS: dict[str, dict[str, Any]] = {  # by default scope; the defaults of the frameworks' own test tools
    'mmpretrain': dict(type='AverageClsScoreTTA'),
    'mmdet': dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    'mmseg': dict(type='SegTTAModel'),
}


def fill_in_tta(cfg: Config) -> None:
    """Set `tta_model` and `tta_pipeline`, by which test data are seen as they are and flipped, where there are none.

    The pipeline is that of the test data, branched before annotations are loaded or the sample is packed. A config of
    another scope, and a pipeline without packing, are left as they are.
    """
    if (scope := cfg.get('default_scope')) not in TTA_MODELS or not cfg.get('test_dataloader'):
        return
    cfg.setdefault('tta_model', TTA_MODELS[scope])
    if 'tta_pipeline' in cfg:
        return
    pipeline = copy.deepcopy(innermost(cfg.test_dataloader.dataset).get('pipeline') or [])
    places = [i for i, part in enumerate(pipeline) if i and type_name(part).startswith(('Load', 'Pack'))]
    if not places:
        return
    for part in pipeline:
        if 'meta_keys' in part and scope == 'mmdet':  # by which it undoes the flip
            part.meta_keys = (*part.meta_keys, 'flip', 'flip_direction')
    flips = (
        [dict(type='simmim_plugin.RandomHorizontalFlip', p=p) for p in (1.0, 0.0)]  # tensors and arrays
        if scope == 'mmpretrain'
        else [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)]
    )
    branches = [flips, *([part] for part in pipeline[places[0] :])]
    cfg.tta_pipeline = [*pipeline[: places[0]], dict(type='TestTimeAug', transforms=branches)]
