"""TarShards: a data set of the images in tar files, and the function that packs a folder into such files."""

import hashlib
import io
import json
import os
import random
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from simmim_plugin.datasets.image_folder import ImageFolder, list_images
from simmim_plugin.datasets.images import ImageReadError
from simmim_plugin.registry import DATASETS
from simmim_plugin.utils.arguments import number
from simmim_plugin.utils.files import MAX_BYTES, is_hidden, open_regular, printable, read_json

END_BYTES = 2**16  # of zeros that are looked for behind the last file
OPEN_FILES = 64  # most shards that a process keeps open


@DATASETS.register_module()
class TarShards(ImageFolder):
    """All images in the tar files of a folder, read at their offsets, without unpacking.

    Works with files from `simmim prepare --shards-mb` and WebDataset. Headers are read once at the start; then reading
    an image is one read of an open file. Samplers, distributed training, resuming and the record of bad images work as
    for `ImageFolder`. Paths are `<tar file>/<name in it>`.

    Args:
        data_root: Folder with uncompressed `.tar` files. If it has a `shards.json`, the number of images per file is
            checked against it.
        kwargs: See `ImageFolder`.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It has no tar file, one is damaged or incomplete, or they hold no image.
    """

    _open: dict[str, int] | None = None
    unused = (*ImageFolder.unused, 'ann_file')

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images of all shards, in the order of shard names and offsets."""
        self._check_folders()
        found = [image for folder in self.folders for image in self._shards(Path(folder))]
        if not found:
            raise ValueError(f'the tar files in {self._place()} hold no file ending in {" ".join(self.suffixes)}')
        return found

    def _shards(self, folder: Path) -> list[dict[str, Any]]:
        shards = sorted(path for path in folder.glob('*.tar') if not is_hidden(path.name))
        if not shards:
            raise ValueError(f'data_root={str(folder)!r} holds no *.tar file; write some with '
                             '`simmim prepare --shards-mb`, or use ImageFolder for files')  # fmt: skip
        index = folder / INDEX
        counts = _counts(index)
        if missing := sorted(set(counts) - {shard.name for shard in shards}):
            raise ValueError(f'{index} lists {", ".join(missing)}, which do not exist; copy them, or create them again')
        found: list[dict[str, Any]] = []
        for shard in tqdm(shards, desc='list shards', unit='shard', file=sys.stderr, disable=len(shards) < OPEN_FILES):
            images = self._images(shard)
            if len(images) != counts.get(shard.name, len(images)):
                raise ValueError(f'{shard} holds {len(images)} images, but {INDEX} says {counts[shard.name]}; '
                                 'remove it and run the same `simmim prepare` again')  # fmt: skip
            found += images
        return found

    def _images(self, shard: Path) -> list[dict[str, Any]]:
        try:
            with open(shard, 'rb', opener=open_regular) as file, tarfile.open(fileobj=file, mode='r:') as tar:
                members = [member for member in tar if member.isfile()]
                file.seek(tar.offset)
                rest = file.read(END_BYTES)
            if len(rest) < tarfile.BLOCKSIZE or rest.strip(b'\0'):  # tarfile takes any end for the end of the archive
                raise tarfile.TarError(f'no end of archive behind its first {len(members)} files, at byte {tar.offset}')
            if sparse := [member.name for member in members if member.issparse()]:
                raise tarfile.TarError(f'{sparse[0]} is a sparse file')
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f'{shard} is damaged, or not an uncompressed tar file ({error}); create it again, or '
                             'remove it') from error  # fmt: skip
        return [
            dict(img_path=f'{shard}/{member.name}', shard=str(shard), offset=member.offset_data, size=member.size)
            for member in members
            if member.name.lower().endswith(self.suffixes) and not any(map(is_hidden, PurePosixPath(member.name).parts))
        ]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """`img_path` and `img_bytes` of an image, and `iteration` if the index carries it."""
        info = super().get_data_info(idx)
        place = [info.pop(name) for name in ('shard', 'offset', 'size')]
        return {**info, 'img_bytes': self._read(*place)}

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        if size > MAX_BYTES:
            raise ImageReadError(f'{printable(shard)}: a file of {size:,} bytes in it, more than {MAX_BYTES:,}')
        if self._open is None:
            self._open = {}
        try:
            if shard not in self._open:
                if len(self._open) >= OPEN_FILES:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[shard] = open_regular(shard)
            return os.pread(self._open[shard], size, offset)
        except OSError as error:
            raise ImageReadError(f'{printable(shard)}: {error}') from error

    def __getstate__(self) -> dict[str, Any]:
        """State for spawned processes, without the open files."""
        return {**self.__dict__, '_open': None}


INDEX = 'shards.json'


def _counts(index: Path) -> dict[str, int]:
    """Number of images per file, as `shards.json` says; {} without one."""
    content = read_json(index)
    try:
        return {str(shard['file']): int(shard['images']) for shard in content.get('shards', ())}
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f'{str(index)!r} is damaged: it must list file and images of each shard; remove it, or run '
                         'the same `simmim prepare` again') from error  # fmt: skip


SEED = 0  # of the order of images: sequential readers get them shuffled


def write_shards(folder: str | os.PathLike[str], target: str | os.PathLike[str], megabytes: float) -> dict[str, Any]:
    """Pack all images below a folder into tar files, in a fixed random order; existing shards are kept.

    A sample is two members of a tar file: `000000012.jpg` (with the ending of the image file) and `000000012.txt`, the
    path within the folder. A shard gets its name when it is complete.

    Args:
        folder: Searched recursively.
        target: Folder of the shards and of `shards.json`, which lists them with their numbers of images and bytes.
        megabytes: Approximate size of a shard, which holds at least one image.

    Returns:
        The content of `shards.json`.

    Raises:
        ValueError: `megabytes` is not positive, `folder` holds no image, or one that is too large, or `target` holds
            shards of other images or of another size.
        OSError: `target` cannot be written.
    """
    number('megabytes', megabytes, 0, hint='256 is usual', ends='(]')
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
    """Per shard: the indices of its images, and their bytes."""
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
                (os.path.splitext(name)[1].lower(), _read(path)),
                ('.txt', name.encode('utf-8', 'backslashreplace')),
            ):
                member = tarfile.TarInfo(f'{number:09d}{suffix}')
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with part.open('rb') as written:
        os.fsync(written.fileno())
    part.replace(file)


def _read(path: str) -> bytes:
    with open(path, 'rb', opener=open_regular) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise ValueError(f'{printable(path)}: a file of {size:,} bytes, more than {MAX_BYTES:,}; remove it')
        return file.read()


def _digest(names: list[str]) -> str:
    text = '\n'.join(names).encode('utf-8', 'backslashreplace')
    return hashlib.sha256(text).hexdigest()


def _check_index(target: Path, index: dict[str, Any]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    file = target / INDEX
    if file.is_file():
        if read_json(file) != index:
            raise ValueError(f'{target} holds shards of other images, or of another size; choose another folder')
    else:
        file.write_text(json.dumps(index, indent=1), encoding='utf-8')
