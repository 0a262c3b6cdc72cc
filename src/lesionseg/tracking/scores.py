"""Which results are metrics of a run in MLflow; all others are in its artefacts, as files.

A set of test images is one entry of `test_sets`, which determines what is logged for both models
and their pipeline run.
"""

from collections.abc import Iterator
from pathlib import Path

from lesionseg.results.evaluation import TABLES, Comparison, SeedsCompared, rows_of
from lesionseg.results.layout import RUNS, EvaluationFiles, Results
from lesionseg.results.vocabulary import RUN_LABELS

TEST = "test"
MAIN = "jaccard"
METRICS = (MAIN, "dice")  # of a model, on each set


def test_sets(results: Results) -> dict[str, EvaluationFiles]:
    """The sets that both models are scored on, by the first part of their metrics' names."""
    external = results.evaluation.externals()
    return {
        TEST: results.evaluation,
        **{f"external/{name}": files for name, files in external.items()},
    }


def training_scores(run: str, results: Results) -> dict[str, float]:
    """A model's main numbers, those of its first seed.

    `test/jaccard`, its interval `test/jaccard_low` and `_high`, and `test_own_size/jaccard`.

    Args:
        run: One of `RUNS`.
        results: Holds the evaluation.
    """
    logged: dict[str, float] = {}
    for name, files in test_sets(results).items():
        comparison = Comparison.read(files)
        main = comparison.test[MAIN]
        logged |= _with_interval(f"{name}/{MAIN}", main.mean(run), main.mean_interval(run))
        logged |= {f"{name}/{metric}": comparison.test[metric].mean(run) for metric in METRICS}
        logged[f"{name}_own_size/{MAIN}"] = comparison.test_own_size[MAIN].mean(run)
    return logged


def seed_scores(run: str, seed: int, results: Results) -> dict[str, float]:
    """The same numbers for a training with another seed, for which there are no intervals."""
    logged: dict[str, float] = {}
    for name, files in test_sets(results).items():
        seeds = TABLES["seeds"].read(files.table("seeds"))
        scopes = {name: ("test", METRICS), f"{name}_own_size": ("test_own_size", (MAIN,))}
        for label, (scope, metrics) in scopes.items():
            rows = rows_of(seeds, run, scope)
            for row in rows[rows["seed"] == seed].to_dict("records"):
                logged |= {f"{label}/{metric}": float(row[metric]) for metric in metrics}
    return logged


def pipeline_scores(results: Results) -> dict[str, float]:
    """The main numbers of a pipeline run.

    `difference/jaccard`, fine-tuned minus frozen, its interval `difference/jaccard_low` and
    `_high`, and both models' `frozen/jaccard` and `fine-tuned/jaccard`; for sets other than test,
    prefixed with the set's name. With several seeds also `seeds/difference/jaccard`, the mean over
    seeds, its standard deviation, and the number of seeds in which the fine-tuned model is better.
    """
    logged: dict[str, float] = {}
    for name, files in test_sets(results).items():
        comparison, prefix = Comparison.read(files), "" if name == TEST else f"{name}/"
        main = comparison.test[MAIN]
        logged |= _with_interval(f"{prefix}difference/{MAIN}", main.difference, main.interval)
        for run in RUNS:
            logged |= {
                f"{prefix}{RUN_LABELS[run]}/{metric}": comparison.test[metric].mean(run)
                for metric in METRICS
            }
        if comparison.seeds:
            logged |= _over_seeds(comparison.seeds.test[MAIN], prefix)
    return logged


def _over_seeds(compared: SeedsCompared, prefix: str) -> dict[str, float]:
    label, spread = f"{prefix}seeds/difference/{MAIN}", compared.difference
    return {label: spread.mean, f"{label}_sd": spread.sd, f"{label}_better": spread.num_better}


def _with_interval(label: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    low, high = interval
    return {label: value, f"{label}_low": low, f"{label}_high": high}


def evaluation_files(results: Results) -> Iterator[tuple[str, Path]]:
    """Each file of the evaluation except the masks, with the artefact folder that it goes to."""
    for files in test_sets(results).values():
        folder = files.folder.relative_to(results.root).as_posix()
        records = [files.comparison, *(files.scores(run) for run in RUNS)]
        for path in [*records, *(files.table(name) for name in TABLES)]:
            if path.exists():
                yield folder, path
