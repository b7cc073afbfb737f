"""Settings of `MultiTurnGRPOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig

from ..errors import ConfigError


@dataclass
class MultiTurnGRPOConfig(GRPOConfig):
    r"""`trl.GRPOConfig` plus the conversation, the credit of a turn and the intrinsic reward.

    Differences from TRL's defaults: `scale_rewards="none"` (dividing by the group's standard deviation would undo any
    difference in size between rewards), `gradient_checkpointing=False`, and `bf16` only where there is an accelerator.

    Parameters:
        turn_credit (`str`, *optional*, defaults to `"turn"`):
            `"turn"`: an utterance's tokens get the return to go of its turn minus a leave-one-out baseline over the
            group's conversations at the same turn. `"trajectory"`: TRL's own advantage, one a conversation.
        turn_lambda (`float`, *optional*, defaults to `1.0`):
            Lambda of generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438), with the potential as
            the critic: a potential-based intrinsic reward, gamma phi(b_{t+1}) - phi(b_t), is its temporal difference,
            and a turn gets the sum of the rewards from there on discounted by `gamma * turn_lambda`. 1 is the return
            to go; 0 credits a turn with its own reward only. Less variance for a bias wherever phi is not the value:
            the end reward reaches earlier turns discounted too. Needs `turn_credit="turn"`.
        max_new_tokens (`int`, *optional*, defaults to `16`):
            Tokens of one utterance at most. (`max_completion_length` is TRL's name for the whole conversation, and
            ends a conversation as `too_long`.)
        curiosity (`str`, *optional*, defaults to `"diff_log_acc"`), and `curiosity_*`:
            See [`pluralrlhf.rewards.curiosity.CuriosityConfig`].
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of the return and of the potential.
    """

    scale_rewards: str = field(
        default="none", metadata={"help": "`none`, `batch` or `group`: divide advantages by this standard deviation."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass to save memory."}
    )
    max_completion_length: int = field(
        default=512, metadata={"help": "Tokens of a conversation after its prompt, of both parties."}
    )
    turn_credit: str = field(default="turn", metadata={"help": "`turn` or `trajectory` advantages."})
    turn_lambda: float = field(
        default=1.0, metadata={"help": "Turn credit: the returns to go are discounted by `gamma` times this."}
    )
    max_new_tokens: int = field(default=16, metadata={"help": "Tokens of one utterance at most."})
    gamma: float = field(default=1.0, metadata={"help": "Discount of the return and of the potential."})
    curiosity: str = field(
        default="diff_log_acc",
        metadata={"help": "`diff_acc`, `diff_log_acc`, `diff_ent`, `acc`, `ent`, `info_gain` or `none`."},
    )
    curiosity_weight: float = field(default=1.0, metadata={"help": "Factor on the intrinsic reward."})
    curiosity_terminal_potential: str = field(default="keep", metadata={"help": "`keep` or `zero`."})
    curiosity_placement: str = field(default="turn", metadata={"help": "`turn`, or `end` for phi(b_T) at the end."})
    curiosity_floor: float = field(default=1e-3, metadata={"help": "Smallest probability inside a logarithm."})
    curiosity_clip: float | None = field(default=None, metadata={"help": "Largest absolute reward of a turn."})
    curiosity_shuffle: bool = field(
        default=False, metadata={"help": "Control: give conversations each other's intrinsic rewards."}
    )

    def __post_init__(self):
        import torch

        if self.bf16 is None:
            self.bf16 = bool(torch.cuda.is_available()) and not self.fp16
        super().__post_init__()
        if self.turn_credit not in ("turn", "trajectory"):
            raise ConfigError(f"`turn_credit` is {self.turn_credit!r}; use turn or trajectory.")
        if not 0 <= self.turn_lambda <= 1:
            raise ConfigError(f"`turn_lambda` is {self.turn_lambda}; it must lie in [0, 1].")
        if self.turn_credit == "trajectory" and self.turn_lambda != 1:
            raise ConfigError(f"`turn_lambda` is {self.turn_lambda}, but trajectory credit has no turns; use 1.")
        if self.top_p != 1.0 or self.top_k not in (0, -1, None) or self.min_p not in (None, 0.0):
            raise ConfigError(
                "`top_p`, `top_k` and `min_p` must be off: the loss takes the log-probabilities of the full "
                "distribution at `temperature`, and sampling must use the same."
            )
        generate_every = self.steps_per_generation * self.num_iterations
        micro_steps = self.save_steps * self.gradient_accumulation_steps
        if self.save_strategy == "steps" and self.save_steps >= 1 and micro_steps % generate_every:
            raise ConfigError(
                f"`save_steps` ({self.save_steps}) does not fall on a boundary between generations (every "
                f"{generate_every} micro-steps), so that resuming could not be exact. Use a multiple."
            )
        self.curiosity_config()

    def curiosity_config(self):
        """The intrinsic reward's settings as a `CuriosityConfig`."""
        from ..rewards.curiosity import CuriosityConfig

        return CuriosityConfig(
            reward=self.curiosity,
            weight=self.curiosity_weight,
            gamma=self.gamma,
            terminal_potential=self.curiosity_terminal_potential,
            placement=self.curiosity_placement,
            floor=self.curiosity_floor,
            clip=self.curiosity_clip,
            shuffle=self.curiosity_shuffle,
        )
