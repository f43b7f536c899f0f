"""Who decides: flag > SAWYER_* > config file > default; and where a NATS server is looked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import platformdirs
import pytest

from sawyer.contexts import DEFAULT_URL, NatsTarget
from sawyer.errors import UsageError
from sawyer.settings import KNOWN, Settings, parse_size

GOOD = {"home": "h", "nats": "nats://h:1", "context": "prod", "creds": "x.creds", "account": "alice", "model": "m",
        "node": "attic", "host": "maria", "device": "cpu", "threads": "3", "ledger_durability": "normal",
        "log_level": "info", "log_format": "json",
        "ledger_verifiers": "2", "cache_limit": "64GiB",
        "ledger_url": "postgresql://maria@h/ledger", "loop": "asyncio", "nats_server": "bin/nats-server"}  # fmt: skip
"""A value for every setting."""


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user with nothing of ours."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(platformdirs, "user_data_path", lambda name: tmp_path / "data")
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / "config" / name)
    return tmp_path


@pytest.fixture
def config(user: Path) -> Path:
    """The config file of a user who names no home."""
    file = user / "config" / "sawyer" / "config.toml"
    file.parent.mkdir(parents=True)
    return file


def context(root: Path, name: str, **fields: object) -> Path:
    """A context that the nats CLI wrote."""
    file = root / "config" / "nats" / "context" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(fields))
    return file


def test_documentation_has_every_setting_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in page.splitlines() if "SAWYER_" in line
    ]
    told = [(name, variable, about) for name, variable, _, about in (row for row in rows if len(row) == 4)]
    assert told == [(known.name, known.variable, known.about) for known in KNOWN]
    own = {"home", "account", "node", "host"}
    defaults = {row[0]: row[2] for row in rows if len(row) == 4}
    assert {name: text for name, text in defaults.items() if name not in own} == {
        known.name: known.default() or "-" for known in KNOWN if known.name not in own
    }


def test_every_setting_has_a_value_to_try_here() -> None:
    assert set(GOOD) == {known.name for known in KNOWN}


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
@pytest.mark.parametrize(
    ("given", "decides"),
    [
        (("flag", "variable", "file"), "flag"),
        (("flag",), "flag"),
        (("variable", "file"), "variable"),
        (("variable",), "variable"),
        (("file",), "file"),
        ((), "default"),
    ],
    ids=str,
)
def test_flag_wins_over_variable_over_file_over_default(
    config: Path, known: object, given: tuple[str, ...], decides: str
) -> None:
    name, good = known.name, GOOD[known.name]
    config.write_text(f"# settings\n{name} = {json.dumps(good)}\n" if "file" in given else "")
    environ = {known.variable: good} if "variable" in given else {}
    if name == "home" and ("flag" in given or "variable" in given):
        config.write_text("")  # a home that was named has a config file of its own
    value = Settings.load(environ, **({name: good} if "flag" in given else {})).values[name]
    place = f"{config}, line 2, column 1"
    sources = {
        "flag": f"--{known.flag or name.replace('_', '-')}",
        "variable": known.variable,
        "file": place,
        "default": "default",
    }
    assert value.source == sources[decides]
    if decides == "default":
        assert value.text == known.default()
    else:
        assert value.text == (str(config.parent / good) if known.path and decides == "file" else good)


@pytest.mark.parametrize("empty", ["flag", "variable", "file"])
def test_empty_is_not_given(config: Path, empty: str) -> None:
    config.write_text('nats = ""\n' if empty == "file" else "")
    environ = {"SAWYER_NATS": ""} if empty == "variable" else {}
    assert Settings.load(environ, nats="" if empty == "flag" else None).values["nats"].source == "default"


def test_setting_that_nobody_knows_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="nets"):
        Settings.load({}, nets="nats://h")


# --- homes ------------------------------------------------------------------------------------------------------------


def test_home_is_absolute_and_knows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.load({}, home=Path("~/mine")).home.path == tmp_path / "mine"
    assert Settings.load({}, home=Path("here")).home.path == tmp_path / "here"
    assert Settings.load({"SAWYER_HOME": "there"}).home.path == tmp_path / "there"


def test_loading_settings_makes_nothing(tmp_path: Path) -> None:
    settings = Settings.load({}, home=tmp_path / "home")
    assert settings.home.pin() is None
    assert list(tmp_path.iterdir()) == []


def test_home_that_was_named_has_a_config_file_and_contexts_of_its_own(config: Path, tmp_path: Path) -> None:
    config.write_text('account = "of-the-user"')
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text('account = "of-the-home"')
    assert Settings.load({})["account"] == "of-the-user"
    assert Settings.load({}, home=home)["account"] == "of-the-home"
    assert Settings.load({}, home=home).contexts.selection_file == home / "context.txt"


def test_users_config_file_may_name_the_home_and_keeps_the_contexts(config: Path, tmp_path: Path) -> None:
    config.write_text('home = "~/big-disk/sawyer"')
    settings = Settings.load({})
    assert settings.home.path == tmp_path / "big-disk" / "sawyer"
    assert settings.contexts.selection_file == config.parent / "context.txt"


def test_config_file_of_a_home_cannot_name_another(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('home = "elsewhere"')
    with pytest.raises(UsageError, match="home cannot be set here") as error:
        Settings.load({}, home=tmp_path)
    assert "line 1, column 1" in error.value.message


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words", "place"),
    [
        ('nats = "nats://h"\nnats_server', "Expected '='", "at line 2, column 12"),
        ("account = alice", "Invalid value", "at line 1, column 11"),
        ('account = "alice', "Unterminated", "at line 1, column 17"),
        ('a = 1\na = 2', "Cannot overwrite", "at line 2, column 6"),
        ('nats_server = "x"\n  nets = "nats://h"', "no setting 'nets'", "line 2, column 3"),
        ('"device" = "cpu"\n\n[nats]\nurl = "x"', "nats must be text", "line 3, column 2"),
        ("nats.url = 3", "nats must be text", "line 1, column 1"),
        ("threads = 1.5", "threads must be text or a whole number", "line 1, column 1"),
        ("threads = true", "threads must be text or a whole number", "line 1, column 1"),
        ('\nthreads = "many"', "threads is 'many'", "line 2, column 1"),
        ("device = 'tpu'", "device is 'tpu'", "line 1, column 1"),
    ],
)  # fmt: skip
def test_mistake_in_the_config_file_is_named_with_line_and_column(
    config: Path, content: str, words: str, place: str
) -> None:
    config.write_text(content)
    with pytest.raises(UsageError) as error:
        Settings.load({})
    for part in (words, place, str(config)):
        assert part in error.value.message
    assert error.value.hint


def test_config_file_that_is_not_utf8_is_named_with_line_and_column(config: Path) -> None:
    config.write_bytes(b'account = "a"\nmodel = "\xff"')
    with pytest.raises(UsageError, match=r"at line 2, column 10"):
        Settings.load({})


def test_config_file_that_cannot_be_read_is_named(config: Path) -> None:
    config.mkdir()
    with pytest.raises(UsageError, match="Is a directory") as error:
        Settings.load({})
    assert str(config) in error.value.message


def test_unknown_setting_comes_with_the_one_that_was_meant(config: Path) -> None:
    config.write_text('acount = "alice"')
    with pytest.raises(UsageError) as error:
        Settings.load({})
    assert "Did you mean account?" in error.value.hint


@pytest.mark.parametrize(
    ("name", "bad"),
    [("ledger_durability", "OFF"), ("device", "gpu"), ("threads", "-1"), ("threads", "x"), ("threads", "99999"),
     ("ledger_url", "mysql://h/d"), ("cache_limit", "50"), ("cache_limit", "0GB"), ("cache_limit", "-1GB"),
     ("account", "A B"), ("model", "a/b"), ("node", "UP"), ("host", "x" * 64),
     ("log_level", "loud"), ("log_format", "xml")],
)  # fmt: skip
@pytest.mark.parametrize("source", ["flag", "variable"])
def test_value_that_makes_no_sense_is_refused_naming_its_source(name: str, bad: str, source: str) -> None:
    environ = {f"SAWYER_{name.upper()}": bad} if source == "variable" else {}
    expected = f"SAWYER_{name.upper()}" if environ else f"--{'name' if name == 'node' else name.replace('_', '-')}"
    with pytest.raises(UsageError, match=expected) as error:
        Settings.load(environ, **({} if environ else {name: bad}))
    assert error.value.hint


@pytest.mark.parametrize(
    "text",
    ["mysql://maria:secret@h/d", "postgresql://maria:sec/ret@h/d?password=secret", "postgresql://h/d?password=secret"],
)
def test_password_in_the_address_of_the_book_is_never_shown(text: str) -> None:
    settings, problems = Settings.examine({"SAWYER_LEDGER_URL": text})
    told = [settings.values["ledger_url"].shown, *(problem.message for problem in problems)]
    assert not any("secret" in each or "sec/ret" in each for each in told)


def test_book_is_a_file_in_the_home_unless_a_database_is_named(user: Path) -> None:
    assert Settings.load({}, home=user).book == user / "book.sqlite"
    url = "postgresql://maria@h/ledger"
    assert Settings.load({"SAWYER_LEDGER_URL": url}, home=user).book == url


def test_examine_tells_every_mistake_and_goes_on_with_what_is_left(config: Path) -> None:
    config.write_text("account = alice")
    settings, problems = Settings.examine({"SAWYER_DEVICE": "tpu", "SAWYER_THREADS": "2"}, account="A")
    assert [problem.message.split(" (")[0] for problem in problems] == [
        f"{config}: Invalid value", "account is 'A'", "device is 'tpu'",
    ]  # fmt: skip
    assert settings.values["device"].source == "default"
    assert settings["threads"] == "2"


@pytest.mark.parametrize("chosen", ["FULL", "NORMAL", "normal", "full"])
def test_durability_is_what_the_environment_says(chosen: str) -> None:
    assert Settings.load({}).durability == "FULL"
    assert Settings.load({"SAWYER_LEDGER_DURABILITY": chosen}).durability == chosen.upper()


def test_default_names_may_stand_in_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "Ünal Öz")
    monkeypatch.setattr("platform.node", lambda: "Attic.local")
    assert Settings.load({})["account"] == "nal-z"
    assert Settings.load({})["node"] == "attic"


# --- where NATS is ----------------------------------------------------------------------------------------------------

PROD = {"url": "nats://prod:4222", "user": "maria", "password": "x"}


def test_without_any_word_the_server_is_the_local_one() -> None:
    assert Settings.load({}).where_nats() == (NatsTarget(url=DEFAULT_URL), "default")


def test_running_network_of_the_home_is_used_when_nothing_else_is_said(tmp_path: Path) -> None:
    settings = Settings.load({}, home=tmp_path / "home")
    with settings.home.alone():
        settings.home.announce("nats://127.0.0.1:7")
        target, source = settings.where_nats()
        assert target.url == "nats://127.0.0.1:7"
        assert str(settings.home.path) in source
        assert Settings.load({}, home=tmp_path / "home", nats="nats://h").where_nats()[0].url == "nats://h"


@pytest.mark.parametrize(
    ("flags", "environ", "selected", "url", "who"),
    [
        ({"context": "prod"}, {}, "", "nats://prod:4222", "maria"),
        ({"context": "prod"}, {"SAWYER_NATS": "nats://h"}, "", "nats://prod:4222", "maria"),
        ({"nats": "nats://h"}, {"SAWYER_CONTEXT": "prod"}, "", "nats://h", ""),
        ({"nats": "nats://h", "context": "prod"}, {}, "", "nats://h", "maria"),
        ({}, {"SAWYER_CONTEXT": "prod", "SAWYER_NATS": "nats://h"}, "", "nats://h", "maria"),
        ({}, {}, "prod", "nats://prod:4222", "maria"),
        ({}, {"SAWYER_NATS": "nats://h"}, "prod", "nats://h", ""),
        ({}, {"SAWYER_CONTEXT": "test"}, "prod", "nats://test:4222", ""),
    ],
)
def test_more_direct_of_address_and_context_decides(
    tmp_path: Path, flags: dict[str, str], environ: dict[str, str], selected: str, url: str, who: str
) -> None:
    context(tmp_path, "prod", **PROD)
    context(tmp_path, "test", url="nats://test:4222")
    if selected:
        Settings.load({}).contexts.select(selected)
    target, source = Settings.load(environ, **flags).where_nats()
    assert (target.url, target.user) == (url, who)
    assert ("context prod" in source) == (who == "maria")


@pytest.mark.parametrize(
    ("flags", "environ", "selected", "credential"),
    [
        ({"creds": "a.creds"}, {}, "", "creds a.creds"),
        ({"creds": "~/a.creds", "context": "prod"}, {}, "", "creds {home}/a.creds"),
        ({"context": "prod"}, {"SAWYER_CREDS": "a.creds"}, "", "user maria"),
        ({"context": "open"}, {"SAWYER_CREDS": "a.creds"}, "", "creds a.creds"),
        ({}, {"SAWYER_CREDS": "a.creds"}, "prod", "creds a.creds"),
        ({"nats": "nats://h"}, {"SAWYER_CREDS": "a.creds"}, "prod", "creds a.creds"),
    ],
)
def test_more_direct_of_creds_and_context_proves_who_connects(
    user: Path, flags: dict[str, str], environ: dict[str, str], selected: str, credential: str
) -> None:
    context(user, "prod", **PROD)
    context(user, "open", url="nats://open")
    if selected:
        Settings.load({}).contexts.select(selected)
    target, _ = Settings.load(environ, **flags).where_nats()
    assert target.credential == credential.format(home=os.environ["HOME"])
    assert target.password == ("x" if credential.startswith("user") else "")


def test_selected_context_that_is_gone_says_who_selected_it(user: Path) -> None:
    file = context(user, "prod", **PROD)
    Settings.load({}).contexts.select("prod")
    file.unlink()
    with pytest.raises(UsageError, match="no context 'prod'") as error:
        Settings.load({}).where_nats()
    assert "context.txt" in error.value.message
    assert "sawyer context select -" in error.value.hint


def test_named_context_that_is_not_there_says_which_are(user: Path) -> None:
    context(user, "prod", **PROD)
    with pytest.raises(UsageError, match=r"no context 'prd' \(--context\)") as error:
        Settings.load({}, context="prd").where_nats()
    assert "prod" in error.value.hint


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("50GB", 50 * 10**9), ("1.5 TB", 15 * 10**11), ("64GiB", 64 * 2**30), ("700mb", 7 * 10**8), ("9B", 9)],
)
def test_size_is_read_with_its_unit(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["50", "GB", "5 0GB", "1e9GB", "0B", "-1GB", "50GBs", "\u0665GB", "9" * 40 + "GB"])
def test_size_that_is_none_says_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match="such as 50GB"):
        parse_size(text)
