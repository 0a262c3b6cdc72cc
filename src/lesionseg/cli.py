"""The command `lesionseg`: its arguments, one-line errors and exit status.

Only what parsing needs is imported here; each command imports what it needs when it runs.
"""

import argparse
import errno
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lesionseg.arguments import DEFAULT_MODEL, add_device, add_model, threshold, whole_number
from lesionseg.errors import (
    FAILED,
    MISUSED,
    OK,
    ConfigError,
    DataError,
    MissingFileError,
    exit_status,
    printable,
    repro,
    rerun,
)
from lesionseg.project import find_project

if TYPE_CHECKING:
    from lesionseg.export.origin import Origin
    from lesionseg.inference.outputs import Summary
    from lesionseg.inference.pipeline import Skipped
    from lesionseg.inference.predictor import Predictor
    from lesionseg.inference.sources import Found, Source
    from lesionseg.tracking.registry import Version

MOST_IN_BATCH = 4096  # as in params.yaml: a whole batch is in memory at once
NUM_SHOWN = 10  # rows of the table at the terminal; summary.csv has all

PREDICT = """Mark the lesion in images of any size: one mask per image, at the image's own size.

  lesionseg predict photos/ --overlay --contours geojson
  lesionseg predict lesion.jpg --tta 8 --out masks

PATH is an image, or a folder that is searched, with its subfolders, for files ending in
{suffixes}
Hidden files are skipped, and links to folders are not followed. Outputs of earlier calls are also
skipped: files with such names in DIR, and in any folder with a summary.csv as below. Images are
turned upright by EXIF; grey, 16-bit, CMYK and transparent ones are fine; of several frames, the
first is used."""
OUTPUTS = """Written to DIR, in the same subfolders as the images; other files there stay:
  ID_segmentation.png    the mask, 8-bit, 0 and 255
  ID_overlay.jpg         with --overlay: the image with the mask's outline, at most 1024 px a side
  ID_probability.png     with --probability: 16-bit; grey level / 65535 is the probability
  ID_contours.geojson    with --contours geojson: a polygon for each region, holes cut out, with its
                         area in pixels; x and y in pixels from the upper left corner, y downwards
  ID_contours.csv        with --contours csv: the same corners as rows: region, ring (0 is the
                         outline, others are holes), x, y
  summary.csv            a row for each image of this call: size, lesion pixels and fraction,
                         regions, mean probability, whether the lesion touches the border
ID is the file name without its extension, or with it where two images differ in nothing else.
Exit status: 0; 1 if anything failed: files that could not be read or written are listed at the
end, and all others are done; 2 for wrong arguments."""


SERVE = """Answer POST /predict and /mask with the mask of a JPEG or PNG image, sent as a form, as
base64 in JSON or as raw bytes. The page at / explains and demonstrates it. Ctrl-C stops the
server."""

NEW = """Write a project into a folder: params.yaml, dvc.yaml, the stages' scripts, and what DVC and
git need. It uses the code of the installed package. The folder becomes a git repository unless it
lies in one; files already there stay."""

COMPLETION = """Print a script that lets a shell complete commands, options and paths.

  lesionseg completion bash > ~/.local/share/bash-completion/completions/lesionseg
  lesionseg completion zsh > ~/.zfunc/_lesionseg"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with the mistake in one line that names --help, instead of printing the usage."""
        self.exit(MISUSED, f"error: {message}. Run: {self.prog} --help\n")


