"""`tsseq benchmark`: is every op right on this machine, and how far from the speed of its memory is it?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsseq.cli.worker import Worker

if TYPE_CHECKING:
    import torch

    from tsseq.kernels import Op

RESULTS = "benchmark.json"
LONGEST_CHECK = 150
"""Positions over which an op is compared with the loop in float64."""


@dataclass
class Row:
    """One op at one size; times in milliseconds. `peers` has their pairs of times, or why there are none.

    `error` is a share of the tolerance, None where the op refuses the inputs; `note` says why there are no times.
    `compared` says whether peers were asked for, though there may be none.
    """

    op: str
    case: str
    error: float | None = None
    forward: float | None = None
    both: float | None = None
    forward_floor: float | None = None
    both_floor: float | None = None
    note: str = ""
    peers: dict[str, tuple[float, float] | str] = field(default_factory=dict)
    compared: bool = False


def benchmark(
    ops: list[str] | None = None,
    *,
    peers: bool = False,
    out: Path | None = None,
    device: str | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    batch: int | None = None,
    length: int | None = None,
    heads: int = 4,
    width: int | None = None,
) -> None:
    """Check every op against its loop in float64, then time it, forward and with the backward pass.

    OPS are names that `tsseq list --only ops` prints; all of them if none is given. An op whose results or gradients
    are wrong, or that takes no layer of this size, gets no time. The floor is the time in which this machine's
    memory, measured in the same run, moves each input and output once (and once more, with the gradients, in the
    backward pass); the ratio is to this floor. On a GPU times are of captured graphs. On a CPU the loop that specifies
    each op is timed beside it. With --peers ops run in a process of their own, since a public kernel that fails can
    leave the GPU unusable to its process; all are first timed alone, then again beside their peers, which may take
    minutes to be tuned. With --out the same command continues after a kill, and with other ops adds them to what is
    there.

    Examples:
      tsseq benchmark
      tsseq benchmark linear_attention delta_rule --peers --out speed
      tsseq benchmark diagonal_scan --batch 64 --length 2048 --dtype float32

    Args:
        ops: names of ops
        peers: also time public kernels that are installed (fla-core, mlstm_kernels, flashrnn, accelerated-scan) and
            the plain torch form
        out: folder for benchmark.csv, benchmark.json and benchmark.png; made if absent
        device: torch device; the GPU if there is one
        dtype: of values; bfloat16 on a GPU and float32 on a CPU if not given
        batch: number of series; 256 on a GPU, 1 on a CPU if not given
        length: positions; 512 on a GPU, 2048 on a CPU if not given
        heads: heads of a layer
        width: width of a head; 64 on a GPU, 32 on a CPU if not given
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from tsseq.cli.output import ensure_folder
    from tsseq.cli.timing import bandwidth
    from tsseq.device import checked
    from tsseq.kernels import OPS

    unknown = [name for name in ops or () if name not in OPS]
    if unknown:
        raise ValueError(f"unknown op {unknown[0]!r}: expected {', '.join(OPS)}")
    folder = None if out is None else ensure_folder(out)
    place = checked(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = place.type == "cuda"
    usual = (256, 512, 64) if gpu else (1, 2048, 32)
    given = [
        chosen if chosen is not None else default for chosen, default in zip((batch, length, width), usual, strict=True)
    ]
    size = (given[0], given[1], heads, given[2])
    if min(size) < 1:
        raise ValueError(f"expected a batch, length, heads and width of at least 1, got {size}")
    kind: torch.dtype = getattr(torch, dtype or ("bfloat16" if gpu else "float32"))
    run = _conditions(size, kind, place, peers)
    rows = [] if folder is None else _earlier(folder / RESULTS, run)
    speed = bandwidth(place)
    worker = Worker()
    jobs = _jobs(ops or list(OPS), rows, peers, gpu)
    for name, compared in track(jobs, "ops", transient=True, console=Console(stderr=True)):
        if peers and gpu:
            found = _measure_apart(worker, name, size, kind, place, speed, compared)
        else:
            found = measure(name, OPS[name], size, kind, place, speed, compared)
        rows = [row for row in rows if row.op != name] + found
        rows.sort(key=lambda row: list(OPS).index(row.op))
        if folder is not None:  # after every op, so that a kill loses one
            _write(rows, {**run, "bytes_per_second": speed}, folder)
    worker.close()
    _show([row for row in rows if row.op in (ops or OPS)], size, kind, place, speed)


def _jobs(names: list[str], rows: list[Row], peers: bool, gpu: bool) -> list[tuple[str, bool]]:
    """Ops that `rows` do not have yet, and whether to time peers: on a GPU only once every op has its own times."""
    measured, compared = {row.op for row in rows}, {row.op for row in rows if row.compared}
    alone = [(name, False) for name in names if name not in measured]
    beside = [(name, True) for name in names if name not in compared]
    if not peers:
        return alone
    return alone + beside if gpu else beside


def measure(
    name: str,
    op: Op,
    size: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    speed: float,
    with_peers: bool,
) -> list[Row]:
    """A row for each of the op's benchmark inputs."""
    import torch

    from tsseq.cli import timing

    if op.benchmark_inputs is None:
        return []
    batch, length, heads, width = size
    generator = torch.Generator(device).manual_seed(0)
    rows = []
    small = dict(op.benchmark_inputs(generator, min(batch, 2), min(length, LONGEST_CHECK), heads, width, dtype))
    for case, inputs in op.benchmark_inputs(generator, batch, length, heads, width, dtype):
        row = Row(name, case, compared=with_peers)
        rows.append(row)
        try:
            where, row.error = timing.largest_error(op, small[case])
        except ValueError as error:
            row.note = f"refused: {error}"
            continue
        if row.error > 1.0:
            row.note = f"wrong: {where} is off by {row.error:.2g} times the tolerance"
            continue
        row.forward, row.both = timing.forward_and_both(op.function, inputs)
        floors = [1e3 * count / speed for count in timing.bytes_moved(op.function, inputs)]
        row.forward_floor, row.both_floor = floors
        row.peers = _time_peers(name, case, op, inputs, device, with_peers)
    return rows


def _measure_apart(
    worker: Worker,
    name: str,
    size: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    speed: float,
    compared: bool = True,
) -> list[Row]:
    """The rows of an op from another process: after a failure again, as the op before may be to blame, and last
    without the peers."""
    if not compared:
        return worker.run(_measure_named, name, size, dtype, device, speed, False)
    for _ in range(2):
        try:
            return worker.run(_measure_named, name, size, dtype, device, speed, True)
        except RuntimeError as error:
            reason = f"failed: {_first_words(error)}"
    rows = worker.run(_measure_named, name, size, dtype, device, speed, False)
    for row in rows:
        row.peers["all"], row.compared = reason, True
    return rows


def _measure_named(name: str, *arguments: Any) -> list[Row]:
    from tsseq.kernels import OPS

    return measure(name, OPS[name], *arguments)


def _time_peers(
    name: str, case: str, op: Op, inputs: dict[str, Any], device: torch.device, wanted: bool
) -> dict[str, tuple[float, float] | str]:
    from tsseq.cli import timing
    from tsseq.cli.peers import PEERS

    times: dict[str, tuple[float, float] | str] = {}
    if device.type == "cpu":
        times["loop"] = timing.forward_and_both(op.reference, inputs)
    if not wanted:
        return times
    if device.type != "cpu":
        times["torch"] = _attempt(lambda: (op.chunked, inputs))
    for peer, adapter in PEERS.get((name, case), {}).items():
        times[peer] = _attempt(lambda adapter=adapter: adapter(inputs))  # type: ignore[misc]
    return times


def _attempt(prepare: Any) -> tuple[float, float] | str:
    """A peer's times, or one line on why it has none: other people's kernels may fail in any way."""
    from tsseq.cli import timing

    try:
        return timing.forward_and_both(*prepare())
    except ImportError as error:
        return f"not installed: {error.name}"
    except Exception as error:
        return f"failed: {_first_words(error)}"


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


def best_peer(row: Row) -> tuple[str, float, float] | None:
    """The peer with the fastest forward and backward pass."""
    timed = [(name, *times) for name, times in row.peers.items() if not isinstance(times, str)]
    return min(timed, key=lambda peer: peer[2], default=None)


def _show(rows: list[Row], size: tuple[int, ...], dtype: torch.dtype, device: torch.device, speed: float) -> None:
    from rich import box
    from rich.table import Table

    from tsseq.cli.output import results_console

    title = f"{machine(device)}, {speed / 1e9:.0f} GB/s; batch {size[0]}, length {size[1]}, {size[2]} heads of "
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{title}{size[3]}, {str(dtype)[6:]}", title_justify="left"
    )
    table.add_column("op", width=max((len(row.op) for row in rows), default=0))
    for name in ("forward\nms", "both\nms", "floor\nms", "times\nfloor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("best peer,\nboth ms")
    table.add_column("speed-up", justify="right", no_wrap=True)
    for row in rows:
        label = f"[bold]{row.op}[/]\n{row.case}"
        if row.both is None or row.forward is None or row.both_floor is None:
            table.add_row(label, *["-"] * 4)
            continue
        peer = best_peer(row)
        table.add_row(
            label,
            *map(_short, (row.forward, row.both, row.both_floor, row.both / row.both_floor)),
            f"{peer[0]}\n{_short(peer[2])}" if peer else "",
            _short(peer[2] / row.both) if peer else "",
        )
    console = results_console()
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.op}, {row.case}: {row.note}", markup=False)


