"""Distances between outlines: against values by hand, all pairs of pixels and other libraries."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import hausdorff_distance
from skimage.segmentation import find_boundaries

from lesionseg.evaluation.boundaries import boundary_pixels, boundary_scores

SHAPE = (30, 40)  # its diagonal is 50 pixels: a pixel is 2 percent
EMPTY = np.zeros(SHAPE, bool)


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    mask = EMPTY.copy()
    mask[rows, columns] = True
    return mask


def blobs(rng: np.random.Generator, shape: tuple[int, int], *, roughness: float) -> np.ndarray:
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 3)
    return smooth + roughness * smooth.std() * rng.standard_normal(shape) > 0.3 * smooth.std()


@pytest.fixture(scope="module")
def pairs():
    """Pairs of masks (H, W) bool: smooth, ragged, nearly full, of a few pixels."""
    rng = np.random.default_rng(0)
    pairs = []
    for roughness in (0, 0.1, 0.5, 2):
        for _ in range(4):
            shape = tuple(rng.integers(12, 50, 2))
            pairs.append(tuple(blobs(rng, shape, roughness=roughness) for _ in range(2)))
    pairs.append(tuple(rng.random((2, 20, 27)) < 0.97))
    pairs.append(tuple(rng.random((2, 20, 27)) < 0.02))
    assert all(mask.any() for pair in pairs for mask in pair)
    return pairs


def loop_boundary(mask: np.ndarray) -> list[tuple[int, int]]:
    """A look at the four neighbours of every pixel."""

    def inside(row: int, column: int) -> bool:
        in_image = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
        return in_image and bool(mask[row, column])

    return [
        (row, column)
        for row, column in np.ndindex(mask.shape)
        if mask[row, column]
        and not all(
            inside(row + down, column + right) for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1))
        )
    ]


def loop_scores(prediction: np.ndarray, truth: np.ndarray, tolerance: float) -> dict[str, float]:
    """From the distances of all pairs of boundary pixels."""
    first, second = (np.array(loop_boundary(mask)) for mask in (prediction, truth))
    distances = np.hypot(*(first[:, None] - second[None]).transpose(2, 0, 1))
    percent = 100 * distances / np.hypot(*truth.shape)
    directed = percent.min(axis=1), percent.min(axis=0)
    num_within = sum((distances <= tolerance).sum() for distances in directed)
    return {
        "hd95": max(np.quantile(distances, 0.95) for distances in directed),
        "nsd": num_within / (len(first) + len(second)),
    }


def test_the_boundary_of_a_square_is_its_rim():
    pixels = boundary_pixels(rectangle(slice(4, 7), slice(10, 13)))
    rim = [(4, 10), (4, 11), (4, 12), (5, 10), (5, 12), (6, 10), (6, 11), (6, 12)]
    assert [tuple(pixel) for pixel in pixels.tolist()] == rim


def test_diagonal_neighbours_alone_make_no_boundary():
    mask = np.ones((5, 5), bool)
    mask[0, 0] = False
    assert [1, 1] not in boundary_pixels(mask).tolist()
    assert [0, 1] in boundary_pixels(mask).tolist()


def test_a_hole_has_a_boundary():
    mask = rectangle(slice(5, 16), slice(5, 16))
    mask[10, 10] = False
    around = [[9, 10], [10, 9], [10, 11], [11, 10]]
    assert all(pixel in boundary_pixels(mask).tolist() for pixel in around)


def test_where_the_image_cuts_a_lesion_there_is_boundary():
    assert len(boundary_pixels(np.ones((4, 5), bool))) == 14
    cut = rectangle(slice(0, 3), slice(10, 13))
    assert len(boundary_pixels(cut)) == 8


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 2), (2, 5)])
def test_all_pixels_of_a_thin_mask_are_boundary(shape):
    assert boundary_pixels(np.ones(shape, bool)).tolist() == [list(p) for p in np.ndindex(shape)]


def test_an_empty_mask_has_no_boundary():
    assert boundary_pixels(EMPTY).shape == (0, 2)


def test_boundaries_agree_with_a_loop_over_pixels(pairs):
    for mask in (mask for pair in pairs for mask in pair):
        assert [tuple(pixel) for pixel in boundary_pixels(mask).tolist()] == loop_boundary(mask)


def test_boundaries_agree_with_scikit_image(pairs):
    for mask in (mask for pair in pairs for mask in pair):
        theirs = find_boundaries(np.pad(mask, 1), connectivity=1, mode="inner")[1:-1, 1:-1]
        np.testing.assert_array_equal(boundary_pixels(mask), np.argwhere(theirs))


def test_squares_shifted_by_a_pixel_have_the_scores_by_hand():
    square, shifted = (rectangle(slice(4, 7), slice(left, left + 3)) for left in (10, 11))
    # Of the 8 pixels of either rim 4 lie on the other rim; the other 4 are 1 pixel from it.
    assert boundary_scores(shifted, square, tolerance=0) == {"hd95": 2.0, "nsd": 0.5}


@pytest.mark.parametrize(("tolerance", "nsd"), [(5.99, 0.0), (6.0, 1.0)])
def test_a_distance_of_exactly_the_tolerance_is_within_it(tolerance, nsd):
    line, other = rectangle(slice(5, 20), 10), rectangle(slice(5, 20), 13)
    assert boundary_scores(line, other, tolerance=tolerance) == {"hd95": 6.0, "nsd": nsd}


def test_a_tolerance_of_0_counts_shared_pixels_only(pairs):
    for prediction, truth in pairs:
        first, second = ({*map(tuple, boundary_pixels(m).tolist())} for m in (prediction, truth))
        expected = 2 * len(first & second) / (len(first) + len(second))
        assert boundary_scores(prediction, truth, tolerance=0)["nsd"] == pytest.approx(expected)


def test_hd95_is_the_95th_percentile_of_the_worse_direction_and_not_the_farthest_pixel():
    line, end = rectangle(10, slice(5, 26)), rectangle(10, 5)
    # From the line: 0, 1, ..., 20 pixels. From its end: 0.
    assert boundary_scores(end, line, tolerance=0)["hd95"] == pytest.approx(19 * 2)


def test_nsd_weighs_pixels_and_not_boundaries():
    line, end = rectangle(10, slice(5, 26)), rectangle(10, 5)
    assert boundary_scores(end, line, tolerance=4)["nsd"] == pytest.approx((3 + 1) / (21 + 1))


def test_between_single_pixels_lies_the_distance_of_their_centres():
    scores = boundary_scores(rectangle(3, 4), rectangle(6, 8), tolerance=9.9)
    assert scores == {"hd95": 10.0, "nsd": 0.0}


def test_opposite_corners_are_almost_a_diagonal_apart():
    scores = boundary_scores(rectangle(0, 0), rectangle(29, 39), tolerance=1)
    assert scores["hd95"] == pytest.approx(100 * np.hypot(29, 39) / 50)
    assert scores["hd95"] < 100


def test_empty_against_empty_is_perfect():
    assert boundary_scores(EMPTY, EMPTY, tolerance=1) == {"hd95": 0.0, "nsd": 1.0}


@pytest.mark.parametrize("flipped", [False, True])
def test_empty_against_something_is_as_bad_as_can_be(flipped):
    pair = (EMPTY, rectangle(3, 4))
    scores = boundary_scores(*(pair[::-1] if flipped else pair), tolerance=100)
    assert scores == {"hd95": 100.0, "nsd": 0.0}


def test_a_mask_against_itself_is_perfect(pairs):
    for mask, _ in pairs:
        assert boundary_scores(mask, mask, tolerance=0) == {"hd95": 0.0, "nsd": 1.0}


@pytest.mark.parametrize("tolerance", [0, 3.3, 10])
def test_scores_agree_with_all_pairs_of_pixels(pairs, tolerance):
    for prediction, truth in pairs:
        scores = boundary_scores(prediction, truth, tolerance=tolerance)
        assert scores == pytest.approx(loop_scores(prediction, truth, tolerance), abs=1e-12)


def test_hd95_agrees_with_a_distance_transform_of_the_image(pairs):
    for pair in pairs:
        rims = [mask & ~ndimage.binary_erosion(mask) for mask in pair]
        away = [ndimage.distance_transform_edt(~rim) for rim in rims]
        pixels = max(np.percentile(away[1 - i][rims[i]], 95) for i in range(2))
        expected = 100 * pixels / np.hypot(*pair[0].shape)
        assert boundary_scores(*pair, tolerance=1)["hd95"] == pytest.approx(expected)


def test_hd95_is_at_most_the_hausdorff_distance_of_scikit_image(pairs):
    for pair in pairs:
        rims = [mask & ~ndimage.binary_erosion(mask) for mask in pair]
        farthest = 100 * hausdorff_distance(*rims) / np.hypot(*pair[0].shape)
        scores = boundary_scores(*pair, tolerance=farthest * (1 + 1e-12))
        assert scores["hd95"] <= farthest * (1 + 1e-12)
        assert scores["nsd"] == 1.0


def test_prediction_and_truth_may_be_swapped(pairs):
    for prediction, truth in pairs:
        scores = boundary_scores(prediction, truth, tolerance=4)
        assert boundary_scores(truth, prediction, tolerance=4) == scores


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose, np.rot90])
def test_flips_and_turns_of_both_masks_do_not_change_the_scores(pairs, turn):
    for prediction, truth in pairs:
        scores = boundary_scores(prediction, truth, tolerance=4)
        turned = boundary_scores(turn(prediction), turn(truth), tolerance=4)
        assert turned == pytest.approx(scores, abs=1e-12)


def test_the_layout_in_memory_does_not_matter(pairs):
    prediction, truth = pairs[0]
    scores = boundary_scores(prediction, truth, tolerance=4)
    wide = np.zeros((2 * truth.shape[0], 3 * truth.shape[1]), bool)
    wide[::2, ::3] = truth
    assert not wide[::2, ::3].flags.c_contiguous
    scattered = boundary_scores(np.asfortranarray(prediction), wide[::2, ::3], tolerance=4)
    assert scattered == scores


def test_masks_are_left_as_they_were():
    prediction, truth = rectangle(slice(2, 9), slice(2, 9)), rectangle(slice(3, 9), slice(4, 9))
    boundary_scores(prediction, truth, tolerance=1)
    assert (prediction.sum(), truth.sum()) == (49, 30)


def test_a_larger_tolerance_never_lowers_nsd(pairs):
    for prediction, truth in pairs:
        scores = [boundary_scores(prediction, truth, tolerance=t)["nsd"] for t in range(0, 101, 5)]
        assert scores == sorted(scores)
        assert scores[-1] == 1.0


def test_images_of_twice_the_size_have_about_the_same_scores():
    y, x = np.ogrid[:120, :160]
    truth = (y - 60) ** 2 + (x - 80) ** 2 < 40**2
    prediction = (y - 62) ** 2 / 35**2 + (x - 85) ** 2 / 44**2 < 1
    twice = (mask.repeat(2, axis=0).repeat(2, axis=1) for mask in (prediction, truth))
    small, large = (boundary_scores(*pair, tolerance=2.25) for pair in ((prediction, truth), twice))
    assert large["hd95"] == pytest.approx(small["hd95"], abs=100 * 1 / 200)  # a pixel of the small
    assert large["nsd"] == pytest.approx(small["nsd"], abs=0.05)
    assert 0.2 < small["nsd"] < 0.8
