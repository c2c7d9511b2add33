"""Latent metrics against designs with known singular values, against a plain SVD, and on latents without variation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsd_lab.core.observing import latent_metrics as lm


def designed(rows, values, seed=0, mean=0.0):
    """A matrix [rows, len(values)] whose centred singular values are `values`, moved by `mean`."""
    source = torch.Generator().manual_seed(seed)
    columns = len(values)
    start = torch.randn(rows, columns + 1, generator=source, dtype=torch.float64)
    start[:, 0] = 1
    left = torch.linalg.qr(start)[0][:, 1:]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=source, dtype=torch.float64))[0]
    return left * torch.tensor(values, dtype=torch.float64) @ right.T + mean


def gaussian(seed, shape):
    """Latents whose channels differ in scale and correlate."""
    source = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[-1], shape[-1], generator=source)
    return torch.randn(shape, generator=source) @ mixing + torch.randn(shape[-1], generator=source)


def rotation(size, seed):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[
        0
    ]


def entropy_rank(values):
    p = np.asarray(values) / np.sum(values)
    return math.exp(-sum(x * math.log(x) for x in p if x > 0))


RANKS = (lm.effective_rank, lm.spectral_rank)
SPECTRUM_RANKS = (lm.participation_ratio, lm.stable_rank)
SHAPES = st.tuples(st.integers(3, 20), st.sampled_from([1, 4, 9]), st.integers(2, 6))
SEEDS = st.integers(0, 10_000)

# -- Closed forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 8])
def test_k_equal_directions_have_rank_k_in_every_sense(k):
    matrix = designed(40, [2.5] * k + [0.0] * (8 - k), mean=7.0)
    spectrum = lm.covariance_spectrum(matrix)
    assert [rank(matrix) for rank in RANKS] == pytest.approx([k, k], rel=1e-6)
    assert [rank(spectrum) for rank in SPECTRUM_RANKS] == pytest.approx([k, k], rel=1e-6)


def test_unequal_directions_have_the_ranks_of_their_formulas():
    values = [4.0, 2.0, 1.0, 0.5]
    matrix, eigenvalues = designed(30, values), np.square(values)
    spectrum = lm.covariance_spectrum(matrix)
    assert lm.singular_values(matrix).tolist() == pytest.approx(values)
    assert spectrum.tolist() == pytest.approx((eigenvalues / 30).tolist())
    assert lm.effective_rank(matrix) == pytest.approx(entropy_rank(values))
    assert lm.spectral_rank(matrix) == pytest.approx(entropy_rank(eigenvalues))
    assert lm.participation_ratio(spectrum) == pytest.approx(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())
    assert lm.stable_rank(spectrum) == pytest.approx(eigenvalues.sum() / 16)


def test_capacity_is_half_the_sum_of_log2_of_one_plus_eigenvalue():
    eigenvalues = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    assert lm.capacity_bits(eigenvalues) == pytest.approx(0.5 * (2 + 1))
    unit = lm.covariance_spectrum(designed(25, [5.0] * 4))
    assert lm.capacity_bits(unit) == pytest.approx(2.0)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_alpha_req_is_the_exponent_of_a_power_law_and_tells_its_range(slope):
    eigenvalues = 3 * torch.arange(1, 9, dtype=torch.float64) ** -slope
    assert lm.alpha_req(eigenvalues) == pytest.approx((slope, 8))
    assert lm.alpha_req(torch.cat([eigenvalues, torch.zeros(3)])) == pytest.approx((slope, 8))
    long = 3 * torch.arange(1, 301, dtype=torch.float64) ** -slope
    long[:3], long[100:] = 1e6, 1e-6  # ranks below 4 and above 100 have no say
    assert lm.alpha_req(long.sort(descending=True).values) == pytest.approx((slope, 100))


@pytest.mark.parametrize("count", [6, 40, 250])
def test_alpha_req_is_the_authors_weighted_fit(count):
    eigenvalues = torch.from_numpy(np.sort(np.random.default_rng(count).gamma(0.5, 1.0, count))[::-1].copy())
    ranks = np.arange(4, min(count, 100) + 1)
    weights = np.sqrt(1 / ranks)  # polyfit weighs residuals, the fit their squares by 1 / rank
    expected = -np.polyfit(np.log(ranks), np.log(eigenvalues.numpy()[ranks - 1]), 1, w=weights)[0]
    assert lm.alpha_req(eigenvalues) == pytest.approx((expected, ranks[-1]))


def test_alpha_req_needs_two_eigenvalues_from_the_fourth_on():
    assert lm.alpha_req(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)) == (0.0, 4)


def test_patch_ranks_are_those_of_the_images_cut_into_tokens():
    x = gaussian(0, (9, 2, 4, 4))
    tokens = [x[n, :, i : i + 2, j : j + 2].flatten() for n in range(9) for i in (0, 2) for j in (0, 2)]
    expected = [lm.effective_rank(torch.stack(tokens)), lm.effective_rank(x.flatten(1))]
    assert list(lm.patch_ranks(x, 2).values()) == pytest.approx(expected)
    assert list(lm.patch_ranks(torch.ones(3, 1, 4, 4), 2).values()) == [0.0, 0.0]


def test_rankme_is_uncentred_and_adds_its_constant_after_normalising():
    rows = 3 * torch.eye(5)[:, :4]
    p = 0.25 + 1e-7
    assert lm.rankme(rows) == pytest.approx(math.exp(-4 * p * math.log(p)), rel=1e-12)
    constant = torch.ones(6, 4)
    p = np.array([1 + 1e-7, 1e-7, 1e-7, 1e-7])
    assert lm.rankme(constant) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert lm.effective_rank(constant) == 0


def test_uniformity_is_that_of_pairs_at_known_distances():
    assert lm.uniformity(torch.eye(6) * torch.arange(1, 7)[:, None]) == pytest.approx(-4)  # all pairs at sqrt(2)
    assert lm.uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)
    assert lm.uniformity(torch.ones(5, 3)) == 0


def test_total_variation_sums_the_differences_of_neighbours_and_means_over_images():
    first = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # grid 0 1 / 3 7
    second = torch.zeros(4, 1)
    assert lm.total_variation(torch.stack([first, second]), 2) == pytest.approx((1 + 4 + 3 + 6) / 2)


def test_variance_is_over_images_and_tokens_and_spatial_variance_over_tokens_alone():
    image_offsets = torch.tensor([-3.0, 3.0]).reshape(2, 1, 1)
    token_offsets = torch.tensor([-1.0, 1.0, -1.0, 1.0]).reshape(1, 4, 1)
    metrics, _ = lm.latent_metrics((image_offsets + token_offsets).expand(2, 4, 3) + 5, 2)
    assert metrics["latent/variance"] == pytest.approx(9 + 1)
    assert metrics["latent/spatial_variance"] == pytest.approx(1)


@pytest.mark.parametrize("level", ["token", "image"])
def test_both_levels_find_a_design_that_was_made_at_that_level(level):
    values = [6.0, 3.0, 1.0, 0.2] if level == "token" else [6.0, 3.0, 1.0, 0.2] * 4
    z = designed(40, values, mean=2.0).reshape(10, 4, 4) if level == "token" else designed(40, values).reshape(40, 4, 4)
    metrics, spectra = lm.latent_metrics(z, 2)
    eigenvalues = sorted((v**2 / 40 for v in values), reverse=True)
    assert spectra[level] == pytest.approx(eigenvalues)
    assert metrics[f"latent/effective_rank/{level}"] == pytest.approx(entropy_rank(values))
    assert metrics[f"latent/spectral_rank/{level}"] == pytest.approx(entropy_rank(eigenvalues))
    assert metrics[f"latent/stable_rank/{level}"] == pytest.approx(sum(eigenvalues) / eigenvalues[0])
    assert metrics[f"latent/participation_ratio/{level}"] == pytest.approx(
        sum(eigenvalues) ** 2 / sum(x * x for x in eigenvalues)
    )
    if level == "token":
        assert metrics["latent/variance"] == pytest.approx(sum(eigenvalues) / 4)
        assert metrics["latent/capacity_bits/token"] == pytest.approx(sum(0.5 * math.log2(1 + x) for x in eigenvalues))


# -- Properties --------------------------------------------------------------------------------------


@given(SEEDS, SHAPES, st.floats(1e-6, 1e6))
def test_ranks_do_not_depend_on_scale_and_variances_grow_with_its_square(seed, shape, scale):
    z, side = gaussian(seed, shape), math.isqrt(shape[1])
    before, after = (lm.latent_metrics(x, side)[0] for x in (z, z.double() * scale))
    for name in before:
        if "rank" in name or "participation" in name or "alpha" in name or "uniformity" in name:
            assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-6), name
        elif "variance" in name:
            assert after[name] == pytest.approx(before[name] * scale**2, rel=1e-5), name
    assert after["latent/total_variation"] == pytest.approx(before["latent/total_variation"] * scale, rel=1e-5)


@given(SEEDS, SHAPES)
def test_token_metrics_do_not_depend_on_the_rotation_of_channels_nor_on_a_shift(seed, shape):
    z, side = gaussian(seed, shape).double(), math.isqrt(shape[1])
    turned = z @ rotation(shape[2], seed) + 3.0
    before, after = (lm.latent_metrics(x, side)[0] for x in (z, turned))
    moved = ("latent/rankme/image", "latent/uniformity/image", "latent/total_variation")
    for name in before.keys() - set(moved):
        assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-6), name


@given(SEEDS, SHAPES)
def test_ranks_lie_between_one_and_the_smaller_side(seed, shape):
    z, side = gaussian(seed, shape), math.isqrt(shape[1])
    metrics, _ = lm.latent_metrics(z, side)
    n, t, c = shape
    for level, bound in (("token", min(n * t - 1, c)), ("image", min(n - 1, t * c))):
        for kind in ("effective_rank", "spectral_rank", "participation_ratio", "stable_rank"):
            assert 1 - 1e-9 <= metrics[f"latent/{kind}/{level}"] <= bound + 1e-9
        assert metrics[f"latent/spectral_rank/{level}"] <= metrics[f"latent/effective_rank/{level}"] + 1e-9
    assert 1 - 1e-9 <= metrics["latent/rankme/image"] <= min(n, t * c) * (1 + 1e-4)
    assert -8 <= metrics["latent/uniformity/image"] <= 0


@given(SEEDS, SHAPES, st.floats(1.01, 100))
def test_capacity_grows_with_scale(seed, shape, factor):
    z, side = gaussian(seed, shape), math.isqrt(shape[1])
    small, large = (lm.latent_metrics(x, side)[0]["latent/capacity_bits/token"] for x in (z, z * factor))
    assert 0 < small < large


@given(SEEDS, st.integers(2, 40), st.integers(1, 40), st.booleans())
def test_spectra_are_those_of_a_plain_float64_svd(seed, rows, columns, centred):
    matrix = gaussian(seed, (rows, columns))
    plain = matrix.double() - (matrix.double().mean(0) if centred else 0)
    expected = torch.linalg.svdvals(plain)
    expected[expected < 1e-6 * expected[0]] = 0
    assert torch.allclose(lm.singular_values(matrix, centred), expected, rtol=1e-6, atol=1e-6 * float(expected[0]))
    if centred:
        assert lm.effective_rank(matrix) == pytest.approx(entropy_rank(expected.numpy()), rel=1e-5)


def test_small_singular_values_that_a_float32_covariance_would_lose_are_kept():
    values = [1.0, 1e-2, 1e-4, 3e-5]
    assert lm.singular_values(designed(50, values)).tolist() == pytest.approx(values, rel=1e-3)


# -- Latents without variation ---------------------------------------------------------------------

FLAT = {
    "zero": torch.zeros(6, 4, 3),
    "constant": torch.full((6, 4, 3), 0.1),
    "large and constant": torch.full((6, 4, 3), 1e4 / 3),
    "one token repeated": torch.randn(3, generator=torch.Generator().manual_seed(0)).expand(6, 4, 3),
    "one image": torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1)),
    "one number": torch.ones(1, 1, 1),
    "two equal images": torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(2)).expand(2, 4, 3),
    "rank one": torch.randn(6, 4, 1, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, -2.0, 0.5]),
    "tiny": 1e-30 * torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(4)),
    "huge": 1e30 * torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(5)),
}


@pytest.mark.parametrize("case", FLAT)
def test_every_metric_is_finite_on_degenerate_latents(case):
    z = FLAT[case]
    metrics, spectra = lm.latent_metrics(z, math.isqrt(z.shape[1]))
    assert {name: value for name, value in metrics.items() if not math.isfinite(value)} == {}
    assert all(math.isfinite(x) and x >= 0 for values in spectra.values() for x in values)


@pytest.mark.parametrize("case", ["zero", "constant", "large and constant", "one token repeated"])
def test_latents_that_do_not_vary_have_rank_variance_and_capacity_zero(case):
    metrics, _ = lm.latent_metrics(FLAT[case], 2)
    for name, value in metrics.items():
        if "rankme" not in name:
            assert value == pytest.approx(0, abs=1e-6), name
    assert metrics["latent/effective_rank/token"] == metrics["latent/effective_rank/image"] == 0


def test_rank_one_latents_have_token_rank_one():
    metrics, _ = lm.latent_metrics(FLAT["rank one"], 2)
    assert metrics["latent/effective_rank/token"] == pytest.approx(1)
    assert metrics["latent/alpha_req/image"] == 0 and metrics["latent/alpha_req/image/fit_last"] == 4


def test_rank_one_latents_of_many_images_and_wide_tokens_have_rank_one():
    source = torch.Generator().manual_seed(0)
    z = (torch.randn(256, 1, generator=source) * torch.randn(1, 16 * 64, generator=source)).reshape(256, 16, 64)
    metrics, _ = lm.latent_metrics(z, 4)
    assert metrics["latent/effective_rank/image"] == pytest.approx(1, abs=1e-3)
    assert metrics["latent/stable_rank/image"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_that_are_not_finite_raise_nothing_and_have_no_finite_rank(value):
    z = gaussian(0, (6, 4, 3))
    z[2, 1, 0] = value
    metrics, _ = lm.latent_metrics(z, 2)
    for name in (
        "variance",
        "effective_rank/token",
        "effective_rank/image",
        "stable_rank/token",
        "capacity_bits/token",
    ):
        assert not math.isfinite(metrics.get(f"latent/{name}", math.nan)), name


def test_the_suffix_ends_every_name_and_changes_no_value():
    z = gaussian(0, (6, 4, 3))
    (plain, spectra), (before, spectra_before) = lm.latent_metrics(z, 2), lm.latent_metrics(z, 2, "/pre")
    assert before == {f"{name}/pre": value for name, value in plain.items()}
    assert spectra_before == {f"{name}/pre": value for name, value in spectra.items()}
    assert set(spectra) == {"token", "image"}


def test_the_names_are_those_that_stores_and_reports_use():
    metrics, _ = lm.latent_metrics(gaussian(0, (6, 4, 3)), 2)
    both = ("effective_rank", "spectral_rank", "participation_ratio", "stable_rank")
    assert set(metrics) == {f"latent/{name}/{level}" for name in both for level in ("token", "image")} | {
        "latent/variance",
        "latent/spatial_variance",
        "latent/total_variation",
        "latent/rankme/image",
        "latent/alpha_req/image",
        "latent/alpha_req/image/fit_last",
        "latent/uniformity/image",
        "latent/capacity_bits/token",
        "latent/viv/token",
        "latent/viv/image",
    }
