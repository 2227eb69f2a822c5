"""The published runs of Atlas as recipes: question answering, TempLAMA, MMLU, pretraining, FEVER, KILT.

Source: the example scripts and the appendix of Atlas (arXiv 2208.03299). `batch_size` is the published number of GPUs
times questions for each GPU. Where a script names no number of GPUs (MMLU 5-shot, one of 57 subjects) one of 8 GPUs is
taken; where none was published (FEVER, KILT) the settings of Natural Questions are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from components.download.config import DownloadConfig
from components.embed.config import EmbedConfig
from components.evaluate.config import EvaluateConfig
from components.report.config import ReportConfig
from components.train.config import TrainConfig
from pipelines.recipe import Recipe, Sources
from ralm.atlas.preset import MAX_TOKENS, QUESTION_FORMAT, with_atlas_preset
from ralm.model_config import ModelConfig
from ralm.reader.config import GenerationConfig
from ralm.tasks.config import TaskConfig

SIZES: Final = ("base", "large", "xl", "xxl")
CORPUS: Final = "atlas:corpora/wiki/enwiki-"
MODEL: Final = "atlas:models/atlas/"
NUM_SHARDS: Final = 64
LONG: Final = ("xl", "xxl")

COMMON: Final = TrainConfig(
    batch_size=64,
    micro_batch_size=1,
    num_passages=40,
    learning_rate=4e-5,
    retriever_learning_rate=4e-5,
    weight_decay=0.01,
    dropout=0.1,
    score_pass="eval",
    target_choice="random",
    gradient_checkpointing=True,
    checkpoint_every_steps=100,
)
MMLU: Final = dataclasses.replace(
    COMMON,
    num_passages=30,
    learning_rate=5e-5,
    retriever_learning_rate=1e-5,
    temperature_score=0.1,
    temperature_gold=0.1,
    task=TaskConfig(permutations="all"),
)


def model_settings(
    *, max_target_tokens: int = 16, max_tokens: int = MAX_TOKENS, question_format: str = QUESTION_FORMAT
) -> ModelConfig:
    """Atlas' formats and lengths with other lengths or another question where a run has them, for both halves."""
    preset = with_atlas_preset(ModelConfig())
    reader = dataclasses.replace(
        preset.reader,
        question_format=question_format,
        max_input_tokens=max_tokens,
        max_target_tokens=max_target_tokens,
    )
    retriever = dataclasses.replace(
        preset.retriever,
        question_format=question_format,
        max_question_tokens=max_tokens,
        max_passage_tokens=max_tokens,
    )
    return dataclasses.replace(preset, reader=reader, retriever=retriever)


def make(
    title: str,
    *,
    corpus: str,
    questions: str,
    train: TrainConfig,
    size: str = "base",
    download: DownloadConfig | None = None,
    evaluate: EvaluateConfig | None = None,
) -> Recipe:
    """A run from an official model of the given size."""
    evaluated = evaluate or EvaluateConfig()
    return Recipe(
        sources=Sources(passages=CORPUS + corpus, questions=questions, model=MODEL + size),
        num_shards=NUM_SHARDS,
        download=download or DownloadConfig(model=model_settings()),
        embed=EmbedConfig(),
        train=train,
        evaluate=dataclasses.replace(evaluated, num_passages=train.num_passages),
        report=ReportConfig(title=f"{title} ({size})"),
    )


def nq_64_shot(size: str) -> Recipe:
    """Natural Questions from 64 examples, the index kept: query-side."""
    train = dataclasses.replace(COMMON, num_steps=30, warmup_steps=5, split="train-64-shot")
    return make(
        "Natural Questions, 64-shot",
        corpus="dec2018",
        questions="dataset:nq-open",
        size=size,
        train=train,
        download=DownloadConfig(num_shots=64, model=model_settings()),
    )


def nq_full(size: str) -> Recipe:
    """Natural Questions from all examples, both encoders learning, the index refreshed."""
    train = dataclasses.replace(
        COMMON,
        mode="joint",
        num_steps=5000 if size in LONG else 10000,
        warmup_steps=100,
        schedule="cosine",
        refresh_schedule="0-1000:500,1000-10000:2000",
    )
    return make("Natural Questions", corpus="dec2018", questions="dataset:nq-open", size=size, train=train)


def templama() -> Recipe:
    """Facts as of 2017, asked as cloze; give `passages=atlas:corpora/wiki/enwiki-dec2020` to swap the corpus."""
    train = dataclasses.replace(COMMON, num_passages=20, num_steps=100, warmup_steps=20, split="train-2017")
    return make(
        "TempLAMA",
        corpus="dec2017",
        questions="dataset:templama",
        train=train,
        download=DownloadConfig(model=model_settings(question_format="{question}")),
        evaluate=EvaluateConfig(split="test-2017", max_input_tokens=384),
    )


