"""The pictures of runs: which columns of the logs share one, and how to read it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Panel:
    """A picture of columns that share a unit.

    Attributes:
        name: name of its file.
        label: label of the vertical axis.
        caption: what a reader should know beyond title and axes.
        columns: columns of train rows or evaluations → their names in the legend; a run without any is left out.
        is_noisy: whether values are of single steps; then drawn as a running mean over pale single values.
        scale: scale of the vertical axis: "log", "from zero", "unit" (0 to 1) or "whole" (numbers from 0).
        interval_of: values are shares of numbers of examples that this column has; their 95 % intervals are drawn.
        threshold: a flag of the run file whose value is drawn as a line.
    """

    name: str
    title: str
    label: str
    caption: str
    columns: dict[str, str] = field(default_factory=dict)
    is_noisy: bool = False
    scale: str = "from zero"
    interval_of: str = ""
    threshold: str = ""


_NATS = "loss (nats per token)"
PANELS = (
    Panel(
        "loss", "Training loss", _NATS,
        "Of a step's global batch. In pptrain half of the weight is on answers: compare runs of one phase.",
        {"loss": ""}, is_noisy=True, scale="log",
    ),
    Panel(
        "loss_by_source", "Training loss by source", _NATS,
        "Of a step's C4 blocks and of its synthetic blocks; steps without any are left out.",
        {"c4_loss": "C4", "mixin_loss": "synthetic"}, is_noisy=True, scale="log",
    ),
    Panel(
        "heldout_c4_loss", "Held-out C4 loss", _NATS, "On the validation blocks of the pack.",
        {"heldout_c4_loss": ""}, scale="log",
    ),
    Panel(
        "heldout_accuracy", "Held-out accuracy", "accuracy (any valid answer)",
        "On held-out problems of full difficulty, and in pptrain on fresh ones of the stage's difficulty. Bars are "
        "95 % intervals (Wilson).",
        {"heldout_acc": "", "stage_acc": "at the stage"}, interval_of="num_examples",
    ),
    Panel(
        "heldout_loss", "Held-out loss on problems", _NATS,
        "On held-out problems of full difficulty, answers weighted as in pptrain whatever the phase.",
        {"heldout_loss": ""}, scale="log",
    ),
    Panel(
        "stage", "Curriculum stage", "stage", "Problems of stage s of S have up to s/S of the full size.",
        {"stage": ""}, scale="whole",
    ),
    Panel(
        "window_accuracy", "Accuracy towards the next stage", "accuracy over the window",
        "Of the latest training problems, each seen for the first time. The window is empty when a stage begins.",
        {"curr_acc": ""}, scale="unit", threshold="curr_threshold",
    ),
    Panel("learning_rate", "Learning rate", "learning rate", "", {"lr": ""}),
    Panel(
        "gradient_norm", "Gradient norm", "norm before clipping", "Of the gradient of the global batch.",
        {"grad_norm": ""}, is_noisy=True, scale="log",
    ),
    Panel(
        "synthetic_share", "Synthetic share of tokens", "share of tokens so far",
        "Real tokens of synthetic blocks among all since step 0.", {"mixin_fraction": ""},
    ),
    Panel(
        "throughput", "Throughput", "tokens per second", "All ranks together; evaluations and saves included.",
        {"tokens_per_second": ""}, is_noisy=True,
    ),
    Panel(
        "mfu", "FLOP/s utilization", "share of the peak",
        "Of all devices; with what activation checkpointing computes twice where there is some.",
        {"mfu": "of the model", "hfu": "with recomputation"}, is_noisy=True,
    ),
    Panel(
        "data_wait", "Waiting for data", "share of the time", "While the loader workers were behind the trainer.",
        {"data_wait_fraction": ""}, is_noisy=True,
    ),
)  # fmt: skip


def pack_panel(name: str) -> Panel:
    """The picture of a further pack's held-out loss."""
    caption = f"On the validation blocks of the pack {name}."
    return Panel(
        f"heldout_{name}_loss", f"Held-out {name} loss", _NATS, caption, {f"heldout_{name}_loss": ""}, scale="log"
    )


LOOKAHEAD = Panel(
    "accuracy_by_lookahead", "Accuracy by lookahead", "accuracy (any valid answer)",
    "Lookahead: how many levels must be expanded before the next step is known.", scale="unit",
)  # fmt: skip
