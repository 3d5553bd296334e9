"""The layout below OUT: the names of files and folders that modules share (standard library only).

OUT/mlflow.db, artifacts/              MLflow's database of all sweeps, and its artifacts
OUT/store/STAGE/DIGEST/                results of stages: record.json, weights.pt, model.onnx; see `trainables.store`
OUT/leases/                            locks of CPU and GPU during measurements, and what their clocks usually do
OUT/sweeps/NAME/                       one sweep: identity.json, sweep.json, sweep.toml, study.journal, driver.lock
OUT/sweeps/NAME/teacher/, trials/00012/, champions/RUN/, runtimes/CELL/
                                       the files of each run: record.json, recipe.json, model.onnx, delivered.json
OUT/sweeps/NAME/front/, report/        tables, pictures and pages
"""

from pathlib import Path
from urllib.parse import unquote

CHECKOUT = Path(__file__).parents[1]  # holds the packages sweeps, trainables and analysis
COMMANDS = CHECKOUT / "sweeps"  # the scripts that users run

# below OUT
DATABASE = "mlflow.db"
SQLITE = "sqlite:///"  # begins its address
ARTIFACTS = "artifacts"
STORE = "store"
CACHE = "cache"  # local copies of results in a store behind a URL
LEASES = "leases"
SWEEPS = "sweeps"
TOGETHER = "together"  # fronts and reports over several sweeps
START = "start.json"  # duration of the last sweep's start-up

# below OUT/sweeps/NAME
IDENTITY = "identity.json"  # settings and id
SWEEP_JSON = "sweep.json"  # description for readers
SWEEP_TOML = "sweep.toml"  # the settings, for --config
JOURNAL = "study.journal"  # Optuna's
RUNGS = "rungs.jsonl"  # intermediate results that decide which trials are stopped
DRIVER_LOCK = "driver.lock"
UNFINISHED = "unfinished"  # exists from the start of the sweep until it has ended properly
SPENT = "spent.json"  # the part of its budget that is used up
TRACKING = "tracking.json"  # the MLflow store that it is delivered to
TEACHER = "teacher"
TRIALS = "trials"
CHAMPIONS = "champions"
REPLACED = ".replaced"  # beside trials: results that were of another sweep or configuration
CELLS = "runtimes"  # one per combination of network, runtime, precision and batch size
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
DELIVERED = "delivered.json"  # the id of its MLflow run, and the digest of the record that the run has

TASK = "task.json"  # for the processes that probe throughput


def sweep_folder(out: Path, name: str) -> Path:
    """The folder of a sweep."""
    return out / SWEEPS / name


def database_uri(out: Path) -> str:
    """The address of the MLflow database in OUT."""
    return sqlite_uri(out.resolve() / DATABASE)


def sqlite_uri(database: Path) -> str:
    """The address of a SQLite file.

    Example:
        >>> sqlite_uri(Path("/data/really?/mlflow.db"))
        'sqlite:////data/really%3F/mlflow.db'
    """
    # SQLAlchemy decodes paths; no more than needed is encoded, because people read and type these addresses
    return SQLITE + str(database).replace("%", "%25").replace("?", "%3F")


def database_path(uri: str) -> Path:
    """The file that a `sqlite:///PATH` names."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def out_of(sweep: Path) -> Path:
    """The OUT folder that contains a sweep's folder."""
    return sweep.parents[1]


def trial_folder(sweep: Path, number: int) -> Path:
    """The folder of one trial of a sweep."""
    return sweep / TRIALS / f"{number:05}"


def run_artifacts(out: Path, run_id: str) -> Path:
    """The artifact folder of an MLflow run whose store is OUT/mlflow.db."""
    return out / ARTIFACTS / run_id / "artifacts"


def has_record(folder: Path) -> bool:
    """Whether the run or stage of this folder has finished."""
    return (folder / RECORD).exists()


def recorded(folder: Path) -> list[Path]:
    """The subfolders that hold a record, sorted; `recorded(sweep / TRIALS)` lists a sweep's trials."""
    return sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
