"""Summaries in front of other models, on a real HTTP server whose answers fail, stall or are malformed 30 % of the time."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pluralrlhf.environments.endpoint import ChatEndpoint
from pluralrlhf.errors import ConfigError
from pluralrlhf.evaluation.transfer import TransferUser, read_verdict, win_rate

pytest.importorskip("openai")


class Handler(BaseHTTPRequestHandler):
    """Writes what the summary asks for, judges by the word that the evidence prefers; every third request goes wrong."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.count += 1
            number = server.count
        kind = number % 10 if server.faulty else None
        if kind == 2:
            self.send_error(500)
            return
        if kind == 5:
            time.sleep(1.5)
        payload = json.dumps(answer(body["messages"], server)).encode()
        if kind == 8:
            payload = payload[: len(payload) // 2]
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except OSError:  # the client has long given up
            return
        if kind is None or kind not in (2, 5, 8):
            with server.lock:
                server.good.append(json.dumps(body["messages"]))

    def log_message(self, *args):
        return


def answer(messages, server) -> dict:
    texts = [message["content"] for message in messages]
    if texts[0].startswith("You judge"):
        wanted = texts[2]
        first, second = texts[-4], texts[-2]
        said = "first" if wanted in first else "second" if wanted in second else "tie"
        text = server.judge or said
    else:
        text = "get a cat" if "cats" in texts[0] else "get a fish"
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.count, server.faulty, server.judge, server.good = threading.Lock(), 0, True, None, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def endpoint(server, **kwargs) -> ChatEndpoint:
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return ChatEndpoint(
        "m", address, **{"timeout": 0.7, "backoff": 0.01, "attempts": 8, "prices": (1.0, 2.0), **kwargs}
    )


def users(n: int = 6) -> list[TransferUser]:
    pair = {"prompt": "Which pet?", "chosen": "cat", "rejected": "dog"}
    return [
        TransferUser(f"u{i}", "the user likes cats best .", [f"What should I get, {i}?", f"And {i}?"], [pair])
        for i in range(n)
    ]


def test_faults_are_retried_and_counted_and_the_summary_wins(server, tmp_path):
    writer = endpoint(server, store=tmp_path / "responses.jsonl")
    judge = endpoint(server, store=tmp_path / "verdicts.jsonl")
    found = win_rate(users(), writer, judge)
    assert found["win_rate"]["value"] == 1.0
    assert found["n_judged"] == 12 and found["missing"] == found["invalid"] == 0
    assert found["first_rate"] == 0.5
    kinds = writer.failures + judge.failures
    assert kinds["timeout"] and sum(kinds.values()) > kinds["timeout"]
    assert "paid" in found["cost"]["writer"]


def test_an_answer_is_paid_for_once(server, tmp_path):
    stores = {"writer": tmp_path / "responses.jsonl", "judge": tmp_path / "verdicts.jsonl"}
    first = win_rate(users(), *(endpoint(server, store=path) for path in stores.values()))
    count = server.count
    # What a kill leaves: the last line cut short. Only that answer is asked for again.
    lines = stores["writer"].read_text().rstrip("\n").split("\n")
    stores["writer"].write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    server.faulty = False
    writer, judge = (endpoint(server, store=path) for path in stores.values())
    again = win_rate(users(), writer, judge)
    assert again["win_rate"] == first["win_rate"]
    assert server.count == count + 1
    assert writer.requests == 1 and judge.requests == 0
    assert endpoint(server, store=stores["writer"])._read().keys() == {
        json.loads(line)["key"] for line in lines if line
    }


def test_invalid_verdicts_are_counted_and_a_judge_of_one_side_shows(server, tmp_path):
    server.faulty = False
    server.judge = "The first response is better than the second."
    found = win_rate(users(2), endpoint(server), endpoint(server, attempts=2))
    assert found["invalid"] == 8 and found["n_judged"] == 0 and found["win_rate"]["value"] is None
    server.judge = "First."
    found = win_rate(users(2), endpoint(server), endpoint(server))
    assert found["first_rate"] == 1.0 and found["win_rate"]["value"] == 0.5


def test_no_more_requests_in_flight_than_allowed():
    import asyncio
    from types import SimpleNamespace

    flying, most = 0, 0

    async def create(**kwargs):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.01)
        flying -= 1
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="x"))])

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    chat = ChatEndpoint("m", client=client, concurrency=3)
    assert set(chat.complete({str(i): [{"role": "user", "content": "y"}] for i in range(20)}).values()) == {"x"}
    assert most == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("first", 1.0),
        (" Second. ", 0.0),
        ("**tie**", 0.5),
        ("the first", None),
        ("first or second", None),
        (None, None),
    ],
)
def test_a_verdict_is_one_word(text, value):
    assert read_verdict(text) == value


def test_a_judge_who_knows_nothing_is_refused():
    with pytest.raises(ConfigError, match="neither"):
        win_rate([TransferUser("u", "likes cats", ["x"])], None, None)
