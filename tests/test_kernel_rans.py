"""The ANS lanes: bit for bit what constriction encoded or, from damaged words, decodes."""

import constriction
import numpy as np
import pytest
import torch
from torch import Tensor

from vbc.kernels.rans import Lanes, decode_lanes, decode_lanes_reference, open_lanes

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
CUMULATIVE = torch.from_numpy(np.concatenate([np.zeros((5, 1), np.int64), TABLES.cumsum(1)], 1)).to(
    torch.int32
)

Steps = list[list[list[tuple[int, np.ndarray]]]]
"""Per step and lane the runs: table and symbols."""


def make_steps(n_steps: int, n_lanes: int, longest: int) -> Steps:
    rng = np.random.default_rng(n_steps * 100 + n_lanes)
    return [
        [
            [
                (
                    int(t),
                    rng.choice(N_SYMBOLS, int(rng.integers(0, longest)), p=TABLES[t] / 65536).astype(
                        np.int32
                    ),
                )
                for t in rng.integers(0, 5, lane % 4)
            ]
            for lane in range(n_lanes)
        ]
        for _ in range(n_steps)
    ]


def encode(steps: Steps) -> list[np.ndarray]:
    """Words of each lane: one coder for all steps, last symbols first."""
    models = [constriction.stream.model.Categorical(f / 65536.0, perfect=True) for f in TABLES]
    lanes = []
    for lane in range(len(steps[0])):
        coder = constriction.stream.stack.AnsCoder()
        for step in reversed(steps):
            for table, symbols in reversed(step[lane]):
                coder.encode_reverse(symbols, models[table])
        lanes.append(coder.get_compressed())
    return lanes


def run_lists(step: list[list[tuple[int, np.ndarray]]]) -> tuple[Tensor, Tensor]:
    runs = [(table, len(symbols)) for lane in step for table, symbols in lane]
    starts = np.cumsum([0] + [len(lane) for lane in step])
    return torch.tensor(runs, dtype=torch.int32).view(-1, 2), torch.from_numpy(starts).to(torch.int32)


def opened(words: list[np.ndarray], device: str) -> Lanes:
    lengths = torch.tensor([len(w) for w in words])
    flat = torch.from_numpy(np.concatenate(words).astype(np.uint32).view(np.int32))
    return open_lanes(flat.to(device), lengths.to(device))


@pytest.mark.parametrize(("n_steps", "n_lanes", "longest"), [(1, 1, 5), (1, 4, 60), (3, 9, 30)])
def test_decodes_what_constriction_encoded(n_steps: int, n_lanes: int, longest: int, device: str) -> None:
    steps = make_steps(n_steps, n_lanes, longest)
    lanes, check = opened(encode(steps), device), opened(encode(steps), "cpu")
    for step in steps:
        runs, starts = run_lists(step)
        want = np.concatenate([np.zeros(0), *(symbols for lane in step for _, symbols in lane)])
        assert decode_lanes_reference(check, runs, starts, CUMULATIVE).tolist() == want.tolist()
        have = decode_lanes(lanes, *(t.to(device) for t in (runs, starts, CUMULATIVE)))
        assert have.dtype == torch.int16
        assert have.cpu().tolist() == want.tolist()
        assert torch.equal(lanes.state.cpu(), check.state)
        assert torch.equal(lanes.remaining.cpu(), check.remaining)
    assert lanes.finished().all()


def test_unfinished_lanes_are_seen(device: str) -> None:
    steps: Steps = [[[(3, np.arange(40, dtype=np.int32))]]]
    lanes = opened(encode(steps), device)
    runs, starts = torch.tensor([[3, 39]], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    decode_lanes(lanes, *(t.to(device) for t in (runs, starts, CUMULATIVE)))
    assert not lanes.finished().any()


def test_damaged_words_decode_alike(device: str) -> None:
    """Kernel, reference and constriction read the same symbols from noise, and past its end."""
    rng = np.random.default_rng(3)
    words = [rng.integers(1, 2**32, n, dtype=np.uint32) for n in (1, 2, 3, 12)] + [
        np.full(4, 2**32 - 1, np.uint32)
    ]
    runs = torch.tensor([[t, 12] for _ in words for t in (0, 1, 3)], dtype=torch.int32)
    starts = torch.arange(0, 3 * len(words) + 1, 3, dtype=torch.int32)
    lanes, check = opened(words, device), opened(words, "cpu")
    want = decode_lanes_reference(check, runs, starts, CUMULATIVE)
    assert torch.equal(decode_lanes(lanes, *(t.to(device) for t in (runs, starts, CUMULATIVE))).cpu(), want)
    assert torch.equal(lanes.state.cpu(), check.state)
    models = [constriction.stream.model.Categorical(f / 65536.0, perfect=True) for f in TABLES]
    theirs = []
    for w in words:
        coder = constriction.stream.stack.AnsCoder(w)
        theirs += [coder.decode(models[t], 12) for t in (0, 1, 3)]
    assert want.tolist() == np.concatenate(theirs).tolist()


def test_symbols_without_frequency_are_never_drawn(device: str) -> None:
    """Equal bounds belong to no symbol; the search must not stop at one."""
    c = torch.tensor([[0, 0, 0, 1000, 1000, 65535, 65535, 65536, 65536]], dtype=torch.int32)
    words = [np.random.default_rng(5).integers(1, 2**32, 30, dtype=np.uint32)]
    runs, starts = torch.tensor([[0, 100]], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    want = decode_lanes_reference(opened(words, "cpu"), runs, starts, c)
    have = decode_lanes(opened(words, device), *(t.to(device) for t in (runs, starts, c)))
    assert torch.equal(have.cpu(), want)
    assert set(want.tolist()) <= {2, 4, 6}


@pytest.mark.parametrize(
    ("runs", "starts", "table"),
    [
        ([[5, 1]], [0, 1], None),
        ([[-1, 1]], [0, 1], None),
        ([[0, -1]], [0, 1], None),
        ([[0, 1]], [0, 2], None),
        ([[0, 1]], [1, 1], None),
        ([[0, 1]], [0, 1], [[0, 5, 4, 65536]]),
        ([[0, 1]], [0, 1], [[0, 65535]]),
    ],
)
def test_wrong_run_lists(runs: list[list[int]], starts: list[int], table: list[list[int]] | None) -> None:
    lanes = opened([np.array([5], np.uint32)], "cpu")
    cumulative = CUMULATIVE if table is None else torch.tensor(table, dtype=torch.int32)
    with pytest.raises(ValueError, match="must"):
        decode_lanes(
            lanes, torch.tensor(runs, dtype=torch.int32), torch.tensor(starts, dtype=torch.int32), cumulative
        )


def test_wrong_lengths() -> None:
    with pytest.raises(ValueError, match="add up"):
        open_lanes(torch.zeros(3, dtype=torch.int32), torch.tensor([1, 1]))
