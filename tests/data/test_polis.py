"""Polis: who agreed with what becomes pairs, and nothing computed from the votes to be predicted gets in."""

import csv
import gzip
import http.server
import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest

from pluralrlhf.data.schema import RowError, validate_pair
from pluralrlhf.data.sources.origin import fetch
from pluralrlhf.data.sources.polis import CONVERSATIONS, NO_VOTE, ORIGIN, Polis
from pluralrlhf.data.splits import SplitConfig
from pluralrlhf.errors import DataError

STATEMENTS = [
    ("0", "1", "More trees"),
    ("1", "1", "Fewer cars"),
    ("2", "-1", "Spam"),
    ("3", "0", "A new pool"),
    ("4", "1", "more  TREES"),
    ("5", "1", ""),
]
HEADER = ["participant", "group-id", "n-comments", "n-votes", "n-agree", "n-disagree", *(s[0] for s in STATEMENTS)]


def write(folder, votes, statements=STATEMENTS, header=HEADER, pack=False):
    folder.mkdir(parents=True, exist_ok=True)
    opener = partial(gzip.open, mode="wt") if pack else partial(open, mode="w")
    suffix = ".gz" if pack else ""
    with opener(f"{folder}/comments.csv{suffix}", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["timestamp", "comment-id", "moderated", "comment-body"])
        rows.writerows(["0", *s] for s in statements)
    with opener(f"{folder}/participants-votes.csv{suffix}", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(header)
        rows.writerows(votes)
    return folder


def row(person, *votes, group="0"):
    return [person, group, "0", "0", "0", "0", *votes]


VOTES = [
    row("0", "1", "-1", "1", "-1", "", "1"),
    row("1", "-1", "0", "-1", "1", "-1", ""),
    row("2", "1", "-1", "", "", "-1", ""),  # agrees and disagrees with the same wording
    row("3", "0", "0", "0", "0", "0", "0"),
]


def pairs(**settings):
    source = Polis(min_votes=1, **settings)
    rows = list(source.rows())
    return source, rows


def text(message):
    return message[0]["content"]


def test_agreed_over_disagreed_of_the_same_participant(tmp_path):
    source, rows = pairs(path=str(write(tmp_path / "town", VOTES)), conversation="town")
    found = {(r["user_id"], text(r["chosen"]), text(r["rejected"])) for r in rows}
    assert found == {
        ("town/0", "More trees", "Fewer cars"),
        ("town/0", "More trees", "A new pool"),
        ("town/1", "A new pool", "More trees"),
    }
    for r in rows:
        validate_pair(r)
        assert r["item_ids"] == sorted(r["item_ids"])
    assert source.dropped["statements_rejected_by_moderators"] == 1
    assert source.dropped["statements_without_text"] == 1
    assert source.dropped["statements_worded_like_another"] == 1
    assert source.dropped["contradicting_votes_on_the_same_wording"] == 1


def test_nothing_but_votes_is_read(tmp_path):
    """Group and counts are computed from all votes: changing them changes no row."""
    plain = write(tmp_path / "a" / "town", VOTES)
    changed = write(tmp_path / "b" / "town", [[v[0], "7", "9", "9", "9", "9", *v[6:]] for v in VOTES])
    assert pairs(path=str(plain), conversation="town")[1] == pairs(path=str(changed), conversation="town")[1]


def test_rows_do_not_depend_on_the_order_of_the_file_or_on_its_packing(tmp_path):
    first = write(tmp_path / "a" / "town", VOTES)
    second = write(tmp_path / "b" / "town", VOTES[::-1], STATEMENTS[::-1], pack=True)
    sources = [pairs(path=str(folder.parent), conversation="town") for folder in (first, second)]
    assert sources[0][1] == sources[1][1]


def test_the_cap_spreads_over_statements(tmp_path):
    statements = [(str(i), "1", f"statement {i}") for i in range(30)]
    header = [*HEADER[:6], *(s[0] for s in statements)]
    folder = write(tmp_path / "town", [row("0", *(["1"] * 20 + ["-1"] * 10))], statements, header)
    source, rows = pairs(path=str(folder), conversation="town", max_pairs_per_user=40)
    used = Counter(text(r[side]) for r in rows for side in ("chosen", "rejected"))
    assert len(rows) == len({r["pair_id"] for r in rows}) == 40
    assert {used[f"statement {i}"] for i in range(20)} == {2} and {used[f"statement {i}"] for i in range(20, 30)} == {
        4
    }
    assert source.dropped["over_max_pairs_per_user"] == 160


def test_pairs_are_made_on_each_side_of_the_split(tmp_path):
    statements = [(str(i), "1", f"statement {i}") for i in range(60)]
    header = [*HEADER[:6], *(s[0] for s in statements)]
    votes = [row(str(p), *(["1", "-1"] * 30)) for p in range(3)]
    source = Polis(path=str(write(tmp_path / "town", votes, statements, header)), conversation="town", min_votes=1)
    source.split = SplitConfig(test_items=0.3)
    sides = Counter(tuple(source.split.item_unseen(i) for i in r["item_ids"]) for r in source.rows())
    assert set(sides) == {(True, True), (False, False)} and min(sides.values()) > 100
    assert source.dropped["mixed_items"] > 0


def test_placebo_keeps_who_voted_and_each_statements_votes(tmp_path, shared_data):
    settings = {"path": str(shared_data / "polis"), "conversation": "scoop-hivemind.taxes", "max_pairs_per_user": 0}
    real, fake = Polis(**settings), Polis(**settings, placebo=True)
    before, _ = real._load(real.conversation)
    keep = real._kept_participants(before)
    list(fake.rows())  # the placebo leaves the files alone
    from pluralrlhf.data.sources.polis import permute_votes

    after, _ = real._load(real.conversation)
    permute_votes(after, keep, seed=0)
    assert ((after.votes == NO_VOTE) == (before.votes == NO_VOTE)).all()
    for value in (-1, 0, 1):
        assert ((after.votes[keep] == value).sum(0) == (before.votes[keep] == value).sum(0)).all()
    cast = before.votes[keep] != NO_VOTE
    assert (after.votes[keep] != before.votes[keep])[cast].mean() > 0.2
    # A participant's share of agreement no longer says anything about their other half of votes.
    halves = np.arange(before.votes.shape[1]) % 2 == 0

    def correlation(votes):
        share = [
            [
                (v[(v != NO_VOTE) & h] == 1).mean() - (votes == 1).sum() / (votes != NO_VOTE).sum()
                for h in (halves, ~halves)
            ]
            for v in votes
            if all(((v != NO_VOTE) & h).sum() > 8 for h in (halves, ~halves))
        ]
        return np.corrcoef(np.array(share).T)[0, 1]

    assert correlation(before.votes[keep]) > 0.3 > abs(correlation(after.votes[keep])) + 0.1


def test_bowling_green_counts(shared_data):
    source = Polis(path=str(shared_data / "polis"))
    rows = list(source.rows())
    assert len(source.files) == 2 and all(len(h) == 64 for h in source.files.values())
    assert 2031 - source.dropped["participants_with_few_votes"] == 1199
    assert len({r["user_id"] for r in rows}) == 1187  # twelve agree with everything or with nothing
    assert max(Counter(r["user_id"] for r in rows).values()) == 200
    assert len({i for r in rows for i in r["item_ids"]}) == 607


def test_all_conversations_have_their_own_users_and_items(shared_data):
    source = Polis(path=str(shared_data / "polis"), conversation="all", max_pairs_per_user=2)
    rows = list(source.rows())
    assert {r["user_id"].split("/")[0] for r in rows} == set(CONVERSATIONS)
    assert all(i.split("/")[0] == r["user_id"].split("/")[0] for r in rows for i in r["item_ids"])


@pytest.mark.parametrize(
    ("votes", "column", "found"),
    [
        ([row("0", "5", "", "", "", "", "")], "0", "not 1 (agree)"),
        ([row("0", "1", "-1", "", "", "", ""), row("0", "1", "-1", "", "", "", "")], "participant", "a second row"),
        ([["0", "1"]], None, "2 cells under 12"),
    ],
)
def test_bad_rows_are_row_errors(tmp_path, votes, column, found):
    _, rows = pairs(path=str(write(tmp_path / "town", votes)), conversation="town")
    error = rows[0]
    assert isinstance(error, RowError) and found in str(error) and error.column == column
    assert error.row is not None and "participants-votes.csv" in error.file


def test_a_missing_file_or_folder_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="--path"):
        list(Polis(path=str(tmp_path / "nowhere"), conversation="town").rows())
    (tmp_path / "town").mkdir()
    with pytest.raises(DataError, match=r"participants-votes\.csv"):
        list(Polis(path=str(tmp_path / "town"), conversation="town").rows())
    write(tmp_path / "town", VOTES)
    (tmp_path / "town" / "participants-votes.csv").write_bytes(b"\x1f\x8bnot csv\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        list(Polis(path=str(tmp_path / "town"), conversation="town").rows())
    with gzip.open(tmp_path / "town" / "comments.csv.gz", "wb") as file:
        file.write(b"comment-id,moderated,comment-body\n" * 500)
    packed = (tmp_path / "town" / "comments.csv.gz").read_bytes()
    (tmp_path / "town" / "comments.csv.gz").write_bytes(packed[:-12])
    (tmp_path / "town" / "comments.csv").unlink()
    with pytest.raises(DataError, match="truncated"):
        list(Polis(path=str(tmp_path / "town"), conversation="town").rows())


@pytest.fixture
def server(tmp_path):
    """A web server on this machine that serves `tmp_path / "origin"` and notes what was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "origin"))

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}/", asked
        http_server.shutdown()


def test_download_from_the_origin(tmp_path, server, monkeypatch):
    url, asked = server
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "origin" / "town", VOTES)
    _, local = pairs(path=str(tmp_path / "origin"), conversation="town")
    source, rows = pairs(conversation="town", origin_url=url)
    assert rows == local and len(rows) == 3
    assert sorted(asked) == ["/town/comments.csv", "/town/participants-votes.csv"]
    pairs(conversation="town", origin_url=url)
    assert len(asked) == 2, "a second build takes the files from the cache"
    with pytest.raises(DataError, match=r"404.*--path"):
        pairs(conversation="village", origin_url=url)
    assert not list((tmp_path / "cache").rglob(".partial-*"))
    # file:// is an origin as well
    monkeypatch.setenv("PLURALRLHF_CACHE", str(tmp_path / "other"))
    assert pairs(conversation="town", origin_url=(tmp_path / "origin").as_uri() + "/")[1] == local
    with pytest.raises(DataError, match="--path"):
        fetch((tmp_path / "origin").as_uri() + "/", "town/nothing.csv", retries=1)
    assert ORIGIN.commit in ORIGIN.url and source.describe()["commit"] == ORIGIN.commit
