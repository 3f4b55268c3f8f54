"""Compare pretraining configs: each is pretrained, fine-tuned and judged by k-NN the same way, with several seeds."""

import argparse
import json
import platform
import shlex
import signal
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from simmim_plugin import launch

EXAMPLE = """example, on two CPU cores:
  python tools/ablate.py configs/ablations/mask_{simmim,local,global,simultaneous}.py --scratch --seeds 0 1 2 \\
      --data-root /path/to/clothing --out work_dirs/ablation_masks --amp --jobs 2

DATA_ROOT has train/ and val/, each with a folder per class; labels are used for the evaluation alone. Called again
with the same --out, it goes on where it was stopped."""
BASE = ROOT / 'configs' / 'ablations' / '_base_'


def main() -> None:
    """Parse the command line, run, and write table and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('leaves', nargs='+', metavar='CONFIG', help='pretraining configs')
    parser.add_argument('--data-root', required=True, help='folder with train/ and val/, each with a folder per class')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='seeds (0 1 2)')
    parser.add_argument('--out', default='work_dirs/ablation', help='folder of everything (work_dirs/ablation)')
    parser.add_argument(
        '--size',
        default=str(BASE / 'small.py'),
        help="config laid over every leaf (configs/ablations/_base_/small.py); 'none' leaves them as they are",
    )
    parser.add_argument(
        '--finetune',
        default=str(BASE / 'finetune_small.py'),
        help='config of the fine-tuning, whose backbone fits the size (configs/ablations/_base_/finetune_small.py)',
    )
    parser.add_argument('--scratch', action='store_true', help='also fine-tune without pretraining')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast, also on processors')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time; the cores are shared out (1)')
    launch.add_cfg_options(parser)
    args = parser.parse_args()
    with launch.one_line_errors() as folders:
        from simmim_plugin import ablation

        launch.check_writable(args.out)
        folders.append(args.out)
        size = None if args.size == 'none' else args.size
        for path in (*args.leaves, args.finetune, *([size] if size else [])):
            if not Path(path).is_file():
                raise FileNotFoundError(f'config {path!r} does not exist (from {Path.cwd()})')
        if args.jobs < 1:
            raise ValueError(f'--jobs {args.jobs} must be positive')
        if len(set(args.seeds)) < len(args.seeds):
            raise ValueError(f'--seeds {args.seeds} must differ')
        out = Path(args.out)
        settings = ablation.Settings(out, args.data_root, size, args.finetune, args.cfg_options, args.amp, args.jobs)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the runs end, too
        results = ablation.ablate(args.leaves, args.seeds, settings, args.scratch)
        if (out / 'results.json').is_file():  # rows of earlier calls stay in the table
            results = {**json.loads((out / 'results.json').read_text(encoding='utf-8')), **results}
        text = (
            f'{ablation.table(results)}\n\n'
            'Mean and range (lowest to highest) over the seeds; accuracy on val after the last epoch.\n\n'
            f'    {shlex.join(["python", *sys.argv])}\n\n'
            f'{hardware()}, {date.today()}.\n'
        )
        (out / 'results.json').write_text(json.dumps(results, indent=1), encoding='utf-8')
        (out / 'table.md').write_text(text, encoding='utf-8')
        ablation.plot(results, out / 'plot.png')
        print(f'{text}\ntable: {out / "table.md"}\nplot:  {out / "plot.png"}')


def hardware() -> str:
    """Processor or GPU, number of cores, and version of PyTorch."""
    import os

    import torch

    name = platform.processor() or platform.machine()
    cpu = Path('/proc/cpuinfo')
    if cpu.is_file():
        names = [line.split(':')[1].strip() for line in cpu.read_text().splitlines() if line.startswith('model name')]
        name = names[0] if names else name
    if torch.cuda.is_available():
        name = f'{torch.cuda.get_device_name()}, {name}'
    return f'{name}, {os.cpu_count()} cores, PyTorch {torch.__version__}'


if __name__ == '__main__':
    main()
