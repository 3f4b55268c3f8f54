"""Infer the classes of a data set: from folders, a JSON file of annotations, or a file of names next to the masks."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simmim_plugin.utils.arguments import folders
from simmim_plugin.utils.files import is_hidden, read_json

CLASSES_FILE = 'classes.txt'


def class_folders(places: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Names of the class folders in one folder or several, sorted, without what `is_hidden`."""
    found = (path for place in places if os.path.isdir(place) for path in Path(place).iterdir())
    return sorted({path.name for path in found if path.is_dir() and not is_hidden(path.name)})


def class_names(dataset: Mapping[str, Any]) -> list[str]:
    """Class names of a data set's config, in the order of their labels.

    They come from its `metainfo` if given; for JSON annotations, from their `metainfo` (OpenMMLab) or from the
    categories in the order of the file (COCO); for masks, from the lines of `classes.txt` in `data_root`, the first for
    the value 0; else from its folders, without what `is_hidden`.

    Raises:
        FileNotFoundError: The annotations or `classes.txt` do not exist.
        ValueError: They name no classes.
    """
    if (dataset.get('metainfo') or {}).get('classes'):
        return list(dataset['metainfo']['classes'])
    if isinstance(dataset.get('data_root'), list | tuple):
        return _folder_names(dataset)
    prefix = dataset.get('data_prefix', '')
    if isinstance(prefix, Mapping) and 'seg_map_path' in prefix:
        path = Path(dataset['data_root'], CLASSES_FILE)
        _check_file(path, "the classes' names, one per line, the first for the value 0 of the masks")
        names = [line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    elif str(dataset.get('ann_file', '')).endswith('.json'):
        path = Path(dataset['data_root'], dataset['ann_file'])
        _check_file(path, "annotations in COCO's or OpenMMLab's format")
        content = read_json(path)
        categories = [category['name'] for category in content.get('categories', ())]
        names = categories or list(content.get('metainfo', {}).get('classes', ()))
    else:
        return _folder_names(dataset)
    if not names:
        raise ValueError(f'{str(path)!r} names no classes')
    return names


def _folder_names(dataset: Mapping[str, Any]) -> list[str]:
    places = _places(dataset)
    names = class_folders(places)
    if not names and dataset.get('ann_file'):
        raise ValueError(
            f'ann_file={dataset["ann_file"]!r} has labels, but no names of classes, and {places[0]!r} has no folder '
            "per class: set metainfo=dict(classes=['cat', 'dog', ...]) of the dataset, in the order of the labels"
        )
    if str(dataset.get('type')).endswith('CustomDataset') and not dataset.get('ann_file'):
        hidden = [path for place in places if os.path.isdir(place) for path in Path(place).iterdir()
                  if path.is_dir() and is_hidden(path.name)]  # fmt: skip
        if hidden:
            raise ValueError(
                f'CustomDataset takes {str(hidden[0])!r} for a class; remove it, or set '
                "type='simmim_plugin.ClassFolders'"
            )
    return names


def _places(dataset: Mapping[str, Any]) -> list[str]:
    """The folders that hold the class folders: one for each `data_root`."""
    prefix = dataset.get('data_prefix', '')
    prefix = prefix.get('img_path', '') if isinstance(prefix, Mapping) else prefix
    roots = folders('data_root', dataset['data_root'] or '')
    return [os.path.join(root, prefix) if prefix else root for root in roots]


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
    unfilled = heads and (unnamed or None in heads.values())  # pretraining has no head
    if not datasets or datasets[0].get('data_root') is None or not unfilled:
        return 0
    train, *others = [(data, class_names(data)) for data in datasets]
    for data, names in [train, *others]:
        if not names or names != train[1]:
            wanted = f'the classes {", ".join(train[1])} as in the training data' if train[1] else 'a folder per class'
            found = (', '.join(names) or 'none') + _difference(train[1], names)
            raise ValueError(
                f'{_place(data)!r} must have {wanted}, found {found}; data_root is the folder that holds the training '
                'and validation data'
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


def _difference(wanted: Sequence[str], found: Sequence[str]) -> str:
    """Suffix of a message that names the classes that one side lacks."""
    parts = [('missing', set(wanted) - set(found)), ('only here', set(found) - set(wanted))]
    named = [f'{what}: {", ".join(sorted(names))}' for what, names in parts if names]
    return f' ({"; ".join(named)})' if named and wanted and found else ''


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
    if dataset.get('ann_file'):
        return os.path.join(folders('data_root', dataset['data_root'])[0], dataset['ann_file'])
    return _places(dataset)[0]


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} does not exist; data_root must have it: {what}')
