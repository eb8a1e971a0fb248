"""The base quality that an encoder for the eye chooses, by the score of a sample."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pictures import constant, noise, photo
from torch import Tensor

import vbc.codec.flow.choose_quality as module
from vbc.bitstream.container import unpack_header
from vbc.codec.entropy.coder import Discard
from vbc.codec.flow.choose_quality import base_of_score, choose_quality, sample_of, score_of, typical_base
from vbc.codec.flow.lossy_trial import code_lossy
from vbc.codec.lossy.eye_distance import eye_terms, predicted_score
from vbc.codec.lossy.quality_map import QualityMap, values_for_the_eye
from vbc.codec.model import Model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings, Tune
from vbc.codec.train.exact_loss import layered_alone_loss
from vbc.codec.train.exact_net import ExactNet

SCORES = torch.linspace(-30, 90, 101)
"""70 at 83 and a third."""


def for_the_eye(model: Model, scores: Tensor = SCORES) -> Model:
    """The model as one whose typical scores are known."""
    marked = model.lossy.analysis | {"score": scores, "for_the_eye": torch.ones(1, dtype=torch.int32)}
    return replace(model, lossy=replace(model.lossy, analysis=marked))


def test_bases_of_scores() -> None:
    for base in (1, 17, 99):
        assert base_of_score(SCORES, SCORES[base].item()) == pytest.approx(base, abs=0.01)
    assert base_of_score(SCORES, 69.0) == pytest.approx(82.5, abs=0.01)
    assert base_of_score(SCORES, -99.0) == 0
    assert base_of_score(SCORES, 99.0) == 100


def test_quality_60_is_for_a_score_of_70() -> None:
    bases = [typical_base(SCORES, quality) for quality in range(101)]
    assert bases[0] == 0
    assert bases[60] == pytest.approx(250 / 3, abs=0.01)
    assert bases[100] == 100
    assert bases == sorted(set(bases))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (16, 16, (16, 16)),
        (31, 500, (16, 48)),
        (128, 129, (128, 128)),
        (300, 700, (256, 384)),
        (900, 1000, (384, 384)),
    ],
)
def test_samples_are_squares_of_the_picture(height: int, width: int, size: tuple[int, int]) -> None:
    """Pixels say where they come from."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = (y // 16 * 1000 + x // 16).expand(1, 3, -1, -1)
    values = place[:, :1, ::16, ::16]
    sample, picked = sample_of(place, values)
    assert sample.shape[-2:] == size
    assert picked is not None
    assert torch.equal(picked, sample[:, :1, ::16, ::16])
    assert torch.equal(sample[..., 0, 0], place[..., 0, 0])
    last = sample[0, 0, -1, -1].item()
    assert last // 1000 >= (height - 128) // 16 - 1
    assert last % 1000 >= (width - 128) // 16 - 1
    assert sample_of(place, None)[1] is None


@pytest.mark.parametrize("off", [-200.0, -12.0, 0.0, 12.0, 200.0])
def test_the_base_moves_against_what_the_score_is_off(
    off: float, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 points are 10 bases here; a picture that looks better than typical ones gets fewer bits."""
    tried = []

    def score(model: Model, sample: Tensor, quality: QualityMap) -> float:
        tried.append(quality.base)
        return SCORES[quality.base].item() + off

    monkeypatch.setattr(module, "score_of", score)
    picture = photo(64, 80)[None]
    chosen = choose_quality(for_the_eye(tiny), picture, EncodeSettings(quality=36))
    assert tried == [50]
    assert chosen.base == {-200: 68, -12: 60, 0: 50, 12: 40, 200: 32}[int(off)]
    values = values_for_the_eye(picture)
    assert chosen.values is not None
    assert values is not None
    assert torch.equal(chosen.values, values)
    for quality in (0, 100):  # nothing to give or take
        assert choose_quality(for_the_eye(tiny), picture, EncodeSettings(quality=quality)).base == quality


@pytest.mark.parametrize("tune", ["eye", "psnr"])
def test_without_scores_it_is_the_asked_quality(tune: Tune, tiny: Model) -> None:
    quality = choose_quality(tiny, photo(40, 48)[None], EncodeSettings(quality=37, tune=tune))
    assert quality.base == 37
    assert (quality.values is None) == (tune == "psnr")


def test_for_psnr_it_is_the_base_of_typical_pictures(tiny: Model) -> None:
    quality = choose_quality(for_the_eye(tiny), photo(40, 48)[None], EncodeSettings(quality=36, tune="psnr"))
    assert quality == QualityMap(50)


@pytest.mark.parametrize("size", [(1, 1), (15, 200), (16, 16), (130, 17)])
@pytest.mark.parametrize("make", [photo, noise, constant])
def test_every_picture_gets_a_quality(
    size: tuple[int, int], make: Callable[[int, int], Tensor], tiny: Model
) -> None:
    model, picture = for_the_eye(tiny), make(*size)
    data = encode_image(picture, model=model, settings=EncodeSettings(quality=50))
    assert 0 <= unpack_header(data).quality <= 100
    assert decode_image(data, model=model).rgb.shape == picture.shape


def test_scores_fall_with_quality(tiny: Model) -> None:
    sample = photo(128, 256)[None]
    scores = [score_of(tiny, sample, QualityMap(base)) for base in (0, 30, 60, 90)]
    assert scores == sorted(set(scores)), scores
    decoded = code_lossy(tiny, Discard(), sample, QualityMap(30))
    halves = (torch.cat(x.float().split(128, 3)) for x in (sample, decoded))
    assert scores[1] == pytest.approx(predicted_score(eye_terms(*halves)))


def test_a_picture_without_errors_scores_100() -> None:
    x = photo(64, 64)[None].float()
    assert predicted_score(eye_terms(x, x)) == 100


def test_layered_files_alone_are_tuned() -> None:
    net = ExactNet(width=4)
    before = {name: p.clone() for name, p in net.named_parameters()}
    loss = layered_alone_loss(net)
    batch = torch.cat([photo(32, 32), noise(32, 32), constant(1, 1).expand(3, 32, 32)[:1]])[None]
    loss(batch.expand(2, -1, -1, -1).contiguous(), 0)[0].backward()
    torch.optim.SGD([p for p in net.parameters() if p.grad is not None], 0.1).step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".layered." in name for name in changed)


@pytest.mark.parametrize(
    ("settings", "quality"),
    [
        (EncodeSettings(), 60),
        (EncodeSettings(lossless=True), 50),
        (EncodeSettings(levels=0, lossless=True), 60),
        (EncodeSettings(quality=0), 0),
        (EncodeSettings(quality=93, lossless=True), 93),
    ],
)
def test_default_qualities(settings: EncodeSettings, quality: int) -> None:
    assert settings.asked_quality == quality
