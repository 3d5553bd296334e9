import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from trainables.files import replacing, sha256, write_bytes, write_text
from trainables.stages.models.weights import save_weights

FULL = """
    import resource, signal, sys
    from pathlib import Path
    from trainables.files import write_text
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    write_text(Path(sys.argv[1]), "new" * 1000)
"""
KILLED = """
    import sys
    from pathlib import Path
    from trainables.files import replacing
    with replacing(Path(sys.argv[1]), part=Path(sys.argv[2])) as file:
        file.write(b"half")
        file.flush()
        print("written", flush=True)
        sys.stdin.read()
"""


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "Größe\r\n")
    write_bytes(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == "Größe\r\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_full_disk_keeps_the_old_file_and_no_half_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    with python(FULL, str(path)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "OSError" in errors
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, RuntimeError])
def test_whatever_stops_the_writer_the_old_file_stays(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "weights.pt"
    path.write_text("old")
    with pytest.raises(kind, match="stopped"), replacing(path) as file:
        file.write(b"half")
        raise kind("stopped")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_and_its_part_is_used_again(tmp_path: Path) -> None:
    path, part = tmp_path / "state.pt", tmp_path / "state.tmp"
    path.write_text("old")
    with python(KILLED, str(path), str(part)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (path.read_text(), part.read_text()) == ("old", "half")
    with replacing(path, part=part) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "a", []
    real = os.fsync

    def watched(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_size, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(path, "12345")
    assert seen == [(5, False)]


def test_threads_that_write_one_file_never_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "a", [letter * 100_000 for letter in "abcd"]
    write_text(path, texts[0])
    writers = [threading.Thread(target=lambda t=text: [write_text(path, t) for _ in range(20)]) for text in texts]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
    assert seen <= set(texts)
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_weights_are_the_same_bytes_whatever_process_wrote_them(tmp_path: Path) -> None:
    """The store names contents by their digest; the name of a temporary file must not be among them."""
    model = torch.nn.Linear(2, 2)
    save_weights(model, tmp_path / "one.pt")
    save_weights(model, tmp_path / "two.pt")
    assert sha256(tmp_path / "one.pt") == sha256(tmp_path / "two.pt")
    assert sha256(tmp_path / "one.pt") == hashlib.sha256((tmp_path / "one.pt").read_bytes()).hexdigest()


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "one")
    assert sha256(path) == sha256(path) == hashlib.sha256(b"one").hexdigest()
    write_text(path, "two")
    assert sha256(path) == hashlib.sha256(b"two").hexdigest()
