"""SimMIM, masked image modelling for Vision Transformers, as a plugin of the OpenMMLab projects.

Components are registered in the scope `simmim_plugin`: `dict(type='simmim_plugin.SimMIMViT', ...)` works in configs of
MMEngine, MMPretrain, MMDetection and MMSegmentation. In Python, import them from here:
`from simmim_plugin import SimMIMViT`.
"""

from importlib import import_module
from typing import Any

__version__ = '0.1.0'
NO_MMENGINE = (
    'simmim_plugin needs MMEngine, which is not installed here. In a checkout run `make setup` and use '
    ".venv/bin/python; elsewhere `pip install 'simmim_plugin[mm]'` (the maintained onedl-* packages) or, for the "
    "originals, `pip install 'simmim_plugin[openmmlab]'`."
)

_MODULE_OF = {
    'AutocastOptimWrapper': 'engine.optimizers.autocast_optim_wrapper',
    'BalancedAccuracy': 'evaluation.metrics',
    'ClassFolders': 'datasets.class_folders',
    'CompileHook': 'engine.hooks.compile_hook',
    'FaultHook': 'engine.hooks.fault_hook',
    'FeatureExtractor': 'evaluation.feature_extractor',
    'ForeachEMA': 'models.ema',
    'HeldOutLoss': 'evaluation.metrics',
    'ImageFolder': 'datasets.image_folder',
    'ImageSizeHook': 'engine.hooks.image_size_hook',
    'InterruptHook': 'engine.hooks.interrupt_hook',
    'IterationSeedHook': 'engine.hooks.iteration_seed_hook',
    'Labelled': 'evaluation.probes',
    'LabelledFolder': 'evaluation.probes',
    'LinearWarmupLR': 'engine.schedulers',
    'LoadImage': 'datasets.transforms.loading',
    'MLflowVisBackend': 'visualization.mlflow_backend',
    'MaskRatioHook': 'engine.hooks.mask_ratio_hook',
    'MaskedBackbone': 'models.masked_backbone',
    'PackagePhotos': 'datasets.preparation.sample_sets',
    'ProbeHook': 'evaluation.probe_hook',
    'ProgressHook': 'engine.hooks.progress_hook',
    'PackSimMIMInputs': 'datasets.transforms.loading',
    'RandomHorizontalFlip': 'datasets.transforms.crop',
    'RandomResizedCrop': 'datasets.transforms.crop',
    'ReconstructionHook': 'engine.hooks.reconstruction_hook',
    'ReconstructionLoss': 'models.losses',
    'ResumableTrainLoop': 'engine.runners.train_loop',
    'SegLabelHook': 'engine.hooks.seg_label_hook',
    'ShardedStrategy': 'engine.runners.sharded_strategy',
    'SimMIM': 'models.simmim',
    'SimMIMCheckpointHook': 'engine.hooks.checkpoint_hook',
    'SimMIMDataPreprocessor': 'models.data_preprocessor',
    'SimMIMHead': 'models.head',
    'SimMIMLogProcessor': 'engine.runners.log_processor',
    'SimMIMMaskGenerator': 'datasets.transforms.masking',
    'SimMIMOptimWrapperConstructor': 'engine.optimizers.layer_decay_constructor',
    'SimMIMRuntimeInfoHook': 'engine.hooks.runtime_info_hook',
    'SimMIMViT': 'models.vit',
    'SimpleFeaturePyramid': 'models.pyramid',
    'TarShards': 'datasets.tar_shards',
    'WarmupCosineLR': 'engine.schedulers',
    'average_distance': 'visualization.mask_sheet',
    'extract_folder': 'apis.extract_features',
    'focal_frequency_loss': 'models.losses',
    'knn_probe': 'evaluation.probes',
    'linear_probe': 'evaluation.probes',
    'load_pretrained': 'checkpoints.loading',
    'normalize_patches': 'models.losses',
    'pretrain': 'commands.pretrain',
    'reconstruction_loss': 'models.losses',
    'run_probes': 'evaluation.probes',
}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 (names are imported on first use, see __getattr__)


def __getattr__(name: str) -> Any:
    """Import a component on first use, so that importing the package is quick."""
    if name not in _MODULE_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has {", ".join(__all__)}')
    import_module(f'{__name__}.registry')  # without MMEngine, its error names what to install
    return getattr(import_module(f'{__name__}.{_MODULE_OF[name]}'), name)
