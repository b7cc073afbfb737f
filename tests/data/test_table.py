"""The table source: every layout and format gives the pairs that a reader of the table would expect."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import math
from collections import Counter, defaultdict

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import as_csv, build, jsonl, read, rows, write

from pluralrlhf.data import load_users, messages, placebo
from pluralrlhf.data.sources.table import DEFAULT_PROMPT, Table
from pluralrlhf.data.sources.table_json import json_values
from pluralrlhf.data.sources.table_ratings import ACROSS_PROMPT, candidate_pairs

GOOD = rows()


def pairs_of(path, **settings):
    """The rows that a table gives, in the contract's form."""
    found = list(Table(str(path), **settings).rows())
    assert not [row for row in found if isinstance(row, Exception)], found
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in found]


def text(conversation):
    return conversation[-1]["content"]


def judged(pairs):
    return [(p["user_id"], text(p["prompt"]), text(p["chosen"]), text(p["rejected"])) for p in pairs]


EXPECTED = [(r["user_id"], r["prompt"], r["chosen"], r["rejected"]) for r in GOOD]


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", jsonl(GOOD)),
        ("t.ndjson", jsonl(GOOD).replace(b"\n", b"\r\n")),
        ("t.jsonl", jsonl(GOOD).replace(b"\n", b"\n\n")),
        ("t.jsonl", b"\xef\xbb\xbf" + jsonl(GOOD)),
        ("t.jsonl.gz", gzip.compress(jsonl(GOOD))),
        ("t.json", json.dumps(GOOD).encode()),
        ("t.json", b"\xef\xbb\xbf" + json.dumps(GOOD, indent=2).encode()),
        ("t.json", jsonl(GOOD)),
        ("t.JSON.gz", gzip.compress(json.dumps(GOOD).encode())),
        ("t.csv", as_csv(GOOD)),
        ("t.csv", b"\xef\xbb\xbf" + as_csv(GOOD)),
        ("t.csv", as_csv(GOOD, lineterminator="\n").replace(b"\n", b"\n\n")),
        ("t.csv.gz", gzip.compress(as_csv(GOOD, quoting=1))),
        ("t.tsv", as_csv(GOOD, delimiter="\t")),
        ("t.parquet", parquet(GOOD)),
    ],
)
def test_every_format_gives_the_same_pairs(name, content, tmp_path):
    pairs = pairs_of(write(tmp_path / name, content))
    assert judged(pairs) == EXPECTED
    assert pairs == pairs_of(write(tmp_path / "reference.jsonl", jsonl(GOOD)))


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for number, start in enumerate(range(0, len(GOOD), 50)):
        write(tmp_path / "votes" / "parts" / f"part-{number}.csv", as_csv(GOOD[start : start + 50]))
    write(tmp_path / "votes" / "README.md", b"# about")
    write(tmp_path / "votes" / ".hidden.jsonl", b"x")
    assert judged(pairs_of(tmp_path / "votes")) == EXPECTED
    described = Table(str(tmp_path / "votes")).reader.version()
    assert list(described["sha256"]) == [f"parts/part-{n}.csv" for n in range(4)]


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (as_csv(GOOD, delimiter=";"), {"delimiter": ";"}),
        (
            as_csv([{**r, "prompt": r["prompt"] + "é"} for r in GOOD]).decode().encode("latin-1"),
            {"encoding": "latin-1"},
        ),
        (as_csv([{**r, "prompt": r["prompt"] + "é"} for r in GOOD]).decode().encode("utf-16"), {"encoding": "utf-16"}),
    ],
)
def test_other_delimiters_and_encodings(content, settings, tmp_path):
    pairs = pairs_of(write(tmp_path / "t.csv", content), **settings)
    assert [(u, p.rstrip("é"), c, r) for u, p, c, r in judged(pairs)] == EXPECTED


def test_quoted_cells_keep_line_breaks_and_quotes(tmp_path):
    odd = 'She said: "no",\nthen left\r\n; 中文'
    table = [{**r, "chosen": odd} for r in GOOD]
    assert {text(p["chosen"]) for p in pairs_of(write(tmp_path / "t.csv", as_csv(table)))} == {odd}


def test_columns_are_mapped_also_from_nested_fields(tmp_path):
    table = [
        {"meta": {"who": {"id": n}}, "q.text": r["prompt"], "answers": [r["chosen"], {"t": r["rejected"]}]}
        for n, r in enumerate(GOOD)
    ]
    names = {"user_id": "meta.who.id", "prompt": "q.text", "chosen": "answers.0", "rejected": "answers.1.t"}
    expected = [(n, *e[1:]) for n, e in enumerate(EXPECTED)]
    assert judged(pairs_of(write(tmp_path / "t.jsonl", jsonl(table)), map=names)) == expected
    table = [
        {"meta": {"who": r["user_id"]}, "texts": {"p": r["prompt"], "c": r["chosen"], "r": r["rejected"]}}
        for r in GOOD
    ]
    names = {"user_id": "meta.who", "prompt": "texts.p", "chosen": "texts.c", "rejected": "texts.r"}
    assert judged(pairs_of(write(tmp_path / "t.parquet", parquet(table)), map=names)) == EXPECTED


