"""G1: answers from 20 passages, ours against `generate` of transformers over the same encoder states.

Both write greedily, with the same limit, from states that are there before; both end with texts. Ours starts from what
`FusionReader.encode` gives, as `ralm ask` does; transformers gets the states side by side with a mask, and keeps keys
and values. Both compute in the number format that `auto` gives, and the ratio that counts is the smaller one of one
question at a time and of eight. Answers are compared in fp32, where rounding does not decide between two words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from benchmarks import inputs
from benchmarks.gpu.passages import passage_table
from benchmarks.machine import interleaved, median, spread
from benchmarks.suite import Bench, Measured
from ralm.device import precision_name, resolve_dtype
from ralm.model import Model
from ralm.reader.config import GenerationConfig
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader
from ralm.reader.generate import generate_candidates

CPU = torch.device("cpu")
QUESTIONS = ("what is {} known for", "where is {}", "when was {} founded or born", "who wrote about {}")
MAX_TOKENS = 32


def measure(bench: Bench) -> Measured:
    """Measure one and eight questions at a time."""
    num_questions, num_passages = (4, 3) if bench.small else (8, 20)
    sizes = (1, num_questions)
    model = inputs.quickstart_model(bench)
    asked = questions_with_passages(bench, num_questions, num_passages)
    best = resolve_dtype("auto", CPU)
    figures: dict[str, float] = {}
    table = [
        "| number format | questions at a time | way | s for a question | least to most | ours / it |",
        "|---|---|---|---|---|---|",
    ]
    for dtype in dict.fromkeys((torch.float32, best)):
        ours, stock = Ours(model, dtype), Stock(model, dtype)
        name = precision_name(dtype)
        for size in sizes:
            batches = [ours.encode(asked[start : start + size]) for start in range(0, num_questions, size)]
            answers = {way: run(batches) for way, run in (("ours", ours.run), ("transformers", stock.run))}  # warm
            figures[f"same_answers_{name}_{size}"] = share_of_equal(*answers.values())
            if dtype != best:
                continue
            figures["tokens"] = sum(len(row) for row in stock.write(batches)) / num_questions
            ways: dict[str, Callable[[], object]] = {
                "ours": functools.partial(ours.run, batches),
                "transformers": functools.partial(stock.run, batches),
            }
            times = interleaved(ways, CPU, bench.repeats)
            figures[f"x_generate_{name}_{size}"] = median(times["transformers"]) / median(times["ours"])
            table += [
                f"| {name} | {size} | {way} | {median(spent) / num_questions:.4f} "
                f"| {spread([each / num_questions for each in spent])} | {median(spent) / median(times['ours']):.2f} |"
                for way, spent in times.items()
            ]
    figures["x_generate"] = min(figures[f"x_generate_{precision_name(best)}_{size}"] for size in sizes)
    figures["same_answers"] = min(figures[f"same_answers_fp32_{size}"] for size in sizes)
    return Measured(figures, table)


def questions_with_passages(
    bench: Bench, num_questions: int, num_passages: int
) -> list[tuple[str, list[SimpleNamespace]]]:
    """Questions about titles, each with its own passages."""
    table = passage_table(inputs.passages(bench), num_questions * num_passages)
    rows = [SimpleNamespace(**row) for row in table.select(["title", "section", "text"]).to_pylist()]
    found = []
    for number in range(num_questions):
        passages = rows[number * num_passages : (number + 1) * num_passages]
        found.append((QUESTIONS[number % len(QUESTIONS)].format(passages[0].title), passages))
    return found


def share_of_equal(one: Sequence[str], other: Sequence[str]) -> float:
    """Part of the answers that are the same."""
    return sum(first == second for first, second in zip(one, other, strict=True)) / len(one)


class Ours:
    """The project's reader."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        self._reader = FusionReader.load(model.reader_folder, model.reader, device=CPU, dtype=dtype)

    @torch.inference_mode()
    def encode(self, asked: Sequence[tuple[str, list[SimpleNamespace]]]) -> EncodedPassages:
        """The states that both ways begin with."""
        questions, passages = zip(*asked, strict=True)
        return self._reader.encode(self._reader.tokenize_inputs(questions, passages))

    def run(self, batches: Sequence[EncodedPassages]) -> list[str]:
        """The answers."""
        found: list[str] = []
        for encoded in batches:
            no_prompts: list[list[int]] = [[] for _ in encoded.mask]
            limit = GenerationConfig(max_tokens=MAX_TOKENS)
            found += [each[0].text for each in generate_candidates(self._reader, encoded, no_prompts, limit)]
        return found


class Stock:
    """transformers' reader, as it is."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        self._model: Any = T5ForConditionalGeneration.from_pretrained(
            model.reader_folder, dtype=dtype, local_files_only=True
        ).eval()
        self._tokenizer: Any = Ours(model, dtype)._reader.tokenizer

    @torch.inference_mode()
    def write(self, batches: Sequence[EncodedPassages]) -> list[list[int]]:
        """The tokens of each answer."""
        found: list[list[int]] = []
        for encoded in batches:
            written_BT = self._model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded.state.flatten(1, 2)),
                attention_mask=encoded.mask.flatten(1),
                do_sample=False,
                num_beams=1,
                use_cache=True,
                max_new_tokens=MAX_TOKENS,
            )
            found += [
                [token for token in row if token != self._model.config.pad_token_id] for row in written_BT.tolist()
            ]
        return found

    def run(self, batches: Sequence[EncodedPassages]) -> list[str]:
        """The answers."""
        texts: list[str] = self._tokenizer.batch_decode(self.write(batches), skip_special_tokens=True)
        return [text.strip() for text in texts]
