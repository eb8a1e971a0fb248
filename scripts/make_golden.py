"""Write the golden files of the current format with the tiny frozen model, and what they decode to.

Only for a new format version, never to make a test pass. Without options the files that are not there yet are
written, and no other is touched.

python scripts/make_golden.py [--new-format] [--known-answers] [--new-model]
"""

import argparse
import json
import struct
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.geometry import LOSSY_LEVELS, SIDES
from vbc.codec.lossy.map_coding import SQUARE, VALUE_LIMIT
from vbc.codec.model import Model, load_model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings
from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export import export_model, known_answers, save_model
from vbc.codec.train.lossy_net import LossyNet, Widths
from vbc.codec.train.values_net import ValuesNet

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from checks import decoded_hash, every_refinement, payloads_of, rebuild  # noqa: E402
from pictures import checker, noise, photo, smooth, soft_mask, stripes  # noqa: E402

FOLDER = ROOT / "tests" / "golden"
TINY = FOLDER / "tiny.safetensors"
WEIGHTS = (TINY, *sorted((ROOT / "codec" / "weights").glob("*.safetensors")))
"""Weights files with known answers of the decoder in their metadata."""

LONG = SIDES.exact[0]
"""Pixels along a group of the last level: longer pictures have several in each of their finer levels."""
LOSSY_LONG = 8 * SIDES.lossy[LOSSY_LEVELS - 1]
"""Pixels along a group of level 3."""
FIRST_LONG = 8 * SIDES.lossy[0]
"""Pixels along a group of level 1."""


@dataclass(frozen=True)
class Case:
    """A picture and how it is encoded: the settings, and whatever else `encode_image` takes.

    values: of the map of qualities, int16 [1, 1, h, w], in place of those that the encoder chooses.
    some_maps: the last group of level 1, whose values are 0, has no map.
    """

    rgb: Tensor
    settings: EncodeSettings
    others: dict[str, Any] = field(default_factory=dict)
    values: Tensor | None = None
    some_maps: bool = False


def gray(rgb: Tensor) -> Tensor:
    """uint8 [3, H, W] of three planes that are the green one."""
    return rgb[1:2].expand(3, -1, -1).contiguous()


