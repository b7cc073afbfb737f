"""The page: self-contained, complete, and the same numbers as the files; evaluations joined pair by pair."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser

import pytest
from doubles import Baseline, Global, Oracle, population

from pluralrlhf.cli import main
from pluralrlhf.errors import ConfigError, DataError
from pluralrlhf.evaluation.report import join, write_report
from pluralrlhf.evaluation.runner import run_scorers
from pluralrlhf.evaluation.storage import Source
from pluralrlhf.evaluation.summary import Dataset, collect, write_results
from pluralrlhf.evaluation.tables import sections
from pluralrlhf.evaluation.versus import versus

SPLITS = ["validation", "test_unseen_users_unseen_items"]


def evaluate(folder, scorers, data, sha="abc", baseline=None, seed=0, name="toy <data> & more"):
    run = run_scorers(scorers, data, folder, splits=SPLITS, n_context=[2, 6], seed=seed, progress=False)
    info = {"data": "data/toy", "data_sha256": sha, "dropped": {"mixed_items": 1234}}
    dataset = Dataset(name, [Source(folder)], [run], baseline=baseline, info=info)
    return write_results(folder, collect(dataset, command="pluralrlhf eval reward --model <m>", n_replicates=50))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    splits, data = population()
    evaluate(root / "btl", [Baseline(splits, data, "btl")], data, baseline="btl")
    evaluate(root / "vpl", [Oracle(splits, data, "vpl")], data)
    evaluate(root / "both", [Baseline(splits, data, "btl"), Oracle(splits, data, "vpl")], data, baseline="btl")
    evaluate(root / "more", [Global(splits, data, "vpl")], data)
    evaluate(root / "other", [Oracle(splits, data, "vpl")], data, sha="def")
    evaluate(root / "seed", [Oracle(splits, data, "vpl")], data, seed=1)
    return root


class Page(HTMLParser):
    """Collects what a page loads, and whether its tags are balanced."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.links, self.images, self.downloads, self.stack, self.text = [], [], {}, [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.stack.append(tag)
        for key in ("src", "href"):
            if key in attrs and not attrs[key].startswith("#"):
                self.links.append(attrs[key])
        if tag == "img":
            self.images.append(attrs)
        if tag == "a" and "download" in attrs:
            self.downloads[attrs["download"]] = attrs["href"]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(outputs):
    results, sources = join([outputs / "both"])
    html = write_report(
        results, sources, outputs / "r.html", outputs / "figures", title="Toys & co", description="A <test>."
    )
    parser = Page()
    parser.feed(html.read_text(encoding="utf-8"))
    assert parser.stack == []
    return parser


def test_the_page_loads_nothing_from_elsewhere(page):
    assert page.links and all(link.startswith("data:") for link in page.links)
    text = " ".join(page.text)
    assert "http" not in re.sub(r"\s", "", text)


def test_the_page_says_what_a_stranger_needs(page):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    for phrase in (
        "uses the user: +",
        "does not use the user",
        "Smallest gain that this data would have shown",
        "another user's",
        "pluralrlhf eval reward --model <m>",
        "sha256",
        "mixed items: 1,234",
        "python 3.",
        "a new user, ms",
        "k = 6",
        "toy <data> & more",
        "A <test>.",
        "Flip rate",
    ):
        assert phrase in text, phrase


def test_every_figure_is_a_picture_with_its_csv(page, outputs):
    assert len(page.images) == 5 and len(page.downloads) == 5
    for image in page.images:
        assert base64.b64decode(image["src"].split(",")[1]).startswith(b"\x89PNG") and image["alt"]
    for name, link in page.downloads.items():
        assert base64.b64decode(link.split(",")[1]) == (outputs / "figures" / name).read_bytes()
        assert (outputs / "figures" / name).with_suffix(".png").is_file()


