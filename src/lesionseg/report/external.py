"""The results on external test sets, beside test: read and put into words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lesionseg.data.external_sets import ExternalSet, read_sets
from lesionseg.results.evaluation import Compared, Comparison, ModelScores
from lesionseg.results.layout import RUNS, EvaluationFiles
from lesionseg.results.records import unreadable
from lesionseg.results.vocabulary import FAILURE_BELOW, FEW_IMAGES

_TOLERANCE = 1e-4  # between means that were rounded in different files


@dataclass(frozen=True, kw_only=True)
class ExternalScores:
    """Both models on one external test set.

    Attributes:
        facts: Its name, source and number of images.
        comparison: As for the test split.
        scores: Scores by run.
    """

    facts: ExternalSet
    comparison: Comparison
    scores: dict[str, ModelScores]


def read_external(
    evaluation: EvaluationFiles, external_dir: Path, *, models: Mapping[str, str]
) -> list[ExternalScores]:
    """All external test sets, checked for agreement with the rest of the results.

    Args:
        evaluation: What `evaluate` wrote.
        external_dir: Holds the list of the sets.
        models: SHA-256, by run, of the models that the page is about.

    Raises:
        MissingFileError: A file is missing.
        DataError: It is damaged, or about other models or images than the rest.
    """
    found = []
    for facts in read_sets(external_dir):
        files = EvaluationFiles(evaluation.external / facts.name)
        comparison = Comparison.read(files)
        scores = {run: ModelScores.read(files, run) for run in RUNS}
        if comparison.models != dict(models):
            raise unreadable(
                f"{files.comparison} is stale: it is about other models", stage="evaluate"
            )
        if comparison.num_images != facts.num_images:
            raise unreadable(
                f"{files.comparison} is stale: it compares {comparison.num_images} images, "
                f"{facts.name} has {facts.num_images}",
                stage="evaluate",
            )
        for run, own in scores.items():
            means = own.test["jaccard"], comparison.test["jaccard"].mean(run)
            if not math.isclose(*means, abs_tol=_TOLERANCE):
                raise unreadable(
                    f"{files.scores(run)} is stale: test jaccard is {means[0]:.4f}, but "
                    f"{means[1]:.4f} in comparison.json",
                    stage="evaluate",
                )
        found.append(ExternalScores(facts=facts, comparison=comparison, scores=scores))
    return found


def answer_elsewhere(comparison: Comparison, external: Sequence[ExternalScores]) -> str:
    """One sentence: on which external sets the answer for test holds too; "" if there are none."""
    if not external:
        return ""
    at_home = _verdict(comparison.test["jaccard"])
    same = [one for one in external if _verdict(_jaccard(one)) == at_home]
    other = [one for one in external if _verdict(_jaccard(one)) != at_home]
    if same and other:
        return f"That is also so on {_join(same)}, but not on {_join(other, verdicts=True)}."
    if same:
        return f"That is also so on {_join(same)}."
    return f"But that is not so on {_join(other, verdicts=True)}."


def in_plain_words(scores: Mapping[str, ModelScores], num_images: int) -> str:
    """One sentence for readers who do not know the jaccard: how many lesions are drawn well."""
    drawn = {run: round((1 - scores[run].test["failure_rate"]) * num_images) for run in RUNS}
    of = num_images
    if num_images >= 100:
        drawn = {run: round(100 * num / num_images) for run, num in drawn.items()}
        of = 100
    frozen, finetuned = (drawn[run] for run in RUNS)
    both = f"{finetuned} are outlined well with fine-tuning and {frozen} without it"
    if frozen == finetuned:
        both = f"{frozen} are outlined well, with fine-tuning and without it"
    return (
        f"In plain words: of {of} lesions in test images, {both}. Well means that outline and "
        f"truth share at least {100 * FAILURE_BELOW:g} % of the area that either covers."
    )


def _jaccard(one: ExternalScores) -> Compared:
    return one.comparison.test["jaccard"]


def _verdict(result: Compared) -> str:
    low, high = result.interval
    if low > 0:
        return "fine-tuning is better"
    return "the frozen encoder is better" if high < 0 else "no difference is shown"


def _join(sets: Sequence[ExternalScores], *, verdicts: bool = False) -> str:
    """Names with the jaccard's difference and interval and, if wanted, the verdict on each set."""
    parts = []
    for one in sets:
        result = _jaccard(one)
        low, high = result.interval
        numbers = f"{result.difference:+.3f}, {low:+.3f} to {high:+.3f}"
        if one.comparison.num_images < FEW_IMAGES:
            numbers += f", only {one.comparison.num_images} images"
        says = f": {_verdict(result)} there" if verdicts else ""
        parts.append(f"{one.facts.name} ({numbers}{says})")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
