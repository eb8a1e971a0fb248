"""Files of which refinements are left out: where they do not pay, and as they are shown."""

import pytest
import torch
from checks import every_refinement
from pictures import constant, photo

from vbc.bitstream import container
from vbc.bitstream.source import as_source
from vbc.codec.flow.decode_plan import make_plan, read_packets
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.flow.encode_levels import encode_lossy, n_bytes
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.model import Model, load_model
from vbc.codec.pipeline import decode_image, encode_image, verify
from vbc.codec.settings import EncodeSettings


@pytest.fixture(scope="module")
def mostly_flat() -> torch.Tensor:
    """A photograph in one group of refined level 3, two flat ones beside it: uint8 [3, 256, 768]."""
    return torch.cat((photo(256, 256), constant(256, 512)), 2)


def refined_parts(data: bytes) -> set[tuple[int, int]]:
    return {(p.level, p.part) for p in container.unpack_header(data).packets if p.level > 32}


def test_part_of_a_picture(mostly_flat: torch.Tensor) -> None:
    """What is flat has no refinement; the file is smaller and hardly worse, and shows what was meant."""
    model = load_model(tune="psnr")
    settings = EncodeSettings(tune="psnr", refinements=1)
    data = encode_image(mostly_flat, model=model, settings=settings)
    with every_refinement():
        whole = encode_image(mostly_flat, model=model, settings=settings)
    assert refined_parts(whole) == {(33, 1), (34, 1), (34, 2), (35, 1), (35, 2), (35, 3)}
    assert refined_parts(data) == refined_parts(whole) - {(35, 3)}
    assert len(data) < len(whole)
    verify(data, model=model)
    error, full = (
        (decode_image(d, model=model).rgb.float() - mostly_flat).square().mean() for d in (data, whole)
    )
    assert error < 1.01 * full


def test_what_is_dropped_leaves_the_coarser_latents(
    tiny: Model, mostly_flat: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder's latents are those of a decoder, whatever is dropped."""
    some = {(33, 1), (34, 1), (34, 2), (35, 2)}
    settings, quality = EncodeSettings(tune="psnr", refinements=1), QualityMap(35, refinements=1)
    picture = mostly_flat[None].contiguous(memory_format=torch.channels_last)
    _, all_latents = encode_lossy(picture, tiny, 3, quality)
    monkeypatch.setattr("vbc.codec.flow.encode_levels._kept", lambda worth, refined: some)
    data = encode_image(mostly_flat, model=tiny, settings=settings)
    assert refined_parts(data) == some
    _, latents = encode_lossy(picture, tiny, 3, quality, keep_all=False)
    header = container.unpack_header(data)
    plan, state = make_plan(header, None, None), DecodeState(tiny, header)
    for level, parts in read_packets(as_source(data), header, plan, False).items():
        state = state.advance_parts(level, parts)
    assert torch.equal(state.planes.latents[1], latents)
    assert not torch.equal(all_latents, latents)
    assert torch.equal(all_latents[..., 32:64], latents[..., 32:64])


def test_layered_files_keep_all_packets(tiny: Model) -> None:
    """Exact levels need them all, and the quality asked for is reached."""
    data = encode_image(
        photo(64, 80), model=tiny, settings=EncodeSettings(lossless=True, quality=80, refinements=2)
    )
    header = container.unpack_header(data)
    assert (header.geometry.refinements, header.final_quality) == (2, 80)
    assert len(refined_parts(data)) == sum(header.geometry.n_groups(level) for level in range(33, 39))
    assert decode_image(data, model=tiny).exact
    quality = QualityMap(25, refinements=1)
    tall = torch.cat((photo(64, 40), constant(64, 40)), 2)[None].contiguous(memory_format=torch.channels_last)
    everything = encode_lossy(tall, tiny, 3, quality)[0]
    assert {level for level, _, _ in everything} == {1, 2, 3, 33, 34, 35}
    assert n_bytes(everything) >= n_bytes(encode_lossy(tall, tiny, 3, quality, keep_all=False)[0])


def test_hardly_any_square_is_clamped() -> None:
    """A base from which a map would fall below 0 gets fewer refinements."""
    values = torch.zeros((1, 1, 10, 10), dtype=torch.int16)
    values[..., 0, :2] = -9  # 27 units lower, of 2 % of the squares
    assert QualityMap(60, values).refined(2).refinements == 2
    values[..., 0, 2] = -9
    for base, refinements in ((77, 2), (76, 1), (60, 1), (52, 1), (51, 0), (20, 0)):
        got = QualityMap(base, values).refined(2)
        assert (got.refinements, got.final) == (refinements, base)
    values.fill_(5)
    assert QualityMap(49, values).refined(3).refinements == 1, "higher ones open nothing"


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (EncodeSettings(), 0),
        (EncodeSettings(lossless=True, progressive=True), 2),
        (EncodeSettings(lossless=True, progressive=True, levels=0), 0),
        (EncodeSettings(levels=2, quality=90), 0),
        (EncodeSettings(max_bytes=9000), 0),
        (EncodeSettings(lossless=True, quality=90), 0),
        (EncodeSettings(lossless=True, levels=0), 0),
        (EncodeSettings(refinements=0), 0),
        (EncodeSettings(quality=30, refinements=2), 2),
    ],
)
def test_default(settings: EncodeSettings, count: int) -> None:
    assert settings.asked_refinements == count
