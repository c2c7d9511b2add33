"""The terms of a report in a sentence or two each: a page must explain itself without a network. `docs/metrics.md` has all, with formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A term of the glossary."""

    key: str
    """Its anchor is `glossary-<key>`."""
    name: str
    meaning: str
    labels: tuple[str, ...]
    """Beginnings of the headers of columns that it explains."""


GLOSSARY = (
    Term(
        "verdict",
        "Verdict",
        "Whether the latents of a trial collapsed, by comparison with the control of the same seed: shrunk (their scale or "
        "capacity is lost), rank-collapsed (they vary in few directions only), scale-runaway (their scale explodes), or healthy.",
        ("verdict", "collapsed at"),
    ),
    Term(
        "control",
        "Control",
        "A variant without a diffusion loss: what latents look like when only reconstruction shapes them.",
        (),
    ),
    Term(
        "std",
        "Latent std",
        "Standard deviation of the latents over images and tokens. Diffusion adds noise of std 1, which drowns latents of a "
        "much smaller one. In log10, a difference of 1 is a factor of 10.",
        ("latent std", "log10 latent std"),
    ),
    Term(
        "rank",
        "Effective rank",
        "The number of directions that the latents effectively fill: the exponential of the entropy of the normalised singular "
        "values (Roy and Vetterli 2007). For tokens at most the number of latent channels; for images at most tokens x channels.",
        ("effective rank",),
    ),
    Term(
        "capacity",
        "Capacity",
        "Bits per token that the latents carry through noise of variance 1, the noise that diffusion adds: half the sum of "
        "log2(1 + variance) over directions. It falls with scale and with rank; 0 means that nothing gets through.",
        ("capacity",),
    ),
    Term(
        "rank-gap",
        "Rank gap",
        "Effective rank of the clean target minus that of the clean prediction, token level, in bins of the time t. Positive: "
        "the denoiser predicts fewer directions than there are.",
        ("t in [",),
    ),
    Term(
        "fid",
        "FID, in-domain FID",
        "Distance between features of samples and of real images; 0 is best. In-domain: features of a small classifier trained "
        "on the same data set. It orders the rows of one table and cannot be compared with FIDs of Inception features, which "
        "publications give. rFID: the same of reconstructions.",
        ("in-domain FID", "Inception FID", "FID", "rFID", "Inception rFID"),
    ),
    Term(
        "kid",
        "KID",
        "Kernel distance between the same features; unlike FID without bias where images are few. Lower is better.",
        ("KID", "Inception KID"),
    ),
    Term(
        "score",
        "Inception score",
        "How sure the classifier is of each sample, and how varied all are. Higher is better; at most its number of classes.",
        ("inception score",),
    ),
    Term(
        "precision",
        "Precision, recall",
        "Share of samples that lie among real images in feature space, and share of real images that lie among samples.",
        ("precision", "recall"),
    ),
    Term(
        "accuracy",
        "Label accuracy",
        "How often the in-domain classifier finds the label that a sample was drawn for.",
        ("label accuracy",),
    ),
    Term(
        "nearest",
        "Nearest training image",
        "Median distance (RMS, grey levels of 255) of a sample to its nearest training image; much below that of real images: "
        "samples are copies.",
        ("nearest training image",),
    ),
    Term(
        "reconstruction",
        "PSNR, SSIM",
        "Likeness of held-out images and their reconstructions; higher is better.",
        ("PSNR", "SSIM"),
    ),
    Term(
        "probe",
        "kNN and linear probe accuracy",
        "How well the class of a held-out image is found from its latent, by its nearest training latents or by a linear classifier.",
        ("kNN accuracy", "linear probe"),
    ),
    Term(
        "real",
        "Real images",
        "The row of that name: what as many real images score in place of samples. A FID near it cannot be told from perfect.",
        (),
    ),
    Term(
        "interval",
        "95 % interval",
        "The brackets: of a mean over seeds by Student's t, of a share of seeds by Clopper and Pearson. With 3 seeds they are wide.",
        ("healthy",),
    ),
)
"""In the order in which a page has them."""


def term_of(label: str) -> str:
    """The key of the term that explains a column of this header; empty where none does."""
    return next((t.key for t in GLOSSARY if label.startswith(t.labels)), "") if label else ""


def first_terms(shown: Sequence[str]) -> list[Term]:
    """The terms that a page explains at its top.

    Args:
        shown: headers of the columns of its first table.
    """
    found = {term_of(label) for label in shown}
    return [t for t in GLOSSARY if t.key in ("verdict", "capacity", "fid") and t.key in found]
