import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.trainables.store.steps import counting, flip, run
from trainables.config.checks import MachineError
from trainables.store.results import Key, Store, stage_key

KEY = stage_key("student", version=1, alpha=0.9)


def test_computed_once_and_found_again(tmp_path: Path) -> None:
    store, key = Store(tmp_path), stage_key("student", version=1, alpha=0.9)
    assert store.find(key) is None
    reports, folder = run(store.obtain(key, counting))
    assert reports == [0, 1, 2]
    assert run(store.obtain(key, counting)) == ([], folder)
    assert store.find(key) == folder


def test_an_abandoned_result_is_continued_and_was_never_visible(tmp_path: Path) -> None:
    store, key = Store(tmp_path), stage_key("student", version=1)
    attempt = store.obtain(key, counting)
    assert next(attempt) == 0
    attempt.close()
    assert store.find(key) is None
    assert run(store.obtain(key, counting))[0] == [1, 2]


@pytest.mark.parametrize("change", [{"version": 2}, {"parents": ["b"]}, {"alpha": 0.8}, {"beta": 1}])
def test_everything_that_decides_a_result_changes_its_key(change: dict) -> None:
    base = {"version": 1, "parents": ["a"], "alpha": 0.9}
    assert stage_key("student", **base) != stage_key("student", **(base | change))
    assert stage_key("student", **base) == stage_key("student", **dict(reversed(base.items())))
    assert stage_key("student", **base) != stage_key("teacher", **base)


SLOW = """
    import sys, time
    from pathlib import Path
    from trainables.store.results import Key, Store
    def compute(folder):
        with (folder / "starts").open("a") as file:
            file.write("x")
        yield "started"
        time.sleep(float(sys.argv[2]))
        (folder / "record.json").write_text("{}")
    for report in Store(Path(sys.argv[1])).obtain(Key("s", "0" * 24), compute):
        print(report, flush=True)
    print("has it", flush=True)
"""


def start(root: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_need_one_key_compute_it_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, 0.5) for _ in range(3)]
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert all(output.endswith("has it\n") for output in outputs)
    assert sum("started" in output for output in outputs) == 1
    assert (tmp_path / "s" / ("0" * 24) / "starts").read_text() == "x"


def test_kill_9_of_the_process_that_computes_lets_the_next_one_in(tmp_path: Path) -> None:
    victim = start(tmp_path, 60)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "started\n"
    waiting = start(tmp_path, 0)
    time.sleep(0.3)
    assert waiting.poll() is None
    os.kill(victim.pid, signal.SIGKILL)
    assert waiting.communicate(timeout=30)[0] == "started\nhas it\n"
    assert Store(tmp_path).find(Key("s", "0" * 24)) is not None


def test_a_result_names_its_files_its_cost_and_its_version(tmp_path: Path) -> None:
    def slow(folder: Path) -> Generator[int, None, None]:
        (folder / ".record.json.1").write_text("left by a killed writer")
        (folder / "state.tmp").write_text("left by a killed writer")
        for _ in range(2):
            time.sleep(0.05)
            yield 0
        (folder / "record.json").write_text("{}")

    attempt = Store(tmp_path).obtain(KEY, slow)
    next(attempt)
    time.sleep(0.2)  # a consumer's time is no cost of the stage
    _, folder = run(attempt)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["key"] == str(KEY)
    assert (manifest["format"], manifest["version"], manifest["reports"]) == (2, 1, 2)
    assert list(manifest["files"]) == ["record.json"]
    assert manifest["files"]["record.json"]["size"] == 2
    assert 0.1 <= manifest["seconds"] < 0.2
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "record.json"]


def test_the_cost_is_that_of_all_attempts(tmp_path: Path) -> None:
    attempt = Store(tmp_path).obtain(KEY, counting)
    assert [next(attempt), next(attempt)] == [0, 1]
    attempt.close()
    _, folder = run(Store(tmp_path).obtain(KEY, counting))
    assert json.loads((folder / "manifest.json").read_text())["reports"] == 3


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def remove_file(folder: Path) -> None:
    (folder / "steps").unlink()


