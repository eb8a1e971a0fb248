"""docs/format.md is complete: a decoder written from it alone gives the pixels of the golden files.

What no golden file shows (several groups on a level, missing ones, broken rules) is checked on files made by
hand, whose symbols are made up while the reference decoder asks for them.
"""

import hashlib
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference.exact
import reference.lossy
import torch
from reference import container
from reference.container import File, Header
from reference.errors import (
    Corrupt,
    FormatError,
    LimitExceeded,
    ModelMissing,
    NotVbc,
    Truncated,
    UnsupportedVersion,
)
from reference.geometry import (
    BIN_LEVELS,
    BINS,
    FIRST_EXACT,
    LOSSY_LEVELS,
    VALUE_LEVELS,
    Geometry,
    Rectangle,
    order,
)
from reference.groups import NEIGHBOURHOODS, n_near, rgb_to_ycocg
from reference.lanes import NOTHING, Lanes
from reference.weights import Array, Weights
from reference.writing import join_file, varint, write_file, write_lanes
from reference_decoder import Picture, decode, silent

from vbc.bitstream import errors
from vbc.codec.example import make_example
from vbc.codec.model import Model, load_model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings

TESTS = Path(__file__).parents[1]
FOLDER = TESTS / "golden"
ANSWERS: dict[str, dict[str, str]] = json.loads((FOLDER / "answers.json").read_text())
"""By file, then by what is decoded of it: "N", the first N levels; "native-N", those at their own size;
"region X,Y,W,H", a part of the picture."""

