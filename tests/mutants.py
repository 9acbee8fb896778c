"""Policy folders that are damaged or hostile, and what loading them does; run as a program, since it may crash.

`python -m tests.mutants FOLDER COUNT SEED` makes COUNT of them in FOLDER, one after another, loads each under an audit
of what the process does, and prints one JSON report.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from didi_gym.core.schema import to_dict
from didi_gym.hub.download import SkillPolicyHubError
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.models.folder import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.weights import write_tensors
from tests.examples import BODY, body_states, random_policy

HUGE = [10**9, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400]
ODD = [*HUGE, 0, -1, -(2**63), 1.5, 1e308, True, False, None, "8", "..", "../../x", [], {}, [0] * 100_000, "x" * 99_999]
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "-0", "01", "0x10", "1" * 5000, '"\\ud800"', '"\\u0000"', "'a'", "1,"]
TYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "U64", "f32", "", None, 7, []]


@dataclass
class Mutant:
    """A folder about to be damaged."""

    rng: random.Random
    folder: Path
    outside: Path
    """A folder beside it that nothing may read or write; it holds a whole policy."""
    files: dict[str, bytes]
    """What will be written into it."""

    def target(self) -> str:
        """One of the two files of tensors, the weights more often."""
        return self.rng.choice([name for name in (WEIGHTS_FILE, WEIGHTS_FILE, TRAINING_FILE) if name in self.files])

    def write(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def replace(self, name: str) -> Path:
        """The path of a file that will be something else than a file."""
        self.files.pop(name)
        return self.folder / name


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def flipped(rng: random.Random, content: bytes, begin: int, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_end(content: bytes) -> int:
    return 8 + struct.unpack("<Q", content[:8])[0]


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values inside JSON data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))


def put(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    *way, last = path
    place = data
    for key in way:
        place = place[key]
    place[last] = value
    return data


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


# -- what can happen to a folder -------------------------------------------------------------------------------------
def truncated(m: Mutant) -> None:
    name = m.rng.choice(list(m.files))
    m.write(name, m.files[name][: m.rng.randrange(len(m.files[name]))])


def extended(m: Mutant) -> None:
    name = m.target()
    m.write(name, m.files[name] + m.rng.choice([b"\0", b" ", m.rng.randbytes(m.rng.randrange(1, 5000))]))


def bits_of_the_header(m: Mutant) -> None:
    name = m.target()
    m.write(name, flipped(m.rng, m.files[name], 0, header_end(m.files[name])))


def bits_of_the_data(m: Mutant) -> None:
    name = m.target()
    m.write(name, flipped(m.rng, m.files[name], header_end(m.files[name]), len(m.files[name])))


def bits_of_the_config(m: Mutant) -> None:
    m.write(CONFIG_FILE, flipped(m.rng, m.files[CONFIG_FILE], 0, len(m.files[CONFIG_FILE])))


def cut_or_doubled(m: Mutant) -> None:
    name = m.rng.choice(list(m.files))
    content = m.files[name]
    begin, end = sorted(m.rng.sample(range(len(content) + 1), 2))
    m.write(name, m.rng.choice([content[:begin] + content[end:], content[:end] + content[begin:]]))


def other_types(m: Mutant) -> None:
    name = m.target()
    tensors = load(m.files[name])
    which = m.rng.choice(sorted(tensors))
    dtype = m.rng.choice([torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8])
    tensors[which] = tensors[which].to(dtype)
    m.write(name, save(tensors, parts(m.files[name])[0].get("__metadata__")))


def other_shapes(m: Mutant) -> None:
    name = m.target()
    tensors = load(m.files[name])
    which = m.rng.choice(sorted(tensors))
    tensor = tensors[which]
    shapes = [tensor[None], tensor.flatten()[:-1], torch.cat([tensor, tensor]), tensor[:0], tensor.flatten()[0]]
    tensors[which] = m.rng.choice(shapes).contiguous().clone()
    m.write(name, save(tensors, parts(m.files[name])[0].get("__metadata__")))


def odd_entries(m: Mutant) -> None:
    """A header that says something else of one tensor, over the same data."""
    name = m.target()
    header, data = parts(m.files[name])
    which = m.rng.choice([key for key in header if key != "__metadata__"])
    entry = header[which]
    field = m.rng.choice(["dtype", "shape", "data_offsets", "key", "entry"])
    if field == "dtype":
        entry["dtype"] = m.rng.choice([dtype for dtype in TYPES if dtype != "F32"])
    elif field == "key":
        entry.pop(m.rng.choice(sorted(entry)))
    elif field == "entry":
        header[which] = m.rng.choice(ODD[:-2])
    else:
        values = entry[field]
        values[m.rng.randrange(len(values))] = m.rng.choice([*HUGE, -1, 1.0, 1e3, "8", True, None, [], 0.5])
    m.write(name, joined(header, data))


def shared_or_gaping_places(m: Mutant) -> None:
    name = m.target()
    header, data = parts(m.files[name])
    names = [key for key in header if key != "__metadata__"]
    one, other = m.rng.sample(names, 2)
    if m.rng.random() < 0.5:
        header[one]["data_offsets"] = header[other]["data_offsets"]
    else:
        shift = m.rng.choice([4, -4, 64, len(data), 2**62])
        header[one]["data_offsets"] = [place + shift for place in header[one]["data_offsets"]]
    m.write(name, joined(header, data))


def huge_header_length(m: Mutant) -> None:
    name = m.target()
    length = m.rng.choice([0, 1, 7, 10**6, 10**8, 2**31, 2**32 - 8, 2**40, 2**63 - 8, 2**64 - 8, 2**64 - 1])
    m.write(name, struct.pack("<Q", length) + m.files[name][8:])


def odd_headers(m: Mutant) -> None:
    name = m.target()
    header, data = parts(m.files[name])
    text = json.dumps(header).encode()
    m.write(
        name,
        joined(
            m.rng.choice(
                [
                    b"[" * m.rng.choice([40, 1000, 100_000]),
                    b'{"a":' * 100_000,
                    b"[" + b"[]," * 200_000 + b"[]]",
                    b"{" + b",".join(b'"%d":{}' % i for i in range(50_000)) + b"}",
                    text + b" " * (1 << 20),
                    b'"' + b"\\" * 900_000,
                    text.decode().encode("utf-16"),
                    b"\xff" + text,
                    b"\0" * len(text),
                    text[:-1],
                    text + b"{}",
                    b"null",
                    b"[]",
                    b"{}",
                    b"3",
                ]
            ),
            data,
        ),
    )


def keys_twice(m: Mutant) -> None:
    if m.rng.random() < 0.5:
        text = m.files[CONFIG_FILE].decode()
        key = m.rng.choice(["horizon", "width", "model_type", "layout"])
        value = json.dumps(json.loads(text)[key])
        m.write(CONFIG_FILE, text.replace("{", f'{{"{key}": {value},', 1).encode())
    else:
        name = m.target()
        header, data = parts(m.files[name])
        which = m.rng.choice(list(header))
        twin = f'{{"{which}": {json.dumps(header[which])},' + json.dumps(header)[1:]
        m.write(name, joined(twin.encode(), data))


def odd_names(m: Mutant) -> None:
    """Tensors whose names are paths."""
    name = m.target()
    header, data = parts(m.files[name])
    which = m.rng.choice([key for key in header if key != "__metadata__"])
    odd = m.rng.choice(
        ["..", "../../x", "/etc/passwd", str(m.outside / "x"), "", "\0", "a" * 9000, "__class__", "low\n"]
    )
    header[odd] = header.pop(which)
    m.write(name, joined(header, data))


def odd_metadata(m: Mutant) -> None:
    name = m.target()
    header, data = parts(m.files[name])
    header["__metadata__"] = m.rng.choice([None, [], "pt", 3, {"format": 3}, {"info": None}, {"info": {}}, {"a": []}])
    m.write(name, joined(header, data))


_TRAINING_PATHS = [("parts",), ("config",), *(("config", "dynamics", *name) for name in ((), ("width",), ("members",)))]


def odd_training_settings(m: Mutant) -> None:
    """What the header of `training.safetensors` says of the dynamics model."""
    header, data = parts(m.files[TRAINING_FILE])
    info = json.loads(header["__metadata__"]["info"])
    if m.rng.random() < 0.7:
        info = put(info, m.rng.choice(_TRAINING_PATHS), m.rng.choice(ODD))
        text = json.dumps(info)
    else:
        text = m.rng.choice(
            [
                "",
                "{",
                "[]",
                "null",
                "[" * 100_000,
                '{"config": NaN}',
                '{"parts": ["dynamics"], "config": {"dynamics": {"width": 1e999}}}',
            ]
        )
    header["__metadata__"]["info"] = text
    m.write(TRAINING_FILE, joined(header, data))


def odd_config_values(m: Mutant) -> None:
    data = json.loads(m.files[CONFIG_FILE])
    path = m.rng.choice(list(leaves(data)))
    m.write(CONFIG_FILE, json.dumps(put(data, path, m.rng.choice(ODD))).encode())


def huge_config_sizes(m: Mutant) -> None:
    data = json.loads(m.files[CONFIG_FILE])
    sizes = [("horizon",), ("action_dim",), ("width",), ("depth",), ("layout", "state_dim"), ("skill_space", "size")]
    sizes += [("skill_duration",), ("replan_every",), ("plan_length",), ("layout", "sources", 0, "size")]
    for path in m.rng.sample(sizes, m.rng.choice([1, 1, 2, len(sizes)])):
        put(data, path, m.rng.choice(HUGE))
    m.write(CONFIG_FILE, json.dumps(data).encode())


def large_config_sizes(m: Mutant) -> None:
    """Sizes within the bounds, but of a far larger network than the file holds."""
    data = json.loads(m.files[CONFIG_FILE])
    data.update(width=m.rng.randrange(1000, 8193), depth=m.rng.randrange(1, 257))
    if m.rng.random() < 0.5:
        data.update(horizon=10_000, action_dim=4_096)
    m.write(CONFIG_FILE, json.dumps(data).encode())


def raw_config_values(m: Mutant) -> None:
    data = json.loads(m.files[CONFIG_FILE])
    path = m.rng.choice(list(leaves(data)))
    text = json.dumps(put(data, path, "@@"))
    m.write(CONFIG_FILE, text.replace('"@@"', m.rng.choice(RAW)).encode())


def unknown_or_missing_keys(m: Mutant) -> None:
    data = json.loads(m.files[CONFIG_FILE])
    if m.rng.random() < 0.5:
        data[m.rng.choice(["..", "__class__", "auto_map", "trust_remote_code", "", "x" * 5000])] = m.rng.choice(ODD[:9])
    else:
        data.pop(m.rng.choice(sorted(data)))
    m.write(CONFIG_FILE, json.dumps(data).encode())


def nested_config(m: Mutant) -> None:
    depth = m.rng.choice([33, 100, 999, 5_000, 100_000])
    opening, closing = m.rng.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    nested = opening * depth + "1" + closing * (depth if m.rng.random() < 0.7 else 0)
    data = put(json.loads(m.files[CONFIG_FILE]), m.rng.choice([("env_kwargs",), ("layout",), ("horizon",)]), "@@")
    m.write(CONFIG_FILE, (nested if m.rng.random() < 0.2 else json.dumps(data).replace('"@@"', nested)).encode())


def huge_config(m: Mutant) -> None:
    content = m.files[CONFIG_FILE]
    filler = m.rng.choice([b" ", b"\n", b"1,", b'"a",', b"[],", b"\0"])
    m.write(CONFIG_FILE, content[:-2] + filler * (m.rng.choice([1, 3]) * (1 << 20) // len(filler) + 1) + content[-2:])


def other_encodings(m: Mutant) -> None:
    text = m.files[CONFIG_FILE].decode()
    where = m.rng.randrange(len(text))
    odd = m.rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\xf4\x90\x80\x80", b"\x1b[31m"])
    encodings = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"]
    broken = text[:where].encode() + odd + text[where:].encode()
    m.write(CONFIG_FILE, m.rng.choice([broken, text.encode(m.rng.choice(encodings))]))


def pickled(m: Mutant) -> bytes:
    bomb = Bomb(m.outside / "exploded")
    content = pickle.dumps(bomb, protocol=m.rng.randrange(6))
    kind = m.rng.choice(["plain", "header", "zip"])
    if kind == "header":
        return struct.pack("<Q", len(content)) + content
    if kind == "zip":
        path = m.outside / "archive"
        torch.save(bomb, path)
        content = path.read_bytes()
        path.unlink()
    return content


def renamed_pickles(m: Mutant) -> None:
    m.write(m.rng.choice(list(m.files)), pickled(m))


def pickles_in_place_of_weights(m: Mutant) -> None:
    m.files.pop(WEIGHTS_FILE)
    for name in ("pytorch_model.bin", "model.pt", "model.pkl", "model.safetensors.pkl", "agent.zip"):
        if m.rng.random() < 0.7:
            m.write(name, pickled(m))


def links_that_lead_out(m: Mutant) -> None:
    name = m.rng.choice(list(m.files))
    targets = [
        m.outside / name,
        Path(os.path.relpath(m.outside / name, m.folder)),
        Path("/dev/zero"),
        Path("/dev/null"),
    ]
    targets += [
        Path("/etc/passwd"),
        m.folder,
        m.folder / ".." / "outside" / name,
        Path("/proc/self/mem"),
        Path("/absent"),
    ]
    m.replace(name).symlink_to(m.rng.choice(targets))


def chains_of_links(m: Mutant) -> None:
    """Links that stay inside at first, or run in a circle."""
    name = m.rng.choice(list(m.files))
    path = m.replace(name)
    path.symlink_to("next")
    (m.folder / "next").symlink_to(m.rng.choice([name, str(m.outside / name), "../outside/" + name, "next"]))


def pretended_caches(m: Mutant) -> None:
    """A folder named like one of the Hub's cache, whose links lead out of that."""
    cache = m.folder / "models--acme--skills"
    m.folder = cache / "snapshots" / "0a1b2c"
    m.folder.mkdir(parents=True)
    name = m.rng.choice(list(m.files))
    out = m.rng.choice(["../../../../outside/", "../../../../", f"{m.outside}/"])
    m.replace(name).symlink_to(out + name)


