"""The ANS lanes: bit for bit what constriction encoded or, from damaged words, decodes."""

import constriction
import numpy as np
import pytest
import torch
from torch import Tensor

from vbc.kernels.rans import Lanes, cumulative_tables, decode_step, decode_step_reference, open_lanes

N_SYMBOLS = 256


def frequency_tables() -> np.ndarray:
    """Five tables of total 2^16: spread, peaked, two symbols, all the same, one of nearly everything."""
    rng = np.random.default_rng(7)
    rows = []
    for weights in (
        rng.random(N_SYMBOLS),
        np.exp(-np.abs(np.arange(N_SYMBOLS) - 127.0)),
        np.eye(N_SYMBOLS)[3] + np.eye(N_SYMBOLS)[200],
        np.ones(N_SYMBOLS),
        np.eye(N_SYMBOLS)[255],
    ):
        f = np.maximum(1, np.floor(weights / weights.sum() * (65536 - N_SYMBOLS))).astype(np.int64)
        f[f.argmax()] += 65536 - f.sum()
        rows.append(f)
    return np.stack(rows)


TABLES = frequency_tables()
CUMULATIVE = cumulative_tables(torch.from_numpy(TABLES))
MODELS = [constriction.stream.model.Categorical(f / 65536.0, perfect=True) for f in TABLES]

Steps = list[tuple[np.ndarray, np.ndarray]]
"""Per step the sorted table and the symbol of each position."""


def make_steps(sizes: list[int]) -> Steps:
    rng = np.random.default_rng(sum(sizes))
    steps = []
    for n in sizes:
        tables = np.sort(rng.integers(0, len(TABLES), n)).astype(np.int16)
        symbols = [rng.choice(N_SYMBOLS, p=TABLES[t] / 65536) for t in tables]
        steps.append((tables, np.array(symbols, np.int32).reshape(n)))
    return steps


