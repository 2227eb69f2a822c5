from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration

from ralm.errors import ArtifactError
from ralm.model import open_model
from ralm.onnx_reader import convert_onnx_reader, is_onnx_reader, read_parameters

onnx = pytest.importorskip("onnx")
Change = Callable[[str, list, list], None]


def quantise(value: np.ndarray, kind: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, scale and zero point as dynamic quantisation writes them."""
    info = np.iinfo(kind)
    low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
    scale = np.float32((high - low) / (info.max - info.min) or 1.0)
    zero = kind(np.clip(round(info.min - low / scale), info.min, info.max))
    stored = np.clip(np.round(value / scale) + int(zero), info.min, info.max).astype(kind)
    return stored, np.asarray(scale), np.asarray(zero)


def export(model: T5ForConditionalGeneration, folder: Path, change: Change | None = None) -> dict[str, np.ndarray]:
    """Write the weights of a T5 as the two graphs of an int8 export; returns the values they stand for."""
    folder.mkdir(exist_ok=True)
    expected: dict[str, np.ndarray] = {}
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for graph, prefix, exported in (("encoder", "encoder.", "enc."), ("decoder", "", "m.")):
        tensors, nodes = [], []
        for number, (name, value) in enumerate(state.items()):
            is_encoder = name.startswith("encoder.")
            if is_encoder != (graph == "encoder") or (graph == "decoder" and name == "decoder.embed_tokens.weight"):
                continue
            short = exported + name.removeprefix(prefix)
            parameter = "shared.weight" if name.endswith("embed_tokens.weight") else name
            if value.ndim == 1:
                tensors.append(onnx.numpy_helper.from_array(value, short))
                expected[parameter] = value
                continue
            is_matrix = "embed" not in name and "shared" not in name and "bias" not in name
            base = f"onnx::MatMul_{number}" if is_matrix else short
            parts = quantise(value.T if is_matrix else value, np.int8 if is_matrix else np.uint8)
            for suffix, part in zip(("_quantized", "_scale", "_zero_point"), parts, strict=True):
                tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(part), base + suffix))
            if is_matrix:
                path = "/" + short.removesuffix(".weight").replace(".", "/").replace("block/", "block.")
                path = path.replace("layer/", "layer.") + "/MatMul_quant"
                inputs = ["x", base + "_quantized", "x_zero_point", base + "_zero_point"]
                nodes.append(onnx.helper.make_node("MatMulInteger", inputs, [f"y{number}"], name=path))
            floats = (parts[0].astype(np.float32) - np.float32(parts[2])) * parts[1]
            expected[parameter] = floats.T if is_matrix else floats
        if change is not None:
            change(graph, tensors, nodes)
        made = onnx.helper.make_model(onnx.helper.make_graph(nodes, graph, [], [], tensors))
        onnx.save(made, str(folder / f"{graph}.onnx"))
    return expected


@pytest.fixture
def tiny_t5(tiny_model: str) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration.from_pretrained(open_model(tiny_model).reader_folder)


def test_every_tensor_finds_its_place(tiny_t5: T5ForConditionalGeneration, tmp_path: Path) -> None:
    expected = export(tiny_t5, tmp_path / "onnx")
    assert is_onnx_reader(tmp_path / "onnx")
    convert_onnx_reader(tmp_path / "onnx", tmp_path / "reader")
    # head width cannot be told from 2 heads of 16; everything else must come out as it went in
    found = T5ForConditionalGeneration.from_pretrained(tmp_path / "reader")
    assert found.config.d_kv == tiny_t5.config.d_kv
    state = found.state_dict()
    assert set(state) == set(tiny_t5.state_dict())
    for name, value in expected.items():
        np.testing.assert_allclose(state[name].numpy(), value, atol=1e-6, err_msg=name)


def test_the_output_layer_is_not_the_embedding(tiny_t5: T5ForConditionalGeneration, tmp_path: Path) -> None:
    export(tiny_t5, tmp_path / "onnx")
    convert_onnx_reader(tmp_path / "onnx", tmp_path / "reader")
    reader = T5ForConditionalGeneration.from_pretrained(tmp_path / "reader")
    output = reader.lm_head.weight.detach().clone()
    for _ in range(2):
        assert reader.lm_head.weight.data_ptr() != reader.shared.weight.data_ptr()
        assert not torch.equal(reader.lm_head.weight, reader.shared.weight)
        torch.testing.assert_close(reader.lm_head.weight, output, rtol=0, atol=0)
        assert not reader.config.scale_decoder_outputs
        reader.save_pretrained(tmp_path / "again")
        reader = T5ForConditionalGeneration.from_pretrained(tmp_path / "again")


def test_equal_graphs_give_equal_bytes(tiny_t5: T5ForConditionalGeneration, tmp_path: Path) -> None:
    export(tiny_t5, tmp_path / "onnx")
    files = []
    for name in ("a", "b"):
        convert_onnx_reader(tmp_path / "onnx", tmp_path / name)
        files.append([(tmp_path / name / file).read_bytes() for file in ("config.json", "model.safetensors")])
    assert files[0] == files[1]


def _lose_a_tensor(graph: str, tensors: list, nodes: list) -> None:
    if graph == "decoder":
        del tensors[next(row for row, tensor in enumerate(tensors) if "layer_norm" in tensor.name)]


def _lose_a_scale(graph: str, tensors: list, nodes: list) -> None:
    tensors[:] = [tensor for tensor in tensors if not tensor.name.endswith("relative_attention_bias.weight_scale")]


def _lose_a_matrix(graph: str, tensors: list, nodes: list) -> None:
    weight = nodes[0].input[1].removesuffix("_quantized")
    tensors[:] = [tensor for tensor in tensors if not tensor.name.startswith(f"{weight}_")]


def _rename_a_node(graph: str, tensors: list, nodes: list) -> None:
    nodes[0].name = "fused"


def _use_twice(graph: str, tensors: list, nodes: list) -> None:
    nodes.append(onnx.helper.make_node("MatMulInteger", list(nodes[0].input), ["z"], name="/m/other/MatMul_quant"))


def _add_a_tensor(graph: str, tensors: list, nodes: list) -> None:
    tensors.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "adapter.weight"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lose_a_tensor, "do not hold a T5 of 2 layers"),
        (_lose_a_scale, "relative_attention_bias.weight without .*_scale"),
        (_lose_a_matrix, "matrix products without a stored weight"),
        (_rename_a_node, "cannot tell which module fused belongs to"),
        (_use_twice, "cannot tell which module /m/other/MatMul_quant belongs to"),
        (_add_a_tensor, "adapter.weight"),
    ],
)
def test_graphs_that_do_not_fit(
    tiny_t5: T5ForConditionalGeneration, tmp_path: Path, change: Change, message: str
) -> None:
    export(tiny_t5, tmp_path / "onnx", change)
    with pytest.raises(ArtifactError, match=message):
        convert_onnx_reader(tmp_path / "onnx", tmp_path / "reader")
    assert not (tmp_path / "reader").exists()


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match=r"encoder.onnx: no readable ONNX graph"):
        read_parameters(tmp_path / "encoder.onnx")
    assert not is_onnx_reader(tmp_path)
