"""SimMIM, masked image modelling, for Vision Transformers, as a plugin of the OpenMMLab family.

Components live in the scope `simmim_plugin`: `dict(type='simmim_plugin.SimMIMViT', ...)` works in every config of
MMEngine, MMPretrain, MMDetection and MMSegmentation. In Python, import them from here:
`from simmim_plugin import SimMIMViT`.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    _MESSAGE = (
        'simmim_plugin needs MMEngine, which is not installed here. In a checkout run `make setup` and use '
        '.venv/bin/python; '
        "elsewhere `pip install 'simmim_plugin[mm]'` (the maintained onedl-* packages) or, for the originals, "
        "`pip install 'simmim_plugin[openmmlab]'`."
    )
    if [Path(word).name for word in sys.argv[:1]] != ['simmim']:
        raise ModuleNotFoundError(_MESSAGE, name=error.name) from error
    # The command line, whose module lies in here; some of it works nevertheless.
    if sys.argv[1:2] not in ([], ['-h'], ['--help'], ['--version'], ['doctor']):
        sys.exit(f'error: {_MESSAGE}')

__version__ = '0.1.0'

_MODULE_OF = {
    'AutocastOptimWrapper': 'optim',
    'BalancedAccuracy': 'metrics',
    'CompileHook': 'compile_hook',
    'FaultHook': 'fault_hook',
    'FeatureExtractor': 'feature_extractor',
    'ForeachEMA': 'ema',
    'ImageFolder': 'datasets',
    'InterruptHook': 'interrupt_hook',
    'IterationSeedHook': 'seed_hook',
    'LinearWarmupLR': 'schedules',
    'LoadImage': 'loading',
    'MLflowVisBackend': 'mlflow_backend',
    'MaskRatioHook': 'mask_ramp',
    'PackagePhotos': 'datasets',
    'ProbeHook': 'probe_hook',
    'ProgressHook': 'progress_hook',
    'PackSimMIMInputs': 'loading',
    'RandomHorizontalFlip': 'crop',
    'RandomResizedCrop': 'crop',
    'ReconstructionHook': 'reconstruction_hook',
    'ReconstructionLoss': 'losses',
    'ResumableTrainLoop': 'train_loop',
    'SegLabelHook': 'seg_label_hook',
    'ShardedStrategy': 'sharded',
    'SimMIM': 'simmim',
    'SimMIMCheckpointHook': 'checkpoint_hook',
    'SimMIMDataPreprocessor': 'data_preprocessor',
    'SimMIMHead': 'head',
    'SimMIMLogProcessor': 'log_processor',
    'SimMIMMaskGenerator': 'masking',
    'SimMIMOptimWrapperConstructor': 'optim',
    'SimMIMRuntimeInfoHook': 'runtime_info_hook',
    'SimMIMViT': 'backbone',
    'SimpleFeaturePyramid': 'pyramid',
    'TarShards': 'tar_shards',
    'WarmupCosineLR': 'schedules',
    'average_distance': 'unit_masks',
    'focal_frequency_loss': 'losses',
    'load_pretrained': 'checkpoint',
    'normalize_patches': 'losses',
    'reconstruction_loss': 'losses',
}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 (names are imported on first use, see __getattr__)


def __getattr__(name: str) -> Any:
    """Import a component on first use, so that importing the package is quick."""
    if name not in _MODULE_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has {", ".join(__all__)}')
    return getattr(import_module(f'{__name__}.{_MODULE_OF[name]}'), name)
