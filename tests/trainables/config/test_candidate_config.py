import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from trainables.config.candidate import (
    KD_LOSSES,
    AugmentConfig,
    CandidateConfig,
    DataConfig,
    MeasureConfig,
    StudentConfig,
    TeacherConfig,
)
from trainables.config.compression import ExportConfig, PruneConfig
from trainables.config.flags import field_docs
from trainables.config.training import TrainingConfig
from trainables.stages.export.qat import qat_key
from trainables.stages.pruning.cuts import key_parts
from trainables.stages.pruning.recovery import VERSION as RECOVERY_VERSION
from trainables.stages.pruning.recovery import recovery_key
from trainables.stages.training.student import student_key, student_loop
from trainables.stages.training.teacher import teacher_key
from trainables.store.results import Key, stage_key

DIGITS = SimpleNamespace(name="digits", image_size=32)
PLACE = SimpleNamespace(fingerprint="data"), SimpleNamespace(key="teacher/t")

WRONG_NORMALIZE = ("0.5", "a/b", "0.5/0", "0.1,0.2/0.3", "nan/1", "0.5/-1", "/", "", "123.7/58.4", "ImageNet")


def test_field_names_are_unique_across_parts_so_that_a_candidate_is_one_row() -> None:
    config = CandidateConfig()
    names = [f.name for part in dataclasses.fields(config) for f in dataclasses.fields(getattr(config, part.name))]
    assert len(names) == len(set(names)) == len(config.flat())


def test_every_field_says_its_unit() -> None:
    for part in dataclasses.fields(CandidateConfig()):
        value = getattr(CandidateConfig(), part.name)
        assert set(field_docs(type(value))) == {f.name for f in dataclasses.fields(value)}


def test_the_device_names_the_precision_and_what_was_asked_for_stays() -> None:
    config = CandidateConfig()
    assert [config.resolve(DIGITS, device=device).training.train_precision for device in ("cpu", "cuda")] == [
        "fp32",
        "amp",
    ]
    assert config.replace(train_precision="fp32").resolve(DIGITS, device="cuda").training.train_precision == "fp32"
    with pytest.raises(ValueError, match=r"train_precision` must be one of fp32, amp.*train_precision='int8'"):
        config.replace(train_precision="int8")


def test_students_of_different_precision_determinism_or_device_never_share() -> None:
    place = (SimpleNamespace(fingerprint="f"), SimpleNamespace(key="teacher/t"))
    config = CandidateConfig()
    keys = [
        student_key(one, *place)
        for one in (
            config.resolve(DIGITS, device="cpu"),
            config.resolve(DIGITS, device="cuda"),
            config.replace(deterministic=True).resolve(DIGITS, device="cpu"),
            config.replace(compile=True).resolve(DIGITS, device="cpu"),
        )
    ]
    assert len(set(keys)) == 4


def test_flat_and_back() -> None:
    config = CandidateConfig().replace(alpha=0.5, dataset="cifar10", train_limit=100)
    assert CandidateConfig().replace(**config.flat()) == config
    candidate = config.resolve(DIGITS, device="cpu")
    assert CandidateConfig().replace(**candidate.flat()).resolve(DIGITS, device="cuda") == candidate
    assert candidate.student.alpha == 0.5 and candidate.data.dataset == "digits"


