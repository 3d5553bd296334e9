"""Bad inputs and faults, and the one line that answers each: `python tests/contracts/faults.py` writes FAULTS.md.

Every case is run in this process: a command, its words, and what has been made wrong before.
"""

import contextlib
import http.server
import io
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_setups import (
    Prepare,
    a_store,
    and_then,
    hostile_archive,
    in_black,
    latin_1,
    locked,
    made,
    network,
    one_that_needs,
    opened,
    photos,
    postscript,
    used_elsewhere,
    with_a_password,
    with_a_result,
    written,
)
from other_faults import HEAD, OTHER_FAULTS

from analysis.__main__ import main as analysis
from sweeps.ablation import main as ablation
from sweeps.kd_prune import main as sweep
from sweeps.runtimes import main as runtimes
from sweeps.studies import main as studies
from trainables.stages.candidate.__main__ import main as candidate
from trainables.stages.data.sources import downloads
from trainables.store.__main__ import main as store

TABLE = Path(__file__).with_name("FAULTS.md")
COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "sweep": ("sweeps/kd_prune.py --preset quick", sweep),
    "ablation": ("sweeps/ablation.py --base quick", ablation),
    "studies": ("sweeps/studies.py", studies),
    "runtimes": ("sweeps/runtimes.py", runtimes),
    "candidate": ("python -m trainables.stages.candidate", candidate),
    "store": ("python -m trainables.store", store),
    "analysis": ("python -m analysis", analysis),
}


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    words: str
    """As typed; TMP is a folder of the case's own, PORT one where `prepare` listens, or nobody."""
    command: str = "sweep"
    prepare: Prepare = lambda tmp: None
    what: str = ""
    """What has been made wrong, where the words do not say it."""


SWEEP_FLAGS = """
--alfa 1
--pruning_ratio 0.3
--zzz
more
--preset cifar
--trials
--trials many
--trials 0
--cpus 0
--cpus 2 --cpus-per-trial 3
--gpus -1
--gpus 99
--gpus-per-trial 1.5
--gpus-per-trial 0
--gpus-per-trial nan
--name a/b
--name ../../etc
--name $(id)
--name <script>
--alpha 1.5
--alpha 0:2
--alpha x
--alpha 0.9:0.1
--alpha nan
--temperature 0
--pruning-ratio 1
--learning-rate 0:1
--pruning-method l2
--kd-loss magic
--sampler best
--sampler grid --learning-rate 1e-4:1e-2
--objective speed
--stopper never
--reuse-probability 2
--search-seed -1
--seeds 0
--champions -1
--latency-points -1
--size-points nan
--max-latency-ms 0
--max-drop -1
--budget soon
--budget 6h --trials 3
--student-epochs -1
--batch-size 1
--val-fraction 1
--split-seed -1
--image-size 4
--opset 11
--crop zoom
--teacher-model resnet81
--student-model nowhere.nets:tiny
--student-model os:nothing
--student-model ../evil.py:run
--dataset cifar-10
--dataset folder:TMP/nowhere
--tracking-uri nowhere://x
--tracking-uri http://127.0.0.1:PORT/ --address auto
--address nowhere
--address ray://head:10001 --cpus 2
--address 127.0.0.1:PORT --cpus 2
--storage shared
--storage nowhere://bucket
--storage TMP/nowhere
"""

