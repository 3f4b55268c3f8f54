"""Compute mean and standard deviation of a folder of images."""

import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from tqdm import tqdm

from simmim_plugin.datasets.image_folder import list_images
from simmim_plugin.datasets.images import DTYPES, ImageReadError, read_image
from simmim_plugin.utils.arguments import choice, whole


def folder_mean_std(
    folder: str, channels: int = 3, dtype: str = 'uint8', max_images: int | None = None, workers: int = 2
) -> tuple[list[float], list[float]]:
    """Mean and (population) standard deviation per channel over all pixels of all images.

    Args:
        folder: Searched recursively.
        channels: See `read_image`.
        dtype: See `read_image`; the result is in the same units.
        max_images: Size of a random sample of the images (seed 0); None: all.
        workers: Number of threads that read files.

    Returns:
        Two lists with a value per channel. Files that cannot be read are reported on standard error and skipped.

    Raises:
        ValueError: No image could be read, a channel is constant, or an argument is out of range.
    """
    whole('channels', channels, 1, hint='3 for RGB')
    choice('dtype', dtype, DTYPES)
    whole('workers', workers, 1)
    if max_images is not None:
        whole('max_images', max_images, 1, hint='None uses all')
    paths = list_images(folder)
    if not paths:
        raise ValueError(f'folder={folder!r} holds no image (from {os.getcwd()})')
    if max_images is not None and max_images < len(paths):
        paths = random.Random(0).sample(paths, max_images)

    def moments(path: str) -> tuple[int, Tensor, Tensor] | None:
        try:
            image = read_image(path, channels, dtype).double().flatten(1)
        except ImageReadError as error:
            tqdm.write(f'skipped: {error}', file=sys.stderr)
            return None
        return image.shape[1], image.mean(1), image.var(1, correction=0)

    count, mean, variance = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
    with ThreadPoolExecutor(workers) as pool:
        for result in tqdm(pool.map(moments, paths), total=len(paths), unit='image', file=sys.stderr):
            if result is None:
                continue
            # Chan's parallel update: without large sums of squares, 16-bit data lose no precision.
            n, new_mean, new_variance = result
            total, delta = count + n, new_mean - mean
            variance = (variance * count + new_variance * n + delta**2 * count * n / total) / total
            mean, count = mean + delta * n / total, total
    if count == 0:
        raise ValueError(f'none of the {len(paths)} images in folder={folder!r} can be read; see the lines above')
    std = variance.sqrt().tolist()
    if min(std) == 0:
        raise ValueError(f'channel {std.index(0)} has the same value everywhere; leave it out')
    return mean.tolist(), std
