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
    check_cheap,
    check_format_error,
    check_lanes,
    decode_lanes,
    encode_lanes,
    laplace_tables,
    truncations,
)

from vbc.bitstream.ans import LaneDecoder, LaneEncoder, _coder_faults, unpack_lanes
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.tables import ALPHABET, MAX_TABLES, NO_TABLE, TOTAL_BITS, TableSet, normalise_counts
from vbc.bitstream.varint import pack_varints, unpack_varint, unpack_varints

TOTAL = 1 << TOTAL_BITS
LAPLACE = laplace_tables([0.2, 0.7, 1.5, 3.0, 6.0, 12.0, 25.0, 60.0])


def certain_tables() -> TableSet:
    """One symbol all but certain: the first, the middle one, the last before the escape, the escape."""
    frequencies = np.ones((4, ALPHABET), np.int64)
    frequencies[[0, 1, 2, 3], [0, 127, 254, 255]] = TOTAL - 255
    return TableSet(frequencies)


def random_steps(tables: TableSet, sizes: list[int], seed: int = 0, spread: float = 3.0) -> Steps:
    """Laplace symbols, with escapes where the spread is large; indices of every table, unsorted."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(0, len(tables), n).astype(np.int16),
            np.clip(rng.laplace(0, spread, n).round(), -32768, 32767).astype(np.int16),
        )
        for n in sizes
    ]


def drawn_steps(bits: float, sizes: list[int]) -> tuple[TableSet, Steps]:
    """A table of that many bits a symbol, and steps of symbols drawn from it."""
    scales = np.geomspace(0.02, 80, 400)
    weights = laplace_tables(scales.tolist()).frequencies / TOTAL
    entropy = -(weights * np.log2(weights)).sum(1)
    row = int(np.abs(entropy - bits).argmin())
    rng = np.random.default_rng(9)
    steps = []
    for n in sizes:
        symbol = rng.choice(ALPHABET, n, p=weights[row]).astype(np.int16) - np.int16(127)
        steps.append((np.zeros(n, np.int16), symbol))
    return TableSet((weights[row : row + 1] * TOTAL).astype(np.int64)), steps


def written(lane_bits: int, counts: list[int], rest: bytes = b"") -> bytes:
    """A payload from its numbers: symbols, lanes, escapes, each lane's escapes where there are any, words."""
    return bytes([lane_bits]) + pack_varints(counts) + rest


