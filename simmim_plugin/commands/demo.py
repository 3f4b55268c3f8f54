"""Serve a local web page to explore a pretrained model with your own images."""

import argparse
import importlib.util
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from simmim_plugin.commands.options import add_device

EXAMPLE = """example:
  {program} work_dirs/quickstart/epoch_10.pth                 then open the address that it prints
  {program} runs/first/epoch_100.pth scan.tif --port 8000

The page is reachable from this machine only (127.0.0.1). Ctrl+C stops it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='pretraining checkpoint; its config is read from it')
    parser.add_argument('image', metavar='IMAGE', nargs='?', help='first image to show (a photo from scikit-learn)')
    parser.add_argument('--port', type=int, help='port on 127.0.0.1 (the first free one from 7860)')
    parser.add_argument('--open', action='store_true', help='open the page in your browser')
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Serve the page until interrupted."""
    if importlib.util.find_spec('gradio') is None:
        raise ModuleNotFoundError("simmim demo needs gradio: pip install 'simmim_plugin[demo]'", name='gradio')
    warnings.filterwarnings('ignore', message='.*HTTP_422', module='gradio')  # a name that Starlette deprecated
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
    from simmim_plugin.apis.explorer import Explorer
    from simmim_plugin.commands import demo_page

    explorer = Explorer(args.checkpoint, args.device)
    with tempfile.TemporaryDirectory(prefix='simmim_demo_') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # copies of the images, deleted at the end
        page = demo_page.Page(explorer, os.path.basename(args.checkpoint), first_image(explorer, args.image))
        address = demo_page.serve(page, args.port, args.open)
        print(f'{address}   (Ctrl+C stops it)', flush=True)
        page.blocks.block_thread()


def first_image(explorer: Any, given: str | None) -> str | None:
    """The image shown first: the given one, else a photo from scikit-learn if the model takes RGB photos.

    Args:
        explorer: An `Explorer`.
        given: Image file; None takes the photo.

    Raises:
        ValueError: The model cannot read the given file.
    """
    if given is not None:
        explorer.read(given)
        return given
    import sklearn.datasets

    photo = Path(sklearn.datasets.__file__).parent / 'images/china.jpg'
    try:
        explorer.read(photo)
    except ValueError:  # e.g. a model of four-channel images
        return None
    return str(photo)
