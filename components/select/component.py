"""KFP declaration of `select`."""

from typing import NamedTuple

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def select_pair_op(
    recipe: str,
    selected_model: dsl.Output[dsl.Model],
    selected_index: dsl.Output[dsl.Artifact],
    selected_passages: dsl.Output[dsl.Dataset],
    alias: str = "champion",
    model: str = "",
    index: str = "",
    passages: str = "",
    registered_as: str = "",
) -> NamedTuple(  # type: ignore[valid-type]
    "Selection",
    [("name", str), ("version", str), ("wiki", str), ("dump_date", str), ("recipe", str), ("made_with", str)],
):
    """Take the champion, or another pair of model and index, as artifacts."""
    from components.select.stage import select
    from ralm.cli import run_step

    outputs = {"selected_model": selected_model.path, "selected_index": selected_index.path}
    given = {"alias": alias, "model": model, "index": index, "passages": passages, "registered_as": registered_as}
    return run_step(select, recipe=recipe, selected_passages=selected_passages.path, **outputs, **given)
