"""Frozen timm models: where their weights come from, what is refused, and what images they are given."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from sweeping import run, write_spec

from dsd_lab.cli.main import main
from dsd_lab.core.model.backbones import Backbone, read_weights
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.sources import NamedBackbone

CPU = torch.device("cpu")
UNPUBLISHED = "resnetblur18"
MODELS = ("test_vit", "test_resnet", "test_efficientnet", "test_mambaout")


def named(name="test_vit", weights="random"):
    return NamedBackbone("a.model", name, "a.weights", str(weights), "a.layers")


def build(name="test_vit", weights="random", layers=None, pixels=64, device=CPU):
    return Backbone(named(name, weights), layers, lambda reduction: pixels, device)


def images(count=2, channels=1, size=64, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("reached out for weights")

    for function in ("load_state_dict_from_hf", "load_state_dict_from_url", "download_cached_file"):
        monkeypatch.setattr(f"timm.models._builder.{function}", refuse)


def saved(path, name="test_vit", seed=3, **settings):
    torch.manual_seed(seed)
    state = timm.create_model(name, **settings).state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_features_are_channels_first_frozen_in_evaluation_mode_and_deep_to_the_gradient_of_images(name):
    backbone = build(name)
    x = images().requires_grad_()
    found = backbone.features(x)
    assert [part.shape[1] for part in found] == backbone.channels
    assert all(part.shape[0] == 2 and part.shape[2] == part.shape[3] for part in found)
    assert not backbone.model.training and not any(p.requires_grad for p in backbone.model.parameters())
    sum(part.square().sum() for part in found).backward()
    assert float(x.grad.norm()) > 0
    assert backbone.parameters() == sum(p.numel() for p in backbone.model.parameters()) > 0


def test_grey_is_repeated_and_values_are_normalised_by_the_models_own_mean_and_std():
    backbone = build("test_resnet")
    grey = images()
    for one, three in zip(backbone.features(grey), backbone.features(grey.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(one, three)
    cfg = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) for part in (cfg.mean, cfg.std))
    expected = backbone.model(((grey + 1) / 2 - mean) / std)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(backbone.features(grey), expected, strict=True))


def test_images_are_scaled_to_the_side_that_is_asked_for_from_the_deepest_reduction():
    asked = []

    def pixels(reduction):
        asked.append(reduction)
        return 3 * reduction

    vit = Backbone(named("test_vit"), [-1], pixels, CPU)
    assert (asked, vit.pixels) == ([16], 48)
    assert vit.features(images(size=20))[0].shape[2:] == (3, 3)
    assert Backbone(named("test_resnet"), [1], pixels, CPU).pixels == 3 * asked[-1] < 3 * 32


@pytest.mark.parametrize("name", MODELS)
def test_layers_come_in_the_order_in_which_they_are_asked_for_and_count_from_either_end(name):
    every = len(timm.create_model(name).feature_info)
    single = [build(name, layers=[i]).features(images())[0] for i in range(every)]
    assert not torch.equal(single[0], single[-1])
    asked = [every - 1, 0, -1]
    backbone = build(name, layers=asked)
    assert backbone.channels == [single[i].shape[1] for i in asked]
    for i, part in zip(asked, backbone.features(images()), strict=True):
        assert torch.equal(part, single[i])
    with pytest.raises(BadInput, match=rf"a.layers: {name} has {every} layers, -{every} to {every - 1}; {every} is"):
        build(name, layers=[every])


def test_random_weights_are_those_of_the_name_whatever_was_drawn_before_and_leave_the_stream_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build().model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = build().model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_files_weights_are_loaded(tmp_path, name, suffix):
    path = saved(tmp_path / f"weights{suffix}", name)
    torch.manual_seed(3)
    theirs = timm.create_model(name).state_dict()
    found = build(name, path, pixels=160).model.state_dict()
    values = [value for value in found.values() if value.is_floating_point()]
    assert values
    for value in values:
        assert any(value.shape == v.shape and torch.equal(value, v) for v in theirs.values())
    assert not all(torch.equal(a, b) for a, b in zip(found.values(), build(name).model.state_dict().values(), strict=True) if a.shape == b.shape)  # fmt: skip


def test_position_codes_are_resampled_to_another_size_and_a_classifier_of_any_size_is_passed_over(tmp_path):
    path = saved(tmp_path / "fine.pth", num_classes=7)
    assert build(weights=path, pixels=64).features(images())[0].shape[2:] == (4, 4)
    state = torch.load(path, weights_only=True)
    headless = tmp_path / "headless.pth"
    torch.save({name: value for name, value in state.items() if not name.startswith("head.")}, headless)
    assert len(torch.load(headless, weights_only=True)) == len(state) - 2
    pairs = zip(*(build(weights=p).features(images()) for p in (path, headless)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_another_models_weights_is_refused(tmp_path, name):
    other = saved(tmp_path / "other.pth", "test_vit" if name != "test_vit" else "test_vit2")
    with pytest.raises(BadInput, match=rf"a.weights: .*other.pth does not hold the weights of {name}: \S"):
        build(name, other)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_file_that_lacks_a_weight_is_refused(tmp_path, name):
    path = saved(tmp_path / "whole.pth", name)
    state = torch.load(path, weights_only=True)
    lost = [k for k in state if k.endswith("weight") and ("blocks" in k)][-1]
    del state[lost]
    torch.save(state, path)
    with pytest.raises(BadInput, match=rf"does not hold the weights of {name}.*{lost}"):
        build(name, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"a.weights: .*gone.pth: no such file; it would hold the weights of test_vit"):
        build(weights=tmp_path / "gone.pth")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    for save, name in ((torch.save, "torch.pth"), (lambda o, p: p.write_bytes(pickle.dumps(o)), "pickle.bin")):
        path = tmp_path / name
        save({"weight": Payload(tmp_path / "ran")}, path)
        with pytest.raises(BadInput, match="not a safetensors or PyTorch file of tensors alone"):
            build(weights=path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "empty.pth", "empty.safetensors", "text.pth"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    if name.startswith("cut"):
        saved(path)
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.write_bytes(b"" if name.startswith("empty") else b"no weights at all\n")
    with pytest.raises(BadInput, match=r"a.weights") as caught:
        build(weights=path)
    assert "\n" not in str(caught.value)


def test_a_file_without_named_tensors_is_refused(tmp_path):
    for content in ({}, {"a": 1}, {"state_dict": {"a": [1.0]}}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(BadInput, match="holds no tensors by name"):
            read_weights(named(weights=tmp_path / "odd.pth"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_vitt", "did you mean 'test_vit"),
        ("vgg16.tv_in2k", "'vgg16.tv_in1k'"),
        ("qqqqqqqq", "list_models"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, said):
    with pytest.raises(BadInput, match=f"a.model: no timm model '{name}'") as caught:
        build(name)
    assert said in str(caught.value)


def test_pretrained_asks_timm_and_where_it_cannot_the_error_says_what_to_provide(monkeypatch):
    asked = []

    def unreachable(name, **_):
        asked.append(name)
        raise FileNotFoundError("no connection\nsecond line")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(BadInput, match=r"a.weights: timm cannot fetch .* test_vit .no connection.; name a local file"):
        build(weights="pretrained")
    assert asked == ["timm/test_vit.r160_in1k"]
    with pytest.raises(BadInput, match=r"a.weights: timm cannot fetch"):  # a model without published weights
        build(UNPUBLISHED, "pretrained")


def test_on_the_meta_device_nothing_is_read(tmp_path):
    backbone = build(weights=tmp_path / "gone.pth", device=torch.device("meta"))
    assert backbone.parameters() == build().parameters()
    with torch.device("meta"):
        assert [part.shape[1] for part in backbone.features(torch.zeros(2, 1, 32, 32))] == backbone.channels


# -- From the command line -----------------------------------------------------------------------------


def spec_of(tmp_path, **auxiliary):
    aligned = {"alignment": 0.5, "alignment_to": "test_vit", **auxiliary}
    return write_spec(tmp_path, base={"auxiliary": aligned})


@pytest.mark.parametrize("verb", ["plan", "sweep", "train"])
def test_an_unknown_model_is_refused_before_anything_runs(tmp_path, capsys, verb):
    path = spec_of(tmp_path, alignment_to="test_vitt", alignment_weights="random")
    more = ["--variant", load_sweep(path).trials[0].variant] if verb == "train" else []
    assert main([verb, str(path), "--home", str(tmp_path / "home"), *more]) == BAD_INPUT
    said = capsys.readouterr().err
    assert f"{path}: auxiliary.alignment_to: no timm model 'test_vitt'; did you mean 'test_vit" in said
    assert not (tmp_path / "home" / "trials").exists()


@pytest.mark.integration
@pytest.mark.parametrize("verb", ["sweep", "train"])
def test_missing_weights_are_named_by_plan_and_refused_by_what_trains(tmp_path, capsys, verb):
    path = spec_of(tmp_path, alignment_weights="models/vit.pth")
    missing = f"auxiliary.alignment_weights: no such file {tmp_path / 'models' / 'vit.pth'}"
    assert main(["plan", str(path), "--home", str(tmp_path / "home"), "--json"]) == OK
    assert f"warning: {missing}" in capsys.readouterr().err
    more = ["--variant", load_sweep(path).trials[0].variant] if verb == "train" else []
    assert main([verb, str(path), "--home", str(tmp_path / "home"), *more]) == BAD_INPUT
    assert f"{path}: {missing}" in capsys.readouterr().err


def test_a_misspelt_word_for_no_file_is_recognised(tmp_path, capsys):
    path = spec_of(tmp_path, alignment_weights="pretraind")
    assert main(["sweep", str(path), "--home", str(tmp_path / "home")]) == BAD_INPUT
    assert "pretraind; did you mean 'pretrained'?" in capsys.readouterr().err


@pytest.mark.integration
def test_plan_shows_heads_and_frozen_models_apart_from_the_network(tmp_path, capsys):
    path = spec_of(tmp_path, alignment_weights="random")
    home = ["--home", str(tmp_path / "home")]
    assert main(["plan", str(path), *home]) == OK
    shown = capsys.readouterr().out
    assert "auxiliary heads" in shown and "frozen models" in shown
    code, plan = run("plan", path, *home)
    assert code == OK
    assert all(t["frozen_params"] > 0 and t["auxiliary_params"] > 0 for t in plan["trials"])
    assert main(["plan", str(write_spec(tmp_path / "plain")), *home]) == OK
    assert "auxiliary heads" not in capsys.readouterr().out


def test_weights_are_found_relative_to_the_spec_and_two_files_of_one_name_are_not_taken_for_one(tmp_path):
    (trial, *_) = load_sweep(spec_of(tmp_path, alignment_weights="../vit.pth")).trials
    assert trial.fields.auxiliary.alignment_weights == str(tmp_path.parent / "vit.pth")
    variants = {n: {"auxiliary": {"alignment_weights": f"{n}/vit.pth"}} for n in ("a", "b")}
    base = {"auxiliary": {"alignment": 0.5, "alignment_to": "test_vit"}}
    with pytest.raises(BadInput, match=r"auxiliary.alignment_weights: .* read different files under one name; rename"):
        load_sweep(write_spec(tmp_path / "two", base=base, variants=variants))
