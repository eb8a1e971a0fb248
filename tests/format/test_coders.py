"""Coders: all of one mind about a batch of groups, on the host and on tensors, sound or damaged."""

import itertools

import numpy as np
import pytest
import torch
from checks import bit_flips, check_format_error, laplace_tables
from torch import Tensor

from vbc.bitstream.ans import LaneEncoder, unpack_lanes
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.tables import ESCAPE, NO_TABLE, TableSet
from vbc.codec.entropy.coder import Counter, Discard, Means, PseudoRandom, Reader, Writer
from vbc.codec.entropy.tensor_coder import TensorReader, TensorWriter, device_tables

TABLES = laplace_tables([0.2, 0.7, 1.5, 3.0, 6.0, 12.0, 25.0, 60.0])
CUMULATIVE = device_tables(TABLES, torch.device("cpu"))
SIZES = [1, 2500, 0, 300, 1025, 3]
MAX_SYMBOLS = sum(SIZES)

Steps = list[tuple[Tensor, Tensor]]
"""Index and symbols of each step, int16 [N, n]."""


def random_steps(n_groups: int, sizes: list[int], seed: int = 0) -> Steps:
    """A quarter of the positions not coded; the groups differ in how many, and the last has no symbols."""
    rng = np.random.default_rng(seed)
    steps = []
    for n in sizes:
        index = rng.integers(0, len(TABLES), (n_groups, n)).astype(np.int16)
        symbols = np.clip(rng.laplace(0, 30, (n_groups, n)).round(), -32768, 32767).astype(np.int16)
        skipped = rng.random((n_groups, n)) < 0.25
        if n_groups > 2:
            skipped[-1] = True
        index[skipped], symbols[skipped] = NO_TABLE, 0
        steps.append((torch.from_numpy(index), torch.from_numpy(symbols)))
    return steps


def written(steps: Steps, n_groups: int, tables: TableSet = TABLES) -> list[bytes]:
    writer = Writer(tables, n_groups)
    for index, symbols in steps:
        assert torch.equal(writer.code(index, symbols), symbols)
    return writer.finish()


def readers(payloads: list[bytes], max_symbols: int = MAX_SYMBOLS) -> tuple[Reader, TensorReader]:
    return Reader(TABLES, payloads, max_symbols), TensorReader(CUMULATIVE, payloads, max_symbols)


@pytest.mark.parametrize("n_groups", [1, 2, 5])
def test_all_coders_agree(n_groups: int) -> None:
    steps = random_steps(n_groups, SIZES, n_groups)
    payloads = written(steps, n_groups)
    by_group = []
    for g in range(n_groups):
        lanes = LaneEncoder(TABLES)
        for index, symbols in steps:
            lanes.put(index[g].numpy(), symbols[g].numpy())
        by_group.append(lanes.finish())
    assert payloads == by_group
    tensor_writer = TensorWriter(TABLES, n_groups)
    for index, symbols in steps:
        assert torch.equal(tensor_writer.code(index, symbols), symbols)
    assert tensor_writer.finish() == payloads
    for reader in readers(payloads):
        for index, symbols in steps:
            have = reader.code(index, None)
            assert have.dtype == torch.int16
            assert torch.equal(have, symbols)
        verdict = reader.verdict()
        assert verdict.dtype == torch.bool
        assert verdict.tolist() == [True] * n_groups
        reader.finish()


