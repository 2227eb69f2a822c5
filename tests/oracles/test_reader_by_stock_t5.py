"""Logits and answers against stock T5s of every kind, and against step-by-step decoding without any cache."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ralm.objectives.reader_loss import reader_loss
from ralm.reader.config import GenerationConfig, ReaderConfig
from ralm.reader.fusion import FusionReader
from ralm.reader.generate import Reading, generate_answers

QUESTIONS = ["who built the castle", "where was the red queen ?", "where was the king"]
TEXTS = [
    ["the castle was built by the old king in the sea .", "the queen .", "a river of the sea . " * 4],
    ["the sea was old . the river was red .", "king"],
    [],
]
PASSAGES = [[SimpleNamespace(title="castle", section="", text=text) for text in texts] for texts in TEXTS]
TARGETS = ["the old king", "in the castle of the red queen", "sea"]


def states_of(pair: Any, question: int) -> torch.Tensor:
    """All passages of a question, each encoded alone by the stock encoder, side by side."""
    asked = f"question: {QUESTIONS[question]}"
    texts = [f"{asked} title: castle context: {text}" for text in TEXTS[question]] or [asked]
    ids = [torch.tensor([pair.reader.tokenizer(text)["input_ids"]]) for text in texts]
    return torch.cat([pair.stock.encoder(input_ids=row).last_hidden_state[0] for row in ids])[None]


@torch.no_grad()
def test_fusion_logits_equal_the_stock_decoder(pair: Any) -> None:
    encoded = pair.reader.encode(pair.reader.tokenize_inputs(QUESTIONS, PASSAGES))
    found = pair.reader.fusion_logits(encoded, pair.reader.tokenize_targets(TARGETS))
    for question, target in enumerate(TARGETS):
        labels = torch.tensor([pair.reader.tokenizer(target)["input_ids"]])
        states = states_of(pair, question)
        expected = pair.stock(encoder_outputs=BaseModelOutput(last_hidden_state=states), labels=labels).logits[0]
        torch.testing.assert_close(found[question, : labels.shape[1]], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_input_is_the_stock_model_from_token_ids_on(pair: Any) -> None:
    """With K = 1 nothing of Fusion-in-Decoder is left; a tied head has its scale of `d_model ** -0.5` only if tied."""
    text = "question: where was the king"
    labels = torch.tensor([pair.reader.tokenizer("the old castle")["input_ids"]])
    expected = pair.stock(input_ids=torch.tensor([pair.reader.tokenizer(text)["input_ids"]]), labels=labels)
    label_BT = pair.reader.tokenize_targets(["the old castle"])
    found = pair.reader.fusion_logits(
        pair.reader.encode(pair.reader.tokenize_inputs(["where was the king"], [[]])), label_BT
    )
    torch.testing.assert_close(found, expected.logits, atol=1e-5, rtol=0)
    assert reader_loss(found, label_BT).item() == pytest.approx(expected.loss.item(), abs=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_to_one_input_equal_stock_generation(pair: Any, num_beams: int) -> None:
    (found,) = generate_answers(
        pair.reader,
        ["where was the king"],
        [[]],
        generation=GenerationConfig(num_beams=num_beams, num_candidates=num_beams, max_tokens=6),
    )
    ids = torch.tensor([pair.reader.tokenizer("question: where was the king")["input_ids"]])
    written = pair.stock.generate(
        input_ids=ids,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=6,
        do_sample=False,
        use_cache=False,
    )
    expected = [text.strip() for text in pair.reader.tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert [candidate.text for candidate in found.candidates] == expected


def search(
    pair: Any, states: torch.Tensor, start: list[int], *, beams: int, limit: int, least: int, penalty: float
) -> Any:
    """Beam search by the book: every prefix is decoded from its first token on, no cache, no batch.

    Returns:
        (tokens, log-probability) of the finished answers, the best first.
    """
    running: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[float, list[int], float]] = []
    for step in range(limit):
        grown = []
        for tokens, total in running:
            ids = torch.tensor([[0, *start, *tokens]])
            logits = pair.stock(encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=ids).logits
            for token, score in enumerate(torch.log_softmax(logits[0, -1], -1).tolist()):
                if token != 1 or step >= least:
                    grown.append(([*tokens, token], total + score))
        grown.sort(key=lambda item: -item[1])
        done = [item for item in grown[:beams] if item[0][-1] == 1 or step == limit - 1]
        finished += [(total / len(tokens) ** penalty, tokens, total) for tokens, total in done]
        finished = sorted(finished, key=lambda item: -item[0])[:beams]
        running = [item for item in grown if item[0][-1] != 1][:beams]
        if len(finished) == beams and running[0][1] / (step + 1) ** penalty <= finished[-1][0]:
            break  # the library's own rule of when nothing better is to be expected
    return [(tokens, total) for _, tokens, total in finished]


def text_of(pair: Any, tokens: list[int]) -> str:
    return pair.reader.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def check(pair: Any, found: list[Reading], generation: GenerationConfig, starts: list[list[int]]) -> None:
    for question, reading in enumerate(found):
        with torch.no_grad():
            expected = search(
                pair,
                states_of(pair, question),
                starts[question],
                beams=generation.num_beams,
                limit=int(generation.max_tokens),
                least=generation.min_tokens,
                penalty=generation.length_penalty,
            )[: generation.num_candidates]
        assert [candidate.text for candidate in reading.candidates] == [text_of(pair, tokens) for tokens, _ in expected]
        totals = [candidate.log_probability for candidate in reading.candidates]
        assert totals == pytest.approx([total for _, total in expected], abs=1e-4)


SEARCHES = [
    GenerationConfig(max_tokens=7),
    GenerationConfig(num_beams=3, num_candidates=3, max_tokens=5),
    GenerationConfig(num_beams=2, length_penalty=3.0, max_tokens=6),
    GenerationConfig(num_beams=2, num_candidates=2, min_tokens=4, max_tokens=6),
    GenerationConfig(min_tokens=5, max_tokens=6),
]


@pytest.mark.parametrize("generation", SEARCHES, ids=str)
def test_answers_equal_decoding_step_by_step(pair: Any, generation: GenerationConfig) -> None:
    found = list(generate_answers(pair.reader, QUESTIONS, PASSAGES, generation=generation, batch_size=3))
    check(pair, found, generation, [[], [], []])


@pytest.mark.parametrize("generation", SEARCHES[:4], ids=str)
def test_answers_behind_a_decoder_prompt_equal_decoding_step_by_step(pair: Any, generation: GenerationConfig) -> None:
    """Prompts of different lengths in one batch: forced, not counted, not in the text."""
    prompt = ReaderConfig(target_prompt_format="{question} answer :")
    reader = FusionReader(pair.reader.model, pair.reader.tokenizer, prompt, folder=Path())
    starts = [reader.tokenizer(f"question: {text} answer :")["input_ids"][:-1] for text in QUESTIONS]
    assert len({len(start) for start in starts}) > 1
    found = list(generate_answers(reader, QUESTIONS, PASSAGES, generation=generation, batch_size=3))
    check(pair, found, generation, starts)


def test_loss_and_options_behind_a_decoder_prompt(pair: Any) -> None:
    prompt = ReaderConfig(target_prompt_format="{question} answer :", target_format="<extra_id_0> {target}")
    reader = FusionReader(pair.reader.model, pair.reader.tokenizer, prompt, folder=Path())
    options = [["king", "queen", "castle"], [], ["river"]]
    found = list(generate_answers(reader, QUESTIONS, PASSAGES, options=options, targets=[TARGETS[0], None, TARGETS[2]]))
    assert (found[1].option_logits, found[1].target_loss, found[1].target_tokens) == (None, None, None)
    for question in (0, 2):
        start = reader.tokenizer(f"question: {QUESTIONS[question]} answer :")["input_ids"][:-1]
        target = reader.tokenizer(f"<extra_id_0> {TARGETS[question]}")["input_ids"]
        states = BaseModelOutput(last_hidden_state=states_of(pair, question))
        with torch.no_grad():
            logits = pair.stock(encoder_outputs=states, decoder_input_ids=torch.tensor([[0, *start, *target]])).logits[
                0
            ]
        scores = torch.log_softmax(logits[len(start) :], -1)
        losses = [-float(scores[place, token]) for place, token in enumerate(target)]
        assert found[question].target_tokens == len(target)
        assert found[question].target_loss == pytest.approx(math.fsum(losses) / len(target), abs=1e-5)
        tokens = [reader.tokenizer(option)["input_ids"][0] for option in options[question]]
        expected = [float(logits[len(start) + 1, token]) for token in tokens]  # position 1, behind the sentinel
        assert found[question].option_logits == pytest.approx(expected, abs=1e-5)


def test_keys_and_values_of_passages_are_computed_once_for_an_answer(pair: Any) -> None:
    """By a search with beams; greedy answers are written without any (`tests/ralm/reader/test_greedy.py`)."""
    calls: list[str] = []
    for name, module in pair.reader.model.decoder.named_modules():
        if name.endswith(("EncDecAttention.k", "EncDecAttention.v", "EncDecAttention.q")):
            module.register_forward_hook(lambda module, inputs, output, name=name: calls.append(name))
    generation = GenerationConfig(num_beams=3, min_tokens=4, max_tokens=6)
    list(generate_answers(pair.reader, QUESTIONS, PASSAGES, generation=generation))
    for module in pair.reader.model.decoder.modules():
        module._forward_hooks.clear()
    layers = len(pair.reader.model.decoder.block)
    assert sum(name.endswith((".k", ".v")) for name in calls) == 2 * layers
    assert sum(name.endswith(".q") for name in calls) >= 5 * layers


def test_heads_stay_tied_or_apart_through_training_and_files(pair: Any, tmp_path: Path) -> None:
    model, is_tied = pair.reader.model, pair.is_tied
    before = {name: value.clone() for name, value in model.state_dict().items()}
    label_BT = pair.reader.tokenize_targets(TARGETS)
    encoded = pair.reader.encode(pair.reader.tokenize_inputs(QUESTIONS, PASSAGES))
    reader_loss(pair.reader.fusion_logits(encoded, label_BT), label_BT).backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.zero_grad(set_to_none=True)
    folder = tmp_path / "reader"
    folder.mkdir()
    pair.reader.save(folder)
    (folder / "tokenizer.json").write_bytes((pair.reader._folder / "tokenizer.json").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] == config["scale_decoder_outputs"] == is_tied  # for older transformers
    again = FusionReader.load(folder, ReaderConfig(), device=torch.device("cpu")).model
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert (again.lm_head.weight is again.shared.weight) == is_tied
    assert not torch.equal(again.lm_head.weight, before["lm_head.weight"])  # it was trained
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (not is_tied)  # noqa: SIM118 (no mapping)
    stock = T5ForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        states = BaseModelOutput(last_hidden_state=torch.randn(1, 4, model.config.d_model))
        logits = [each(encoder_outputs=states, labels=label_BT[:1, :2]).logits for each in (stock, again)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
    model.load_state_dict(before)
