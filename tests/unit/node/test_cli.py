"""The command line: one shape, helpful help, exit statuses, and errors that say what to do."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import re
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from node.cli import main, parser
from node.commands.records import _result
from node.commands.setup import example
from node.commands.terminal import age, document, harmless, plain, table
from node.config import load_settings, parse_settings
from node.dicom.scp import Refusal
from node.domain.admission import lines_to_add
from node.domain.instance import ReceivedInstance, Sender
from node.monitor.logs import hashed, site_key
from node.store.journal import Journal

ROOT = Path(__file__).parents[3]
COMMANDS = (
    "demo",
    "init",
    "serve",
    "check",
    "explain",
    "series",
    "jobs",
    "retry",
    "cancel",
    "send",
    "segment",
    "models",
)
EVERY = (*COMMANDS, "selftest", "version", "role")
SENDER = Sender("ct1", "CT1", "HILUM", "10.1.2.3", "a1")


@pytest.fixture(autouse=True)
def _no_configuration_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HILUM_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node that `hilum init` has just made."""
    assert main(["init", "--folder", str(tmp_path / "node")]) == 0
    return tmp_path / "node" / "node.toml"


@pytest.fixture
def journal(node: Path) -> Iterator[Journal]:
    with Journal.open(load_settings(node).journal_url) as opened:
        yield opened


def receive(journal: Journal, series: str = "1.2.3", number: int = 1) -> None:
    journal.commit(
        ReceivedInstance(
            sop_instance_uid=f"{series}.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            study_instance_uid="1.2",
            series_instance_uid=series,
            patient_id="CANARY-ID",
            path=Path(f"/spool/{series}.{number}"),
            length=100,
            crc32=number,
            sender=SENDER,
            received_at=datetime.now(UTC),
        )
    )


def out(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


# Shape ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", EVERY)
def test_every_command_has_help_with_an_example_and_the_statuses(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    shown = out(capsys)
    assert ended.value.code == 0
    assert f"example: hilum {command}" in shown
    assert "exit status: 0 done" in shown
    assert "--json" in shown


def test_the_examples_of_the_help_can_be_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in EVERY:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        (example_line,) = re.findall(r"^example: hilum (.*)$", out(capsys), re.MULTILINE)
        assert parser().parse_args(example_line.split()).command == command


def test_every_command_leads_to_a_function() -> None:
    for action in parser()._subparsers._group_actions[0].choices.values():  # type: ignore[union-attr]
        module, _, function = action.get_default("run").partition(":")
        assert callable(getattr(importlib.import_module(f"node.commands.{module}"), function))


def test_every_command_stands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for command in EVERY:
        assert f"hilum {command}" in text


def test_help_is_there_in_a_blink_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, node.cli, node.config\n"
        "heavy = {'torch', 'highdicom', 'pydicom', 'pynetdicom', 'sqlalchemy', 'dbos', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["segment", "folder"],
        ["jobs", "--limit", "0"],
        ["jobs", "-3"],
        ["selftest"],
        ["role", "cook"],
    ],
)
def test_a_wrong_command_line_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: hilum" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["check"], ["series"], ["jobs"], ["retry", "1"], ["serve"], ["send", ".", "--to", "pacs"], ["role", "worker"]],
)
def test_without_configuration_the_way_to_one_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hilum {words[0]}: ")
    assert "hilum init" in said
    assert "Traceback" not in said


def test_the_configuration_is_named_by_option_by_environment_or_lies_here(
    node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["series", "--config", str(node)]) == 3
    monkeypatch.setenv("HILUM_CONFIG", str(node))
    assert main(["series"]) == 3
    monkeypatch.delenv("HILUM_CONFIG")
    monkeypatch.chdir(node.parent)
    assert main(["series"]) == 3
    assert capsys.readouterr().err.count("there is no journal yet") == 3
    assert not (node.parent / "data" / "journal.db").exists(), "looking must not create a journal"


# init, version --------------------------------------------------------------------------------------------------------


