"""Memory of one device while a model is trained, and while passages are embedded. Formulas: `docs/planning.md`.

Symbols: `P` weights that learn, `W` processes (one for each device), `c` bytes of the compute format.
"""

from __future__ import annotations

from typing import Final

from ralm.capacity.activations import FP32, Kernels, encoder_activations, reader_activations
from ralm.capacity.architecture import EncoderShape, Models
from ralm.capacity.index_size import IndexSize
from ralm.training.config import TrainingConfig

GIB: Final = 2**30
BLOCK_ROWS: Final = 65536
"""Rows of a flat index that are compared at a time (`ralm/index/matrix.py`)."""
QUESTIONS_AT_ONCE: Final = 2048
"""Questions in one of these products (`ralm/index/flat.py`)."""
SCORE_VALUES: Final = 64 * 2**20
"""Most numbers in one tensor of scores (`ralm/reader/scores.py`)."""
TOKEN_BUDGET: Final = {True: 98304, False: 4096}
"""On a GPU, or not: tokens in a batch of passages to embed (`ralm/retriever/embed.py`)."""
CONTEXT_BYTES: Final = GIB
"""What CUDA and its libraries take for themselves on a GPU: an assumption, not measured here."""
FAISS_SCRATCH_BYTES: Final = 3 * GIB // 2
"""What faiss sets aside on a GPU for its searches (its default)."""


def learning_weights(config: TrainingConfig, models: Models) -> int:
    """P: weights that learn. An encoder that questions and passages share counts once."""
    halves = {"joint": 1 if models.is_tied else 2, "query_side": 1, "reader_only": 0}[config.mode]
    reader = 0 if config.freeze_reader else models.reader.num_weights
    return reader + halves * models.encoder.num_weights


def resting_weights(config: TrainingConfig, models: Models) -> int:
    """Weights that are computed with and do not learn; query-side training never loads the passage encoder."""
    encoder = models.encoder.num_weights if config.mode == "reader_only" and config.retrieves else 0
    return encoder + (models.reader.num_weights if config.freeze_reader else 0)


