"""Damage every file that the project reads from a disk, and read it: `python tests/contracts/damage.py --times 1000`.

What may come of it: the file's own content, the same result made again, or an error of the kinds that the callers of
the reader answer. Anything else is a traceback for some user, or a wrong result that nobody notices.
"""

import argparse
import itertools
import json
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.study import create_study
from PIL import Image
from safetensors.torch import save_file
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from sweeps.planning.budget import begun_with, spent_seconds, start_seconds
from sweeps.running.tune.stopper import FrontStopper
from sweeps.search.folder import InputError, read_identity
from sweeps.search.presets import quick
from sweeps.search.sampling.rungs import Rungs
from sweeps.search.study_file import open_journal
from trainables.config.candidate import DataConfig
from trainables.records.encoding import read_json, to_json
from trainables.records.stages import EpochRecord
from trainables.records.trial import TrialRecord, read_delivered, read_sweep_id, read_trial
from trainables.stages.data import prepared
from trainables.stages.data.decoding import READ_ERRORS, open_image, to_array
from trainables.stages.models.weights import read_weights
from trainables.stages.training import checkpoints
from trainables.store.entries import check_format, mark_format, read_progress
from trainables.store.inventory import LocalShelf
from trainables.store.references import readable, users
from trainables.store.results import Store, stage_key

KEY = stage_key("student", version=1, seed=0)
EPOCH = EpochRecord(
    stage="student",
    epoch=1,
    epochs=2,
    train_loss=1.0,
    train_accuracy=0.5,
    val_loss=1.0,
    val_accuracy=0.5,
    learning_rate=0.1,
    seconds=1.0,
)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file, and what reads it."""

    file: Path
    read: Callable[[], Any]
    """Reads the file, and what lies beside it."""
    is_right: Callable[[Any], bool] = lambda found: True
    """Whether a value that was read is the file's own, or the same made again. Where nothing tells a changed digit from
    the true one, everything that can be read is right."""
    errors: tuple[type[Exception], ...] = ()
    """What callers of the reader answer with one line."""


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content truncated, with zeros, with flipped bits, or with a part replaced."""
    if not content:
        return b"\0"
    start = chance.randrange(len(content))
    length = min(len(content) - start, chance.choice((1, 2, 16, 512, len(content))))
    way = chance.choice(("truncate", "zero", "flip", "replace"))
    if way == "truncate":
        return content[:start]
    if way == "zero":
        return content[:start] + bytes(length) + content[start + length :]
    if way == "flip":
        bit = 1 << chance.randrange(8)
        return content[:start] + bytes([content[start] ^ bit]) + content[start + 1 :]
    return content[:start] + chance.randbytes(length) + content[start + length :]


def outcome(form: Format, content: bytes) -> str:
    """`right` or `refused` if the reader does what it may with this content; else what it did."""
    form.file.parent.mkdir(parents=True, exist_ok=True)
    form.file.write_bytes(content)
    try:
        found = form.read()
    except form.errors as error:
        return "refused" if "\n" not in str(error).strip() else f"more than one line: {str(error)[:200]}"
    except Exception as error:  # what a reader raises beyond its own errors is what is looked for
        return f"{type(error).__name__}: {error}"
    return "right" if form.is_right(found) else f"wrong: {str(found)[:200]}"


def formats(root: Path) -> Mapping[str, Callable[[Path], Format]]:
    """Name -> what writes the sound file into a folder."""
    return {
        **{f"stored {name}": _result(name) for name in ("manifest.json", "record.json", "weights.pt")},
        **{f"decoded {name}": _decoded(name, root) for name in ("dataset.json", "train_images.npy", "val_labels.npy")},
        **{f"image {kind}": _image(kind) for kind in ("JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM")},
        **{f"weights {suffix}": _users_weights(suffix) for suffix in (".pt", ".safetensors")},
        "state.pt": _state,
        "progress": _progress,
        "store.json": _mark,
        "note of a user": _note,
        "trial's record.json": _record,
        "record.json for the collector": _record_to_collect,
        "delivered.json": _delivered,
        "identity.json": _identity,
        "rungs.jsonl": _rungs,
        "study.journal": _journal,
        "spent.json": _spent,
        "start.json": lambda folder: Format(
            file=_write(folder / "start.json", {"start_s": 8.0}), read=lambda: start_seconds(folder)
        ),
    }


