"""Data sets that `dsd-lab fetch-data` knows by name: addresses, hashes, licences and layouts. No torch.

SHA-256 are those that TensorFlow Datasets pins for the same addresses (`url_checksums` of tensorflow/datasets). MNIST's are
of the files whose MD5 torchvision pins; CIFAR-10's authors publish an MD5 of theirs, c32a1d4ab5d03f1284b67883e8d87530.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Download:
    """A file: its name, its SHA-256, its bytes, and addresses that hold it."""

    file: str
    sha256: str
    bytes: int
    urls: tuple[str, ...]


@dataclass(frozen=True)
class KnownSet:
    """A data set by name."""

    title: str
    licence: str
    link: str
    """Page of its authors."""
    downloads: tuple[Download, ...]
    fields: Mapping[str, str | int]
    """Fields of a spec's section `data`, without the path."""
    unpacks: Literal["", "cifar10", "flowers", "flowers102"] = ""
    """How the downloads become the layout; empty: they are it."""

    @property
    def bytes(self) -> int:
        return sum(download.bytes for download in self.downloads)


_MNIST_NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_IDX_LAYOUT = ", ".join(f"{name}-ubyte.gz" for name in _MNIST_NAMES)


def _idx(bases: tuple[str, ...], sums: tuple[tuple[str, int], ...]) -> tuple[Download, ...]:
    names = [f"{name}-ubyte.gz" for name in _MNIST_NAMES]
    return tuple(
        Download(name, sha256, size, tuple(base + name for base in bases))
        for name, (sha256, size) in zip(names, sums, strict=True)
    )


_VGG = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
DATA_SETS: dict[str, KnownSet] = {
    "mnist": KnownSet(
        "MNIST, 70,000 digits of 28 x 28",
        "CC BY-SA 3.0, as is generally stated; Y. LeCun, C. Cortes, C. J. C. Burges",
        "http://yann.lecun.com/exdb/mnist/",
        _idx(
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
            (
                ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9912422),
                ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28881),
                ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1648877),
                ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4542),
            ),
        ),
        {"source": "idx"},
    ),
    "fashion_mnist": KnownSet(
        "Fashion-MNIST, 70,000 articles of clothing of 28 x 28",
        "MIT; Zalando SE",
        "https://github.com/zalandoresearch/fashion-mnist",
        _idx(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            (
                ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26421880),
                ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29515),
                ("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4422102),
                ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5148),
            ),
        ),
        {"source": "idx"},
    ),
    "cifar10": KnownSet(
        "CIFAR-10, 60,000 images of 32 x 32 in 10 classes",
        "none stated by its authors; in general use for research; A. Krizhevsky, 2009",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (
            Download(
                "cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                170052171,
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            ),
        ),
        {"source": "parquet"},
        "cifar10",
    ),
    "flowers": KnownSet(
        "TensorFlow's flower_photos, 3,670 photographs in 5 classes",
        "CC BY 2.0; LICENSE.txt in its folder names the photographers, who are to be credited",
        "https://www.tensorflow.org/datasets/catalog/tf_flowers",
        (
            Download(
                "flower_photos.tgz",
                "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
                228813984,
                (
                    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
                    "http://download.tensorflow.org/example_images/flower_photos.tgz",
                ),
            ),
        ),
        {"source": "folder", "size": 64, "crop": "centre"},
        "flowers",
    ),
    "flowers102": KnownSet(
        "Oxford 102 Flowers, 8,189 photographs in 102 classes",
        "none stated by its authors; M.-E. Nilsback and A. Zisserman, 2008",
        _VGG,
        tuple(
            Download(name, sha256, size, (_VGG + name,))
            for name, sha256, size in (
                ("102flowers.tgz", "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246", 344862509),
                ("imagelabels.mat", "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d", 502),
                ("setid.mat", "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd", 14989),
            )
        ),
        {"source": "folder", "size": 64, "crop": "centre"},
        "flowers102",
    ),
}
"""By the name that `fetch-data` takes."""

LAYOUTS = {
    "idx": f"{_IDX_LAYOUT}, packed or not",
    "parquet": "train*.parquet and, where there is one, test*.parquet or val*.parquet",
    "folder": "one sub-folder for each class, or train/CLASS/ and val/CLASS/",
    "zip": "one .zip file with folders of classes, or with dataset.json",
    "tar": "shards train*.tar with 0001.jpg beside 0001.cls",
    "prepared": "what `dsd-lab prepare` wrote",
}
"""What a source reads, in the words of a message."""