Packets = list[tuple[int, int, bytes]]
"""(unit, part, payload) in the order of a file."""


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Those of the tiny frozen model."""
    return Weights((FOLDER / "tiny.safetensors").read_bytes())


def test_imports_nothing_of_vbc() -> None:
    code = (
        "import reference_decoder, sys; "
        "assert not {'torch', 'constriction', 'safetensors', 'vbc'} & {m.split('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=TESTS, check=True, timeout=60)


# Golden files


@pytest.mark.parametrize("name", ANSWERS)
def test_golden_file(weights: Weights, name: str) -> None:
    data = (FOLDER / name).read_bytes()
    answers = ANSWERS[name]
    levels = File(data).levels
    assert [int(what) for what in answers if what.isdecimal()] == list(range(1, len(levels) + 1))
    whole = decode(data, weights)
    assert whole.sha256() == answers[str(len(levels))]
    for what, want in answers.items():
        if what.startswith("region "):
            have = crop(whole, *map(int, what.removeprefix("region ").split(",")))
        else:
            count = int(what.removeprefix("native-"))
            have = decode(data, weights, levels=count, native=what.startswith("native-"))
        assert have.sha256() == want, what


def crop(picture: Picture, x: int, y: int, width: int, height: int) -> Picture:
    """A rectangle of a picture."""
    part = (..., slice(y, y + height), slice(x, x + width))
    alpha, low = (None if plane is None else plane[part] for plane in (picture.alpha, picture.low))
    return Picture(picture.rgb[part], alpha, low, picture.gray)


@pytest.fixture(scope="module")
def shipped() -> Path:
    """The newest weights that are shipped."""
    folder = TESTS.parent / "codec" / "weights"
    return folder / json.loads((folder / "index.json").read_text())[-1]["file"]


@pytest.mark.parametrize(
    "settings",
    [
        EncodeSettings(levels=0, lossless=True, effort=2),
        EncodeSettings(levels=3, lossless=True, effort=2),
        EncodeSettings(levels=0, near=3, effort=2),
        EncodeSettings(levels=3, lossless=True, progressive=True, effort=2),
    ],
    ids=["archival", "layered", "near", "progressive"],
)
def test_crops_under_the_shipped_weights(shipped: Path, settings: EncodeSettings) -> None:
    """Trained networks, real symbols and corrections: crops of a photograph-like picture."""
    picture = make_example(384, 256)
    weights, model = Weights(shipped.read_bytes()), load_model(shipped)
    for x, y in ((40, 0), (160, 80), (300, 180)):
        rgb = np.ascontiguousarray(picture[y : y + 64, x : x + 64].transpose(2, 0, 1))
        data = encode_image(torch.from_numpy(rgb), model=model, settings=settings)
        assert np.abs(decode(data, weights).rgb.astype(int) - rgb).max() <= settings.near
        for count in range(1, len(File(data).levels) + 1):
            want = decode_image(data, model=model, levels=count).rgb.numpy()
            assert (decode(data, weights, levels=count).rgb == want).all()


@pytest.mark.parametrize("model", ["tiny", "shipped"])
def test_tensors_of_the_text(tiny_path: Path, shipped: Path, model: str) -> None:
    """The table of section 6 has every tensor of the weights files, with its type and shape."""
    weights = Weights((tiny_path if model == "tiny" else shipped).read_bytes())
    have = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("analysis.")}
    wanted: dict[str, tuple[str, list[str]]] = {}
    for name, dtype, shape in tensors_of_the_text():
        if dtype == "chain":
            layers = chain_of_the_text(name, *(int(part.split()[0]) for part in shape))
            wanted[f"{name}.condition"] = "i32", [shape[3].split()[0], "w"]
        elif dtype == "layer":
            layers = {name: shape}
        else:
            layers = {}
            wanted[name] = dtype, shape
        for part, size in layers.items():
            wanted[f"{part}.weight"] = "i8", size
            wanted[f"{part}.bias"] = wanted[f"{part}.shift"] = "i32", size[:1]
    assert wanted.keys() == have.keys()
    for name, (dtype, shape) in wanted.items():
        group = re.sub(r"(lossy\.(context\.)?|exact\.)(\w+(\.(values|bins)\b)?).*", r"\1\3", name)
        hidden = "third" if re.fullmatch(r"exact\.\w+(\.bins)?", group) else "0"
        known = {"w": len(have.get(f"{group}.{hidden}.bias", ())), "T": len(have["tables"])}
        if ".tuning." in name:
            phase = name.split(".")[1]
            known["R"] = have[f"exact.{phase}.tuning.scales"].shape[-1]
            known["w"] = len(have[f"exact.{phase}0.third.bias"])
            known["n"] = known["w"] + 1 + len(NEIGHBOURHOODS[phase]) + n_near(phase) + 2
        kind = have[name].dtype
        assert kind.kind + str(8 * kind.itemsize) == dtype, name
        assert have[name].shape == tuple(known.get(n) or int(n) for n in shape), name


def chain_of_the_text(name: str, hidden: int, inputs: int, outputs: int, uses: int) -> dict[str, list[str]]:
    """The layers of a chain, and the shapes of their weights."""
    layers = {f"{name}.{i}": ["w", "w" if i else str(inputs), "3", "3"] for i in range(hidden)}
    side = "3" if name == "lossy.enhance" else "1"
    return {**layers, f"{name}.head": [str(outputs), "w", side, side]}


def tensors_of_the_text() -> list[tuple[str, str, list[str]]]:
    """Name, type (or "layer", "chain") and dimensions of each tensor of the table of section 6."""
    found = []
    for name, dtype, shape in re.findall(r"^\| `([\w.]+)` \| (\w+) \| \[(.*?)\] \|", TEXT, re.MULTILINE):
        phases = (("D", 9, 15), ("H", 9, 18), ("V", 15, 21)) if "PHASE" in name else (("", 0, 0),)
        for phase, inputs, of_values in phases:
            for kind in range(3) if "CLASS" in name else range(1):
                full = name.replace("PHASE", phase).replace("CLASS", str(kind))
                size = shape.replace("VALUE_INPUTS", str(of_values))
                size = size.replace("INPUTS + 12", str(inputs + 12)).replace("INPUTS", str(inputs))
                found.append((full, dtype, size.split(", ")))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "layered.vbc",
        "deep.vbc",
        "alpha-lossy.vbc",
        "near.vbc",
        "near-gray-alpha.vbc",
        "progressive.vbc",
        "progressive-archival.vbc",
    ],
)
def test_prefixes_of_a_golden_file(weights: Weights, name: str) -> None:
    data = (FOLDER / name).read_bytes()
    file = File(data)
    for count, level in enumerate(file.levels, 1):
        last = max(p.offset + p.length for p in file.packets if p.unit == level)
        prefix = data[:last]
        want = decode(data, weights, levels=count)
        have = decode(prefix, weights, partial=True)
        assert (have.rgb == want.rgb).all()
        assert (have.alpha is None) == (want.alpha is None)
        if count < len(file.levels):  # with all of them the low bytes are wanted too
            assert decode(prefix, weights, levels=count).sha256() == have.sha256()
        if last < len(data):
            with pytest.raises(Truncated):
                decode(prefix, weights)


@pytest.mark.parametrize(
    "name", ["near-tuned.vbc", "near-groups.vbc", "near-noise.vbc", "progressive-groups.vbc"]
)
def test_cut_and_damaged_golden_files(weights: Weights, tiny: Model, name: str) -> None:
    """With some groups of bins, or of values, as the codec shows them."""
    data = (FOLDER / name).read_bytes()
    file = File(data)
    exact = [p for p in file.level_packets.values() if p.unit not in LOSSY_LEVELS and p.length]
    for i in (1, len(exact) // 3, len(exact) // 2, -2):
        cut = data[: exact[i].offset + exact[i].length - 1]
        damaged = bytearray(data)
        damaged[exact[i].offset] ^= 1
        for broken in (cut, bytes(damaged)):
            shown = decode(broken, weights, partial=True).rgb
            assert (decode_image(broken, model=tiny, allow_partial=True).rgb.numpy() == shown).all()


def test_pixel_hash_of_a_golden_file(weights: Weights) -> None:
    data = (FOLDER / "deep-gray-alpha.vbc").read_bytes()
    file = File(data)
    picture = decode(data, weights)
    packet = file.single(container.PIXEL_HASH)
    assert packet is not None
    assert picture.alpha is not None
    assert picture.low is not None
    samples = picture.rgb.transpose(1, 2, 0).tobytes() + picture.alpha.tobytes() + picture.low.tobytes()
    assert hashlib.sha256(samples).digest().startswith(file.payload(packet))
    assert picture.samples().shape == (20, 31, 2)
    assert picture.samples().dtype == np.uint16


# Lanes


TABLES = np.full((2, 256), 256, np.int64)
TABLES[0] = 1 << 16
TABLES[1, 127] = (1 << 24) - 255 * 256
STARTS = np.concatenate((np.zeros((2, 1), np.int64), TABLES.cumsum(1)), 1).tolist()
EXAMPLE = [
    (np.array([1, 0, 1]), np.array([0, 5, 200])),
    (np.array([0]), np.array([-127])),
]
"""The steps of the example in docs/format.md."""
TEXT = (TESTS.parent / "docs" / "format.md").read_text(encoding="utf-8")


def blocks_of_the_text(kind: str) -> list[list[str]]:
    """The lines of each fenced block of a kind."""
    return [
        block.splitlines() for block in re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    ]


def dump_of_the_text(i: int) -> bytes:
    """The bytes of the i-th hex dump: each line's, without what is said about them."""
    return b"".join(bytes.fromhex(line[:26]) for line in blocks_of_the_text("hex")[i])


EXAMPLE_PAYLOAD = dump_of_the_text(0)


def read_all(payload: bytes, steps: Sequence[tuple[Array, Array]], most: int = 1 << 20) -> list[Array]:
    lanes = Lanes(STARTS, payload, most, silent)
    found = [lanes.step(tables) for tables, _ in steps]
    lanes.finish()
    return found


def test_lanes_of_the_text() -> None:
    payload = write_lanes(STARTS, EXAMPLE)
    assert payload == EXAMPLE_PAYLOAD
    for (_, want), have in zip(EXAMPLE, read_all(payload, EXAMPLE), strict=True):
        assert (have == want).all()


def test_file_of_the_text(weights: Weights, tiny: Model) -> None:
    lines: list[str] = []
    data = dump_of_the_text(1)
    picture = decode(data, weights, say=lines.append)
    assert (decode_image(data, model=tiny).rgb.numpy() == picture.rgb).all()
    file = File(data)
    digest = hashlib.sha256(picture.rgb.transpose(1, 2, 0).tobytes()).digest()
    assert digest.startswith(file.payload(file.packets[-1]))
    assert [line for block in blocks_of_the_text("trace") for line in block] == lines
    (rows,) = blocks_of_the_text("rgb")
    want = [[bytes.fromhex(pixel) for pixel in row.split()] for row in rows]
    assert [[bytes(pixel) for pixel in row] for row in picture.rgb.transpose(1, 2, 0)] == want


