"""Every bad spec is refused with one line: where, which key, which value, and what would be right.

One table, a row for each bad input; the numbers (B1 to B40) are those of the bad-input catalogue.
A row names the beginning of the message exactly (the place that a reader is sent to) and the parts
that it must hold. Unless a row gives a whole file, its lines follow the four of `HEAD`.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dsd_lab.errors import BAD_INPUT, BadInput
from dsd_lab.specs.inheritance import MAX_EXTENDS
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.sweep import MAX_TRIALS
from dsd_lab.specs.yaml_scalars import MAX_BYTES, MAX_DEPTH, MAX_NODES

pytestmark = pytest.mark.timeout(60)

HEAD = """\
name: bad
variants:
  control: {objective: {diffusion_weight: 0.0}}
  naive: {}
"""
FIVE = "spec.yaml:5: "
AXES = "grid: {optimiser.lr: [0.1, 0.2], network.width: [16, 32]}\nevaluate: [{steps: 5}]\nreport: "


@dataclass(frozen=True)
class Row:
    """A bad input: the file's text, overrides, other files beside it, and what the message says."""

    id: str
    text: str | bytes
    begins: str
    parts: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    profile: str | None = None
    files: dict[str, str] = field(default_factory=dict)


def bad(id: str, lines: str, begins: str, *parts: str, profile: str | None = None, **files: str) -> Row:
    """A row whose lines follow `HEAD`."""
    named = {f"{name}.yaml": text for name, text in files.items()}
    return Row(id, HEAD + lines, begins, parts, profile=profile, files=named)


def whole(id: str, text: str | bytes, begins: str, *parts: str) -> Row:
    """A row whose file is `text` alone."""
    return Row(id, text, begins, parts)


def override(id: str, sets: str | tuple[str, ...], begins: str, *parts: str, lines: str = "") -> Row:
    """A row of `--set` overrides of a good spec."""
    return Row(id, HEAD + lines, begins, parts, sets=(sets,) if isinstance(sets, str) else sets)


def chain(length: int) -> dict[str, str]:
    """Files p0.yaml, p1.yaml, ... that each extend the next."""
    return {f"p{i}.yaml": f"extends: p{i + 1}.yaml\n" for i in range(length)} | {f"p{length}.yaml": HEAD}


BILLION_LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)
)

NOT_A_SPEC = (
    whole("B3 an empty file", "", "spec.yaml: ", "the file is empty", "`name` and `variants`"),
    whole("B3 a file of comments", "# nothing\n\n---\n", "spec.yaml: ", "the file is empty"),
    whole("B3 a byte order mark alone", b"\xef\xbb\xbf", "spec.yaml: ", "the file is empty"),
    whole(
        "B4 latin-1 text", HEAD.encode() + b"why: caf\xe9\n", FIVE, "byte 0xe9 is not UTF-8", "save the file as UTF-8"
    ),
    whole("B4 UTF-16 text", HEAD.encode("utf-16"), "spec.yaml:1: ", "byte 0xff is not UTF-8"),
    whole("B4 a tab as indentation", "name: bad\nvariants:\n\tnaive: {}\n", "spec.yaml:3:1: ", "indent with spaces"),
    bad("B4 a NUL character", "why: a\0b\n", FIVE, "control character U+0000"),
    bad("B5 a list left open", "seeds: [0, 1\ngrid: {}\n", "spec.yaml:6:5: ", "a ',' or ']' is missing"),
    bad("B5 a mapping left open", "base: {data: {}\n", "spec.yaml:6:1: ", "a ',' or '}' is missing"),
    bad("B5 a quote left open", "why: 'what\n", "spec.yaml:6:1: ", "the closing quote is missing"),
    bad(
        "B5 a wrong indentation",
        "base:\n    data: {}\n  network: {}\n",
        "spec.yaml:7:3: ",
        "the indentation does not fit",
    ),
    bad("B5 text with a colon", "why: this: that\n", "spec.yaml:5:10: ", "quote text that contains ': '"),
    bad("B5 a key without a colon", "seeds\n", "spec.yaml:6:1: ", "a key without a ':' after it"),
    bad("B5 text that begins with @", "why: @home\n", "spec.yaml:5:6: ", "put it in quotes"),
    bad("B5 an alias of nothing", "base: *shared\n", "spec.yaml:5:7: ", "has no anchor"),
    bad(
        "B5 an escape that is no character", r'why: "\UFFFFFFFF"' "\n", "spec.yaml: ", "not valid YAML", "out of range"
    ),
    whole("B6 a list", "- name: bad\n", "spec.yaml:1: ", "a spec is a mapping of keys to values", "not a list"),
    whole(
        "B6 a text", "# hello\nhello\n", "spec.yaml:2: ", "a spec is a mapping of keys to values", "not a single value"
    ),
    bad("B7 two documents", "---\nname: other\n", "spec.yaml:5:1: ", "a second document starts here"),
    bad("B8 a key twice", "name: other\n", FIVE, "the key 'name' appears twice"),
    bad(
        "B8 a nested key twice",
        "base:\n  optimiser:\n    lr: 1e-3\n    lr: 1e-4\n",
        "spec.yaml:8: ",
        "the key 'base.optimiser.lr' appears twice",
    ),
    bad("B8 a key twice in one line", "base: {data: {}, data: {}}\n", FIVE, "the key 'base.data' appears twice"),
    bad("a list as a key", "? [a, b]\n: 1\n", FIVE, "a key is plain text"),
    bad("a mapping as a key", "{a: b}: 1\n", FIVE, "a key is plain text"),
    bad("a number as a key", "1: x\n", FIVE, "unknown key '1'"),
    bad("null as a key", "~: x\n", FIVE, "unknown key '~'"),
    bad("a merge key", "base: {<<: {data: {}}}\n", FIVE, "merge keys (`<<`) are not read", "`extends`"),
    bad("B23 a Python object", "base: !!python/object:os.system {}\n", FIVE, "python/object:os.system' is not allowed"),
    bad("B23 a Python call", "why: !!python/object/apply:os.system ['id']\n", FIVE, "is not allowed in a spec"),
    bad("B23 a Python name", "why: !!python/name:os.system\n", FIVE, "is not allowed in a spec"),
    bad("B23 a Python tuple", "seeds: !!python/tuple [0]\n", FIVE, "python/tuple' is not allowed"),
    bad("B23 a tag on a key", "!!python/name:os.system why: x\n", FIVE, "is not allowed in a spec"),
    bad("B23 a tag of one's own", "why: !mine x\n", FIVE, "the tag '!mine' is not allowed"),
    bad("B23 a set", "base: !!set {data}\n", FIVE, "2002:set' is not allowed"),
    bad("B23 a list that is called a mapping", "base: !!map []\n", FIVE, "2002:map' is not allowed"),
    bad("B23 text that is called a number", "seeds: [!!int zero]\n", FIVE, "'zero' is not what its tag `!!int` says"),
    whole("B24 a billion laughs", BILLION_LAUGHS, "spec.yaml:1: ", f"more than {MAX_NODES:,} values once aliases"),
    bad(
        "B24 a mapping that holds itself",
        "base: &b {data: *b}\n",
        FIVE,
        "an alias refers to the value that contains it",
    ),
    bad("B24 a list that holds itself", "seeds: &s [*s]\n", FIVE, "an alias refers to the value that contains it"),
    whole("B25 10 MB of comments", b"#" * 10_000_000, "spec.yaml: ", f"larger than {MAX_BYTES:,} bytes"),
    bad(
        "B25 very many values",
        f"seeds: [{'1,' * MAX_NODES}]\n",
        "spec.yaml:5:",
        f"more than {MAX_NODES:,} keys and values",
    ),
    bad(
        "B25 10,000 lists in each other",
        "seeds: " + "[" * 10_000,
        "spec.yaml:5:57: ",
        f"more than {MAX_DEPTH} levels deep",
    ),
    bad(
        "B25 10,000 mappings in each other",
        "base: " + "{a: " * 10_000,
        "spec.yaml:5:",
        f"more than {MAX_DEPTH} levels deep",
    ),
    whole(
        "B25 mappings in each other, line by line",
        "".join(f"{' ' * i}a:\n" for i in range(200)),
        f"spec.yaml:{MAX_DEPTH}:",
        f"more than {MAX_DEPTH} levels deep",
    ),
)

