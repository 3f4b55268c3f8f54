"""Registries of the scope `simmim_plugin`, children of MMEngine's root registries.

For `type='simmim_plugin.X'` in a config of MMPretrain, MMDetection or MMSegmentation, MMEngine imports this module by
the name of the scope, and then the modules in `locations`. MMEngine swallows an ImportError raised here, so this module
imports nothing else.
"""

from collections.abc import Mapping
from typing import Any

from simmim_plugin import NO_MMENGINE

try:
    from mmengine import registry as root
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ModuleNotFoundError(NO_MMENGINE, name='mmengine') from error

SCOPE = 'simmim_plugin'


def _child(name: str, parent: root.Registry, packages: Mapping[str, str] | None = None) -> root.Registry:
    """A child of MMEngine's registry that imports the given modules of each package on first use."""
    locations = [f'{SCOPE}.{path}.{module}' for path, modules in (packages or {}).items() for module in modules.split()]
    return root.Registry(name, parent=parent, scope=SCOPE, locations=locations)


# Modules rather than packages: registries that share a package need not import all of it.
MODELS = _child(
    'model', root.MODELS, {'models': 'data_preprocessor ema head losses masked_backbone pyramid simmim targets vit'}
)
TRANSFORMS = _child('transform', root.TRANSFORMS, {'datasets.transforms': 'crop loading masking'})
DATASETS = _child(
    'dataset',
    root.DATASETS,
    {'datasets': 'class_folders few_labels image_folder tar_shards', 'datasets.preparation': 'sample_sets'},
)
HOOKS = _child(
    'hook',
    root.HOOKS,
    {
        'engine.hooks': 'checkpoint_hook compile_hook fault_hook image_size_hook interrupt_hook iteration_seed_hook '
        'mask_ratio_hook progress_hook reconstruction_hook runtime_info_hook seg_label_hook',
        'evaluation': 'probe_hook',
    },
)
LOG_PROCESSORS = _child('log processor', root.LOG_PROCESSORS, {'engine.runners': 'log_processor'})
METRICS = _child('metric', root.METRICS, {'evaluation': 'metrics'})
OPTIM_WRAPPERS = _child('optim wrapper', root.OPTIM_WRAPPERS, {'engine.optimizers': 'autocast_optim_wrapper'})
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor',
    root.OPTIM_WRAPPER_CONSTRUCTORS,
    {'engine.optimizers': 'layer_decay_constructor'},
)
PARAM_SCHEDULERS = _child('parameter scheduler', root.PARAM_SCHEDULERS, {'engine': 'schedulers'})
LOOPS = _child('loop', root.LOOPS, {'engine.runners': 'train_loop'})
STRATEGIES = _child('strategy', root.STRATEGIES, {'engine.runners': 'sharded_strategy'})
WEIGHT_INITIALIZERS = _child('weight initializer', root.WEIGHT_INITIALIZERS, {'checkpoints': 'loading'})
VISBACKENDS = _child('vis_backend', root.VISBACKENDS, {'visualization': 'mlflow_backend'})
# Empty children: without them MMEngine warns on every look-up from this scope.
for _name in (
    'DATA_SAMPLERS',
    'OPTIMIZERS',
    'VISUALIZERS',
    'EVALUATOR',
    'MODEL_WRAPPERS',
):
    _child(_name.lower(), getattr(root, _name))


def build_part(cfg: Any, name: str = 'model') -> Any:
    """Build a part of a model from its config, in which type names without a scope are of this one.

    Args:
        cfg: The config, or a built module, which is returned as it is.
        name: The argument that it is given as, for messages.

    Raises:
        ValueError: `cfg` is neither a config nor a built module.
    """
    if isinstance(cfg, Mapping) and 'type' in cfg:
        return MODELS.build({'_scope_': SCOPE, **cfg})
    if callable(cfg):  # a built module
        return cfg
    raise ValueError(f"{name}={cfg!r} must be a dict with a 'type', or a built module")
