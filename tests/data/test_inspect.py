"""`inspect` counts what is there, knows what a model without users can reach, and finds leaks that are planted."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import build, jsonl, read, write

from pluralrlhf.data import build_dataset, pair_files
from pluralrlhf.data.arrays import read_pairs
from pluralrlhf.data.inspect import agreement, context_sizes, inspect_dataset, leaks
from pluralrlhf.data.populations.pets import Pets
from pluralrlhf.data.schema import SPLITS, messages, pairs_schema

MUST_BE_ZERO = (
    "users_in_two_partitions",
    "items_on_both_sides",
    "pairs_on_both_sides",
    "held_out_pairs_in_training",
    "targets_shown_in_context",
)


def votes(seed=0, users=60, prompts=40, each=25, share=0.7):
    """On every prompt `share` of the users prefer A; each answer is unlike every other."""
    rng = np.random.default_rng(seed)
    table = []
    for u in range(users):
        for q in rng.choice(prompts, each, replace=False):
            texts = [f"A{q}", f"B{q}"]
            order = texts if rng.random() < share else texts[::-1]
            table.append({"user_id": f"u{u}", "prompt": f"Q{q}", "chosen": order[0], "rejected": order[1]})
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect")
    status, folder = build(path, path=write(path / "votes.jsonl", jsonl(votes())))
    assert status == 0
    return folder


def test_sizes_are_those_of_the_files(folder):
    report = inspect_dataset(folder)
    by_split = defaultdict(list)
    for row in read(folder):
        by_split[row["split"]].append(row)
        by_split["all"].append(row)
    for split, found in report["splits"].items():
        assert found == {
            "pairs": len(by_split[split]),
            "users": len({r["user_id"] for r in by_split[split]}),
            "items": len({i for r in by_split[split] for i in r["item_ids"]}),
            "prompts": len({r["prompt"][0]["content"] for r in by_split[split]}),
        }
        counts = sorted(Counter(r["user_id"] for r in by_split[split]).values())
        quantiles = report["pairs_per_user"][split]
        assert (quantiles["p0"], quantiles["p100"]) == (counts[0], counts[-1])
        assert quantiles["mean"] == pytest.approx(np.mean(counts))
    assert set(report["splits"]) == {*SPLITS, "all"}


def test_what_a_model_without_users_can_reach(folder):
    found = agreement(read_pairs(pair_files(folder)))
    bound = found["global_bound"]["splits"]["all"]
    # Users prefer A with chance 0.7: the majority of some 35 others is right that often.
    assert bound["majority_of_others"]["accuracy"] == pytest.approx(0.7, abs=0.04)
    assert bound["win_rate_of_others"]["accuracy"] == pytest.approx(0.7, abs=0.04)
    assert bound["majority_in_sample"]["accuracy"] >= bound["majority_of_others"]["accuracy"]
    assert found["disagreement"]["two_users_disagree"] == pytest.approx(2 * 0.7 * 0.3, abs=0.03)
    assert found["disagreement"]["judgments_on_shared_pairs"] == 1


def test_the_bound_against_a_loop(folder):
    rows = read(folder)
    by_item = defaultdict(list)
    for r in rows:
        by_item[r["item_ids"][0]].append((r["user_id"], r["chosen"][0]["content"][0]))
    correct = defaultdict(list)
    for judgments in by_item.values():
        for user, choice in judgments:
            others = [c for u, c in judgments if u != user]
            votes_for = others.count(choice) - (len(others) - others.count(choice))
            correct[user].append(0.5 if votes_for == 0 else float(votes_for > 0))
    expected = np.mean([np.mean(c) for c in correct.values()])
    found = agreement(read_pairs(pair_files(folder)))["global_bound"]["splits"]["all"]
    assert found["majority_of_others"] == {"accuracy": pytest.approx(expected), "n_users": 60, "n_pairs": len(rows)}


@pytest.mark.parametrize(
    ("votes_for_first", "expected"),
    [
        ([(1, 2)] * 30, 0.5),  # two people who want opposite things
        ([(10, 20)] * 30, 0.5),  # kinds of equal numbers
        ([(10, 20)] * 30 + [(20, 20)] * 30, 0.75),  # they agree on half of the pairs
        ([(10, 21), (11, 21)] * 30, 0.5),
        ([(14, 20)] * 30, 0.7),
        ([(1, 1)] * 9 + [(1, 4)] * 15, 0.75),  # a pair that one user judged says nothing
        ([(1, 2)] * 2, None),  # too few to tell
        ([(1, 2)] * 15 + [(2, 2), (0, 2)] * 8, 16 / 31),  # coin flips of two: who agrees is chance
    ],
)
def test_the_reach_of_one_answer_against_a_count(tmp_path, votes_for_first, expected):
    rows = []
    for number, (first, n) in enumerate(votes_for_first):
        # Who is of which kind turns from pair to pair, so that every user has the same pairs and mean.
        for user in range(n):
            texts = ("A", "B") if (user + number) % n < first else ("B", "A")
            rows.append(row(f"u{user}" if n > 1 else f"alone{number}", f"i{number}", *texts))
    report = agreement(planted(tmp_path, **{TRAIN: rows}))
    bound = report["global_bound"]["splits"]["all"]
    shared = [(first, n) for first, n in votes_for_first if n > 1]
    assert bound["majority_of_others"]["n_pairs"] == sum(n for _, n in shared)
    assert bound["reach"] == (expected if expected is None else pytest.approx(expected, abs=0.01))
    most = np.average([max(first, n - first) / n for first, n in shared], weights=[n for _, n in shared])
    assert bound["majority_in_sample"]["accuracy"] == pytest.approx(most, abs=0.05)


def test_one_answer_reaches_half_on_pets(tmp_path):
    build_dataset(Pets(n_users=40), tmp_path / "pets")
    for bound in inspect_dataset(tmp_path / "pets")["global_bound"]["splits"].values():
        assert bound["reach"] == pytest.approx(0.5, abs=0.05)


def test_win_rates_speak_where_pairs_are_rarely_shared(tmp_path):
    rng = np.random.default_rng(0)
    table = []
    for u in range(100):  # statement i is better than j if i > j, and everybody thinks so
        for _ in range(30):
            i, j = sorted(rng.choice(300, 2, replace=False))
            table.append({"user_id": f"u{u}", "prompt": "Which?", "chosen": f"S{j}", "rejected": f"S{i}"})
    path = write(tmp_path / "t.jsonl", jsonl(table))
    status, folder = build(tmp_path, "--items", "responses", path=path)
    bound = inspect_dataset(folder)["global_bound"]
    assert status == 0 and bound["judged_by"] == ("win_rate_of_others",)
    assert bound["splits"]["all"]["reach"] > 0.85


def test_a_clean_build_has_no_leaks(folder):
    found = inspect_dataset(folder)["leaks"]
    assert {key: found[key] for key in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, 0)
    assert found["repeated_judgments"] == found["contradicting_judgments"] == 0


def row(user, item, chosen="yes", rejected="no", prompt=None):
    return {
        "user_id": user,
        "pair_id": f"{user}{item}{chosen}{rejected}",
        "item_ids": item.split("+"),
        "prompt": messages(prompt or f"About {item}?", "user"),
        "chosen": messages(chosen),
        "rejected": messages(rejected),
    }


def planted(tmp_path, **splits):
    files = {}
    for split in SPLITS:
        if split in splits:
            files[split] = [str(tmp_path / f"{split}.parquet")]
            pq.write_table(pa.Table.from_pylist(splits[split], schema=pairs_schema()), files[split][0])
    return read_pairs(files)


TRAIN, VALIDATION, HELD_OUT, SEEN_UNSEEN, UNSEEN_SEEN, UNSEEN_UNSEEN = SPLITS


@pytest.mark.parametrize(
    ("leak", "splits"),
    [
        ("users_in_two_partitions", {TRAIN: [row("u", "a")], VALIDATION: [row("u", "b")]}),
        ("users_in_two_partitions", {HELD_OUT: [row("u", "a")], UNSEEN_SEEN: [row("u", "b")]}),
        ("items_on_both_sides", {TRAIN: [row("u", "a+b")], UNSEEN_UNSEEN: [row("v", "b+c", "x", "y")]}),
        ("pairs_on_both_sides", {TRAIN: [row("u", "a", prompt="Q")], SEEN_UNSEEN: [row("u", "b", "no", "yes", "Q")]}),
        ("held_out_pairs_in_training", {TRAIN: [row("u", "a")], HELD_OUT: [row("u", "a", "no", "yes")]}),
        (
            "targets_shown_in_context",
            {UNSEEN_SEEN: [row("v", "a", "yes", "x", "Q")], UNSEEN_UNSEEN: [row("v", "b", "y", "yes", "Q")]},
        ),
        ("responses_shown_in_context", {TRAIN: [row("u", "a")], SEEN_UNSEEN: [row("u", "b", "w", "no")]}),
        ("responses_on_both_sides", {TRAIN: [row("u", "a", "1", "2")], UNSEEN_UNSEEN: [row("v", "b", "2", "3")]}),
        ("repeated_judgments", {TRAIN: [row("u", "a"), {**row("u", "a"), "pair_id": "again"}]}),
        ("contradicting_judgments", {TRAIN: [row("u", "a"), row("u", "a", "no", "yes")]}),
    ],
)
def test_planted_leaks_are_found(leak, splits, tmp_path):
    assert leaks(planted(tmp_path, **splits))[leak] == 1


def test_texts_under_a_shared_item_are_no_leak(tmp_path):
    rows = [row("u", "a+b", "A", "B", "Q"), row("u", "a+c", "A", "C", "Q"), row("u", "b+c", "B", "C", "Q")]
    found = leaks(planted(tmp_path, **{TRAIN: rows}))
    assert found["targets_shown_in_context"] == found["responses_shown_in_context"] == 0


def test_contexts_are_what_is_left_of_the_users_pool(tmp_path):
    splits = {
        UNSEEN_SEEN: [row("v", "a"), row("v", "b"), row("v", "b", "x"), row("w", "a")],
        UNSEEN_UNSEEN: [row("v", "c"), row("x", "c")],
    }
    found = context_sizes(planted(tmp_path, **splits))
    assert found[UNSEEN_SEEN]["quantiles"]["p100"] == 2 and found[UNSEEN_SEEN]["targets_without_context"] == 1
    assert found[UNSEEN_UNSEEN]["quantiles"]["p100"] == 3 and found[UNSEEN_UNSEEN]["targets_without_context"] == 1


def test_examples_are_the_only_texts(folder, monkeypatch):
    assert "Q1" not in str(inspect_dataset(folder))
    examples = inspect_dataset(folder, examples=3)["examples"]
    assert len(examples) == 3 and examples[0]["prompt"][0]["content"].startswith("Q")
    monkeypatch.setattr("pluralrlhf.data.inspect.BATCH", 16)
    assert inspect_dataset(folder, examples=3)["examples"] == examples


def test_longer_conversations_count_as_their_contents(tmp_path):
    talk = [*messages("Hi", "user"), *messages("Hello"), *messages("How?", "user")]
    rows = [{**row("u", "a"), "prompt": talk}, row("v", "b", prompt="Hi\nHello\nHow?"), row("v", "c", prompt="Hi")]
    pairs = planted(tmp_path, **{TRAIN: rows})
    assert pairs.prompt[0] == pairs.prompt[1] != pairs.prompt[2] and pairs.chars[0].tolist() == [13, 3]
