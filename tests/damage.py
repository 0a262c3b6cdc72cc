"""Files as a full disk, a crash or a slip leaves them."""

from pathlib import Path

KINDS = ("empty", "binary", "text", "cut")


def damage(path: Path, kind: str) -> None:
    """Replace a file's content, of any kind of file, by a damaged one.

    A model or an array that is cut in the middle is no model or array any more; a table or a record
    is cut within its first line or key.
    """
    content = path.read_bytes()
    middle = len(content) // 2 if path.suffix in (".npy", ".pt", ".pth", ".png") else 5
    damaged = {
        "empty": b"",
        "binary": bytes(range(256)) * 8,
        "text": b"<html>\n<body>404, not found</body>\n",
        "cut": content[:middle],
    }
    path.unlink()  # it may be a link into DVC's cache
    path.write_bytes(damaged[kind])
