"""Every model by every way to prune at every ratio: each cell passes or is refused with a reason.

A cell passes if the network ran before and after, ratio 0 kept its logits bit for bit, any other ratio removed
something, the method's own rule holds (two zeros of four, the number of zeros, multiples of 8), and stored weights
loaded into the dense architecture give the same logits.
"""

import copy
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.config.flags import OneLineParser
from trainables.layout import WEIGHTS
from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import OUT_OF_MEMORY, count, evaluating
from trainables.stages.models.torch_private import BatchNorm
from trainables.stages.models.weights import load_weights, save_weights
from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.methods import GROUP, PruneSummary, check_removed, compare, convolutions, prune

MODELS = (
    *("resnet18", "mobilenet_v3_small", "alexnet", "vgg16_bn", "efficientnet_b0", "densenet121"),
    "convnext_tiny",
)
TIMM = (
    *("timm:resnet18", "timm:mobilenetv3_small_050", "timm:efficientnet_lite0", "timm:regnetx_002"),
    *("timm:convnext_atto", "timm:vit_tiny_patch16_224", "timm:mixer_s32_224"),
)
"""One of each family, small ones; checked where timm is installed."""
RATIOS = (0.0, 0.3, 0.5, 0.8)
CLASSES, SIZE = 10, 32


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to prune: a method with its settings."""

    method: str
    criterion: str = "magnitude"
    scope: str = "layer"
    steps: int = 1

    def __str__(self) -> str:
        if self.method != "structured":
            return self.method
        return f"{self.criterion} {self.scope}" + (f" in {self.steps}" if self.steps > 1 else "")


WAYS = (
    *(Way(method=method) for method in ("l1_unstructured", "l1_global", "nm_2_4")),
    Way(method="structured"),
    Way(method="structured", steps=3),
    Way(method="structured", scope="sensitivity"),
    Way(method="structured", scope="global"),
    Way(method="structured", scope="global", criterion="lamp"),
    *(Way(method="structured", scope=scope, criterion="taylor") for scope in ("layer", "global")),
    *(Way(method="structured", scope=scope, criterion="bn_scale") for scope in ("layer", "global")),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The outcome for one model, way and ratio."""

    verdict: str
    """`pass`, `refused` or `FAILED`."""
    text: str
    """What is left of the network, or the reason."""


def check(name: str, way: Way, ratio: float, dense: nn.Module) -> Cell:
    """Prune a copy of `dense` and check that the result is what was asked for."""
    model = copy.deepcopy(dense)
    try:
        summary = _prune(model, way, ratio)
    except ValueError as error:
        refused = ratio > 0 and error.__cause__ is None  # with a cause it wraps a crash
        return Cell(verdict="refused" if refused else "FAILED", text=str(error))
    except OUT_OF_MEMORY:  # says nothing about the model
        raise
    except Exception as error:  # crashes are what this table is for
        return Cell(verdict="FAILED", text=f"{type(error).__name__}: {error}")
    if fault := next(_faults(name, model, dense, way, ratio, summary), None):
        return Cell(verdict="FAILED", text=fault)
    if way.method == "structured":
        params, macs = 1 - summary.achieved_params_ratio, 1 - summary.achieved_macs_ratio
        return Cell(verdict="pass", text=f"{params:.2f} params, {macs:.2f} MACs")
    return Cell(verdict="pass", text=f"{summary.sparsity:.2f} zeros")


