"""What many tests share: a toy corpus, tiny random models with real tokenizers, an own store per test."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

os.environ.setdefault("RALM_TRACKING", "off")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SUBJECTS = ("granite", "willow", "otter", "copper", "lantern", "glacier", "saffron", "falcon", "harbour", "violin")
FACTS = (
    ("colour", "The colour of {0} is mostly {1} in the northern valleys, as travellers have often noted."),
    ("origin", "Scholars trace the origin of {0} to the {1} coast, where the first records were kept."),
    ("use", "People use {0} to repair {1} tools before winter, and they store it in dry sheds."),
)
VALUES = ("amber", "silver", "crimson", "eastern", "western", "iron", "wooden", "quiet", "ancient", "narrow")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real dumps and question sets that are not part of the project; tests that use them skip without."""
    folder = Path(os.environ.get("RALM_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("needs the shared real data (set RALM_SHARED_DATA)")
    return folder


@pytest.fixture(autouse=True)
def ralm_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store for every test."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("RALM_HOME", str(home))
    for name in ("RALM_STORE_URI", "RALM_EVENTS", "RALM_PRECISION", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(autouse=True)
def root_logging() -> Iterator[None]:
    """Takes back the handlers that commands of a test set up: they write to what the test had for stderr."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def toy_rows() -> list[dict[str, object]]:
    """30 passages over 10 pages."""
    rows: list[dict[str, object]] = []
    for page, subject in enumerate(SUBJECTS):
        for position, (section, sentence) in enumerate(FACTS):
            text = sentence.format(subject, VALUES[(page * 3 + position * 7) % len(VALUES)])
            digest = hashlib.sha256(f"{page}/{section}/{text}".encode())
            rows.append(
                {
                    "passage_id": int.from_bytes(digest.digest()[:8], "big") >> 1,
                    "source_id": str(page + 1),
                    "page_id": page + 1,
                    "revision_id": None,
                    "title": subject.title(),
                    "section": section.title(),
                    "text": text,
                    "kind": "text",
                    "position": position,
                    "content_hash": digest.hexdigest(),
                }
            )
    return rows


def toy_questions(split: str) -> list[dict[str, object]]:
    """Questions on the toy corpus; the splits hold different subjects."""
    wanted = {"train": range(0, 6), "dev": range(6, 8), "test": range(8, 10)}[split]
    return [
        {
            "question_id": f"{split}-{page}-{position}",
            "question": f"what is the {section} of {SUBJECTS[page]}",
            "answers": [VALUES[(page * 3 + position * 7) % len(VALUES)]],
            "positive_titles": [SUBJECTS[page].title()],
        }
        for page in wanted
        for position, (section, _) in enumerate(FACTS)
    ]


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store in which the session's toy artifacts are made once."""
    return tmp_path_factory.mktemp("session-home")


@pytest.fixture(scope="session")
def toy_passages(session_home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A `passages` artifact with 30 passages in two parts."""
    from ralm.artifacts.schemas import PASSAGES
    from ralm.artifacts.store import Contents, produce
    from ralm.artifacts.tables import write_table

    def build(folder: Path) -> Contents:
        rows = toy_rows()
        parts = {"part-00000.parquet": rows[:17], "part-00001.parquet": rows[17:]}
        for name, part in parts.items():
            write_table(folder / name, part, PASSAGES)
        return Contents(rows={name: len(part) for name, part in parts.items()}, counts={"passages": len(rows)})

    output = str(tmp_path_factory.mktemp("toy") / "passages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_HOME", str(session_home))
        produce(output, kind="passages", stage="toy", stage_version=1, inputs={}, config={}, build=build)
    return output


@pytest.fixture(scope="session")
def toy_question_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.jsonl, dev.jsonl and test.jsonl on the toy corpus."""
    folder = tmp_path_factory.mktemp("toy-questions")
    for split in ("train", "dev", "test"):
        lines = [json.dumps(row) for row in toy_questions(split)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def toy_questions_artifact(session_home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A `questions` artifact with the splits train, dev and test."""
    from ralm.artifacts.schemas import QUESTIONS
    from ralm.artifacts.store import Contents, produce
    from ralm.artifacts.tables import write_table

    empty = {"task": "qa", "target": None, "options": [], "label": None, "source_id": None, "positive_ids": []}
    rest = {"passages": [], "date": None, "metadata": "{}"}

    def build(folder: Path) -> Contents:
        rows = {}
        for split in ("train", "dev", "test"):
            table = [{**empty, **rest, **row} for row in toy_questions(split)]
            rows[f"{split}.parquet"] = write_table(folder / f"{split}.parquet", table, QUESTIONS)
        return Contents(rows=rows, counts={"questions": sum(rows.values())})

    output = str(tmp_path_factory.mktemp("toy") / "questions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_HOME", str(session_home))
        produce(output, kind="questions", stage="toy", stage_version=1, inputs={}, config={}, build=build)
    return output


@pytest.fixture(scope="session")
def tiny_model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle folder (`retriever/`, `reader/`) in transformers' layout: a 2-layer BERT and a 2+2-layer T5."""
    folder = tmp_path_factory.mktemp("tiny-model")
    write_tiny_model(folder)
    return folder


def write_tiny_model(folder: Path, more_texts: Sequence[str] = ()) -> None:
    """Write what `tiny_model_files` holds; the tokenizers also learn the signs in `more_texts`."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    texts = [f"{row['title']} {row['section']} {row['text']} question: context: answer:" for row in toy_rows()]
    texts += [str(row["question"]) for split in ("train", "dev", "test") for row in toy_questions(split)]
    texts += more_texts

    # Vocabularies by rule: the trainers of the package break ties another way in each process.
    counts = Counter(" ".join(texts).lower().split())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    signs = sorted({sign for text in texts for sign in text.lower() if not sign.isspace()})
    stems = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if word.isalpha()]
    pieces = [*special, *signs, *(f"##{sign}" for sign in signs), *stems]
    known = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    words = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, words.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[MASK]", **names).save_pretrained(folder / "retriever")

    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in range(4))]
    signs = sorted({sign for text in texts for sign in text if not sign.isspace()})
    cased = Counter(f"▁{word}" for text in texts for word in text.split())
    scores = {
        **dict.fromkeys(["▁", *signs], -12.0),
        **{word: math.log(n / cased.total()) for word, n in sorted(cased.items())},
    }
    unigrams = Tokenizer(
        models.Unigram([(name, 0.0) for name in special] + list(scores.items()), special.index("<unk>"))
    )
    unigrams.pre_tokenizer = pre_tokenizers.Metaspace()
    unigrams.decoder = decoders.Metaspace()
    unigrams.add_special_tokens(special)
    unigrams.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", unigrams.token_to_id("</s>"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=unigrams, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "reader")

    with torch.random.fork_rng():
        torch.manual_seed(7)
        bert = BertModel(
            BertConfig(
                vocab_size=words.get_vocab_size(),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=128,
            ),
            add_pooling_layer=False,
        )
        bert.save_pretrained(folder / "retriever")
        t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=unigrams.get_vocab_size(),
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_decoder_layers=2,
                num_heads=2,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=0,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
        t5.save_pretrained(folder / "reader")
        weights = {name: value for name, value in t5.state_dict().items() if "embed_tokens" not in name}
        weights["lm_head.weight"] = torch.randn_like(t5.shared.weight) * 0.05
    # transformers ties lm_head to the embeddings when T5 is built from a config; a FLAN-like reader has its own.
    save_file(weights, folder / "reader" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "reader" / "config.json").read_text())
    (folder / "reader" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


@pytest.fixture(scope="session")
def tiny_model(session_home: Path, tiny_model_files: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A `model` artifact made of `tiny_model_files`."""
    from components.download.stage import download

    output = str(tmp_path_factory.mktemp("toy") / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_HOME", str(session_home))
        download(source=str(tiny_model_files), model=output)
    return output


@pytest.fixture(scope="session")
def toy_index(session_home: Path, toy_passages: str, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An `index` artifact of the toy corpus by the tiny model."""
    from components.embed.stage import embed
    from components.index.stage import index

    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_HOME", str(session_home))
        embed(passages=toy_passages, model=tiny_model, embeddings=str(folder / "embeddings"))
        index(embeddings=str(folder / "embeddings"), index=str(folder / "index"))
    return str(folder / "index")


QUESTION_SETS = Path(__file__).parent / "data" / "question_sets"


def mmlu_archive(folder: Path) -> Path:
    """The excerpt of MMLU as a tar with the official layout."""
    archive = folder / "data.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted((QUESTION_SETS / "mmlu").rglob("*.csv")):
            tar.add(path, path.relative_to(QUESTION_SETS / "mmlu").as_posix())
    return archive


def question_set_files(name: str, folder: Path) -> dict[str, str]:
    """The excerpts of a question set by role, as `files` of `ralm download` takes them."""
    from ralm.question_sets.catalog import find_dataset

    if name.startswith("mmlu"):
        return {"archive": str(mmlu_archive(folder))}
    if name == "triviaqa":
        places = {"train": "unfiltered-web-train.json", "test": "unfiltered-web-dev.json"}
        return {role: str(QUESTION_SETS / "triviaqa" / file) for role, file in places.items()}
    dataset, _ = find_dataset(f"dataset:{name}")
    base = QUESTION_SETS / name.partition("/")[0]
    return {role: str(base / file.name) for role, file in dataset.files.items() if (base / file.name).is_file()}


@pytest.fixture(scope="session")
def task_questions(
    session_home: Path, toy_passages: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Makes a small `questions` artifact for a task: real excerpts; for mlm, lm and section the toy passages.

    The argument is a task, or the name of a question set such as `kilt/fever` or `templama`.
    """
    from components.download.config import DownloadConfig
    from components.download.stage import download

    sources = {"qa": "nq-open", "multiple_choice": "mmlu/5-shot-multi", "kilt": "kilt/nq"}

    @functools.cache
    def make(task: str) -> str:
        folder = tmp_path_factory.mktemp("task-questions")
        output = str(folder / "questions")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RALM_HOME", str(session_home))
            if task in ("mlm", "lm", "section"):
                config = DownloadConfig(num_test=4, num_dev=4)
                download(source=f"corpus:{task}", corpus=toy_passages, questions=output, config=config)
            else:
                name = sources.get(task, task)
                config = DownloadConfig(files=question_set_files(name, folder), dev_split="hash")
                download(source=f"dataset:{name}", questions=output, config=config)
        return output

    return make
