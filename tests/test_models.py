"""Encoder, decoders and their file: shapes, what is frozen, what a seed decides."""

import io
import math

import pytest
import torch
from torch import nn

from lesionseg.errors import DataError, MissingFileError
from lesionseg.mobilenet import mobilenet_v2
from lesionseg.models.decoders import (
    DECODERS,
    BilinearDecoder,
    PyramidDecoder,
    TransposedDecoder,
)
from lesionseg.models.depthwise import DepthwiseConv2d, use_depthwise
from lesionseg.models.encoder import CHANNELS, Encoder, fold_batch_norms
from lesionseg.models.segmenter import (
    build_segmenter,
    load_encoder_state,
    load_model,
    save_model,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STRIDES = (2, 4, 8, 16, 32)  # of the encoder's maps
each_decoder = pytest.mark.parametrize("decoder", DECODERS)


@pytest.fixture
def build(encoder_state):
    def build(decoder="transposed", *, frozen=True, seed=0, dropout=0.1):
        return build_segmenter(
            encoder_state=encoder_state, decoder=decoder, dropout=dropout, frozen=frozen, seed=seed
        )

    return build


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def copy_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed_names(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    after = module.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def take_steps(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Three training steps, with validation between, on whatever takes a gradient."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        model.eval()
        model.train()
        model.encoder.train()
        optimizer.zero_grad()
        (model(images) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("size", [64, 128])
def test_feature_maps_have_the_stride_and_channels_of_their_scale(encoder_state, size):
    maps = Encoder(state=encoder_state, frozen=True)(torch.rand(1, 3, size, size))
    sizes = [(1, c, size // s, size // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    assert CHANNELS == (16, 24, 32, 96, 1280)
    assert [tuple(m.shape) for m in maps] == sizes


def test_the_last_map_is_torchvision_s_own(encoder_state, images):
    features = mobilenet_v2(weights=None).features.eval()
    features.load_state_dict(encoder_state)
    last = Encoder(state=encoder_state, frozen=True)(images)[-1]
    torch.testing.assert_close(last, features(images))


def test_no_later_block_overwrites_a_map(encoder_state, images):
    encoder = Encoder(state=encoder_state, frozen=True)
    encoder.fold()  # it computes with the very blocks that it shows
    taken = {}
    for index in (1, 3, 6, 13, 18):
        encoder.features[index].register_forward_hook(
            lambda _module, _inputs, output, index=index: taken.update({index: output.clone()})
        )
    for taken_map, final_map in zip(taken.values(), encoder(images), strict=True):
        assert torch.equal(taken_map, final_map)


def test_folded_batch_norms_change_no_map_but_for_rounding(encoder_state, images):
    encoder = Encoder(state=encoder_state, frozen=False)
    with torch.no_grad():  # statistics and weights like trained ones, not 0 and 1
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    folded = fold_batch_norms(encoder.features)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(
        folded(images), encoder.eval().features(images), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (2, 2), (3, 1), (5, 2)])
def test_a_depthwise_convolution_is_torch_s_at_every_size_in_value_and_gradient(size, stride):
    torch.manual_seed(0)
    fast = DepthwiseConv2d(6, 6, 3, stride, padding=1, groups=6, bias=False)
    plain = torch.nn.Conv2d(6, 6, 3, stride, padding=1, groups=6, bias=False)
    plain.load_state_dict(fast.state_dict())
    maps = torch.randn(4, 6, size, size)
    found = []
    for convolution in (fast, plain):
        given = maps.clone().requires_grad_()
        made = convolution(given)
        (made * torch.arange(float(made.numel())).view_as(made)).sum().backward()
        found.append([made.detach(), given.grad, convolution.weight.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_all_depthwise_convolutions_of_the_network_are_the_fast_ones(build):
    """A plain one on a 2x2 map makes a step with 64-pixel images a quarter slower."""
    kinds = {
        type(m)
        for m in build(decoder="pyramid").modules()
        if isinstance(m, torch.nn.Conv2d) and m.groups > 1
    }
    assert kinds == {DepthwiseConv2d}


def test_a_frozen_encoder_computes_with_the_weights_it_was_given_last(encoder_state, images):
    frozen = Encoder(state=encoder_state, frozen=True)
    before = frozen(images)
    doubled = {
        n: 2 * t if n == "0.1.weight" else t for n, t in frozen.features.state_dict().items()
    }
    frozen.features.load_state_dict(doubled)
    frozen.load_state_dict({f"features.{name}": tensor for name, tensor in doubled.items()})
    other = Encoder(state=doubled, frozen=True)
    assert torch.equal(frozen(images)[0], other(images)[0])
    assert not torch.allclose(frozen(images)[0], before[0])
    torch.testing.assert_close(frozen.double()(images.double())[0].float(), other(images)[0])


def test_what_a_frozen_encoder_computes_with_is_no_part_of_its_state(encoder_state, images):
    encoder = Encoder(state=encoder_state, frozen=True)
    names = set(encoder.state_dict())
    encoder(images)
    assert set(encoder.state_dict()) == names
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"features"}


@each_decoder
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (224, 224), (64, 96)])
def test_logits_have_the_size_of_the_images(build, decoder, size):
    with torch.inference_mode():
        logits = build(decoder).eval()(torch.rand(2, 3, *size))
    assert logits.shape == (2, 1, *size)
    assert logits.isfinite().all()


def test_the_encoder_sees_images_as_torchvision_normalises_them(build, images):
    from torchvision.transforms.functional import normalize

    model, seen = build().eval(), []
    model.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(images)
    theirs = normalize(images, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0], theirs)
    model(torch.ones(1, 3, 32, 32))
    by_hand = [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]
    assert seen[1][0, :, 0, 0].tolist() == pytest.approx(by_hand)


def test_the_bilinear_decoder_is_that_of_seed_system_1():
    decoder = BilinearDecoder(dropout=0.1)
    convolutions = [m for m in decoder.modules() if isinstance(m, torch.nn.Conv2d)]
    *body, head = [(m.in_channels, m.out_channels, m.kernel_size) for m in convolutions]
    kernel = (3, 3)
    assert body == [
        (1280, 512, kernel),
        (512, 256, kernel),
        (256, 64, kernel),
        (64, 32, kernel),
        (32, 16, kernel),
    ]
    assert head == (16, 1, (1, 1))
    assert not any(isinstance(m, torch.nn.ConvTranspose2d) for m in decoder.modules())


def test_the_bilinear_decoder_uses_the_last_map_alone(build, images):
    model = build("bilinear").eval()
    maps = model.encoder(images)
    noise = [torch.rand_like(m) for m in maps[:-1]]
    assert torch.equal(model.decoder([*noise, maps[-1]]), model.decoder(maps))


def test_the_transposed_decoder_upsamples_with_transposed_convolutions_alone():
    modules = list(TransposedDecoder(dropout=0.1).modules())
    transposed = [m for m in modules if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [m.stride for m in transposed] == [(2, 2)] * 5
    assert not any(isinstance(m, torch.nn.Upsample) for m in modules)


@pytest.mark.parametrize("tap", range(5))
def test_the_transposed_decoder_joins_every_map(tap):
    torch.manual_seed(0)
    decoder = TransposedDecoder(dropout=0.1).eval()
    sizes = [(1, c, 64 // s, 64 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    maps = [torch.rand(size, requires_grad=True) for size in sizes]
    logits = decoder(maps)
    logits.sum().backward()
    assert maps[tap].grad.abs().amax((0, 2, 3)).count_nonzero() > CHANNELS[tap] / 2
    changed = [m + 1 if i == tap else m for i, m in enumerate(maps)]
    assert not torch.allclose(decoder(changed), logits)


@pytest.mark.parametrize("tap", range(4))
def test_each_skip_is_joined_at_its_own_scale(tap):
    # A change of one pixel of a map reaches no further than the convolutions from its scale on.
    torch.manual_seed(0)
    decoder = TransposedDecoder(dropout=0.1).eval()
    sizes = [(1, c, 128 // s, 128 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    maps = [torch.rand(size) for size in sizes]
    before = decoder(maps)
    maps[tap] = maps[tap].clone()
    maps[tap][..., 0, 0] += 1
    reached = (decoder(maps) != before)[0, 0].nonzero().max().item()
    # A 3x3 convolution at strides s, s/2, ..., 2 adds one pixel of its scale each.
    stride = STRIDES[tap]
    assert stride <= reached < stride + (2 * stride - 2)


@pytest.mark.parametrize("tap", range(5))
def test_the_pyramid_decoder_joins_every_map(tap):
    torch.manual_seed(0)
    decoder = PyramidDecoder(dropout=0.1).eval()
    sizes = [(1, c, 64 // s, 64 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    maps = [torch.rand(size, requires_grad=True) for size in sizes]
    decoder(maps).sum().backward()
    assert maps[tap].grad.abs().amax((0, 2, 3)).count_nonzero() > CHANNELS[tap] / 2


def test_fusing_before_upsampling_is_fusing_all_maps_side_by_side(images):
    # The form of the paper: upsample all, concatenate, one 1x1 convolution.
    torch.manual_seed(0)
    fuses = PyramidDecoder(dropout=0.0).fuses
    levels = [torch.rand(2, 64, 32 // 2**i, 32 // 2**i) for i in range(4)]
    upsample = torch.nn.functional.interpolate
    side_by_side = torch.cat([upsample(level, (32, 32), mode="bilinear") for level in levels], 1)
    weight = torch.cat([fuse.weight for fuse in fuses], 1)
    paper = torch.nn.functional.conv2d(side_by_side, weight)
    ours = sum(
        upsample(fuse(level), (32, 32), mode="bilinear")
        for fuse, level in zip(fuses, levels, strict=True)
    )
    torch.testing.assert_close(ours, paper)


def test_the_pyramid_decoder_knows_the_whole_image():
    # One pixel of the coarsest map reaches the logits of the opposite corner.
    torch.manual_seed(0)
    decoder = PyramidDecoder(dropout=0.1).eval()
    sizes = [(1, c, 512 // s, 512 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    maps = [torch.rand(size) for size in sizes]
    before = decoder(maps)
    maps[-1][..., 0, 0] += 100
    assert decoder(maps)[0, 0, -1, -1] != before[0, 0, -1, -1]


@each_decoder
def test_a_frozen_encoder_keeps_every_bit_while_the_decoder_learns(build, images, decoder):
    model = build(decoder, frozen=True)
    encoder, decoder_state = copy_state(model.encoder), copy_state(model.decoder)
    take_steps(model, images)
    assert sum("running_mean" in name for name in encoder) > 50
    assert sum("num_batches_tracked" in name for name in encoder) > 50
    assert changed_names(encoder, model.encoder) == set()
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert changed_names(decoder_state, model.decoder) == set(decoder_state)


def test_a_fine_tuned_encoder_learns_weights_and_statistics(build, images):
    model = build(frozen=False)
    before = copy_state(model.encoder)
    take_steps(model, images)
    assert changed_names(before, model.encoder) == set(before)
    assert all(p.requires_grad for p in model.encoder.parameters())


def test_train_and_eval_reach_all_but_a_frozen_encoder(build):
    for frozen in (True, False):
        model = build(frozen=frozen)
        for mode in (True, False, True):
            model.train(mode)
            assert {m.training for m in model.decoder.modules()} == {mode}
            assert {m.training for m in model.encoder.modules()} == {mode and not frozen}


@each_decoder
def test_the_same_seed_gives_frozen_and_fine_tuned_the_same_start(build, decoder):
    frozen, finetuned = build(decoder, frozen=True), build(decoder, frozen=False)
    assert changed_names(copy_state(frozen), finetuned) == set()


def test_another_seed_gives_another_decoder_and_the_same_encoder(build):
    first, other = build(seed=0), build(seed=1)
    changed = changed_names(copy_state(first), other)
    assert {name.split(".")[0] for name in changed} == {"decoder"}
    convolutions = {n for n, p in first.decoder.named_parameters() if p.ndim == 4}
    assert {f"decoder.{name}" for name in convolutions} <= changed


def test_the_encoder_holds_the_given_weights(build, encoder_state):
    assert changed_names(encoder_state, build().encoder.features) == set()


def test_training_leaves_the_given_weights_as_they_are(build, encoder_state, images):
    before = {name: tensor.clone() for name, tensor in encoder_state.items()}
    take_steps(build(frozen=False), images)
    assert all(torch.equal(before[name], encoder_state[name]) for name in before)


def test_building_neither_uses_nor_disturbs_the_global_random_state(build):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = copy_state(build())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert changed_names(first, build()) == set()


@each_decoder
@pytest.mark.parametrize("frozen", [True, False])
def test_a_saved_model_comes_back_with_equal_logits(tmp_path, build, images, decoder, frozen):
    model = build(decoder, frozen=frozen)
    take_steps(model, images)
    path = tmp_path / "model.pt"
    save_model(path, state=model.state_dict(), decoder=decoder, image_size=64, frozen=frozen)
    written = torch.load(path, weights_only=True)["state"]
    assert set(written) == set(model.state_dict())
    assert changed_names(written, model) == set()
    loaded, image_size = load_model(path, stage="train_frozen")
    assert image_size == 64
    assert not any(m.training for m in loaded.modules())
    assert loaded.encoder.frozen
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_loaded_model_is_exported_before_its_first_forward_each_weight_once(tmp_path, build):
    path = tmp_path / "model.pt"
    model = build("bilinear")
    save_model(path, state=model.state_dict(), decoder="bilinear", image_size=64, frozen=True)
    loaded, _ = load_model(path, stage="train_frozen")
    loaded.to(torch.device("cpu"), memory_format=torch.channels_last)  # as `Predictor` does
    kinds = {type(module) for module in loaded.encoder.modules()}
    assert nn.BatchNorm2d not in kinds
    exported = torch.export.export(loaded, (torch.zeros(2, 3, 64, 64),))
    num_weights = sum(tensor.numel() for tensor in exported.state_dict.values())
    assert num_weights <= sum(tensor.numel() for tensor in model.state_dict().values())
    assert sum(tensor.numel() for tensor in exported.constants.values()) <= 6  # mean and std


def test_a_model_s_bytes_do_not_depend_on_its_path(tmp_path, build):
    first, second = tmp_path / "a.pt", tmp_path / "deep" / "other_name.pt"
    model = build()
    settings = {"decoder": "transposed", "image_size": 64, "frozen": True}
    save_model(first, state=model.state_dict(), **settings)
    save_model(second, state=model.state_dict(), **settings)
    assert first.read_bytes() == second.read_bytes()


def assert_is_no_model(path, message=""):
    with pytest.raises(DataError) as caught:
        load_model(path, stage="train_frozen")
    text = str(caught.value)
    assert text.startswith(f"{path} is not a model (")
    assert text.endswith("). Run: dvc repro -sf train_frozen && dvc repro")
    assert len(text.splitlines()) == 1
    assert message in text


@pytest.mark.parametrize("content", [b"", b"not a model\n", b"PK\x03\x04"])
def test_a_file_of_something_else_is_answered_in_one_line(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    assert_is_no_model(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state": {}}, torch.zeros(2)])
def test_a_foreign_torch_file_is_answered_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    assert_is_no_model(tmp_path / "model.pt")


@pytest.mark.parametrize("key", ["state", "decoder", "image_size"])
def test_a_model_file_that_lacks_something_is_answered_in_one_line(tmp_path, build, key):
    path = tmp_path / "model.pt"
    save_model(path, state=build().state_dict(), decoder="transposed", image_size=64, frozen=True)
    content = torch.load(path, weights_only=True)
    del content[key]
    torch.save(content, path)
    assert_is_no_model(path, key)


def test_a_cut_off_model_file_is_answered_in_one_line(tmp_path, build):
    path = tmp_path / "model.pt"
    state = build("bilinear").state_dict()
    save_model(path, state=state, decoder="bilinear", image_size=64, frozen=True)
    path.write_bytes(path.read_bytes()[:100_000])
    assert_is_no_model(path)


def test_weights_of_another_decoder_are_answered_in_one_line(tmp_path, build):
    path = tmp_path / "model.pt"
    state = build("bilinear").state_dict()
    save_model(path, state=state, decoder="transposed", image_size=64, frozen=True)
    assert_is_no_model(path)


def test_a_missing_model_names_the_stage_that_makes_it(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(MissingFileError) as caught:
        load_model(path, stage="train_finetuned")
    assert str(caught.value) == f"{path} is missing. Run: dvc repro train_finetuned"


def test_encoder_weights_come_back_and_missing_ones_name_their_stage(tmp_path, encoder_state):
    path = tmp_path / "encoder.pth"
    with pytest.raises(MissingFileError, match=r"Run: dvc repro download$"):
        load_encoder_state(path)
    torch.save(encoder_state, path)
    loaded = load_encoder_state(path)
    assert list(loaded) == list(encoder_state)
    assert all(torch.equal(loaded[name], encoder_state[name]) for name in loaded)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_is_not_finite_is_answered_with_the_place(tmp_path, build, value):
    path = tmp_path / "model.pt"
    state = build().state_dict()
    next(iter(state.values())).flatten()[0] = value
    save_model(path, state=state, decoder="transposed", image_size=64, frozen=True)
    assert_is_no_model(path, f"{next(iter(state))} has values that are not finite")


def damage_encoder(state, kind):
    """The bytes of an encoder.pth that is wrong in one way."""
    stream = io.BytesIO()
    name = "3.conv.0.0.weight"
    content = {
        "list": [1, 2],
        "missing": {key: value for key, value in state.items() if key != name},
        "shape": state | {name: torch.zeros(1)},
        "nan": state | {name: state[name] * math.nan},
        "inf": state | {name: state[name] / 0},
    }
    torch.save(content.get(kind, state), stream)
    whole = stream.getvalue()
    return {"empty": b"", "text": b"not weights\n", "cut": whole[:50_000]}.get(kind, whole)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "list", "missing", "shape", "nan", "inf"])
def test_damaged_encoder_weights_are_answered_in_one_line(tmp_path, encoder_state, kind):
    path = tmp_path / "encoder.pth"
    path.write_bytes(damage_encoder(encoder_state, kind))
    with pytest.raises(DataError) as caught:
        load_encoder_state(path)
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).endswith("Run: dvc repro -sf download && dvc repro")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize(("stride", "expected"), [(1, torch.bfloat16), (2, torch.float32)])
def test_only_strided_depthwise_convolutions_stay_in_float32_under_bfloat16(size, stride, expected):
    layer = nn.Conv2d(4, 4, 3, stride=stride, padding=1, groups=4, bias=False)
    images = torch.randn(2, 4, size, size)
    plain = layer(images)
    use_depthwise(nn.Sequential(layer))
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    assert output.dtype == expected
    torch.testing.assert_close(output.float(), plain, atol=0.05, rtol=0.05)
    if expected == torch.float32:  # not rounded on the way
        torch.testing.assert_close(output, plain)
