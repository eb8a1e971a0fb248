"""Offsets of the scales of groups of levels 2 and 3 (docs/format.md, section 9.6)."""

from dataclasses import replace

import pytest
import torch
from checks import check_format_error, payloads_of, rebuild
from lossy_tools import Recorder, Replay, Zeros, cut, many_qualities, one_quality
from pictures import photo
from torch import Tensor

from vbc.bitstream.container import unpack_header
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.tables import NO_TABLE
from vbc.codec.flow import encode_levels
from vbc.codec.flow.decode_state import CODED, CODED_WITH_OFFSETS
from vbc.codec.lossy import coding
from vbc.codec.lossy.latents import FIRST_CODED_SCALE, LEVEL_START, N_SCALES, level_latents
from vbc.codec.lossy.model import LossyModel
from vbc.codec.lossy.scale_offsets import TRIED, find_offsets
from vbc.codec.model import Model, load_model
from vbc.codec.model import place as place_model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings

SIZE = (19, 45)
GROUP = [(slice(r, r + 9), slice(c, c + 14)) for r in (0, 10) for c in (0, 14, 31)]
SOME = torch.tensor([True, False, True, True, False, True])


@pytest.fixture(scope="module")
def shipped() -> LossyModel:
    return load_model().lossy


def random_latents(seed: int) -> Tensor:
    """int16 [1, 192, h, w], smaller for higher levels."""
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.cat([torch.full((n,), s) for n, s in ((6, 3000.0), (42, 600.0), (144, 60.0))])
    return (torch.randn((1, 192, *SIZE), generator=rng) * sizes.view(1, -1, 1, 1)).round().to(torch.int16)


