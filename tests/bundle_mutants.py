"""Broken and hostile bundles by the thousand.

Run as a program: `bundle_mutants.py FOLDER CHUNK COUNT [BUNDLE]` makes COUNT mutants of a small
bundle, or of BUNDLE, opens each as `tokprune.load` would, and prints as JSON what happened. A
mutant is either *changed* (bytes differ from what the exporter hashed) or *forged* (hashed and
sealed anew, as an attacker would): the first kind must always be refused; so must the second where
it names a file outside.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import small_bundle
from mutations import NUMBERS, damaged, edit_json
from onnx import TensorProto
from trials import try_all

from tokprune.bundle import open_bundle
from tokprune.errors import BundleInvalid

MANIFEST = "manifest.json"
ESCAPES = [
    "../outside",
    "onnx/../../outside",
    "{outside}",
    "nul\0",
    "onnx/./scorer.onnx",
    "onnx//scorer.onnx",
    "..",
    "",
    "back\\slash",
]


class Mutant(NamedTuple):
    """What a mutation did to the folder."""

    kind: str
    must_refuse: bool


Mutation = Callable[[Path, random.Random], Mutant]


def changed_file(folder: Path, chance: random.Random) -> Mutant:
    """Damage any file, the manifest included."""
    path = folder / chance.choice(_names(folder))
    path.write_bytes(damaged(path.read_bytes(), chance))
    return Mutant("changed file", must_refuse=True)


def changed_manifest(folder: Path, chance: random.Random) -> Mutant:
    """Change the manifest's JSON without sealing it."""
    raw = json.loads((folder / MANIFEST).read_bytes())
    before = json.dumps(raw)
    while json.dumps(raw) == before:
        edit_json(raw, chance)
    text = json.dumps(raw, indent=2)
    (folder / MANIFEST).write_text(text)
    return Mutant("changed manifest", must_refuse=True)


def duplicated_key(folder: Path, chance: random.Random) -> Mutant:
    """Let a key of the manifest stand twice, the second time with another value."""
    lines = (folder / MANIFEST).read_text().split("\n")
    at = chance.choice([index for index, line in enumerate(lines) if '": ' in line])
    key = lines[at].split('": ')[0]
    lines.insert(at, f'{key}": {json.dumps(chance.choice([1, "x", None, [], {}]))},')
    (folder / MANIFEST).write_text("\n".join(lines))
    return Mutant("duplicated key", must_refuse=True)


def exchanged_files(folder: Path, chance: random.Random) -> Mutant:
    """Swap two files, or remove, empty or replace one."""
    first, second = (folder / name for name in chance.sample(_names(folder), 2))
    if first.read_bytes() == second.read_bytes():
        first.unlink()
        return Mutant("removed file", must_refuse=True)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    if chance.random() < 0.5:
        second.write_bytes(data)
    return Mutant("exchanged files", must_refuse=True)


def linked_file(folder: Path, chance: random.Random) -> Mutant:
    """Replace a file by a link to its own bytes, a pipe or a folder; hashes fit."""
    path = folder / chance.choice(_names(folder))
    moved = folder / "moved"
    path.rename(moved)
    trick = chance.choice(["symlink", "hard link", "pipe", "folder", "folder link"])
    if trick == "symlink":
        path.symlink_to(moved)
    elif trick == "hard link":
        path.hardlink_to(moved)
    elif trick == "pipe":
        os.mkfifo(path)
    elif trick == "folder":
        path.mkdir()
    else:
        moved.rename(path)
        (folder / "onnx").rename(folder / "elsewhere")
        (folder / "onnx").symlink_to("elsewhere")
    return Mutant(trick, must_refuse=True)


def forged_name(folder: Path, chance: random.Random) -> Mutant:
    """List a file under a name that leads out, its hash fitting."""
    escape = chance.choice(ESCAPES).format(outside=folder.parent / "outside")
    with small_bundle.edited(folder) as raw:
        name = chance.choice(list(raw["files"]))
        raw["files"][escape] = raw["files"].pop(name)
        if chance.random() < 0.5:
            raw["graphs"]["scorer"]["file"] = escape
    return Mutant("forged name", must_refuse=True)