FAULTS = (
    *(Fault(words) for words in SWEEP_FLAGS.strip().splitlines()),
    Fault("--dataset folder:TMP/photos", prepare=lambda tmp: (tmp / "photos").mkdir(), what="an empty folder"),
    Fault("--dataset folder:TMP/photos", prepare=photos(train=("cat",), test=("cat",)), what="one class"),
    Fault("--dataset folder:TMP/photos", prepare=photos(test=("cat", "wolf")), what="other classes in test"),
    Fault(
        "--dataset folder:TMP/photos",
        prepare=and_then(photos(), lambda tmp: (tmp / "photos" / "train" / "eel").mkdir()),
        what="a class without images",
    ),
    Fault(
        "--dataset folder:TMP/photos",
        prepare=and_then(photos(), written("photos/test/dog/3.png", b"no image")),
        what="a broken image",
    ),
    Fault("--dataset digits --unlabeled TMP/nowhere"),
    Fault("--dataset digits --unlabeled TMP/more", prepare=lambda tmp: (tmp / "more").mkdir(), what="an empty folder"),
    Fault("--dataset digits --unlabeled TMP/more", prepare=written("more/a.png", b"no image"), what="a broken image"),
    Fault("--unlabeled TMP/more --kd-loss none"),
    Fault("--unlabeled TMP/more --alpha 0"),
    Fault("--dataset folder:TMP/photos", prepare=postscript, what="PostScript in a .jpg"),
    Fault("--dataset cifar10", prepare=written("data/cifar-10-python.tar.gz", b"cut off"), what="a broken download"),
    Fault("--dataset cifar10", prepare=hostile_archive, what="a pickle with code in it"),
    Fault("--out TMP/file", prepare=written("file", ""), what="a file in the way"),
    Fault("--out TMP/file/deeper", prepare=written("file", ""), what="a file in the way"),
    Fault("--data-dir TMP/file", prepare=written("file", ""), what="a file in the way"),
    Fault("--name mine --student-epochs 7", prepare=made(), what="the name of another sweep"),
    Fault("--name mine --latency-points 2", prepare=made(), what="the name of another sweep"),
    Fault("--name mine", prepare=written("runs/sweeps/mine/identity.json", "{"), what="a damaged identity.json"),
    Fault("--name mine", prepare=locked, what="a second driver"),
    Fault("--tracking-uri sqlite:///TMP/file", prepare=written("file", "no database " * 99), what="not a database"),
    Fault("--tracking-uri sqlite:////proc/none/mlflow.db", what="a folder that cannot be made"),
    Fault("--tracking-uri postgresql://me:secret@127.0.0.1:PORT/x", what="no driver for that database"),
    Fault("--tracking-uri http://127.0.0.1:403", what="a server that refuses our Host"),
    Fault("--tracking-uri http://127.0.0.1:404", what="a server of something else"),
    Fault("--tracking-uri http://127.0.0.1:200", what="a web page"),
    Fault("", "ablation"),
    Fault("--preset kd-grid --alpha 0:1 --learning-rate 1e-4:1e-2", "ablation"),
    Fault("--preset distillation --seeds 0", "ablation"),
    Fault("--preset distillation --trials 3", "ablation"),
    Fault("onyx", "studies"),
    Fault("onnx --preset kd-grid", "studies"),
    Fault("amp --train-precision amp", "studies"),
    Fault("pruning --teacher-epochs many", "studies"),
    Fault("", "runtimes"),
    Fault("--name none --out TMP/runs", "runtimes"),
    Fault(
        "--name mine --out TMP/runs",
        "runtimes",
        and_then(written("runs/sweeps/mine/teacher/record.json", "{}"), written("runs/sweeps/mine/identity.json", "")),
        "a damaged identity.json",
    ),
    Fault("--name none --out TMP/runs --runtimes tpu", "runtimes"),
    Fault("--name none --out TMP/runs --precisions int4", "runtimes"),
    Fault("--name none --out TMP/runs --batches 0", "runtimes"),
    Fault("--name none --out TMP/runs --seconds 0", "runtimes"),
    Fault("--device tpu", "candidate"),
    Fault("--threads 0", "candidate"),
    Fault("--unlabeled TMP/more --kd-loss none", "candidate"),
    Fault("--temperature -1", "candidate"),
    Fault("", "store"),
    Fault("ls --out TMP/runs", "store"),
    Fault("du --store nowhere://x", "store"),
    Fault("ls --out TMP/runs", "store", written("runs/store/store.json", '{"format": 99}'), "a newer store"),
    Fault("ls --out TMP/runs", "store", written("runs/store/store.json", "{"), "a damaged store.json"),
    Fault(
        "gc --out TMP/runs",
        "store",
        and_then(written("runs/store/store.json", '{"format": 2}'), locked),
        "a sweep runs",
    ),
    Fault(
        "gc --out TMP/runs",
        "store",
        and_then(a_store, written("runs/sweeps/a/trials/0/record.json", "{")),
        "a damaged record",
    ),
    Fault(
        "gc --store TMP/runs",
        "store",
        and_then(a_store, written("runs/thesis/chapters/1.tex", "mine")),
        "a folder above the store",
    ),
    Fault("gc --out TMP/runs", "store", with_a_result, "results that no known sweep uses"),
    Fault("gc --out TMP/runs --yes", "store", used_elsewhere, "a sweep elsewhere uses it"),
    Fault("gc --store TMP/runs/store", "store", used_elsewhere, "a sweep elsewhere uses it"),
    Fault("gc --out TMP/runs", "store", one_that_needs, "nobody at the terminal to ask"),
    Fault(
        "gc --out TMP/runs",
        "store",
        and_then(a_store, written("runs/store/users/0.json", "")),
        "a damaged note of who uses the store",
    ),
    Fault("--out TMP/runs", "analysis"),
    Fault("--tracking-uri sqlite:///TMP/none.db", "analysis"),
    Fault("--tracking-uri postgresql://me:secret@127.0.0.1:PORT/x", "analysis", what="no driver for that database"),
    Fault("--nme x", "analysis"),
    Fault("sync --out TMP/runs", "analysis"),
    Fault("sync --out TMP/runs --name ours", "analysis"),
    Fault("sync --out TMP/runs", "analysis", written("runs/sweeps/mine/sweep.json", ""), "a damaged sweep.json"),
    Fault("sync --out TMP/runs", "analysis", and_then(with_a_password, locked), "a sweep runs"),
    Fault("sync --out TMP/runs", "analysis", with_a_password, "a password that was not kept"),
    Fault("--dataset folder:TMP/photos --val-fraction 0.25", prepare=in_black, what="images that come in black"),
    Fault("--dataset folder:TMP/photos", prepare=latin_1, what="a class folder in Latin-1"),
    Fault(
        "--dataset folder:TMP/photos",
        prepare=and_then(photos(), lambda tmp: [(tmp / "photos" / name).mkdir() for name in ("val", "valid")]),
        what="val/ and valid/",
    ),
    *(
        Fault(
            "--dataset folder:TMP/photos --val-fraction 0.25 --student-model odd:Net", prepare=network(body), what=what
        )
        for what, body in (
            ("a branch on pixels", "return super().forward(x.flatten(1) if x.mean() > 0 else -x.flatten(1))"),
            ("a fixed number of images", "return super().forward(x.reshape(int(x.shape[0]), -1))"),
            ("a tuple in training", "y = super().forward(x.flatten(1)); return (y, y) if self.training else y"),
            ("an end of the process", "raise SystemExit(0)"),
        )
    ),
    Fault("--measure-on raspberrypi"),
    Fault("--measure-on ssh://pi:secret@raspberrypi"),
    Fault("--measure-on ssh://-oProxyCommand=x"),
    Fault("--measure-on ssh://pi@raspberrypi --latency-runtime tensorrt"),
    Fault("--measure-on pi", "candidate"),
    Fault("--teacher-model timm:resnet81"),
    Fault("--student-model teacher,timm:resnet18.a9"),
    Fault("--teacher-model timm:resnet81", "candidate"),
    Fault("--dataset hf:TMP/nowhere"),
    Fault("--dataset hf:TMP/pets", prepare=lambda tmp: (tmp / "pets").mkdir(), what="an empty folder"),
    Fault("--dataset hf:me/pets/more"),
    Fault("serve --out TMP/runs", "analysis"),
    Fault("serve --out TMP/runs --port many", "analysis"),
    Fault("serve --out TMP/runs --port 70000", "analysis", written("runs/mlflow.db", ""), "no such port"),
)


