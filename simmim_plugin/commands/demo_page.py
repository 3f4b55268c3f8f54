"""Gradio page of `simmim demo`; `Explorer` makes every picture on it."""

import base64
import io
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from torch import Tensor

from simmim_plugin.apis.explorer import Explorer
from simmim_plugin.datasets.images import SUFFIXES
from simmim_plugin.utils.arguments import whole

MAX_UPLOAD = 64  # MB
HOSTS = ('127.0.0.1', 'localhost')  # localhost: when the port is forwarded
START = 'Upload an image to start.'
SIMILARITY = 'similarity to the clicked patch'
TITLE = '# What the model makes of an image\n{name}: {height} x {width} px, patches of {patch} px. {more}'
# A brush over the patches (brush.js, brush.css): Gradio 6.17's ImageEditor stays empty when its picture is set while
# the page loads.
# Its value has `picture`, a URL, and `cells`, a string of 0 and 1 with one character per patch in row order, or empty.
BRUSH_HTML = '<span>or paint over the parts to hide</span> <button>clear</button><canvas></canvas>'
Update = dict[Any, Any]


class Page:
    """Layout and events of the page; Gradio serves its `blocks`.

    Args:
        explorer: The model to explore.
        name: Name of the model on the page.
        first: Image shown when the page opens; None shows none.
    """

    def __init__(self, explorer: Explorer, name: str, first: str | None = None) -> None:
        self.explorer = explorer
        (height, width), patch = explorer.size, explorer.patch_size
        with gr.Blocks(title=f'SimMIM: {name}', analytics_enabled=False, fill_width=True) as self.blocks:
            gr.Markdown(TITLE.format(name=name, height=height, width=width, patch=patch, more=explorer.more_masks))
            self.image, self.features, self.query = gr.State(None), gr.State(None), gr.State(None)
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    self._add_controls(first)
                with gr.Column(scale=3):
                    self.message = gr.Markdown(START, elem_id='message')
                    self.masked, self.predicted, self.composite = _pictures(
                        masked='masked',
                        reconstruction='reconstruction',
                        composite='composite',
                    )
                    blocks = len(explorer.layers)
                    self.block = gr.Slider(1, blocks, blocks, step=1, label='features after block', elem_id='block')
                    self.original, self.pca, self.near = _pictures(
                        original='image: click a patch',
                        pca='PCA of the features',
                        similarity=SIMILARITY,
                    )
            self._connect()

    def _add_controls(self, first: str | None) -> None:
        (height, width), patch = self.explorer.size, self.explorer.patch_size
        self.upload = gr.File(
            first, file_types=list(SUFFIXES), height=120, label=f'image file, up to {MAX_UPLOAD} MB', elem_id='upload'
        )
        self.sliders = []  # local ratio and unit, global ratio and unit, seed
        for kind, part in self.explorer.training_masks().items():
            ratio, unit, largest = f'{kind} ratio', f'{kind} unit, px', max(height, width)
            self.sliders += [
                gr.Slider(0, 1, part['ratio'], step=0.05, label=ratio, elem_id=f'{kind}-ratio'),
                gr.Slider(patch, largest, part['unit'], step=patch, label=unit, elem_id=f'{kind}-unit'),
            ]
        self.sliders.append(gr.Slider(0, 99, 0, step=1, label='seed', elem_id='seed'))
        self.brush = gr.HTML(
            None,
            html_template=BRUSH_HTML,
            css_template=_text('brush.css'),
            js_on_load=_text('brush.js'),
            elem_id='brush',
            rows=height // patch,
            columns=width // patch,
        )

    def _connect(self) -> None:
        quietly: dict[str, Any] = dict(show_progress='hidden', trigger_mode='always_last')
        loading: dict[str, Any] = dict(
            fn=self._load, inputs=self.upload,
            outputs=[self.image, self.features, self.query, self.original, self.brush, self.message],
        )  # fmt: skip
        hiding: dict[str, Any] = dict(
            fn=self._hide, inputs=[self.image, self.brush, *self.sliders],
            outputs=[self.masked, self.predicted, self.composite, self.message], **quietly,
        )  # fmt: skip
        looking: dict[str, Any] = dict(
            fn=self._look, inputs=[self.features, self.block, self.query], outputs=[self.pca, self.near], **quietly
        )
        for event in (self.blocks.load, self.upload.upload, self.upload.clear):
            event(**loading).then(**hiding).then(**looking)
        for slider in self.sliders:
            slider.change(**hiding)
        self.brush.input(**hiding)
        self.block.change(**looking)
        for picture in (self.original, self.pca, self.near):
            picture.select(self._click, None, self.query).then(**looking)

    def _load(self, path: str | None) -> Update:
        nothing = {self.image: None, self.features: None, self.original: None, self.brush: None}
        if path is None:
            return {**nothing, self.message: START}
        try:
            image = self.explorer.read(path)
        except ValueError as error:
            return {**nothing, self.message: _warned(error)}
        features, picture = self.explorer.features(image), self.explorer.picture(image)
        centre = (features[-1].shape[0] // 2, features[-1].shape[1] // 2)
        brush = {'picture': _data_url(picture), 'cells': ''}
        return {
            self.image: image, self.features: features, self.query: centre, self.original: picture, self.brush: brush
        }  # fmt: skip

    def _hide(self, image: Tensor | None, brush: Any, *sliders: float) -> Update:
        if image is None:
            return {self.masked: None, self.predicted: None, self.composite: None}
        cells = (brush or {}).get('cells', '')
        try:
            if '1' in cells:
                masks = self.explorer.painted_mask(cells)
            else:
                local, global_ = (dict(ratio=sliders[i], unit=int(sliders[i + 1])) for i in (0, 2))
                masks = self.explorer.random_masks(local, global_, int(sliders[4]))
        except ValueError as error:
            return {self.masked: None, self.predicted: None, self.composite: None, self.message: _warned(error)}
        made = self.explorer.reconstruct(image, masks)
        message = f'{made.hidden:.0%} of the patches hidden, masked loss {made.loss:.3f}'
        return {
            self.masked: made.masked, self.predicted: made.predicted, self.composite: made.composite,
            self.message: message,
        }  # fmt: skip

    def _look(self, features: list[Tensor] | None, block: float, query: tuple[int, int] | None) -> Update:
        if features is None or query is None:
            return {self.pca: None, self.near: gr.update(value=None, label=SIMILARITY)}
        chosen = features[int(block) - 1]
        picture, low = self.explorer.similarity_picture(chosen, query)
        label = f'similarity to ({query[0] + 1}, {query[1] + 1}): {low:.2f} to 1'
        return {self.pca: self.explorer.pca_picture(chosen), self.near: gr.update(value=picture, label=label)}

    def _click(self, event: gr.SelectData) -> tuple[int, int]:
        return self.explorer.patch_at(*event.index)


class OwnPageOnly:
    """Middleware that rejects requests from other websites: a foreign Origin or Host header.

    Args:
        app: The ASGI application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Forward a request, or answer it with 403."""
        headers = dict(scope.get('headers', ()))
        sources = {b'//' + headers[b'host']} if b'host' in headers else set()
        sources |= {headers[b'origin']} if b'origin' in headers else set()
        if all(urlsplit(name.decode('latin-1')).hostname in HOSTS for name in sources):
            await self.app(scope, receive, send)
        else:
            await PlainTextResponse('requests from other websites are rejected', status_code=403)(scope, receive, send)


def serve(page: Page, port: int | None, open_browser: bool) -> str:
    """Serve a page in a thread, on 127.0.0.1 only, without Gradio's analytics and web fonts.

    Args:
        page: The page to serve.
        port: Port on 127.0.0.1; None takes the first free one from 7860.
        open_browser: Open the page in the user's browser.

    Returns:
        The address.

    Raises:
        ValueError: The port is out of range or taken.
    """
    if port is not None:
        whole('--port', port, 1, 65535)
    theme = gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    try:
        _, address, _ = page.blocks.launch(
            server_name='127.0.0.1', server_port=port, inbrowser=open_browser, share=False, quiet=True, theme=theme,
            max_file_size=f'{MAX_UPLOAD}mb', footer_links=[], ssr_mode=False,
            app_kwargs=dict(middleware=[Middleware(OwnPageOnly)]), prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        taken = '' if port is None else f' {port}'
        raise ValueError(f'--port{taken}: no free port there ({error}); choose another') from error
    return address


def _pictures(**labels: str) -> list[gr.Image]:
    """A row of pictures, given as id -> label."""
    with gr.Row():
        return [
            gr.Image(label=label, elem_id=key, interactive=False, buttons=['download', 'fullscreen'], format='png')
            for key, label in labels.items()
        ]


def _warned(error: ValueError) -> str:
    """Show an error that the user can fix as a toast, and return it as text for the page."""
    gr.Warning(str(error))
    return f'**{error}**'


def _data_url(picture: np.ndarray) -> str:
    """Encode a picture as a data URL of a PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format='PNG')
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding='utf-8')
