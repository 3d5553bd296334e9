"""What a budget buys, and why one is too short, in words."""

from sweeps.display.durations import in_words
from sweeps.planning.cost import Plan
from sweeps.search.config import SweepConfig
from sweeps.search.space import values_of
from trainables.config.candidate import TEACHER_ITSELF


def describe(config: SweepConfig, plan: Plan) -> str:
    """What a budget buys."""
    base = config.search.base
    before, after = base.student.student_epochs, base.prune.recovery_epochs
    if values_of(config.search.space, base, "student_model") == [TEACHER_ITSELF]:
        models, epochs = "pruned copies of the teacher", f"{before + after} epochs"
    else:
        models, epochs = "models", f"{before} + {after} epochs"
    if base.prune.recovery_budget == "time":
        epochs = f"the time of {epochs} unpruned"
    count = max(0, round((plan.trials - plan.untrained) * plan.networks_per_trial))
    each = f"trained for about {in_words(plan.trial_s.expected)} each, {epochs}, {plan.concurrency} at once"
    return f"about {plan.trials} trials ({count} {models}, {each}, and their files)"


def too_short(plan: Plan, budget_s: float, gone_s: float) -> str:
    """The message that a budget, of which `gone_s` are spent or kept free, is too short for one trial."""
    before = plan.teacher_s.expected + plan.labels_s.expected + plan.champions_s.expected + plan.start_s
    champions = f" champions {in_words(plan.champions_s.expected)}," if plan.champion_runs else ""
    return (
        f"--budget {in_words(budget_s)}: one trial needs about {in_words(gone_s + before + plan.trial_s.expected)}"
        f" (teacher {in_words(plan.teacher_s.expected)}, soft labels {in_words(plan.labels_s.expected)}, trial"
        f" {in_words(plan.trial_s.expected)},{champions} probe and start {in_words(gone_s + plan.start_s)})."
    )
