"""Write the seeds of fuzzing that are made, not found (docs/reliability.md); existing ones are never touched.

Only for a new major version of the format, whose readers refuse all older seeds at the first byte.

python scripts/make_seeds.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from torture.material import (  # noqa: E402
    SMALL_LIMITS,
    TINY,
    Entry,
    loosen,
    mutate_repaired,
    small_files,
)
from torture.rows_process import bomb_files  # noqa: E402
from torture.targets import SEEDS  # noqa: E402

from vbc.bitstream.container import LOSSLESS  # noqa: E402
from vbc.bitstream.errors import FormatError  # noqa: E402
from vbc.codec import api  # noqa: E402
from vbc.codec.example import make_example  # noqa: E402

BOMBS = (
    "width-0",
    "height-4294967295",
    "size-65536x65536",
    "index-of-4294967295",
    "index-of-many-groups",
    "index-length-without-end",
    "index-in-long-form",
    "length-1-2305843009213693952",
    "length-144-1125899906842624",
)
ACCEPTED = 4
"""Damaged files with right checksums that still give a picture."""


def changed_file(name: str) -> bytes:
    """A valid file with one thing wrong in it."""
    groups = api.encode(make_example(530, 530)[:9], lossless=True, levels=0, effort=0, model=TINY)
    loose = loosen(groups if "group" in name else small_files()["layered.vbc"])
    packets: list[Entry] = loose.packets
    last = max(unit for unit, _, _ in packets if unit < 64)
    first_exact = next(i for i, (unit, _, _) in enumerate(packets) if unit >= 4)
    match name:
        case "mode-255":
            packets[0] = (*packets[0][:2], b"\xff" + packets[0][2][1:])
        case "empty-packet":
            packets[0] = (*packets[0][:2], b"")
        case "plain-base-alone":
            loose.packets = packets[: first_exact + 1]
        case "a-group-missing":
            loose.fields["flags"] = int(loose.fields["flags"]) & ~LOSSLESS
            loose.packets = [p for p in packets if p[:2] != (last, 2)]
        case "tuned-group-that-shares-nothing":
            i = next(i for i, p in enumerate(packets) if p[:2] == (last, 1))
            packets[i] = (last, 1, b"\x02" + packets[i][2][1:])
        case "shared-packet-of-no-group":
            loose.fields["flags"] = int(loose.fields["flags"]) & ~LOSSLESS
            loose.packets = [p for p in packets if p[0] != last] + [(last, 0, b"\x02")]
        case _:
            raise ValueError(name)
    return loose.pack()


CHANGES = (
    "mode-255",
    "empty-packet",
    "plain-base-alone",
    "a-group-missing",
    "tuned-group-that-shares-nothing",
    "shared-packet-of-no-group",
)


def accepted() -> Iterator[tuple[str, bytes]]:
    """Damaged files that give a picture, by the number of their mutation."""
    files = list(small_files().values())
    n = found = 0
    while found < ACCEPTED:
        n += 1
        data = mutate_repaired(files[n % len(files)], np.random.default_rng((2, n)), files)
        if data in files or len(data) > 4096:
            continue
        try:
            api.decode_picture(data, limits=SMALL_LIMITS, model=TINY)
        except FormatError:
            continue
        found += 1
        yield f"accepted-{n}", data


def main() -> None:
    """Write the seeds that are not there yet."""
    bombs = bomb_files()
    seeds = {f"header/bomb-{name}": bombs[name] for name in BOMBS}
    seeds |= {f"file/{name}": changed_file(name) for name in CHANGES}
    seeds |= {f"file/{name}": data for name, data in accepted()}
    for name, data in seeds.items():
        path = SEEDS / name
        if not path.exists():
            path.write_bytes(data)


if __name__ == "__main__":
    main()
