"""README.md of a trained model: what it is, whom it learned from, what it reached, how to use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

if TYPE_CHECKING:
    from .reward_trainer import PersonalizedRewardTrainer

# What TRL's card of a summariser names as its method.
PLUS = {
    "title": "Learning to summarize user information for personalized reinforcement learning from human feedback",
    "id": "2507.13579",
    "citation": """@article{nam2025plus,
    title  = {{Learning to summarize user information for personalized reinforcement learning from human feedback}},
    author = {Hyunji Nam and Yanming Wan and Mickel Liu and Peter F. Ahnn and Jianxun Lian and Natasha Jaques},
    year   = 2025,
    eprint = {arXiv:2507.13579},
}""",
}
_USE = """## Use

```python
import pluralrlhf

model = pluralrlhf.PersonalizedRewardModel.from_pretrained("{name}")
user = model.encode_user([{{"prompt": "...", "chosen": "...", "rejected": "..."}}])  # pairs that the user judged
rewards = model.score(["..."], ["..."], user)
```

`AutoModelForSequenceClassification.from_pretrained` loads it as well; without a user it scores for nobody in particular.
"""


def reward_model_card(trainer: PersonalizedRewardTrainer, name: str, dataset: str | None, tags) -> str:
    """The card as Markdown with metadata, from the trainer's model, data, settings and log."""
    model, args, history = trainer.reward_model, trainer.args, trainer.pairs.history
    config = model.config
    base = config.encoder["name"] if config.encoder else config.backbone_name_or_path
    data = ModelCardData(
        library_name="pluralrlhf",
        pipeline_tag="text-classification",
        tags=sorted({*([tags] if isinstance(tags, str) else tags or []), *trainer._tag_names}),
        base_model=base if base and base != "offline" and "/" in base and not base.startswith(("/", ".")) else None,
        datasets=[dataset] if dataset else None,
    )
    settings = json.dumps(config.user_model_kwargs or {}, sort_keys=True)
    lines = ["---", data.to_yaml(), "---", "", f"# {name}", ""]
    lines += [
        f"A reward model conditioned on its user: method `{config.user_model}` with settings `{settings}`, on "
        + (
            f"frozen features of `{base}`."
            if config.encoder
            else f"the trained backbone `{base or 'given in memory'}`."
        ),
        "",
        "## Data",
        "",
        "| split | users | pairs |",
        "|---|---|---|",
    ]
    for split in history.splits:
        rows = history.rows(split)
        lines.append(f"| {split} | {len(set(history.user[rows].tolist()))} | {len(rows)} |")
    lines += [
        "",
        "## Training",
        "",
        f"{trainer.state.global_step} steps of {args.train_batch_size * args.gradient_accumulation_steps} pairs a process, "
        f"learning rate {args.learning_rate:g}, up to {args.n_context} pairs of context, seed {args.seed}.",
        "",
    ]
    share = model.user_model.applied_share
    if share is not None and trainer.state.global_step:
        lines += [
            f"Of what a context says, {float(share):.0%} is applied, by what fits validation users best where there are any.",
            "",
        ]
    evaluations = [entry for entry in trainer.state.log_history if any(key.endswith("_accuracy") for key in entry)]
    if evaluations:
        metrics = {key: value for entry in evaluations[-3:] for key, value in entry.items() if "accuracy" in key}
        lines += ["## Last evaluation", "", "Means over users.", "", "| metric | value |", "|---|---|"]
        lines += [f"| {key.removeprefix('eval_')} | {value:.4f} |" for key, value in sorted(metrics.items())] + [""]
        if trainer.state.best_metric is not None:
            lines += [f"Best `{args.metric_for_best_model}` on validation users: {trainer.state.best_metric:.4f}.", ""]
    path = args.hub_model_id or (name if args.push_to_hub else args.output_dir)
    return "\n".join(lines) + "\n" + _USE.format(name=path)