def _write(path: Path, row: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(row))
    return path


def _result(name: str) -> Callable[[Path], Format]:
    """A result of the store: it is found whole, or computed again."""
    content = {"record.json": json.dumps({"accuracy": 0.5}).encode(), "weights.pt": bytes(range(256)) * 8}

    def compute(folder: Path) -> None:
        for file, written in content.items():
            (folder / file).write_bytes(written)

    def make(folder: Path) -> Format:
        def read() -> dict[str, bytes]:
            found = Store(folder).once(KEY, compute)  # a new one, as another process would have
            return {file: (found / file).read_bytes() for file in content}

        read()
        place = folder / KEY.stage / KEY.digest
        return Format(file=place / name, read=read, is_right=lambda found: found == content)

    return make


def _decoded(name: str, root: Path) -> Callable[[Path], Format]:
    """Decoded images: they are as they were, or decoded again from the pictures."""
    photos = root / "photos"
    config = DataConfig(dataset=f"folder:{photos}", image_size=8)
    expected: dict[str, list[Any]] = {}

    def make(folder: Path) -> Format:
        for part, label, i in itertools.product(("train", "test"), "ab", range(12)):
            path = photos / part / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((8, 8), 40 + i).convert("RGB").save(path)

        def read() -> dict[str, list[Any]]:
            record = prepared.prepare(config, folder)
            return {part: [array.tolist() for array in prepared.load(record, part)] for part in ("train", "val")}

        expected.update(read())
        (place,) = (path.parent for path in folder.rglob("train_images.npy"))
        return Format(file=place / name, read=read, is_right=lambda found: found == expected)

    return make


def _image(kind: str) -> Callable[[Path], Format]:
    def make(folder: Path) -> Format:
        path = folder / "image"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 30), 50).convert("RGB").save(path, format=kind)

        def read() -> Any:
            with open_image(str(path)) as image:
                return to_array(image, 8)

        return Format(file=path, read=read, is_right=lambda found: found.shape == (3, 8, 8), errors=READ_ERRORS)

    return make


def _users_weights(suffix: str) -> Callable[[Path], Format]:
    def make(folder: Path) -> Format:
        path = folder / f"weights{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        state = nn.Linear(4, 3).state_dict()
        (save_file if suffix == ".safetensors" else torch.save)(state, str(path))
        return Format(file=path, read=lambda: read_weights(path), errors=(ValueError,))

    return make


def _state(folder: Path) -> Format:
    """The state of unfinished training: all of it, or training starts over with the weights that it had."""
    torch.manual_seed(0)
    trained, path = nn.Linear(4, 3), folder / "state.pt"
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save(trained, optimizer, [EPOCH], path)
    saved = {name: tensor.tolist() for name, tensor in trained.state_dict().items()}
    new = nn.Linear(4, 3)
    fresh = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    begun = {name: tensor.tolist() for name, tensor in fresh.items()}

    def read() -> tuple[Any, Any]:
        new.load_state_dict(fresh)
        again = torch.optim.SGD(new.parameters(), lr=0.1, momentum=0.9)
        curve = checkpoints.resume(new, again, path, torch.device("cpu"))
        return curve, {name: tensor.tolist() for name, tensor in new.state_dict().items()}

    return Format(file=path, read=read, is_right=lambda found: found in (([EPOCH], saved), ([], begun)))


def _progress(folder: Path) -> Format:
    path = _write(folder / ".progress.json", {"seconds": 1.5, "reports": 3})
    return Format(file=path, read=lambda: read_progress(folder))


def _mark(folder: Path) -> Format:
    """The mark of a store: it is a store afterwards, or the user is told of another format."""
    mark_format(folder, None)

    def read() -> Any:
        check_format(folder, None, str(folder))
        mark_format(folder, None)
        return read_json(folder / "store.json")["format"]

    return Format(file=folder / "store.json", read=read, is_right=lambda found: found == 2, errors=(ValueError,))


def _note(folder: Path) -> Format:
    Store(folder / "store").note_user(folder / "sweeps" / "night", "0123")
    _write(folder / "sweeps" / "night" / "identity.json", {"sweep_id": "0123"})
    (path,) = (folder / "store" / "users").iterdir()
    return Format(
        file=path, read=lambda: users(LocalShelf(folder / "store"), str(folder / "store")), errors=(ValueError,)
    )