def test_conversations(tmp_path):
    shared = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    chosen, rejected = messages("Hello!"), messages("What?")
    full = {"user_id": "u", "chosen": shared + chosen, "rejected": shared + rejected}
    split = {"user_id": "u", "prompt": shared, "chosen": chosen, "rejected": rejected}
    (a,), (b,), (c,) = (
        pairs_of(write(tmp_path / f"{n}.jsonl", jsonl([row])))
        for n, row in enumerate((full, split, {**full, "prompt": shared}))
    )
    assert a == b == c and (a["prompt"], a["chosen"], a["rejected"]) == (shared, chosen, rejected)
    # A prompt in words with whole conversations, as in many public datasets.
    words = {"user_id": "u", "prompt": "Hi", "chosen": shared[1:] + chosen, "rejected": shared[1:] + rejected}
    (d,) = pairs_of(write(tmp_path / "d.jsonl", jsonl([words])))
    assert (d["prompt"], d["chosen"]) == (shared[1:], chosen)
    (e,) = pairs_of(write(tmp_path / "e.parquet", parquet([full])))
    assert e == a
    choice = {"user_id": "u", "response_a": full["rejected"], "response_b": full["chosen"], "choice": "b"}
    (g,) = pairs_of(write(tmp_path / "g.jsonl", jsonl([choice])))
    assert g == b
    extra = [{**m, "id": 7} for m in chosen]
    (f,) = pairs_of(write(tmp_path / "f.jsonl", jsonl([{**split, "chosen": extra}])))
    assert f == b


CHOICES = [
    {"user_id": r["user_id"], "prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"]}
    for r in GOOD
]


@pytest.mark.parametrize(
    ("a", "b", "tie", "settings"),
    [
        ("a", "b", "tie", {}),
        ("A", " B ", "Tie", {}),
        ("left", "right", "neither", {}),
        ("model_a", "model_b", "tie (bothbad)", {}),
        ("response_a", "response_b", "both", {}),
        (0, 1, "tie", {}),
        (1, 2, "tie", {}),
        ("0", "1", "tie", {}),
        (1.0, 2.0, "tie", {}),
        (1, 2, 0, {"choice_values": {"a": "1", "b": "2", "tie": "0"}}),
        (2, 1, 0, {"choice_values": {"a": "2", "b": "1", "tie": "0"}}),
        (True, False, "tie", {"choice_values": {"a": "true", "b": "false"}}),
        ("yes", "no", "dunno", {"choice_values": {"a": "yes,yeah", "b": "no", "tie": "dunno"}}),
    ],
)
def test_choices_and_ties(a, b, tie, settings, tmp_path):
    values = [(a, b, tie)[n % 3] for n in range(len(CHOICES))]
    path = write(tmp_path / "t.jsonl", jsonl([{**r, "choice": v} for r, v in zip(CHOICES, values)]))
    source = Table(str(path), **settings)
    found = judged(list(source.rows()))
    expected = [(u, p, *((c, r) if n % 3 == 0 else (r, c))) for n, (u, p, c, r) in enumerate(EXPECTED) if n % 3 < 2]
    assert found == expected
    assert source.dropped == {"tie": sum(n % 3 == 2 for n in range(len(CHOICES)))}


def test_numbers_are_understood_from_later_rows(tmp_path):
    values = [1] * 100 + [2] * 60
    path = write(tmp_path / "t.jsonl", jsonl([{**r, "choice": v} for r, v in zip(CHOICES, values)]))
    assert judged(pairs_of(path))[:100] == EXPECTED[:100]
    values = [1] * 100 + [0] * 60
    path = write(tmp_path / "t.jsonl", jsonl([{**r, "choice": v} for r, v in zip(CHOICES, values)]))
    assert judged(pairs_of(path))[100:] == EXPECTED[100:]


def test_what_numbers_were_taken_for_is_said(tmp_path, capsys):
    values = [1, 0, 1]
    path = write(tmp_path / "t.jsonl", jsonl([{**r, "choice": values[n % 3]} for n, r in enumerate(CHOICES)]))
    status, folder = build(tmp_path, path=path)
    said = capsys.readouterr().out
    assert status == 0 and "0 as `response_a` (" in said and "--choice_values a=1 b=0" in said
    assert set(json.loads((folder / "build.json").read_text())["choice_numbers"]) == {"0", "1"}
    status, _ = build(tmp_path, "--choice_values", "a=1", "b=0", path=path, out="told")
    assert status == 0 and "choices were read as" not in capsys.readouterr().out


def test_numbers_beside_those_of_two_sides_are_no_sides_and_none_is_skipped(tmp_path, capsys):
    for values in ([1, 0.5, 0], [0.5, 0, 1], [-1, 0, 1], [3, 4, 5, 2], [1, 2, 3]):
        table = [{**r, "choice": values[n % len(values)]} for n, r in enumerate(CHOICES)]
        path = write(tmp_path / "t.jsonl", jsonl(table))
        assert build(tmp_path, "--skip_invalid", path=path)[0] == 2
        assert "which number stands for which response is unclear" in capsys.readouterr().err


