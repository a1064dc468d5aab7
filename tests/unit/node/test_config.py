"""One TOML file becomes Settings, or is refused with file, key, value and mend."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from node.config import SHIPPED_CONFIG, Settings, load_settings, parse_settings
from node.config.complaints import complaints, redacted
from node.domain.job import RetryPolicy
from node.domain.routing import FACTS
from node.domain.series import SettlePolicy
from node.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs" / "configure.md"
FILE = Path("/etc/hilum/node.toml")

WHOLE = """
[node]
ae_title = "NODE"
serial = "17"
timezone = "Europe/Berlin"

[listener]
virtual_ae_titles = ["NODE_STAT"]

[[peer]]
name = "ct1"
ae_title = "CT1"
addresses = ["10.1.2.3", "10.1.4.0/24"]
quiet_s = 10

[[destination]]
name = "pacs"
ae_title = "PACS"
host = "pacs.example"
port = 104
retries = 5

[[rule]]
name = "stat"
model = "hippocampus-mr"
when = [{ field = "Modality", op = "in", value = ["MR"] }, { field = "n_slices", op = "range", value = [10, 500] }]
senders = ["ct1"]
called_ae_titles = ["NODE_STAT"]
destinations = ["pacs"]
priority = 200
"""


def settings(text: str = WHOLE) -> Settings:
    return parse_settings(text, FILE)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(text)
    return str(caught.value)


def test_an_empty_file_is_a_configuration_that_lets_nobody_in() -> None:
    """SEC-12, RES-42: nothing listens on a network, nobody may send, and nothing is sent, unless the file says so."""
    empty = settings("")
    assert empty.listener.host == "127.0.0.1"
    assert empty.monitor.host == "127.0.0.1"
    assert (empty.peer, empty.destination, empty.rule) == ((), (), ())


def test_results_are_marked_for_research_unless_the_site_says_otherwise() -> None:
    """RES-13."""
    assert settings("").node.research_use is True


def test_limits_and_deadlines_are_those_of_the_requirements() -> None:
    """NET-15, NET-16, SEC-4."""
    listener = settings("").listener
    assert (listener.handshake_s, listener.artim_s, listener.progress_s, listener.idle_s) == (10, 30, 60, 300)
    assert (listener.max_associate_rq_bytes, listener.max_pdu_bytes) == (256 * 1024, 128 * 1024)
    assert (listener.max_command_bytes, listener.max_object_bytes) == (64 * 1024, 4 * 1024**3)
    assert (listener.max_elements, listener.max_depth, listener.max_header_bytes) == (100_000, 64, 64 * 1024**2)
    assert listener.stop_grace_s <= 30  # NET-37


def test_sections_become_domain_types() -> None:
    whole = settings()
    (rule,) = whole.rules()
    assert (rule.name, rule.model, rule.destinations, rule.senders) == ("stat", "hippocampus-mr", ("pacs",), ("ct1",))
    assert (rule.called_ae_titles, rule.priority, rule.gapped) == (("NODE_STAT",), 200, "refuse")
    assert [(c.field, c.op) for c in rule.conditions] == [("Modality", "in"), ("n_slices", "range")]
    pacs = whole.destinations()["pacs"]
    assert (pacs.ae_title, pacs.host, pacs.port, pacs.calling_ae_title) == ("PACS", "pacs.example", 104, "NODE")
    assert pacs.retry == RetryPolicy(30.0, 900.0, 5)
    assert whole.called_ae_titles == ("NODE", "NODE_STAT")


def test_a_peer_may_have_its_own_quiet_time() -> None:
    """ASM-2: per sender; the shortened wait after release is never longer than the ordinary one."""
    assert settings().settle_policy("ct1") == SettlePolicy(10.0, 10.0, 5400.0)
    assert settings().settle_policy("someone") == SettlePolicy(60.0, 15.0, 5400.0)


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\ndata_dir = "store"\n[models]\nfolders = ["mine", "/opt/models"]\n')
    loaded = load_settings(file)
    assert loaded.node.data_dir == tmp_path / "store"
    assert loaded.models.folders == (tmp_path / "mine", Path("/opt/models"))
    assert loaded.journal_url == f"sqlite:///{tmp_path}/store/journal.db"
    assert settings("").node.data_dir == FILE.parent / "data"


def test_the_offset_from_utc_follows_daylight_saving() -> None:
    node = settings().node
    assert node.utc_offset(datetime(2026, 1, 1, tzinfo=UTC)) == "+0100"
    assert node.utc_offset(datetime(2026, 7, 1, tzinfo=UTC)) == "+0200"
    assert settings("").node.utc_offset(datetime(2026, 7, 1, tzinfo=UTC)) is None


def _rule_on(field: str) -> str:
    return f"[[rule]]\nname = 'r'\nmodel = 'm'\nwhen = [{{field = '{field}', op = 'exists', value = true}}]"


@pytest.mark.parametrize(
    "field", ["Modality", "PatientSex", "PatientPosition", "b_value", "AnatomicRegionCodeValue", "ConvolutionKernel"]
)
def test_what_a_rule_may_ask_for(field: str) -> None:
    """ASM-51"""
    assert settings(_rule_on(field)).rules()[0].conditions[0].field == field


def test_ports_may_be_none_or_on_other_addresses() -> None:
    settings("[monitor]\nworker_port = 0\nlistener_port = 0\nsegmenter_port = 0\n[listener]\nport = 0")
    settings("[listener]\nhost = '10.0.0.5'\nport = 9322")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node]\nae_titel = 'X'", ["node.ae_titel", "no such key", "did you mean 'ae_title'"]),
        ("[listener]\nstrict = 1", ["listener.strict", "no such key"]),
        ("[nodes]\nname = 'x'", ["nodes", "did you mean 'node'"]),
        ("[[peers]]\nname = 'x'", ["peers", "did you mean 'peer'"]),
        ("[listener]\nport = '11112'", ["listener.port = '11112'", "valid integer"]),
        ("[listener]\nport = true", ["listener.port = True", "valid integer"]),
        ("[listener]\nport = 70000", ["listener.port = 70000", "less than or equal to 65535"]),
        ("[completion]\nquiet_s = 0", ["completion.quiet_s = 0", "greater than 0"]),
        ("[node]\nae_title = 'ABCDEFGHIJKLMNOPQ'", ["node.ae_title", "1 to 16", "PS3.5 6.2"]),
        ("[node]\nae_title = 'A\\B'", ["node.ae_title", "backslash"]),
        ("[node]\nname = 'Röntgen 1'", ["node.name", "small letters"]),
        ("[node]\nuid_root = '1.2.x'", ["node.uid_root = '1.2.x'", "digits and dots"]),
        ("[node]\ntimezone = 'Europe/Berln'", ["node.timezone = 'Europe/Berln'", "Europe/Berlin"]),
        ("[segmenter]\nengines = ['tensorflow']", ["segmenter.engines[1] = 'tensorflow'", "'openvino bfloat16'"]),
        ("[segmenter]\nengines = ['openvino float16']", ["segmenter.engines[1]", "'torch float16'"]),
        (
            "[segmenter]\nbackends = ['torch']",
            ["segmenter.backends: is now `segmenter.engines`", 'write engines = ["openvino"'],
        ),
        ("[segmenter]\ncertificate_dice = 1.1", ["segmenter.certificate_dice = 1.1", "less than or equal to 1"]),
        ("[segmenter]\ncertificate_dice = 0.0", ["segmenter.certificate_dice = 0.0", "than or equal to 0.9"]),
        ("[segmenter]\ncertificate_volume_percent = 11", ["segmenter.certificate_volume_percent", "equal to 10"]),
        ("[segmenter]\ncertificate_volume_percent = -1", ["segmenter.certificate_volume_percent", "per cent"]),
        ("[[peer]]\nname = 'a'\nae_title = 'A'", ["peer[1].addresses", "is missing", "CIDR"]),
        ("[[peer]]\nname = 'a'\nae_title = 'A'\naddresses = ['10.0.0.1/8']", ["peer[1].addresses[1]", "10.1.2.0/24"]),
        (
            "[[rule]]\nname = 'r'\nmodel = 'm'\nwhen = [{field = 'Modality', op = '==', value = 1}]",
            ["rule[1].when[1].op"],
        ),
        (
            "[[rule]]\nname = 'r'\nmodel = 'm'\nwhen = [{field = 'Modality', op = 'eq', value = {a = 1}}]",
            ["when[1].value"],
        ),
        (
            "[[rule]]\nname = 'r'\nmodel = 'm'\ndestinations = ['pacs']",
            ["rule 'r'", "destinations", "'pacs'", "not configured"],
        ),
        (WHOLE.replace('["pacs"]', '["pcs"]'), ["'pcs'", "did you mean 'pacs'"]),
        (WHOLE.replace('senders = ["ct1"]', 'senders = ["ct2"]'), ["rule 'stat': senders", "did you mean 'ct1'"]),
        (WHOLE + "[[peer]]\nname = 'ct1'\nae_title = 'X'\naddresses = ['::1']", ["[[peer]] name = 'ct1' stands twice"]),
        ("[node", ["not TOML", "end of document"]),
        ("[node]\nname = 'a'\nname = 'b'", ["line 3: the key name stands twice"]),
        ("[node]\nname = 'a'\nname = 'b'\nserial = '1'", ["line 3: the key name stands twice"]),
        (_rule_on("PatientName"), ["rule 'r': condition on PatientName: patient attributes cannot be asked for"]),
        (_rule_on("SeriesDescripton"), ["rule 'r'", "did you mean 'SeriesDescription'"]),
        (_rule_on("n_slice"), ["did you mean 'n_slices'"]),
        (_rule_on("AccessionNumber"), ["may say who somebody is"]),
        ("[monitor]\nworker_port = 9821\nlistener_port = 9821", ["monitor.listener_port and monitor.worker_port"]),
        ("[listener]\nport = 9322", ["monitor.worker_port and listener.port are both 9322"]),
    ],
)
def test_a_refusal_names_file_key_value_and_mend(text: str, words: list[str]) -> None:
    said = refused(text)
    assert said.startswith(str(FILE))
    for word in words:
        assert word in said


def test_one_line_for_each_fault_and_no_line_twice() -> None:
    said = refused("[node]\nname = 'X Y'\n[[rule]]\nname='r'\nmodel='m'\nwhen=[{field='M', op='eq', value={a=1}}]")
    assert [line.split(" = ")[0] for line in said.splitlines()] == [
        f"{FILE}: node.name",
        f"{FILE}: rule[1].when[1].value",
    ]


def test_a_hostile_expression_is_refused_when_the_file_is_read() -> None:
    """ASM-54: an invalid rule is refused at load."""
    said = refused(
        "[[rule]]\nname = 'r'\nmodel = 'm'\nwhen = [{field = 'SeriesDescription', op = 'regex', value = '(a'}]"
    )
    assert str(FILE) in said
    assert said.endswith("not an expression that RE2 knows: missing ): (a")


def test_a_planted_secret_is_in_no_message_and_no_dump() -> None:
    """SEC-13: there is no key for a secret; one that is written all the same is not repeated."""
    assert "hunter2" not in refused("[node]\npassword = 'hunter2'")
    assert "hunter2" not in refused("[node.api_token]\nvalue = 'hunter2'")
    assert "hunter2" not in str(settings().dump())


def test_a_value_under_a_secret_word_is_blacked_out_in_messages_and_dumps() -> None:
    """SEC-13, for keys to come: the name of a secret's file may be shown, a secret never."""

    class Later(BaseModel):
        private_key: int

    with pytest.raises(ValidationError) as caught:
        Later.model_validate({"private_key": "hunter2"})
    (said,) = complaints(FILE, Later, caught.value)
    assert "private_key = (not shown)" in said
    assert "hunter2" not in said
    shown = redacted("", {"tls": [{"private_key": "hunter2", "private_key_file": "/etc/key.pem"}]})
    assert shown == {"tls": [{"private_key": "***", "private_key_file": "/etc/key.pem"}]}


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: there is no such file; `hilum init`"):
        load_settings(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b'[node]\nname = "\xe4"\n')
    with pytest.raises(ConfigError, match=r"latin\.toml: cannot be read"):
        load_settings(tmp_path / "latin.toml")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        settings().node.name = "other"