def encode(steps: Steps, chunk: int) -> list[np.ndarray]:
    """Words of each lane: one coder for all steps, last symbols first."""
    n_lanes = max(-(-len(tables) // chunk) for tables, _ in steps)
    lanes = []
    for lane in range(n_lanes):
        coder = constriction.stream.stack.AnsCoder()
        part = slice(lane * chunk, (lane + 1) * chunk)
        for tables, symbols in reversed(steps):
            for t in range(len(TABLES) - 1, -1, -1):
                coder.encode_reverse(symbols[part][tables[part] == t], MODELS[t])
        lanes.append(coder.get_compressed())
    return lanes


def opened(words: list[np.ndarray], device: str) -> Lanes:
    lengths = torch.tensor([len(w) for w in words])
    flat = torch.from_numpy(np.concatenate(words).astype(np.uint32).view(np.int32))
    return open_lanes(flat, lengths).to(device)


def decode(
    lanes: Lanes, tables: np.ndarray, chunk: int, count: int | None = None, cumulative: Tensor = CUMULATIVE
) -> Tensor:
    """The public function, on the device of the lanes; the result on the CPU."""
    device = lanes.words.device
    n = torch.tensor(len(tables) if count is None else count, device=device)
    index = torch.from_numpy(tables).to(device)
    return decode_step(lanes, index, n, cumulative.to(device), chunk).cpu()


def reference(
    lanes: Lanes, tables: np.ndarray, chunk: int, count: int | None = None, cumulative: Tensor = CUMULATIVE
) -> Tensor:
    n = torch.tensor(len(tables) if count is None else count)
    return decode_step_reference(lanes, torch.from_numpy(tables), n, cumulative, chunk)


def check_same(a: Lanes, b: Lanes) -> None:
    assert torch.equal(a.state.cpu(), b.state.cpu())
    assert torch.equal(a.remaining.cpu(), b.remaining.cpu())


@pytest.mark.parametrize(
    ("sizes", "chunk"), [([5], 8), ([70], 20), ([64, 1, 0, 33, 64], 16), ([16, 40, 7, 90], 33)]
)
def test_decodes_what_constriction_encoded(sizes: list[int], chunk: int, device: str) -> None:
    steps = make_steps(sizes)
    words = encode(steps, chunk)
    lanes, check = opened(words, device), opened(words, "cpu")
    for tables, symbols in steps:
        assert reference(check, tables, chunk).tolist() == symbols.tolist()
        have = decode(lanes, tables, chunk)
        assert have.dtype == torch.int16
        assert have.tolist() == symbols.tolist()
        check_same(lanes, check)
    assert lanes.finished().all()


def test_positions_behind_the_count_are_not_coded(device: str) -> None:
    """Also where their tables are none: the tail of a sorted step may hold anything."""
    steps = make_steps([50])
    words = encode(steps, 20)
    lanes, check = opened(words, device), opened(words, "cpu")
    tables = np.concatenate((steps[0][0], np.full(30, 1024, np.int16)))
    want = [*steps[0][1].tolist(), *[-1] * 30]
    assert decode(lanes, tables, 20, 50).tolist() == want
    assert reference(check, tables, 20, 50).tolist() == want
    assert lanes.finished().all()
    check_same(lanes, check)


@pytest.mark.parametrize("count", [-3, 0, 10**9, 2**40])
def test_counts_beyond_the_step_are_limited(count: int, device: str) -> None:
    words = encode(make_steps([40]), 20)
    lanes, check = opened(words, device), opened(words, "cpu")
    tables = np.zeros(25, np.int16)
    want = reference(check, tables, 20, count)
    assert torch.equal(decode(lanes, tables, 20, count), want)
    assert want.tolist() == [-1] * 25 or (want >= 0).all()
    check_same(lanes, check)


def test_tables_and_lanes_that_are_not_there(device: str) -> None:
    """Neither is read: a table is the nearest there is, a position without a lane stays empty."""
    words = encode(make_steps([30]), 30)
    lanes, check = opened(words, device), opened(words, "cpu")
    tables = np.array([-300, -1, 0, 4, 5, 1024, 32767, *[2] * 40], np.int16)
    want = reference(check, tables, 30)
    assert torch.equal(want, reference(opened(words, "cpu"), tables.clip(0, 4), 30))
    assert torch.equal(decode(lanes, tables, 30), want)
    assert (want[:30] >= 0).all()
    assert (want[30:] == -1).all()
    check_same(lanes, check)


def test_unfinished_lanes_are_seen(device: str) -> None:
    steps: Steps = [(np.full(40, 3, np.int16), np.arange(40, dtype=np.int32))]
    lanes = opened(encode(steps, 64), device)
    decode(lanes, steps[0][0][:39], 64)
    assert not lanes.finished().any()
    decode(lanes, steps[0][0][:1], 64)
    assert lanes.finished().all()


def test_damaged_words_decode_alike(device: str) -> None:
    """Kernel, reference and constriction read the same symbols from noise, and past its end."""
    rng = np.random.default_rng(3)
    words = [rng.integers(1, 2**32, n, dtype=np.uint32) for n in (1, 2, 3, 12)] + [
        np.full(4, 2**32 - 1, np.uint32)
    ]
    tables = np.tile(np.repeat(np.array([0, 1, 3], np.int16), 12), len(words))
    lanes, check = opened(words, device), opened(words, "cpu")
    want = reference(check, tables, 36)
    assert torch.equal(decode(lanes, tables, 36), want)
    check_same(lanes, check)
    theirs = []
    for w in words:
        coder = constriction.stream.stack.AnsCoder(w)
        theirs += [coder.decode(MODELS[t], 12) for t in (0, 1, 3)]
    assert want.tolist() == np.concatenate(theirs).tolist()


def test_nothing_is_read_outside_a_lane(device: str) -> None:
    """What stands beside a lane's words makes no difference, however far the lane is read past its end."""
    tables = np.full(200, 3, np.int16)
    words = np.array([7, 1], np.uint32)
    pictures = []
    for beside in (0, 2**32 - 1):
        flat = torch.from_numpy(np.array([beside, beside, *words, beside], np.uint32).view(np.int32))
        inner = open_lanes(flat, torch.tensor([2, 2, 1])).to(device)
        lane = Lanes(inner.words, inner.offset[1:2], inner.remaining[1:2], inner.state[1:2])
        pictures.append(decode(lane, tables, 200))
    assert torch.equal(*pictures)


def test_symbols_without_frequency_are_never_drawn(device: str) -> None:
    """Equal bounds belong to no symbol; the search must not stop at one."""
    c = cumulative_tables(torch.tensor([[0, 0, 1000, 0, 64535, 0, 1, 0]]))
    words = [np.random.default_rng(5).integers(1, 2**32, 30, dtype=np.uint32)]
    tables = np.zeros(100, np.int16)
    want = reference(opened(words, "cpu"), tables, 100, cumulative=c)
    assert torch.equal(decode(opened(words, device), tables, 100, cumulative=c), want)
    assert set(want.tolist()) <= {2, 4, 6}


@pytest.mark.parametrize(
    "frequencies", [[[0, 5, 65530]], [[65537, -1]], [[65536, 0], [65535, 0]], [[65536.0]]]
)
def test_wrong_frequencies(frequencies: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="must"):
        cumulative_tables(torch.tensor(frequencies))


def test_wrong_arguments() -> None:
    words = [np.array([5], np.uint32)]
    tables = np.zeros(1, np.int16)
    for bad in (
        lambda: decode(opened(words, "cpu"), tables.astype(np.int32), 8),
        lambda: decode(opened(words, "cpu"), tables, 0),
        lambda: decode(opened(words, "cpu"), tables[None], 8),
        lambda: decode(opened(words, "cpu"), tables, 8, cumulative=CUMULATIVE[:, :1]),
        lambda: decode(opened(words, "cpu"), tables, 8, cumulative=CUMULATIVE.long()),
    ):
        with pytest.raises(ValueError, match="must"):
            bad()


def test_wrong_lengths() -> None:
    with pytest.raises(ValueError, match="add up"):
        open_lanes(torch.zeros(3, dtype=torch.int32), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="add up"):
        open_lanes(torch.zeros(1, dtype=torch.int32), torch.tensor([2, -1]))
