"""Golden files decode to the same pixels for ever; scripts/make_golden.py alone writes them."""

import itertools
import json
from pathlib import Path

import pytest
from checks import decode_answer, decoded_hash

from vbc.bitstream import container
from vbc.bitstream.geometry import is_bins, is_lossy
from vbc.codec.exact import level
from vbc.codec.flow.decode_state import CODED, CODED_WITH_MAP
from vbc.codec.model import Model

FOLDER = Path(__file__).parents[1] / "golden"
ANSWERS: dict[str, dict[str, str]] = json.loads((FOLDER / "answers.json").read_text())


def test_no_file_is_missing() -> None:
    assert len(ANSWERS) >= 35
    assert {p.name for p in FOLDER.glob("*.vbc")} == set(ANSWERS)
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 2_000_000


def test_they_have_every_mode_and_kind() -> None:
    """Modes of packets; several groups at every kind of level; all units but metadata."""
    modes, lossy_modes, units, flags, divided = set(), set(), set(), set(), set()
    for name in ANSWERS:
        data = (FOLDER / name).read_bytes()
        header = container.unpack_header(data)
        flags.add(header.flags)
        for i, packet in enumerate(header.packets):
            units.add(packet.unit)
            if packet.level == 1:
                lossy_modes.add(container.read_packet(data, header, i)[0])
            if packet.level and not is_lossy(packet.level):
                modes.add(container.read_packet(data, header, i)[0])
            if packet.part > 1:
                exact = (header.archival, is_bins(packet.level))
                divided.add(packet.level if is_lossy(packet.level) else exact)
    assert modes == {level.CODED, level.RAW, level.TUNED, level.RAW_GRAY, level.PACKED}
    assert lossy_modes == {CODED, CODED_WITH_MAP}
    kinds = {flag & 3 for flag in flags}
    bounds = {(flag & container.LOSSLESS, flag >> container.BOUND_SHIFT) for flag in flags}
    assert kinds == {0, container.LOSSLESS, container.ARCHIVAL, container.LOSSLESS | container.ARCHIVAL}
    assert bounds >= {(0, 0), (0, 1), (0, 8), (container.LOSSLESS, 0), (container.LOSSLESS, 2)}
    assert divided == {1, 2, 3, 34, 35, *itertools.product((False, True), (False, True))}
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
