"""Public module for plug-ins: the table of each kind of part, and the base classes of parts.

from dsd_lab.parts import RECONSTRUCTIONS

@RECONSTRUCTIONS.add("huber")
def huber(image, x): ...
"""

from dsd_lab.core.data import SOURCES as DATA_SOURCES
from dsd_lab.core.data.dataset import DataSet, data_set, split
from dsd_lab.core.data.splits import Images
from dsd_lab.core.diffusion.auxiliary import AUXILIARIES, Auxiliary, Seen
from dsd_lab.core.diffusion.objectives import LOSS_SPACES, OUTPUTS, RECONSTRUCTIONS, TARGETS, WEIGHTINGS
from dsd_lab.core.diffusion.paths import PATHS, TIME_DISTRIBUTIONS, Path
from dsd_lab.core.diffusion.regularisers import REGULARISERS
from dsd_lab.core.diffusion.samplers import SAMPLERS, Solver
from dsd_lab.core.model.blocks import BLOCKS, Block
from dsd_lab.core.model.normalisers import NORMALISERS, Normaliser
from dsd_lab.core.observing.latent_metrics import LATENT_METRICS
from dsd_lab.core.randomness import generator
from dsd_lab.errors import BadInput
from dsd_lab.evaluation.sample_metrics import SAMPLE_METRICS
from dsd_lab.specs.base import Section as Options
from dsd_lab.specs.plugins import load_plugins

__all__ = [
    "AUXILIARIES",
    "BLOCKS",
    "DATA_SOURCES",
    "LATENT_METRICS",
    "LOSS_SPACES",
    "NORMALISERS",
    "OUTPUTS",
    "PATHS",
    "RECONSTRUCTIONS",
    "REGULARISERS",
    "SAMPLERS",
    "SAMPLE_METRICS",
    "TARGETS",
    "TIME_DISTRIBUTIONS",
    "WEIGHTINGS",
    "Auxiliary",
    "BadInput",
    "Block",
    "DataSet",
    "Images",
    "Normaliser",
    "Options",
    "Path",
    "Seen",
    "Solver",
    "data_set",
    "generator",
    "load_plugins",
    "split",
]