def test_replace_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match="alfa"):
        CandidateConfig().replace(alfa=0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StudentConfig(alpha=1.5), r"0 <= alpha <= 1.*alpha=1.5"),
        (lambda: StudentConfig(alpha=float("nan")), r"alpha=nan"),
        (lambda: StudentConfig(temperature=0.0), r"temperature > 0.*temperature=0.0"),
        (lambda: StudentConfig(kd_loss="hinton"), r"kd_loss.*kd, logit_std.*kd_loss='hinton'"),
        (lambda: StudentConfig(dkd_beta=-1.0), r"dkd_beta >= 0.*dkd_beta=-1.0"),
        (lambda: StudentConfig(dkd_beta=float("nan")), r"dkd_beta=nan"),
        (lambda: StudentConfig(learning_rate=-1.0), r"learning_rate > 0.*learning_rate=-1.0"),
        (lambda: StudentConfig(student_epochs=-1), r"student_epochs >= 0.*student_epochs=-1"),
        (lambda: PruneConfig(pruning_ratio=1.0), r"0 <= pruning_ratio < 1.*pruning_ratio=1.0"),
        (lambda: PruneConfig(pruning_method="l2"), r"pruning_method.*'l2'"),
        (lambda: PruneConfig(pruning_criterion="l2"), r"pruning_criterion.*magnitude, lamp.*'l2'"),
        (lambda: PruneConfig(pruning_scope="block"), r"pruning_scope.*layer, global.*'block'"),
        (lambda: PruneConfig(pruning_steps=0), r"pruning_steps >= 1.*pruning_steps=0"),
        (lambda: PruneConfig(pruning_scope="global", pruning_of="macs"), r"pruning_scope='global'.*pruning_of='macs'"),
        (lambda: ExportConfig(precision="int4"), r"precision.*fp32, fp16, int8_ptq, int8_qat.*'int4'"),
        (lambda: ExportConfig(calibration_images=0), r"calibration_images >= 1.*calibration_images=0"),
        (lambda: ExportConfig(qat_epochs=0), r"qat_epochs >= 1.*qat_epochs=0"),
        (lambda: ExportConfig(int8_tolerance=1.5), r"0 <= int8_tolerance <= 1.*int8_tolerance=1.5"),
        (lambda: DataConfig(val_fraction=0.0), r"val_fraction=0.0"),
        (lambda: DataConfig(train_limit=1), r"train_limit=1"),
        *((lambda words=words: DataConfig(normalize=words), r"normalize.*MEAN/STD") for words in WRONG_NORMALIZE),
        (lambda: AugmentConfig(crop="zoom"), r"crop='zoom'"),
        (lambda: ExportConfig(precision="amp"), r"precision='amp' is no precision of a file.*train_precision=amp"),
        (lambda: AugmentConfig(mixup_alpha=0.0), r"mixup_alpha=0.0"),
        (lambda: TeacherConfig(teacher_optimizer="adam"), r"teacher_optimizer.*adamw, sgd.*'adam'"),
        (lambda: TeacherConfig(teacher_weight_decay=float("nan")), r"teacher_weight_decay=nan"),
        (lambda: TrainingConfig(weight_decay=-1.0), r"weight_decay >= 0.*weight_decay=-1.0"),
    ],
)
def test_out_of_range_values_are_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"alpha": 0.0, "temperature": 2.0}, {"alpha": 0.0, "temperature": 7.0}),
        ({"alpha": 0.0}, {"kd_loss": "none"}),
        ({"alpha": 0.0, "kd_loss": "dkd", "dkd_beta": 2.0}, {"kd_loss": "none", "alpha": 0.3, "temperature": 1.0}),
        ({"kd_loss": "mse", "temperature": 2.0, "dkd_beta": 1.0}, {"kd_loss": "mse"}),
        ({"kd_loss": "kd", "dkd_beta": 2.0}, {}),
        ({"kd_loss": "dist", "dkd_beta": 2.0}, {"kd_loss": "dist"}),
    ],
)
def test_settings_that_a_loss_does_not_read_are_no_difference(one: dict, other: dict) -> None:
    assert StudentConfig(**one) != StudentConfig(**other)
    assert StudentConfig(**one).canonical() == StudentConfig(**other).canonical()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"temperature": 3.0}),
        ({}, {"alpha": 0.5}),
        ({}, {"kd_loss": "logit_std"}),
        ({"kd_loss": "dkd"}, {"kd_loss": "dkd", "dkd_beta": 2.0}),
        ({"kd_loss": "dist"}, {"kd_loss": "dist", "temperature": 1.0}),
        ({"kd_loss": "wttm"}, {"kd_loss": "wttm", "temperature": 1.0}),
        ({"kd_loss": "mse"}, {"kd_loss": "mse", "alpha": 1.0}),
        ({"kd_loss": "none"}, {"kd_loss": "none", "learning_rate": 1e-2}),
        ({"kd_loss": "none"}, {"alpha": 0.1}),
    ],
)
def test_settings_that_a_loss_reads_are_a_difference(one: dict, other: dict) -> None:
    assert StudentConfig(**one).canonical() != StudentConfig(**other).canonical()


