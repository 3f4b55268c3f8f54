"""The package stays shallow: how many files one must read to understand one."""

import grimp


def test_the_deepest_chain_of_imports():
    graph = grimp.build_graph('simmim_plugin', exclude_type_checking_imports=True)
    chains: dict[str, tuple[str, ...]] = {}

    def chain(module: str, importers: tuple[str, ...] = ()) -> tuple[str, ...]:
        assert module not in importers, f'a circle: {importers}'
        if module not in chains:
            imported = graph.find_modules_directly_imported_by(module) - {'simmim_plugin'}
            longest = max((chain(name, (*importers, module)) for name in imported), key=len, default=())
            chains[module] = (module, *longest)
        return chains[module]

    deepest = max((chain(module) for module in graph.modules - {'simmim_plugin'}), key=len)
    assert 2 < len(deepest) <= 8, deepest