KEYS_AND_TYPES = (
    whole("no name", "variants: {naive: {}}\n", "spec.yaml:1: ", "the key 'name' is missing"),
    whole("no variants", "name: bad\n", "spec.yaml:1: ", "the key 'variants' is missing"),
    whole("neither", "why: nothing\n", "spec.yaml:1: ", "the key 'name' is missing (and 1 more)"),
    bad("B9 an unknown key", "sead: [0]\n", FIVE, "unknown key 'sead'", "did you mean 'seeds'?"),
    bad(
        "B9 an unknown field",
        "base: {optimiser: {lrr: 1.0}}\n",
        FIVE,
        "'optimiser.lrr'",
        "did you mean 'optimiser.lr'?",
    ),
    bad("B9 an unknown section", "base: {optimizer: {lr: 1.0}}\n", FIVE, "'optimizer'", "did you mean 'optimiser'?"),
    bad("B9 a field without its section", "base: {steps: 10}\n", FIVE, "'steps'", "did you mean 'training.steps'?"),
    bad("B9 a field in another section", "base: {optimiser: {steps: 10}}\n", FIVE, "did you mean 'training.steps'?"),
    bad("B9 a field that two sections have", "base: {images: 10}\n", FIVE, "'probe.images' or 'observation.images'"),
    bad(
        "B9 a section at the top", "training: {steps: 10}\n", FIVE, "'training'", "it belongs under 'base' or a variant"
    ),
    bad("B9 a key unlike any", "qqq: 1\n", FIVE, "unknown key 'qqq'", "known: base, data_from, evaluate, grid"),
    bad("B9 an unknown key of the report", "report: {rnk: 0.5}\n", FIVE, "did you mean 'report.rank'?"),
    bad(
        "B9 an unknown key of an evaluation",
        "evaluate:\n  - {steps: 5}\n  - {step: 5}\n",
        "spec.yaml:7: ",
        "unknown key 'evaluate.1.step'",
        "did you mean 'evaluate.1.steps'?",
    ),
    bad("B12 `on` is a key like another", "on: true\n", FIVE, "unknown key 'on'"),
    bad("B12 `no` is text", "base: {training: {steps: no}}\n", FIVE, "training.steps: 'no'", "a whole number"),
    bad("B12 `yes` is text", "seeds: [yes]\n", FIVE, "seeds.0: 'yes'", "a whole number"),
    bad("B12 1:30 is text, not 90", "base: {training: {steps: 1:30}}\n", FIVE, "training.steps: '1:30'"),
    bad("B12 a date is text", "seeds: [2024-01-31]\n", FIVE, "seeds.0: '2024-01-31'"),
    bad("B12 0x10 is text", "seeds: [0x10]\n", FIVE, "seeds.0: '0x10'"),
    bad("B12 1_000 is text", "base: {training: {steps: 1_000}}\n", FIVE, "training.steps: '1_000'"),
    bad("B10 a number in quotes", 'base: {optimiser: {lr: "1e-3"}}\n', FIVE, "optimiser.lr: '1e-3'", "without quotes"),
    bad("B10 text for a number", "base: {optimiser: {lr: small}}\n", FIVE, "optimiser.lr: 'small'", "must be a number"),
    bad("B10 a fraction for a whole number", "base: {training: {steps: 1.5}}\n", FIVE, "training.steps: 1.5", "whole"),
    bad("B10 1e3 for a whole number", "base: {training: {steps: 1e3}}\n", FIVE, "training.steps: 1000.0", "write 1000"),
    bad("B10 true for a number", "base: {training: {steps: true}}\n", FIVE, "training.steps: true", "a whole number"),
    bad("B10 a number for text", "base: {data: {revision: 2}}\n", FIVE, "data.revision: 2", "write '2' in quotes"),
    bad("B10 nothing for a mapping", "base:\n", FIVE, "base: null", "a mapping", "write {}"),
    bad("B10 nothing for a section", "base:\n  data:\n", "spec.yaml:6: ", "data: null", "a mapping"),
    bad("B10 text for a mapping", "base: digits\n", FIVE, "base: 'digits'", "a mapping of keys to values"),
    bad(
        "B10 a list for a mapping", "base: {data: [digits]}\n", FIVE, "data: ['digits']", "a mapping of keys to values"
    ),
    bad(
        "B10 a mapping for a value",
        "base: {network: {width: {a: 1}}}\n",
        FIVE,
        "network.width: {'a': 1}",
        "whole number",
    ),
    bad("B10 a mapping for a size", "base: {network: {size: {a: 1}}}\n", FIVE, "network.size: {'a': 1}", "'nano8'"),
    bad("B10 a list for a size", "base: {network: {size: [nano8]}}\n", FIVE, "network.size: ['nano8']", "'nano8'"),
    bad("B10 null for a size", "base: {network: {size: null}}\n", FIVE, "network.size: null", "'nano8'"),
    bad("B10 a mapping for a list", "evaluate: {steps: 5}\n", FIVE, "evaluate: {'steps': 5}", "must be a list"),
    bad("B10 a number for why", "why: 2024\n", FIVE, "why: 2024", "write '2024' in quotes"),
    bad(
        "B10 a name that is a choice's misspelling",
        "base: {objective: {target: stopgradient}}\n",
        FIVE,
        "'stopgradient'",
        "'live', 'stop_gradient' or 'ema'",
        "did you mean 'stop_gradient'?",
    ),
    bad(
        "B10 either a number or a word",
        "evaluate: [{images: all}]\n",
        FIVE,
        "evaluate.0.images: 'all'",
        "a whole number or 'holdout'",
    ),
    bad("B10 a very long value is cut", f"base: {{data: {{source: {'x' * 5000}}}}}\n", FIVE, "xxx...", "'digits'"),
    bad("a very long key is cut", f"{'x' * 1000}: 1\n", FIVE, "xxx...'"),
    bad("a line break in a key is escaped", '"a\\nb": 1\n', FIVE, r"unknown key 'a\\nb'"),
    bad("a surrogate in a value is escaped", 'base: {data: {source: "\\uD800"}}\n', FIVE, r"\ud800"),
    whole(
        "B10 a name that is a number", "name: 7\nvariants: {a: {}}\n", "spec.yaml:1: ", "name: 7", "write '7' in quotes"
    ),
    bad("B35 a newer format", "schema: 2\n", FIVE, "schema: 2 is a newer format", "update dsd-lab"),
    bad("B35 a format that never was", "schema: 0\n", FIVE, "schema: 0 is not valid"),
)

