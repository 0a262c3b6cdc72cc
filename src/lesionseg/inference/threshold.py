"""The threshold that a model was evaluated with; `lesionseg predict` waits for nothing else."""

import logging
from dataclasses import dataclass

from pydantic import FiniteFloat

from lesionseg.errors import DataError, first_line
from lesionseg.results.layout import Results
from lesionseg.results.records import FORMAT, read_record

DEFAULT_THRESHOLD = 0.5  # of a model that was not evaluated
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """What is needed of `evaluation.Comparison`, which takes pandas to load."""

    format: int = FORMAT
    threshold: FiniteFloat
    models: dict[str, str]


def find_threshold(results: Results, *, model_sha256: str) -> float:
    """The threshold that the model was evaluated with here, or else the default.

    Args:
        results: Perhaps with an evaluation.
        model_sha256: Of the model.pt.
    """
    path = results.evaluation.comparison
    if not path.exists():
        return DEFAULT_THRESHOLD
    try:
        evaluated = read_record(path, _Evaluated, stage="evaluate")
    except DataError as error:
        _log.warning("threshold %s is used: %s", DEFAULT_THRESHOLD, first_line(error))
        return DEFAULT_THRESHOLD
    is_ours = model_sha256 in evaluated.models.values()
    return evaluated.threshold if is_ours else DEFAULT_THRESHOLD
