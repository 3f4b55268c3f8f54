"""Infer the classes of a data set: from folders, COCO categories, or a file of names next to the masks."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CLASSES_FILE = 'classes.txt'


def class_folders(dataset: Mapping[str, Any]) -> list[str]:
    """Names of the class folders of a data set, sorted."""
    folder = Path(dataset['data_root'] or '', dataset.get('data_prefix', ''))
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def class_names(dataset: Mapping[str, Any]) -> list[str]:
    """Class names of a data set's config, in the order of their labels.

    They come from its `metainfo` if given; for COCO annotations, from the categories in the order of the file; for
    masks, from the lines of `classes.txt` in `data_root`, the first for the value 0; else from its folders.

    Raises:
        FileNotFoundError: The annotations or `classes.txt` do not exist.
        ValueError: They name no classes.
    """
    if (dataset.get('metainfo') or {}).get('classes'):
        return list(dataset['metainfo']['classes'])
    prefix = dataset.get('data_prefix', '')
    if isinstance(prefix, Mapping) and 'seg_map_path' in prefix:
        path = Path(dataset['data_root'], CLASSES_FILE)
        _check_file(path, "the classes' names, one per line, the first for the value 0 of the masks")
        names = [line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    elif str(dataset.get('ann_file', '')).endswith('.json'):
        path = Path(dataset['data_root'], dataset['ann_file'])
        _check_file(path, "annotations in COCO's format")
        names = [category['name'] for category in json.loads(path.read_text(encoding='utf-8')).get('categories', ())]
    else:
        return class_folders(dataset)
    if not names:
        raise ValueError(f'{str(path)!r} names no classes')
    return names


def fill_in_classes(model: Any, datasets: Sequence[Any]) -> int:
    """Replace None in a model and its data sets by the number and names of the classes.

    Args:
        model: Config of a model, changed in place.
        datasets: Configs of the innermost data sets, the training data first, changed in place.

    Returns:
        The number of classes; 0 if nothing was None, or the training data have no `data_root` yet.

    Raises:
        FileNotFoundError: See `class_names`.
        ValueError: There are no classes, the data sets have different ones, or a head has another number.
    """
    unnamed = [data for data in datasets if 'metainfo' in data and data['metainfo'] is None]
    heads = dict(_class_counts(model))
    if not datasets or datasets[0].get('data_root') is None or not (unnamed or None in heads.values()):
        return 0
    train, *others = [(data, class_names(data)) for data in datasets]
    for data, names in [train, *others]:
        if not names or names != train[1]:
            wanted = f'the classes {", ".join(train[1])} as in the training data' if train[1] else 'a folder per class'
            raise ValueError(
                f'{_place(data)!r} must have {wanted}, found {", ".join(names) or "none"}; data_root is '
                'the folder that holds the training and validation data'
            )
    count = len(train[1])
    for place, given in heads.items():
        if given not in (None, count):
            raise ValueError(
                f'model.{place}={given}, but {_place(train[0])!r} has {count} classes: {", ".join(train[1])}; leave '
                f'it None, or set it to {count}'
            )
    for data in unnamed:
        data.metainfo = dict(classes=train[1])
    _set_counts(model, count)
    return count


def _class_counts(node: Any, prefix: str = '') -> Iterator[tuple[str, int | None]]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        if key == 'num_classes':
            yield f'{prefix}{key}', value
        else:
            yield from _class_counts(value, f'{prefix}{key}.')


def _set_counts(node: Any, count: int) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == 'num_classes' and value is None:
                node[key] = count  # type: ignore[index]
            _set_counts(value, count)
    elif isinstance(node, list | tuple):
        for value in node:
            _set_counts(value, count)


def _place(dataset: Mapping[str, Any]) -> str:
    prefix = dataset.get('data_prefix', '')
    part = dataset.get('ann_file') or (prefix.get('img_path', '') if isinstance(prefix, Mapping) else prefix)
    return os.path.join(dataset['data_root'], part)


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} does not exist; data_root must have it: {what}')