def truncate(folder: Path) -> None:
    (folder / "steps").write_bytes((folder / "steps").read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    flip(folder / "steps")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip_a_bit, "steps does not have its SHA-256"),
        (truncate, "steps has 5 bytes instead of 6"),
        (remove_file, "steps is missing"),
        (remove_manifest, "manifest.json is missing"),
        (garble_manifest, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_result_is_moved_aside_said_so_once_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm, reason: str
) -> None:
    _, folder = run(Store(tmp_path).obtain(KEY, counting))
    harm(folder)
    store = Store(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert store.find(KEY) is None
        assert run(store.obtain(KEY, counting)) == ([0, 1, 2], folder)
        assert run(store.obtain(KEY, counting)) == ([], folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"store: {folder} is damaged ({reason}); moved to {KEY.digest}.corrupt-1 and computed again"
    ]
    assert (tmp_path / f"{KEY}.corrupt-1").is_dir()
    assert (folder / "steps").read_text() == "0\n1\n2\n"


def test_damage_done_in_another_process_is_found_by_a_fresh_one(tmp_path: Path) -> None:
    """A checksum that this process remembers does not hide a file that has changed since."""
    _, folder = run(Store(tmp_path).obtain(KEY, counting))
    status = (folder / "steps").stat()
    flip(folder / "steps")
    os.utime(folder / "steps", ns=(status.st_atime_ns, status.st_mtime_ns))
    script = "import sys; from pathlib import Path; from trainables.store.results import *; " + (
        "print(Store(Path(sys.argv[1])).find(Key('student', sys.argv[2])))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path, KEY.digest], capture_output=True, text=True)
    assert done.stdout == "None\n"


def test_a_store_of_another_format_is_refused_with_both_formats_and_the_fix(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format": 99}')
    message = rf"{tmp_path} was written in store format 99, but this version reads format 2: .*gc --all"
    with pytest.raises(ValueError, match=message):
        run(Store(tmp_path).obtain(KEY, counting))
    with pytest.raises(ValueError, match=message):
        Store(tmp_path).find(KEY)


def test_a_store_without_manifests_is_one_of_format_1(tmp_path: Path) -> None:
    (tmp_path / "student" / "abc").mkdir(parents=True)
    (tmp_path / "student" / "abc" / "record.json").write_text("{}")
    with pytest.raises(ValueError, match="store format 1, but this version reads format 2"):
        run(Store(tmp_path).obtain(KEY, counting))


def caused(message: str) -> ValueError:
    """As by `raise ValueError(message) from error`: what is wrong lies outside of the configuration."""
    error = ValueError(message)
    error.__cause__ = ImportError("no module")
    return error


class Failing:
    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self, folder: Path) -> Generator[int, None, None]:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        yield from counting(folder)


def test_a_value_error_is_remembered_and_raised_again_without_computing(tmp_path: Path) -> None:
    compute = Failing(ValueError("training diverged: loss is nan"))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"^training diverged: loss is nan$"):
            run(Store(tmp_path).obtain(KEY, compute))
    assert compute.calls == 1
    assert Store(tmp_path).failure(KEY) == "training diverged: loss is nan"
    kept = json.loads((tmp_path / f"{KEY}.failed.json").read_text())
    assert (kept["key"], kept["version"]) == (str(KEY), 1)
    assert not (tmp_path / f"{KEY}.partial").exists()
    newer = stage_key("student", version=2, alpha=0.9)
    assert run(Store(tmp_path).obtain(newer, compute))[0] == [0, 1, 2]


@pytest.mark.parametrize(
    "error",
    [
        OSError("lost"),
        MemoryError("out"),
        RuntimeError("CUDA out of memory"),
        json.JSONDecodeError("x", "", 0),
        MachineError("this GPU has no bfloat16"),
        caused("a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_other_error_is_transient(tmp_path: Path, error: Exception) -> None:
    compute = Failing(error)
    with pytest.raises(type(error), match=str(error)[:5]):
        run(Store(tmp_path).obtain(KEY, compute))
    assert Store(tmp_path).failure(KEY) is None
    assert run(Store(tmp_path).obtain(KEY, compute))[0] == [0, 1, 2]


def test_work_that_was_finished_but_not_yet_in_place_is_not_done_again(tmp_path: Path) -> None:
    """A kill between `record.json` and the rename: the state to resume from is already gone by then."""
    partial = tmp_path / f"{KEY}.partial"
    partial.mkdir(parents=True)
    assert len(list(counting(partial))) == 3
    assert run(Store(tmp_path).obtain(KEY, Failing(AssertionError("computed"))))[0] == []


def heavy(folder: Path) -> Generator[int, None, None]:
    (folder / "weights.pt").write_bytes(bytes(200_000))
    yield 0
    (folder / "record.json").write_text("{}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("fills a small disk, and may not mount one (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_no_result_and_no_wrong_record(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised:
        run(Store(small_disk).obtain(KEY, heavy))
    assert raised.value.errno == errno.ENOSPC
    assert Store(small_disk).find(KEY) is None
    assert Store(small_disk).failure(KEY) is None
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert (run(Store(small_disk).obtain(KEY, heavy))[1] / "weights.pt").stat().st_size == 200_000


def test_a_disk_that_fills_while_the_result_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if "manifest.json" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(Store(tmp_path).obtain(KEY, heavy))
    assert Store(tmp_path).find(KEY) is None
    assert not list(tmp_path.rglob("*manifest*"))
    monkeypatch.undo()
    assert run(Store(tmp_path).obtain(KEY, heavy))[0] == []  # the work itself was kept


def test_a_quota_on_files_leaves_no_result(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run(Store(tmp_path).obtain(KEY, heavy))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert Store(tmp_path).find(KEY) is None
    assert run(Store(tmp_path).obtain(KEY, heavy))[0] == [0]


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "other JSON": lambda content: b"null",
    "a list": lambda content: b"[1]",
    "an object": lambda content: b'{"a": NaN}',
    "no text": lambda content: b"\xff\xfe\x00" + content,
    "deep": lambda content: b"[" * 100_000,
    "numbers": lambda content: content.replace(b"1", b"1e999"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["store.json", "{key}/manifest.json", "{key}/record.json", "{key}/steps"])
def test_no_damage_to_a_finished_result_is_taken_for_it_or_raises(tmp_path: Path, damage: str, name: str) -> None:
    _, folder = run(Store(tmp_path).obtain(KEY, counting))
    path = tmp_path / name.format(key=KEY)
    harmed = DAMAGES[damage](path.read_bytes())
    whole = harmed == path.read_bytes()
    path.write_bytes(harmed)
    reports, again = run(Store(tmp_path).obtain(KEY, counting))
    assert (reports, again) == ([] if whole or name == "store.json" else [0, 1, 2], folder)
    assert run(Store(tmp_path).obtain(KEY, counting)) == ([], folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [".progress.json", "record.json"])
def test_no_damage_to_unfinished_work_stops_it(tmp_path: Path, damage: str, name: str) -> None:
    attempt = Store(tmp_path).obtain(KEY, counting)
    assert [next(attempt), next(attempt)] == [0, 1]
    attempt.close()
    partial = tmp_path / f"{KEY}.partial"
    if name == "record.json":
        assert len(list(counting(partial))) == 1  # killed just before the result was put in place
    (partial / name).write_bytes(DAMAGES[damage]((partial / name).read_bytes()))
    reports, folder = run(Store(tmp_path).obtain(KEY, counting))
    assert reports in ([], [2])
    assert isinstance(json.loads((folder / "record.json").read_text()), dict)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "record.json", "steps"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("url", [False, True])
def test_a_damaged_failure_is_none(tmp_path: Path, damage: str, url: bool) -> None:
    where = f"file://{tmp_path}/shared" if url else tmp_path / "here"
    store = Store(where, cache=tmp_path / "here" if url else None)
    with pytest.raises(ValueError, match="diverged"):
        run(store.obtain(KEY, Failing(ValueError("diverged"))))
    for path in tmp_path.rglob("*failed.json"):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if (reason := store.failure(KEY)) is None:
        assert run(store.obtain(KEY, counting))[0] == [0, 1, 2]
    assert reason in (None, "diverged")


@pytest.mark.parametrize("content", ["", "{", "null", '{"format": "x"}'])
def test_a_damaged_mark_of_a_sound_store_is_written_again(tmp_path: Path, content: str) -> None:
    run(Store(tmp_path).obtain(KEY, counting))
    (tmp_path / "store.json").write_text(content)
    run(Store(tmp_path).obtain(stage_key("student", version=1, alpha=0.8), counting))
    assert json.loads((tmp_path / "store.json").read_text())["format"] == 2
    assert (tmp_path / "store.json.corrupt-1").read_text() == content


def test_a_result_that_was_copied_to_another_key_is_not_taken_for_it(tmp_path: Path) -> None:
    _, folder = run(Store(tmp_path).obtain(KEY, counting))
    other = stage_key("student", version=1, alpha=0.8)
    folder.rename(tmp_path / str(other))
    assert Store(tmp_path).find(other) is None


@pytest.mark.parametrize("digest", ["../../victim", "x", "", "0" * 24 + "/..", "0" * 15])
def test_a_key_names_no_other_path(digest: str) -> None:
    with pytest.raises(ValueError, match="is no key of the store"):
        Key("student", digest)
