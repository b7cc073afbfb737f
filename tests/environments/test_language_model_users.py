"""Users played by language models: a local one, and an endpoint that fails, stalls or answers with markup."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from pluralrlhf.environments.base import Conversation, Turn, stable_random
from pluralrlhf.environments.endpoint import ChatEndpoint, LocalChat
from pluralrlhf.environments.endpoint_user import EndpointUser, fault
from pluralrlhf.environments.exercise import ExerciseWorld
from pluralrlhf.environments.exercise_start import vocabulary
from pluralrlhf.environments.local_user import LocalLMUser, user_view
from pluralrlhf.environments.tiny import tiny_policy, tiny_tokenizer
from pluralrlhf.errors import ConfigError

WORLD = ExerciseWorld(n_users=16, n_questions=2)
TOKENIZER = tiny_tokenizer(vocabulary())


def started(n=4):
    out = []
    for i, profile in enumerate(WORLD.users("train")[:n]):
        text = "what about your music ?"
        out.append(Conversation(profile, WORLD.prompt(profile), seed=i, turns=[Turn(text, WORLD.parse(text))]))
    return out


class Flaky(BaseHTTPRequestHandler):
    """An OpenAI-compatible server: a tenth of the answers are errors, a tenth stall, a tenth are markup."""

    dice = stable_random("flaky")
    served: Counter = Counter()
    stall = 2.5

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["messages"][0]["role"] == "system"
        luck = self.dice.random()
        kind = "error" if luck < 0.1 else "stall" if luck < 0.2 else "markup" if luck < 0.3 else "fine"
        Flaky.served[kind] += 1
        if kind == "stall":
            time.sleep(self.stall)
        text = "<html><b>502</b></html>" if kind == "markup" else "i choose rock ."
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]
        payload = json.dumps(answer).encode()
        try:
            self.send_response(500 if kind == "error" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except OSError:  # the client has given up on a stalled answer
            pass

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_training_runs_on_when_a_third_of_the_answers_fail(address, tmp_path):
    pytest.importorskip("openai")
    from pluralrlhf.trainers.multi_turn_config import MultiTurnGRPOConfig
    from pluralrlhf.trainers.multi_turn_trainer import MultiTurnGRPOTrainer

    seen = []

    class Spy(MultiTurnGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            inner = self._log_conversations
            played = []
            self._log_conversations = lambda: (played.extend(self._conversations), inner())
            output = super()._generate_and_score_completions(inputs)
            self._log_conversations = inner
            seen.append((output, played))
            return output

    user = EndpointUser("m", address, attempts=1, timeout=1.5, backoff=0.01, concurrency=4)
    settings = {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 3, "max_new_tokens": 6}
    settings |= {"save_strategy": "no", "report_to": "none", "logging_steps": 1, "use_cpu": True, "bf16": False}
    model = tiny_policy(TOKENIZER, hidden_size=16, layers=1, heads=2)
    args = MultiTurnGRPOConfig(str(tmp_path), disable_tqdm=True, **settings)
    reward = lambda completions, **kwargs: [float(len(str(c)) % 7) for c in completions]  # noqa: E731
    trainer = Spy(model, reward, args, world=WORLD, user=user, processing_class=TOKENIZER)
    trainer.train()
    failed = [(o, i) for o, played in seen for i, c in enumerate(played) if c.failed]
    logged = sum(log.get("conversations/failed", 0) for log in trainer.state.log_history)
    assert trainer.state.global_step == 3 and logged == len(failed) == sum(user.failures.values()) > 0
    for output, i in failed:
        assert (output["advantages"][i] == 0).all()
        assert (output["tool_mask"][i] * output["completion_mask"][i]).sum() == 0
    assert set(user.failures) <= {"timeout", "markup", "InternalServerError"}


def test_retries_reach_nearly_everyone(address):
    pytest.importorskip("openai")
    user = EndpointUser("m", address, attempts=6, timeout=1.5, backoff=0.01, concurrency=8)
    replies = user.reply(started(16))
    assert [r.text for r in replies] == ["i choose rock ."] * 16
    assert user.requests == 16 + sum(user.failures.values())


class Client:
    """A client whose answers are given, and which notes how many requests are in flight."""

    def __init__(self, answers):
        self.answers, self.in_flight, self.most = list(answers), 0, 0
        self.chat = self.completions = self

    async def create(self, **kwargs):
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0.01)
        self.in_flight -= 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        message = type("Message", (), {"content": answer})()
        return type("Answer", (), {"choices": [type("Choice", (), {"message": message})()]})()


def test_what_counts_as_a_failure_and_the_limit_on_requests():
    client = Client(["fine .", None, "", "<|im_end|>", "```x```", "[INST] hi", "x" * 900, RuntimeError("no")])
    user = EndpointUser("m", client=client, attempts=1, concurrency=2)
    replies = user.reply(started(8))
    assert [r.error for r in replies] == [
        None,
        "empty",
        "empty",
        "markup",
        "markup",
        "markup",
        "too_long",
        "RuntimeError",
    ]
    assert client.most == 2 and sum(user.failures.values()) == 7
    assert fault("2 < 3 and 4 > 1 .", 100) is None
    delays = [user.delay(a, stable_random(0)) for a in (1, 2, 3)]
    assert delays[1] == 2 * delays[0] and delays[2] == 4 * delays[0] and 0.25 <= delays[0] <= 0.75
    answers = ChatEndpoint("m", client=Client(["consistent", None]), attempts=1)(["a", "b"])
    assert answers == ["consistent", None]
    with pytest.raises(ConfigError, match="base_url"):
        EndpointUser("m")


def test_the_user_sees_the_profile_and_the_policy_does_not():
    for conversation in started():
        view = user_view(conversation)
        assert conversation.profile.description in view[0]["content"]
        assert [m["role"] for m in view] == ["system", "assistant", "user"]
        assert conversation.profile.description not in str(conversation.messages)


def test_a_local_model_answers_a_batch_as_it_answers_one():
    model = tiny_policy(TOKENIZER, hidden_size=16, layers=1, heads=2)
    user = LocalLMUser(model, TOKENIZER, max_new_tokens=6, temperature=0.0, system_as_user=True, max_replies=1)
    conversations = started()
    together = user.reply(conversations)
    assert [r.text for r in together] == [user.reply([c])[0].text for c in conversations]
    assert all(r.leaves or r.error == "empty" for r in together)
    assert len(LocalChat(model, TOKENIZER, max_new_tokens=4)(["a", "b b"])) == 2