def _trial() -> TrialRecord:
    text = {"key": "night/00003", "stage": "candidate", "status": "finished", "reason": ""}
    rest: dict[str, Any] = {"trial_number": 3, "params": {"alpha": 0.5}, "metrics": {"val_accuracy": 0.9}, "tags": {}}
    return TrialRecord(**text, **rest, curve=(EPOCH,), files=("model.onnx",), keys=(str(KEY),), started=0.0, ended=1.0)


def _record(folder: Path) -> Format:
    path = _write(folder / "record.json", _trial())
    return Format(file=path, read=lambda: read_trial(folder), errors=(ValueError,))


def _record_to_collect(folder: Path) -> Format:
    """A record that the collector and the list of a store's results read: unknown needs are refused, or left out."""
    path = _write(folder / "trials" / "00003" / "record.json", _trial())
    return Format(file=path, read=lambda: list(readable([folder])))


def _delivered(folder: Path) -> Format:
    path = _write(folder / "delivered.json", {"run_id": "1", "parent_id": "0", "record": "ab"})
    return Format(file=path, read=lambda: read_delivered(folder), is_right=lambda found: isinstance(found, dict))


def _identity(folder: Path) -> Format:
    settings = {"base": {"student_epochs": 3, "recovery_epochs": 1}}
    path = _write(folder / "identity.json", {"sweep_id": "0123", "settings": settings, "space": {}})

    def read() -> Any:
        config = quick().replace(out=folder.parents[1], name=folder.name)
        return begun_with(config), read_sweep_id(folder), read_identity(path, "night")

    return Format(file=path, read=read, errors=(InputError, ValueError))


def _rungs(folder: Path) -> Format:
    path, rungs = folder / "rungs.jsonl", Rungs()
    for trial in range(4):
        rungs.report(
            f"night/{trial:05}", step=4, budget=4, accuracy=0.5, num_val=100, fixed={"log2_size": 3.0}, peers="layer"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rungs.unsaved()))
    return Format(file=path, read=lambda: FrontStopper("pareto", quick().rates, path), errors=(ValueError,))


def _journal(folder: Path) -> Format:
    """Optuna's journal: it goes on from its sound part."""
    path = folder / "study.journal"
    folder.mkdir(parents=True, exist_ok=True)
    study = create_study(study_name="night", storage=open_journal(path))
    for _ in range(3):
        study.tell(study.ask(), 1.0)

    def read() -> Any:
        again = create_study(study_name="night", storage=open_journal(path), load_if_exists=True)
        return len(again.trials)

    return Format(file=path, read=read, is_right=lambda found: found <= 3, errors=(InputError,))


def _spent(folder: Path) -> Format:
    path = _write(folder / "spent.json", {"seconds": 30.0})
    return Format(file=path, read=lambda: spent_seconds(folder, 300.0), is_right=lambda found: 0 <= found <= 290)


def attack(name: str, times: int, root: Path, *, seed: int = 0) -> Iterator[str]:
    """Damage the file of a format `times` times, each time from a sound one; yield each outcome."""
    chance = random.Random(f"{name} {seed}")
    form = formats(root)[name](root / name.replace(" ", "_"))
    sound = form.file.read_bytes()
    if (first := outcome(form, sound)) != "right":
        raise AssertionError(f"{name}: the sound file is {first}")
    for _ in range(times):
        yield outcome(form, damaged(sound, chance))


def main() -> int:
    """Attack every format; print what came of it. The exit code is 1 if anything came that may not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1000, help="damaged files of each format (default: 1000)")
    parser.add_argument("--only", metavar="NAME", help="one format (default: all)")
    flags = parser.parse_args()
    logging.disable(logging.WARNING)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in formats(Path(folder)):
            if flags.only in (None, name):
                counts = Counter(attack(name, flags.times, Path(folder)))
                odd = {text: n for text, n in counts.items() if text not in ("right", "refused")}
                bad += sum(odd.values())
                print(
                    f"{name}: {counts['right']} right, {counts['refused']} refused, {sum(odd.values())} odd", flush=True
                )
                for text, count in sorted(odd.items(), key=lambda pair: -pair[1])[:5]:
                    print(f"    {count} x {text[:300]}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