def training_memory(
    config: TrainingConfig, models: Models, kernels: Kernels, index: IndexSize, *, devices: int, passages: int
) -> dict[str, int]:
    """Bytes of one device during an update, by what they are for.

    Source of the shares: Rajbhandari et al., "ZeRO" (arXiv 1910.02054), section 5.

    Args:
        config: of the training.
        models: shapes and lengths.
        kernels: what operations keep.
        index: that is searched.
        devices: W.
        passages: in the index.
    """
    learnt, resting = learning_weights(config, models), resting_weights(config, models)
    is_split = config.sharding == "gradients"
    part = -(-learnt // devices) if is_split else learnt
    copies = _autocast_copies(config, models, kernels)
    if is_split:  # the whole weights: in bf16, or in fp32 with autocast's copies
        copies = kernels.compute_bytes * learnt if config.precision != "fp16" else FP32 * learnt + copies
    questions = min(config.micro_batch_size, -(-config.batch_size // devices))
    kept, layer = _activations(config, models, kernels, questions)
    scores = _score_bytes(config, models, kernels, questions)
    # Layers are computed again when the scores are gone, and in the backward pass the copies of autocast as well.
    gone = scores + (copies if _only_in_backward(config) and not is_split else 0)
    return {
        "weights": FP32 * (part + resting),
        "gradients": FP32 * (part + learnt) if is_split else FP32 * learnt,
        "optimiser state": 2 * FP32 * part,
        "weights as computed with": copies,
        "activations (estimate)": kept,
        "loss and scores": scores,
        "layer computed again": max(0, layer - gone),
        **_index_rows(config, models.encoder, index, devices=devices, passages=passages, kernels=kernels),
        "CUDA context (assumed)": CONTEXT_BYTES if kernels.is_gpu else 0,
    }


def embedding_memory(shape: EncoderShape, kernels: Kernels, *, tokens: int, token_budget: int) -> dict[str, int]:
    """Bytes of one device while passages are embedded, by what they are for.

    Args:
        shape: of the encoder.
        kernels: format of the weights.
        tokens: of the longest passage.
        token_budget: tokens in a batch; 0 for the default.
    """
    size, c = shape.model_size, kernels.compute_bytes
    batch_tokens = max(token_budget or TOKEN_BUDGET[kernels.is_gpu], tokens)
    widest = max(2 * shape.feed_forward + 3 * size, 8 * size)  # values of a token alive at once
    return {
        "weights": c * shape.num_weights,
        "batch": batch_tokens * (c * widest + tokens),  # and a mask of bytes, tokens x tokens for each passage
        "CUDA context (assumed)": CONTEXT_BYTES if kernels.is_gpu else 0,
    }


def _activations(config: TrainingConfig, models: Models, kernels: Kernels, questions: int) -> tuple[int, int]:
    """What is kept, and the largest layer that is computed again or without gradient; 0 where none is."""
    checkpoints = config.gradient_checkpointing
    reader = reader_activations(
        models.reader,
        kernels,
        questions=questions,
        passages=1 if config.closed_book else config.num_passages,
        input_tokens=-(-models.max_input_tokens // 8) * 8,
        target_tokens=models.max_target_tokens,
        checkpoints=checkpoints,
    )
    texts = [(questions, models.max_question_tokens)] if config.trains_retriever else []
    if config.mode == "joint":
        texts.append((questions * config.num_scored, models.max_passage_tokens))
    encoders = [
        encoder_activations(models.encoder, kernels, texts=count, tokens=tokens, checkpoints=checkpoints)
        for count, tokens in texts
    ]
    kept = sum(each.kept for each in encoders)
    layers = [each.layer for each in encoders if checkpoints]
    if config.freeze_reader:  # it has read before the encoders begin
        return kept, max([*layers, reader.layer - kept, 0])
    if checkpoints or _reads_twice(config):
        layers.append(reader.layer)
    return kept + reader.kept, max(layers, default=0)


def _reads_twice(config: TrainingConfig) -> bool:
    """True where passages are encoded for their scores alone, without gradient."""
    return config.trains_retriever and (config.score_pass == "eval" or config.num_scored > config.num_passages)


def _only_in_backward(config: TrainingConfig) -> bool:
    return config.gradient_checkpointing and not config.freeze_reader and not _reads_twice(config)


def _autocast_copies(config: TrainingConfig, models: Models, kernels: Kernels) -> int:
    """What autocast copies and keeps: the weights of matrix products that learn."""
    if kernels.compute_bytes == FP32:
        return 0
    halves = {"joint": 1 if models.is_tied else 2, "query_side": 1, "reader_only": 0}[config.mode]
    reader = 0 if config.freeze_reader else models.reader.num_linear
    return kernels.compute_bytes * (reader + halves * models.encoder.num_linear)


def _score_bytes(config: TrainingConfig, models: Models, kernels: Kernels, questions: int) -> int:
    """Logits of the loss and of the passages' scores, and the states of all passages that the scores are made from.

    A logit is there in the compute format, and three times in fp32: converted, divided by the temperature, and as
    logarithm of its probability.
    """
    reader, tokens = models.reader, models.max_input_tokens
    values = questions * models.max_target_tokens * reader.vocabulary
    states = 0
    if config.trains_retriever:
        width = reader.vocabulary
        if config.objective == "loop":
            width = max(width, reader.num_heads * config.num_scored * tokens)
        values += min(SCORE_VALUES, questions * config.num_scored * models.max_target_tokens * width)
        states = 2 * questions * config.num_scored * tokens * reader.model_size * FP32
    return values * (kernels.compute_bytes + 3 * FP32) + states


def _index_rows(
    config: TrainingConfig, encoder: EncoderShape, index: IndexSize, *, devices: int, passages: int, kernels: Kernels
) -> dict[str, int]:
    shard, workspace = 0, 0
    if config.retrieves and index.is_on_device:
        shard = index.share(passages, devices)
        rows = min(BLOCK_ROWS, -(-passages // devices))
        if index.kind == "flat":
            is_fp32 = index.bytes_per_vector == FP32 * encoder.model_size
            block = 0 if is_fp32 else FP32 * encoder.model_size
            workspace = rows * (block + FP32 * min(config.batch_size, QUESTIONS_AT_ONCE))
        elif kernels.is_gpu:
            workspace = FAISS_SCRATCH_BYTES
    return {"index shard": shard, "search workspace": workspace}
