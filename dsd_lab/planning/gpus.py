"""Peak FLOP/s and memory of GPUs from data sheets, for plans on machines without them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU model."""

    bf16: float
    """Dense bfloat16 FLOP/s."""
    fp32: float
    """float32 FLOP/s without tensor cores, as for a trial with precision fp32."""
    memory: float
    """Memory in GB (10^9 bytes) as sold."""

    def peak(self, precision: str) -> float:
        """Peak FLOP/s at a trial's precision."""
        return self.bf16 if precision == "bf16" else self.fp32


# fmt: off
#              bf16       fp32      GB
GPUS: dict[str, Gpu] = {
    "l4":     Gpu( 121e12,  30.3e12,  24),
    "rtx4090": Gpu(165e12,  82.6e12,  24),
    "l40s":   Gpu( 362e12,  91.6e12,  48),
    "a100":   Gpu( 312e12,  19.5e12,  80),
    "h100":   Gpu( 989e12,  67.0e12,  80),
    "h200":   Gpu( 989e12,  67.0e12, 141),
    "b200":   Gpu(2250e12,  75.0e12, 180),
}
# fmt: on
DEFAULT_GPU = "h100"
