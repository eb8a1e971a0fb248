"""Which packets of refinements a file keeps, and in which order they stand: what most error goes away for.

A packet pays if the error that it takes away is worth more bits than it has. Both is an encoder's choice: the
format takes any packets, in any order, as long as each comes after all that it needs (docs/format.md, section
3). Light: numbers alone, no pictures.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from vbc.bitstream.geometry import FIRST_REFINED, LOSSY_LEVELS, MAX_REFINEMENTS, Geometry, level_of, stage_of

Place = tuple[int, int]
"""Level and part of a packet of a refinement."""
Needs = dict[Place, set[Place]]

INDEX_BYTES = 6
"""What the index has for a packet: its CRC, and mostly two bytes for its length."""


@dataclass(frozen=True)
class Worth:
    """Of a packet: how many bits the error that it takes away is worth, and the bytes of its payload."""

    gain_bits: float
    n_bytes: int

    @property
    def all_bytes(self) -> int:
        """What it takes of a file."""
        return self.n_bytes + INDEX_BYTES

    @property
    def profit_bits(self) -> float:
        """What it is worth beyond its bits."""
        return self.gain_bits - 8 * self.all_bytes


def that_pay(packets: Mapping[Place, Worth], geometry: Geometry) -> set[Place]:
    """Those of the packets of all refinements of a picture that are worth their bits.

    What needs one that is dropped is dropped with it. So a packet is kept for as long as it and all that
    needs it, together, pay. Where nothing is kept of the last level of a refinement, no later one can follow.
    """
    needed_by = _reversed(_needs(packets, geometry))
    kept = set(packets)
    finest_first = sorted(packets, reverse=True)
    shrinking = True
    while shrinking:  # what is dropped can have been all that another packet was kept for
        shrinking = False
        for place in finest_first:
            lost = ({place} | needed_by[place]) & kept
            if place in kept and sum(packets[p].profit_bits for p in lost) < 0:
                kept -= lost
                shrinking = True
        open_levels = {level for level, _ in kept}
        for refinement in range(1, MAX_REFINEMENTS):
            whole = level_of(refinement, LOSSY_LEVELS)
            if whole not in open_levels and max(open_levels, default=0) > whole:
                kept = {place for place in kept if place[0] <= whole}
                shrinking = True
                break
    return kept


def best_first(packets: Mapping[Place, Worth], geometry: Geometry) -> list[Place]:
    """The packets of refinements, one refinement after the other, in each those of most gain a byte first.

    What a packet needs stands before it and counts with it: next is always the one that has, with what it
    still lacks of its refinement, the greatest gain for each byte.
    """
    needs = _needs(packets, geometry)
    order: list[Place] = []
    for refinement in sorted({stage_of(level)[0] for level, _ in packets}):
        own = {p for p in packets if stage_of(p[0])[0] == refinement}
        order += _stage_in_order(packets, {p: needs[p] & own for p in own})
    return order


def _stage_in_order(packets: Mapping[Place, Worth], needs: Needs) -> list[Place]:
    needed_by = _reversed(needs)
    waiting = set(needs)

    def lacking(place: Place) -> list[Place]:
        return sorted((needs[place] | {place}) & waiting)

    def entry(place: Place) -> tuple[float, Place]:
        together = [packets[p] for p in lacking(place)]
        return -sum(w.gain_bits for w in together) / sum(w.all_bytes for w in together), place

    order: list[Place] = []
    heap = [entry(place) for place in needs]
    heapify(heap)
    while heap:
        first = heappop(heap)
        place = first[1]
        if place not in waiting or first != entry(place):  # what it lacked has come: there is a newer entry
            continue
        taken = lacking(place)
        order += taken
        waiting.difference_update(taken)
        for later in set().union(*(needed_by[p] for p in taken)) & waiting:
            heappush(heap, entry(later))
    return order


def _needs(places: Collection[Place], geometry: Geometry) -> Needs:
    """Place -> all of the places that it needs, also by others."""
    found: Needs = {}
    for level, part in sorted(places):  # levels of refinements are numbered in their order
        direct = {
            (other, 1 + n)
            for other, groups in geometry.needs(level, part - 1, archival=False).items()
            if other >= FIRST_REFINED
            for n in geometry.numbers(other, groups)
        }
        found[level, part] = direct.union(*(found[place] for place in direct))
    return found


def _reversed(needs: Mapping[Place, Iterable[Place]]) -> Needs:
    """Place -> all that need it; empty for those that nothing needs."""
    found: Needs = defaultdict(set)
    for place, needed in needs.items():
        for other in needed:
            found[other].add(place)
    return found
