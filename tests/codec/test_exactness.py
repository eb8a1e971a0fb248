"""Nothing decides a pixel but integers: threads, tiles and batches make no difference."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import photo

from vbc.codec.colour import rgb_to_ycocg
from vbc.codec.entropy.coder import Counter, Reader, Writer
from vbc.codec.exact import grids as exact_levels
from vbc.codec.exact.block import AROUND, Step, phase_view
from vbc.codec.exact.networks import PHASES
from vbc.codec.lossy import coding as lossy_levels
from vbc.codec.model import DEFAULT_WEIGHTS, Model, load_model, model_hash
from vbc.codec.nets.int_nets import IntChain
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.train.export import Discard, known_answers, lossy_picture, stored_answers
from vbc.kernels.conv import IntConv, conv_int_reference

SHIPPED = Path(exact_levels.__file__).parents[1] / "weights" / DEFAULT_WEIGHTS


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model()


def layers(model: Model) -> list[IntConv]:
    """Every integer layer of a model."""
    found: list[IntConv] = []
    chains = [*model.lossy.context.values(), *model.lossy.priors.values(), *model.lossy.neighbours.values()]
    for chain in [*chains, model.lossy.enhance]:
        found += [*chain.layers, chain.head]
    for net in model.exact.phases.values():
        found += [net.second, net.third]
        for ends in (net.archival, *net.layered):
            found += [ends.first, ends.head, ends.skip]
    return found


def test_shipped_weights_keep_the_accumulator_bound(shipped: Model) -> None:
    """127 * sum|W| + |b| + 2^(s-1) < 2^24 for every channel and every bias a layer is ever called with."""
    assert len(layers(shipped)) > 40
    for layer in layers(shipped):
        weight = layer.weight.long().abs().sum((1, 2, 3)) * 127 + (1 << (layer.shift.long() - 1))
        assert (weight + layer.bias.long().abs()).max() < 1 << 24
    chains = [
        *shipped.lossy.context.values(),
        *shipped.lossy.priors.values(),
        *shipped.lossy.neighbours.values(),
    ]
    pairs = [(c.layers[0], c.condition) for c in [*chains, shipped.lossy.enhance]]
    for net in shipped.exact.phases.values():
        pairs += [(ends.first, ends.condition) for ends in (net.archival, *net.layered)]
    for layer, biases in pairs:
        room = (1 << 24) - layer.weight.long().abs().sum((1, 2, 3)) * 127 - (1 << (layer.shift.long() - 1))
        assert (biases.long().abs().amax(tuple(range(biases.dim() - 1))) < room).all()


def test_shipped_weights_are_small_and_hashed(shipped: Model) -> None:
    from safetensors.torch import load_file

    assert SHIPPED.stat().st_size <= 8_000_000
    tensors = load_file(SHIPPED)
    assert model_hash(tensors) == shipped.hash
    name = "exact.D.second.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0, 0, 0] ^= 1
    assert model_hash(tensors) != shipped.hash
    tensors["analysis.analysis_in.bias"] += 1  # the encoder's alone
    assert model_hash(load_file(SHIPPED)) == shipped.hash


def test_known_answers(shipped: Model, tiny: Model, tiny_path: Path) -> None:
    assert known_answers(shipped) == stored_answers(SHIPPED)
    assert known_answers(tiny) == stored_answers(tiny_path)


def test_shipped_layers_equal_the_int64_definition(shipped: Model) -> None:
    generator = torch.Generator().manual_seed(5)
    for layer in layers(shipped):
        o, i, k, _ = layer.weight.shape
        x = torch.randint(0, 128, (1, i, 4 + k, 6 + k), generator=generator, dtype=torch.uint8)
        want = conv_int_reference(x, layer.weight, layer.bias, layer.shift, layer.head)
        assert torch.equal(layer(x), want), (o, i, k)


def test_decoding_does_not_depend_on_threads(shipped: Model) -> None:
    data = encode_image(photo(150, 131), model=shipped, lossless=True)
    n = torch.get_num_threads()
    pictures = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            pictures.append([decode_image(data, model=shipped, levels=k).rgb for k in (1, 2, 3, 8, None)])
    finally:
        torch.set_num_threads(n)
    for other in pictures[1:]:
        assert all(torch.equal(a, b) for a, b in zip(pictures[0], other, strict=True))


def test_encoding_is_reproducible(tiny: Model) -> None:
    x = photo(60, 61)
    assert encode_image(x, model=tiny, lossless=True) == encode_image(x, model=tiny, lossless=True)


def make_step(model: Model, layered: bool) -> Step:
    x = photo(75, 90)[None].contiguous(memory_format=torch.channels_last)
    coarse = rgb_to_ycocg(x[..., ::2, ::2])
    h, w = coarse.shape[-2:]
    planes = {"A": exact_levels.extend(coarse, h, w)}
    for p in ("D", "H"):
        planes[p] = exact_levels.extend(rgb_to_ycocg(phase_view(x, p)), h, w)
    noise = torch.Generator().manual_seed(4)
    misses = {
        p: torch.randint(-127, 128, (1, 3, h + 2, w + 2), generator=noise, dtype=torch.int8) for p in "ADH"
    }
    return Step(model.exact, planes, misses, x.flip(-1) if layered else None, 0, 50)


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_exact_parameters_do_not_depend_on_tiles_or_batches(
    shipped: Model, phase: str, layered: bool
) -> None:
    step = make_step(shipped, layered)
    h, w = exact_levels.phase_size(phase, 75, 90)
    whole = step.parameters(phase, [(slice(0, h), slice(0, w))])
    tiles = [(slice(r, r + 9), slice(c, c + 11)) for r in (0, 5, 20, h - 9) for c in (0, 13, w - 11)]
    stacked = step.parameters(phase, tiles[:8])
    around = step.around(phase, [(slice(0, h), slice(0, w))])
    assert around.shape[1] == 3 * len(AROUND[phase])
    assert torch.equal(step.around(phase, tiles), torch.cat([around[..., r, c] for r, c in tiles]))
    for i, (rows, cols) in enumerate(tiles):
        single = step.parameters(phase, [(rows, cols)])
        for name in ("base", "out", "features"):
            want = getattr(whole, name)[..., rows, cols]
            assert torch.equal(getattr(single, name), want)
            if i < 8:
                assert torch.equal(getattr(stacked, name)[i : i + 1], want)


@pytest.mark.parametrize("blocks_of", [40, 512])
@pytest.mark.parametrize("layered", [False, True])
def test_tuned_steps_come_back(
    shipped: Model, monkeypatch: pytest.MonkeyPatch, layered: bool, blocks_of: int
) -> None:
    """Two tuned grid steps, the second following the misses of the first, in one block and in many."""
    monkeypatch.setattr(exact_levels, "MIN_POSITIONS", 100)
    x = photo(131, 150)[None].contiguous(memory_format=torch.channels_last)
    guide = x.roll(1, -1) if layered else None
    sizes = [(66, 75), (131, 150)]
    coarse, written, read = rgb_to_ycocg(x[..., ::4, ::4]), None, None
    for level, size in zip((2, 1), sizes, strict=True):
        fine = x[..., :: 1 << (level - 1), :: 1 << (level - 1)]
        lossy = None if guide is None else guide[..., :: 1 << (level - 1), :: 1 << (level - 1)]
        step = partial(exact_levels.code_step, shipped.exact, lossy=lossy, tuned=True, block=blocks_of)
        writer = Writer(shipped.tables)
        there = step(writer, coarse, size, level, fine, misses=written)
        reader = Reader(shipped.tables, writer.finish())
        back = step(reader, coarse, size, level, misses=read)
        reader.finish()
        for p in PHASES:
            assert torch.equal(back.pixels[p], rgb_to_ycocg(phase_view(fine, p)))
        written, read = (
            exact_levels.assemble_misses(m, c, size) for m, c in ((written, there), (read, back))
        )
        coarse = exact_levels.assemble(coarse, back.pixels, size)
        if level == 2:
            assert written is not None
            assert read is not None
            assert torch.equal(written, read)
            assert written.any()


@pytest.mark.parametrize("levels", [0, 3])
def test_exact_step_does_not_depend_on_the_block(tiny: Model, levels: int) -> None:
    """Blocks reorder symbols but code the same ones under the same tables."""
    x = photo(61, 83)[None].contiguous(memory_format=torch.channels_last)
    lossy = x.roll(1, -1) if levels else None
    counts = []
    for block in (7, 512):
        counter = Counter(len(tiny.tables))
        coarse = rgb_to_ycocg(x[..., ::2, ::2])
        exact_levels.code_step(tiny.exact, counter, coarse, (61, 83), 1, x, lossy, 40, block=block)
        counts.append(counter.counts)
    assert np.array_equal(*counts)
    assert counts[0].sum() == 3 * (61 * 83 - 31 * 42)


def test_lossy_levels_do_not_depend_on_tiles(shipped: Model) -> None:
    x = photo(201, 155)[None].contiguous(memory_format=torch.channels_last)
    model, size = shipped.lossy, (201, 155)
    target = lossy_levels.analyse(model, x, 60)
    z1 = lossy_levels.code_level1(model, Discard(), lossy_levels.latent_grid(*size), 60, target[:, :6])
    whole, tiled = (
        lossy_levels.code_level(model, Discard(), 2, z1, 60, target[:, 6:48], block=b) for b in (128, 4)
    )
    assert torch.equal(whole, tiled)
    z2 = torch.cat((z1, whole), 1)
    a, b = (lossy_levels.missing_level(model, 3, z2, 60, block=n) for n in (128, 5))
    assert torch.equal(a, b)
    latents = torch.cat((z2, a), 1)
    pictures = [lossy_levels.synthesise(model, latents, size, 2, 60, block=n) for n in (1, 3, 64)]
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


def test_analysis_in_bands(shipped: Model) -> None:
    x = photo(100, 60)[None]
    a, b = (lossy_levels.analyse(shipped.lossy, x, 60, band_blocks=n) for n in (16384, 20))
    assert (a - b).abs().max() <= 1, "float, so a sixteenth may round either way"


def test_extreme_planes_through_a_chain(shipped: Model) -> None:
    chain: IntChain = shipped.lossy.enhance
    n = chain.layers[0].weight.shape[1]
    for value in (-64, 63):
        planes = torch.full((1, n, 2 * chain.radius + 3, 2 * chain.radius + 2), value)
        out = chain(planes, 100, 2)
        assert out.shape[-2:] == (3, 2)
        assert (out == out[..., :1, :1]).all()


def test_eight_pictures_decode_as_one(tiny: Model) -> None:
    """A batch of one: eight files after another leave nothing behind that changes the next."""
    files = [encode_image(photo(20 + i, 31), model=tiny, lossless=True) for i in range(8)]
    first = [decode_image(f, model=tiny).rgb for f in files]
    again = [decode_image(f, model=tiny).rgb for f in reversed(files)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_lossy_picture_is_what_the_decoder_sees(tiny: Model) -> None:
    x = photo(24, 40)
    data = encode_image(x, model=tiny, quality=60)
    assert torch.equal(lossy_picture(tiny, x[None], 60, Discard())[0], decode_image(data, model=tiny).rgb)
