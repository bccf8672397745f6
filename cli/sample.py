"""`tsseq sample`: series from a prior, as a table, a picture or a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BYTES = 64  # of memory per value while families are drawn, a middle among those seen


def sample(
    prior: str = "tsseq",
    *,
    n: int = 16,
    length: int = 512,
    seed: int = 0,
    out: Path | None = None,
    plot: Path | None = None,
    report: Path | None = None,
) -> None:
    """Draw synthetic series from a family or a mixture of families, and write or draw them.

    PRIOR is a family such as gaussian_process, or a mixture: tsseq, which the shipped forecaster learned from,
    tempopfn, or everything (all families alike). `tsseq list` names them all. The same seed gives the same series.

    Examples:
      tsseq sample tsseq --n 1000 --length 2048 --out series.parquet
      tsseq sample everything --n 124 --plot gallery.png
      tsseq sample telemetry --n 500 --report telemetry.pdf

    Args:
        prior: family or mixture to draw from
        n: number of series
        length: steps of each series
        seed: of the random generator
        out: parquet file to write, with columns item_id, start, freq, target and family, and with prior and seed in
            the metadata of its schema; the series are on no calendar, so start and freq are nominal
        plot: picture to draw (png, svg or pdf), a few series of each family
        report: PDF to write, with a page on each family drawn
    """
    from tsseq.cli.output import ensure_file, ensure_picture
    from tsseq.files import writing

    _check_size(n, length, report)
    out = None if out is None else ensure_file(out, (".parquet",))
    plot = None if plot is None else ensure_picture(plot)
    report = None if report is None else ensure_picture(report, (".pdf",))
    series, families = draw(prior, n, length, seed)
    if out is not None:
        with writing(out) as partial:
            _write(series, families, {"prior": prior, "seed": str(seed)}, partial)
    if plot is not None:
        from tsseq.plotting import plot_gallery

        with writing(plot) as partial:
            plot_gallery(series.numpy(), families, partial)
    if report is not None:
        from tsseq.plotting import plot_prior_report

        with writing(report) as partial:
            plot_prior_report(series, families, partial)
    _print(series, families, [path for path in (out, plot, report) if path is not None])


def draw(prior: str, n: int, length: int, seed: int) -> tuple[Tensor, list[str]]:
    """`n` series (n × length) of a family or mixture by name, and the family of each.

    Raises ValueError for another name, or a seed that is no whole number from 0 to 2^63 - 1.
    """
    from torch import Generator

    from tsseq.synthetic import PRIORS
    from tsseq.synthetic.mixture import PRESETS, preset

    if not 0 <= seed < 2**63:
        raise ValueError(f"expected a seed from 0 to 2^63 - 1, got {seed}")
    generator = Generator().manual_seed(seed)
    if prior in PRIORS:
        return PRIORS[prior]().sample(generator, n, length), [prior] * n
    if prior not in PRESETS:
        known = f"a mixture ({', '.join(PRESETS)}) or a family ({', '.join(PRIORS)})"
        raise ValueError(f"unknown prior {prior!r}: expected {known}")
    mixture = preset(prior)
    series, labels = mixture.sample_labelled(generator, n, length)
    names = list(mixture.weights)
    return series, [names[label] for label in labels.tolist()]


def _check_size(n: int, length: int, report: Path | None) -> None:
    from tsseq import memory

    if n < 1 or length < 1:
        raise ValueError(f"expected n and length of at least 1, got n {n} and length {length}")
    memory.require(n * length * BYTES, f"{n} series of {length} steps")
    if report is not None and length < 64:
        raise ValueError(f"a report needs series of at least 64 steps, got length {length}")


def _write(series: Tensor, families: list[str], origin: dict[str, str], path: Path) -> None:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = len(str(len(families) - 1))
    table = pa.table(
        {
            "item_id": [f"{family}_{i:0{width}}" for i, family in enumerate(families)],
            "start": pa.array([pd.Timestamp("2000-01-01")] * len(families), pa.timestamp("ns")),
            "freq": ["h"] * len(families),
            "target": pa.array(list(series.numpy()), pa.list_(pa.float32())),
            "family": families,
        }
    )
    pq.write_table(table.replace_schema_metadata(origin), path)


def _print(series: Tensor, families: list[str], written: list[Path]) -> None:
    from collections import Counter

    from rich.table import Table

    from tsseq.cli.output import print_written, results_console

    console = results_console()
    table = Table(title=f"[bold]{len(series)} series of {series.shape[1]} steps[/]", title_justify="left", box=None)
    table.add_column("family")
    table.add_column("series", justify="right")
    table.add_column("share", justify="right")
    for family, count in Counter(families).most_common():
        table.add_row(family, str(count), f"{count / len(families):.1%}")
    console.print(table)
    print_written(console, *written)