def no_files(m: Mutant) -> None:
    """Pipes, sockets and folders where files are expected."""
    name = m.rng.choice(list(m.files))
    path = m.replace(name)
    kind = m.rng.choice(["pipe", "folder", "socket"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        (path / name).write_bytes(b"{}")
    else:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path must be short
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(name)
        finally:
            os.chdir(here)


def empty(m: Mutant) -> None:
    m.write(m.rng.choice(list(m.files)), m.rng.choice([b"", b"\0", b"\0" * 8, b" " * 4096]))


def giants(m: Mutant) -> None:
    """Files of ten gigabytes, which are holes, so that they cost nothing."""
    name = m.rng.choice(list(m.files))
    content = m.files[name]
    if name != CONFIG_FILE and m.rng.random() < 0.7:
        header, data = parts(content)
        which = max((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"])
        begin = header[which]["data_offsets"][0]
        header[which].update(shape=[10 * 2**30 // 4], data_offsets=[begin, begin + 10 * 2**30])
        content = joined(header, data)
        size = len(content) - len(data) + begin + 10 * 2**30
    else:
        size = 10 * 2**30
    path = m.replace(name)
    path.write_bytes(content)
    os.truncate(path, size)


def swapped(m: Mutant) -> None:
    one, other = m.rng.sample(sorted(m.files), 2)
    m.files[one], m.files[other] = m.files[other], m.files[one]


def missing(m: Mutant) -> None:
    m.files.pop(m.rng.choice([CONFIG_FILE, WEIGHTS_FILE]))


def not_finite(m: Mutant) -> None:
    name = m.target()
    tensors = load(m.files[name])
    which = m.rng.choice([key for key in sorted(tensors) if name == WEIGHTS_FILE or key.startswith("dynamics.")])
    flat = tensors[which].view(-1)
    flat[m.rng.randrange(len(flat))] = m.rng.choice([float("nan"), float("inf"), float("-inf")])
    m.write(name, save(tensors, parts(m.files[name])[0].get("__metadata__")))


def impossible_bounds(m: Mutant) -> None:
    tensors = load(m.files[WEIGHTS_FILE])
    name, value = m.rng.choice([("normalizer.scale", 0.0), ("normalizer.scale", -1.0), ("low", 1e9), ("high", -1e9)])
    tensors[name][m.rng.randrange(len(tensors[name]))] = value
    m.write(WEIGHTS_FILE, save(tensors))


def of_another_policy(m: Mutant) -> None:
    """Weights of a policy of other sizes, or one tensor too many or too few."""
    tensors = load(m.files[WEIGHTS_FILE])
    what = m.rng.choice(["sizes", "more", "fewer"])
    if what == "sizes":
        change = m.rng.choice([{"width": 9}, {"depth": 2}, {"horizon": 9}, {"low": (-1.0,), "high": (1.0,)}])
        tensors = random_policy(**{"width": 8, "depth": 1, **change}).state_dict()
    elif what == "more":
        tensors[m.rng.choice(["x", "net.inlet.scale", "low2"])] = torch.zeros(m.rng.randrange(3))
    else:
        tensors.pop(m.rng.choice(sorted(tensors)))
    m.write(WEIGHTS_FILE, save(tensors))


def written_anew(m: Mutant) -> None:
    """The same policy in another form: what loads must equal it."""
    what = m.rng.choice(["order", "indent", "link", "padding", "metadata"])
    header, data = parts(m.files[WEIGHTS_FILE])
    if what == "order":
        names = sorted(header)
        m.rng.shuffle(names)
        m.write(WEIGHTS_FILE, joined({name: header[name] for name in names}, data))
    elif what == "indent":
        m.write(CONFIG_FILE, json.dumps(json.loads(m.files[CONFIG_FILE]), indent=m.rng.randrange(9)).encode())
    elif what == "link":
        m.write("weights.v1", m.files[WEIGHTS_FILE])
        m.replace(WEIGHTS_FILE).symlink_to("weights.v1")
    elif what == "padding":
        m.write(WEIGHTS_FILE, joined(json.dumps(header).encode() + b" " * m.rng.randrange(9), data))
    else:
        m.write(WEIGHTS_FILE, joined({**header, "__metadata__": {"a": "b"}}, data))


def in_a_cache(m: Mutant) -> None:
    """The form of the Hub's cache: files are links into the repository's blobs."""
    cache = m.folder / "models--acme--skills"
    m.folder = cache / "snapshots" / "0a1b2c"
    m.folder.mkdir(parents=True)
    (cache / "blobs").mkdir()
    store = cache.parent / "blobs" / "ab"
    store.mkdir(parents=True)
    for name in list(m.files):
        blob = cache / "blobs" / name
        if m.rng.random() < 0.5:
            blob.write_bytes(m.files[name])
        else:  # shared by repositories
            (store / name).write_bytes(m.files[name])
            blob.symlink_to(f"../../blobs/ab/{name}")
        m.replace(name).symlink_to(f"../../blobs/{name}")


MAY_LOAD = {  # what was changed may be of no importance, or a legitimate value
    "truncated",  # by the newline at the end of config.json
    "bits_of_the_header",
    "bits_of_the_data",
    "bits_of_the_config",
    "cut_or_doubled",
    "odd_config_values",
    "raw_config_values",
    "unknown_or_missing_keys",
}
MUST_LOAD = {"written_anew", "in_a_cache"}
KINDS: list[Callable[[Mutant], None]] = [
    truncated,
    extended,
    bits_of_the_header,
    bits_of_the_data,
    bits_of_the_config,
    cut_or_doubled,
    other_types,
    other_shapes,
    odd_entries,
    shared_or_gaping_places,
    huge_header_length,
    odd_headers,
    keys_twice,
    odd_names,
    odd_metadata,
    odd_training_settings,
    odd_config_values,
    huge_config_sizes,
    large_config_sizes,
    raw_config_values,
    unknown_or_missing_keys,
    nested_config,
    huge_config,
    other_encodings,
    renamed_pickles,
    pickles_in_place_of_weights,
    links_that_lead_out,
    chains_of_links,
    pretended_caches,
    no_files,
    empty,
    giants,
    swapped,
    missing,
    not_finite,
    impossible_bounds,
    of_another_policy,
    written_anew,
    in_a_cache,
]


# -- what loading does -----------------------------------------------------------------------------------------------
class Audit:
    """What the process does while it is `on`, but for reading inside a folder, as Python's audit events tell."""

    HARMLESS = ("object.", "sys.", "code.", "gc.", "cpython.", "builtins.id")

    def __init__(self) -> None:
        self.on: Path | None = None
        self.events: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on is None or event.startswith(self.HARMLESS) or (event == "open" and isinstance(args[0], int)):
            return
        if event in ("open", "os.scandir", "os.listdir", "glob.glob", "pathlib.Path.glob"):
            writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            path = os.path.normpath(os.path.join(os.fsdecode(args[0]), args[1] if "glob" in event else ""))
            if not writes and Path(path).is_relative_to(self.on):
                return
        folder, self.on = self.on, None  # not to note the noting
        self.events.append(f"{event} {args!r:.200}")
        self.on = folder


def load_mutant(audit: Audit, folder: Path, inside: Path, original: SkillPolicy, plan: np.ndarray) -> tuple[str, str]:
    """What became of it: "refused" and the message, or "equal", "other values", or "wrong" and what."""
    audit.on = inside
    try:
        policy = SkillPolicy.from_pretrained(folder, device="cpu")
    except SkillPolicyHubError as error:
        return "refused", str(error)
    except BaseException as error:
        return "wrong", f"{type(error).__name__}: {error}"
    finally:
        audit.on = None
    config = json.loads(json.dumps(to_dict(policy.config)))
    if not says(json.loads((folder / CONFIG_FILE).read_bytes()), config):
        return "wrong", "the configuration is not the file's"
    pairs = [(policy.state_dict(), load((folder / WEIGHTS_FILE).read_bytes()))]
    if policy.dynamics is not None:
        stored = load((folder / TRAINING_FILE).read_bytes())
        pairs.append((policy.dynamics.state_dict(), {name.removeprefix("dynamics."): stored[name] for name in stored}))
    if not all(same(*pair) for pair in pairs):
        return "wrong", "the weights are not the file's"
    if policy.config != original.config or not same(policy.state_dict(), original.state_dict()):
        return "other values", ""
    if not np.array_equal(policy.plan_actions(*asked()), plan):
        return "wrong", "equal weights make other plans"
    return "equal", ""


def asked() -> tuple[np.ndarray, np.ndarray]:
    return body_states(4)[:, 2:], np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)


def says(given: Any, loaded: Any) -> bool:
    """Whether every value in a file is in what was loaded from it; the latter may have defaults beside."""
    if isinstance(given, dict):
        return isinstance(loaded, dict) and all(key in loaded and says(given[key], loaded[key]) for key in given)
    return type(given) is type(loaded) and given == loaded


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether tensors are equal bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def peak_memory() -> int:
    """The largest number of bytes this process had in memory."""
    try:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    except FileNotFoundError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(root: Path, count: int, seed: int) -> dict[str, Any]:
    outside, scratch = root / "outside", root / "scratch"
    original = random_policy(width=8, depth=1)
    torch.manual_seed(0)
    sizes = {"members": 2, "width": 8}
    dynamics = DynamicsEnsemble(BODY, 3, **sizes)
    original.save_pretrained(outside)
    info = {"parts": ["dynamics"], "config": {"dynamics": sizes}}
    tensors = {f"dynamics.{name}": tensor for name, tensor in dynamics.state_dict().items()}
    write_tensors(outside / TRAINING_FILE, tensors, info)
    whole = {path.name: path.read_bytes() for path in sorted(outside.iterdir())}
    unhashed = {
        CONFIG_FILE: json.dumps({**json.loads(whole[CONFIG_FILE]), "weights_sha256": None}, indent=2).encode() + b"\n",
        TRAINING_FILE: save(tensors, {"info": json.dumps(info)}),
    }
    plan = SkillPolicy.from_pretrained(outside, device="cpu").plan_actions(*asked())
    before, began = peak_memory(), time.monotonic()
    audit, results = Audit(), []
    for index in range(count):
        rng = random.Random(f"{seed} {index}")
        kind = KINDS[index % len(KINDS)]
        hashed = index // len(KINDS) % 2 == 0  # the other half is as folders were before hashes were written
        files = {**whole, **({} if hashed else unhashed)}
        if rng.random() < 0.5 and kind is not odd_training_settings:
            files.pop(TRAINING_FILE)
        shutil.rmtree(scratch, ignore_errors=True)
        mutant = Mutant(rng, scratch, outside, files)
        mutant.folder.mkdir()
        kind(mutant)
        for name, content in mutant.files.items():
            (mutant.folder / name).write_bytes(content)
        outcome, words = load_mutant(audit, mutant.folder, scratch, original, plan)
        results.append({"index": index, "kind": kind.__name__, "hashed": hashed, "outcome": outcome, "words": words})
    untouched = {path.name: path.read_bytes() for path in sorted(outside.iterdir())} == whole
    return {
        "results": results,
        "events": audit.events,
        "untouched": untouched,
        "memory": peak_memory(),
        "growth": peak_memory() - before,
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))))
