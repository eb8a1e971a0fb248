"""The benches run on two tiny images with the columns they promise; their metrics agree with independent
implementations."""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is run from the checkout, not installed

from bench import (
    common,
    crops,
    exactness,
    kernels,
    lossless,
    near_lossless,
    rate_distortion,
    regions,
    report,
    rivals,
    speed,
    strip,
    training,
)
from bench.progressive import __main__ as progressive
from bench.progressive import dedicated, measure, streams, summary
from bench.progressive import tables as prefixes
from vbc.codec.example import make_example

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"one": (72, 48), "two": (33, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny images."""
    out = tmp_path_factory.mktemp("images")
    for seed, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(make_example(*size, seed)).save(out / f"{name}.png")
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benches of this module leave their results, for the report at the end."""
    return tmp_path_factory.mktemp("results")


def noisy(rgb: common.Rgb, deviation: float) -> common.Rgb:
    noise = np.random.default_rng(1).normal(0, deviation, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


# Metrics


def test_psnr() -> None:
    a = np.full((5, 7, 3), 100, np.uint8)
    b = a.copy()
    assert common.psnr(a, b) is None
    b[0, 0, 0] = 142  # one subpixel of 105, wrong by 42: mean square 16.8
    assert common.psnr(a, b) == pytest.approx(20 * np.log10(255) - 10 * np.log10(16.8))
    assert common.psnr(b, a) == common.psnr(a, b)
    assert common.psnr(a, np.full_like(a, 255)) == pytest.approx(20 * np.log10(255 / 155))
    with pytest.raises(ValueError, match="picture"):
        common.psnr(a, b[:1])


def independent_ms_ssim(a: common.Rgb, b: common.Rgb) -> float:
    """Wang, Simoncelli and Bovik 2003, with numpy alone: five scales, 11-tap Gaussian of deviation 1.5."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            x = np.apply_along_axis(np.convolve, axis, x, taps, "valid")
        return x

    def halve(x: np.ndarray) -> np.ndarray:
        return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4

    planes = []
    for c in range(3):
        x, y = a[..., c].astype(float), b[..., c].astype(float)
        product = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mx, my = blur(x), blur(y)
            vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            contrast = (2 * cov + c2) / (vx + vy + c2)
            if scale == 4:
                contrast = contrast * (2 * mx * my + c1) / (mx * mx + my * my + c1)
            product *= contrast.mean() ** weight
            if scale < 4:
                x, y = halve(x), halve(y)
        planes.append(product)
    return float(np.mean(planes))


@pytest.mark.parametrize("deviation", [4, 30])
def test_ms_ssim(deviation: float) -> None:
    a = make_example(192, 176)
    b = noisy(a, deviation)
    assert common.ms_ssim(a, b) == pytest.approx(independent_ms_ssim(a, b), abs=2e-5)
    assert common.ms_ssim(a, a) == pytest.approx(1)
    assert common.ms_ssim(a[:160], b[:160]) is None


def test_decibel() -> None:
    assert common.decibel(0.99) == pytest.approx(20)
    assert common.decibel(1.0) == 80


def test_ssimulacra2() -> None:
    """100 for the same picture, and the higher the less noise; what is too small for it has none."""
    a = make_example(80, 64)
    scores = [common.ssimulacra2(a, noisy(a, deviation)) for deviation in (2, 8, 32)]
    assert common.ssimulacra2(a, a) == 100
    assert None not in scores
    assert [100, *scores] == sorted([100, *scores], reverse=True)
    assert common.ssimulacra2(a[:7], a[:7]) is None
    with pytest.raises(ValueError, match="picture"):
        common.ssimulacra2(a, a[:40])


@pytest.fixture
def butteraugli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in libjxl's place, which is to be written, and no other on the path but the shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder / common.BUTTERAUGLI


def test_butteraugli_is_read_from_its_program(butteraugli: Path) -> None:
    a = make_example(9, 5)
    assert common.butteraugli_3norm(a, a) is None  # not installed
    butteraugli.write_text(
        f"#!{sys.executable}\n"
        "import sys\nfrom PIL import Image\n"
        "first, second = (Image.open(path).getpixel((0, 0))[0] for path in sys.argv[1:])\n"
        "print(f'12.5\\n3-norm: {first - second}.25')\n"
    )
    butteraugli.chmod(0o755)
    a, b = np.full((5, 9, 3), 90, np.uint8), np.full((5, 9, 3), 88, np.uint8)
    assert common.butteraugli_3norm(a, b) == 2.25


def test_a_butteraugli_that_fails_is_an_error(butteraugli: Path) -> None:
    a = make_example(9, 5)
    butteraugli.write_text(f"#!{sys.executable}\nprint('12.5')\n")
    butteraugli.chmod(0o755)
    with pytest.raises(ValueError, match=r"no 3-norm in '12.5"):
        common.butteraugli_3norm(a, a)
    butteraugli.write_text(f"#!{sys.executable}\nraise SystemExit(3)\n")
    with pytest.raises(subprocess.CalledProcessError):
        common.butteraugli_3norm(a, a)


CURVE = [(0.1, 25.0), (0.25, 28.5), (0.5, 31.9), (1.0, 34.6), (1.9, 38.8)]
OTHER = [(0.08, 26.1), (0.2, 29.0), (0.55, 34.0), (0.9, 36.1), (2.2, 41.0)]


def test_bd_rate_of_a_scaled_curve() -> None:
    scaled = [(0.7 * rate, quality) for rate, quality in CURVE]
    assert common.bd_rate(CURVE, scaled) == pytest.approx((-30.0, 25.0, 38.8))
    assert common.bd_rate(scaled, CURVE) == pytest.approx((100 * (1 / 0.7 - 1), 25.0, 38.8))


def test_bd_rate_against_numerical_integration() -> None:
    from scipy.interpolate import Akima1DInterpolator

    quality = np.linspace(26.1, 38.8, 20001)
    mean_log = [
        np.trapezoid(Akima1DInterpolator([q for _, q in c], np.log([r for r, _ in c]))(quality), quality)
        / (quality[-1] - quality[0])
        for c in (CURVE, OTHER)
    ]
    found = common.bd_rate(CURVE, OTHER)
    assert found == pytest.approx((100 * (np.exp(mean_log[1] - mean_log[0]) - 1), 26.1, 38.8), rel=1e-4)


def test_bd_rate_needs_curves_that_overlap() -> None:
    assert common.bd_rate(CURVE, CURVE[:3]) is None
    assert common.bd_rate(CURVE, [(rate, quality + 20) for rate, quality in CURVE]) is None


def scored(
    rates: list[float], scores: list[float], image: str = "a", codec: str = "anchor"
) -> list[common.Row]:
    """Rows as of `measure_image`, whose Butteraugli is 2 at one bit per pixel, 1 at two."""
    about = {
        "codec": codec,
        "setting": "",
        "image": image,
        "psnr_db": None,
        "msssim": None,
        "msssim_db": None,
    }
    points = zip(rates, scores, strict=True)
    return [
        about | {"rate_bpp": rate, "ssimulacra2": score, "butteraugli_3norm": 2 / rate}
        for rate, score in points
    ]


RATES = [0.1, 0.2, 0.35, 0.6, 1.0, 1.7, 2.9]
SCORES = [10.0, 30.0, 45.0, 58.0, 70.0, 82.0, 93.0]


def test_bits_at_equal_score_are_of_the_range_alone() -> None:
    """A codec of 0.8 times the bits within the range; what happens outside of it is not counted."""
    test = [0.8 * rate for rate in RATES]
    found = rate_distortion.bd_rate_at_equal_score(scored(RATES, SCORES), scored(test, SCORES))
    assert found == pytest.approx((-20.0, 40.0, 85.0))
    log_rates = np.linspace(np.log(0.1), np.log(3.0), 60)  # straight lines, so that the answer is exact
    scores = 50 + 25 * log_rates
    kinked = [r + (0.0 if s > 39 else 0.5) for r, s in zip(log_rates, scores, strict=True)]
    base = scored(np.exp(log_rates).tolist(), scores.tolist())
    found = rate_distortion.bd_rate_at_equal_score(base, scored(np.exp(kinked).tolist(), scores.tolist()))
    assert found is not None
    assert found[1] == 40
    assert found[0] == pytest.approx(0, abs=0.2)


def test_bits_at_equal_score_interpolate_the_ends_of_the_range() -> None:
    """Lines of other slopes: at score s they differ by a + b s, whose mean is that at the middle."""
    scores = [20.0, 37.0, 52.0, 66.0, 79.0, 96.0]
    base, test = ([math.exp(slope * s / 100) for s in scores] for slope in (3.0, 2.0))
    found = rate_distortion.bd_rate_at_equal_score(scored(base, scores), scored(test, scores))
    assert found == pytest.approx((100 * (math.exp(-(40 + 85) / 2 / 100) - 1), 40, 85), rel=2e-3)


@pytest.mark.parametrize(
    ("rates", "scores"),
    [
        ([0.1, 0.2, 0.3, 0.4], [1.0, 5.0, 20.0, 39.0]),  # all poor
        ([2.0, 3.0, 4.0, 5.0], [86.0, 90.0, 94.0, 97.0]),  # all too good
        ([0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 5.0, 39.0, 44.0, 49.0]),  # less than ten scores of the range
        ([0.1, 0.2, 2.0, 3.0], [5.0, 20.0, 90.0, 95.0]),  # on both sides of it and nowhere within
        ([0.2, 0.5, 1.5], [42.0, 60.0, 80.0]),  # too few points
        ([], []),
    ],
)
def test_bits_at_equal_score_are_not_invented(rates: list[float], scores: list[float]) -> None:
    base, test = scored(RATES, SCORES), scored(rates, scores)
    assert rate_distortion.bd_rate_at_equal_score(base, test) is None
    assert rate_distortion.bd_rate_at_equal_score(test, base) is None


def test_distance_at_equal_bytes() -> None:
    base, test = scored(RATES, SCORES), scored(RATES, SCORES)
    for row in test:
        row["butteraugli_3norm"] *= 0.9 if row["rate_bpp"] < 0.8 else 0.7
    found = rate_distortion.distance_at_equal_bytes(base, base)
    assert found == pytest.approx((0, 0.4, 1.5), abs=1e-9)
    found = rate_distortion.distance_at_equal_bytes(base, test)
    assert found is not None
    assert -30 < found[0] < -10
    for row in test:
        row["butteraugli_3norm"] = None
    assert rate_distortion.distance_at_equal_bytes(base, test) is None  # no program
    assert rate_distortion.distance_at_equal_bytes(base, base[:4]) is None  # 0.1 to 0.6: too little of it


def test_images_are_compared_one_by_one() -> None:
    """Half the bits on one image, the same on another, and no comparison on a third: their mean, of two."""
    rows = [row for image in "abc" for row in scored(RATES, SCORES, image)]
    rows += scored([0.5 * rate for rate in RATES], SCORES, "a", "test")
    rows += scored([9 * rate for rate in RATES], [score + 100 for score in SCORES], "c", "test")
    rows += scored(RATES, SCORES, "b", "test") + scored(RATES, [-score for score in SCORES], "b", "ruin")
    bits, distances = rate_distortion.eye_tables(rows, "anchor")
    found = {r["codec"]: r for r in bits}
    assert set(found) == {"anchor", "test"}
    assert found["test"]["bd_rate_percent"] == pytest.approx(-25)
    assert (found["test"]["n_images"], found["test"]["n_measured"]) == (2, 3)
    assert (found["test"]["low"], found["test"]["high"]) == (40, 85)
    assert {r["codec"] for r in distances} == {"anchor", "test", "ruin"}
    text = report.eye_table({"rate_distortion": [{"kind": "bd_rate"} | r for r in bits]})
    assert "| test | -25.0 % | 40 to 85 (2 of 3 images) | - | - | - | - | - |" in text


def test_rising() -> None:
    assert common.rising([(2, 30), (1, 20), (1.5, 19), (3, 30), (4, 31)]) == [(1, 20), (2, 30), (4, 31)]


# Rivals


@pytest.mark.parametrize("codec", rivals.lossless(), ids=lambda c: f"{c.name} {c.setting}")
def test_lossless_rivals_are_lossless(codec: rivals.Codec) -> None:
    rgb = make_example(41, 23)
    np.testing.assert_array_equal(codec.decode(codec.encode(rgb)), rgb)


def test_lossy_rivals_keep_colours() -> None:
    """The order of the channels and the range survive: nothing is worse than a coarse copy of the picture."""
    rgb = make_example(64, 64)
    for codec in (rivals.jpeg(90), rivals.avif(80), rivals.jpeg2000(3.0), *rivals.lossy()[-1:]):
        psnr = common.psnr(rgb, codec.decode(codec.encode(rgb)))
        assert psnr is not None
        assert psnr > 24, codec


def test_layers_of_jpeg2000_fit_their_budgets() -> None:
    rgb = make_example(128, 96)
    budgets = [800, 2000, 5000, 9000]
    data, ends = rivals.encode_layers(rgb, budgets)
    assert len(ends) == 5
    assert all(end <= budget for end, budget in zip(ends, budgets, strict=False))
    assert rivals.decode_layers(data, ends, ends[0] - 1) is None
    pictures = [rivals.decode_layers(data[:end], ends, end) for end in ends]
    quality = [common.psnr(rgb, p) for p in pictures if p is not None]
    assert quality == [*sorted(quality[:-1]), None]  # the last is exact


def test_prefixes_of_jpeg() -> None:
    rgb = make_example(128, 96)
    data = rivals.jpeg(90).encode(rgb)
    assert rivals.decode_jpeg_prefix(data[:50], rgb) is None
    half, whole = (rivals.decode_jpeg_prefix(d, rgb) for d in (data[: len(data) // 2], data))
    assert half is not None
    assert whole is not None
    np.testing.assert_array_equal(whole, rivals.decode_pillow(data))
    assert common.psnr(rgb, half) < common.psnr(rgb, whole)


def test_first_scan_of_jpeg_is_a_whole_picture() -> None:
    rgb = make_example(128, 96)
    data = rivals.jpeg(75).encode(rgb)
    end = rivals.end_of_first_scan(data)
    assert 0 < end < len(data) // 2
    first = rivals.decode_jpeg_prefix(data[:end], rgb)
    assert first is not None
    psnr = common.psnr(rgb[-16:], first[-16:])  # its last rows are there too
    assert psnr is not None
    assert psnr > 15


@pytest.mark.parametrize("least", [1, 2, 57, 100])
def test_shortest_prefix(least: int) -> None:
    picture = np.zeros((1, 1, 3), np.uint8)
    found = measure.shortest_prefix(bytes(100), lambda head: picture if len(head) >= least else None)
    assert found == least


def test_djxl_shows_prefixes_where_installed() -> None:
    if not rivals.installed("cjxl", "djxl"):
        pytest.skip("cjxl and djxl are not installed")
    rgb = make_example(300, 300)  # more than a group of 256 pixels: parts of one group are not shown
    data = rivals.encode_cjxl(rgb, *next(iter(streams.JXL_OPTIONS.values())))
    np.testing.assert_array_equal(rivals.decode_djxl(data), rgb)
    assert rivals.decode_or_none(rivals.decode_djxl, data[:20], rgb.shape) is None
    half = rivals.decode_or_none(rivals.decode_djxl, data[: len(data) // 2], rgb.shape)
    assert half is not None
    psnr = common.psnr(rgb, half)
    assert psnr is not None
    assert psnr > 20


def test_best_fits() -> None:
    curve = [rivals.Codec("fake", str(n), lambda rgb, n=n: bytes(n), lambda data: None) for n in (10, 20, 40)]
    fits = dedicated.best_fits(curve, np.zeros((1, 1, 3), np.uint8), [9, 10, 39, 41, 90])
    assert [f and f[0].setting for f in fits] == [None, "10", "20", "40", None]


# The benches, each on both images


def test_lossless(folder: Path, results: Path) -> None:
    assert lossless.main([str(folder), "--out", str(results), "--quick"]) == 0
    rows = common.read_results(results / "lossless.jsonl")
    assert rows[0]["kind"] == "run"
    assert {"date", "machine", "cores", "commit", "versions", "command", "quick"} <= rows[0].keys()
    summary = [r for r in rows if r["kind"] == "summary"]
    assert {"vbc", "png", "webp", "jpeg_xl", "jpeg2000"} <= {r["codec"] for r in summary}
    assert all(r["exact"] and r["n_images"] == 2 for r in summary)
    assert all(r["rate_bpsp"] > 0 and r["encode_mps"] > 0 and r["decode_mps"] > 0 for r in summary)
    header = (results / "lossless.csv").read_text().splitlines()[0]
    assert header == "threads,codec,setting,n_images,n_bytes,rate_bpsp,encode_mps,decode_mps,exact"


def test_a_lossless_codec_that_is_not_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossless, "our_codecs", lambda model, quick: [])
    monkeypatch.setattr(rivals, "lossless", lambda quick: [rivals.jpeg(90)])
    assert lossless.main([str(folder), "--out", str(tmp_path)]) == 1


@pytest.mark.parametrize("bound", [0, 1, 2, 4, 8])
def test_near_lossless_rivals_keep_the_bound(bound: int) -> None:
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for rgb in (make_example(40, 24), every_value, every_value.transpose(1, 0, 2).copy()):
        for codec in rivals.near_lossless(bound):
            found = near_lossless.largest_error(rgb, codec.decode(codec.encode(rgb)))
            assert found <= bound
            assert bound == 0 or found > 0


def test_near_lossless_webp_keeps_colours_where_installed() -> None:
    if not rivals.installed("cwebp"):
        pytest.skip("cwebp is not installed")
    rgb = make_example(40, 24)
    (codec,) = (c for c in rivals.near_lossless_unbounded(quick=True) if c.name == "webp")
    assert near_lossless.largest_error(rgb, codec.decode(codec.encode(rgb))) < 16


def test_largest_error() -> None:
    a = np.array([[[0, 255, 7]]], np.uint8)
    assert near_lossless.largest_error(a, 255 - a) == 255
    assert near_lossless.largest_error(a, a) == 0
    with pytest.raises(ValueError, match="a picture of"):
        near_lossless.largest_error(a, a[:, :, :2])


def test_near_lossless(folder: Path, results: Path) -> None:
    assert near_lossless.main([str(folder), "--out", str(results), "--quick", "--bounds", "0"]) == 0
    rows = [r for r in common.read_results(results / "near_lossless.jsonl") if r["kind"] == "summary"]
    bounded = {(r["codec"], r["bound"]): r for r in rows if r["bound"] is not None}
    assert set(bounded) == {("vbc", 0), ("jpeg_ls", 0), ("jpeg_xl", 0)}
    assert all(r["kept"] and r["largest_error"] == 0 and r["n_images"] == 2 for r in bounded.values())
    ours, reference = bounded["vbc", 0], bounded["jpeg_ls", 0]
    assert [reference[f"ratio_{of}"] for of in ("bytes", "encode", "decode")] == [1, 1, 1]
    assert ours["ratio_bytes"] == pytest.approx(ours["n_bytes"] / reference["n_bytes"], abs=1e-5)
    free = [r for r in rows if r["bound"] is None]
    assert free
    assert all(r["kept"] is None and r["ratio_bytes"] is None and r["largest_error"] > 0 for r in free)


def test_our_near_lossless_files_have_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(rivals, "ours", lambda model, setting, **options: asked.append(options))
    for bound in (0, 1, 8):
        near_lossless.our_codec(None, bound)
    assert asked == [{"lossless": True, "levels": 0}, {"near": 1, "levels": 0}, {"near": 8, "levels": 0}]


def test_a_broken_bound_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_lossless, "codecs", lambda model, bounds, quick: [(1, rivals.jpeg(50))])
    assert near_lossless.main([str(folder), "--out", str(tmp_path)]) == 1
    (total,) = (r for r in common.read_results(tmp_path / "near_lossless.jsonl") if r["kind"] == "summary")
    assert total["kept"] is False
    assert total["ratio_bytes"] is None
    assert "(BROKEN)" in report.near_lossless_table({"near_lossless": [total]})


@pytest.mark.parametrize("text", ["-1", "9", "one", ""])
def test_bounds_are_checked(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        near_lossless.bounds_of(text)
    assert near_lossless.bounds_of("4,1,2,1") == [1, 2, 4]


def test_rate_distortion(folder: Path, results: Path, tmp_path: Path) -> None:
    published = tmp_path / "published.csv"
    points = "".join(f"paper,{rate},{quality},\n" for rate, quality in OTHER)
    published.write_text("codec,bpp,psnr,msssim\n" + points)
    options = ["--out", str(results), "--quick", "-j", "1", "--published", str(published)]
    assert rate_distortion.main([str(folder), *options]) == 0
    rows = common.read_results(results / "rate_distortion.jsonl")
    curves = common.group([r for r in rows if r["kind"] == "summary"], "codec")
    assert len(curves["vbc",]) == 6
    for curve in curves.values():
        assert all(r["n_images"] == 2 and r["rate_bpp"] > 0 and r["psnr_db"] > 5 for r in curve)
    table = {r["codec"]: r for r in rows if r["kind"] == "bd_rate"}
    assert table["jpeg 4:2:0"]["bd_rate_percent"] == pytest.approx(0)
    assert table["vbc"]["published"] is False
    measured = [r for r in rows if r["kind"] == "row"]
    assert all(
        -1000 < r["ssimulacra2"] <= 100 for r in measured
    )  # tiny pictures ruined give large negative ones
    assert all("butteraugli_3norm" in r for r in measured)
    header = (results / "rate_distortion.csv").read_text().splitlines()[0]
    assert header.endswith("psnr_db,msssim,msssim_db,ssimulacra2,butteraugli_3norm")
    schema = json.loads((results / "compressai" / "vbc.json").read_text())
    assert schema["name"] == "vbc"
    assert len(schema["results"]["bpp"]) == len(schema["results"]["psnr-rgb"]) == 6
    assert schema["results"]["bpp"] == sorted(schema["results"]["bpp"])
    assert (results / "rate_distortion.png").read_bytes().startswith(b"\x89PNG")


def test_a_published_curve_may_have_the_name_of_a_measured_one() -> None:
    def curve(name: str, setting: str, points: list[tuple[float, float]]) -> list[common.Row]:
        about = {"codec": name, "setting": setting, "msssim_db": None, "ssimulacra2": None}
        return [about | {"rate_bpp": rate, "psnr_db": quality} for rate, quality in points]

    half, twice = ([(factor * rate, quality) for rate, quality in CURVE] for factor in (0.5, 2))
    rows = curve("anchor", "q", CURVE) + curve("anchor", rate_distortion.PUBLISHED, twice)
    rows += curve("jpeg2000", "q", half) + curve("jpeg2000", rate_distortion.PUBLISHED, twice)
    table = rate_distortion.bd_table(rows, "anchor")
    found = {(r["codec"], r["published"]): r["bd_rate_percent"] for r in table}
    assert found == {
        ("anchor", False): pytest.approx(0, abs=1e-9),
        ("anchor", True): pytest.approx(100),
        ("jpeg2000", False): pytest.approx(-50),
        ("jpeg2000", True): pytest.approx(100),
    }
    lines = report.lossy_table({"rate_distortion": [{"kind": "bd_rate"} | r for r in table]})
    assert "| jpeg2000 | -50.0 % |" in lines
    assert "| jpeg2000 | +100.0 % |" in lines
    with pytest.raises(SystemExit, match="there are anchor, jpeg2000"):
        rate_distortion.bd_table(rows, "nothing")


PUBLISHED_PREFIXES = "codec,rate_bpp,psnr_db,source\nlearned,0.25,30,x\nlearned,1.0,34,x\n"


def test_progressive(folder: Path, results: Path, tmp_path: Path) -> None:
    published = tmp_path / "published.csv"
    published.write_text(PUBLISHED_PREFIXES)
    options = ["--quick", "-j", "1", "--published", str(published)]
    assert progressive.main([str(folder), "--out", str(results), *options]) == 0
    rows = common.read_results(results / "progressive.jsonl")
    of_one = [r for r in rows if r["kind"] == "row" and r["image"] == "one.png"]
    ours = [r for r in of_one if r["codec"] == "vbc layered"]
    levels = [r for r in ours if r["what"] == "level"]
    assert [r["level"] for r in levels] == list(range(1, len(levels) + 1))
    assert [r["exact"] for r in levels] == [False] * (len(levels) - 1) + [True]
    packets = [r for r in ours if r["what"] == "packet"]
    assert [r["level"] for r in packets] == [r["level"] for r in levels]  # so small a picture has one group
    assert packets[-1]["exact"]
    cuts = [r for r in ours if r["what"] == "prefix"]
    assert [r["share"] for r in cuts] == list(streams.SHARES)
    assert not cuts[0]["decoded"]  # no level ends within a fiftieth of so small a file
    assert cuts[-1]["exact"]
    assert cuts[-1]["ssimulacra2"] == 100
    budgets = {
        (r["image"], r["share"]): r["n_bytes"]
        for r in rows
        if r["kind"] == "row" and r["what"] == "prefix" and r["codec"] == "vbc layered"
    }
    made = [r for r in rows if r["kind"] == "row" and r["what"] == "dedicated"]
    assert made
    assert all(r["n_bytes"] <= budgets[r["image"], r["share"]] for r in made)
    first = {r["codec"]: r for r in rows if r["kind"] == "summary" and r["what"] == "first"}
    assert first["vbc layered"]["time_ms"] > 0
    one = [r for r in of_one if r["what"] == "first"]
    assert {"vbc archival", "jpeg2000 layers", "jpeg 4:2:0 q75"} <= {r["codec"] for r in one}
    assert next(r["n_bytes"] for r in one if r["codec"] == "vbc layered") == levels[0]["n_bytes"]
    whole = [r for r in rows if r["kind"] == "summary" and r["what"] == "file"]
    assert {f"vbc {mode}" for mode in streams.LOSSLESS_MODES} <= {
        r["codec"] for r in whole if r["n_exact"] == 2
    }
    assert all(r["file_bpp"] > 0 and r["n_images"] == 2 for r in whole)
    (steps,) = (r for r in rows if r["kind"] == "summary" and r["what"] == "packet")
    assert steps["n_packets"] == sum(r["kind"] == "row" and r["what"] == "packet" for r in rows)
    assert steps["psnr_fall_db"] >= 0
    for name in ("progressive.png", "progressive_lossy.png", "levels.png"):
        assert (results / name).read_bytes().startswith(b"\x89PNG")


def test_stages_of_lossy_files(results: Path) -> None:
    """Of the run of `test_progressive`."""
    rows = common.read_results(results / "progressive.jsonl")
    of_one = [r for r in rows if r["kind"] == "row" and r["image"] == "one.png"]
    without = [r for r in of_one if r["codec"] == "vbc q60 --tune psnr" and r["what"] == "stage"]
    assert [r["stage"] for r in without] == [0]
    assert without[0]["excess_psnr_percent"] == pytest.approx(0, abs=0.1)  # is the curve's own point
    refined = [
        r for r in of_one if r["codec"] == "vbc q60, 2 refinements --tune psnr" and r["what"] == "stage"
    ]
    assert [r["stage"] for r in refined] == [0, 1, 2, 0.25, 0.5, 0.75, 1.25, 1.5, 1.75]
    in_order = sorted(refined, key=lambda r: r["stage"])
    assert [r["n_bytes"] for r in in_order] == sorted(r["n_bytes"] for r in refined)
    assert {r["codec"] for r in of_one if r["what"] == "own_prefix"} >= {"vbc q60", "jpeg 4:2:0 q75"}
    assert all(r["ssimulacra2"] is None for r in of_one if r["what"] == "rate")
    orders = [r for r in rows if r["kind"] == "summary" and r["what"] == "order"]
    assert all(r["n_images"] == 2 and r["n_rising_psnr_fall_db"] <= 2 for r in orders)
    learned = [r for r in rows if r["kind"] == "summary" and r["what"] == "published"]
    assert {r["rate"]: r["psnr_db"] for r in learned}[0.5] == 32  # in the middle of its logarithm


def test_a_file_cut_shorter_has_fewer_stages() -> None:
    ends = {1: 10, 2: 20, 3: 30, 33: 40, 34: 50, 35: 60}
    about = {"name": "", "data": bytes(60), "decode": lambda head: None, "level_ends": ends}
    assert streams.Stream(**about, refinements=0).stage_ends == [30]
    assert streams.Stream(**about, refinements=2).stage_ends == [30, 60]
    assert streams.Stream(**about).stage_ends == []  # a lossless one


def test_excess_is_none_beyond_the_curve() -> None:
    curve = [{"rate_bpp": 2.0**k, "psnr_db": 30.0 + 3 * k, "ssimulacra2": None} for k in range(4)]
    found = dedicated.excess({"rate_bpp": 3.0, "psnr_db": 33.0, "ssimulacra2": None}, curve)
    assert found["excess_psnr_percent"] == pytest.approx(50)
    assert found["excess_ssimulacra2_percent"] is None
    for psnr in (29.9, 39.1, None):
        row = {"rate_bpp": 3.0, "psnr_db": psnr, "ssimulacra2": None}
        assert dedicated.excess(row, curve)["excess_psnr_percent"] is None


def test_rate_at_is_linear_over_octaves_where_the_curve_is() -> None:
    curve = [(2.0**k, 30.0 + 3 * k) for k in range(4)]
    assert common.rate_at(curve, 34.5) == pytest.approx(2**1.5)
    assert common.rate_at(curve[:3], 34.5) is None  # too few points


def test_falls_are_from_the_best_before() -> None:
    def row(n_bytes: int, psnr: float | None, score: float | None, what: str = "prefix") -> common.Row:
        row = {"what": what, "n_bytes": n_bytes, "psnr_db": psnr, "ssimulacra2": score, "decoded": True}
        return row | {"exact": psnr is None}

    rows = [row(1, 30.0, 50.0), row(3, 28.0, 60.0), row(2, 29.5, 55.0), row(4, None, 100.0)]
    found = summary.order("x", [*rows, row(2, 1.0, None, "rate")])
    assert found == {"codec": "x", "what": "order", "n_cuts": 4, "psnr_fall_db": 2.0, "ssimulacra2_fall": 0.0}
    missing = row(5, None, None) | {"decoded": False, "exact": False}
    assert summary.order("x", [*rows[:1], missing])["n_cuts"] == 1
    assert summary.order("x", [*rows, row(9, 60.0, 99.0)])["psnr_fall_db"] == math.inf  # was exact before


def test_rates_that_a_file_does_not_reach_have_no_number() -> None:
    rows = [{"what": "file", "codec": "vbc a", "n_images": 2}]
    for rate, n_images in ((0.2, 2), (0.3, 1)):
        row = {"what": "rate", "codec": "vbc a", "rate": rate, "n_images": n_images, "n_decoded": n_images}
        rows.append(row | {"n_exact": 0, "psnr_db": 31.25})
    rows.append({"what": "published", "codec": "b", "rate": 0.3, "psnr_db": 33.0})
    lines = prefixes.rate_table(rows).splitlines()
    assert lines[2].startswith("| **vbc a** | **31.2** | - |")
    assert lines[3].startswith("| b (published) | - | 33.0 |")


@pytest.mark.parametrize(("stage", "name"), [(0, "1"), (1.25, "2 and 25% of the next")])
def test_stages_are_counted_from_one(stage: float, name: str) -> None:
    assert prefixes.stage_name(stage) == name


def test_speed_of_photographs(folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        speed, "startup", lambda model, repeats: [{"command": "codec --help", "time_s": 0.2, "repeats": 1}]
    )
    options = ["--photos", "--quick", "--threads", "1", "--out", str(results)]
    assert speed.main([str(folder), *options]) == 0
    rows = [r for r in common.read_results(results / "speed_photos.jsonl") if r["kind"] == "summary"]
    kinds = {(r["codec"], r["setting"], r["way"]) for r in rows}
    assert {("vbc", mode, way) for mode in speed.MODES for way in ("encode", "decode")} <= kinds
    assert all(r["speed_mps"] > 0 for r in rows)
    one = [r for r in rows if r["codec"] == "jpeg_xl"]
    assert [r["ratio_to_jpeg_xl_e7"] for r in one] == [1.0] * 4
    assert [r["ratio_to_png"] for r in rows if r["codec"] == "png"] == [1.0] * 2


def test_speed_by_size(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the sizes' processes, made here, become ratios, exponents and tables."""
    monkeypatch.setattr(speed, "startup", lambda model, repeats: [])

    def one_size(size: int, threads: int, with_rivals: bool) -> Iterator[common.Row]:
        for codec, setting, mps in (
            ("vbc", "lossy", 8.0),
            ("vbc", "archival", 6.0),
            ("jpeg_xl", "e7 lossless", 3.0),
            ("jpeg_xl", "e7 lossy d1", 2.0),
            ("png", "optimize", 1.5),
        ):
            ours = codec == "vbc"
            if ours or with_rivals:
                time_s = size * size / mps / 1e6
                row = {"codec": codec, "setting": setting, "way": "encode", "size": size, "device": "cpu"}
                row |= {"threads": threads if ours else 1, "n_pixels": size**2, "speed_mps": mps}
                stages = {"networks": 0.75 * time_s, "rest": 0.25 * time_s}
                more = {"stages_s": stages, "watched_s": time_s, "peak_mb": 100.0} if ours else {}
                yield row | {"time_s": time_s} | more

    def each_size(args: object) -> Iterator[common.Row]:
        for size in (256, 512):
            yield from one_size(size, 1, True)
            yield from one_size(size, 2, False)

    monkeypatch.setattr(speed, "each_size", each_size)
    assert speed.main(["--out", str(results)]) == 0
    rows = common.read_results(results / "speed.jsonl")
    found = {(r["setting"], r["size"], r["threads"]): r for r in rows if r["kind"] == "ratio"}
    assert len(found) == 8
    assert found["lossy", 256, 2]["ratio_to_jpeg_xl_e7"] == pytest.approx(4)
    assert found["archival", 512, 1]["ratio_to_jpeg_xl_e7"] == pytest.approx(2)
    assert found["archival", 512, 1]["ratio_to_png"] == pytest.approx(4)
    assert all(r["exponent"] == pytest.approx(1) for r in rows if r["kind"] == "scaling")
    gathered = {"speed": rows}
    assert "| **vbc, lossy, encode, 2 threads** | **8.00** | **8.00** |" in report.throughput_table(gathered)
    assert "| total | 32.8 | 43.7 |" in report.stage_table(gathered)
    assert "| networks | 24.6 (75%) | 32.8 (75%) |" in report.stage_table(gathered)
    assert "lossy, encode, 2 threads: rest | 32.00 | 32.00 |" in report.stage_speed_table(gathered)


def test_stages_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--one", "72", "1", "--quick"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours = {(r["setting"], r["way"]): r for r in rows if r["codec"] == "vbc"}
    assert len(ours) == 6
    for r in ours.values():
        assert sum(r["stages_s"].values()) == pytest.approx(r["watched_s"], rel=0.02, abs=1e-3)
        assert r["peak_mb"] >= r["start_mb"] > 50
    stages = {key: r["stages_s"] for key, r in ours.items()}
    assert {"networks", "entropy coding", "self-check"} <= stages["archival", "encode"].keys()
    assert "self-check" not in stages["archival", "decode"]
    assert {"analysis", "transform", "colour", "container"} <= stages["layered", "encode"].keys()
    # named stages cover nearly all: a function that was renamed or split would end up in the rest
    assert all(s[speed.REST] < 0.5 * sum(s.values()) for s in stages.values())


def test_threads_of_the_codec_run_in_turn_while_stages_are_timed() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from vbc.codec.exact import follower

    with speed.watched(speed.Stopwatch(), encoding=False):
        assert follower.ThreadPoolExecutor is speed.InTurn
        with follower.ThreadPoolExecutor(1) as pool:
            future = pool.submit(divmod, 7, 2)
            assert future.done()
            assert future.result() == (3, 1)
            failed = pool.submit(divmod, 7, 0)
        with pytest.raises(ZeroDivisionError):
            failed.result()
    assert follower.ThreadPoolExecutor is ThreadPoolExecutor


def test_peak_memory_is_of_what_ran_since(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    block = np.ones(60_000_000, np.uint8)
    high = speed.peak_mb()
    del block
    speed.forget_peak()
    low = speed.peak_mb()
    assert low < high - 30
    block = np.ones(60_000_000, np.uint8)
    assert speed.peak_mb() > low + 30
    del block


@pytest.mark.parametrize("name", [name for names in speed.STAGES.values() for name in names])
def test_stages_name_functions(name: str) -> None:
    assert callable(speed.resolve(name)[2])


def test_stopwatch_is_undone() -> None:
    before = {name: speed.resolve(name)[2] for names in speed.STAGES.values() for name in names}
    with speed.watched(speed.Stopwatch(), encoding=True):
        assert any(speed.resolve(name)[2] is not f for name, f in before.items())
    assert all(speed.resolve(name)[2] is f for name, f in before.items())


def test_scaling() -> None:
    about = {"codec": "c", "setting": "s", "way": "encode", "threads": 1, "device": "cpu"}
    rows = [about | {"size": n, "n_pixels": n * n, "time_s": 1e-7 * n**2.2} for n in (64, 128, 512)]
    (found,) = speed.scaling(rows)
    assert found["exponent"] == pytest.approx(1.1)


def test_exactness(folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Iterator[tuple[str, exactness.Hashes]]:
        yield from ()

    def wrong(files: dict[str, bytes], _: object) -> Iterator[tuple[str, exactness.Hashes]]:
        yield "wrong", {"layered 1 levels": "0" * 16}

    monkeypatch.setattr(exactness, "interpreted", none)  # minutes; tests/test_exactness.py has its own
    for name, value in (("REFERENCE_SIDE", 20), ("QUICK_SIDE", 72), ("WIDE", (9, 1100)), ("THREADS", (1, 4))):
        monkeypatch.setattr(exactness, name, value)
    assert exactness.main([str(folder), "--out", str(results), "--quick"]) == 0
    rows = common.read_results(results / "exactness.jsonl")
    variants = {r["variant"] for r in rows if r["kind"] == "row"}
    assert {"the original", "1 threads", "4 threads", "4 at once", "int64 convolutions"} <= variants
    assert {"groups one by one", "in pieces of 7 bytes", "regions"} <= variants
    assert "the device's path on the CPU" in variants
    (summary,) = (r for r in rows if r["kind"] == "summary")
    assert summary["n_hashes"] > 100
    assert summary["n_mismatches"] == 0
    for name in ("with_threads", "concurrently", "in_batches", "in_groups", "arriving", "in_regions"):
        monkeypatch.setattr(exactness, name, none)
    for name in ("slow_paths", "device_path"):
        monkeypatch.setattr(exactness, name, none)
    monkeypatch.setattr(exactness, "on_devices", wrong)
    assert exactness.main([str(folder), "--out", str(results / "wrong"), "--quick"]) == 1


def test_cases_of_the_kernels_run() -> None:
    """On the CPU; lanes, which only CUDA measures, check themselves against what was encoded."""
    cpu = torch.device("cpu")
    cases = [*kernels.all_cases(cpu, quick=True), *kernels.lane_cases(cpu, 2, 3, lane_bits=8)]
    assert len({case.name for case in cases}) == len(cases) > 10
    for case in cases:
        assert case.n_bytes > 0
        case.kernel()


def test_regions(results: Path, tiny_path: Path) -> None:
    options = ["--quick", "--side", "530", "--model", str(tiny_path)]
    assert regions.main(["--out", str(results), *options]) == 0
    rows = common.read_results(results / "regions.jsonl")
    files = {r["setting"]: r for r in rows if r["kind"] == "file"}
    assert set(files) == set(regions.MODES)
    for file in files.values():
        assert 0 < file["index_percent"] < 1
        assert file["lanes"] >= file["groups_of_lanes"] == 4
    parts = {(r["setting"], r["part"]): r for r in rows if r["kind"] == "summary"}
    assert len(parts) == 6
    assert all(r["exact"] for r in parts.values())
    for mode, file in files.items():
        whole, aligned, across = (parts[mode, part]["n_bytes"] for part in ("whole", "aligned", "across"))
        assert aligned < across < whole == file["n_bytes"]
        assert whole - across == 16  # the pixel hash, of which a region has no use


def test_regions_lie_inside() -> None:
    for side in (100, 512, 640, 1024, 8192):
        for x, y, width, height in regions.regions(side).values():
            assert 0 <= x == y
            assert x + width <= side
            assert width == height == min(side, regions.REGION)


# The report, of what the tests above have left


def test_report(folder: Path, results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    marked = "before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n"
    readme.write_text(marked)
    files = {f"{name}.jsonl" for name in ("lossless", "near_lossless", "progressive")}
    files |= {f"{name}.jsonl" for name in ("rate_distortion", "speed_photos")}
    assert files <= {p.name for p in results.iterdir()}
    published = tmp_path / "published.csv"
    points = "".join(f"{name},{rate},{quality},\n" for name in ("qres34m", "x") for rate, quality in OTHER)
    published.write_text("codec,bpp,psnr,msssim\n" + points)
    options = ["--out", str(results), "--docs", str(tmp_path / "docs"), "--readme", str(readme)]
    options += ["--published", str(published)]
    assert report.main(options) == 0
    assert readme.read_text() == marked  # quick runs are no results
    for file in files:
        path = results / file
        path.write_text(path.read_text().replace('"quick": true', '"quick": false', 1))
    assert report.main(options) == 0
    text = (tmp_path / "docs" / "results.md").read_text()
    beat = text[text.index("## Numbers to beat") : text.index("## Lossless")]
    for name in ("vbc, archival, effort 1", "jpeg_xl, e7", "CALLIC", "jpeg2000 layers", "QRes-VAE"):
        assert name in beat
    assert beat.count("| published |") > 4
    assert "| x |" not in text  # repeats qres34m
    for title in report.TITLES.values():
        assert f"## {title}" in text
    assert "python -m bench.lossless" in text
    assert str(folder) not in text
    assert "A quick run" in text  # exactness, which is still one
    assert (tmp_path / "docs" / "results" / "progressive.png").exists()
    for line in ("| **vbc, archival** | **0** | **0** |", "| **vbc layered** |", "| learned (published) |"):
        assert line in text
    filled = readme.read_text()
    assert "old" not in filled
    assert filled.startswith("before\n<!-- bench -->\n|  | lossless, bits/subpixel |")
    assert filled.endswith("|\n<!-- /bench -->\nafter\n")
    before = filled
    report.main(options)
    assert readme.read_text() == before


def test_readme_table_takes_the_best_of_each_kind() -> None:
    def lossless(codec: str, setting: str, rate_bpsp: float) -> common.Row:
        return {"kind": "summary", "codec": codec, "setting": setting, "rate_bpsp": rate_bpsp}

    def lossy(codec: str, metric: str, percent: float, published: bool = False) -> common.Row:
        row = {"kind": "bd_rate", "codec": codec, "metric": metric, "bd_rate_percent": percent}
        return row | {"anchor": "jpeg", "published": published}

    run: common.Row = {"kind": "run", "quick": False}
    results = {
        "lossless": [
            run,
            lossless("vbc", "layered", 3.0),
            lossless("vbc", "archival", 2.9256),
            lossless("jpeg_xl", "e3", 3.1),
            lossless("jpeg_xl", "e9", 2.8),
            lossless("flif", "interlaced", 2.7),
        ],
        "rate_distortion": [
            run,
            lossy("vbc", "psnr_db", -47.46),
            lossy("vbc", "msssim_db", -30.0),
            lossy("vbc", "ssimulacra2_per_image", -41.0),
            lossy("vbc --tune psnr", "psnr_db", -49.0),
            lossy("vbc --tune psnr", "ssimulacra2_per_image", -7.0),
            lossy("vbc", "ssimulacra2", -99.0),
            lossy("avif s6", "psnr_db", -52.0),
            lossy("avif s6", "msssim_db", -60.0),
            lossy("avif s2", "psnr_db", -55.0),
            lossy("avif s2", "msssim_db", -42.0),
            lossy("webp", "psnr_db", -80.0, published=True),
        ],
    }
    lines = report.summary_table(results).splitlines()
    first = "lossy, bits against jpeg, equal SSIMULACRA 2"
    assert lines[0] == f"|  | lossless, bits/subpixel | {first} | equal MS-SSIM | equal PSNR |"
    assert lines[2:] == [
        "| **vbc** | **2.926 (archival)** | **-41.0 %** | **-30.0 %** | **-49.0 % (--tune psnr)** |",
        "| JPEG XL | 2.800 (e9) | - | - | - |",
        "| AVIF | - | - | -60.0 % (s6) | -55.0 % (s2) |",
        "| WebP | - | - | - | - |",
        "| JPEG 2000 | - | - | - | - |",
        "| PNG | - | - | - | - |",
    ]
    filled = report.fill_readme("<!-- bench -->\nold\n<!-- /bench -->", results)
    assert filled == "\n".join(["<!-- bench -->", *lines, "<!-- /bench -->"])


def test_readme_table_stays_without_results() -> None:
    text = "<!-- bench -->\nkept\n<!-- /bench -->"
    assert report.fill_readme(text, {}) == text
    filled = f"<!-- bench -->\n{report.UNMEASURED}\n<!-- /bench -->"
    assert report.fill_readme("<!-- bench -->\n<!-- /bench -->", {}) == filled
    assert report.fill_readme(filled, {}) == filled
    assert report.MARK.search((ROOT / "README.md").read_text())


def test_strip(tmp_path: Path, folder: Path) -> None:
    path = folder / "one.png"
    assert strip.main([str(path), "--out", str(tmp_path / "strip.png")]) == 0
    photo, found = common.load_photo(path).rgb, common.load_photo(tmp_path / "strip.png").rgb
    height = round(strip.PANEL_WIDTH * photo.shape[0] / photo.shape[1])
    assert found.shape == (strip.CAPTION + 2 * height + strip.GAP, 4 * strip.PANEL_WIDTH + 3 * strip.GAP, 3)
    x, y = (round(n * share) for n, share in zip(photo.shape[1::-1], strip.DETAIL_AT, strict=True))
    part = photo[y : y + 20, x : x + 50].repeat(strip.DETAIL, 0).repeat(strip.DETAIL, 1)
    for i, exact in enumerate((False, False, False, True)):
        left, top = i * (strip.PANEL_WIDTH + strip.GAP), strip.CAPTION + height + strip.GAP
        detail = found[top : top + part.shape[0], left : left + part.shape[1]]
        assert np.array_equal(detail, part) == exact


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(0, None), (97, None), (98.1, 0), (100, 0), (101, 0), (1060, 9), (1090, 10), (1e6, 49)],
)
def test_nearest_step(wanted: float, expected: int | None) -> None:
    """Of files of 100, 200 and so on to 5,000 bytes: the nearest that is at most 2 % above."""
    assert crops.nearest_step(lambda step: 100 * (step + 1), 50, wanted) == expected


def test_nearest_step_where_a_step_is_smaller_than_the_one_before() -> None:
    sizes = [10, 20, 30, 40, 66, 50, 60, 70, 80]
    assert crops.nearest_step(sizes.__getitem__, len(sizes), 59) == 6


def test_crops(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny pictures, and codecs that decode to gray as bright as the file has bytes."""

    def sweep(name: str, coarse: int) -> crops.Sweep:
        def at(step: int) -> rivals.Codec:
            n_bytes = coarse * (step + 1)
            return rivals.Codec(
                name, f"n{n_bytes}", lambda rgb: rgb.tobytes().ljust(n_bytes)[:n_bytes], decode
            )

        def decode(data: bytes) -> common.Rgb:
            return np.full((*shapes[data[:9]], 3), min(len(data), 255), np.uint8)

        return crops.Sweep(name, 100, at)

    pictures = {name: common.load_photo(folder / f"{name}.png").rgb for name in SIZES}
    shapes = {rgb.tobytes()[:9]: rgb.shape[:2] for rgb in pictures.values()}
    parts = (
        crops.Crop("one.png", 30, 20, 32, 24, "corner, of the first"),
        crops.Crop("two.png", 0, 0, 16, 16, "edge"),
        crops.Crop("none.png", 0, 0, 16, 16, "nothing"),
    )
    monkeypatch.setattr(crops, "CROPS", parts)
    monkeypatch.setattr(
        crops, "sweeps", lambda model: [sweep("vbc", 5), sweep("fine", 1), sweep("large", 70)]
    )
    assert crops.main([str(folder), "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.md", "one-corner.png", "two-edge.png"]
    text = (tmp_path / "index.md").read_text()
    # 72 x 48 pixels are 108 bytes at a quarter of a bit: ours comes nearest with 110, which the second meets
    assert "| **0.25 bpp, vbc** | **vbc n110** | **110** |" in text
    assert "| 0.25 bpp, fine | fine n100 | 100 |" in text  # it has no larger file
    assert "| 0.25 bpp, large | large n70 | 70 |" in text
    assert "| 0.25 bpp, large | - | - | - |" in text  # 41 bytes for the other picture
    found = common.load_photo(tmp_path / "one-corner.png").rgb
    part = parts[0].of(pictures["one"]).repeat(crops.SCALE, 0).repeat(crops.SCALE, 1)
    height, width = part.shape[:2]
    assert found.shape[0] == crops.HEADER + 3 * (height + crops.CAPTION + crops.GAP) - crops.GAP
    assert found.shape[1] == crops.LABEL + 4 * (width + crops.GAP) - crops.GAP
    for row in range(3):
        top = crops.HEADER + row * (height + crops.CAPTION + crops.GAP)
        cells = [crops.LABEL + i * (width + crops.GAP) for i in range(4)]
        shown = [found[top : top + height, left : left + width] for left in cells]
        np.testing.assert_array_equal(shown[0], part)
        n_bytes = [110, 215, 430][row]  # of 108, 216 and 432 bytes
        assert [int(s[5, 5, 0]) for s in shown[1:]] == [min(n_bytes, 255), 100, [70, 210, 255][row]]


def test_crops_of_a_folder_without_the_pictures(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none of 04\.png"):
        crops.main([str(tmp_path)])


def test_crops_lie_in_the_pictures() -> None:
    """Kodak's are 768 x 512, or upright."""
    assert len({crop.stem for crop in crops.CROPS}) == len(crops.CROPS)
    upright = {"04.png"}
    for crop in crops.CROPS:
        shape = (768, 512, 3) if crop.name in upright else (512, 768, 3)
        assert crop.of(np.zeros(shape, np.uint8)).shape == (crop.height, crop.width, 3)
    with pytest.raises(ValueError, match="not within"):
        crops.CROPS[0].of(np.zeros((300, 300, 3), np.uint8))


def test_our_codec_has_a_curve_for_each_tuning(monkeypatch: pytest.MonkeyPatch, tiny_path: Path) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(rivals, "encode_ours", lambda rgb, **options: asked.append(options) or b"")
    curve = rate_distortion.our_curve(tiny_path, quick=True)
    names = ["vbc", "vbc --effort 2", "vbc --tune psnr"]
    assert list(dict.fromkeys(codec.name for codec in curve)) == names
    assert all(map(rivals.is_ours, names))
    for codec in (curve[0], curve[-1]):
        codec.encode(make_example(4, 4))
    assert [(call["tune"], call["quality"]) for call in asked] == [("eye", 0), ("psnr", 100)]


def test_each_tuning_has_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[object] = []
    monkeypatch.setattr(rivals, "ours", lambda model, *_, **__: models.append(model))
    rate_distortion.our_curve(None, quick=True)
    assert len({model.hash for model in models}) == 2


def test_report_runs_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    class Done:
        returncode = 0

    def run(command: list[str], **_: object) -> Done:
        ran.append(command[2] + (" --photos" if "--photos" in command else ""))
        return Done()

    monkeypatch.setattr(report.subprocess, "run", run)
    options = ["--out", str(tmp_path), "--docs", str(tmp_path / "docs"), "--readme", str(tmp_path / "none")]
    assert report.main(["--run", "images", *options]) == 0
    assert len(ran) == len(report.BENCHES)
    ran.clear()
    assert report.main(["--run", "images", "--only", "speed,lossless", *options]) == 0
    assert ran == ["bench.lossless", "bench.speed"]
    ran.clear()
    run_row = (
        '{"kind": "run", "quick": %s, "command": "", "date": "", "cores": 1, "machine": "", "gpu": null, '
    )
    run_row += '"commit": "", "versions": {}}\n'
    ended, broken, quick = (tmp_path / f"{n}.jsonl" for n in ("lossless", "speed", "speed_photos"))
    ended.write_text(run_row % "false" + '{"kind": "end", "time_s": 1}\n')
    broken.write_text(run_row % "false")
    quick.write_text(run_row % "true" + '{"kind": "end", "time_s": 1}\n')
    only = ["--only", "lossless,speed,speed_photos"]
    assert report.main(["--run", "images", *only, "--missing", *options]) == 0
    assert ran == ["bench.speed --photos", "bench.speed"]
    with pytest.raises(SystemExit):
        report.main(["--run", "images", "--only", "nothing", *options])


def test_report_tells_failures(tmp_path: Path) -> None:
    args = common.parse(common.parser("lossless", None), ["somewhere/images"])
    results = common.Results(tmp_path, "lossless", args)
    results.add("error", codec="x", setting="", image="", message="broken")
    text = report.about({"lossless": common.read_results(tmp_path / "lossless.jsonl")}, "lossless")
    results.__exit__(ValueError, None, None)
    assert "1 measurements failed" in text
    assert "did not end" in text
    assert "`python -m bench.lossless images`" in text


def test_curves_of_a_training_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps done twice count once; a figure and its validation share a chart."""
    with pytest.raises(SystemExit):
        training.main([str(tmp_path), "-o", str(tmp_path / "c.png")])
    assert "no report" in capsys.readouterr().err
    reports: list[dict[str, object]] = [
        {"stage": "exact", "tiles": 9},
        {"stage": "exact", "step": 50, "loss": 3.0, "rate": 0.1, "s": 1.5},
        {"stage": "exact", "step": 100, "loss": 2.5},
        {"stage": "exact", "step": 100, "valid": {"loss": 2.6}},
        {"stage": "exact", "step": 100, "loss": 2.25},
        {"stage": "export", "hash": "0011"},
        {"stage": "eye", "step": 1, "loss": math.nan, "bits": 1},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reports))
    assert training.read_curves(tmp_path) == {
        "exact": {"loss": [(50, 3.0), (100, 2.25)], "valid loss": [(100, 2.6)]},
        "eye": {"bits": [(1, 1)]},
    }
    assert training.main([str(tmp_path), "-o", str(tmp_path / "c.png")]) == 0
    with Image.open(tmp_path / "c.png") as chart:
        assert chart.size == (1200, 300)
