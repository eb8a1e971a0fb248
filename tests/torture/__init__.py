"""The acceptance list of docs/reliability.md as functions, one a row.

`scripts/torture` runs them with their full numbers, tests/test_torture.py with small ones. A row takes a
`Slice` and returns a `Tally`; its cases are seeded one by one, so they do not depend on how a row is cut.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from torture.rows_bytes import cost, every_truncation, feeding, limits, mutations, repaired_mutations
from torture.rows_found import others_pictures
from torture.rows_groups import group_cases
from torture.rows_images import image_mutations
from torture.rows_pictures import devices, generated, golden, missing_model, self_check, threads
from torture.rows_process import bad_files, bombs, fuzzing, interruptions, no_pickle
from torture.rows_shorter import budget_cases, cut_cases, strip_cases
from torture.tally import Slice, Tally

# rows 11 and 13 call tests that live beside the others
sys.path += [str(Path(__file__).parent.parent / folder) for folder in ("codec", "command")]

Row = Callable[[Slice], Tally]

ROWS: dict[int, tuple[Row, int, int, str]] = {
    1: (mutations, 10_100, 200, "mutations, checksums left alone"),
    2: (repaired_mutations, 10_000, 200, "mutations with repaired checksums, extreme header fields"),
    3: (fuzzing, 1_800, 0, "coverage-guided fuzzing, seconds for three targets"),
    4: (bombs, 1, 1, "bomb headers in a fresh process"),
    5: (limits, 1, 1, "limits on every entry point"),
    6: (cost, 600, 30, "time of accepted mutations, peak memory"),
    7: (every_truncation, 1, 300, "truncation points; the number is the step between them"),
    8: (feeding, 2_000, 25, "files fed in random pieces"),
    9: (interruptions, 200, 2, "SIGKILL, full disk, closed pipe"),
    10: (devices, 1, 1, "threads 1, 2, 4; lists of 1 and 8; interpreted kernels; another torch"),
    11: (golden, 1, 1, "golden files"),
    12: (missing_model, 200, 6, "wrong or missing weights"),
    13: (no_pickle, 400, 40, "no pickle: static check, malicious weights"),
    14: (generated, 2_000, 40, "generated images"),
    15: (threads, 500, 12, "eight threads, so many decodes each"),
    16: (bad_files, 200, 0, "folder with 5 % bad files"),
    17: (self_check, 200, 8, "the encoder's self-check against faults put in"),
    18: (image_mutations, 40_000, 400, "mutations of image files to encode"),
    19: (group_cases, 4_000, 40, "regions, cut and stripped files, other orders, damaged packets"),
    20: (others_pictures, 1, 20, "pictures of other projects that are installed; the number is the step"),
    21: (cut_cases, 4_000, 40, "files cut to a number of bytes or a level"),
    22: (strip_cases, 4_000, 25, "files without what regions do not need"),
    23: (budget_cases, 2_000, 30, "files encoded for a number of bytes"),
}
"""Number -> function, full number, quick number (0: covered elsewhere in the suite), what it is."""
