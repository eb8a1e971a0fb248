"""The one field of EXIF that a viewer needs to show a picture the right way up. Light: no Pillow."""

import struct

TAG, SHORT = 0x0112, 3
"""Number of the field, and its type: one u16."""
UPRIGHT = 1
"""Values are 1 to 8."""
ENTRY_BYTES = 12


def orientation(exif: bytes) -> int:
    """What EXIF, without its prefix, says of the orientation: 1 to 8; 1 where it says nothing valid."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return UPRIGHT
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return UPRIGHT
    (count,) = struct.unpack_from(order + "H", exif, start)
    whole = (len(exif) - start - 2) // ENTRY_BYTES
    for i in range(min(count, whole)):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, start + 2 + ENTRY_BYTES * i)
        if (tag, kind) == (TAG, SHORT):
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def orientation_alone(exif: bytes) -> bytes | None:
    """The shortest block of EXIF with the same orientation, 26 bytes; None where that is upright."""
    value = orientation(exif)
    if value == UPRIGHT:
        return None
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, TAG, SHORT, 1, value, 0, 0)