@pytest.mark.usefixtures("short_lanes")
def test_payloads_of_different_lanes_in_one_batch() -> None:
    """Groups of many and of few bits: lanes of other lengths and numbers, decoded side by side."""
    rng = np.random.default_rng(1)
    index = torch.zeros((3, 9000), dtype=torch.int16)
    index[1] = 6
    index[2] = torch.from_numpy(rng.integers(0, 8, 9000).astype(np.int16))
    index[2, 4000:] = NO_TABLE
    symbols = torch.from_numpy(rng.laplace(0, 25, (3, 9000)).round().astype(np.int16))
    symbols[0] = 0
    symbols[2, 4000:] = 0
    payloads = written([(index, symbols)] * 5, 3)
    lanes = [unpack_lanes(p, 1 << 20) for p in payloads]
    assert [part.lane_bits for part in lanes] == [14, 10, 10]
    assert len({part.n_words.size for part in lanes}) == 3
    for reader in readers(payloads, 45_000):
        for _ in range(5):
            assert torch.equal(reader.code(index), symbols)
        reader.finish()


def test_no_steps_and_no_groups() -> None:
    for writer in (Writer(TABLES, 2), TensorWriter(TABLES, 2)):
        nothing = writer.finish()
        assert nothing == [b"\x0a\0\0\0"] * 2
    for reader in (*readers(nothing), *readers([])):
        assert reader.verdict().all()
        reader.finish()


def test_symbols_that_are_not_coded_are_0_everywhere() -> None:
    index = torch.tensor([[3, NO_TABLE, 0]], dtype=torch.int16)
    symbols = torch.tensor([[-400, 77, 5]], dtype=torch.int16)
    for coder in (Writer(TABLES, 1), TensorWriter(TABLES, 1), Counter(len(TABLES)), Discard()):
        assert coder.code(index, symbols).tolist() == [[-400, 0, 5]]
    assert symbols.tolist() == [[-400, 77, 5]]
    assert Means().code(index).tolist() == [[0, 0, 0]]
    assert PseudoRandom().code(index)[0, 1] == 0


def test_counter() -> None:
    steps = random_steps(3, SIZES)
    counter = Counter(len(TABLES))
    expected = np.zeros((len(TABLES), 256), np.int64)
    for index, symbols in steps:
        counter.code(index, symbols)
        for table, symbol in zip(index.flatten().tolist(), symbols.flatten().tolist(), strict=True):
            if table != NO_TABLE:
                expected[table, symbol + 127 if -127 <= symbol <= 127 else ESCAPE] += 1
    np.testing.assert_array_equal(counter.counts, expected)
    n_bytes = sum(len(p) for p in written(steps, 3))
    assert 0 < n_bytes - counter.bits(TABLES.frequencies) / 8 < 100


def test_pseudo_random() -> None:
    """Pinned, of the right range, and the same for every group however many there are."""
    index = torch.zeros((3, 5000), dtype=torch.int16)
    one, two = PseudoRandom(), PseudoRandom()
    first, second = one.code(index), one.code(index)
    assert first[0, :12].tolist() == [3, 1, 3, 0, -2, 1, -2, -2, 0, 2, -3, 1]
    assert torch.equal(first[0], first[1])
    assert torch.equal(two.code(index[:1]), first[:1])
    assert not torch.equal(first, second)
    counts = torch.bincount(first[0].long() + 3)
    assert counts.numel() == 7
    assert counts.min() > 600
    assert one.code(index[:, :1]).tolist() == [[1]] * 3


# damage


def outcome(reader: Reader | TensorReader, steps: Steps) -> str:
    """Symbols as the reader took them for sound, or Corrupt; any other exception goes through."""
    try:
        taken = [reader.code(index).tolist() for index, _ in steps]
        verdict = bool(reader.verdict().all())
        try:
            reader.finish()
        except Corrupt:
            assert not verdict
            raise
        assert verdict
    except Corrupt:
        return "Corrupt"
    return str(taken)


def test_flips_have_one_outcome_on_host_and_device() -> None:
    steps = random_steps(2, [70, 1, 20], seed=7)
    payloads = written(steps, 2)
    outcomes = []
    for flipped in bit_flips(payloads[0]):
        damaged = [flipped, payloads[1]]
        try:
            both = readers(damaged, 91)
        except Corrupt:
            continue
        host, device = (outcome(reader, steps) for reader in both)
        assert host == device
        outcomes.append(host)
    assert outcomes.count("Corrupt") > 0.8 * len(outcomes)
    assert len(set(outcomes)) > 1


