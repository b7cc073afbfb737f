"""`SummarizerTrainer`: a summariser learns to write what a reward model learns to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint, set_seed
from trl import GRPOTrainer

from ..data.history import stable_hash
from ..errors import ConfigError, loading
from ..features.rendering import neutralize_special_tokens
from ..metrics import user_mean
from ..user_models.text import UserContext, context_messages
from ..user_models.text.base import first_words
from ..user_models.text.plus import clean, request, request_ids
from .divergence import DivergenceCallback
from .model_card import PLUS
from .preparation import prepare
from .sampling import ContinueCount, EpochRepeatSampler
from .summarizer_config import SummarizerConfig
from .summarizer_draws import SummarizerDraws, default_warmup_text
from .summarizer_reader import SummaryReader, load_reader
from .summarizer_state import load_pair_state, save_pair, save_pair_state
from .text_data import TextPairData

logger = get_logger(__name__)


class SummarizerTrainer(GRPOTrainer):
    """Trains a summariser and the reward model that reads its summaries, both at the same time.

    A step draws, for each of a batch of users, a context and `n_targets` other pairs of the user that share no item with
    it. The summariser writes a group of summaries z of the context; each earns log sigma(r(x, y+ | z) - r(x, y- | z)),
    averaged over the targets, and GRPO updates the summariser. The reward model is then updated on the same summaries by
    Bradley-Terry, on recent ones (`replay_share`) and on texts drawn from the context (`anchor_share`).

    Contexts, targets and replays are functions of the seed, the step and the user, so that a resumed run equals the
    uninterrupted one. Sharded training (FSDP, ZeRO) of two models is refused.

    Example:

    ```python
    >>> trainer = SummarizerTrainer(
    ...     model="Qwen/Qwen2.5-3B-Instruct",
    ...     reward_model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     args=SummarizerConfig("runs/plus", learning_rate=5e-7, reward_learning_rate=9e-6),
    ...     train_dataset=data["train"],
    ...     eval_dataset=data["validation"],
    ... )
    >>> trainer.train()
    ```

    References:
        - Nam et al. 2025, https://arxiv.org/abs/2507.13579; GRPO in place of its PPO.

    Args:
        model: The summariser: id, folder or causal language model.
        reward_model: Id or folder of a backbone or of a saved [`PersonalizedRewardModel`], or such a model with a
            `plus` user model. None with `args.reward_encoder`.
        args: [`SummarizerConfig`].
        train_dataset, eval_dataset: Pairs as in [`PersonalizedRewardTrainer`]; choices are made on `eval_dataset`, whose
            users should be others.
        processing_class: The summariser's tokenizer.
        users: Rows of the `users` config, where `source` is not `pairs`.
        warmup_text: What the reward model first learns to read: context to text. By default a statement about
            `args.topics`, or sentences of the context.
        **kwargs: Passed to `GRPOTrainer` (`peft_config`, `callbacks` ...).

    Raises:
        ConfigError: Settings that do not fit each other, or users with too few pairs.
        DataError: A dataset that does not keep the contract.
    """

    _tag_names = ["trl", "grpo", "pluralrlhf"]
    _name = "PLUS (by GRPO)"
    _paper = PLUS  # GRPO's own otherwise

    def __init__(
        self,
        model: Any,
        reward_model: Any = None,
        args: SummarizerConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: Any = None,
        users: Any = None,
        warmup_text: Callable[[UserContext], str] | None = None,
        **kwargs: Any,
    ):
        args = args or SummarizerConfig("summarizer")
        if train_dataset is None:
            raise ConfigError("`train_dataset` is required.")
        if isinstance(model, str) and processing_class is None:
            with loading("model", model):
                processing_class = AutoTokenizer.from_pretrained(model, padding_side="left")
        if processing_class is None:
            raise ConfigError("`processing_class` is required with a `model` given as an object: its tokenizer.")

        # Models
        set_seed(args.seed)
        self.reader = load_reader(reward_model, args)
        head = self.reader.user_model
        head.attach(None, processing_class)
        if not head.reads_users:
            # Longer histories than it has met would be misread; what is saved says so.
            head.config.max_pairs = args.n_context
            self.reader.config.user_model_kwargs = {
                **(self.reader.config.user_model_kwargs or {}),
                "max_pairs": args.n_context,
            }
        if args.beta and isinstance(model, PreTrainedModel) and not model.config._name_or_path:
            start = Path(args.output_dir) / "start" / "summarizer"
            model.save_pretrained(start)
            model.config._name_or_path = str(start)

        # Data
        self.pairs = TextPairData(self.reader, users=users)
        self._train_rows = self.pairs.add("train", train_dataset)
        prepare(self.pairs, self._train_rows)
        if self.pairs.frozen:
            head.set_feature_noise(args.reward_feature_noise)
        self._eval_rows = None if eval_dataset is None else self.pairs.add("validation", eval_dataset)
        self.warmup_text = warmup_text or default_warmup_text(args)
        self.draws = SummarizerDraws(self.pairs, args)
        self._train_users = self.draws.eligible(self._train_rows, "train_dataset")
        self._eval_users = {} if eval_dataset is None else self.draws.eligible(self._eval_rows, "eval_dataset")
        placeholder = [{"role": "user", "content": "?"}]
        rows = Dataset.from_dict({"prompt": [placeholder] * len(self._train_users), "user": list(self._train_users)})

        super().__init__(
            model,
            [self.prediction_reward, *([self.length_reward] if args.length_target else [])],
            args,
            train_dataset=rows,
            eval_dataset=None if eval_dataset is None else rows.select([0]),
            processing_class=processing_class,
            **kwargs,
        )
        self._refuse_sharding()
        self.reading = SummaryReader(self.reader, self.pairs, args, self.accelerator)
        head.attach(self.accelerator.unwrap_model(self.model), processing_class)
        # Accuracy on validation users and, where that ties, minus the log loss.
        self.best: tuple[float, float] | None = None
        self.add_callback(ContinueCount(self))
        self.add_callback(DivergenceCallback())

    def _refuse_sharding(self) -> None:
        kind = str(self.accelerator.distributed_type)
        if "FSDP" in kind or "DEEPSPEED" in kind or "MEGATRON" in kind:
            raise ConfigError(
                f"accelerate is set to {kind}, which cannot shard two models that train at once. Use DDP."
            )

    # Prompts

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochRepeatSampler:
        return EpochRepeatSampler.like(super()._get_train_sampler(dataset), self.args.seed)

    def _chat(self, context: UserContext) -> list[dict[str, str]]:
        """The summariser's messages; pairs that do not fit into `max_context_tokens` are left out."""
        config, limit = self.reader.user_model.config, self.args.max_context_tokens
        chat = context_messages(context, config)
        pairs = context.sorted_pairs()
        while limit and len(pairs) > 1 and len(request_ids(self.processing_class, chat)) > limit:
            pairs = pairs[:-1]
            chat = context_messages(UserContext(pairs, context.user), config)
        return chat

    def _generate_and_score_completions(self, inputs):
        # Under the step's number alone: every process draws the same for a group that is spread over several.
        salt = f"summarizer:{self.args.seed}:{self.state.global_step}"
        drawn: dict[int, dict[str, Any]] = {}
        for row in inputs:
            if row["user"] not in drawn:
                context, targets = self.draws.for_training(self._train_users[row["user"]], salt)
                shown = self.draws.shown(context)
                chat = request(self._chat(shown))
                clean_chat = [
                    {**m, "content": neutralize_special_tokens(m["content"], self.processing_class)} for m in chat
                ]
                drawn[row["user"]] = {"prompt": clean_chat, "targets": targets.tolist(), "shown": shown}
        self._drawn = [drawn[row["user"]] for row in inputs]
        rows = [
            {"prompt": d["prompt"], "user": row["user"], "targets": d["targets"]}
            for row, d in zip(inputs, self._drawn)
        ]
        output = super()._generate_and_score_completions(rows)
        if self.args.method != "plus_frozen_rm":
            self._learn_to_read()
        self._drawn = self._texts = None
        return output

    # The summariser's reward

    def _summary(self, completion: Any) -> str:
        text = completion if isinstance(completion, str) else completion[0]["content"]
        return first_words(clean(text), self.reader.user_model.config.max_words)

    def prediction_reward(self, prompts, completions, targets, **kwargs) -> list[float]:
        """Mean over the targets of log sigma(r+ - r-) under each summary, or of the probability itself."""
        self._texts = [self._summary(completion) for completion in completions]
        rewards = self.reading.rewards(self._texts, targets)
        words = [len(text.split()) for text in self._texts]
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["summaries/words"].append(float(np.mean(words)))
        self._metrics[mode]["summaries/distinct"].append(len(set(self._texts)) / len(self._texts))
        return rewards.tolist()

    def length_reward(self, prompts, completions, **kwargs) -> list[float]:
        """Minus `length_penalty` for each `length_target` words too many."""
        target = self.args.length_target
        words = [len(self._summary(completion).split()) for completion in completions]
        return [-self.args.length_penalty * max(0, n - target) / target for n in words]

    # The reward model's learning

    def _learn_to_read(self) -> None:
        """Updates the reward model on the step's summaries, recent ones and texts drawn from the shown contexts."""
        args, step, rank = self.args, self.state.global_step, self.accelerator.process_index
        fresh = [(text, drawn["targets"]) for text, drawn in zip(self._texts, self._drawn)]
        for update in range(args.reward_updates_per_step):
            rng = np.random.default_rng(stable_hash(f"replay:{args.seed}:{step}:{rank}:{update}"))
            old = self.reading.replay.sample(round(args.replay_share * len(fresh)), rng)
            picked = rng.permutation(len(fresh))[: round(args.anchor_share * len(fresh))]
            anchors = [(self.warmup_text(self._drawn[i]["shown"]), self._drawn[i]["targets"]) for i in picked]
            loss, accuracy = self.reading.update([*fresh, *old, *anchors], len(fresh))
        if args.reward_updates_per_step:
            self._metrics["train"]["reader/loss"].append(loss)
            self._metrics["train"]["reader/accuracy"].append(accuracy)
        self.reading.replay.extend(fresh)

    def warm_up(self) -> None:
        """The reward model's first updates, on texts drawn from shown contexts: it learns what words can mean."""
        args, users, accuracies = self.args, list(self._train_users), []
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for step in range(args.warmup_reward_steps):
            # From one rate to the other along a line.
            done, first = step / args.warmup_reward_steps, args.warmup_reward_learning_rate
            self.reading.set_rate((1 - done) * (first or args.reward_learning_rate) + done * args.reward_learning_rate)
            rng = np.random.default_rng(stable_hash(f"warmup:{args.seed}:{step}"))
            chosen = rng.permutation(len(users))[: args.warmup_batch_size][rank::world]
            examples = []
            for user in (users[i] for i in chosen):
                context, targets = self.draws.for_training(self._train_users[user], f"warmup:{args.seed}:{step}")
                examples.append((self.warmup_text(self.draws.shown(context)), targets.tolist()))
            accuracies.append(self.reading.update(examples, len(examples))[1])
        if accuracies:
            self._report_warm_up(float(np.mean(accuracies[-20:])))
        self.reading.set_rate(args.reward_learning_rate)
        self.reading.keep_frozen()

    def _report_warm_up(self, accuracy: float) -> None:
        logger.info(f"The reward model predicts {100 * accuracy:.1f} % of choices from the last warm-up texts.")
        if accuracy < 0.55:
            logger.warning(
                f"After {self.args.warmup_reward_steps} warm-up updates the reward model predicts {100 * accuracy:.1f} % "
                "of choices, which is chance: no summary can earn a reward by what it says. Raise "
                "`warmup_reward_steps`, or change `warmup_reward_learning_rate` or the reward model."
            )

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            load_pair_state(self, Path(resume_from_checkpoint))
        else:
            self.reading.broadcast()
            self.warm_up()
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    @property
    def summarizer_is_frozen(self) -> bool:
        """Whether the summariser no longer learns."""
        after = 0 if self.args.method == "plus_untrained" else self.args.freeze_summarizer_after
        return after is not None and self.state.global_step >= after

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.summarizer_is_frozen:
            return super().training_step(model, inputs, num_items_in_batch)
        # No backward pass: with gradients of None the optimiser leaves the weights alone, momentum included.
        model.train()
        self._prepare_inputs(inputs)
        self._step += 1
        return torch.zeros((), device=self.accelerator.device)

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Accuracy on validation users: one greedy summary a user, pairs outside its context; the best pair is kept.

        Raises:
            ConfigError: `eval_dataset` is given here, or was not to the trainer.
        """
        if eval_dataset is not None and eval_dataset is not self.eval_dataset:
            raise ConfigError(
                "`eval_dataset` is that of the trainer, by which the best pair is chosen. Evaluate other users with "
                "`pluralrlhf eval summarizer`."
            )
        if not self._eval_users:
            raise ConfigError("`eval_dataset` is missing: there are no validation users to evaluate on.")
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.validation().items()}
        self.log(metrics)
        found = metrics[f"{metric_key_prefix}_accuracy"], -metrics[f"{metric_key_prefix}_log_loss"]
        if self.args.keep_best and (self.best is None or found > self.best):
            self.best = found
            if self.is_world_process_zero():
                save_pair(self, Path(self.args.output_dir) / "best")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def validation(self) -> dict[str, float]:
        """Mean over users of the accuracy with the user's summary, with none, and with another user's."""
        head, args = self.reader.user_model, self.args
        head._known.clear()
        rows, owner, contexts = [], [], []
        for number, row in enumerate(self._eval_users.values()):
            context, targets = self.draws.draw(
                row, f"validation:{number}", args.n_context, args.max_eval_pairs_per_user
            )
            contexts.append(self.draws.shown(context))
            rows += targets.tolist()
            owner += [number] * len(targets)
        texts, owner, rows = head.texts(contexts), np.array(owner), np.array(rows)
        head._known.clear()
        out = {}
        # An odd stride, so that users who were made in couples do not get their own twin every time.
        other = np.roll(np.arange(len(texts)), max(1, len(texts) // 2 | 1))
        readings = {
            "accuracy": [texts[i] for i in owner],
            "empty_accuracy": [""] * len(owner),
            "shuffled_accuracy": [texts[other[i]] for i in owner],
        }
        for name, given in readings.items():
            margins = self.reading.margins(rows, given)
            out[name] = user_mean((margins > 0) + 0.5 * (margins == 0), owner)
            if name == "accuracy":
                out["log_loss"] = user_mean(np.logaddexp(0, -margins), owner)
        out["summary_words"] = float(np.mean([len(text.split()) for text in texts]))
        return out

    # Saving

    def _save_checkpoint(self, model, trial):
        self.args.check_boundary(self.state.global_step, "global_step")
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        save_pair_state(self, folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.is_world_process_zero():
            save_pair(self, Path(output_dir or self.args.output_dir), best=self.args.keep_best)
