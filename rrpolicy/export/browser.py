"""Exported graphs that run in a browser: ONNX Runtime Web of the npm registry, and files as scripts.

A page that was opened from a disk may load scripts but fetch nothing, so what is no script (WebAssembly, graphs) stands
in scripts as compressed text. Nothing is requested from elsewhere.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from rrpolicy.common.files import atomic_write, write_text
from rrpolicy.common.npm import Package
from rrpolicy.export.graphs import check_exporter

RUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    33_106_585,
    {
        "package.json": "16f69f755509990539aeb1c8445884960e91adcacab2e8dca8e44ee43601df5c",
        "dist/ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
        "dist/ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
        "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    },
)
LEVEL = 6  # of compression: the highest takes three times as long for a hundredth
FOLDER = RUNTIME.name  # beside the page
SCRIPTS = ("package.json", "ort.wasm.min.js", "binary.js")  # its files: two as they were published, and the rest
EMBEDDED = "embedded"  # the object of the page that holds what is embedded: base64 of gzip, by name


def runtime_scripts() -> dict[str, bytes]:
    """
    ONNX Runtime Web for one thread of a browser: files for the folder `FOLDER` beside a page.

    :return: content of `SCRIPTS`
    :raises ValueError: without the extra ``fast``, which graphs are exported by, or when the package cannot be
        downloaded, see `Package.fetch`
    """
    check_exporter()
    content = {Path(name).name: place.read_bytes() for name, place in RUNTIME.fetch().items()}
    *published, rest = SCRIPTS
    whole = {name: content.pop(name) for name in published}
    return {**whole, rest: embedded(content).encode()}


def write_runtime(folder: Path, scripts: Mapping[str, bytes]) -> None:
    """Write what :func:`runtime_scripts` returned below the folder of a page."""
    for name, content in scripts.items():
        with atomic_write(folder / FOLDER / name) as unfinished:
            unfinished.write_bytes(content)


def write_embedded(path: Path, content: Mapping[str, bytes]) -> None:
    """Write a script of :func:`embedded`."""
    write_text(path, embedded(content))


def embedded(content: Mapping[str, bytes]) -> str:
    """A script that adds files, by name, to what the page has embedded."""
    texts = {name: base64.b64encode(gzip.compress(each, LEVEL, mtime=0)).decode() for name, each in content.items()}
    return f"Object.assign(globalThis.{EMBEDDED} ??= {{}}, {json.dumps(texts)});\n"
