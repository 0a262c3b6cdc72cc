"""MLflow's model registry: the trained models as versions, one of which is the champion.

`mlflow models serve -m models:/lesionseg@champion` serves what is registered here.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from lesionseg.errors import (
    DataError,
    DownloadError,
    LesionsegError,
    MissingFileError,
    TrackingError,
)
from lesionseg.files import project_root, sha256
from lesionseg.results.layout import Results
from lesionseg.results.vocabulary import SCOPES
from lesionseg.tracking import packaging, runs, store
from lesionseg.tracking.card import Facts, read_facts, write_card

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

NAME, ALIAS = "lesionseg", "champion"
_LOCK_SECONDS = 120  # enough for several registrations by others


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What `register` did.

    Attributes:
        version: The model's number in the registry.
        is_new: Whether the version is new.
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
        val_jaccard: The score that decides which version is the champion.
        test_jaccard: Jaccard at the network's size; None if not evaluated before registration.
        model_sha256: SHA-256 of its model.pt.
        data_sha256: SHA-256 of the index of its training images.
        commit: Commit of the code that trained it.
        is_champion: Whether it is the champion, the version to serve.
    """

    version: int
    run: str
    decoder: str
    val_jaccard: float
    test_jaccard: float | None
    model_sha256: str
    data_sha256: str
    commit: str
    is_champion: bool


def register(results: Results) -> Registration:
    """Make the better of the trained models a version, and the champion if it is better.

    A model that is already registered gives no second version, and does not move the champion,
    which may have been moved by hand since.

    Args:
        results: Holds at least one training, and perhaps an evaluation.

    Raises:
        MissingFileError: No model has been trained, or one of its files is missing.
        DataError: The files are damaged, or from different trainings.
        DownloadError: The registry cannot be reached.
    """
    facts = read_facts(results)
    model_sha256 = facts.record.model_sha256
    with _open_registry() as (client, experiment_id):
        before = _list_versions(client)
        same = [row for row in before if row.model_sha256 == model_sha256]
        if same:
            version, done = same[0].version, "is registered already as"
        else:
            model_path = results.training(facts.run).model
            version = _create(client, experiment_id, facts, model_path)
            done = "is now"
        champion = next((row for row in before if row.is_champion), None)
        verdict = _choose_champion(client, version, facts, champion, is_new=not same)
    return Registration(
        version=version,
        is_new=not same,
        message=f"{facts.run} ({model_sha256:.12}) {done} version {version}; {verdict}",
    )


def list_versions() -> list[Version]:
    """All registered models, the oldest first.

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


def download_model(uri: str) -> Path:
    """The file of a registered model, checked against the hash in its tags.

    Args:
        uri: `models:/lesionseg@champion`, or `models:/lesionseg/3`.

    Raises:
        MissingFileError: There is no such model.
        DataError: The address is invalid, or the file is not what was registered.
        DownloadError: The registry cannot be reached.
    """
    with _open_registry() as (client, _):
        found = _find_version(client, uri)
        path = _fetch(client, found, packaging.MODEL_FILE)
    expected = found.tags.get("model_sha256")
    if expected and sha256(path) != expected:
        raise DataError(
            f"{path} is not the model that was registered, its SHA-256 is not {expected:.12}.... "
            f"Take another version; lesionseg champion lists all"
        )
    return path


def read_threshold(uri: str) -> float:
    """The threshold with which a registered model's masks are made, in (0, 1).

    Args:
        uri: As for `download_model`.

    Raises:
        LesionsegError: As for `download_model`.
    """
    from mlflow.models import Model

    with _open_registry() as (client, _):
        path = _fetch(client, _find_version(client, uri), "MLmodel")
    return packaging.read_threshold(Model.load(str(path)))


@contextmanager
def _open_registry() -> "Iterator[tuple[MlflowClient, str]]":
    """A client of the registry and the experiment's id, for one process at a time.

    Errors in MLflow become errors of one line.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    folder = project_root() / "mlruns"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not the lock of `connect`, which is acquired and released inside.
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
    """A version, from its tags, which versions registered by other means may lack."""
    tags = found.tags
    return Version(
        version=int(found.version),
        run=tags.get("run", "?"),
        decoder=tags.get("decoder", "?"),
        val_jaccard=float(tags.get("val/jaccard", "nan")),
        test_jaccard=float(tags["test/jaccard"]) if "test/jaccard" in tags else None,
        model_sha256=tags.get("model_sha256", "?"),
        data_sha256=tags.get("data_sha256", "?"),
        commit=tags.get("commit", "?"),
        is_champion=str(found.version) == str(champion),
    )


