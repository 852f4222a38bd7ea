"""Reads a Dockerfile and says what is wrong with it: the linter of tests/test_docker.py."""

import fnmatch
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = ("FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD")
"""Instructions that are used here; ADD (which fetches), ONBUILD, MAINTAINER and the rest are not."""
SECRET = re.compile(r"(?i)(password|passwd|secret|token|api_?key|credential)\w*\s*[=:]")
VARIABLE = re.compile(r"\$\{?(\w+)")
CODE = ("quicksviewer", "scripts", "configs", "compat")
CHECK = "import quicksviewer"
INDEXES = ("ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu",)
"""Addresses that may be written down: pip checks what it takes from there."""


@dataclass(frozen=True)
class Instruction:
    line: int
    name: str
    text: str


@dataclass
class Stage:
    """`base`: an image or another stage, with variables put in."""

    name: str
    base: str
    steps: list[Instruction] = field(default_factory=list)

    def of(self, name: str) -> list[Instruction]:
        return [step for step in self.steps if step.name == name]


@dataclass
class Dockerfile:
    arguments: dict[str, str]
    """Those before the first FROM, with their defaults."""
    stages: dict[str, Stage]

    def road(self, target: str) -> list[Stage]:
        """The stages that a target is built on, first to last, and itself."""
        stage = self.stages[target]
        return [*(self.road(stage.base) if stage.base in self.stages else []), stage]


def instructions(text: str) -> list[Instruction]:
    """Lines joined where they go on, without comments. ValueError for an unknown instruction."""
    found, waiting, start = [], "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if waiting else number
        waiting += line.strip().removesuffix("\\").strip() + " "
        if not line.rstrip().endswith("\\"):
            name, _, rest = waiting.strip().partition(" ")
            if name not in KNOWN:
                raise ValueError(f"line {start}: {name} is not used here")
            found.append(Instruction(start, name, rest.strip()))
            waiting = ""
    return found


def expand(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], match[0]), text)


def parse(text: str) -> Dockerfile:
    arguments, stages, stage = {}, {}, None
    for step in instructions(text):
        if step.name == "FROM":
            base, _, name = step.text.partition(" AS ")
            stage = stages[name] = Stage(name, expand(base, arguments))
        elif stage is None:
            name, _, default = step.text.partition("=")
            arguments[name] = default
        else:
            stage.steps.append(step)
    return Dockerfile(arguments, stages)


# --- rules: each gives what is wrong ---


def images_are_named_and_tagged(file: Dockerfile, root: Path):
    for stage in file.stages.values():
        if not stage.name:
            yield f"FROM {stage.base} has no name"
        if stage.base in file.stages:
            continue
        image, _, tag = stage.base.partition(":")
        if not tag or tag == "latest" or "$" in stage.base:
            yield f"{stage.name}: the image {stage.base} has no tag of its own"


def every_argument_is_used(file: Dockerfile, root: Path):
    declared = set()
    for stage in file.stages.values():
        for place, step in enumerate(stage.steps):
            if step.name == "ARG":
                name, has_default, _ = step.text.partition("=")
                declared.add(name)
                if not any(name in VARIABLE.findall(later.text) for later in stage.steps[place + 1 :]):
                    yield f"{stage.name}: ARG {name} is not used"
                if not has_default and name not in file.arguments:
                    yield f"{stage.name}: ARG {name} has no default"
    in_images = {"CPU_IMAGE", "GPU_IMAGE"}
    for name in file.arguments.keys() - declared - in_images:
        yield f"ARG {name} is not used"


def variables_are_declared(file: Dockerfile, root: Path):
    for stage in file.stages.values():
        known = {"PATH"}
        for step in stage.steps:
            text = re.sub(r"'[^']*'", "", step.text)
            for name in VARIABLE.findall(text):
                if name not in known and step.name != "ARG":
                    yield f"{stage.name}, line {step.line}: {name} is not declared in this stage"
            if step.name == "ARG":
                known.add(step.text.partition("=")[0])
            if step.name == "ENV":
                known |= {word.partition("=")[0] for word in shlex.split(step.text)}


def nothing_runs_as_root(file: Dockerfile, root: Path):
    for target in targets(file):
        users = [step for stage in file.road(target) for step in stage.of("USER")]
        if not users:
            yield f"{target} runs as root"
        for step in users:
            if step.text.split(":")[0] in ("root", "0"):
                yield f"{target}, line {step.line}: USER {step.text}"
        names = " ".join(step.text for stage in file.road(target) for step in stage.of("RUN"))
        if users and not re.search(rf"useradd .*\b{re.escape(users[-1].text)}\b", names):
            yield f"{target}: nobody makes the user {users[-1].text}"


