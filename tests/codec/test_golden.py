"""Golden files decode to the same pixels for ever; scripts/make_golden.py alone writes them."""

import json
from pathlib import Path

import pytest
from checks import decoded_hash

from vbc.bitstream import container
from vbc.codec.model import Model
from vbc.codec.pipeline import decode_image

FOLDER = Path(__file__).parents[1] / "golden"
ANSWERS: dict[str, dict[str, str]] = json.loads((FOLDER / "answers.json").read_text())


def test_no_file_is_missing() -> None:
    assert len(ANSWERS) >= 12
    assert {p.name for p in FOLDER.glob("*.vbc")} == set(ANSWERS)


@pytest.mark.parametrize("name", ANSWERS)
def test_golden_file(tiny: Model, name: str) -> None:
    data = (FOLDER / name).read_bytes()
    levels = container.level_ends(container.unpack_header(data))
    assert list(ANSWERS[name]) == [str(n) for n in range(1, len(levels) + 1)]
    for n, want in ANSWERS[name].items():
        assert decoded_hash(decode_image(data, model=tiny, levels=int(n))) == want
