"""What an evaluation measures: agreement with torch-fidelity and torchmetrics themselves, references, floors, flags, probes."""

import hashlib
import io
import math
import resource
import zipfile

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from scipy.ndimage import zoom
from timm.models.vision_transformer import VisionTransformer
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchmetrics.functional.image import peak_signal_noise_ratio

from dsd_lab.core.data import DataSet, Images
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BadInput
from dsd_lab.evaluation import pretrained as weights
from dsd_lab.evaluation import real_images as real
from dsd_lab.evaluation import workspace
from dsd_lab.evaluation.dinov2 import dinov2_network
from dsd_lab.evaluation.distances import (
    fid,
    flags,
    frechet,
    inception_score,
    kid,
    nearest_train,
    precision_recall,
    statistics,
)
from dsd_lab.evaluation.evaluate import evaluate_generation
from dsd_lab.evaluation.extractor import FEATURES, load_extractor
from dsd_lab.evaluation.features import INDOMAIN, dinov2, extract, inception, indomain
from dsd_lab.evaluation.pretrained import WEIGHTS, weights_path
from dsd_lab.evaluation.real_images import matching
from dsd_lab.evaluation.reconstruction import psnr, representation, ssim, ssim_window
from dsd_lab.evaluation.reference import DIMENSIONS, check_files, read_reference
from dsd_lab.evaluation.sampling import BLOCK, labels_of
from dsd_lab.evaluation.workspace import EvaluationCache
from dsd_lab.home.home import Home
from dsd_lab.home.names import extractor_path
from dsd_lab.specs.evaluate_list import applies
from dsd_lab.specs.metrics import SAMPLE
from dsd_lab.specs.trial import Generation, Trial

CPU = torch.device("cpu")
HOW = "cfg1-euler2-holdout-ema0.95"


@pytest.fixture(scope="module")
def data(digits):
    parts = [Images(p.pixels[:n], p.labels[:n]) for p, n in ((digits.train, 150), (digits.holdout, 80))]
    return DataSet(*parts, 10, "measured" * 8)


@pytest.fixture(scope="module")
def home(tmp_path_factory, data):
    home = Home(tmp_path_factory.mktemp("measuring"))
    load_extractor(data, home.cache, CPU)
    return home


@pytest.fixture(scope="module")
def bench(home, data, tiny_trial):
    trial = tiny_trial(training={"weight_ema": 0.95})
    list(Trainer(trial, 0, data, CPU, home.root / "checkpoints").run())
    return EvaluationCache(trial, home.root / "checkpoints", data, CPU, home)


def blocks_of(images):
    """Something in the place of `sample_blocks` that draws these images."""
    return lambda *given: ((block, images[block * BLOCK :][:BLOCK]) for block in given[6])


def evaluated(bench, shared=None, **settings):
    given = Generation(**{"sampler": "euler", "steps": 2} | settings)
    return evaluate_generation(given, bench.trial, bench.checkpoints, bench.data, CPU, bench.home.cache, shared)[0]


# -- Against the libraries themselves -------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory, digits):
    """Two folders of PNGs of real images, and the same images."""
    root = tmp_path_factory.mktemp("folders")
    return [pngs(root / "one", digits.train.pixels[:130]), pngs(root / "other", digits.holdout.pixels[:110])]


def pngs(root, pixels):
    root.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(root / f"{i:05d}.png")
    return root, pixels


def theirs(folders, extractor, path, subset):
    inputs = {"input1": str(folders[0][0]), "input2": str(folders[1][0]), "feature_extractor": extractor}
    return torch_fidelity.calculate_metrics(
        **inputs, feature_extractor_weights_path=path, cuda=False, cache=False, save_cpu_ram=True, verbose=False,
        fid=True, kid=True, isc=True, prc=True, batch_size=64, kid_subset_size=subset,
    )  # fmt: skip


def ours(folders, extractor):
    (one, scores, _), (other, *_) = (extract(extractor, pixels, CPU) for _, pixels in folders)
    precision, recall = precision_recall(one, other)
    return {
        "frechet_inception_distance": fid(one, other),
        "kernel_inception_distance_mean": kid(one, other),
        "inception_score_mean": inception_score(scores),
        "precision": precision,
        "recall": recall,
    }


