"""The ANS lanes: value for value what constriction encoded or, from damaged words, decodes."""

import constriction
import numpy as np
import pytest
import torch
from torch import Tensor

from vbc.kernels.rans import TOTAL, Lanes, cumulative_tables, decode_step, decode_step_reference, open_lanes

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
        f = np.maximum(1, np.floor(weights / weights.sum() * (TOTAL - N_SYMBOLS))).astype(np.int64)
        f[f.argmax()] += TOTAL - f.sum()
        rows.append(f)
    return np.stack(rows)


TABLES = frequency_tables()
CUMULATIVE = cumulative_tables(torch.from_numpy(TABLES))
MODELS = [constriction.stream.model.Categorical(f / float(TOTAL), perfect=True) for f in TABLES]

ESCAPE, MIDDLE = 255, 127

Group = list[tuple[np.ndarray, np.ndarray]]
"""Per step the sorted table and the letter (0..255) of each position of one group."""


def make_group(sizes: list[int], seed: int = 0) -> Group:
    rng = np.random.default_rng(sum(sizes) + seed)
    steps = []
    for n in sizes:
        tables = np.sort(rng.integers(0, len(TABLES), n)).astype(np.int16)
        letters = [rng.choice(N_SYMBOLS, p=TABLES[t] / TOTAL) for t in tables]
        steps.append((tables, np.array(letters, np.int32).reshape(n)))
    return steps


def values_of(group: Group, seed: int = 0) -> list[np.ndarray]:
    """The values that the letters stand for; every escape gets one of its own."""
    rng = np.random.default_rng(seed)
    return [
        np.where(letters == ESCAPE, rng.integers(-32768, 32768, len(letters)), letters - MIDDLE)
        for _, letters in group
    ]


