"""What the evaluations of one trial share: its networks, its samples, its real images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core.messages import tell
from dsd_lab.core.model.network import Network
from dsd_lab.core.peers import ALONE, Peers
from dsd_lab.evaluation.drawing import IMAGES, Drawn, StoppedDrawing, drawn_of, take_turns
from dsd_lab.evaluation.extractor import load_extractor
from dsd_lab.evaluation.reconstruction import reconstructions
from dsd_lab.evaluation.reference import read_reference, weights_of
from dsd_lab.evaluation.sampling import load_network, sample_blocks
from dsd_lab.home.home import Home
from dsd_lab.home.names import extractor_path
from dsd_lab.specs.trial import Generation

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    from dsd_lab.core.data import DataSet
    from dsd_lab.evaluation.distances import Statistics
    from dsd_lab.evaluation.features import Features
    from dsd_lab.evaluation.real_images import Real
    from dsd_lab.specs.trial import Trial


@dataclass
class Bench:
    """What the evaluations of one trial share, so that equal samples are drawn once and equal features found once.

    Of weights and samples it keeps the last ones: evaluations of the same ones should follow each other. Where several processes
    evaluate, the leader's asks the others, whose own `take_part`, for their share of samples and features.
    """

    trial: Trial
    checkpoints: Path
    data: DataSet
    device: torch.device
    home: Home
    told: Callable[[int, int], None] | None = None
    """Called with the images drawn so far and the number asked for."""
    peers: Peers = ALONE
    stop: Callable[[], bool] = lambda: False
    """Asked between blocks of samples."""
    seed: int = 0
    purpose: str = ""
    """What samples are drawn for, where it is no evaluation."""
    _kept: dict[Hashable, Any] = field(default_factory=dict)
    _weights: dict[Hashable, Any] = field(default_factory=dict)
    """What belongs to the last weights."""
    _samples: dict[Hashable, Any] = field(default_factory=dict)
    """What belongs to the last samples; the first key says which those are."""

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once a key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def of_weights(self, e: Generation, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives for the weights that an evaluation asks for, made once a key; they take the last ones' place."""
        if self._weights.get("of") != (e.weights, e.checkpoint):
            self._weights = {"of": (e.weights, e.checkpoint)}
        if key not in self._weights:
            self._weights[key] = make()
        return self._weights[key]

    def network(self, e: Generation) -> Network:
        """The weights that an evaluation asks for."""

        def make() -> Network:
            return load_network(self.trial, self.checkpoints, self.data, self.device, e.weights, e.checkpoint)

        found: Network = self.of_weights(e, "network", make)
        return found

    def place(self, e: Generation, y: Tensor) -> Path:
        """Where the images of an evaluation are kept, one a label."""
        return self._drawn(e, y).folder

    def _drawn(self, e: Generation, y: Tensor) -> Drawn:
        return drawn_of(self.home.cache, self.checkpoints, e, y, self.seed, self.purpose)

    def samples(self, e: Generation, y: Tensor) -> Drawn:
        """Images, one a label; the last ones make room for others."""
        drawn = self._drawn(e, y)
        if drawn not in self._samples:
            self.forget_samples()
            self._share("draw", e, y)
            self._samples = {drawn: drawn}
        return drawn

    def forget_samples(self) -> None:
        """Free what the last samples take on the disk: whatever was asked of them is recorded."""
        for drawn in [made for made in self._samples.values() if isinstance(made, Drawn)]:
            drawn.remove()
        self._samples = {}

    def of_samples(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives for the last samples, made once a key."""
        if key not in self._samples:
            self._samples[key] = make()
        return self._samples[key]

    def features(self, e: Generation, y: Tensor) -> Features:
        """Features and class scores of the samples for labels y."""
        from dsd_lab.evaluation.features import Features

        drawn, name = self.samples(e, y), _features_name(e)

        def make() -> Features:
            self._share("extract", e, y)
            parts = [drawn.read(name, block) for block in drawn.blocks]
            return Features(**{key: torch.cat([part[key] for part in parts]) for key in parts[0]})

        found: Features = self.of_samples(name, make)
        return found

    def _share(self, work: str, e: Generation, y: Tensor) -> None:
        """Have all processes do a work, each its share of the blocks that are lacking."""
        drawn = self._drawn(e, y)
        lacking = drawn.lacking(IMAGES if work == "draw" else _features_name(e))
        asked = {"work": work, "evaluation": e.model_dump(mode="json"), "y": y.tolist(), "lacking": lacking}
        tell(self.peers, asked | {"seed": self.seed, "purpose": self.purpose})
        self._work(work, e, y, drawn, lacking)

    def take_part(self, asked: Mapping[str, Any]) -> None:
        """Do this process's share of what the leader asks for."""
        e, y = Generation.model_validate(asked["evaluation"]), torch.tensor(asked["y"])
        self.seed, self.purpose = asked["seed"], asked["purpose"]
        drawn = self._drawn(e, y)
        try:
            self._work(asked["work"], e, y, drawn, asked["lacking"])
        except StoppedDrawing:  # the leader has heard it too
            return

    def _work(self, work: str, e: Generation, y: Tensor, drawn: Drawn, lacking: list[int]) -> None:
        if work == "draw":
            own = lacking[self.peers.rank :: self.peers.size]
            blocks = sample_blocks(self.network(e), self.trial, y, e, self.seed, self.device, own)
            take_turns(self.peers, drawn, IMAGES, lacking, lambda _: {IMAGES: next(blocks)[1]}, self.stop, self.told)
            return
        from dsd_lab.evaluation.features import extract

        extractor = self.extractor(e) if lacking else None

        def extracted(block: int) -> dict[str, Tensor]:
            assert extractor is not None
            found = extract(extractor, drawn.read(IMAGES, block)[IMAGES], self.device, "sfid" in e.measured)
            return {name: value for name, value in found._asdict().items() if value is not None}

        take_turns(self.peers, drawn, _features_name(e), lacking, extracted, self.stop, None)

    def reconstructions(self, e: Generation) -> Tensor:
        """Held-out images [N, C, H, W] uint8 through encoder and decoder."""
        found: Tensor = self.of_weights(
            e, "reconstructions", lambda: reconstructions(self.network(e), self.data, self.device)
        )
        return found

    def extractor(self, e: Generation) -> FeatureExtractorBase:
        """The network whose features an evaluation asks for."""
        from dsd_lab.evaluation import features  # imports torch-fidelity: only where something is measured

        def make() -> FeatureExtractorBase:
            if e.extractor != "indomain":
                load = features.inception if e.extractor == "inception" else features.dinov2
                return load(weights_of(e, self.home))
            load_extractor(self.data, self.home.cache, self.device)
            return features.indomain(extractor_path(self.home.cache, self.data.fingerprint, self.data.conditional))

        return self.once(("extractor", e.extractor), make)

    def real(self, e: Generation) -> Real:
        """The real images on the features that an evaluation asks for."""
        from dsd_lab.evaluation.real_images import Real

        found: Real = self.once(
            ("real", e.extractor), lambda: Real(self.data, self.extractor(e), self.device, self.home.cache)
        )
        return found

    def extract(self, e: Generation, images: Tensor) -> Features:
        """Features of images on the extractor that an evaluation asks for."""
        from dsd_lab.evaluation.features import extract

        return extract(self.extractor(e), images, self.device)

    def reference(self, e: Generation, spatial: bool = False) -> Statistics:
        """What FID (`spatial`: sFID) is measured against: published statistics, or the training images'."""
        if e.reference is None:
            return self.real(e).spatial_statistics if spatial else self.real(e).statistics
        found: Statistics = self.once((e.reference, spatial), lambda: read_reference(e, spatial))
        return found


def _features_name(e: Generation) -> str:
    """What features of samples are kept under."""
    return f"{e.extractor}-spatial" if "sfid" in e.measured else e.extractor
