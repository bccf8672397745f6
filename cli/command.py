"""What a table of commands holds."""

from typing import NamedTuple


class Command(NamedTuple):
    """`place` is module:name of a typed function, or of a dict of commands below this one.

    It is imported when the command runs, so that `tsseq --help` waits for nothing.
    """

    place: str
    summary: str