def forged_location(folder: Path, chance: random.Random) -> Mutant:
    """Let an ONNX file keep a tensor somewhere else, hashed anew."""
    path = folder / "onnx" / f"{chance.choice(['scorer', 'first_layer', 'llm.ort'])}.onnx"
    model = onnx.load(path, load_external_data=False)
    weight = TensorProto()
    weight.CopyFrom(model.graph.initializer[0])
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    del weight.external_data[:]
    bad = [*ESCAPES, "../embed_tokens.npy", "*/_ORT_MEM_ADDR_/*", "absent", "/etc/passwd"]
    location = chance.choice(bad).format(outside=folder.parent / "outside")
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="offset", value=str(chance.choice([0, 4096, 2**62])))
    where = chance.choice(["initializer", "sparse", "attribute", "subgraph"])
    if where == "initializer":
        model.graph.initializer.append(weight)
    elif where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(weight)
    elif where == "attribute":
        model.graph.node[0].attribute.add().tensors.append(weight)
    else:
        model.graph.node[0].attribute.add().g.initializer.append(weight)
    path.write_bytes(model.SerializeToString())
    small_bundle.seal(folder)
    return Mutant("forged location", must_refuse=True)


def forged_manifest(folder: Path, chance: random.Random) -> Mutant:
    """Change the manifest's JSON and seal it; some of it may be a valid other manifest."""
    with small_bundle.edited(folder) as raw:
        edit_json(raw, chance)
    return Mutant("forged manifest", must_refuse=False)


def forged_number(folder: Path, chance: random.Random) -> Mutant:
    """Replace a size, limit or id by an odd one, sealed."""
    with small_bundle.edited(folder) as raw:
        part = raw[chance.choice(["llm", "limits"])]
        part[chance.choice(list(part))] = chance.choice(NUMBERS)
    return Mutant("forged number", must_refuse=False)


def forged_file(folder: Path, chance: random.Random) -> Mutant:
    """Damage an ONNX file or the embedding table, and hash everything anew."""
    names = [name for name in _names(folder) if name.endswith((".onnx", ".npy"))]
    path = folder / chance.choice(names)
    path.write_bytes(damaged(path.read_bytes(), chance))
    small_bundle.seal(folder)
    return Mutant("forged file", must_refuse=False)


def strange_manifest(folder: Path, chance: random.Random) -> Mutant:
    """Put something else in the manifest's place."""
    data = chance.choice(
        [
            chance.randbytes(chance.choice([0, 1, 100, 10_000])),
            b"[" * chance.choice([1, 1000, 1_000_000]),
            b'{"a":' * chance.choice([1, 1000, 1_000_000]),
            b'{"schema_version": ' + b"9" * chance.choice([30, 100_000]) + b"}",
            b'{"schema_version": 1, "files": {' + b'"a":1,' * 100_000 + b"}}",
            b"\xef\xbb\xbf" + (folder / MANIFEST).read_bytes(),
            (folder / MANIFEST).read_bytes().decode().encode("utf-16"),
            (folder / MANIFEST).read_bytes() * 2,
        ]
    )
    (folder / MANIFEST).write_bytes(data)
    return Mutant("strange manifest", must_refuse=True)


MUTATIONS: list[tuple[Mutation, int]] = [
    (changed_file, 30),
    (changed_manifest, 15),
    (duplicated_key, 5),
    (exchanged_files, 8),
    (linked_file, 8),
    (forged_name, 8),
    (forged_location, 8),
    (forged_manifest, 6),
    (forged_number, 4),
    (forged_file, 6),
    (strange_manifest, 2),
]


def main(folder: Path, chunk: int, count: int, original: Path | None) -> dict[str, Any]:
    """Try this chunk's mutants."""
    folder.mkdir(parents=True, exist_ok=True)
    mutant = folder / "mutant"
    if original is None:
        original = folder / "original"
        small_bundle.write(original)
    (folder / "outside").write_bytes(bytes(4096))
    mutations, weights = zip(*MUTATIONS, strict=True)

    def trial(case: int) -> str:
        chance = random.Random(case)
        shutil.rmtree(mutant, ignore_errors=True)
        shutil.copytree(original, mutant)
        made = chance.choices(mutations, weights)[0](mutant, chance)
        try:
            open_bundle(mutant)
        except BundleInvalid as error:
            return error.code
        return f"PASSED {made.kind}, case {case}" if made.must_refuse else "passed, a valid forgery"

    outcomes = try_all(trial, range(chunk * count, (chunk + 1) * count))
    return {
        "tried": outcomes.tried,
        "crashed": outcomes.crashed,
        "hung": outcomes.hung,
        "passed_wrongly": [code for code in outcomes.codes if code.startswith("PASSED")],
        "codes": outcomes.codes,
    }


def _names(folder: Path) -> list[str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]


if __name__ == "__main__":
    place, part, size, *given = sys.argv[1:]
    result = main(Path(place), int(part), int(size), Path(given[0]) if given else None)
    sys.stdout.write(json.dumps(result) + "\n")