def test_csv_holds_the_numbers_of_the_results(outputs, page):
    results, _ = join([outputs / "both"])
    with open(outputs / "figures" / "accuracy_toy_data_more.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        result = next(r for r in results if r["method"] == row["method"])
        found = result["splits"][row["split"]]["n_context"][row["n_context"]]["accuracy"]
        assert float(row["accuracy"]) == found["value"] and float(row["low"]) == found["ci95"][0]
    with open(outputs / "figures" / "users_toy_data_more.csv", encoding="utf-8") as file:
        users = [row for row in csv.DictReader(file) if row["method"] == "vpl"]
    assert len(users) == 20 and sum(float(row["accuracy"]) for row in users) / 20 == pytest.approx(1)
    with open(outputs / "figures" / "map_toy_data_more.csv", encoding="utf-8") as file:
        assert {row["type"] for row in csv.DictReader(file)} == {"cat", "dog"}
    with open(outputs / "figures" / "wrong_labels_toy_data_more.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    result = next(r for r in results if r["method"] == row["method"] == "vpl")
    found = result["controls"][row["split"]][row["n_context"]]["coin_flip_accuracy"]
    assert float(row["coin_flip_accuracy"]) == found["value"] < float(row["accuracy"])


def test_evaluations_of_the_same_data_are_compared_pair_by_pair(outputs):
    together = {r["method"]: r for r in join([outputs / "both"])[0]}
    apart = {r["method"]: r for r in join([outputs / "btl", outputs / "vpl"])[0]}
    for split in SPLITS:
        for k in ("2", "6"):
            expected = together["vpl"]["splits"][split]["n_context"][k]["gain_over_btl"]["value"]
            assert apart["vpl"]["splits"][split]["n_context"][k]["gain_over_btl"]["value"] == expected
            assert apart["vpl"]["splits"][split]["n_context"][k]["mean_context_pairs"]["value"] == int(k)
    assert "over btl" in apart["vpl"]["verdicts"][SPLITS[-1]]["text"]


def test_methods_of_one_name_are_told_apart(outputs):
    results, sources = join([outputs / "vpl", outputs / "more", outputs / "btl"])
    assert [r["method"] for r in results] == ["btl", "vpl (vpl)", "vpl (more)"]
    found = {r["method"]: r["splits"][SPLITS[-1]]["n_context"]["6"]["accuracy"]["value"] for r in results}
    assert found["vpl (vpl)"] == 1 and found["vpl (more)"] < 1
    write_report(results, sources, outputs / "named.html", outputs / "named")


def test_other_data_is_another_section(outputs):
    results, sources = join([outputs / "both", outputs / "other"])
    assert len(sources) == 2 and len({r["dataset"] for r in results}) == 2
    html = write_report(results, sources, outputs / "two.html", outputs / "two").read_text(encoding="utf-8")
    assert html.count("<section") == 2


def test_other_contexts_cannot_be_compared(outputs):
    with pytest.raises(ConfigError, match="different seeds"):
        join([outputs / "btl", outputs / "seed"])


def test_report_command(outputs, capsys):
    assert (
        main(["report", str(outputs / "btl"), str(outputs / "vpl"), "--html", str(outputs / "cli" / "page.html")]) == 0
    )
    assert (outputs / "cli" / "page.html").is_file() and (outputs / "cli" / "page_figures").is_dir()
    assert "vpl: uses the user" in capsys.readouterr().out
    with pytest.raises(DataError):
        join([outputs / "missing"])
    assert main(["report", str(outputs / "missing"), "--html", str(outputs / "x.html")]) == 2
    assert main(["report", str(outputs / "btl"), "--html", str(outputs)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 2 and all(line.startswith("error: ") for line in error)


def test_every_method_against_one(outputs, tmp_path):
    results, sources = join([outputs / "both"])
    page = write_report(results, sources, tmp_path / "r.html", tmp_path / "figures", versus="vpl")
    assert "accuracy minus that of vpl" in page.read_text(encoding="utf-8")
    (section,) = sections(results)
    rows = versus(section, sources[section.dataset], "vpl", n_replicates=50)
    vpl, btl = (next(r for r in results if r["method"] == name)["splits"][section.split] for name in ("vpl", "btl"))
    assert {row["method"] for row in rows} == {"btl"} and [row["n_context"] for row in rows] == [0, 2, 6]
    for row in rows:
        own, other = (found["n_context"][str(row["n_context"])] for found in (vpl, btl))
        assert row["value"] == pytest.approx(other["accuracy"]["value"] - own["accuracy"]["value"], abs=1e-9)
        # The same pairs the other way round are what evaluation calls the gain over btl.
        low, high = own["gain_over_btl"]["ci95"]
        assert row["ci95"] == pytest.approx([-high, -low], abs=0.01)
    assert rows[-1]["ci95"][1] < 0
    with open(tmp_path / "figures" / "versus_toy_data_more.csv", encoding="utf-8") as file:
        assert [float(row["difference"]) for row in csv.DictReader(file)] == [row["value"] for row in rows]
    with pytest.raises(ConfigError, match="`versus` is 'vlp', but"):
        write_report(results, sources, tmp_path / "r.html", tmp_path / "figures", versus="vlp")
