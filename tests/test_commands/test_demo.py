"""`simmim demo` in a headless browser: Debian's chromium, driven by Playwright."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.checkpoints import write_checkpoint
from helpers.commands import SIMMIM, run

pytest.importorskip('gradio', reason='simmim_plugin[demo] is not installed')
httpx = pytest.importorskip('httpx', reason='httpx is not installed')
playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
CHROMIUM = shutil.which('chromium')
WAIT = 60  # seconds
QUIET = ('background-networking', 'component-update', 'sync', 'quic')


@contextmanager
def served(log: Path, *arguments: object) -> Iterator[str]:
    """Serve a page; yields its address."""
    with log.open('w') as output:
        process = subprocess.Popen([*SIMMIM, 'demo', *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(10 * WAIT):
            if address := re.search(r'http://127\.0\.0\.1:\d+/', log.read_text()):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield address[0]
    finally:
        process.terminate()
        process.wait(WAIT)


@contextmanager
def opened(address: str, faults: list[str]) -> Iterator:
    """Open the page in a browser; its errors and its requests to other machines are added to `faults`."""
    flags = ['--no-sandbox', '--no-first-run', *(f'--disable-{name}' for name in QUIET)]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport=dict(width=1280, height=960))
        page.set_default_timeout(1000 * WAIT)
        page.on('pageerror', lambda error: faults.append(str(error)))
        page.on('console', lambda message: faults.append(message.text) if is_error(message) else None)
        page.on('request', lambda request: faults.append(request.url) if is_foreign(request.url) else None)
        page.goto(address)
        page.wait_for_selector('#similarity img')
        page.wait_for_function("document.querySelector('#message').innerText.includes('patches hidden')")
        yield page
        browser.close()


def is_error(message) -> bool:
    return message.type == 'error' and not message.text.startswith('AbortError')  # Gradio closing a stream of events


def is_foreign(url: str) -> bool:
    return not url.startswith(('http://127.0.0.1:', 'data:', 'blob:'))


def changes(page, picture: str, action) -> None:
    """Perform an action, and wait until a picture has changed."""
    before = page.get_attribute(f'#{picture} img', 'src')
    action()
    page.wait_for_function('([id, old]) => document.querySelector(id).src !== old', arg=[f'#{picture} img', before])


def message(page) -> str:
    return page.inner_text('#message')


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='no chromium; on Debian: apt-get install chromium')
def test_the_page_in_a_browser(image_folder, tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'tiny.pth')
    words, large = tmp_path / 'words.png', tmp_path / 'large.png'
    words.write_text('words')
    with large.open('wb') as file:
        file.truncate(70 * 10**6)
    photos, faults = sorted(image_folder.rglob('*.jpg')), []
    with served(tmp_path / 'log', checkpoint, photos[0]) as address, opened(address, faults) as page:
        # A slider changes masks and reconstruction: 3 of 4 units of 32 px, then of 16 units of 16 px 0.6, which is 10.
        assert message(page).startswith('75% of the patches hidden')
        slider = page.locator('#local-unit input[type=range]')
        changes(page, 'composite', lambda: (slider.focus(), slider.press('ArrowLeft')))
        page.wait_for_function("document.querySelector('#message').innerText.startsWith('62%')")
        changes(page, 'masked', lambda: page.fill('#seed input[type=number]', '5'))

        # A click on the image: the patch in the first row, second column.
        box = page.locator('#original img').bounding_box()
        changes(
            page,
            'similarity',
            lambda: page.mouse.click(box['x'] + 0.3 * box['width'], box['y'] + 0.1 * box['height']),
        )
        page.wait_for_function("document.querySelector('#similarity').innerText.includes('similarity to (1, 2)')")
        block = page.locator('#block input[type=range]')
        changes(page, 'pca', lambda: (block.focus(), block.press('ArrowLeft')))

        # The brush: paint the first row of four patches, then clear it.
        canvas = page.locator('#brush canvas')
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box['x'] + 3, box['y'] + 3)
        page.mouse.down()
        page.mouse.move(box['x'] + box['width'] - 3, box['y'] + 3, steps=20)
        changes(page, 'masked', page.mouse.up)
        page.wait_for_function("document.querySelector('#message').innerText.startsWith('25%')")
        changes(page, 'masked', page.locator('#brush button').click)
        page.wait_for_function("document.querySelector('#message').innerText.startsWith('62%')")

        # Bad files are reported on the page, until a good one is uploaded.
        clear = page.locator("#upload button[aria-label='Clear']").first
        clear.click()
        page.set_input_files('#upload input[type=file]', words)
        page.wait_for_function("document.querySelector('#message').innerText.includes('words.png: cannot identify')")
        page.wait_for_selector('#masked img', state='detached')
        assert page.evaluate("document.querySelector('#brush canvas').width") == 0
        assert faults == []
        clear.click()
        page.set_input_files('#upload input[type=file]', large)
        page.wait_for_selector('text=exceed the maximum allowed size of 64')
        page.set_input_files('#upload input[type=file]', photos[1])
        page.wait_for_selector('#similarity img')
        page.wait_for_function("document.querySelector('#message').innerText.startsWith('62%')")
    assert all('exceed' in fault or '404' in fault or fault == 'Response' for fault in faults)  # of the large file


@pytest.mark.slow
def test_other_websites_are_rejected_and_nothing_is_left_behind(image_folder, tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'tiny.pth')
    photo = next(image_folder.rglob('*.jpg'))
    before = set(Path(tempfile.gettempdir()).glob('simmim_demo_*'))
    with served(tmp_path / 'log', checkpoint, photo) as address:
        client = httpx.Client(base_url=address)
        assert client.get('/').status_code == 200
        assert client.get('/', headers={'Origin': address.rstrip('/')}).status_code == 200
        assert client.get('/', headers={'Host': 'localhost:7860'}).status_code == 200
        for headers in ({'Host': 'evil.example'}, {'Origin': 'https://evil.example'}, {'Origin': 'null'}):
            assert client.get('/', headers=headers).status_code == 403
            files = {'files': ('a.png', photo.read_bytes())}
            assert client.post('/gradio_api/upload', files=files, headers=headers).status_code == 403
        assert set(Path(tempfile.gettempdir()).glob('simmim_demo_*')) > before
        port = re.search(r':(\d+)/', address)[1]
        output = run(*SIMMIM, 'demo', checkpoint, '--port', port, ok=False)
        assert f'error: --port {port}: no free port there' in output
    assert set(Path(tempfile.gettempdir()).glob('simmim_demo_*')) == before


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium; on Debian: apt-get install chromium')
@pytest.mark.skipif('DEMO_CHECKPOINT' not in os.environ, reason='DEMO_CHECKPOINT names no checkpoint')
def test_with_a_checkpoint_of_yours(tmp_path):
    """With the quickstart's checkpoint in CI; DEMO_SCREENSHOT writes the picture in docs/demo.md."""
    faults = []
    with served(tmp_path / 'log', os.environ['DEMO_CHECKPOINT']) as address, opened(address, faults) as page:
        for slider, value in {'local-ratio': 0.4, 'global-ratio': 0.1, 'global-unit': 32}.items():
            page.fill(f'#{slider} input[type=number]', str(value))
        page.press('#global-unit input[type=number]', 'Enter')
        box = page.locator('#original img').bounding_box()
        at = box['x'] + 0.25 * box['width'], box['y'] + 0.55 * box['height']
        changes(page, 'similarity', lambda: page.mouse.click(*at))
        page.mouse.move(5, 5)
        page.wait_for_timeout(2000)
        page.screenshot(path=os.environ.get('DEMO_SCREENSHOT', tmp_path / 'page.png'))
    assert faults == []


def test_the_command_line_rejects_bad_arguments(tmp_path, image_folder):
    checkpoint = write_checkpoint(tmp_path / 'tiny.pth')
    (tmp_path / 'words.png').write_text('words')
    output = run(*SIMMIM, 'demo', checkpoint, tmp_path / 'words.png', ok=False)
    assert 'error: words.png: cannot identify image file' in output
    output = run(*SIMMIM, 'demo', tmp_path / 'none.pth', ok=False)
    assert 'error: ' in output and 'none.pth' in output
    output = run(*SIMMIM, 'demo', checkpoint, '--port', 99999, ok=False)
    assert 'error: --port=99999 must be a whole number from 1 to 65535' in output
