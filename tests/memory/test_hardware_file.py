"""A person's own cards over the shipped ones, and every mistake of the file with its line and key."""

from __future__ import annotations

import pytest

from pipeline.cli.main import main
from pipeline.errors import ConfigError
from pipeline.memory.bases import find_shape
from pipeline.memory.choice import smallest_cards
from pipeline.memory.hardware import SHIPPED, find_card
from pipeline.memory.hardware_file import read_hardware
from tests.memory.shapes import LLAMA_8B, config_only

OURS = """prices: {offer: our cluster, date: 2026-01-01, source: the invoice}
utilisation: 0.4
cards:
  - {name: Ours, memory_mib: 65536, bf16_tflops: 300, bandwidth_gbs: 2000, price_usd: 0.5}
  - {name: rtx-4090, price_usd: 0.1}
"""


@pytest.fixture
def own(tmp_path):
    """Write a hardware file and return its path."""

    def write(text):
        file = tmp_path / "cards.yaml"
        file.write_text(text)
        return file

    return write


def test_a_file_adds_cards_and_changes_shipped_ones(own):
    hardware = read_hardware(own(OURS))

    cards = {card.name: card for card in hardware.cards}
    assert cards["Ours"].memory_bytes == 64 * 2**30
    # Named anew, priced anew; its size is the shipped one.
    assert cards["rtx-4090"].memory_mib == 24564
    assert cards["rtx-4090"].price_usd == 0.1
    assert "RTX 4090" not in cards
    assert len(cards) == len(read_hardware().cards) + 1
    assert hardware.utilisation == 0.4


def test_prices_of_two_offers_are_never_mixed(own):
    assert any(card.price_usd for card in read_hardware().cards)

    hardware = read_hardware(own(OURS))

    assert hardware.prices.offer == "our cluster"
    assert hardware.prices.date == "2026-01-01"
    assert [card.name for card in hardware.cards if card.price_usd is not None] == ["rtx-4090", "Ours"]


def test_the_shipped_cards_can_be_left_out(own):
    hardware = read_hardware(own("shipped: false\ncards: [{name: Ours, memory_mib: 65536}]\n"))

    assert [card.name for card in hardware.cards] == ["Ours"]
    assert hardware.prices == read_hardware().prices


def test_a_card_without_a_speed_is_chosen_and_gives_no_hours(own):
    hardware = read_hardware(own("shipped: false\ncards: [{name: Ours, memory_mib: 65536}]\n"))

    found = smallest_cards(find_shape("Qwen2.5-0.5B"), hardware, batch=1, max_length=512)

    assert {one.card.name for one in found} == {"Ours"}
    assert {one.cost for one in found} == {None}


