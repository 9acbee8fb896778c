"""Model cards: what stands in them comes from files, what they claim is valid, and their programs run."""

import csv
import dataclasses
import json
import math
import re
import shlex
import socket

import numpy as np
import pytest
import tyro
import yaml
from huggingface_hub import ModelCard

from didi_gym.cli import evaluate as evaluate_command
from didi_gym.cli import train as train_command
from didi_gym.core.layout import Layout
from didi_gym.core.skill_space import SkillSpace
from didi_gym.evaluation.report import SkillReport
from didi_gym.hub.download import known_models
from didi_gym.hub.upload import is_untouched
from didi_gym.models.card import CardError, check_card, make_card, read_results
from didi_gym.models.policy import SkillPolicy
from tests.examples import random_policy
from tests.scripts import ROOT, load_script, python_blocks, run_program

Recipe = load_script("hub/recipe.py").Recipe
HUB = ROOT / "hub"
POLICIES = sorted(path.parent.name for path in HUB.glob("*/config.json"))
RECIPES = sorted(HUB.glob("recipes/*.toml"))
RESULTS = {
    "starts": 8,
    "skills": 4,
    "replan_every": 2,
    "real_spread": 0.25,
    "planned_spread": None,
    "probe": 0.5,
    "mutual_information_bits": 1.5678,
    "mutual_information_ceiling": 2.0,
    "fidelity": 0.975,
    "held_steps": 96,
    "falls": math.nan,
}
RECIPE = """
description = "A body that goes places."
effort = "a minute"
limits = ["It cannot swim."]
[usage]
env = "Ant-v5"
kwargs = { max_episode_steps = 50 }
[data]
dataset = "hf://acme/bodies/plane-v0"
command = "didi-gym data plane"
[train]
seed = 1
"horizon" = 16
"skills.skill-space.kind" = "discrete"
keys = ["observation", "achieved_goal"]
download = true
[evaluate]
contact-geoms = "block|wall"
video = false
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "body.toml").write_text(RECIPE)
    return Recipe.read(tmp_path / "body.toml")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def section(card, title):
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


# -- the cards of hub/ ---------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", POLICIES)
def test_a_card_in_hub_is_valid_and_what_its_recipe_and_results_make(name):
    page = (HUB / name / "README.md").read_text()
    check_card(page, [path.name for path in (HUB / name).iterdir()])
    policy = SkillPolicy.from_pretrained(HUB / name, device="cpu")
    made = load_script("hub/publish.py").card(name, policy, name)
    assert page == made, f"run: python hub/publish.py {name} --refresh"


@pytest.mark.parametrize("name", POLICIES)
def test_the_front_matter_of_a_card_in_hub_says_what_the_hub_asks_for(name):
    page, known = (HUB / name / "README.md").read_text(), known_models()[name]
    data, plain = ModelCard(page).data, front_matter(page)
    assert (data.library_name, data.pipeline_tag) == ("didi_gym", "reinforcement-learning")
    assert data.license == known.license and known.env_id in data.tags and data.datasets == [known.dataset]
    (index,) = plain["model-index"]
    metrics = [metric for result in index["results"] for metric in result["metrics"]]
    results = read_results(HUB / name / "results.json")
    assert 5 <= len(metrics) <= 8 and index["name"] == name
    assert all(metric["value"] == pytest.approx(results[metric["type"]], rel=0.005) for metric in metrics)


@pytest.mark.parametrize("name", POLICIES)
def test_the_program_of_a_card_in_hub_runs(name):
    pytest.importorskip("gymnasium_robotics", reason="the mazes need didi-gym[envs]")
    (program,) = python_blocks((HUB / name / "README.md").read_text())
    assert len(program.split("\n\n", 1)[1].splitlines()) <= 4 and f'"{name}"' in program
    assert run_program(program)["env"].low_level_steps > 0


@pytest.mark.parametrize("name", POLICIES)
def test_the_program_of_a_published_card_runs_on_what_the_hub_has(name, hub_server):
    pytest.importorskip("gymnasium_robotics", reason="the mazes need didi-gym[envs]")
    publish = load_script("hub/publish.py")
    built = publish.build(name, f"acme/{name}", "v7")
    hub_server.commit(f"acme/{name}", built.files)
    hub_server.tag(f"acme/{name}", "v7")
    hub_server.commit(f"acme/{name}", {"model.safetensors": b"other weights"})
    (program,) = python_blocks(hub_server.files(f"acme/{name}", "v7")["README.md"].decode())
    assert f'"acme/{name}@v7"' in program
    assert run_program(program)["env"].low_level_steps > 0
    assert any(request.path.endswith("/model.safetensors") for request in hub_server.requests)


# -- what makes a card -----------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("no_network")
def test_a_card_is_made_and_checked_without_a_network(recipe):
    card = make_card(
        random_policy(), "body", words=recipe.words("body"), results=RESULTS, license="mit", files=["skill_map.png"]
    )
    check_card(card, ["skill_map.png"])
    assert ModelCard(card).data.library_name == "didi_gym" and "](skill_map.png)" in card


def test_headlines_stand_in_the_model_index_rounded_and_what_was_not_measured_does_not(recipe):
    card = make_card(random_policy(env_id="Ant-v5"), "body", words=recipe.words("body"), results=RESULTS, license="mit")
    data = ModelCard(card).data
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "mutual_information_bits": 1.57,
        "fidelity": 0.975,
    }
    assert {result.dataset_type for result in data.eval_results} == {"Ant-v5"}
    assert data.model_name == "body" and data.license == "mit" and data.datasets == ["acme/bodies"]
    assert data.tags.count("Ant-v5") == 1
    shown = section(card, "Results")
    assert "4 skills from each of 8 start states, with a new plan every 2 steps" in shown
    assert "| information in one horizon, of 2 bits | 1.57 bits |" in shown and "| 97.5 % |" in shown
    assert "nan" not in card.lower() and "None" not in card and "falls" not in shown.split("All figures")[0]


def rows_of(card):
    """The cells of the table of results, header first."""
    lines = [line for line in section(card, "Results").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_the_behaviours_of_the_data_and_two_rivals_stand_beside_this_policy_in_words():
    def mean(value, runs):
        return {"fidelity": {"iqm": value, "low": None, "high": math.nan, "n": runs}}

    baselines = {
        "vae": mean(0.1, 9),
        "didi-64-starts": mean(0.2, 9),
        "no-prior": mean(0.31239, 1),
        "behaviours": mean(0.9912, 5),
        "bc-anchor": {**mean(0.5, 7), "falls": {"iqm": 0.1, "n": 9}},
        "metra": {"falls": {"iqm": math.nan, "n": 0}},
    }
    card = make_card(random_policy(), "body", results={**RESULTS, "seeds": mean(0.8, 5), "baselines": baselines})
    information, fidelity = "information in one horizon, of 2 bits", "rollouts like the data"
    assert rows_of(card) == [
        [
            "",
            "this policy",
            "the data's own behaviours (5 runs)",
            "imitation instead of the prior (7 runs)",
            "without the prior (1 run)",
        ],
        [information, "1.57 bits", "-", "-", "-"],
        [fidelity, "97.5 %", "99.1 %", "50 %", "31.2 %"],
    ]
    assert "interquartile means" in section(card, "Results")
    assert not any(label in card for label in ("bc-anchor", "no-prior", "didi-64-starts", "vae", "variational"))


@pytest.mark.parametrize("kind", ["ball", "discrete"])
def test_at_most_eight_figures_are_shown_each_with_its_meaning_and_a_good_value(kind):
    policy = random_policy(Layout.flat(4), skill_space=SkillSpace(kind, 2))
    every = {field.name: 0.5 for field in dataclasses.fields(SkillReport)}
    card = make_card(policy, "body", results={**every, "training_seconds": 12.0})
    labels = [row[0].split(",")[0] for row in rows_of(card)[1:]]
    assert len(labels) == 8 and "12" not in section(card, "Results")
    for label in labels:
        assert re.search(rf"^\* \*\*{re.escape(label)}\*\*: .+\. Good is .+\.$", card, re.MULTILINE)


@pytest.mark.parametrize("name", POLICIES)
def test_a_card_in_hub_is_short_and_has_no_long_numbers(name):
    page = (HUB / name / "README.md").read_text()
    assert not re.search(r"\.\d{5}", page.split("---\n")[1] + section(page, "Results"))
    assert len(rows_of(page)) <= 9 and all(len(row) <= 5 for row in rows_of(page))


def test_without_results_pictures_and_recipe_a_card_says_less_and_is_still_valid():
    card = make_card(random_policy(dataset_id="own/data-v0"), "body")
    check_card(card, [], complete=False)
    assert "## Results" not in card and "replay.mp4" not in card and "skill_map.png" not in card
    assert "model-index" not in card and "didi-gym train --dataset own/data-v0" in card


def test_map_and_replay_are_shown_where_they_are_there():
    card = make_card(random_policy(), "body", files=["replay.mp4", "skill_map.png"])
    assert "](skill_map.png)" in card and "](replay.mp4)" in card


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            [
                "continuous: `z` in the unit ball of R^2",
                "`Box(-1, 1, (2,))`",
                "3 numbers in (-1, -0.5, -2) to (1, 0.25, 3)",
            ],
        ),
        (
            {"layout": Layout.flat(4), "skill_space": SkillSpace("discrete", 5), "plan_length": 1, "replan_every": 1},
            ["one of 5", "`Discrete(5)`", "4 numbers", "8 steps by default, with a new plan at every step"],
        ),
        ({"low": (-1.0,) * 2, "high": (1.0,) * 2, "discrete_actions": True}, ["`Discrete(2)`"]),
        (
            {"low": (-1.0,) * 2, "high": (1.0,) * 2},
            ["2 numbers in [-1, 1]", "8 numbers, of which it reads 2-7; or 6 numbers"],
        ),
    ],
)
def test_the_spaces_are_those_of_the_configuration_and_the_weights(changes, words):
    card = make_card(random_policy(**changes), "body")
    for word in words:
        assert word in section(card, "What it reads and emits")


def test_only_of_discrete_skills_the_probe_is_an_accuracy_and_shown():
    policy = random_policy(Layout.flat(4), skill_space=SkillSpace("discrete", 5))
    assert ["skill recognised", "50 %"] in rows_of(make_card(policy, "body", results=RESULTS))
    assert "recognised" not in section(make_card(random_policy(), "body", results=RESULTS), "Results")


def test_the_program_of_a_policy_without_an_environment_plans(tmp_path, monkeypatch):
    policy = random_policy()
    policy.save_pretrained(tmp_path / "body")
    monkeypatch.chdir(tmp_path)
    (program,) = python_blocks(make_card(policy, "body"))
    assert run_program(program)["actions"].shape == (1, 8, 3)


@pytest.mark.parametrize(
    "config",
    [
        {"env_id": "evilmodule:Env-v0"},
        {"env_id": "..x:Y-v0"},
        {"env_id": "didi_gym/Ant-v0"},
        {"env_id": "Ant-v5", "env_kwargs": {"policy": "evil/repo"}},
    ],
)
def test_the_program_of_a_card_makes_no_environment_that_asks_for_trust(config):
    policy = random_policy(Layout.flat(4), **config)
    (program,) = python_blocks(make_card(policy, "body"))
    assert "make(" not in program and "plan_actions" in program


def test_the_program_of_a_policy_without_a_recipe_makes_the_environment_of_its_data():
    pytest.importorskip("gymnasium_robotics", reason="the mazes need didi-gym[envs]")
    policy = SkillPolicy.from_pretrained("pointmaze-medium", device="cpu")
    (program,) = python_blocks(make_card(policy, "pointmaze-medium"))
    assert len(program.split("\n\n", 1)[1].splitlines()) == 4
    assert run_program(program)["env"].low_level_steps > 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("acme/body@v1", '"acme/body@v1"'),
        ("acme/body", "`didi-gym hub pull acme/body --pin` prints the present commit"),
        (None, "downloads nothing"),
    ],
)
def test_a_card_says_what_its_program_loads_and_how_to_pin_it(source, words):
    assert words in section(make_card(random_policy(), "body", source=source), "Use")


# -- recipes -----------------------------------------------------------------------------------------------------------
def test_a_recipe_becomes_the_commands_that_make_the_policy(recipe):
    assert recipe.commands("body") == [
        "didi-gym data plane",
        "didi-gym train --dataset hf://acme/bodies/plane-v0 --download --output runs/body --seed 1 --horizon 16 "
        "--skills.skill-space.kind discrete --keys observation achieved_goal --download",
        "didi-gym evaluate runs/body --contact-geoms 'block|wall' --no-video",
    ]
    card = make_card(random_policy(), "body", words=recipe.words("body"))
    for words in (*recipe.commands("body"), "a minute"):
        assert words in section(card, "How it was made")
    assert "* It cannot swim." in section(card, "Limits") and "A body that goes places." in card
    assert 'didi_gym.make("Ant-v5", "body", env_kwargs={"max_episode_steps": 50})' in section(card, "Use")


@pytest.mark.parametrize("file", [*RECIPES, None], ids=lambda file: file.stem if file else "of this test")
def test_the_command_line_understands_the_commands_of_a_recipe(file, recipe):
    recipe = Recipe.read(file) if file else recipe
    train = tyro.cli(train_command.Train, args=recipe.train_arguments("out")[1:])
    assert train.dataset == recipe.data.dataset and train.download == recipe.data.dataset.startswith("hf://")
    assert tyro.cli(evaluate_command.Evaluate, args=recipe.evaluate_arguments("out")[1:]).policy == "out"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("description", "descripton"), "descripton: "),
        (('effort = "a minute"', "effort = 1"), "effort: "),
        (('limits = ["It cannot swim."]', 'limits = ["It]'), "is no recipe"),
        (("dataset = ", "data = "), "data.data: "),
    ],
)
def test_a_recipe_that_is_none_is_refused_with_its_fault(tmp_path, change, words):
    (tmp_path / "body.toml").write_text(RECIPE.replace(*change))
    with pytest.raises(CardError) as caught:
        Recipe.read(tmp_path / "body.toml")
    assert words in str(caught.value) and "body.toml" in str(caught.value)


# -- checks ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("---\n", ""), "it has no front matter"),
        (("library_name: didi_gym", "library_name: [didi"), "its front matter cannot be read"),
        (("library_name: didi_gym", "library_name: other"), "library_name must be didi_gym, got 'other'"),
        (("pipeline_tag: reinforcement-learning", "x: y"), "pipeline_tag must be reinforcement-learning, got None"),
        (("license: mit", "x: y"), "license is missing"),
        (("datasets:", "data:"), "datasets is missing"),
        (("value: 0.975", "value: good"), "model-index: fidelity must be a number, got 'good'"),
        (("value: 0.975", "value: .nan"), "model-index: fidelity must be a number, got nan"),
        (("```python", "```"), "it has no Python block"),
        (("import didi_gym", "import didi gym"), "a Python block is no Python"),
        (("](skill_map.png)", "](map.png)"), "map.png is linked but not there"),
    ],
)
def test_each_fault_of_a_card_is_named(recipe, change, words):
    card = make_card(
        random_policy(), "body", words=recipe.words("body"), results=RESULTS, license="mit", files=["skill_map.png"]
    )
    assert change[0] in card
    with pytest.raises(CardError) as caught:
        check_card(card.replace(*change), ["skill_map.png"])
    assert str(caught.value).startswith("README.md") and words in str(caught.value).replace("README.md has", "it has")


def test_all_faults_are_named_at_once():
    with pytest.raises(CardError, match=r"license is missing; datasets is missing$"):
        check_card(make_card(random_policy(), "body"), [])


def test_any_edit_of_a_card_is_noticed_and_none_where_there_is_none():
    card = make_card(random_policy(), "body", results=RESULTS)
    assert is_untouched(card)
    for edited in (card + "\n", "\n" + card, card.replace("97.5", "99.5"), card.replace("\n", "\r\n"), "mine", ""):
        assert not is_untouched(edited)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{", "line 1"),
        ("[1]", "the file"),
        ("\x00", "line 1"),
        ('{"falls": {}}', "falls"),
        ('{"seeds": []}', "seeds"),
        ('{"seeds": {"probe": 1}}', r"seeds\.probe"),
        ('{"baselines": {"vae": {"probe": {"iqm": "1"}}}}', r"baselines\.vae\.probe\.iqm"),
        ('{"a\\nb": "c"}', r"a\\nb"),
    ],
)
def test_a_damaged_report_is_one_sentence_that_names_file_and_place(tmp_path, text, place):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CardError, match=rf"results\.json.*{place}") as caught:
        read_results(tmp_path / "results.json")
    assert str(caught.value).isprintable()


def test_a_report_is_bounded_and_no_link_out_of_its_folder(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "results.json").write_text("{" + " " * (1 << 20) + "}")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "results.json").symlink_to(tmp_path / "large" / "results.json")
    assert read_results(tmp_path / "results.json") is None
    for folder in ("large", "link"):
        with pytest.raises(CardError, match=rf"{folder}/results\.json"):
            read_results(tmp_path / folder / "results.json")


def test_results_that_are_none_make_no_card():
    with pytest.raises(CardError, match=r"body.*coverage"):
        make_card(random_policy(), "body", results={"coverage": "all"})


# -- hub/evaluate.py ---------------------------------------------------------------------------------------------------
@pytest.fixture
def table(tmp_path):
    """Scores of four seeds of ours, of two baselines, and of another data set."""
    rows = [("bodies/plane-v0", "didi", seed, 2, score) for seed, score in enumerate([0.1, 0.4, 0.6, 0.9])]
    rows += [("bodies/plane-v0", "didi", 0, 4, 0.0), ("other/plane-v0", "didi", 0, 2, 0.0)]
    rows += [("bodies/plane-v0", "clone", 0, 1, 0.3), ("bodies/plane-v0", "random", 0, 1, "nan")]
    with (tmp_path / "skills.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "method", "seed", "replan_every", "probe", "contact"])
        writer.writerows([*row, ""] for row in rows)
    return tmp_path / "skills.csv"


def test_seeds_and_baselines_are_added_to_a_report(table):
    evaluate = load_script("hub/evaluate.py")
    report = evaluate.with_seeds({**RESULTS, "baselines": {"old": {}}}, table, "hf://acme/bodies/plane-v0")
    ours = report["seeds"].pop("probe")
    assert ours["iqm"] == pytest.approx(0.5) and ours["n"] == 4 and 0.1 <= ours["low"] < 0.5 < ours["high"] <= 0.9
    assert report["seeds"] == {}, "settings and what nobody measured are no scores"
    assert report["baselines"] == {"clone": {"probe": {"iqm": 0.3, "low": None, "high": None, "n": 1}}}
    assert {key: report[key] for key in RESULTS} == RESULTS


def test_without_a_table_or_a_row_of_its_data_set_a_report_stays_as_it_is(table, tmp_path):
    evaluate = load_script("hub/evaluate.py")
    assert evaluate.with_seeds(RESULTS, tmp_path / "absent.csv", "bodies/plane-v0") == RESULTS
    assert evaluate.with_seeds(RESULTS, table, "bodies/hill-v0") == RESULTS


def test_two_rows_of_one_seed_are_refused(table):
    with table.open("a") as file:
        file.write("bodies/plane-v0,didi,3,2,0.9,\n")
    with pytest.raises(ValueError, match="bodies/plane-v0, didi, seed 3 has 2 rows; expected one"):
        load_script("hub/evaluate.py").with_seeds(RESULTS, table, "bodies/plane-v0")


def test_evaluating_without_rollouts_renews_seeds_and_nothing_else(table, tmp_path, monkeypatch):
    evaluate = load_script("hub/evaluate.py")
    monkeypatch.setattr(evaluate, "HUB", tmp_path)
    random_policy(dataset_id="bodies/plane-v0").save_pretrained(tmp_path / "body")
    (tmp_path / "body" / "results.json").write_text(json.dumps({"probe": 0.5, "replan_every": 2}))
    evaluate.main(evaluate.Evaluate("body", rollouts=False, table=table))
    report = json.loads((tmp_path / "body" / "results.json").read_text())
    assert report["probe"] == 0.5 and report["seeds"]["probe"]["n"] == 4


def test_a_training_folder_is_measured_and_its_weights_are_copied(tmp_path, monkeypatch):
    evaluate, run = load_script("hub/evaluate.py"), tmp_path / "runs" / "body"
    monkeypatch.setattr(evaluate, "HUB", tmp_path / "hub")
    (tmp_path / "hub" / "recipes").mkdir(parents=True)
    (tmp_path / "hub" / "recipes" / "body.toml").write_text(RECIPE)
    random_policy(seed=5).save_pretrained(run)
    asked = []

    def measure(words):
        asked.append(words)
        (tmp_path / "hub" / "body" / "results.json").write_text('{"probe": 0.5}')

    monkeypatch.setattr(evaluate.cli, "run", measure)
    evaluate.main(evaluate.Evaluate("body", run=run, table=tmp_path / "absent.csv"))
    (words,) = asked
    expected = ["evaluate", str(run), "--contact-geoms", "block|wall", "--no-video"]
    assert words == [*expected, "--output", str(tmp_path / "hub" / "body")]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "hub" / "body" / name).read_bytes() == (run / name).read_bytes()
    np.testing.assert_equal(json.loads((tmp_path / "hub" / "body" / "results.json").read_text()), {"probe": 0.5})


# -- what a stranger's configuration may do to a card ----------------------------------------------------------------
def test_words_of_a_configuration_are_no_markup_no_html_and_no_command():
    layout = Layout.flat(2, ("a`<b>|x",))
    policy = random_policy(layout)
    odd = "x`</code><img src=y onerror=z>`"
    fields = {"dataset_id": f"{odd}; rm -rf ~", "env_id": odd, "didi_gym_version": "[1](http://x) <script>"}
    policy.config = dataclasses.replace(policy.config, **fields)
    card = make_card(policy, "a<b>[x](http://y)")
    shown = card.split("---\n", 2)[2]
    body = re.sub(r"```.*?```|`[^`\n]*`", "", shown, flags=re.DOTALL)  # without what is code
    assert not re.search(r"(?<!\\)<(?!!--)|(?<!\\)\]\(http://", body)
    assert r"\[1\]\(http://x\) \<script\>" in card and r"# a\<b\>\[x\]\(http://y\)" in card
    (command,) = re.findall(r"`(didi-gym train [^`]*)`", card)
    assert len(shlex.split(command)) == 4 and shlex.split(command)[3].endswith("rm -rf ~")
    assert "| `a'<b>\\|x` of 2 numbers |" in card
    assert odd in front_matter(card)["tags"]


@pytest.mark.parametrize("changes", [{"env_id": "evil:Env-v0"}, {"env_id": "Ant-v5", "env_kwargs": {"policy": "a/b"}}])
def test_the_program_of_a_card_makes_no_environment_that_runs_what_a_configuration_chose(changes):
    policy = random_policy()
    policy.config = dataclasses.replace(policy.config, **changes)
    (program,) = python_blocks(make_card(policy, "odd"))
    assert "make(" not in program and "plan_actions" in program