def of_level(model: LossyModel, level: int, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents below, the prior's parameters and the qualities of `GROUP`."""
    below = random_latents(1)[:, : LEVEL_START[level - 1]]
    parameters = coding.prior_parameters(model, level, below, GROUP, quality)
    return below, parameters, cut(quality, GROUP)


@pytest.mark.parametrize("level", [2, 3])
def test_a_decoder_follows(shipped: LossyModel, level: int) -> None:
    """Groups with and without offsets in one batch; each is the same alone."""
    quality = many_qualities(SIZE, 40, 90)
    below, parameters, here = of_level(shipped, level, quality)
    target = 2 * cut(random_latents(2)[:, level_latents(level)], GROUP)
    used = coding.in_use(coding.scale_classes(shipped, level, parameters, here))
    assert used.any()
    assert not used.all() or level == 2
    rng = torch.Generator().manual_seed(3)
    offsets = torch.randint(-16, 17, used.shape, generator=rng, dtype=torch.int16) * used * SOME[:, None]
    writer = Recorder()
    given = {"moved": SOME, "offsets": offsets}
    coded = coding.code_groups(shipped, writer, level, below, GROUP, quality, target, **given)
    replay = Replay(writer.steps)
    decoded = coding.code_groups(shipped, replay, level, below, GROUP, quality, moved=SOME)
    replay.finish()
    assert torch.equal(decoded, coded)
    index, symbols = writer.steps[0]
    assert torch.equal(index == shipped.offset_table, used & SOME[:, None])
    assert torch.equal(index == NO_TABLE, ~(used & SOME[:, None]))
    assert torch.equal(symbols, offsets)
    for i, window in enumerate(GROUP):
        alone = Recorder()
        mine = {"moved": SOME[i : i + 1], "offsets": offsets[i : i + 1]} if SOME[i] else {}
        one = coding.code_groups(shipped, alone, level, below, [window], quality, target[i : i + 1], **mine)
        assert torch.equal(one[0], coded[i])
        assert len(alone.steps) == 2 + bool(SOME[i])


@pytest.mark.parametrize("level", [2, 3])
def test_what_they_do(shipped: LossyModel, level: int) -> None:
    """Tables of all blocks are so many further; means, and what the neighbours see, are as without."""
    quality = one_quality(SIZE, 70)
    below, parameters, here = of_level(shipped, level, quality)
    used = coding.in_use(coding.scale_classes(shipped, level, parameters, here))
    offsets = (torch.arange(used.numel()).view(used.shape) % 7 - 3).to(torch.int16) * used
    plain, moved = Recorder(), Recorder()
    zero = torch.zeros_like(cut(random_latents(2)[:, level_latents(level)], GROUP))
    for coder, given in (
        (plain, {}),
        (moved, {"moved": torch.ones(6, dtype=torch.bool), "offsets": offsets}),
    ):
        coding.code_groups(shipped, coder, level, below, GROUP, quality, zero, False, **given)
    first = shipped.first_table + (level - 1) * N_SCALES
    for (before, _), (after, _) in zip(plain.steps, moved.steps[1:], strict=True):
        at = before.view(*used.shape, -1).int() - first
        to = (at + offsets[..., None]).clamp(max=N_SCALES - 1)
        coded = before.view(at.shape) != NO_TABLE
        expected = torch.where(to >= FIRST_CODED_SCALE, to + first, NO_TABLE)
        assert torch.equal(after.view(at.shape)[coded].int(), expected[coded].int())
        if before is plain.steps[0][0]:  # what was surely zero is coded only where scales grow
            assert ((after.view(at.shape) == NO_TABLE) | coded | (offsets[..., None] > 0)).all()


class Wild(Zeros):
    """Symbols that no encoder writes."""

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        return torch.where(index == NO_TABLE, 0, 2000).to(torch.int16)


def test_wild_offsets_are_limited(shipped: LossyModel) -> None:
    _, parameters, here = of_level(shipped, 2, one_quality(SIZE, 70))
    found = coding.code_offsets(shipped, Wild(), 2, parameters, here, SOME, None)
    assert found.shape == (6, 1, 42)
    assert set(found.unique().tolist()) == {0, 64}
    assert not found[~SOME].any()


@pytest.mark.parametrize("level", [2, 3])
@pytest.mark.parametrize("true", [-3, 0, 2])
def test_an_encoder_finds_them(shipped: LossyModel, level: int, true: int) -> None:
    """Latents drawn from the priors, but with scales that are off by a factor."""
    quality = one_quality(SIZE, 80)
    _, parameters, here = of_level(shipped, level, quality)
    c = parameters.shape[-1] // 2
    mean, log_scale = parameters[..., :c] / 4, parameters[..., c:] / 16 + true / 4
    rng = torch.Generator().manual_seed(5)
    uniform = torch.rand(mean.shape, generator=rng).clamp(1e-4, 1 - 1e-4)
    drawn = mean + torch.exp2(log_scale) * torch.logit(uniform)
    target = (16 * drawn).round().clamp(-32768, 32767).to(torch.int16).permute(0, 3, 1, 2)
    moved, offsets = find_offsets(shipped, level, parameters, here, target)
    classes = coding.scale_classes(shipped, level, parameters, here)
    assert not offsets[~coding.in_use(classes)].any()
    often = (classes >= 8).double().mean(1) > 0.9  # where the step hides little of it
    assert often.sum() > 50
    assert (offsets[often] - true).double().mean().abs() < 0.6
    assert moved.all() or not true
    assert min(TRIED) <= offsets.min() <= offsets.max() <= max(TRIED)


def no_offsets(*arguments: object) -> tuple[Tensor, Tensor]:
    """As `find_offsets`, for an encoder that has none."""
    moved, offsets = find_offsets(*arguments)  # type: ignore[arg-type]
    return torch.zeros_like(moved), torch.zeros_like(offsets)


def test_files_with_them_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is noisier than photographs are; without offsets it looks the same."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn((3, 120, 152), generator=rng) * 12
    picture = (photo(120, 152) / 2 + 60 + noise).clamp(0, 255).to(torch.uint8)
    model, settings = load_model(tune="psnr"), EncodeSettings(quality=70, tune="psnr")
    data = encode_image(picture, model=model, settings=settings)
    header = unpack_header(data)
    modes = {p.level: data[header.span(i)[0]] for i, p in enumerate(header.packets) if p.level in (1, 2, 3)}
    assert modes[3] == CODED_WITH_OFFSETS

    monkeypatch.setattr(encode_levels, "find_offsets", no_offsets)
    plain = encode_image(picture, model=model, settings=settings)
    assert len(data) < 0.995 * len(plain)
    shown = [decode_image(file, model=model).rgb.double() for file in (data, plain)]
    errors = [float((rgb - picture).square().mean()) for rgb in shown]
    assert abs(errors[0] / errors[1] - 1) < 0.05


def test_groups_where_they_cost_more_than_they_save_have_none(shipped: LossyModel) -> None:
    _, parameters, here = of_level(shipped, 3, one_quality(SIZE, 60))
    target = 2 * cut(random_latents(2)[:, level_latents(3)], GROUP)
    moved, _ = find_offsets(shipped, 3, parameters, here, target)
    assert moved.all()
    dear = replace(shipped, offset_cost=shipped.offset_cost + 1e6)
    moved, _ = find_offsets(dear, 3, parameters, here, target)
    assert not moved.any()


def test_offsets_where_none_are_announced(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none where they are: the lanes have symbols of another number."""
    changed = 0
    for find in (find_offsets, no_offsets):
        monkeypatch.setattr(encode_levels, "find_offsets", find)
        data = encode_image(photo(30, 40), model=tiny, settings=EncodeSettings(quality=70))
        header, payloads = unpack_header(data), payloads_of(data)
        for place, packet in enumerate(header.packets):
            if packet.level in (2, 3):
                other = [bytearray(body) for body in payloads]
                other[place][0] ^= CODED_WITH_OFFSETS
                changed += other[place][0] == CODED
                for model in (tiny, place_model(tiny, torch.device("cpu"))):
                    broken = rebuild(header, other)
                    check_format_error(lambda m=model, b=broken: decode_image(b, model=m), Corrupt)
    assert changed == 2
