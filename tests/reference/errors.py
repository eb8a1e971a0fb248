"""The errors of docs/format.md."""


class FormatError(ValueError):
    """Any fault of the bytes of a file."""


class NotVbc(FormatError):
    """The file does not start with the magic."""


class UnsupportedVersion(FormatError):
    """The file needs a newer reader."""


class ModelMissing(FormatError):
    """The weights given are not those the file was made with."""


class Truncated(FormatError):
    """The bytes end too early."""


class Corrupt(FormatError):
    """The bytes contradict themselves or a checksum."""


class LimitExceeded(FormatError):
    """The file asks for more than a reader with the default limits allows."""
