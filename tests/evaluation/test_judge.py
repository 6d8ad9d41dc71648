"""The judge behind an OpenAI-compatible address, against a small server on this machine."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.contract import StageCheck
from pipeline.errors import DataError, Interrupted, UserError
from stages.data import PromptRow
from stages.evaluate import EvaluateConfig, check
from stages.evaluation import judge_client
from stages.evaluation.answers import Answers, Task
from stages.evaluation.judge import judge, verdict_of
from stages.evaluation.judge_client import JudgeClient
from stages.judge_config import JudgeConfig

KEY = "sk-this-must-not-be-seen-anywhere-1234567890"


class Service:
    """A local chat-completions service whose verdict is a function of prompt and both answers."""

    def __init__(self, say):
        self.say, self.seen, self.failures = say, [], []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.seen.append((self.path, dict(self.headers), body))
                code = service.failures.pop(0) if service.failures else 200
                if code in (301, 302):
                    self.send_response(code)
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                    self.end_headers()
                    return
                text = body["messages"][1]["content"]
                parts = text.split("[Answer A]\n")[1].split("\n\n[Answer B]\n")
                a, b = parts[0], parts[1].split("\n\n[Which")[0]
                content = {"choices": [{"message": {"content": service.say(a, b)}}]}
                content["usage"] = {"prompt_tokens": 100, "completion_tokens": 2}
                data = json.dumps(content).encode() if code == 200 else b"busy"
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(judge_client, "RETRY_SECONDS", 0.0)
    running = []

    def start(say):
        running.append(Service(say))
        return running[-1]

    yield start
    for service in running:
        service.server.shutdown()
        service.server.server_close()


def longer(a, b):
    return "TIE" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def answers(name, texts):
    return Answers(name, [[1]] * len(texts), list(texts), [True] * len(texts), [0.0] * len(texts))


OWN, OTHER = ("long answer", "x", "same", "equal"), ("short", "longer", "same", "qeual")


def judged(service, folder, *, stopped=lambda: False, own=OWN, other=OTHER, samples=1, **changes):
    config = EvaluateConfig(
        reference="base",
        samples_per_prompt=samples,
        bootstrap_draws=100,
        judge={"url": service.url, "model": "judge-1", "input_price": 2.0, "output_price": 10.0} | changes,
    )
    rows = [PromptRow(f"p{at}", f"prompt {at}", at) for at in range(len(own) // samples)]
    task = Task(rows, [[1]] * len(rows))
    client = JudgeClient(config.judge, folder)
    return judge([answers("base", other), answers("my model", own)], task, config, client, stopped=stopped)


def test_each_pair_is_judged_in_both_orders_and_equal_answers_not_at_all(serve, tmp_path):
    service = serve(longer)

    found = judged(service, tmp_path)

    # Longer wins: win, loss, equal texts (no question), equal lengths (a tie): (1 + 0 + 0.5 + 0.5) / 4.
    assert found.metrics["judge_win_rate/my_model"] == 0.5
    assert found.metrics["judge/calls"] == 6
    shown = Counter(
        body["messages"][1]["content"].split("[Answer A]\n")[1][:5] for _, _, body in service.seen
    )
    assert (shown["long "], shown["short"]) == (1, 1)
    assert all(path == "/v1/chat/completions" for path, _, _ in service.seen)
    # 6 calls of 100 and 2 tokens at 2 and 10 a million.
    assert found.metrics["judge/price"] == pytest.approx((600 * 2 + 12 * 10) / 1e6)


def test_a_judge_that_always_takes_the_first_place_finds_nothing(serve, tmp_path):
    found = judged(serve(lambda a, b: "A"), tmp_path)

    assert found.metrics["judge_win_rate/my_model"] == 0.5
    assert found.metrics["judge/first_share"] == 1.0


def test_asking_again_costs_nothing(serve, tmp_path):
    service = serve(longer)
    first = judged(service, tmp_path)
    again = judged(service, tmp_path)

    assert len(service.seen) == 6
    assert again.win_rates == first.win_rates
    assert (again.metrics["judge/calls"], again.metrics["judge/cached"]) == (0, 6)
    assert again.metrics["judge/price"] == 0


def test_a_damaged_reply_in_the_cache_is_asked_for_again(serve, tmp_path):
    service = serve(longer)
    judged(service, tmp_path)
    file = sorted(tmp_path.glob("*.json"))[0]
    file.write_text(file.read_text().replace('"input": 100', '"input": 999'))

    assert judged(service, tmp_path).metrics["judge/calls"] == 1


def test_another_instruction_is_another_question(serve, tmp_path):
    service = serve(longer)
    judged(service, tmp_path)
    judged(service, tmp_path, instruction="Be strict. Reply A, B or TIE.")

    assert len(service.seen) == 12


def test_the_key_is_sent_and_stands_nowhere_else(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    service = serve(longer)

    found = judged(service, tmp_path, api_key="env:JUDGE_KEY")

    assert {headers["Authorization"] for _, headers, _ in service.seen} == {f"Bearer {KEY}"}
    assert KEY not in str(found)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY in file.read_text()]


def test_a_key_that_is_not_set_is_named(serve, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)

    with pytest.raises(UserError, match="JUDGE_KEY"):
        judged(serve(longer), tmp_path, api_key="env:JUDGE_KEY")


def test_a_busy_service_is_asked_again_and_a_refusal_is_not(serve, tmp_path):
    service = serve(longer)
    service.failures = [429, 503]
    judged(service, tmp_path / "a", parallel=1)
    assert len(service.seen) == 8

    service.failures = [401]
    with pytest.raises(DataError, match="401"):
        judged(service, tmp_path / "b", parallel=1)
    assert len(service.seen) == 9


def test_a_redirect_is_not_followed_with_the_key(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    service = serve(longer)
    service.failures = [302]

    with pytest.raises(DataError, match="302") as caught:
        judged(service, tmp_path, api_key="env:JUDGE_KEY", parallel=1)

    assert KEY not in str(caught.value)


def test_a_service_that_is_not_there_is_an_error_with_a_remedy(tmp_path, serve):
    service = serve(longer)
    service.url = "http://127.0.0.1:9/v1"

    with pytest.raises(DataError) as caught:
        judged(service, tmp_path)

    assert "judge.url" in caught.value.findings[0].hint


def test_an_unclear_reply_is_a_tie_and_is_counted(serve, tmp_path):
    found = judged(serve(lambda a, b: "I cannot say."), tmp_path)

    assert found.metrics["judge/unclear"] == 6
    assert found.metrics["judge_win_rate/my_model"] == 0.5


def test_one_unclear_reply_of_a_pair_leaves_the_other_one_half_its_weight(serve, tmp_path):
    # "long" wins where it stands second; where it stands first the judge says nothing: (1/2 + 1) / 2.
    service = serve(lambda a, b: "B" if b == "long" else "Hm.")

    found = judged(service, tmp_path, own=("long",), other=("short",))

    assert found.metrics["judge_win_rate/my_model"] == 0.75
    assert found.metrics["judge/unclear"] == 1


def test_another_judge_is_asked_anew(serve, tmp_path):
    service = serve(longer)
    judged(service, tmp_path)

    found = judged(service, tmp_path, model="judge-2")

    assert found.metrics["judge/calls"] == 6
    assert {body["model"] for _, _, body in service.seen} == {"judge-1", "judge-2"}


def test_of_several_samples_the_first_of_each_prompt_is_judged(serve, tmp_path):
    # First samples: "long answer" against "x" and "y" against "longer". The others would all lose.
    own = ("long answer", "", "y", "")
    other = ("x", "second sample", "longer", "second sample")
    service = serve(longer)

    found = judged(service, tmp_path, own=own, other=other, samples=2)

    assert found.metrics["judge_win_rate/my_model"] == 0.5
    shown = "".join(body["messages"][1]["content"] for _, _, body in service.seen)
    assert "second sample" not in shown


def test_a_stop_keeps_the_replies_so_far(serve, tmp_path):
    service = serve(longer)
    asked = iter([False, True])

    with pytest.raises(Interrupted):
        judged(service, tmp_path, stopped=lambda: next(asked), parallel=1)
    judged(service, tmp_path)

    assert len(service.seen) == 6


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", 1.0),
        ("b.", 0.0),
        ("**TIE**", 0.5),
        ("Answer B is a better one", 0.0),
        ("A or B", None),
        ("", None),
        ("neither", None),
    ],
)
def test_a_verdict_is_read_only_when_it_is_clear(reply, verdict):
    assert verdict_of(reply) == verdict


@pytest.mark.parametrize(
    ("url", "key", "code"),
    [
        ("ftp://host/v1", None, "bad-url"),
        ("https://user:pass@host/v1", None, "secret"),
        ("https://host/v1?key=abc", None, "secret"),
        ("http://judge.example.org/v1", "env:KEY", "insecure"),
        ("http://localhost:8000/v1", "env:KEY", None),
        ("http://judge.example.org/v1", None, None),
    ],
)
def test_an_address_that_would_leak_a_key_is_refused_before_anything_runs(url, key, code):
    config = EvaluateConfig(judge={"url": url, "model": "m", "api_key": key})

    found = check(StageCheck("evaluate", config, {}, roles=("base",)))

    assert [finding.code for finding in found] == ([code] if code else [])


def test_neither_address_nor_key_enter_the_record():
    from pipeline.record import result_settings

    config = EvaluateConfig(judge={"url": "http://localhost/v1", "model": "m", "api_key": "env:KEY"})

    assert result_settings(config)["judge"].keys() == {"model", "instruction", "max_prompts", "max_tokens"}
    with pytest.raises(ValueError, match="api_key"):
        JudgeConfig(url="http://localhost/v1", model="m", api_key=KEY)
