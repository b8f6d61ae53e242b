"""The plain Flower commands, and that Flower's own parser reads back what they say."""

import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from fedhess.base.errors import UsageError
from fedhess.deploy import programs
from fedhess.deploy.keys import Keys, make_keys
from fedhess.deploy.packing import app_config, pack_app
from fedhess.deploy.settings import plan_nodes, plan_run, read_settings
from fedhess.federation.client.call import Place
from fedhess.federation.flower_compat import read_run_config
from fedhess.federation.run_settings import settings_of_run

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "keys of mine")
    make_keys(made, hosts=["localhost"], nodes=["sketch"], days=1)
    return made


def test_superlink_is_started_with_tls_and_authenticated_nodes(keys: Keys) -> None:
    program = programs.superlink(keys, host="0.0.0.0", port=8000, database=Path("state.db"))
    name, *arguments = shlex.split(str(program))
    assert name == "flower-superlink"
    assert arguments == [
        *("--ssl-ca-certfile", str(keys.ca), "--ssl-certfile", str(keys.server), "--ssl-keyfile", str(keys.server_key)),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--host", "0.0.0.0", "--port", "8000", "--database", "state.db"),
    ]
    assert program.command() == [str(Path(sys.executable).parent / "flower-superlink"), *arguments]


def test_supernode_says_its_domain_in_words_that_flower_reads(keys: Keys) -> None:
    own = {"role": "target", "domain": "Real World", "data-dir": "/data/a b", "partition-id": 3}
    program = programs.supernode(
        keys, address="h:1", name="sketch", port=9095, node_config=own, more_config="threads=1"
    )
    arguments = shlex.split(str(program))
    read = parse_config_args([arguments[arguments.index("--node-config") + 1]])
    assert read == own | {"threads": 1}


def test_run_config_is_read_back_by_flower_and_gives_the_settings(tmp_path: Path) -> None:
    plan = plan_run(
        "iconpacs",
        target="photo",
        strategy="hgp",
        rounds=3,
        run_dir=tmp_path,
        given=["threads=1 strategy-args='alpha=0.5'", 'references="previous"'],
    )
    program = programs.run(REPOSITORY, flower_home=tmp_path / "home", run_config=plan)
    arguments = shlex.split(str(program))
    assert arguments[:4] == [f"FLWR_HOME={tmp_path / 'home'}", "flwr", "run", str(REPOSITORY)]
    given = [arguments[i + 1] for i, argument in enumerate(arguments) if argument == "--run-config"]
    overrides = parse_config_args(given)
    assert overrides.keys() <= CONFIG.keys(), "Flower refuses keys that the app does not list"
    settings = settings_of_run(CONFIG | overrides)
    assert (settings.sources, settings.targets) == (("art_painting", "cartoon", "sketch"), ("photo",))
    assert (settings.rounds, settings.threads, settings.references) == (3, 1, "previous")
    assert settings.strategy_args == {"alpha": 0.5}


def test_a_benchmark_is_planned_without_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("FEDHESS_DATA", raising=False)
    plan = plan_run("PACS", target="", strategy=None, rounds=None, run_dir=None, given=[])
    assert plan == ['domains="PACS" sources="cartoon,photo,sketch" targets="art_painting" model="resnet18"']
    other = ["domains-options='form=domainbed'"]
    plan = plan_run("ColoredMNIST", target="flip-0.9", strategy=None, rounds=None, run_dir=None, given=other)
    assert 'sources="flip-0.1,flip-0.2" targets="flip-0.9" model="mnist-cnn"' in plan[0]


def planned(*given: str) -> list[Place]:
    plan = plan_run("IconPACS", target="sketch", strategy=None, rounds=None, run_dir=None, given=given)
    return plan_nodes(read_settings(plan))


def test_a_local_deployment_has_a_node_for_every_client() -> None:
    sketch = Place("sketch", "target", 0)
    sources = ["art_painting", "cartoon", "photo"]
    assert planned() == [*(Place(domain, "source", 0) for domain in sources), sketch]
    two = planned('partition="dirichlet" clients-per-domain=3', "clients-per-domain=2")
    assert two == [*(Place(domain, "source", number) for domain in sources for number in (0, 1)), sketch]
    mixed = planned('partition="lambda" clients=7 heterogeneity=0.5')
    assert len(mixed) == len(set(mixed)) == 8
    assert {node.domain for node in mixed[:7]} == set(sources)
    assert mixed[7] == sketch


