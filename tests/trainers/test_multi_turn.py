"""Turn-level GRPO on conversations: credit, masks, failures, resuming, and TRL's own settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from pluralrlhf.environments.base import Reply, ScriptedUser
from pluralrlhf.environments.exercise import ExerciseWorld
from pluralrlhf.environments.exercise_start import vocabulary
from pluralrlhf.environments.tiny import tiny_policy, tiny_tokenizer
from pluralrlhf.errors import ConfigError
from pluralrlhf.trainers.multi_turn_config import MultiTurnGRPOConfig
from pluralrlhf.trainers.multi_turn_trainer import MultiTurnGRPOTrainer, leave_one_out, shuffled_rows, world_dataset

WORLD = ExerciseWorld(n_users=16, n_questions=2)
TOKENIZER = tiny_tokenizer(vocabulary())


class Failing:
    """Breaks down in every third conversation."""

    def reply(self, conversations):
        replies = ScriptedUser(WORLD).reply(conversations)
        return [Reply(None, error="status_500") if c.seed % 3 == 0 else r for c, r in zip(conversations, replies)]


class Spy(MultiTurnGRPOTrainer):
    """Keeps what the loss is given."""

    def _generate_and_score_completions(self, inputs):
        played = []
        inner = self._log_conversations
        self._log_conversations = lambda: (played.extend(self._conversations), inner())
        output = super()._generate_and_score_completions(inputs)
        self._log_conversations = inner
        self.seen = (*getattr(self, "seen", ()), (output, played, self._intrinsic, self._end_rewards))
        return output


class Fickle:
    """A belief that any words change, so that an untrained policy's babble earns something."""

    n_types = 8

    def beliefs(self, transcripts):
        counts = [[len(set(m["content"].split())) for m in t if m["role"] == "assistant"] for t in transcripts]
        out = np.full((len(transcripts), max(map(len, counts)) + 1, 8), 1.0)
        for n, row in enumerate(counts):
            for t, words in enumerate(row, start=1):
                out[n, t:] = 1 + np.eye(8)[words % 8]
        return out / out.sum(axis=2, keepdims=True)


def variety(completions, **kwargs):
    return [float(len({w for m in c for w in m["content"].split()}) % 5) for c in completions]


def make(folder, *, user=None, reward_funcs=variety, peft_config=None, belief=None, trainer=Spy, data=None, **kwargs):
    settings = {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "learning_rate": 1e-2}
    settings |= {"save_strategy": "no", "report_to": "none", "logging_steps": 1, "max_new_tokens": 6, "use_cpu": True}
    args = MultiTurnGRPOConfig(str(folder), **(settings | {"disable_tqdm": True, "bf16": False} | kwargs))
    model = tiny_policy(TOKENIZER, hidden_size=16, layers=1, heads=2)
    return trainer(
        model,
        reward_funcs,
        args,
        world=WORLD,
        user=user,
        belief=belief or Fickle(),
        train_dataset=data,
        processing_class=TOKENIZER,
        peft_config=peft_config,
    )


def test_leave_one_out_uses_the_others_of_the_group_at_the_same_turn():
    values = torch.tensor([[1.0, 5.0], [3.0, 0.0], [10.0, 7.0], [20.0, 1.0]], dtype=torch.float64)
    present = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    out = leave_one_out(values, present, 2)
    # Row 0's second turn has no peer in its group: the batch's other rows at that turn, (7 + 1) / 2, stand in.
    expected = torch.tensor([[-2.0, 1.0], [2.0, 0.0], [-10.0, 6.0], [10.0, -6.0]], dtype=torch.float64)
    torch.testing.assert_close(out, expected)
    alone = leave_one_out(values[:1], present[:1], 1)
    assert (alone == 0).all()


def test_shuffled_rows_have_no_fixed_point():
    for n in (2, 5, 64):
        order = shuffled_rows(n, 0)
        assert sorted(order) == list(range(n)) and all(i != j for i, j in enumerate(order))


