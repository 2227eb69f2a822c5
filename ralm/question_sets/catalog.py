"""The question sets with a name (`dataset:NAME`): who publishes them, where, under which licence, and their checksums.

Checksums are those of the files as published; where none could be known (TriviaQA, TempLAMA, FiD's indices) the file
is taken as it comes. Either way the sha256 of what was read stands in the manifest's inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ralm.errors import ConfigError
from ralm.question_sets.kilt import QUESTIONS_ROLE, TASKS
from ralm.sources import fetch_file

PREFIX = "dataset:"


@dataclasses.dataclass(frozen=True)
class OfficialFile:
    """One published file."""

    url: str
    sha256: str = ""
    """Empty where it could not be known."""

    @property
    def name(self) -> str:
        """Last part of its address."""
        return self.url.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One published question set."""

    name: str
    page: str
    """Who publishes it."""
    licence: str
    files: Mapping[str, OfficialFile]
    """By role, mostly the split."""


_NQ = "https://raw.githubusercontent.com/google-research-datasets/natural-questions/master/nq_open/"
_FEVER = "https://fever.ai/download/fever/"
_KILT = "http://dl.fbaipublicfiles.com/KILT/"
_TEMPLAMA = "https://storage.googleapis.com/gresearch/templama/"
_FID_INDEX = OfficialFile("https://dl.fbaipublicfiles.com/FiD/data/dataindex.tar.gz")
_TRIVIAQA = OfficialFile("https://nlp.cs.washington.edu/triviaqa/data/triviaqa-unfiltered.tar.gz")

_KILT_SHA256 = {
    "fever-train": "a42b948957680b3d316bbc9c24f3e499f0e93a3b0a8b94ca9d972d5da5758c6a",
    "fever-dev": "0132fb971e4206c8bd9da3916f0f46a30ee6610394aee1738ce6cf6644592739",
    "fever-test": "d95e0a7086c1d5687984460aa9d5b82b3afb58972132c8cc04a75dfd23cb1a86",
    "aidayago2-train": "398231ec4ee9fd5616456d049875e51b1e0709f00ac2d74398dd4480ae5647b2",
    "aidayago2-dev": "3f5e23e1af46c8671c9870e13ced13fd517029da4963ad9ff4b834c4b42deb52",
    "aidayago2-test": "2ba0836d3f8c70126022a83fd78da0bf7c910fa7813996dd2afee5e38de63648",
    "wned-dev": "e8e91d120abcb3433c952541aebd8dbf0c6abe3c378bdd64cd6d2186738cfbaf",
    "wned-test": "f7b220d404d474f617b00c4a030a87024835b72aff131016716b84feca4d95ee",
    "cweb-dev": "c98b2301818b53df2025b09801be095152244dbbe7242efbfffd018929bfb4bf",
    "cweb-test": "18b078340bde25e42c7136c5bc80c2e3557803e40137b40230af5834e74b6c0d",
    "trex-train": "724a8a0fd1f99fe9b15cf6309d7ce63dcb7cd31f33aea717ff26e6d6b6fbdd97",
    "trex-dev": "7ee1a2cd351d928d01ede1763ae8d6ae442a00b07deef80e347852f20a029e5f",
    "trex-test": "0a2c6a31ebea567e7a8b31c44bf2fb59dab601c8da6de7f3a53419c7710bdc43",
    "structured_zeroshot-train": "f666359fa2b23e75d700bd1f25efd12d3bf981b1be70d8ad2d268d67e9bb3a5d",
    "structured_zeroshot-dev": "dd120ba5b62c6499f4e79bf5bf5a908eb96b583ba9bf8c76a4535ac21c5dac8d",
    "structured_zeroshot-test": "3353137527c6fe9e48910e2c4d94d3ac01352c52e90a618beaaa807968fd39da",
    "nq-train": "13629ef9f0c4bb7b7b237ce08fae2334acb32a2c1bf69db2350021cad46188a4",
    "nq-dev": "1bcdb150fb10504bd80b915730cde1b384c21647bcf14a4592e4e5df42cc6dfb",
    "nq-test": "1232f95e7d008669930c441444aa470d54678d886335175e2227455716309e15",
    "hotpotqa-train": "7ba73ede642336703d1235c63ecb4c20ae90c7eb19d36302bffa7eb1ec7f9153",
    "hotpotqa-dev": "7f2efbc22c462eb5710e5ecd99447702e7f48203eecd4489bf32a332389d70b6",
    "hotpotqa-test": "656d51f53796e3ea2a1f808a22160e7363a24a05f1ac7dd094d25659d963ef51",
    "eli5-train": "66f19183bda5f5185fe98a5fe84925f6802d9b53a5bb12728ded760fd80ef0a0",
    "eli5-dev": "10387a08e3277d3e5722305cef8e739279c83de0218e7b3db76b301949822303",
    "eli5-test": "43f82439f15f3141d115c06fb0dc0697a2a6313705dbdec6668eaefe9925a2c3",
    "wow-train": "d90e9191d52670e38c340c4aa208e326bbf10f1e85ef6af9b3d3bcb98d3d30fb",
    "wow-dev": "bbf98ea3841f3454e189e69829d6c03149c2e7482b3feda0ea73acf547654c7b",
    "wow-test": "f3303ec5d7def4cf178552a8ed17bd01cb23bfeccc3abde147bebfa4bade6d8b",
    "triviaqa-train": "509e627a5e606d3b8018c04cd99415d7dca90d7b9a9f491ba0cf2db8c7e999ad",
    "triviaqa-dev": "bb505d8437100589de72256bf0d106a4a72da01df5a977fbc778688b8621d5a6",
    "triviaqa-test": "a6904eeb81a269cc675152c72b31c5b3361b40bf277a2973f2836670c7de4a19",
}
"""By file stem and split; wned and cweb have no train set."""


