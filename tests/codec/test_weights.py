"""Installed weights: files are read with the model that made them, by hash; what the newest one achieves."""

import json
import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import check_format_error, payloads_of, rewritten
from numpy.typing import NDArray
from pictures import photo
from safetensors.torch import load_file, save_file

from vbc.bitstream import container
from vbc.bitstream.errors import ModelMissing
from vbc.codec import IncrementalReader, api
from vbc.codec import model as models
from vbc.codec.example import make_example
from vbc.codec.model import Model, WeightsError, load_model, model_hash, model_of
from vbc.codec.pipeline import decode_image
from vbc.codec.settings import Tune

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny.safetensors"
SHIPPED = Path(str(resources.files("vbc.codec") / "weights"))

QUALITIES: tuple[tuple[Tune, int, int, float], ...] = (
    ("psnr", 60, 16760, 37.626),
    ("psnr", 20, 2193, 31.594),
    ("eye", 60, 13910, 37.176),
    ("eye", 20, 3726, 32.568),
)
"""Measured on the example picture of 768 x 512: purpose, quality, bytes, PSNR in dB over all subpixels."""
EXACT_BPSP = ((0, 3.7284), (3, 3.7495))
"""Likewise: lossy levels of a lossless file, bits per subpixel."""


def entry(name: str, model: Model, tune: Tune = "eye") -> dict[str, str]:
    return {"file": name, "model": model.hash.hex(), "tables": model.tables.digest.hex(), "tune": tune}


@pytest.fixture
def two_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A weights folder with the shipped set, and the tiny one, which is newer."""
    newest = models.installed()[-1]["file"]
    for source, name in ((SHIPPED / newest, "one.safetensors"), (TINY, "two.safetensors")):
        shutil.copy(source, tmp_path / name)
    index = [entry(name, load_model(tmp_path / name)) for name in ("one.safetensors", "two.safetensors")]
    (tmp_path / models.INDEX).write_text(json.dumps(index))
    monkeypatch.setattr(models, "weights_folder", lambda: tmp_path)
    load_model.cache_clear()
    yield tmp_path
    load_model.cache_clear()


def test_the_file_says_which_weights(two_sets: Path) -> None:
    """Encoding takes the newest; files of both decode, in every way there is, without being told."""
    picture = photo(20, 30)
    tiny, older = (load_model(two_sets / name) for name in ("two.safetensors", "one.safetensors"))
    assert load_model().hash == tiny.hash != older.hash
    files = {
        tiny.hash: api.encode(picture, lossless=True),
        older.hash: api.encode(picture, lossless=True, model=two_sets / "one.safetensors"),
    }
    for wanted, data in files.items():
        header = container.unpack_header(data)
        assert header.model_hash == wanted
        assert model_of(header).hash == wanted
        path = two_sets / "a.vbc"
        path.write_bytes(data)
        for source in (data, str(path), path):
            assert torch.equal(api.decode_image(source, "cpu"), picture)
        assert np.array_equal(np.asarray(api.decode(data)), picture.permute(1, 2, 0).numpy())
        api.verify(data)
        reader = IncrementalReader()
        reader.feed(data)
        assert reader.picture().exact
    both = api.decode_image(list(files.values()), "cpu")
    assert all(torch.equal(one, picture) for one in both)


def test_each_purpose_has_its_weights(two_sets: Path) -> None:
    """The newest of the purpose encodes; what decodes is named by the file."""
    picture = photo(40, 40)
    index = models.installed()
    for tunes in (("psnr", "eye"), ("eye", "psnr")):
        changed = [one | {"tune": tune} for one, tune in zip(index, tunes, strict=True)]
        (two_sets / models.INDEX).write_text(json.dumps(changed))
        load_model.cache_clear()
        for one in changed:
            data = api.encode(picture, tune=one["tune"])
            assert container.unpack_header(data).model_hash.hex() == one["model"]
            assert api.decode(data).size == (40, 40)
        assert load_model().hash.hex() == changed[tunes.index("eye")]["model"], "the eye is the default"


def test_weights_that_are_gone(two_sets: Path) -> None:
    """Without its set in the index a file names the hash that it wants; the others still decode."""
    old = api.encode(photo(9, 9), levels=1, model=two_sets / "one.safetensors")
    new = api.encode(photo(9, 9), levels=1)
    index = models.installed()
    (two_sets / models.INDEX).write_text(json.dumps(index[1:]))
    load_model.cache_clear()
    for call in (lambda: api.decode(old), lambda: api.verify(old), lambda: api.decode_image(old, "cpu")):
        error = check_format_error(call, ModelMissing)
        assert error.wanted.hex() == index[0]["model"]
    assert api.decode(new).size == (9, 9)
    assert api.decode(old, model=two_sets / "one.safetensors").size == (9, 9), "where it is named"


def test_folders_of_further_weights(two_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of one's own, found by the hash in their name; never taken for others."""
    data = api.encode(photo(9, 9), levels=1, model=two_sets / "one.safetensors")
    index = models.installed()
    (two_sets / models.INDEX).write_text(json.dumps(index[1:]))
    load_model.cache_clear()
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv(models.FOLDERS, os.pathsep.join(("", str(tmp_path / "gone"), str(folder))))
    check_format_error(lambda: api.decode(data), ModelMissing)
    named = folder / f"{index[0]['model']}.safetensors"
    shutil.copy(two_sets / "two.safetensors", named)
    check_format_error(lambda: api.decode(data), ModelMissing)
    load_model.cache_clear()
    named.write_bytes(b"no weights")
    with pytest.raises(WeightsError):
        api.decode(data)
    load_model.cache_clear()
    shutil.copy(two_sets / "one.safetensors", named)
    assert api.decode(data).size == (9, 9)
    api.verify(data)


