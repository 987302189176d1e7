"""The metrics of a run: the one list of their names, with what each means. Imports no torch.

A run gives one point of a metric after a meta-iteration, or one after an evaluation. Beside those declared here there are,
once at the start, the counts of what a family found in its data, which the family names itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Occasion = Literal["iteration", "evaluation"]


@dataclass(frozen=True)
class Declaration:
    sentence: str
    each: Occasion = "iteration"
    """The occasion after which there is a point of it (not after every one, where the sentence says so)."""
    lower_is_better: bool | None = None
    """None where neither direction is better."""


META_LOSS: Final = "meta_loss"
GRADIENT_NORM: Final = "gradient_norm"
CLIPPED: Final = "clipped"
LEFT_OUT: Final = "left_out"
GRADIENTS: Final = "gradients"
HVPS: Final = "hvps"
LAMBDA_MAX: Final = "lambda_max"
LEARNED_LENGTH: Final = "learned_length"
LEARNED_PROXIMAL: Final = "learned_proximal"
LEARNED_RATES: Final = "learned_rates"
CERTIFICATE_ERROR: Final = "certificate_error"
CERTIFICATE_OVER_LIMIT: Final = "certificate_over_limit"
SECONDS: Final = "seconds"
MEMORY_BYTES: Final = "memory_bytes"
MICRO_BATCH: Final = "micro_batch"
EVALUATION_MICRO_BATCH: Final = "evaluation_micro_batch"
TUNED_BEST_EPOCH: Final = "tuned_best_epoch"

METRICS: Final[dict[str, Declaration]] = {
    META_LOSS: Declaration("The query loss at the flow's end, mean over the batch's tasks.", lower_is_better=True),
    GRADIENT_NORM: Declaration("The norm of θ's meta-gradient, before it is clipped."),
    CLIPPED: Declaration("The share of the gradients that meta.clip has shortened."),
    LEFT_OUT: Declaration("Tasks of the batch that were left out, since their solve wasn't finite; none where there are none."),
    GRADIENTS: Declaration("Evaluations of the support loss's gradient, mean over tasks.", lower_is_better=True),
    HVPS: Declaration("Hessian-vector products, mean over tasks.", lower_is_better=True),
    LAMBDA_MAX: Declaration("The largest estimate of the Hessian's largest eigenvalue among the tasks, where one was made."),
    LEARNED_LENGTH: Declaration("The learned length of the trajectory, where it is learned."),
    LEARNED_PROXIMAL: Declaration("The learned proximal strength, where it is learned."),
    LEARNED_RATES: Declaration("The mean of the learned rates, where they are learned."),
    CERTIFICATE_ERROR: Declaration(
        "The meta-gradient's relative error in the worst task, every runtime.certify_every.", lower_is_better=True
    ),
    CERTIFICATE_OVER_LIMIT: Declaration("1 where that is over runtime.certify_limit, else 0.", lower_is_better=True),
    SECONDS: Declaration("What the meta-iteration took.", lower_is_better=True),
    MEMORY_BYTES: Declaration(
        "What meta-updates have held beyond what the trainer held before, whenever it is more than ever.", lower_is_better=True
    ),
    MICRO_BATCH: Declaration("Tasks that are solved at once, where it has become fewer, for want of memory."),
    EVALUATION_MICRO_BATCH: Declaration("The same for an evaluation's tasks.", "evaluation"),
    TUNED_BEST_EPOCH: Declaration("The recorded epoch of fine-tuning with the best mean over tasks.", "evaluation"),
}  # fmt: skip

NRMSE: Final = "nrmse"
ACCURACY: Final = "accuracy"
SCORED_BY: Final[dict[str, Declaration]] = {
    NRMSE: Declaration("The root mean square error over the targets' standard deviation.", "evaluation", lower_is_better=True),
    ACCURACY: Declaration("The share of the points whose class is found.", "evaluation", lower_is_better=False),
}  # fmt: skip
"""The scores of unseen tasks in the built-in families. An evaluation's metrics are `METRIC_HOW`, the mean over the tasks
adapted in that way, and `METRIC_HOW_error`, its standard error."""

FLOW: Final = "flow"
TUNED: Final = "tuned"
TUNED_BEST: Final = "tuned_best"
RANDOM: Final = "random"
VALIDATION: Final = "validation"
ADAPTED_BY: Final[dict[str, str]] = {
    FLOW: "By the inner flow to T.",
    TUNED: "By fine-tuning, after the last epoch.",
    TUNED_BEST: "By fine-tuning, after the recorded epoch with the best mean over tasks.",
    RANDOM: "By fine-tuning from the random start.",
    VALIDATION: "Validation tasks, by the inner flow to T.",
}
"""The ways in which tasks are adapted. Besides these there are a family's baselines and kernel ridge regression, by their own
names."""


def score(metric: str, how: str) -> str:
    """The name of the mean score by this metric of tasks adapted in this way."""
    return f"{metric}_{how}"


def error_of(score: str) -> str:
    """The name of the standard error of a score over the tasks."""
    return f"{score}_error"