def test_the_digest_covers_what_changes_results_and_nothing_else() -> None:
    """RES-20: same input and configuration, same UID; a changed configuration, another one."""
    digest = settings().config_digest("table")
    assert digest == settings().config_digest("table")
    assert digest == settings(WHOLE.replace("port = 104", "port = 105")).config_digest("table")
    assert digest == settings(WHOLE + "[segmenter]\nthreads = 2\n").config_digest("table")
    assert digest != settings().config_digest("another table")
    for change in ('serial = "18"', 'serial = "17"\nresearch_use = false', 'serial = "17"\nuid_root = "1.2.3"'):
        assert digest != settings(WHOLE.replace('serial = "17"', change)).config_digest("table")


def test_the_shipped_example_loads_as_it_is_and_with_every_hint_taken() -> None:
    text = (SHIPPED_CONFIG / "node.toml").read_text(encoding="utf-8")
    assert settings(text).rules()[0].model == "hippocampus-mr"
    whole = settings(re.sub(r"^# (?=\[\[|[a-z_0-9]+ = )", "", text, flags=re.MULTILINE))
    assert [peer.name for peer in whole.peer] == ["ct1"]
    assert [destination.name for destination in whole.destination] == ["pacs"]
    default = settings("")
    for section in ("completion", "spool", "monitor", "segmenter"):
        assert getattr(whole, section) == getattr(default, section), "a line behind # shows the default"


