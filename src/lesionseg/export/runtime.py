"""onnxruntime for browsers, in a fixed version: fetched once with npm, and checked by its hash."""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import ExportError
from lesionseg.files import write_bytes

NAME = "onnxruntime-web"
VERSION = "1.30.0"
# Of the package's file, as npm writes hashes; MIT licence.
INTEGRITY = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8p"
    "ZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
# A module that runs networks on one thread of the processor, and its WebAssembly.
_SCRIPT = "package/dist/ort.wasm.bundle.min.mjs"
_WASM = "package/dist/ort-wasm-simd-threaded.wasm"
_SECONDS = 600.0  # for 33 MB


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a page needs to run networks.

    Attributes:
        script: A JavaScript module.
        wasm: The WebAssembly that it loads.
    """

    script: str
    wasm: bytes


def load_runtime() -> Runtime:
    """The runtime, from the cache or else from npm's registry.

    Raises:
        ExportError: It cannot be fetched, or is not the tested file.
    """
    path = cached_path()
    if not path.exists():
        write_bytes(path, _fetch())
    if integrity(path.read_bytes()) != INTEGRITY:
        raise ExportError(
            f"{path} is not {NAME} {VERSION}: its SHA-512 differs",
            remedy="Remove it and run the same command again",
        )
    with tarfile.open(path) as package:
        script, wasm = (_read(package, name) for name in (_SCRIPT, _WASM))
    return Runtime(script=script.decode(), wasm=wasm)


def cached_path() -> Path:
    """Where the package's file is kept."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "lesionseg" / f"{NAME}-{VERSION}.tgz"


def integrity(content: bytes) -> str:
    """The hash of a package's file, as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def _fetch() -> bytes:
    """The package's file by npm, with npm's own settings."""
    remedy = f"Or put the file {NAME}-{VERSION}.tgz of npm's registry at {cached_path()}"
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(
            f"npm, which fetches {NAME} once, is missing", remedy=f"Install Node.js. {remedy}"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{NAME}@{VERSION}", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS
            )
            problem = _problem_of(done)
        except subprocess.TimeoutExpired:
            problem = f"no answer in {_SECONDS:.0f} s"
        files = list(Path(folder).glob("*.tgz"))
        if problem or not files:
            raise ExportError(
                f"npm cannot fetch {NAME} {VERSION} ({problem or 'it left no file'})",
                remedy=f"Look at: npm ping. {remedy}",
            )
        return files[0].read_bytes()


def _problem_of(done: "subprocess.CompletedProcess[str]") -> str:
    """What went wrong according to npm, "" if nothing did."""
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[0] if lines else f"exit status {done.returncode}"


def _read(package: tarfile.TarFile, name: str) -> bytes:
    stream = package.extractfile(name)
    assert stream is not None  # the hash has been checked
    return stream.read()
