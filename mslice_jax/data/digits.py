"""Digits: 1,797 real handwritten digits, 8 x 8 grey pixels, part of scikit-learn.

The test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
1998). Small enough to train on a laptop within minutes, and no download.
"""

import numpy as np

from .dataset import DataError, Dataset, choose, pixel_statistics


def read(*, train_examples: int | None = None, seed: int = 0) -> Dataset:
    """The digits: 1,442 training and 355 test images, 8 x 8 x 1, uint8 in 0..16.

    Of each class, in stored order, every fifth image is a test image: a split that no
    seed changes, with the classes in the same proportion on both sides.

    Digits are cropped with one pixel of border and never mirrored.

    Raises:
      DataError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the data set digits comes with scikit-learn, which is not installed; "
            'run: pip install "mslice_jax[experiments]"'
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    x = pixels.reshape(-1, 8, 8, 1).astype(np.uint8)
    y = labels.astype(np.int32)
    test = _every_fifth(y)
    x_train, y_train = x[~test], y[~test]
    mean, std = pixel_statistics(x_train)
    chosen = choose(len(x_train), train_examples, seed=seed)
    return Dataset(
        name="digits",
        x_train=x_train[chosen],
        y_train=y_train[chosen],
        x_test=x[test],
        y_test=y[test],
        num_classes=10,
        mean=mean,
        std=std,
        pad=1,
        flip=False,
    )


def _every_fifth(labels: np.ndarray) -> np.ndarray:
    """True for every fifth example of each class."""
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[4::5]] = True
    return test
