"""Fields of what a trial occupies; none of it is part of its identity."""

from __future__ import annotations

from pydantic import Field, model_validator

from dsd_lab.specs.base import Section as Section


class Resources(Section):
    """What one trial occupies."""

    cpus: float = Field(1.0, gt=0, le=4096)
    """Logical CPUs of each process."""
    gpus: float = Field(0.0, ge=0, le=4096)
    """Whole GPUs, one a process, or a share of one."""
    processes: int | None = Field(None, ge=1, le=4096)
    """Processes that train the trial together, each with its share of every batch; as many as there are whole GPUs, at least 1, if left out. No part of a trial's identity: sums over processes add in another order than one process does, which changes the last bits of losses and weights. The same number of processes gives the same bits."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads of a process' matrix products. It is no part of a trial's identity: on a CPU, sums of products are split among threads, so that another number may change the last bits of losses and gradients, and over many steps the result as such rounding does. How far is not measured: compare variants at one number. It does not change the images, times, noise and labels of a step, and one number of threads gives the same bits again."""

    patience: float = Field(3600.0, gt=0, le=1e7)
    """Seconds without an optimiser step after which a trial is taken for one that hangs: its stacks go to `hang.txt`, its process ends, a sweep takes it up again."""

    @model_validator(mode="after")
    def _one_gpu_a_process(self) -> Resources:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus:g} is neither a share of one GPU nor a whole number of them")
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
        """GPUs that each process has: a share of one, one, or none."""
        return self.gpus / self.team
