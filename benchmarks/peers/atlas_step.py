"""One joint update as Atlas makes it, written anew from the description of its training (arXiv 2208.03299).

Every input is padded to the text limit; on a GPU weights are bf16 and the optimiser keeps copies in fp32, on a CPU
weights are fp32; one AdamW for the reader and one for the retriever, unfused; the scores for the retriever come from a
second pass of the encoder, without dropout. Left out, in Atlas' favour: its statistics of each gradient, which stop the
device once for each weight.

Shapes: `B` questions, `K` passages per question, `L` tokens of an input, always the limit, `T` target tokens, `D`
values in a vector, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5Attention

TEMPERATURE = 0.01
CLIP_NORM = 1.0
EVAL_PASSAGES = 64
"""Inputs of the decoder at a time where scores are computed: their logits need not fit at once."""


@dataclass(frozen=True)
class PaddedBatch:
    """Token ids and masks, all as long as the limit."""

    reader: tuple[Tensor, Tensor]
    """`[B*K, L]` each."""
    labels: Tensor
    """`[B, T]`, -100 behind the target."""
    questions: tuple[Tensor, Tensor]
    """`[B, L]` each."""
    passages: tuple[Tensor, Tensor]
    """`[B*K, L]` each."""


class AtlasStep:
    """Reader, retriever and their optimisers.

    Args:
        reader_folder: a T5 in transformers' layout.
        retriever_folder: a BERT in transformers' layout.
        device: where to compute.
        attention: `eager` as Atlas does, or the fused kernels of today.
        checkpointing: compute the states of both models again in the backward pass, as Atlas' recipes do.
        learning_rate: of both.
        dropout: of both.
        dtype: number format of the weights.
    """

    def __init__(
        self,
        reader_folder: Path,
        retriever_folder: Path,
        *,
        device: torch.device,
        attention: Literal["eager", "sdpa"] = "eager",
        checkpointing: bool = False,
        learning_rate: float = 4e-5,
        dropout: float = 0.1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention, "local_files_only": True}
        self.reader: Any = T5ForConditionalGeneration.from_pretrained(reader_folder, **options).to(device)
        self.retriever: Any = BertModel.from_pretrained(retriever_folder, add_pooling_layer=False, **options).to(device)
        for module in (*self.reader.modules(), *self.retriever.modules()):
            if isinstance(module, nn.Dropout):
                module.p = dropout
            elif isinstance(module, T5Attention):
                module.dropout = dropout
        if checkpointing:
            for model in (self.reader, self.retriever):
                model.gradient_checkpointing_enable({"use_reentrant": False})
        self._weights = [list(model.parameters()) for model in (self.reader, self.retriever)]
        self._copies = self._weights
        if dtype != torch.float32:
            self._copies = [[nn.Parameter(weight.detach().float()) for weight in group] for group in self._weights]
        self._optimizers = [
            torch.optim.AdamW(group, lr=learning_rate, weight_decay=0.01, eps=1e-6, foreach=False, fused=False)
            for group in self._copies
        ]

    def update(self, parts: Sequence[PaddedBatch]) -> dict[str, float]:
        """Make one update with the questions of all parts, one part at a time."""
        losses = {"reader_loss": 0.0, "retriever_loss": 0.0}
        for part in parts:
            for name, loss in self.accumulate(part, 1 / len(parts)).items():
                losses[name] += loss / len(parts)
        self.step()
        return losses

    def accumulate(self, part: PaddedBatch, share: float) -> dict[str, float]:
        """Add the gradients of some questions; `share` is their part of the update."""
        self.reader.train()
        self.retriever.train()
        reader_loss, retriever_loss = self._losses(part)
        ((reader_loss + retriever_loss) * share).backward()
        return {"reader_loss": reader_loss.item(), "retriever_loss": retriever_loss.item()}

    def _losses(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        num_questions = len(batch.labels)
        state_NLD = self._encode(batch.reader)
        mask_BS = batch.reader[1].view(num_questions, -1)
        logit_BTV = self._decode(state_NLD.view(num_questions, mask_BS.shape[1], -1), mask_BS, batch.labels)
        reader_loss = functional.cross_entropy(logit_BTV.flatten(0, 1).float(), batch.labels.flatten())
        gold_BK = self.scores(batch)
        question_BD, passage_ND = self._pool(batch.questions), self._pool(batch.passages)
        passage_BKD = passage_ND.view(num_questions, -1, passage_ND.shape[-1])
        score_BK = torch.einsum("bd,bkd->bk", question_BD, passage_BKD).float() / passage_ND.shape[-1] ** 0.5
        log_retriever_BK = functional.log_softmax(score_BK / TEMPERATURE, dim=-1)
        target_BK = functional.softmax(gold_BK / TEMPERATURE, dim=-1)
        # the mean over all elements, as Atlas has it
        return reader_loss, functional.kl_div(log_retriever_BK, target_BK, reduction="sum") / target_BK.numel()

    def _encode(self, padded: tuple[Tensor, Tensor]) -> Tensor:
        return self.reader.encoder(input_ids=padded[0], attention_mask=padded[1]).last_hidden_state

    def _decode(self, state_NLD: Tensor, mask_NL: Tensor, label_NT: Tensor) -> Tensor:
        return self.reader(
            encoder_outputs=BaseModelOutput(last_hidden_state=state_NLD),
            attention_mask=mask_NL,
            labels=label_NT,
            use_cache=False,
        ).logits

    @torch.no_grad()
    def scores(self, batch: PaddedBatch) -> Tensor:
        """Perplexity distillation: mean log-probability of the target given each passage alone, `[B, K]`."""
        self.reader.eval()
        state_NLD, mask_NL = self._encode(batch.reader), batch.reader[1]
        label_NT = batch.labels.repeat_interleave(len(mask_NL) // len(batch.labels), dim=0)
        parts = []
        for start in range(0, len(mask_NL), EVAL_PASSAGES):
            rows = slice(start, start + EVAL_PASSAGES)
            logit_NTV = self._decode(state_NLD[rows], mask_NL[rows], label_NT[rows])
            label_N = label_NT[rows].flatten()  # over the last dimension a CPU adds up more exactly
            loss_N = functional.cross_entropy(logit_NTV.flatten(0, 1).float(), label_N, reduction="none")
            parts.append(-loss_N.view(len(logit_NTV), -1).sum(dim=1) / (label_NT[rows] >= 0).sum(dim=1))
        self.reader.train()
        return torch.cat(parts).view(len(batch.labels), -1)

    def _pool(self, padded: tuple[Tensor, Tensor]) -> Tensor:
        state_NLD = self.retriever(input_ids=padded[0], attention_mask=padded[1]).last_hidden_state
        return (state_NLD * padded[1].unsqueeze(-1)).sum(dim=1) / padded[1].sum(dim=1, keepdim=True)

    def step(self) -> None:
        """Clip the gradient and change the weights."""
        flat = [weight for group in self._weights for weight in group]
        nn.utils.clip_grad_norm_(flat, CLIP_NORM)
        for weights, copies, optimizer in zip(self._weights, self._copies, self._optimizers, strict=True):
            for weight, copy in zip(weights, copies, strict=True):
                copy.grad = None if weight.grad is None else weight.grad.float()
            optimizer.step()
            with torch.no_grad():
                for weight, copy in zip(weights, copies, strict=True):
                    if copy is not weight:
                        weight.copy_(copy)
                    weight.grad = None


def pad_to_limit(rows: Sequence[Sequence[int]], limit: int, pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both `[N, limit]`."""
    ids_NL = torch.full((len(rows), limit), pad_id, dtype=torch.long)
    mask_NL = torch.zeros((len(rows), limit), dtype=torch.long)
    for number, row in enumerate(rows):
        ids_NL[number, : len(row)] = torch.tensor(row[:limit], dtype=torch.long)
        mask_NL[number, : len(row)] = 1
    return ids_NL.to(device), mask_NL.to(device)
