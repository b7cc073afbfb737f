"""Questions as tools: TRL's own environment route on the exercise world."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from pluralrlhf.environments.exercise import STRATEGIES, ExerciseWorld
from pluralrlhf.environments.tools import exercise_tools, tool_dataset

WORLD = ExerciseWorld(n_users=8, vague=0.0, change=0.0, noise=0.0)


def test_the_tools_play_a_conversation():
    environment = exercise_tools(WORLD, belief_weight=1.0)()
    profile = WORLD.users("test")[0]
    environment.reset(user_id=profile.user_id)
    assert "Unknown topic" in environment.ask("weather")
    before = environment.get_reward()
    for topic in ("company", "place", "contest", "intensity", "length"):
        assert WORLD.statements(environment.ask(topic))
    assert environment.recommend(STRATEGIES[profile.type_index]) == "Thank you."
    assert before == 0.0 and environment.get_reward() > 2.5
    assert environment.ask("music") == "The conversation is over."


def test_trl_runs_the_tools_and_reads_the_environments_reward(tmp_path):
    import trl
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(marks + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=marks[0], eos_token=marks[2], additional_special_tokens=marks[1:2]
    )
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text()

    class Scripted(GRPOTrainer):
        """Says what it is told: asks about company, then recommends."""

        def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
            out = []
            for ids in prompt_ids:
                told = tokenizer.decode(ids).count("<tool_response>")
                call = [
                    {"name": "ask", "arguments": {"topic": "company"}},
                    {"name": "recommend", "arguments": {"strategy": "home yoga"}},
                ]
                text = f"<tool_call>\n{json.dumps(call[told])}\n</tool_call>" if told < 2 else "Done."
                out.append(tokenizer(text + "<|im_end|>")["input_ids"])
            return out, None

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 8192}
    settings = {"per_device_train_batch_size": 2, "num_generations": 2, "max_steps": 1, "report_to": "none"}
    settings |= {
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "max_completion_length": 1024,
        "save_strategy": "no",
    }
    trainer = Scripted(
        model=Qwen2ForCausalLM(Qwen2Config(**size)),
        args=GRPOConfig(str(tmp_path), gradient_checkpointing=False, **settings),
        train_dataset=tool_dataset(WORLD, "train"),
        processing_class=tokenizer,
        environment_factory=exercise_tools(WORLD),
    )
    trainer.train()
    for environment in trainer.environments:
        talk = environment._talk
        assert [t.act.kind for t in talk.turns] == ["ask", "recommend"] and talk.ended == "recommended"
        assert WORLD.statements(talk.turns[0].user)[0][0] == 0
        assert environment.get_reward() == float(STRATEGIES[talk.profile.type_index] == "home yoga")
    log = next(x for x in trainer.state.log_history if "rewards/ExerciseTools/mean" in x)
    assert log["tools/call_frequency"] == pytest.approx(2.0) and log["tools/failure_frequency"] == 0.0