def mmlu(title: str, questions: str, **changes: Any) -> Recipe:
    """Multiple choice, evaluated over the rotations of the options; with no updates the model is taken as it is."""
    return make(
        f"MMLU, {title}",
        corpus="dec2021",
        questions=questions,
        train=dataclasses.replace(MMLU, evaluate_permutations="cyclic", **changes),
        evaluate=EvaluateConfig(task=TaskConfig(permutations="cyclic")),
    )


def pretrain(task: str) -> Recipe:
    """Retriever and reader together on the corpus itself, from a language model and Contriever."""
    train = dataclasses.replace(
        COMMON,
        mode="joint",
        batch_size=128,
        num_steps=10000,
        max_questions=10000 * 128,  # as many as are used; the table holds the whole corpus, shuffled
        warmup_steps=1000,
        num_passages=20,
        num_reranked=100,
        refresh_schedule="1000",
        learning_rate=1e-4,
        retriever_learning_rate=1e-5,
        task=TaskConfig(min_words=10, lm_min_context_ratio=0.25, lm_max_context_ratio=0.75),
    )
    return Recipe(
        sources=Sources(
            passages=CORPUS + "dec2021",
            questions=f"corpus:{task}",
            retriever="hf://facebook/contriever",
            reader="hf://google/t5-base-lm-adapt",
        ),
        num_shards=NUM_SHARDS,
        download=DownloadConfig(model=model_settings(max_target_tokens=64, max_tokens=384)),
        train=train,
        evaluate=EvaluateConfig(num_passages=train.num_passages, task=train.task),
        report=ReportConfig(title=f"Pretraining, {task} (base)"),
    )


def fever(split: str, num_steps: int) -> Recipe:
    """Claims that are supported, refuted or neither."""
    is_few = split != "train"
    return make(
        "FEVER" + (", 64-shot" if is_few else ""),
        corpus="dec2018",
        questions="dataset:fever",
        train=dataclasses.replace(
            COMMON, num_steps=num_steps, warmup_steps=5 if is_few else 100, split=split, num_passages=20
        ),
        download=DownloadConfig(num_shots=64 if is_few else 0, model=model_settings()),
        evaluate=EvaluateConfig(split="dev"),
    )


def kilt(task: str) -> Recipe:
    """One task of KILT; long answers (eli5, wow) are written up to 128 tokens."""
    is_long = task in ("eli5", "wow")
    return make(
        f"KILT, {task}",
        corpus="aug2019",
        questions=f"dataset:kilt/{task}",
        train=dataclasses.replace(COMMON, num_steps=5000, warmup_steps=100, num_passages=20, schedule="cosine"),
        download=DownloadConfig(model=model_settings(max_target_tokens=128 if is_long else 32)),
        evaluate=EvaluateConfig(split="dev", generation=GenerationConfig()),
    )


KILT_TASKS: Final = ("nq", "hotpotqa", "fever", "triviaqa", "trex", "zsre", "wow", "eli5", "aidayago2")
ATLAS_RECIPES: Final[dict[str, Callable[[], Recipe]]] = {
    **{f"atlas-nq-64-shot-{size}": partial(nq_64_shot, size) for size in SIZES},
    **{f"atlas-nq-full-{size}": partial(nq_full, size) for size in SIZES},
    "atlas-templama": templama,
    "atlas-mmlu-zero-shot": partial(mmlu, "zero-shot", "dataset:mmlu/zero-shot", num_steps=0, split="dev"),
    "atlas-mmlu-5-shot": partial(
        mmlu, "5-shot, one subject", "dataset:mmlu/5-shot/anatomy", num_steps=16, warmup_steps=4, batch_size=8
    ),
    "atlas-mmlu-5-shot-multi": partial(
        mmlu,
        "5-shot, all subjects",
        "dataset:mmlu/5-shot-multi",
        num_steps=250,
        warmup_steps=25,
        evaluate_every_steps=16,
    ),
    "atlas-mmlu-full": partial(
        mmlu, "full", "dataset:mmlu/full", num_steps=2000, warmup_steps=50, evaluate_every_steps=150
    ),
    **{f"atlas-pretrain-{task}": partial(pretrain, task) for task in ("mlm", "lm")},
    "atlas-fever-64-shot": partial(fever, "train-64-shot", 30),
    "atlas-fever": partial(fever, "train", 5000),
    **{f"atlas-kilt-{task}": partial(kilt, task) for task in KILT_TASKS},
}
