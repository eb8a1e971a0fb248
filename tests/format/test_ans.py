"""Tables and lanes: constriction against the arithmetic of docs/format.md, awkward sizes, damage."""

import itertools
import math
import subprocess
import sys

import constriction
import numpy as np
import pytest
from checks import (
    Steps,
    bit_flips,
    check_format_error,
    check_lanes,
    decode_lanes,
    encode_lanes,
    laplace_tables,
    truncations,
)

from vbc.bitstream.ans import (
    LANE_SYMBOLS,
    LaneDecoder,
    LaneEncoder,
    _coder_faults,
    pack_varints,
    unpack_varints,
)
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.tables import ALPHABET, MAX_TABLES, TableSet, normalise_counts

LAPLACE = laplace_tables([0.2, 0.7, 1.5, 3.0, 6.0, 12.0, 25.0, 60.0])


def certain_tables() -> TableSet:
    """One symbol all but certain: the first, the middle one, the last before the escape, the escape."""
    frequencies = np.ones((4, ALPHABET), np.int64)
    frequencies[[0, 1, 2, 3], [0, 127, 254, 255]] = 65536 - 255
    return TableSet(frequencies)


def random_steps(tables: TableSet, sizes: list[int], seed: int = 0, spread: float = 3.0) -> Steps:
    """Laplace symbols, with escapes where the spread is large; indices of every table, unsorted."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(0, len(tables), n).astype(np.uint16),
            np.clip(rng.laplace(0, spread, n).round(), -32768, 32767).astype(np.int16),
        )
        for n in sizes
    ]


def reference_decode(tables: TableSet, payload: bytes, indices: list[np.ndarray]) -> list[list[int]]:
    """docs/format.md section 6 in plain integers: a second decoder, without constriction."""
    frequencies = tables.frequencies.tolist()
    cumulative = [[256 * c for c in itertools.accumulate(row, initial=0)] for row in frequencies]
    (_, n_escapes, n_lanes), at = unpack_varints(memoryview(payload), 3)
    n_words, n_bytes = unpack_varints(memoryview(payload)[at:], n_lanes)
    at += n_bytes
    escapes = iter(np.frombuffer(payload, "<i2", n_escapes, at).tolist())
    words = np.frombuffer(payload, "<u4", sum(n_words), at + 2 * n_escapes).tolist()
    starts = list(itertools.accumulate(n_words, initial=0))
    lanes = [words[a:b] for a, b in itertools.pairwise(starts)]
    states = [0] * n_lanes
    for j, lane in enumerate(lanes):
        for _ in range(min(2, len(lane))):
            states[j] = states[j] << 32 | lane.pop()
    out = []
    for index in indices:
        step = [0] * len(index)
        for k, position in enumerate(sorted(range(len(index)), key=lambda i: index[i])):
            j, c = k // 8192, cumulative[index[position]]
            q = states[j] % 2**24
            a = next(a for a in range(256) if q < c[a + 1])
            states[j] = (states[j] >> 24) * (c[a + 1] - c[a]) + q - c[a]
            if states[j] < 2**32 and lanes[j]:
                states[j] = states[j] << 32 | lanes[j].pop()
            step[position] = next(escapes) if a == 255 else a - 127
        out.append(step)
    assert not any(states)
    assert not any(lanes)
    assert next(escapes, None) is None
    return out


# tables


def test_normalise_counts() -> None:
    rng = np.random.default_rng(1)
    rows = [
        np.ones(256),
        np.eye(256)[3],
        np.eye(256)[0] * 1e-300 + np.eye(256)[255] * 1e300,
        np.full(256, 1e308),
        rng.random(256) ** 50,
        rng.dirichlet(np.full(256, 0.02)),
        np.arange(256.0),
    ]
    frequencies = normalise_counts(np.stack(rows))
    assert frequencies.dtype == np.uint32
    assert (frequencies.sum(axis=1) == 65536).all()
    assert frequencies.min() == 1
    assert (frequencies[0] == 256).all()
    assert frequencies[1, 3] == frequencies[2, 255] == 65536 - 255
    assert (frequencies[3] == 256).all()
    # where the minimum of 1 changes nothing, no frequency is off by one or more
    exact = np.arange(1.0, 257.0) / np.arange(1.0, 257.0).sum() * 65536
    assert np.abs(normalise_counts(exact[None])[0] - exact).max() < 1
    # valid frequencies stay as they are
    np.testing.assert_array_equal(normalise_counts(frequencies.astype(np.float64)), frequencies)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_normalise_counts_refuses(bad: float) -> None:
    weights = np.ones((2, 256))
    weights[1, 7] = bad
    for wrong in (weights, np.zeros((1, 256)), np.ones((1, 255)), np.ones(256)):
        with pytest.raises(ValueError, match="weights"):
            normalise_counts(wrong)


def test_table_set_checks() -> None:
    good = np.full((2, 256), 256, np.uint32)
    zero, big, off = good.copy(), good.astype(np.int64), good.copy()
    zero[1, :2] = 0, 512
    big[1, :2] = -65536, 66048
    off[1, 5] += 1
    for wrong in (zero, big, off, good.astype(np.float64), good[:, :255], good[0], good[:0]):
        with pytest.raises(ValueError, match=r"table|frequency"):
            TableSet(wrong)
    with pytest.raises(ValueError, match="1025 tables"):
        TableSet(np.full((MAX_TABLES + 1, 256), 256, np.uint32))
    tables = TableSet(good)
    good[0, :2] = 1, 511
    assert (tables.frequencies == 256).all()
    with pytest.raises(ValueError, match="read-only"):
        tables.frequencies[0, 0] = 1
    with pytest.raises(AttributeError):
        tables.digest = bytes(8)


def test_digest() -> None:
    assert TableSet(np.full((1, 256), 256, np.int64)).digest.hex() == "cc0eb18950700978"
    assert TableSet(np.full((2, 256), 256, np.uint32)).digest.hex() == "f1956492992f7d0b"
    assert certain_tables().digest != LAPLACE.digest


def test_constriction_has_exactly_our_frequencies() -> None:
    """All c[t][a] of docs/format.md section 5: symbol a takes the empty coder to the state c[a]."""
    rng = np.random.default_rng(2)
    spiky = TableSet(normalise_counts(rng.dirichlet(np.full(256, 0.03), size=6)))
    for tables in (LAPLACE, certain_tables(), spiky):
        for t in range(len(tables)):
            cumulative = 256 * np.concatenate([[0], np.cumsum(tables.frequencies[t], dtype=np.int64)])
            for a in range(256):
                coder = constriction.stream.stack.AnsCoder()
                coder.encode_reverse(np.array([a], np.int32), tables.model(t))
                words = coder.get_compressed().tolist()
                assert words == ([int(cumulative[a])] if cumulative[a] else [])
                # the interval ends where the next symbol begins: its last quantile still decodes to a
                last = constriction.stream.stack.AnsCoder(np.array([cumulative[a + 1] - 1], np.uint32))
                assert last.decode(tables.model(t), 1).tolist() == [a]


# lanes


@pytest.mark.parametrize("n", [0, 1, 2, 8191, 8192, 8193, 20_000])
def test_sizes(n: int) -> None:
    check_lanes(LAPLACE, random_steps(LAPLACE, [n]))


def test_steps_share_lanes() -> None:
    sizes = [1, 20_000, 0, 8193, 8192, 3, 30_000, 1]
    payload = check_lanes(LAPLACE, random_steps(LAPLACE, sizes, spread=40))
    (n_symbols, n_escapes, n_lanes), _ = unpack_varints(memoryview(payload), 3)
    assert (n_symbols, n_lanes) == (sum(sizes), -(-30_000 // LANE_SYMBOLS))
    assert n_escapes > 100


def test_no_steps() -> None:
    assert encode_lanes(LAPLACE, []) == bytes(3)
    assert decode_lanes(LAPLACE, bytes(3), []) == []


def test_against_reference() -> None:
    steps = random_steps(LAPLACE, [7, 8300, 300], seed=3, spread=60)
    expected = [symbol.tolist() for _, symbol in steps]
    assert reference_decode(LAPLACE, encode_lanes(LAPLACE, steps), [index for index, _ in steps]) == expected


def test_size_is_the_entropy() -> None:
    """The length is that of the frequencies, but for two words a lane and the counts in front."""
    steps = random_steps(LAPLACE, [30_000])
    index, symbol = steps[0]
    bits = -np.log2(LAPLACE.frequencies[index, symbol.astype(int) + 127] / 65536).sum()
    assert bits / 8 <= len(encode_lanes(LAPLACE, steps)) <= bits / 8 + 4 * 8 + 12


def test_all_escapes() -> None:
    rng = np.random.default_rng(4)
    symbol = rng.choice(np.array([-32768, -128, 128, 32641, 32767], np.int16), 9000)
    index = rng.integers(0, len(LAPLACE), 9000).astype(np.uint16)
    check_lanes(LAPLACE, [(index, symbol), (index[:1], symbol[:1])])


def test_all_symbols() -> None:
    symbol = np.arange(-32768, 32768).astype(np.int16)
    check_lanes(LAPLACE, [((np.arange(65536) % len(LAPLACE)).astype(np.uint16), symbol)])


def test_certain_symbols() -> None:
    """Where all is expected a symbol costs almost nothing, where nothing is 16 bits; both come back."""
    tables = certain_tables()
    expected = np.tile(np.array([-127, 0, 127], np.int16), 6000)
    index = np.tile(np.arange(3, dtype=np.uint16), 6000)
    assert len(check_lanes(tables, [(index, expected)])) < 18_000 * 0.0057 / 8 + 3 * 8 + 12
    assert len(check_lanes(tables, [(index, np.full(18_000, 5, np.int16))])) > 18_000 * 2
    check_lanes(tables, [(np.full(9000, 3, np.uint16), np.full(9000, 1000, np.int16))])
    # the first symbol of a table leaves the empty coder as it is: no words
    check_lanes(tables, [(np.zeros(50, np.uint16), np.full(50, -127, np.int16))])


def test_many_tables() -> None:
    tables = TableSet(np.full((MAX_TABLES, 256), 256, np.uint32))
    index = np.arange(3 * MAX_TABLES)[::-1] % MAX_TABLES
    check_lanes(tables, [(index.astype(np.uint16), (index % 255 - 127).astype(np.int16))])


def test_int32_symbols() -> None:
    (index, symbol), *_ = random_steps(LAPLACE, [500], spread=80)
    assert encode_lanes(LAPLACE, [(index, symbol.astype(np.int32))]) == encode_lanes(
        LAPLACE, [(index, symbol)]
    )


def test_callers_faults() -> None:
    index, symbol = np.zeros(3, np.uint16), np.zeros(3, np.int16)
    encoder, decoder = LaneEncoder(LAPLACE), LaneDecoder(LAPLACE, encode_lanes(LAPLACE, [(index, symbol)]))
    for wrong in (
        (index, symbol[:2]),
        (index[None], symbol[None]),
        (index.astype(np.int32), symbol),
        (index + np.uint16(len(LAPLACE)), symbol),
        (index, symbol.astype(np.float32)),
        (index, np.array([0, 0, 32768])),
        (index, np.array([0, -32769, 0])),
    ):
        with pytest.raises(ValueError, match=r"ind|symbol|table"):
            encoder.put(*wrong)
    for wrong_index in (index[None], index.astype(np.int32), index + np.uint16(len(LAPLACE))):
        with pytest.raises(ValueError, match=r"ind|table"):
            decoder.get(wrong_index)
    assert decoder.get(index).tolist() == [0, 0, 0]
    assert encoder.finish() == bytes(3)


GOLDEN = "08020103c800d4fe00b7e23feb8151f9c4ea0000"
GOLDEN_CODE = """
import sys
import numpy as np
from vbc.bitstream.ans import LaneEncoder
from vbc.bitstream.tables import TableSet, normalise_counts
weights = np.stack([1.0 / (1 + np.abs(np.arange(256) - 127)) ** k for k in (1, 2, 4)])
encoder = LaneEncoder(TableSet(normalise_counts(weights)))
encoder.put(np.array([2, 0, 1, 0, 2, 1, 1], np.uint16), np.array([0, -5, 3, 200, 1, -127, 127], np.int16))
encoder.put(np.array([1], np.uint16), np.array([-300], np.int16))
sys.stdout.write(encoder.finish().hex())
"""


def test_golden_in_fresh_processes() -> None:
    """The bytes depend on the input alone: processes with different hash seeds write the pinned ones."""
    path = [p for p in sys.path if p]
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(path)}
        run = [sys.executable, "-c", GOLDEN_CODE]
        assert (
            subprocess.run(run, env=environment, capture_output=True, check=True, text=True).stdout == GOLDEN
        )


# damage


def damaged_outcome(payload: bytes, indices: list[np.ndarray]) -> str:
    """Decoding ends in Corrupt or in other symbols of the right shape; any other exception goes through."""
    try:
        symbols = decode_lanes(LAPLACE, payload, indices)
    except Corrupt:
        return "Corrupt"
    assert [s.shape for s in symbols] == [i.shape for i in indices]
    return "symbols"


def test_every_truncation_and_flip() -> None:
    (index, symbol), *_ = steps = random_steps(LAPLACE, [200, 0, 60, 1], seed=5, spread=1)
    symbol[17] = 300
    index[::2], symbol[::2] = 7, symbol[::2] * 40
    indices = [index for index, _ in steps]
    payload = check_lanes(LAPLACE, steps)
    assert {damaged_outcome(cut, indices) for cut in truncations(payload)} == {"Corrupt"}
    assert damaged_outcome(payload + b"\0", indices) == "Corrupt"
    outcomes = [damaged_outcome(flipped, indices) for flipped in bit_flips(payload)]
    # the final state catches most of them; what swaps equally likely symbols is for the CRC
    assert outcomes.count("Corrupt") > 0.9 * len(outcomes)
    assert "symbols" in outcomes


def test_damage_across_lanes() -> None:
    steps = random_steps(LAPLACE, [20_000, 9_000], seed=6)
    indices = [index for index, _ in steps]
    payload = check_lanes(LAPLACE, steps)
    rng = np.random.default_rng(7)
    for n_bytes in rng.integers(0, len(payload), 40).tolist():
        assert damaged_outcome(payload[:n_bytes], indices) == "Corrupt"
    for flipped in bit_flips(payload, [*range(80), *rng.integers(0, 8 * len(payload), 40).tolist()]):
        damaged_outcome(flipped, indices)


def test_random_payloads() -> None:
    rng = np.random.default_rng(8)
    indices = [np.zeros(5, np.uint16), np.zeros(9000, np.uint16)]
    for n_bytes in range(300):
        damaged_outcome(rng.bytes(n_bytes), indices)
        damaged_outcome(bytes([5, 0, 1, n_bytes // 4 % 128]) + rng.bytes(n_bytes), indices[:1])


@pytest.mark.parametrize(
    "counts",
    [
        [1, 0, 0],  # symbols without a lane
        [0, 0, 1, 0],  # a lane without symbols
        [8192, 0, 2, 0, 0],  # more lanes than chunks
        [1, 2, 1, 10],  # more escapes than symbols: the tail would hold two
        [2**32 - 1, 2**32 - 1, 1, 0],  # more escapes than bytes
        [2**32 - 1, 0, 2**19],  # more lanes than bytes
        [2**32 - 1, 0, 1, 2**32 - 1],  # more words than bytes
    ],
)
def test_counts_that_lie(counts: list[int]) -> None:
    for tail in (b"", bytes([200, 0] * 2 + [1] * 40), bytes(40)):
        check_format_error(lambda t=tail: LaneDecoder(LAPLACE, pack_varints(counts) + t), Corrupt)


def test_steps_that_do_not_fit() -> None:
    steps = random_steps(LAPLACE, [100, 100], spread=50)
    payload = encode_lanes(LAPLACE, steps)
    indices = [index for index, _ in steps]
    for wrong in ([], indices[:1], [*indices, indices[0][:1]], [np.zeros(9000, np.uint16)]):
        check_format_error(lambda w=wrong: decode_lanes(LAPLACE, payload, w), Corrupt)
    # other tables than the encoder's: other symbols, other escapes, and a state that does not come home
    check_format_error(lambda: decode_lanes(LAPLACE, payload, indices[::-1]), Corrupt)
    # refused at the step, not only at the end
    for decoder in (LaneDecoder(LAPLACE, payload), LaneDecoder(LAPLACE, pack_varints([9000, 0, 1, 0]))):
        check_format_error(lambda d=decoder: d.get(np.zeros(8193, np.uint16)), Corrupt)


def test_escapes_must_match() -> None:
    """Escape values without a symbol, and symbols without an escape value."""
    index, symbol = np.zeros(2, np.uint16), np.array([3, 500], np.int16)
    none, one = (encode_lanes(LAPLACE, [(index, s)]) for s in (symbol[:1].repeat(2), symbol))
    assert (none[:3], one[:3]) == (b"\2\0\1", b"\2\1\1")
    check_format_error(
        lambda: decode_lanes(LAPLACE, b"\2\1" + none[2:4] + one[4:6] + none[4:], [index]), Corrupt
    )
    check_format_error(lambda: decode_lanes(LAPLACE, b"\2\0" + one[2:4] + one[6:], [index]), Corrupt)


def test_escape_values_are_escapes() -> None:
    payload = bytearray(encode_lanes(LAPLACE, [(np.zeros(1, np.uint16), np.array([500], np.int16))]))
    assert payload[:4] == b"\1\1\1\1"
    payload[4:6] = (127).to_bytes(2, "little")
    check_format_error(lambda: LaneDecoder(LAPLACE, bytes(payload)), Corrupt)


def test_panics_become_corrupt() -> None:
    """A real panic of constriction (negative scale) is no Exception; what is not the coder's passes."""
    laplace = constriction.stream.model.QuantizedLaplace(-10, 10)

    def panic() -> None:
        coder = constriction.stream.stack.AnsCoder(np.array([1, 2, 3], np.uint32))
        coder.decode(laplace, np.zeros(2, np.float64), np.full(2, -1.0))

    with pytest.raises(BaseException, match="must be positive") as caught:
        panic()
    assert not isinstance(caught.value, Exception)
    with pytest.raises(Corrupt), _coder_faults():
        panic()
    with pytest.raises(KeyboardInterrupt), _coder_faults():
        raise KeyboardInterrupt


# varints


def test_varints() -> None:
    values = [0, 1, 127, 128, 16383, 16384, 2**28, 2**32 - 1]
    packed = pack_varints(values)
    assert unpack_varints(memoryview(packed), len(values)) == (values, len(packed))
    assert packed.startswith(bytes.fromhex("00 01 7f 8001 ff7f 808001"))
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match="outside"):
            pack_varints([wrong])


@pytest.mark.parametrize(
    "text", ["", "80", "8000", "ffffffff1f", "8080808010", "ffffffffff", "8080808080", "ff" * 40]
)
def test_varints_refused(text: str) -> None:
    check_format_error(lambda: unpack_varints(memoryview(bytes.fromhex(text)), 1), Corrupt)
