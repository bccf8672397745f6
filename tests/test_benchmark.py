"""`tsseq benchmark`: right before fast, results written, peers optional."""

import json
import os
from dataclasses import replace

import pandas as pd
import pytest
import torch

from tsseq.cli import timing
from tsseq.cli.__main__ import main
from tsseq.cli.benchmark import Row, _jobs, _measure_apart, _show, benchmark, best_peer, measure
from tsseq.cli.peers import PEERS
from tsseq.cli.worker import Worker
from tsseq.kernels import OPS

SMALL = (1, 20, 2, 8)
CPU = torch.device("cpu")


def cases(name: str, size: tuple[int, int, int, int] = SMALL):
    return dict(OPS[name].benchmark_inputs(torch.Generator().manual_seed(0), *size, torch.float32))


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_cases_and_passes_on_them(name: str) -> None:
    for inputs in cases(name, (1, 1, 1, 1)).values():
        assert min(timing.bytes_moved(OPS[name].function, inputs)) > 0
    for inputs in cases(name).values():
        where, share = timing.largest_error(OPS[name], inputs)
        assert share <= 1, where


def test_a_wrong_op_gets_no_time() -> None:
    op = OPS["gated_norm"]
    wrong = replace(op, function=lambda **inputs: op.function(**inputs) + 1e-3)
    (row,) = measure("gated_norm", wrong, SMALL, torch.float32, CPU, 1e9, with_peers=False)
    assert row.both is None and "result 0" in row.note

    def lost_gradient(x, **inputs):
        return op.function(x.detach(), **inputs)

    assert timing.largest_error(replace(op, function=lost_gradient), cases("gated_norm")["SiLU"])[1] == float("inf")


def test_an_op_that_refuses_the_size_is_a_row_with_the_reason(tmp_path, capsys) -> None:
    benchmark(["hadamard_scan", "gated_norm"], out=tmp_path, device="cpu", length=20, width=6)
    assert "hadamard_scan, width 24: refused: expected a diagonal" in capsys.readouterr().out.replace("\n", " ")
    table = pd.read_csv(tmp_path / "benchmark.csv").set_index("op")
    assert "power of two" in table.loc["hadamard_scan", "note"] and (table.loc["gated_norm", "both_ms"] > 0).all()
    benchmark(["hadamard_scan"], out=tmp_path, device="cpu", length=20, width=6)


def test_floor_counts_each_tensor_once_a_pass() -> None:
    inputs = {"x": torch.ones(10, 4), "scale": 2.0, "state": (torch.ones(3),)}
    forward, both = timing.bytes_moved(lambda x, scale, state: (x * scale, state[0]), inputs)
    assert forward == 4 * (40 + 3 + 40)
    assert both == forward + 4 * (40 + 3) + 4 * 40 + 4 * (40 + 3)


def test_results_are_written(tmp_path, capsys) -> None:
    benchmark(["gated_norm", "selective_scan"], out=tmp_path / "speed", device="cpu", length=40, width=8)
    shown = capsys.readouterr().out
    assert "selective_scan" in shown and "loop" in shown
    table = pd.read_csv(tmp_path / "speed" / "benchmark.csv")
    assert set(table["implementation"]) == {"tsseq", "loop"}
    assert (table[["forward_ms", "both_ms", "both_floor_ms"]] > 0).all(axis=None)
    result = json.loads((tmp_path / "speed" / "benchmark.json").read_text())
    assert result["length"] == 40 and len(result["rows"]) == 2
    assert (tmp_path / "speed" / "benchmark.png").stat().st_size > 5000


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_figure_or_name_is_cut_however_long(columns, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    peers = {"a public kernel of a long name": (9.0, 98765.4)}
    rows = [
        Row("controlled_block_scan", "16 increments", 0.1, 12345.6, 23456.7, 0.00004, 0.01234, peers=peers),
        Row("delta_rule", "4 steps", 7.0, note="wrong: output is off by 7 times the tolerance"),
    ]
    _show(rows, (256, 512, 4, 64), torch.bfloat16, CPU, 4e12)
    shown = capsys.readouterr().out
    for text in ("controlled_block_scan", "16 increments", "12346", "23457", "0.0123", "1900867", "98765", "4.21"):
        assert text in shown
    assert "delta_rule, 4 steps: wrong: output is off by 7 times the tolerance" in shown


def test_results_are_added_to(tmp_path, monkeypatch, capsys) -> None:
    def run(*ops: str, **options) -> list[dict]:
        benchmark([*ops], out=tmp_path, **{"device": "cpu", "length": 20, "width": 8, **options})
        return json.loads((tmp_path / "benchmark.json").read_text())["rows"]

    first = run("gated_norm")
    both = run("gated_norm", "selective_scan")
    assert both[:1] == first and [row["op"] for row in both] == ["gated_norm", "selective_scan"]
    monkeypatch.setattr("tsseq.cli.benchmark.measure", lambda *_: pytest.fail("measured again"))
    capsys.readouterr()
    assert run("gated_norm") == both
    assert "selective_scan" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="is of a run with length 20, not 40: choose another folder"):
        run("gated_norm", length=40)
    (tmp_path / "benchmark.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a benchmark's: 'rows'"):
        run("gated_norm")


