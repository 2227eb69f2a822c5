"""Watch the cross-attention of a T5's decoder while it reads, without changing the T5.

Forward hooks see the queries, keys and values of a layer as the layer makes them; the weights are computed from them
beside the layer, summed up, and dropped. So no projection is computed twice, and no more than one layer's weights are
in memory.

Shapes: `B` questions, `K` passages per question, `L` tokens per passage, `S` tokens of all passages of a question side
by side, `T` target tokens, `H` heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ralm.objectives.attention import KINDS, Kind, token_attention
from ralm.reader.encoded import EncodedPassages

Visit = Callable[[Tensor, Tensor, Tensor], None]


@contextmanager
def watch_cross_attention(decoder: nn.Module, visit: Visit) -> Iterator[None]:
    """Call `visit(query, key, value)`, each `[B, H, tokens, size of a head]`, for each cross-attention run inside."""
    handles = []
    for block in decoder.block:  # type: ignore[union-attr]
        attention: Any = block.layer[1].EncDecAttention
        seen: dict[str, Tensor] = {}
        for name in ("q", "k", "v"):
            handles.append(getattr(attention, name).register_forward_hook(partial(_keep, seen, name)))
        handles.append(attention.register_forward_hook(partial(_show, seen, visit)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_sums(model: Any, encoded: EncodedPassages, decoder_input_BT: Tensor, label_BT: Tensor) -> dict[Kind, Tensor]:
    """Attention to each token of the passages, summed over layers and over the target tokens that count.

    Args:
        model: the T5.
        encoded: passages, all read together.
        decoder_input_BT: what the decoder is given.
        label_BT: labels of the same positions; those with a negative one do not count.

    Returns:
        For each of `KINDS` `[B, K, L]`, 0 for padding.
    """
    fused = encoded.fuse()
    sums: dict[Kind, Tensor] = {kind: torch.zeros(fused.mask.shape, device=fused.mask.device) for kind in KINDS}

    def add(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> None:
        with torch.autocast(query_BHTD.device.type, enabled=False):
            for kind, value_BS in token_attention(query_BHTD, key_BHSD, value_BHSD, fused.mask, label_BT).items():
                sums[kind] += value_BS

    with torch.no_grad(), watch_cross_attention(model.decoder, add):
        model.decoder(
            input_ids=decoder_input_BT,
            encoder_hidden_states=fused.state,
            encoder_attention_mask=fused.mask,
            use_cache=False,
        )
    empty_BN = torch.zeros(encoded.mask.flatten(1).shape, device=fused.mask.device)
    return {
        kind: empty_BN.scatter_add(1, fused.place, value_BS).view(encoded.mask.shape) for kind, value_BS in sums.items()
    }


def _keep(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    seen[name] = output


def _show(seen: dict[str, Tensor], visit: Visit, attention: Any, inputs: Any, output: Any) -> None:
    query, key, value = (
        seen.pop(name).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2) for name in ("q", "k", "v")
    )
    visit(query, key, value)
