"""MLflow's model registry: the trained models as versions, one of which is the champion.

`mlflow models serve -m models:/lesionseg@champion` serves what is registered here.
"""

import base64
import csv
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

import lesionseg
from lesionseg.config import RUNS
from lesionseg.errors import (
    DataError,
    DownloadError,
    LesionsegError,
    MissingFileError,
    TrackingError,
)
from lesionseg.files import project_root, read_json, require, sha256
from lesionseg.tracking import runs, store
from lesionseg.tracking.card import (
    NUMBER,
    PARAMS,
    RECORDED,
    SHOWN,
    Facts,
    Kinds,
    knows,
    write_card,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model, ModelSignature

NAME, ALIAS = "lesionseg", "champion"
# What serving imports, and not all that training does. A test compares it with the imports.
REQUIREMENTS = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "tqdm")
DEFAULT_THRESHOLD = 0.5  # of a model that was not evaluated, as of `lesionseg predict`
_SCOPES = ("test", "test_own_size")
_KINDS = {str: "text", int: "a whole number", NUMBER: "a number", dict: "an object"}
_LOCK_SECONDS = 120  # some registrations by others
_MODEL_FILE = "data/model.pt"  # where `mlflow.pyfunc.save_model` puts it


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What `register` did.

    Attributes:
        version: The model's number in the registry.
        is_new: Whether it was not there before.
        message: What happened to the version and to the champion, in one line.
    """

    version: int
    is_new: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered model.

    Attributes:
        version: Its number.
        run: Its name in `RUNS`.
        decoder: The decoder's name.
        val_jaccard: The score that decides who is champion.
        test_jaccard: At the network's size; None if it was not evaluated before.
        model_sha256: Of its model.pt.
        data_sha256: Of the index of its training images.
        is_champion: Whether it is served.
    """

    version: int
    run: str
    decoder: str
    val_jaccard: float
    test_jaccard: float | None
    model_sha256: str
    data_sha256: str
    is_champion: bool


def register(results_dir: Path = Path("results")) -> Registration:
    """Make the better of the trained models a version, and the champion if it is one.

    A model that is registered already gives no second version, and does not move the champion: it
    may have been moved by hand since.

    Args:
        results_dir: Holds `<run>/{model.pt,metrics.json,run.json}`, and `evaluate/` or not.

    Raises:
        MissingFileError: No model has been trained, or one of its files is not there.
        DataError: The files are broken, or of different trainings.
        DownloadError: The registry cannot be reached.
    """
    facts = read_facts(results_dir)
    with _of_this_version(results_dir / "evaluate"):  # its scores; all else has been checked
        tags, card = _make_tags(facts), write_card(facts)
    with _open_registry() as (client, experiment_id):
        before = _list_versions(client)
        same = [row for row in before if row.model_sha256 == facts.model_sha256]
        if same:
            version, done = same[0].version, "is registered already as"
        else:
            model_path = results_dir / facts.run / "model.pt"
            version = _create(client, experiment_id, facts, model_path, tags=tags, card=card)
            done = "is now"
        champion = next((row for row in before if row.is_champion), None)
        verdict = _choose_champion(client, version, facts, champion, is_new=not same)
    return Registration(
        version=version,
        is_new=not same,
        message=f"{facts.run} ({facts.model_sha256:.12}) {done} version {version}; {verdict}",
    )


def list_versions() -> list[Version]:
    """All registered models, the first one first.

    Raises:
        DownloadError: The registry cannot be reached.
    """
    with _open_registry() as (client, _):
        return _list_versions(client)


def promote(version: int) -> str:
    """Make a version the champion by hand; what happened, in one line.

    Raises:
        MissingFileError: There is no such version.
        DownloadError: The registry cannot be reached.
    """
    with _open_registry() as (client, _):
        rows = _list_versions(client)
        numbers = [row.version for row in rows]
        if version not in numbers:
            known = f"there are {', '.join(map(str, numbers))}" if numbers else "there is none"
            raise MissingFileError(
                f"version {version} of {NAME} is not registered, {known}. "
                "Run: lesionseg champion, which lists all"
            )
        before = next((row.version for row in rows if row.is_champion), None)
        client.set_registered_model_alias(NAME, ALIAS, str(version))
    if before in (None, version):
        return f"champion is version {version}"
    return f"champion is version {version}, no longer version {before}"


def show(versions: Sequence[Version]) -> str:
    """The versions as a table for the terminal."""
    if not versions:
        return f"no version of {NAME} is registered. Run: lesionseg register\n"
    head = ("version", "run", "decoder", "val jaccard", "test jaccard", "model sha256", "")
    rows = [
        (
            *(str(row.version), row.run, row.decoder, f"{row.val_jaccard:.4f}"),
            "-" if row.test_jaccard is None else f"{row.test_jaccard:.4f}",
            row.model_sha256[:12],
            ALIAS if row.is_champion else "",
        )
        for row in versions
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines) + "\n"


