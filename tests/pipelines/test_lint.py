# No postponed annotations here: kfp reads those of the components below.
import copy
import functools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional  # noqa: UP035 - kfp reads these

import pytest
import yaml
from kfp import compiler, components, dsl, kubernetes

from components.images import BASE_IMAGE, CPU_IMAGE, GPU_IMAGE
from pipelines.lint import check_pipeline, lint_pipeline
from ralm.errors import ConfigError

COMPILED = Path(__file__).resolve().parents[2] / "pipelines/compiled"
IMAGES = (BASE_IMAGE, CPU_IMAGE, GPU_IMAGE)
NEVER_CACHED = ("plan", "notify")
Documents = list[dict[str, Any]]
stage = dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)


@stage
def plan(dump: str, ratio: float) -> NamedTuple(
    "Plan",
    [("Output", List[int]), ("is_new", bool), ("config", str), ("records", List[Dict[str, str]])],  # noqa: UP006
):
    return [0], True, "{}", [{}]


@stage
def download(config: str, passages: dsl.Output[dsl.Dataset]):
    pass


@stage
def embed(shard: int, config: str, passages: dsl.Input[dsl.Dataset], embeddings: dsl.Output[dsl.Dataset]) -> float:
    return 1.0


@stage
def index(
    embeddings: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    seconds: List[float],  # noqa: UP006
    index: dsl.Output[dsl.Artifact],
    previous: dsl.Input[dsl.Model] = None,
):
    pass


@stage
def gate(index: dsl.Input[dsl.Artifact], text: str, margin: float = 0.0) -> str:
    return text


@stage
def optional_gate(index: dsl.Input[dsl.Artifact] = None):
    pass


@stage
def notify(status: dsl.PipelineTaskFinalStatus, run: str):
    pass


@stage
def echo(text: str) -> str:
    return text


@stage
def count(number: int) -> int:
    return number


@stage
def optional_echo(text: Optional[str] = None) -> str:  # noqa: UP045
    return text or ""


@stage
def echo_all(texts: List[str]) -> List[str]:  # noqa: UP006
    return texts


@stage
def merge(passages: dsl.Input[List[dsl.Dataset]]):  # noqa: UP006
    pass