def agree(ours, theirs):
    assert {name: theirs[name] for name in ours} == pytest.approx(ours, abs=1e-4)
    assert ours["frechet_inception_distance"] > 1e-3 and 0 < ours["recall"] <= 1


def test_figures_of_two_folders_are_torch_fidelitys_own_with_the_indomain_extractor(folders, home, data):
    path = extractor_path(home.cache, data.fingerprint)
    agree(ours(folders, indomain(path)), theirs(folders, INDOMAIN, path, 110))


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory):
    """Inception-v3 as torch-fidelity builds it with random weights, in a file, and the file's hash."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save({}, path)
        torch.manual_seed(0)
        made = FeatureExtractorInceptionV3("random", ["2048"], path)
    torch.save(dict(made.state_dict()), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pinned(random_inception, monkeypatch):
    path, digest = random_inception
    row = WEIGHTS["inception"]
    monkeypatch.setitem(WEIGHTS, "inception", weights.Weights(row.file, digest, row.module, row.constant))
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)  # eigenvalues of products of 2048 x 2048
def test_figures_of_two_folders_are_torch_fidelitys_own_with_inception(digits, tmp_path, pinned):
    few = [pngs(tmp_path / n, p.pixels[:24]) for n, p in (("one", digits.train), ("other", digits.holdout))]
    found = theirs(few, "inception-v3-compat", str(pinned), 24)
    mine = ours(few, inception(pinned))
    scale = max(1.0, abs(found["frechet_inception_distance"]))  # random weights give features of any size
    for name, value in mine.items():
        assert value == pytest.approx(found[name], abs=1e-4 * scale)


def pairs(side, channels=1, count=6, seed=0):
    """Smooth images and noisy copies, the noise stronger from image to image: uint8 [N, C, side, side]."""
    source = np.random.default_rng(seed)
    coarse = source.uniform(0, 255, (count, channels, 3, 3))
    smooth = np.stack([[zoom(channel, side / 3, order=1) for channel in image] for image in coarse])
    noise = source.normal(0, 1, smooth.shape) * np.linspace(2, 60, count)[:, None, None, None]
    return tuple(torch.from_numpy(np.clip(np.round(x), 0, 255).astype(np.uint8)) for x in (smooth + noise, smooth))


def ssim_by_its_definition(image, original, side):
    """One channel, by loops: scikit-image's `structural_similarity` at a `data_range` of 255, and Wang et al. 2004.

    From 11 pixels on with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`, below with its defaults
    (`win_size` 5 where 7 does not fit): the mean over every window that lies within the image.
    """
    width = 11 if side >= 11 else min(7, side - 1 + side % 2)
    if width == 11:
        line = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
        weights, correction = np.outer(line, line) / np.outer(line, line).sum(), 1.0
    else:
        weights, correction = np.full((width, width), 1 / width**2), width**2 / (width**2 - 1)
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(side - width + 1):
        for j in range(side - width + 1):
            x, y = (p[i : i + width, j : j + width].astype(float) for p in (image, original))
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy, vxy = (
                correction * (weights * d).sum() for d in ((x - mx) ** 2, (y - my) ** 2, (x - mx) * (y - my))
            )
            found.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(found)


@pytest.mark.parametrize(("side", "channels"), [(5, 1), (8, 1), (8, 3), (11, 1), (28, 1), (64, 3)])
def test_ssim_is_scikit_images_and_wangs(side, channels):
    images, originals = pairs(side, channels, count=6 if side < 64 else 2)
    expected = [
        np.mean([ssim_by_its_definition(a, b, side) for a, b in zip(image, original, strict=True)])
        for image, original in zip(images.numpy(), originals.numpy(), strict=True)
    ]
    assert 0.01 < min(expected) < 0.9
    assert ssim(images, originals) == pytest.approx(np.mean(expected), abs=1e-9)
    assert ssim(originals, originals) == pytest.approx(1)


def test_psnr_is_the_mean_over_images_of_their_own(digits):
    images, originals = pairs(8)
    own = [20 * np.log10(255 / np.sqrt(np.square(a.astype(float) - b).mean())) for a, b in zip(images.numpy(), originals.numpy(), strict=True)]  # fmt: skip
    assert max(own) - min(own) > 10 and psnr(images, originals) == pytest.approx(np.mean(own), rel=1e-12)
    together = float(peak_signal_noise_ratio(images.double(), originals.double(), data_range=255.0))
    assert psnr(images, originals) > together + 1  # one error over all images is that of the worst ones
    many = torch.cat([images] * 100), torch.cat([originals] * 100)  # more than a batch
    assert psnr(*many) == pytest.approx(np.mean(own)) and ssim(*many) == pytest.approx(ssim(images, originals))


@pytest.mark.parametrize(
    ("side", "name"),
    [(8, "skimage7"), (6, "skimage5"), (5, "skimage5"), (4, "skimage3"), (11, "wang11"), (64, "wang11")],
)
def test_ssim_has_a_window_for_images_of_any_size_and_its_name_says_which(side, name):
    assert ssim_window(side) == name
    originals = torch.randint(0, 256, (4, 1, side, side), generator=torch.manual_seed(0), dtype=torch.uint8)
    assert ssim(originals, originals) == pytest.approx(1) and -1 < ssim(255 - originals, originals) < 0.5


def test_ssim_has_no_value_where_no_window_varies():
    assert math.isnan(ssim(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, 1, 2, 2, dtype=torch.uint8)))


# -- Definitions ----------------------------------------------------------------------------------------


def test_the_inception_score_is_at_most_the_number_of_classes_and_one_for_one_class():
    certain = 50.0 * torch.eye(7).repeat(20, 1)
    assert inception_score(certain) <= 7 and inception_score(certain) > 5
    assert inception_score(certain[:1].repeat(40, 1)) == pytest.approx(1)
    assert inception_score(torch.zeros(4, 7)) == pytest.approx(1)


def test_precision_and_recall_tell_missing_modes_from_bad_samples():
    source = torch.Generator().manual_seed(0)
    near = torch.randn(200, 2, generator=source)
    reference = torch.cat([near, near + 100])
    half = torch.randn(200, 2, generator=source)
    precision, recall = precision_recall(half, reference)
    assert precision > 0.8 and 0.3 < recall < 0.6
    assert precision_recall(half + 1000, reference) == (0.0, 0.0)
    assert all(map(math.isnan, precision_recall(half[:3], reference)))


def test_large_and_small_sets_give_the_same_precision_and_recall(monkeypatch):
    one, other = torch.randn(90, 4, generator=torch.manual_seed(0)), torch.randn(70, 4)
    whole = precision_recall(one, other)
    monkeypatch.setattr("dsd_lab.evaluation.distances._WHOLE", 10)
    assert precision_recall(one, other) == whole


def test_the_nearest_training_image_is_found_in_any_block(digits, monkeypatch):
    asked, train = digits.holdout.pixels[:40], digits.train.pixels
    whole = nearest_train(asked, train)
    monkeypatch.setattr(torch.Tensor, "split", lambda self, size, split=torch.Tensor.split: split(self, min(size, 100)))
    assert nearest_train(asked, train) == pytest.approx(whole, abs=0.01)


# -- Flags ----------------------------------------------------------------------------------------------


def flagged(samples, reference):
    mine, theirs = statistics(samples), statistics(reference)
    return flags(mine, len(samples), theirs, frechet(mine, theirs))


def test_b33_sample_sets_that_a_distance_cannot_be_trusted_of_are_flagged():
    source = torch.Generator().manual_seed(0)
    reference = torch.randn(400, 16, generator=source)
    enough = torch.randn(100, 16, generator=source)
    assert flagged(enough, reference) == {}
    assert flagged(enough[:10], reference) == {"few_images": 10.0}
    assert flagged(enough[:5].repeat(20, 1), reference) == {"rank_deficient": 4.0}
    assert flagged(enough[:1].repeat(100, 1), reference) == {"constant": 1.0}
    assert flags(statistics(enough), 100, statistics(reference), math.nan) == {"not_finite": 1.0}


def test_directions_that_real_images_lack_are_no_fault_of_the_samples():
    reference = torch.randn(400, 16, generator=torch.manual_seed(0))
    dead = reference.clone()
    dead[:, 12:] = 0
    assert flagged(dead[:100], dead) == {}
    assert flagged(dead[:100], reference) == {"rank_deficient": 12.0}


def test_a_constant_sample_set_is_measured_and_flagged(bench, monkeypatch):
    monkeypatch.setattr(workspace, "sample_blocks", blocks_of(torch.zeros(80, 1, 8, 8, dtype=torch.uint8)))
    found = evaluated(bench)
    assert found[f"fid_flag/constant/indomain-n80-{HOW}"] == 1 and found[f"fid/indomain-n80-{HOW}"] > 0


def test_no_flag_where_there_is_nothing_to_flag(bench, data, monkeypatch):
    monkeypatch.setattr(workspace, "sample_blocks", blocks_of(data.holdout.pixels))
    assert not [name for name in evaluated(bench) if name.startswith("fid_flag/")]


# -- Real images ----------------------------------------------------------------------------------------


def test_a_floor_has_the_number_of_the_samples_and_their_classes():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    chosen, lacking = matching(labels, torch.tensor([2, 1, 2]))
    assert sorted(labels[chosen].tolist()) == [1, 2, 2] and lacking == 0
    chosen, lacking = matching(labels, torch.tensor([1, 1, 1, 1]))
    assert labels[chosen].tolist().count(1) == 2 and len(set(chosen.tolist())) == 4 and lacking == 0
    chosen, lacking = matching(labels, torch.zeros(12, dtype=torch.long))
    assert sorted(chosen.tolist()) == list(range(9)) and lacking == 3
    assert matching(labels, torch.ones(9, dtype=torch.long))[0].tolist() == list(range(9))


@pytest.mark.parametrize(("images", "where"), [(30, "balanced-n30"), (100, "balanced-withtrain20-n100")])
def test_every_fid_has_a_floor_at_its_number(bench, images, where):
    found = evaluated(bench, images=images, metrics=["fid", "kid"])
    floors = {name for name in found if "_floor/" in name}
    assert floors == {f"{m}_floor/indomain-{at}" for m in ("fid", "kid") for at in ("n80", where)}
    filled = {n: v for n, v in found.items() if n.startswith("fid_flag/floor_with_train/")}
    assert list(filled.values()) == ([20.0] if "withtrain" in where else [])


def test_more_samples_than_there_are_real_images_are_flagged_as_without_a_floor(bench):
    found = evaluated(bench, images=300, steps=1, metrics=["fid"])
    assert found["fid_flag/few_real/indomain-n300-cfg1-euler1-balanced-ema0.95"] == 230
    assert {name for name in found if "_floor/" in name} == {"fid_floor/indomain-n80"}


def test_features_of_the_training_images_are_cached_by_data_extractor_size_and_number(bench, home, monkeypatch):
    first = evaluated(bench)
    (path,) = (home.cache / "statistics").glob("*.safetensors")
    parts = path.stem.split("-")
    assert parts[0] == bench.data.fingerprint[:16] and parts[-2:] == ["8px", "n150"] and INDOMAIN in path.stem
    calls = []
    monkeypatch.setattr(real, "extract", lambda *given: calls.append(len(given[1])) or extract(*given))
    assert evaluated(bench) == first and calls == [80]  # the held-out images alone


def test_labels_are_balanced_or_drawn_and_the_same_every_time(data):
    balanced, drawn = (labels_of(Generation(images=500, labels=kind), data) for kind in ("balanced", "random"))
    assert balanced.bincount().tolist() == [50] * 10
    counts = drawn.bincount(minlength=10)
    assert len(set(counts.tolist())) > 1 and counts.min() > 20
    assert torch.equal(drawn, labels_of(Generation(images=500, labels="random"), data))


# -- References -----------------------------------------------------------------------------------------


def reference(folder, found, name="reference.npz", **more):
    np.savez(folder / name, **found, **more)
    path = folder / name
    return {"reference": str(path), "reference_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_published_statistics_replace_the_training_images_and_are_named(bench, tmp_path):
    features = bench.real(Generation()).held.features
    given = reference(tmp_path, statistics(features))
    plain, against = evaluated(bench), evaluated(bench, **given)
    named = f"indomain-ref{given['reference_sha256'][:8]}"
    assert against[f"fid/{named}-n80-{HOW}"] != plain[f"fid/indomain-n80-{HOW}"]
    assert against[f"fid_floor/{named}-n80"] == pytest.approx(0, abs=1e-6)
    assert against[f"kid/indomain-n80-{HOW}"] == plain[f"kid/indomain-n80-{HOW}"]
    assert not any(name.startswith("fid/indomain-n") for name in against)
    found = read_reference(Generation(**given))
    assert frechet(found, found) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, "not of the 64 features of `extractor: indomain`"),
        ({"mu": np.zeros(64)}, "not an .npz with mu and sigma"),
        ({"mu": np.full(64, np.nan), "sigma": np.eye(64)}, "not finite"),
        ({"mu": np.array([{}] * 64), "sigma": np.eye(64)}, "not an .npz with mu and sigma"),
    ],
)
def test_a_reference_that_is_none_is_refused_in_one_line(tmp_path, made, complaint):
    with pytest.raises(BadInput, match=complaint) as refused:
        check_files([Generation(**reference(tmp_path, made))], Home(tmp_path))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.integration
@pytest.mark.parametrize(
    ("header", "packed"),
    [
        ({"descr": "<f8", "fortran_order": False, "shape": (2**33,)}, 0),
        ({"descr": "|S17179869184", "fortran_order": False, "shape": (64,)}, 0),
        ({"descr": "<f8", "fortran_order": False, "shape": (64,)}, 2**30),
    ],
    ids=["shape", "type", "packed"],
)
def test_a_reference_that_becomes_gigabytes_is_refused_before_they_are(header, packed, tmp_path):
    path, begin = tmp_path / "a.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(begin, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("mu.npy", "w") as file:
        file.write(begin.getvalue())
        for _ in range(packed // 2**24):
            file.write(bytes(2**24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInput) as refused:
        read_reference(Generation(reference=str(path)))
    assert len(str(refused.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10  # kilobytes


def test_a_reference_that_is_missing_damaged_or_altered_is_refused(tmp_path):
    found = {"mu": np.zeros(64), "sigma": np.eye(64)}
    given = Generation(**reference(tmp_path, found))
    check_files([given], Home(tmp_path))
    reference(tmp_path, found | {"mu": np.ones(64)})
    with pytest.raises(BadInput, match="has changed"):
        check_files([given], Home(tmp_path))
    (tmp_path / "reference.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(BadInput, match="not an"):
        check_files([Generation(reference=str(tmp_path / "reference.npz"))], Home(tmp_path))
    (tmp_path / "reference.npz").unlink()
    with pytest.raises(BadInput, match="no such file"):
        check_files([given], Home(tmp_path))


def test_the_extractors_have_the_features_that_references_are_checked_for(home, data):
    assert DIMENSIONS == {"indomain": FEATURES, "inception": 2048, "dinov2": 1024}


# -- Inception ------------------------------------------------------------------------------------------


def test_inception_without_its_weights_is_refused_by_the_name_of_the_verb_that_brings_them(tmp_path):
    home = Home(tmp_path)
    with pytest.raises(BadInput, match="fetch-weights inception"):
        check_files([Generation(extractor="inception")], home)
    with pytest.raises(BadInput, match="fetch-weights inception"):
        check_files([Generation(extractor="inception", inception_weights=str(tmp_path / "elsewhere.pth"))], home)
    path = weights_path("inception", home)
    path.parent.mkdir()
    path.write_bytes(b"other weights")
    with pytest.raises(BadInput, match="has the SHA-256"):
        check_files([Generation(extractor="inception")], home)
    with pytest.raises(BadInput, match="fetch-weights inception"):
        inception(path)


def test_the_pinned_hash_is_the_one_that_torch_fidelitys_own_file_name_carries():
    row = WEIGHTS["inception"]
    assert row.url().endswith(row.file) and row.file.endswith(f"-{row.sha256[:8]}.pth") and len(row.sha256) == 64


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inception_figures_have_names_of_their_own_and_share_the_samples(bench, pinned):
    given = {"extractor": "inception", "inception_weights": str(pinned)}
    given["metrics"] = ["fid", "kid", "is", "precision", "recall"]
    small = DataSet(
        Images(bench.data.train.pixels[:20], bench.data.train.labels[:20]),
        Images(bench.data.holdout.pixels[:16], bench.data.holdout.labels[:16]), 10, "inception" * 7,
    )  # fmt: skip
    shared = EvaluationCache(bench.trial, bench.checkpoints, small, CPU, bench.home)
    check_files([Generation(**given)], bench.home)
    found = evaluate_generation(
        Generation(sampler="euler", steps=2, **given),
        bench.trial,
        bench.checkpoints,
        small,
        CPU,
        bench.home.cache,
        shared,
    )[0]
    how = "inception-n16-cfg1-euler2-holdout-ema0.95"
    assert {f"{m}/{how}" for m in ("fid", "kid", "is", "precision", "recall")} <= set(found)
    assert not any("indomain" in name or name.startswith("label_accuracy") for name in found)
    assert found[f"fid_flag/few_images/{how}"] == 16 and "fid_floor/inception-n16" in found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_spatial_features_are_the_first_channels_of_adms_layer(digits, pinned, tmp_path):
    network, pixels = inception(pinned), digits.holdout.pixels[:3]
    x = interpolate_bilinear_2d_like_tensorflow1x(pixels.expand(-1, 3, -1, -1).float(), (299, 299), align_corners=False)
    x = (x - 128) / 128
    names = (
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "MaxPool_1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "MaxPool_2",
    )
    for name in (*names, *(f"Mixed_{m}" for m in ("5b", "5c", "5d", "6a", "6b", "6c"))):
        x = getattr(network, name)(x)
    expected = network.Mixed_6d.branch1x1(x)[:, :7].flatten(1)
    found = extract(network, pixels, CPU, spatial=True)
    assert found.spatial.shape == (3, 2023) and torch.allclose(found.spatial, expected, rtol=1e-4, atol=1e-5)
    assert extract(network, pixels, CPU).spatial is None and torch.equal(
        extract(network, pixels, CPU).features, found.features
    )
    given = Generation(
        extractor="inception", inception_weights=str(pinned), metrics=["sfid"], reference=str(tmp_path / "a.npz")
    )
    np.savez(tmp_path / "a.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(BadInput, match="mu_s and sigma_s"):
        read_reference(given, spatial=True)
    np.savez(tmp_path / "a.npz", mu_s=np.ones(2023), sigma_s=np.eye(2023))
    assert read_reference(given, spatial=True)["mu"].shape == (2023,)


@pytest.fixture
def dino(tmp_path, monkeypatch):
    """A small DINOv2 of random weights as its authors' files have it, whose hash is pinned, and the network itself."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=224, patch_size=14, embed_dim=64, depth=2, num_heads=1, init_values=1.0, num_classes=0
    ).eval()
    torch.save(network.state_dict() | {"mask_token": torch.zeros(1, 64)}, tmp_path / "small.pth")
    digest, row = hashlib.sha256((tmp_path / "small.pth").read_bytes()).hexdigest(), WEIGHTS["dinov2"]
    monkeypatch.setitem(WEIGHTS, "dinov2", weights.Weights("small.pth", digest, row.module, row.constant))
    return tmp_path / "small.pth", network


def test_dinov2_gives_its_class_token_of_images_of_224_pixels(dino):
    path, network = dino
    pixels = torch.randint(0, 256, (3, 3, 224, 224), generator=torch.manual_seed(1), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network.forward_features((pixels / 255 - mean) / std)[:, 0]
    found = extract(dinov2(path), pixels, CPU)
    assert torch.allclose(found.features, expected, rtol=1e-4, atol=1e-5) and found.scores.shape == (3, 0)


def test_fd_dinov2_is_measured_where_its_weights_are(bench, dino):
    metrics = evaluated(bench, extractor="dinov2", dinov2_weights=str(dino[0]), images=30, metrics=["fid", "precision"])
    assert {"fid/dinov2-n30-cfg1-euler2-balanced-ema0.95", "fid_floor/dinov2-n80"} <= metrics.keys()
    with pytest.raises(BadInput, match="fetch-weights dinov2"):
        check_files([Generation(extractor="dinov2")], bench.home)


def test_positions_of_dinov2_are_those_of_a_smaller_grid():
    tensors = VisionTransformer(img_size=518, patch_size=14, embed_dim=64, depth=1, num_heads=1, init_values=1.0, num_classes=0).state_dict()  # fmt: skip
    grid = torch.arange(37.0)[:, None].expand(37, 37)  # rows
    tensors["pos_embed"] = torch.cat([torch.zeros(1, 1, 64), grid.flatten()[None, :, None].expand(-1, -1, 64)], 1)
    found = dinov2_network(tensors).pos_embed[0, 1:, 0].reshape(16, 16)
    assert torch.allclose(found, found[:, :1].expand(16, 16), atol=1e-4)
    rows = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5  # DINOv2's own: a scale of 16.1 / 37
    assert torch.allclose(found[1:-1, 0], rows[1:-1], atol=0.1)


# -- What is chosen -------------------------------------------------------------------------------------


def test_metrics_choose_what_is_measured(bench):
    assert {name.split("/")[0] for name in evaluated(bench, metrics=["precision", "fid"])} == {
        "fid",
        "precision",
        "fid_floor",
        "precision_floor",
    }
    found = evaluated(bench, metrics=["psnr", "linear", "knn"])
    assert set(found) == {"psnr/perimage-n80-ema0.95", *(f"probe/{m}/train150-n80-ema0.95" for m in ("knn", "linear"))}


def test_every_metric_is_recorded_under_the_name_of_its_definition(bench):
    measured = [metric for metric in SAMPLE if metric.name != "sfid"]  # of Inception's features alone
    found = evaluated(bench, metrics=[metric.name for metric in measured])
    floors = {name for name in found if "_floor/" in name or name.startswith("fid_flag/")}
    named = {
        name: metric for name in found.keys() - floors for metric in measured if name.startswith(f"{metric.recorded}/")
    }
    assert named.keys() == found.keys() - floors and set(named.values()) == set(measured)
    assert all(metric.within[0] <= found[name] <= metric.within[1] for name, metric in named.items())


def test_an_evaluation_without_samples_measures_a_control_too():
    control = Trial.model_validate({"objective": {"diffusion_weight": 0.0}})
    assert not applies(Generation(metrics=["fid", "kid"]), control) and applies(Generation(), Trial())
    assert applies(Generation(metrics=["psnr", "knn"]), control) and applies(Generation(), control)


def test_a_control_is_measured_for_what_applies_to_it_where_the_entry_asks_for_samples_too(bench):
    fields = Trial.model_validate(bench.trial.model_dump() | {"objective": {"diffusion_weight": 0.0}})
    control = EvaluationCache(fields, bench.checkpoints, bench.data, CPU, bench.home)
    asked = ["fid", "label_accuracy", "rfid", "psnr", "ssim", "knn"]
    found = evaluated(control, metrics=asked)
    assert {name.split("/")[0] for name in found} == {"rfid", "psnr", "ssim", "probe"}
    assert found.items() <= evaluated(bench, metrics=asked).items()  # the same weights: the same reconstructions


def test_equal_samples_are_drawn_once_and_others_anew(bench, monkeypatch):
    drawn = []

    def remember(*given):
        drawn.append(given[3].guidance)
        return original(*given)

    original = workspace.sample_blocks
    monkeypatch.setattr(workspace, "sample_blocks", remember)
    shared = EvaluationCache(bench.trial, bench.checkpoints, bench.data, CPU, bench.home)
    first = evaluated(bench, shared, guidance=2.0, metrics=["fid"])
    second = evaluated(bench, shared, guidance=2.0, metrics=["fid", "kid"])
    third = evaluated(bench, shared, guidance=3.0, metrics=["fid"])
    assert drawn == [2.0, 3.0] and first.items() <= second.items() and set(first) != set(third)
    shared.forget_samples()
    assert evaluated(bench, guidance=3.0, metrics=["fid"]) == third and drawn == [2.0, 3.0, 3.0]


class Known:
    """A network whose latents are the image's class, or nothing."""

    def __init__(self, labels):
        self.labels = labels

    def encode(self, x):
        return torch.nn.functional.one_hot(x[:, 0, 0, 0].long() + 1, 11).float() * self.labels


@pytest.mark.parametrize(("knows", "expected"), [(1, (1.0, 1.0)), (0, (0.0, 0.25))])
def test_probes_read_classes_off_latents_that_hold_them_and_off_no_others(knows, expected):
    labels = torch.arange(200) % 10
    pixels = torch.zeros(200, 1, 8, 8)
    pixels[:, 0, 0, 0] = labels
    images = Images(pixels, labels)
    images = type("Raw", (Images,), {"at": lambda self, i, device: (self.pixels[i], self.labels[i])})(pixels, labels)
    found = representation(Known(knows), DataSet(images, images, 10, "x"), CPU, ("knn", "linear"))
    assert set(found) == {"knn", "linear"} and all(expected[0] <= v <= expected[1] for v in found.values())
