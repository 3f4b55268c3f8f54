import pytest

from simmim_plugin import CompileHook


def test_wrong_arguments_are_named():
    assert CompileHook(fullgraph=False).fullgraph is False and CompileHook().fullgraph is None
    for value in (1, 'yes', float('nan')):
        with pytest.raises(ValueError, match=f'^CompileHook.fullgraph={value!r} must be True or False$'):
            CompileHook(fullgraph=value)
