"""What is said of a split, and what about it cannot well be."""

import logging
from pathlib import Path

import pytest

from lesionseg.data.summary import log_summaries, summarise

FOLDER = Path("data/raw")


def said(caplog: pytest.LogCaptureFixture, level: int, **fractions: list[float]) -> list[str]:
    """The lines of one level about splits of these shares of lesion."""
    with caplog.at_level(logging.INFO):
        log_summaries(
            FOLDER,
            [
                summarise(name, sizes=[(10, 20)] * len(own), lesion_fractions=own)
                for name, own in fractions.items()
            ],
        )
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_a_split_is_one_line_with_its_sizes_and_shares(caplog):
    sizes = [(540, 722), (2848, 576), (600, 4288)]
    with caplog.at_level(logging.INFO):
        log_summaries(FOLDER, [summarise("train", sizes=sizes, lesion_fractions=[0, 0.5, 0.25])])
    assert caplog.messages == [
        "data/raw/train: 3 images of 540-2848 x 576-4288 pixels (height x width); "
        "masks: 25.0 % lesion on average, 1 empty, 0 full"
    ]


@pytest.mark.parametrize(
    ("fractions", "doubt"),
    [
        ([0.85, 0.7], "more than half of an image of train on average. Are the masks inverted?"),
        ([0.0, 0.0], "all masks of train are empty"),
        ([1.0, 1.0], "all masks of train are full"),
    ],
)
def test_what_cannot_well_be_is_one_warning(caplog, fractions, doubt):
    (warning,) = said(caplog, logging.WARNING, train=fractions, test=[0.2])
    assert warning.startswith("WARNING: data/raw: ")
    assert doubt in warning
    assert "\n" not in warning


@pytest.mark.parametrize("fractions", [[0.0, 0.3], [1.0, 0.0], [1.0, 0.0, 0.4], [0.5]])
def test_what_may_be_draws_no_warning(caplog, fractions):
    assert said(caplog, logging.WARNING, train=fractions) == []


def test_splits_with_the_same_doubt_share_a_warning(caplog):
    warnings = said(caplog, logging.WARNING, train=[0.9], val=[0.0], test=[0.6, 0.5])
    assert len(warnings) == 2
    assert "of val are empty" in warnings[0]
    assert "of train, test on average" in warnings[1]
