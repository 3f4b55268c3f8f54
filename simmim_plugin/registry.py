"""Registries of the scope `simmim_plugin`, children of MMEngine's root registries.

MMEngine imports this module by the scope's name when a config says `type='simmim_plugin.X'`, from MMPretrain,
MMDetection and MMSegmentation alike. `locations` names the modules to import then. It swallows an ImportError raised
in here, so this module imports MMEngine only.
"""

from collections.abc import Mapping
from typing import Any

from mmengine import registry as root

SCOPE = 'simmim_plugin'


def _child(name: str, parent: root.Registry, *modules: str) -> root.Registry:
    return root.Registry(name, parent=parent, scope=SCOPE, locations=[f'{SCOPE}.{module}' for module in modules])


MODELS = _child('model', root.MODELS, 'models')
TRANSFORMS = _child('transform', root.TRANSFORMS, 'datasets.transforms')
DATASETS = _child('dataset', root.DATASETS, 'datasets', 'datasets.preparation.sample_sets')
HOOKS = _child('hook', root.HOOKS, 'engine.hooks', 'evaluation.probe_hook')
LOG_PROCESSORS = _child('log processor', root.LOG_PROCESSORS, 'engine.runners.log_processor')
METRICS = _child('metric', root.METRICS, 'evaluation.metrics')
OPTIM_WRAPPERS = _child('optim wrapper', root.OPTIM_WRAPPERS, 'engine.optimizers')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, 'engine.optimizers'
)
PARAM_SCHEDULERS = _child('parameter scheduler', root.PARAM_SCHEDULERS, 'engine.schedulers')
LOOPS = _child('loop', root.LOOPS, 'engine.runners.train_loop')
STRATEGIES = _child('strategy', root.STRATEGIES, 'engine.runners.sharded_strategy')
WEIGHT_INITIALIZERS = _child('weight initializer', root.WEIGHT_INITIALIZERS, 'checkpoints.loading')
VISBACKENDS = _child('vis_backend', root.VISBACKENDS, 'visualization.mlflow_backend')
# Nothing of ours in these; without a child MMEngine warns at each look-up from this scope.
for _name in (
    'DATA_SAMPLERS',
    'OPTIMIZERS',
    'VISUALIZERS',
    'EVALUATOR',
    'MODEL_WRAPPERS',
):
    _child(_name.lower(), getattr(root, _name))


def build_part(cfg: Any) -> Any:
    """Build a part of a model from its config; short type names mean this scope, whatever framework runs the model.

    Raises:
        TypeError: It is neither a config nor a built module.
    """
    if isinstance(cfg, Mapping):
        return MODELS.build({'_scope_': SCOPE, **cfg})
    if callable(cfg):  # a module that is built already
        return cfg
    raise TypeError(f"a part of the model must be a dict with a 'type', or a built module, got {cfg!r}")
