"""Compute mean and standard deviation of a folder of images."""

import math
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from tqdm import tqdm

from simmim_plugin.datasets.image_folder import list_images
from simmim_plugin.datasets.images import DTYPES, ImageReadError, read_with_missing
from simmim_plugin.utils.arguments import choice, whole
from simmim_plugin.utils.files import MAX_BYTES

FREQUENT = 0.05  # share of a smallest or largest value that is reported


def folder_mean_std(
    folder: str,
    channels: int = 3,
    dtype: str = 'uint8',
    max_images: int | None = None,
    workers: int = 2,
    nodata: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> tuple[list[float], list[float]]:
    """Mean and (population) standard deviation per channel over all pixels of all images.

    Args:
        folder: Searched recursively.
        channels: See `read_image`.
        dtype: See `read_image`; the result is in the same units.
        max_images: Size of a random sample of the images (seed 0); None: all.
        workers: Number of threads that read files.
        nodata: Value that stands for missing data, which is left out; None: that of each file's GDAL_NODATA tag.

        max_bytes: See `read_image`.

    Returns:
        Two lists with a value per channel. Files that cannot be read are reported on standard error and skipped, and so
        is a smallest or largest value that is so frequent that it may stand for missing data.

    Raises:
        ValueError: No image could be read, a channel is constant, or an argument is out of range.
    """
    whole('channels', channels, 1, hint='3 for RGB')
    choice('dtype', dtype, DTYPES)
    whole('workers', workers, 1)
    whole('max_bytes', max_bytes, 1)
    if max_images is not None:
        whole('max_images', max_images, 1, hint='None uses all')
    paths = list_images(folder)
    if not paths:
        raise ValueError(f'folder={folder!r} holds no image (from {os.getcwd()})')
    if max_images is not None and max_images < len(paths):
        paths = random.Random(0).sample(paths, max_images)

    def moments(path: str) -> tuple[Tensor, Tensor, Tensor, list[tuple[float, int]]] | None:
        try:
            image, missing = read_with_missing(path, channels, dtype, max_bytes=max_bytes, nodata=nodata)
        except ImageReadError as error:
            tqdm.write(f'skipped: {error}', file=sys.stderr)
            return None
        there = torch.ones_like(image, dtype=torch.bool) if missing is None else ~missing
        ends = [(float(end), int((image[there] == end).sum())) for end in (image[there].min(), image[there].max())]
        values = [channel[kept].double() for channel, kept in zip(image, there)]
        means = torch.stack([x.mean() for x in values])
        variances = torch.stack([x.var(correction=0) for x in values])
        return there.flatten(1).sum(1), means, variances, ends

    count, mean, variance = (torch.zeros(channels).double() for _ in range(3))
    lowest, highest = (math.inf, 0), (-math.inf, 0)  # of all values, and how often
    with ThreadPoolExecutor(workers) as pool:
        for result in tqdm(pool.map(moments, paths), total=len(paths), unit='image', file=sys.stderr):
            if result is None:
                continue
            # Chan's parallel update: without large sums of squares, 16-bit data lose no precision.
            n, new_mean, new_variance, (low, high) = result
            total, delta = count + n, new_mean - mean
            variance = (variance * count + new_variance * n + delta**2 * count * n / total) / total
            mean, count = mean + delta * n / total, total
            lowest, highest = _joined(lowest, low, min), _joined(highest, high, max)
    if count[0] == 0:
        raise ValueError(f'none of the {len(paths)} images in folder={folder!r} can be read; see the lines above')
    for which, (value, times) in (('smallest', lowest), ('largest', highest)):
        if (share := times / count.sum().item()) >= FREQUENT:
            tqdm.write(
                f'note: {share:.0%} of the values are {value:g}, the {which}; if it stands for missing data, give '
                f'--nodata {value:g}',
                file=sys.stderr,
            )
    std = variance.sqrt().tolist()
    if min(std) == 0:
        raise ValueError(f'channel {std.index(0)} has the same value everywhere; leave it out')
    return mean.tolist(), std


def _joined(one: tuple[float, int], two: tuple[float, int], choose: Callable[..., float]) -> tuple[float, int]:
    """The smaller or larger of two values, with its count; of equal values the sum of both."""
    value = choose(one[0], two[0])
    return value, sum(times for other, times in (one, two) if other == value)