@pytest.mark.parametrize("empty", [None, math.nan, ""])
def test_an_empty_cell_may_be_a_tie(empty, tmp_path):
    values = ["a", "b", empty]
    path = write(tmp_path / "t.jsonl", jsonl([{**r, "choice": values[n % 3]} for n, r in enumerate(CHOICES)]))
    source = Table(str(path), choice_values={"a": "a", "b": "b", "tie": "null"})
    assert len(judged(list(source.rows()))) == sum(n % 3 < 2 for n in range(len(CHOICES)))
    assert source.dropped == {"tie": sum(n % 3 == 2 for n in range(len(CHOICES)))}


def turns(*texts):
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": names[text[0]], "content": text} for text in texts]


@pytest.mark.parametrize("before", [(), ("s be nice",), ("u first", "a well")])
@pytest.mark.parametrize("layout", ["pairs", "ratings"])
def test_what_comes_before_an_answer_is_its_prompt(layout, before, tmp_path):
    good, bad = turns(*before, "u why", "a good"), turns(*before, "u why", "a bad")
    if layout == "pairs":
        table = [{"user_id": "ann", "prompt": "u why", "chosen": good, "rejected": bad}]
    else:
        table = [{"user_id": "ann", "prompt": "u why", "response": r, "rating": n} for n, r in enumerate((bad, good))]
    (pair,) = pairs_of(write(tmp_path / "t.jsonl", jsonl(table)))
    assert pair["prompt"] == turns(*before, "u why")
    assert (pair["chosen"], pair["rejected"]) == (turns("a good"), turns("a bad"))


def test_a_rated_conversation_without_a_prompt_is_an_error_of_its_row(tmp_path):
    table = [{"user_id": "ann", "response": turns("u why", f"a {n}"), "rating": n} for n in range(3)]
    errors = [
        row for row in Table(str(write(tmp_path / "t.jsonl", jsonl(table)))).rows() if isinstance(row, Exception)
    ]
    assert len(errors) == 3 and "a conversation that begins with the user, where there is no prompt" in str(errors[0])


def test_choices_of_several_raters_in_a_row(tmp_path):
    row = {"prompt": "Q", "response_a": "A", "response_b": "B"}
    by_position = pairs_of(write(tmp_path / "a.jsonl", jsonl([{**row, "choice": ["a", "b", None]}])))
    assert judged(by_position) == [("rater_1", "Q", "A", "B"), ("rater_2", "Q", "B", "A")]
    by_name = pairs_of(write(tmp_path / "b.jsonl", jsonl([{**row, "choice": {"ann": "a", "ben": "b"}}])))
    assert [p["user_id"] for p in by_name] == ["ann", "ben"]
    listed = pairs_of(
        write(tmp_path / "c.jsonl", jsonl([{**row, "user_id": [7, 9], "choice": ["a", "b"], "pair_id": "x"}]))
    )
    assert [(p["user_id"], p["pair_id"]) for p in listed] == [(7, "x/7"), (9, "x/9")]


@pytest.mark.parametrize("layout", ["pairs", "choices", "ratings"])
def test_white_space_around_ids_makes_no_second_person(layout, tmp_path, capsys):
    table = []
    for number, r in enumerate(rows(users=12)):
        space = ["", " ", "\t"][number % 3]
        one = {
            "user_id": r["user_id"] + space,
            "prompt": r["prompt"],
            "topic": space + r["prompt"],
            "profile": "Curious.",
        }
        if layout == "pairs":
            table.append({**one, "chosen": r["chosen"], "rejected": r["rejected"]})
        elif layout == "choices":
            table.append({**one, "response_a": r["chosen"], "response_b": r["rejected"], "choice": "a"})
        else:
            table += [{**one, "response": r["chosen"], "rating": 2}, {**one, "response": r["rejected"], "rating": 1}]
    flags = ["--items", "topic", "--map", "profile=profile"]
    status, folder = build(tmp_path, *flags, path=write(tmp_path / "t.jsonl", jsonl(table)))
    assert status == 0
    found = read(folder)
    assert {r["user_id"] for r in found} == {f"user{u}" for u in range(12)}
    assert {item for r in found for item in r["item_ids"]} <= {f"Question {q}?" for q in range(8)}
    assert load_users(folder)["profile"] == ["Curious."] * 12
    stripped = {value for r in table for value in (r["user_id"], r["topic"]) if value != value.strip()}
    assert f"note: white space around {len(stripped)} user and item ids was taken off" in capsys.readouterr().out


