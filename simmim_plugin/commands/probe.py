"""Evaluate frozen features on labelled images with a linear probe and k-NN, block by block."""

import argparse
import json
from pathlib import Path

from simmim_plugin.commands.options import add_device

EXAMPLE = """example:
  {program} work_dirs/simmim_vit-tiny_folder/epoch_60.pth /path/to/clothing --blocks all

DATA_ROOT has train/ and val/, each with a folder per class. The published linear probe of ViT-B takes block 8 of 12."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('checkpoint', help='checkpoint of a pretraining or fine-tuning; its config is read from it')
    parser.add_argument('data_root', metavar='DATA_ROOT', help='folder with train/ and val/')
    parser.add_argument('--blocks', nargs='+', metavar='N', help="block numbers from 1, or 'all' (the last)")
    parser.add_argument('--kinds', nargs='+', default=['pooled'], help="'pooled' (mean of the patch tokens) or 'cls'")
    parser.add_argument('--k', type=int, default=20, help='neighbours of k-NN (20)')
    parser.add_argument('--temperature', type=float, default=0.07, help="temperature of the neighbours' votes (0.07)")
    parser.add_argument('--fraction', type=float, default=1.0, help='share of the training images with a label (1.0)')
    parser.add_argument('--size', type=int, nargs='+', help="side, or height and width, in pixels (the training's)")
    parser.add_argument('--workers', type=int, default=2, help='processes that read images (2)')
    add_device(parser)
    parser.add_argument('--out', help='also write the scores to this JSON file')


def run(args: argparse.Namespace) -> None:
    """Evaluate the features and print a table."""
    from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
    from simmim_plugin.evaluation.probes import LabelledFolder, run_probes
    from simmim_plugin.models.layers.architecture import block_arguments
    from simmim_plugin.utils.arguments import number

    if 'patches' in args.kinds:
        raise ValueError('--kinds patches: probes take one vector per image; choose pooled or cls')
    number('--temperature', args.temperature, 0, ends='()')
    blocks = block_arguments(args.blocks)
    extractor = FeatureExtractor(args.checkpoint, args.device, args.size, blocks, args.kinds)
    folder = LabelledFolder(args.data_root, args.fraction)
    scores = run_probes(extractor, folder, args.k, args.temperature, args.workers, progress=True)
    counts = ' and '.join(f'{len(folder.labels[split])} {split}' for split in folder.labels)
    print(f'{len(folder.classes)} classes, {counts} images; k-NN with k={args.k}, temperature {args.temperature}')
    print(f'{"":24}  top-1   balanced')
    for name, score in scores.items():
        print(f'{name:24} {score.top1:5.1f} %    {score.balanced:5.1f} %')
    if args.out:
        Path(args.out).write_text(
            json.dumps({name: score._asdict() for name, score in scores.items()}, indent=1), encoding='utf-8'
        )
