"""Which packets a decode reads: chosen by levels and region, checked, and left out where they may be
missing."""

from dataclasses import dataclass

from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.bitstream.errors import Corrupt, Truncated
from vbc.bitstream.geometry import LOSSY_LEVELS, is_lossy, level_of, rank, stage_of
from vbc.bitstream.source import Source
from vbc.codec.regions import Region, Roi, check_region


@dataclass(frozen=True)
class DecodePlan:
    """What a decode works out.

    levels: those to decode, in their order: all that the file has of the first so many. wanted: by level,
    also those that are not there or not decoded, the groups to work out.
    """

    levels: tuple[int, ...]
    wanted: dict[int, list[int]]


def make_plan(header: Header, levels: int | None, region: Region | None) -> DecodePlan:
    """The groups that the first `levels` levels of a file (None: all) need for a region (None: all of the
    picture).

    Raises Corrupt where the file has no levels, RegionError.
    """
    present = container.levels_present(header)[:levels]
    if not present:
        raise Corrupt("the file has no levels")
    geometry = header.geometry
    last = last_to_work_out(header, present)
    if region is not None:
        check_region(region, header.width, header.height)
        return DecodePlan(present, geometry.region_groups(region, last, header.archival))
    every = [level for level in geometry.levels if rank(level) <= rank(last)]
    if header.archival:
        every = [level for level in every if not is_lossy(level)]
    wanted = {level: list(range(geometry.n_groups(level))) for level in every}
    return DecodePlan(present, wanted)


def last_to_work_out(header: Header, levels: tuple[int, ...]) -> int:
    """The level that completes the picture of these levels of a file: exact, of bins, or of the last
    refinement."""
    last = levels[-1] if levels else header.geometry.last_level
    if is_lossy(last):
        return level_of(stage_of(last)[0], LOSSY_LEVELS)
    before_values = header.bound and rank(last) <= rank(header.geometry.last_bins)
    return header.geometry.last_bins if before_values else header.geometry.last_level


def places_for(header: Header, roi: Roi) -> list[int]:
    """Places in the index of the packets of levels that some regions of the picture need, of all levels.

    Raises RegionError.
    """
    roi.check(header.width, header.height)
    present = container.levels_present(header)
    last = last_to_work_out(header, present)
    plan = DecodePlan(present, header.geometry.regions_groups(roi.boxes, last, header.archival))
    return sorted(i for level in plan.levels for i in packets_of(header, plan, level).values())


def packets_of(header: Header, plan: DecodePlan, level: int) -> dict[int, int]:
    """Part -> place in the index of the packets of a level that a plan reads: its groups, and what they
    share."""
    parts = (0, *(n + 1 for n in plan.wanted.get(level, ())))
    found = {part: header.find(level, part) for part in parts}
    return {part: i for part, i in found.items() if i is not None}


def all_packets(header: Header, plan: DecodePlan) -> list[int]:
    """Places in the index of all packets that a plan reads, with ICC and alpha, which every picture has, and
    the low bytes, which a picture of all levels has."""
    places = [i for level in plan.levels for i in packets_of(header, plan, level).values()]
    units = [container.ICC, container.ALPHA]
    if plan.levels == container.levels_present(header):
        units.append(container.LOW)
    carried = (header.find(unit) for unit in units)
    return sorted([*places, *(i for i in carried if i is not None)])


def read_packets(
    source: Source, header: Header, plan: DecodePlan, allow_partial: bool
) -> dict[int, dict[int, memoryview]]:
    """Level -> part -> payload of the packets that a plan reads.

    allow_partial: leave out packets that are missing or damaged, and those that need them. Else, and where no
    group is left, raises Truncated or Corrupt for the first of them.
    """
    places = {level: packets_of(header, plan, level) for level in plan.levels}
    payloads: dict[int, memoryview] = {}
    damage: Corrupt | None = None
    for i in (i for parts in places.values() for i in parts.values()):
        try:
            payloads[i] = container.read_packet(source, header, i)
        except (Truncated, Corrupt) as e:
            if not allow_partial:
                raise
            damage = damage or (e if isinstance(e, Corrupt) else None)
    if allow_partial:
        chosen = {i for parts in places.values() for i in parts.values()}
        good = container.usable(header, lambda i: i in payloads or i not in chosen)
        payloads = {i: payload for i, payload in payloads.items() if good[i]}
    if not any(header.packets[i].part for i in payloads):  # what groups share shows nothing without them
        if damage is not None:
            raise damage
        groups = (header.ends[i] for parts in places.values() for part, i in parts.items() if part)
        need = min(groups, default=header.file_bytes)
        raise Truncated(need, source.n_bytes, ())
    return {
        level: {part: payloads[i] for part, i in parts.items() if i in payloads}
        for level, parts in places.items()
    }