VALUES = (
    bad("B13 not a number", "base: {optimiser: {lr: .nan}}\n", FIVE, "optimiser.lr: nan", "a finite number"),
    bad("B13 infinity", "base: {objective: {clamp: .inf}}\n", FIVE, "objective.clamp: inf", "a finite number"),
    bad("B13 minus infinity", "base: {time: {mean: -.inf}}\n", FIVE, "time.mean: -inf", "a finite number"),
    bad("B13 a number past all floats", "base: {optimiser: {lr: 1e999}}\n", FIVE, "optimiser.lr: inf", "a finite number"),
    bad("B13 a number past all bounds", f"seeds: [{'9' * 30}]\n", FIVE, "seeds.0: 9999", "below 9,223,372,036,854,775,808"),
    bad("B13 a number of 5,000 digits", f"seeds: [{'9' * 5000}]\n", FIVE, "99999999999999999999...", "too long for a number"),
    bad("B14 no steps", "base: {training: {steps: 0}}\n", FIVE, "training.steps: 0", "must be at least 1"),
    bad("B14 negative steps", "base: {training: {steps: -5}}\n", FIVE, "training.steps: -5", "must be at least 1"),
    bad("B14 an empty batch", "base: {training: {batch_size: 0}}\n", FIVE, "training.batch_size: 0", "at least 1"),
    bad("B14 a rate of zero", "base: {optimiser: {lr: 0}}\n", FIVE, "optimiser.lr: 0", "must be above 0"),
    bad("B14 a decay of one", "base: {training: {weight_ema: 1}}\n", FIVE, "training.weight_ema: 1", "must be below 1"),
    bad("B14 a negative image size", "base: {network: {image_size: -8}}\n", FIVE, "network.image_size: -8", "at least 2"),
    bad("B14 too many steps", "base: {training: {steps: 2000000000}}\n", FIVE, "must be at most 1,000,000,000"),
    bad("B15 a batch that its parts do not divide", "base: {training: {batch_size: 8, grad_accum_steps: 3}}\n", FIVE,
        "training.grad_accum_steps: 3 does not divide batch_size 8"),
    bad("guidance where no label is dropped", "base: {labels: {drop: 0}}\nevaluate: [{guidance: 2.0}]\n", "spec.yaml:6: ",
        "evaluate.0.guidance", "labels.drop 0", "needs a drop above 0 and below 1"),
    bad("guidance where every label is dropped", "base: {labels: {drop: 1}}\nevaluate: [{guidance: [1.0, 2.0]}]\n", "spec.yaml:6: ",
        "evaluate.1.guidance", "labels.drop 1", "needs a drop above 0 and below 1"),
    bad("a field under its earlier name", "base: {training: {accumulate: 2}}\n", FIVE,
        "unknown key 'training.accumulate'; it is 'training.grad_accum_steps' since schema version 2"),
    bad("a field under its earlier name, without its section", "base: {more_emas: [0.9]}\n", FIVE,
        "it is 'training.extra_ema_decays' since schema version 2"),
    bad("an axis under its earlier name", "grid: {training.flow_steps: [1, 2]}\n", FIVE, "'training.noise_draws'"),
    bad("a field that is gone", "base: {training: {cuda_graphs: false}}\n", FIVE,
        "unknown key 'training.cuda_graphs'; no GPU has run CUDA graphs; remove the key"),
    bad("a value under its earlier name", "base: {optimiser: {schedule: tail}}\n", FIVE,
        "optimiser.schedule: 'tail' is not valid", "'wsd', as 'tail' is named since schema version 2"),
    bad("B16 patches that do not fit", "base:\n  network:\n    patch_size: 3\n", "spec.yaml:7: ",
        "network.patch_size: 3 does not divide image_size 8"),
    bad("B16 an image that no patches fit", "base:\n  network:\n    image_size: 9\n", "spec.yaml:7: ",
        "network.patch_size: 4 does not divide image_size 9"),
    bad("B17 heads that do not fit", "base: {network: {heads: 5}}\n", FIVE, "network.heads: 5 does not divide width 64"),
    bad("B17 a width that no heads fit", "base:\n  network:\n    width: 66\n", "spec.yaml:7: ",
        "network.heads: 4 does not divide width 66"),
    bad("B17 a width that is odd in quarters", "base: {network: {width: 30, heads: 2}}\n", FIVE, "network.width: 30",
        "multiple of 4"),
    bad("B28 nothing to train", "base: {objective: {reconstruction_weight: 0}}\n", "spec.yaml:5: ",
        "both loss weights are 0", "(variant 'control')"),
    bad("B28 an average without a decay", "base: {objective: {target: ema, target_decay: null}}\n", FIVE,
        "objective.target_decay: null", "a number"),
    bad("B28 a longer warm-up than training", "base:\n  optimiser: {warmup_steps: 20}\n  training: {steps: 10}\n",
        "spec.yaml:6: ", "optimiser.warmup_steps: 20 is more than training.steps (10)"),
    bad("B30 one GPU and a half", "base: {resources: {gpus: 1.5}}\n", FIVE, "resources.gpus: 1.5 is neither a fraction of one GPU nor a whole number"),
    bad("B30 two GPUs and three processes", "base: {resources: {gpus: 2, processes: 3}}\n", FIVE, "resources.processes: 3",
        "each process has one GPU"),
    bad("B30 more processes than images", "base: {training: {batch_size: 2}, resources: {processes: 3}}\n", FIVE,
        "resources.processes: 3 processes share 2 images", "each needs one"),
    bad("B30 a negative number of GPUs", "base: {resources: {gpus: -1}}\n", FIVE, "resources.gpus: -1", "at least 0"),
    bad("B30 no CPU", "base: {resources: {cpus: 0}}\n", FIVE, "resources.cpus: 0", "must be above 0"),
    bad("B30 no thread", "base: {resources: {threads: 0}}\n", FIVE, "resources.threads: 0", "at least 1"),
    bad("B31 an unknown source of images", "base: {data: {source: mnist}}\n", FIVE, "data.source: 'mnist'",
        "'digits', 'idx', 'parquet', 'folder', 'datasets', 'zip', 'tar' or 'prepared'"),
    bad("a model's name with a folder", "base: {auxiliary: {alignment: 1.0, alignment_to: timm/vit}}\n", FIVE,
        "auxiliary.alignment_to", "at most 64 letters, digits"),
    bad("an empty list of layers", "base: {auxiliary: {alignment_layers: []}}\n", FIVE,
        "auxiliary.alignment_layers", "given at least one entry"),
    bad("a layer that is no whole number", "base: {auxiliary: {alignment_layers: [0.5]}}\n", FIVE,
        "auxiliary.alignment_layers.0", "a whole number"),
    bad("a crop as large as the image", "base: {augmentation: {crop: 8}}\n", FIVE,
        "augmentation.crop: 8 is not below network.image_size (8)"),
    bad("a perceptual loss without weights", "base: {objective: {perceptual_weight: 1.0, perceptual_backbone: vgg16}}\n", FIVE,
        "objective.perceptual_weights", "needs a file, `pretrained` or `random`"),
    bad("B31 a misspelt source of images", "base: {data: {source: digit}}\n", FIVE, "did you mean 'digits'?"),
    bad("B31 a source without a folder", "base:\n  data:\n    source: idx\n", "spec.yaml:7: ",
        "data.path: source 'idx' needs the folder"),
    bad("B31 a folder without a source", "base: {data: {path: images}}\n", FIVE, "data.path: digits come with"),
    bad("B31 an image folder without a folder", "base: {data: {source: folder}}\n", FIVE, "data.path: source 'folder' needs"),
    bad("B31 the Hub without a name", "base: {data: {source: datasets}}\n", FIVE, "data.hub: source 'datasets' needs a name"),
    bad("B31 the Hub with a folder", "base: {data: {source: datasets, path: x, hub: a/b}}\n", FIVE, "data.path:", "named by `hub`"),
    bad("B31 a name on the Hub with a protocol", "base: {data: {source: datasets, hub: 'hf://a/b'}}\n", FIVE, "data.hub: 'hf://a/b'"),
    bad("B31 a name on the Hub beside a folder", "base: {data: {source: folder, path: x, hub: a/b}}\n", FIVE,
        "data.hub: source 'folder' ignores it; it applies to datasets"),
    bad("B31 columns of a folder", "base: {data: {source: folder, path: x, label_column: y}}\n", FIVE,
        "data.label_column: source 'folder' ignores it"),
    bad("B31 damaged digits", "base: {data: {damaged: skip}}\n", FIVE, "data.damaged: source 'digits' ignores it"),
    bad("B31 a stream of idx files", "base: {data: {source: idx, path: x, memory: stream}}\n", FIVE,
        "data.memory: source 'idx' is always resident"),
    bad("B31 images of one pixel", "base: {data: {size: 1}}\n", FIVE, "data.size: 1", "at least 2"),
    bad("B31 a crop to the left", "base: {data: {crop: left}}\n", FIVE, "data.crop: 'left'", "'none' or 'centre'"),
    bad("B31 damage that is ignored", "base: {data: {damaged: ignore}}\n", FIVE, "data.damaged: 'ignore'", "'refuse' or 'skip'"),
    bad("B31 fewer than no workers", "base: {data: {workers: -1}}\n", FIVE, "data.workers: -1", "at least 0"),
    bad("B31 a folder of nobody", "base: {data: {source: idx, path: ~nobody-of-this-name/x}}\n", FIVE,
        "data.path: no such user", "~nobody-of-this-name/x"),
    bad("B31 a name with a slash", "base: {data: {name: a/b}}\n", FIVE, "data.name: 'a/b'", "letters, digits"),
    bad("B32 probes never", "base: {probe: {every: 0}}\n", FIVE, "probe.every: 0", "at least 1"),
    bad("B32 checkpoints never", "base: {observation: {checkpoint_every: 0}}\n", FIVE, "checkpoint_every: 0", "at least 1"),
    bad("B33 a distance of one image", "evaluate: [{images: 1}]\n", FIVE, "evaluate.0.images: 1 is not between 2"),
    bad("B34 a choice by what nothing measures", "grid: {optimiser.lr: [0.1, 0.2]}\nevaluate: [{steps: 5}]\nreport: {tuned: {by: fdi}}\n",
        "spec.yaml:7: ", "report.tuned.by: nothing in this spec measures 'fdi'", "did you mean 'fid'?"),
    bad("B34 a choice by what no evaluation measures", "grid: {optimiser.lr: [0.1, 0.2]}\nevaluate: [{metrics: [fid]}]\nreport: {tuned: {by: kid}}\n",
        "spec.yaml:7: ", "report.tuned.by: nothing in this spec measures 'kid'", "did you mean 'fid'?"),
    bad("B34 a map of what is no axis", AXES + "{map: {x: optimiser.lr, y: network.widht}}\n", "spec.yaml:7: ",
        "report.map.y: 'network.widht' is no axis", "did you mean 'network.width'?"),
    bad("B34 a map of one axis", AXES + "{map: {x: network.width, y: network.width}}\n", "spec.yaml:7: ",
        "report.map.y: 'network.width' is report.map.x too", "two axes"),
    bad("B34 a map of the tuned axis", AXES + "{map: {x: optimiser.lr, y: network.width}, tuned: {}}\n", "spec.yaml:7: ",
        "report.map.x: 'optimiser.lr' is report.tuned.axis too"),
    bad("B34 a map of what nothing measures", AXES + "{map: {x: optimiser.lr, y: network.width, by: fdi}}\n", "spec.yaml:7: ",
        "report.map.by: nothing in this spec measures 'fdi'", "did you mean 'fid'?"),
    bad("B19 a factor on the steps that is none", "profiles: {p: {variants: {naive: {steps_factor: twice}}}}\n", FIVE,
        "variants.naive.steps_factor: 'twice'", "0.01 to 100", profile="p"),
    bad("B34 a control that is no variant", "report: {control: contrl}\n", FIVE, "report.control: no variant 'contrl'",
        "did you mean 'control'?"),
    bad("B34 a reference that is no variant", "report: {reference: contrl}\n", FIVE,
        "report.reference: no variant 'contrl'", "did you mean 'control'?"),
)  # fmt: skip