class _ShowVersion(argparse.Action):
    """Look up the version only when it is asked for: that takes a tenth of a second."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata

        sys.stdout.write(f"lesionseg {metadata.version('lesionseg')}\n")
        parser.exit(OK)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for names that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")

    def run() -> int:
        arguments = _make_parser().parse_args(argv)
        status: int = arguments.run(arguments)
        return status

    return exit_status(run, interrupted="What is written is whole; run the same command again")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lesionseg",
        description="Skin-lesion segmentation. More on a command: lesionseg COMMAND --help",
        epilog="Example: lesionseg predict photos/ --overlay",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_export(commands)
    _add_serve(commands)
    _add_trials(commands)
    _add_replay(commands)
    _add_ui(commands)
    _add_register(commands)
    _add_champion(commands)
    _add_new(commands)
    _add_doctor(commands)
    _add_completion(commands)
    return parser


def _add_new(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "new",
        help="write a project: the pipeline without the repository",
        description=NEW,
        epilog="Example: lesionseg new moles --synthetic",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="a new folder, or one without these files"
    )
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="synthetic lesions: minutes, and nothing is downloaded (default: ISIC 2016, 840 MB)",
    )
    parser.set_defaults(run=_new)


def _new(arguments: argparse.Namespace) -> int:
    from lesionseg.new.create import SYNTHETIC, create

    create(arguments.folder, values=SYNTHETIC if arguments.synthetic else {})
    enter = f"cd {shlex.quote(str(arguments.folder))} && "
    sys.stdout.write(
        f"{printable(str(arguments.folder))} is a project; its README.md says what is what. "
        f"Run: {'' if arguments.folder == Path() else enter}dvc repro\n"
    )
    return OK


def _add_doctor(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "doctor",
        help="check whether machine and project are ready, and say what to do if not",
        description="Check Python, packages, git, DVC, params.yaml, device, disk, data, the "
        "encoder's weights and MLflow's store: a line for each, with its remedy. Exit status: 0; 1 "
        "if something would stop dvc repro.",
        epilog="Example: lesionseg doctor",
    )
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:  # noqa: ARG001  (has none)
    _require_project()
    from lesionseg.doctor import examine

    num_errors = 0
    for name, found in examine():
        remedy = f". {found.remedy}" if found.remedy else ""
        sys.stdout.write(f"{found.level:6}{name:12}{printable(found.text + remedy)}\n")
        sys.stdout.flush()
        num_errors += found.level == "error"
    sys.stdout.write(f"{num_errors or 'no'} errors\n" if num_errors != 1 else "1 error\n")
    return FAILED if num_errors else OK


def _add_completion(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "completion",
        help="print a script for completion in the shell",
        description=COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=["bash", "zsh"], help="the shell to print it for")
    parser.set_defaults(run=_completion)


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    parser = _make_parser()
    _complete_paths(parser, shtab.FILE)
    sys.stdout.write(shtab.complete(parser, arguments.shell) + "\n")
    return OK


def _complete_paths(parser: argparse.ArgumentParser, how: object) -> None:
    """Mark the arguments of all commands that are paths, for shtab."""
    for action in parser._actions:
        if action.type is Path:
            vars(action)["complete"] = how
        elif isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, how)


def _add_trials(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from lesionseg.sweep.arguments import add_ablation, add_curve, add_sweep

    for name, add, about in (
        ("sweep", add_sweep, "try parameters, and find the best on val"),
        ("ablation", add_ablation, "train and score each configuration of a file"),
        ("curve", add_curve, "show how scores grow with the number of labels"),
    ):
        parser = commands.add_parser(name, help=about)
        add(parser)
        parser.set_defaults(run=_run_trials, command=name)


def _run_trials(arguments: argparse.Namespace) -> int:
    """Run trials, each logged as it ends; the exit status."""
    import logging

    _require_project()
    if arguments.command == "sweep":
        from lesionseg.sweep.sweep import run
    elif arguments.command == "ablation":
        from lesionseg.sweep.ablation import run
    else:
        from lesionseg.curve.experiment import run
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return exit_status(lambda: run(arguments))


def _add_replay(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "replay",
        help="bring the results on disk into MLflow",
        description="Bring the trainings, scores and report in results/ into MLflow, as a finished "
        "pipeline leaves them: after a server was away, or when results came from DVC's cache or "
        "a colleague. What is there already stays; run it as often as you like.",
        epilog="Example: lesionseg replay",
    )
    parser.set_defaults(run=_replay)


def _add_ui(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "ui",
        help="show the runs in MLflow's pages, until Ctrl-C",
        description="Serve MLflow's pages on this project's runs, and on those of make demo and "
        "make sweep if there are any, to this machine only. Links lead to the comparison of "
        "both models, to all pipeline runs and to the newest report. If MLFLOW_TRACKING_URI names "
        "a server, the links lead there.",
        epilog="Example: lesionseg ui --port 5001",
    )
    parser.add_argument(
        "--port",
        type=whole_number(1, 65535),
        default=5000,
        help="the first port to try (default: %(default)s)",
    )
    parser.set_defaults(run=_ui)


def _ui(arguments: argparse.Namespace) -> int:
    from lesionseg.tracking import pages

    _require_project()
    pages.show(Path.cwd(), port=arguments.port)
    return OK


def _add_register(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "register",
        help="put the better model into MLflow's registry",
        description="Register the model that is better on val as a version of lesionseg, with its "
        "signature, example, scores, data hash and model card. It becomes the champion if its val "
        "jaccard is above the champion's. The same model gives no second version.",
        epilog="Example: lesionseg register",
    )
    parser.set_defaults(run=_register)


def _require_project() -> None:
    """Refuse to work outside a project, before anything is created there.

    Raises:
        MissingFileError: The working directory is not a project's root.
    """
    if not find_project():
        raise MissingFileError(
            f"{Path.cwd()} has no dvc.yaml and params.yaml. Run from the project's root, where "
            "both lie"
        )


def _require_store() -> None:
    """Like `_require_project`, if the registry is the project's own.

    Raises:
        MissingFileError: The registry is the project's own, and there is no project.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _require_project()


