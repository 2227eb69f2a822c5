"""Every objective against an implementation that calls a stock T5 passage by passage and shares no code with ours."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from ralm.objectives.divergence import distillation_loss
from ralm.objectives.marginal import emdr2_loss, marginal_loss
from ralm.reader.scores import leave_one_out_signal, passage_likelihoods, perplexity_signal

QUESTIONS = ["who built the castle", "where was the red queen ?"]
TARGETS = ["the old king", "in the castle of the red queen"]
TEXTS = [
    ["the castle was built by the old king in the sea .", "the queen .", "a river of the sea . " * 4],
    ["the sea was old . the river was red .", "king", "in the castle of the king by the river " * 3],
]
PASSAGES = [[SimpleNamespace(title="castle", section="", text=text) for text in texts] for texts in TEXTS]
NUM_PASSAGES = 3


class BruteForce:
    """One question at a time, one passage at a time, no padding, from the tokenizer's output on."""

    def __init__(self, pair: Any) -> None:
        self.stock, self.tokenizer = pair.stock, pair.reader.tokenizer
        self.inputs = [
            [
                self.tokenizer(f"question: {question} title: castle context: {text}")["input_ids"]
                for text in TEXTS[number]
            ]
            for number, question in enumerate(QUESTIONS)
        ]
        self.targets = [self.tokenizer(target)["input_ids"] for target in TARGETS]

    def states(self, question: int, passages: list[int]) -> torch.Tensor:
        parts = [
            self.stock.encoder(input_ids=torch.tensor([self.inputs[question][k]])).last_hidden_state[0]
            for k in passages
        ]
        return torch.cat(parts)[None]

    def log_probabilities(self, question: int, passages: list[int]) -> list[float]:
        """Of each target token, given these passages."""
        labels = torch.tensor([self.targets[question]])
        output = self.stock(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.states(question, passages)), labels=labels
        )
        return [
            float(torch.log_softmax(row, -1)[token]) for row, token in zip(output.logits[0], labels[0], strict=True)
        ]

    def attention(self, question: int) -> dict[str, list[list[float]]]:
        """For each kind and passage, each token's attention: mean over heads, sum over layers and target tokens."""
        asked: list[torch.Tensor] = []
        hooks = [
            block.layer[1].EncDecAttention.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
            for block in self.stock.decoder.block
        ]
        states = self.states(question, list(range(NUM_PASSAGES)))
        output = self.stock(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            labels=torch.tensor([self.targets[question]]),
            output_attentions=True,
        )
        for hook in hooks:
            hook.remove()
        total = {kind: torch.zeros(states.shape[1]) for kind in ("scores", "probs", "norms")}
        for block, weight_1HTS, hidden_1TD in zip(
            self.stock.decoder.block, output.cross_attentions, asked, strict=True
        ):
            layer = block.layer[1].EncDecAttention
            num_heads, size = layer.n_heads, layer.key_value_proj_dim
            for head in range(num_heads):
                columns = slice(head * size, (head + 1) * size)
                query, key = layer.q(hidden_1TD)[0, :, columns], layer.k(states)[0, :, columns]
                length = (layer.v(states)[0, :, columns] ** 2).sum(-1).sqrt()
                for step in range(len(self.targets[question])):
                    total["scores"] += key @ query[step] / num_heads
                    total["probs"] += weight_1HTS[0, head, step] / num_heads
                    total["norms"] += weight_1HTS[0, head, step] * length / num_heads
        lengths = [len(tokens) for tokens in self.inputs[question]]
        return {kind: [part.tolist() for part in value.split(lengths)] for kind, value in total.items()}


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


def divergence(gold: list[list[float]], scores: list[list[float]], tau_gold: float, tau_score: float) -> float:
    total = 0.0
    for gold_K, score_K in zip(gold, scores, strict=True):
        wanted = softmax([value / tau_gold for value in gold_K])
        given = softmax([value / tau_score for value in score_K])
        total += sum(p * math.log(p / q) for p, q in zip(wanted, given, strict=True) if p > 0)
    return total / len(gold)


@pytest.fixture
def brute(pair: Any) -> BruteForce:
    return BruteForce(pair)


@pytest.fixture
def ours(pair: Any) -> Any:
    with torch.no_grad():
        encoded = pair.reader.encode(pair.reader.tokenize_inputs(QUESTIONS, PASSAGES))
    return SimpleNamespace(reader=pair.reader, encoded=encoded, label_BT=pair.reader.tokenize_targets(TARGETS))


@torch.no_grad()
def gold_scores(brute: BruteForce, objective: str) -> list[list[float]]:
    gold = []
    for question in range(2):
        row = []
        for k in range(NUM_PASSAGES):
            others = [other for other in range(NUM_PASSAGES) if other != k]
            if objective == "adist":
                layers, targets = len(brute.stock.decoder.block), len(brute.targets[question])
                row.append(sum(brute.attention(question)["norms"][k]) / (256 * layers * targets))
            else:
                sign, read = (1, [k]) if objective == "pdist" else (-1, others)
                values = brute.log_probabilities(question, read)
                row.append(sign * sum(values) / len(values))
        gold.append(row)
    return gold


