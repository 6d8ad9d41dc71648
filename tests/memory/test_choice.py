"""Which base, which card: published counts, the order of choices, prices from a file of one's own."""

from __future__ import annotations

import json

import pytest

from pipeline.cli.main import main
from pipeline.errors import ConfigError, ModelError
from pipeline.memory.bases import find_shape, known_bases, weights
from pipeline.memory.choice import STAGES, TUNINGS, largest_base, smallest_cards, workload
from pipeline.memory.cost import cost_of
from pipeline.memory.estimate import estimate
from pipeline.memory.hardware import Card, find_card
from pipeline.memory.hardware_file import read_hardware
from tests.memory.shapes import LLAMA_8B


@pytest.mark.parametrize("base", known_bases(), ids=lambda base: base.name)
def test_a_known_shape_has_its_published_number_of_parameters(base):
    assert base.shape.num_parameters == base.parameters
    assert base.source.startswith("https://huggingface.co/")


def test_the_smallest_card_holds_the_stage_and_no_smaller_one_does():
    hardware, shape = read_hardware(), find_shape("Qwen/Qwen2.5-7B")

    for one in smallest_cards(shape, hardware, batch=2, max_length=1024):
        work = workload(one.stage, one.tuning, batch=2, max_length=1024)
        assert one.needs_bytes == estimate(work, shape).total.expected
        assert one.card is not None
        assert one.card.memory_bytes >= one.needs_bytes
        smaller = [card for card in hardware.cards if card.memory_mib < one.card.memory_mib]
        assert all(card.memory_bytes < one.needs_bytes for card in smaller)


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_larger_card_never_holds_a_smaller_base(stage, tuning):
    bases, before = known_bases(), 0
    for gib in (8, 16, 24, 48, 80):
        base = largest_base(bases, gib * 2**30, stage=stage, tuning=tuning, batch=1, max_length=1024)
        size = base.parameters if base else 0
        assert size >= before
        before = size


def test_hours_follow_from_operations_and_utilisation():
    # SFT of one row of 1,024 tokens, recomputed: forward, recomputed forward and backward are 3 times
    # 2 (weights * tokens + layers * tokens * row * width + tokens * vocabulary * hidden) operations.
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    forward = 2 * (weights * 1024 + 32 * 1024 * 1024 * 4096 + 1024 * 128256 * 4096)
    card = Card(name="made up", memory_mib=81920, bf16_tflops=100, bandwidth_gbs=1000, price_usd=2.0)

    cost = cost_of(
        workload("sft", "lora", batch=1, max_length=1024), find_shape("Llama-3.1-8B"), card, utilisation=0.5
    )

    assert cost.hours == pytest.approx(1000 * 3 * forward / (100e12 * 0.5) / 3600)
    assert cost.usd == pytest.approx(2 * cost.hours)


def test_cards_are_found_by_name_however_it_is_written_or_by_size():
    hardware = read_hardware()

    assert find_card("rtx4090", hardware).memory_bytes == 24564 * 2**20
    assert find_card("A100-80GB", hardware).memory_bytes == 81920 * 2**20
    assert find_card("48GiB", hardware).memory_bytes == 48 * 2**30
    with pytest.raises(ConfigError, match="no card 'RTX 4900'") as caught:
        find_card("RTX 4900", hardware)
    assert "RTX 4090" in caught.value.findings[0].hint


def test_a_base_is_found_as_a_folder_a_file_or_a_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))

    expected = find_shape("meta-llama/Llama-3.1-8B")
    assert find_shape(str(tmp_path)).num_parameters == expected.num_parameters
    assert find_shape(str(tmp_path / "config.json")).num_parameters == expected.num_parameters
    with pytest.raises(ModelError, match="no folder") as caught:
        find_shape("Llama-3.1-8C")
    assert "Llama-3.1-8B" in caught.value.findings[0].hint


@pytest.mark.parametrize("words", [["gpus"], ["gpus", "24GiB"], ["models"], ["models", "Qwen2.5-0.5B"]])
def test_the_commands_print_a_table(words, capsys):
    assert main(words) == 0

    assert "Qwen" in capsys.readouterr().out or words == ["gpus"]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (134_515_008, "135 million"),
        (999_499_999, "999 million"),
        (999_500_000, "1.00 billion"),
        (8_030_261_248, "8.03 billion"),
        (9_995_000_000, "10.0 billion"),
        (32_763_876_352, "32.8 billion"),
        (671_000_000_000, "671 billion"),
        (1_234_567, "1.23 million"),
        (26_400, "26.4 thousand"),
        (999, "999"),
    ],
)
def test_weights_are_shown_in_three_significant_figures(count, shown):
    assert weights(count) == shown


def test_a_small_base_is_shown_in_millions(capsys):
    assert main(["models"]) == 0
    assert "135 million" in capsys.readouterr().out

    assert main(["models", "SmolLM2-135M"]) == 0
    assert "SmolLM2-135M: 135 million weights" in capsys.readouterr().out
