"""Locate configs and tools: next to the package in a checkout, inside it in an installed wheel."""

import os
from pathlib import Path

from simmim_plugin.utils.errors import did_you_mean

# OpenMMLab's folder for them in a wheel, filled by setup.py.
_INSIDE = Path(__file__).resolve().parents[1] / '.mim'
ROOT = _INSIDE if _INSIDE.is_dir() else Path(__file__).resolve().parents[2]
CONFIGS, TOOLS = ROOT / 'configs', ROOT / 'tools'


def find_config(path: str | os.PathLike[str]) -> str:
    """Path of a config file: the given one, or if it does not exist, the one of that name in this package.

    Args:
        path: For example `configs/simmim_vit-b.py`, `simmim_vit-b.py` or `finetune/vit-b_folder.py`.

    Raises:
        FileNotFoundError: Neither exists.
    """
    given = os.fspath(path)
    if os.path.isfile(given):
        return given
    if not os.path.isabs(given):
        for place in (ROOT / given, CONFIGS / given):
            if place.is_file() and place.resolve().is_relative_to(CONFIGS):
                return str(place)
    near = sorted(str(p) for p in Path(given).parent.glob('*.py')) if Path(given).parent.is_dir() else []
    hint = did_you_mean(given, [*near, *shipped_configs()]) or '; `simmim print-config` lists those of this package'
    raise FileNotFoundError(f'config {given!r} does not exist (from {os.getcwd()}){hint}')


def shipped_configs() -> list[str]:
    """Names of the configs in this package, as accepted by `find_config`."""
    paths = sorted(CONFIGS.rglob('*.py'), key=lambda path: (len(path.relative_to(CONFIGS).parts), path))
    names = [path.relative_to(CONFIGS).as_posix() for path in paths]
    return [name for name in names if '_base_/' not in name]
