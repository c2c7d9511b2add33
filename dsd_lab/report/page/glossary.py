"""Short explanations of a report's terms, so that a page is readable offline. `docs/metrics.md` has formulas."""

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
    """Prefixes of the column headers that it explains."""


GLOSSARY = (
    Term(
        "verdict",
        "Verdict",
        "Whether the latents of a trial collapsed, compared with the control of the same seed: shrunk (small scale or "
        "capacity), rank-collapsed (they vary in few directions), scale-runaway (exploding scale), or healthy.",
        ("verdict", "collapsed at"),
    ),
    Term(
        "control",
        "Control",
        "A variant without a diffusion loss: its latents are trained by reconstruction alone.",
        (),
    ),
    Term(
        "std",
        "Latent std",
        "Standard deviation of the latents over images and tokens. Diffusion adds noise with std 1; latents with a much "
        "smaller std are lost in it. In log10, a difference of 1 is a factor of 10.",
        ("latent std", "log10 latent std"),
    ),
    Term(
        "rank",
        "Effective rank",
        "The effective number of directions in which the latents vary: the exponential of the entropy of the normalised singular "
        "values (Roy and Vetterli 2007). At most the number of latent channels for tokens, and tokens x channels for images.",
        ("effective rank",),
    ),
    Term(
        "capacity",
        "Capacity",
        "Bits per token that the latents transmit through noise of variance 1, as added by diffusion: half the sum of "
        "log2(1 + variance) over directions. It decreases with scale and with rank; 0: no information.",
        ("capacity",),
    ),
    Term(
        "rank-gap",
        "Rank gap",
        "Effective rank of the clean target minus that of the clean prediction, at token level, in bins of the time t. Positive: "
        "the denoiser's predictions have the lower rank.",
        ("t in [",),
    ),
    Term(
        "fid",
        "FID, in-domain FID",
        "Distance between features of samples and of real images; 0 is best. In-domain FID uses a small classifier trained on "
        "the same data set. It can rank the rows of one table, but cannot be compared with published FIDs, which use Inception "
        "features. rFID: FID of reconstructions.",
        ("in-domain FID", "Inception FID", "FID", "rFID", "Inception rFID"),
    ),
    Term(
        "kid",
        "KID",
        "Kernel distance between the same features. Unlike FID, it has no bias with few images. Lower is better.",
        ("KID", "Inception KID"),
    ),
    Term(
        "score",
        "Inception score",
        "Confidence of the classifier on each sample, and diversity of its predictions over all. Higher is better; at most the "
        "number of classes.",
        ("inception score",),
    ),
    Term(
        "precision",
        "Precision, recall",
        "Precision: fraction of samples within the manifold of real images in feature space. Recall: fraction of real images "
        "within the manifold of samples.",
        ("precision", "recall"),
    ),
    Term(
        "accuracy",
        "Label accuracy",
        "How often the in-domain classifier predicts the label that a sample was drawn for.",
        ("label accuracy",),
    ),
    Term(
        "nearest",
        "Nearest training image",
        "Median RMS distance of a sample to its nearest training image, in grey levels of 255. Much below the value of real "
        "images: samples are copies.",
        ("nearest training image",),
    ),
    Term(
        "reconstruction",
        "PSNR, SSIM",
        "Similarity of held-out images and their reconstructions; higher is better.",
        ("PSNR", "SSIM"),
    ),
    Term(
        "probe",
        "kNN and linear probe accuracy",
        "Accuracy of predicting a held-out image's class from its latent, by its nearest training latents or a linear classifier.",
        ("kNN accuracy", "linear probe"),
    ),
    Term(
        "real",
        "Real images",
        "The row of that name has the metrics of as many real images in place of samples. An FID close to it is as good as possible.",
        (),
    ),
    Term(
        "interval",
        "95 % interval",
        "In brackets: Student's t interval of a mean over seeds, Clopper-Pearson interval of a fraction of seeds. With 3 seeds "
        "they are wide.",
        ("healthy",),
    ),
)
"""In the order of the page."""


def term_of(label: str) -> str:
    """The key of the term that explains a column header; empty if there is none."""
    return next((t.key for t in GLOSSARY if label.startswith(t.labels)), "") if label else ""


def first_terms(shown: Sequence[str]) -> list[Term]:
    """The terms explained at the top of a page.

    Args:
        shown: headers of the columns of its first table.
    """
    found = {term_of(label) for label in shown}
    return [t for t in GLOSSARY if t.key in ("verdict", "capacity", "fid") and t.key in found]