def _register(arguments: argparse.Namespace) -> int:  # noqa: ARG001  (has none)
    from lesionseg.results.layout import Results
    from lesionseg.tracking import registry

    _require_project()
    sys.stdout.write(registry.register(Results()).message + "\n")
    return OK


def _add_champion(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "champion",
        help="show the registered versions, or choose the one to serve",
        epilog="Example: lesionseg champion --set 2",
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
    sys.stdout.write(_show_versions(registry.list_versions()))
    return OK


def _show_versions(versions: "Sequence[Version]") -> str:
    """The versions as a table for the terminal."""
    if not versions:
        return "no version of lesionseg is registered. Run: lesionseg register\n"
    head = ("version", "run", "decoder", "val jaccard", "test jaccard", "model sha256", "")
    rows = [
        (
            str(row.version),
            row.run,
            row.decoder,
            f"{row.val_jaccard:.4f}",
            "-" if row.test_jaccard is None else f"{row.test_jaccard:.4f}",
            row.model_sha256[:12],
            "champion" if row.is_champion else "",
        )
        for row in versions
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines) + "\n"


def _replay(arguments: argparse.Namespace) -> int:  # noqa: ARG001  (has none)
    _require_project()
    from lesionseg.results.layout import Results
    from lesionseg.tracking.replay import replay

    num_runs = replay(Results(), Path("data/processed"))
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
        type=threshold,
        metavar="P",
        help="a pixel is lesion above this probability, in (0, 1) (default: what the model was "
        "evaluated with, or else 0.5)",
    )
    parser.add_argument(
        "--tta",
        type=int,
        choices=[1, 2, 4, 8],
        default=1,
        dest="num_views",
        help="test-time augmentation: the mean probability over this many mirrored and turned "
        "views of the image, at that many times the cost; 1 is off (default: %(default)s)",
    )
    parser.add_argument("--overlay", action="store_true", help="write overlays")
    parser.add_argument("--probability", action="store_true", help="write probabilities")
    parser.add_argument("--contours", choices=["geojson", "csv"], help="write contours")
    parser.add_argument(
        "--batch-size",
        type=whole_number(1, MOST_IN_BATCH),
        default=32,  # as in `evaluate`, so that even the rounding of sums is the same
        metavar="N",
        help="images in a forward pass (default: %(default)s)",
    )
    add_device(parser)
    parser.set_defaults(run=_predict)


