"""Time to load images and to make batches of them, against the reference's pipeline and MMPretrain's."""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose, default_collate, pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image
from torchvision import transforms

from simmim_plugin.benchmark.timing import in_ms, interleaved
from simmim_plugin.config import load_config
from simmim_plugin.datasets.preparation.sample_sets import PackagePhotos
from simmim_plugin.models.data_preprocessor import SimMIMDataPreprocessor
from simmim_plugin.utils.random_state import seed_everything

SIZES = ((500, 375), (2000, 1500))  # width and height in pixels of the JPEGs
PHOTOS = 8
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def write_photos(folder: str | os.PathLike[str], size: tuple[int, int], count: int = PHOTOS) -> list[str]:
    """Write JPEGs of a size, quality 90, from the photos inside packages; enlarged ones get noise like a camera's."""
    sources = [sample['img_path'] for sample in PackagePhotos().load_data_list()]
    paths = []
    for i in range(count):
        with Image.open(sources[i % len(sources)]) as opened:
            enlarged = min(opened.size) < min(size)
            image = np.asarray(opened.convert('RGB').resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        if enlarged:
            image += np.random.default_rng(i).normal(0, 3, image.shape)
        paths.append(os.path.join(folder, f'{i:04}.jpg'))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def pipelines(config: str) -> dict[str, Callable[[str], Any]]:
    """Pipelines from a path to a sample: the config's, the reference's, and MMPretrain's if it is installed."""
    ours, number = Compose(load_config(config).train_pipeline), itertools.count()
    means = dict(mean=[value / 255 for value in MEAN], std=[value / 255 for value in STD])
    reference = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(**means),
        ]
    )

    def by_ours(path: str) -> Any:
        seed_everything(0, 0, next(number))  # as ImageFolder does
        return ours({'img_path': path})

    def by_reference(path: str) -> Any:
        with Image.open(path) as image:
            return reference(image.convert('RGB'))

    found: dict[str, Callable[[str], Any]] = {
        'ours': by_ours,
        'torchvision and PIL': by_reference,
    }
    try:
        theirs = mmpretrain_pipeline()
    except ImportError:
        return found
    return {**found, 'MMPretrain': lambda path: theirs({'img_path': path})}


def mmpretrain_pipeline() -> Compose:
    """The pipeline of MMPretrain's SimMIM at 224 px; raises ImportError if it is not installed."""
    import mmpretrain.datasets  # noqa: F401 (registers the transforms)

    masks = dict(type='mmpretrain.SimMIMMaskGenerator', input_size=224, mask_patch_size=32, model_patch_size=4)
    return Compose(
        [
            dict(type='mmpretrain.LoadImageFromFile'),
            dict(type='mmpretrain.RandomResizedCrop', scale=224, crop_ratio_range=(0.67, 1.0)),
            dict(type='mmpretrain.RandomFlip', prob=0.5),
            {**masks, 'mask_ratio': 0.6},
            dict(type='mmpretrain.PackInputs'),
        ]
    )


def measure_input(config: str, batch: int, repeats: int) -> dict[str, Any]:
    """Measure in this process with one thread, as in a data loader worker.

    Args:
        config: Pretraining config whose pipeline is measured.
        batch: Images per batch.
        repeats: See `interleaved`.

    Returns:
        `per_image`: rows of size, pipeline, milliseconds and speed relative to the reference; `per_batch`: rows of the
        work of the main process per batch; `skipped`.
    """
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as in MMEngine's workers
    try:
        with DefaultScope.overwrite_default_scope('simmim_plugin'), tempfile.TemporaryDirectory() as folder:
            found = pipelines(config)
            rows = []
            for size in SIZES:
                inside = Path(folder, f'{size[0]}x{size[1]}')
                inside.mkdir()
                paths = write_photos(inside, size)
                tasks = {name: _over(pipeline, paths) for name, pipeline in found.items()}
                times = interleaved(tasks, repeats, warm=1)
                for name, time in times.items():
                    ratio = times['torchvision and PIL']['seconds'] / time['seconds']
                    rows.append(
                        dict(
                            size=size,
                            pipeline=name,
                            **in_ms({key: value / len(paths) for key, value in time.items()}),
                            faster_than_reference=ratio,
                        )
                    )
            small = sorted(str(path) for path in Path(folder, '500x375').iterdir())
            batches = _batches(found, small, batch, repeats)
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    skipped = {} if 'MMPretrain' in found else {'MMPretrain': 'not installed'}
    return dict(per_image=rows, per_batch=batches, skipped=skipped)


def _over(pipeline: Callable[[str], Any], paths: Sequence[str]) -> Callable[[], None]:
    def task() -> None:
        for path in paths:
            pipeline(path)

    return task


def _batches(
    found: dict[str, Callable[[str], Any]], paths: Sequence[str], batch: int, repeats: int
) -> list[dict[str, Any]]:
    """Time the work per batch: collate, and on the CPU what the device does otherwise, to float and normalise."""
    ours = [found['ours'](paths[i % len(paths)]) for i in range(batch)]
    preprocessor = SimMIMDataPreprocessor(MEAN, STD)
    tasks: dict[str, Callable[[], Any]] = {
        'ours, in a worker: collate': lambda: default_collate(ours),
        'ours, all: collate, to float, normalise': lambda: preprocessor(default_collate(ours)),
    }
    if 'MMPretrain' in found:
        from mmpretrain.models import SelfSupDataPreprocessor

        theirs = [found['MMPretrain'](paths[i % len(paths)]) for i in range(batch)]
        their_preprocessor = SelfSupDataPreprocessor(MEAN, STD)
        tasks['MMPretrain, all: collate, stack, to float, normalise, masks'] = lambda: _their_batch(
            their_preprocessor, pseudo_collate(theirs)
        )
    times = interleaved(tasks, repeats, warm=1)
    return [dict(what=name, **in_ms(time)) for name, time in times.items()]


def _their_batch(preprocessor: Any, data: dict[str, Any]) -> Any:
    prepared = preprocessor(data, training=True)
    return torch.stack([sample.mask for sample in prepared['data_samples']])
