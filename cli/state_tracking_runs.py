"""The runs of `tsseq evaluate state-tracking`: each trained once, by one process or by several, and kept in a file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    from rich.status import Status

    from tsseq.backbone import BackboneConfig
    from tsseq.state_tracker import Score, TrackerTraining


class Run(NamedTuple):
    """One model on one task with one seed."""

    task: str
    model: str
    config: BackboneConfig
    training: TrackerTraining
    seed: int
    device: str

    def row(self) -> dict[str, Any]:
        """What a line of the results says before the run; `settings` changes with any option."""
        return {
            "task": self.task,
            "model": self.model,
            "layers": self.config.layers,
            "seed": self.seed,
            "trained_on": "{}-{}".format(*self.training.train_length),
            "tested_on": "{}-{}".format(*self.training.test_length),
            "budget": self.training.steps,
            "every_position": self.training.every_position,
            "settings": zlib.crc32(repr((self.config, self.training)).encode()),
        }


def finish(runs: Sequence[Run], workers: int, path: Path | None) -> pd.DataFrame:
    """One row per run; those in `path` already are not run again, the others are added to it as they end."""
    import pandas as pd

    from tsseq.files import writing

    done = pd.read_csv(path) if path is not None and path.exists() else pd.DataFrame()
    rows = [run.row() for run in runs]
    found = [_find(row, done) for row in rows]
    for i, result in _train_all({i: run for i, run in enumerate(runs) if found[i] is None}, workers):
        found[i] = rows[i] | result
        if path is not None:
            done = pd.concat([done, pd.DataFrame([found[i]])], ignore_index=True)
            with writing(path) as partial:
                done.to_csv(partial, index=False)
    return pd.DataFrame(found)


def _find(row: Mapping[str, Any], done: pd.DataFrame) -> dict[str, Any] | None:
    import pandas as pd

    same = done[(done.reindex(columns=[*row]) == pd.Series(row)).all(axis=1)] if len(done) else done
    return {str(key): value for key, value in same.iloc[0].items()} if len(same) else None


def _train_all(runs: Mapping[int, Run], workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the result of each run in the order in which they end, said on standard error."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    for i, result in _one_by_one(runs) if workers == 1 else _side_by_side(runs, workers):
        run, end = runs[i], f"{100 * result['best']:6.2f} % in {result['steps']} steps, {result['seconds']:.0f} s"
        console.print(escape(f"{run.task:28} {run.model:26} seed {run.seed}  {end}"), soft_wrap=True)
        yield i, result


def _one_by_one(runs: Mapping[int, Run]) -> Iterator[tuple[int, dict[str, Any]]]:
    from rich.console import Console
    from rich.markup import escape

    for i, run in runs.items():
        title = escape(f"{run.task} {run.model} seed {run.seed}")
        with Console(stderr=True).status(title) as status:

            def report(score: Score, title: str = title, status: Status = status) -> None:
                status.update(f"{title}  {100 * score.accuracy:6.2f} % at step {score.step}")

            result = _train(run, report)
        yield i, result


def _side_by_side(runs: Mapping[int, Run], workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        ends = {pool.submit(_train, run): i for i, run in runs.items()}
        for end in as_completed(ends):
            yield ends[end], end.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and they would go on."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train(run: Run, report: Callable[[Score], None] | None = None) -> dict[str, Any]:
    from tsseq.datasets import state_tracking as tasks
    from tsseq.state_tracker import train_tracker

    start = perf_counter()
    scores = train_tracker(
        tasks.load(run.task), run.config, run.training, seed=run.seed, device=run.device, report=report
    )
    best = max(score.accuracy for score in scores)
    return {
        "steps": scores[-1].step,
        "best": best,
        "last": scores[-1].accuracy,
        "seconds": round(perf_counter() - start, 1),
    }
