"""Makes stand-ins for images that cannot be pulled, on a bare Debian.

For tensorflow/serving: the embedded server under the real one's name. It keeps the stock image's contract: ENV
MODEL_NAME and MODEL_BASE_PATH, an entry point of bash that passes them with the ports and appends its arguments,
/usr/bin/tensorflow_model_server, bash, no curl. Python is in a corner of its own (/opt/stand-in), which nothing but
the stand-in binary knows.

For python: this Python with its pip, and of this project's packages those that the load generator imports. Of all the
others it has what pip knows them by, so that pip finds that requirements.txt is met.
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
LOAD_PACKAGES = (
    *("_brotli*", "_distutils_hack", "_yaml", "annotated_types", "bidict", "blinker", "brotli*", "certifi", "click"),
    *("charset_normalizer", "configargparse*", "engineio", "flask", "flask_cors", "flask_login", "gevent", "greenlet"),
    *(
        "geventhttpclient",
        "google",
        "grpc",
        "h11",
        "hdrh",
        "hpack",
        "httptools",
        "hyperframe",
        "idna",
        "itsdangerous",
        "jinja2",
    ),
    *("locust", "markupsafe", "ml_dtypes*", "msgpack", "numpy", "numpy.libs", "orjson", "psutil", "pydantic"),
    *("pydantic_core", "pyhdrh*", "pyzmq.libs", "requests", "rich", "simple_websocket", "socketio", "urllib3"),
    *("tensorflow_serving", "typing_extensions*", "typing_inspection", "werkzeug", "wsproto", "yaml", "zmq", "zope"),
    *("pip", "*.dist-info"),
)
BINARY = f"""\
#!/bin/bash
export PYTHONHOME=/{CORNER} PYTHONPATH=/{CORNER}/packages LD_LIBRARY_PATH=/{CORNER}/lib PYTHONUNBUFFERED=1
exec /{CORNER}/bin/python3 -m launchpad.modelserver --host=0.0.0.0 "$@"
"""
BARE = shutil.ignore_patterns("tests", "*.pyc", "include")
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
    root = _bare(folder)
    _put_python(root / CORNER, PACKAGES)
    _put_libraries(root / CORNER / "packages" / "tensorflow")
    package = root / CORNER / "packages" / "launchpad"
    shutil.copytree(REPOSITORY / "launchpad" / "modelserver", package / "modelserver", ignore=BARE)
    shutil.copy2(REPOSITORY / "launchpad" / "__init__.py", package)
    _put_script(root / "usr/bin/tensorflow_model_server", BINARY)
    _put_script(root / "usr/bin/tf_serving_entrypoint.sh", STOCK_ENTRY_POINT)
    (root / "models").mkdir()
    _import(client, name, root, STOCK_CHANGES)


def make_python(client: docker.DockerClient, name: str, folder: Path) -> None:
    """Fill and import the stand-in for a python image. Needs what the other one needs."""
    root = _bare(folder)
    place = root / "usr/local"
    _put_python(place, LOAD_PACKAGES)
    (place / "bin" / "python").symlink_to("python3")
    _put_script(place / "bin" / "pip", '#!/bin/bash\nexec python -m pip "$@"\n')
    environment = (
        "ENV PYTHONPATH=/usr/local/packages",
        "ENV LD_LIBRARY_PATH=/usr/local/lib",
        "ENV PYTHONHOME=/usr/local",
    )
    _import(client, name, root, (*environment, "ENV PATH=/usr/local/bin:/usr/bin:/bin"))


def _bare(folder: Path) -> Path:
    """Return a bare Debian in a folder, to put things into."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    base = kept(f"{suite}-{LIBRARIES}", lambda made: _bootstrap(suite, made / "root")) / "root"
    subprocess.run(["cp", "--archive", base, folder / "root"], check=True)
    return folder / "root"


def _import(client: docker.DockerClient, name: str, root: Path, changes: tuple[str, ...]) -> None:
    """Make an image of a root; the folder that the root is in goes."""
    repository, tag = name.split(":")
    with subprocess.Popen(["tar", "--create", "--directory", str(root), "."], stdout=subprocess.PIPE) as tar:
        client.api.import_image_from_stream(tar.stdout, repository=repository, tag=tag, changes=list(changes))
    shutil.rmtree(root.parent)


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


def _put_python(corner: Path, patterns: tuple[str, ...]) -> None:
    """Put this Python, some of its packages, and the messages of TensorFlow into a corner."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (corner / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy2(os.path.realpath(sys.executable), corner / "bin" / "python3")
    for library in Path(sys.base_prefix, "lib").glob("libpython3*.so*"):
        (corner / "lib").mkdir(exist_ok=True)
        shutil.copy2(library, corner / "lib")
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "tests", "idlelib", "config-*", "*.pyc")
    shutil.copytree(sysconfig.get_path("stdlib"), corner / "lib" / version, ignore=left_out)
    packages, site = corner / "packages", Path(sysconfig.get_path("platlib"))
    packages.mkdir()
    for pattern in patterns:
        for found in site.glob(pattern):
            if found.is_dir():
                shutil.copytree(found, packages / found.name, ignore=BARE, dirs_exist_ok=True)
            else:
                shutil.copy2(found, packages)
    for found in (site / "tensorflow").rglob("*_pb2.py"):
        target = packages / found.relative_to(site)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(found, target)
    (packages / "tensorflow" / "__init__.py").touch()


def _put_libraries(tensorflow: Path) -> None:
    """Put TensorFlow's libraries into its package."""
    for found in (Path(sysconfig.get_path("platlib")) / "tensorflow").glob("*.so*"):
        _put_file(found, tensorflow / found.name)


def _put_file(source: Path, target: Path) -> None:
    """Link a file, some of which are a gigabyte; copy it where it is on another disk."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _put_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
