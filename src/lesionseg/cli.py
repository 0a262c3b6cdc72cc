"""The command `lesionseg`: its arguments, its errors in one line, its exit status.

Only what parsing needs is imported here; each command imports what it needs when it runs.
"""

import argparse
import io
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lesionseg.errors import ConfigError, LesionsegError, MissingFileError, explain, rerun
from lesionseg.files import find_project

if TYPE_CHECKING:
    from lesionseg.inference.outputs import Summary
    from lesionseg.inference.pipeline import Skipped
    from lesionseg.inference.predictor import Predictor
    from lesionseg.inference.sources import Found, Source

DEFAULT_MODEL = "results/train_finetuned/model.pt"
MOST_IN_BATCH = 4096  # as in params.yaml: so many images are in memory at once
NUM_SHOWN = 10  # rows of the table at the terminal; summary.csv has all
OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

PREDICT = """Mark the lesion in images of any size: for each a mask at its own size.

PATH is an image, or a folder to search through all its levels for files ending in
{suffixes}
Hidden files are left out, links to folders are not followed. Outputs of earlier calls are left out
too: in DIR, and in any folder with a summary.csv as below, what is named as they are. Upright by
EXIF; grey, 16-bit, CMYK and transparent images are fine; of several frames the first is taken."""
OUTPUTS = """Written to DIR, in the folders in which the images lie; other files there stay:
  ID_segmentation.png    the mask, 8-bit, 0 and 255
  ID_overlay.jpg         with --overlay: the image with the mask's outline, at most 1024 px a side
  ID_probability.png     with --probability: 16-bit; grey level / 65535 is the probability
  ID_contours.geojson    with --contours geojson: a polygon for each region, holes cut out, with its
                         area in pixels; x and y in pixels from the upper left corner, y downwards
  ID_contours.csv        with --contours csv: the same corners as rows: region, ring (0 is the
                         outline, others are holes), x, y
  summary.csv            a row for each image of this call: size, lesion pixels and fraction,
                         regions, mean probability, whether the lesion touches the border
ID is the file's name without its ending, or with it where two images differ in nothing else.
Exit status: 0; 1 if anything failed, files that cannot be read or written being named at the end
and all others done; 2 for wrong arguments."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with the mistake in one line, the usage being a call away."""
        self.exit(MISUSED, f"error: {message}. Run: {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; the exit status.

    `LESIONSEG_DEBUG=1` shows tracebacks.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _make_parser().parse_args(argv)
        status: int = arguments.run(arguments)
    except (LesionsegError, OSError) as error:
        if os.environ.get("LESIONSEG_DEBUG"):
            raise
        sys.stderr.write(f"error: {_printable(explain(error))}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted. What is written is whole; run the same command again\n")
        return INTERRUPTED
    return status


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lesionseg", description="Skin-lesion segmentation.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_replay(commands)
    _add_register(commands)
    _add_champion(commands)
    return parser


def _add_replay(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "replay",
        help="bring the results on disk into MLflow",
        description="Bring the trainings, scores and report in results/ into MLflow, as a finished "
        "pipeline leaves them: after a server was away, or when results came from DVC's cache or "
        "a colleague. What is there already stays; run it as often as you like.",
    )
    parser.set_defaults(run=_replay)


def _add_register(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "register",
        help="put the better model into MLflow's registry",
        description="Register the model that is better on val as a version of lesionseg, with its "
        "signature, example, scores, data hash and model card. It becomes the champion if its val "
        "jaccard is above the champion's. The same model gives no second version.",
    )
    parser.set_defaults(run=_register)


def _require_project() -> None:
    """Refuse to work where there is no project, before anything is made there.

    Raises:
        MissingFileError: The working directory is not a project's root.
    """
    if not find_project():
        raise MissingFileError(
            f"{Path.cwd()} has no dvc.yaml and params.yaml. Run from the project's root, where "
            "both lie"
        )


def _require_store() -> None:
    """Like `_require_project`, unless the registry is not the project's own.

    Raises:
        MissingFileError: It is, and there is no project.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _require_project()


def _register(arguments: argparse.Namespace) -> int:  # noqa: ARG001  (has none)
    from lesionseg.tracking import registry

    _require_project()
    sys.stdout.write(registry.register(Path("results")).message + "\n")
    return OK


def _add_champion(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "champion", help="show the registered versions, or choose the one to serve"
    )
    parser.add_argument(
        "--set", type=int, metavar="VERSION", dest="version", help="make it the champion"
    )
    parser.set_defaults(run=_champion)


def _champion(arguments: argparse.Namespace) -> int:
    from lesionseg.tracking import registry

    _require_store()
    if arguments.version is not None:
        sys.stdout.write(registry.promote(arguments.version) + "\n")
    sys.stdout.write(registry.show(registry.list_versions()))
    return OK


def _replay(arguments: argparse.Namespace) -> int:  # noqa: ARG001  (has none)
    _require_project()
    from lesionseg.tracking.replay import replay

    num_runs = replay(Path("results"), Path("data/processed"))
    sys.stdout.write(f"{num_runs} runs in MLflow have all that results/ holds\n")
    return OK


def _add_predict(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from lesionseg.inference.sources import SUFFIXES

    parser = commands.add_parser(
        "predict",
        help="masks of images of any size",
        description=PREDICT.format(suffixes=" ".join(SUFFIXES)),
        epilog=OUTPUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image or folder")
    parser.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help="a model.pt, or models:/NAME@ALIAS of the MLflow registry; given several times, the "
        f"mean probability of all (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="where to write (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=_threshold,
        default=0.5,
        metavar="P",
        help="a pixel is lesion above this probability, in (0, 1) (default: %(default)s)",
    )
    parser.add_argument(
        "--tta",
        type=int,
        choices=[1, 2, 4, 8],
        default=1,
        dest="num_views",
        help="test-time augmentation: the mean probability over so many mirrored and turned views "
        "of the image, in as many times the work; 1 is off (default: %(default)s)",
    )
    parser.add_argument("--overlay", action="store_true", help="write overlays")
    parser.add_argument("--probability", action="store_true", help="write probabilities")
    parser.add_argument("--contours", choices=["geojson", "csv"], help="write contours")
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        default=32,  # that of `evaluate`, so that even the rounding of its sums is the same
        metavar="N",
        help="images in a forward pass (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="auto takes CUDA where there is one; or cpu, cuda, cuda:1 (default: %(default)s)",
    )
    parser.set_defaults(run=_predict)


def _threshold(text: str) -> float:
    value = _number(float, text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below 1, got '{text}'")
    return value


def _batch_size(text: str) -> int:
    value = _number(int, text)
    if not 1 <= value <= MOST_IN_BATCH:
        raise argparse.ArgumentTypeError(
            f"must be a whole number in [1, {MOST_IN_BATCH}], got '{text}'"
        )
    return int(value)


def _number(kind: Callable[[str], float], text: str) -> float:
    """The number a text says, NaN if none."""
    try:
        return kind(text)
    except ValueError:
        return math.nan


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:1, got '{text}'")
    return text


def _predict(arguments: argparse.Namespace) -> int:
    """Predict on all images; the exit status."""
    # What can be wrong without torch comes first: it takes seconds to load.
    from lesionseg.inference.sources import find_images

    found = find_images(arguments.paths, out_dir=arguments.out)
    model_paths = [_find_model(text) for text in arguments.model or [DEFAULT_MODEL]]
    # As in stages/__init__.py; libgomp reads it when torch loads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    summaries, skipped = _predict_all(found.sources, model_paths, arguments)
    if summaries:
        sys.stdout.write(_table(summaries, arguments.out))
    failures = [*found.unusable, *(item.reason for item in skipped)]
    sys.stderr.write(_remarks(found, failures))
    return FAILED if failures else OK


def _remarks(found: "Found", failures: Sequence[str]) -> str:
    """What was left out, and what failed, a line for each."""
    lines = []
    if found.num_left_out:
        lines.append(f"not images by their names, left out: {found.num_left_out}")
    if found.links:
        links = ", ".join(map(str, found.links[:NUM_SHOWN]))
        more = f" and {len(found.links) - NUM_SHOWN} more" if len(found.links) > NUM_SHOWN else ""
        lines.append(f"links to folders, not followed: {links}{more}")
    if failures:
        num_files = len(found.sources) + len(found.unusable)
        lines.append(f"error: {len(failures)} of {num_files} failed, all others are done:")
        lines += [f"  {reason}" for reason in failures]
    return "".join(f"{_printable(line)}\n" for line in lines)


def _printable(text: str) -> str:
    """A line as one line, whatever is in the names of files."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in text)


def _find_model(text: str) -> Path:
    """The file of a model that `--model` names.

    Raises:
        MissingFileError: It is not there.
    """
    if text.startswith("models:/"):
        _require_store()
        from lesionseg.tracking.registry import download_model

        return download_model(text)
    path = Path(text)
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises for a name that is too long)
        problem = "is no file" if os.path.lexists(path) else "is missing"
        raise MissingFileError(f"{path} {problem}", remedy=_remedy(path, is_there=False))
    return path


