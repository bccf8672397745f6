"""The bar that long commands show."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar() -> Progress:
    """A bar that vanishes when its work is done: what is being done, how much of how much, time spent and left."""
    text = TextColumn("{task.description:32}", markup=False)
    bars = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*bars, transient=True)