@pytest.mark.parametrize("kd_loss", KD_LOSSES)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_canonical_is_final_and_records_no_teacher_as_none(kd_loss: str, alpha: float) -> None:
    config = CandidateConfig().replace(kd_loss=kd_loss, alpha=alpha, temperature=7.0, dkd_beta=1.0)
    student = config.canonical().student
    assert config.canonical().canonical() == config.canonical()
    assert student.soft_weight == config.student.soft_weight
    assert (student.kd_loss, student.alpha) == ((kd_loss, alpha) if student.soft_weight else ("none", 0.0))
    assert config.canonical().prune == config.prune


def test_the_teacher_as_the_student_takes_all_epochs_after_the_cut_and_uncut_none() -> None:
    config = CandidateConfig().replace(student_model="teacher", student_epochs=5, recovery_epochs=3)
    plain = config.canonical()
    assert (plain.student.student_epochs, plain.prune.recovery_epochs) == (0, 8)
    assert plain.network == config.teacher.teacher_model
    uncut = config.replace(pruning_ratio=0.0)
    assert (uncut.canonical().student.student_epochs, uncut.canonical().prune.recovery_epochs) == (0, 0)
    assert uncut.canonical() == uncut.replace(temperature=7.0, learning_rate=0.1, kd_loss="mse").canonical()
    quantised = uncut.replace(precision="int8_qat")  # trains on, so that its lesson counts
    assert quantised.canonical() != quantised.replace(temperature=7.0).canonical()


def test_images_without_labels_are_inert_where_no_teacher_teaches_them() -> None:
    config = CandidateConfig().replace(unlabeled="/home/me/more")
    assert config.canonical().data.unlabeled == "/home/me/more"
    uncut = {"student_model": "teacher", "pruning_ratio": 0.0}
    for silent in ({"alpha": 0.0}, {"kd_loss": "none"}, uncut):
        assert config.replace(**silent).canonical() == CandidateConfig().replace(**silent).canonical()
    assert config.replace(**uncut, precision="int8_qat").canonical().data.unlabeled is not None


def test_a_digest_of_what_is_there_stands_for_images_without_labels() -> None:
    there = SimpleNamespace(name="digits", image_size=32, unlabeled="0123")
    asked, plain = CandidateConfig().replace(unlabeled="/home/me/more"), CandidateConfig()
    found = asked.resolve(there, device="cpu")
    assert (found.data.unlabeled, found.teacher_row()["unlabeled"]) == ("0123", None)
    assert plain.resolve(there, device="cpu").data.unlabeled is None
    for taught in ({}, {"student_model": "teacher"}):
        students = [config.replace(**taught).resolve(there, device="cpu") for config in (asked, plain)]
        dense = [student_key(student, *PLACE) for student in students]
        recovered = [recovery_key(student, PLACE[1], channel_ratio=0.3) for student in students]
        assert dense[0] != dense[1]
        assert (recovered[0] != recovered[1]) == bool(taught)  # a dense student's own key says it for its recovery
        assert teacher_key(students[0], PLACE[0]) == teacher_key(students[1], PLACE[0])


def test_the_uncut_teacher_is_another_one_for_each_way_of_teaching_it_in_int8() -> None:
    """Its own key does not say how it is taught; that of a student does, and need not be told twice."""
    uncut = {"student_model": "teacher", "pruning_ratio": 0.0, "precision": "int8_qat"}
    for network, differ in ((uncut, True), (uncut | {"student_model": "alexnet_small"}, False)):
        asked = [CandidateConfig().replace(**network, temperature=value) for value in (2.0, 4.0)]
        keys = {qat_key(config.resolve(DIGITS, device="cpu"), PLACE[1]) for config in asked}
        assert (len(keys) == 2) == differ