def line_of(fault: Fault, tmp: Path, data_dir: Path) -> tuple[int, str]:
    """(exit code, what it says on standard error, without what differs from machine to machine)."""
    fault.prepare(tmp)
    with servers() as ports, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        ports["PORT"] = nobody.getsockname()[1]
        typed = fault.words.replace("TMP", str(tmp))
        for name, port in ports.items():
            typed = re.sub(rf"(?<=127\.0\.0\.1:){name}\b", str(port), typed)
        code, said = run(fault, typed.split(), tmp, data_dir)
    for name, port in ports.items():
        said = said.replace(f":{port}", f":{name}").replace(f"port={port}", f"port={name}")
    said = re.sub(r"this machine has \d+", "this machine has 0", said)
    return code, said.replace(str(tmp), "TMP").replace(str(data_dir), "DATA")


def run(fault: Fault, words: list[str], tmp: Path, data_dir: Path) -> tuple[int, str]:
    """Exit code and standard error of one command."""
    _, main = COMMANDS[fault.command]
    where = {
        "sweep": ["--preset", "quick", "--out", str(tmp / "runs")],
        "ablation": ["--base", "quick", "--out", str(tmp / "runs")],
        "candidate": ["--out", str(tmp / "runs")],
    }.get(fault.command, [])
    if where and "--data-dir" not in words:
        own = tmp / "data"
        where += ["--data-dir", str(own if own.exists() else data_dir)]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main([*where, *words])
        except SystemExit as end:
            code = int(end.code or 0)
    for file in opened:
        file.close()
    opened.clear()
    return code, said.getvalue()


@contextmanager
def servers() -> Iterator[dict[str, int]]:
    """Servers on loopback that answer everything with one status: its number -> port."""
    running = []
    for status in (200, 403, 404):
        handler = type("Says", (_Says,), {"status": status})
        server = http.server.HTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append((str(status), server))
    try:
        yield {name: server.server_port for name, server in running}
    finally:
        for _, server in running:
            server.shutdown()
            server.server_close()


class _Says(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"hello")

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def write_table() -> None:
    """FAULTS.md, from what every command says now and `other_faults`."""
    lines = ["# Bad inputs and faults, and what is said", "", "Written by `python tests/contracts/faults.py`.", ""]
    lines += ["| # | command | wrong | answer (exit code 2) |", "|---|---|---|---|"]
    archives = dict(downloads.ARCHIVES)
    with tempfile.TemporaryDirectory() as data:
        for number, fault in enumerate(FAULTS, 1):
            with tempfile.TemporaryDirectory() as tmp:
                code, said = line_of(fault, Path(tmp), Path(data))
            downloads.ARCHIVES.update(archives)
            if code != 2 or said.count("\n") != 1:
                print(f"{number} {fault.command} {fault.words} {fault.what}: code {code}, {said!r}", file=sys.stderr)
            lines.append(row(number, fault, said))
    lines += ["", *HEAD, *(other.row() for other in OTHER_FAULTS)]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(number: int, fault: Fault, said: str) -> str:
    """One line of the table."""
    typed = f"`{COMMANDS[fault.command][0]} {fault.words}`".replace(" `", "`").replace("|", "\\|")
    answer = said.strip().partition(": ")[2].replace("|", "\\|")
    return f"| {number} | {typed} | {fault.what} | `` {answer} `` |"


if __name__ == "__main__":
    write_table()