NAMES_SEEDS_AND_GRIDS = (
    whole("B18 no variant", "name: bad\nvariants: {}\n", "spec.yaml:2: ", "variants: {}", "at least one entry"),
    whole("B18 variants that are null", "name: bad\nvariants:\n", "spec.yaml:2: ", "variants: null", "a mapping"),
    whole("B18 a list of variants", "name: bad\nvariants: [a, b]\n", "spec.yaml:2: ", "variants: ['a', 'b']", "a mapping"),
    whole("B18 a variant that is null", "name: bad\nvariants:\n  a:\n", "spec.yaml:3: ", "variants.a: null", "write {}"),
    whole("B19 a variant twice", "name: bad\nvariants:\n  a: {}\n  a: {}\n", "spec.yaml:4: ", "'variants.a' appears twice"),
    bad("B19 a variant's why that is no text", "profiles: {p: {variants: {naive: {why: [1]}}}}\n", FIVE,
        "variants.naive.why: [1]", "text", profile="p"),
    *(
        whole(f"B20 a sweep that is called {name!r:.20}", f"name: {name!r}\nvariants: {{a: {{}}}}\n".replace(r"\n'", "\n\n  '"),
              "spec.yaml:1: ", "name: ", "is not valid", "at most 64 lower-case letters")
        for name in ("Bad", "a b", "a/b", "../up", ".hidden", "", "x" * 65, "y" * 300, "é", "🙂", "-a", "a\n")
    ),
    *(
        whole(f"B20 a variant that is called {name!r:.20}", f"name: ok\nvariants:\n  ok: {{}}\n  {shown}: {{}}\n",
              "spec.yaml:4: ", "variants.", "is not valid", "at most 64 lower-case letters")
        for name, shown in (
            ("Naive", "Naive"), ("a b", "a b"), ("a/b", "a/b"), ("..", "'..'"), ("", "''"), ("x" * 65, "x" * 65),
            ("é", "é"), ("🙂", "🙂"), ("a newline", '"a\\n"'), ("a=b", "a=b"), ("a,b", "a,b"),
        )
    ),
    whole("B20 a name that could be a profile's", "name: a--b\nvariants: {a: {}}\n", "spec.yaml:1: ", "name: 'a--b'", "'--'"),
    bad("B21 a grid of a million trials", f"grid:\n  training.steps: {list(range(1, 1001))}\n"
        f"  training.batch_size: {list(range(1, 501))}\n", FIVE, "2 x 1000 x 500 x 3 = 3,000,000 trials", f"{MAX_TRIALS:,}"),
    bad("B21 a grid past all memory", "grid:\n" + "".join(f"  a{i}: {list(range(100))}\n" for i in range(20)), FIVE,
        "trials; at most 10,000"),
    bad("B21 a grid without values", "grid: {training.steps: []}\n", FIVE, "grid.training.steps: []", "at least one entry"),
    bad("B21 a grid of one value", "grid: {training.steps: 5}\n", FIVE, "grid.training.steps: 5", "a list: write [5]"),
    bad("B29 a seed twice", "seeds: [3, 4, 3]\n", FIVE, "seeds: 3 is repeated"),
    bad("B29 a negative seed", "seeds:\n  - 0\n  - -1\n", "spec.yaml:7: ", "seeds.1: -1", "at least 0"),
    bad("B29 a seed past 2^63", f"seeds: [{2**63}]\n", FIVE, f"seeds.0: {2**63}", "below"),
    bad("B29 a seed that is text", 'seeds: ["0"]\n', FIVE, "seeds.0: '0'", "a whole number"),
    bad("B29 a seed that is true", "seeds: [true]\n", FIVE, "seeds.0: true", "a whole number"),
    bad("B29 one seed that is no list", "seeds: 5\n", FIVE, "seeds: 5", "a list: write [5]"),
    bad("B29 no seeds", "seeds: []\n", FIVE, "seeds: []", "at least one entry"),
    bad("B38 an unknown profile", "profiles: {quick: {}}\n", "--profile quik: ", "no profile 'quik'",
        "did you mean 'quick'?", profile="quik"),
    bad("B38 a profile of a spec without any", "", "--profile quick: ", "no profile 'quick' in this spec; it has none",
        profile="quick"),
    bad("an unknown profile by default", "profile: quik\nprofiles: {quick: {}}\n", FIVE, "profile: no profile 'quik'",
        "did you mean 'quick'?"),
    bad("a default profile that is a list", "profile: [quick]\nprofiles: {quick: {}}\n", FIVE, "no profile"),
    bad("a profile that is text", "profile: quick\nprofiles: {quick: fast}\n", "spec.yaml:6: ",
        "profiles.quick: 'fast'", "a mapping"),
)  # fmt: skip