def test_real_valued_ratings_that_hardly_differ_are_counted(tmp_path, capsys):
    """Of ten ratings a user half are noise around a level, half around another: of 45 pairs, 20 hardly differ.

    Users have scales of their own, some rate too little to be kept, and some pairs are of a seen and an unseen item.
    """
    rng = np.random.default_rng(0)
    table = [
        {
            "user_id": f"u{u}",
            "prompt": f"Q{u}",
            "response": f"R{r}",
            "rating": 10 ** (u % 3) * (r % 2 + 0.01 * rng.random()),
        }
        for u in range(30)
        for r in range(10)
    ]
    table += [{**row, "user_id": f"v{n}", "rating": rng.random() / 99} for n, row in enumerate(table[:9])]
    path = write(tmp_path / "t.jsonl", jsonl(table))
    status, folder = build(tmp_path, "--items", "responses", path=path)
    printed = capsys.readouterr().out
    counts = json.loads((folder / "build.json").read_text())["counts"]
    assert status == 0 and 0.38 < counts["close_ratings"] < 0.5
    assert f"{counts['close_ratings']:.0%} of the pairs are of ratings" in printed and "--min_gap" in printed
    steps, normal = ([{**row, "rating": draw(row)} for row in table] for draw in (
        lambda row: round(row["rating"]), lambda row: rng.normal() * 1e300))  # fmt: skip
    for name, other in (("a scale of few steps means them", steps), ("normal", normal)):
        assert build(tmp_path, "--overwrite", path=write(tmp_path / "s.jsonl", jsonl(other)))[0] == 0, name
        assert "--min_gap" not in capsys.readouterr().out, name


def test_whole_decimal_ids_are_the_integers_that_they_were(tmp_path):
    ids = {}
    for name, number in (("integers", int), ("decimals", float)):
        table = [{**r, "user_id": number(n % 30)} for n, r in enumerate(GOOD)]
        status, folder = build(tmp_path, path=write(tmp_path / f"{name}.parquet", parquet(table)), out=name)
        ids[name] = [row["user_id"] for row in read(folder)]
        assert status == 0
    assert ids["decimals"] == ids["integers"] and set(ids["integers"]) <= {str(n) for n in range(30)}


def test_few_test_users_are_said(tmp_path, capsys):
    for users, said in ((12, True), (150, False)):
        path = write(tmp_path / "t.jsonl", jsonl(rows(users=users)))
        assert build(tmp_path, "--overwrite", path=path)[0] == 0
        assert (" test users: a gain has to be large" in capsys.readouterr().out) == said


RATINGS = [
    {"user_id": f"u{u}", "prompt": f"Q{q}", "response": f"R{q}-{r}", "rating": (u * 7 + q * 5 + r * 3) % 6}
    for u in range(6)
    for q in range(5)
    for r in range(4)
]


def brute_force(ratings, across=False, gap=1e-9):
    expected = set()
    for x, y in itertools.permutations(ratings, 2):
        if (
            x["user_id"] == y["user_id"]
            and (across or x["prompt"] == y["prompt"])
            and x["rating"] - y["rating"] >= gap
        ):
            expected.add((x["user_id"], x["response"], y["response"]))
    return expected


def as_triples(pairs):
    triples = [(p["user_id"], text(p["chosen"]), text(p["rejected"])) for p in pairs]
    assert len(triples) == len(set(triples))
    return set(triples)


@pytest.mark.parametrize("gap", [0, 2, 4])
@pytest.mark.parametrize("scope", ["within", "across"])
def test_ratings_make_the_pairs_that_a_double_loop_makes(scope, gap, tmp_path):
    path = write(tmp_path / "t.jsonl", jsonl(RATINGS))
    source = Table(str(path), pair_scope=scope, min_gap=gap, max_pairs_per_user=0)
    pairs = list(source.rows())
    assert as_triples(pairs) == brute_force(RATINGS, scope == "across", gap or 1e-9)
    per_user = 20 * 19 // 2 if scope == "across" else 5 * 6
    assert len(pairs) + source.dropped["tie"] + source.dropped["below_min_gap"] == 6 * per_user


def test_pairs_across_prompts_keep_each_prompt_with_its_response(tmp_path):
    pairs = pairs_of(write(tmp_path / "t.jsonl", jsonl(RATINGS)), pair_scope="across")
    apart = [p for p in pairs if len(p["chosen"]) == 2]
    assert apart and all(p["prompt"] == messages(ACROSS_PROMPT, "system") for p in apart)
    for p in apart:
        for side in (p["chosen"], p["rejected"]):
            assert side[1]["content"].startswith(side[0]["content"].replace("Q", "R"))
        assert len(p["item_ids"]) == 2
    together = [p for p in pairs if len(p["chosen"]) == 1]
    assert together and all(len(p["item_ids"]) == 1 for p in together)


def test_the_cap_holds_and_is_stable(tmp_path):
    path = write(tmp_path / "t.jsonl", jsonl(RATINGS))
    settings = {"pair_scope": "across", "max_pairs_per_user": 10}
    capped = pairs_of(path, **settings)
    assert set(Counter(p["user_id"] for p in capped).values()) == {10}
    backwards = write(tmp_path / "b.jsonl", jsonl(RATINGS[::-1]))
    assert as_triples(pairs_of(backwards, **settings)) == as_triples(capped)
    assert as_triples(pairs_of(path, **settings, seed=1)) != as_triples(capped)
    larger = pairs_of(path, **{**settings, "max_pairs_per_user": 20})
    assert as_triples(capped) < as_triples(larger)


