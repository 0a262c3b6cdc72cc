"""PH2: 200 dermoscopic images of Hospital Pedro Hispano, Matosinhos, with masks; no splits.

Its licence requires a request, so each user has to get it themselves: as PH2Dataset.rar, from
https://www.fc.up.pt/addi/ph2%20database.html. Images and masks are BMP of about 768 x 560 pixels.

Mendonca et al. 2013, "PH2 - A dermoscopic image database for research and benchmarking",
doi:10.1109/EMBC.2013.6610779.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from lesionseg.data.archives import File, walk
from lesionseg.data.pairs import Pair, again, listed
from lesionseg.errors import DataError, MissingFileError

NUM_IMAGES = 200
LAYOUT = "IMD002/IMD002_Dermoscopic_Image/IMD002.bmp and IMD002/IMD002_lesion/IMD002_lesion.bmp"
_ARCHIVES = r"PH2.*\.zip"
_IMAGE = re.compile(r"(?:.*/)?(IMD\d+)_Dermoscopic_Image/\1\.\w+", re.IGNORECASE)
_MASK = re.compile(r"(?:.*/)?(IMD\d+)_lesion/\1_lesion\.\w+", re.IGNORECASE)

logger = logging.getLogger(__name__)


def list_ph2(roots: Sequence[Path]) -> list[Pair]:
    """The pairs of PH2, sorted by id, from the first of some places that has it.

    Args:
        roots: Folders that hold PH2 as it was unpacked, at any depth, or as a zip file `PH2*.zip`;
            or such a zip file.

    Raises:
        MissingFileError: No place has it.
        DataError: A zip file is damaged, or an image has no mask or a mask no image.
    """
    for root in roots:
        files = walk(root, archives=_ARCHIVES)
        images, masks = _by_id(_IMAGE, files), _by_id(_MASK, files)
        if images or masks:
            break
    else:
        packed = [path for root in roots for path in _find_rar(root)]
        remedy = f"Unpack {packed[0]}" if packed else f"Unpack PH2Dataset.rar into {roots[0]}"
        raise MissingFileError(
            f"PH2 is in none of {', '.join(map(str, roots))}: there must be {LAYOUT} and so on, in "
            f"a folder or in PH2Dataset.zip. {remedy}, {again()}"
        )
    if lonely := sorted(images.keys() ^ masks.keys()):
        raise DataError(
            f"{root}: PH2 has {len(images)} images and {len(masks)} masks; no image or no mask for "
            f"{listed(lonely)}. There must be {LAYOUT}. Add what is missing, {again()}"
        )
    if len(images) != NUM_IMAGES:
        logger.warning("WARNING: %s: PH2 has %d images, got %d", root, NUM_IMAGES, len(images))
    return [
        Pair(id=id_, image=images[id_], mask=masks[id_], split="train") for id_ in sorted(images)
    ]


def _by_id(pattern: re.Pattern[str], files: Sequence[File]) -> dict[str, File]:
    """Id -> the first file whose path matches a pattern."""
    found: dict[str, File] = {}
    for file in files:
        if match := pattern.fullmatch(file.as_posix() if isinstance(file, Path) else file.at):
            found.setdefault(match[1].upper(), file)
    return found


def _find_rar(root: Path) -> list[Path]:
    """Archives that Python cannot unpack."""
    candidates = [root] if root.is_file() else root.glob("*.rar")
    return sorted(path for path in candidates if path.suffix.lower() == ".rar")