PLACES = (
    whole("an error in the base is said once, for no variant", "name: bad\nbase:\n  training: {steps: 0}\nvariants: {a: {}, b: {}}\n",
          "spec.yaml:3: training.steps: 0 is not valid; it must be at least 1"),
    bad("an error in a variant is at the variant", "base: {optimiser: {lr: 1.0}}\nprofiles:\n  p:\n    variants:\n      naive:\n"
        "        optimiser: {lr: -1.0}\n", "spec.yaml:10: ", "optimiser.lr: -1.0", "(variant 'naive')", profile="p"),
    whole("the same error in two variants is two errors", "name: bad\nvariants:\n  a: {training: {steps: 0}}\n  b: {training: {steps: 0}}\n",
          "spec.yaml:3: ", "(variant 'a') (and 1 more)"),
    bad("two errors in the base are two", "base: {training: {steps: 0, batch_size: 0}}\n", FIVE, "training.steps", "(and 1 more)"),
    bad("an error in a grid is at its value", "grid:\n  training.steps:\n    - 10\n    - 0\n", "spec.yaml:8: ", "training.steps: 0"),
    bad("an unknown key in a grid is at the axis", "grid:\n  optimiser.lrr: [1.0]\n", "spec.yaml:6: ", "unknown key 'optimiser.lrr'"),
    bad("a grid through a value", "grid: {training.steps.more: [1]}\n", FIVE, "training.steps: {'more': 1}"),
    bad("a grid that is too deep", f"grid: {{{'a.' * 99}a: [1]}}\n", FIVE, f"more than {MAX_DEPTH} levels deep"),
    bad("an error in a profile is at the profile", "profile: p\nprofiles:\n  p: {base: {training: {steps: 0}}}\n", "spec.yaml:7: ",
        "training.steps: 0"),
    bad("an unknown key in a profile is at the profile", "profiles:\n  p: {sead: [0]}\n", "spec.yaml:6: ", "'sead'", profile="p"),
    bad("an error that a file inherits is in the parent", "extends: parent.yaml\n", "parent.yaml:2: ", "training.steps: 0",
        parent="base:\n  training: {steps: 0}\n"),
    bad("an error over what a file inherits is in the file", "extends: parent.yaml\nbase: {training: {steps: 0}}\n", "spec.yaml:6: ",
        "training.steps: 0", parent="base:\n  training: {steps: 5}\n"),
    bad("bad YAML in the parent is in the parent", "extends: parent.yaml\n", "parent.yaml:2:1: ", "not valid YAML", parent="a: [1\n"),
    bad("a warm-up that a variant makes too long", "base:\n  optimiser: {warmup_steps: 500}\nprofile: p\n"
        "profiles: {p: {variants: {naive: {training: {steps: 10}}}}}\n", "spec.yaml:6: ",
        "optimiser.warmup_steps: 500 is more than training.steps (10)", "(variant 'naive')"),
    bad("two folders of one name", "base: {data: {source: idx}}\ngrid:\n  data.path: [a/images, b/images]\n", "",
        "'control path=a/images s0'", "'control path=b/images s0'", "data.name"),
)  # fmt: skip

