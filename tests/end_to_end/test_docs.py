"""Links, files and tests named in README and guides exist."""

import re

import pytest

from helpers.paths import ROOT

# A placeholder, and a file of MMSegmentation.
OTHERS = ('configs/ablations/LEAF.py', 'configs/upernet/upernet_r50_4xb4-160k_ade20k-512x512.py')
PAGES = [ROOT / 'README.md', ROOT / 'README.zh.md', *sorted((ROOT / 'docs').rglob('*.md'))]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    text = page.read_text(encoding='utf-8')
    targets = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        name, _, anchor = target.partition('#')
        if '://' in name:
            continue
        file = page if not name else page.parent / name
        assert file.exists(), f'{page.name}: {target}'
        if anchor:
            titles = re.findall(r'^#+ (.+)$', file.read_text(encoding='utf-8'), re.M)
            slugs = {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}
            assert anchor in slugs, f'{page.name}: {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_scripts_configs_and_tests_that_are_named_exist(page):
    text = page.read_text(encoding='utf-8')
    for name in re.findall(
        r'\b((?:tools|configs|tests|requirements|docs)/[\w/.-]+\.(?:py|sh|txt|md|json|png))\b', text
    ):
        assert name in OTHERS or (ROOT / name).exists(), f'{page.name}: {name}'
    for name in re.findall(r'`(test_\w+\.py)`', text):
        assert list((ROOT / 'tests').rglob(name)), f'{page.name}: {name}'
