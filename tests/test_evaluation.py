"""Generation figures: known distances, an extractor worth its name, and names that say how they were measured."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch

from dsd_lab.core.data import DataSet, Images
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.evaluation import extractor as extractor_module
from dsd_lab.evaluation import metrics as measuring
from dsd_lab.evaluation.distances import fid, kid, nearest_train
from dsd_lab.evaluation.evaluate import evaluate_generation
from dsd_lab.evaluation.extractor import load_extractor
from dsd_lab.evaluation.metric_names import sampling_name
from dsd_lab.evaluation.reconstruction import psnr, reconstructions
from dsd_lab.evaluation.sampling import labels_of, sample_blocks
from dsd_lab.specs.trial import Generation

CPU = torch.device("cpu")


def features(count, size, seed=0, scale=1.0, shift=0.0):
    source = np.random.default_rng(seed)
    return torch.from_numpy(source.normal(size=(count, size)) @ source.normal(size=(size, size)) * scale + shift)


def small(data, train=150, holdout=50, fingerprint="small" * 16):
    parts = (Images(part.pixels[:n], part.labels[:n]) for part, n in ((data.train, train), (data.holdout, holdout)))
    return DataSet(*parts, data.classes, fingerprint)


# -- Distances ---------------------------------------------------------------------------------------


def test_fid_and_kid_of_a_set_with_itself_are_zero():
    found = features(300, 16)
    assert fid(found, found) == pytest.approx(0, abs=1e-6)
    assert kid(found, found) == pytest.approx(0, abs=0.02 * kid(found, found + 3))


@pytest.mark.parametrize("size", [2, 8, 64])
def test_fid_is_the_frechet_distance_of_the_two_gaussians(size):
    one, two = features(500, size), features(400, size, 1, 0.7, 1.5)
    (mean1, cov1), (mean2, cov2) = ((f.mean(0).numpy(), np.cov(f.numpy(), rowvar=False)) for f in (one, two))
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * scipy.linalg.sqrtm(cov1 @ cov2).real)
    assert fid(one, two) == pytest.approx(expected, rel=1e-5)
    assert fid(two, one) == pytest.approx(expected, rel=1e-5)


def test_fid_of_a_shifted_set_is_the_squared_shift():
    found = features(300, 8)
    assert fid(found, found + 2) == pytest.approx(8 * 4, rel=1e-6)


def test_fid_is_defined_with_fewer_samples_than_features_and_for_constant_ones():
    reference = features(300, 64)
    for few in (features(10, 64, 1), torch.zeros(50, 64, dtype=torch.float64)):
        assert math.isfinite(fid(few, reference)) and fid(few, reference) > 0


def test_kid_is_the_cubic_kernels_unbiased_distance_where_one_subset_is_the_whole_set():
    one, two = features(150, 4) / 4, features(150, 4, 1) / 4 + 0.5

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(one)
    within = [(kernel(f, f).sum() - kernel(f, f).diag().sum()) / (n * (n - 1)) for f in (one, two)]
    expected = float(within[0] + within[1] - 2 * kernel(one, two).mean())
    assert kid(one, two) == pytest.approx(expected, rel=1e-3)
    assert kid(one, two) == kid(one, two)


def test_training_images_are_their_own_nearest_and_others_are_as_far_as_they_are(digits):
    assert nearest_train(digits.train.pixels[:300], digits.train.pixels) == pytest.approx(0, abs=0.05)
    base = torch.full((5, 3, 4, 4), 100, dtype=torch.uint8)
    far = torch.full((9, 3, 4, 4), 200, dtype=torch.uint8)
    assert nearest_train(base + 7, torch.cat([far, base])) == pytest.approx(7, rel=1e-4)
    assert nearest_train(far, base) == pytest.approx(100, rel=1e-4)
    most = torch.cat([base[:1].expand(250, 3, 4, 4), far[:1].expand(350, 3, 4, 4)])
    assert nearest_train(most, base) == pytest.approx(100, rel=1e-4)


def test_the_distance_to_the_nearest_training_image_does_not_depend_on_how_many_are_asked(digits):
    each = [nearest_train(image[None], digits.train.pixels) for image in digits.holdout.pixels[:101]]
    assert nearest_train(digits.holdout.pixels[:101], digits.train.pixels) == pytest.approx(
        float(np.median(each)), abs=0.05
    )


class Copy:
    """A network whose reconstruction is the image plus a number of grey levels."""

    def __init__(self, error):
        self.error = error

    def encode(self, x):
        return x

    def decode(self, z):
        return z + self.error / 127.5


def test_psnr_is_infinite_for_perfect_copies_and_known_for_a_known_error(digits):
    middle = Images(digits.holdout.pixels // 2 + 60, digits.holdout.labels)
    data = DataSet(digits.train, middle, 10, "middle")
    assert psnr(reconstructions(Copy(0), data, CPU), middle.pixels) == math.inf
    assert psnr(reconstructions(Copy(5), data, CPU), middle.pixels) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(reconstructions(Copy(-51), data, CPU), middle.pixels) == pytest.approx(20 * math.log10(5))


# -- The extractor -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("cache")
    load_extractor(digits, folder, CPU)
    return folder


def test_the_extractor_knows_held_out_digits(cache, digits):
    found, predicted = load_extractor(digits, cache, CPU).extract(digits.holdout.pixels, CPU)
    assert float((predicted == digits.holdout.labels).double().mean()) > 0.95
    assert found.shape == (len(digits.holdout), 64) and bool(torch.isfinite(found).all())


def test_the_extractor_is_trained_once_and_then_read(cache, digits, monkeypatch):
    first = load_extractor(digits, cache, CPU)
    monkeypatch.setattr(extractor_module, "_train", lambda *_: pytest.fail("trained again"))
    second = load_extractor(digits, cache, CPU)
    assert not second.training
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_extractor_is_the_same_wherever_it_is_trained_and_another_for_other_data(tmp_path, digits):
    data = small(digits)
    torch.manual_seed(0)
    first = load_extractor(data, tmp_path / "first", CPU).state_dict()
    torch.manual_seed(1)
    second = load_extractor(data, tmp_path / "second", CPU).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = load_extractor(small(digits, train=149, fingerprint="other" * 16), tmp_path / "first", CPU).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert len(list((tmp_path / "first" / "extractors").glob("*.safetensors"))) == 2


def test_features_do_not_depend_on_the_batch_size(cache, digits):
    network = load_extractor(digits, cache, CPU)
    whole, parts = (network.extract(digits.holdout.pixels[:60], CPU, batch)[0] for batch in (512, 7))
    assert torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 32, 101), (3, 64, 5), (1, 5, 2)])
def test_the_extractor_fits_images_of_any_kind(channels, size, classes):
    network = extractor_module.Extractor(channels, size, classes).eval()
    found, scores = network(torch.zeros(2, channels, size, size))
    assert found.shape == (2, 64) and scores.shape == (2, classes)


@pytest.mark.parametrize("size", [4, 8, 28, 32, 33, 63, 64, 95, 96, 128, 200, 256])
def test_the_extractor_is_made_again_from_its_weights_and_works_on_at_most_63_pixels_a_side(size):
    network = extractor_module.Extractor(3, size, 5).eval()
    x = torch.rand(1, 3, size, size)
    assert torch.equal(extractor_module.extractor_of(network.state_dict())(x)[0], network(x)[0])
    assert max(network.body[:1](x).shape[2:]) <= 63


def test_real_images_are_nearer_to_real_images_than_noise_is(cache, digits):
    network = load_extractor(digits, cache, CPU)
    noise = torch.randint(0, 256, (200, 1, 8, 8), generator=torch.manual_seed(0), dtype=torch.uint8)
    real, held, random = (network.extract(x, CPU)[0] for x in (digits.train.pixels, digits.holdout.pixels[:200], noise))
    assert fid(held, real) < 0.3 * fid(random, real)
    assert kid(held, real) < 0.3 * kid(random, real)


# -- Names ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_trial, digits):
    """A trained tiny trial, its checkpoints, its data and a cache."""
    folder, data = tmp_path_factory.mktemp("trained"), small(digits)
    trial = tiny_trial(training={"weight_ema": 0.95})
    list(Trainer(trial, 0, data, CPU, folder / "checkpoints").run())
    return trial, folder / "checkpoints", data, CPU, folder / "cache"


def evaluated(trained, **settings):
    return evaluate_generation(Generation(**settings), *trained)


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({"steps": 2}, "indomain-n50-cfg1-heun2-holdout-ema0.95"),
        (
            {"steps": 3, "sampler": "euler", "guidance": 1.5, "images": 23},
            "indomain-n23-cfg1.5-euler3-balanced-ema0.95",
        ),
        ({"steps": 2, "weights": "trained", "images": 30}, "indomain-n30-cfg1-heun2-balanced-trained"),
        (
            {"steps": 2, "images": 30, "labels": "random", "guidance": 2.0, "guidance_interval": [0.25, 0.75]},
            "indomain-n30-cfg2in0.25to0.75-heun2-random-ema0.95",
        ),
        (
            {"sampler": "dopri5", "rtol": 1e-2, "atol": 0.02, "images": 10},
            "indomain-n10-cfg1-dopri5rtol0.01atol0.02-balanced-ema0.95",
        ),
        ({"sampler": "sde", "steps": 2}, "indomain-n50-cfg1-sde2-holdout-ema0.95"),
    ],
)
def test_names_tell_the_extractor_number_guidance_sampler_mix_and_weights(trained, settings, how):
    metrics, samples = evaluated(trained, **settings)
    weights, mix, count = how.rsplit("-", 1)[-1], how.rsplit("-", 2)[-2], how.split("-")[1]
    same = {f"{name}_floor/indomain-{mix}-{count}" for name in ("fid", "kid", "is", "precision", "recall")}
    same = set() if mix == "holdout" else same
    assert set(metrics) - {f"fid_flag/rank_deficient/{how}"} == {
        f"fid/{how}",
        f"kid/{how}",
        f"label_accuracy/{how}",
        f"memorisation/nearest_train/{how}",
        "fid_floor/indomain-n50",
        "kid_floor/indomain-n50",
        "label_accuracy_floor/indomain-n50",
        "memorisation/nearest_train_floor/n50",
        f"psnr/perimage-n50-{weights}",
        *(f"{name}/{how}" for name in ("is", "precision", "recall")),
        *(f"{name}_floor/indomain-n50" for name in ("is", "precision", "recall")),
        f"rfid/indomain-n50-{weights}",
        f"ssim/skimage7-n50-{weights}",
        f"fid_flag/few_images/{how}",
        *same,
    }
    assert all(math.isfinite(value) for value in metrics.values())
    assert samples.dtype == torch.uint8 and samples.shape[1:] == (1, 8, 8)


def test_no_two_evaluations_share_a_name_for_what_they_measure_differently(trained):
    settings = [
        {"steps": 2},
        {"steps": 3},
        {"steps": 2, "sampler": "euler"},
        {"steps": 2, "guidance": 1.25},
        {"steps": 2, "guidance": 1.250001},
        {"steps": 2, "weights": "trained"},
        {"steps": 2, "images": 50},
        {"steps": 2, "images": 51},
        {"steps": 2, "images": 51, "labels": "random"},
        {"steps": 2, "guidance": 1.25, "guidance_interval": [0.0, 0.5]},
        {"steps": 2, "guidance": 1.25, "guidance_interval": [0.0, 0.50001]},
        {"steps": 2, "sampler": "sde"},
        {"sampler": "dopri5", "rtol": 0.01, "images": 4},
        {"sampler": "dopri5", "rtol": 0.02, "images": 4},
    ]
    names = [next(name for name in evaluated(trained, **s)[0] if name.startswith("fid/")) for s in settings]
    assert len(set(names)) == len(names)


def test_an_evaluation_gives_the_same_numbers_twice(trained):
    (first, images), (second, again) = (evaluated(trained, steps=2) for _ in range(2))
    assert first == second and torch.equal(images, again)


def test_what_real_images_score_is_measured_once_in_a_home_folder(trained, monkeypatch):
    trial, folder, data, device, cache = trained
    asked, whole = [], measuring.nearest_train
    monkeypatch.setattr(measuring, "nearest_train", lambda *a: asked.append(len(a[0])) or whole(*a))
    settings = [Generation(steps=2, images=30), Generation(steps=1, images=30), Generation(steps=1, images=31)]
    for path in (cache / "statistics").glob("*.json"):
        path.write_text("damaged")
    found = [evaluate_generation(s, trial, folder, data, device, cache)[0] for s in settings]
    assert asked == [30, len(data.holdout), 30, 31]  # samples, held-out images, samples, samples
    floors = [{k: v for k, v in each.items() if "_floor/" in k} for each in found]
    assert floors[0] == floors[1] and "memorisation/nearest_train_floor/n50" in floors[0]
    assert "fid_floor/indomain-balanced-n31" in floors[2] and "fid_floor/indomain-balanced-n30" not in floors[2]


def test_figures_are_of_the_samples_they_say(trained, monkeypatch):
    trial, folder, data, device, cache = trained
    monkeypatch.setattr("dsd_lab.evaluation.workspace.sample_blocks", lambda *_: iter([(0, data.holdout.pixels)]))
    metrics, _ = evaluate_generation(Generation(steps=2), trial, folder, data, device, cache)
    how = "indomain-n50-cfg1-heun2-holdout-ema0.95"
    for name in ("fid", "kid", "label_accuracy"):
        assert metrics[f"{name}/{how}"] == metrics[f"{name}_floor/indomain-n50"]
    assert metrics[f"memorisation/nearest_train/{how}"] == metrics["memorisation/nearest_train_floor/n50"]


def test_balanced_labels_ask_for_every_class_equally_often(trained, monkeypatch):
    asked = []

    def remember(network, trial, y, *more):
        asked.append(y)
        return sample_blocks(network, trial, y, *more)

    monkeypatch.setattr("dsd_lab.evaluation.workspace.sample_blocks", remember)
    evaluated(trained, steps=1, images=30)
    evaluated(trained, steps=1)
    assert asked[0].bincount().tolist() == [3] * 10
    assert torch.equal(asked[1], trained[2].holdout.labels)


def test_labels_in_the_training_mix_have_every_class_as_often_as_training_to_within_one(digits):
    labels = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    data = SimpleNamespace(train=SimpleNamespace(labels=labels), classes=3)
    y = labels_of(Generation(images=50, labels="training"), data)
    counts = torch.bincount(y, minlength=3)
    assert bool(((counts - torch.tensor([35.0, 12.5, 2.5])).abs() <= 1).all()) and counts.sum() == 50
    assert not torch.equal(y, y.sort().values)
    assert torch.equal(y, labels_of(Generation(images=50, labels="training"), data))


def test_open_and_closed_ends_have_names_of_their_own():
    interval = {"guidance": 2.0, "guidance_interval": [0.1, 0.9]}
    assert sampling_name(Generation(**interval)).startswith("cfg2in0.1to0.9-")
    assert sampling_name(Generation(**interval, guidance_ends="open")).startswith("cfg2inside0.1to0.9-")