@pytest.mark.parametrize(
    ("sizes", "asked"),
    [([40], [39]), ([40], [41]), ([40], []), ([40, 5], [5, 40]), ([40], [20, 20]), ([0], [1])],
)
def test_steps_that_do_not_fit(sizes: list[int], asked: list[int]) -> None:
    tables = np.random.default_rng(1).integers(0, 8, (2, 50)).astype(np.int16)
    index = torch.from_numpy(tables)
    payloads = written([(index[:, :n], torch.full((2, n), 9, dtype=torch.int16)) for n in sizes], 2)
    steps = [(index[:, :n], index[:, :n]) for n in asked]
    host, device = (outcome(reader, steps) for reader in readers(payloads, 100))
    assert host == device
    # the same number of symbols of one lane in other steps may come out, but as other symbols
    assert host == "Corrupt" or (sum(asked) == sum(sizes) and "[9, 9" not in host)


def test_a_step_of_more_lanes_than_there_are() -> None:
    one_lane = b"\x0a" + b"\x80\x20" + b"\1\0\0"
    assert unpack_lanes(one_lane, 4096).n_symbols == 4096
    index = torch.zeros((1, 4096), dtype=torch.int16)
    for reader in readers([one_lane], 4096):
        assert outcome(reader, [(index, index)]) == "Corrupt"


def test_verdict_names_the_group() -> None:
    """Too few escapes in one group, another wholly sound, a third one with a symbol left over."""
    index = torch.zeros((3, 20), dtype=torch.int16)
    symbols = torch.full((3, 20), 1, dtype=torch.int16)
    symbols[:, 4] = 900
    payloads = written([(index, symbols)], 3)
    # k, symbols, lanes, escapes, those of the lane, words of the lane, the value, the words
    assert payloads[0][:5] == b"\x0a\x14\1\1\1"
    without = payloads[0][:3] + b"\0" + payloads[0][5:6] + payloads[0][8:]
    more = payloads[2][:1] + b"\x15" + payloads[2][2:]
    reader = TensorReader(CUMULATIVE, [without, payloads[1], more], 21)
    taken = reader.code(index)
    assert taken[1].tolist() == symbols[1].tolist()
    assert reader.verdict().tolist() == [False, True, False]
    error = check_format_error(reader.finish, Corrupt)
    assert "[0, 2]" in str(error)
    host = Reader(TABLES, [payloads[1], more], 21)
    host.code(index[:2])
    assert host.verdict().tolist() == [True, False]
    check_format_error(host.finish, Corrupt)


def test_broken_payloads_are_refused_at_once() -> None:
    payload = written(random_steps(1, [50]), 1)[0]
    for broken, limit in ((payload[:-1], 50), (b"", 50), (b"\x07" + payload[1:], 50), (payload, 10)):
        for make in (
            lambda b=broken, n=limit: Reader(TABLES, [payload[:], b], n),
            lambda b=broken, n=limit: TensorReader(CUMULATIVE, [payload[:], b], n),
        ):
            check_format_error(make, Corrupt)


def test_callers_faults_reach_the_caller() -> None:
    """Also those that a thread of the writer finds."""
    index, symbols = (torch.zeros((2, 3), dtype=torch.int16) for _ in range(2))
    for wrong in (
        (index, symbols[:, :2]),
        (index[:1], symbols),
        (index + 500, symbols),
        (index.int(), symbols),
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"symbols|ind|table|size|argument"):
            written([wrong], 2)


def test_tables_on_a_device() -> None:
    assert CUMULATIVE.dtype == torch.int32
    rows = TABLES.frequencies.tolist()
    assert CUMULATIVE.tolist() == [list(itertools.accumulate(row, initial=0)) for row in rows]
