"""Serve a page on this machine to look at a pretrained model with your own images."""

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

The page is served to this machine alone (127.0.0.1). Ctrl+C ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='of a pretraining; its config is read from it')
    parser.add_argument('image', metavar='IMAGE', nargs='?', help='the first image (a photo of scikit-learn)')
    parser.add_argument('--port', type=int, help='of 127.0.0.1 (the first free one from 7860)')
    parser.add_argument('--open', action='store_true', help='also open the page in your browser')
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Serve until it is interrupted."""
    if importlib.util.find_spec('gradio') is None:
        raise ModuleNotFoundError("simmim demo needs gradio: pip install 'simmim_plugin[demo]'", name='gradio')
    warnings.filterwarnings('ignore', message='.*HTTP_422', module='gradio')  # an old name of Starlette's
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
    from simmim_plugin.apis.explorer import Explorer
    from simmim_plugin.commands import demo_page

    explorer = Explorer(args.checkpoint, args.device)
    with tempfile.TemporaryDirectory(prefix='simmim_demo_') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # copies of the images, gone at the end
        page = demo_page.Page(explorer, os.path.basename(args.checkpoint), first_image(explorer, args.image))
        address = demo_page.serve(page, args.port, args.open)
        print(f'{address}   (Ctrl+C ends it)', flush=True)
        page.blocks.block_thread()


def first_image(explorer: Any, given: str | None) -> str | None:
    """The image to begin with; a photo of scikit-learn if none is given and the model takes such.

    Args:
        explorer: An `Explorer`.
        given: A file.

    Raises:
        ValueError: The given file is no image of the model's kind.
    """
    if given is not None:
        explorer.read(given)
        return given
    import sklearn.datasets

    photo = Path(sklearn.datasets.__file__).parent / 'images/china.jpg'
    try:
        explorer.read(photo)
    except ValueError:  # such as one of four channels
        return None
    return str(photo)
