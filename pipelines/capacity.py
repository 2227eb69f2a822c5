"""`ralm plan`: what a recipe needs of given machines, before anything runs: memory, hours, storage, network.

The formulas are in `ralm/capacity`, explained with an example in `docs/planning.md`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from components.download.config import DownloadConfig
from components.embed.config import EmbedConfig
from components.evaluate.config import EvaluateConfig
from components.index.config import IndexConfig
from components.plan.stage import Changes, Plan, plan
from components.train.config import TrainConfig
from pipelines.recipes import RECIPES, recipes_json
from ralm.artifacts.files import Location, read_json
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.atlas.preset import with_atlas_preset
from ralm.capacity.architecture import Models, encoder_shape, known_shapes, reader_shape
from ralm.capacity.check import check_run, fits
from ralm.capacity.hours import estimate_hours
from ralm.capacity.index_size import IndexSize
from ralm.capacity.memory import GIB, learning_weights
from ralm.capacity.run import COMPUTE_BYTES, Cluster, Run
from ralm.capacity.storage import storage
from ralm.capacity.traffic import traffic
from ralm.capacity.work import PASSAGE_TOKENS, QUESTION_TOKENS
from ralm.cli import parse_config
from ralm.errors import ArtifactError

MIB: Final = 2**20


def make_plan(
    recipe: str, cluster: Cluster, *, passages: int, settings: str = "{}", model: Location = ""
) -> dict[str, Any]:
    """What a recipe needs of these machines.

    Args:
        recipe: its name.
        cluster: the machines.
        passages: in the corpus.
        settings: changes by stage, as for `ralm pipeline run`.
        model: model artifact whose sizes and lengths are taken instead of the recipe's.

    Returns:
        What `ralm plan --json` prints; memory, storage and network in bytes.

    Raises:
        ConfigError: unknown recipe or setting, or a run that these machines cannot do.
        ArtifactError: the model is none.
    """
    run = _open_run(recipe, cluster, passages, settings, model)
    check_run(run)
    sizes = run.index_sizes()
    index, number_format = sizes[run.index.kind], run.number_format(run.train.precision)
    kinds = [_describe_kind(run, size) for size in sizes.values()]
    hours = estimate_hours(run)
    return {
        "recipe": recipe,
        "passages": passages,
        **dataclasses.asdict(cluster),
        "mode": run.train.mode,
        "precision": number_format,
        "sharding": run.train.sharding,
        "index": {"kind": index.kind, "storage": run.index.storage, "dimension": run.models.encoder.model_size},
        "weights": {
            "reader": run.models.reader.num_weights,
            "encoder": run.models.encoder.num_weights,
            "learning": learning_weights(run.train, run.models),
        },
        "memory": {"training": run.training_memory(index, run.train.sharding), "embedding": run.embedding_memory()},
        "idle_devices": max(0, cluster.devices - run.train.batch_size),
        "main_memory_per_node": 0 if index.is_on_device else cluster.devices // cluster.nodes * _share(run, index),
        "index_kinds": kinds,
        "cheapest_kind": min((kind["bytes_per_process"], kind["kind"]) for kind in kinds if kind["fits"])[1],
        "hours": {**dataclasses.asdict(hours), "total": hours.total},
        "storage": storage(
            run.train, run.index, run.models, index, passages=passages, embedding_dtype=run.embedding_dtype
        ),
        "network_per_update": traffic(
            run.train, run.models, devices=cluster.devices, compute_bytes=COMPUTE_BYTES[number_format]
        ),
    }


def _open_run(recipe: str, cluster: Cluster, passages: int, settings: str, model: Location) -> Run:
    sources = RECIPES[recipe]().sources if recipe in RECIPES else None
    questions = "" if sources is None or sources.questions else "any"  # which ones makes no difference here
    planned = plan(recipes=recipes_json(), recipe=recipe, changes=Changes(questions=questions, settings=settings))
    embed: EmbedConfig = parse_config(EmbedConfig, planned.embed)
    evaluate: EvaluateConfig = parse_config(EvaluateConfig, planned.evaluate)
    read = evaluate.num_passages
    return Run(
        cluster=cluster,
        passages=passages,
        models=_read_models(model) if model else _named_models(planned),
        index=parse_config(IndexConfig, planned.index),
        train=parse_config(TrainConfig, planned.train),
        evaluated_passages=read if evaluate.retrieves and isinstance(read, int) else 0,
        question_tokens=PASSAGE_TOKENS if planned.questions.startswith("corpus:") else QUESTION_TOKENS,
        embedding_precision=embed.precision,
        embedding_dtype=embed.dtype,
        token_budget=embed.token_budget,
    )


def _named_models(planned: Plan) -> Models:
    """Shapes by the names of the recipe's sources, lengths as the download stage would write them."""
    download: DownloadConfig = parse_config(DownloadConfig, planned.download)
    settings = with_atlas_preset(download.model) if planned.model.startswith("atlas:") else download.model
    reader, encoder = known_shapes(model=planned.model, reader=planned.reader, retriever=planned.retriever)
    return Models(
        reader=reader,
        encoder=encoder,
        is_tied=not settings.question_encoder,
        max_input_tokens=settings.reader.max_input_tokens,
        max_target_tokens=settings.reader.max_target_tokens,
        max_passage_tokens=min(settings.retriever.max_passage_tokens, encoder.positions),
        max_question_tokens=min(settings.retriever.max_question_tokens, encoder.positions),
    )