def _remedy(path: Path, *, is_there: bool = True) -> str:
    """What to do about a model's file: only the project's own comes from a stage."""
    if stage := _stage_of(path):
        command = rerun(stage) if is_there else f"dvc repro {stage}"
        return f"Run: {command}, or name another with --model"
    if find_project():
        return "Name another with --model"
    return "Name another with --model, or run from the project's root"


def _stage_of(path: Path) -> str | None:
    """The stage that makes a model's file, None where none does."""
    stages = [name for name in ("train_frozen", "train_finetuned") if name in path.parts]
    is_result = Path(os.path.realpath(path)).is_relative_to(os.path.realpath("results"))
    return stages[0] if stages and is_result and find_project() else None


def _predict_all(
    sources: "Sequence[Source]", model_paths: Sequence[Path], arguments: argparse.Namespace
) -> "tuple[list[Summary], list[Skipped]]":
    """Write the outputs of all images."""
    import contextlib
    import warnings

    from PIL.Image import DecompressionBombWarning
    from tqdm import tqdm

    from lesionseg.hardware import make_deterministic
    from lesionseg.inference.outputs import Outputs, Summary
    from lesionseg.inference.pipeline import Skipped, predict_files

    outputs = Outputs(
        out_dir=arguments.out,
        threshold=arguments.threshold,
        overlay=arguments.overlay,
        probability=arguments.probability,
        contours=arguments.contours,
    )
    if not sources:
        return [], []
    make_deterministic()
    predictor = _load_predictor(model_paths, arguments)
    outputs.prepare(sources)
    outcomes = predict_files(sources, predictor, outputs, batch_size=arguments.batch_size)
    with warnings.catch_warnings(), contextlib.closing(outcomes):
        # Pillow's remarks do not name the file. A photograph above 89 megapixels is no attack;
        # above 179 it is refused, by an error.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", DecompressionBombWarning)
        done = list(tqdm(outcomes, "predict", len(sources), unit="image", disable=None))
    summaries = [outcome for outcome in done if isinstance(outcome, Summary)]
    outputs.write_summary(summaries)
    return summaries, [outcome for outcome in done if isinstance(outcome, Skipped)]