def test_init_writes_a_file_that_loads_and_private_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--folder", str(tmp_path / "a"), "--ae-title", "NODE", "--json"]) == 0
    shown = json.loads(out(capsys))
    settings = load_settings(Path(shown["config"]))
    assert settings.node.ae_title == "NODE"
    assert settings.node.serial != "unset"
    for folder in map(Path, shown["folders"]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_remarks_of_the_written_file_stand_below_one_another(node: Path) -> None:
    lines = node.read_text(encoding="utf-8").splitlines()
    assert len({line.index("# ") for line in lines if line.startswith(("ae_title =", "data_dir =", "serial ="))}) == 1


def test_two_nodes_get_two_serials(tmp_path: Path) -> None:
    """RES-20: the serial is part of every result's UID."""
    assert main(["init", "--folder", str(tmp_path / "a")]) == main(["init", "--folder", str(tmp_path / "b")]) == 0
    first, second = (load_settings(tmp_path / name / "node.toml").node.serial for name in "ab")
    assert first != second


def test_init_never_overwrites(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node.write_text("# mine\n", encoding="utf-8")
    assert main(["init", "--folder", str(node.parent)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert node.read_text(encoding="utf-8") == "# mine\n"


def test_init_refuses_an_ae_title_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--folder", str(tmp_path / "a"), "--ae-title", 'X"\nname = "y']) == 2
    assert "node.ae_title" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_the_example_is_quoted_as_toml() -> None:
    assert parse_settings(example('A"B', "s"), Path("x")).node.ae_title == 'A"B'


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert out(capsys).startswith("hilum ")
    assert main(["version", "--json"]) == 0
    assert set(json.loads(out(capsys))) == {"version"}


# series, jobs, retry, cancel ------------------------------------------------------------------------------------------


def test_series_are_listed_and_one_is_shown_with_its_history(
    node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    receive(journal, "1.2.3", 1)
    receive(journal, "1.2.3", 2)
    receive(journal, "1.2.4", 1)
    assert main(["series", "--config", str(node)]) == 0
    listed = out(capsys)
    assert len(listed.splitlines()) == 3
    assert "ct1" in listed
    assert main(["series", "1.2.3", "--config", str(node)]) == 0
    shown = out(capsys)
    for word in ("1.2.3", "ct1: CT1 at 10.1.2.3", "2 images", "open", "history"):
        assert word in shown


def test_the_result_of_a_job_is_a_table_for_people() -> None:
    found = [{"segment": "Liver", "outcome": "measured", "volume_ml": 1848.0000000003, "flags": ["a", "b"]}]
    found += [{"segment": "Kidney", "outcome": "partial", "volume_ml": 0.002, "flags": []}]
    shown = _result({"findings": found, "flags": [], "seconds": {"load": 3.381, "compose": 56.349}})
    assert [line.split() for line in shown.splitlines()] == [
        ["organ", "mL", "outcome", "remarks"],
        ["Liver", "1848", "measured", "a;", "b"],
        ["Kidney", ">", "0", "partial"],
        ["seconds", "load", "3.38,", "compose", "56.35"],
    ]


def test_series_as_json_have_no_patient_in_them(
    node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """SEC-20: the canary patient id stands in no output."""
    receive(journal)
    assert main(["series", "--json", "--config", str(node)]) == 0
    text = out(capsys)
    (row,) = json.loads(text)
    assert {"id", "series_instance_uid", "state", "revision", "instances", "outcome", "reason", "evidence"} <= set(row)
    assert datetime.fromisoformat(row["last_received_at"]).tzinfo is not None
    assert main(["series", str(row["id"]), "--json", "--config", str(node)]) == 0
    one = out(capsys)
    assert {"summary", "instances", "parts", "jobs", "events", "in_log"} == set(json.loads(one))
    assert "CANARY" not in text + one


def test_filters_and_empty_lists(node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    receive(journal)
    assert main(["series", "--state", "settled", "--config", str(node)]) == 0
    assert out(capsys) == "no series\n"
    assert main(["jobs", "--config", str(node)]) == 0
    assert out(capsys) == "no jobs\n"
    assert main(["jobs", "--json", "--config", str(node)]) == 0
    assert json.loads(out(capsys)) == []


@pytest.mark.parametrize(
    "words",
    [
        ["series", "99"],
        ["series", "1.2.999"],
        ["jobs", "99"],
        ["retry", "99"],
        ["retry", "--delivery", "99"],
        ["retry", "--series", "99"],
        ["cancel", "99"],
        ["cancel", "--delivery", "99"],
    ],
)
def test_what_is_not_there_is_status_3(
    node: Path, journal: Journal, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--config", str(node)]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"hilum {words[0]}: ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("words", [["retry"], ["cancel"], ["retry", "1", "--delivery", "2"]])
def test_retry_and_cancel_want_one_thing(
    node: Path, journal: Journal, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--config", str(node)]) == 2
    assert "name one thing" in capsys.readouterr().err


# check ----------------------------------------------------------------------------------------------------------------


def checks(node: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    status = main(["check", "--json", "--config", str(node), *words])
    page = json.loads(out(capsys))
    assert page["ok"] == (status == 0)
    by_subject: dict[str, list[dict[str, str]]] = {}
    for item in page["checks"]:
        assert set(item) == {"level", "subject", "text", "mend"}
        by_subject.setdefault(item["subject"], []).append(item)
    return status, by_subject


def test_check_warns_of_limits_that_are_looser_than_the_default(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(each["level"] == "ok" for each in checks(node, capsys)[1].get("engines", []))
    text = node.read_text(encoding="utf-8").replace("# certificate_dice = 0.995", "certificate_dice = 0.95")
    node.write_text(text, encoding="utf-8")
    (warning,) = checks(node, capsys)[1]["engines"]
    assert warning["level"] == "warn"
    assert "Dice at least 0.95 (default 0.995)" in warning["text"]


def test_check_shows_the_research_use_setting(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RES-13: shown either way; a warning where results are not marked."""
    capsys.readouterr()
    assert checks(node, capsys)[1]["research use"][0]["level"] == "ok"
    node.write_text(
        node.read_text(encoding="utf-8").replace("# research_use = true", "research_use = false"), encoding="utf-8"
    )
    assert checks(node, capsys)[1]["research use"][0]["level"] == "warn"


def test_check_lists_decoders_models_and_disk(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    _, found = checks(node, capsys)
    assert any("JPEG 2000" in item["text"] for item in found["decoder"])
    assert [item["level"] for item in found["disk"]] == ["ok"]
    assert any(subject.startswith("model ") for subject in found)


@pytest.mark.parametrize(
    ("segmenter", "said"),
    [
        ("", []),
        ('device = "cpu"', []),
        ('device = "cuda"', ["torch on CUDA"]),
        ('engines = ["tensorrt float16"]', ["TensorRT", "TensorRT-RTX"]),
        ('device = "cuda:1"\nengines = ["tensorrt"]', ["torch on CUDA", "TensorRT", "TensorRT-RTX"]),
    ],
)
def test_check_warns_of_a_way_onto_a_card_that_never_ran(
    node: Path, capsys: pytest.CaptureFixture[str], segmenter: str, said: list[str]
) -> None:
    """Nobody comes to a card unasked, and who asks hears that nobody went before."""
    capsys.readouterr()
    node.write_text(node.read_text(encoding="utf-8").replace("[segmenter]", f"[segmenter]\n{segmenter}"), "utf-8")
    remarks = checks(node, capsys, "--offline")[1].get("engines", [])
    assert [each["text"] for each in remarks] == [f"{name} has never run on such a card" for name in said]
    for each in remarks:
        assert each["level"] == "warn"
        assert "`hilum-models verify BUNDLE --volumes FOLDER --device cuda" in each["mend"]


def test_check_waits_for_no_heavy_library(node: Path) -> None:
    """It runs before each start of the service, and while a person waits."""
    code = (
        "import sys; from node.cli import main\n"
        f"main(['check', '--offline', '--config', {str(node)!r}])\n"
        "assert not {'torch', 'openvino', 'highdicom', 'dbos', 'nnunetv2'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_check_fails_without_a_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "node.toml"
    file.write_text("", encoding="utf-8")
    status, found = checks(file, capsys)
    assert status == 1
    assert found["disk"][0]["level"] == "fail"
    assert "mkdir -m 700" in found["disk"][0]["mend"]


def test_check_names_a_destination_that_does_not_answer(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A destination that a rule needs fails the check; one that none needs is a warning."""
    capsys.readouterr()
    destination = '[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 9\ntimeout_s = 2\n'
    text = node.read_text(encoding="utf-8") + destination
    node.write_text(text, encoding="utf-8")
    assert checks(node, capsys)[1]["destination pacs"][0]["level"] == "warn"
    node.write_text(text.replace("destinations = []", 'destinations = ["pacs"]'), encoding="utf-8")
    status, found = checks(node, capsys)
    assert status == 1
    assert found["destination pacs"][0]["level"] == "fail"
    assert "PACS at 127.0.0.1:9" in found["destination pacs"][0]["text"]
    assert "destination pacs" not in checks(node, capsys, "--offline")[1]


def test_check_says_who_was_refused_and_what_to_add(
    node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """NET-13: the line to add; SEC-21: the peer's own words are quoted."""
    journal.refused_peer('EVIL"\x1b[2J', "HILUM", "10.9.9.9", "refused_peer")
    capsys.readouterr()
    (remark,) = checks(node, capsys)[1]["refused"]
    lines = remark["mend"].partition("\n")[2]
    settings = parse_settings(lines.replace("\\u001b", "x"), Path("x"))
    assert settings.peer[0].addresses == ("10.9.9.9",)
    assert "\x1b" not in remark["mend"]
    assert main(["check", "--config", str(node)]) in {0, 1}
    assert "\x1b" not in out(capsys)


@contextlib.contextmanager
def roles_run(node: Path, *roles: str) -> Iterator[None]:
    """Hold the locks of these roles, as their processes would."""
    with contextlib.ExitStack() as held:
        for role in roles:
            file = held.enter_context((node.parent / "data" / f"hilum-{role}-0.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_check_says_which_roles_run(node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    """By their locks: a sign of life outlives a killed process. A stopped node is no fault, one that lost a role is."""
    now = datetime.now(UTC)
    for role in ("listener", "worker", "segmenter"):
        journal.role_seen(f"hilum-{role}-0", role, 7, now)
    capsys.readouterr()
    status, found = checks(node, capsys)
    assert (status, {item["level"] for item in found["node"]}) == (0, {"warn"})
    assert "does not run, last seen" in found["node"][0]["text"]
    assert main(["check", "--offline", "--config", str(node)]) == 0
    assert out(capsys).endswith("ready; the node does not run, `hilum serve` starts it\n")
    with roles_run(node, "listener", "segmenter"):
        status, found = checks(node, capsys)
    levels = {item["text"].split()[0]: item["level"] for item in found["node"]}
    assert (status, levels) == (1, {"hilum-listener-0": "ok", "hilum-worker-0": "fail", "hilum-segmenter-0": "ok"})
    assert "free" not in found["listener"][0]["text"]
    with sqlite3.connect(load_settings(node).node.data_dir / "journal.db") as db:
        db.execute("UPDATE role SET seen_at = ?", (int((now.timestamp() - 3 * 3600) * 1e6),))
    with roles_run(node, "listener", "worker", "segmenter"):
        (listener, *_) = checks(node, capsys)[1]["node"]
    assert (listener["level"], "3 h ago" in listener["text"]) == ("warn", True)


def test_check_says_that_another_program_has_the_port(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = node.read_text(encoding="utf-8")
        node.write_text(text.replace("port = 11112", f"port = {other.getsockname()[1]}"), encoding="utf-8")
        capsys.readouterr()
        status, found = checks(node, capsys)
    assert (status, found["listener"][0]["level"]) == (1, "fail")
    assert "another program" in found["listener"][0]["text"]


def test_check_warns_of_data_that_others_can_read(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (node.parent / "data").chmod(0o755)
    capsys.readouterr()
    remark = checks(node, capsys)[1]["disk"][0]
    assert (remark["level"], remark["mend"].split()[:2]) == ("warn", ["chmod", "700"])


def test_only_the_owner_can_read_configuration_and_journal(node: Path, journal: Journal) -> None:
    receive(journal)
    here = [node, *(node.parent / "data").glob("journal.db*")]
    assert len(here) >= 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in here} == {0o600}


def test_what_ends_a_role_is_a_line_of_its_log(node: Path) -> None:
    """One JSON object a line, whatever went wrong: a pipe through a JSON reader must not end there."""
    text = node.read_text(encoding="utf-8")
    for broken in (text, text + "[oops]\n"):
        node.write_text(broken, encoding="utf-8")
        with roles_run(node, "worker"):
            words = [sys.executable, "-m", "node.cli", "role", "worker", "--config", str(node)]
            ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        line = [json.loads(line) for line in ended.stderr.splitlines()][-1]
        assert (ended.returncode, line["event"], line["role"]) == (2, "role_failed", "worker")
        assert "ConfigError" in line["error"]


def test_a_destination_of_no_name_is_status_3(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--destination", "nosuch", "--config", str(node)]) == 3
    assert "'nosuch'; there are: none" in capsys.readouterr().err


def test_a_series_without_a_usable_image_is_not_said_to_have_none(
    node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    receive(journal)
    with sqlite3.connect(load_settings(node).node.data_dir / "journal.db") as db:
        db.execute("UPDATE instance SET state = 'quarantined'")
    capsys.readouterr()
    assert main(["explain", "1", "--config", str(node)]) == 0
    said = out(capsys)
    assert "1 quarantined" in said
    assert "of series 1 no image can be judged now; `hilum series 1`" in said


def test_an_open_series_is_said_to_be_open(node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    receive(journal)
    capsys.readouterr()
    for number, word in ((1, "still open"), (9, "there is no series 9")):
        assert main(["retry", "--series", str(number), "--config", str(node)]) == 3
        assert word in capsys.readouterr().err


def test_a_number_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["retry", "abc"])
    assert "'abc' is not a whole number from 1 up" in capsys.readouterr().err


def test_a_series_is_shown_with_what_the_log_calls_it(
    node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """SEC-20: the log holds a keyed hash, and only who has the key can go from one to the other."""
    receive(journal)
    key = site_key(load_settings(node).node.data_dir / "log.key")
    capsys.readouterr()
    assert main(["series", "1", "--config", str(node)]) == 0
    assert re.search(rf"in the log +{hashed('1.2.3', key)}", out(capsys))
    assert main(["series", "1", "--json", "--config", str(node)]) == 0
    assert json.loads(out(capsys))["in_log"] == hashed("1.2.3", key)


def test_check_says_what_would_help_each_one_who_was_refused(
    node: Path, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines to add help only who is not on the list; whom the file lets in by now is no warning any more."""
    for number, refusal in enumerate(Refusal):
        journal.refused_peer("CT1", f"CALLED{number}", "10.1.2.3", str(refusal))
    capsys.readouterr()
    found = checks(node, capsys)[1]["refused"]
    assert len(found) == len(Refusal)
    assert all(item["mend"] and "once" in item["text"] for item in found)
    assert sum("[[peer]]\nname" in item["mend"] for item in found) == 1
    text = node.read_text(encoding="utf-8") + lines_to_add("CT1", "10.1.2.0/24")
    node.write_text(text, encoding="utf-8")
    (known,) = [item for item in checks(node, capsys)[1]["refused"] if "refused_peer" in item["text"]]
    assert known["level"] == "ok"
    assert "[[peer]] ct1 lets it in" in known["text"]


def test_the_lines_to_add_let_an_ordinary_peer_in() -> None:
    (peer,) = parse_settings(lines_to_add("CT_1", "10.1.2.3"), Path("x")).peer
    assert (peer.name, peer.ae_title, peer.addresses) == ("ct-1", "CT_1", ("10.1.2.3",))


def test_the_lines_to_add_never_break_the_file() -> None:
    """A known scanner at a new address is the commonest case; and two titles may make the same name."""
    known = '[[peer]]\nname = "ct1"\nae_title = "CT1"\naddresses = ["10.1.2.3"]\n'
    peers = parse_settings(known, Path("x")).peer
    moved = lines_to_add("CT1", "127.0.0.1", peers)
    assert parse_settings(known + moved, Path("x")).peer == peers
    assert "[[peer]] ct1" in moved
    line = moved.splitlines()[-1].removeprefix("# ")
    (changed,) = parse_settings(known.replace('addresses = ["10.1.2.3"]', line), Path("x")).peer
    assert changed.addresses == ("10.1.2.3", "127.0.0.1")
    small = parse_settings(known + lines_to_add("ct1", "10.1.2.4", peers), Path("x")).peer
    assert [(peer.name, peer.ae_title) for peer in small] == [("ct1", "CT1"), ("ct1-2", "ct1")]


def test_check_fails_where_peers_cannot_reach_the_listener(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    peer = '[[peer]]\nname = "ct1"\nae_title = "CT1"\naddresses = ["10.1.2.3"]\n'
    node.write_text(
        node.read_text(encoding="utf-8").replace('host = "0.0.0.0"', 'host = "127.0.0.1"', 1) + peer, encoding="utf-8"
    )
    status, found = checks(node, capsys)
    assert status == 1
    assert found["listener"][0]["level"] == "fail"


def test_check_fails_for_a_rule_whose_model_is_not_there(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    node.write_text(
        node.read_text(encoding="utf-8").replace('model = "hippocampus-mr"', 'model = "liver"'), encoding="utf-8"
    )
    status, found = checks(node, capsys)
    assert status == 1
    assert "'liver'" in found["rule hippocampus"][-1]["text"]


# models, folders ------------------------------------------------------------------------------------------------------


def test_models_are_listed_with_digest_labels_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    pages = {page["name"]: page for page in json.loads(out(capsys))}
    assert "hippocampus-mr" in pages
    for page in pages.values():
        assert re.fullmatch(r"[0-9a-f]{64}", page["digest"])
        assert page["uncoded"] == [], "every label of a shipped model has its code"
        assert all(choice["reason"] for choice in page["engines"])
        assert [choice["engine"] for choice in page["engines"]][-1] == "torch float32"
        assert [choice["taken"] for choice in page["engines"]].count(True) == 1
    assert main(["models", "nothing"]) == 3
    assert main(["models"]) == 0
    said = out(capsys).partition("on NVIDIA cards\n")[2]
    assert "torch on CUDA has never run on any card" in said
    assert "TensorRT-RTX has never run on any card; without a card: engines of each shipped bundle were built" in said


@pytest.mark.parametrize("command", [["explain", "nowhere"], ["segment", "nowhere", "--out", "x"]])
def test_a_folder_that_is_not_there_is_status_3(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 3
    assert "nowhere" in capsys.readouterr().err


# The terminal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "tab\there", "\u202eevil", "\x9b1m", "null\0"])
def test_text_of_strangers_cannot_steer_a_terminal(text: str) -> None:
    """SEC-21."""
    shown = harmless(text)
    assert shown.isprintable()
    assert len(table(("x",), [(text,)]).splitlines()) == 2


def test_numbers_stand_to_the_right() -> None:
    assert table(("n", "name"), [(5, "a"), (12, "b")]).splitlines() == [" n  name", " 5  a", "12  b"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d"), (-5, "0 s")]
)
def test_ages_are_short(seconds: float, words: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert age(now - timedelta(seconds=seconds), now) == words


def test_json_documents_hold_plain_values() -> None:
    assert plain(SENDER)["alias"] == "ct1"
    assert json.loads(document({"at": datetime(2026, 1, 1, tzinfo=UTC), "path": Path("/x"), "set": {"b", "a"}})) == {
        "at": "2026-01-01T00:00:00+00:00",
        "path": "/x",
        "set": ["a", "b"],
    }
