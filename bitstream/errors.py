"""What the bytes of a file can cause: one family of errors, one class per cause, data in attributes.

FormatError(ValueError)
├── NotVbc              the file does not start with the magic
├── UnsupportedVersion  a newer format, or a critical part this reader does not know
├── ModelMissing        the weights or tables the file was made with are not here
├── Truncated           the bytes end too early; the complete levels are named
├── Corrupt             the bytes contradict themselves or their checksum
└── LimitExceeded       the file asks for more than the reader allows
"""


class FormatError(ValueError):
    """Any fault of the bytes of a file. `args` holds the data, so that the errors pass between processes."""


class NotVbc(FormatError):
    """The bytes do not start with the magic of a .vbc file."""

    def __str__(self) -> str:
        return "not a .vbc file: the magic is missing"


class UnsupportedVersion(FormatError):
    """The file needs a newer reader. `what` names the unknown part: the version, a chunk or a field."""

    def __init__(self, major: int, minor: int, what: str = "format version") -> None:
        super().__init__(major, minor, what)
        self.major = major
        self.minor = minor
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is not supported by this reader (the file is format {self.major}.{self.minor})"


class ModelMissing(FormatError):
    """No weights or tables with the hash `wanted` (8 bytes) are available."""

    def __init__(self, wanted: bytes) -> None:
        super().__init__(wanted)
        self.wanted = wanted

    def __str__(self) -> str:
        return (
            f"the file needs model data with hash {self.wanted.hex()}, which is not here: name its weights, "
            "or in VBC_WEIGHTS a folder that has them as HASH.safetensors"
        )


class Truncated(FormatError):
    """The bytes end at `have` where `need` were wanted; `levels_available` are the complete levels."""

    def __init__(self, need: int, have: int, levels_available: tuple[int, ...] = ()) -> None:
        super().__init__(need, have, levels_available)
        self.need = need
        self.have = have
        self.levels_available = levels_available

    def __str__(self) -> str:
        levels = ", ".join(map(str, self.levels_available)) or "none"
        return f"truncated: {self.need} bytes needed, {self.have} there (complete levels: {levels})"


class Corrupt(FormatError):
    """The bytes contradict themselves or their checksum; `what` says where."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"corrupt: {self.what}"


class LimitExceeded(FormatError):
    """`what` has the value `value`, above `limit`."""

    def __init__(self, what: str, value: int, limit: int) -> None:
        super().__init__(what, value, limit)
        self.what = what
        self.value = value
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.what}: {self.value} exceeds the limit of {self.limit}"