def test_mistakes_in_the_run_config_are_named_before_anything_starts() -> None:
    with pytest.raises(UsageError, match=r"the app has no setting 'clients-per-domai'; did you mean 'clients-per-doma"):
        planned("clients-per-domai=2")
    with pytest.raises(UsageError, match="--clients-per-domain: it belongs to --partition dirichlet, got 2"):
        planned("clients-per-domain=2")
    with pytest.raises(UsageError, match="--run-config: The provided configuration string is in an invalid format"):
        planned("quorum=two")
    with pytest.raises(UsageError, match=r"--run-config: .*No such file.*'settings.toml'"):
        read_settings(["settings.toml"])
    for text, rest in (("quorum = 2", "quorum = 2"), ("quorum 2", "quorum 2"), ("quorum=2 extra", "extra")):
        with pytest.raises(UsageError, match=f"--run-config: expected key=value, .*, got '{rest}'"):
            planned(text)
    assert planned('strategy-args=\'{"alpha": 0.5, "beta": 1}\' quorum=2')


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('client-optimizer="Adam" momentum=0.9', "--momentum 0.9: it is SGD's, and --client-optimizer is Adam"),
        ("quorum=9", r"--quorum: expected at most 3, the number of source clients \(art_painting, cartoon, photo\)"),
        ('augment="domainbed"', "--augment domainbed: expected RGB images"),
        ('precision="bf16" dtype="float64"', "--precision bf16: it needs --dtype float32, got float64"),
        ('model="lite0-feature"', "--model: unknown model 'lite0-feature'; did you mean 'lite0-features'"),
        ('strategy-args="alhpa=3"', "alhpa"),
        ("strategy-args=5", "run config, strategy-args: expected a text, got 5"),
        ("domains-options=5", "run config, domains-options: expected a text, got 5"),
        ("strategy-args='[1]'", r"run config, strategy-args: expected a JSON object, got '\[1\]'"),
        (
            'strategy="fedadam" server-lr=0.5',
            "--server-lr: expected a strategy that steps by the run's server",
        ),
        ('server-optimizer-args="nonsense=3"', "nonsense"),
        ('sources="photo,photo"', "--sources, --targets: expected each domain once, got photo, photo and sketch"),
        ('sources="photo,sketch"', "expected each domain once, got photo, sketch and sketch"),
        ('targets="mars"', "--targets: unknown domain 'mars'"),
    ],
)
def test_settings_that_do_not_go_together_are_named_before_anything_starts(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(given)


def test_a_strategy_that_only_server_and_nodes_have_can_be_run() -> None:
    assert len(planned('strategy="their.package:Method"')) == 4


def test_the_job_directory_is_one_of_the_superlinks_machine_and_goes_as_it_stands() -> None:
    plan = plan_run("IconPACS", target="", strategy=None, rounds=None, run_dir=Path("runs/x"), given=[])
    assert read_run_config(plan)["run-dir"] == "runs/x"


def test_mistakes_about_the_run_are_named(tmp_path: Path) -> None:
    def plan(domains: str, target: str) -> None:
        plan_run(domains, target=target, strategy=None, rounds=None, run_dir=None, given=[])

    with pytest.raises(UsageError, match=r"--domains IconPAC: unknown benchmark 'IconPAC'; did you mean 'IconPACS'\?"):
        plan("IconPAC", "")
    with pytest.raises(UsageError, match="--target: a deployed run has one, got photo, sketch"):
        plan("IconPACS", "photo,sketch")
    with pytest.raises(UsageError, match="expected a text without both kinds of quotes"):
        programs.toml("\"'")


def test_the_app_is_the_code_of_the_installed_package_with_its_strategies(tmp_path: Path) -> None:
    app = pack_app(tmp_path / "app")
    written = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    assert written["config"] == app_config() == CONFIG
    checkout = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    assert written["components"] == checkout["components"]
    assert not list(app.rglob("*.png"))
    code = "from importlib.util import find_spec; print(find_spec('fedhess.strategies.hgp').origin)"
    environment = os.environ | {"PYTHONPATH": str(app)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == app / "fedhess" / "strategies" / "hgp.py"
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"cannot write the app to .*; choose another folder"):
        pack_app(tmp_path / "file" / "app")


def test_connection_is_written_where_the_users_own_is_not(tmp_path: Path) -> None:
    programs.write_connection(tmp_path / "home", address="fl.example.org:8000", ca=tmp_path / "ca.crt")
    written = tomllib.loads((tmp_path / "home" / "config.toml").read_text(encoding="utf-8"))
    assert written == {
        "superlink": {
            "default": "deployment",
            "deployment": {"address": "fl.example.org:8000", "root-certificates": str(tmp_path / "ca.crt")},
        }
    }
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"cannot write to .*file/home: Not a directory; choose another folder"):
        programs.write_connection(tmp_path / "file" / "home", address="h:1", ca=tmp_path / "ca.crt")


def test_flowers_programs_neither_phone_home_nor_lack_their_fellows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    environment = programs.Program("flwr", []).environment()
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert programs.Program("flwr", []).environment()["FLWR_TELEMETRY_ENABLED"] == "1", "the user decides"
