"""`simmim demo` in a headless browser: Debian's chromium, driven by Playwright."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_cli import SIMMIM
from test_explorer import write_checkpoint
from test_train import run

pytest.importorskip('gradio', reason='simmim_plugin[demo] is not installed')
playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
CHROMIUM = shutil.which('chromium')
WAIT = 60  # seconds
QUIET = ('background-networking', 'component-update', 'sync', 'quic')


@contextmanager
def served(*arguments: object) -> Iterator[str]:
    """The address of a page."""
    command = [*SIMMIM, 'demo', *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if address := re.search(r'http://127\.0\.0\.1:\d+/', line):
                yield address[0]
                break
        else:
            pytest.fail(''.join(lines))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(WAIT)


@contextmanager
def opened(address: str, faults: list[str]) -> Iterator:
    """The page in a browser; what goes wrong in it, and what it asks other machines for, is added to `faults`."""
    flags = ['--no-sandbox', '--no-first-run', *(f'--disable-{name}' for name in QUIET)]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.set_default_timeout(1000 * WAIT)
        page.on('pageerror', lambda error: faults.append(str(error)))
        page.on('request', lambda request: faults.append(request.url) if is_foreign(request.url) else None)
        page.goto(address)
        page.wait_for_selector('#similarity img')
        page.wait_for_function("document.querySelector('#told').innerText.includes('patches hidden')")
        yield page
        browser.close()


def is_foreign(url: str) -> bool:
    return not url.startswith(('http://127.0.0.1:', 'data:', 'blob:'))


def changes(page, picture: str, action) -> None:
    """Do something, and wait until a picture is another one."""
    before = page.get_attribute(f'#{picture} img', 'src')
    action()
    page.wait_for_function('([id, old]) => document.querySelector(id).src !== old', arg=[f'#{picture} img', before])


def told(page) -> str:
    return page.inner_text('#told')


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='no chromium; on Debian: apt-get install chromium')
def test_the_page_in_a_browser(image_folder, tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'tiny.pth')
    words, large = tmp_path / 'words.png', tmp_path / 'large.png'
    words.write_text('words')
    with large.open('wb') as file:
        file.truncate(70 * 10**6)
    photos, faults = sorted(image_folder.rglob('*.jpg')), []
    with served(checkpoint, photos[0]) as address, opened(address, faults) as page:
        # A slider changes masks and reconstruction: 3 of 4 units of 32 px, then of 16 units of 16 px 0.6, which is 10.
        assert told(page).startswith('75% of the patches hidden')
        slider = page.locator('#local-unit input[type=range]')
        changes(page, 'composite', lambda: (slider.focus(), slider.press('ArrowLeft')))
        page.wait_for_function("document.querySelector('#told').innerText.startsWith('62%')")
        changes(page, 'masked', lambda: page.fill('#seed input[type=number]', '5'))

        # A click on the image: the patch in the first row, second column.
        box = page.locator('#original img').bounding_box()
        changes(
            page,
            'similarity',
            lambda: page.mouse.click(box['x'] + 0.3 * box['width'], box['y'] + 0.1 * box['height']),
        )
        assert 'row 1, column 2' in page.inner_text('#similarity')
        block = page.locator('#block input[type=range]')
        changes(page, 'pca', lambda: (block.focus(), block.press('ArrowLeft')))

        # The brush: along the first row of four patches; then all of it off again.
        canvas = page.locator('#brush canvas')
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box['x'] + 3, box['y'] + 3)
        page.mouse.down()
        page.mouse.move(box['x'] + box['width'] - 3, box['y'] + 3, steps=20)
        changes(page, 'masked', page.mouse.up)
        page.wait_for_function("document.querySelector('#told').innerText.startsWith('25%')")
        changes(page, 'masked', page.locator('#brush button').click)
        page.wait_for_function("document.querySelector('#told').innerText.startsWith('62%')")

        # Bad files are told on the page, and a good one mends it.
        clear = page.locator("#upload button[aria-label='Clear']").first
        clear.click()
        page.set_input_files('#upload input[type=file]', words)
        page.wait_for_function("document.querySelector('#told').innerText.includes('words.png: cannot identify')")
        assert page.locator('#masked img').count() == 0
        clear.click()
        page.set_input_files('#upload input[type=file]', large)
        page.wait_for_selector('text=exceed the maximum allowed size of 64')
        page.set_input_files('#upload input[type=file]', photos[1])
        page.wait_for_selector('#similarity img')
        page.wait_for_function("document.querySelector('#told').innerText.startsWith('62%')")
    assert faults == []


def test_what_the_command_line_refuses(tmp_path, image_folder):
    checkpoint = write_checkpoint(tmp_path / 'tiny.pth')
    (tmp_path / 'words.png').write_text('words')
    told = run(*SIMMIM, 'demo', checkpoint, tmp_path / 'words.png', ok=False)
    assert 'error: words.png: cannot identify image file' in told
    told = run(*SIMMIM, 'demo', tmp_path / 'none.pth', ok=False)
    assert 'error: ' in told and 'none.pth' in told
