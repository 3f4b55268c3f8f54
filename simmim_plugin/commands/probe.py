"""Judge frozen features on labelled images: linear probe and k-NN, block by block."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin.utils import errors

EXAMPLE = """example:
  python tools/probe.py work_dirs/simmim_vit-tiny_folder/epoch_60.pth /path/to/clothing --blocks all

DATA_ROOT has train/ and val/, each with a folder per class. The published linear probe of ViT-B takes block 8 of 12."""


def main() -> None:
    """Parse the command line and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='checkpoint of a pretraining or fine-tuning; its config is read from it')
    parser.add_argument('data_root', metavar='DATA_ROOT', help='folder with train/ and val/')
    parser.add_argument('--blocks', nargs='+', metavar='N', help="numbers from 1 up, or 'all' (the last block)")
    parser.add_argument('--kinds', nargs='+', default=['pooled'], help="'pooled' (mean of the patch tokens) or 'cls'")
    parser.add_argument('--k', type=int, default=20, help='neighbours of k-NN (20)')
    parser.add_argument('--temperature', type=float, default=0.07, help="of the neighbours' votes (0.07)")
    parser.add_argument('--fraction', type=float, default=1.0, help='share of the training images with a label (1.0)')
    parser.add_argument('--size', type=int, nargs='+', help="side, or height and width, in pixels (the training's)")
    parser.add_argument('--workers', type=int, default=2, help='processes that read images (2)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, ... (cpu)')
    parser.add_argument('--out', help='write the scores to this JSON file, too')
    args = parser.parse_args()
    with errors.one_line_errors():
        from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
        from simmim_plugin.evaluation.probes import LabelledFolder, run_probes
        from simmim_plugin.models.vit import block_arguments

        if 'patches' in args.kinds:
            raise ValueError('--kinds patches: probes judge one vector per image; choose pooled or cls')
        if args.temperature <= 0:
            raise ValueError(f'--temperature {args.temperature} must be positive')
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


if __name__ == '__main__':
    main()
