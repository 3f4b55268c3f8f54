"""Features of a folder of images, written part by part and joined into one .npz or .parquet file."""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from simmim_plugin.datasets.image_folder import list_images
from simmim_plugin.evaluation.feature_extractor import FeatureExtractor, SizedImages

SUFFIXES = ('.npz', '.parquet')
DTYPES = ('float32', 'float16')
PART_IMAGES, PART_BYTES = 1024, 64 * 2**20  # a part holds no more of either
SETTINGS, JOINED = 'settings.json', 'joined.tmp'
TELL_SECONDS = 30  # between lines, where no progress bar can be drawn
FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # zip's, so that the same features give the same bytes


class Extracted(NamedTuple):
    """What `extract_folder` did: `images` whose features were written, and 'path: reason' of each unreadable one."""

    images: int
    unreadable: list[str]


def extract_folder(
    extractor: FeatureExtractor,
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    batch_size: int = 64,
    workers: int = 2,
    dtype: str = 'float32',
) -> Extracted:
    """Write the features of all images below a folder, sorted by path.

    Finished parts are kept in `OUT.parts` while it runs; after an interruption the same call goes on after the last
    one. At the end they are joined, which needs memory for one part and disk space for all features twice. Images that
    cannot be read are left out, and named in `OUT.unreadable.txt`.

    A .npz file holds one array per name of the extractor, (images, *shape), and `files`, the paths below the folder,
    with forward slashes. A .parquet file holds a column `file` and one list of fixed size per name, patches flattened;
    the schema's metadata `shapes` is JSON of their shapes.

    Args:
        extractor: What to extract.
        folder: It is searched recursively.
        out: The file to write, .npz or .parquet. It must not exist.
        batch_size: Images at a time.
        workers: Processes that read images; 0: this one does.
        dtype: 'float32' or 'float16', of the stored features.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: There is no such folder.
        ModuleNotFoundError: .parquet needs pyarrow, which is not installed.
        ValueError: An argument is out of range, no image could be read, or `OUT.parts` is of another extraction.
    """
    out, folder = os.fspath(out), os.fspath(folder)
    check_arguments(out, batch_size, workers, dtype)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'FOLDER {folder!r} is not a folder (from {os.getcwd()})')
    paths = list_images(folder)
    if not paths:
        raise ValueError(f'FOLDER {folder!r} holds no image')
    files = [_relative(path, folder) for path in paths]
    image_bytes = sum(int(np.prod(shape)) for shape in extractor.shapes.values()) * np.dtype(dtype).itemsize
    part_images = min(PART_IMAGES, max(1, PART_BYTES // image_bytes))
    settings = dict(
        **(extractor.source or {}),
        folder=os.path.realpath(folder),
        files=f'{len(files)} with hash {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}',
        kinds=list(extractor.kinds),
        blocks=list(extractor.blocks),
        size=list(extractor.size),
        dtype=dtype,
        part_images=part_images,
    )
    parts_folder = f'{out}.parts'
    _open_parts(parts_folder, settings, resumable=extractor.source is not None)
    parts = [os.path.join(parts_folder, f'{i:06}.npz') for i in range(-(-len(files) // part_images))]
    done = next((i for i, part in enumerate(parts) if not os.path.exists(part)), len(parts))
    if done:
        print(f'going on after {min(done * part_images, len(files))} of {len(files)} images, kept in {parts_folder}')
    batches = _batches(extractor, paths, done * part_images, part_images, batch_size, workers)
    for found, part in zip(_parts(extractor, batches, files, dtype), parts[done:]):
        if part == parts[0] and not len(found['files']):
            bad = found['unreadable']
            raise ValueError(f'not one of the first {len(bad)} images could be read; the first: {bad[0]}')
        with open(f'{part}.tmp', 'wb') as file:
            np.savez(file, **found)
        os.replace(f'{part}.tmp', part)
    return _finish(extractor, parts, parts_folder, files, out, dtype)


def check_arguments(out: str, batch_size: int, workers: int, dtype: str) -> None:
    """Check arguments of `extract_folder` before any work; it raises what that raises."""
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in SUFFIXES:
        raise ValueError(f'--out {out}: features are written as {" or ".join(SUFFIXES)}')
    if os.path.lexists(out):
        raise FileExistsError(f'--out {out} exists already; remove it, or give another name')
    if suffix == '.parquet' and importlib.util.find_spec('pyarrow') is None:
        raise ModuleNotFoundError(f"--out {out} needs pyarrow: pip install 'simmim_plugin[parquet]'", name='pyarrow')
    if batch_size < 1:
        raise ValueError(f'--batch-size {batch_size} must be positive')
    if workers < 0:
        raise ValueError(f'--workers {workers} must be 0 or more')
    if dtype not in DTYPES:
        raise ValueError(f'--dtype {dtype} is unknown; choose one of {", ".join(DTYPES)}')


def _relative(path: str, folder: str) -> str:
    """Path below the folder, with forward slashes; bytes that are no UTF-8 are written as escapes."""
    name = os.path.relpath(path, folder).replace(os.sep, '/')
    return name.encode('utf-8', 'backslashreplace').decode()


def _open_parts(folder: str, settings: dict[str, Any], resumable: bool) -> None:
    """Make the folder of parts, or check that the parts in it are of the same extraction."""
    path, new = os.path.join(folder, SETTINGS), os.path.join(folder, f'{SETTINGS}.tmp')
    other = 'remove this folder, or give another --out'
    os.makedirs(folder, exist_ok=True)
    names = set(os.listdir(folder)) - {os.path.basename(new)}
    if names and SETTINGS not in names:
        raise ValueError(f'{folder} exists, but is no folder of parts of features; {other}')
    if any(name.endswith('.npz') for name in names):
        if not resumable:
            raise ValueError(f'{folder} exists; an extraction from a model in memory cannot go on, so {other}')
        with open(path, encoding='utf-8') as file:
            old = json.load(file)
        changed = [
            f'{k} was {old.get(k)}, is {settings.get(k)}' for k in old | settings if old.get(k) != settings.get(k)
        ]
        if changed:
            raise ValueError(
                f'{folder} is of an extraction with other settings ({"; ".join(changed)}); to start anew, {other}'
            )
        return
    with open(new, 'w', encoding='utf-8') as file:
        json.dump(settings, file, indent=1)
    os.replace(new, path)


class _Batch(NamedTuple):
    last_of_part: bool
    numbers: list[int]  # of the images that could be read
    images: Tensor | None  # None: not one
    unreadable: list[str]


class _Collate:
    """Samples of `SizedImages` -> `_Batch`."""

    def __init__(self, count: int, part_images: int) -> None:
        self.count, self.part_images = count, part_images

    def __call__(self, samples: list[tuple[int, Tensor | str]]) -> _Batch:
        good = [(number, value) for number, value in samples if isinstance(value, Tensor)]
        bad = [value for _, value in samples if isinstance(value, str)]
        end = samples[-1][0] + 1
        images = torch.stack([image for _, image in good]) if good else None
        return _Batch(end % self.part_images == 0 or end == self.count, [number for number, _ in good], images, bad)


def _batches(
    extractor: FeatureExtractor, paths: Sequence[str], start: int, part_images: int, batch_size: int, workers: int
) -> Iterator[_Batch]:
    """Batches of images in order, none across two parts, with progress."""
    ranges = [
        list(range(first, min(first + batch_size, part + part_images, len(paths))))
        for part in range(start, len(paths), part_images)
        for first in range(part, min(part + part_images, len(paths)), batch_size)
    ]
    dataset = SizedImages(paths, extractor.size, extractor.reading)
    loader: DataLoader = DataLoader(
        dataset, batch_sampler=ranges, num_workers=workers, collate_fn=_Collate(len(paths), part_images)
    )
    begun = told = time.monotonic()
    count = start
    terminal = sys.stderr.isatty()
    with tqdm(total=len(paths), initial=start, unit='image', disable=not terminal, file=sys.stderr) as progress:
        for batch in loader:
            yield batch  # and back when its features are there
            for message in batch.unreadable:
                tqdm.write(f'skipped: {message}', file=sys.stderr)
            size = len(batch.numbers) + len(batch.unreadable)
            progress.update(size)
            count += size
            if not terminal and time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                rate = (count - start) / (told - begun)
                left = tqdm.format_interval((len(paths) - count) / rate)
                print(f'{count} of {len(paths)} images, {rate:.1f} images/s, {left} left', file=sys.stderr, flush=True)


def _parts(
    extractor: FeatureExtractor, batches: Iterator[_Batch], files: Sequence[str], dtype: str
) -> Iterator[dict[str, Any]]:
    """Arrays of one part after the other: features by name, `files` and `unreadable`."""
    values: dict[str, list[np.ndarray]] = {name: [] for name in extractor.names}
    numbers: list[int] = []
    unreadable: list[str] = []
    for batch in batches:
        numbers += batch.numbers
        unreadable += batch.unreadable
        if batch.images is not None:
            for name, found in extractor(batch.images).items():
                values[name].append(_as_dtype(found, dtype, name))
        if batch.last_of_part:
            empty = {name: np.zeros((0, *shape), dtype) for name, shape in extractor.shapes.items()}
            arrays = {name: np.concatenate([empty[name], *values[name]]) for name in empty}
            yield {
                **arrays,
                'files': np.array([files[number] for number in numbers], dtype=_text(files)),
                'unreadable': np.array(unreadable, dtype=_text(unreadable)),
            }
            values, numbers, unreadable = {name: [] for name in values}, [], []


def _as_dtype(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    if dtype == 'float16' and (largest := np.abs(values).max()) > np.finfo(np.float16).max:
        raise ValueError(f'--dtype float16 cannot hold {name}, which reaches {largest:.3g}; use --dtype float32')
    return values.astype(dtype, copy=False)


def _text(strings: Sequence[str]) -> np.dtype:
    """NumPy's type for strings that are at most as long as the longest."""
    return np.dtype(f'U{max(1, *map(len, strings))}' if strings else 'U1')


def _member(part: str, name: str) -> np.ndarray:
    with np.load(part) as arrays:
        return arrays[name]


def _finish(
    extractor: FeatureExtractor, parts: Sequence[str], parts_folder: str, files: Sequence[str], out: str, dtype: str
) -> Extracted:
    """Join the parts into `out`, write the list of unreadable images and remove the parts."""
    count = sum(len(_member(part, 'files')) for part in parts)
    unreadable = [str(message) for part in parts for message in _member(part, 'unreadable')]
    joined = os.path.join(parts_folder, JOINED)
    if out.lower().endswith('.npz'):
        members = {'files': (_text(files), ()), **{n: (np.dtype(dtype), s) for n, s in extractor.shapes.items()}}
        _join_npz(joined, parts, count, members)
    else:
        _join_parquet(joined, parts, extractor.shapes, dtype)
    list_path = f'{out}.unreadable.txt'
    if unreadable:
        with open(list_path, 'w', encoding='utf-8', errors='backslashreplace') as file:
            file.writelines(f'{message}\n' for message in unreadable)
    elif os.path.exists(list_path):  # of an earlier file of this name
        os.remove(list_path)
    os.replace(joined, out)
    shutil.rmtree(parts_folder)
    return Extracted(count, unreadable)


def _join_npz(
    path: str, parts: Sequence[str], count: int, members: dict[str, tuple[np.dtype, tuple[int, ...]]]
) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, (dtype, shape) in members.items():
            with archive.open(zipfile.ZipInfo(f'{name}.npy', FIRST_DATE), 'w', force_zip64=True) as file:
                header = dict(descr=np.lib.format.dtype_to_descr(dtype), fortran_order=False, shape=(count, *shape))
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(_member(part, name).tobytes())


def _join_parquet(path: str, parts: Sequence[str], shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    value_type = pa.from_numpy_dtype(np.dtype(dtype))
    lists = {name: pa.list_(value_type, int(np.prod(shape))) for name, shape in shapes.items()}
    schema = pa.schema({'file': pa.string(), **lists}, metadata={'shapes': json.dumps(shapes)})
    with parquet.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for part in parts:
            columns = [pa.array(_member(part, 'files').tolist(), pa.string())]
            for name, kind in lists.items():
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(_member(part, name).ravel()), type=kind))
            if len(columns[0]):
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
