import pytest

from helpers.runners import runner
from simmim_plugin import CompileHook


def test_wrong_arguments_are_named():
    assert CompileHook(fullgraph=False).fullgraph is False and CompileHook().fullgraph is None
    for value in (1, 'yes', float('nan')):
        with pytest.raises(ValueError, match=f'^CompileHook.fullgraph={value!r} must be True or False$'):
            CompileHook(fullgraph=value)


@pytest.mark.parametrize(('name', 'value'), [('backend', 'cuda'), ('mode', 'fast')])
def test_what_this_pytorch_does_not_have_is_refused_before_the_training(name, value, tmp_path):
    training = runner(tmp_path, 1)
    training.register_hook(CompileHook(**{name: value}))
    with pytest.raises(ValueError, match=f"^CompileHook.{name}='{value}' is unknown; choose one of .*'"):
        training.train()
    assert training.iter == 0