def _short(x: float) -> str:
    """Three digits, at most four of them decimals; never an exponent."""
    if x >= 100:
        return f"{x:.0f}"
    return f"{x:.3g}" if x >= 0.01 else f"{x:.4f}"


def machine(device: torch.device) -> str:
    """What runs the op."""
    import platform

    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def _conditions(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, peers: bool) -> dict[str, Any]:
    """What times depend on."""
    import torch

    return {
        "machine": machine(device),
        "torch": torch.__version__,
        **dict(zip(("batch", "length", "heads", "width"), size, strict=True)),
        "dtype": str(dtype)[6:],
        "peers": peers,
    }


def _earlier(path: Path, run: dict[str, Any]) -> list[Row]:
    """The rows that a run under the same conditions left; ValueError where they were others."""
    import json

    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        rows = [Row(**{**row, "peers": _as_pairs(row["peers"])}) for row in found["rows"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a benchmark's: {error}") from error
    for name, value in run.items():
        if found.get(name) != value:
            raise ValueError(
                f"{path} is of a run with {name} {found.get(name)!r}, not {value!r}: choose another folder"
            )
    return rows


def _as_pairs(peers: dict[str, Any]) -> dict[str, tuple[float, float] | str]:
    return {name: times if isinstance(times, str) else tuple(times) for name, times in peers.items()}


def _write(rows: list[Row], run: dict[str, Any], folder: Path) -> None:
    import json

    import pandas as pd

    from tsseq.files import writing
    from tsseq.plotting import plot_benchmark

    with writing(folder / RESULTS) as partial:
        partial.write_text(json.dumps({**run, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    lines = [line for row in rows for line in _lines(row)]
    with writing(folder / "benchmark.csv") as partial:
        pd.DataFrame([{**line, **run} for line in lines]).to_csv(partial, index=False)
    timed = [(f"{r.op}\n{r.case}", r.both, r.both_floor, best_peer(r)) for r in rows if r.both and r.both_floor]
    if timed:
        title = "{machine}, {dtype}: {batch} series of {length}, {heads} heads of {width}".format(**run)
        with writing(folder / "benchmark.png") as partial:
            plot_benchmark(timed, title, partial)


def _lines(row: Row) -> list[dict[str, Any]]:
    """One line of the CSV for us and one for every peer."""
    floors = {"forward_floor_ms": row.forward_floor, "both_floor_ms": row.both_floor}
    ours = {"op": row.op, "case": row.case, "implementation": "tsseq", "forward_ms": row.forward, "both_ms": row.both}
    lines = [{**ours, **floors, "error_of_tolerance": row.error, "note": row.note}]
    for peer, times in row.peers.items():
        forward, both = (None, None) if isinstance(times, str) else times
        note = times if isinstance(times, str) else ""
        same = {"op": row.op, "case": row.case, "implementation": peer}
        lines.append({**same, "forward_ms": forward, "both_ms": both, **floors, "note": note})
    return lines
