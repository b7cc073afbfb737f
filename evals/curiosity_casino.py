"""Beliefs about real people: the hidden preference order in CaSiNo, from one party's sentences.

    python evals/curiosity_casino.py --path ../shared/data/casino --output_dir evals/results/curio/casino

Folds are of dialogues (both parties of a dialogue are on the same side); a tenth of the training dialogues set the
temperature. Accuracy over the 6 orders after each sentence (a party that has stopped talking keeps its last belief),
with intervals that resample dialogues. The bag of words reads the same prefixes. No setting is tuned on a test fold.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from pluralrlhf.environments.base import stable_seed
from pluralrlhf.environments.casino import ITEM_WORDS, TYPES, load_casino
from pluralrlhf.user_models.beliefs import (
    ClassifierBelief,
    ClassifierBeliefConfig,
    RankingBelief,
    RankingBeliefConfig,
    expected_calibration_error,
)

TURNS = (0, 1, 2, 3, 4, 5, 6, 8)


def bag_of_words(train, types, config=None, calibration=None):
    """Logistic regression on tf-idf words over every training prefix."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def prefixes(transcripts):
        texts, where = [], []
        for n, transcript in enumerate(transcripts):
            said = [m["content"] for m in transcript if m["role"] == "user"]
            for t in range(len(said) + 1):
                texts.append(" ".join(said[:t]))
                where.append((n, t))
        return texts, where

    texts, where = prefixes(train)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    model = LogisticRegression(C=1.0, max_iter=300).fit(
        vectorizer.fit_transform(texts), [types[n] for n, _ in where],
        sample_weight=[1 / (len(train[n]) // 2 + 1) for n, _ in where],
    )  # fmt: skip

    class Belief:
        def beliefs(self, transcripts):
            texts, where = prefixes(transcripts)
            rows = model.predict_proba(vectorizer.transform(texts))
            out = np.zeros((len(transcripts), max(t for _, t in where) + 1, len(TYPES)))
            for (n, t), row in zip(where, rows):
                out[n, t:] = row
            return out

    return Belief()


def majority(train, types, config=None, calibration=None):
    """The training share of each order, whatever is said."""
    share = np.bincount(types, minlength=len(TYPES)) / len(types)

    class Belief:
        def beliefs(self, transcripts):
            return np.broadcast_to(share, (len(transcripts), 1, len(TYPES)))

    return Belief()


METHODS = {
    "majority": (majority, None),
    "bag_of_words": (bag_of_words, None),
    "classifier": (
        ClassifierBelief.fit,
        ClassifierBeliefConfig(len(TYPES), hidden=64, dropout=0.5, weight_decay=0.1, steps=400),
    ),
    "ranking": (RankingBelief.fit, RankingBeliefConfig(items=ITEM_WORDS)),
}


def clustered(values: np.ndarray, clusters: np.ndarray, seed: int = 0, n_resamples: int = 2000) -> dict:
    """Mean with a 95 % interval over resampled clusters."""
    _, index = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    draw = np.random.default_rng(seed).integers(0, len(counts), (n_resamples, len(counts)))
    means = sums[draw].sum(axis=1) / counts[draw].sum(axis=1)
    return {"value": float(values.mean()), "ci95": [float(x) for x in np.percentile(means, [2.5, 97.5])]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="folder of casino_{train,valid}.json[.gz]")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--n_folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()
    people = load_casino(args.path)
    transcripts, types = [p.transcript for p in people], np.array([p.type_index for p in people])
    dialogues = np.array([p.dialogue_id for p in people])
    ids = sorted(set(dialogues), key=lambda d: stable_seed(args.seed, d))
    position = {d: i for i, d in enumerate(ids)}
    place = np.array([position[d] for d in dialogues])
    fold, calibrates = place % args.n_folds, (place // args.n_folds) % 10 == 0
    beliefs = {name: np.zeros((len(people), len(TURNS), len(TYPES))) for name in args.methods}
    for k in range(args.n_folds):
        train, held = np.where((fold != k) & ~calibrates)[0], np.where((fold != k) & calibrates)[0]
        test = np.where(fold == k)[0]
        part = lambda rows: [transcripts[i] for i in rows]  # noqa: E731
        for name in args.methods:
            fit, config = METHODS[name]
            if name in ("majority", "bag_of_words"):  # they need no calibration rows and train on them as well
                rows = np.concatenate([train, held])
                model = fit(part(rows), types[rows].tolist())
            else:
                model = fit(part(train), types[train].tolist(), config, (part(held), types[held].tolist()))
            b = model.beliefs(part(test))
            beliefs[name][test] = b[:, [min(t, b.shape[1] - 1) for t in TURNS]]
        print(f"fold {k + 1} of {args.n_folds}", {n: round((beliefs[n][test, -1].argmax(1) == types[test]).mean(), 3)
                                                  for n in args.methods}, flush=True)  # fmt: skip
    results: dict = {"schema": 1, "n_dialogues": len(ids), "n_parties": len(people), "turns": TURNS}
    results["command"] = f"python evals/curiosity_casino.py --n_folds {args.n_folds} --seed {args.seed}"
    right = {name: b.argmax(axis=2) == types[:, None] for name, b in beliefs.items()}
    for name, b in beliefs.items():
        true = b[np.arange(len(types)), :, types]
        results[name] = {
            "accuracy": [clustered(right[name][:, t].astype(float), dialogues) for t in range(len(TURNS))],
            "log_loss": (-np.log(np.maximum(true, 1e-12))).mean(axis=0).tolist(),
            "ece": [expected_calibration_error(b[:, t], types) for t in range(len(TURNS))],
        }
        for other in ("majority", "bag_of_words"):
            if other in beliefs and name != other:
                gain = right[name].astype(float) - right[other]
                results[name][f"gain_over_{other}"] = [clustered(gain[:, t], dialogues) for t in range(len(TURNS))]
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    with open(out / "accuracy.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "sentences", "accuracy", "low", "high"])
        for name in args.methods:
            for t, row in zip(TURNS, results[name]["accuracy"]):
                writer.writerow([name, t, *(round(x, 4) for x in (row["value"], *row["ci95"]))])


if __name__ == "__main__":
    main()