def _add_export(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from lesionseg.export.arguments import add_export

    parser = commands.add_parser("export", help="write a model as one file for other programs")
    add_export(parser)
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    """Write a file of the kind that the arguments name; the exit status."""
    from lesionseg.export.extra import require_packages

    require_packages()  # before the slow imports
    from lesionseg.export.command import run
    from lesionseg.hardware import make_deterministic
    from lesionseg.inference.predictor import load_network

    if arguments.out.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(arguments.out))
    path = _find_model(arguments.model)
    make_deterministic()
    network = load_network(path, stage="train_finetuned", remedy_of=_remedy)
    sys.stdout.write(run(arguments, network, _find_origin(arguments.model, path)))
    return OK


def _find_origin(text: str, path: Path) -> "Origin":
    """Where a model comes from, according to the registry or its run.json."""
    from lesionseg.export.origin import Origin, read_origin

    origin = read_origin(path)
    if not text.startswith("models:/"):
        return origin
    from lesionseg.tracking.registry import list_versions

    same = [row for row in list_versions() if row.model_sha256 == origin.model_sha256]
    if not same:
        return origin
    commit, data_sha256 = same[-1].commit, same[-1].data_sha256
    return Origin(model_sha256=origin.model_sha256, commit=commit, data_sha256=data_sha256)


def _add_serve(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "serve",
        help="answer requests for masks over HTTP",
        description=SERVE,
        epilog="Example: lesionseg serve --model models:/lesionseg@champion --port 8001",
    )
    add_model(parser)
    parser.add_argument(
        "--threshold",
        type=threshold,
        metavar="P",
        help="a pixel is lesion above this probability, in (0, 1) (default: the threshold that the "
        "model was evaluated with, or else 0.5)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s, this machine)")
    parser.add_argument(
        "--port", type=whole_number(0, 65535), default=8000, help="(default: %(default)s)"
    )
    for name, default, what in (
        ("--max-requests", 100, "requests waiting or being answered; any more get 429"),
        ("--max-megabytes", 20, "size of a request; three times this for all that wait"),
        ("--max-megapixels", 25, "size of an image"),
    ):
        parser.add_argument(
            name,
            type=whole_number(1, 10_000),
            default=default,
            metavar="N",
            help=f"{what} (default: %(default)s)",
        )
    add_device(parser)
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    """Answer requests until stopped; the exit status."""
    path = _find_model(arguments.model)  # before the slow imports
    from lesionseg.memory import return_freed_memory

    return_freed_memory()  # before any thread starts
    from lesionseg.files import sha256
    from lesionseg.hardware import make_deterministic
    from lesionseg.serving.app import make_app
    from lesionseg.serving.limits import Limits
    from lesionseg.serving.server import serve
    from lesionseg.serving.service import Served, Service

    limits = Limits(
        max_requests=arguments.max_requests,
        max_body=arguments.max_megabytes * 1_000_000,
        max_bytes=arguments.max_megabytes * 3_000_000,
        max_pixels=arguments.max_megapixels * 1_000_000,
    )
    make_deterministic()  # as in predict, so that the masks are the same
    predictor = _load_predictor([path], device=arguments.device)
    model_sha256 = sha256(path)
    served = Served(
        name=arguments.model,
        sha256=model_sha256,
        threshold=arguments.threshold or _find_threshold(arguments.model, model_sha256),
    )
    serve(
        make_app(Service(predictor, served, limits), limits),
        host=arguments.host,
        port=arguments.port,
        ready=lambda url: _say(f"{served.name} ({model_sha256:.12}) is served at {url}"),
    )
    return OK


def _find_threshold(text: str, model_sha256: str) -> float:
    """The threshold that a model was evaluated with, according to the registry or results/."""
    if text.startswith("models:/"):
        from lesionseg.tracking.registry import read_threshold

        return read_threshold(text)
    from lesionseg.inference.threshold import find_threshold
    from lesionseg.results.layout import Results

    return find_threshold(Results(), model_sha256=model_sha256)


def _say(line: str) -> None:
    """Write a line and flush it at once."""
    sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