def download_model(uri: str) -> Path:
    """The file of a registered model, which is checked against the hash in its tags.

    Args:
        uri: `models:/lesionseg@champion`, or `models:/lesionseg/3`.

    Raises:
        MissingFileError: There is no such model.
        DataError: The address cannot be, or the file is not what was registered.
        DownloadError: The registry cannot be reached.
    """
    address = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not address:
        raise DataError(
            f"{uri} is no address of a registered model. Write models:/{NAME}@{ALIAS} or "
            f"models:/{NAME}/1"
        )
    with _open_registry() as (client, _):
        found = _find_version(client, *address.groups(), uri=uri)
        path = _fetch(client, found)
    expected = found.tags.get("model_sha256")
    if expected and sha256(path) != expected:
        raise DataError(
            f"{path} is not the model that was registered, its SHA-256 is not {expected:.12}.... "
            f"Take another version; lesionseg champion lists all"
        )
    return path


def read_facts(results_dir: Path) -> Facts:
    """What is known about the trained model with the larger val jaccard.

    Raises:
        MissingFileError: No model has been trained, or one of its files is not there.
        DataError: The files are broken, or of different trainings.
    """
    trained = [run for run in RUNS if (results_dir / run / "metrics.json").exists()] or RUNS[-1:]
    val = {run: _read_val(results_dir / run, run) for run in trained}
    run = max(trained, key=lambda run: val[run]["jaccard"])
    model_sha256 = sha256(require(results_dir / run / "model.pt", stage=run))
    evaluate_dir = results_dir / "evaluate"
    comparison = _read_comparison(evaluate_dir, run, model_sha256)
    return Facts(
        details=_read_details(results_dir / run, run, model_sha256),
        metrics={"val": val[run]},
        model_sha256=model_sha256,
        threshold=comparison["threshold"] if comparison else DEFAULT_THRESHOLD,
        comparison=comparison,
        strata=_read_strata(evaluate_dir, run, comparison) if comparison else [],
    )


def _read_details(folder: Path, run: str, model_sha256: str) -> dict[str, Any]:
    """What a training wrote down about itself and its data."""
    path = folder / "run.json"
    details = read_json(path, stage=run)
    if details.get("model_sha256") != model_sha256:
        raise DataError(
            f"{path} is about another model than {folder}/model.pt. "
            f"Run: dvc repro -sf {run} && dvc repro"
        )
    _check(path, details, RECORDED, stage=run)
    _check(path, details["params"], PARAMS, stage=run, within="params: ")
    source = details["params"]["download.source"]
    if not knows(source):
        raise DataError(
            f"{path}: params: download.source is {source!r}, which this version of the program "
            "does not know. Register with the version that trained it"
        )
    return details


def _read_val(folder: Path, run: str) -> dict[str, float]:
    """The scores of a run's best epoch on the validation split.

    They are git's, and history.csv is DVC's, as the model is: it tells whether they belong to it.
    """
    path, history_path = folder / "metrics.json", folder / "history.csv"
    metrics = read_json(path, stage=run)
    _check(path, metrics, {"best_epoch": int, "val": dict}, stage=run)
    val: dict[str, float] = metrics["val"]
    _check(path, val, dict.fromkeys(SHOWN, NUMBER), stage=run, within="val: ")
    if not history_path.exists():
        return val
    row = {row.get("epoch"): row for row in _read_rows(history_path)}.get(
        str(metrics["best_epoch"])
    )
    if row is None or row.get("val_jaccard") != str(val["jaccard"]):
        raise DataError(
            f"{path} is of another training than {history_path}. Run: dvc checkout; dvc repro"
        )
    return val


def _read_comparison(evaluate_dir: Path, run: str, model_sha256: str) -> dict[str, Any] | None:
    """The content of comparison.json, None where it is not there or of another model."""
    path = evaluate_dir / "comparison.json"
    if not path.exists():
        return None
    comparison = read_json(path, stage="evaluate")
    _check(path, comparison, {"models": dict, "threshold": NUMBER}, stage="evaluate")
    return comparison if comparison["models"].get(run) == model_sha256 else None


