"""The main graph: corpus to registered model. Who feeds whom; nothing else."""

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

from components.download.component import download_model_op, download_passages_op, download_questions_op
from components.evaluate.component import evaluate_op
from components.plan.component import plan_op
from components.register.component import register_op
from components.report.component import report_op
from components.track.component import finish_op, start_op
from components.train.component import train_op
from pipelines.recipes import recipes_json
from pipelines.reindex import reindex

NAME = "train-and-evaluate"


def _reindex(
    plan: PipelineTask,
    passages: PipelineChannel,
    model: PipelineChannel,
    parent: PipelineChannel,
    name: str,
) -> PipelineChannel:
    task = reindex(
        passages=passages,
        model=model,
        shards=plan.outputs["Output"],
        num_shards=plan.outputs["num_shards"],
        embed=plan.outputs["embed"],
        index=plan.outputs["index"],
        parent_run_id=parent,
    )
    return task.set_display_name(name).output


def _train_and_evaluate(plan: PipelineTask, parent: PipelineChannel) -> None:
    config = plan.outputs
    downloaded = download_passages_op(source=config["passages"], config=config["download"], parent_run_id=parent)
    corpus = downloaded.set_display_name("download passages").outputs["passages"]
    fetched = download_model_op(
        source=config["model"],
        retriever=config["retriever"],
        reader=config["reader"],
        config=config["download"],
        parent_run_id=parent,
    )
    start_model = fetched.set_display_name("download model").outputs["model"]
    asked = download_questions_op(
        source=config["questions"], corpus=corpus, config=config["download"], parent_run_id=parent
    )
    questions = asked.set_display_name("download questions").outputs["questions"]

    first_index = _reindex(plan, corpus, start_model, parent, "index before training")
    test = {"passages": corpus, "questions": questions, "config": config["evaluate"], "parent_run_id": parent}
    before = evaluate_op(index=first_index, model=start_model, **test).set_display_name("evaluate before training")
    training = train_op(
        passages=corpus,
        index=first_index,
        model=start_model,
        questions=questions,
        num_processes=config["num_processes"],
        nodes=config["nodes"],
        config=config["train"],
        parent_run_id=parent,
    )
    trained = training.set_display_name("train").outputs["trained"]
    # Query-side training leaves the passage encoder as it was: the store then hands out the first embeddings again.
    index = _reindex(plan, corpus, trained, parent, "index after training")
    after = evaluate_op(index=index, model=trained, **test).set_display_name("evaluate after training")
    predictions = after.outputs["predictions"]
    report_op(
        before=before.outputs["predictions"],
        after=predictions,
        trained=trained,
        passages=corpus,
        config=config["report"],
        parent_run_id=parent,
    ).set_display_name("report")
    registered = register_op(
        model=trained,
        index=index,
        passages=corpus,
        predictions=predictions,
        config=config["register"],
        parent_run_id=parent,
    )
    registered.set_display_name("register").set_caching_options(False)


@dsl.pipeline(name=NAME, description="Corpus and questions to a trained, evaluated and registered model.")
def train_and_evaluate(
    recipe: str = "quickstart",
    passages: str = "",
    questions: str = "",
    model: str = "",
    retriever: str = "",
    reader: str = "",
    num_shards: int = 0,
    num_processes: int = 0,
    nodes: int = 0,
    num_passages: int = 0,
    num_steps: int = 0,
    learning_rate: float = 0.0,
    seed: int = -1,
    settings: str = "{}",
) -> None:
    """Corpus and questions to a trained, evaluated and registered model.

    Args:
        recipe: name of the complete run to start from; the other inputs change it where they are given.
        passages: source of the corpus (dump, table, URL, asset); empty: as in the recipe.
        questions: folder of train.jsonl, dev.jsonl and test.jsonl; empty: as in the recipe.
        model: source of a bundle of retriever and reader; empty: as in the recipe.
        retriever: source of the retriever, such as hf://facebook/contriever; empty: as in the recipe.
        reader: source of the reader, such as hf://google/t5-base-lm-adapt; empty: as in the recipe.
        num_shards: tasks that share the encoding of the passages; 0: as in the recipe.
        num_processes: processes of the training on each node, one for each GPU; 0: as in the recipe.
        nodes: machines that the training takes, as a TrainJob of the cluster where several; 0: as in the recipe.
        num_passages: passages per question, in training and evaluation; 0: as in the recipe.
        num_steps: training steps; 0: as in the recipe.
        learning_rate: of the reader; 0: as in the recipe.
        seed: of training; -1: as in the recipe.
        settings: further settings as JSON, stage by stage, such as {"train": {"num_steps": 10}}.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    finished = finish_op(kfp_run_id=run_id).set_caching_options(False)
    with dsl.ExitHandler(finished, name="run"):
        started = start_op(recipe=recipe, kfp_run_id=run_id).set_caching_options(False)
        parent = started.output
        plan = plan_op(
            recipes=recipes_json(),
            recipe=recipe,
            passages=passages,
            questions=questions,
            model=model,
            retriever=retriever,
            reader=reader,
            num_shards=num_shards,
            num_processes=num_processes,
            nodes=nodes,
            num_passages=num_passages,
            num_steps=num_steps,
            learning_rate=learning_rate,
            seed=seed,
            settings=settings,
        ).set_caching_options(False)
        _train_and_evaluate(plan, parent)