def _load_predictor(model_paths: Sequence[Path], arguments: argparse.Namespace) -> "Predictor":
    """The models that the arguments name."""
    from lesionseg.inference.predictor import Predictor

    try:
        return Predictor.load(
            *model_paths,
            device=arguments.device,
            num_views=arguments.num_views,
            remedy_of=_remedy,
        )
    except ConfigError:
        raise ConfigError(f"--device {arguments.device} is not there. Write auto or cpu") from None


def _table(summaries: "Sequence[Summary]", out_dir: Path) -> str:
    """The first rows for the eye, and where all of them are."""
    shown = summaries[:NUM_SHOWN]
    names = [_printable(row.file) for row in shown]
    width = max(len("file"), *map(len, names))
    lines = [f"{'file':{width}}  {'height x width':>14}  {'lesion':>7}  {'regions':>7}"]
    for name, row in zip(names, shown, strict=True):
        size = f"{row.height} x {row.width}"
        lines.append(
            f"{name:{width}}  {size:>14}  {row.lesion_fraction:>7.1%}  {row.num_regions:>7}"
            + ("  touches the border" if row.touches_border else "")
        )
    if len(summaries) > len(shown):
        lines.append(f"... and {len(summaries) - len(shown)} more")
    num_empty = sum(row.lesion_pixels == 0 for row in summaries)
    empty = f", {num_empty} of them empty," if num_empty else ""
    lines.append(f"{len(summaries)} masks{empty} and summary.csv are in {_printable(str(out_dir))}")
    return "\n".join(lines) + "\n"
