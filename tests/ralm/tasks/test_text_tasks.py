"""mlm, lm and section: what is masked, cut and skipped."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ralm.errors import ConfigError, DataError
from ralm.tasks.base import Asked, Question, Tools
from ralm.tasks.catalog import TASKS, usable_questions
from ralm.tasks.config import TaskConfig
from ralm.tasks.lm import split_text
from ralm.tasks.mlm import count_sentinels, mask_spans, random_parts, span_sizes
from ralm.training.examples import make_training_set
from tests.ralm.tasks.conftest import NUM_SENTINELS, WORDS, said


def row(task: str, text: str, **metadata: str) -> Question:
    return Question(question_id="q1", task=task, question=text, metadata=metadata)


def mask(tokenizer: PreTrainedTokenizerFast, text: str, seed: int = 0, **choices: float) -> Asked:
    tools = Tools(settings=TaskConfig(**choices), tokenizer=tokenizer, max_input_tokens=512)
    return TASKS["mlm"].ask(row("mlm", text), 0, tools, np.random.default_rng(seed))


@given(num_tokens=st.integers(0, 3000), density=st.floats(0.01, 0.99), mean=st.floats(1, 9), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_masking_loses_nothing(num_tokens: int, density: float, mean: float, seed: int) -> None:
    """Property: sentinels in order, no part but the first empty, and putting the spans back gives the text.

    Over 100 spans the published code fails with an index error, and texts of one token give it an empty span.
    """
    tokens = list(range(1000, 1000 + num_tokens))
    sentinels = list(range(100))
    sizes = span_sizes(num_tokens, density, mean, len(sentinels))
    kept, masked = mask_spans(tokens, *sizes, sentinels[: sizes[1]], np.random.default_rng(seed))
    assert [token for token in kept if token < 1000] == sentinels[: sizes[1]]
    assert [token for token in masked if token < 1000] == sentinels[: sizes[1]]
    spans: dict[int, list[int]] = {}
    for token in masked:
        if token < 1000:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    assert all(spans.values()) or num_tokens == 0
    restored = [piece for token in kept for piece in (spans[token] if token < 1000 else [token])]
    assert restored == tokens
    if num_tokens > 1:
        assert sizes[0] == max(round(num_tokens * density), 1)
        assert kept[0] >= 1000 or sizes[0] == num_tokens, "a kept part comes first"


def test_span_counts_are_those_of_t5() -> None:
    assert span_sizes(512, 0.15, 3, 100) == (77, 26)
    assert span_sizes(10, 0.15, 3, 100) == (2, 1)
    assert span_sizes(4000, 0.15, 3, 100) == (600, 100), "as many spans as sentinels, each of them longer"


def test_parts_are_drawn_evenly() -> None:
    generator = np.random.default_rng(0)
    found = [tuple(random_parts(4, 2, generator)) for _ in range(3000)]
    shares = [found.count(parts) / len(found) for parts in ((1, 3), (2, 2), (3, 1))]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_sentinels_stand_for_the_spans(word_tokenizer: PreTrainedTokenizerFast) -> None:
    asked = mask(word_tokenizer, WORDS, mlm_noise_density=0.4, mlm_mean_span_length=2)
    assert re.findall(r"<extra_id_\d>", asked.query) == [f"<extra_id_{n}>" for n in range(3)]
    assert re.findall(r"<extra_id_\d>", asked.targets[0]) == [f"<extra_id_{n}>" for n in range(3)]
    spans = re.split(r"<extra_id_\d>", asked.targets[0])[1:]
    restored = asked.query
    for number, span in enumerate(spans):
        restored = restored.replace(f"<extra_id_{number}>", span)
    assert restored == WORDS


def test_masks_are_scored_without_sentinels(word_tokenizer: PreTrainedTokenizerFast) -> None:
    """Defect 13: the gold text had sentinels and the prediction had none, so a right answer scored nearly nothing."""
    asked = mask(word_tokenizer, WORDS, mlm_noise_density=0.4, mlm_mean_span_length=2)
    learnt = word_tokenizer(asked.targets[0])["input_ids"]
    right = word_tokenizer.decode([0, *learnt], skip_special_tokens=True).strip()
    assert "<extra_id" not in asked.answers[0]
    scores = TASKS["mlm"].score(row("mlm", WORDS), [asked], [said(right)]).metrics
    assert scores == {name: pytest.approx(1.0) for name in ("accuracy", "f1", "rouge_1", "rouge_2", "rouge_l")}
    assert TASKS["mlm"].score(row("mlm", WORDS), [asked], [said("")]).metrics == dict.fromkeys(scores, 0.0)


def test_very_short_and_very_long_texts(word_tokenizer: PreTrainedTokenizerFast) -> None:
    assert mask(word_tokenizer, "king") == Asked(
        query="<extra_id_0>", targets=("<extra_id_0> king",), answers=("king",)
    )
    long = mask(word_tokenizer, " ".join([WORDS] * 40), mlm_noise_density=0.5, mlm_mean_span_length=1)
    assert long.query.count("<extra_id_") == NUM_SENTINELS


def test_a_reader_without_sentinels(tiny_sentinel_free: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="expected a reader whose tokenizer has <extra_id_0>"):
        count_sentinels(tiny_sentinel_free)


@pytest.fixture
def tiny_sentinel_free() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")))


def test_masks_depend_on_seed_and_update_alone(word_tokenizer: PreTrainedTokenizerFast) -> None:
    """Defect 19: Python's global generator, which nobody seeded, drew them."""
    choices = TaskConfig(mlm_noise_density=0.4)  # several spans: a single one always ends the text
    options = {"settings": choices, "max_input_tokens": 64, "target_choice": "first"}
    rows = [row("mlm", " ".join(WORDS.split()[n:])) for n in range(4)]
    sets = [make_training_set(rows, tokenizer=word_tokenizer, seed=seed, **options) for seed in (1, 1, 2)]
    assert sets[0].batch(5, 8) == sets[1].batch(5, 8)
    assert sets[0].batch(5, 8) != sets[2].batch(5, 8)
    assert len({example.target for step in range(9) for example in sets[0].batch(step, 4)}) > 4, "each pass differs"


