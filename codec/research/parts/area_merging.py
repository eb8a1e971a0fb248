"""Areas of small pictures, merged pair by pair from single pixels upwards, the most valuable pair first."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class Merging:
    """The areas of one patch while they are merged. labels: int [8, 8]; links: values of pairs of
    neighbours."""

    labels: NDArray[np.int64]
    links: dict[tuple[int, int], float]

    @classmethod
    def start(cls, side: int) -> "Merging":
        """Each pixel an area of its own, and no links yet."""
        return cls(np.arange(side * side).reshape(side, side), {})

    def missing(self) -> list[tuple[int, int]]:
        """Pairs of neighbouring areas that have no value."""
        here = self.labels
        sides = ((here[:, :-1], here[:, 1:]), (here[:-1], here[1:]))
        pairs = {(int(min(p)), int(max(p))) for a, b in sides for p in zip(a.flat, b.flat, strict=True)}
        return sorted(pair for pair in pairs if pair[0] != pair[1] and pair not in self.links)

    def mask(self, label: int) -> Tensor:
        """Where an area is: bool [side, side]."""
        return torch.from_numpy(self.labels == label)

    def merge(self) -> None:
        """Merge the pair of the highest value; links of both are forgotten."""
        best = max(self.links, key=lambda pair: (self.links[pair], pair))
        self.labels = np.where(self.labels == best[1], best[0], self.labels)
        self.links = {pair: v for pair, v in self.links.items() if not set(pair) & set(best)}


Value = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From patches [N, C, side, side] and masks of two areas [N, side, side] to what merging them is worth:
[N]."""


def merged(x: Tensor, value: Value, stops: tuple[int, ...]) -> dict[int, Tensor]:
    """Areas of patches, uint8 [N, C, side, side], by how many are left: labels, int64
    [N, side, side].

    All patches go on together, so that their pairs are valued in one batch.
    """
    side = x.shape[-1]
    found: dict[int, Tensor] = {}
    states = [Merging.start(side) for _ in x]
    for left in range(side * side, min(stops), -1):
        wanted = [(n, pair) for n, state in enumerate(states) for pair in state.missing()]
        a, b = (torch.stack([states[n].mask(pair[i]) for n, pair in wanted]).to(x.device) for i in (0, 1))
        for (n, pair), v in zip(wanted, value(x[[n for n, _ in wanted]], a, b).tolist(), strict=True):
            states[n].links[pair] = v
        for state in states:
            state.merge()
        if left - 1 in stops:
            found[left - 1] = torch.from_numpy(np.stack([state.labels for state in states]))
    return found
