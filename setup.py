"""Metadata of simmim_plugin. OpenMMLab packages are extras: a hard requirement would overwrite the ones a user has."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'simmim_plugin/__init__.py').read_text(encoding='utf-8'))[1]

EXTRAS = {
    # The maintained forks; they import as mmengine, mmcv, mmpretrain, mmdet and mmseg.
    'mm': ['onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6', 'onedl-mmpretrain>=1.3.6'],
    'det': ['onedl-mmdetection>=3.5.1'],
    'seg': ['onedl-mmsegmentation>=1.4.2', 'ftfy', 'regex'],
    # The originals, frozen since 2025. Never install both families into one environment.
    'openmmlab': ['mmengine>=0.10.7', 'mmcv-lite>=2.0.0,<2.3', 'mmpretrain>=1.2.0'],
    # Photos inside wheels, for the quickstart.
    'photos': ['scikit-image>=0.25'],
    # Hugging Face models (MMPretrain 1.3.6 fails to import beside transformers 5), tables of features, ONNX export.
    'hf': ['transformers>=4.40,<5'],
    'parquet': ['pyarrow'],
    'onnx': ['onnx', 'onnxscript', 'onnxruntime'],
    'demo': ['gradio>=6.10'],
    'docs': ['sphinx', 'myst-parser', 'furo'],
    'dev': [
        'hypothesis',
        'mypy',
        'pytest',
        'pytest-timeout',
        'pytest-xdist',
        'ruff',
        'import-linter',
        'ninja',
        'wheel',
        'playwright',
        'wandb',
        'mlflow-skinny>=3',
        'sqlalchemy',
        'alembic',
    ],
}


class BuildWithConfigs(build_py):
    """Puts configs and tools into the wheel, where OpenMMLab's packages have them (`.mim`)."""

    def run(self) -> None:
        """Copy them after the package."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, 'simmim_plugin', '.mim')
            for name in ('configs', 'tools'):
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True, ignore=ignored)
            shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='simmim_plugin',
    version=VERSION,
    description='SimMIM masked image modelling for Vision Transformers, as a plugin of the OpenMMLab family',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    cmdclass=dict(build_py=BuildWithConfigs),
    entry_points=dict(console_scripts=['simmim = simmim_plugin.cli:main']),
    packages=find_packages(include=['simmim_plugin', 'simmim_plugin.*']),
    package_data={'simmim_plugin': ['py.typed']},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.11',
        'torchvision>=0.26',
        'timm>=1.0.9',
        'numpy>=1.26',
        'scikit-learn>=1.7',
        'pillow>=10.1',
        'safetensors>=0.4',
        'simplejpeg>=1.7',
        'tifffile>=2024.8',
        'imagecodecs>=2024.9',
        'matplotlib>=3.9',
        'tensorboard>=2.17',
        'tqdm>=4.66',
    ],
    extras_require=EXTRAS,
)
