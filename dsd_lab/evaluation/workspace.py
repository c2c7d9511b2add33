"""Cache shared by the evaluations of one trial: networks, samples, real images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core.messages import heard, tell
from dsd_lab.core.model.network import Network
from dsd_lab.core.peers import ALONE, Peers
from dsd_lab.evaluation.drawing import IMAGES, Drawn, StoppedDrawing, drawing_code, drawn_of, take_turns
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
class EvaluationCache:
    """Cache shared by the evaluations of one trial, so that equal samples and features are computed once.

    It keeps only the last weights and samples, so evaluations of the same ones should be consecutive. With several processes, the
    leader's cache requests a share of the samples and features from each of the others (`take_part`).
    """

    trial: Trial
    checkpoints: Path
    data: DataSet
    device: torch.device
    home: Home
    on_progress: Callable[[int, int], None] | None = None
    """Called with the number of images drawn so far and the total."""
    peers: Peers = ALONE
    stop: Callable[[], bool] = lambda: False
    """Called between blocks of samples; True stops."""
    seed: int = 0
    purpose: str = ""
    """What samples are drawn for, if not for an evaluation."""
    _cached: dict[Hashable, Any] = field(default_factory=dict)
    _weights: dict[Hashable, Any] = field(default_factory=dict)
    """Results for the last weights."""
    _samples: dict[Hashable, Any] = field(default_factory=dict)
    """The last samples, and results computed from them."""

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of `make`, computed once per key."""
        if key not in self._cached:
            self._cached[key] = make()
        return self._cached[key]

    def of_weights(self, e: Generation, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of `make` for the weights of an evaluation, computed once per key while those are the last weights."""
        if self._weights.get("of") != (e.weights, e.checkpoint):
            self._weights = {"of": (e.weights, e.checkpoint)}
        if key not in self._weights:
            self._weights[key] = make()
        return self._weights[key]

    def network(self, e: Generation) -> Network:
        """The network with the weights of an evaluation."""

        def make() -> Network:
            return load_network(self.trial, self.checkpoints, self.data, self.device, e.weights, e.checkpoint)

        found: Network = self.of_weights(e, "network", make)
        return found

    def place(self, e: Generation, y: Tensor) -> Path:
        """Folder of an evaluation's images, one per label y [N]."""
        return self._drawn(e, y).folder

    def _drawn(self, e: Generation, y: Tensor) -> Drawn:
        return drawn_of(self.home.cache, self.checkpoints, e, y, self.seed, self.purpose)

    def samples(self, e: Generation, y: Tensor) -> Drawn:
        """Images, one per label y [N]; replaces the last samples."""
        drawn = self._drawn(e, y)
        if drawn not in self._samples:
            self.forget_samples()
            self._share("draw", e, y)
            self._samples = {drawn: drawn}
        return drawn

    def forget_samples(self) -> None:
        """Remove the last samples from the disk, after their metrics are recorded."""
        for drawn in [made for made in self._samples.values() if isinstance(made, Drawn)]:
            drawn.remove()
        self._samples = {}

    def of_samples(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of `make` for the last samples, computed once per key."""
        if key not in self._samples:
            self._samples[key] = make()
        return self._samples[key]

    def features(self, e: Generation, y: Tensor) -> Features:
        """Features and class scores of the samples for labels y [N]."""
        from dsd_lab.evaluation.features import Features

        drawn = self.samples(e, y)

        def make() -> Features:
            self._share("extract", e, y)
            parts = [drawn.read(self._features_name(e), block) for block in drawn.blocks]
            return Features(**{key: torch.cat([part[key] for part in parts]) for key in parts[0]})

        found: Features = self.of_samples(("features", e.extractor, "sfid" in e.measured), make)
        return found

    def _share(self, work: str, e: Generation, y: Tensor) -> None:
        """Let all processes draw or extract, each its share of the missing blocks."""
        asked = {"work": work, "evaluation": e.model_dump(mode="json"), "y": y.tolist()}
        tell(self.peers, asked | {"seed": self.seed, "purpose": self.purpose})
        self._work(work, e, y)

    def take_part(self, asked: Mapping[str, Any]) -> None:
        """Do this process's share of the leader's request."""
        e, y = Generation.model_validate(asked["evaluation"]), torch.tensor(asked["y"])
        self.seed, self.purpose = asked["seed"], asked["purpose"]
        try:
            self._work(asked["work"], e, y)
        except StoppedDrawing:  # the leader stops too
            return

    def _work(self, work: str, e: Generation, y: Tensor) -> None:
        drawn = self._drawn(e, y)
        self.peers.agree(self.data.fingerprint, "images")
        self.peers.agree(drawing_code(), "code that samples and extracts features")
        if work == "draw":
            lacking = self._lacking(drawn, IMAGES)
            own = lacking[self.peers.rank :: self.peers.size]
            blocks = sample_blocks(self.network(e), self.trial, y, e, self.seed, self.device, own)
            take_turns(
                self.peers, drawn, IMAGES, lacking, lambda _: {IMAGES: next(blocks)[1]}, self.stop, self.on_progress
            )
            return
        from dsd_lab.evaluation.features import extract

        extractor, name = self.extractor(e), self._features_name(e)
        self.peers.agree(name, f"weights of the extractor {e.extractor}")

        def extracted(block: int) -> dict[str, Tensor]:
            found = extract(extractor, drawn.read(IMAGES, block)[IMAGES], self.device, "sfid" in e.measured)
            return {key: value for key, value in found._asdict().items() if value is not None}

        take_turns(self.peers, drawn, name, self._lacking(drawn, name), extracted, self.stop, None)

    def _lacking(self, drawn: Drawn, name: str) -> list[int]:
        """The missing blocks as the leader sees them: a shared folder may show other files to other machines."""
        if not self.peers.leads:
            found: list[int] = heard(self.peers)["lacking"]
            return found
        lacking = drawn.lacking(name)
        tell(self.peers, {"lacking": lacking})
        return lacking

    def _features_name(self, e: Generation) -> str:
        """File name of the features of samples: by the weights of the extractor, which may change while blocks are kept."""
        return f"{self.real(e).named}-spatial" if "sfid" in e.measured else self.real(e).named

    def reconstructions(self, e: Generation) -> Tensor:
        """Held-out images [N, C, H, W] uint8 through encoder and decoder."""
        found: Tensor = self.of_weights(
            e, "reconstructions", lambda: reconstructions(self.network(e), self.data, self.device)
        )
        return found

    def extractor(self, e: Generation) -> FeatureExtractorBase:
        """The extractor of an evaluation."""
        from dsd_lab.evaluation import features  # imports torch-fidelity, so only when needed

        def make() -> FeatureExtractorBase:
            if e.extractor != "indomain":
                load = features.inception if e.extractor == "inception" else features.dinov2
                return load(weights_of(e, self.home))
            load_extractor(self.data, self.home.cache, self.device)
            return features.indomain(extractor_path(self.home.cache, self.data.fingerprint, self.data.conditional))

        return self.once(("extractor", e.extractor), make)

    def real(self, e: Generation) -> Real:
        """The real images in the features of an evaluation."""
        from dsd_lab.evaluation.real_images import Real

        found: Real = self.once(
            ("real", e.extractor), lambda: Real(self.data, self.extractor(e), self.device, self.home.cache)
        )
        return found

    def extract(self, e: Generation, images: Tensor) -> Features:
        """Features of images [N, C, H, W] uint8, by the extractor of an evaluation."""
        from dsd_lab.evaluation.features import extract

        return extract(self.extractor(e), images, self.device)

    def reference(self, e: Generation, spatial: bool = False) -> Statistics:
        """Reference statistics of FID (`spatial`: of sFID): published ones, or those of the training images."""
        if e.reference is None:
            return self.real(e).spatial_statistics if spatial else self.real(e).statistics
        found: Statistics = self.once((e.reference, spatial), lambda: read_reference(e, spatial))
        return found
