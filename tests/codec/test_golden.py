"""Golden files decode to the same pixels for ever; scripts/make_golden.py alone writes them."""

import json
from itertools import product
from pathlib import Path

import pytest
from checks import decode_answer, decoded_hash

from vbc.bitstream import container
from vbc.bitstream.geometry import is_bins, is_lossy, is_value
from vbc.codec.exact import level
from vbc.codec.flow.decode_state import CODED, CODED_WITH_MAP, CODED_WITH_OFFSETS
from vbc.codec.model import Model

FOLDER = Path(__file__).parents[1] / "golden"
ANSWERS: dict[str, dict[str, str]] = json.loads((FOLDER / "answers.json").read_text())


def test_no_file_is_missing() -> None:
    assert len(ANSWERS) >= 35
    assert {p.name for p in FOLDER.glob("*.vbc")} == set(ANSWERS)
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 3_000_000


def test_they_have_every_mode_and_kind() -> None:
    """Modes of packets; several groups at every kind of level; all units but metadata."""
    lossy_modes, units, flags, divided = set(), set(), set(), set()
    modes: dict[str, set[int]] = {"exact": set(), "bins": set(), "values": set()}
    for name in ANSWERS:
        data = (FOLDER / name).read_bytes()
        header = container.unpack_header(data)
        flags.add(header.flags)
        for i, packet in enumerate(header.packets):
            units.add(packet.unit)
            if packet.level in (1, 2, 3):
                lossy_modes.add((packet.level, container.read_packet(data, header, i)[0]))
            kind = "bins" if is_bins(packet.level) else "exact"
            if header.bound and is_value(packet.level):
                kind = "values"
            if packet.level and not is_lossy(packet.level):
                modes[kind].add(container.read_packet(data, header, i)[0])
            if packet.part > 1:
                divided.add(packet.level if is_lossy(packet.level) else (header.archival, kind))
    assert modes["exact"] == {level.CODED, level.RAW, level.TUNED, level.RAW_GRAY, level.PACKED}
    assert modes["bins"] >= {level.CODED, level.RAW, level.TUNED}
    assert modes["values"] == {level.CODED}
    with_offsets = {(2, CODED_WITH_OFFSETS), (3, CODED_WITH_OFFSETS)}
    assert lossy_modes == {(1, CODED), (1, CODED_WITH_MAP), (2, CODED), (3, CODED), *with_offsets}
    lossless, archival = container.LOSSLESS, container.ARCHIVAL
    assert {n & (lossless | archival) for n in flags} == {0, lossless, archival, lossless | archival}
    bounds = {(n & (lossless | archival), n >> container.BOUND_SHIFT) for n in flags}
    assert bounds >= {(0, 3), (archival, 8), (lossless, 2), (lossless | archival, 2)}
    assert divided == {1, 2, 3, 34, 35, *product((True, False), ("exact", "bins", "values"))}
    assert units >= {*range(33, 42)}
    assert units >= {container.ALPHA, container.LOW, container.PIXEL_HASH}


@pytest.mark.parametrize("name", ANSWERS)
def test_golden_file(tiny: Model, name: str) -> None:
    data = (FOLDER / name).read_bytes()
    levels = container.levels_present(container.unpack_header(data))
    assert [n for n in ANSWERS[name] if n.isdecimal()] == [str(n) for n in range(1, len(levels) + 1)]
    assert sum(n.startswith("native-") for n in ANSWERS[name]) == len({1, 2} & set(levels))
    assert sum(n.startswith("region ") for n in ANSWERS[name]) == (1 if "one-pixel" in name else 2)
    for answer, want in ANSWERS[name].items():
        assert decoded_hash(decode_answer(data, tiny, answer)) == want, answer
