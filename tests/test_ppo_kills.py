"""A PPO stage that is killed goes on from its last whole checkpoint and ends bit-equal."""

from __future__ import annotations

import random
import time

import pytest

from tests.faults.ppo_kills import finish, kill_at_random, kill_in_save, outcome, start
from tests.ppo_setup import chain


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    began = time.monotonic()
    assert finish(start(root, inputs))
    return outcome(root), time.monotonic() - began


def test_a_stage_killed_at_random_moments_ends_bit_equal(inputs, undisturbed, tmp_path):
    expected, seconds = undisturbed

    starts = kill_at_random(tmp_path, inputs, random.Random(1), kills=3, longest=seconds / 2)

    assert starts > 1
    assert outcome(tmp_path) == expected
    assert {name.split("/")[1] for name in expected if "/" in name} == {"adapter", "value", "rollouts"}


@pytest.mark.parametrize("operation", [17, 24])
def test_a_stage_killed_while_it_saves_ends_bit_equal(inputs, undisturbed, tmp_path, operation):
    expected, _ = undisturbed

    assert kill_in_save(tmp_path, inputs, operation)

    assert outcome(tmp_path) == expected


@pytest.mark.slow
def test_twenty_random_kills_end_bit_equal(inputs, undisturbed, tmp_path):
    expected, seconds = undisturbed

    kill_at_random(tmp_path, inputs, random.Random(2), kills=20, longest=seconds / 2)

    assert outcome(tmp_path) == expected
