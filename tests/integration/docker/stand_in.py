"""Makes a stand-in for the tensorflow/serving image: a bare Debian with the embedded server under the real one's name.

It keeps the stock image's contract: ENV MODEL_NAME and MODEL_BASE_PATH, an entry point of bash that passes them with
the ports and appends its arguments, /usr/bin/tensorflow_model_server, bash, no curl. Python is in a corner of its own
(/opt/stand-in), which nothing but the stand-in binary knows.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import docker

from tests.kept import kept

REPOSITORY = Path(__file__).parents[3]
CORNER = "opt/stand-in"
LIBRARIES = "libffi8,libssl3,libstdc++6,zlib1g"
PACKAGES = (
    *("google", "google_crc32c*", "hpack", "hyperframe", "httptools", "ml_dtypes*", "numpy", "numpy.libs", "orjson"),
    *("rapidjson*", "simdjson", "csimdjson*", "tensorflow_serving", "uvloop"),
)
BINARY = f"""\
#!/bin/bash
export PYTHONHOME=/{CORNER} PYTHONPATH=/{CORNER}/packages LD_LIBRARY_PATH=/{CORNER}/lib PYTHONUNBUFFERED=1
exec /{CORNER}/bin/python3 -m launchpad.modelserver --host=0.0.0.0 "$@"
"""
STOCK_ENTRY_POINT = """\
#!/bin/bash

tensorflow_model_server --port=8500 --rest_api_port=8501 \\
--model_name=${MODEL_NAME} --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME} \\
"$@"
"""
STOCK_CHANGES = (
    *("ENV MODEL_NAME=model", "ENV MODEL_BASE_PATH=/models", "EXPOSE 8500", "EXPOSE 8501"),
    'ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]',
)


def make_stand_in(client: docker.DockerClient, name: str, folder: Path) -> None:
    """Bootstrap, fill and import the image. Needs root, debootstrap and a Debian mirror."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    base = kept(f"{suite}-{LIBRARIES}", lambda made: _bootstrap(suite, made / "root")) / "root"
    root = folder / "root"
    subprocess.run(["cp", "--archive", base, root], check=True)
    _put_python(root / CORNER)
    _put_script(root / "usr/bin/tensorflow_model_server", BINARY)
    _put_script(root / "usr/bin/tf_serving_entrypoint.sh", STOCK_ENTRY_POINT)
    (root / "models").mkdir()
    repository, tag = name.split(":")
    with subprocess.Popen(["tar", "--create", "--directory", str(root), "."], stdout=subprocess.PIPE) as tar:
        client.api.import_image_from_stream(tar.stdout, repository=repository, tag=tag, changes=list(STOCK_CHANGES))
    shutil.rmtree(folder)


def _bootstrap(suite: str, root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={LIBRARIES}", suite, str(root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-1000:]
    for waste in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / waste, ignore_errors=True)


def make_empty(client: docker.DockerClient, name: str) -> None:
    """Import an image with no more than a folder in it."""
    with io.BytesIO() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            folder = tarfile.TarInfo("models")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        repository, tag = name.split(":")
        client.api.import_image_from_data(archive.getvalue(), repository=repository, tag=tag)


def _put_python(corner: Path) -> None:
    """Put this Python, what the embedded server imports, and the server itself into the corner."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (corner / "bin").mkdir(parents=True)
    shutil.copy2(os.path.realpath(sys.executable), corner / "bin" / "python3")
    for library in Path(sys.base_prefix, "lib").glob("libpython3*.so*"):
        (corner / "lib").mkdir(exist_ok=True)
        shutil.copy2(library, corner / "lib")
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "tests", "idlelib", "config-*", "*.pyc")
    shutil.copytree(sysconfig.get_path("stdlib"), corner / "lib" / version, ignore=left_out)
    packages = corner / "packages"
    packages.mkdir()
    site = Path(sysconfig.get_path("platlib"))
    bare = shutil.ignore_patterns("tests", "*.pyc", "include")
    for pattern in PACKAGES:
        for found in site.glob(pattern):
            if found.is_dir():
                shutil.copytree(found, packages / found.name, ignore=bare)
            else:
                shutil.copy2(found, packages)
    for found in (site / "tensorflow").rglob("*"):
        if found.name.endswith("_pb2.py") or (found.parent.name == "tensorflow" and ".so" in found.name):
            target = packages / found.relative_to(site)
            target.parent.mkdir(parents=True, exist_ok=True)
            _put_file(found, target)
    (packages / "tensorflow" / "__init__.py").touch()
    package = packages / "launchpad"
    shutil.copytree(REPOSITORY / "launchpad" / "modelserver", package / "modelserver", ignore=bare)
    shutil.copy2(REPOSITORY / "launchpad" / "__init__.py", package)


def _put_file(source: Path, target: Path) -> None:
    """Link a file, some of which are a gigabyte; copy it where it is on another disk."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _put_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