def test_the_cap_in_blocks_is_the_cap_of_the_whole(monkeypatch):
    from pluralrlhf.data.sources import table_ratings

    rng = np.random.default_rng(0)
    ratings, keys = rng.integers(0, 9, 300).astype(float), rng.integers(0, 2**63, 300).astype(np.uint64)
    arguments = (ratings, np.zeros(300, np.int64), np.zeros(300, np.int64), keys, 2.0, 50)
    whole, in_blocks = Counter(), Counter()
    expected = candidate_pairs(*arguments, whole)
    monkeypatch.setattr(table_ratings, "_BLOCK", 1000)
    found = candidate_pairs(*arguments, in_blocks)
    assert [a.tolist() for a in found] == [a.tolist() for a in expected] and whole == in_blocks
    assert (ratings[expected[0]] - ratings[expected[1]] >= 2).all()


def test_labels_are_read_lowest_first(tmp_path):
    labels = ["awful", "bad", "so so", "ok", "good", "great"]
    named = [{**r, "rating": labels[r["rating"]].upper()} for r in RATINGS]
    expected = as_triples(pairs_of(write(tmp_path / "n.jsonl", jsonl(RATINGS))))
    path = write(tmp_path / "t.jsonl", jsonl(named))
    assert as_triples(pairs_of(path, rating_labels=labels)) == expected
    assert as_triples(pairs_of(path, rating_labels=[",".join(labels)])) == expected
    thumbs = [{**r, "rating": r["rating"] > 2} for r in RATINGS]
    path = write(tmp_path / "b.jsonl", jsonl(thumbs))
    assert as_triples(pairs_of(path, rating_labels=["false", "true"])) == brute_force(thumbs, gap=1)


def test_ratings_in_lists_and_objects(tmp_path):
    by_item = defaultdict(dict)
    for r in RATINGS:
        by_item[r["prompt"], r["response"]][r["user_id"]] = r["rating"]
    expected = brute_force(RATINGS)
    items = [{"prompt": p, "response": r} for p, r in by_item]
    lists = [{**item, "rating": list(votes.values())} for item, votes in zip(items, by_item.values())]
    found = as_triples(pairs_of(write(tmp_path / "a.jsonl", jsonl(lists))))
    assert {(f"u{int(u.split('_')[1]) - 1}", c, r) for u, c, r in found} == expected
    objects = [{**item, "rating": votes} for item, votes in zip(items, by_item.values())]
    assert as_triples(pairs_of(write(tmp_path / "b.jsonl", jsonl(objects)))) == expected
    named = [{**r, "user_id": list(v)} for r, v in zip(lists, by_item.values())]
    assert as_triples(pairs_of(write(tmp_path / "c.jsonl", jsonl(named)))) == expected
    by_prompt = defaultdict(list)
    for r in RATINGS:
        by_prompt[r["user_id"], r["prompt"]].append(r)
    several = [
        {"user_id": u, "prompt": p, "response": [r["response"] for r in rs], "rating": [r["rating"] for r in rs]}
        for (u, p), rs in by_prompt.items()
    ]
    assert as_triples(pairs_of(write(tmp_path / "d.jsonl", jsonl(several)))) == expected
    nested = [
        {
            "who": u,
            "prompt": p,
            "made": {"answers": [{"text": {"t": r["response"]}, "score": r["rating"]} for r in rs]},
        }
        for (u, p), rs in by_prompt.items()
    ]
    names = {"user_id": "who", "response": "made.answers.text.t", "rating": "made.answers.score"}
    assert as_triples(pairs_of(write(tmp_path / "e.jsonl", jsonl(nested)), map=names)) == expected
    assert as_triples(pairs_of(write(tmp_path / "e.parquet", parquet(nested)), map=names)) == expected
    chats = [{**row, "response": [[{"role": "assistant", "content": t}] for t in row["response"]]} for row in several]
    assert as_triples(pairs_of(write(tmp_path / "f.jsonl", jsonl(chats)))) == expected


def test_an_object_of_a_list_without_the_field_is_an_error_of_its_row(tmp_path):
    rated = [{"user_id": "u", "prompt": "P", "answers": [{"t": "A", "n": 1}, {"t": "B", "n": 2}]} for _ in range(2)]
    del rated[1]["answers"][0]["n"]
    names = {"response": "answers.t", "rating": "answers.n"}
    found = list(Table(str(write(tmp_path / "a.jsonl", jsonl(rated))), map=names).rows())
    (error,) = [row for row in found if isinstance(row, Exception)]
    assert "a.jsonl, row 2, column `answers.n`" in str(error)


@pytest.mark.parametrize("depth", [2, 900])
def test_a_list_of_lists_has_no_place_for_a_name(depth, tmp_path):
    row = {"user_id": "u", "prompt": "P", "answers": [{"t": "A", "n": 1}, {"t": "B", "n": 2}]}
    deep = '{"user_id": "u", "prompt": "P", "answers": ' + "[" * depth + '{"t": "A", "n": 1}' + "]" * depth + "}"
    names = {"response": "answers.t", "rating": "answers.n"}
    found = list(Table(str(write(tmp_path / "a.jsonl", jsonl([row, deep]))), map=names).rows())
    (error,) = [row for row in found if isinstance(row, Exception)]
    assert "a.jsonl, row 2, column `answers.t`" in str(error)