SIGNALS = {
    "pdist": lambda ours: perplexity_signal(ours.reader, ours.encoded, ours.label_BT),
    "loop": lambda ours: leave_one_out_signal(ours.reader, ours.encoded, ours.label_BT),
    "adist": lambda ours: ours.reader.attention_scores(ours.encoded, ours.label_BT),
}


@pytest.mark.parametrize("objective", list(SIGNALS))
def test_scores_and_losses_equal_the_brute_force(brute: BruteForce, ours: Any, objective: str) -> None:
    expected = gold_scores(brute, objective)
    found = SIGNALS[objective](ours)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, torch.tensor(expected), atol=0, rtol=1e-4)
    assert (found.max(dim=1).values - found.min(dim=1).values).min() > 1e-4  # else nothing was compared
    score_BK = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.1]])
    loss = distillation_loss(score_BK, found, temperature_score=0.5, temperature_gold=0.1, reduction="batchmean")
    assert loss.item() == pytest.approx(divergence(expected, score_BK.tolist(), 0.1, 0.5), abs=1e-5)


@pytest.mark.parametrize("max_values", [1, 500, 10**9])
def test_scores_in_parts_equal_the_scores_at_once(ours: Any, max_values: int) -> None:
    for score in (perplexity_signal, leave_one_out_signal, passage_likelihoods):
        at_once = score(ours.reader, ours.encoded, ours.label_BT)
        in_parts = score(ours.reader, ours.encoded, ours.label_BT, max_values=max_values)
        torch.testing.assert_close(in_parts, at_once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@torch.no_grad()
def test_emdr2_equals_the_brute_force(brute: BruteForce, ours: Any, temperature: float) -> None:
    retriever = [softmax([0.3, -0.2, 0.1]), softmax([0.0, 0.4, -0.1])]
    by_sequence, by_token, num_tokens = 0.0, 0.0, 0
    for question, target in enumerate(brute.targets):
        likelihoods = []
        for k in range(NUM_PASSAGES):
            states, labels = brute.states(question, [k]), torch.tensor([target])
            logits = brute.stock(encoder_outputs=BaseModelOutput(last_hidden_state=states), labels=labels).logits[0]
            probabilities = torch.softmax(logits / temperature, -1)
            likelihoods.append([float(row[token]) for row, token in zip(probabilities, target, strict=True)])
        pairs = list(zip(likelihoods, retriever[question], strict=True))
        by_sequence -= math.log(sum(math.prod(row) * weight for row, weight in pairs)) / len(QUESTIONS)
        by_token -= sum(math.log(sum(row[t] * weight for row, weight in pairs)) for t in range(len(target)))
        num_tokens += len(target)
    log_retriever_BK = torch.tensor(retriever).log()
    logit_BKTV = ours.reader.passage_logits(ours.encoded, ours.label_BT)
    likelihood_BKT = passage_likelihoods(ours.reader, ours.encoded, ours.label_BT, temperature=temperature)
    for level, expected in (("sequence", by_sequence), ("token", by_token / num_tokens)):
        found = emdr2_loss(logit_BKTV, ours.label_BT, log_retriever_BK, level=level, temperature=temperature)
        assert found.item() == pytest.approx(expected, abs=1e-5)
        found = marginal_loss(likelihood_BKT, ours.label_BT, log_retriever_BK, level=level)
        assert found.item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_attention_statistics_equal_the_brute_force(brute: BruteForce, ours: Any) -> None:
    found = ours.reader.attention_statistics(ours.encoded, ours.label_BT, QUESTIONS)
    names = {f"{kind}_{way}" for kind in ("scores", "probs", "norms") for way in WAYS}
    assert set(found) == names
    for question in range(2):
        count = len(brute.stock.decoder.block) * len(brute.targets[question])
        num_question_tokens = len(brute.tokenizer(f"question: {QUESTIONS[question]}")["input_ids"]) - 1
        for kind, passages in brute.attention(question).items():
            for k, tokens in enumerate(passages):
                for way, summed in WAYS.items():
                    expected = summed(tokens, num_question_tokens) / count
                    value = found[f"{kind}_{way}"][question, k].item()
                    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5), (kind, way)


WAYS = {
    "sum": lambda tokens, asked: sum(tokens) / 256,
    "avg": lambda tokens, asked: sum(tokens) / len(tokens),
    "first": lambda tokens, asked: tokens[0],
    "nosep": lambda tokens, asked: sum(tokens[:-1]) / 256,
    "woquery": lambda tokens, asked: sum(tokens[asked:]) / 256,
    **{
        f"top{count}": lambda tokens, asked, count=count: sum(sorted(tokens)[-count:]) / min(count, len(tokens))
        for count in (5, 10, 20)
    },
}
