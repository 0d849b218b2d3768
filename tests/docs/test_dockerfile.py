"""The image's recipe: it names files that exist, and its first layer is enough to install from."""

import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from tests.support.paths import REPOSITORY

_DOCKERFILE = REPOSITORY / "launch" / "Dockerfile"


def _instructions() -> list[tuple[str, str]]:
    """Name and text of each instruction, lines joined, without comments."""
    lines = [line for line in _DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, text) for name, _, text in (line.partition(" ") for line in joined.splitlines())]


def _copied() -> list[tuple[list[str], str]]:
    """Sources and target of each COPY."""
    words = [shlex.split(text) for name, text in _instructions() if name == "COPY"]
    return [(line[1:-1], line[-1]) for line in words if line[0] == "--chown=10001"]


def test_what_it_copies_and_runs_exists() -> None:
    sources = [source for sources, _ in _copied() for source in sources]
    assert sources[-1] == "." and len(sources) > 10
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []
    scripts = re.findall(r"bash (\S+)", " ".join(text for name, text in _instructions() if name == "RUN"))
    assert scripts == ["launch/install.sh"] and set(scripts) <= {*sources}
    page = (REPOSITORY / "launch" / "README.md").read_text()
    assert "docker build --file launch/Dockerfile " in page and "bash launch/pptrain_hostfile.sh" in page


def test_it_runs_as_no_root_and_installs_before_the_code_comes() -> None:
    names = [f"{name} {text.split()[-1]}" for name, text in _instructions()]
    assert names.index("USER 10001") < names.index("RUN launch/install.sh") < names.index("COPY .")


def test_the_first_layer_is_enough_to_install_from(tmp_path: Path) -> None:
    """An editable installation finds each package, whose modules come later, and the version."""
    for sources, target in _copied()[:-1]:
        for source in sources:
            (tmp_path / "first" / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / source, tmp_path / "first" / target)
    code = "import setuptools.build_meta as build; build.prepare_metadata_for_build_editable(r'{}')"
    command = [sys.executable, "-c", code.format(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path / "first", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("*.dist-info")
    assert {*(metadata / "top_level.txt").read_text().split()} == {"data_tools", "ds_configs", "ds_train"}
    assert "ds-train = ds_train.__main__:cli" in (metadata / "entry_points.txt").read_text()


def test_what_is_copied_is_not_ignored() -> None:
    lines = (_DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert [name for name in kept if not (REPOSITORY / name).exists()] == []
    sources = [source for sources, _ in _copied()[:-1] for source in sources]
    assert [source for source in sources if not any(fnmatch(source, f"{name}*") for name in kept)] == []
