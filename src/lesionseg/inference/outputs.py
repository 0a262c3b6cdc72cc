"""The outputs for an image: its mask, and on request an overlay, probabilities and contours."""

import csv
import errno
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lesionseg.errors import DataError
from lesionseg.files import write_bytes
from lesionseg.inference.contours import to_csv, to_geojson
from lesionseg.inference.payloads import mask_png, probability_png
from lesionseg.inference.sources import (
    ENDINGS,
    SUMMARY,
    SUMMARY_COLUMNS,
    Source,
    has_summary,
)
from lesionseg.outlines import count_regions, find_regions


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A row of summary.csv.

    Attributes:
        file: The image's file.
        height: Height of the image in pixels, as a viewer shows it.
        width: Likewise.
        lesion_pixels: Pixels of the mask.
        lesion_fraction: Their share of the image, in [0, 1].
        num_regions: 4-connected pieces of the mask.
        mean_probability: Over the pixels of the mask; None if there are none.
        touches_border: Whether the mask reaches the image's edge, so the lesion may extend beyond.
    """

    file: str
    height: int
    width: int
    lesion_pixels: int
    lesion_fraction: float
    num_regions: int
    mean_probability: float | None
    touches_border: bool


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What to write, and where.

    Attributes:
        out_dir: The folder of all outputs.
        threshold: A pixel is lesion above this probability, in (0, 1).
        overlay: Whether to write the image with the mask's outlines.
        probability: Whether to write the probabilities.
        contours: `geojson`, `csv` or None for no contours.
    """

    out_dir: Path
    threshold: float = 0.5
    overlay: bool = False
    probability: bool = False
    contours: str | None = None

    def paths(self, source: Source) -> dict[str, Path]:
        """The files written for an image, by the name of the output."""
        wanted = {
            "mask": "mask",
            **({"overlay": "overlay"} if self.overlay else {}),
            **({"probability": "probability"} if self.probability else {}),
            **({"contours": self.contours} if self.contours else {}),
        }
        return {name: self.out_dir / f"{source.id}{ENDINGS[kind]}" for name, kind in wanted.items()}

    def prepare(self, sources: Sequence[Source]) -> None:
        """Make the folder of all outputs, with a summary.csv by which later calls recognise it.

        Raises:
            DataError: It cannot be written to, an output would replace one of the images, or the
                summary would replace a file that is not ours.
        """
        images = {os.path.realpath(source.path) for source in sources}
        for source in sources:
            for path in self.paths(source).values():
                if os.path.realpath(path) in images:
                    raise DataError(
                        f"{path} is an image to predict on, and would be replaced by the output "
                        f"for {source.path}. Choose another folder with --out"
                    )
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            if not os.access(self.out_dir, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not has_summary(self.out_dir):
                self._require_no_file(SUMMARY)
                self.write_summary([])
        except OSError as error:
            raise DataError(
                f"{self.out_dir} cannot be written to ({error.strerror}). "
                "Choose another folder with --out"
            ) from error

    def _require_no_file(self, name: str) -> None:
        if os.path.lexists(self.out_dir / name):
            raise DataError(
                f"{self.out_dir / name} is not from lesionseg predict, and would be replaced. "
                "Choose another folder with --out"
            )

    def write_summary(self, summaries: Iterable[Summary]) -> None:
        """Write summary.csv; without images, only its header.

        Raises:
            OSError: It cannot be written.
        """
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, fieldnames=SUMMARY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, summaries))
        _write(self.out_dir / SUMMARY, stream.getvalue().encode())

    def write(self, source: Source, probability: NDArray[np.float32]) -> Summary:
        """Write all outputs of an image; the summary of its mask.

        Args:
            source: The image.
            probability: (H, W) float32 in [0, 1] at the image's own size.

        Raises:
            DataError: The image cannot be read again for its overlay.
            OSError: A file cannot be written.
        """
        mask = probability > self.threshold
        size = mask.shape
        paths = self.paths(source)
        # As in `evaluate`, and in the ISIC challenge's format.
        _write(paths["mask"], mask_png(mask))
        if self.probability:
            _write(paths["probability"], probability_png(probability))
        if self.overlay or self.contours:
            regions = find_regions(mask)
        if self.overlay:
            from lesionseg.inference.overlay import draw_regions  # takes half a second

            overlay = draw_regions(source.path, regions, size=size)
            _write(paths["overlay"], _to_jpeg(overlay))
        if self.contours == "geojson":
            _write(paths["contours"], to_geojson(regions, name=source.name, size=size))
        if self.contours == "csv":
            _write(paths["contours"], to_csv(regions))
        return summarise(mask, probability, name=source.name)


def summarise(mask: NDArray[np.bool_], probability: NDArray[np.float32], *, name: str) -> Summary:
    """The numbers of a mask.

    Args:
        mask: (H, W) bool.
        probability: (H, W) float32 in [0, 1].
        name: Name of the image's file.
    """
    height, width = mask.shape
    lesion_pixels = int(np.count_nonzero(mask))  # twenty times as fast as a sum
    mean = float(probability[mask].mean(dtype=np.float64)) if lesion_pixels else None
    return Summary(
        file=name,
        height=height,
        width=width,
        lesion_pixels=lesion_pixels,
        lesion_fraction=round(lesion_pixels / mask.size, 6),
        num_regions=count_regions(mask),
        mean_probability=mean if mean is None else round(mean, 4),
        touches_border=bool(mask[[0, -1]].any() or mask[:, [0, -1]].any()),
    )


def _to_jpeg(image: Image.Image) -> bytes:
    """The image's file, in memory: Pillow's error for a full disk does not name the file."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=90)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, and never in place of a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    write_bytes(path, content)