RANKED = [{"user_id": f"u{n}", "prompt": "P", "ranking": ["A", "B", "C"][n:] + ["A", "B", "C"][:n]} for n in range(3)]


def test_every_two_of_a_ranking_are_a_pair(tmp_path):
    pairs = pairs_of(write(tmp_path / "a.jsonl", jsonl(RANKED)))
    assert judged(pairs) == [
        (row["user_id"], "P", better, worse)
        for row in RANKED
        for better, worse in itertools.combinations(row["ranking"], 2)
    ]
    assert len({p["pair_id"] for p in pairs}) == 9 and len({tuple(p["item_ids"]) for p in pairs}) == 1
    assert pairs_of(write(tmp_path / "a.parquet", parquet(RANKED))) == pairs
    alone = [{"who": row["user_id"], "order": row["ranking"]} for row in RANKED]
    found = pairs_of(write(tmp_path / "b.jsonl", jsonl(alone)), map={"user_id": "who", "ranking": "order"})
    assert judged(found) == [(u, DEFAULT_PROMPT, c, r) for u, _, c, r in judged(pairs)]
    assert len({tuple(p["item_ids"]) for p in found}) == 6  # without prompts the responses are the items


@pytest.mark.parametrize(
    ("ranking", "said"),
    [
        (["A"], "a ranking of fewer than two responses"),
        ("A > B", "a text. Give a list of responses, best first"),
        (["A", None], "a list that holds null"),
        ([], "a ranking of fewer than two responses"),
        (["A", "B", "A"], "a ranking that holds one response twice"),
    ],
)
def test_what_is_no_ranking_is_an_error_of_its_row(ranking, said, tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([RANKED[0], {**RANKED[1], "ranking": ranking}]))
    (error,) = [row for row in Table(str(path)).rows() if isinstance(row, Exception)]
    assert "a.jsonl, row 2, column `ranking`" in str(error) and said in str(error)


def test_one_column_a_rater(tmp_path):
    table = [{"q": f"Q{n}", "x": "A", "y": "B", "ann": [1, 2, 0][n % 3], "ben": [2, "", 1][n % 3]} for n in range(6)]
    settings = {
        "map": {"prompt": "q", "response_a": "x", "response_b": "y", "choice": "ann,ben"},
        "choice_values": {"a": "1", "b": "2", "tie": "0"},
    }
    expected = [("ann", "Q0", "A", "B"), ("ben", "Q0", "B", "A"), ("ann", "Q1", "B", "A"), ("ben", "Q2", "A", "B")]
    for name, content in (("t.csv", as_csv(table)), ("t.jsonl", jsonl(table))):
        assert judged(pairs_of(write(tmp_path / name, content), **settings))[:4] == expected
    wide = defaultdict(dict)
    for r in RATINGS:
        wide[r["prompt"], r["response"]] |= {
            "prompt": r["prompt"],
            "response": r["response"],
            r["user_id"]: r["rating"],
        }
    users = ",".join(f"u{u}" for u in range(6))
    found = pairs_of(write(tmp_path / "w.csv", as_csv(list(wide.values()))), map={"rating": users})
    assert as_triples(found) == brute_force(RATINGS)


def test_a_response_rated_twice_has_the_mean(tmp_path):
    table = [
        {"user_id": "u", "prompt": "Q", "response": "A", "rating": 5},
        {"user_id": "u", "prompt": "Q", "response": " A\n", "rating": 1},
        {"user_id": "u", "prompt": "Q", "response": "B", "rating": 4},
    ]
    source = Table(str(write(tmp_path / "t.jsonl", jsonl(table))))
    assert as_triples(list(source.rows())) == {("u", "B", "A")}
    assert source.dropped["repeated_rating_averaged"] == 1


def test_texts_without_prompts(tmp_path):
    table = [{k: v for k, v in r.items() if k != "prompt"} for r in RATINGS]
    path = write(tmp_path / "t.jsonl", jsonl(table))
    pairs = pairs_of(path, max_pairs_per_user=0)
    assert as_triples(pairs) == brute_force(RATINGS, across=True)
    assert {text(p["prompt"]) for p in pairs} == {DEFAULT_PROMPT}
    assert all(len(p["item_ids"]) == 2 and p["item_ids"][0].startswith("r-") for p in pairs)
    assert {text(p["prompt"]) for p in pairs_of(path, default_prompt="Tell me.")} == {"Tell me."}
    many = [{"user_id": "u", "response": f"text {n}", "rating": n} for n in range(60)]
    assert len(pairs_of(write(tmp_path / "m.jsonl", jsonl(many)))) == 200, "the default cap where all pair with all"