def _kilt(task: str) -> Dataset:
    stem = TASKS[task]
    ids = "_id" if stem == "triviaqa" else ""
    endings = {"train": f"train{ids}", "dev": f"dev{ids}", "test": f"test{ids}_without_answers"}
    files = {
        split: OfficialFile(f"{_KILT}{stem}-{ending}-kilt.jsonl", _KILT_SHA256[f"{stem}-{split}"])
        for split, ending in endings.items()
        if f"{stem}-{split}" in _KILT_SHA256
    }
    if stem == "triviaqa":
        files[QUESTIONS_ROLE] = _TRIVIAQA
    return Dataset(f"kilt/{task}", "https://github.com/facebookresearch/KILT", "MIT; each task's own terms", files)


DATASETS: Mapping[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "nq-open",
            "https://github.com/google-research-datasets/natural-questions",
            "CC BY-SA 3.0",
            {
                "train": OfficialFile(
                    f"{_NQ}NQ-open.train.jsonl", "0c93aaf13b12f855628489665e4ef85ffb8573ad444646f11f4fabdc57a0aabf"
                ),
                "test": OfficialFile(
                    f"{_NQ}NQ-open.dev.jsonl", "f15567f38099f3615f5b8a685c0aef449c11ad90d3da3735e8d1b98115b40616"
                ),
                "index": _FID_INDEX,
            },
        ),
        Dataset(
            "triviaqa",
            "https://nlp.cs.washington.edu/triviaqa/",
            "not stated for the questions, which are their authors'",
            {"archive": _TRIVIAQA, "index": _FID_INDEX},
        ),
        Dataset(
            "templama",
            "https://github.com/google-research/language/tree/master/language/templama",
            "Apache-2.0 code; facts from Wikidata, CC0",
            {
                split: OfficialFile(f"{_TEMPLAMA}{name}.json")
                for split, name in (("train", "train"), ("dev", "val"), ("test", "test"))
            },
        ),
        Dataset(
            "fever",
            "https://fever.ai/dataset/fever.html",
            "CC BY-SA 3.0",
            {
                "train": OfficialFile(
                    f"{_FEVER}train.jsonl", "eba7e8f87076753f8494718b9a857827af7bf73e76c9e4b75420207d26e588b6"
                ),
                "dev": OfficialFile(
                    f"{_FEVER}shared_task_dev.jsonl", "e89865bfe1b4dd054e03dd57d7241a6fde24862905f31117cf0cd719f7c78df7"
                ),
                "test": OfficialFile(
                    f"{_FEVER}shared_task_test.jsonl",
                    "76dd0872d8fa1f49efe1194fe8a88b7dd4c715c77d87a142b615d4be583e1e51",
                ),
            },
        ),
        Dataset(
            "mmlu",
            "https://github.com/hendrycks/test",
            "MIT",
            {
                "archive": OfficialFile(
                    "https://people.eecs.berkeley.edu/~hendrycks/data.tar",
                    "bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b",
                )
            },
        ),
        *(_kilt(task) for task in TASKS),
    )
}


def find_dataset(source: str) -> tuple[Dataset, str]:
    """The question set behind `dataset:NAME[/VARIANT]`, and the variant (of mmlu).

    Raises:
        ConfigError: there is none of this name.
    """
    name = source.removeprefix(PREFIX)
    if name in DATASETS:
        return DATASETS[name], ""
    base, _, variant = name.partition("/")
    if base == "mmlu" and variant:
        return DATASETS[base], variant
    known = ", ".join(PREFIX + known for known in DATASETS)
    raise ConfigError(f"{source}: unknown question set; there are {known} (mmlu with a layout, as mmlu/5-shot-multi)")


def fetch_files(
    dataset: Dataset, *, files: Mapping[str, str], base_url: str, without: tuple[str, ...] = ()
) -> dict[str, Path]:
    """Local copies of a question set's files, by role.

    Args:
        dataset: which one.
        files: the user's own copies by role (any source of one file); where given, only these are used, unchecked.
        base_url: of a mirror that has the official files as `BASE/NAME/FILE`; empty: where they are published.
        without: roles that are not needed.

    Raises:
        ConfigError: a role that the question set does not have.
        DataError: a file is missing, cannot be reached, or is not the published one.
    """
    roles = {*dataset.files, *(("train", "test") if "archive" in dataset.files and dataset.name == "triviaqa" else ())}
    if unknown := sorted(set(files) - roles):
        raise ConfigError(f"files: {dataset.name} has {', '.join(sorted(roles))}, found {unknown[0]!r}")
    if files:
        return {role: fetch_file(source) for role, source in sorted(files.items())}
    wanted = {role: file for role, file in dataset.files.items() if role not in without}
    base = base_url.rstrip("/")
    return {
        role: fetch_file(f"{base}/{dataset.name}/{file.name}" if base else file.url, sha256=file.sha256 or None)
        for role, file in wanted.items()
    }
