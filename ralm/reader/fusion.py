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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput

from ralm.errors import ArtifactError
from ralm.pretrained import load_weights
from ralm.reader.config import ReaderConfig
from ralm.reader.prompts import PassageText, format_inputs, format_target

IGNORED_LABEL = -100
LENGTH_MULTIPLE = 8
CPU_BUCKET_TOKENS = 768
GPU_BUCKET_TOKENS = 16384
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


@dataclass(frozen=True)
class EncodedPassages:
    """Encoder states of the passages of B questions; what is not a token of a passage is zero and masked."""

    state: Tensor
    """`[B, K, L, D]`."""
    mask: Tensor
    """`[B, K, L]`, 1 for tokens and 0 elsewhere."""

    def detach(self) -> EncodedPassages:
        """The same states, cut off from the encoder: nothing computed from them reaches its weights."""
        return EncodedPassages(state=self.state.detach(), mask=self.mask)

    def select(self, questions: slice) -> EncodedPassages:
        """The passages of some of the questions."""
        return EncodedPassages(state=self.state[questions], mask=self.mask[questions])

    def fuse(self) -> tuple[Tensor, Tensor]:
        """The states of all passages of a question side by side, without the padding between them.

        The decoder's cross-attention knows no positions, so leaving masked states out changes nothing but the time.

        Returns:
            (state `[B, S, D]`, mask `[B, S]`), S the most tokens that a question's passages have together.
        """
        is_token_BN = self.mask.flatten(1).bool()
        rows = [
            state_ND[is_token_N] for state_ND, is_token_N in zip(self.state.flatten(1, 2), is_token_BN, strict=True)
        ]
        state_BSD = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        length_B1 = is_token_BN.sum(dim=1, keepdim=True)
        mask_BS = (torch.arange(state_BSD.shape[1], device=length_B1.device) < length_B1).long()
        return state_BSD, mask_BS


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
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder}: expected a T5 reader in transformers' layout, found: {error}") from error
        fuse_activations(model)
        bucket_tokens = GPU_BUCKET_TOKENS if device.type == "cuda" else CPU_BUCKET_TOKENS
        return cls(model.to(device).eval(), tokenizer, config, folder=folder, bucket_tokens=bucket_tokens)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and `config.json`, and copy the tokenizer's files byte for byte."""
        self.model.save_pretrained(folder)
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

    def tokenize_targets(self, targets: Sequence[str]) -> Tensor:
        """Labels `[B, T]` of the targets, end mark included, padded with -100 (not learnt)."""
        texts = [format_target(self.config, target) for target in targets]
        tokens = self.tokenizer(texts, truncation=True, max_length=self.config.max_target_tokens)["input_ids"]
        rows = [torch.tensor(row, dtype=torch.long) for row in tokens]
        label_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL)
        return label_BT.to(self.device)

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
        return self._decode(*encoded.fuse(), label_BT)

    def passage_logits(self, encoded: EncodedPassages, label_BT: Tensor) -> Tensor:
        """Logits `[B, K, T, V]` of the targets given each passage alone, from the same encoder states.

        Every question must have all K passages: with nothing to attend to, the decoder has no defined output.
        """
        num_questions, num_passages = encoded.mask.shape[:2]
        label_NT = label_BT.repeat_interleave(num_passages, dim=0)
        logit_NTV = self._decode(encoded.state.flatten(0, 1), encoded.mask.flatten(0, 1), label_NT)
        return logit_NTV.unflatten(0, (num_questions, num_passages))

    def _decode(self, state_NLD: Tensor, mask_NL: Tensor, label_NT: Tensor) -> Tensor:
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=state_NLD),
            attention_mask=mask_NL,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(label_NT),
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
