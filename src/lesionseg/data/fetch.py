"""Files from the network: checked, resumed where they broke off, refused if the disk is full."""

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock
from tqdm import tqdm

from lesionseg.errors import DownloadError
from lesionseg.files import check_free_space, full_disk_is_an_error

TIMEOUT_SECONDS = (10, 60)  # to connect, and between two pieces of the body
RETRY_SECONDS = 2.0
CHUNK_BYTES = 1 << 16

logger = logging.getLogger(__name__)


def fetch(urls: Sequence[str], path: Path, *, md5: str = "", sha256_prefix: str = "") -> None:
    """Make sure that `path` exists with the right checksum, downloading it if it is missing.

    The hosts are tried in turn, each once more if the connection breaks off. What has arrived stays
    in `NAME.part` beside `path`, and the next call goes on from there. One process at a time
    downloads a file.

    Args:
        urls: Where the same bytes are available.
        path: Where they go.
        md5: Their MD5 as hex digits.
        sha256_prefix: Or the first hex digits of their SHA-256.

    Raises:
        DownloadError: The existing file has a wrong checksum, or no host gave the right file.
        DiskSpaceError: The disk cannot hold it.
    """
    assert bool(md5) != bool(sha256_prefix)
    algorithm, expected = ("md5", md5) if md5 else ("sha256", sha256_prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")), full_disk_is_an_error(path.parent):
        if not path.exists():
            _download(urls, path, algorithm=algorithm, expected=expected)
        elif (got := _digest(path, algorithm, expected)) != expected:
            raise DownloadError(
                f"{path} must have {algorithm} {expected}, got {got}. "
                "Delete it and run the same command again to download it anew"
            )


class _WrongChecksumError(Exception):
    """The download is complete, but its bytes are wrong."""


def _download(urls: Sequence[str], path: Path, *, algorithm: str, expected: str) -> None:
    """Take `path` from the first host that has the right bytes."""
    part = path.with_name(f"{path.name}.part")
    failures = []
    for url in urls:
        logger.info("Downloading %s", url)
        try:
            _complete(url, part, algorithm=algorithm, expected=expected)
        except (requests.RequestException, _WrongChecksumError) as error:
            failures.append(f"{urlsplit(url).netloc}: {_reason(error)}")
        else:
            part.replace(path)
            return
    raise DownloadError(
        f"{path.name} could not be downloaded ({'; '.join(failures)}). "
        f"Run the same command again, or put the file into {path.parent} yourself"
    )


def _complete(url: str, part: Path, *, algorithm: str, expected: str) -> None:
    """Append what `part` lacks; retry once if the host broke off or earlier bytes were wrong."""
    resumed = part.exists()
    try:
        _append(url, part)
        _check(part, algorithm=algorithm, expected=expected)
    except (requests.RequestException, _WrongChecksumError) as error:
        if isinstance(error, _WrongChecksumError) and not resumed:
            raise
        time.sleep(RETRY_SECONDS)
        _append(url, part)
        _check(part, algorithm=algorithm, expected=expected)


def _append(url: str, part: Path) -> None:
    """Append the bytes of `url` that `part` lacks."""
    num_present = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if num_present:
        headers["Range"] = f"bytes={num_present}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left to fetch; the checksum decides
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            num_present = 0  # a server without ranges sends everything again
        num_missing = int(response.headers.get("Content-Length", 0))
        check_free_space(part.parent, num_missing)
        with (
            part.open("ab" if num_present else "wb") as stream,
            tqdm(
                desc=part.stem,
                initial=num_present,
                total=num_present + num_missing,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as progress,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                stream.write(chunk)
                progress.update(len(chunk))


def _check(part: Path, *, algorithm: str, expected: str) -> None:
    """Return if `part` has the checksum; else delete it and raise."""
    got = _digest(part, algorithm, expected)
    if got != expected:
        part.unlink()
        raise _WrongChecksumError(f"{algorithm} must be {expected}, got {got}")


def _digest(path: Path, algorithm: str, expected: str) -> str:
    """The file's checksum, cut to as many hex digits as `expected` has."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()[: len(expected)]


def _reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, _WrongChecksumError):
        return str(error)
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    return type(error).__name__