def encode(group: Group, bits: int) -> list[np.ndarray]:
    """Words of each lane: one coder for all steps, last symbols first."""
    chunk = 1 << bits
    lanes = []
    for lane in range(max(-(-len(tables) // chunk) for tables, _ in group)):
        coder = constriction.stream.stack.AnsCoder()
        part = slice(lane * chunk, (lane + 1) * chunk)
        for tables, letters in reversed(group):
            for t in range(len(TABLES) - 1, -1, -1):
                coder.encode_reverse(letters[part][tables[part] == t], MODELS[t])
        lanes.append(coder.get_compressed())
    return lanes


def escapes_by_lane(group: Group, values: list[np.ndarray], bits: int, n_lanes: int) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in range(n_lanes)]
    for (_, letters), given in zip(group, values, strict=True):
        for i in np.flatnonzero(letters == ESCAPE).tolist():
            out[i >> bits].append(int(given[i]))
    return out


def opened(
    groups: list[list[np.ndarray]],
    bits: list[int],
    device: str,
    escapes: list[list[list[int]]] | None = None,
) -> Lanes:
    """Lanes from the words and the escapes of each lane of each group."""
    words = [lane for group in groups for lane in group]
    lists = [[] for _ in words] if escapes is None else [lane for group in escapes for lane in group]
    return open_lanes(
        torch.from_numpy(np.concatenate([np.empty(0, np.uint32), *words]).view(np.int32)),
        torch.tensor([len(w) for w in words], dtype=torch.int64),
        torch.tensor([v for lane in lists for v in lane], dtype=torch.int16),
        torch.tensor([len(lane) for lane in lists], dtype=torch.int64),
        torch.tensor([len(group) for group in groups], dtype=torch.int64),
        torch.tensor(bits, dtype=torch.int64),
    ).to(device)


def decode(
    lanes: Lanes,
    tables: np.ndarray,
    count: list[int] | None = None,
    order: np.ndarray | None = None,
    cumulative: Tensor = CUMULATIVE,
) -> Tensor:
    """The public function on [N, n], on the device of the lanes; the result on the CPU."""
    device = lanes.words.device
    args = [torch.from_numpy(x).to(device) for x in step(tables, count, order)]
    return decode_step(lanes, *args, cumulative.to(device)).cpu()


def reference(
    lanes: Lanes,
    tables: np.ndarray,
    count: list[int] | None = None,
    order: np.ndarray | None = None,
    cumulative: Tensor = CUMULATIVE,
) -> Tensor:
    args = [torch.from_numpy(x) for x in step(tables, count, order)]
    return decode_step_reference(lanes, *args, cumulative)


def step(tables: np.ndarray, count: list[int] | None, order: np.ndarray | None) -> list[np.ndarray]:
    """By default all positions are coded, and belong where they are."""
    n_groups, n = tables.shape
    counts = np.array([n] * n_groups if count is None else count, np.int64)
    return [tables, np.tile(np.arange(n), (n_groups, 1)) if order is None else order, counts]


def check_same(a: Lanes, b: Lanes) -> None:
    for one, other in zip(vars(a).values(), vars(b).values(), strict=True):
        assert torch.equal(one.cpu(), other.cpu())


@pytest.mark.parametrize(
    ("sizes", "bits"), [([5], 3), ([70], 4), ([64, 1, 0, 33, 64], 4), ([16, 40, 7, 90], 5), ([9, 60], 0)]
)
def test_decodes_what_constriction_encoded(sizes: list[int], bits: int, device: str) -> None:
    group = make_group(sizes)
    values = values_of(group)
    words = encode(group, bits)
    escapes = escapes_by_lane(group, values, bits, len(words))
    assert any(escapes) == any((letters == ESCAPE).any() for _, letters in group)
    lanes, check = (opened([words], [bits], d, [escapes]) for d in (device, "cpu"))
    for (tables, _), want in zip(group, values, strict=True):
        assert reference(check, tables[None]).tolist() == [want.tolist()]
        have = decode(lanes, tables[None])
        assert have.dtype == torch.int16
        assert have.tolist() == [want.tolist()]
        check_same(lanes, check)
    assert lanes.finished().all()


def test_groups_side_by_side(device: str) -> None:
    """Groups of other numbers of symbols, other lengths of lanes, other orders; one has no lane."""
    groups = [make_group([50, 20], 1), make_group([31, 0], 2), make_group([0, 0], 3), make_group([7, 45], 4)]
    bits = [4, 5, 8, 3]
    values = [values_of(group, g) for g, group in enumerate(groups)]
    words = [encode(group, b) for group, b in zip(groups, bits, strict=True)]
    parts = zip(groups, values, bits, words, strict=True)
    escapes = [escapes_by_lane(group, given, b, len(w)) for group, given, b, w in parts]
    lanes, check = (opened(words, bits, d, escapes) for d in (device, "cpu"))
    rng = np.random.default_rng(5)
    for s, n in enumerate((50, 45)):
        tables = np.full((4, n), 1024, np.int16)
        want = np.zeros((4, n), np.int64)
        order = np.stack([rng.permutation(n) for _ in groups])
        counts = [len(group[s][0]) for group in groups]
        for g, count in enumerate(counts):
            tables[g, :count] = groups[g][s][0]
            want[g, order[g, :count]] = values[g][s]
        assert reference(check, tables, counts, order).tolist() == want.tolist()
        assert decode(lanes, tables, counts, order).tolist() == want.tolist()
        check_same(lanes, check)
    assert lanes.finished().all()
    assert lanes.group.tolist() == [g for g, w in enumerate(words) for _ in w]


def test_positions_behind_the_count_are_not_coded(device: str) -> None:
    """Also where their tables are none: the tail of a sorted step may hold anything."""
    group = make_group([50])
    words = [encode(group, 4)]
    escapes = [escapes_by_lane(group, values_of(group), 4, len(words[0]))]
    lanes, check = (opened(words, [4], d, escapes) for d in (device, "cpu"))
    tables = np.concatenate((group[0][0], np.full(30, 1024, np.int16)))[None]
    want = [[*values_of(group)[0].tolist(), *[0] * 30]]
    assert decode(lanes, tables, [50]).tolist() == want
    assert reference(check, tables, [50]).tolist() == want
    assert lanes.finished().all()
    check_same(lanes, check)


@pytest.mark.parametrize("count", [-3, 0, 10**9, 2**40])
def test_counts_beyond_the_step_are_limited(count: int, device: str) -> None:
    words = [encode(make_group([40]), 4)]
    lanes, check = opened(words, [4], device), opened(words, [4], "cpu")
    tables = np.full((1, 25), 2, np.int16)
    want = reference(check, tables, [count])
    assert torch.equal(decode(lanes, tables, [count]), want)
    assert check.decoded.sum() == (0 if count < 1 else 25)
    check_same(lanes, check)


def test_tables_and_lanes_that_are_not_there(device: str) -> None:
    """Neither is read: a table is the nearest there is, a position without a lane stays 0."""
    words = [encode(make_group([32]), 5)]
    lanes, check = opened(words, [5], device), opened(words, [5], "cpu")
    tables = np.array([[-300, -1, 0, 4, 5, 1024, 32767, *[2] * 40]], np.int16)
    want = reference(check, tables)
    assert torch.equal(want, reference(opened(words, [5], "cpu"), tables.clip(0, 4)))
    assert torch.equal(decode(lanes, tables), want)
    assert (want[0, 7:32] != 0).all()
    assert (want[0, 32:] == 0).all()
    assert check.decoded.tolist() == [32]
    check_same(lanes, check)


def test_unfinished_lanes_are_seen(device: str) -> None:
    group: Group = [(np.full(40, 3, np.int16), np.arange(40, dtype=np.int32))]
    lanes = opened([encode(group, 6)], [6], device)
    tables = group[0][0][None]
    decode(lanes, tables[:, :39])
    assert not lanes.finished().any()
    decode(lanes, tables[:, :1])
    assert lanes.finished().all()
    # a lane that nobody used is not finished either, though nothing is left in it
    empty = opened([[np.empty(0, np.uint32)]], [6], device)
    assert not empty.finished().any()
    # the first symbol of a table leaves the empty state as it is
    assert decode(empty, tables[:, :5]).tolist() == [[-MIDDLE] * 5]
    assert empty.finished().all()


@pytest.mark.parametrize("n_escapes", [0, 1, 2, 3])
def test_escapes_that_do_not_match_are_seen(n_escapes: int, device: str) -> None:
    """Two are needed; without them the value is 0, and nothing of another lane is taken."""
    group: Group = [(np.full(4, 3, np.int16), np.array([ESCAPE, 5, ESCAPE, 6], np.int32))]
    words = encode(group, 8)
    lists = [[[-500] * n_escapes], [[900, 901, 902]]]
    lanes, check = (opened([words, words], [8, 8], d, lists) for d in (device, "cpu"))
    tables = np.tile(group[0][0], (2, 1))
    first = [-500, 5 - MIDDLE, -500, 6 - MIDDLE]
    if n_escapes < 2:
        first[2] = 0
    if n_escapes < 1:
        first[0] = 0
    have = decode(lanes, tables)
    assert have.tolist() == [first, [900, 5 - MIDDLE, 901, 6 - MIDDLE]]
    assert torch.equal(reference(check, tables), have)
    check_same(lanes, check)
    assert lanes.finished().tolist() == [n_escapes == 2, False]
    assert lanes.escapes_left.tolist() == [n_escapes - 2, 1]


def test_damaged_words_decode_alike(device: str) -> None:
    """Kernel, reference and constriction read the same symbols from noise, and past its end."""
    rng = np.random.default_rng(3)
    words = [rng.integers(1, 2**32, n, dtype=np.uint32) for n in (1, 2, 3, 12)] + [
        np.full(4, 2**32 - 1, np.uint32)
    ]
    tables = np.tile(np.repeat(np.array([0, 1, 3], np.int16), [12, 12, 8]), len(words))[None]
    lanes, check = opened([words], [5], device), opened([words], [5], "cpu")
    want = reference(check, tables)
    assert torch.equal(decode(lanes, tables), want)
    check_same(lanes, check)
    theirs = []
    for w in words:
        coder = constriction.stream.stack.AnsCoder(w)
        theirs += [coder.decode(MODELS[t], n) for t, n in ((0, 12), (1, 12), (3, 8))]
    letters = np.concatenate(theirs)
    assert want[0].tolist() == np.where(letters == ESCAPE, 0, letters - MIDDLE).tolist()


def test_nothing_is_read_outside_a_lane(device: str) -> None:
    """What stands beside a lane's words makes no difference, however far the lane is read past its end."""
    tables = np.full((3, 40), 3, np.int16)
    words = np.array([7, 1], np.uint32)
    pictures = []
    for beside in (0, 2**32 - 1):
        around = np.array([beside, beside], np.uint32)
        lanes = opened([[around], [words], [around[:1]]], [8, 8, 8], device)
        pictures.append(decode(lanes, tables)[1])
    assert torch.equal(*pictures)


def test_symbols_without_frequency_are_never_drawn(device: str) -> None:
    """Equal bounds belong to no symbol; the search must not stop at one. The middle is that of 8 symbols."""
    c = cumulative_tables(torch.tensor([[0, 0, 1000, 0, TOTAL - 1001, 0, 1, 0]]))
    words = [[np.random.default_rng(5).integers(1, 2**32, 30, dtype=np.uint32)]]
    tables = np.zeros((1, 100), np.int16)
    want = reference(opened(words, [7], "cpu"), tables, cumulative=c)
    assert torch.equal(decode(opened(words, [7], device), tables, cumulative=c), want)
    assert set(want[0].tolist()) <= {2 - 3, 4 - 3, 6 - 3}


@pytest.mark.parametrize("shape", [(0, 0), (2, 0), (0, 5)])
def test_nothing_to_decode(shape: tuple[int, int], device: str) -> None:
    words = [encode(make_group([3]), 4)] * shape[0]
    lanes = opened(words, [4] * shape[0], device)
    assert decode(lanes, np.zeros(shape, np.int16)).shape == shape


@pytest.mark.parametrize(
    "frequencies", [[[0, 5, TOTAL - 6]], [[TOTAL + 1, -1]], [[TOTAL, 0], [TOTAL - 1, 0]], [[float(TOTAL)]]]
)
def test_wrong_frequencies(frequencies: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="must"):
        cumulative_tables(torch.tensor(frequencies))


def test_wrong_arguments() -> None:
    words = [[np.array([5], np.uint32)]]
    tables = np.zeros((1, 1), np.int16)
    for bad in (
        lambda: decode(opened(words, [8], "cpu"), tables.astype(np.int32)),
        lambda: decode(opened(words, [8], "cpu"), tables, order=np.zeros((1, 2), np.int64)),
        lambda: decode(opened(words, [8], "cpu"), tables, order=np.zeros((1, 1), np.int32)),
        lambda: decode(opened(words, [8], "cpu"), tables, count=[1, 1]),
        lambda: decode(opened(words, [8], "cpu"), tables, cumulative=CUMULATIVE[:, :1]),
        lambda: decode(opened(words, [8], "cpu"), tables, cumulative=CUMULATIVE.long()),
    ):
        with pytest.raises(ValueError, match="must"):
            bad()


@pytest.mark.parametrize(
    "changes",
    [
        {"n_words": [1, 1]},
        {"n_words": [4, -1]},
        {"n_escapes": [0, 0]},
        {"n_escapes": [1]},
        {"n_lanes": [1]},
        {"n_lanes": [3, -1]},
        {"lane_bits": [31, 0]},
        {"lane_bits": [-1, 0]},
        {"lane_bits": [8]},
    ],
)
def test_wrong_lanes(changes: dict[str, list[int]]) -> None:
    counts = {"n_words": [2, 1], "n_escapes": [1, 0], "n_lanes": [1, 1], "lane_bits": [8, 30]}
    words, escapes = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int16)

    def lanes(**given: list[int]) -> Lanes:
        return open_lanes(words, escapes=escapes, **{name: torch.tensor(x) for name, x in given.items()})

    assert lanes(**counts).rank.tolist() == [0, 0]
    with pytest.raises(ValueError, match="must"):
        lanes(**counts | changes)
