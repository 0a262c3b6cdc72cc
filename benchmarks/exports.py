r"""Measure exported files beside torch: docs/results/export.json, for the tables of docs/export.md.

Run it from the repository's root, with a trained model and images that it was not trained on:

  python -m benchmarks.exports --model results/train_finetuned/model.pt \
    --images data/raw/test/images --data "the model and the images in words"
  make docs-numbers

The page is measured only if playwright and chromium are installed.
"""

import argparse
import io
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import describe
from lesionseg.errors import ExportError, exit_status
from lesionseg.export.command import Exported, Material, Settings, export_model, read_material
from lesionseg.export.gate import Agreement
from lesionseg.export.origin import read_origin
from lesionseg.export.page import render_page
from lesionseg.export.precision import PRECISIONS
from lesionseg.export.runtime import VERSION, load_runtime
from lesionseg.files import write_bytes, write_json
from lesionseg.hardware import make_deterministic
from lesionseg.inference.predictor import Predictor, load_network

logger = logging.getLogger(__name__)
STORE = Path("docs/results/export.json")
THRESHOLD = 0.5
# Height and width in pixels, JPEG quality: photographs as from cameras, with subsampled colours.
LARGE = ((767, 1022, 92), (3000, 4000, 92))
NUM_LARGE = 10
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "pillow", "numpy")
Mask = NDArray[np.bool_]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write docs/results/export.json."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="a model.pt")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="of JPEGs")
    parser.add_argument("--data", required=True, help="what model and images are, in words")
    arguments = parser.parse_args(argv)
    make_deterministic()
    machine = describe()
    about = {
        "date": machine["date"][:10],
        "commit": machine["commit"],
        "data": arguments.data,
        "machine": f"{machine['cpu']}, {machine['num_cores']} cores, load average before "
        f"{machine['load_average']:.1f}",
        "source": "python -m benchmarks.exports",
    }
    for found in measure(arguments.model, arguments.images):
        write_json(STORE, {"about": about, **found})


def measure(model_path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The values measured so far, yielded again after each further measurement."""
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".jpg")
    _, image_size = load_network(model_path, stage="train_finetuned")
    material = read_material(paths, image_size=image_size)
    found: dict[str, Any] = {
        "versions": {
            **{name: metadata.version(name) for name in PACKAGES},
            "onnxruntime-web": VERSION,
        },
        "num_images": len(paths),
        "onnx": {},
        "page": {},
    }
    pages = {}
    for name in PRECISIONS:
        try:
            exported = _export(model_path, material, name)
        except ExportError as error:
            found["onnx"][name] = {"refused": error.problem}
            continue
        found["onnx"][name] = {
            "megabytes": len(exported.onnx) / 1e6,
            "agreement": _values(exported.agreement),
        }
        logger.info("onnx %s: %s", name, exported.agreement)
        if name != "int8":  # it gains speed, but not in a page
            pages[name] = render_page(exported.onnx, exported.metadata, load_runtime())
    yield found
    torch.set_num_threads(1)  # the browser works at the same time
    for name, html in pages.items():
        images = _measure_page(html, model_path, paths, found["versions"])
        if images:
            found["page"][name] = {"megabytes": len(html) / 1e6, "images": images}
        yield found


def _export(model_path: Path, material: Material, precision: str) -> Exported:
    network = load_network(model_path, stage="train_finetuned")
    settings = Settings(precision=precision, threshold=THRESHOLD)
    return export_model(network, read_origin(model_path), settings, material)


def _values(agreement: Agreement) -> dict[str, Any]:
    return {
        "num_pixels": agreement.num_pixels,
        "differing": int(agreement.differing.sum()),
        "at_most": int(agreement.differing.max()),
        "jaccard": float(agreement.jaccard.mean()),
        "least_jaccard": float(agreement.jaccard.min()),
    }


def _measure_page(
    html: bytes, model_path: Path, paths: Sequence[Path], versions: dict[str, str]
) -> dict[str, Any]:
    """The page's masks beside those of predict, at the images' own sizes; {} without a browser.

    Args:
        html: The page.
        model_path: The model for predict.
        paths: Paths of JPEGs.
        versions: The browser's version is added here.
    """
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder, _opened(html, Path(folder)) as page:
        if page is None:
            logger.warning("the page is left out: it needs playwright and chromium")
            return {}
        versions["chromium"] = page.context.browser.version
        predictor = Predictor.load(model_path, device="cpu")
        found["as they are"] = _compare(page, predictor, paths)
        for height, width, quality in LARGE:
            enlarged = list(_enlarge(paths[:NUM_LARGE], Path(folder), (height, width), quality))
            found[f"enlarged to {width} x {height}"] = _compare(page, predictor, enlarged)
    return found


@contextmanager
def _opened(html: bytes, folder: Path) -> Iterator[Any]:
    """The page in a browser, ready to use; None if there is no browser."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser_path = None
    if browser_path is None:
        yield None
        return
    write_bytes(folder / "segment.html", html)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(accept_downloads=True)
        page.set_default_timeout(600_000)
        page.goto((folder / "segment.html").as_uri())
        page.wait_for_selector("html.ready")
        yield page
        browser.close()


def _compare(page: Any, predictor: Predictor, paths: Sequence[Path]) -> dict[str, Any]:
    """How well the masks of one batch of files agree, and how long the page took."""
    differing, jaccards, times, num_pixels = [], [], [], 0
    for path, probability in zip(paths, predictor.predict_encoded(paths), strict=True):
        ours = probability > THRESHOLD
        theirs, milliseconds = _segment(page, path)
        union = int((ours | theirs).sum())
        differing.append(int((ours != theirs).sum()))
        jaccards.append(float((ours & theirs).sum() / union) if union else 1.0)
        times.append(milliseconds)
        num_pixels += ours.size
    found = {
        "num_images": len(paths),
        "num_pixels": num_pixels,
        "differing": sum(differing),
        "at_most": max(differing),
        "jaccard": float(np.mean(jaccards)),
        "least_jaccard": min(jaccards),
        "milliseconds": median(times),
    }
    logger.info("page: %s", found)
    return found


def _segment(page: Any, path: Path) -> tuple[Mask, int]:
    """The page's mask for a file, and the milliseconds it took; the page's card is then removed."""
    page.locator("#files").set_input_files(str(path))
    card = page.locator(f'.card[data-name="{path.stem}"]')
    card.wait_for()
    with page.expect_download() as download:
        card.locator("button.mask").click()
    with Image.open(io.BytesIO(download.value.path().read_bytes())) as image:
        mask = np.asarray(image) == 255
    milliseconds = int(card.get_attribute("data-milliseconds"))
    card.locator("button.remove").click()
    return mask, milliseconds


def _enlarge(
    paths: Sequence[Path], folder: Path, size: tuple[int, int], quality: int
) -> Iterator[Path]:
    """The images as JPEGs of another size (H, W)."""
    for path in paths:
        new = folder / f"{path.stem}_{size[1]}.jpg"
        with Image.open(path) as image:
            large = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        large.save(new, quality=quality, subsampling="4:2:0")
        yield new


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
