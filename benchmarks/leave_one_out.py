"""Leave one out: one decoder pass over copies of the target, against one pass for each passage left out.

Random weights in the sizes of a public T5: the numbers do not change the time. Both ways use the same encoder states.

    python benchmarks/leave_one_out.py --size base --passages 20 --tokens 200
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from ralm.reader.config import ReaderConfig
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader

SIZES: dict[str, dict[str, int]] = {
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
}


def one_by_one(reader: FusionReader, encoded: EncodedPassages, label_BT: Tensor) -> Tensor:
    """Logits `[B, K, T, V]`, a pass for each k."""
    num_passages = encoded.mask.shape[1]
    logits = []
    for k in range(num_passages):
        others = [other for other in range(num_passages) if other != k]
        logits.append(
            reader.fusion_logits(EncodedPassages(encoded.state[:, others], encoded.mask[:, others]), label_BT)
        )
    return torch.stack(logits, dim=1)


def seconds(function: Callable[[], Tensor], repeats: int) -> float:
    """Median wall time, after one call that does not count."""
    function()
    times = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        function()[0, 0, 0, 0].item()
        times.append(time.perf_counter() - started_at)
    return statistics.median(times)


def main() -> None:
    """Print both times and the largest difference of the logits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=200, help="in a passage")
    parser.add_argument("--target-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    config: dict[str, Any] = {**SIZES[options.size], "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    with torch.device(options.device):
        model = T5ForConditionalGeneration(T5Config(vocab_size=32128, **config)).eval()
        reader = FusionReader(model, None, ReaderConfig(), folder=Path())  # type: ignore[arg-type]
        shape = (options.questions, options.passages, options.tokens)
        encoded = EncodedPassages(torch.randn(*shape, config["d_model"]), torch.ones(shape, dtype=torch.long))
        label_BT = torch.randint(2, 32000, (options.questions, options.target_tokens))
    with torch.inference_mode():
        at_once = seconds(lambda: reader.leave_one_out_logits(encoded, label_BT), options.repeats)
        apart = seconds(lambda: one_by_one(reader, encoded, label_BT), options.repeats)
        difference = (
            (reader.leave_one_out_logits(encoded, label_BT) - one_by_one(reader, encoded, label_BT)).abs().max()
        )
    print(
        f"at once {at_once:.3f} s, one by one {apart:.3f} s, ratio {apart / at_once:.1f}, difference {difference:.1e}"
    )


if __name__ == "__main__":
    main()