@given(
    words=st.lists(st.text("ab ", min_size=1).filter(str.strip), min_size=2, max_size=30),
    gap=st.sampled_from([" ", "  ", "\n"]),
    ratios=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_a_text_is_cut_into_two_parts_with_words(words: list[str], gap: str, ratios: list[float], seed: int) -> None:
    """Property; the published code leaves nothing to write for short texts and large ratios."""
    text = gap.join(words)
    left, right = split_text(text, *ratios, np.random.default_rng(seed))
    assert left + right == text
    assert left.strip()
    assert right.strip()


def test_the_cut_lies_between_the_ratios() -> None:
    text = " ".join(str(n) for n in range(100))
    cuts = [len(split_text(text, 0.25, 0.75, np.random.default_rng(seed))[0].split()) for seed in range(400)]
    assert 24 <= min(cuts) <= 27
    assert 73 <= max(cuts) <= 76
    assert {len(split_text(text, 0.5, 0.5, np.random.default_rng(seed))[0].split()) for seed in range(40)} == {50}


def test_skipped_rows_are_counted() -> None:
    rows = [
        row("section", "It is a long text.", title="Emma", section="Plot"),
        row("section", "It is a long text.", title="Emma", section=""),
        row("section", "Short.", title="Emma", section="Plot"),
        row("section", "  ", title="Emma", section="Plot"),
    ]
    used, skipped = usable_questions(rows, TaskConfig(min_words=3))
    assert used == rows[:1]
    assert skipped == {"skipped_empty_text": 1, "skipped_short_text": 1, "skipped_without_section": 1}
    with pytest.raises(DataError, match="all 3 rows were skipped"):
        usable_questions(rows[1:], TaskConfig(min_words=3))
    assert usable_questions([row("lm", "one two"), row("lm", "one")], TaskConfig())[1] == {"skipped_short_text": 1}
    assert usable_questions([row("mlm", "one")], TaskConfig())[1] == {}


def test_a_section_without_its_page() -> None:
    with pytest.raises(DataError, match="'q1': metadata: expected a title"):
        usable_questions([row("section", "Text.", section="Plot")], TaskConfig())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"mlm_noise_density": 0.0}, "task.mlm_noise_density: expected between 0 and 1"),
        ({"mlm_mean_span_length": 0.5}, "task.mlm_mean_span_length: expected at least 1"),
        ({"lm_max_context_ratio": 0.2}, r"task.lm_max_context_ratio: expected lm_min_context_ratio \(0.5\) to 1"),
        ({"permutations": "some"}, "task.permutations: expected one of single, cyclic, all, found some"),
        ({"min_words": -1}, "task.min_words: expected at least 0, found -1"),
        ({"max_query_tokens": 0}, "task.max_query_tokens: expected at least 1"),
    ],
)
def test_settings_are_checked(choices: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskConfig(**choices)