def test_many_lanes() -> None:
    rng = np.random.default_rng(3)
    steps = []
    for n in (700, 0, 3, 1025, 256):
        tables = rng.choice([0, 1, NOTHING], n)
        symbols = np.where(rng.random(n) < 0.05, rng.integers(-32768, 32768, n), rng.integers(-5, 6, n))
        steps.append((tables, np.where(tables == NOTHING, 0, symbols)))
    for bits in (8, 9, 20):
        payload = write_lanes(STARTS, steps, bits)
        for (_, want), have in zip(steps, read_all(payload, steps), strict=True):
            assert (have == want).all()


@pytest.mark.parametrize(
    ("what", "damaged"),
    [
        ("small chunks", "07 04 01 01 01 02 c8 00 00 7d 84 01 01 00 00 00"),
        ("large chunks", "15 04 01 01 01 02 c8 00 00 7d 84 01 01 00 00 00"),
        ("one symbol more", "08 05 01 01 01 02 c8 00 00 7d 84 01 01 00 00 00"),
        ("no lane", "08 04 00 00"),
        ("two lanes", "08 04 02 01 01 00 02 00 c8 00 00 7d 84 01 01 00 00 00"),
        ("escapes that do not add up", "08 04 01 01 02 02 c8 00 00 7d 84 01 01 00 00 00"),
        ("an escape of 100", "08 04 01 01 01 02 64 00 00 7d 84 01 01 00 00 00"),
        ("no escape", "08 04 01 00 02 00 7d 84 01 01 00 00 00"),
        ("a word less", "08 04 01 01 01 01 c8 00 00 7d 84 01"),
        ("a word more", "08 04 01 01 01 03 c8 00 01 00 00 00 00 7d 84 01 01 00 00 00"),
        ("a last word of zero", "08 04 01 01 01 02 c8 00 00 7d 84 01 00 00 00 00"),
        ("a byte more", "08 04 01 01 01 02 c8 00 00 7d 84 01 01 00 00 00 00"),
        ("a long varint", "08 84 00 01 01 01 02 c8 00 00 7d 84 01 01 00 00 00"),
        ("another state", "08 04 01 01 01 02 c8 00 01 7d 84 01 01 00 00 00"),
    ],
)
def test_damaged_lanes(what: str, damaged: str) -> None:
    with pytest.raises(Corrupt):
        read_all(bytes.fromhex(damaged), EXAMPLE)


def test_more_symbols_than_a_packet_can_have() -> None:
    with pytest.raises(Corrupt):
        read_all(EXAMPLE_PAYLOAD, EXAMPLE, most=3)


# Files made by hand


class MadeUp:
    """In place of lanes: symbols from a generator, kept to be written."""

    made: list["MadeUp"]
    rng: np.random.Generator

    def __init__(self, starts: object, payload: bytes, most: int, say: object):
        self.steps: list[tuple[Array, Array]] = []
        self.made.append(self)

    def step(self, tables: Array) -> Array:
        # a few large ones among small ones, as a damaged file may have
        symbols = self.rng.integers(-3, 4, tables.shape)
        large = self.rng.random(tables.shape) < 0.01
        symbols = np.where(large, self.rng.integers(-32768, 32768, tables.shape), symbols)
        symbols = np.where(tables == NOTHING, 0, symbols).astype(np.int32)
        self.steps.append((tables, symbols))
        return symbols

    def finish(self) -> None:
        pass


def header_of(weights: Weights, size: tuple[int, int], flags: int, quality: int = 60) -> Header:
    height, width = size
    return Header(flags, width, height, 3, 8, 0, quality, weights.model_hash, weights.tables_hash)