def _predict(arguments: argparse.Namespace) -> int:
    """Predict on all images; the exit status."""
    # Checks that do not need torch come first: it takes seconds to load.
    from lesionseg.inference.sources import find_images

    found = find_images(arguments.paths, out_dir=arguments.out)
    names = arguments.model or [DEFAULT_MODEL]
    model_paths = [_find_model(text) for text in names]
    if arguments.threshold is None:
        arguments.threshold = _find_common_threshold(names, model_paths)
    summaries, skipped = _predict_all(found.sources, model_paths, arguments)
    if summaries:
        sys.stdout.write(_table(summaries, arguments.out))
    failures = [*found.unusable, *(item.reason for item in skipped)]
    sys.stderr.write(_remarks(found, failures))
    return FAILED if failures else OK


def _find_common_threshold(names: Sequence[str], model_paths: Sequence[Path]) -> float:
    """The threshold that all the models were evaluated with; one that is not usual is shown.

    Raises:
        DataError: They were evaluated with different ones.
    """
    from lesionseg.files import sha256
    from lesionseg.inference.threshold import DEFAULT_THRESHOLD

    found = {
        name: _find_threshold(name, sha256(path))
        for name, path in zip(names, model_paths, strict=True)
    }
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name}: {value:g}" for name, value in found.items())
        raise DataError(
            f"the models have different thresholds ({listed}). Choose one with --threshold"
        )
    threshold = found[names[0]]
    if threshold != DEFAULT_THRESHOLD:
        _say(f"threshold {threshold:g}, which the model was evaluated with")
    return threshold


def _remarks(found: "Found", failures: Sequence[str]) -> str:
    """What was left out and what failed, one line each."""
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
    return "".join(f"{printable(line)}\n" for line in lines)


def _find_model(text: str) -> Path:
    """The file of a model that `--model` names.

    Raises:
        MissingFileError: It is missing.
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
    """What to do about a model's file; only the project's own can be remade by a stage."""
    if stage := _stage_of(path):
        command = rerun(stage) if is_there else repro(stage)
        return f"Run: {command}, or name another with --model"
    if find_project():
        return "Name another with --model"
    return "Name another with --model, or run from the project's root"


def _stage_of(path: Path) -> str | None:
    """The stage that makes a model's file, None if no stage does."""
    stages = [name for name in ("train_frozen", "train_finetuned") if name in path.parts]
    is_result = Path(os.path.realpath(path)).is_relative_to(os.path.realpath("results"))
    return stages[0] if stages and is_result and find_project() else None


def _predict_all(
    sources: "Sequence[Source]", model_paths: Sequence[Path], arguments: argparse.Namespace
) -> "tuple[list[Summary], list[Skipped]]":
    """Write the outputs of all images."""
    import contextlib
    import warnings

    from lesionseg.memory import imported_for_good

    with imported_for_good():
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
    predictor = _load_predictor(model_paths, device=arguments.device, num_views=arguments.num_views)
    outputs.prepare(sources)
    outcomes = predict_files(sources, predictor, outputs, batch_size=arguments.batch_size)
    with warnings.catch_warnings(), contextlib.closing(outcomes):
        # Pillow's warnings do not name the file. A photograph above 89 megapixels is no attack;
        # above 179 it is refused with an error.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", DecompressionBombWarning)
        done = list(tqdm(outcomes, "predict", len(sources), unit="image", disable=None))
    summaries = [outcome for outcome in done if isinstance(outcome, Summary)]
    outputs.write_summary(summaries)
    return summaries, [outcome for outcome in done if isinstance(outcome, Skipped)]


def _load_predictor(model_paths: Sequence[Path], *, device: str, num_views: int = 1) -> "Predictor":
    """The models that the arguments name."""
    from lesionseg.inference.predictor import Predictor

    try:
        return Predictor.load(
            *model_paths,
            device=device,
            num_views=num_views,
            remedy_of=_remedy,
        )
    except ConfigError:
        raise ConfigError(f"--device {device} is not there. Write auto or cpu") from None


def _table(summaries: "Sequence[Summary]", out_dir: Path) -> str:
    """The first rows as a table for the terminal, and where all of them are."""
    shown = summaries[:NUM_SHOWN]
    names = [printable(row.file) for row in shown]
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
    lines.append(f"{len(summaries)} masks{empty} and summary.csv are in {printable(str(out_dir))}")
    return "\n".join(lines) + "\n"
