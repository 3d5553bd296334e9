"""The chain of the teacher: every candidate's reference, measured as they are."""

from collections.abc import Generator

from trainables.config.candidate import Candidate
from trainables.records.stages import CandidateRecord, EpochRecord
from trainables.stages.candidate.chain import Chain
from trainables.stages.export.stage import export_teacher
from trainables.stages.training.teacher import train_teacher
from trainables.stages.workspace import Bench, Workspace


def make_teacher(candidate: Candidate, place: Workspace) -> Generator[EpochRecord, None, CandidateRecord]:
    """Train the teacher, export it and measure it against itself; yields its epochs."""
    chain = Chain(Bench.of(candidate, place))
    model = yield from chain.spend(train_teacher(chain.bench))
    files = export_teacher(chain.bench, model)
    return chain.finish("teacher", [model], model, files, files)
