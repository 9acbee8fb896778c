"""Files of strangers: what is opened, what is decoded, and what a message may quote of it."""

import json
import os
import threading

import pytest
import torch

from didi_gym.core.files import SafeFileError, in_short, open_plain, parse_json, read_into, read_plain
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.weights import load_info, load_network, load_tensors, write_tensors
from tests.examples import random_policy


def test_a_plain_file_is_read_whole(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_plain(tmp_path / "file", 7) == b"content"
    with pytest.raises(SafeFileError, match="has 7 bytes, expected at most 6"):
        read_plain(tmp_path / "file", 6)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "tensors"
    write_tensors(path, {"x": torch.ones(1000)})
    with open_plain(path) as (file, size):
        os.truncate(path, size // 2)
        with pytest.raises(SafeFileError, match=r"ends .* bytes early"):
            read_into(bytearray(size), file, path)


def test_what_overwrites_a_file_later_does_not_reach_the_weights(tmp_path):
    folder = random_policy().save_pretrained(tmp_path / "p")
    loaded = SkillPolicy.from_pretrained(folder, device="cpu")
    before = loaded.low.clone()
    path = folder / "model.safetensors"
    with path.open("r+b") as file:  # in place, as `cp` does
        file.write(b"\0" * path.stat().st_size)
    os.truncate(path, 0)
    assert torch.equal(loaded.low, before) and loaded.net.inlet.weight.isfinite().all()


@pytest.mark.parametrize("kind", ["pipe", "folder", "link out", "link to nothing", "circle", "nothing"])
def test_nothing_but_a_file_inside_its_folder_is_opened_and_nothing_blocks(tmp_path, kind):
    (tmp_path / "home").mkdir()
    (tmp_path / "other").write_bytes(b"{}")
    path = tmp_path / "home" / "config.json"
    make, words = {
        "pipe": (lambda: os.mkfifo(path), "is a pipe, a socket or a device, expected a file"),
        "folder": (path.mkdir, "is a folder, expected a file"),
        "link out": (lambda: path.symlink_to("../other"), "is a link that leads out of .*home, to .*other"),
        "link to nothing": (lambda: path.symlink_to("absent"), "has no config.json, only a link to nothing"),
        "circle": (lambda: path.symlink_to("config.json"), "cannot be opened"),
        "nothing": (lambda: None, "has no config.json"),
    }[kind]
    make()
    outcome = []

    def read():
        try:
            outcome.append(read_plain(path, 100))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    with pytest.raises(SafeFileError, match=words):
        raise outcome[0]


def test_a_link_to_the_folder_itself_and_links_inside_it_are_followed(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "v1").write_bytes(b"content")
    (tmp_path / "home" / "file").symlink_to("v1")
    (tmp_path / "alias").symlink_to("home")
    assert read_plain(tmp_path / "alias" / "file", 100) == b"content"


def test_json_is_decoded_as_usual():
    assert parse_json('{"a": [1, -2.5, true, null, "\\u00e9 [{\\\\\\" "]}') == {"a": [1, -2.5, True, None, 'é [{\\" ']}
    assert parse_json("[" * 32 + "]" * 32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 33 + "]" * 33, "more than 32 levels deep"),
        ('{"a":' * 1_000_000, "more than 32 levels deep"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' is there twice"),
        ("[NaN]", "NaN is no finite number"),
        ("[-1e999]", "-1e999 is no finite number"),
        (b"\xff", "can't decode byte 0xff"),
        ("\ufeff{}", "BOM"),
        ('["\\ud800"]', "surrogates not allowed"),
        ('["' + '\\"' * 500_000, "Unterminated string"),
        ("9" * 5000, "digits"),
        ("", "Expecting value"),
    ],
    ids=lambda value: f"{value[:12]!r}",
)
def test_anything_else_is_an_error_at_once(content, words):
    with pytest.raises(ValueError, match=words):
        parse_json(content)


def test_a_message_quotes_little_and_nothing_that_a_terminal_obeys():
    assert in_short("a\x1b[31m\nb") == r"a\x1b[31m\nb"
    assert in_short("é") == "é"
    assert len(in_short("x" * 10**6)) < 520


def test_loading_draws_no_random_numbers(tmp_path):
    folder = random_policy().save_pretrained(tmp_path / "p")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    SkillPolicy.from_pretrained(folder, device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
)
def test_tensors_of_each_type_and_form_survive(tmp_path, dtype):
    tensors = {"a.scalar": torch.ones((), dtype=dtype), "a.empty": torch.ones((0, 3), dtype=dtype)}
    tensors["b"] = torch.arange(7).to(dtype)
    write_tensors(tmp_path / "t", tensors, {"epochs": [1, 2.5, "x"]})
    loaded = load_tensors(tmp_path / "t")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype and loaded[name].shape == tensor.shape and torch.equal(loaded[name], tensor)
    assert load_tensors(tmp_path / "t", "a.").keys() == {"scalar", "empty"}
    assert load_info(tmp_path / "t") == {"epochs": [1, 2.5, "x"]}


def test_a_pickle_is_called_one(tmp_path):
    torch.save({"x": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(SafeFileError, match="it looks like a pickle, which is never read"):
        load_tensors(tmp_path / "model.safetensors")


def _file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        _file({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\0"),  # a type that torch has not
        _file({"x": {"dtype": "F32", "shape": [0, 2**64 - 1], "data_offsets": [0, 0]}}),  # a shape that torch has not
        _file(b'{"x":' + b"[" * 100_000),
        _file({"__metadata__": {"info": {}}}),
        _file(b"{}" + b" " * (16 << 20)),
    ],
    ids=["type", "shape", "depth", "metadata", "length"],
)
def test_what_the_parser_or_torch_cannot_take_is_called_damaged(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(SafeFileError, match=r"/t is damaged or no safetensors file \("):
        load_tensors(tmp_path / "t")


def test_a_file_larger_than_any_network_is_refused_unread(tmp_path):
    (tmp_path / "t").write_bytes(_file({}))
    os.truncate(tmp_path / "t", 1 << 40)  # a hole, which costs nothing
    for load in (load_tensors, lambda path: load_network(lambda: torch.nn.Linear(1, 1), path)):
        with pytest.raises(SafeFileError, match=r"/t has 1,099,511,627,776 bytes, expected at most"):
            load(tmp_path / "t")


def test_loaded_tensors_are_sorted_aligned_and_own_their_memory(tmp_path):
    write_tensors(tmp_path / "t", {"b": torch.ones(5), "c": torch.ones(3, dtype=torch.float64), "a": torch.ones(7)})
    loaded = load_tensors(tmp_path / "t")
    assert list(loaded) == ["a", "b", "c"]
    for tensor in loaded.values():
        assert tensor.data_ptr() % 64 == 0 and tensor.untyped_storage().nbytes() == tensor.nbytes
