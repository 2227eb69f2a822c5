"""Whether a planned run can be: what cannot is refused with the reason and what to change."""

from __future__ import annotations

from ralm.capacity.index_size import IndexSize
from ralm.capacity.memory import GIB
from ralm.capacity.run import FLAT_SHARE, Run
from ralm.errors import ConfigError
from ralm.index.config import Kind
from ralm.training.config import Sharding


def check_run(run: Run) -> None:
    """Refuse a run that these machines cannot do.

    Raises:
        ConfigError: more passages asked for than there are, an index that cannot be, or too little memory.
    """
    sizes = run.index_sizes()
    _check_passages(run)
    if run.train.retrieves:
        _check_index(run, sizes)
    _check_training(run, sizes[run.index.kind])
    _check_embedding(run)


def fits(run: Run, size: IndexSize) -> bool:
    """True if training fits the devices with an index of this size."""
    total = sum(run.training_memory(size, run.train.sharding).values())
    return not size.problem and total <= run.cluster.memory_bytes and _stays_on_device(run, size)


def _stays_on_device(run: Run, size: IndexSize) -> bool:
    is_bounded = size.kind == "flat" and run.cluster.device.is_gpu
    return not is_bounded or size.share(run.passages, run.cluster.devices) <= FLAT_SHARE * run.cluster.memory_bytes


def _check_passages(run: Run) -> None:
    trained = run.train.num_scored if run.train.retrieves else 0
    wanted = {"train.num_passages, train.num_retrieved": trained, "evaluate.num_passages": run.evaluated_passages}
    for name, count in wanted.items():
        if count > run.passages:
            raise ConfigError(f"{name}: expected at most the {run.passages:,} passages of the corpus, found {count:,}")


def _check_index(run: Run, sizes: dict[Kind, IndexSize]) -> None:
    chosen = sizes[run.index.kind]
    if chosen.problem:
        possible = ", ".join(size.kind for size in sizes.values() if not size.problem)
        raise ConfigError(f"index.kind: {chosen.kind} cannot be: {chosen.problem}; choose one of {possible}")
    if not _stays_on_device(run, chosen):
        share, limit = chosen.share(run.passages, run.cluster.devices), FLAT_SHARE * run.cluster.memory_bytes
        smaller = [size.kind for size in sizes.values() if fits(run, size)]
        advice = f"choose {' or '.join(smaller[:2])}, or take more devices" if smaller else "take more devices"
        raise ConfigError(
            f"index.kind: flat takes {_gib(share)} GiB of each device, expected at most {_gib(limit)} GiB "
            f"({FLAT_SHARE} of its memory); {advice}"
        )


def _check_training(run: Run, index: IndexSize) -> None:
    given: Sharding = run.train.sharding
    other: Sharding = "gradients" if given == "none" else "none"
    rows = {sharding: run.training_memory(index, sharding) for sharding in (given, other)}
    totals = {sharding: sum(of_one.values()) for sharding, of_one in rows.items()}
    if totals[given] <= run.cluster.memory_bytes:
        return
    found = (
        f"memory: training takes {_gib(totals[given])} GiB of each device with train.sharding {given}, "
        f"expected at most {run.cluster.memory_gib:g} GiB"
    )
    if totals[other] <= run.cluster.memory_bytes:
        raise ConfigError(f"{found}; set train.sharding to {other}, which takes {_gib(totals[other])} GiB")
    least = rows[min(totals, key=lambda sharding: totals[sharding])]
    largest = max(least, key=lambda name: least[name])
    raise ConfigError(
        f"{found}, and {_gib(totals[other])} GiB with {other}; the most of the smaller goes to {largest} "
        f"({_gib(least[largest])} GiB): {_advice(run, largest)}"
    )


def _advice(run: Run, row: str) -> str:
    """What makes a row of the memory table smaller."""
    if row in ("index shard", "search workspace"):
        return "take more devices, or an index.kind with fewer bytes for a vector"
    if row in ("activations (estimate)", "loss and scores", "layer computed again"):
        changes = [] if run.train.gradient_checkpointing else ["set train.gradient_checkpointing"]
        if run.train.micro_batch_size > 1:
            changes.append("lower train.micro_batch_size")
        changes.append("lower train.num_passages or download.model.reader.max_input_tokens")
        return ", ".join(changes)
    return "take devices with more memory, more devices with train.sharding gradients, or a smaller model"


def _check_embedding(run: Run) -> None:
    total = sum(run.embedding_memory().values())
    if total > run.cluster.memory_bytes:
        raise ConfigError(
            f"memory: embedding takes {_gib(total)} GiB of each device, expected at most "
            f"{run.cluster.memory_gib:g} GiB; lower embed.token_budget"
        )


def _gib(number: float) -> str:
    return f"{number / GIB:,.2f}"