EXTENDS = (
    bad("B22 a missing parent", "extends: none.yaml\n", FIVE, "extends: no such file 'none.yaml'"),
    bad("B22 a parent that is a folder", "extends: .\n", FIVE, "extends: no such file '.'"),
    bad("B22 itself", "extends: spec.yaml\n", FIVE, "extends: 'spec.yaml' leads back to itself"),
    bad("B22 a cycle", "extends: other.yaml\n", "other.yaml:2: ", "'spec.yaml' leads back to itself",
        other="# comment\nextends: spec.yaml\n"),
    Row("B22 100 files deep", "extends: p0.yaml\n", f"p{MAX_EXTENDS - 1}.yaml:1: ", (f"more than {MAX_EXTENDS} files deep",),
        files=chain(100)),
    bad("B22 an absolute path", "extends: /etc/passwd\n", FIVE, "'/etc/passwd' is outside the folder of the spec"),
    bad("B22 a path that leads up", "extends: ../../etc/passwd\n", FIVE, "'../../etc/passwd' is outside the folder"),
    bad("B22 a list of parents", "extends: [a.yaml, b.yaml]\n", FIVE, "extends: ['a.yaml', 'b.yaml']", "not the name of a"),
    bad("B22 standard input as a parent", 'extends: "-"\n', FIVE, "extends: '-' is not the name of a spec file"),
    bad("B22 a name with a NUL", 'extends: "a\\0b"\n', FIVE, r"\x00", "NUL character, which cannot be stored"),
    bad("B22 a name that is too long", f"extends: {'x' * 5000}\n", FIVE, "extends: no such file 'xxx"),
    bad("extends in a profile", "profiles: {p: {extends: other.yaml}}\n", FIVE, "unknown key 'extends'", profile="p"),
)  # fmt: skip