def test_every_command_takes_the_file(own, tmp_path, capsys):
    file = own(OURS)

    assert main(["gpus", "--hardware", str(file)]) == 0
    assert "our cluster, 2026-01-01" in capsys.readouterr().out
    assert main(["gpus", "ours", "--hardware", str(file)]) == 0
    assert "largest known base on Ours, 64.0 GiB" in capsys.readouterr().out
    assert main(["models", "Llama-3.1-70B", "--hardware", str(file)]) == 0
    assert "Ours" in capsys.readouterr().out

    config_only(tmp_path / "base", LLAMA_8B)
    run = tmp_path / "run.yaml"
    run.write_text(
        "name: one\nmodel: {base: base}\ntuning: {method: qlora}\n"
        "stages:\n  sample: {kind: sample, inputs: {prompts: prompts.jsonl}, generation_batch_size: 4}\n"
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    words = ["plan", str(run), "--store", str(tmp_path / "store"), "--gpu", "Ours"]
    assert main([*words, "--hardware", str(file)]) == 0
    assert "memory on Ours, 64.0 GiB" in capsys.readouterr().out
    assert main(words) == 2
    assert "no card 'Ours' is known" in capsys.readouterr().err


WRONG = {
    "a wrong key": (
        "cards:\n  - name: Ours\n    memory_mib: 1000\n    bandwith_gbs: 3\n",
        ":4: ",
        "bandwith_gbs",
        "bandwidth_gbs",
    ),
    "a wrong value": ("cards:\n  - {name: Ours, memory_mib: -3}\n", ":2: ", "memory_mib", ""),
    "text for a number": ("cards:\n  - name: Ours\n    memory_mib: 24GiB\n", ":3: ", "memory_mib", ""),
    "true for a number": ("cards:\n  - name: Ours\n    memory_mib: true\n", ":3: ", "memory_mib", ""),
    "too much": ("utilisation: 2\n", ":1: ", "utilisation", ""),
    "no name": ("cards:\n  - {memory_mib: 24000}\n", ":2: ", "name", ""),
    "no size": ("cards:\n  - name: Ours\n", ":2: ", "needs memory_mib", "nvidia-smi"),
    "a price of nobody": (
        "cards:\n  - {name: RTX 4090, price_usd: 1}\n",
        ":1: ",
        "nothing says whose",
        "prices: {offer",
    ),
    "a name twice": (
        "cards:\n  - {name: A, memory_mib: 1}\n  - {name: a, memory_mib: 2}\n",
        ":3: ",
        "a second time",
        "",
    ),
    "a key twice": ("utilisation: 0.3\nutilisation: 0.4\n", ":2: ", "utilisation", ""),
    "no card at all": ("shipped: false\n", ":1: ", "holds no card", ""),
    "no mapping": ("- a\n", ":1: ", "mapping", "hardware.yaml"),
    "no YAML": ("cards: [\n", ":2: ", "not YAML", "hardware.yaml"),
    "nothing": ("", "cards.yaml: ", "empty", "hardware.yaml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_message_with_line_and_key(name, own):
    text, place, said, hint = WRONG[name]

    with pytest.raises(ConfigError) as caught:
        read_hardware(own(text))

    (finding,) = caught.value.findings
    assert place in f"{finding.where}: "
    assert said in finding.message
    assert hint in finding.hint


def test_all_mistakes_are_said_at_once(own):
    with pytest.raises(ConfigError) as caught:
        read_hardware(own("utilisation: 2\ncards:\n  - {name: A, memory_mib: 0}\n  - {memory_mib: 9}\n"))

    assert len(caught.value.findings) == 3


def test_a_missing_file_is_said_as_such(tmp_path):
    (tmp_path / "cards.yaml").write_text("utilisation: 0.3\n")

    with pytest.raises(ConfigError, match="there is no file") as caught:
        read_hardware(tmp_path / "card.yaml")

    assert caught.value.findings[0].hint.endswith("cards.yaml")


def test_the_shipped_file_holds_no_key_of_its_own():
    hardware = read_hardware()

    assert len({card.name for card in hardware.cards}) == len(hardware.cards)
    assert all(card.bf16_tflops and card.bandwidth_gbs for card in hardware.cards)
    assert find_card("H100 SXM", hardware).memory_bytes == 81559 * 2**20


# Tensor cores, boost clock (GHz) and operations a core and clock with float32 sums: 256 on professional cards
# of Ampere and Ada, 128 on GeForce, 512 on A100.
CORES = {
    "RTX 3060 12GB": (112, 1.777, 128),
    "RTX 4060 Ti 16GB": (136, 2.535, 128),
    "RTX 4080": (304, 2.505, 128),
    "A10": (288, 1.695, 256),
    "RTX 3090": (328, 1.695, 128),
    "RTX 4090": (512, 2.52, 128),
    "RTX 5090": (680, 2.407, 128),
    "A100 40GB": (432, 1.41, 512),
    "L40S": (568, 2.49, 256),
    "RTX A6000": (336, 1.8, 256),
}


@pytest.mark.parametrize("name", CORES)
def test_the_speed_of_a_card_follows_from_its_cores_and_clock(name):
    cores, clock, operations = CORES[name]
    card = next(card for card in read_hardware().cards if card.name == name)

    assert card.bf16_tflops == pytest.approx(cores * clock * operations / 1000, rel=0.01)


def test_every_shipped_card_has_its_source_above_it():
    lines = SHIPPED.read_text().splitlines()

    for number, line in enumerate(lines):
        if line.lstrip().startswith("- {name:"):
            assert lines[number - 1].lstrip().startswith("#"), line