def test_training_changes_every_parameter_and_credits_turns(tmp_path):
    trainer = make(tmp_path, beta=0.1, max_steps=3)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert [n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])] == []
    for output, played, intrinsic, end in trainer.seen:
        advantages, mask = output["advantages"], output["tool_mask"] * output["completion_mask"]
        assert advantages.shape == output["completion_ids"].shape
        assert (advantages[mask == 0] == 0).all()
        returns = intrinsic[:, ::-1].cumsum(axis=1)[:, ::-1] + end.numpy()[:, None]
        for g in range(0, 8, 4):
            for i in range(g, g + 4):
                for t in range(len(played[i].turns)):
                    others = [returns[j, t] for j in range(g, g + 4) if j != i and t < len(played[j].turns)]
                    if others:
                        own = advantages[i, : len(played[i].turn_index)][torch.tensor(played[i].turn_index) == t]
                        np.testing.assert_allclose(own.numpy(), returns[i, t] - np.mean(others), atol=1e-5)
    logs = [log for log in trainer.state.log_history if "conversations/success" in log]
    assert len(logs) == 3 and all("rewards/curiosity/mean" in log and "kl" in log for log in logs)


def test_lambda_discounts_the_credit_but_not_the_potential(tmp_path):
    settings = {"gamma": 0.9, "max_steps": 1, "curiosity": "diff_acc"}
    whole, cut = (make(tmp_path / str(lam), turn_lambda=lam, **settings) for lam in (1.0, 0.5))
    for trainer in (whole, cut):
        trainer.train()
    (_, played, rewards, end), (output, _, same, _) = whole.seen[0], cut.seen[0]
    np.testing.assert_array_equal(rewards, same)
    total = rewards.copy()
    for i, c in enumerate(played):
        total[i, len(c.turns) - 1] += end[i]
    returns = sum(0.45**k * np.pad(total, ((0, 0), (0, k)))[:, k:] for k in range(total.shape[1]))
    for i, c in enumerate(played):
        own = output["advantages"][i, : len(c.turn_index)][torch.tensor(c.turn_index) == 0]
        others = [returns[j, 0] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        np.testing.assert_allclose(own.numpy(), returns[i, 0] - np.mean(others), atol=1e-5)


def test_trajectory_credit_is_trls_own(tmp_path):
    trainer = make(tmp_path, turn_credit="trajectory", max_steps=1)
    trainer.train()
    output, _, intrinsic, end = trainer.seen[0]
    total = torch.from_numpy(intrinsic.sum(axis=1)) + end
    expected = total - total.view(2, 4).mean(dim=1).repeat_interleave(4)
    torch.testing.assert_close(output["advantages"].double(), expected, atol=1e-5, rtol=0)


def test_failed_conversations_are_counted_and_never_trained_on(tmp_path):
    scored = []

    def reward(conversation, completions, **kwargs):
        scored.extend(zip(conversation, completions))
        return [1.0 + len(c.turns) for c in conversation]

    trainer = make(tmp_path, user=Failing(), reward_funcs=reward, max_steps=4)
    trainer.train()
    failed = 0
    for output, played, _, _ in trainer.seen:
        for i, conversation in enumerate(played):
            if conversation.failed:
                failed += 1
                assert (output["advantages"][i] == 0).all()
                assert (output["tool_mask"][i] * output["completion_mask"][i]).sum() == 0
            else:
                assert output["tool_mask"][i][: len(conversation.env_mask)].tolist() == conversation.env_mask
        ok = [c for c in played if not c.failed]
        assert output["num_items_in_batch"].item() == sum(sum(c.env_mask) for c in ok)
    logged = sum(log.get("conversations/failed", 0) for log in trainer.state.log_history)
    assert logged == failed > 0
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    # Reward functions see messages of both parties, and never the profile except through `conversation`.
    assert all([m["role"] for m in c][:2] == ["assistant", "user"] for conv, c in scored if not conv.failed)


def test_a_batch_in_which_everything_failed_changes_nothing(tmp_path):
    class Broken:
        def reply(self, conversations):
            return [Reply(None, error="timeout")] * len(conversations)

    trainer = make(tmp_path, user=Broken(), max_steps=1)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_shuffling_moves_the_intrinsic_rewards_and_keeps_their_sum(tmp_path):
    sums = []
    for shuffle in (False, True):
        trainer = make(tmp_path, curiosity_shuffle=shuffle, max_steps=1)
        trainer.train()
        sums.append(trainer.seen[0][2])
    assert not np.allclose(sums[0], sums[1])
    np.testing.assert_allclose(np.sort(sums[0].sum(axis=1)), np.sort(sums[1].sum(axis=1)))


def test_the_dataset_says_nothing_about_the_users():
    data = world_dataset(WORLD, "train")
    assert set(data.column_names) == {"prompt", "user_id"}
    assert len({str(p) for p in data["prompt"]}) == 1


@pytest.mark.parametrize("generation", [{}, {"steps_per_generation": 2, "gradient_accumulation_steps": 1}])
def test_resuming_equals_the_uninterrupted_run(tmp_path, generation):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "beta": 0.1, **generation}
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    first = make(tmp_path / "parts", **settings)
    first.train()
    resumed = make(tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    for (n, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters()):
        assert torch.equal(a, b), n


@pytest.mark.parametrize("checkpoint", [4, 5])
def test_a_run_resumed_in_a_later_epoch_goes_on_in_that_epochs_order(tmp_path, checkpoint):
    # Four users, one a step: steps 5 to 8 are the second epoch.
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1, "num_generations": 8}
    settings["data"] = world_dataset(WORLD, "train").select(range(4))
    orders = []
    for resume in (None, str(tmp_path / f"checkpoint-{checkpoint}")):
        trainer = make(tmp_path, **settings)
        trainer.train(resume_from_checkpoint=resume)
        orders.append([played[0].profile.user_id for _, played, _, _ in trainer.seen])
    whole, resumed = orders
    assert sorted(whole[:4]) == sorted(whole[4:]) and whole[:4] != whole[4:]
    assert resumed == whole[checkpoint:]


