"""From answers that are written down to numbers worked by hand: no model is opened."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.contract import ArtifactKind
from stages.data import PromptRow
from stages.evaluate import EvaluateConfig
from stages.evaluation.answers import Answers, Task, collect
from stages.evaluation.compare import write_samples
from stages.evaluation.labelled_texts import LabelledText
from stages.evaluation.likelihood import likeliest_labels
from stages.evaluation.measures import Scored, measure
from stages.runtime.text.chat import ChatText
from tests.evaluation.test_evaluate import adapter, write_rows
from tests.tiny import as_checkpoint, stage_context, tiny_tokenizer

CONFIG = EvaluateConfig(reference="old", samples_per_prompt=2, bootstrap_draws=100)
TASK = Task([PromptRow(f"p{at}", f"prompt {at}", at) for at in range(2)], [[1], [1, 2]])


def _answers(name: str, **given) -> Answers:
    usual = {
        "responses": [[7, 8, 9]] * 4,
        "texts": [f"{name} {at}" for at in range(4)],
        "finished": [True, True, True, False],
        "logps": [-1.0, -2.0, -3.0, -4.0],
    }
    return Answers(name, **{**usual, **given})


def _measured(new: Scored, old: Scored):
    found = {row.name: row for row in measure([old, new], TASK, CONFIG)}
    return found["new"]


def test_a_gain_is_the_model_s_utility_minus_the_reference_s() -> None:
    new = Scored(_answers("new"), [0.9, 0.7, 0.4, 0.2])
    old = Scored(_answers("old"), [0.1, 0.3, 0.5, 0.5])

    row = _measured(new, old)

    # By prompt: (0.8 - 0.2) and (0.3 - 0.5): the mean of 0.6 and -0.2.
    assert row.gold_gain.mean == pytest.approx(0.2)
    assert row.gold.mean == pytest.approx(0.55)
    # Sample by sample: two wins on the first prompt, two losses on the second.
    assert row.win_rate.mean == 0.5
    assert (row.gold_gain.low, row.gold_gain.high) == pytest.approx((-0.2, 0.6))


def test_kl_is_the_model_s_log_probability_minus_the_reference_s() -> None:
    new = Scored(_answers("new", ref_logps=[-2.0, -2.5, -3.0, -6.5]), None)

    # Differences 1, 0.5, 0 and 2.5: a mean of 1 nat a response.
    assert _measured(new, Scored(_answers("old"), None)).kl.mean == pytest.approx(1.0)


def test_responses_that_the_length_limit_cut_are_no_stops() -> None:
    row = _measured(Scored(_answers("new"), None), Scored(_answers("old"), None))

    assert row.eos_rate == 0.75
    assert row.length == 3.0


def test_the_best_of_n_is_chosen_by_the_proxy_and_worth_its_gold() -> None:
    # The proxy likes the second sample of the first prompt and the first of the second one.
    new = Scored(_answers("new", proxy=[1.0, 2.0, 5.0, 0.0]), [0.9, 0.1, 0.3, 0.7])

    row = _measured(new, Scored(_answers("old", proxy=[0.0] * 4), [0.0] * 4))

    assert row.best_of == {1: pytest.approx(0.5), 2: pytest.approx((0.1 + 0.3) / 2)}


def test_without_gold_the_best_of_n_is_worth_its_proxy() -> None:
    row = _measured(
        Scored(_answers("new", proxy=[1.0, 2.0, 5.0, 0.0]), None),
        Scored(_answers("old", proxy=[0.0] * 4), None),
    )

    assert row.best_of == {1: 2.0, 2: 3.5}


def test_metrics_bear_the_name_of_the_model_and_perplexity_is_the_exponential_of_the_loss() -> None:
    row = _measured(Scored(_answers("new"), None), Scored(_answers("old"), None))

    assert row.metrics()["length/new"] == 3.0
    assert "perplexity/new" not in row.metrics()
    assert math.isclose(row.metrics()["distinct_2/new"], 2 / 8)


def test_the_samples_file_shows_the_first_response_to_each_prompt_with_its_own_scores(tmp_path) -> None:
    scored = Scored(_answers("new", proxy=[1.0, 2.0, 3.0, 4.0]), [0.1, 0.2, 0.3, 0.4])

    path = write_samples(tmp_path / "samples", TASK, [scored], config=CONFIG)

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["by"]["new"]["text"] for line in lines] == ["new 0", "new 2"]
    assert [line["by"]["new"]["scores"] for line in lines] == [
        {"gold": 0.1, "proxy": 1.0},
        {"gold": 0.3, "proxy": 3.0},
    ]


def test_the_samples_of_a_prompt_stand_together(tmp_path, tiny_base) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("one", "two", "three")])
    inputs = {
        "base": tiny_base,
        "prompts": as_checkpoint(prompts, ArtifactKind.PROMPTS),
        "sft": adapter(tmp_path / "sft", tiny_base, seed=1),
    }
    config = EvaluateConfig(temperature=0, samples_per_prompt=2, max_new_tokens=6, max_length=200)

    _, given = collect(stage_context(tmp_path, config, inputs))

    # The likeliest answer to a prompt is the same each time it is asked for, and prompts differ.
    for answers in given:
        assert answers.responses[0::2] == answers.responses[1::2]
        assert len({tuple(response) for response in answers.responses}) > 1


class _Stubborn:
    """A reader with a text of its own and log-probabilities that are written down by response."""

    def __init__(self, likely: dict[str, float]) -> None:
        self.chat = ChatText(tiny_tokenizer())
        self._likely = likely
        self.asked: list[list[int]] = []

    def logps(self, prompts, responses, *, temperature):
        assert temperature == 1.0
        self.asked = list(responses)
        return [self._likely[self.chat.decode(response)] for response in responses]


def test_a_label_is_the_likeliest_whole_answer_its_stop_token_included() -> None:
    reader = _Stubborn({"yes": -3.0, "no": -2.0, "maybe": -2.0})

    found = likeliest_labels(reader, [LabelledText("is it?", "yes", 1)], ["yes", "no", "maybe"])

    assert found == ["no"]  # the first of equally likely ones
    stop = reader.chat.stop_token_ids[0]
    assert [response[-1] for response in reader.asked] == [stop] * 3
    assert len(reader.asked[0]) == len("yes") + 1
