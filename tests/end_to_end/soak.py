"""Train with two ranks for half an hour under random faults, and compare with an undisturbed training.

    PYTHONPATH=tests python tests/end_to_end/soak.py IMAGES OUT --minutes 30 --seed 0

Loading is slowed down, so that memory can be watched over a long time at little load. Some files are broken and some
images have a NaN. The first third has no other faults; then, at random moments, a rank or everything is killed, a rank
stopped, a worker killed, a signal sent, or a bit of the newest checkpoint flipped. Writes soak.json and soak.png: the
faults, memory over time, and the number of tensors of weights and optimiser that equal those of the undisturbed
training; any difference is an error.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from helpers.paths import ROOT
from helpers.processes import children_of, gloo_environment
from helpers.same import same
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.utils.hardware import hardware

IMAGES, BROKEN, POISONED_EACH = 800, 8, 97
SAMPLE_SECONDS = 5  # between two samples of memory
FAULTS = ('kill a process', 'kill all', 'stop a process', 'kill a worker', 'SIGTERM', 'SIGUSR1', 'damage a checkpoint')
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['soak_images'])
data_root = {data!r}
model = dict(backbone=dict(arch=dict(embed_dims=64, num_layers=3, num_heads=2), drop_path_rate=0.1))
train_dataloader = dict(
    batch_size=8, num_workers=1, timeout=20,
    dataset=dict(type='SlowImages', pipeline=[*_base_.train_pipeline, dict(type='Poison')]),
)
auto_scale_lr = dict(enable=False)
param_scheduler = []
env_cfg = dict(dist_cfg=dict(timeout=20))
custom_hooks = []
train_cfg = dict(max_epochs={epochs})
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=3), logger=dict(interval=10))
"""
DATA = """
import os, time
from mmengine.registry import DATASETS, TRANSFORMS
from simmim_plugin import ImageFolder

@DATASETS.register_module()
class SlowImages(ImageFolder):
    def prepare_data(self, idx):
        time.sleep(float(os.environ['SOAK_SECONDS']))
        return super().prepare_data(idx)

@TRANSFORMS.register_module()
class Poison:
    def __call__(self, results):
        results['inputs'] = results['inputs'].float()
        if int(os.path.basename(results['img_path'])[:4]) % {each} == 0:
            results['inputs'][0, 3, 3] = float('nan')
        return results
"""


def prepare(images: Path, out: Path) -> None:
    """Write a folder of numbered links to images, some broken files, and the module of the data set."""
    found = sorted(path for path in images.rglob('*') if path.suffix in ('.jpg', '.jpeg', '.png'))
    chosen = random.Random(0).sample(found, IMAGES)
    (out / 'images').mkdir(parents=True)
    for i, path in enumerate(chosen):
        Image.open(path).verify()
        target = out / f'images/{i:04}{path.suffix}'
        if i < BROKEN:
            target.write_bytes(path.read_bytes()[:200])
        else:
            target.symlink_to(path.resolve())
    (out / 'soak_images.py').write_text(DATA.format(each=POISONED_EACH))


