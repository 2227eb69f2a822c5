"""Convert an int8 ONNX T5 (encoder.onnx, decoder.onnx) to safetensors in the layout of `transformers`.

The graphs come from a module-by-module export with dynamic quantisation, so names tell what is what: layer norms and
embeddings keep their parameter's name, and a matrix product carries its module's path in its node's name
(`/enc/block.0/layer.0/SelfAttention/q/MatMul_quant`). Weights are stored as `(quantised - zero_point) * scale`.
Every weight of the graphs must be used exactly once, and every parameter of the model filled exactly once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration

from ralm.artifacts.files import write_json
from ralm.errors import ArtifactError

if TYPE_CHECKING:
    from onnx import GraphProto

logger = logging.getLogger(__name__)
GRAPHS: Final = ("encoder.onnx", "decoder.onnx")
_EMBEDDINGS: Final = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"}
_PREFIXES: Final = (("m.", ""), ("enc.", "encoder."))
_SUFFIXES: Final = ("_quantized", "_scale", "_zero_point")


def is_onnx_reader(folder: Path) -> bool:
    """True if a folder holds the two graphs of an exported T5."""
    return all((folder / name).is_file() for name in GRAPHS)


def convert_onnx_reader(folder: Path, target: Path) -> None:
    """Write `config.json` and `model.safetensors` into `target`, from the graphs in `folder`. Equal input, equal bytes.

    Raises:
        ArtifactError: `onnx` is not installed, the graphs are unreadable, or not those of a gated-GELU T5.
    """
    tensors: dict[str, np.ndarray] = {}
    for name in GRAPHS:
        for parameter, value in read_parameters(folder / name).items():
            if parameter in tensors and not np.array_equal(tensors[parameter], value):
                raise ArtifactError(f"{folder / name}: {parameter} differs between the two graphs")
            tensors[parameter] = value
    config = infer_config(tensors)
    expected = _stored_shapes(config)
    found = {parameter: tuple(value.shape) for parameter, value in tensors.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[:3]
        raise ArtifactError(f"{folder}: the graphs do not hold a T5 of {config.num_layers} layers: {wrong}")
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: torch.from_numpy(np.ascontiguousarray(tensors[name])) for name in sorted(tensors)}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    # transformers' T5Config says "tied" whatever it was made with; the file tells how the weights are stored
    stored = {"architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": "lm_head.weight" not in tensors}
    write_json(target / "config.json", {**config.to_diff_dict(), **stored})
    logger.info("converted %d tensors of an int8 ONNX reader to safetensors", len(weights))


def read_parameters(path: Path) -> dict[str, np.ndarray]:
    """The float32 parameters of one graph, under their names in `transformers`, each from exactly one place.

    Raises:
        ArtifactError: unreadable, or a weight that has no name or is used twice.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError as error:
        raise ArtifactError(f"{path}: reading ONNX needs the package onnx: pip install onnx") from error
    try:
        graph = onnx.load(str(path)).graph
    except (DecodeError, OSError) as error:
        raise ArtifactError(f"{path}: no readable ONNX graph: {error}") from error
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    modules = _matrix_modules(graph, path)
    parameters: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for name in stored:
        base = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
        if base in used:
            continue
        used.add(base)
        value = stored[base].astype(np.float32) if base in stored else _dequantise(stored, base, path)
        parameter, value = (modules.pop(base), value.T) if base in modules else (_parameter_name(base), value)
        if parameter in parameters:
            raise ArtifactError(f"{path}: two weights for {parameter}")
        parameters[parameter] = value
    if modules:
        raise ArtifactError(f"{path}: matrix products without a stored weight: {sorted(modules.values())[:3]}")
    return parameters


def _matrix_modules(graph: GraphProto, path: Path) -> dict[str, str]:
    """For each weight of a matrix product, the parameter it is (`nn.Linear` keeps it transposed)."""
    modules: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        weight = node.input[1].removesuffix("_quantized")
        match = re.fullmatch(r"/(.+)/MatMul_quant", node.name)
        if match is None or weight in modules:
            raise ArtifactError(f"{path}: cannot tell which module {node.name} belongs to")
        modules[weight] = _parameter_name(match[1].replace("/", ".") + ".weight")
    return modules


def _dequantise(stored: Mapping[str, np.ndarray], base: str, path: Path) -> np.ndarray:
    """`(quantised - zero_point) * scale`, per tensor or per column (the last axis, as MatMulInteger has it)."""
    try:
        quantised, scale, zero_point = (stored[base + suffix] for suffix in _SUFFIXES)
    except KeyError as error:
        raise ArtifactError(f"{path}: weight {base} without {error}") from error
    centred = quantised.astype(np.int32) - zero_point.astype(np.int32)
    return (centred.astype(np.float32) * scale.astype(np.float32)).astype(np.float32)


def _parameter_name(exported: str) -> str:
    for prefix, replacement in _PREFIXES:
        if exported.startswith(prefix):
            exported = replacement + exported.removeprefix(prefix)
            break
    return _EMBEDDINGS.get(exported, exported)


def infer_config(tensors: Mapping[str, np.ndarray]) -> T5Config:
    """The architecture that a set of T5 parameters has.

    Raises:
        ArtifactError: a parameter that tells a size is missing.
    """
    try:
        vocabulary, d_model = tensors["shared.weight"].shape
        d_inner = tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0]
        d_ff = tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
        buckets, heads = tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape
    except KeyError as error:
        raise ArtifactError(f"the graphs hold no gated T5: there is no {error}") from error
    settings: dict[str, Any] = dict(
        vocab_size=vocabulary,
        d_model=d_model,
        d_kv=d_inner // heads,
        d_ff=d_ff,
        num_layers=_num_blocks(tensors, "encoder"),
        num_decoder_layers=_num_blocks(tensors, "decoder"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings="lm_head.weight" not in tensors,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5Config(**settings)


def _num_blocks(tensors: Mapping[str, Any], half: str) -> int:
    numbers = {match[1] for name in tensors if (match := re.match(rf"{half}\.block\.(\d+)\.", name))}
    return len(numbers)


def _stored_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Parameters that a checkpoint of this architecture stores, with their shapes (aliases of `shared` left out)."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in _EMBEDDINGS}