OVERRIDES = (
    override("B27 no equals sign", "training.steps", "--set training.steps: ", "write training.steps=VALUE"),
    override("B27 no key", "=5", "--set =5: ", "write key.path=value"),
    override("B27 nothing at all", "", "--set : ", "write key.path=value"),
    override("B27 a hole in the path", "training..steps=5", "--set training..steps=5: ", "write key.path=value"),
    override("B27 no value", "training.steps=", "--set training.steps=: ", "training.steps: null", "a whole number"),
    override("B27 an unknown field", "training.step=5", "--set training.step=5: ", "did you mean 'training.steps'?"),
    override("B27 an unknown section", "trainin.steps=5", "--set trainin.steps=5: ", "did you mean 'training'?"),
    override("B27 a field without its section", "steps=5", "--set steps=5: ", "'steps'", "did you mean 'training.steps'?"),
    override("B27 another type", "training.steps=many", "--set training.steps=many: ", "'many'", "a whole number"),
    override("B27 a value out of range", "training.steps=0", "--set training.steps=0: ", "training.steps: 0", "at least 1"),
    override("B27 a section replaced by a value", "training=5", "--set training=5: ", "training: 5", "a mapping"),
    override("B27 a path through a value", "training.steps.more=5", "--set training.steps.more=5: ", "{'more': 5}"),
    override("B27 a value that is not YAML", "seeds=[0", "--set seeds=[0: not valid YAML: ", "a ',' or ']' is missing"),
    override("B27 a value of two documents", "why=a\n--- b", r"--set why=a\n--- b: ", "a second document starts here"),
    override("B27 a tag", "why=!!python/name:os.system", "--set why=!!python/name:os.system: ", "is not allowed"),
    override("B27 a key twice", "base={data: {}, data: {}}", "--set base={data: {}, data: {}}: ", "'data' appears twice"),
    override("B27 an unknown variant", "variants.naiv.training.steps=5", "--set variants.naiv.training.steps=5: ",
             "no variant 'naiv' in this spec", "did you mean 'naive'?"),
    override("B27 an unknown profile", "profiles.p.seeds=[0]", "--set profiles.p.seeds=[0]: ", "no profile 'p'"),
    override("B27 a profile that is not there", "profile=p", "--set profile=p: ", "no profile 'p'"),
    override("B27 a bad value of a variant", "variants.naive.training.steps=0", "--set variants.naive.training.steps=0: ",
             "(variant 'naive')"),
    override("B27 a bad value of an axis", "grid.training.steps=[1, 0]", "--set grid.training.steps=[1, 0]: ", "steps: 0"),
    override("B27 a warm-up that an override makes too long", "training.steps=5", "spec.yaml:5: ",
             "optimiser.warmup_steps: 10 is more than training.steps (5)", lines="base: {optimiser: {warmup_steps: 10}}\n"),
    override("B27 10,000 parts", ".".join(["base"] * 10_000) + "=1", "--set base.base.", "levels deep"),
    override("B27 10,000 lists in each other", "seeds=" + "[" * 10_000, "--set seeds=[[[", f"more than {MAX_DEPTH} levels"),
    override("B27 the last override of two", ("seeds=[0]", "seeds=[-1]"), "--set seeds=[-1]: ", "seeds.0: -1"),
)  # fmt: skip

