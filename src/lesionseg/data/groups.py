"""Images that belong together, such as those of one patient or lesion, and are never separated."""

from collections.abc import Iterable, Sequence

import numpy as np


def gather(groups: Sequence[str]) -> list[list[int]]:
    """The positions of each group's images, groups in the order of first appearance.

    Args:
        groups: The group of each image; an image with "" is a group of its own.
    """
    members: dict[str | int, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group or position, []).append(position)
    return list(members.values())


def draw(groups: Sequence[str], *, fraction: float, seed: int) -> list[int]:
    """The positions, ascending, of all images in a random share of the groups.

    Args:
        groups: As for `gather`.
        fraction: Share of the groups, rounded to whole ones; this may be none or all of them.
        seed: Seed of the draw.
    """
    members = gather(groups)
    shuffled = np.random.default_rng(seed).permutation(len(members))
    chosen = shuffled[: round(fraction * len(members))]
    return sorted(position for number in chosen.tolist() for position in members[number])


def in_order(folds: Iterable[str]) -> list[str]:
    """The distinct names of folds except "", numbers first by value, then other names as text."""
    names = set(folds) - {""}
    return sorted(
        names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)
    )
