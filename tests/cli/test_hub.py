"""The command line's way to the Hub: list, info, pull and push."""

import contextlib
import json
import re
import sys

import pytest

from didi_gym.cli import hub as hub_commands
from didi_gym.cli import main as cli
from didi_gym.hub.client import SkillPolicyHubError
from didi_gym.hub.download import KnownModel, known_models, list_pretrained, resolve, weights_sha256
from didi_gym.models.policy import SkillPolicy
from tests.cli.test_cli import _main
from tests.examples import random_policy

REPO = "acme/skills"


@pytest.fixture
def folder(tmp_path):
    """What `didi-gym train` and `didi-gym evaluate` leave."""
    random_policy(seed=3, env_id="Ant-v5", dataset_id="bodies/plane-v0").save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "results.json").write_text('{"starts": 4, "coverage": 0.5, "falls": null}')
    (tmp_path / "policy" / "run.json").write_text("{}")
    return tmp_path / "policy"


@pytest.fixture
def published(hub_server, folder):
    """The commit of a policy on the Hub."""
    return hub_server.commit(
        REPO, {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    )


def test_list_names_every_policy_of_this_installation_and_no_network_is_asked(hub_server, capsys):
    cli.run(["hub", "list"])
    listed = capsys.readouterr().out
    header, *rows = listed.splitlines()
    assert [row.split()[0] for row in rows] == list_pretrained() and header.split()[0] == "policy"
    for name, row in zip(list_pretrained(), rows, strict=True):
        known = known_models()[name]
        assert known.description in row and known.env_id in row and known.license in row
    cli.run(["list"])
    assert capsys.readouterr().out == listed and hub_server.requests == []


def test_info_tells_spaces_weights_and_results_of_a_folder(folder, capsys):
    cli.run(["hub", "info", str(folder)])
    said = capsys.readouterr().out
    for words in ("Box(-1, 1, (2,))", "8 steps by default", weights_sha256(folder), "Ant-v5", "bodies/plane-v0"):
        assert words in said
    (row,) = [line for line in said.splitlines() if line.startswith("coverage")]
    assert "50 %" in row and "close to 100 %" in row and "\nfalls" not in said and "`" not in said


ODD = "odd\x1b[31m\nforged  row\u202e [red]x[/red] :smile: " + "long" * 60


def shown(text):
    return text.replace("\x1b", "\\x1b").replace("\n", "\\n").replace("\u202e", "\\u202e")


def test_what_a_strangers_configuration_says_is_a_row_of_plain_text(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    config["layout"]["sources"][0]["keys"] = [ODD]
    (folder / "config.json").write_text(json.dumps(config))
    cli.run(["hub", "info", str(folder)])
    said = capsys.readouterr().out
    assert shown(ODD) in said and "\x1b" not in said and "\u202e" not in said
    assert not any(line.startswith("forged") for line in said.splitlines())
    (folder / "config.json").write_text(json.dumps({**config, "dataset_id": ODD}))
    with pytest.raises(SkillPolicyHubError, match="dataset_id holds what cannot be printed") as caught:
        cli.run(["hub", "info", str(folder)])
    assert str(caught.value).isprintable()


def test_a_list_in_a_terminal_is_wrapped_whole_and_no_markup(monkeypatch, capsys):
    model = KnownModel("ant", "acme/ant", None, "0" * 64, "x/y-v0", "Ant-v5", "mit", ODD)
    monkeypatch.setattr(hub_commands, "list_pretrained", lambda: ["ant"])
    monkeypatch.setattr(hub_commands, "known_models", lambda: {"ant": model})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    cli.run(["hub", "list"])
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "\x1b" not in said and "\u202e" not in said and max(map(len, said.splitlines())) <= 60
    letters = "".join(said.split())
    assert letters.count("long") > 40 and "[red]" in letters and ":smile:" in letters


@pytest.mark.parametrize("name", ["results.json", "skill_map.png", "replay.mp4"])
def test_push_refuses_a_link_in_the_folder(hub_server, folder, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    (tmp_path / "secret").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    message = _main(monkeypatch, "hub", "push", folder, REPO)
    assert f"{name} was not pushed" in message and "is a link" in message and hub_server.requests == []


def test_info_tells_the_commit_of_a_policy_on_the_hub(published, capsys):
    cli.run(["hub", "info", REPO])
    said = capsys.readouterr().out
    assert published in said and "Box(-1, 1, (2,))" in said


def test_pull_fetches_a_policy_that_then_loads_without_a_network(published, hub_server, capsys):
    cli.run(["hub", "pull", REPO])
    said = capsys.readouterr()
    folder, _ = resolve(REPO, local_files_only=True)
    assert said.out.strip() == str(folder) and f"{REPO}@{published}" in said.err
    with hub_server.outage():
        assert SkillPolicy.from_pretrained(f"{REPO}@{published}", device="cpu").commit_hash == published


@pytest.mark.parametrize("revision", ["", "@main", "@v1"])
def test_pull_with_pin_prints_what_to_paste_and_nothing_else(published, hub_server, revision, capsys):
    hub_server.tag(REPO, "v1")
    cli.run(["hub", "pull", REPO + revision, "--pin"])
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{REPO}@{published}\n", "")
    cli.run(["hub", "pull", said.out.strip(), "--pin"])
    assert capsys.readouterr().out == said.out


def test_pull_mends_a_damaged_file_when_told_to(published, monkeypatch, capsys):
    cli.run(["hub", "pull", REPO])
    weights = resolve(REPO)[0] / "model.safetensors"
    weights.resolve().write_bytes(b"damaged")
    message = _main(monkeypatch, "hub", "pull", f"{REPO}@{published}")
    assert "model.safetensors" in message and "force_download=True" in message
    cli.run(["hub", "pull", REPO, "--force"])
    assert SkillPolicy.from_pretrained(f"{REPO}@{published}", device="cpu").commit_hash == published


def test_push_publishes_a_folder_and_says_how_to_load_it(hub_server, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    cli.run(["hub", "push", str(folder), REPO, "--tag", "v1", "--private", "--license", "mit"])
    said = capsys.readouterr().out
    made, _ = hub_server.history(REPO)
    assert sorted(made.changed) == ["README.md", "config.json", "model.safetensors", "results.json"]
    assert said.splitlines()[-1] == f"{REPO}@{made.sha}" and "bit for bit" in said
    assert hub_server.repos["model", REPO].private and hub_server.repos["model", REPO].tags == {"v1": made.sha}
    assert "license: mit" in made.files["README.md"].decode()
    cli.run(["hub", "push", str(folder), REPO, "--tag", "v1", "--private", "--license", "mit"])
    assert "has all of this already" in capsys.readouterr().out and len(hub_server.history(REPO)) == 2


def test_push_opens_a_pull_request(hub_server, folder, published, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    cli.run(["hub", "push", str(folder), REPO, "--pr"])
    assert "/discussions/1" in capsys.readouterr().out
    assert hub_server.history(REPO)[0].sha == published and "README.md" in hub_server.files(REPO, "refs/pr/1")


def test_push_says_that_a_card_was_kept(hub_server, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    hub_server.commit(REPO, {"README.md": b"by hand"})
    cli.run(["hub", "push", str(folder), REPO])
    assert "was edited by hand, so it stayed" in capsys.readouterr().err
    assert hub_server.files(REPO)["README.md"] == b"by hand"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pull", "acme/absent"], "didi-gym: there is no model acme/absent"),
        (["pull", "ant-directions"], "is on this disk already, so there is nothing to fetch"),
        (["info", "absent"], "neither a folder, nor a bundled policy"),
        (["push", "absent", "acme/x"], "absent"),
        (["push", "FOLDER", "acme/x"], "needs a token with write scope"),
        (["push", "FOLDER", "x"], "expected a Hub id owner/name to push to, got 'x'"),
        (["fly"], "no command 'hub fly'"),
        ([], "no command 'hub'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(hub_server, folder, monkeypatch, arguments, words):
    arguments = [str(folder) if word == "FOLDER" else word for word in arguments]
    message = _main(monkeypatch, "hub", *arguments)
    assert words in message and (arguments[:1] in (["fly"], []) or "\n" not in message)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "hub",
            ["hub list Skill policies that come", "hub info What a", "hub pull Fetch a", "hub push Publish a policy"],
        ),
        ("", ["hub list", "hub info NAME", "hub pull OWNER/NAME [--pin]", "hub push FOLDER OWNER/NAME"]),
        ("hub list", ["come with this installation"]),
        ("hub info", ["NAME", "owner/name[@revision]"]),
        ("hub pull", ["--pin", "hf auth login", "--force", "a branch, a tag or a commit"]),
        ("hub push", ["FOLDER", "REPO", "--tag", "--private", "--pr", "one commit", "edited by hand", "HF_TOKEN"]),
        ("data upload", ["DATASET", "hf://OWNER", "through Minari", "--download"]),
    ],
)
def test_help_teaches_every_command(command, words, capsys):
    with contextlib.suppress(SystemExit):
        cli.run([*command.split(), "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(word in said for word in words), said
