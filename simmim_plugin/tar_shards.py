"""A dataset of the images inside tar files, as `tools/prepare_dataset.py --shards-mb` and WebDataset write them."""

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from simmim_plugin.datasets import ImageFolder
from simmim_plugin.loading import ImageReadError, printable
from simmim_plugin.registry import DATASETS
from simmim_plugin.shards import INDEX

OPEN_FILES = 64  # shards that a process keeps open


@DATASETS.register_module()
class TarShards(ImageFolder):
    """All images in the tar files of a folder, read from where they lie in them, without unpacking.

    The headers are read once at the start; then any image is one read of an open file, so that samplers, processes,
    resuming and the record of bad images are those of `ImageFolder`. Paths are `<tar file>/<name in it>`.

    Args:
        data_root: Folder with `.tar` files, not compressed. `shards.json`, if there is one, tells how many images each
            must have.
        kwargs: See `ImageFolder`.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It has no tar file, a tar file is damaged or incomplete, or no image is in them.
    """

    _open: dict[str, int] | None = None

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images of all shards, in the order of names and places."""
        folder = Path(self.data_root)
        if not folder.is_dir():
            raise FileNotFoundError(f'data_root={self.data_root!r} is not a folder (from {os.getcwd()})')
        shards = sorted(folder.glob('*.tar'))
        if not shards:
            raise ValueError(f'data_root={self.data_root!r} holds no *.tar file; write some with '
                             '`simmim prepare --shards-mb`, or use ImageFolder for files')  # fmt: skip
        index = folder / INDEX
        listed = json.loads(index.read_text(encoding='utf-8'))['shards'] if index.is_file() else []
        counts = {shard['file']: shard['images'] for shard in listed}
        if missing := sorted(set(counts) - {shard.name for shard in shards}):
            raise ValueError(f'{index} lists {", ".join(missing)}, which are not there; copy them, or make them again')
        found: list[dict[str, Any]] = []
        for shard in tqdm(shards, desc='list shards', unit='shard', file=sys.stderr, disable=len(shards) < OPEN_FILES):
            images = self._images(shard)
            if len(images) != counts.get(shard.name, len(images)):
                raise ValueError(f'{shard} holds {len(images)} images, but {INDEX} says {counts[shard.name]}; make it '
                                 'again: remove it and call `simmim prepare` as before')  # fmt: skip
            found += images
        if not found:
            raise ValueError(f'the tar files in {self.data_root} hold no file ending in {" ".join(self.suffixes)}')
        return found

    def _images(self, shard: Path) -> list[dict[str, Any]]:
        try:
            with tarfile.open(shard, 'r:') as tar:
                members = [member for member in tar if member.isfile()]
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f'{shard} is damaged, or no tar file without compression ({error}); make it again, or '
                             'remove it') from error  # fmt: skip
        return [
            dict(img_path=f'{shard}/{member.name}', shard=str(shard), offset=member.offset_data, size=member.size)
            for member in members
            if member.name.lower().endswith(self.suffixes)
        ]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """`img_path` and `img_bytes` of an image, and `iteration` if the index knows it."""
        info = super().get_data_info(idx)
        place = [info.pop(name) for name in ('shard', 'offset', 'size')]
        return {**info, 'img_bytes': self._read(*place)}

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        if self._open is None:
            self._open = {}
        try:
            if shard not in self._open:
                if len(self._open) >= OPEN_FILES:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[shard] = os.open(shard, os.O_RDONLY)
            return os.pread(self._open[shard], size, offset)
        except OSError as error:
            raise ImageReadError(f'{printable(shard)}: {error}') from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, for processes that are spawned."""
        return {**self.__dict__, '_open': None}
