"""Pack a folder of images into tar files of WebDataset's layout, for file systems that are slow with many files."""

import hashlib
import io
import json
import os
import random
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from simmim_plugin.datasets import list_images

INDEX = 'shards.json'
SEED = 0  # of the order of images: a reader that goes through a shard from its beginning gets mixed ones


def write_shards(folder: str | os.PathLike[str], target: str | os.PathLike[str], megabytes: float) -> dict[str, Any]:
    """Pack all images below a folder, in a random order that is always the same; shards that are there are kept.

    A sample is two members of a tar file: `000000012.jpg` (the ending is the file's own) and `000000012.txt`, the path
    within the folder. A shard gets its name when it is complete.

    Args:
        folder: Searched recursively.
        target: Folder of the shards and of `shards.json`, which lists them with their numbers of images and bytes.
        megabytes: Size of a shard, about; it has at least one image.

    Returns:
        What `shards.json` holds.

    Raises:
        ValueError: No image in `folder`, or `target` holds shards of other images or another size.
        OSError: `target` cannot be written.
    """
    if megabytes <= 0:
        raise ValueError(f'megabytes={megabytes} must be positive; 256 is usual')
    paths = list_images(str(folder))
    if not paths:
        raise ValueError(f'folder={os.fspath(folder)!r} holds no image (from {os.getcwd()})')
    random.Random(SEED).shuffle(paths)
    names = [os.path.relpath(path, folder) for path in paths]
    plan = _plan([os.path.getsize(path) for path in paths], megabytes * 1e6)
    shards = [dict(file=f'shard-{i:06d}.tar', images=len(part), bytes=size) for i, (part, size) in enumerate(plan)]
    index = dict(images=len(paths), shards=shards, names_hash=_digest(names))
    _check_index(Path(target), index)
    with tqdm(total=len(paths), unit='image', smoothing=0.05, file=sys.stderr) as progress:
        for shard, (part, _) in zip(shards, plan):
            file = Path(target, str(shard['file']))
            if not file.is_file():
                _write(file, ((i, paths[i], names[i]) for i in part))
            progress.update(len(part))
    return index


def _plan(sizes: list[int], limit: float) -> list[tuple[range, int]]:
    """Images of each shard, as indices, and their bytes."""
    plan, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            plan.append((range(start, i), total))
            start, total = i, 0
        total += size
    return [*plan, (range(start, len(sizes)), total)]


def _write(file: Path, samples: Iterable[tuple[int, str, str]]) -> None:
    part = file.with_name(f'.{file.name}.part')
    with tarfile.open(part, 'w', format=tarfile.USTAR_FORMAT) as tar:
        for number, path, name in samples:
            for suffix, content in (
                (os.path.splitext(name)[1].lower(), Path(path).read_bytes()),
                ('.txt', name.encode('utf-8', 'backslashreplace')),
            ):
                member = tarfile.TarInfo(f'{number:09d}{suffix}')
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with part.open('rb') as written:
        os.fsync(written.fileno())
    part.replace(file)


def _digest(names: list[str]) -> str:
    text = '\n'.join(names).encode('utf-8', 'backslashreplace')
    return hashlib.sha256(text).hexdigest()


def _check_index(target: Path, index: dict[str, Any]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    file = target / INDEX
    if file.is_file():
        there = json.loads(file.read_text(encoding='utf-8'))
        if there != index:
            raise ValueError(f'{target} holds shards of other images, or of another size; choose another folder')
    else:
        file.write_text(json.dumps(index, indent=1), encoding='utf-8')
