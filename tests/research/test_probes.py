"""Linear probes, maps of similar patches and of weights, and the claims on them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.probes import accuracy, chance, fit_probe, network_accuracy
from vbc.codec.research.parts.toy_faces import BOXES, SHARES
from vbc.codec.research.run import Effect
from vbc.codec.research.systems.patch_vae import maps, probe_claims, probes, weights
from vbc.codec.research.systems.patch_vae.faces import code_maps
from vbc.codec.research.systems.patch_vae.global_vae import LAYERS, GlobalForm, GlobalVAE
from vbc.codec.research.systems.patch_vae.model import PatchVAE, form


def verdicts(effects: list[Effect]) -> list[bool | None]:
    return [effect.found for effect in effects]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_probe_finds_what_is_linear_whatever_the_scale(scale: float) -> None:
    torch.manual_seed(0)
    features = torch.randn(1000, 10) + 5
    attributes = torch.stack((features[:, 0] > 5, features[:, 1] - features[:, 2] > 1, features[:, 3] > 9), 1)
    scaled = (features * scale).half()
    probe = fit_probe(scaled[:750], attributes[:750], 1)
    assert accuracy(probe, scaled[750:], attributes[750:]) > 0.94
    assert 0.7 < chance(attributes) < 0.85
    classes = features[:, :3].argmax(1)
    probe = fit_probe(scaled[:750], classes[:750], 1)
    assert accuracy(probe, scaled[750:], classes[750:]) > 0.91
    assert chance(classes) < 0.4
    again = fit_probe(scaled[:750], classes[:750], 1)
    assert torch.equal(probe.weight, again.weight)


def test_a_network_finds_what_no_line_does() -> None:
    torch.manual_seed(0)
    features = 3 + 2 * torch.randn(1500, 4)
    classes = ((features[:, 0] > 3) ^ (features[:, 1] > 3)).long()
    parts = (features[:1000], classes[:1000], features[1000:], classes[1000:])
    train, test = network_accuracy(*parts, seed=1)
    assert train >= test > 0.9
    assert accuracy(fit_probe(*parts[:2], 1), *parts[2:]) < 0.7
    assert network_accuracy(*parts, seed=1) == (train, test)
    noise = network_accuracy(parts[0], torch.randint(0, 2, (1000,)), parts[2], torch.randint(0, 2, (500,)), 1)
    assert noise[1] < 0.6


def test_a_probe_of_noise_is_no_better_than_chance() -> None:
    torch.manual_seed(0)
    features, rare = torch.randn(600, 50), torch.rand(600, 2) < 0.1
    probe = fit_probe(features[:400], rare[:400], 1)
    assert accuracy(probe, features[400:], rare[400:]) <= chance(rare[400:]) + 0.03


def test_positions_are_those_of_the_patches_around_points() -> None:
    points = torch.tensor([[4.5, 10.5], [0.0, 64.0], [32.0, 30.0]])
    rows, columns = maps.position_of(points, 9, 56, 56)
    assert rows.tolist()[:2] == [6, 55]
    assert columns.tolist()[:2] == [0, 0]
    assert (rows[2].item(), columns[2].item()) in {(25, 27), (26, 28), (26, 27), (25, 28)}


def test_percentile_of_the_nearest_and_the_farthest() -> None:
    codes = torch.arange(36.0).view(1, 1, 6, 6)
    at = [torch.tensor([n]) for n in (0, 1, 2, 5)]
    distance = maps.distances(codes, (at[0], at[0]))
    assert torch.equal(distance[0], codes[0, 0])
    query = (at[0], at[0])
    assert maps.percentile(distance, query, (at[0], at[2]), 1).item() == 100
    assert maps.percentile(distance, query, (at[3], at[3]), 1).item() == 0
    flat = maps.percentile(torch.zeros(1, 6, 6), query, (at[2], at[1]), 1)
    assert flat.item() == 50


def test_codes_are_thinned_out_evenly() -> None:
    torch.manual_seed(0)
    model = PatchVAE(form("9|1")).eval()
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    stride = probes.stride_for(model, 24, 1024)
    assert stride == 4
    whole = code_maps(model, images)
    assert whole.shape == (3, 64, 16, 16)
    assert whole.dtype == torch.float16
    thin = code_maps(model, images, stride)
    assert thin.flatten(1).shape[1] == 1024
    torch.testing.assert_close(thin, whole[..., ::4, ::4], atol=2e-3, rtol=2e-3)


def test_layers_are_features() -> None:
    model = GlobalVAE(GlobalForm(8), 64).eval()
    images = torch.zeros((2, 3, 64, 64), dtype=torch.uint8)
    sizes = [probes.layer_features(model, (images, images[:1]), n)[0].shape[1] for n in range(len(LAYERS))]
    assert sizes == [8192, 8192, 4096, 1024, 256, 8]


def test_random_projections_keep_lengths_on_average() -> None:
    torch.manual_seed(0)
    features = (torch.randn(20, 3, 10, 10), torch.randn(5, 3, 10, 10))
    train, test = probes.projected(features, 200, 1)
    assert (train.shape, test.shape) == ((20, 200), (5, 200))
    ratio = train.float().square().sum(1).mean() / 200
    assert 0.8 < ratio < 1.2


def test_weight_in_a_box() -> None:
    left, top, right, bottom = BOXES["glasses"]
    latents, stride = 2, 8
    side = (64 - 9) // stride + 1
    weight = torch.zeros(1, latents, side, side)
    even = weights.maps_of_weights(weight.add(1).flatten(1), latents)
    assert even.shape == (1, side, side)
    assert weights.box_share(even[0], "glasses", 9, stride)[2] == pytest.approx(1)
    row, column = ((a + b) // 2 // stride for a, b in ((top, bottom), (left, right)))
    weight[:, 0, row, column] = 1
    weight[:, 1] = -1  # negative weights do not count
    mass, area, ratio = weights.box_share(
        weights.maps_of_weights(weight.flatten(1), latents)[0], "glasses", 9, stride
    )
    assert mass == 1
    assert ratio == pytest.approx(1 / area)


def small_faces(n: int) -> tuple[Tensor, Tensor]:
    """Noise, with a bright corner where the attribute is."""
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 100, (n, 3, 20, 20), dtype=torch.uint8, generator=generator)
    has = torch.rand((n, 2), generator=generator) < 0.5
    images[has[:, 0], :, :6, :6] += 120
    return images, has


def test_a_bench_has_all_rows(tmp_path: Path) -> None:
    train, test = small_faces(120), small_faces(40)
    torch.manual_seed(0)
    models = {name: PatchVAE(form(name)).eval() for name in ("3|1", "9|1")}
    bench = probes.Bench((train[1], test[1]), {"CHANCE": 50.0, "9|1": 60.0}, 1)
    fitted, strides = probes.probe_models(bench, models, (train[0], test[0]))
    rows = {row.model: row for row in bench.rows}
    assert list(rows) == ["3|1", "9|1", "9|1, random 32", "ALL", "PIXEL", "PIXEL, random as 9|1", "CHANCE"]
    assert rows["9|1"].thesis == {"accuracy": 60.0}
    assert rows["ALL"].figures["features"] == sum(rows[name].figures["features"] for name in models)
    assert rows["PIXEL, random as 9|1"].figures["features"] == rows["9|1"].figures["features"]
    assert all(rows[name].figures["features"] <= probes.LIMIT for name in models)
    assert rows["PIXEL"].figures["accuracy"] > 60
    assert fitted["9|1"].weight.shape == (2, rows["9|1"].figures["features"])
    assert set(strides) == set(models)


def test_claims_follow_the_figures() -> None:
    controls = {"9|1, random 32": 88.0, "PIXEL, random as 9|1": 86.0}
    assert verdicts(probe_claims.claims_of_table("CelebA", probes.FACES_KNOWN | controls)) == [True] * 6
    backwards = {name: 100 - value for name, value in (probes.FACES_KNOWN | controls).items()}
    assert verdicts(probe_claims.claims_of_table("CelebA", backwards)) == [False] * 6
    falling = {name: 90.0 - n for n, name in enumerate(LAYERS)}
    rising = {name: 80.0 + n for n, name in enumerate(LAYERS)}
    assert verdicts(probe_claims.claims_of_depth(falling) + probe_claims.claims_of_depth(rising)) == [
        True,
        False,
    ]
    for ratio, found in ((2.5, True), (1.5, False)):
        row = {"weight in box": 0.1 * ratio, "area of box": 0.1, "ratio": ratio}
        wide = {"weight in box": 0.5, "area of box": 0.5, "ratio": 1.0}
        assert probe_claims.weight_claims({"hat": row, "blond": wide}).found is found
    values = {"3|1": 80.0, "9|1": 99.0, "9|3": 70.0, "15|1": 90.0, "15|3": 85.0, "15|5": 70.0}
    for error, found in ((1.0, True), (20.0, False)):
        eyes = {name: {"other eye": value, "standard error": error} for name, value in values.items()}
        assert verdicts(maps.effects_of(eyes)) == [found, found, None, None]
    assert set(BOXES) | {"pale"} == set(SHARES)