# docs/configure.md holds a table of every key. Written again with HILUM_WRITE_DOCS=1, compared otherwise.


def sections(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                repeated = candidate is not field.annotation
                heading = f"`{name}` of {prefix}" if prefix else (f"[[{name}]]" if repeated else f"[{name}]")
                yield heading, candidate
                yield from sections(candidate, heading)


def kind(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return ""
    inner = [kind(part) for part in getattr(annotation, "__args__", ()) if part is not Ellipsis]
    name = str(getattr(annotation, "__name__", annotation))
    if str(annotation).startswith("typing.Literal"):
        return " or ".join(f'"{part}"' for part in annotation.__args__)
    if name == "Annotated" or str(annotation).startswith("typing.Annotated"):
        return kind(annotation.__origin__)
    if name == "tuple":
        return f"list of {inner[0] if len(set(inner)) == 1 else ' or '.join(dict.fromkeys(inner))}"
    if inner:
        return " or ".join(dict.fromkeys(part for part in inner if part))
    words = {"str": "text", "bool": "true or false", "int": "whole number", "float": "number", "Path": "path"}
    return words.get(name, "table")


def toml(value: Any) -> str:
    if value is PydanticUndefined:
        return "*needed*"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, str | Path):
        return f'`"{value}"`'
    return "" if value is None else f"`{value}`"


def reference() -> str:
    lines = []
    for heading, model in sections():
        meaning = (model.__doc__ or "").partition(": ")[2].strip()
        lines += ["", f"### {heading}", "", f"{meaning[:1].upper()}{meaning[1:]}", ""]
        lines += ["| key | holds | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            cells = (f"`{name}`", kind(field.annotation), toml(field.default), str(field.description))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).strip() + "\n"


def test_the_documentation_names_every_derived_fact() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [fact for fact in FACTS if f"`{fact}`" not in text] == []


def test_the_documentation_lists_every_key_as_it_is() -> None:
    before, mark, rest = DOCS.read_text(encoding="utf-8").partition("<!-- every key: begin -->\n")
    shown, end, after = rest.partition("<!-- every key: end -->")
    assert mark
    assert end
    if os.environ.get("HILUM_WRITE_DOCS"):
        DOCS.write_text(f"{before}{mark}{reference()}{end}{after}", encoding="utf-8")
    else:
        assert shown == reference(), "run again with HILUM_WRITE_DOCS=1"