def reference_decode(tables: TableSet, payload: bytes, indices: list[np.ndarray]) -> list[list[int]]:
    """docs/format.md section 6 in plain integers: a second decoder, without constriction."""
    cumulative = [list(itertools.accumulate(row, initial=0)) for row in tables.frequencies.tolist()]
    data, lane_length = memoryview(payload), 1 << payload[0]
    (_, n_lanes, n_escapes), at = unpack_varints(data, 3, 1)
    counts, at = unpack_varints(data, n_lanes, at) if n_escapes else ([0] * n_lanes, at)
    n_words, at = unpack_varints(data, n_lanes, at)
    values = np.frombuffer(payload, "<i2", n_escapes, at).tolist()
    words = np.frombuffer(payload, "<u4", sum(n_words), at + 2 * n_escapes).tolist()

    def cut(flat: list[int], lengths: list[int]) -> list[list[int]]:
        return [flat[a:b] for a, b in itertools.pairwise(itertools.accumulate(lengths, initial=0))]

    lanes, escapes = cut(words, n_words), [iter(own) for own in cut(values, counts)]
    states = [0] * n_lanes
    for j, lane in enumerate(lanes):
        for _ in range(min(2, len(lane))):
            states[j] = states[j] << 32 | lane.pop()
    out = []
    for index in indices:
        step = [0] * len(index)
        coded = [i for i in range(len(index)) if index[i] != NO_TABLE]
        for k, position in enumerate(sorted(coded, key=lambda i: index[i])):
            j, c = k // lane_length, cumulative[index[position]]
            q = states[j] % 2**24
            a = next(a for a in range(256) if q < c[a + 1])
            states[j] = (states[j] >> 24) * (c[a + 1] - c[a]) + q - c[a]
            if states[j] < 2**32 and lanes[j]:
                states[j] = states[j] << 32 | lanes[j].pop()
            step[position] = next(escapes[j]) if a == 255 else a - 127
        out.append(step)
    assert not any(states)
    assert not any(lanes)
    assert [next(own, None) for own in escapes] == [None] * n_lanes
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
    assert (frequencies.sum(axis=1) == TOTAL).all()
    assert frequencies.min() == 1
    assert (frequencies[0] == TOTAL // 256).all()
    assert frequencies[1, 3] == frequencies[2, 255] == TOTAL - 255
    assert (frequencies[3] == TOTAL // 256).all()
    # where the minimum of 1 changes nothing, no frequency is off by one or more
    exact = np.arange(1.0, 257.0) / np.arange(1.0, 257.0).sum() * TOTAL
    assert np.abs(normalise_counts(exact[None])[0] - exact).max() < 1
    # valid frequencies stay as they are
    np.testing.assert_array_equal(normalise_counts(frequencies.astype(np.float64)), frequencies)


@pytest.mark.parametrize("least", [2, 32, 1 << 16])
def test_every_letter_has_at_least_so_much(least: int) -> None:
    rng = np.random.default_rng(2)
    weights = np.stack([rng.random(256) ** 50, np.eye(256)[3], rng.dirichlet(np.full(256, 0.02))])
    frequencies = normalise_counts(weights, least)
    assert (frequencies.sum(axis=1) == TOTAL).all()
    assert frequencies.min() == least
    for row, have in zip(weights, frequencies, strict=True):
        common = have > least + 1
        if common.any():  # those above are in proportion
            share = have[common] / row[common]
            assert np.abs(share / share.mean() - 1).max() < 1 / least
    for wrong in (0, -1, (1 << 16) + 1):
        with pytest.raises(ValueError, match="least"):
            normalise_counts(weights, wrong)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_normalise_counts_refuses(bad: float) -> None:
    weights = np.ones((2, 256))
    weights[1, 7] = bad
    for wrong in (weights, np.zeros((1, 256)), np.ones((1, 255)), np.ones(256)):
        with pytest.raises(ValueError, match="weights"):
            normalise_counts(wrong)


def test_table_set_checks() -> None:
    good = np.full((2, 256), TOTAL // 256, np.uint32)
    zero, big, off = good.copy(), good.astype(np.int64), good.copy()
    zero[1, :2] = 0, TOTAL // 128
    big[1, :2] = -TOTAL, TOTAL + TOTAL // 128
    off[1, 5] += 1
    for wrong in (zero, big, off, good.astype(np.float64), good[:, :255], good[0], good[:0]):
        with pytest.raises(ValueError, match=r"table|frequency"):
            TableSet(wrong)
    with pytest.raises(ValueError, match="2049 tables"):
        TableSet(np.full((MAX_TABLES + 1, 256), TOTAL // 256, np.uint32))
    tables = TableSet(good)
    good[0, :2] = 1, TOTAL // 128 - 1
    assert (tables.frequencies == TOTAL // 256).all()
    with pytest.raises(ValueError, match="read-only"):
        tables.frequencies[0, 0] = 1
    with pytest.raises(AttributeError):
        tables.digest = bytes(8)


def test_digest() -> None:
    assert TableSet(np.full((1, 256), TOTAL // 256, np.int64)).digest.hex() == "e0eb56e82db25e61"
    assert TableSet(np.full((2, 256), TOTAL // 256, np.uint32)).digest.hex() == "54379e9dece585c0"
    assert certain_tables().digest != LAPLACE.digest


def test_costs() -> None:
    """Code lengths in 1/2048 bit, from nothing to the 24 bits of a frequency of one."""
    costs = certain_tables().costs.reshape(4, ALPHABET)
    assert costs.dtype == np.uint16
    assert costs[0, 1] == 24 * 2048
    assert costs[0, 0] == round(-math.log2((TOTAL - 255) / TOTAL) * 2048)
    assert costs[3, 255] == costs[0, 0]


def test_constriction_has_exactly_our_frequencies() -> None:
    """All c[t][a] of docs/format.md: symbol a takes the empty coder to the state c[a]."""
    rng = np.random.default_rng(2)
    spiky = TableSet(normalise_counts(rng.dirichlet(np.full(256, 0.03), size=6)))
    for tables in (LAPLACE, certain_tables(), spiky):
        for t in range(len(tables)):
            cumulative = np.concatenate([[0], np.cumsum(tables.frequencies[t], dtype=np.int64)])
            for a in range(256):
                coder = constriction.stream.stack.AnsCoder()
                coder.encode_reverse(np.array([a], np.int32), tables.model(t))
                words = coder.get_compressed().tolist()
                assert words == ([int(cumulative[a])] if cumulative[a] else [])
                # the interval ends where the next symbol begins: its last quantile still decodes to a
                state = np.array([cumulative[a + 1] - 1], np.uint32)
                last = constriction.stream.stack.AnsCoder(state[state > 0])
                assert last.decode(tables.model(t), 1).tolist() == [a]


# lanes


@pytest.mark.parametrize("n", [0, 1, 2, 1023, 1024, 1025, 20_000])
def test_sizes(n: int) -> None:
    check_lanes(LAPLACE, random_steps(LAPLACE, [n]))


@pytest.mark.usefixtures("short_lanes")
def test_steps_share_lanes() -> None:
    sizes = [1, 20_000, 0, 8193, 8192, 3, 30_000, 1]
    payload = check_lanes(LAPLACE, random_steps(LAPLACE, sizes, spread=40))
    parts = unpack_lanes(payload, sum(sizes))
    assert parts.lane_bits == 10
    assert (parts.n_symbols, parts.n_words.size) == (sum(sizes), -(-30_000 // 1024))
    assert parts.n_escapes.sum() == parts.escapes.size > 100
    assert (parts.n_escapes > 0).all()


def test_no_steps() -> None:
    nothing = written(10, [0, 0, 0])
    assert encode_lanes(LAPLACE, []) == nothing
    assert decode_lanes(LAPLACE, nothing, []) == []
    empty = (np.empty(0, np.int16), np.empty(0, np.int16))
    uncoded = (np.full(5, NO_TABLE, np.int16), np.zeros(5, np.int16))
    assert check_lanes(LAPLACE, [empty, uncoded]) == nothing


def test_positions_without_a_table() -> None:
    """They cost nothing, whatever their symbols, and come back as 0."""
    steps = random_steps(LAPLACE, [3000, 40, 1], spread=50)
    plain = check_lanes(LAPLACE, steps)
    rng = np.random.default_rng(2)
    wide, expected = [], []
    for index, symbol in steps:
        where = np.sort(rng.permutation(2 * len(index))[: len(index)])
        wide_index = np.full(2 * len(index), NO_TABLE, np.int16)
        wide_symbol = rng.integers(-300, 300, 2 * len(index)).astype(np.int16)
        wide_index[where], wide_symbol[where] = index, symbol
        wide.append((wide_index, wide_symbol))
        expected.append(np.where(wide_index == NO_TABLE, 0, wide_symbol))
    assert encode_lanes(LAPLACE, wide) == plain
    decoded = decode_lanes(LAPLACE, plain, [index for index, _ in wide])
    for have, want in zip(decoded, expected, strict=True):
        np.testing.assert_array_equal(have, want)
    many = TableSet(np.full((MAX_TABLES, 256), TOTAL // 256, np.uint32))
    index = np.array([MAX_TABLES - 1, NO_TABLE, 0], np.int16)
    check_lanes(many, [(index, np.array([1, 0, 3], np.int16))])


@pytest.mark.usefixtures("short_lanes")
@pytest.mark.parametrize("seed", range(3))
def test_against_reference(seed: int) -> None:
    steps = random_steps(LAPLACE, [7, 6300, 2300, 4096, 1], seed=seed, spread=60)
    steps[1][0][::3] = NO_TABLE
    steps[1][1][::3] = 0
    expected = [symbol.tolist() for _, symbol in steps]
    payload = encode_lanes(LAPLACE, steps)
    assert unpack_lanes(payload, 1 << 20).n_words.size > 2
    assert reference_decode(LAPLACE, payload, [index for index, _ in steps]) == expected


@pytest.mark.parametrize(
    ("bits", "sizes", "lane_bits"),
    [
        (3.0, [1024] * 9, 10),
        (7.5, [65_536] * 9, 10),
        (3.0, [65_536] * 9, 12),
        (2.5, [16_384] * 9, 12),
        (3.0, [65_536], 15),
        (6.0, [4096] * 9, 11),
        (1.0, [65_536] * 9, 13),
        (0.1, [65_536] * 9, 16),
        (0.1, [200_000], 18),
        (3.0, [1025, 3], 11),
        (0.01, [1 << 20], 20),
    ],
)
def test_length_of_lanes(bits: float, sizes: list[int], lane_bits: int) -> None:
    """The shortest lanes of 8192 bytes, of which 8 are their cost, or one alone."""
    tables, steps = drawn_steps(bits, sizes)
    payload = encode_lanes(tables, steps)
    parts = unpack_lanes(payload, sum(sizes))
    ideal = sum(-np.log2(tables.frequencies[0, symbol + 127] / TOTAL).sum() for _, symbol in steps) / 8
    ideal += 2 * parts.escapes.size
    assert parts.lane_bits == lane_bits
    n_lanes = parts.n_words.size
    assert len(payload) - ideal < 8 * n_lanes + 12
    assert n_lanes == 1 or ideal / n_lanes > 8000
    assert lane_bits == 10 or sum(sizes) * bits / 8 / (-(-max(sizes) >> lane_bits - 1)) < 8600


def test_size_is_the_entropy() -> None:
    """The length is that of the frequencies, but for two words a lane and the counts in front."""
    steps = random_steps(LAPLACE, [30_000])
    index, symbol = steps[0]
    bits = -np.log2(LAPLACE.frequencies[index, symbol.astype(int) + 127] / TOTAL).sum()
    payload = encode_lanes(LAPLACE, steps)
    n_lanes = unpack_lanes(payload, 30_000).n_words.size
    assert bits / 8 <= len(payload) <= bits / 8 + n_lanes * 10 + 12


def test_all_escapes() -> None:
    rng = np.random.default_rng(4)
    symbol = rng.choice(np.array([-32768, -128, 128, 32641, 32767], np.int16), 9000)
    index = rng.integers(0, len(LAPLACE), 9000).astype(np.int16)
    check_lanes(LAPLACE, [(index, symbol), (index[:1], symbol[:1])])


def test_all_symbols() -> None:
    symbol = np.arange(-32768, 32768).astype(np.int16)
    check_lanes(LAPLACE, [((np.arange(65536) % len(LAPLACE)).astype(np.int16), symbol)])


def test_certain_symbols() -> None:
    """Where all is expected a symbol costs almost nothing, where nothing is 24 bits; both come back."""
    tables = certain_tables()
    expected = np.tile(np.array([-127, 0, 127], np.int16), 6000)
    index = np.tile(np.arange(3, dtype=np.int16), 6000)
    assert len(check_lanes(tables, [(index, expected)])) < 18_000 * 0.00003 / 8 + 3 * 8 + 12
    assert len(check_lanes(tables, [(index, np.full(18_000, 5, np.int16))])) > 18_000 * 3 - 1
    check_lanes(tables, [(np.full(9000, 3, np.int16), np.full(9000, 1000, np.int16))])
    # the first symbol of a table leaves the empty coder as it is: no words
    check_lanes(tables, [(np.zeros(50, np.int16), np.full(50, -127, np.int16))])


def test_many_tables() -> None:
    tables = TableSet(np.full((MAX_TABLES, 256), TOTAL // 256, np.uint32))
    index = np.arange(3 * MAX_TABLES)[::-1] % MAX_TABLES
    check_lanes(tables, [(index.astype(np.int16), (index % 255 - 127).astype(np.int16))])


def test_arrays_need_not_be_contiguous() -> None:
    (index, symbol), *_ = random_steps(LAPLACE, [3000], spread=80)
    payload = check_lanes(LAPLACE, [(index[::-3], symbol[::-3])])
    assert payload == encode_lanes(LAPLACE, [(index[::-3].copy(), symbol[::-3].copy())])


def test_callers_faults() -> None:
    index, symbol = np.zeros(3, np.int16), np.zeros(3, np.int16)
    encoder = LaneEncoder(LAPLACE)
    decoder = LaneDecoder(LAPLACE, encode_lanes(LAPLACE, [(index, symbol)]), 3)
    tables = (len(LAPLACE), NO_TABLE - 1, NO_TABLE + 1, -1, -32768, 32767)
    wrong_indices = [
        index[None],
        index.astype(np.int32),
        index.astype(np.uint16),
        *(np.array([0, NO_TABLE, table], np.int16) for table in tables),
    ]
    for wrong in wrong_indices:
        with pytest.raises(ValueError, match=r"ind|table"):
            encoder.put(wrong, symbol.reshape(wrong.shape))
        with pytest.raises(ValueError, match=r"ind|table"):
            decoder.get(wrong)
    for wrong_symbol in (symbol[:2], symbol.astype(np.float32), symbol.astype(np.int32)):
        with pytest.raises(ValueError, match="symbols"):
            encoder.put(index, wrong_symbol)
    assert decoder.get(index).tolist() == [0, 0, 0]
    assert encoder.finish() == written(10, [0, 0, 0])


GOLDEN = "0a0801020203c800d4fe9b00000678d15031682c0100"
GOLDEN_CODE = """
import sys
import numpy as np
from vbc.bitstream.ans import LaneEncoder
from vbc.bitstream.tables import TableSet, normalise_counts
weights = np.stack([1.0 / (1 + np.abs(np.arange(256) - 127)) ** k for k in (1, 2, 4)])
encoder = LaneEncoder(TableSet(normalise_counts(weights)))
index = np.array([2, 0, 1, 0, 2048, 2, 1, 1], np.int16)
encoder.put(index, np.array([0, -5, 3, 200, 9, 1, -127, 127], np.int16))
encoder.put(np.array([1], np.int16), np.array([-300], np.int16))
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
    steps = random_steps(LAPLACE, [20_000, 9_000], seed=6, spread=30)
    indices = [index for index, _ in steps]
    payload = check_lanes(LAPLACE, steps)
    rng = np.random.default_rng(7)
    for n_bytes in rng.integers(0, len(payload), 40).tolist():
        assert damaged_outcome(payload[:n_bytes], indices) == "Corrupt"
    for flipped in bit_flips(payload, [*range(120), *rng.integers(0, 8 * len(payload), 40).tolist()]):
        damaged_outcome(flipped, indices)


def test_another_length_of_lanes() -> None:
    """The counts fit as well, but the symbols are not where they are looked for."""
    steps = random_steps(LAPLACE, [1500, 700], seed=6)
    payload = bytearray(check_lanes(LAPLACE, steps))
    assert payload[0] == 11
    for lane_bits in set(range(256)) - {11}:
        payload[0] = lane_bits
        outcome = damaged_outcome(bytes(payload), [index for index, _ in steps])
        # a step of one lane is in one lane whatever its length
        assert (outcome == "symbols") == (11 < lane_bits <= 20)


def test_random_payloads() -> None:
    rng = np.random.default_rng(8)
    indices = [np.zeros(5, np.int16), np.zeros(9000, np.int16)]
    for n_bytes in range(300):
        damaged_outcome(rng.bytes(n_bytes), indices)
        damaged_outcome(written(10, [5, 1, 0, n_bytes // 4], rng.bytes(n_bytes)), indices[:1])


@pytest.mark.parametrize("lane_bits", [0, 7, 21, 255])
def test_lengths_of_lanes_refused(lane_bits: int) -> None:
    check_format_error(lambda: unpack_lanes(written(lane_bits, [0, 0, 0]), 0), Corrupt)
    check_format_error(lambda: unpack_lanes(b"", 0), Corrupt)


@pytest.mark.parametrize("lane_bits", [8, 20])
def test_lengths_of_lanes_accepted(lane_bits: int) -> None:
    """A reader takes shorter and longer lanes than our encoder writes."""
    assert unpack_lanes(written(lane_bits, [0, 0, 0]), 0).lane_bits == lane_bits
    n = 1 << lane_bits
    lanes = [0, 0]
    parts = unpack_lanes(written(lane_bits, [n + 1, 2, 0, *lanes]), n + 1)
    assert parts.n_words.tolist() == lanes
    check_format_error(lambda: unpack_lanes(written(lane_bits, [n, 2, 0, *lanes]), n), Corrupt)


@pytest.mark.parametrize(
    "counts",
    [
        [1, 0, 0],  # symbols without a lane
        [0, 1, 0, 0],  # a lane without symbols
        [1024, 2, 0, 0, 0],  # more lanes than chunks
        [1, 1, 2, 2, 10],  # more escapes than symbols: the tail would hold two
        [2, 1, 2, 1, 10],  # a lane's escapes are not all
        [2, 1, 1, 2, 10],  # and more than all
        [2**32 - 1, 1, 2**32 - 1, 2**32 - 1, 0],  # more escapes than bytes
        [2**32 - 1, 2**22, 0],  # more lanes than bytes
        [2**32 - 1, 1, 0, 2**32 - 1],  # more words than bytes
    ],
)
def test_counts_that_lie(counts: list[int]) -> None:
    for tail in (b"", bytes([200, 0] * 2 + [1] * 40), bytes(40)):
        check_format_error(lambda t=tail: unpack_lanes(written(10, counts, t), 2**32 - 1), Corrupt)


def test_symbols_are_not_believed() -> None:
    """More of them than a packet can have are refused: a lane without words would give any number."""
    lanes = 1 << 19
    bomb = written(8, [lanes << 8, lanes, 0], bytes(lanes))
    check_format_error(lambda: unpack_lanes(bomb, (lanes << 8) - 1), Corrupt)
    assert unpack_lanes(bomb, lanes << 8).n_symbols == lanes << 8
    (index, symbol), *_ = random_steps(LAPLACE, [50])
    payload = encode_lanes(LAPLACE, [(index, symbol)])
    LaneDecoder(LAPLACE, payload, 50)
    check_format_error(lambda: LaneDecoder(LAPLACE, payload, 49), Corrupt)


def test_lanes_that_no_step_uses_cost_nothing() -> None:
    """Half a megabyte of zero lanes, where that many are allowed: no coder is made for them."""
    lanes = 1 << 19
    bomb = written(8, [lanes << 8, lanes, 0], bytes(lanes))
    decoders = iter([LaneDecoder(LAPLACE, bomb, lanes << 8) for _ in range(5)])

    def decode() -> None:
        decoder = next(decoders)
        assert decoder.get(np.zeros(600, np.int16)).tolist() == [-127] * 600
        check_format_error(decoder.finish, Corrupt)

    check_cheap(decode, 0.1, 1 << 20)


def test_steps_that_do_not_fit() -> None:
    steps = random_steps(LAPLACE, [100, 100], spread=50)
    payload = encode_lanes(LAPLACE, steps)
    indices = [index for index, _ in steps]
    for wrong in ([], indices[:1], [*indices, indices[0][:1]], [np.zeros(9000, np.int16)]):
        check_format_error(lambda w=wrong: decode_lanes(LAPLACE, payload, w), Corrupt)
    # other tables than the encoder's: other symbols, other escapes, and a state that does not come home
    check_format_error(lambda: decode_lanes(LAPLACE, payload, indices[::-1]), Corrupt)
    # refused at the step, not only at the end
    for short in (payload, written(10, [9000, 1, 0, 0])):
        decoder = LaneDecoder(LAPLACE, short, 9000)
        check_format_error(lambda d=decoder: d.get(np.zeros(1025, np.int16)), Corrupt)


def test_escapes_must_match() -> None:
    """Escape values without a symbol, and symbols without an escape value."""
    index, symbol = np.zeros(2, np.int16), np.array([3, 500], np.int16)
    none, one = (encode_lanes(LAPLACE, [(index, s)]) for s in (symbol[:1].repeat(2), symbol))
    # k, symbols, lanes, escapes, (those of the lane,) words of the lane, (the value,) words
    assert (none[:4], one[:5]) == (b"\x0a\2\1\0", b"\x0a\2\1\1\1")
    value = (500).to_bytes(2, "little")
    assert one[6:8] == value
    for wrong in (b"\x0a\2\1\1\1" + none[4:5] + value + none[5:], b"\x0a\2\1\0" + one[5:6] + one[8:]):
        check_format_error(lambda w=wrong: decode_lanes(LAPLACE, w, [index]), Corrupt)


@pytest.mark.usefixtures("short_lanes")
def test_escapes_stay_in_their_lanes() -> None:
    """As many escapes in all, but one lane has too few: refused at the step."""
    tables, steps = drawn_steps(3, [2048] * 9)
    for _, symbols in steps:
        symbols[5], symbols[1500] = 1000, -1000
    payload = check_lanes(tables, steps)
    parts = unpack_lanes(payload, 1 << 20)
    assert parts.n_escapes.tolist() == [9, 9]
    assert parts.escapes.tolist() == [1000] * 9 + [-1000] * 9
    swapped = payload.replace(pack_varints([18, 9, 9]), pack_varints([18, 8, 10]), 1)
    assert swapped != payload
    decoder = LaneDecoder(tables, swapped, 1 << 20)
    for index, _ in steps[:8]:
        decoder.get(index)
    check_format_error(lambda: decoder.get(steps[8][0]), Corrupt)


def test_escape_values_are_escapes() -> None:
    payload = bytearray(encode_lanes(LAPLACE, [(np.zeros(1, np.int16), np.array([500], np.int16))]))
    assert payload[:6] == b"\x0a\1\1\1\1\1"
    payload[6:8] = (127).to_bytes(2, "little")
    check_format_error(lambda: LaneDecoder(LAPLACE, bytes(payload), 1), Corrupt)


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
    assert unpack_varints(memoryview(packed), len(values) - 2, 2) == (values[2:], len(packed))
    assert packed.startswith(bytes.fromhex("00 01 7f 8001 ff7f 808001"))
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match="outside"):
            pack_varints([wrong])


@pytest.mark.parametrize("bits", [8, 31, 32, 62, 63])
def test_long_varints(bits: int) -> None:
    largest = pack_varints([2**bits - 1], bits)
    assert unpack_varint(largest + b"\1", 0, bits) == (2**bits - 1, len(largest))
    check_format_error(lambda: unpack_varint(pack_varints([2**bits], bits + 1), 0, bits), Corrupt)
    check_format_error(lambda: unpack_varint(b"\xff" * 1000 + b"\1", 0, bits), Corrupt)


@pytest.mark.parametrize(
    "text", ["", "80", "8000", "818000", "ffffffff1f", "8080808010", "ffffffffff", "8080808080", "ff" * 40]
)
def test_varints_refused(text: str) -> None:
    check_format_error(lambda: unpack_varints(memoryview(bytes.fromhex(text)), 1), Corrupt)
