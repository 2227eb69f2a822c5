"""The main graph: corpus to registered model. Who feeds whom; nothing else."""

from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

from components.download.component import download_model_op, download_passages_op, download_questions_op
from components.evaluate.component import evaluate_op
from components.plan.component import plan_op
from components.register.component import register_op
from components.report.component import report_op
from components.train.component import train_op
from pipelines.embed_and_index import embed_and_index
from pipelines.profiles import place
from pipelines.recipes import recipes_json
from pipelines.tracing import part, tracked

NAME = "train-and-evaluate"
PARTS = (embed_and_index,)


class Start:
    """Tasks with which the graphs of a training begin, and what they make."""

    def __init__(self, plan: PipelineTask, parent: PipelineChannel) -> None:
        self.config = config = plan.outputs
        self._parent, self._plan, self._index = parent, plan, part(embed_and_index)
        downloaded = download_passages_op(source=config["passages"], config=config["download"], parent_run_id=parent)
        self.passages = place(downloaded, "corpus", name="download passages", is_cached=False).outputs["passages"]
        fetched = download_model_op(
            source=config["model"],
            retriever=config["retriever"],
            reader=config["reader"],
            config=config["download"],
            parent_run_id=parent,
        )
        self.model = place(fetched, "corpus", name="download model", is_cached=False).outputs["model"]
        asked = download_questions_op(
            source=config["questions"], corpus=self.passages, config=config["download"], parent_run_id=parent
        )
        self.questions = place(asked, "corpus", name="download questions", is_cached=False).outputs["questions"]

    def index(self, model: PipelineChannel, name: str) -> PipelineChannel:
        """The index of the passages by a model."""
        task = self._index(
            passages=self.passages,
            model=model,
            shards=self.config["Output"],
            num_shards=self.config["num_shards"],
            embed=self.config["embed"],
            index=self.config["index"],
            parent_run_id=self._parent,
        )
        return task.set_display_name(name).output

    def train(self, index: PipelineChannel) -> PipelineChannel:
        """The trained model."""
        training = train_op(
            passages=self.passages,
            index=index,
            model=self.model,
            questions=self.questions,
            num_processes=self.config["num_processes"],
            nodes=self.config["nodes"],
            config=self.config["train"],
            parent_run_id=self._parent,
        )
        return place(training, "train", name="train", gpus=self.config["train_gpus"]).outputs["trained"]

    def evaluate(self, model: PipelineChannel, index: PipelineChannel, name: str) -> PipelineChannel:
        """Predictions of a model on the test questions."""
        task = evaluate_op(
            passages=self.passages,
            questions=self.questions,
            index=index,
            model=model,
            config=self.config["evaluate"],
            parent_run_id=self._parent,
        )
        return place(task, "evaluate", name=name).outputs["predictions"]

    def register(self, model: PipelineChannel, index: PipelineChannel, predictions: PipelineChannel) -> None:
        """Register the pair."""
        task = register_op(
            model=model,
            index=index,
            passages=self.passages,
            predictions=predictions,
            config=self.config["register"],
            parent_run_id=self._parent,
        )
        place(task, "small", name="register", is_cached=False)


def _train_and_evaluate(plan: PipelineTask, parent: PipelineChannel) -> None:
    start = Start(plan, parent)
    first_index = start.index(start.model, "index before training")
    before = start.evaluate(start.model, first_index, "evaluate before training")
    trained = start.train(first_index)
    # Query-side training leaves the passage encoder as it was: the store then hands out the first embeddings again.
    index = start.index(trained, "index after training")
    after = start.evaluate(trained, index, "evaluate after training")
    reported = report_op(
        before=before,
        after=after,
        trained=trained,
        passages=start.passages,
        config=start.config["report"],
        parent_run_id=parent,
    )
    place(reported, "small", name="report")
    start.register(trained, index, after)


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
        recipe: name of the complete run to start from, such as quickstart, nq-base or atlas-nq-64-shot-base; the other
            inputs change it where they are given.
        passages: where the texts come from: a dump such as wiki:enwiki/latest, a CSV or JSON lines file, a folder, a
            URL; empty: as in the recipe.
        questions: a folder of train.jsonl, dev.jsonl and test.jsonl, or dataset:NAME such as dataset:nq-open; empty: as
            in the recipe.
        model: retriever and reader in one folder or checkpoint, such as atlas:models/atlas/base; empty: as in the
            recipe.
        retriever: the retriever alone, such as hf://facebook/contriever; empty: as in the recipe.
        reader: the reader alone, such as hf://google/t5-base-lm-adapt; empty: as in the recipe.
        num_shards: parallel tasks that share the encoding of the passages; 0: as in the recipe.
        num_processes: processes of the training on each node, one for each GPU; 0: as in the recipe.
        nodes: machines that the training takes, several as a TrainJob of Kubeflow Trainer; 0: as in the recipe.
        num_passages: passages per question, in training and evaluation; 0: as in the recipe.
        num_steps: training steps; 0: as in the recipe.
        learning_rate: learning rate of the reader; 0: as in the recipe.
        seed: seed of the training; -1: as in the recipe.
        settings: further settings as JSON, stage by stage (docs/reference.md), such as {"train": {"batch_size": 32}}.
    """
    with tracked(NAME, recipe) as start:
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
        ).after(start)
        _train_and_evaluate(place(plan, "small", name="plan", is_cached=False), start.output)
