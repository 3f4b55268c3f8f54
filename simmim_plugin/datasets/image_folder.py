"""ImageFolder: a data set of all images below a folder, without labels."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from simmim_plugin.datasets.images import SUFFIXES, ImageReadError
from simmim_plugin.datasets.sampling import NumberedIndex
from simmim_plugin.datasets.transforms.crop import RandomResizedCrop
from simmim_plugin.datasets.transforms.loading import LoadImage
from simmim_plugin.registry import DATASETS
from simmim_plugin.utils.arguments import folders, keys, names, number, text
from simmim_plugin.utils.files import is_hidden, printable
from simmim_plugin.utils.random_state import seed_everything

# Images to try (or all of a smaller folder) before the share of bad ones is meaningful.
MIN_TRIED = 100
NAMED_BAD_IMAGES = 20
UNSEEN, GOOD, BAD = 0, 1, 2
SAMPLE = 0  # marks the seeds of samples, see IterationSeedHook


class TooManyBadImagesError(RuntimeError):
    """More images than `max_bad_ratio` could not be read. The message lists them."""


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """All images below a folder, or several, or those of a list of files; without labels.

    An image that cannot be read is counted, logged and replaced by a random other one. If more than `max_bad_ratio` of
    the images tried so far are bad, the training stops with a list of them. All worker processes of a data loader share
    the count.

    Args:
        data_root: The folder, or a list of folders, searched recursively, following links. None in a config is replaced
            by its top-level `data_root`.
        pipeline: Transforms; a sample starts as `{'img_path': str}`, with `iteration` for a `NumberedIndex`.
        suffixes: File endings to include, such as '.png'.
        max_bad_ratio: Tolerated fraction of unreadable images.
        ann_file: A text file in `data_root` with one path per line: these images only. A label behind a path, as in
            MMPretrain's lists, is ignored.
        data_prefix: Subfolder of `data_root` to take the images from, as a string or `dict(img_path=...)`.
        kwargs: See `mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: A folder or `ann_file` does not exist.
        ValueError: They hold no image, an argument is out of range, or is not used by this data set.
    """

    unused: tuple[str, ...] = ('filter_cfg',)  # arguments of BaseDataset that would do nothing

    def __init__(
        self,
        data_root: str | Sequence[str] | None,
        pipeline: Sequence[Any] = (),
        suffixes: Sequence[str] = SUFFIXES,
        max_bad_ratio: float = 0.05,
        ann_file: str = '',
        data_prefix: str | Mapping[str, str] = '',
        **kwargs: Any,
    ) -> None:
        kind, given = type(self).__name__, dict(kwargs, ann_file=ann_file, data_prefix=data_prefix)
        for name in self.unused:
            if given.get(name):
                raise ValueError(f'{kind} does not use {name}={given[name]!r}; remove it')
        number('max_bad_ratio', max_bad_ratio, 0, 1, '0.05 tolerates 5 % of unreadable images')
        if data_root is None:
            raise ValueError(f'data_root=None of {kind}: set it to the folder of the images')
        prefix: Any = data_prefix
        if isinstance(data_prefix, Mapping):
            prefix = keys('data_prefix', data_prefix, (), ('img_path',)).get('img_path', '')
        if ann_file is not None:
            text('ann_file', ann_file, 'the list of the images, below data_root')
        if prefix is not None:
            text('data_prefix', prefix, 'the folder of the images, below data_root')
        listed = isinstance(pipeline, Sequence) and not isinstance(pipeline, str)
        if not listed or not all(isinstance(transform, Mapping) or callable(transform) for transform in pipeline):
            raise ValueError(f'pipeline={pipeline!r} must be a list of transforms, or of dicts with a type')
        roots = folders('data_root', data_root)
        self.prefix = prefix or ''
        self.folders = [os.path.join(root, prefix) if prefix else root for root in roots]
        self.lists = [os.path.join(root, ann_file) for root in roots] if ann_file else []
        self.suffixes = tuple(suffix.lower() for suffix in names('suffixes', suffixes, "e.g. ['.jpg']"))
        self.max_bad_ratio = max_bad_ratio
        super().__init__(ann_file, data_root=roots[0], pipeline=list(pipeline), **kwargs)
        transforms = self.pipeline.transforms
        for transform, following in zip(transforms, [*transforms[1:], None]):
            if isinstance(transform, LoadImage) and not isinstance(following, RandomResizedCrop):
                transform.defer = False  # other transforms need pixels

    def full_init(self) -> None:
        """List the images, and create the record of bad ones."""
        if self._fully_initialized:
            return
        super().full_init()
        # One byte per image in shared memory, so that all workers, forked or spawned, share the record.
        self.state = torch.full((len(self),), UNSEEN, dtype=torch.uint8).share_memory_()

    def _join_prefix(self) -> None:
        """Nothing is left to join."""

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images, sorted by path within each folder, or in the order of `ann_file`."""
        self._check_folders()
        if self.lists:
            return [{'img_path': path} for path, _ in self._listed()]
        paths = [path for folder in self.folders for path in list_images(folder, self.suffixes)]
        if not paths:
            raise ValueError(f'data_root={self._place()} holds no file ending in {" ".join(self.suffixes)}')
        return [{'img_path': path} for path in paths]

    def _check_folders(self) -> None:
        for folder in self.folders:
            if not os.path.isdir(folder):
                named = f'data_prefix={self.prefix!r}: {folder!r}' if self.prefix else f'data_root={folder!r}'
                raise FileNotFoundError(
                    f'{named} is not a folder (from {os.getcwd()}); set data_root in the config, or on '
                    'the command line: --cfg-options data_root=/path/to/images'
                )

    def _listed(self) -> list[tuple[str, int | None]]:
        """Paths and labels (None if there is none) of the images in `ann_file`."""
        return [
            (os.path.join(folder, name), label)
            for folder, file in zip(self.folders, self.lists)
            for name, label in read_list(file, self.suffixes)
        ]

    def _place(self) -> str:
        return ', '.join(map(repr, self.folders))

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of an image, for ClassBalancedDataset: there are none."""
        raise ValueError(f"{type(self).__name__} has no labels; ClassBalancedDataset needs type='ClassFolders'")

    def __getitem__(self, idx: int) -> Any:
        """A sample. Its pipeline is seeded by the number of the sample, if the index carries it."""
        if isinstance(idx, NumberedIndex) and idx.key is not None:
            seed, number = idx.key
            seed_everything(seed, SAMPLE, number)
        return super().__getitem__(idx)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """`img_path` of an image, and `iteration` if the index carries it."""
        info = super().get_data_info(int(idx))
        return {**info, 'iteration': idx.iteration} if isinstance(idx, NumberedIndex) else info

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on one image; None, for which the caller draws another, if it cannot be read."""
        self._iteration = idx.iteration if isinstance(idx, NumberedIndex) else None
        try:
            data = super().prepare_data(idx)
        except ImageReadError as error:
            self._note_bad(idx, error)
            return None
        self.state[idx] = GOOD
        return data

    def _rand_another(self) -> int:
        index = int(super()._rand_another())
        return index if self._iteration is None else NumberedIndex(index, self._iteration)

    def bad_images(self) -> list[str]:
        """Paths of the images that could not be read so far, by any worker."""
        return [BaseDataset.get_data_info(self, int(i))['img_path'] for i in (self.state == BAD).nonzero()]

    def _note_bad(self, idx: int, error: ImageReadError) -> None:
        known = bool(self.state[idx] == BAD)
        self.state[idx] = BAD
        bad = int((self.state == BAD).sum())
        if not known:
            # Logged as an error, because only errors are shown from every rank.
            print_log(f'Image skipped ({bad} of {len(self)} so far): {error}', 'current', logging.ERROR)
        tried = int((self.state != UNSEEN).sum())
        if bad > self.max_bad_ratio * max(tried, min(len(self), MIN_TRIED)):
            paths = self.bad_images()
            more = f'\n  ... and {bad - NAMED_BAD_IMAGES} more' if bad > NAMED_BAD_IMAGES else ''
            listed = '\n'.join(f'  {printable(path)}' for path in paths[:NAMED_BAD_IMAGES])
            fix = 'Remove or repair them, or raise max_bad_ratio of the dataset'
            if bad == tried:
                fix += '; as all are bad so far, channels or dtype of LoadImage may not fit the images'
            raise TooManyBadImagesError(
                f'{bad} of {tried} images tried cannot be read, more than max_bad_ratio={self.max_bad_ratio}; '
                f'the last one: {error}. {fix}:\n{listed}{more}'
            )


def read_list(path: str, suffixes: Sequence[str] = SUFFIXES) -> list[tuple[str, int | None]]:
    """Read a text file with one image per line: its path, with or without a label behind it, as for MMPretrain.

    Returns:
        The paths as they stand there, and the labels; None where there is none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no such path, or there is none.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'ann_file {path!r} does not exist (from {os.getcwd()})')
    found: list[tuple[str, int | None]] = []
    for row, line in enumerate(Path(path).read_text(encoding='utf-8').splitlines(), 1):
        if match := re.fullmatch(r'(.+?)(?:\s+(\d+))?', line.strip()):
            name, label = match.groups()
            if not name.lower().endswith(tuple(suffixes)):
                raise ValueError(f'ann_file {path!r}, line {row}: {line!r} is not the path of an image, such as '
                                 'a/b.jpg or a/b.jpg 0, where 0 is a label')  # fmt: skip
            found.append((name, None if label is None else int(label)))
    if not found:
        raise ValueError(f'ann_file {path!r} lists no image')
    return found


def list_images(folder: str, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """Sorted paths of the image files below a folder, without what `is_hidden`; follows links, once each."""
    found, visited = [], set()
    for parent, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        found += [
            os.path.join(parent, name)
            for name in files
            if name.lower().endswith(tuple(suffixes)) and not is_hidden(name)
        ]
    return sorted(found)
