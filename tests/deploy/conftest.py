"""The toy run, whose champion the workflow re-indexes."""

from tests.pipelines.conftest import toy_arguments, toy_corpus, toy_run

__all__ = ["toy_arguments", "toy_corpus", "toy_run"]
