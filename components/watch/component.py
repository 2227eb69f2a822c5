"""KFP declaration of `watch`.

Whether the source is new is the output named `Output`: kfp's local runner finds no other name in a condition, and would
leave out what depends on it without a word.
"""

from typing import NamedTuple

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def watch_op(
    recipe: str,
    source: str,
    passages: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    mirrors: str = "",
    force: bool = False,
) -> NamedTuple(  # type: ignore[valid-type]
    "Watch", [("Output", bool), ("source", str), ("date", str), ("reason", str)]
):
    """Look for something newer than the champion's passages."""
    from components.watch.stage import watch
    from ralm.cli import run_step

    places = {"passages": passages.path, "model": model.path}
    return tuple(run_step(watch, recipe=recipe, source=source, mirrors=mirrors, force=force, **places))
