"""The build step that pyproject.toml cannot state: configs and tools inside the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Put configs and tools into the wheel, where OpenMMLab's packages have them (`.mim`)."""

    def run(self) -> None:
        """Copy them after the package."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, 'simmim_plugin', '.mim')
            for name in ('configs', 'tools'):
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True, ignore=ignored)
            shutil.copy(ROOT / 'model-index.yml', target)


setup(cmdclass=dict(build_py=BuildWithConfigs))