@pytest.mark.parametrize("silent", [{"kd_loss": "none"}, {"alpha": 0.0}])
def test_images_without_labels_need_a_teacher(silent: dict[str, object]) -> None:
    config = CandidateConfig().replace(unlabeled="more")
    config.check_unlabeled()
    CandidateConfig().replace(**silent).check_unlabeled()
    with pytest.raises(ValueError, match=rf"unlabeled=more and {'='.join(map(str, *silent.items()))}: only a teacher"):
        config.replace(**silent).check_unlabeled()


def test_a_student_without_recovery_anneals_and_old_keys_are_those_of_one_that_does() -> None:
    without = CandidateConfig().replace(recovery_epochs=0)
    assert without.canonical() == without.replace(student_anneal=True).canonical()
    annealed, kept = (CandidateConfig().replace(student_anneal=word) for word in (True, False))
    keys = [student_key(c.resolve(DIGITS, device="cpu"), *PLACE) for c in (annealed, kept)]
    assert keys[0] != keys[1]
    assert student_loop(kept.resolve(DIGITS, device="cpu")).anneal is False
    assert student_loop(kept.resolve(DIGITS, device="cpu"), more_epochs=2).anneal is True


def test_students_that_do_not_differ_share_a_place_in_the_store() -> None:
    def key(**changes: object) -> Key:
        return student_key(CandidateConfig().replace(**changes).resolve(DIGITS, device="cpu"), *PLACE)

    assert key(kd_loss="none") == key(alpha=0.0, temperature=9.0) != key()
    assert key(dkd_beta=1.0) == key() != key(temperature=9.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"pruning_ratio": 0.0, "pruning_method": "l1_global"}, {"pruning_ratio": 0.0, "pruning_criterion": "taylor"}),
        ({"pruning_method": "nm_2_4", "pruning_ratio": 0.2}, {"pruning_method": "nm_2_4", "pruning_ratio": 0.7}),
        ({"pruning_method": "l1_global", "pruning_scope": "global"}, {"pruning_method": "l1_global"}),
        ({"pruning_method": "l1_global", "pruning_steps": 3}, {"pruning_method": "l1_global"}),
        ({"pruning_criterion": "lamp"}, {}),
        ({"calibration_images": 8, "qat_epochs": 5}, {}),
        ({"precision": "int8_ptq", "qat_epochs": 5}, {"precision": "int8_ptq"}),
        ({"precision": "fp16", "calibration_images": 5}, {"precision": "fp16"}),
        ({"precision": "int8_qat", "int8_tolerance": 0.5}, {"precision": "int8_qat"}),
        ({"int8_tolerance": 0.5}, {}),
    ],
)
def test_settings_that_pruning_and_export_do_not_read_are_no_difference(one: dict, other: dict) -> None:
    config = CandidateConfig()
    assert config.replace(**one) != config.replace(**other)
    assert config.replace(**one).canonical() == config.replace(**other).canonical()


@pytest.mark.parametrize(
    "change",
    [
        {"pruning_criterion": "taylor"},
        {"pruning_scope": "global"},
        {"pruning_scope": "global", "pruning_criterion": "lamp"},
        {"pruning_steps": 2},
        {"pruning_method": "nm_2_4", "pruning_ratio": 0.5},
        {"precision": "int8_ptq"},
        {"precision": "int8_ptq", "calibration_images": 8},
        {"precision": "int8_ptq", "int8_tolerance": 0.02},
        {"precision": "int8_qat", "qat_epochs": 2},
    ],
)
def test_settings_that_pruning_and_export_read_are_a_difference(change: dict) -> None:
    config = CandidateConfig()
    assert config.replace(**change).canonical() == config.replace(**change) != config.canonical()


