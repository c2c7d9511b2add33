"""The network: shapes, parameter counts, its start as the identity, and timm's layers against plain PyTorch."""

import math

import pytest
import torch
from torch import nn

from dsd_lab.core.model.blocks import AdaLNZero
from dsd_lab.core.model.network import Network, count_parameters
from dsd_lab.core.model.normalisers import NORMALISERS
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.specs.trial import Latent, Trial

LAYOUTS = ("modular", "coupled", "separate")


def build(trial, channels=1, classes=10, seed=0, stir=True):
    """A network away from its symmetric start, unless it is to be left there."""
    torch.manual_seed(seed)
    network = Network(trial, channels, classes)
    if stir:
        with torch.no_grad():
            for part in [*network.blocks, *network.heads.values()]:
                part.modulation.weight.normal_(std=0.1)
                part.modulation.bias.normal_(std=0.1)
    return network


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "size", "patch", "latent"), [(1, 8, 4, 8), (3, 12, 3, 5), (3, 8, 8, 2), (1, 6, 1, 1)]
)
def test_images_latents_and_predictions_have_the_documented_shapes(tiny_trial, layout, channels, size, patch, latent):
    spec = {
        "layout": layout,
        "image_size": size,
        "patch_size": patch,
        "latent_channels": latent,
        "width": 16,
        "heads": 2,
    }
    network = build(tiny_trial(network=spec), channels)
    x, tokens = torch.randn(3, channels, size, size), (size // patch) ** 2
    z = network.encode(x)
    assert (network.tokens, network.side, network.latent_channels) == (tokens, size // patch, latent)
    assert z.shape == network.encode_raw(x).shape == (3, tokens, latent)
    assert network.denoise(z, torch.rand(3), torch.tensor([0, 9, 10])).shape == z.shape
    assert network.decode(z).shape == x.shape


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normaliser", list(NORMALISERS))
def test_parameters_are_counted_once_and_add_up(tiny_trial, layout, normaliser):
    network = build(tiny_trial(network={"layout": layout}, latent={"normaliser": normaliser}))
    count = count_parameters(network)
    assert count["total"] == sum(p.numel() for p in network.parameters())
    assert count["total"] == sum(count[part] for part in ("encode", "denoise", "decode", "heads", "shared"))
    blocks = sum(p.numel() for p in network.blocks.parameters())
    assert blocks > 0
    if layout == "modular":
        assert count["encode"] + count["denoise"] + count["decode"] == blocks
        assert min(count["encode"], count["denoise"], count["decode"]) > 0
    elif layout == "separate":  # time and class embeddings are the denoiser's alone
        assert count["shared"] == 0 and count["denoise"] > count["encode"] == count["decode"] > 0
    else:
        assert (count["encode"], count["denoise"], count["decode"]) == (0, 0, 0)
        assert count["shared"] > blocks


def test_the_layouts_run_the_blocks_that_the_spec_gives_each_role(tiny_trial):
    modular = build(tiny_trial(network={"encode_blocks": 1, "denoise_blocks": 3, "decode_blocks": 2}))
    assert [list(modular.ranges[role]) for role in ("encode", "denoise", "decode")] == [[0], [1, 2, 3], [4, 5]]
    coupled = build(tiny_trial(network={"layout": "coupled", "shared_blocks": 2}))
    assert len(coupled.blocks) == 2 and all(list(r) == [0, 1] for r in coupled.ranges.values())


@pytest.mark.parametrize(("size", "millions"), [("small256", 42), ("middle256", 118), ("base256", 205)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_papers_sizes_have_its_parameter_counts_within_two_percent(size, millions, layout):
    with torch.device("meta"):
        network = Network(Trial.model_validate({"network": {"size": size, "layout": layout}}), 3, 1000)
    assert count_parameters(network)["total"] / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_block_is_the_identity_at_the_start(tiny_trial, layout):
    network = build(tiny_trial(network={"layout": layout}), stir=False)
    tokens, condition = torch.randn(2, 4, 16), torch.randn(2, 16)
    for block in network.blocks:
        assert torch.equal(block(tokens, condition), tokens)
    for block in build(tiny_trial(network={"layout": layout})).blocks:
        assert not torch.equal(block(tokens, condition), tokens)


@pytest.mark.parametrize(("channels", "size", "patch"), [(1, 8, 4), (3, 12, 3), (2, 6, 1), (3, 8, 8)])
def test_unpatchify_undoes_patchify_and_a_patch_is_a_square_of_the_image(tiny_trial, channels, size, patch):
    network = build(tiny_trial(network={"image_size": size, "patch_size": patch, "width": 16, "heads": 2}), channels)
    x = torch.randn(2, channels, size, size)
    patches = network.patchify(x)
    assert torch.equal(network.unpatchify(patches), x)
    side = size // patch
    for token in (0, side - 1, side * side - 1):
        row, column = divmod(token, side)
        square = x[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        assert torch.equal(patches[:, token], square.flatten(1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_encoding_and_decoding_depend_on_no_label_and_no_time(tiny_trial, layout):
    network = build(tiny_trial(network={"layout": layout}))
    x = torch.randn(2, 1, 8, 8)
    z = network.encode(x)
    image = network.decode(z)
    with torch.no_grad():
        for part in (network.condition.label, network.condition.time):
            for p in part.parameters():
                p.normal_()
    assert torch.equal(network.encode(x), z)
    assert torch.equal(network.decode(z), image)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_denoising_depends_on_time_label_role_and_position(tiny_trial, layout):
    network = build(tiny_trial(network={"layout": layout}))
    z, y = torch.randn(1, 4, 8), torch.tensor([3])
    base = network.denoise(z, torch.tensor([0.4]), y)
    assert not torch.allclose(network.denoise(z, torch.tensor([0.41]), y), base)
    assert not torch.allclose(network.denoise(z, torch.tensor([0.4]), torch.tensor([10])), base)
    assert not torch.allclose(network.denoise(z.flip(1), torch.tensor([0.4]), y).flip(1), base)
    with torch.no_grad():
        network.condition.role.weight[1] += 1
    assert not torch.allclose(network.denoise(z, torch.tensor([0.4]), y), base)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_is_encoded_denoised_and_decoded_without_regard_to_the_others_of_its_batch(tiny_trial, layout):
    network = build(tiny_trial(network={"layout": layout}))
    x, t, y = torch.randn(4, 1, 8, 8), torch.rand(4), torch.arange(4)
    z = network.encode(x)
    assert torch.allclose(network.encode(x[2:3]), z[2:3], atol=1e-6)
    assert torch.allclose(network.denoise(z[2:3], t[2:3], y[2:3]), network.denoise(z, t, y)[2:3], atol=1e-6)
    assert torch.allclose(network.decode(z[2:3]), network.decode(z)[2:3], atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_encoders_parameters_are_those_that_the_latents_depend_on_but_for_the_role_code(tiny_trial, layout):
    network = build(tiny_trial(network={"layout": layout}, latent={"normaliser": "layernorm_affine"}))
    network.encode(torch.randn(2, 1, 8, 8)).square().sum().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    listed = {id(p) for p in network.encoder_parameters()}
    assert {name for name, p in network.named_parameters() if id(p) in listed} == reached - {"condition.role.weight"}


# -- timm's layers ---------------------------------------------------------------------------------


def plain_block(block, tokens, condition):
    """adaLN-Zero (Peebles and Xie 2023), written from the paper in plain PyTorch on the block's weights."""

    def layer_norm(x):
        x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def linear(layer, x):
        return x @ layer.weight.T + layer.bias

    b, n, width = tokens.shape
    shift1, scale1, gate1, shift2, scale2, gate2 = linear(block.modulation, condition)[:, None].split(width, -1)
    h = layer_norm(tokens) * (1 + scale1) + shift1
    heads = block.attention.num_heads
    q, k, v = (
        part.reshape(b, n, heads, -1).transpose(1, 2) for part in linear(block.attention.qkv, h).split(width, -1)
    )
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // heads), -1)
    tokens = tokens + gate1 * linear(block.attention.proj, (weights @ v).transpose(1, 2).reshape(b, n, width))
    h = linear(block.mlp.fc1, layer_norm(tokens) * (1 + scale2) + shift2)
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return tokens + gate2 * linear(block.mlp.fc2, h)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("width", "heads"), [(16, 2), (64, 4), (12, 1)])
def test_a_block_is_what_a_plain_implementation_computes(width, heads, training):
    torch.manual_seed(0)
    block = AdaLNZero(width, heads).double().train(training)
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    tokens, condition = torch.randn(3, 5, width).double(), torch.randn(3, width).double()
    expected = plain_block(block, tokens, condition)
    assert torch.allclose(block(tokens, condition), expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected, tokens)


def test_a_block_has_no_weights_but_those_of_the_plain_implementation():
    names = {name for name, _ in AdaLNZero(16, 2).named_parameters()}
    layers = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2", "modulation")
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


# -- Normalisers -----------------------------------------------------------------------------------


def crooked(seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(32, 4, 8, generator=source) * torch.linspace(0.1, 9, 8) + torch.linspace(-5, 5, 8)


def test_no_normaliser_returns_the_latents():
    z = crooked()
    assert torch.equal(NORMALISERS["none"](8, Latent())(z), z)


@pytest.mark.parametrize("name", ["layernorm", "layernorm_affine"])
def test_layernorm_gives_every_token_zero_mean_and_unit_variance_over_its_channels(name):
    z = NORMALISERS[name](8, Latent())(crooked())
    assert torch.allclose(z.mean(-1), torch.zeros(32, 4), atol=1e-5)
    assert torch.allclose(z.var(-1, correction=0), torch.ones(32, 4), atol=1e-4)


def test_only_the_affine_layernorm_and_no_other_normaliser_is_trained():
    counts = {name: sum(p.numel() for p in make(8, Latent()).parameters()) for name, make in NORMALISERS.items()}
    assert counts == {
        "none": 0,
        "layernorm": 0,
        "layernorm_affine": 16,
        "image_rmsnorm": 0,
        "rmsnorm": 0,
        "batchnorm": 0,
        "tanh": 0,
        "fixed_noise": 0,
        "kl": 0,
    }


def test_batchnorm_gives_every_channel_zero_mean_and_unit_variance_over_batch_and_tokens():
    z = NORMALISERS["batchnorm"](8, Latent()).train()(crooked())
    assert z.shape == (32, 4, 8)
    assert torch.allclose(z.mean((0, 1)), torch.zeros(8), atol=1e-5)
    assert torch.allclose(z.var((0, 1), correction=0), torch.ones(8), atol=2e-3)  # torch's eps of 1e-5 beside 0.01


def test_batchnorm_uses_running_statistics_outside_training():
    norm = NORMALISERS["batchnorm"](8, Latent()).train()
    for seed in range(100):
        norm(crooked(seed))
    norm.eval()
    z = crooked(1000)
    assert torch.allclose(norm(z), norm(torch.cat([z, 100 + z]))[:32])
    assert float(norm(z).mean().abs()) < 0.2 and 0.8 < float(norm(z).std()) < 1.2


@pytest.mark.parametrize(("name", "free"), [("none", True), ("layernorm", False), ("batchnorm", False)])
def test_a_normaliser_takes_away_the_gradient_of_the_scale_and_its_absence_does_not(name, free):
    scale = torch.ones((), requires_grad=True)
    z = NORMALISERS[name](8, Latent())(scale * crooked())
    (z**4).mean().backward()
    assert (abs(float(scale.grad)) > 1) == free
    assert free or abs(float(scale.grad)) < 1e-2


# -- Attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "largest"), [("fp32", 1e-5), ("bf16", 0.03)])
def test_attention_by_its_parts_is_the_fused_one(tiny_trial, precision, largest):
    network, x, found = build(tiny_trial()), torch.randn(6, 1, 8, 8), []
    for fused in (True, False):
        network.attend_fused(fused)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = network.decode(network.encode(x)).float().square().mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    assert (found[0] - found[1]).norm() < largest * found[0].norm()


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("bf16", False)])
def test_a_trial_in_bfloat16_on_the_cpu_attends_by_parts(tiny_trial, digits, precision, fused):
    trainer = Trainer(tiny_trial(training={"precision": precision}), 0, digits, torch.device("cpu"))
    networks = [n for n in (trainer.network, trainer.average, trainer.target_encoder) if n is not None]
    assert {block.attention.fused_attn for network in networks for block in network.blocks} == {fused}