def checkered(height: int, width: int) -> Tensor:
    """uint8 [3, height, width] that is packed whole."""
    return planes(checker(height, width), soft_mask(height, width) & 0xC0, checker(height, width) // 2)


def planes(*arrays: np.ndarray) -> Tensor:
    """uint8 [C, H, W]."""
    return torch.from_numpy(np.stack(arrays))


def soft(height: int, width: int) -> Tensor:
    """Alpha: uint8 [height, width]."""
    return planes(soft_mask(height, width))[0]


def wild(height: int, width: int, blank: int = 0) -> Tensor:
    """Values of a map for so many pixels, the extreme ones among them; in the last columns of squares 0."""
    rows, columns = -(-height // SQUARE), -(-width // SQUARE)
    rng = np.random.default_rng(5)
    values = np.rint(rng.normal(0, 4, (rows, columns))).clip(-VALUE_LIMIT, VALUE_LIMIT)
    extreme = rng.random((rows, columns)) < 0.2
    values[extreme] = rng.choice([-VALUE_LIMIT, VALUE_LIMIT], (rows, columns))[extreme]
    values[:, columns - blank :] = 0
    return torch.from_numpy(values.astype(np.int16))[None, None]


LOSSY, LAYERED = EncodeSettings(refinements=0), EncodeSettings(lossless=True)
ARCHIVAL = EncodeSettings(levels=0, lossless=True)
CASES = {
    "lossy-1": Case(photo(37, 53), EncodeSettings(levels=1)),
    "lossy-2": Case(photo(37, 53), EncodeSettings(levels=2, quality=30)),
    "lossy-3": Case(photo(37, 53), LOSSY),
    "lossy-low": Case(photo(64, 40), EncodeSettings(quality=0)),
    "lossy-high": Case(photo(40, 64), EncodeSettings(quality=100, refinements=0)),
    "archival": Case(photo(37, 53), ARCHIVAL),
    "layered": Case(photo(37, 53), LAYERED),
    "layered-stripes": Case(stripes(20, 33), EncodeSettings(lossless=True, quality=95)),
    "noise-raw": Case(noise(16, 19), ARCHIVAL),
    "graphic": Case(checkered(40, 50), ARCHIVAL),
    "graphic-gray-layered": Case(gray(checkered(40, 50)), LAYERED, {"gray": True}),
    "one-pixel": Case(photo(1, 1), LAYERED),
    "one-row": Case(photo(1, 77), LAYERED),
    "one-column": Case(photo(50, 1), LAYERED),
    "gray": Case(gray(photo(21, 22)), LAYERED, {"gray": True}),
    "alpha": Case(photo(37, 53), LAYERED, {"alpha": soft(37, 53)}),
    "alpha-lossy": Case(photo(21, 22), EncodeSettings(levels=2), {"alpha": planes(checker(21, 22))[0]}),
    "alpha-photo": Case(photo(70, 41), ARCHIVAL, {"alpha": photo(140, 41)[1, :70].contiguous()}),
    # low bytes of every mode: noise, smooth, equal to the upper ones
    "deep": Case(
        photo(33, 40),
        LAYERED,
        {"low": torch.stack((noise(33, 40)[0], photo(66, 80)[1, :33, :40], photo(33, 40)[2]))},
    ),
    "deep-gray-alpha": Case(
        gray(photo(20, 31)),
        ARCHIVAL,
        {"gray": True, "alpha": soft(20, 31), "low": planes(soft_mask(20, 31)[::-1], checker(20, 31))},
    ),
    # several groups a level, some of them of a single row or column
    "groups-archival-tall": Case(smooth(LONG + 18, 16), ARCHIVAL),
    "groups-archival-wide": Case(smooth(13, LONG + 1), ARCHIVAL),
    "groups-layered-tall": Case(smooth(LONG + 1, 13), LAYERED),
    "groups-layered-wide": Case(
        smooth(16, LONG + 18), EncodeSettings(lossless=True, quality=25), {"alpha": soft(16, LONG + 18)}
    ),
    "groups-tuned": Case(smooth(79, LONG + 2), EncodeSettings(levels=0, lossless=True, effort=2)),
    "groups-gray": Case(gray(smooth(LONG + 9, 11)), LAYERED, {"gray": True}),
    "groups-noise": Case(  # plain groups beside coded ones
        torch.cat((noise(9, 40), smooth(9, LONG)), 2), EncodeSettings(levels=0, lossless=True, effort=0)
    ),
    "groups-lossy-square": Case(photo(LOSSY_LONG + 8, LOSSY_LONG + 9), EncodeSettings(quality=12)),
    "groups-lossy-wide": Case(photo(16, FIRST_LONG + 20), LOSSY),
    # maps of qualities: none, and wilder ones than the encoder chooses
    "no-map": Case(photo(37, 53), EncodeSettings(tune="psnr", refinements=0)),
    "no-map-layered": Case(photo(33, 40), EncodeSettings(lossless=True, tune="psnr")),
    "map-wild": Case(photo(173, 131), EncodeSettings(quality=45), values=wild(173, 131)),
    "map-wild-layered": Case(photo(81, 150), LAYERED, values=wild(81, 150)),
    "map-one-square": Case(
        photo(15, 16), EncodeSettings(levels=2), values=torch.full((1, 1, 1, 1), 7).short()
    ),
    "map-some-groups": Case(
        photo(16, FIRST_LONG + 20), LOSSY, values=wild(16, FIRST_LONG + 20, blank=4), some_maps=True
    ),
    # refinements: one to three, of several groups, with maps, below exact levels
    "refined": Case(photo(37, 53), EncodeSettings(quality=70, refinements=1)),
    "refined-wild": Case(
        photo(75, 61), EncodeSettings(quality=95, refinements=3), values=wild(75, 61, blank=1)
    ),
    "refined-one-pixel": Case(photo(1, 1), EncodeSettings(lossless=True, quality=80, refinements=2)),
    "refined-layered": Case(
        photo(81, 150), EncodeSettings(lossless=True, quality=70, refinements=2), values=wild(81, 150)
    ),
    "refined-groups": Case(
        photo(19, LOSSY_LONG + 20), EncodeSettings(lossless=True, quality=30, refinements=1, tune="psnr")
    ),
    # bins: near-lossless files of several bounds, and values after bins
    "near": Case(photo(37, 53), EncodeSettings(levels=0, near=1)),
    "near-coarse": Case(photo(40, 31), EncodeSettings(levels=0, near=8)),
    "near-layered": Case(
        photo(37, 53), EncodeSettings(near=4, refinements=1, quality=70), values=wild(37, 53)
    ),
    "near-gray-alpha": Case(
        gray(photo(21, 22)), EncodeSettings(near=3), {"gray": True, "alpha": soft(21, 22)}
    ),
    "near-noise": Case(noise(16, 19), EncodeSettings(levels=0, near=1)),
    "near-groups": Case(smooth(LONG + 3, 14), EncodeSettings(levels=0, near=2)),
    "near-tuned": Case(smooth(79, LONG + 2), EncodeSettings(levels=0, near=2, effort=2)),
    "progressive": Case(photo(37, 53), EncodeSettings(lossless=True, progressive=True)),
    "progressive-row": Case(photo(1, 77), EncodeSettings(lossless=True, progressive=True)),
    "progressive-refined": Case(
        photo(81, 150),
        EncodeSettings(lossless=True, progressive=True, quality=70, refinements=2),
        values=wild(81, 150),
    ),
    "progressive-archival": Case(
        photo(50, 33), EncodeSettings(levels=0, lossless=True, progressive=True), {"alpha": soft(50, 33)}
    ),
    "progressive-groups": Case(
        smooth(14, LONG + 5), EncodeSettings(lossless=True, progressive=True, quality=20)
    ),
    "progressive-noise": Case(
        torch.cat((noise(9, 40), smooth(9, LONG)), 2),
        EncodeSettings(levels=0, lossless=True, progressive=True, effort=0),
    ),
}


def tiny_model() -> None:
    """A model of small random networks: enough to pin the arithmetic, useless for pictures."""
    torch.manual_seed(11)
    exact = ExactNet(width=8)
    torch.manual_seed(12)
    lossy = LossyNet(Widths(analysis=8, context=8, prior=8, neighbours=8, enhance=8))
    bins, values = BinsNet(8), ValuesNet(8)
    for net in (exact, lossy, bins, values):
        for p in net.parameters():
            if not p.detach().any():  # what starts at zero must be pinned too
                torch.nn.init.normal_(p, std=0.02)
    tensors = export_model(exact, lossy, None, bins=bins, values=values)
    for name, tensor in tensors.items():
        if ".tuning." in name:  # directions of many corrections, not of one
            limits = (-1500, 1500) if name.endswith("vectors") else (4, 12)
            tensors[name] = torch.randint(*limits, tensor.shape, dtype=torch.int16)
    save_model(TINY, tensors)


def encode(case: Case, model: Model) -> bytes:
    """The file of a case, with all the refinements that its settings name."""
    values = case.values
    with every_refinement(), pytest.MonkeyPatch.context() as patch:
        if values is not None:
            patch.setattr("vbc.codec.flow.choose_quality.values_for_the_eye", lambda picture: values)
        data = encode_image(case.rgb, model=model, settings=case.settings, **case.others)
    if case.some_maps:
        without = replace(case, settings=replace(case.settings, tune="psnr"), values=None, some_maps=False)
        data = with_a_group_of(data, encode(without, model), model)
    return data


def with_a_group_of(data: bytes, other: bytes, model: Model) -> bytes:
    """A file whose last group of level 1 is that of another file, which says the same in another way."""
    header, payloads = container.unpack_header(data), payloads_of(data)
    place = max(i for i, packet in enumerate(header.packets) if packet.level == 1)
    payloads[place] = payloads_of(other)[place]
    changed = rebuild(header, payloads)
    assert changed != data
    assert decoded_hash(decode_image(changed, model=model)) == decoded_hash(decode_image(data, model=model))
    return changed


def write_known_answers(path: Path) -> None:
    """Bring the known answers in a weights file up to date; its tensors stay as they are, byte for byte."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    head = json.loads(data[8 : 8 + length])
    head["__metadata__"] = {"format": head["__metadata__"]["format"], **known_answers(load_model(path))}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def regions(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Two regions of a picture, x, y, width, height: one inside it, one in the last corner."""
    inside = (width // 3, height // 4, max(1, width // 4), max(1, height // 3))
    w, h = max(1, width // 6), max(1, height // 5)
    return [inside, (width - w, height - h, w, h)]


def answers_of(data: bytes) -> dict[str, str]:
    """Hashes of what a file decodes to: by number of levels, at the levels' own sizes, of two regions."""
    model, header = load_model(TINY), container.unpack_header(data)
    levels = container.levels_present(header)
    found = {str(n): decode_image(data, model=model, levels=n) for n in range(1, len(levels) + 1)}
    for n in sorted({1, 2} & set(levels)):
        found[f"native-{n}"] = decode_image(data, model=model, levels=n, native=True)
    for region in regions(header.width, header.height):
        name = "region " + ",".join(map(str, region))
        found[name] = decode_image(data, model=model, region=region)
    return {name: decoded_hash(decoded) for name, decoded in found.items()}


def main() -> None:
    """Write what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new-format", action="store_true", help="write all files anew")
    parser.add_argument(
        "--known-answers", action="store_true", help="write the known answers of the weights files anew"
    )
    parser.add_argument("--new-model", action="store_true", help="write a new tiny model first")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if options.new_model:
        tiny_model()
    if options.known_answers:
        for weights in WEIGHTS:
            write_known_answers(weights)
    path = FOLDER / "answers.json"
    answers = {} if options.new_format or not path.exists() else json.loads(path.read_text())
    if options.new_format:
        for file in FOLDER.glob("*.vbc"):
            file.unlink()
    model = load_model(TINY)
    for name, case in CASES.items():
        file = FOLDER / f"{name}.vbc"
        if file.exists():
            continue
        data = encode(case, model)
        file.write_bytes(data)
        answers[file.name] = answers_of(data)
    path.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
