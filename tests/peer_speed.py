"""Seconds that a forecast of 32 series takes on two CPU cores: tsseq, Chronos-Bolt-small and TiRex, by one timer.

Run by hand, not by pytest. The peers get random weights of their published sizes, as weights do not change the time.
Each needs an environment of its own, as their pins differ, all with the same torch:

    python -m venv bolt && bolt/bin/pip install 'torch==2.13.*' chronos-forecasting
    python -m venv tirex && tirex/bin/pip install 'torch==2.13.*' tirex-ts

    export OMP_NUM_THREADS=2
    python tests/peer_speed.py tsseq                          # in the environment that tsseq is installed in
    bolt/bin/python tests/peer_speed.py bolt
    tirex/bin/python tests/peer_speed.py tirex                # likewise tirex_compiled, which needs a C++ compiler

One line of JSON per model, context and horizon: parameters, median and least seconds of a call, and the number of
timings behind them. A timing is a window of at least half a second, and counts only if all other processes
together used less than 12% of a core meanwhile (Linux only). `--cases 2048x96` picks context and horizon.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch

BATCH, THREADS = 32, 2
CASES = ("512x64", "512x96", "2048x64", "2048x96")
WINDOW, WINDOWS, TRIES, OTHERS = 0.5, 5, 14, 0.12
TICKS = 100  # per second in /proc/stat

Call = Callable[[torch.Tensor, int], torch.Tensor]


class Model(NamedTuple):
    """`call` maps a context (batch × time) and a horizon to quantiles (batch × horizon × quantile)."""

    parameters: int
    call: Call


def tsseq() -> Model:
    """The network alone: one pass."""
    import tsseq

    network = tsseq.load("base")
    return Model(count(network), lambda x, horizon: network.forecast(x, horizon).quantiles)


def tsseq_predictor() -> Model:
    """What `tsseq forecast` and the adapters call: the network, and every reading of the history around it."""
    import tsseq

    network = tsseq.load("base")
    predictor = tsseq.Predictor(network)
    return Model(count(network), lambda x, horizon: predictor.forecast(x, horizon).quantiles)


def bolt() -> Model:
    """Chronos-Bolt-small; past 64 steps it runs the context once more for each of its nine quantiles."""
    from chronos import ChronosBoltPipeline
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    config = T5Config(
        d_model=512,
        num_layers=6,
        num_decoder_layers=6,
        num_heads=8,
        d_ff=2048,
        d_kv=64,
        dense_act_fn="relu",
        feed_forward_proj="relu",
        vocab_size=2,
        pad_token_id=0,
        eos_token_id=1,
        reg_token_id=1,
        decoder_start_token_id=0,
    )
    config.chronos_config = {
        "context_length": 2048,
        "prediction_length": 64,
        "input_patch_size": 16,
        "input_patch_stride": 16,
        "quantiles": [k / 10 for k in range(1, 10)],
        "use_reg_token": True,
    }
    network = ChronosBoltModelForForecasting(config).eval()
    pipeline = ChronosBoltPipeline(network)

    def call(x: torch.Tensor, horizon: int) -> torch.Tensor:
        return pipeline.predict_quantiles(x, prediction_length=horizon, limit_prediction_length=False)[0]

    return Model(count(network), call)


def tirex(compiled: bool = False, patches: int = 1) -> Model:
    """TiRex, which forecasts `patches` patches of 32 values per pass; `compiled` by its own option."""
    from tirex.models.tirex import TiRexZero

    settings = {
        "model_config": {
            "input_patch_size": 32,
            "output_patch_size": 32,
            "quantiles": [k / 10 for k in range(1, 10)],
            "block_kwargs": {"num_blocks": 12, "embedding_dim": 512, "num_heads": 4, "ffn_proj_factor": 2.6667},
            "input_ff_dim": 2048,
        },
        "train_ctx_len": 2048,
    }
    network = TiRexZero(backend="torch", **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # created uninitialised
            parameter.normal_(0.0, 0.02, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.ckpt"
        torch.save({"hyper_parameters": settings, "state_dict": network.state_dict()}, file)
        with redirect_stdout(sys.stderr):  # it prints
            network = TiRexZero.from_pretrained(str(file), backend="torch", device="cpu", compile=compiled).eval()

    def call(x: torch.Tensor, horizon: int) -> torch.Tensor:
        return network.forecast(x, prediction_length=horizon, max_accelerated_rollout_steps=patches)[0]

    return Model(count(network), call)


MODELS: dict[str, Callable[[], Model]] = {
    "tsseq": tsseq,
    "tsseq_predictor": tsseq_predictor,
    "bolt": bolt,
    "tirex": tirex,
    "tirex_3_patches": lambda: tirex(patches=3),
    "tirex_compiled": lambda: tirex(compiled=True),
    "tirex_compiled_3_patches": lambda: tirex(compiled=True, patches=3),
}


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def seconds_per_call(call: Callable[[], torch.Tensor]) -> list[float]:
    """Up to five timings in windows that no other process disturbed, of a call that has run before."""
    accepted: list[float] = []
    for _ in range(TRIES):
        calls, start, elsewhere = 0, time.perf_counter(), busy_elsewhere()
        while time.perf_counter() - start < WINDOW:
            call()
            calls += 1
        took = time.perf_counter() - start
        if busy_elsewhere() - elsewhere < OTHERS * took:
            accepted.append(took / calls)
        if len(accepted) == WINDOWS:
            break
    return accepted


def busy_elsewhere() -> float:
    """Seconds of core time that other processes have used since the machine started."""
    first_line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _idle, _wait, *interrupts_and_stolen = map(int, first_line.split()[1:9])
    own = resource.getrusage(resource.RUSAGE_SELF)
    return (user + nice + system + sum(interrupts_and_stolen)) / TICKS - own.ru_utime - own.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--cases", nargs="+", default=CASES, help="context x horizon, such as 2048x96")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    model = MODELS[arguments.model]()
    walks = torch.randn(BATCH, 4096, generator=torch.Generator().manual_seed(0)).cumsum(1)
    for case in arguments.cases:
        context, horizon = map(int, case.split("x"))
        x = walks[:, :context].contiguous()
        with torch.inference_mode():
            quantiles = model.call(x, horizon)
            assert quantiles.shape[:2] == (BATCH, horizon) and bool(quantiles.isfinite().all())
            runs = seconds_per_call(lambda x=x, horizon=horizon: model.call(x, horizon))
        median, least = (round(statistics.median(runs), 4), round(min(runs), 4)) if runs else (None, None)
        line = {"model": arguments.model, "parameters": model.parameters, "context": context, "horizon": horizon}
        print(json.dumps(line | {"median_s": median, "min_s": least, "runs": len(runs)}), flush=True)


if __name__ == "__main__":
    main()
