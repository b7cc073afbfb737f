"""`evaluate_summaries`: text-route reward models under own, other, turned, empty and edited texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import data_sha256, load_pairs, load_users
from ..errors import ConfigError
from ..files import write_json
from ..trainers.summarizer_start import Topics
from ..user_models.text.base import as_text
from .bootstrap import user_interval
from .evaluate import check_output
from .scorers import check_distinct, load_scorers
from .summaries import by_user, copying, faithfulness, others, rankings, swap_topics
from .summary import command_line
from .transfer import TransferUser

CONTROLS = ("own", "other_user", "flipped", "empty", "swapped")


@dataclass
class _Users:
    """One context a user, and the targets that share no item with it."""

    names: list[str]
    contexts: np.ndarray
    rows: np.ndarray
    owner: np.ndarray


def evaluate_summaries(
    models: Sequence[str | Path],
    data: str | Path,
    output_dir: str | Path,
    *,
    n_context: int = 8,
    split: str | None = None,
    topics: Any = None,
    max_targets: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    write_texts: bool = False,
) -> dict[str, Any]:
    """Scores each user's targets under the user's text and under texts that should not serve; writes `summaries.json`.

    Args:
        models: Saved text-route models; several of one method are its seeds.
        data: Dataset folder.
        output_dir: Folder of the results.
        n_context: Pairs that the text is made of.
        split: Split of the targets; unseen users on unseen items where there is such a split.
        topics: Topic to words, for what is read by rule; by default those that the model was trained with.
        max_targets: Targets a user at most.
        seed: Of the contexts and of who gets whose text.
        batch_size: Pairs scored at once.
        write_texts: Also write `summaries.jsonl`: user id and text.

    Returns:
        The content of `summaries.json`: for each method `accuracy` under `own`, `other_user`, `flipped`, `empty` and
        `swapped` texts (means over users, seeds averaged within a user, intervals over users), paired differences of
        methods, `faithfulness`, `copying`, `words`.

    Raises:
        ConfigError: A model that has no texts, or a split that the data lacks.
    """
    check_distinct(models)
    folder = check_output(output_dir)
    pairs, users = load_pairs(data), load_users(data)
    split = split or next((s for s in ("test_unseen_users_unseen_items", "validation") if s in pairs), "")
    if split not in pairs:
        raise ConfigError(f"`split` is {split!r}; the data has {', '.join(pairs)}.")
    methods: dict[str, list[dict[str, Any]]] = {}
    texts_out = []
    for model in models:
        (scorer,) = load_scorers([model], pairs, batch_size=batch_size, progress=False, users=users)
        if scorer.model.user_model.route != "text":
            raise ConfigError(f"`--model` {model} is `{scorer.method}`, which has no text. Use `eval reward` for it.")
        drawn = _draw(scorer.pairs, split, n_context, max_targets, seed)
        found = _one(scorer, drawn, rankings(users), _topics(topics, model), seed)
        texts_out += [
            {"model": str(model), "user_id": name, "text": text} for name, text in zip(drawn.names, found.pop("texts"))
        ]
        methods.setdefault(scorer.method, []).append(found)
    content = {
        "schema": 1,
        "data": str(data),
        "data_sha256": data_sha256(data),
        "split": split,
        "n_context": n_context,
        "command": command_line(),
        "methods": {name: _combine(runs) for name, runs in methods.items()},
        "differences": _differences(methods),
    }
    write_json(folder / "summaries.json", content)
    if write_texts:
        lines = "".join(json.dumps(row) + "\n" for row in texts_out)
        (folder / "summaries.jsonl").write_text(lines, encoding="utf-8")
    return content


def _topics(topics: Any, model: str | Path) -> Topics | None:
    if topics is None:
        try:
            settings = json.loads((Path(model) / "training_args.json").read_text(encoding="utf-8"))
            topics = settings.get("topics")
        except (OSError, ValueError):
            topics = None
    return Topics(topics) if topics else None


def _draw(pairs: Any, split: str, k: int, max_targets: int | None, seed: int) -> _Users:
    """For each user of the split one context: that of the first target, and the targets that do not touch it."""
    history = pairs.history
    rows = history.rows(split)
    names, contexts, kept, owner = [], [], [], []
    for user in np.unique(history.user[rows]):
        mine = rows[history.user[rows] == user]
        context = history.context(mine[:1], k, seed=seed)[0]
        shown = context[context >= 0]
        free = mine[~history.conflicts(mine, shown).any(1)] if len(shown) else mine
        free = free[:max_targets]
        if not len(free):
            continue
        owner += [len(names)] * len(free)
        names.append(history.users[user])
        contexts.append(context)
        kept += free.tolist()
    if not names:
        raise ConfigError(f"`split` {split!r}: no user has targets that share no item with the context.")
    return _Users(names, np.array(contexts), np.array(kept), np.array(owner))


def _one(
    scorer: Any, drawn: _Users, ranking: dict[str, list[str]], topics: Topics | None, seed: int
) -> dict[str, Any]:
    """One model: accuracy of each user under each text, and what the texts say."""
    head, data, n = scorer.model.user_model, scorer.pairs, len(drawn.names)
    contexts = data.user_contexts(drawn.contexts)
    turned = data.user_contexts(drawn.contexts, drawn.contexts >= 0)
    texts = head.texts(contexts)
    own, flipped = data.shown(contexts), data.shown(turned)
    other = others(drawn.names, seed)
    nothing = data.shown_summary("")
    given = {"own": own, "other_user": [own[i] for i in other], "flipped": flipped, "empty": [nothing] * n}
    plain = [data.shown_summary(text) for text in texts] == own
    out: dict[str, Any] = {"texts": texts, "words": np.array([len(text.split()) for text in texts])}
    if topics is not None and plain:
        edited = [swap_topics(text, topics) for text in texts]
        given["swapped"] = [data.shown_summary(text) for text in edited]
        out["edited"] = np.array([a != b for a, b in zip(texts, edited)], float)
        if any(name in ranking for name in drawn.names):
            read = [faithfulness(text, ranking[name], topics) for text, name in zip(texts, drawn.names)]
            out["faithfulness"] = {
                key: np.array([getattr(r, key) for r in read], float) for key in ("states", "true", "favourite")
            }
    out["accuracy"] = {name: by_user(_correct(scorer, drawn, shown), drawn.owner, n) for name, shown in given.items()}
    if "swapped" in out["accuracy"]:
        out["accuracy"]["swapped"][out["edited"] == 0] = np.nan
    responses = [[] for _ in range(n)]
    for row, who in zip(drawn.rows, drawn.owner):
        pair = data.row(row)
        responses[who] += [as_text(pair["chosen"]), as_text(pair["rejected"])]
    out["copying"] = copying(
        texts, responses, [[r for r in responses[i] if r not in responses[j]] for j, i in enumerate(other)]
    )
    return out


def _correct(scorer: Any, drawn: _Users, shown: Sequence[Any]) -> np.ndarray:
    """(n,) whether each target is ranked right, ties one half."""
    import torch

    out = []
    for start in range(0, len(drawn.rows), scorer.batch_size):
        rows, owner = (x[start : start + scorer.batch_size] for x in (drawn.rows, drawn.owner))
        batch = scorer.pairs.under(rows, [shown[i] for i in owner])
        with torch.inference_mode():
            logits = scorer.model(**{k: v.to(scorer.device) for k, v in batch.items()}).logits
        chosen, rejected = logits.squeeze(-1).float().chunk(2)
        margin = (chosen - rejected).cpu().numpy()
        out.append((margin > 0) + 0.5 * (margin == 0))
    return np.concatenate(out)


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Seeds averaged within a user; NaN only where all are."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(np.stack(arrays), axis=0)


def _combine(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = [key for key in CONTROLS if key in runs[0]["accuracy"]]
    out: dict[str, Any] = {
        "n_seeds": len(runs),
        "accuracy": {key: user_interval(_mean([run["accuracy"][key] for run in runs])) for key in keys},
        "accuracy_by_seed": [float(run["accuracy"]["own"].mean()) for run in runs],
        "words": float(np.mean([run["words"].mean() for run in runs])),
        "copying": [run["copying"] for run in runs],
    }
    if "faithfulness" in runs[0]:
        names = runs[0]["faithfulness"]
        out["faithfulness"] = {
            name: user_interval(_mean([run["faithfulness"][name] for run in runs])) for name in names
        }
        out["faithfulness_by_seed"] = [float(run["faithfulness"]["true"].mean()) for run in runs]
    return out


def _differences(methods: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """First method minus each other one, by user."""
    first, *rest = methods
    mine = _mean([run["accuracy"]["own"] for run in methods[first]])
    return {
        f"{first} - {name}": user_interval(mine - _mean([run["accuracy"]["own"] for run in methods[name]]))
        for name in rest
    }


def transfer_users(
    model: str | Path,
    pairs: Any,
    users: Any,
    *,
    split: str | None = None,
    n_context: int = 8,
    n_users: int = 50,
    n_prompts: int = 4,
    n_evidence: int = 4,
    use_profile: bool = False,
    seed: int = 0,
) -> list[TransferUser]:
    """Users with a summary by a saved model, prompts, and what a judge is told of them.

    Prompts and evidence are of the split's pairs; evidence shares no item with the context behind the summary, and its
    pairs are others than those that the prompts come from.

    Raises:
        ConfigError: A model without texts, a split that the data lacks, or users without pairs for the judge.
    """
    split = split or next((s for s in ("test_unseen_users_unseen_items", "validation") if s in pairs), "")
    if split not in pairs:
        raise ConfigError(f"`split` is {split!r}; the data has {', '.join(pairs)}.")
    (scorer,) = load_scorers([model], pairs, progress=False, users=users)
    if scorer.model.user_model.route != "text":
        raise ConfigError(f"`--model` {model} is `{scorer.method}`, which has no text.")
    drawn = _draw(scorer.pairs, split, n_context, None, seed)
    texts = scorer.model.user_model.texts(scorer.pairs.user_contexts(drawn.contexts[:n_users]))
    profiles = {row["user_id"]: row["profile"] for row in users} if use_profile else {}
    out = []
    for number, text in enumerate(texts):
        rows = [scorer.pairs.row(row) for row in drawn.rows[drawn.owner == number]]
        evidence = [] if use_profile else rows[:n_evidence]
        prompts: list[Any] = []
        for row in rows[len(evidence) :]:
            if row["prompt"] not in prompts:
                prompts.append(row["prompt"])
        name = drawn.names[number]
        if prompts:
            out.append(TransferUser(name, text, prompts[:n_prompts], evidence, profiles.get(name)))
    if not out:
        raise ConfigError(f"no user of `{split}` has more than `n_evidence` ({n_evidence}) pairs; lower it.")
    return out
