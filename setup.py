"""The build step that pyproject.toml cannot express: configs and tools inside the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Add configs and tools to the wheel, in `.mim` as in OpenMMLab's packages."""

    def run(self) -> None:
        """Build the package, then copy configs and tools."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, 'simmim_plugin', '.mim')
            for name in ('configs', 'tools'):
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True, ignore=ignored)
            shutil.copy(ROOT / 'model-index.yml', target)


setup(cmdclass=dict(build_py=BuildWithConfigs))