@pytest.mark.parametrize("table", ["pairs", "ratings"])
def test_rows_without_a_prompt_of_their_own_get_the_default_one(tmp_path, table):
    table = [dict(r) for r in (GOOD if table == "pairs" else RATINGS)]
    for row, empty in zip(table[:3], ("", "  ", None)):
        row["prompt"] = empty
    pairs = pairs_of(write(tmp_path / "t.jsonl", jsonl(table)), default_prompt="Tell me.", max_pairs_per_user=None)
    prompts = {text(p["prompt"]) for p in pairs}
    assert "Tell me." in prompts and len(prompts) > 1


def test_pairs_are_made_on_one_side_of_the_items_only(tmp_path):
    table = [{k: v for k, v in r.items() if k != "prompt"} for r in RATINGS]
    status, folder = build(tmp_path, "--test_users", "0.3", path=write(tmp_path / "t.jsonl", jsonl(table)))
    dropped = json.loads((folder / "build.json").read_text())["dropped"]
    assert status == 0 and any("unseen_items" in r["split"] for r in read(folder))
    # Nothing is lost without being counted: every two ratings of a user became a pair or are among the dropped.
    rated = Counter(r["user_id"] for r in table)
    made = len(read(folder)) + sum(dropped.values())
    assert made == sum(n * (n - 1) // 2 for n in rated.values()) and dropped["mixed_items"] > 0


def test_items(tmp_path):
    table = [{**r, "topic": f"t{n % 3}", "topics": [f"t{n % 3}", n % 2]} for n, r in enumerate(GOOD)]
    path = write(tmp_path / "t.jsonl", jsonl(table))
    by_prompt, by_text, by_column, by_list = (
        [p["item_ids"] for p in pairs_of(path, items=items)] for items in (None, "responses", "topic", "topics")
    )
    assert len({i for (i,) in by_prompt}) == len({r["prompt"] for r in GOOD})
    assert len({i for pair in by_text for i in pair}) == len({r["chosen"] for r in GOOD})
    assert by_column == [[f"t{n % 3}"] for n in range(len(GOOD))]
    assert by_list[1] == ["t1", 1]
    ratings = [{**r, "topic": f"t{n % 3}"} for n, r in enumerate(RATINGS)]
    found = pairs_of(write(tmp_path / "r.jsonl", jsonl(ratings)), items="topic")
    assert {tuple(sorted(p["item_ids"])) for p in found} <= {
        ("t0",),
        ("t1",),
        ("t2",),
        ("t0", "t1"),
        ("t0", "t2"),
        ("t1", "t2"),
    }


def test_items_are_the_same_in_any_spelling(tmp_path):
    table = [{**GOOD[0], "prompt": prompt} for prompt in ("What is it?", " what  is\nIT?")]
    (a,), (b,) = (p["item_ids"] for p in pairs_of(write(tmp_path / "t.jsonl", jsonl(table))))
    assert a == b
    ratings = [{**r, "prompt": r["prompt"].lower() + " " * (n % 2)} for n, r in enumerate(RATINGS)]
    found = pairs_of(write(tmp_path / "r.jsonl", jsonl(ratings + RATINGS)))
    assert len({i for p in found for i in p["item_ids"]}) == 5


def test_pair_ids_do_not_depend_on_order_and_repeats_get_their_own(tmp_path):
    found = pairs_of(write(tmp_path / "a.jsonl", jsonl(GOOD)))
    ids = {j: p["pair_id"] for p, j in zip(found, judged(found))}
    backwards = pairs_of(write(tmp_path / "b.jsonl", jsonl(GOOD[::-1])))
    assert {j: p["pair_id"] for p, j in zip(backwards, judged(backwards))} == ids
    twice = [p["pair_id"] for p in pairs_of(write(tmp_path / "c.jsonl", jsonl(GOOD + GOOD)))]
    assert len(set(twice)) == len(twice) and set(ids.values()) < set(twice)
    own = [{**r, "id": n} for n, r in enumerate(GOOD)]
    assert [p["pair_id"] for p in pairs_of(write(tmp_path / "d.jsonl", jsonl(own)), map={"pair_id": "id"})] == list(
        range(len(GOOD))
    )


def test_margins_and_profiles(tmp_path):
    table = [{**r, "strength": "1.5", "bio": f"I am {r['user_id']}", "age": 30} for r in GOOD]
    path = write(tmp_path / "t.csv", as_csv(table))
    status, folder = build(tmp_path, "--map", "margin=strength", "profile=bio,age", path=path)
    assert status == 0 and {row["margin"] for row in read(folder)} == {1.5}
    users = {row["user_id"]: row["profile"] for row in load_users(folder)}
    assert users["user3"] == "bio: I am user3\nage: 30" and len(users) == 20
    status, folder = build(tmp_path, "--map", "profile=bio", path=path, out="one")
    assert load_users(folder)[0]["profile"].startswith("I am ")


def test_the_first_of_several_profiles_is_kept_and_said(tmp_path, capsys):
    bios = {"user1": ["young", "old"], "user2": [None, "tall", "tall"], "user3": ["blue", None, ""]}
    table = [{**row, "bio": (bios.get(row["user_id"], ["plain"]) + [None] * 99)[n % 8]} for n, row in enumerate(GOOD)]
    status, folder = build(tmp_path, "--map", "profile=bio", path=write(tmp_path / "t.jsonl", jsonl(table)))
    found = {row["user_id"]: row["profile"] for row in load_users(folder)}
    assert status == 0 and [found[name] for name in ("user1", "user2", "user3", "user4")] == [
        "young",
        "tall",
        "blue",
        "plain",
    ]
    assert json.loads((folder / "build.json").read_text())["changed_profiles"] == 1
    assert "the profile of 1 user is another one in later rows: the first is kept" in capsys.readouterr().out


def test_placebo_keeps_who_judged_what_and_each_items_outcome(tmp_path):
    rng = np.random.default_rng(0)
    table = [
        {"user_id": f"u{u}", "prompt": f"Q{q}", "response_a": "A", "response_b": "B", "choice": "ab"[(u + q) % 2]}
        for u in range(40)
        for q in range(20)
    ]
    table.append(
        {"user_id": "u0", "prompt": "only u0 judged this", "response_a": "A", "response_b": "B", "choice": "a"}
    )
    path = write(tmp_path / "t.jsonl", jsonl([table[i] for i in rng.permutation(len(table))]))
    real, source = pairs_of(path), Table(str(path), placebo=True)
    fake = list(source.rows())
    assert source.dropped == {placebo.DROPPED: 1}
    assert Counter((u, q) for u, q, *_ in judged(fake)) == Counter((u, q) for u, q, *_ in judged(real) if q[0] == "Q")
    assert Counter(j[1:] for j in judged(fake)) == Counter(j[1:] for j in judged(real) if j[1][0] == "Q")
    even = [(c == "A") == (int(q[1:]) % 2 == 0) for u, q, c, _ in judged(fake) if int(u[1:]) % 2 == 0]
    assert 0.4 < np.mean(even) < 0.6, "in the real data all of these are true"
    assert (
        judged(fake)
        == judged(list(Table(str(path), placebo=True).rows()))
        != judged(list(Table(str(path), placebo=True, seed=1).rows()))
    )


def test_placebo_of_ratings(tmp_path):
    table = [
        {"user_id": f"u{u}", "prompt": f"Q{q}", "response": r, "rating": (r == "AB"[u % 2])}
        for u in range(40)
        for q in range(10)
        for r in "AB"
    ]
    path = write(tmp_path / "t.jsonl", jsonl(table))
    labels = {"rating_labels": ["false", "true"]}
    real = [c == "AB"[int(u[1:]) % 2] for u, _, c, _ in judged(pairs_of(path, **labels))]
    fake = [c == "AB"[int(u[1:]) % 2] for u, _, c, _ in judged(pairs_of(path, placebo=True, **labels))]
    assert np.mean(real) == 1 and 0.35 < np.mean(fake) < 0.65


def test_permuting_within_groups_keeps_each_groups_values():
    rng = np.random.default_rng(0)
    groups, values = rng.integers(0, 50, 2000), rng.integers(0, 5, 2000)
    permuted = placebo.permute_within(groups, values, 3)
    assert all(sorted(permuted[groups == g]) == sorted(values[groups == g]) for g in range(50))
    assert (permuted != values).any() and (permuted == placebo.permute_within(groups, values, 3)).all()
    several = placebo.several_judges(np.array([1, 1, 2, 2, 3]), np.array([7, 8, 7, 7, 9]))
    assert several.tolist() == [True, True, False, False, False]


def test_a_hub_dataset_is_streamed(tmp_path, monkeypatch, capfd):
    asked = {}

    def load_dataset(path, name=None, **settings):
        asked.update(path=path, name=name, **settings)
        return datasets.Dataset.from_list(GOOD).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Table("someone/votes", hub_config="en", hub_split="all", hub_revision="abc")
    assert judged(list(source.rows())) == EXPECTED
    assert asked == {"path": "someone/votes", "name": "en", "split": "all", "revision": "abc", "streaming": True}
    assert source.describe()["version"] == "someone/votes@abc" and source.progress() is None

    def fails(*args, **settings):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'someone/votes' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    status, _ = build(tmp_path, "--path", "someone/votes")
    assert status == 2 and "error: someone/votes (train): the dataset cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_json_is_read_the_same_in_blocks_of_any_size(block):
    values = [
        {"a": 'quote " and \\ and \u00e9 }]'},
        {"b": [1, 2.5, -3e10, True, None, {"c": "x" * 200}]},
        {},
        {"d": 12345},
    ]

    class Small(io.StringIO):
        def read(self, size=-1):
            return super().read(block)

    assert list(json_values(Small(json.dumps(values, indent=1)), "f")) == values
    assert list(json_values(Small(" \n".join(map(json.dumps, values))), "f")) == values
    assert list(json_values(Small("  [ ] \n"), "f")) == []


def test_the_same_call_gives_the_same_folder(tmp_path):
    path = write(tmp_path / "t.jsonl", jsonl(RATINGS))
    folders = [build(tmp_path, "--test_users", "0.3", path=path, out=name)[1] for name in "ab"]
    contents = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    assert contents[0] == contents[1] and str(tmp_path) not in (folders[0] / "build.json").read_text()
