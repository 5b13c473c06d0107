"""The two reference models, trained on handwritten digits. Both take pixels already normalised to [-1, 1].

A model function of `pipeline.yaml` returns a `keras.Model`. It is given what its parameters ask for by name: `data`,
`seed`, and `progress(done, total)` to be called as the training goes on.
"""

import keras
import numpy as np
from keras import layers

from launchpad.export.data import Dataset, Progress

BATCH_SIZE = 128


def dense(data: Dataset, seed: int, progress: Progress) -> keras.Model:
    """784-128-dropout-10: input float32 [None, 784], output probabilities float32 [None, 10]."""
    model = keras.Sequential(
        [
            keras.Input((784,), name="pixels"),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.2, seed=seed),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits_mlp",
    )
    return _train(model, data, progress, epochs=12)


def conv(data: Dataset, seed: int, progress: Progress) -> keras.Model:
    """A small convolutional net: input float32 [None, 28, 28, 1], output probabilities float32 [None, 10]."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="pixels"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3, seed=seed),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits_cnn",
    )
    return _train(model, data, progress, epochs=6)


def _train(model: keras.Model, data: Dataset, progress: Progress, epochs: int) -> keras.Model:
    """Fit on the training digits and their one-pixel shifts, normalised to [-1, 1] in the shape the model takes."""
    shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    shifted = np.concatenate([np.roll(data.x_train, shift, axis=(1, 2)) for shift in shifts])
    pixels = ((shifted.astype("float32") - 127.5) / 127.5).reshape(-1, *model.input_shape[1:])
    labels = np.tile(data.y_train, len(shifts))
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * (len(pixels) // BATCH_SIZE + 1))
    model.compile(optimizer=keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy")
    report = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: progress(epoch + 1, epochs))
    model.fit(pixels, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0, callbacks=[report])
    return model
