"""The registered model behind `mlflow models serve`: JSON in, masks and probabilities out.

MLflow loads this module by its name from the copy of the package beside the model, and calls
`_load_pyfunc` once. docs/serving.md has requests and answers.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from lesionseg.errors import DataError
from lesionseg.hardware import make_deterministic
from lesionseg.inference.decoding import problem_of
from lesionseg.inference.payloads import (
    PILLOW_PIXELS,
    count_pixels,
    mask_png,
    probability_png,
    read_base64,
    to_text,
)
from lesionseg.inference.predictor import Predictor

Pixels = NDArray[np.uint8]
Answer = dict[str, str | int | float]

# Of all images of a request together. Pillow takes a single image with more for a decompression
# bomb; a few hundred bytes can declare any size, and the answer has the declared size.
MAX_PIXELS = PILLOW_PIXELS


class ServedModel:
    """The object that MLflow calls for each request, from several threads at a time."""

    def __init__(self, predictor: Predictor, *, threshold: float) -> None:
        self._predictor = predictor
        self._threshold = threshold

    def predict(self, data: pd.DataFrame) -> list[Answer]:
        """An answer for each row.

        Each image goes through the network alone, so that not even the rounding of its
        probabilities depends on what else is in the request.

        Args:
            data: Each row has either `image`, the base64 text of a JPEG or PNG file, or `array`,
                (H, W, 3) whole numbers in [0, 255], RGB, as nested lists or an array.

        Raises:
            MlflowException: A row is anything else; the server answers 400 with the message.
        """
        try:
            images = _read_rows(data)
            return [self._answer(image, number) for number, image in enumerate(images)]
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _answer(self, image: bytes | Pixels, number: int) -> Answer:
        if isinstance(image, bytes):
            stream = io.BytesIO(image)
            stream.name = f"row {number}:"  # messages begin with it
            try:
                (probability,) = self._predictor.predict_encoded([stream])
            except DataError as error:
                raise DataError(problem_of(error)) from None
        else:
            (probability,) = self._predictor.predict([image])
        return answer(probability, threshold=self._threshold)


def answer(probability: NDArray[np.float32], *, threshold: float) -> Answer:
    """The server's answer for an image.

    Args:
        probability: (H, W) float32 in [0, 1] at the image's own size.
        threshold: A pixel is lesion above this probability, in (0, 1).

    Returns:
        `mask`, base64 of an 8-bit grey PNG, 255 in the lesion and 0 elsewhere; `probability`,
        base64 of a 16-bit grey PNG whose levels are 65535 times the probability; `height` and
        `width` in pixels; `lesion_fraction`, the mask's share of the image in [0, 1].
    """
    mask = probability > threshold
    height, width = mask.shape
    return {
        "mask": to_text(mask_png(mask)),
        "probability": to_text(probability_png(probability)),
        "height": height,
        "width": width,
        "lesion_fraction": float(mask.mean()),
    }


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedModel:
    """The model in a `model.pt`; MLflow looks for a function of this name."""
    threshold = float((model_config or {}).get("threshold", 0.5))
    make_deterministic()  # as in `lesionseg predict`, for the same numbers
    return ServedModel(Predictor.load(Path(path)), threshold=threshold)


def _read_rows(data: pd.DataFrame) -> list[bytes | Pixels]:
    """The images of a request, those in files still encoded, after checking their size.

    Raises:
        DataError: A row, or the whole request, has no image, or there are too many pixels.
    """
    if data.empty:
        raise DataError('no images. Send {"dataframe_records": [{"image": "<base64>"}]}')
    rows = data.to_dict("records")
    images = [_read_row(row, number) for number, row in enumerate(rows)]
    num_pixels = sum(_count_pixels(image, number) for number, image in enumerate(images))
    if num_pixels > MAX_PIXELS:
        raise DataError(
            f"a request may hold {MAX_PIXELS} pixels in all its images, got {num_pixels}. "
            "Send fewer or smaller images"
        )
    return images


def _read_row(row: Mapping[Any, Any], number: int) -> bytes | Pixels:
    # A missing cell is None, or NaN if other rows have it.
    given = {
        name: value
        for name in ("image", "array")
        if not ((value := row.get(name)) is None or value is pd.NA or isinstance(value, float))
    }
    if len(given) != 1:
        raise DataError(
            f"row {number}: must have either image (base64 text) or array (numbers), "
            f"got {' and '.join(given) or 'neither'}"
        )
    if "array" in given:
        return _read_array(given["array"], number)
    if not isinstance(text := given["image"], str):
        raise DataError(f"row {number}: image must be base64 text, got {type(text).__name__}")
    return read_base64(text, where=f"row {number}: ")


def _read_array(values: object, number: int) -> Pixels:
    expected = f"row {number}: array must be (height, width, 3) whole numbers from 0 to 255"
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        raise DataError(f"{expected}, got rows of unequal lengths") from None
    if array.dtype.kind not in "iu":
        raise DataError(f"{expected}, got {array.dtype}")
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(f"{expected}, got the shape {array.shape}")
    if array.min() < 0 or array.max() > 255:
        raise DataError(f"{expected}, got {array.min()} to {array.max()}")
    return array.astype(np.uint8)


def _count_pixels(image: bytes | Pixels, number: int) -> int:
    """Height times width, for a file as declared in its header."""
    if not isinstance(image, bytes):
        return int(image.shape[0] * image.shape[1])
    return count_pixels(image, where=f"row {number}: ")