def _read_models(place: Location) -> Models:
    """Shapes and lengths of a model artifact, from its configs alone."""
    artifact = open_artifact(place, "model")
    reader, retriever = _read(artifact, "reader/reader.json"), _read(artifact, "retriever/retriever.json")
    try:
        return Models(
            reader=reader_shape(_read(artifact, "reader/config.json")),
            encoder=encoder_shape(_read(artifact, "retriever/passage/config.json")),
            is_tied=bool(retriever["tied"]),
            max_input_tokens=int(reader["max_input_tokens"]),
            max_target_tokens=int(reader["max_target_tokens"]),
            max_passage_tokens=int(retriever["max_passage_tokens"]),
            max_question_tokens=int(retriever["max_question_tokens"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{place}: expected the configs of a T5 and a BERT, found none of {error}") from error


def _read(artifact: Artifact, name: str) -> Any:
    return read_json(artifact.file(name))


def _share(run: Run, size: IndexSize) -> int:
    return size.share(run.passages, run.cluster.devices)


def _describe_kind(run: Run, size: IndexSize) -> dict[str, Any]:
    return {
        "kind": size.kind,
        "bytes_per_vector": size.bytes_per_vector,
        "bytes_per_process": _share(run, size),
        "held_in": "device" if size.is_on_device else "main memory",
        "fits": fits(run, size),
        "problem": size.problem,
    }


def show_plan(result: dict[str, Any]) -> str:
    """A plan for people."""
    index, weights = result["index"], result["weights"]
    lines = [
        f"recipe    {result['recipe']}: {result['mode']}, {result['precision']}, sharding {result['sharding']}, "
        f"index {index['kind']} {index['storage']}",
        f"weights   {weights['reader']:,} reader, {weights['encoder']:,} encoder; {weights['learning']:,} learn",
        f"machines  {result['nodes']} x {result['devices'] // result['nodes']} devices with "
        f"{result['memory_gib']:g} GiB; {result['passages']:,} passages",
        "",
        *_memory_lines(result["memory"], result["memory_gib"]),
        "",
        *_index_lines(result["index_kinds"]),
        f"cheapest that fits: {result['cheapest_kind']}",
        "",
        *_hour_lines(result["hours"]),
        "",
        *_byte_lines("storage", "GiB", GIB, result["storage"]),
        "",
        *_byte_lines("a device sends, an update", "MiB", MIB, result["network_per_update"]),
    ]
    if result["main_memory_per_node"]:
        lines.append(f"\nmain memory of a node for the index: {result['main_memory_per_node'] / GIB:.2f} GiB")
    if result["idle_devices"]:
        lines.append(f"\n{result['idle_devices']} devices have no question in an update: train.batch_size is smaller")
    return "\n".join(lines)


def _memory_lines(memory: dict[str, dict[str, int]], available_gib: float) -> list[str]:
    """Rows of training and embedding side by side, and what they leave."""
    columns = (memory["training"], memory["embedding"])
    lines = [f"{'memory of a device, GiB':<26} {'training':>9} {'embedding':>10}"]
    for name in dict.fromkeys([*columns[0], *columns[1]]):
        cells = [f"{rows[name] / GIB:.2f}" if rows.get(name) else "-" for rows in columns]
        lines.append(f"  {name:<24} {cells[0]:>9} {cells[1]:>10}")
    totals = [sum(rows.values()) / GIB for rows in columns]
    lines.append(f"  {'total':<24} {totals[0]:>9.2f} {totals[1]:>10.2f}")
    left = [available_gib - total for total in totals]
    lines.append(f"  {f'left of {available_gib:g}':<24} {left[0]:>9.2f} {left[1]:>10.2f}")
    return lines


def _index_lines(kinds: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'index kind':<26} {'B/vector':>9} {'GiB/process':>11}  held in"]
    for kind in kinds:
        note = "" if kind["fits"] else f"; {kind['problem'] or 'does not fit'}"
        size = f"{kind['bytes_per_vector']:>9.0f} {kind['bytes_per_process'] / GIB:>11.2f}"
        lines.append(f"  {kind['kind']:<24} {size}  {kind['held_in']}{note}")
    return lines


def _hour_lines(hours: dict[str, Any]) -> list[str]:
    notes = {
        "embedding": f"{hours['num_embeddings']} x all passages, {hours['passages_per_s']:,.0f} a second and device",
        "training": f"{hours['num_updates']:,} updates of {hours['update_s']:.2f} s: "
        f"{hours['flops_per_update'] / 1e12:,.0f} TFLOP at {hours['training_tflops']:.1f} TFLOP/s a device",
        "refreshes": f"{hours['num_refreshes']:,} of the index",
        "total": "",
    }
    lines = [f"  {name:<24} {hours[name]:>9.2f}  {note}".rstrip() for name, note in notes.items()]
    return [f"{'time':<26} {'hours':>9}", *lines]


def _byte_lines(title: str, unit_name: str, unit: int, rows: dict[str, int]) -> list[str]:
    lines = [f"  {name:<24} {number / unit:>9,.2f}" for name, number in rows.items() if number]
    total = f"  {'total':<24} {sum(rows.values()) / unit:>9,.2f}"
    return [f"{title:<26} {unit_name:>9}", *lines, total]
