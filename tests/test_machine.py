"""The machine's load: read from files as the kernel writes them, sampled at intervals, under MLflow's names."""

import ast
import json
from pathlib import Path

import mlflow
import pytest

from dsd_lab.store import system_metrics as machine
from dsd_lab.store.system_metrics import Sampler, gpu_metrics, read_samples

STAT = "cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
MEMINFO = "MemTotal:       1000000 kB\nMemFree:         100000 kB\nMemAvailable:    250000 kB\n"
NET = "Inter-| Receive\n face |bytes\n    lo: {lo} 0 0 0 0 0 0 0 {lo} 0 0 0 0 0 0 0\n  eth0:{eth} 0 0 0 0 0 0 0 7 0 0 0 0 0 0 0\n"


def kernel(folder, busy=0, idle=0, lo=0, eth=0):
    (folder / "net").mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(STAT.format(busy=busy, idle=idle))
    (folder / "meminfo").write_text(MEMINFO)
    (folder / "net" / "dev").write_text(NET.format(lo=lo, eth=eth))
    return folder


def test_loads_are_differences_since_the_last_sample_and_traffic_since_the_first(tmp_path):
    proc = kernel(tmp_path / "proc", busy=100, idle=100, lo=5_000_000)
    sampler = Sampler(tmp_path, proc)
    kernel(proc, busy=130, idle=110, lo=6_000_000, eth=2_000_000)
    found = sampler.now()
    assert found["cpu_utilization_percentage"] == pytest.approx(75)
    assert found["system_memory_usage_percentage"] == pytest.approx(75)
    assert found["system_memory_usage_megabytes"] == pytest.approx(768)
    assert found["network_receive_megabytes"] == pytest.approx(3)
    assert found["network_transmit_megabytes"] == pytest.approx(1)
    assert 0 < found["disk_usage_percentage"] <= 100
    kernel(proc, busy=130, idle=150)
    assert sampler.now()["cpu_utilization_percentage"] == 0


def test_what_the_machine_does_not_tell_is_absent(tmp_path):
    found = Sampler(tmp_path, tmp_path / "nothing").now()
    assert {n for n in found if not n.startswith("gpu_")} == {
        "disk_usage_percentage", "disk_usage_megabytes", "disk_available_megabytes"
    }  # fmt: skip


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