def table(models: Sequence[str], ratios: Sequence[float], ways: Sequence[Way] = WAYS) -> tuple[str, int]:
    """Check every cell; return the table in Markdown and the number of failed cells."""
    lines = ["| model | pruning | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |"]
    lines.append("|---" * (2 + len(ratios)) + "|")
    reasons: dict[str, int] = {}
    failed = 0
    for name in models:
        dense = _dense(name)
        for way in ways:
            started = time.perf_counter()
            cells = [check(name, way, ratio, dense) for ratio in ratios]
            failed += sum(cell.verdict == "FAILED" for cell in cells)
            # reasons are long and repeat: footnotes keep the table readable
            shown = [
                cell.text
                if cell.verdict == "pass"
                else f"{cell.verdict} [{reasons.setdefault(cell.text, len(reasons) + 1)}]"
                for cell in cells
            ]
            lines.append(f"| {name} | {way} | " + " | ".join(shown) + " |")
            sys.stderr.write(f"{lines[-1]}  {time.perf_counter() - started:.1f} s\n")
    notes = [f"[{number}] {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, "", *notes]), failed


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0 if every cell passed or was refused with a reason, else 1."""
    parser = OneLineParser(prog="python -m trainables.stages.pruning", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", required=True, help="print the table")
    there = MODELS if importlib.util.find_spec("timm") is None else (*MODELS, *TIMM)
    parser.add_argument("--models", default=",".join(there), help="a list (default: %(default)s)")
    parser.add_argument("--ratios", default="0,0.3,0.5,0.8", help="a list (default: %(default)s)")
    flags = parser.parse_args(argv)
    try:
        ratios = [float(part) for part in flags.ratios.split(",")]
    except ValueError:
        parser.error(f"--ratios {flags.ratios}: must be a list of numbers such as 0,0.3,0.5.")
    try:
        text, failed = table(flags.models.split(","), ratios)
    except ValueError as error:
        parser.error(f"--models {flags.models}: {error}")
    print(text)
    print(f"{failed} failed")
    return 1 if failed else 0


def _dense(name: str) -> nn.Module:
    """Build the model with random weights and random BatchNorm scales, which are all equal in an untrained network."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=CLASSES, image_size=SIZE).eval()
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    return model


def _prune(model: nn.Module, way: Way, ratio: float) -> PruneSummary:
    """Prune in place, in as many steps as `way` says, and summarise all of them together."""
    before, first = widths(model), copy.deepcopy(model)
    for step in range(1, way.steps + 1):
        summary = prune(
            model,
            method=way.method,
            ratio=ratio * step / way.steps,
            image_size=SIZE,
            num_classes=CLASSES,
            criterion=way.criterion,
            scope=way.scope,
            dense=before,
            batches=_batches,
            must_remove=way.steps == 1,  # a single step of several may be too small to remove anything
        )
    if way.steps == 1:
        return summary

    summary = compare(model, count(first, SIZE), method=way.method, ratio=ratio, image_size=SIZE)
    check_removed(summary)
    return summary


def _batches() -> Iterable[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(16, 3, SIZE, SIZE, generator=generator), torch.arange(16) % CLASSES


def _logits(model: nn.Module) -> Tensor:
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images)
    return logits


def _faults(
    name: str, model: nn.Module, dense: nn.Module, way: Way, ratio: float, summary: PruneSummary
) -> Iterator[str]:
    """Find what is wrong with a pruning that reported success."""
    logits = _logits(model)
    if not bool(logits.isfinite().all()):
        yield "logits are not finite"
    if ratio == 0 and not torch.equal(logits, _logits(dense)):
        yield "ratio 0 changed the logits"
    if ratio > 0 and summary.achieved_params_ratio <= 0:
        yield "removed nothing and said nothing"
    grouped = any(1 < conv.groups < conv.out_channels for conv in convolutions(dense).values())
    if way.method == "structured" and not grouped:  # each of the groups loses as many, in steps of one
        odd = [n for n, w in widths(model).items() if widths(dense)[n] >= 32 and w % 8 and w != widths(dense)[n]]
        if odd:
            yield f"{odd[0]} has {widths(model)[odd[0]]} channels, no multiple of 8"
    elif way.method != "structured" and ratio > 0 and (fault := _wrong_zeros(model, way.method, ratio)):
        yield fault
    with tempfile.TemporaryDirectory() as folder:
        save_weights(model, Path(folder) / WEIGHTS)
        loaded = build_model(name, num_classes=CLASSES, image_size=SIZE)
        load_weights(loaded, Path(folder) / WEIGHTS)
    if not torch.equal(_logits(loaded), logits):
        yield "logits changed on the way through a file"


def _wrong_zeros(model: nn.Module, method: str, ratio: float) -> str:
    """What is wrong with the zeros that `method` left; empty if nothing is."""
    weights = [conv.weight.detach() for conv in convolutions(model).values()]
    if method == "nm_2_4":
        fours = [weight.movedim(1, -1).reshape(-1, GROUP) for weight in weights if weight.shape[1] % GROUP == 0]
        right = all(bool(((four == 0).sum(1) == 2).all()) for four in fours)
        return "" if right else "not two zeros of every four"
    total, zeros = sum(weight.numel() for weight in weights), sum(int((weight == 0).sum()) for weight in weights)
    return "" if abs(zeros / total - ratio) < 0.01 else f"{zeros / total:.3f} of the weights are zero"


if __name__ == "__main__":
    raise SystemExit(main())
