"""`PersonalizedRewardTrainer`: TRL's `RewardTrainer` with users."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalPrediction, set_seed
from trl import RewardTrainer

from ..data.seen import write_sketch
from ..errors import ConfigError
from ..features.cache import FeatureCache
from ..features.shared_prefix import verify_shared_prefix
from ..files import write_json
from ..modeling import PersonalizedRewardModel
from .collator import DataCollatorForPersonalizedPreference, EpochRows, EpochSampler
from .device_features import DeviceFeatures
from .divergence import DivergenceCallback
from .model_card import reward_model_card
from .model_init import build_reward_model, check_own_method
from .pair_checks import check_split
from .peft import peft_config_for
from .plain_pairs import warn_of_lacking_contexts
from .preparation import prepare
from .reward_config import PersonalizedRewardConfig
from .reward_metrics import reward_metrics
from .text_data import pair_data

logger = logging.getLogger(__name__)


class PersonalizedRewardTrainer(RewardTrainer):
    """Trains a reward model that is conditioned on its user.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from pluralrlhf import PersonalizedRewardConfig, PersonalizedRewardTrainer

    >>> data = load_dataset("data/pets", "pairs")
    >>> trainer = PersonalizedRewardTrainer(
    ...     args=PersonalizedRewardConfig("runs/vpl", user_model="vpl", encoder="offline"),
    ...     train_dataset=data["train"],
    ...     eval_dataset={"validation": data["validation"]},
    ... )
    >>> trainer.train()
    ```

    Args:
        model: A [`PersonalizedRewardModel`], or the id, folder or object of a backbone to train. With `args.encoder`
            it is left out: the features are frozen.
        args: [`PersonalizedRewardConfig`].
        train_dataset: Preference dataset (`prompt`, `chosen`, `rejected`, texts or messages) with `user_id`; `pair_id`
            and `item_ids` are made from the texts where they are missing (items are prompts, or, where all pairs have the same one
            or none, responses).
        eval_dataset: One dataset, named `validation`, or a dictionary by split. Metrics are `eval_<split>_accuracy`
            (mean over users, and over `args.eval_n_context`) and the same for each number of context pairs.
        processing_class: The backbone's tokenizer.
        peft_config: Adapter on the backbone; the user model is trained and saved whole.
        quantization_config: For a backbone given by name.
        users: Rows of the `users` config, for user models that declare that they read it; others never see it.
        compute_metrics, callbacks, optimizers: As in TRL.

    Raises:
        ConfigError: Settings that do not fit each other.
        DataError: A dataset that does not keep the contract.
    """

    _tag_names = ["trl", "reward-trainer", "pluralrlhf"]
    _name = "PersonalizedReward"

    def __init__(
        self,
        model: str | PreTrainedModel | None = None,
        args: PersonalizedRewardConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
        users: Dataset | None = None,
        **kwargs: Any,
    ):
        # Args
        if args is None:
            args = PersonalizedRewardConfig("personalized-reward")
        if train_dataset is None:
            raise ConfigError("`train_dataset` is required.")
        if isinstance(train_dataset, IterableDataset) or not isinstance(train_dataset, Dataset):
            raise ConfigError(
                f"`train_dataset` is a {type(train_dataset).__name__}; a context is drawn from all of a user's pairs, "
                "so that a map-style `datasets.Dataset` (on disk, memory-mapped) is needed."
            )
        check_split("train", train_dataset)
        if eval_dataset is not None and not isinstance(eval_dataset, dict):
            eval_dataset = {"validation": eval_dataset}

        # Model
        set_seed(args.seed)
        model, processing_class = build_reward_model(model, args, processing_class, train_dataset, quantization_config)
        check_own_method(model.config)
        if peft_config is not None:
            if model.backbone is None:
                raise ConfigError("`peft_config` needs a backbone; with frozen features there is nothing to adapt.")
            if args.packing is not None and getattr(peft_config, "is_prompt_learning", False):
                raise ConfigError(
                    "`packing: shared_prefix` does not go with learned prompts (prefix or prompt tuning), which stand "
                    "in front of a row and not of each branch. Use LoRA, or leave `packing` out."
                )
            peft_config = peft_config_for(model, peft_config)

        # Data
        self.pairs = pair_data(
            model,
            FeatureCache(args.feature_cache) if model.backbone is None else None,
            args.context_group_size,
            progress=not args.disable_tqdm,
            users=users,
            packing=args.packing,
            packing_tokens=args.packing_tokens,
        )
        if args.packing is not None and args.trust_remote_code:
            verify_shared_prefix(model.backbone)  # remote code may do what its configuration does not say
        self._with_margin = "margin" in train_dataset.column_names
        self._user_metrics = compute_metrics
        self._evaluated_split = ""
        self._table: DeviceFeatures | None = None
        self._refreshed_at: int | None = None
        refreshed = args.context_refresh_steps is not None
        if refreshed and (model.user_model.route == "text" or not model.user_model.uses_context):
            raise ConfigError(
                f"`context_refresh_steps` is {args.context_refresh_steps}, but `{model.config.user_model}` has no features "
                "of contexts to refresh. Leave it out."
            )
        collator = DataCollatorForPersonalizedPreference(
            self.pairs, args.n_context, args.seed, self._with_margin, args.no_context_share, refreshed
        )
        # TRL's filter by length reads token columns, which are not there, and it warns of settings of a finished model.
        own = {"max_length": args.max_length, "model_init_kwargs": args.model_init_kwargs}
        args.max_length = args.model_init_kwargs = None

        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            **kwargs,
        )
        self.add_callback(DivergenceCallback())
        args.max_length, args.model_init_kwargs = own.values()
        if "validation" in (self.eval_dataset or {}):
            args.choose_metric(len(self.eval_dataset["validation"]) // len(args.eval_n_context))
        self.label_names = ["labels"]
        inner = self.reward_model
        # TRL halves every trainable parameter of a quantised model; the user model is small, and sums over contexts.
        inner.user_model.float()
        if inner is not self.model:
            inner.attach_adapter(self.accelerator.unwrap_model(self.model))
        if inner.backbone is None:
            inner.user_model.set_feature_noise(args.feature_noise)
            self.pairs.by_row = inner.user_model.route == "head" and self._features_on_device()
        prepare(self.pairs, self._train_rows)

    @property
    def reward_model(self) -> PersonalizedRewardModel:
        """The model itself, without wrappers of accelerate and PEFT."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name) -> Dataset:
        if set(dataset.column_names) in ({"row"}, {"row", "n_context"}):  # what this made before
            return dataset
        rows = self.pairs.add(dataset_name, dataset)
        if dataset_name == "train":
            self._train_rows = rows
            if self.pairs.model.user_model.uses_context:
                warn_of_lacking_contexts(self.pairs.history, rows, args.n_context)
            return Dataset.from_dict({"row": rows})
        if args.max_eval_pairs_per_user is not None:
            order = self.pairs.history.epoch_order(rows, seed=0, pairs_per_user=args.max_eval_pairs_per_user)
            rows = rows[np.sort(order)]
        sizes = args.eval_n_context
        return Dataset.from_dict({"row": np.tile(rows, len(sizes)), "n_context": np.repeat(sizes, len(rows))})

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["row", "epoch", "n_context"]

    def get_train_dataloader(self) -> DataLoader:
        sampler = EpochSampler(
            self.pairs.history,
            self._train_rows,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            self.args.pairs_per_user,
            self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
        )
        return self._get_dataloader(
            dataset=EpochRows(self._train_rows, len(sampler)),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda _: sampler,
            is_training=True,
        )

    # Features on the device

    def _features_on_device(self) -> bool:
        if self.args.device_features is not None or self.accelerator.device.type != "cuda":
            return bool(self.args.device_features)
        n_bytes = sum(2 * len(table) * table.dim + 8 * index.size for table, index in self.pairs.feature_tables())
        return n_bytes < torch.cuda.mem_get_info(self.accelerator.device)[0] / 4

    def _refresh(self, model) -> None:
        """Fills the table of context features with the weights as they are, at the steps that are due.

        A step is due by its number alone, and after resuming; a run that was interrupted at a checkpoint which is a
        multiple of `context_refresh_steps` therefore goes on as if it had not been.
        """
        step, device = self.state.global_step, self.accelerator.device
        due = step % self.args.context_refresh_steps == 0 and step != self._refreshed_at
        if self._table is not None and not due:
            return
        if self._table is None:
            self._table = DeviceFeatures.empty(self.pairs.history.n_rows, self.reward_model.config.feature_dim, device)
        size = self.args.per_device_eval_batch_size
        self._table.refresh(model, self.pairs, self._train_rows, self.accelerator, size, self._prepare_inputs)
        self._refreshed_at = step

    def _looked_up(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with features in place of rows."""
        if "target_row" not in inputs and "context_row" not in inputs:
            return inputs
        if self._table is None:
            self._table = DeviceFeatures.of_frozen(self.pairs, self.accelerator.device)
        inputs = dict(inputs)
        if "target_row" in inputs:
            features = self._table(inputs.pop("target_row"))
            inputs["chosen_features"], inputs["rejected_features"] = features.unbind(1)
        if "context_row" in inputs:
            inputs["context_features"] = self._table(inputs.pop("context_row"))
        return inputs

    # Loss

    def training_step(self, model, inputs, *args, **kwargs):
        self.reward_model.user_model.set_step(self.state.global_step, self.state.max_steps)
        if self.args.context_refresh_steps is not None:
            self._refresh(model)
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = self._looked_up({key: value for key, value in inputs.items() if key != "labels"})
        outputs = model(**inputs)
        loss = outputs.loss
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * torch.mean((chosen + rejected) ** 2)
        if self.model.training:
            with torch.no_grad():
                values = {"accuracy": (chosen > rejected).float().mean(), "margin": (chosen - rejected).mean()}
                values |= {"mean_reward": outputs.logits.mean(), **(outputs.metrics or {})}
                gathered = self.accelerator.gather(torch.stack([v.detach().float() for v in values.values()])[None])
                for name, value in zip(values, gathered.mean(0).tolist()):
                    self._metrics["train"][name].append(value)
        return (loss, outputs) if return_outputs else loss

    # Evaluation

    def train(self, *args, **kwargs):
        if (share := self.reward_model.user_model.applied_share) is not None:
            share.fill_(1.0)  # the contexts of training count in full
        output = super().train(*args, **kwargs)
        self.fit_strength()
        return output

    def fit_strength(self) -> float | None:
        """Sets the share of a context's evidence that is applied to what fits the validation users' choices best.

        Called at the end of [`train`]. Checkpoints made before have a share of 1, and the metrics of their validation are
        of the share that fits them: accuracies exactly, log losses to first order in the share.

        Returns:
            The share; `None`, and nothing is set, where the user model has none or `eval_dataset` no `validation` at
            both k = 0 and k > 0.
        """
        share, sizes = self.reward_model.user_model.applied_share, self.args.eval_n_context
        validation = (self.eval_dataset or {}).get("validation")
        if share is None or validation is None or not min(sizes) == 0 < max(sizes):
            return None
        share.fill_(1.0)
        prediction = self.predict(validation, metric_key_prefix="strength_validation")
        share = self.reward_model.user_model.applied_share  # prediction may have moved the model, buffers and all
        share.fill_(prediction.metrics["strength_validation_strength"])
        return float(share)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._evaluated_split = metric_key_prefix.partition("_")[2]
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # Metrics are of margins and log-odds; what `predict` gives are the margins.
        margins = None if output.predictions is None else output.predictions[:, 0]
        return output._replace(predictions=margins)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        margin = (chosen - rejected).detach()
        # Where a posterior is wide its margin promises too much; what it predicts is the probability.
        log_odds = margin if outputs.log_odds is None else outputs.log_odds.detach()
        return loss.detach(), torch.stack([margin, log_odds.to(margin.dtype)], dim=1), inputs["labels"]

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Means over users, from all processes' pairs, for every number of context pairs and over them."""
        margins, log_odds = np.asarray(prediction.predictions, dtype=np.float64).T
        rows, sizes = np.asarray(prediction.label_ids).T
        users = self.pairs.history.user[rows]
        share = self.reward_model.user_model.applied_share
        # Fitted on these users alone; once it is the model's own, it is applied by the model.
        fitted = share is not None and self._evaluated_split == "validation"
        metrics = reward_metrics(margins, log_odds, sizes, rows, users, float(share) if fitted else None)
        if self._user_metrics is not None:
            given = prediction.predictions[:, 0]
            own = EvalPrediction(given, prediction.label_ids, prediction.inputs, prediction.losses)
            metrics |= self._user_metrics(own)
        return metrics

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if folder.name.startswith("checkpoint-"):
            super()._save(str(folder), state_dict)
            return
        folder.mkdir(parents=True, exist_ok=True)
        model = self.reward_model
        if state_dict is not None and model is self.accelerator.unwrap_model(self.model):
            model.save_pretrained(str(folder), state_dict=state_dict)
        else:
            model.save_pretrained(str(folder))
        if model.backbone is not None and self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))
        settings = json.loads(self.args.to_json_string())
        write_json(folder / "training_args.json", settings, sort_keys=True)
        (folder / "training_args.bin").unlink(missing_ok=True)
        if "train" in self.pairs.splits:
            write_sketch(self.pairs.splits["train"], folder)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """Writes README.md: what the model is, its data, its users, and its metrics so far."""
        if self.is_world_process_zero():
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            card = reward_model_card(self, model_name or Path(self.args.output_dir).name, dataset_name, tags)
            (Path(self.args.output_dir) / "README.md").write_text(card, encoding="utf-8")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if not _internal_call and output_dir in (None, self.args.output_dir):
            self.create_model_card()
