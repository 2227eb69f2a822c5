"""The graph of a re-index: a new dump becomes the next index of a registered model, if it is no worse.

Only what changed is cleaned and encoded. A run that finds nothing new ends after four small tasks.
"""

from typing import Any

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel

from components.compare.component import compare_op
from components.download.component import download_passages_op, download_questions_op
from components.evaluate.component import evaluate_op
from components.gate.component import gate_op
from components.plan.component import plan_op
from components.register.component import register_op
from components.select.component import select_pair_op
from components.watch.component import watch_op
from pipelines.embed_and_index import update_index
from pipelines.profiles import place
from pipelines.recipes import recipes_json
from pipelines.tracing import part, tracked

NAME = "reindex"
PARTS = (update_index,)


class Rebuild:
    """The tasks of a run that found something new."""

    def __init__(self, config: Any, champion: Any, source: PipelineChannel, parent: PipelineChannel) -> None:
        self._config, self._champion, self._parent = config, champion, parent
        downloaded = download_passages_op(
            source=source,
            previous=champion["selected_passages"],
            config=config["download"],
            parent_run_id=parent,
        )
        self._passages = place(downloaded, "corpus", name="download passages", is_cached=False).outputs["passages"]
        compared = compare_op(
            previous=champion["selected_passages"],
            passages=self._passages,
            config=config["compare"],
            parent_run_id=parent,
        )
        self._changes = place(compared, "corpus", name="compare").outputs["changes"]
        task = part(update_index)(
            passages=self._passages,
            model=champion["selected_model"],
            previous_passages=champion["selected_passages"],
            previous_index=champion["selected_index"],
            shards=config["Output"],
            num_shards=config["num_shards"],
            embed=config["embed"],
            index=config["index"],
            parent_run_id=parent,
        )
        self._index = task.set_display_name("update index").output
        self._questions = self._ask(config["questions"], "download questions")
        self._before = self._evaluate(self._questions, "evaluate champion", is_champion=True)
        self._after = self._evaluate(self._questions, "evaluate challenger", is_champion=False)

    def _ask(self, source: PipelineChannel, name: str) -> PipelineChannel:
        task = download_questions_op(
            source=source, corpus=self._passages, config=self._config["download"], parent_run_id=self._parent
        )
        return place(task, "corpus", name=name, is_cached=False).outputs["questions"]

    def _evaluate(self, questions: PipelineChannel, name: str, *, is_champion: bool) -> PipelineChannel:
        task = evaluate_op(
            passages=self._champion["selected_passages"] if is_champion else self._passages,
            index=self._champion["selected_index"] if is_champion else self._index,
            model=self._champion["selected_model"],
            questions=questions,
            config=self._config["evaluate"],
            parent_run_id=self._parent,
        )
        return place(task, "evaluate", name=name).outputs["predictions"]

    def settle(self, fresh: PipelineChannel | None = None) -> None:
        """Decide and register; with questions about fresh facts, if there are any."""
        asked = {}
        if fresh is not None:
            questions = self._ask(fresh, "download fresh questions")
            asked = {
                "fresh_champion": self._evaluate(questions, "fresh facts: champion", is_champion=True),
                "fresh_challenger": self._evaluate(questions, "fresh facts: challenger", is_champion=False),
            }
        decided = gate_op(
            champion=self._before,
            challenger=self._after,
            champion_index=self._champion["selected_index"],
            challenger_index=self._index,
            changes=self._changes,
            champion_version=self._champion["version"],
            config=self._config["gate"],
            parent_run_id=self._parent,
            **asked,
        )
        registered = register_op(
            model=self._champion["selected_model"],
            index=self._index,
            passages=self._passages,
            predictions=self._after,
            decision=place(decided, "small", name="gate").outputs["decision"],
            config=self._config["register"],
            parent_run_id=self._parent,
        )
        place(registered, "small", name="register", is_cached=False)


def reindex(
    recipe: str = "quickstart",
    registered_as: str = "",
    source: str = "",
    mirrors: str = "",
    questions: str = "",
    fresh_questions: str = "",
    num_shards: int = 0,
    max_loss: float = 0.01,
    confidence: float = 0.95,
    force: bool = False,
    settings: str = "{}",
) -> None:
    """Re-index a registered model when there is a new dump; the new index takes over only if it is no worse.

    Args:
        recipe: name of the recipe that the model was trained with, such as nq-base: its champion gets the new index,
            and its corpus, questions and settings of the evaluation are taken where no others are given.
        registered_as: name of the registered model without ralm-, where it is not that of the recipe.
        source: where new texts come from: wiki:NAME/latest is the newest finished Wikipedia dump, such as
            wiki:enwiki/latest; or a file, a folder, a URL; empty: as in the recipe.
        mirrors: addresses of sites with Wikipedia's dumps, with commas between, asked in this order; empty: as
            RALM_WIKI_BASE_URL in the task says, else dumps.wikimedia.org.
        questions: what champion and challenger are asked: question files, a folder of them, or dataset:NAME such as
            dataset:nq-open; empty: as in the recipe.
        fresh_questions: questions about what changed, asked besides; empty: none.
        num_shards: parallel tasks that share the encoding of new passages; 0: as in the recipe.
        max_loss: how much worse the new index may be on the main figure, such as exact match, as a fraction of the
            questions; 0.01 is one in a hundred.
        confidence: how sure it has to be that the loss is no greater; more than 0.5 and less than 1.
        force: true to index again what is not new, or was indexed, refused or rolled back before.
        settings: further settings as JSON, stage by stage (docs/reference.md), such as
            {"gate": {"max_latency_ratio": 1.5}}; passages, vectors and index are made as those of the champion were,
            unless they are named here.
    """
    with tracked(NAME, recipe) as start:
        pair = select_pair_op(recipe=recipe, registered_as=registered_as).after(start)
        champion = place(pair, "small", name="select champion", is_cached=False).outputs
        plan = plan_op(
            recipes=recipes_json(),
            recipe=recipe,
            passages=source,
            questions=questions,
            num_shards=num_shards,
            mirrors=mirrors,
            max_loss=max_loss,
            confidence=confidence,
            registered_as=champion["recipe"],
            made_with=champion["made_with"],
            settings=settings,
        )
        config = place(plan, "small", name="plan", is_cached=False).outputs
        watched = watch_op(
            recipe=champion["recipe"],
            source=config["passages"],
            passages=champion["selected_passages"],
            model=champion["selected_model"],
            mirrors=mirrors,
            force=force,
        )
        news = place(watched, "small", name="watch", is_cached=False).outputs
        with dsl.If(news["Output"] == True, name="something new"):  # noqa: E712 - a channel, not a truth value
            rebuild = Rebuild(config, champion, news["source"], start.output)
            with dsl.If(fresh_questions == "", name="without fresh questions"):
                rebuild.settle()
            with dsl.Else(name="with fresh questions"):
                rebuild.settle(fresh_questions)
