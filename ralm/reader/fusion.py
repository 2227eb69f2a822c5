"""Fusion-in-Decoder: every passage is encoded on its own, once; the decoder reads all of them, or one at a time.

Sources: Izacard and Grave, "Leveraging Passage Retrieval with Generative Models for Open Domain Question Answering"
(arXiv 2007.01282), section 3; Atlas (arXiv 2208.03299), section 2.1. The model is the `transformers` T5, unchanged:
its decoder attends to whatever states and mask it is given and has no position bias there, so the states of several
passages are simply laid side by side.

Shapes: `B` questions, `K` passages per question, `N` encoded inputs (at most B*K), `L` tokens per input, `T` target
tokens, `D` model size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput

from ralm.artifacts.files import read_json, write_json
from ralm.device import take_any_shape
from ralm.errors import ConfigError
from ralm.objectives.attention import attention_distillation_scores, attention_statistics
from ralm.pretrained import load_weights
from ralm.reader.attention import token_sums
from ralm.reader.config import ReaderConfig
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fused import fuse_layers
from ralm.reader.labels import decoder_inputs, make_labels
from ralm.reader.leave_one_out import all_but_one_mask, copies_mask
from ralm.reader.prompts import PassageText, format_inputs, format_prompt, format_question, format_target
from ralm.reader.tokenizer import load_tokenizer

LENGTH_MULTIPLE = 8
CPU_BUCKET_TOKENS = 768
GPU_BUCKET_TOKENS = 8192
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


class FusionReader(nn.Module):
    """A T5 that reads many passages.

    Args:
        model: the T5, made by `from_pretrained` (a T5 made from its config alone gets a tied output layer).
        tokenizer: its tokenizer.
        config: formats and limits.
        folder: where they are from; its tokenizer files go along when the reader is saved.
        bucket_tokens: passages are sorted by length and encoded in groups of at least this many tokens: small groups
            need little padding, large ones use the hardware better. It changes the time, not the result.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        config: ReaderConfig,
        *,
        folder: Path,
        bucket_tokens: int = CPU_BUCKET_TOKENS,
    ) -> None:
        super().__init__()
        self._folder = folder
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.config = config
        self.bucket_tokens = bucket_tokens

    @classmethod
    def load(
        cls,
        folder: Path,
        config: ReaderConfig,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load `config.json`, `model.safetensors` and the tokenizer from a folder; the reader starts in eval mode.

        Args:
            folder: `reader/` of a model artifact, on this machine.
            config: formats and limits.
            device: where to compute.
            dtype: number format of the weights.

        Raises:
            ArtifactError: the folder holds no T5 that transformers can load whole.
        """
        model = load_weights(T5ForConditionalGeneration, folder, dtype=dtype, use_safetensors=True)
        tokenizer = load_tokenizer(folder)
        fuse_activations(model)
        fuse_layers(model)
        take_any_shape(device)
        bucket_tokens = GPU_BUCKET_TOKENS if device.type == "cuda" else CPU_BUCKET_TOKENS
        return cls(model.to(device).eval(), tokenizer, config, folder=folder, bucket_tokens=bucket_tokens)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and `config.json`, and copy the tokenizer's files byte for byte."""
        self.model.save_pretrained(folder)
        tell_untied(folder / "config.json")
        for name in TOKENIZER_FILES:
            if (self._folder / name).is_file() and self._folder != folder:
                (folder / name).write_bytes((self._folder / name).read_bytes())

    def tokenize_inputs(
        self, questions: Sequence[str], passages: Sequence[Sequence[PassageText]]
    ) -> list[list[list[int]]]:
        """Tokens of the inputs of each question: `[question][passage][token]`.

        A question without passages has one input, the bare question. Lists may differ in length.
        """
        texts = [
            format_inputs(self.config, question, list(found))
            for question, found in zip(questions, passages, strict=True)
        ]
        flat = [text for inputs in texts for text in inputs]
        tokens = self.tokenizer(flat, truncation=True, max_length=self.config.max_input_tokens)["input_ids"]
        rest = iter(tokens)
        return [[next(rest) for _ in inputs] for inputs in texts]

    def tokenize_targets(self, targets: Sequence[str], questions: Sequence[str] | None = None) -> Tensor:
        """Labels `[B, T]` of the targets, end mark included, behind their decoder prompts (see `labels.py`).

        Args:
            targets: answers as given.
            questions: texts as given, for decoder prompts with `{question}`.
        """
        texts = [format_target(self.config, target) for target in targets]
        tokens = self.tokenizer(texts, truncation=True, max_length=self.config.max_target_tokens)["input_ids"]
        prompts = self.tokenize_prompts(questions if questions is not None else [""] * len(targets))
        return make_labels(prompts, tokens).to(self.device)

    def tokenize_prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Tokens of the decoder prompt of each question; empty lists where the model has none."""
        texts = [format_prompt(self.config, question) for question in questions]
        if not any(texts):
            return [[] for _ in questions]
        limit = self.config.max_input_tokens
        tokens = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=limit)["input_ids"]
        return [list(row) for row in tokens]

    def encode(self, inputs: Sequence[Sequence[Sequence[int]]]) -> EncodedPassages:
        """Encode each input once, in groups of similar length, each padded to its own longest.

        Args:
            inputs: what `tokenize_inputs` gave.

        Returns:
            States and mask; a question with fewer than K inputs has fully masked ones at the end.
        """
        flat = [tokens for of_question in inputs for tokens in of_question]
        longest = _round_up(max(len(tokens) for tokens in flat))
        order = sorted(range(len(flat)), key=lambda row: (len(flat[row]), row))
        states = []
        for bucket in _split(order, [len(tokens) for tokens in flat], self.bucket_tokens):
            id_NL, mask_NL = self._pad([flat[row] for row in bucket])
            state_NLD = self.model.encoder(input_ids=id_NL, attention_mask=mask_NL).last_hidden_state
            state_NLD = state_NLD * mask_NL.unsqueeze(-1)
            states.append(functional.pad(state_NLD, (0, 0, 0, longest - state_NLD.shape[1])))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        state_NLD = torch.cat(states).index_select(0, back.to(self.device))
        length_N = torch.tensor([len(tokens) for tokens in flat], device=self.device)
        mask_NL = (torch.arange(longest, device=self.device) < length_N.unsqueeze(1)).long()
        return _group_by_question(state_NLD, mask_NL, [len(of_question) for of_question in inputs])

    def fusion_logits(self, encoded: EncodedPassages, label_BT: Tensor) -> Tensor:
        """Logits `[B, T, V]` of the targets given all passages together (teacher forcing)."""
        fused = encoded.fuse()
        return self._decode(fused.state, fused.mask, label_BT)

    def passage_logits(self, encoded: EncodedPassages, label_BT: Tensor) -> Tensor:
        """Logits `[B, K, T, V]` of the targets given each passage alone, from the same encoder states.

        Raises:
            DataError: a question has fewer than K passages: with nothing to read, there are no logits.
        """
        encoded.require_all()
        num_questions, num_passages = encoded.mask.shape[:2]
        label_NT = label_BT.repeat_interleave(num_passages, dim=0)
        logit_NTV = self._decode(encoded.state.flatten(0, 1), encoded.mask.flatten(0, 1), label_NT)
        return logit_NTV.unflatten(0, (num_questions, num_passages))

    def leave_one_out_logits(
        self, encoded: EncodedPassages, label_BT: Tensor, left_out: Sequence[int] | None = None
    ) -> Tensor:
        """Logits `[B, K, T, V]` of the targets given all passages but passage k, in one decoder pass.

        Args:
            encoded: all passages of each question, at least two.
            label_BT: labels of the targets.
            left_out: the k to compute; by default all.

        Raises:
            ConfigError: one passage only: nothing is left to read.
            DataError: a question has fewer than K passages.
        """
        num_passages, length = encoded.mask.shape[1:]
        if num_passages < 2:
            raise ConfigError("num_passages: expected at least 2 to leave one out, found 1")
        encoded.require_all()
        fused = encoded.fuse()
        copies = list(range(num_passages) if left_out is None else left_out)
        left_out_C = torch.tensor(copies, device=self.device)
        num_targets = label_BT.shape[1]
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=fused.state),
            attention_mask=all_but_one_mask(fused.place // length, fused.mask, left_out_C, num_targets),
            decoder_input_ids=self._decoder_inputs(label_BT).repeat(1, len(copies)),
            decoder_attention_mask=copies_mask(len(copies), num_targets, device=self.device),
            use_cache=False,
        ).logits
        return logits.unflatten(1, (len(copies), num_targets))

    def attention_scores(self, encoded: EncodedPassages, label_BT: Tensor) -> Tensor:
        """Scores `[B, K]` of attention distillation, without gradient; see `attention_distillation_scores`.

        Raises:
            DataError: a question has fewer than K passages.
        """
        encoded.require_all()
        sums = token_sums(self.model, encoded, self._decoder_inputs(label_BT), label_BT)
        return attention_distillation_scores(
            sums["norms"], num_layers=self._num_decoder_layers, num_targets_B=(label_BT >= 0).sum(dim=1)
        )

    def attention_statistics(
        self, encoded: EncodedPassages, label_BT: Tensor, questions: Sequence[str]
    ) -> dict[str, Tensor]:
        """24 ways to sum up the attention to a passage, each `[B, K]`, without gradient (`objectives/attention.py`).

        Args:
            encoded: all passages of each question.
            label_BT: labels of the targets.
            questions: texts as given; their tokens do not count for `woquery`.

        Raises:
            DataError: a question has fewer than K passages.
        """
        encoded.require_all()
        return attention_statistics(
            token_sums(self.model, encoded, self._decoder_inputs(label_BT), label_BT),
            encoded.mask,
            num_layers=self._num_decoder_layers,
            num_targets_B=(label_BT >= 0).sum(dim=1),
            question_tokens_B=self._question_tokens(questions),
        )

    @property
    def _num_decoder_layers(self) -> int:
        return len(self.model.decoder.block)

    def _question_tokens(self, questions: Sequence[str]) -> Tensor:
        """How many tokens of the question `[B]` an input begins with: none where the format does not begin with it."""
        if not self.config.passage_format.startswith("{question}"):
            return torch.zeros(len(questions), dtype=torch.long, device=self.device)
        texts = [format_question(self.config, question) for question in questions]
        tokens = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return torch.tensor([len(row) for row in tokens], device=self.device)

    def _decoder_inputs(self, label_BT: Tensor) -> Tensor:
        config = self.model.config
        return decoder_inputs(label_BT, start_token=config.decoder_start_token_id, pad_token=config.pad_token_id)

    def _decode(self, state_NLD: Tensor, mask_NL: Tensor, label_NT: Tensor) -> Tensor:
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=state_NLD),
            attention_mask=mask_NL,
            decoder_input_ids=self._decoder_inputs(label_NT),
            use_cache=False,
        ).logits

    def _pad(self, rows: list[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = _round_up(max(len(row) for row in rows))
        id_NL = torch.full((len(rows), longest), self.model.config.pad_token_id, dtype=torch.long)
        mask_NL = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            id_NL[number, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask_NL[number, : len(row)] = 1
        return id_NL.to(self.device), mask_NL.to(self.device)


def fuse_activations(model: nn.Module) -> None:
    """Replace the tanh form of GELU, which transformers spells out in eight operations, by PyTorch's single kernel.

    The formula is the same; the memory kept for the backward pass of a feed-forward layer falls to about a third.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def tell_untied(path: Path) -> None:
    """Say in `config.json` that the output layer is not the embedding, as the official files of T5 1.1 do.

    transformers 5 writes true for every T5 and goes by `scale_decoder_outputs`; version 4 would tie the two.
    """
    config = read_json(str(path))
    write_json(path, config | {"tie_word_embeddings": config["scale_decoder_outputs"]})


def _round_up(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def _split(order: list[int], lengths: list[int], bucket_tokens: int) -> list[list[int]]:
    """Cut rows sorted by length into runs of at least `bucket_tokens`; a shorter rest joins the last one.

    >>> _split([0, 1, 2, 3], [4, 5, 6, 7], 9), _split([0], [3], 9)
    ([[0, 1], [2, 3]], [[0]])
    """
    runs: list[list[int]] = [[]]
    size = 0
    for row in order:
        if size >= bucket_tokens:
            runs.append([])
            size = 0
        runs[-1].append(row)
        size += lengths[row]
    if size < bucket_tokens and len(runs) > 1:
        rest = runs.pop()
        runs[-1] += rest
    return runs


def _group_by_question(state_NLD: Tensor, mask_NL: Tensor, counts: list[int]) -> EncodedPassages:
    """Lay the N inputs out as [B, K, ...], with masked rows where a question has fewer than K of them."""
    num_questions, num_passages = len(counts), max(counts)
    if all(count == num_passages for count in counts):
        shape = (num_questions, num_passages)
        return EncodedPassages(state=state_NLD.unflatten(0, shape), mask=mask_NL.unflatten(0, shape))
    empty_1LD, empty_1L = torch.zeros_like(state_NLD[:1]), torch.zeros_like(mask_NL[:1])
    state_parts, mask_parts = [], []
    for state, mask in zip(state_NLD.split(counts), mask_NL.split(counts), strict=True):
        missing = num_passages - len(state)
        state_parts.append(torch.cat([state, empty_1LD.expand(missing, -1, -1)]))
        mask_parts.append(torch.cat([mask, empty_1L.expand(missing, -1)]))
    return EncodedPassages(state=torch.stack(state_parts), mask=torch.stack(mask_parts))
