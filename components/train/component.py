"""KFP declaration of `train`."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def train_op(
    passages: dsl.Input[dsl.Dataset],
    index: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    questions: dsl.Input[dsl.Dataset],
    trained: dsl.Output[dsl.Model],
    num_processes: int = 1,
    nodes: int = 1,
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Train reader and retriever together, with retrieval in the loop."""
    from components.train.stage import train
    from ralm.cli import run_task

    inputs = {"passages": passages.path, "index": index.path, "model": model.path, "questions": questions.path}
    size = {"num_processes": num_processes, "nodes": nodes}
    run_task(train, **inputs, trained=trained.path, **size, config=config, parent_run_id=parent_run_id)