ROWS = (*NOT_A_SPEC, *KEYS_AND_TYPES, *VALUES, *NAMES_SEEDS_AND_GRIDS, *PLACES, *EXTENDS, *OVERRIDES)


def message_of(row: Row, folder: Path) -> str:
    """What loading a row's spec says; the current folder must be `folder`."""
    for name, text in row.files.items():
        (folder / name).write_text(text)
    (folder / "spec.yaml").write_bytes(row.text if isinstance(row.text, bytes) else row.text.encode())
    with pytest.raises(BadInput) as caught:
        load_sweep(Path("spec.yaml"), row.profile, list(row.sets))
    assert caught.value.exit_code == BAD_INPUT
    return str(caught.value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_bad_spec_is_refused_with_one_line_that_names_place_key_value_and_remedy(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = message_of(row, tmp_path)
    assert message.isprintable()
    assert len(message) < 600
    assert message.startswith(row.begins)
    assert [part for part in row.parts if part not in message] == []


def test_no_two_rows_are_the_same() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert len({(row.text, row.sets, row.profile, *row.files.values()) for row in ROWS}) == len(ROWS)


# -- What is not the text of a file ------------------------------------------------------------------


def refusal(path: str, sets: list[str] | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        load_sweep(Path(path), None, sets)
    return str(caught.value)


def test_b1_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal("none.yaml") == "none.yaml: no such file"
    assert refusal("no/such/folder/none.yaml") == "no/such/folder/none.yaml: no such file"


def test_b2_a_folder_is_told_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert refusal("folder") == "folder: is a folder; name a YAML file in it"


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "spec.yaml/inside", "loop/spec.yaml", "line\nbreak"])
def test_a_path_that_no_file_can_have_is_refused_in_one_line(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(HEAD)
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(path).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(HEAD)
    path.chmod(0)
    assert refusal(str(path)) == f"{path}: cannot be read: Permission denied"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_device_in_place_of_a_spec_is_refused() -> None:
    assert refusal("/dev/zero") == "/dev/zero: is not a regular file; name a YAML file, or `-` for standard input"


def test_a_pipe_in_place_of_a_spec_is_refused_and_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "spec.yaml")
    assert "spec.yaml: is not a regular file" in refusal(str(tmp_path / "spec.yaml"))


def test_b22_a_parent_that_a_link_leads_out_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    (tmp_path / "secret.yaml").write_text(HEAD)
    (inside / "link.yaml").symlink_to("../secret.yaml")
    (inside / "spec.yaml").write_text("extends: link.yaml\n")
    assert refusal("spec.yaml").startswith("spec.yaml:1: extends: 'link.yaml' is outside the folder of the spec")


def test_b40_a_bad_spec_from_standard_input_is_called_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_stdin(content: bytes) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return refusal("-")

    assert on_stdin(b"").startswith("stdin: the file is empty")
    assert on_stdin(HEAD.encode() + b"seeds: 0\n").startswith("stdin:5: seeds: 0 is not valid; it must be a list")
    assert on_stdin(b"why: \xff\n").startswith("stdin:1: byte 0xff is not UTF-8")
    assert on_stdin(b"#" * 10_000_000).startswith(f"stdin: larger than {MAX_BYTES:,} bytes")
    monkeypatch.setattr(sys, "stdin", None)
    assert refusal("-") == "stdin: cannot be read"
