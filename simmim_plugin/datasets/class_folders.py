"""ClassFolders: a labelled data set, with a folder per class or a list of files with labels."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log

from simmim_plugin.datasets.class_names import class_folders
from simmim_plugin.datasets.image_folder import ImageFolder, list_images
from simmim_plugin.datasets.images import SUFFIXES
from simmim_plugin.registry import DATASETS


@DATASETS.register_module()
class ClassFolders(ImageFolder):
    """Labelled images: a folder per class, whose name is the class, or a list of files with labels.

    As MMPretrain's CustomDataset, but folders of systems (`is_hidden`) are no classes, several folders can be given,
    and with `IterationSeedHook` a sample's random numbers depend on its number in the run.

    Args:
        data_root: The folder, or a list of folders, whose classes are joined by name.
        pipeline: Transforms; a sample starts as `{'img_path': str, 'gt_label': int}`.
        extensions: File endings to include.
        max_bad_ratio: Tolerated fraction of unreadable images; by default the first one stops the run.
        metainfo: `dict(classes=[...])`, the names in the order of their labels. None: those of the folders, sorted.
        kwargs: See `ImageFolder`. A line of `ann_file` is the path of an image and its label.

    Raises:
        FileNotFoundError: A folder or `ann_file` does not exist.
        ValueError: There are no classes or images, or others than in `metainfo`.
    """

    def __init__(
        self,
        data_root: str | Sequence[str] | None,
        pipeline: Sequence[Any] = (),
        extensions: Sequence[str] = SUFFIXES,
        max_bad_ratio: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_root, pipeline, extensions, max_bad_ratio, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images with their labels: class by class, or in the order of `ann_file`."""
        self._check_folders()
        classes = list(self._metainfo.get('classes', ()))
        if self.lists:
            return [dict(img_path=path, gt_label=self._checked(path, label, len(classes)))
                    for path, label in self._listed()]  # fmt: skip
        found = class_folders(self.folders)
        classes = classes or found
        if unknown := sorted(set(found) - set(classes)):
            raise ValueError(f'{self._place()} has folders that are no classes: {", ".join(unknown)}; there are '
                             f'{", ".join(classes)}')  # fmt: skip
        by_class = [[path for folder in self.folders for path in list_images(os.path.join(folder, name), self.suffixes)]
                    for name in classes]  # fmt: skip
        if not any(by_class):
            raise ValueError(f'data_root={self._place()} must have a folder per class, with files ending in '
                             f'{" ".join(self.suffixes)}')  # fmt: skip
        if empty := [name for name, paths in zip(classes, by_class) if not paths]:
            print_log(f'{self._place()} has no image of {", ".join(empty)}', 'current', logging.WARNING)
        self._metainfo['classes'] = tuple(classes)
        return [dict(img_path=path, gt_label=label) for label, paths in enumerate(by_class) for path in paths]

    def _checked(self, path: str, label: int | None, count: int) -> int:
        if not count:
            raise ValueError(f'ann_file={self.ann_file!r} has no names of classes: set metainfo=dict(classes=[...])')
        if label is None or label >= count:
            raise ValueError(f'ann_file={self.ann_file!r}: {path!r} has the label {label}; give one below {count}, the '
                             'number of classes, behind its path')  # fmt: skip
        return label

    def get_cat_ids(self, idx: int) -> list[int]:
        """The label of an image, for ClassBalancedDataset."""
        return [int(self.get_data_info(idx)['gt_label'])]
