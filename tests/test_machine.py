"""The machine's load, sampled at intervals, under MLflow's names."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from dsd_lab.store import system_metrics as machine
from dsd_lab.store.system_metrics import Sampler, gpu_metrics, read_samples


def test_loads_are_differences_since_the_last_sample_and_traffic_since_the_first(tmp_path, monkeypatch):
    traffic = [SimpleNamespace(bytes_recv=b, bytes_sent=2 * b) for b in (5_000_000, 8_000_000, 9_000_000)]
    monkeypatch.setattr(machine.psutil, "net_io_counters", iter(traffic).__next__)
    sampler = Sampler(tmp_path)
    first, second = sampler.now(), sampler.now()
    assert [f["network_receive_megabytes"] for f in (first, second)] == [3, 4]
    assert [f["network_transmit_megabytes"] for f in (first, second)] == [6, 8]
    for found in (first, second):
        assert 0 <= found["cpu_utilization_percentage"] <= 100
        assert 0 < found["system_memory_usage_percentage"] <= 100 and found["system_memory_usage_megabytes"] > 10
        assert 0 < found["disk_usage_percentage"] <= 100 and found["disk_usage_megabytes"] > 0


def test_a_machine_without_network_interfaces_is_sampled_too(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.psutil, "net_io_counters", lambda: None)
    found = Sampler(tmp_path).now()
    assert "disk_usage_percentage" in found and not [name for name in found if name.startswith("network")]


def test_gpus_are_told_by_index_and_a_column_that_one_does_not_know_is_left_out():
    found = gpu_metrics("0, 512, 2048, 30, 100.5, 402\n1, 1024, 2048, 0, [N/A], [N/A]\n")
    assert found["gpu_0_memory_usage_megabytes"] == pytest.approx(512 * 2**20 / 1e6)
    assert found["gpu_0_memory_usage_percentage"] == 25 and found["gpu_0_power_usage_percentage"] == pytest.approx(25)
    assert found["gpu_1_utilization_percentage"] == 0 and "gpu_1_power_usage_watts" not in found
    assert gpu_metrics("No devices were found\n") == {}


def test_the_names_are_those_of_mlflows_own_monitors(tmp_path):
    folder = Path(mlflow.__file__).parent / "system_metrics" / "metrics"
    texts = [
        node.value
        for path in folder.glob("*_monitor.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    ours = set(Sampler(tmp_path).now()) | {n.removeprefix("gpu_0") for n in gpu_metrics("0, 1, 2, 3, 4, 5")}
    assert len(ours) > 10 and ours <= set(texts)


def test_samples_are_taken_when_due_and_half_a_line_of_a_killed_sampler_is_forgotten(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(machine.time, "monotonic", lambda: clock[0])
    sampler = Sampler(tmp_path)
    taken = []
    for clock[0] in (105.0, 110.0, 112.0, 120.0):
        taken.append(sampler.sample_when_due())
    assert taken == [False, True, False, True] and len(read_samples(tmp_path)) == 2
    with (tmp_path / "machine.jsonl").open("a") as file:
        file.write('{"time": 3, "metr')
    clock[0] = 200.0
    again = Sampler(tmp_path)
    clock[0] = 210.0
    assert again.sample_when_due()
    lines = [json.loads(line) for line in (tmp_path / "machine.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(n.startswith("system/") for line in lines for n in line["metrics"])
