"""A folder of labelled images."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_labelled(root: Path, train: dict[str, int], val: dict[str, int], side: int = 40) -> Path:
    """Noise of a colour for each class, so that classes are separable: files 0.png, 1.png ... in each folder."""
    rng = np.random.default_rng(0)
    for split, counts in (('train', train), ('val', val)):
        for number, (name, count) in enumerate(sorted(counts.items())):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 180, (side, side + 8, 3), dtype=np.uint8)
                image[..., number % 3] += 60
                Image.fromarray(image).save(folder / f'{i}.png')
    return root
