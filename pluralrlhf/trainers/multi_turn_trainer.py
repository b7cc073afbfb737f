"""GRPO on conversations with simulated users, with credit for each turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from ..environments.base import Belief, Conversation, ScriptedUser, SimulatedUser, World, stable_random, stable_seed
from ..environments.base import turn_counts as turns_of
from ..environments.generation import CachedGenerator, ChatFormat, VLLMGenerator
from ..environments.rollout import rollout
from ..errors import ConfigError
from ..features.tokenization import padding_id
from ..rewards.curiosity import intrinsic_rewards, returns_to_go
from .divergence import DivergenceCallback
from .multi_turn_config import MultiTurnGRPOConfig
from .sampling import ContinueCount, EpochRepeatSampler


def world_dataset(world: World, split: str) -> Dataset:
    """The users of a split as a dataset of `prompt` and `user_id`; nothing else of a profile is in it."""
    users = world.users(split)
    return Dataset.from_dict({"prompt": [world.prompt(u) for u in users], "user_id": [u.user_id for u in users]})


def leave_one_out(values: torch.Tensor, present: torch.Tensor, group_size: int) -> torch.Tensor:
    """values minus the mean of the others in the group at the same turn.

    A turn that no other conversation of the group has reached is compared with the other conversations of the batch at
    that turn; without any, its advantage is 0. Baselines come from other conversations only, so they add no bias.

    Args:
        values: (B, T), the groups' rows adjacent.
        present: (B, T), whether the conversation has that turn (and did not fail).
        group_size: Conversations in a group.
    """
    weight = present.to(values.dtype)
    values = torch.where(present, values, 0.0)

    def others(v: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, count = (v * w).sum(dim=-2, keepdim=True) - v * w, w.sum(dim=-2, keepdim=True) - w
        return total / count.clamp(min=1), count

    grouped, grouped_weight = (x.view(-1, group_size, x.size(1)) for x in (values, weight))
    group_mean, group_count = (x.reshape(values.shape) for x in others(grouped, grouped_weight))
    batch_mean, batch_count = others(values, weight)
    baseline = torch.where(group_count > 0, group_mean, batch_mean)
    return torch.where(present & ((group_count > 0) | (batch_count > 0)), values - baseline, 0.0)


def shuffled_rows(n: int, *seed: object) -> list[int]:
    """A permutation of range(n) without fixed points (n > 1): one random cycle."""
    order = list(range(n))
    stable_random("shuffle", *seed).shuffle(order)
    out = [0] * n
    for a, b in zip(order, order[1:] + order[:1]):
        out[a] = b
    return out


class MultiTurnGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` whose completions are conversations with simulated users.

    Each prompt's group is `num_generations` conversations with the same user. The end reward is the weighted sum of
    `reward_funcs` (TRL's signature; `completions` are the messages after the prompt, and the `Conversation`s come as
    `conversation`); the intrinsic reward is paid per turn. KL, clipping, PEFT, vLLM and accelerate are TRL's.

    A conversation whose user broke down is counted (`conversations/failed`), its tokens are masked out, its rewards are
    NaN, and it enters no baseline. Sampling and users are seeded by the step, so that a resumed run (at a checkpoint,
    with scripted users) equals the uninterrupted one.

    Args:
        model: As in TRL. With `beta` > 0 an in-memory model is saved to `output_dir/start` first, since TRL loads the
            reference model from disk.
        reward_funcs: End rewards; by default the world's success.
        args: The settings.
        world: The task.
        user: The simulated users; by default the world's script.
        belief: The user model behind the intrinsic reward; by default the world's exact posterior.
        train_dataset, eval_dataset: Rows with `prompt` and `user_id`; by default the world's train users and none.
        **kwargs: Passed to `GRPOTrainer`.

    Raises:
        ConfigError: If a dataset names a user the world does not have.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable | Sequence[Callable] | None = None,
        args: MultiTurnGRPOConfig | None = None,
        *,
        world: World,
        user: SimulatedUser | None = None,
        belief: Belief | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        **kwargs: Any,
    ):
        args = args or MultiTurnGRPOConfig("multi-turn-grpo")
        self.world, self.user = world, user or ScriptedUser(world)
        self.curiosity = args.curiosity_config()
        self.belief = belief
        if belief is None and self.curiosity.reward != "none":
            self.belief = world.exact_belief()
        self._eval_batches = count()
        self._profiles = {u.user_id: u for split in ("train", "validation", "test") for u in world.users(split)}
        train_dataset = train_dataset if train_dataset is not None else world_dataset(world, "train")
        for name, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            unknown = [] if data is None else [u for u in data["user_id"] if u not in self._profiles]
            if unknown:
                raise ConfigError(f"`{name}` names {len(unknown)} users whom the world does not have.")
        if reward_funcs is None:
            reward_funcs = [success_reward(world)]
        reward_funcs = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        if args.beta and isinstance(model, PreTrainedModel) and not model.config._name_or_path:
            start = Path(args.output_dir) / "start"
            model.save_pretrained(start)
            model.config._name_or_path = str(start)
        if args.reward_weights is not None and len(args.reward_weights) == len(reward_funcs):
            args.reward_weights = [*args.reward_weights, 1.0]
        super().__init__(
            model,
            [*reward_funcs, self._curiosity_reward],
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            rollout_func=self._rollout,
            **kwargs,
        )
        self.reward_func_names[-1] = "curiosity"
        self.chat = ChatFormat(self.processing_class)
        self.add_callback(ContinueCount(self))
        self.add_callback(DivergenceCallback())

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["prompt", "user_id"]

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochRepeatSampler:
        return EpochRepeatSampler.like(super()._get_train_sampler(dataset), self.args.seed)

    # ---- conversations

    def _generate_and_score_completions(self, inputs):
        # `rollout_func` sees prompts only; the rows say whose they are.
        self._rows = inputs
        output = super()._generate_and_score_completions(inputs)
        if self.args.turn_credit == "turn":
            output["advantages"] = self._turn_advantages(output["completion_ids"].size(1))
        self._log_conversations()
        self._rows = self._conversations = None
        return output

    def evaluation_loop(self, *args, **kwargs):
        self._eval_batches = count()
        return super().evaluation_loop(*args, **kwargs)

    def _rollout(self, prompts, trainer) -> dict[str, Any]:
        mode = "train" if self.model.training else "eval"
        step, rank = self.state.global_step, self.accelerator.process_index
        # A step of accumulated gradients may generate several times, an evaluation a batch at a time.
        part = self._step % self.args.gradient_accumulation_steps if mode == "train" else next(self._eval_batches)
        seed = (self.args.seed, mode, step, rank, *([part] if part else []))
        conversations = [
            Conversation(self._profiles[row["user_id"]], prompt, seed=stable_seed(*seed, i))
            for i, (row, prompt) in enumerate(zip(self._rows, prompts))
        ]
        if self.use_vllm:
            self._play(VLLMGenerator(self.vllm_generation), conversations, seed)
        else:
            training = self.model.training
            with (
                unwrap_model_for_generation(
                    self.model_wrapped,
                    self.accelerator,
                    gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                    gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
                ) as model,
                self._dist.summon_full_params(self.model_wrapped, recurse=False),
            ):
                model.eval()
                self._play(CachedGenerator(model, padding_id(self.processing_class)), conversations, seed)
                model.train(training)
        self._conversations = conversations
        self._intrinsic = self._intrinsic_rewards(conversations, seed)
        return {
            "prompt_ids": [c.prompt_ids for c in conversations],
            "completion_ids": [c.completion_ids for c in conversations],
            "logprobs": [c.logprobs for c in conversations],
            "env_mask": [c.env_mask for c in conversations],
            "conversation": conversations,
        }

    def _play(self, generator, conversations: list[Conversation], seed: tuple) -> None:
        rollout(
            conversations,
            world=self.world,
            user=self.user,
            generator=generator,
            chat=self.chat,
            max_new_tokens=self.args.max_new_tokens,
            max_length=max(len(self.chat.prompt_ids(c.prompt)) for c in conversations) + self.max_completion_length,
            temperature=self.temperature,
            seed=stable_seed(*seed),
        )

    # ---- rewards

    def _intrinsic_rewards(self, conversations: list[Conversation], seed: tuple) -> np.ndarray:
        if self.curiosity.reward == "none":
            return np.zeros((len(conversations), self.world.max_turns))
        beliefs = self.belief.beliefs([c.messages for c in conversations])
        types = np.array([c.profile.type_index for c in conversations])
        self._beliefs = beliefs
        rewards = intrinsic_rewards(beliefs, types, turns_of(conversations), self.curiosity)
        if self.curiosity.shuffle:
            rewards = rewards[shuffled_rows(len(rewards), *seed)]
            # What lay past the receiver's end is paid at its end, so that the sums keep their distribution.
            n_turns = turns_of(conversations)
            past = np.arange(rewards.shape[1]) >= n_turns[:, None]
            rewards[np.arange(len(rewards)), n_turns - 1] += np.where(past, rewards, 0.0).sum(axis=1)
            rewards[past] = 0.0
        out = np.zeros((len(conversations), self.world.max_turns))
        out[:, : rewards.shape[1]] = rewards
        return out

    def _curiosity_reward(self, prompts, **kwargs) -> list[float]:
        return self._intrinsic.sum(axis=1).tolist()

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        conversations = self._conversations
        if isinstance(prompts[0], list):
            completions = [c.completion for c in conversations]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        failed = torch.tensor([c.failed for c in conversations], device=rewards.device)
        rewards[self.accelerator.gather(failed)] = torch.nan
        weights = self.reward_weights[:-1].to(rewards.device)
        start = self.accelerator.process_index * len(prompts)
        local = rewards[start : start + len(prompts), :-1]
        self._end_rewards = (local * weights).nansum(dim=1)
        self._unscored = torch.isnan(local).all(dim=1)
        return rewards

    def _turn_advantages(self, width: int) -> torch.Tensor:
        """Advantages (B, `width`): an utterance's tokens get the advantage of its turn, other tokens 0."""
        device = self.accelerator.device
        conversations = self._conversations
        n_turns = torch.from_numpy(turns_of(conversations)).to(device)
        rewards = torch.from_numpy(self._intrinsic * self.reward_weights[-1].item()).to(device)
        rows = torch.arange(len(conversations), device=device)
        rewards[rows, n_turns - 1] += self._end_rewards.to(device, rewards.dtype)
        discount = self.args.gamma * self.args.turn_lambda
        returns = torch.from_numpy(returns_to_go(rewards.cpu().numpy(), discount)).to(device)
        present = torch.arange(rewards.size(1), device=device) < n_turns[:, None]
        present = present & ~self._unscored[:, None]
        training = self.model.training
        group_size = self.num_generations if training else self.num_generations_eval
        all_returns, all_present = self.accelerator.gather(returns), self.accelerator.gather(present)
        advantages = leave_one_out(all_returns, all_present, group_size)
        advantages = self._scale(advantages, all_returns, all_present, group_size)
        start = self.accelerator.process_index * len(conversations)
        advantages = advantages[start : start + len(conversations)].float()
        out = torch.zeros(len(conversations), width, device=device)
        for i, conversation in enumerate(conversations):
            index = torch.tensor(conversation.turn_index, device=device)
            out[i, : len(index)] = torch.where(index >= 0, advantages[i][index.clamp(min=0)], 0.0)
        return out

    def _scale(self, advantages, returns, present, group_size: int) -> torch.Tensor:
        if self.scale_rewards == "none":
            return advantages
        masked = torch.where(present, returns, torch.nan)
        if self.scale_rewards == "group":
            masked = masked.view(-1, group_size, returns.size(1))
            mean = masked.nanmean(dim=1, keepdim=True)
            spread = (masked - mean).square().nanmean(dim=1, keepdim=True).sqrt()
            spread = spread.expand_as(masked).reshape(returns.shape).nan_to_num(nan=0.0)
        else:
            spread = (masked - masked.nanmean()).square().nanmean().sqrt().nan_to_num(nan=0.0)
        return advantages / (spread + 1e-4)

    # ---- what is logged

    def _log_conversations(self) -> None:
        conversations = self._conversations
        ok = [c for c in conversations if not c.failed]
        utterances = [turn for c in ok for turn in c.turns]
        sums = [
            len(conversations),
            len(conversations) - len(ok),
            sum(self.world.success(c) for c in ok),
            len(utterances),
            sum(turn.act.kind == "invalid" for turn in utterances),
        ]
        total = self.accelerator.reduce(torch.tensor(sums, device=self.accelerator.device, dtype=torch.float64))
        n, failed, success, turns, invalid = total.tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["conversations/failed"].append(failed)
        if n > failed:
            metrics["conversations/success"].append(success / (n - failed))
            metrics["conversations/turns"].append(turns / (n - failed))
            metrics["conversations/invalid"].append(invalid / turns)


def success_reward(world: World) -> Callable:
    """The world's success as a TRL reward function."""

    def success(conversation: Sequence[Conversation], **kwargs: Any) -> list[float]:
        return [world.success(c) for c in conversation]

    return success
