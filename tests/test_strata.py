"""Measures of images and masks drawn by hand, groups at their limits, rows against pandas."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from skimage.color import lab2rgb
from skimage.draw import bezier_curve, disk, line, polygon2mask

from lesionseg.evaluation.strata import (
    MEASURED_SIZE,
    group_of,
    measure_image,
    summarise_strata,
)
from lesionseg.results.vocabulary import FEW_IMAGES, STRATA, UNKNOWN

SHAPE = (MEASURED_SIZE, MEASURED_SIZE)
PALE = (75, 10, 15)  # CIELAB of a light skin
HAIR = (40, 30, 25)  # RGB
MEASURES = [stratum.measure for stratum in STRATA.values()]
GROUPS = {stratum.name: stratum.groups for stratum in STRATA.values()}


def paint_skin(lab=PALE):
    return np.full((*SHAPE, 3), np.rint(255 * lab2rgb(np.array(lab, float))), np.uint8)


def draw_disk(radius=40):
    mask = np.zeros(SHAPE, bool)
    mask[disk((128, 128), radius)] = True
    return mask


def paint_lesion(image, softness=3.0, radius=40):
    share = gaussian_filter(draw_disk(radius).astype(float), softness)[..., None]
    return np.rint(image * (1 - share) + np.array([110, 60, 45]) * share).astype(np.uint8)


def paint_hairs(image, num_hairs, seed=0):
    hairy = image.copy()
    rng = np.random.default_rng(seed)
    for left, middle, right in rng.integers(10, 246, (num_hairs, 3)):
        rows, columns = bezier_curve(left, 5, middle, 128, right, 250, weight=0.5)
        hairy[rows, columns] = hairy[rows + 1, columns] = HAIR
    return hairy


def add_grain(image):
    noise = np.random.default_rng(0).normal(0, 2, (*SHAPE, 1))  # real skin: 1.5
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def measure(**values):
    return dict.fromkeys(MEASURES, 0.0) | values


@pytest.fixture(scope="module")
def hairy():
    return paint_hairs(paint_lesion(paint_skin()), 8)


def test_a_half_covered_image_is_half_lesion_inside_and_along_its_border():
    mask = np.zeros(SHAPE, bool)
    mask[:, :128] = True
    measures = measure_image(paint_skin(), mask)
    assert measures["lesion_fraction"] == 0.5
    assert measures["border_fraction"] == 0.5


@pytest.mark.parametrize(("gap", "group"), [(0, "touching"), (2, "touching"), (3, "free")])
def test_a_lesion_touches_up_to_two_pixels_from_the_border(gap, group):
    mask = np.zeros(SHAPE, bool)
    mask[100:150, gap:50] = True
    assert group_of(measure_image(paint_skin(), mask))["border"] == group


def test_a_black_lesion_on_white_has_the_contrast_100_and_an_invisible_one_0():
    mask = draw_disk()
    image = np.full((*SHAPE, 3), 255, np.uint8)
    assert measure_image(image, mask)["contrast"] == pytest.approx(0, abs=1e-3)
    image[mask] = 0
    assert measure_image(image, mask)["contrast"] == pytest.approx(100, abs=0.01)


def test_contrast_is_that_of_the_skin_nearby():
    mask = draw_disk(20)
    image = paint_lesion(paint_skin(), softness=0, radius=20)
    expected = measure_image(image, mask)["contrast"]
    image[~draw_disk(65)] = (30, 90, 200)
    assert measure_image(image, mask)["contrast"] == expected


@pytest.mark.parametrize(
    ("lab", "angle"),
    [
        ((70, 10, 20), 45.0),
        ((50, 12, 18), 0.0),
        ((35, 10, 15), -45.0),
        ((80, 8, 30**0.5 * 10), 28.7),
    ],
)
def test_ita_of_one_colour_is_the_angle_by_hand(lab, angle):
    assert measure_image(paint_skin(lab), draw_disk())["ita"] == pytest.approx(angle, abs=1.0)


def test_ita_falls_as_the_skin_darkens():
    angles = [measure_image(paint_skin((x, 12, 18)), draw_disk())["ita"] for x in range(80, 25, -5)]
    assert angles == sorted(angles, reverse=True)


def test_a_black_surround_changes_neither_ita_nor_hair():
    mask = draw_disk()
    image = paint_lesion(paint_skin())
    lit = gaussian_filter(draw_disk(90).astype(float), 2)[..., None]
    plain, surrounded = (measure_image(x, mask) for x in (image, (image * lit).astype(np.uint8)))
    assert surrounded["ita"] == pytest.approx(plain["ita"], abs=0.1)
    assert surrounded["hair_fraction"] == plain["hair_fraction"] == 0


def test_hairs_do_not_change_ita():
    image = add_grain(paint_skin())
    hairy = paint_hairs(image, 60)
    angles = [measure_image(x, draw_disk())["ita"] for x in (image, hairy)]
    assert angles[1] == pytest.approx(angles[0], abs=0.1)


def test_a_bluish_photograph_has_no_ita():
    measures = measure_image(paint_skin((75, 5, -10)), draw_disk())
    assert math.isnan(measures["ita"])
    assert group_of(measures)["skin_tone"] == UNKNOWN


def test_a_polygon_is_smooth_and_a_thresholded_blur_of_noise_rough():
    drawn = polygon2mask(SHAPE, [(60, 80), (70, 170), (150, 200), (200, 120), (140, 60)])
    noise = np.random.default_rng(0).normal(0, 0.3, SHAPE)
    noisy = gaussian_filter(draw_disk(60).astype(float), 4) + gaussian_filter(noise, 0.7) > 0.5
    groups = [group_of(measure_image(paint_skin(), m))["outline"] for m in (drawn, noisy)]
    assert groups == ["smooth", "rough"]


def test_where_the_lesion_leaves_the_image_is_no_outline():
    mask = np.zeros(SHAPE, bool)
    mask[:, :128] = True
    assert measure_image(paint_skin(), mask)["outline_roughness"] == 0
    mask[:] = True
    assert math.isnan(measure_image(paint_skin(), mask)["outline_roughness"])


def test_more_hairs_are_a_larger_hair_fraction():
    image, mask = paint_lesion(paint_skin()), draw_disk()
    fractions = [measure_image(paint_hairs(image, n), mask)["hair_fraction"] for n in (0, 2, 5, 10)]
    assert fractions[0] == 0
    assert fractions == sorted(set(fractions))


def test_hair_fraction_is_near_the_area_drawn():
    rows, columns = line(30, 40, 220, 90)
    image = paint_skin()
    image[rows, columns] = image[rows, columns + 1] = HAIR
    drawn = 2 * len(rows) / (MEASURED_SIZE - 20) ** 2
    found = measure_image(image, np.zeros(SHAPE, bool))["hair_fraction"]
    assert drawn < found < 2.5 * drawn


@pytest.mark.parametrize("softness", [0.5, 2, 5])
@pytest.mark.parametrize("radius", [5, 20, 60])
def test_a_smooth_lesion_is_no_hair_even_where_the_mask_misses_it(radius, softness):
    image = paint_lesion(paint_skin(), softness, radius)
    assert measure_image(image, np.zeros(SHAPE, bool))["hair_fraction"] == 0


def test_a_rulers_strokes_and_skins_grain_are_little_hair():
    image = add_grain(paint_skin())
    for row in range(20, 240, 12):
        image[row, 14:23] = 0
    assert group_of(measure_image(image, draw_disk()))["hair"] == "little"


def test_a_dark_line_along_the_border_is_no_hair():
    image = paint_skin()
    image[:, 3:6] = image[250:252] = HAIR
    assert measure_image(image, draw_disk())["hair_fraction"] == 0


def test_streaks_inside_the_lesion_are_no_hair():
    image = paint_skin()
    image[90:166:8, 100:156] = HAIR
    assert measure_image(image, draw_disk(60))["hair_fraction"] == 0


def test_flips_and_quarter_turns_leave_the_measures_unchanged(hairy):
    mask = draw_disk()
    mask[100:130, 60:128] = True
    expected = measure_image(hairy, mask)
    for turns in range(4):
        turned = np.rot90(hairy, turns), np.rot90(mask, turns)
        for image, truth in (turned, [np.flipud(x) for x in turned]):
            assert measure_image(image, truth) == pytest.approx(expected, rel=1e-3)


def test_measuring_changes_neither_image_nor_mask(hairy):
    image, mask = hairy.copy(), draw_disk()
    measure_image(image, mask)
    assert np.array_equal(image, hairy)
    assert np.array_equal(mask, draw_disk())


def test_without_a_lesion_its_contrast_and_outline_are_unknown():
    measures = measure_image(paint_skin(), np.zeros(SHAPE, bool))
    assert measures["lesion_fraction"] == measures["border_fraction"] == 0
    assert math.isfinite(measures["ita"])
    unknown = [name for name, group in group_of(measures).items() if group == UNKNOWN]
    assert unknown == ["contrast_level", "outline"]


@pytest.mark.parametrize("gap", [0, 30])
def test_with_little_or_no_skin_all_that_needs_skin_is_unknown(gap):
    mask = np.ones(SHAPE, bool)
    mask[:gap, :gap] = False
    measures = measure_image(paint_skin(), mask)
    assert measures["lesion_fraction"] == 1 - (gap / MEASURED_SIZE) ** 2
    assert measures["border_fraction"] > 0.9
    unknown = {name for name, group in group_of(measures).items() if group == UNKNOWN}
    assert unknown - {"outline"} == {"contrast_level", "hair", "skin_tone"}
    assert ("outline" in unknown) == mask.all()  # then there is none


def test_every_measure_is_grouped_and_every_group_can_be_reached():
    assert list(measure_image(paint_skin(), draw_disk())) == MEASURES
    for stratum in STRATA.values():
        values = [*(x + step for x in stratum.limits for step in (-1e-6, 1e-6)), math.nan]
        reached = {group_of(measure(**{stratum.measure: x}))[stratum.name] for x in values}
        assert reached | {UNKNOWN} == {*stratum.groups, UNKNOWN}


@pytest.mark.parametrize(
    ("name", "value", "stratum", "group"),
    [
        ("lesion_fraction", 0.13, "size", "small"),
        ("lesion_fraction", 0.30, "size", "medium"),
        ("lesion_fraction", 0.31, "size", "large"),
        ("border_fraction", 0.0, "border", "free"),
        ("border_fraction", 0.001, "border", "touching"),
        ("contrast", 16.0, "contrast_level", "low"),
        ("contrast", 25.1, "contrast_level", "high"),
        ("outline_roughness", 0.25, "outline", "smooth"),
        ("outline_roughness", 0.26, "outline", "rough"),
        ("hair_fraction", 0.002, "hair", "little"),
        ("hair_fraction", 0.01, "hair", "some"),
        ("hair_fraction", 0.011, "hair", "much"),
        ("ita", 55.1, "skin_tone", "very light"),
        ("ita", 55.0, "skin_tone", "light"),
        ("ita", 41.0, "skin_tone", "intermediate"),
        ("ita", 28.0, "skin_tone", "tan"),
        ("ita", 10.0, "skin_tone", "brown"),
        ("ita", -30.0, "skin_tone", "dark"),
        ("ita", math.nan, "skin_tone", UNKNOWN),
    ],
)
def test_a_value_at_a_limit_belongs_to_the_lower_group(name, value, stratum, group):
    assert group_of(measure(**{name: value}))[stratum] == group


@pytest.fixture(scope="module")
def cohort():
    """Groups of 40 images, one alone in its own, and jaccards of both runs."""
    rng = np.random.default_rng(1)
    attributes = pd.DataFrame({name: rng.choice(groups[:2], 40) for name, groups in GROUPS.items()})
    attributes.loc[7, "skin_tone"] = UNKNOWN
    jaccards = {run: rng.uniform(0.3, 1, 40) for run in ("train_frozen", "train_finetuned")}
    jaccards["train_frozen"][3] = 0.65
    return attributes, jaccards


def find_range(differences):
    assert len(differences) > 1
    return [float(differences.min()), float(differences.max())]


def test_rows_are_those_of_a_groupby(cohort):
    attributes, jaccards = cohort
    frame = attributes.assign(all="all", **jaccards)
    frame["difference"] = frame["train_finetuned"] - frame["train_frozen"]
    for run in jaccards:
        frame[f"{run}_failed"] = frame[run] < 0.65
    rows = pd.DataFrame(summarise_strata(attributes, jaccards, interval=find_range))
    for stratum, found in rows.groupby("stratum"):
        groups = frame.groupby(stratum)
        found = found.set_index("group").sort_index()
        assert found["num_images"].to_dict() == groups.size().to_dict()
        for run in jaccards:
            assert np.allclose(found[f"{run}_jaccard"], groups[run].mean())
            assert np.allclose(found[f"{run}_failure_rate"], groups[f"{run}_failed"].mean())
        several = found["num_images"] >= FEW_IMAGES
        assert np.allclose(found["difference"], groups["difference"].mean())
        assert np.allclose(found["difference_low"][several], groups["difference"].min()[several])
        assert np.allclose(found["difference_high"][several], groups["difference"].max()[several])


def test_rows_have_the_columns_and_the_order_of_the_strata(cohort):
    rows = summarise_strata(*cohort, interval=find_range)
    expected = [("all", "all")]
    for name, groups in GROUPS.items():
        expected += [(name, groups[0]), (name, groups[1])]
    assert [(row["stratum"], row["group"]) for row in rows] == [*expected, ("skin_tone", UNKNOWN)]
    columns = "stratum,group,num_images,train_frozen_jaccard,train_frozen_failure_rate"
    columns += ",train_finetuned_jaccard,train_finetuned_failure_rate"
    columns += ",difference,difference_low,difference_high"
    assert {",".join(row) for row in rows} == {columns}


def test_a_single_image_has_no_interval(cohort):
    last = summarise_strata(*cohort, interval=find_range)[-1]
    assert last["num_images"] == 1
    assert last["difference_low"] is last["difference_high"] is None
