"""In which order packets of levels stand, where regions are of interest (docs/format.md, section 3)."""

from vbc.bitstream.geometry import Geometry, is_lossy, level_of, rank, stage_of
from vbc.codec.flow.encode_levels import Packets
from vbc.codec.regions import Roi


def order_for(roi: Roi, packets: Packets, geometry: Geometry, archival: bool, first: bool) -> Packets:
    """The packets of lossy levels, or of exact ones, again: those that the regions need before others.

    packets: in the usual order, level by level, what a level's groups share before them; those of a
    refinement, whose levels count as one here, in any order that is valid. first: the regions' packets of all
    these levels stand before all others; otherwise those of each level before others of that level. What the
    regions need needs nothing else, so that either order is valid.
    """
    exact = not all(is_lossy(level) for level, _, _ in packets)
    last_level = geometry.last_level if exact else geometry.last_lossy
    groups = geometry.regions_groups(roi.boxes, last_level, archival)
    needed = {(level, 1 + n) for level, numbers in groups.items() for n in numbers}

    def place(packet: tuple[int, int, bytes]) -> tuple[int, int]:
        level, part, _ = packet
        behind = part > 0 and (level, part) not in needed
        refinement = stage_of(level)[0] if is_lossy(level) else 0
        stands = rank(level_of(refinement, 1) if refinement else level)
        return (behind, stands) if first else (stands, behind)

    return sorted(packets, key=place)  # which keeps the order of those of one place
