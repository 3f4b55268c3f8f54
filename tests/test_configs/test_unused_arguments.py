"""An argument that a component does not know is an error when it is built: none is swallowed."""

import inspect

import pytest
import torch

import simmim_plugin

OPTIMIZER = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
BUILT_WITH = {  # what those need that cannot be built without arguments
    'AutocastOptimWrapper': dict(optimizer=OPTIMIZER),
    'ClassFolders': dict(data_root='.'),
    'ForeachEMA': dict(model=torch.nn.Linear(1, 1)),
    'ImageFolder': dict(data_root='.'),
    'LinearWarmupLR': dict(optimizer=OPTIMIZER, start_factor=0.1, end=2),
    'MLflowVisBackend': dict(save_dir='nowhere'),
    'TarShards': dict(data_root='.'),
    'WarmupCosineLR': dict(optimizer=OPTIMIZER, warmup=1, end=2),
}
COMPONENTS = [
    name
    for name in simmim_plugin.__all__
    if inspect.isclass(kind := getattr(simmim_plugin, name))
    and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values())
]


@pytest.mark.parametrize('name', COMPONENTS)
def test_an_unknown_argument_is_an_error(name):
    arguments = BUILT_WITH.get(name, {})
    with pytest.raises(TypeError, match='nonsense'):
        getattr(simmim_plugin, name)(**arguments, nonsense=1)
