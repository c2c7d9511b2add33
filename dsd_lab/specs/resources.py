"""Fields of the resources of a trial; they are not part of its identity."""

from __future__ import annotations

from pydantic import Field, model_validator

from dsd_lab.specs.base import Section as Section


class Resources(Section):
    """Resources of one trial."""

    cpus: float = Field(1.0, gt=0, le=4096)
    """Logical CPUs per process."""
    gpus: float = Field(0.0, ge=0, le=4096)
    """Whole GPUs, one per process, or a fraction of one GPU."""
    processes: int | None = Field(None, ge=1, le=4096)
    """Processes that train the trial (data parallel). Default: the number of whole GPUs, at least 1. Not part of a trial's identity, although the order of summation, and so the last bits of losses and weights, depend on it. The same number of processes gives the same bits."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads per process for matrix products. Not part of a trial's identity, although on a CPU the order of summation, and so the last bits of losses and gradients, depend on it; measured on `nano8` (800 steps of DSD): 1 and 2 threads gave the same losses to the bit, since torch does not split products that small, and evaluations, whose batches are larger, differed by 0.1 % in FID. Wider networks differ in training too: compare variants at the same number. The same number gives the same bits. Images, times, noise and labels of a step do not depend on it."""

    patience: float = Field(3600.0, gt=0, le=1e7)
    """Seconds without an optimiser step after which a trial counts as hung: its stacks are written to `hang.txt`, its process is ended, and a sweep resumes it. The processes of one trial wait as long for each other, and so while the leader alone probes, saves a checkpoint or computes metrics: it must be longer than the longest of these."""

    @model_validator(mode="after")
    def _one_gpu_a_process(self) -> Resources:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus:g} is neither a fraction of one GPU nor a whole number")
        if self.gpus > 0 and self.processes is not None and self.processes != max(1, self.gpus):
            raise ValueError(
                f"processes: {self.processes} processes and {self.gpus:g} GPUs; each process has one GPU, so leave `processes` out, or write as many"
            )
        return self

    @property
    def team(self) -> int:
        """Number of processes."""
        return self.processes or max(1, int(self.gpus))

    @property
    def gpus_of_process(self) -> float:
        """GPUs per process: 0, a fraction of 1, or 1."""
        return self.gpus / self.team
