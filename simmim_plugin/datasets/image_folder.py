"""ImageFolder: a data set of all images below a folder, without labels."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from simmim_plugin.datasets.images import SUFFIXES, ImageReadError
from simmim_plugin.datasets.sampling import NumberedIndex
from simmim_plugin.datasets.transforms.crop import RandomResizedCrop
from simmim_plugin.datasets.transforms.loading import LoadImage
from simmim_plugin.registry import DATASETS
from simmim_plugin.utils.arguments import names, number
from simmim_plugin.utils.files import printable
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
    """All images below a folder, without labels.

    An image that cannot be read is counted, logged and replaced by a random other one. If more than `max_bad_ratio` of
    the images tried so far are bad, the training stops with a list of them. All worker processes of a data loader share
    the count.

    Args:
        data_root: The folder, searched recursively, following links. None in a config is replaced by its top-level
            `data_root`.
        pipeline: Transforms; a sample starts as `{'img_path': str}`, with `iteration` for a `NumberedIndex`.
        suffixes: File endings to include, such as '.png'.
        max_bad_ratio: Tolerated fraction of unreadable images.
        kwargs: See `mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It holds no image, or an argument is out of range.
    """

    def __init__(
        self,
        data_root: str | None,
        pipeline: Sequence[Any] = (),
        suffixes: Sequence[str] = SUFFIXES,
        max_bad_ratio: float = 0.05,
        **kwargs: Any,
    ) -> None:
        number('max_bad_ratio', max_bad_ratio, 0, 1, '0.05 tolerates 5 % of unreadable images')
        if data_root is None:
            raise ValueError('data_root of ImageFolder is not set; set it to the folder of the training images')
        self.suffixes = tuple(suffix.lower() for suffix in names('suffixes', suffixes, "e.g. ['.jpg']"))
        self.max_bad_ratio = max_bad_ratio
        super().__init__(data_root=os.path.expanduser(data_root), pipeline=list(pipeline), **kwargs)
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

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images, sorted by path."""
        if not os.path.isdir(self.data_root):
            raise FileNotFoundError(
                f'data_root={self.data_root!r} is not a folder (from {os.getcwd()}); set data_root in the config, or '
                'on the command line: --cfg-options data_root=/path/to/images'
            )
        paths = list_images(self.data_root, self.suffixes)
        if not paths:
            raise ValueError(f'data_root={self.data_root!r} holds no file ending in {" ".join(self.suffixes)}')
        return [{'img_path': path} for path in paths]

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


def list_images(folder: str, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """Sorted paths of the image files below a folder, without hidden files; follows links, once each."""
    found, visited = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        found += [
            os.path.join(parent, name) for name in files if name.lower().endswith(tuple(suffixes)) and name[0] != '.'
        ]
    return sorted(found)
