"""Where everything lies below OUT: the names of files and folders that modules share (standard library only).

OUT/mlflow.db, artifacts/              what MLflow knows of all sweeps, and its files
OUT/store/STAGE/DIGEST/                results of stages: record.json, weights.pt, model.onnx; see `trainables.store`
OUT/leases/                            locks of CPU and GPU while something is measured
OUT/sweeps/NAME/                       one sweep: identity.json, sweep.json, study.journal, driver.lock
OUT/sweeps/NAME/teacher/, trials/00012/, champions/RUN/, runtimes/CELL/
                                       what each run left: record.json, recipe.json, model.onnx, delivered.json
OUT/sweeps/NAME/front/, report/        tables, pictures and pages
"""

from pathlib import Path

CHECKOUT = Path(__file__).parents[1]  # holds the packages sweeps, trainables and analysis
COMMANDS = CHECKOUT / "sweeps"  # the scripts that people type

# below OUT
DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"
STORE = "store"
CACHE = "cache"  # of a store behind a URL
LEASES = "leases"
SWEEPS = "sweeps"
TOGETHER = "together"  # fronts and reports over several sweeps
START = "start.json"  # how long the last sweep took to start

# below OUT/sweeps/NAME
IDENTITY = "identity.json"  # its settings and its id
SWEEP_JSON = "sweep.json"  # its description for readers
JOURNAL = "study.journal"  # Optuna's
RUNGS = "rungs.jsonl"  # what stopping goes by
DRIVER_LOCK = "driver.lock"
UNFINISHED = "unfinished"  # there while the sweep has begun and not come to its end
SPENT = "spent.json"  # of its budget
TRACKING = "tracking.json"  # where it is delivered to
TEACHER = "teacher"
TRIALS = "trials"
CHAMPIONS = "champions"
CELLS = "runtimes"  # a finished network in one runtime, precision and batch each
FRONT = "front"
REPORT = "report"
TUNE = "tune"
FRONT_TABLE = "pareto.csv"
FRONT_PAGE = "pareto.html"

# in the folder of a run or of a stage's result
RECORD = "record.json"  # written last: a folder that has one is finished
RECIPE = "recipe.json"
ONNX_FILE = "model.onnx"
TORCHSCRIPT_FILE = "model.torchscript.pt"
WEIGHTS = "weights.pt"
STATE = "state.pt"  # of unfinished training
DELIVERED = "delivered.json"  # which run of MLflow has it

TASK = "task.json"  # for the processes that probe throughput


def sweep_folder(out: Path, name: str) -> Path:
    """The folder of a sweep."""
    return out / SWEEPS / name


def out_of(sweep: Path) -> Path:
    """The OUT that a sweep's folder lies in."""
    return sweep.parents[1]


def trial_folder(sweep: Path, number: int) -> Path:
    """The folder of a trial of a sweep."""
    return sweep / TRIALS / f"{number:05}"


def run_artifacts(out: Path, run_id: str) -> Path:
    """The files of an MLflow run whose store is OUT/mlflow.db."""
    return out / ARTIFACTS / run_id / "artifacts"


def has_record(folder: Path) -> bool:
    """Whether a run or a stage has finished in this folder."""
    return (folder / RECORD).exists()


def recorded(folder: Path) -> list[Path]:
    """The folders below one that hold a record, sorted; for a sweep's trials, `recorded(sweep / TRIALS)`."""
    return sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
