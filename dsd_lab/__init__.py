"""dsd-lab: why jointly trained latent diffusion collapses, what stops it, and how surely one knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsd_lab.version import __version__

if TYPE_CHECKING:
    from dsd_lab.api import LoadedTrial, export_latents, load_trial

__all__ = ["LoadedTrial", "__version__", "export_latents", "load_trial"]


def __getattr__(name: str) -> Any:
    """Import torch only when `load_trial` or its like is first used, not with the package."""
    if name in ("LoadedTrial", "export_latents", "load_trial"):
        from dsd_lab import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