def _create(client: "MlflowClient", experiment_id: str, facts: Facts, model_path: Path) -> int:
    """Log the model, linked to the run that trained it if there is one, and make it a version."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    tags, card = _make_tags(facts), write_card(facts)
    model_sha256 = facts.record.model_sha256
    run_id = runs.find_run(model_sha256=model_sha256, quiet=True).run_id or None
    logged = client.create_logged_model(
        experiment_id,
        name=NAME,
        source_run_id=run_id,
        tags=tags,
        params={key: str(value) for key, value in facts.record.params.items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        described = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            run_id=run_id,
        )
        packaging.save(target, model_path, described, threshold=facts.threshold)
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
            tags=tags,
            description=card,
            model_id=logged.model_id,
        )
    return int(created.version)


@contextmanager
def _process_wide(uri: str) -> Iterator[None]:
    """A block with this store process-wide, as a database looks up models there, not in its own."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # also sets the variable
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _make_tags(facts: Facts) -> dict[str, str]:
    """Tags by which a version is found and compared. Scores are named as in runs: `val/jaccard`."""
    record = facts.record
    tags = {
        "run": record.run,
        "commit": record.commit,
        "data_sha256": record.data_sha256,
        "decoder": str(record.param("model.decoder")),
        "model_sha256": record.model_sha256,
        **{f"val/{name}": str(value) for name, value in facts.best.val.items()},
    }
    if facts.comparison:
        for scope in SCOPES:
            for name, score in facts.comparison.at(scope).items():
                interval = list(score.mean_interval(record.run))
                tags[f"{scope}/{name}"] = str(score.mean(record.run))
                tags[f"{scope}/{name}_interval"] = json.dumps(interval)
    return tags


def _choose_champion(
    client: "MlflowClient", version: int, facts: Facts, champion: Version | None, *, is_new: bool
) -> str:
    """Move the alias if the version earns it; what happened, as half a line."""
    score = facts.best.val["jaccard"]
    if champion is None:
        client.set_registered_model_alias(NAME, ALIAS, str(version))
        return f"champion is version {version}, the first one (val jaccard {score:.4f})"
    if champion.version == version:
        return f"champion is version {version} (val jaccard {score:.4f})"
    other = f"{champion.val_jaccard:.4f}"
    if champion.data_sha256 != facts.record.data_sha256:
        other += ", on other data"
    # A champion that was registered without a score (NaN) is replaced.
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


def _find_version(client: "MlflowClient", uri: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    address = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not address:
        raise DataError(
            f"{uri} is no address of a registered model. Write models:/{NAME}@{ALIAS} or "
            f"models:/{NAME}/1"
        )
    name, alias, version = address.groups()
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


def _fetch(client: "MlflowClient", found: "ModelVersion", name: str) -> Path:
    """The path of one of a version's files, for a server's version that of a copy in mlruns/."""
    from mlflow.artifacts import download_artifacts

    location = client.get_model_version_download_uri(found.name, found.version)
    folder = None
    if not location.startswith("file:"):
        folder = project_root() / "mlruns/downloads" / f"{found.name}-{found.version}"
        folder.mkdir(parents=True, exist_ok=True)
    path: str = download_artifacts(
        artifact_uri=f"{location}/{name}",
        dst_path=folder and str(folder),
        tracking_uri=client.tracking_uri,
    )
    return Path(path)