@pytest.mark.slow
def test_sigkill_after_a_checkpoint_and_resume_equals_the_uninterrupted_run(tmp_path):
    settings = {"max_steps": 40, "save_strategy": "steps", "save_steps": 4, "beta": 0.1}
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_multi_turn import make\n"
        f"make(sys.argv[1], **{settings!r}).train()\n"
    )
    folder = tmp_path / "killed"
    here = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), here], stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (folder / "checkpoint-4" / "trainer_state.json").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sorted(
        int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").exists()
    )
    assert done and done[-1] < 40, "killed too late to show anything"
    resumed = make(folder, **settings)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{done[0]}"))
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    for (n, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters()):
        assert torch.equal(a, b), n


def test_peft_trains_the_adapter_only(tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make(tmp_path, peft_config=lora, beta=0.1)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all("lora_" in n for n in changed)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="turn_credit"):
        MultiTurnGRPOConfig(str(tmp_path), turn_credit="token", bf16=False)
    with pytest.raises(ConfigError, match="turn_lambda"):
        MultiTurnGRPOConfig(str(tmp_path), turn_lambda=1.5, bf16=False)
    with pytest.raises(ConfigError, match="turn_lambda"):
        MultiTurnGRPOConfig(str(tmp_path), turn_credit="trajectory", turn_lambda=0.5, bf16=False)
    with pytest.raises(ConfigError, match="save_steps"):
        MultiTurnGRPOConfig(str(tmp_path), bf16=False, save_steps=3, steps_per_generation=2)
    with pytest.raises(ConfigError, match="top_p"):
        MultiTurnGRPOConfig(str(tmp_path), bf16=False, top_p=0.9)
    with pytest.raises(ConfigError, match="reward"):
        MultiTurnGRPOConfig(str(tmp_path), bf16=False, curiosity="nosy")
