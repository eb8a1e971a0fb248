"""The benches run on two tiny images with the columns they promise; their metrics agree with independent
implementations."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench is run from the checkout, not installed

from bench import (
    common,
    exactness,
    lossless,
    progressive,
    rate_distortion,
    report,
    rivals,
    speed,
)
from vbc.codec.example import make_example

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


def test_best_fits() -> None:
    curve = [rivals.Codec("fake", str(n), lambda rgb, n=n: bytes(n), lambda data: None) for n in (10, 20, 40)]
    fits = progressive.best_fits(curve, np.zeros((1, 1, 3), np.uint8), [9, 10, 39, 41, 90])
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
    schema = json.loads((results / "compressai" / "vbc.json").read_text())
    assert schema["name"] == "vbc"
    assert len(schema["results"]["bpp"]) == len(schema["results"]["psnr-rgb"]) == 6
    assert schema["results"]["bpp"] == sorted(schema["results"]["bpp"])
    assert (results / "rate_distortion.png").read_bytes().startswith(b"\x89PNG")


def test_progressive(folder: Path, results: Path) -> None:
    assert progressive.main([str(folder), "--out", str(results), "--quick", "-j", "1"]) == 0
    rows = common.read_results(results / "progressive.jsonl")
    ours = [r for r in rows if r["kind"] == "row" and r["codec"] == "vbc" and r["image"] == "one.png"]
    levels = [r for r in ours if r["what"] == "level"]
    assert [r["level"] for r in levels] == list(range(1, len(levels) + 1))
    assert [r["exact"] for r in levels] == [False] * (len(levels) - 1) + [True]
    prefixes = [r for r in ours if r["what"] == "prefix"]
    assert [r["share"] for r in prefixes] == list(progressive.SHARES)
    assert not prefixes[0]["decoded"]  # no level ends within a hundredth of so small a file
    assert prefixes[-1]["exact"]
    budgets = {
        (r["image"], r["share"]): r["n_bytes"]
        for r in rows
        if r["kind"] == "row" and r["what"] == "prefix" and r["codec"] == "vbc"
    }
    dedicated = [r for r in rows if r["kind"] == "row" and r["what"] == "dedicated"]
    assert dedicated
    assert all(r["n_bytes"] <= budgets[r["image"], r["share"]] for r in dedicated)
    first = {r["codec"]: r for r in rows if r["kind"] == "summary" and r["what"] == "first"}
    assert first["vbc"]["time_ms"] > 0
    for name in ("progressive.png", "levels.png"):
        assert (results / name).read_bytes().startswith(b"\x89PNG")


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


def test_stages_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--one", "72", "1", "--quick"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours = {(r["setting"], r["way"]): r for r in rows if r["codec"] == "vbc"}
    assert len(ours) == 6
    for r in ours.values():
        assert sum(r["stages_s"].values()) == pytest.approx(r["watched_s"], rel=0.02, abs=1e-3)
        assert r["peak_mb"] >= r["start_mb"] > 50
    assert {"networks", "entropy coding", "self-check"} <= ours["archival", "encode"]["stages_s"].keys()
    assert "self-check" not in ours["archival", "decode"]["stages_s"]


@pytest.mark.parametrize("name", [name for names in speed.STAGES.values() for name in names])
def test_stages_name_functions(name: str) -> None:
    assert callable(speed.resolve(name)[2])


def test_stopwatch_is_undone() -> None:
    before = {name: speed.resolve(name)[2] for names in speed.STAGES.values() for name in names}
    with speed.watched(speed.Stopwatch(), encoding=True):
        assert any(speed.resolve(name)[2] is not f for name, f in before.items())
    assert all(speed.resolve(name)[2] is f for name, f in before.items())


def test_scaling() -> None:
    about = {"codec": "c", "setting": "s", "way": "encode", "threads": 1}
    rows = [about | {"size": n, "n_pixels": n * n, "time_s": 1e-7 * n**2.2} for n in (64, 128, 512)]
    (found,) = speed.scaling(rows)
    assert found["exponent"] == pytest.approx(1.1)


def test_exactness(folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Iterator[tuple[str, exactness.Hashes]]:
        yield from ()

    def wrong(files: dict[str, bytes], _: object) -> Iterator[tuple[str, exactness.Hashes]]:
        yield "wrong", {"layered 1 levels": "0" * 16}

    monkeypatch.setattr(exactness, "interpreted", none)  # minutes; tests/test_exactness.py has its own
    monkeypatch.setattr(exactness, "REFERENCE_SIDE", 20)
    assert exactness.main([str(folder), "--out", str(results), "--quick"]) == 0
    rows = common.read_results(results / "exactness.jsonl")
    variants = {r["variant"] for r in rows if r["kind"] == "row"}
    assert {"the original", "1 threads", "4 threads", "4 at once", "int64 convolutions"} <= variants
    (summary,) = (r for r in rows if r["kind"] == "summary")
    assert summary["n_hashes"] > 100
    assert summary["n_mismatches"] == 0
    for name in ("with_threads", "concurrently", "in_batches", "in_blocks", "slow_paths"):
        monkeypatch.setattr(exactness, name, none)
    monkeypatch.setattr(exactness, "on_devices", wrong)
    assert exactness.main([str(folder), "--out", str(results / "wrong"), "--quick"]) == 1


# The report, of what the tests above have left


def test_report(folder: Path, results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:lossless -->\nold\n<!-- bench -->\nafter\n")
    files = {f"{name}.jsonl" for name in ("lossless", "rate_distortion", "progressive", "speed_photos")}
    assert files <= {p.name for p in results.iterdir()}
    options = ["--out", str(results), "--docs", str(tmp_path / "docs"), "--readme", str(readme)]
    assert report.main(options) == 0
    text = (tmp_path / "docs" / "results.md").read_text()
    for title in report.TITLES.values():
        assert f"## {title}" in text
    assert "python -m bench.lossless" in text
    assert str(folder) not in text
    assert "A quick run" in text
    assert (tmp_path / "docs" / "results" / "progressive.png").exists()
    filled = readme.read_text()
    assert "old" not in filled
    assert filled.startswith("before\n<!-- bench:lossless -->\n| codec |")
    assert filled.endswith("|\n<!-- bench -->\nafter\n")
    before = filled
    report.main(options)
    assert readme.read_text() == before


def test_report_knows_its_tables() -> None:
    with pytest.raises(SystemExit, match="no table nothing"):
        report.fill_readme("<!-- bench:nothing -->\n<!-- bench -->", {})
    text = "<!-- bench:lossy -->\nkept\n<!-- bench -->"
    assert report.fill_readme(text, {}) == text


def test_report_tells_failures(tmp_path: Path) -> None:
    args = common.parse(common.parser("lossless", None), ["somewhere/images"])
    results = common.Results(tmp_path, "lossless", args)
    results.add("error", codec="x", setting="", image="", message="broken")
    text = report.about({"lossless": common.read_results(tmp_path / "lossless.jsonl")}, "lossless")
    results.__exit__(ValueError, None, None)
    assert "1 measurements failed" in text
    assert "did not end" in text
    assert "`python -m bench.lossless images`" in text