def _read_strata(
    evaluate_dir: Path, run: str, comparison: Mapping[str, Any]
) -> list[dict[str, str]]:
    """The rows of strata.csv, none where it is not there; like history.csv it is DVC's."""
    path = evaluate_dir / "strata.csv"
    if not path.exists():
        return []
    rows = _read_rows(path)
    with _of_this_version(evaluate_dir):
        means = [float(row[f"{run}_jaccard"]) for row in rows if row["stratum"] == "all"]
        expected = comparison["test"]["jaccard"][run]
        if len(means) != 1 or not math.isclose(means[0], expected):
            raise DataError(
                f"{path} is of another evaluation than {path.with_name('comparison.json')}. "
                "Run: dvc checkout; dvc repro"
            )
    return rows


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none of what is no table."""
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        try:
            return list(csv.DictReader(stream))
        except csv.Error:
            return []


def _check(
    path: Path, found: Mapping[str, Any], kinds: Kinds, *, stage: str, within: str = ""
) -> None:
    """Raise DataError where a file of this or another version lacks what is to be told of it."""
    for key, kind in kinds.items():
        if key not in found:
            raise DataError(
                f"{path}: {within}{key} is missing; another version of this program wrote it. "
                f"Run: dvc repro -sf {stage} && dvc repro"
            )
        value = found[key]
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise DataError(
                f"{path}: {within}{key} must be {_KINDS[kind]}, got {str(value)!r:.60}. "
                f"Run: dvc repro -sf {stage} && dvc repro"
            )


@contextmanager
def _open_registry() -> "Iterator[tuple[MlflowClient, str]]":
    """A client of the registry and the experiment's id; one process at a time holds it.

    What goes wrong in MLflow ends as an error of one line.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    folder = project_root() / "mlruns"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not the lock of `connect`, which is taken and given back inside.
        with FileLock(folder / ".registry.lock", timeout=_LOCK_SECONDS):
            yield store.connect()
    except TrackingError as error:
        name = store.current().name
        raise DownloadError(
            f"the model registry at {name} cannot be used: {error.problem}",
            remedy=error.mend and f"{error.mend} run the same command again",
        ) from error
    except LesionsegError:
        raise
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        remedy = "Start the server, or unset MLFLOW_TRACKING_URI" if uri else "See mlruns/"
        raise DownloadError(
            f"the model registry at {uri or folder} cannot be used ({reason}). {remedy}"
        ) from error


@contextmanager
def _of_this_version(evaluate_dir: Path) -> Iterator[None]:
    """A block in which what cannot be made of the scores is said of their files, in one line."""
    try:
        yield
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{evaluate_dir}/comparison.json or strata.csv was written by another version of this "
            f"program ({reason}). Run: dvc repro -sf evaluate && dvc repro"
        ) from error


def _list_versions(client: "MlflowClient") -> list[Version]:
    registered = client.search_registered_models(f"name = '{NAME}'")
    champion = registered[0].aliases.get(ALIAS) if registered else None
    versions: list[Version] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{NAME}'", page_token=token)
        versions += [_to_version(found, champion) for found in page]
        token = page.token
        if not token:
            return sorted(versions, key=lambda row: row.version)


def _to_version(found: "ModelVersion", champion: str | None) -> Version:
    """A version as its tags say; somebody else may have registered one without them."""
    tags = found.tags
    return Version(
        version=int(found.version),
        run=tags.get("run", "?"),
        decoder=tags.get("decoder", "?"),
        val_jaccard=float(tags.get("val/jaccard", "nan")),
        test_jaccard=float(tags["test/jaccard"]) if "test/jaccard" in tags else None,
        model_sha256=tags.get("model_sha256", "?"),
        data_sha256=tags.get("data_sha256", "?"),
        is_champion=str(found.version) == str(champion),
    )


def _create(
    client: "MlflowClient",
    experiment_id: str,
    facts: Facts,
    model_path: Path,
    *,
    tags: Mapping[str, str],
    card: str,
) -> int:
    """Log the model, linked to the run that trained it if there is one, and make it a version."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run_id = runs.find_run(model_sha256=facts.model_sha256, quiet=True).run_id or None
    logged = client.create_logged_model(
        experiment_id,
        name=NAME,
        source_run_id=run_id,
        tags=dict(tags),
        params={key: str(value) for key, value in facts.details["params"].items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        described = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            run_id=run_id,
        )
        _save(target, model_path, described, threshold=facts.threshold)
        (target / "model_card.md").write_text(card, encoding="utf-8")
        client.log_model_artifacts(logged.model_id, str(target))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    if not client.search_registered_models(f"name = '{NAME}'"):
        client.create_registered_model(NAME, description="Where the lesion is in images of skin.")
    with _process_wide(client.tracking_uri):
        created = client.create_model_version(
            NAME,
            source=logged.artifact_location,
            run_id=run_id,
            tags=dict(tags),
            description=card,
            model_id=logged.model_id,
        )
    return int(created.version)


@contextmanager
def _process_wide(uri: str) -> Iterator[None]:
    """A database looks a version's model up in the process-wide store, whatever the client's is."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # and the variable
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _make_tags(facts: Facts) -> dict[str, str]:
    """What a version is found and compared by. Scores are called as in the runs: `val/jaccard`."""
    details = facts.details
    tags = {key: str(details[key]) for key in ("run", "commit", "data_sha256")}
    tags |= {"decoder": details["params"]["model.decoder"], "model_sha256": facts.model_sha256}
    tags |= {f"val/{name}": str(value) for name, value in facts.metrics["val"].items()}
    for scope in _SCOPES if facts.comparison else ():
        scores = (facts.comparison or {})[scope]
        for name, score in scores.items():
            tags[f"{scope}/{name}"] = str(score[facts.run])
            tags[f"{scope}/{name}_interval"] = json.dumps(score[f"{facts.run}_interval"])
    return tags


