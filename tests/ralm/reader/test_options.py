"""Options whose first tokens are partly equal, as T5's letters X and Y are (a space, then the letter)."""

from __future__ import annotations

import pytest
import torch

from ralm.reader.fusion import FusionReader
from ralm.reader.options import option_logits

TEXTS = ["sea", "king of", "king queen"]


def test_options_that_share_a_token_are_told_apart_behind_it(reader: FusionReader) -> None:
    with torch.inference_mode():
        encoded = reader.encode(reader.tokenize_inputs(["who built a castle"], [[]]))
        (found,) = option_logits(reader, encoded, ["who built a castle"], [TEXTS])
        alone = [option_logits(reader, encoded, ["who built a castle"], [[TEXTS[0], text]])[0] for text in TEXTS[1:]]
        label_1T = reader.tokenize_targets([TEXTS[1]])
        log_TV = reader.fusion_logits(encoded, label_1T)[0].log_softmax(-1)
    of, queen = (reader.tokenizer(text)["input_ids"][1] for text in TEXTS[1:])
    assert found is not None
    assert found[0] == pytest.approx(alone[0][0], abs=1e-5), "an option of its own keeps its raw logit"
    assert found[1] == pytest.approx(alone[0][1] + float(log_TV[1, of]), abs=1e-5)
    assert found[2] == pytest.approx(alone[1][1] + float(log_TV[1, queen]), abs=1e-5)
