"""Small pipelines whose tasks end in ways that a runner has to tell apart."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.BASE_IMAGE, install_kfp_package=False)
def write_op(text: str) -> str:
    return text


@dsl.component(base_image=images.BASE_IMAGE, install_kfp_package=False)
def exit_op(code: int) -> None:
    print("about to end")
    raise SystemExit(code)


@dsl.component(base_image=images.BASE_IMAGE, install_kfp_package=False)
def fill_memory_op() -> None:
    blocks = []
    while True:
        blocks.append(bytearray(b"x" * (1 << 24)))


@dsl.component(base_image=images.BASE_IMAGE, install_kfp_package=False)
def sleep_op(marker: str) -> None:
    import pathlib
    import time

    pathlib.Path(marker).touch()
    time.sleep(120)


@dsl.component(base_image=images.BASE_IMAGE, install_kfp_package=False)
def second_time_op(marker: str) -> None:
    import pathlib

    is_first = not pathlib.Path(marker).exists()
    pathlib.Path(marker).touch()
    if is_first:
        raise SystemExit(3)


@dsl.pipeline(name="exits")
def exits(code: int) -> None:
    before = write_op(text="kept")
    exit_op(code=code).after(before)


@dsl.pipeline(name="fills-memory")
def fills_memory() -> None:
    fill_memory_op()


@dsl.pipeline(name="sleeps")
def sleeps(marker: str) -> None:
    sleep_op(marker=marker)


@dsl.pipeline(name="tried-again")
def tried_again(marker: str) -> None:
    second_time_op(marker=marker).set_retry(1, backoff_duration="1s")