@pytest.mark.parametrize(
    ("settings", "student", "recovery"),
    [
        ({"pruning_ratio": 0.5}, 3, 16),
        ({"pruning_ratio": 0.75, "pruning_of": "macs"}, 3, 16),
        ({"pruning_ratio": 0.75}, 3, 40),
        ({"pruning_ratio": 0.75, "alpha": 0.0}, 3, 49),
        ({"pruning_ratio": 0.9, "alpha": 0.0}, 3, 100),
        ({"pruning_ratio": 0.75, "recovery_budget": "epochs"}, 3, 5),
        ({"pruning_ratio": 0.75, "pruning_method": "l1_global"}, 3, 5),
        ({"pruning_ratio": 0.0}, 3, 5),
        ({"pruning_ratio": 0.5, "student_model": "teacher"}, 0, 26),
        ({"pruning_ratio": 0.0, "student_model": "teacher"}, 0, 0),
    ],
    ids=[
        "half of the width",
        "a quarter of the work",
        "8 times at most with a teacher",
        "as long as the time is equal",
        "20 times at most",
        "as many",
        "no faster",
        "nothing",
        "after",
        "as it is",
    ],
)
def test_a_network_that_keeps_less_of_its_width_recovers_for_more_epochs(
    settings: dict[str, Any], student: int, recovery: int
) -> None:
    config = CandidateConfig().replace(student_epochs=3, recovery_epochs=5, recovery_budget="time").replace(**settings)
    row = config.canonical().flat()
    assert (row["student_epochs"], row["recovery_epochs"], row["recovery_budget"]) == (student, recovery, "epochs")
    assert config.canonical().canonical() == config.canonical()
    spelt_out = config.replace(recovery_budget="epochs", student_epochs=student, recovery_epochs=recovery)
    assert config.canonical() == spelt_out.canonical()


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"kd_anneal": 0.5}, [0, 1, 3, 4]),
        ({"kd_anneal": 0.5, "pruning_steps": 3}, [0, 1, 3, 4, 5]),
        ({"kd_anneal": 0.5, "unlabeled": "more"}, [0, 1, 2, 3, 4, 5]),
        ({"kd_anneal": 0.5, "student_epochs": 0, "precision": "int8_qat", "qat_epochs": 6}, [0, 1, 2]),
        ({"kd_anneal": 0.28, "student_epochs": 25, "recovery_epochs": 0}, [0, 1, 2, 3, 4, 5, 6]),
        ({"alpha": 0.0}, []),
        ({"kd_loss": "none"}, []),
    ],
    ids=["all", "half", "after every cut", "without labels", "quantising", "rounding", "alpha 0", "no term"],
)
def test_views_that_a_teacher_has_to_see(settings: dict[str, Any], views: list[int]) -> None:
    config = CandidateConfig().replace(student_epochs=3, recovery_epochs=3).replace(**settings)
    assert config.taught_views() == views


def test_without_a_soft_term_annealing_is_no_difference() -> None:
    config = CandidateConfig().replace(alpha=0.0)
    assert config.replace(kd_anneal=0.5).canonical() == config.canonical()
    assert CandidateConfig().replace(kd_anneal=0.5).canonical() != CandidateConfig().canonical()


def test_what_older_stores_hold_is_found_again() -> None:
    """Settings that came later are no part of a key while they are at their defaults."""
    assert "kd_anneal" not in StudentConfig().key_parts()
    assert StudentConfig(kd_anneal=0.5).key_parts()["kd_anneal"] == 0.5
    later = {"pruning_criterion", "pruning_scope", "pruning_steps", "prune_ignore", "recovery_budget"}
    assert not later & key_parts(PruneConfig()).keys()
    assert key_parts(PruneConfig(pruning_scope="global"))["pruning_scope"] == "global"
    assert "measure_on" not in {**MeasureConfig().key_parts(), **MeasureConfig(measure_on="ssh://pi").key_parts()}
    student = SimpleNamespace(key="student/s")
    old = {"pruning_method": "structured", "pruning_ratio": 0.3, "pruning_of": "channels"}
    old |= {"recovery_epochs": 4, "recovery_learning_rate_factor": 0.3}
    key = stage_key("recovery", version=RECOVERY_VERSION, parents=["student/s"], channel_ratio=0.3, **old)
    config = CandidateConfig().replace(recovery_epochs=4, recovery_learning_rate_factor=0.3)
    assert recovery_key(config.resolve(DIGITS, device="cpu"), student, channel_ratio=0.3) == key