def test_peers_wait_until_all_ops_have_their_own_times() -> None:
    rows = [Row("slstm", "cell", 0.1), Row("delta_rule", "1 step", 0.1, compared=True)]
    names = ["slstm", "delta_rule", "gated_norm"]
    assert _jobs(names, rows, peers=False, gpu=True) == [("gated_norm", False)]
    assert _jobs(names, rows, peers=True, gpu=True) == [("gated_norm", False), ("slstm", True), ("gated_norm", True)]
    assert _jobs(names, rows, peers=True, gpu=False) == [("slstm", True), ("gated_norm", True)]


def test_peers_that_are_not_installed_are_named() -> None:
    assert {op for op, _ in PEERS} <= set(OPS)
    for op, case in PEERS:
        assert case in cases(op), f"{op} has no case {case!r}"
    row = measure("slstm", OPS["slstm"], SMALL, torch.float32, CPU, 1e9, with_peers=True)[0]
    assert isinstance(row.peers["flashrnn"], str)
    assert best_peer(row)[0] == "loop"


def test_a_broken_process_is_replaced() -> None:
    worker = Worker()
    with pytest.raises(RuntimeError, match="terminated"):
        worker.run(os.abort)
    process = worker.run(os.getpid)
    assert process != os.getpid() and process == worker.run(os.getpid)
    (row,) = _measure_apart(worker, "gated_norm", SMALL, torch.float32, CPU, 1e9)
    assert row.both > 0 and "loop" in row.peers
    worker.close()


def test_peers_that_break_their_process_cost_only_their_own_times() -> None:
    tried = []

    class Fragile(Worker):
        def run(self, function, *args, **kwargs):
            tried.append(args[-1])
            if args[-1]:
                raise RuntimeError("illegal memory access")
            return function(*args, **kwargs)

    (row,) = _measure_apart(Fragile(), "gated_norm", SMALL, torch.float32, CPU, 1e9)
    assert tried == [True, True, False]
    assert row.both > 0 and row.compared and row.peers["all"] == "failed: illegal memory access"


def test_an_op_without_cases_is_left_out() -> None:
    op = replace(OPS["gated_norm"], benchmark_inputs=None)
    assert measure("gated_norm", op, SMALL, torch.float32, CPU, 1e9, with_peers=False) == []


def test_mistakes_end_in_one_line(capsys) -> None:
    assert main(["benchmark", "linear_atention"]) == 2
    assert "unknown op 'linear_atention': expected block_scan" in capsys.readouterr().err
    assert main(["benchmark", "gated_norm", "--length", "0", "--device", "cpu"]) == 2
    assert "at least 1" in capsys.readouterr().err
    for device in ("gpu", "meta"):
        assert main(["benchmark", "gated_norm", "--device", device]) == 2
        assert f"a device that this machine has, such as cpu or cuda, got '{device}'" in capsys.readouterr().err
