"""Where the configs and tools are: beside the package in a checkout, inside it in an installed wheel."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INSIDE = (
    Path(__file__).resolve().parents[1] / '.mim'
)  # OpenMMLab's place for them in a wheel; setup.py puts them there
ROOT = _INSIDE if _INSIDE.is_dir() else Path(__file__).resolve().parents[2]
CONFIGS, TOOLS = ROOT / 'configs', ROOT / 'tools'


def find_config(path: str | os.PathLike[str]) -> str:
    """The file of a config: the path itself, or where there is none of that name, the one that comes with the package.

    Args:
        path: Such as `configs/simmim_vit-b.py`, or `simmim_vit-b.py` and `finetune/vit-b_folder.py`.

    Returns:
        A path; the given one if there is no such config here either.
    """
    given = os.fspath(path)
    if not os.path.isabs(given) and not os.path.isfile(given):
        for place in (ROOT / given, CONFIGS / given):
            if place.is_file() and place.resolve().is_relative_to(CONFIGS):
                return str(place)
    return given


def shipped_configs() -> list[str]:
    """Names of the configs that come with the package, as `find_config` takes them."""
    paths = sorted(CONFIGS.rglob('*.py'), key=lambda path: (len(path.relative_to(CONFIGS).parts), path))
    names = [path.relative_to(CONFIGS).as_posix() for path in paths]
    return [name for name in names if '_base_/' not in name]


def run_tool(name: str, words: Mapping[str, str] | None = None) -> None:
    """Run the main function of a script of tools/, with the command line in `sys.argv`.

    Args:
        name: Of the script.
        words: What its examples shall say in the place of what.
    """
    spec = importlib.util.spec_from_file_location(f'simmim_tool_{Path(name).stem}', TOOLS / name)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f'{TOOLS / name} does not exist')
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for old, new in (words or {}).items():
        module.EXAMPLE = module.EXAMPLE.replace(old, new)
    module.main()
