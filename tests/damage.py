"""Files as a full disk, a crash or a slip leaves them."""

from pathlib import Path

# Python loads sitecustomize.py in every process that has its folder in PYTHONPATH. The event is
# raised before a file takes its place: whoever writes the second checkpoint is killed.
KILL_AT_SECOND_CHECKPOINT = """
import os, signal, sys
found = []
def hook(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("checkpoint.pt"):
        found.append(event)
        if len(found) == 2:
            os.kill({process}, signal.SIGKILL)
sys.addaudithook(hook)
"""
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


def kill_at_second_checkpoint(folder: Path, *, with_group: bool = False) -> None:
    """Let a process die whose PYTHONPATH has the folder, alone or with all of its group."""
    process = "0" if with_group else "os.getpid()"
    (folder / "sitecustomize.py").write_text(KILL_AT_SECOND_CHECKPOINT.format(process=process))
