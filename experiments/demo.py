"""Run the whole pipeline on synthetic lesions, in the folder .demo/: `make demo`.

The same dvc.yaml, stages and package, with a params.yaml of its own: nothing of the project's own
data, results, runs or lock file is touched, and nothing is downloaded.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lesionseg.errors import LesionsegError, exit_status
from lesionseg.files import write_bytes
from lesionseg.new.create import SYNTHETIC, with_values
from lesionseg.processes import child_environment, run_to_end, stopped_like_ctrl_c
from lesionseg.results.evaluation import Comparison
from lesionseg.results.layout import Results

ROOT = Path(__file__).resolve().parents[1]
DVC = (sys.executable, "-m", "dvc")
COPIED = ("dvc.yaml", ".dvcignore", "stages", "src")


def main(argv: Sequence[str] | None = None) -> None:
    """Copy the pipeline, run it, print its comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo",
        description=__doc__,
        epilog="Example: python -m experiments.demo --dir /tmp/demo",
    )
    parser.add_argument("--dir", type=Path, default=ROOT / ".demo", help="where the demo runs")
    demo_dir = parser.parse_args(argv).dir.resolve()
    copy_pipeline(demo_dir)
    environment = child_environment()  # the demo keeps its runs to itself
    if not (demo_dir / ".dvc").exists():
        command = [*DVC, "init", "--quiet", "--no-scm"]
        subprocess.run(command, cwd=demo_dir, env=environment, check=True)
    with stopped_like_ctrl_c():
        status = run_to_end([*DVC, "repro"], cwd=demo_dir, environment=environment)
    if status:
        raise LesionsegError(
            f"the demo stopped; what it says is above, its files are in {demo_dir}"
        )
    sys.stdout.write(comparison_table(demo_dir))


def copy_pipeline(demo_dir: Path) -> None:
    """Bring the demo's copy of the pipeline up to date; its data and results stay."""
    demo_dir.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source, target = ROOT / name, demo_dir / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copyfile(source, target)
    params = with_values((ROOT / "params.yaml").read_text(encoding="utf-8"), SYNTHETIC)
    write_bytes(demo_dir / "params.yaml", params.encode())


def comparison_table(demo_dir: Path) -> str:
    """Both models side by side on the test split, and where the report is."""
    results = Results(demo_dir / "results")
    comparison = Comparison.read(results.evaluation)
    lines = [
        "",
        f"{comparison.num_images} synthetic test images, mean per image, encoders from scratch",
        f"{'':17}{'frozen':>8}{'fine-tuned':>12}{'difference':>12}   "
        f"{100 * comparison.confidence:g} % interval",
    ]
    for metric, row in comparison.test.items():
        low, high = row.interval
        lines.append(
            f"{metric:17}{row.train_frozen:8.3f}{row.train_finetuned:12.3f}"
            f"{row.difference:+12.3f}   {low:+.3f} to {high:+.3f}"
        )
    return "\n".join([*lines, "", f"Open the report: {results.report}", ""])


if __name__ == "__main__":
    sys.exit(exit_status(main))