def test_the_tables_count_too(two_sets: Path) -> None:
    """Networks of the same hash with other tables are another set."""
    data = api.encode(photo(9, 9), levels=1)
    header = container.unpack_header(data)
    packets = [(p.unit, p.part, bytes(b)) for p, b in zip(header.packets, payloads_of(data), strict=True)]
    other = rewritten(header, packets, tables_hash=b"strange!")
    check_format_error(lambda: api.decode(other), ModelMissing)
    error = check_format_error(lambda: decode_image(other, model=load_model()), ModelMissing)
    assert error.wanted == b"strange!"


def test_another_models_file(tiny: Model) -> None:
    data = (GOLDEN / "lossy-3.vbc").read_bytes()
    assert decode_image(data, model=tiny).rgb.shape == (3, 37, 53)
    error = check_format_error(lambda: api.decode(data), ModelMissing)
    assert error.wanted == tiny.hash
    shipped = load_model()
    assert check_format_error(lambda: decode_image(data, model=shipped), ModelMissing).wanted == tiny.hash


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello, world, no tensors here")
    save_file({"a": torch.zeros(3)}, tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(WeightsError):
            load_model(tmp_path / name)
    with pytest.raises(OSError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_the_encoders_own_tensors_are_not_in_the_hash(tiny_path: Path) -> None:
    tensors = load_file(tiny_path)
    known = model_hash(tensors)
    assert known == load_model(tiny_path).hash
    for name in tensors:
        changed = dict(tensors)
        changed[name] = tensors[name].flatten().clone()
        same = name == "tables" or name.startswith("analysis.")
        assert (model_hash(changed) == known) == (same or tensors[name].dim() == 1)


# what the shipped set achieves


@pytest.fixture(scope="module")
def example() -> NDArray[np.uint8]:
    return make_example()


def psnr_db(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


@pytest.mark.parametrize(("tune", "quality", "n_bytes", "psnr"), QUALITIES)
def test_rate_and_quality_of_the_lossy_levels(
    example: NDArray[np.uint8], tune: Tune, quality: int, n_bytes: int, psnr: float
) -> None:
    """Bounds of 1 %, and of 0.05 dB, which are about 1 % of bytes: a worse model fails.

    For the eye the base is chosen in floating point, and one more or less is 2.5 % of bytes.
    """
    data = api.encode(example, quality=quality, tune=tune)
    off = 1 if tune == "psnr" else 3.5
    assert 0.9 * n_bytes < len(data) < (1 + 0.01 * off) * n_bytes
    assert psnr - 0.05 * off < psnr_db(np.asarray(api.decode(data)), example) < psnr + 0.5


@pytest.mark.parametrize(("levels", "bpsp"), EXACT_BPSP)
def test_rate_of_the_exact_levels(example: NDArray[np.uint8], levels: int, bpsp: float) -> None:
    data = api.encode(example, levels=levels, lossless=True)
    assert 0.9 * bpsp < 8 * len(data) / example.size < 1.01 * bpsp
