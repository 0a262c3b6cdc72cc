"""Images that belong together, as those of one patient or lesion: drawn and divided as wholes."""

from collections.abc import Iterable, Sequence

import numpy as np


def gather(groups: Sequence[str]) -> list[list[int]]:
    """The positions of each group's images, groups in the order in which they first appear.

    Args:
        groups: The group of each image; one with "" is a group of its own.
    """
    members: dict[str | int, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group or position, []).append(position)
    return list(members.values())


def draw(groups: Sequence[str], *, fraction: float, seed: int) -> list[int]:
    """The positions, ascending, of all images of a share of the groups.

    Args:
        groups: As of `gather`.
        fraction: How many of the groups, rounded to whole ones; none or all may come out.
        seed: Of the draw.
    """
    members = gather(groups)
    shuffled = np.random.default_rng(seed).permutation(len(members))
    chosen = shuffled[: round(fraction * len(members))]
    return sorted(position for number in chosen.tolist() for position in members[number])


def in_order(folds: Iterable[str]) -> list[str]:
    """The different names of folds but "": numbers by their value, other names as text."""
    names = set(folds) - {""}
    return sorted(
        names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)
    )