def no_secrets_and_no_addresses(file: Dockerfile, root: Path):
    for stage in file.stages.values():
        for step in stage.steps:
            if SECRET.search(step.text):
                yield f"{stage.name}, line {step.line}: looks like a secret"
            if f"{step.name} {step.text}" in INDEXES:
                continue
            if re.search(r"https?://|\bcurl\b|\bwget\b|--trusted-host|\bsudo\b", step.text):
                yield f"{stage.name}, line {step.line}: fetches something that no package manager checks"


def copied_files_exist_and_may_enter(file: Dockerfile, root: Path):
    for stage in file.stages.values():
        for step in stage.of("COPY"):
            words = shlex.split(step.text)
            if words[0].startswith("--from="):
                if words[0].removeprefix("--from=") not in file.stages:
                    yield f"{stage.name}, line {step.line}: there is no stage {words[0]}"
                continue
            if len(words) > 2 and not words[-1].endswith("/"):
                yield f"{stage.name}, line {step.line}: several files need a folder, with a / at its end"
            for source in words[:-1]:
                if source in (".", "./", "*") or not (root / source).exists():
                    yield f"{stage.name}, line {step.line}: COPY {source}: name what is there, one by one"
                elif not may_enter(source, root / ".dockerignore"):
                    yield f"{stage.name}, line {step.line}: .dockerignore keeps {source} out"


def may_enter(path: str, ignore: Path) -> bool:
    """Whether a file or folder of the context reaches the builder: the last pattern that fits decides."""
    enters = True
    for line in ignore.read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        kept, pattern = pattern.startswith("!"), pattern.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        beginnings = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        if any(fnmatch.fnmatch(name, pattern) for name in (*beginnings, parts[-1])):
            enters = kept
    return enters


def dependencies_come_before_code(file: Dockerfile, root: Path):
    for target in targets(file):
        road = file.road(target)
        taken = [step for stage in road for step in stage.of("COPY") if step.text.startswith("--from=")]
        if not taken:
            yield f"{target} takes no dependencies from a stage of their own"
            continue
        source = file.stages[shlex.split(taken[0].text)[0].removeprefix("--from=")]
        copied = {word for step in source.of("COPY") for word in shlex.split(step.text)[:-1]}
        if copied & set(CODE):
            yield f"{source.name} copies code: {sorted(copied & set(CODE))}"
        code = [s.line for stage in road for s in stage.of("COPY") if shlex.split(s.text)[0] in CODE]
        if not code or min(code) < taken[0].line:
            yield f"{target}: code before dependencies"


def packages_are_installed_cleanly(file: Dockerfile, root: Path):
    for stage in file.stages.values():
        for step in stage.of("RUN"):
            if re.search(r"\bpip install\b", step.text) and "--no-cache-dir" not in step.text:
                yield f"{stage.name}, line {step.line}: pip without --no-cache-dir"
            if "apt-get" in step.text:
                for needed in (
                    "apt-get update",
                    "--no-install-recommends",
                    "rm -rf /var/lib/apt/lists",
                    " -y ",
                ):
                    if needed not in step.text:
                        yield f"{stage.name}, line {step.line}: apt-get without {needed.strip()}"


def flash_attention_is_a_layer_of_its_own(file: Dockerfile, root: Path):
    steps = [(stage, step) for stage in file.stages.values() for step in stage.of("RUN")]
    found = [(stage, step) for stage, step in steps if "flash-attn" in step.text]
    if len(found) != 1:
        yield f"flash-attn is installed in {len(found)} layers"
        return
    stage, step = found[0]
    if not step.text.startswith("if [ -n") or step.text.count("install") != 1:
        yield f"line {step.line}: flash-attn must be optional and alone"
    if stage.of("RUN")[-1] != step:
        yield f"line {step.line}: what follows flash-attn is built again with it"


def the_last_step_is_an_import(file: Dockerfile, root: Path):
    for target in targets(file):
        last = file.stages[target].steps[-1]
        if last.name != "RUN" or CHECK not in last.text:
            yield f"{target} does not end with a check that the package imports"


def targets(file: Dockerfile) -> list[str]:
    """Stages that no other is built on or copies from."""
    used = {stage.base for stage in file.stages.values()}
    used |= {
        shlex.split(step.text)[0].removeprefix("--from=")
        for stage in file.stages.values()
        for step in stage.of("COPY")
    }
    return [name for name in file.stages if name not in used]


RULES = (
    images_are_named_and_tagged,
    every_argument_is_used,
    variables_are_declared,
    nothing_runs_as_root,
    no_secrets_and_no_addresses,
    copied_files_exist_and_may_enter,
    dependencies_come_before_code,
    packages_are_installed_cleanly,
    flash_attention_is_a_layer_of_its_own,
    the_last_step_is_an_import,
)


def lint(text: str, root: Path) -> list[str]:
    """All that is wrong."""
    file = parse(text)
    return [fault for rule in RULES for fault in rule(file, root)]