def start(out: Path, name: str, epochs: int, seconds: float) -> subprocess.Popen:
    """Train in an own process group; resumes from the work dir `name`."""
    config = out / f'{name}.py'
    base = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
    config.write_text(CONFIG.format(base=base, data=str(out / 'images'), epochs=epochs))
    command = ['bash', ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', out / name, '--resume']
    environment = dict(
        PYTHONPATH=str(out), SOAK_SECONDS=str(seconds), MAX_RESTARTS='1000', TORCH_ELASTIC_SHUTDOWN_TIMEOUT='10'
    )
    log = (out / f'{name}.log').open('a')
    return subprocess.Popen(
        [str(word) for word in command], env={**gloo_environment(), **environment}, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip


def memory(pid: int) -> int:
    """Resident memory of a process, MB; 0 if it is gone."""
    try:
        pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    except OSError:
        return 0
    return round(pages * os.sysconf('SC_PAGE_SIZE') / 1e6)


def below(pid: int) -> list[int]:
    """Children of a process; none if it is gone."""
    try:
        return children_of(pid)
    except OSError:
        return []


def lines_of_training(out: Path) -> int:
    """Number of log lines with a loss, over all starts."""
    return (out / 'soak.log').read_text(errors='replace').count('Epoch(train)')


def do(fault: str, process: subprocess.Popen, out: Path, moments: random.Random) -> None:
    """Cause a fault."""
    ranks = below(process.pid)
    if fault == 'kill a process':
        os.kill(moments.choice(ranks), signal.SIGKILL)
    elif fault == 'stop a process':
        os.kill(moments.choice(ranks), signal.SIGSTOP)
    elif fault == 'kill a worker':
        os.kill(below(moments.choice(ranks))[0], signal.SIGKILL)
    elif fault in ('SIGTERM', 'SIGUSR1'):
        process.send_signal(getattr(signal, fault))
    else:
        kill_all(process)
    if fault == 'damage a checkpoint':
        newest = max((out / 'soak').glob('*.pth'), key=lambda path: path.stat().st_mtime)
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)


def kill_all(process: subprocess.Popen) -> None:
    """Kill the launcher, its ranks (each in its own session) and their workers."""
    everything = [process.pid, *below(process.pid)]
    everything += [pid for rank in everything[1:] for pid in below(rank)]
    for pid in everything:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def soak(out: Path, minutes: float, seed: int) -> dict:
    """Train and cause faults; returns faults and memory over time."""
    moments = random.Random(seed)
    begin = time.monotonic()
    end, now = begin + minutes * 60, 0.0
    process = start(out, 'soak', 100_000, 0.05)
    next_fault = begin + minutes * 20
    left: list[str] = []
    faults: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    starts = 1
    waiting = None  # (lines of the log, time) at the last fault
    while (now := time.monotonic()) < end:
        time.sleep(1)
        ranks = below(process.pid)
        if not samples or now - begin >= samples[-1]['second'] + SAMPLE_SECONDS:
            samples.append(
                dict(
                    second=round(now - begin), launcher=memory(process.pid), processes=[memory(pid) for pid in ranks],
                    workers=[memory(pid) for rank in ranks for pid in below(rank)],
                )
            )  # fmt: skip
        if waiting is not None and now > waiting[1] + 300:
            kill_all(process)
            raise SystemExit(f'training did not resume within 300 s after {faults[-1]}, see {out}/soak.log')
        if waiting is not None and lines_of_training(out) > waiting[0] + 1:
            faults[-1]['seconds_until_it_trains_again'] = round(now - waiting[1])
            waiting, next_fault = None, now + moments.uniform(20, 90)
        if process.poll() is not None and not faults:
            raise SystemExit(f'training ended ({process.returncode}) before any fault, see {out}/soak.log')
        if process.poll() is not None:
            faults[-1]['exit_code'] = process.returncode
            process, starts = start(out, 'soak', 100_000, 0.05), starts + 1
        elif waiting is None and now > next_fault and end - now > 60 and all(below(rank) for rank in ranks) and ranks:
            left = left or moments.sample(FAULTS, len(FAULTS))
            fault = left.pop()
            waiting = lines_of_training(out), now
            do(fault, process, out, moments)
            faults.append(dict(second=round(now - begin), fault=fault))
            print(f'{now - begin:5.0f} s: {fault}', flush=True)
    process.terminate()
    if process.wait() != 75:
        raise SystemExit(f'exit code {process.returncode} after SIGTERM, see {out}/soak.log')
    quiet = [sum(s['processes']) for s in samples if minutes * 10 < s['second'] < minutes * 20]
    if max(quiet) > 1.05 * quiet[0]:
        raise SystemExit(f'memory grew in the second half of the quiet part: {quiet[0]} -> {max(quiet)} MB')
    return dict(minutes=minutes, seed=seed, starts=starts, faults=faults, memory=samples)


def compare(out: Path) -> dict:
    """Train to the same epoch without faults, and compare the checkpoints."""
    last = max((out / 'soak').glob('epoch_*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    epochs = int(last.stem.split('_')[1])
    code = start(out, 'undisturbed', epochs, 0.0).wait()
    if code:
        raise SystemExit(f'the undisturbed training failed ({code}), see {out}/undisturbed.log')
    one, two = load_file(last), load_file(out / 'undisturbed' / last.name)
    names = ('state_dict', 'optimizer', 'param_schedulers')
    return dict(
        epochs=epochs, iterations=one['meta']['iter'], equal_tensors=sum(same(one[n], two[n], n) for n in names),
        skipped_steps=[c['message_hub']['runtime_info']['skipped_steps'] for c in (one, two)],
    )  # fmt: skip


def draw(result: dict, path: Path) -> None:
    """Plot memory over time."""
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    panel = figure.subplots()
    for name, color in (('processes', 'C0'), ('workers', 'C1')):
        points = [(s['second'] / 60, value) for s in result['memory'] for value in s[name] if value > 0]
        panel.plot(*zip(*points), '.', markersize=2, color=color, label=name)
    panel.plot(
        [s['second'] / 60 for s in result['memory']], [s['launcher'] for s in result['memory']], 'C2', label='launcher'
    )
    for fault in result['faults']:
        panel.axvline(fault['second'] / 60, color='red', alpha=0.4, linewidth=0.8)
    panel.plot([], [], color='red', alpha=0.4, label='faults')
    panel.set(xlabel='minutes', ylabel='resident memory, MB', ylim=(0, None))
    panel.legend(loc='lower left', ncols=4)
    panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path, help=f'folder of at least {IMAGES} images')
    parser.add_argument('out', type=Path, help='new folder')
    parser.add_argument('--minutes', type=float, default=30)
    parser.add_argument('--seed', type=int, default=0, help='of the moments and the order of the faults')
    args = parser.parse_args()
    out = args.out.resolve()
    prepare(args.images, out)
    result: dict[str, Any] = dict(date=str(date.today()), machine=hardware())
    result |= soak(out, args.minutes, args.seed)
    result['compared'] = compare(out)
    (out / 'soak.json').write_text(json.dumps(result))
    draw(result, out / 'soak.png')
    print(json.dumps({name: value for name, value in result.items() if name != 'memory'}, indent=1))


if __name__ == '__main__':
    main()
