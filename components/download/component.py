"""KFP declarations of `download`: one for each kind of artifact it can make."""

from kfp import dsl

from components.images import BASE_IMAGE, CPU_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def download_passages_op(
    source: str,
    passages: dsl.Output[dsl.Dataset],
    previous: dsl.Input[dsl.Dataset] = None,
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Turn a corpus (dump, table, documents) into passages."""
    from components.download.stage import download
    from ralm.cli import run_task

    places = {"source": source, "passages": passages.path, "previous": previous.path if previous else ""}
    run_task(download, **places, config=config, parent_run_id=parent_run_id)


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def download_questions_op(
    source: str,
    corpus: dsl.Input[dsl.Dataset],
    questions: dsl.Output[dsl.Dataset],
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Turn question files, a published question set or the corpus itself into questions."""
    from components.download.stage import download
    from ralm.cli import run_task

    places = {"source": source, "corpus": corpus.path, "questions": questions.path}
    run_task(download, **places, config=config, parent_run_id=parent_run_id)


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def download_model_op(
    model: dsl.Output[dsl.Model],
    source: str = "",
    retriever: str = "",
    reader: str = "",
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Put a retriever and a reader together to a model."""
    from components.download.stage import download
    from ralm.cli import run_task

    places = {"source": source, "retriever": retriever, "reader": reader, "model": model.path}
    run_task(download, **places, config=config, parent_run_id=parent_run_id)