def equip(task: Any, *, with_retry: bool = True) -> Any:
    """Give a task all that a cluster asks for."""
    task.set_cpu_request("500m").set_cpu_limit("2").set_memory_request("512M").set_memory_limit("2Gi")
    if with_retry:
        task.set_retry(2, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
    return kubernetes.set_timeout(task, 3600)


@dsl.pipeline(name="reindex")
def reindex(passages: dsl.Input[dsl.Dataset], shards: List[int], config: str) -> dsl.Artifact:  # noqa: UP006
    with dsl.ParallelFor(shards, parallelism=2) as shard:
        embedded = equip(embed(shard=shard, config=config, passages=passages))
        embedded.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
        kubernetes.add_toleration(embedded, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
        kubernetes.empty_dir_mount(embedded, volume_name="shm", mount_path="/dev/shm", medium="Memory")
    seconds = dsl.Collected(embedded.outputs["Output"])
    built = equip(index(embeddings=dsl.Collected(embedded.outputs["embeddings"]), seconds=seconds))
    return built.outputs["index"]


@dsl.pipeline(name="refresh", description="A new dump to a new index.")
def refresh(dump: str = "latest", ratio: float = 0.5) -> None:
    """A new dump to a new index.

    Args:
        dump: date of the dump.
        ratio: of pages that may change.
    """
    notified = equip(notify(run=dsl.PIPELINE_JOB_ID_PLACEHOLDER), with_retry=False).set_caching_options(False)
    with dsl.ExitHandler(notified, name="run"):
        planned = equip(plan(dump=dump, ratio=ratio)).set_caching_options(False)
        config = planned.outputs["config"]
        with dsl.If(planned.outputs["is_new"] == True):  # noqa: E712 - kfp reads the comparison
            downloaded = equip(download(config=config)).set_env_variable("OMP_NUM_THREADS", "1")
            kubernetes.use_secret_as_env(downloaded, "store", {"token": "STORE_TOKEN"})
            kubernetes.mount_pvc(downloaded, "pages", "/pages")
            built = reindex(passages=downloaded.outputs["passages"], shards=planned.outputs["Output"], config=config)
            equip(gate(index=built.output, text=f"index of {dump} by {config}"))


def compiled(pipeline: Any, path: Path) -> Documents:
    compiler.Compiler().compile(pipeline, str(path))
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lint") / "refresh.yaml"
    compiled(refresh, path)
    return path


@pytest.fixture(scope="module")
def good(good_file: Path) -> Documents:
    return list(yaml.load_all(good_file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


def lint(documents: Documents, folder: Path, *, is_for_cluster: bool = True) -> list[str]:
    """Lint documents; JSON is YAML, and faster to write."""
    path = folder / "mutant.yaml"
    path.write_text("\n---\n".join(json.dumps(document) for document in documents), encoding="utf-8")
    return lint_pipeline(path, allowed_images=IMAGES, is_for_cluster=is_for_cluster, never_cached=NEVER_CACHED)


def test_nothing_is_found_in_a_good_file(good_file: Path, good: Documents, tmp_path: Path) -> None:
    assert len(good) == 2
    given = {"allowed_images": IMAGES, "never_cached": NEVER_CACHED}
    assert lint_pipeline(good_file, is_for_cluster=True, **given) == []
    assert lint_pipeline(good_file, **given) == []
    check_pipeline(good_file, is_for_cluster=True, **given)
    assert lint(good, tmp_path) == []


def test_caching_is_found_in_a_committed_file() -> None:
    found = lint_pipeline(COMPILED / "reindex.local.yaml", allowed_images=IMAGES, never_cached=["embed-op"])
    assert len(found) == 1
    assert "found caching enabled" in found[0]


# ---- mutants ----------------------------------------------------------------------------------------------------

PLACES = {
    "COMPONENTS": "0/components",
    "EXECUTORS": "0/deploymentSpec/executors",
    "SETTINGS": "1/platforms/kubernetes/deploymentSpec/executors",
    "FORM": "0/root/inputDefinitions/parameters",
    "ROOT": "0/root/dag/tasks",
    "RUN": "0/components/comp-exit-handler-1/dag/tasks",
    "BRANCH": "0/components/comp-condition-2/dag/tasks",
    "SUB": "0/components/comp-reindex/dag/tasks",
    "LOOP": "0/components/comp-for-loop-1/dag/tasks",
    "OUTPUTS": "0/components/comp-for-loop-1/outputDefinitions/artifacts",
}
# What is changed in the good file, and below it how the line about that begins.
MUTANTS = r"""
BRANCH/gate/inputs/artifacts/index/taskOutputArtifact/producerTask = "x"
  comp-condition-2/gate, input 'index': task 'x' of comp-condition-2 does not exist, expected one of:
BRANCH/reindex/inputs/artifacts/passages/taskOutputArtifact/outputArtifactKey = "x"
  comp-condition-2/reindex, input 'passages': output artifact 'x' of task 'download' does not exist, expected one of:
SUB/index/inputs/artifacts/embeddings/taskOutputArtifact/outputArtifactKey = "pipelinechannel--embed-Output"
  comp-reindex/index, input 'embeddings': output artifact 'pipelinechannel--embed-Output' of task
COMPONENTS/comp-gate = gone
  comp-condition-2/gate: component 'comp-gate' does not exist
EXECUTORS/exec-gate = gone
  component comp-gate: executor 'exec-gate' does not exist
COMPONENTS/comp-gate/executorLabel = gone
  component comp-gate: found neither tasks nor an executor
EXECUTORS/exec-old = copy exec-gate
  executor exec-old: found unused
SETTINGS/exec-old = copy exec-gate
  kubernetes settings: executor 'exec-old' does not exist
COMPONENTS/comp-old = copy comp-gate
  component comp-old: found unused
SETTINGS/exec-download/secretAsEnv/0/secretNameParameter = {"taskOutputParameter": {"producerTask": "x"}}
  comp-condition-2/download, its kubernetes settings: task 'x' of comp-condition-2 does not exist
COMPONENTS/comp-plan/outputDefinitions/parameters/is_new/parameterType = "STRING"
  comp-exit-handler-1/condition-2, input 'pipelinechannel--plan-is_new': found STRING, expected BOOLEAN
COMPONENTS/comp-download/outputDefinitions/artifacts/passages/artifactType/schemaTitle = "system.Model"
  comp-condition-2/reindex, input 'passages': found system.Model, expected system.Dataset
COMPONENTS/comp-index/inputDefinitions/artifacts/embeddings/isArtifactList = false
  comp-reindex/index, input 'embeddings': found List[system.Dataset], expected system.Dataset
FORM/ratio/parameterType = "STRING"
  root/exit-handler-1, input 'pipelinechannel--ratio': found STRING, expected NUMBER_DOUBLE
FORM/ratio/defaultValue = "half"
  component root, input 'ratio': found the default 'half', expected NUMBER_DOUBLE
COMPONENTS/comp-gate/inputDefinitions/parameters/text/parameterType = gone
  component comp-gate, input 'text': found no type
BRANCH/gate/inputs/parameters/margin = constant "high"
  comp-condition-2/gate, input 'margin': found the constant 'high', expected NUMBER_DOUBLE
BRANCH/gate/inputs/parameters/margin = constant true
  comp-condition-2/gate, input 'margin': found the constant True, expected NUMBER_DOUBLE
LOOP/embed/inputs/parameters/shard = constant 1.5
  comp-for-loop-1/embed, input 'shard': found the constant 1.5, expected NUMBER_INTEGER
LOOP/embed/inputs/parameters/config = gone
  comp-for-loop-1/embed, input 'config': found unbound
LOOP/embed/inputs/parameters/config = {}
  comp-for-loop-1/embed, input 'config': found bound to nothing
LOOP/embed/inputs/parameters/batch = constant 8.0
  comp-for-loop-1/embed, input 'batch': comp-embed has no such input, expected one of: config, shard
BRANCH/reindex/inputs/parameters/pipelinechannel--x = constant "x"
  comp-condition-2/reindex, input 'pipelinechannel--x': comp-reindex has no such input
BRANCH/gate/inputs/parameters/text = constant "no channel"
  comp-condition-2/gate, input 'pipelinechannel--dump': comp-gate has no such input
BRANCH/reindex/inputs/artifacts = gone
  comp-condition-2/reindex, input 'passages': found unbound
BRANCH/download/dependentTasks = ["gate"]
  comp-condition-2: tasks wait for each other:
LOOP/again = {"componentRef": {"name": "comp-reindex"}}
  components contain each other:
BRANCH/gate/dependentTasks/1 = "train"
  comp-condition-2/gate: waits for task 'train', which does not exist
SUB/index/dependentTasks = gone
  comp-reindex/index: reads from 'for-loop-1', expected it among the dependentTasks
COMPONENTS/comp-reindex/dag/outputs = gone
  comp-reindex, output 'Output': found no task that makes it
COMPONENTS/comp-reindex/outputDefinitions/artifacts = {}
  comp-reindex, output 'Output': declared output artifact 'Output' of comp-reindex does not exist
COMPONENTS/comp-reindex/dag/outputs/artifacts/Output/artifactSelectors/0/producerSubtask = "x"
  comp-reindex, output 'Output': task 'x' of comp-reindex does not exist
OUTPUTS/pipelinechannel--embed-embeddings/artifactType/schemaTitle = "system.Model"
  comp-for-loop-1, output 'pipelinechannel--embed-embeddings': found system.Dataset of task 'embed', expected
SUB/for-loop-1/parameterIterator/itemInput = "x"
  comp-reindex/for-loop-1: loop item 'x' is no input of comp-for-loop-1
SUB/for-loop-1/parameterIterator/items = {"inputParameter": "x"}
  comp-reindex/for-loop-1: loops over its input 'x', which does not exist
SUB/for-loop-1/parameterIterator/items = {"inputParameter": "pipelinechannel--config"}
  comp-reindex/for-loop-1: loops over its input 'pipelinechannel--config', found STRING, expected a list
SUB/for-loop-1/parameterIterator/items = {"raw": "[]"}
  comp-reindex/for-loop-1: found the loop items '[]', expected a JSON list with at least one
SUB/for-loop-1/parameterIterator/items = {"raw": "[0, \"1\"]"}
  comp-reindex/for-loop-1: found the loop items '[0, "1"]', expected items of type NUMBER_INTEGER
SUB/for-loop-1/artifactIterator = {"itemInput": "pipelinechannel--passages", "items": {"inputArtifact": "x"}}
  component comp-reindex:
RUN/condition-2/triggerPolicy/condition = "inputs.parameter_values['x'] == true"
  comp-exit-handler-1/condition-2: condition reads the input 'x', which does not exist
RUN/condition-2/triggerPolicy/condition = "inputs.parameter_values['pipelinechannel--plan-config'] == 'it's'"
  comp-exit-handler-1/condition-2: found the condition "inputs
BRANCH/gate/inputs/parameters/pipelinechannel--dump = gone
  comp-condition-2/gate, input 'text': placeholder {{$.inputs.parameters['pipelinechannel--dump']}} names no input
LOOP/embed/inputs/parameters/config = constant "{{channel:task=plan;name=config;type=String;}}"
  comp-for-loop-1/embed, input 'config': placeholder {{channel:task=plan;name=config;type=String;}} is unknown
ROOT/notify/inputs/parameters/run = constant "{{$.pipeline_job_id}}"
  root/notify, input 'run': placeholder {{$.pipeline_job_id}} is unknown
ROOT/notify/inputs/parameters/run = constant "run {{$.pipeline_job_uuid}}"
  root/notify, input 'run': placeholder {{$.pipeline_job_uuid}} is found inside a longer text
EXECUTORS/exec-gate/container/args/0 = "{{$.inputs.parameters['x']}}"
  comp-condition-2/gate: its container refers to inputs parameters 'x', which does not exist
EXECUTORS/exec-gate/container/args/0 = "{{$.outputs.artifacts['x'].path}}"
  comp-condition-2/gate: its container refers to outputs artifacts 'x', which does not exist
ROOT/notify/inputs/parameters/status = gone
  root/notify, input 'status': found no final status bound
ROOT/notify/triggerPolicy = gone
  root/notify, input 'status': found no exit task that waits for 'exit-handler-1' first
RUN/plan/triggerPolicy = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
  comp-exit-handler-1/plan: found an exit task that follows no other
ROOT/notify-2 = copy notify
  root/exit-handler-1: found the exit tasks notify, notify-2, expected one
ROOT/after = {"componentRef": {"name": "comp-exit-handler-1"}, "dependentTasks": ["notify"]}
  root/after: waits for the exit task 'notify'
SUB/index/triggerPolicy = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
  comp-reindex/index: follows 'for-loop-1', expected no loop
FORM/dump/description = gone
  component root, input 'dump': found no description
0/pipelineInfo/description = gone
  pipelineInfo: found no description
0/pipelineInfo/name = "Re Fresh"
  pipelineInfo: found the name 'Re Fresh'
0/schemaVersion = "1.0"
  schemaVersion: found '1.0', expected 2.x
EXECUTORS/exec-embed/container/image = "ralm-pipelines-python-gpu:latest"
  executor exec-embed: found the image 'ralm-pipelines-python-gpu:latest' unpinned
EXECUTORS/exec-embed/container/image = "python:3.11"
  executor exec-embed: found the image 'python:3.11', expected one of: ralm-
EXECUTORS/exec-embed/container/image = "images.example.org:5000/gpu"
  executor exec-embed: found the image 'images.example.org:5000/gpu' unpinned
EXECUTORS/exec-embed/container/command/2 = "python3 -m pip install torch"
  executor exec-embed: found pip install in its command
EXECUTORS/exec-embed/container/env = [{"name": "STORE_ACCESS_KEY", "value": "s3cr3t"}]
  executor exec-embed: found a secret in the environment variable 'STORE_ACCESS_KEY'
EXECUTORS/exec-embed/container/env = [{"name": "STORE", "value": "s3://me:s3cr3t@store/"}]
  executor exec-embed: found a secret in the environment variable 'STORE'
FORM/webhook_token = {"parameterType": "STRING", "defaultValue": "s3cr3t"}
  component root, input 'webhook_token': found a secret as its default
LOOP/embed/inputs/parameters/api_key = constant "s3cr3t"
  comp-for-loop-1/embed, input 'api_key': found a secret as its value
EXECUTORS/exec-download/container/env/1 = {"name": "STORE_TOKEN", "value": ""}
  executor exec-download: found the environment variable 'STORE_TOKEN' 2 times
EXECUTORS/exec-download/container/env/0/name = "OMP NUM"
  executor exec-download: found the environment variable 'OMP NUM'
SETTINGS/exec-download/pvcMount/1 = {"mountPath": "/pages/"}
  executor exec-download: found 2 mounts at '/pages'
SETTINGS/exec-download/pvcMount/0/mountPath = "pages"
  executor exec-download: found a mount at 'pages', expected an absolute path
SETTINGS/exec-download/secretAsEnv/0/secretNameParameter = constant "My_Secret"
  executor exec-download: found the kubernetes name 'My_Secret'
SETTINGS/exec-download/pvcMount/0/pvcNameParameter = constant true
  executor exec-download: found the kubernetes name True
SETTINGS/exec-gate/activeDeadlineSeconds = gone
  executor exec-gate: found no timeout
1 = gone
  executor exec-notify: found no timeout
EXECUTORS/exec-notify/container/resources = gone
  executor exec-notify: found no cpu request
EXECUTORS/exec-gate/container/resources = {"cpuRequest": 1, "cpuLimit": 1, "memoryRequest": 1}
  executor exec-gate: found no memory limit
EXECUTORS/exec-gate/container/resources/resourceMemoryRequest = "512K"
  executor exec-gate: found the memory request '512K', expected a quantity over 0
EXECUTORS/exec-gate/container/resources/resourceMemoryRequest = "3Gi"
  executor exec-gate: found a memory request over its limit
EXECUTORS/exec-gate/container/resources/resourceCpuRequest = "2001m"
  executor exec-gate: found a cpu request over its limit
EXECUTORS/exec-embed/container/resources/accelerator = {"type": "nvidia.com/gpu", "count": "0"}
  executor exec-embed: found '0' accelerators
EXECUTORS/exec-embed/container/resources/accelerator = {"count": "1"}
  executor exec-embed: found an accelerator without a type
EXECUTORS/exec-embed/container/resources/accelerator = gone
  executor exec-embed: found a toleration for nodes with GPUs without an accelerator
SETTINGS/exec-embed/tolerations = gone
  executor exec-embed: found an accelerator without a toleration
SETTINGS/exec-embed/tolerations/0/operator = "exists"
  executor exec-embed: found a toleration 'exists' 'NoSchedule'
SETTINGS/exec-embed/tolerations/0/value = "x"
  executor exec-embed: found a toleration of 'nvidia.com/gpu', expected a key and value
LOOP/embed/retryPolicy = gone
  comp-for-loop-1/embed: found no retry with a backoff
LOOP/embed/retryPolicy/backoffDuration = "0s"
  comp-for-loop-1/embed: found no retry with a backoff
RUN/plan/cachingOptions = {"enableCache": true}
  comp-exit-handler-1/plan: found caching enabled
RUN/plan/dependantTasks = []
  component comp-exit-handler-1: found the unknown field 'dependantTasks'
0/rootDag = {}
  pipeline: found the unknown field 'rootDag'
0/deploymentSpec/executor = {}
  deploymentSpec: found the unknown field 'executor'
EXECUTORS/exec-gate/container/resources/memLimit = "2Gi"
  executor exec-gate: found the unknown field
1/platforms/kubernetes/deployment = {}
  platform document: found the unknown field
SETTINGS/exec-gate/activeDeadline = 1
  kubernetes executor exec-gate: found the unknown field
1/platforms/nomad = {}
  platforms: found 'nomad', expected kubernetes
2 = {}
  found 3 YAML documents, expected the pipeline and one for its platform
RUN/plan/retryPolicy/maxRetryCount = "many"
  component comp-exit-handler-1: Failed to parse
EXECUTORS/exec-gate = "gate"
  executor exec-gate: found 'gate', expected a mapping
"""


def mutants() -> list[tuple[str, str, str]]:
    """Path, new value, and beginning of the expected line, of each entry of the table."""
    lines = MUTANTS.strip("\n").splitlines()
    changes = (line.split(" = ", 1) for line in lines[::2])
    return [(path, value, line.strip()) for (path, value), line in zip(changes, lines[1::2], strict=True)]


def edit(documents: Documents, path: str, value: str) -> None:
    """Set or remove what a path of keys leads to."""
    place, _, rest = path.partition("/")
    *way, last = f"{PLACES.get(place, place)}/{rest}".rstrip("/").split("/")
    holder: Any = documents
    for step in way:
        holder = holder[int(step) if isinstance(holder, list) else step]
    key = int(last) if isinstance(holder, list) else last
    if value == "gone":
        del holder[key]
        return
    if value.startswith("copy "):
        new = copy.deepcopy(holder[value.removeprefix("copy ")])
    elif value.startswith("constant "):
        new = {"runtimeValue": {"constant": json.loads(value.removeprefix("constant "))}}
    else:
        new = json.loads(value)
    if isinstance(holder, list) and key == len(holder):
        holder.append(new)
    else:
        holder[key] = new


@pytest.mark.parametrize(("path", "value", "expected"), mutants())
def test_mutant_is_found(path: str, value: str, expected: str, good: Documents, tmp_path: Path) -> None:
    mutant = copy.deepcopy(good)
    edit(mutant, path, value)
    problems = lint(mutant, tmp_path)
    assert any(line.startswith(expected) for line in problems), problems
    assert not any("\n" in line or "s3cr3t" in line for line in problems)


def test_there_are_many_mutants() -> None:
    assert len(set(mutants())) == len(mutants()) > 90


@pytest.mark.parametrize(("size", "is_allowed"), [(131_071, True), (131_072, False)])
def test_what_is_too_long_for_an_argument_is_found(
    size: int, is_allowed: bool, good: Documents, tmp_path: Path
) -> None:
    mutant = copy.deepcopy(good)
    edit(mutant, "EXECUTORS/exec-embed/container/command/3", json.dumps("#" * size))
    edit(mutant, "LOOP/embed/inputs/parameters/config", f"constant {json.dumps('x' * (size - 2))}")
    expected = [
        f"executor exec-embed: found an argument of {size} bytes, expected at most 131071",
        f"comp-for-loop-1/embed: found constants of {size} bytes, expected at most 131071",
    ]
    assert lint(mutant, tmp_path) == ([] if is_allowed else expected)
    if is_allowed:
        assert subprocess.run(["true", "#" * size], check=False).returncode == 0
    else:
        with pytest.raises(OSError, match="too long"):
            subprocess.run(["true", "#" * size], check=False)


NAMES = frozenset(
    {"producerTask", "producerSubtask", "outputParameterKey", "outputArtifactKey", "executorLabel"}
    | {"componentInputParameter", "componentInputArtifact", "itemInput", "inputParameter"}
)


def references(value: Any, parent: str = "") -> Iterator[tuple[Any, Any]]:
    """Places of a document that name something: a container and the key or position in it."""
    if isinstance(value, dict):
        for key, child in value.items():
            if key in NAMES or (parent == "componentRef" and key == "name"):
                yield value, key
            yield from references(child, key)
    elif isinstance(value, list):
        for position, child in enumerate(value):
            if parent == "dependentTasks":
                yield value, position
            yield from references(child, parent)


def input_names(value: Any) -> Iterator[dict[str, Any]]:
    """The inputs that tasks bind, parameters and artifacts apart."""
    if isinstance(value, dict):
        for key, child in value.items():
            if key == "inputs" and isinstance(child, dict):
                yield from (bound for kind, bound in child.items() if kind in ("parameters", "artifacts"))
            yield from input_names(child)


@pytest.mark.parametrize(
    "source",
    ["good", "train_and_evaluate.local", "evaluate.cluster", pytest.param("reindex.cluster", marks=pytest.mark.slow)],
)
def test_every_reference_that_leads_nowhere_is_found(source: str, good: Documents, tmp_path: Path) -> None:
    documents = copy.deepcopy(good)
    if source != "good":
        text = (COMPILED / f"{source}.yaml").read_text(encoding="utf-8")
        documents = list(yaml.load_all(text, Loader=yaml.CSafeLoader))
    found = functools.partial(lint, documents, tmp_path, is_for_cluster=source.endswith("cluster"))
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        executor["container"]["command"] = ["true"]  # the code of the components refers to nothing, and is long
    assert found() == []
    missed, renamed = [], 0
    for holder, key in list(references(documents)):
        name = holder[key]
        holder[key] = f"{name}-gone"
        if not found():
            missed.append((key, name))
        holder[key] = name
        renamed += 1
    for bound in list(input_names(documents)):
        for name in list(bound):
            before = dict(bound)
            bound[f"{name}-gone"] = bound.pop(name)
            if not found():
                missed.append(("inputs", name))
            bound.clear()
            bound.update(before)
            renamed += 1
    assert missed == []
    assert renamed > 50
    assert found() == []


def test_kfp_itself_takes_a_reference_that_leads_nowhere(good: Documents, tmp_path: Path) -> None:
    mutant = copy.deepcopy(good)
    edit(mutant, "BRANCH/gate/inputs/artifacts/index/taskOutputArtifact/producerTask", '"rebuild"')
    path = tmp_path / "mutant.yaml"
    path.write_text(yaml.safe_dump_all(mutant), encoding="utf-8")
    assert components.load_component_from_file(str(path)).pipeline_spec.pipeline_info.name == "refresh"
    with pytest.raises(ConfigError, match=r"mutant.yaml: comp-condition-2/gate, input 'index': task 'rebuild' of"):
        check_pipeline(path, allowed_images=IMAGES)


# ---- what kfp writes --------------------------------------------------------------------------------------------


def notified() -> Any:
    return notify(run="x").set_caching_options(False)


@dsl.pipeline(name="quote", description="A text with a quote.")
def quote(author: str = "x") -> None:
    """A text with a quote.

    Args:
        author: a name.
    """
    with dsl.If(author == "O'Brien"):
        echo(text="a")


@dsl.pipeline(name="left-out", description="An input that may be left out.")
def left_out(note: Optional[str] = None) -> None:  # noqa: UP045
    """An input that may be left out.

    Args:
        note: a text.
    """
    with dsl.ExitHandler(notified()):
        optional_echo(text=note)


@dsl.pipeline(name="fields", description="Fields of fixed loop items.")
def fields_of_fixed_items() -> None:
    with dsl.ExitHandler(notified()), dsl.ParallelFor([{"a": "x"}, {"a": "y"}]) as item:
        echo(text=item.a)


@dsl.pipeline(name="size", description="Resources as inputs.")
def resources_as_inputs(cpu: str = "1", claim: str = "pages") -> None:
    """Resources as inputs.

    Args:
        cpu: cores.
        claim: name of a volume claim.
    """
    with dsl.ExitHandler(notified()):
        task = echo(text="a").set_cpu_limit(cpu)
        kubernetes.mount_pvc(task, claim, "/pages")


@dsl.pipeline(name="inner")
def inner(passages: dsl.Input[dsl.Dataset] = None) -> None:
    optional_gate(index=passages)


@dsl.pipeline(name="outer", description="An artifact that may be left out.")
def left_out_artifact() -> None:
    inner()


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (quote, r"root/condition-1: found the condition .*O'Brien"),
        (left_out, r"root/exit-handler-1, input 'pipelinechannel--note': reads 'note' of root, found optional"),
        (fields_of_fixed_items, r"root/exit-handler-1, input .*-subvar-a': input parameter .* of root does not exist"),
        (resources_as_inputs, r"comp-exit-handler-1/echo, input 'pipelinechannel--cpu': input parameter .* not exist"),
    ],
)
def test_what_kfp_writes_wrong_is_found(pipeline: Any, expected: str, tmp_path: Path) -> None:
    problems = lint(compiled(pipeline, tmp_path / "kfp.yaml"), tmp_path, is_for_cluster=False)
    assert len(problems) == 1
    assert re.match(expected, problems[0])


def test_artifact_that_may_be_left_out_is_found_for_a_cluster(tmp_path: Path) -> None:
    documents = compiled(left_out_artifact, tmp_path / "kfp.yaml")
    expected = (
        "comp-inner/optional-gate, input 'index': reads 'passages' of comp-inner, found optional without a default"
    )
    assert lint(documents, tmp_path, is_for_cluster=False) == []
    assert any(line.startswith(expected) for line in lint(documents, tmp_path))


@dsl.pipeline(name="branches", description="Branches, loops in loops, and all that may be read.")
def branches(name: str = "a", names: list = ["a"], number: int = 1, secret_name: str = "s") -> None:  # noqa: B006
    """Branches, loops in loops, and all that may be read.

    Args:
        name: a text.
        names: texts.
        number: a number.
        secret_name: of a kubernetes secret.
    """
    planned = plan(dump=name, ratio=0.5).set_caching_options(False)
    with dsl.If(number > 1):
        left = echo(text=f"{name} and {planned.outputs['config']}")
    with dsl.Elif(name == "b"):
        left_2 = echo(text="b")
    with dsl.Else():
        right = echo(text=dsl.PIPELINE_TASK_NAME_PLACEHOLDER)
    echo(text=dsl.OneOf(left.output, left_2.output, right.output)).set_cpu_limit(name)
    with dsl.ParallelFor(names) as item:
        count(number=item)
        with dsl.If(item == "x"):
            shown = echo(text=item)
            made = download(config="{}")
    echo_all(texts=dsl.Collected(shown.output))
    merge(passages=dsl.Collected(made.outputs["passages"]))
    with dsl.ParallelFor(planned.outputs["records"]) as record, dsl.ParallelFor([1, 2]) as number_2:
        count(number=number_2)
        echo(text=record.title)
        inner = download(config=record.path)
    merge(passages=dsl.Collected(inner.outputs["passages"]))
    imported = dsl.importer(artifact_uri=planned.outputs["config"], artifact_class=dsl.Dataset)
    read = gate(index=imported.output, text="a")
    kubernetes.use_secret_as_env(read, secret_name, {"token": "STORE_TOKEN"})
    optional_echo(text=read.output).ignore_upstream_failure()
    claim = kubernetes.CreatePVC(
        pvc_name_suffix="-pages", access_modes=["ReadWriteOnce"], size="5Gi", storage_class_name="standard"
    )
    kubernetes.mount_pvc(echo(text="a"), claim.outputs["name"], "/pages")


def test_nothing_is_found_in_what_kfp_writes_right(tmp_path: Path) -> None:
    documents = compiled(branches, tmp_path / "kfp.yaml")
    assert lint(documents, tmp_path, is_for_cluster=False) == []


# ---- files ------------------------------------------------------------------------------------------------------


def test_check_counts_the_other_problems(good: Documents, tmp_path: Path) -> None:
    mutant = copy.deepcopy(good)
    edit(mutant, "BRANCH/gate/inputs/artifacts/index/taskOutputArtifact/producerTask", '"rebuild"')
    edit(mutant, "EXECUTORS/exec-embed/container/image", '"ralm-pipelines-python-gpu:latest"')
    path = tmp_path / "mutant.yaml"
    path.write_text(yaml.safe_dump_all(mutant), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mutant.yaml: .* \(and 2 other problems\)$"):
        check_pipeline(path, allowed_images=IMAGES)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("root: [1\nb: 2\n", r"file.yaml, line 2: found .*, expected YAML"),
        ("", r"file.yaml: is no compiled pipeline"),
        ("- 1\n", r"file.yaml: is no compiled pipeline"),
        ("name: x\n", r"file.yaml: is no compiled pipeline: found name, expected deploymentSpec, pipelineInfo, root"),
        ("\x00", r"file.yaml.*: found .*"),
    ],
)
def test_file_that_is_no_pipeline(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        lint_pipeline(path, allowed_images=IMAGES)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.yaml: cannot be read"):
        lint_pipeline(tmp_path / "absent.yaml", allowed_images=IMAGES)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary.yaml: cannot be read"):
        lint_pipeline(tmp_path / "binary.yaml", allowed_images=IMAGES)


@pytest.mark.parametrize("key", ["root", "components", "deploymentSpec", "pipelineInfo"])
@pytest.mark.parametrize("value", [None, [], "text", 1, {"dag": None}, {"executors": []}])
def test_no_shape_of_a_document_ends_in_a_traceback(key: str, value: Any, good: Documents, tmp_path: Path) -> None:
    assert lint([{**good[0], key: value}, good[1]], tmp_path)
    assert lint([good[0], {"platforms": {"kubernetes": value}}], tmp_path)