def make_up(
    monkeypatch: pytest.MonkeyPatch,
    weights: Weights,
    header: Header,
    plain: int = 0,
    tuned: int = 0,
    refinements: int = 0,
) -> tuple[Packets, Array]:
    """Packets of all groups of all levels with made-up symbols, and the picture they give.

    plain: every so many exact groups hold plain pixels; tuned: every so many levels have a part 0. 0: none.
    Odd parts of level 1 have a map of qualities. With a bound each level of bins stands before its values, of
    which there are none but in a lossless file.
    """
    geometry = Geometry(header.height, header.width, header.bound > 0)
    rng = np.random.default_rng(11)
    shells: Packets = []
    levels = [] if header.archival else [*LOSSY_LEVELS[: 3 + 3 * refinements]]
    levels.append(FIRST_EXACT)
    for level in geometry.value_levels:
        levels += [BINS + level] if header.bound else []
        levels += [level] if not header.bound or header.flags & container.LOSSLESS else []
    for level in levels:
        is_finer = level in (BIN_LEVELS if header.bound else VALUE_LEVELS)
        has_part0 = bool(tuned) and is_finer and level % tuned == 0
        if has_part0:
            shells.append((level, 0, b"\2"))
        for part, group in geometry.groups(level):
            rows, columns = group.size
            if level == 4:
                body = rng.integers(0, 256, 3 * rows * columns, np.uint8).tobytes()
                shells.append((level, part, b"\1" + body))
            elif is_finer and plain and part % plain == 0:
                new = rows * columns - -(-rows // 2) * -(-columns // 2)
                shells.append((level, part, b"\3" + rng.integers(0, 256, new, np.uint8).tobytes()))
            elif level == 1:
                shells.append((level, part, b"\1" if part % 2 else b"\0"))
            else:
                shells.append((level, part, b"\2" if has_part0 else b"\0"))
    with monkeypatch.context() as patch:
        MadeUp.made, MadeUp.rng = [], rng
        patch.setattr(reference.lossy, "Lanes", MadeUp)
        patch.setattr(reference.exact, "Lanes", MadeUp)
        picture = decode(write_file(header, shells), weights).rgb
    made = iter(MadeUp.made)
    packets = [
        (
            level,
            part,
            shell if is_plain(level, shell) else shell + write_made(weights, next(made)),
        )
        for level, part, shell in shells
    ]
    assert next(made, None) is None
    return packets, picture


def is_plain(level: int, payload: bytes) -> bool:
    """Whether it has plain pixels, of which a group may have none."""
    return level not in LOSSY_LEVELS and payload[:1] in (b"\1", b"\3")


def write_made(weights: Weights, made: MadeUp) -> bytes:
    return write_lanes(weights.starts, made.steps, 10)


SIZES = [(513, 20), (21, 520), (3, 5)]
"""The first two have two groups on some levels, the last ones of one row or a few columns."""
WIDE = (5, 2060)
"""Two groups on level 1, of which the first one has a map."""
LAYERED, ARCHIVAL = container.LOSSLESS, container.LOSSLESS | container.ARCHIVAL
BOUNDS = [n << container.BOUND_SHIFT for n in range(9)]
"""In the flags."""
BINNED = [LAYERED | BOUNDS[2], ARCHIVAL | BOUNDS[2], BOUNDS[1], container.ARCHIVAL | BOUNDS[8]]
"""Values after bins, and bins alone."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flags", [LAYERED, ARCHIVAL, *BINNED])
def test_any_order_within_the_rules(
    monkeypatch: pytest.MonkeyPatch, weights: Weights, size: tuple[int, int], flags: int
) -> None:
    header = header_of(weights, size, flags)
    packets, want = make_up(monkeypatch, weights, header, plain=3, tuned=2)
    assert (decode(write_file(header, packets), weights).rgb == want).all()
    # the last group first, with what it needs, then the others
    file = File(write_file(header, packets))
    first = closure(file, [(file.levels[-1], file.geometry.n_groups(file.levels[-1]))])
    moved = sorted(packets, key=lambda p: (p[:2] not in first, order(p[0]), p[1]))
    assert (decode(write_file(header, moved), weights).rgb == want).all()


@pytest.mark.parametrize("size", [*SIZES, (530, 130), WIDE])
@pytest.mark.parametrize("flags", [LAYERED, ARCHIVAL, *BINNED])
def test_the_codec_agrees(
    monkeypatch: pytest.MonkeyPatch, weights: Weights, tiny: Model, size: tuple[int, int], flags: int
) -> None:
    """On files with several groups on a level, symbols of all sizes, plain, tuned and missing groups."""
    header = header_of(weights, size, flags)
    packets, want = make_up(monkeypatch, weights, header, plain=3, tuned=2)
    assert (decode_image(write_file(header, packets), model=tiny).rgb.numpy() == want).all()
    header = replace(header, flags=flags & ~container.LOSSLESS)
    rng = np.random.default_rng(3)
    for _ in range(3):
        data = write_file(header, some_packets(File(write_file(header, packets)), packets, rng))
        assert (decode_image(data, model=tiny).rgb.numpy() == decode(data, weights).rgb).all()


@pytest.mark.parametrize(
    ("size", "quality", "refinements"),
    [((3, 5), 60, 2), ((3, 5), 100, 3), ((270, 21), 20, 1), ((270, 21), 100, 3), ((21, 530), 60, 2)],
)
def test_the_codec_agrees_on_refinements(
    monkeypatch: pytest.MonkeyPatch,
    weights: Weights,
    tiny: Model,
    size: tuple[int, int],
    quality: int,
    refinements: int,
) -> None:
    """Symbols of all sizes, several groups, all of them and missing ones, by number of levels."""
    header = header_of(weights, size, LAYERED, quality)
    packets, want = make_up(monkeypatch, weights, header, refinements=refinements)
    data = write_file(header, packets)
    assert (decode_image(data, model=tiny).rgb.numpy() == want).all()
    header = replace(header, flags=0)
    rng = np.random.default_rng(4)
    for _ in range(2):
        data = write_file(header, some_packets(File(write_file(header, packets)), packets, rng))
        for count in (*range(3, 4 + 3 * refinements), len(File(data).levels)):
            shown = decode(data, weights, levels=count).rgb
            assert (decode_image(data, model=tiny, levels=count).rgb.numpy() == shown).all()


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_group_of_level_1(
    monkeypatch: pytest.MonkeyPatch, weights: Weights, tiny: Model, missing: int
) -> None:
    """Where it was, the header's quality holds; next to it the map of the other one."""
    header = header_of(weights, WIDE, 0)
    packets, whole = make_up(monkeypatch, weights, header)
    packets = [p for p in packets if p[0] <= 3]
    file = File(write_file(header, packets))
    kept = [p for p in packets if (1, missing) not in closure(file, [p[:2]])]
    assert {p[:2] for p in packets} > {p[:2] for p in kept} >= {(1, 3 - missing)}
    data = write_file(header, kept)
    for count in range(1, len(File(data).levels) + 1):
        shown = decode(data, weights, levels=count).rgb
        assert (decode_image(data, model=tiny, levels=count).rgb.numpy() == shown).all()
    damaged = bytearray(write_file(header, packets))
    damaged[file.level_packets[1, missing].offset] ^= 1
    assert (decode(bytes(damaged), weights, partial=True).rgb == shown).all()
    assert (decode_image(damaged, model=tiny, allow_partial=True).rgb.numpy() == shown).all()
    assert not (shown == whole).all()


@pytest.mark.parametrize(
    ("level", "mode"),
    [(1, 2), (1, 255), (2, 1), (2, 2), (3, 1), (3, 255), (33, 1), (34, 1), (38, 7)],
    ids=lambda n: str(n),
)
def test_a_mode_that_a_lossy_level_has_not(
    monkeypatch: pytest.MonkeyPatch, weights: Weights, tiny: Model, level: int, mode: int
) -> None:
    header = header_of(weights, (40, 30), 0)
    packets, _ = make_up(monkeypatch, weights, header, refinements=2)
    packets = [
        (n, part, bytes([mode]) + b[1:] if n == level else b) for n, part, b in packets if n in LOSSY_LEVELS
    ]
    check_refused(write_file(header, packets), weights, tiny, Corrupt)


def test_a_map_that_is_not_there_or_not_wanted(
    monkeypatch: pytest.MonkeyPatch, weights: Weights, tiny: Model
) -> None:
    """The other mode than the lanes were written for."""
    header = header_of(weights, (40, 30), 0)
    packets, _ = make_up(monkeypatch, weights, header)
    ((level, part, payload),) = (p for p in packets if p[0] == 1)
    assert payload[0] == 1
    check_refused(write_file(header, [(level, part, b"\0" + payload[1:])]), weights, tiny, Corrupt)
    latents_alone = write_lanes(weights.starts, [])
    check_refused(write_file(header, [(level, part, b"\1" + latents_alone)]), weights, tiny, Corrupt)
    check_refused(write_file(header, [(level, part, b"\1")]), weights, tiny, Corrupt)
    check_refused(write_file(header, [(level, part, b"")]), weights, tiny, Corrupt)


def some_packets(file: File, packets: Packets, rng: np.random.Generator) -> Packets:
    """A file's packets without some of its groups and those that need them."""
    kept: dict[tuple[int, int], bytes] = {}
    for level, part, payload in packets:
        dropped = part > 0 and kept and rng.random() < 0.1
        if not dropped and all(need in kept for need in file.needs(level, part)):
            kept[level, part] = payload
    with_groups = {level for level, part in kept if part}
    return [(level, part, payload) for (level, part), payload in kept.items() if level in with_groups]


def closure(file: File, wanted: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The packets wanted and all that they need."""
    found = set(wanted)
    for key in wanted:
        found |= closure(file, file.needs(*key))
    return found


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("flags", [LAYERED, ARCHIVAL, *BINNED[:2]])
def test_needs_are_enough(
    monkeypatch: pytest.MonkeyPatch, weights: Weights, size: tuple[int, int], flags: int
) -> None:
    header = header_of(weights, size, flags)
    packets, _ = make_up(monkeypatch, weights, header, tuned=2)
    header = replace(header, flags=flags & ~container.LOSSLESS)
    file = File(write_file(header, packets))
    geometry = file.geometry
    for level in file.levels:
        whole = decode(write_file(header, [p for p in packets if order(p[0]) <= order(level)]), weights).rgb
        for part, group in geometry.groups(level):
            needed = closure(file, [(level, part)])
            alone = decode(write_file(header, [p for p in packets if p[:2] in needed]), weights).rgb
            if level <= 3:  # pixels on which no other group of the level has an influence
                grid, area = 0, inner(group, *geometry.blocks, REACH[level]).times(8).cut(*size)
            else:
                grid, area = geometry.grid_of(level), group
            have, want = (x[:, :: 1 << grid, :: 1 << grid][:, *area.slices] for x in (alone, whole))
            assert (have == want).all()
            assert have.size or level == 2 or level == 3


REACH = {1: 10, 2: 6, 3: 2}
"""Blocks over which a lossy level has an influence on the picture: two by the enhancement, and four by each
prior that completes the levels above."""


def inner(group: Rectangle, rows: int, columns: int, n: int) -> Rectangle:
    """A group without n positions at those of its borders that are not the grid's."""
    return Rectangle(
        group.top + n * (group.top > 0),
        group.left + n * (group.left > 0),
        group.bottom - n * (group.bottom < rows),
        group.right - n * (group.right < columns),
    )


def test_plain_groups_hold_the_picture(weights: Weights) -> None:
    """Geometry without networks: every group of every level as plain pixels."""
    rgb = np.random.default_rng(1).integers(0, 256, (3, 530, 1100), np.uint8)
    header = header_of(weights, (530, 1100), ARCHIVAL)
    geometry = Geometry(530, 1100)
    assert [geometry.n_groups(n) for n in range(1, 13)] == [1, 2, 6, 1, 1, 1, 1, 1, 2, 6, 6, 6]
    packets: Packets = []
    for level in range(4, geometry.last_level + 1):
        k = geometry.grid_of(level)
        for part, group in geometry.groups(level):
            pixels = rgb[:, :: 1 << k, :: 1 << k][:, *group.slices]
            if level == 4:
                parts = [pixels]
            else:
                parts = [pixels[:, 1::2, 1::2], pixels[:, ::2, 1::2], pixels[:, 1::2, ::2]]
            packets.append((level, part, b"\1" + b"".join(p.transpose(1, 2, 0).tobytes() for p in parts)))
    data = write_file(header, packets)
    assert (decode(data, weights).rgb == rgb).all()
    # a prefix: the groups of the last level that are there are exact
    file = File(data)
    last = geometry.last_level
    third = file.level_packets[last, 3]
    shown = decode(data[: third.offset + third.length], weights, partial=True).rgb
    for part, group in geometry.groups(last):
        assert (shown[:, *group.slices] == rgb[:, *group.slices]).all() == (part <= 3)
    # a damaged group is missing, and no other one of its level
    damaged = bytearray(data)
    damaged[third.offset + 5] ^= 1
    with pytest.raises(Corrupt):
        decode(bytes(damaged), weights)
    shown = decode(bytes(damaged), weights, partial=True).rgb
    for part, group in geometry.groups(last):
        assert (shown[:, *group.slices] == rgb[:, *group.slices]).all() == (part != 3)


def test_missing_archival_levels(weights: Weights) -> None:
    """The first level without groups is the networks' means, finer ones are means of neighbours."""
    rgb = np.full((3, 40, 40), 77, np.uint8)
    rgb[:, ::32, ::32] = 99
    header = header_of(weights, (40, 40), container.ARCHIVAL)
    geometry = Geometry(40, 40)
    base = rgb[:, :: 1 << geometry.top, :: 1 << geometry.top]
    data = write_file(header, [(4, 1, b"\1" + base.transpose(1, 2, 0).tobytes())])
    shown = decode(data, weights).rgb
    assert (shown[:, :: 1 << geometry.top, :: 1 << geometry.top] == base).all()
    pixels = rgb_to_ycocg(shown)
    corners = pixels[:, ::2, ::2]
    four = corners[:, :-1, :-1] + corners[:, :-1, 1:] + corners[:, 1:, :-1] + corners[:, 1:, 1:]
    assert (pixels[:, 1:-1:2, 1:-1:2] == (four + 2) >> 2).all()


# Broken rules


def small(weights: Weights) -> tuple[Header, Packets]:
    """A file of three groups of plain pixels: 9 x 9 pixels."""
    rng = np.random.default_rng(2)
    header = header_of(weights, (9, 9), ARCHIVAL)
    return header, [
        (container.ICC, 0, b"icc"),
        (4, 1, b"\1" + rng.bytes(75)),
        (5, 1, b"\1" + rng.bytes(168)),
        (container.PIXEL_HASH, 0, bytes(8)),
    ]


Change = Callable[[Header, Packets], tuple[Header, Packets]]

BROKEN: dict[str, tuple[type[FormatError], Change]] = {
    "width 0": (Corrupt, lambda h, p: (replace(h, width=0), p)),
    "quality 101": (Corrupt, lambda h, p: (replace(h, quality=101), p)),
    "two channels": (UnsupportedVersion, lambda h, p: (replace(h, channels=2), p)),
    "twelve bits": (UnsupportedVersion, lambda h, p: (replace(h, bit_depth=12), p)),
    "a new flag": (UnsupportedVersion, lambda h, p: (replace(h, flags=h.flags | 4), p)),
    "a wide picture": (LimitExceeded, lambda h, p: (replace(h, width=65_536), p)),
    "many pixels": (LimitExceeded, lambda h, p: (replace(h, width=65_535, height=65_535), p)),
    "sixteen bits without LOW": (Corrupt, lambda h, p: (replace(h, bit_depth=16), p)),
    "LOW in eight bits": (Corrupt, lambda h, p: (h, [*p[:3], (container.LOW, 0, b""), p[3]])),
    "other weights": (ModelMissing, lambda h, p: (replace(h, model_hash=bytes(8)), p)),
    "other tables": (ModelMissing, lambda h, p: (replace(h, tables_hash=bytes(8)), p)),
    "a level missing in a lossless file": (Corrupt, lambda h, p: (h, [*p[:2], p[3]])),
    "a lossy level in an archival file": (Corrupt, lambda h, p: (h, [(1, 1, b"\0\10\0\0\0"), *p])),
    "no need of level 5": (Corrupt, lambda h, p: (replace(h, flags=2), [p[0], p[2]])),
    "level 5 before 4": (Corrupt, lambda h, p: (h, [p[0], p[2], p[1], p[3]])),
    "level 6": (Corrupt, lambda h, p: (h, [*p[:3], (6, 1, b"\1"), p[3]])),
    "a second group": (Corrupt, lambda h, p: (h, [*p[:3], (5, 2, b"\1"), p[3]])),
    "another colour": (UnsupportedVersion, lambda h, p: (replace(h, colour=1), p)),
    "part 0 of level 4": (UnsupportedVersion, lambda h, p: (h, [p[0], (4, 0, b"\2"), *p[1:]])),
    "part 0 behind its groups": (Corrupt, lambda h, p: (h, [*p[:3], (5, 0, b"\2"), p[3]])),
    "a group twice": (Corrupt, lambda h, p: (h, [*p[:3], p[2], p[3]])),
    "ICC twice": (Corrupt, lambda h, p: (h, [p[0], *p])),
    "ICC behind a level": (Corrupt, lambda h, p: (h, [p[1], p[0], *p[2:]])),
    "alpha before ICC": (Corrupt, lambda h, p: (h, [(container.ALPHA, 0, b""), *p])),
    "the hash before a level": (Corrupt, lambda h, p: (h, [p[3], *p[:3]])),
    "a short hash": (Corrupt, lambda h, p: (h, [*p[:3], (container.PIXEL_HASH, 0, bytes(7))])),
    "unit 64": (UnsupportedVersion, lambda h, p: (h, [*p, (64, 0, b"")])),
    "unit 99": (UnsupportedVersion, lambda h, p: (h, [*p, (99, 0, b"")])),
    "level 71 without a bound": (Corrupt, lambda h, p: (h, [*p[:2], (71, 1, p[2][2]), *p[2:]])),
    "a large profile": (LimitExceeded, lambda h, p: (h, [(container.ICC, 0, bytes((1 << 20) + 1)), *p[1:]])),
    "large metadata": (LimitExceeded, lambda h, p: (h, [*p, (container.XMP, 0, bytes((16 << 20) + 1))])),
    "a large level": (LimitExceeded, lambda h, p: (h, [*p[:2], (5, 1, bytes(2 << 20)), p[3]])),
    "a mode that there is not": (Corrupt, lambda h, p: (h, [*p[:2], (5, 1, b"\5"), p[3]])),
    "a tuned group without part 0": (Corrupt, lambda h, p: (h, [*p[:2], (5, 1, b"\2\10\0\0\0"), p[3]])),
    "an empty group": (Corrupt, lambda h, p: (h, [*p[:2], (5, 1, b""), p[3]])),
    "pixels too few": (Corrupt, lambda h, p: (h, [*p[:2], (5, 1, p[2][2][:-1]), p[3]])),
    "pixels too many": (Corrupt, lambda h, p: (h, [*p[:2], (5, 1, p[2][2] + b"\0"), p[3]])),
    "a packed picture before level 5": (Corrupt, lambda h, p: (h, [p[0], (4, 1, b"\4\3\0"), *p[2:]])),
    "level 5 without its groups in a lossless file": (
        Corrupt,
        lambda h, p: (h, [*p[:2], (5, 0, b"\2"), p[3]]),
    ),
    "part 0 of level 5 without level 4": (Corrupt, lambda h, p: (replace(h, flags=2), [(5, 0, b"\2")])),
    "part 0 of level 5 without level 3": (
        Corrupt,
        lambda h, p: (replace(h, flags=0), [p[1], (5, 0, b"\2")]),
    ),
    "no level": (Corrupt, lambda h, p: (replace(h, flags=0), [p[0], p[3]])),
    "a lossless file of level 4": (Corrupt, lambda h, p: (h, p[:2])),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_rule(weights: Weights, tiny: Model, what: str) -> None:
    error, change = BROKEN[what]
    header, packets = change(*small(weights))
    check_refused(write_file(header, packets), weights, tiny, error)


def only(packets: Packets, *levels: int) -> Packets:
    """The packets of these levels, in this order."""
    return [packet for level in levels for packet in packets if packet[0] == level]


def in_mode(packets: Packets, level: int, mode: int) -> Packets:
    """The packets with another mode on a level."""
    return [(n, part, bytes([mode]) + body[1:] if n == level else body) for n, part, body in packets]


ARCHIVAL_BINS = container.ARCHIVAL | BOUNDS[2]
PACKED = (4, 1, b"\4\3\0")

# of files of the levels 4, 71, 5, 72 and 6
BROKEN_BINS: dict[str, tuple[type[FormatError], Change]] = {
    "bound 9": (UnsupportedVersion, lambda h, p: (replace(h, flags=h.flags & 3 | 9 << 8), p)),
    "bound 15": (UnsupportedVersion, lambda h, p: (replace(h, flags=h.flags & 3 | 15 << 8), p)),
    "bit 12": (UnsupportedVersion, lambda h, p: (replace(h, flags=h.flags | 1 << 12), p)),
    "bit 7": (UnsupportedVersion, lambda h, p: (replace(h, flags=h.flags | 1 << 7), p)),
    "bins without a bound": (Corrupt, lambda h, p: (replace(h, flags=ARCHIVAL), p)),
    **{
        f"values after bins of {n}": (Corrupt, lambda h, p, n=n: (replace(h, flags=ARCHIVAL | BOUNDS[n]), p))
        for n in (1, 3, 8)
    },
    "part 0 of values": (UnsupportedVersion, lambda h, p: (h, [*p, (5, 0, b"\2")])),
    "part 0 of values before them": (UnsupportedVersion, lambda h, p: (h, [*p[:2], (5, 0, b"\2"), *p[2:]])),
    "bins of no level": (Corrupt, lambda h, p: (h, [*p, (73, 1, b"\0")])),
    "values of no level": (Corrupt, lambda h, p: (h, [*p, (7, 1, b"\0")])),
    "a second group of bins": (Corrupt, lambda h, p: (h, [*p, (72, 2, b"\0")])),
    "bins twice": (Corrupt, lambda h, p: (h, [*p, p[1]])),
    "bins before level 4": (Corrupt, lambda h, p: (h, only(p, 71, 4, 5, 72, 6))),
    "bins before coarser ones": (Corrupt, lambda h, p: (h, only(p, 4, 72, 71, 5, 6))),
    "values before their bins": (Corrupt, lambda h, p: (h, only(p, 4, 71, 5, 6, 72))),
    "values before coarser ones": (Corrupt, lambda h, p: (h, only(p, 4, 71, 72, 6, 5))),
    "bins without level 4": (Corrupt, lambda h, p: (replace(h, flags=ARCHIVAL_BINS), only(p, 71))),
    "part 0 of bins without level 4": (
        Corrupt,
        lambda h, p: (replace(h, flags=ARCHIVAL_BINS), [(71, 0, b"\2")]),
    ),
    "bins without coarser ones": (Corrupt, lambda h, p: (replace(h, flags=ARCHIVAL_BINS), only(p, 4, 72))),
    "part 0 of bins without coarser ones": (
        Corrupt,
        lambda h, p: (replace(h, flags=ARCHIVAL_BINS), [p[0], (72, 0, b"\2")]),
    ),
    "values without their bins": (
        Corrupt,
        lambda h, p: (replace(h, flags=ARCHIVAL_BINS), only(p, 4, 71, 5, 6)),
    ),
    "values without any bins": (Corrupt, lambda h, p: (replace(h, flags=ARCHIVAL_BINS), only(p, 4, 5))),
    "values without coarser ones": (
        Corrupt,
        lambda h, p: (replace(h, flags=ARCHIVAL_BINS), only(p, 4, 71, 72, 6)),
    ),
    "bins without a lossy picture": (Corrupt, lambda h, p: (replace(h, flags=BOUNDS[2]), only(p, 4, 71))),
    "part 0 of bins without a lossy picture": (
        Corrupt,
        lambda h, p: (replace(h, flags=BOUNDS[2]), [p[0], (71, 0, b"\2")]),
    ),
    "part 0 of bins behind its group": (Corrupt, lambda h, p: (h, [*p, (71, 0, b"\2")])),
    "lossless without values": (Corrupt, lambda h, p: (h, only(p, 4, 71, 72))),
    "lossless without the last values": (Corrupt, lambda h, p: (h, only(p, 4, 71, 72, 5))),
    "a lossless file of level 4": (Corrupt, lambda h, p: (h, only(p, 4))),
    "a packed picture before bins": (
        Corrupt,
        lambda h, p: (replace(h, flags=ARCHIVAL_BINS), [PACKED, *only(p, 71)]),
    ),
    "a lossless packed picture before bins": (Corrupt, lambda h, p: (h, [PACKED, *only(p, 71, 72)])),
    **{
        f"values in mode {mode}": (Corrupt, lambda h, p, mode=mode: (h, in_mode(p, 6, mode)))
        for mode in (1, 2, 3, 4, 255)
    },
    **{
        f"bins in mode {mode}": (Corrupt, lambda h, p, mode=mode: (h, in_mode(p, 71, mode)))
        for mode in (4, 5)
    },
    "tuned bins without part 0": (Corrupt, lambda h, p: (h, in_mode(p, 71, 2))),
    "bins in mode 1 of another length": (Corrupt, lambda h, p: (h, in_mode(p, 72, 1))),
    "empty values": (Corrupt, lambda h, p: (h, [*p[:-1], (6, 1, b"")])),
    "values of other lanes": (Corrupt, lambda h, p: (h, [*p[:-1], (6, 1, p[2][2])])),
}


@pytest.mark.parametrize("what", BROKEN_BINS)
def test_broken_rule_of_bins(
    monkeypatch: pytest.MonkeyPatch, weights: Weights, tiny: Model, what: str
) -> None:
    header, packets = small_binned(monkeypatch, weights)
    error, change = BROKEN_BINS[what]
    header, packets = change(header, packets)
    check_refused(write_file(header, packets), weights, tiny, error)


def small_binned(monkeypatch: pytest.MonkeyPatch, weights: Weights) -> tuple[Header, Packets]:
    """A lossless file of the levels 4, 71, 5, 72 and 6, each of one group."""
    header = header_of(weights, (17, 9), ARCHIVAL | BOUNDS[2])
    packets, _ = make_up(monkeypatch, weights, header)
    assert [packet[:2] for packet in packets] == [(4, 1), (71, 1), (5, 1), (72, 1), (6, 1)]
    return header, packets


def test_what_is_allowed_of_bins(monkeypatch: pytest.MonkeyPatch, weights: Weights, tiny: Model) -> None:
    header, packets = small_binned(monkeypatch, weights)
    want = decode(write_file(header, packets), weights).rgb
    for allowed in (
        only(packets, 4, 71, 72, 5, 6),
        [packets[0], (71, 0, b"\7"), *packets[1:]],  # a part 0 that no group looks into
    ):
        data = write_file(header, allowed)
        assert (decode(data, weights).rgb == want).all()
        assert (decode_image(data, model=tiny).rgb.numpy() == want).all()
    for bound in range(1, 9):  # a bound alone, and bins of it
        for some in (only(packets, 4), only(packets, 4, 71)):
            data = write_file(replace(header, flags=container.ARCHIVAL | BOUNDS[bound]), some)
            if len(some) == 1:
                assert (decode_image(data, model=tiny).rgb.numpy() == decode(data, weights).rgb).all()
            else:
                assert File(data).levels == [4, 71]
    small = write_file(header_of(weights, (5, 5), ARCHIVAL | BOUNDS[2]), [(4, 1, b"\1" + bytes(75))])
    assert (decode_image(small, model=tiny).rgb.numpy() == decode(small, weights).rgb).all()


def check_refused(data: bytes, weights: Weights, tiny: Model, error: type[FormatError]) -> None:
    """The reference decoder and the codec refuse a file with the same error."""
    with pytest.raises(error) as caught:
        decode(data, weights)
    assert caught.type is error
    with pytest.raises(errors.FormatError) as refused:
        decode_image(data, model=tiny)
    assert refused.type.__name__ == error.__name__


def test_what_is_allowed(weights: Weights) -> None:
    header, packets = small(weights)
    want = decode(write_file(header, packets), weights).rgb
    around = [(200, 0, b"ancillary"), (container.EXIF, 0, b"exif"), *packets, (200, 0, b""), (255, 0, b"x")]
    assert (decode(write_file(header, around), weights).rgb == want).all()
    newer = bytearray(write_file(header, packets))
    newer[9] = 7  # minor version
    newer[44:48] = struct.pack("<I", zlib.crc32(newer[:44]))
    assert (decode(bytes(newer), weights).rgb == want).all()


def test_damaged_bytes(weights: Weights) -> None:
    header, packets = small(weights)
    data = write_file(header, packets)
    index_bytes = int.from_bytes(data[40:44], "little")
    for n in range(len(data)):
        with pytest.raises(Truncated):
            decode(data[:n], weights)
    for at in range(len(data) - 8):  # the pixel hash is not looked at
        damaged = bytearray(data)
        damaged[at] ^= 4
        error = NotVbc if at < 8 else UnsupportedVersion if at == 8 else Corrupt
        if index_bytes + 52 <= at < index_bytes + 55:
            continue  # the profile is not looked at
        with pytest.raises(error):
            decode(bytes(damaged), weights)
    with pytest.raises(Corrupt):
        decode(data + b"\0", weights)


@pytest.mark.parametrize(
    ("what", "index"),
    [
        ("a run of no packets", b"\4\1\0"),
        ("a run cut off", b"\4\1\1\5\0\0"),
        ("a length not in its shortest form", b"\4\1\1\x80\0" + bytes(4)),
        ("a number of eleven bytes", b"\4\1\1" + b"\x80" * 10 + b"\1" + bytes(4)),
        ("two runs that are one", b"\4\0\1\0" + bytes(4) + b"\4\1\1\0" + bytes(4)),
        ("a part above 2^32", b"\4" + varint(1 << 32) + b"\1\0" + bytes(4)),
        ("a length of 2^62", b"\4\1\1" + varint(1 << 62) + bytes(4)),
    ],
)
def test_broken_index(weights: Weights, tiny: Model, what: str, index: bytes) -> None:
    header = header_of(weights, (5, 5), container.ARCHIVAL)
    check_refused(join_file(header, index, b""), weights, tiny, Corrupt)


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_an_index_above_its_limit(weights: Weights, tiny: Model, bound: int) -> None:
    header = header_of(weights, (9, 5), container.ARCHIVAL | BOUNDS[bound])
    parts = Geometry(9, 5, bound > 0).n_parts()
    assert parts == 12 * 2 + 2 * 2 + 2 * (bound > 0)
    check_refused(join_file(header, bytes(1025 + 32 * parts), b""), weights, tiny, LimitExceeded)


def test_a_packed_picture_stands_alone(weights: Weights, tiny: Model) -> None:
    """Other exact levels in the index are refused by whoever decodes level 4, also if it decodes no other."""
    data = (FOLDER / "graphic.vbc").read_bytes()
    file = File(data)
    packets = [(p.unit, p.part, file.payload(p)) for p in file.packets if p.unit == 4]
    header = replace(file.header, flags=container.ARCHIVAL)
    whole = write_file(header, packets)
    assert (decode(whole, weights).rgb == decode_image(whole, model=tiny).rgb.numpy()).all()
    for more in ((5, 0, b"\2"), (5, 1, b"\0")):
        both = write_file(header, [*packets, more])
        for levels in (None, 1):
            with pytest.raises(Corrupt):
                decode(both, weights, levels=levels)
            with pytest.raises(errors.Corrupt):
                decode_image(both, model=tiny, levels=levels)


def test_what_nothing_is_shown_of(weights: Weights, tiny: Model) -> None:
    """Truncated where all groups are cut off, Corrupt where one is damaged."""
    header, packets = small(weights)
    data = write_file(replace(header, flags=container.ARCHIVAL), packets)
    start = File(data).level_packets[4, 1].offset
    damaged = bytearray(data)
    damaged[start] ^= 1
    for broken, error in (
        (data[: start + 9], "Truncated"),
        (bytes(damaged), "Corrupt"),
        (bytes(damaged[:-20]), "Corrupt"),
    ):
        with pytest.raises(FormatError) as caught:
            decode(broken, weights, partial=True)
        with pytest.raises(errors.FormatError) as refused:
            decode_image(broken, model=tiny, allow_partial=True)
        assert caught.type.__name__ == refused.type.__name__ == error


def test_a_part_0_that_nothing_needs(weights: Weights, tiny: Model) -> None:
    """It is not looked into; a group in mode 2 does."""
    header, packets = small(weights)
    icc, base, group, pixel_hash = packets
    odd = write_file(header, [icc, base, (5, 0, b"\7"), group, pixel_hash])
    assert (decode(odd, weights).rgb == decode(write_file(header, packets), weights).rgb).all()
    assert (decode_image(odd, model=tiny).rgb.numpy() == decode(odd, weights).rgb).all()
    tuned = write_file(header, [icc, base, (5, 0, b"\7"), (5, 1, b"\2\10\0\0\0"), pixel_hash])
    check_refused(tuned, weights, tiny, Corrupt)
