"""Outlines of masks: on the edges of their pixels, exact as rings, few corners as lines."""

import itertools

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import approximate_polygon

from lesionseg.outlines import (
    count_regions,
    find_outlines,
    find_regions,
    signed_area,
    simplify,
)

RANDOM_MASKS = [
    np.random.default_rng(seed).random(np.random.default_rng(seed).integers(1, 14, 2)) < share
    for seed, share in enumerate(np.linspace(0.05, 1, 20))
]


def rasterise(regions, shape):
    """How often each pixel is inside, by crossings on the way to the left edge of the image."""
    inside = np.zeros(shape, int)
    for ring in itertools.chain.from_iterable(region.rings for region in regions):
        for (x, y), (next_x, next_y) in itertools.pairwise(ring.tolist()):
            if x == next_x:
                inside[min(y, next_y) : max(y, next_y), x:] += 1 if next_y < y else -1
    return inside


def test_a_square_has_the_corners_of_its_pixels():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    (region,) = find_regions(mask)
    assert region.area == 6
    (ring,) = region.rings
    assert {tuple(corner) for corner in ring.tolist()} == {(2, 1), (5, 1), (5, 3), (2, 3)}
    assert len(ring) == 5
    assert ring[0].tolist() == ring[-1].tolist()


@pytest.mark.parametrize("mask", RANDOM_MASKS)
def test_polygons_filled_again_are_the_mask(mask):
    np.testing.assert_array_equal(rasterise(find_regions(mask), mask.shape), mask)


@pytest.mark.parametrize("mask", RANDOM_MASKS)
def test_a_polygon_s_area_is_the_number_of_its_pixels(mask):
    labels, num_regions = ndimage.label(mask)
    regions = find_regions(mask)
    areas = [sum(map(signed_area, region.rings)) for region in regions]
    assert areas == [region.area for region in regions]
    assert areas == sorted(np.bincount(labels[mask], minlength=1)[1:].tolist(), reverse=True)
    assert count_regions(mask) == num_regions == len(regions)


@pytest.mark.parametrize("mask", RANDOM_MASKS)
def test_rings_are_valid_geojson(mask):
    """RFC 7946: closed, outline first and anticlockwise, holes clockwise; none meets itself."""
    for region in find_regions(mask):
        areas = [signed_area(ring) for ring in region.rings]
        assert areas[0] > 0
        assert all(area < 0 for area in areas[1:])
        for ring in region.rings:
            corners = [tuple(corner) for corner in ring.tolist()]
            assert corners[0] == corners[-1]
            assert len(set(corners)) == len(corners) - 1 >= 4
            # None in the middle of a line either.
            steps = np.sign(np.diff(ring, axis=0))
            assert (steps != np.roll(steps, 1, axis=0)).any(axis=1).all()


@pytest.mark.parametrize("scale", [1, 3])
def test_outlines_lie_on_the_edge_of_their_pixels(scale):
    mask = np.zeros((10, 10))
    mask[2:6, 3:8] = 1
    (outline,) = find_outlines(mask.repeat(scale, axis=0).repeat(scale, axis=1), tolerance=0.25)
    rows, columns = outline.T / scale
    assert (rows.min(), rows.max()) == pytest.approx((2, 6))
    assert (columns.min(), columns.max()) == pytest.approx((3, 8))


def test_a_mask_of_the_whole_image_is_outlined_along_its_edge_and_an_empty_one_not():
    (outline,) = find_outlines(np.ones((10, 12)), tolerance=0.25)
    assert (outline.min(axis=0).tolist(), outline.max(axis=0).tolist()) == ([0, 0], [10, 12])
    assert find_outlines(np.zeros((10, 12)), tolerance=0.5) == []


def test_a_line_keeps_the_corners_that_scikit_image_keeps():
    angles = np.linspace(0, 2 * np.pi, 300)
    radii = 50 + np.random.default_rng(0).normal(0, 1, 300)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    points[-1] = points[0]
    for tolerance in (0.5, 2.0, 10.0):
        expected = approximate_polygon(points, tolerance)
        assert simplify(points, tolerance=tolerance).tolist() == expected.tolist()


def test_a_hole_has_an_outline_of_its_own():
    mask = np.ones((20, 20))
    mask[5:10, 5:10] = 0
    assert len(find_outlines(mask, tolerance=0.5)) == 2
