"""Thresholds of the checks, each in one place."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.strict import StrictModel


class CheckSettings(StrictModel):
    """What counts as too much. A settings file may change single values."""

    max_reject_share: float = Field(0.01, ge=0, le=1)
    "Share of rows that may be set aside before the file fails."
    max_parse_error_share: float = Field(0.01, ge=0, le=1)
    "Share of rows that may be unreadable before the file fails."
    near_identical: float = Field(0.95, gt=0, le=1)
    "Share of words two responses may have in common."
    max_length: int | None = Field(None, ge=1)
    "Tokens that prompt and response may have together; needs a tokenizer."
    length_share: tuple[float, float] = (0.40, 0.60)
    "Share of pairs whose longer side is preferred, without a warning."
    length_share_fail: float = Field(0.75, gt=0, le=1)
    "Share of pairs whose longer side is preferred, from which the file fails."
    bias_p: float = Field(1e-3, gt=0, lt=1)
    "Largest p-value at which a deviation counts as a bias."
    position_deviation: float = Field(0.03, gt=0, lt=1)
    "Distance from one half of the first-shown share that counts as a bias."
    source_share: float = Field(0.95, gt=0, le=1)
    "Share of wins of one source that counts as a confound."
    source_min_pairs: int = Field(20, ge=1)
    "Pairs a source must stand in."
    tie_share: float = Field(0.40, gt=0, le=1)
    "Share of ties in all votes without a warning."
    robust_sd: float = Field(3.0, gt=0)
    "Robust standard deviations from the other annotators that count as odd."
    refusal_ratio: float = Field(2.0, gt=1)
    "Ratio of refusals on the two sides without a warning."
    contradiction_share: float = Field(0.05, gt=0, le=1)
    "Share of repeated pairs that may contradict themselves before the file fails."
    boilerplate_share: float = Field(0.01, gt=0, le=1)
    "Share of prompts that one response text may answer."
    boilerplate_min_prompts: int = Field(5, ge=2)
    "Prompts that one response text must answer to count at all."
    language_share: float = Field(0.05, gt=0, le=1)
    "Share of responses in another language than the prompt without a warning."
    min_votes: int = Field(15, ge=1)
    "Votes a person must have before being judged."
    min_overlap: int = Field(10, ge=1)
    "Items judged by others too that a person must have before agreement is judged."
    fast_reading: float = Field(0.25, gt=0)
    "Share of the expected reading time (8 words a second) below which a vote is too fast."
    slow_seconds: float = Field(1800.0, gt=0)
    "Seconds above which a vote's time is not counted."
    straightline_share: float = Field(0.90, gt=0, le=1)
    "Share of one answer, by place on the screen, that counts as straight-lining."
    straightline_p: float = Field(1e-4, gt=0, lt=1)
    "Largest p-value of the longest run of one answer."
    gold_accuracy: float = Field(0.8, gt=0, le=1)
    "Share of probe items that a person must get right."
    dominance: float = Field(0.25, gt=0, le=1)
    "Share of all votes that one person may give."
    pii_rejects: bool = False
    "Set rows with personal data aside, instead of flagging them."
    toxic_words: tuple[str, ...] = ()
    "Words that mark a text as toxic; empty switches the check off."
    num_examples: int = Field(5, ge=0)
    "Examples shown for each check."
    seed: int = 0
    "Seed of the bootstrap intervals."