def _save(target: Path, model_path: Path, described: "Model", *, threshold: float) -> None:
    """Write the folder that MLflow serves.

    The package goes along: the server needs `REQUIREMENTS`, and not this project, and a version
    keeps the code it was registered with.
    """
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        target,
        loader_module="lesionseg.tracking.served",
        data_path=str(model_path),
        code_paths=[str(Path(lesionseg.__file__).parent)],
        mlflow_model=described,
        pip_requirements=pin_requirements(),
        signature=make_signature(),
        input_example=make_example(),
        model_config={"threshold": threshold},
    )


def make_signature() -> "ModelSignature":
    """What goes in and out.

    `array` is of any type for MLflow, whose check of nested lists takes a minute for a photograph;
    `ServedModel` checks it in milliseconds. Both columns are optional for the same reason: MLflow
    answers 500 where one is missing, as if the server were at fault.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "image", required=False),
                ColSpec(AnyType(), "array", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "mask"),
                ColSpec(DataType.string, "probability"),
                ColSpec(DataType.long, "height"),
                ColSpec(DataType.long, "width"),
                ColSpec(DataType.double, "lesion_fraction"),
            ]
        ),
    )


def make_example() -> Any:
    """A request as a table with one row: a drawn lesion, 96 by 128 pixels, as a JPEG."""
    import pandas as pd
    from PIL import Image, ImageDraw

    drawn = Image.new("RGB", (128, 96), (222, 184, 165))
    ImageDraw.Draw(drawn).ellipse((40, 24, 88, 72), fill=(96, 60, 48))
    stream = io.BytesIO()
    drawn.save(stream, format="JPEG", quality=90)
    return pd.DataFrame({"image": [base64.b64encode(stream.getvalue()).decode("ascii")]})


def pin_requirements() -> list[str]:
    """`REQUIREMENTS` at the versions that are installed, without a build's name such as `+cpu`.

    Given to MLflow, which would otherwise load the model in another process to find them out.
    """
    versions = {name: metadata.version(name).partition("+")[0] for name in REQUIREMENTS}
    return [f"{name}=={version}" for name, version in versions.items()]


def _choose_champion(
    client: "MlflowClient", version: int, facts: Facts, champion: Version | None, *, is_new: bool
) -> str:
    """Move the alias if the version earns it; what happened, as half a line."""
    score = facts.metrics["val"]["jaccard"]
    if champion is None:
        client.set_registered_model_alias(NAME, ALIAS, str(version))
        return f"champion is version {version}, the first one (val jaccard {score:.4f})"
    if champion.version == version:
        return f"champion is version {version} (val jaccard {score:.4f})"
    other = f"{champion.val_jaccard:.4f}"
    if champion.data_sha256 != facts.details["data_sha256"]:
        other += ", on other data"
    # A champion that somebody registered without a score (NaN) gives way.
    if is_new and not score <= champion.val_jaccard:
        client.set_registered_model_alias(NAME, ALIAS, str(version))
        return (
            f"champion is version {version} (val jaccard {score:.4f}), no longer version "
            f"{champion.version} ({other})"
        )
    return (
        f"champion stays version {champion.version} (val jaccard {other}; this one "
        f"{score:.4f}). To change it: lesionseg champion --set {version}"
    )


def _find_version(
    client: "MlflowClient", name: str, alias: str | None, version: str | None, *, uri: str
) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise MissingFileError(
                f"{uri} is not registered. Run: lesionseg register, or lesionseg champion, which "
                "lists all versions"
            ) from None
        raise


def _fetch(client: "MlflowClient", found: "ModelVersion") -> Path:
    """The path of a version's model.pt: where it lies, or for a server's a copy in mlruns/."""
    from mlflow.artifacts import download_artifacts

    location = client.get_model_version_download_uri(found.name, found.version)
    folder = None
    if not location.startswith("file:"):
        folder = project_root() / "mlruns/downloads" / f"{found.name}-{found.version}"
        folder.mkdir(parents=True, exist_ok=True)
    path: str = download_artifacts(
        artifact_uri=f"{location}/{_MODEL_FILE}",
        dst_path=folder and str(folder),
        tracking_uri=client.tracking_uri,
    )
    return Path(path)
