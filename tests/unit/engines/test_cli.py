"""hilum-models, command by command."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.backends.base import Placement
from engines.cli import main
from engines.commands import verifying
from engines.commands.writing import writing
from engines.errors import EngineError
from engines.model.bundle import Bundle, load_bundle
from engines.model.certificate import (
    REFERENCE_LIMITS,
    EngineKey,
    LabelAgreement,
    Turned,
    VolumeAgreement,
    certificates_path,
    certify,
    parity_folder,
    read_records,
)
from engines.nifti import read_label_map, write_label_map, write_volume
from engines.volume import Grid, LabelMap, Volume


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    voxels = np.random.default_rng(0).standard_normal((6, 8, 8)).astype(np.float32)
    path = tmp_path / "images/one.nii.gz"
    write_volume(path, Volume(Grid((6, 8, 8), np.eye(4)), voxels, "MR"))
    return path


def test_import(results: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "figures.json").write_text('{"dice": 0.87}')
    out = tmp_path / "bundle"
    options = f"--out {out} --name unit --version 1.0 --modality MR --card {card} --orientation SPL --min-slices 12"
    options += f" --min-extent-mm 10 20 30 --unreported spleen --evaluation {tmp_path}/figures.json --json"
    assert main(["import", str(results), *options.split()]) == 0
    described = json.loads(capsys.readouterr().out)
    bundle = load_bundle(out)
    assert described["digest"] == bundle.digest
    assert bundle.limits.min_slices == 12
    assert bundle.limits.min_extent_mm == (10.0, 20.0, 30.0)
    assert bundle.unreported == (2,)
    assert bundle.evaluation == {"dice": 0.87}


def test_import_says_that_flips_were_left_out(
    results: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"--out {tmp_path}/b --name unit --version 1 --modality MR --card {card} --orientation any".split()
    assert main(["import", str(results), *options]) == 0
    assert "nnUNetv2_predict averages over flips by default" in capsys.readouterr().err
    options[1] = f"{tmp_path}/c"
    assert main(["import", str(results), *options, "--mirroring"]) == 0
    assert "flips" not in capsys.readouterr().err


def test_import_says_which_labels_have_no_code(
    results: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"--out {tmp_path}/b --name unit --version 1 --modality MR --card {card} --orientation any".split()
    arguments = ["import", str(results), *options, "--label-name", "2=left cyst", "--label-name", "1=spleen"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "No code yet for: left cyst." in said.err
    assert "models.segments" in said.err
    assert dict(load_bundle(tmp_path / "b").labels) == {1: "spleen", 2: "left cyst"}
    assert main(["show", str(tmp_path / "b"), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["coded"], described["uncoded"]) == ({"spleen": "Spleen"}, ["left cyst"])
    arguments[arguments.index(f"{tmp_path}/b")] = f"{tmp_path}/c"
    assert main([*arguments, "--unreported", "left cyst"]) == 0
    assert "No code" not in capsys.readouterr().err


@pytest.mark.parametrize("told", ["spleen", "a=spleen", "1="])
def test_label_name_is_a_number_and_a_name(
    results: Path, card: Path, tmp_path: Path, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"--out {tmp_path}/b --name unit --version 1 --modality MR --card {card}".split()
    with pytest.raises(SystemExit):
        main(["import", str(results), *options, "--label-name", told])
    assert "is not NUMBER=NAME" in capsys.readouterr().err


def test_import_without_orientation_is_refused(
    results: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"--out {tmp_path}/b --name unit --version 1 --modality MR --card {card}".split()
    assert main(["import", str(results), *options]) == 1
    said = capsys.readouterr().err
    assert "--orientation" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "b").exists()
    assert main(["import", str(results), *options, "--orientation", "any"]) == 0
    assert load_bundle(tmp_path / "b").orientation is None


def test_failure_is_one_line_and_status_one(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"--out {tmp_path}/b --name unit --version 1 --modality MR --card {card}".split()
    assert main(["import", str(tmp_path / "gone"), *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hilum-models: ")
    assert "dataset.json" in said
    assert said.count("\n") == 1


def test_names_of_several_words_stay_apart(
    make_bundle: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(label_names={1: "left cyst", 2: "right cyst"})
    assert main(["show", str(bundle.folder)]) == 0
    said = capsys.readouterr().out
    assert "left cyst; right cyst" in said
    assert "modalities       MR\n" in said


def test_show(make_bundle: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle()
    assert main(["show", str(bundle.folder)]) == 0
    said = capsys.readouterr().out
    assert bundle.digest in said
    assert "1 liver, 2 spleen" in said
    assert main(["show", str(bundle.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"]["torch float32"].startswith("can run")


def test_segment(
    make_bundle: Callable[..., Bundle], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.nii.gz"
    arguments = ["segment", str(make_bundle().folder), str(image), str(out), "--engine", "torch", "--threads", "1"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    labels = read_label_map(out, {}).labels
    assert report["volumes_ml"]["liver"] == pytest.approx(int((labels == 1).sum()) / 1000, abs=1e-3)
    assert report["backend"] == "torch"
    assert '"spleen"' in (tmp_path / "labels.label.txt").read_text()


def test_a_card_is_taken_with_a_caution(
    make_bundle: Callable[..., Bundle], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["segment", str(make_bundle().folder), str(image), str(tmp_path / "labels.nii.gz"), "--threads", "1"]
    main([*arguments, "--device", "cuda"])
    assert "torch on CUDA has never run on such a card" in capsys.readouterr().err
    main([*arguments, "--device", "cuda", "--engine", "tensorrt float16"])
    assert "TensorRT has never run on such a card" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "card" not in capsys.readouterr().err


def test_evaluate(
    make_bundle: Callable[..., Bundle], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels").mkdir()
    truth = LabelMap(Grid((6, 8, 8), np.eye(4)), np.ones((6, 8, 8), dtype=np.uint8), {1: "liver"})
    write_label_map(tmp_path / "labels/one.nii.gz", truth)
    arguments = ["evaluate", str(make_bundle().folder), "--images", str(image.parent)]
    arguments += ["--labels", str(tmp_path / "labels"), "--engine", "torch", "--threads", "1"]
    assert main([*arguments, "--json", "--out", str(tmp_path / "figures.json")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scores"][0]["true_ml"] == pytest.approx(0.384)
    assert json.loads((tmp_path / "figures.json").read_text()) == report["summary"]
    assert main(arguments) == 0
    assert "1/1 one" in capsys.readouterr().err


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Two images of 8,000 voxels, with something to see."""
    (tmp_path / "volumes").mkdir()
    for number in range(2):
        voxels = np.random.default_rng(number).standard_normal((20, 20, 20)).astype(np.float32)
        write_volume(tmp_path / f"volumes/case{number}.nii.gz", Volume(Grid((20, 20, 20), np.eye(4)), voxels, "MR"))
    return tmp_path / "volumes"


def test_verify_against_torch(
    make_bundle: Callable[..., Bundle], volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    arguments = ["verify", str(bundle.folder), "--volumes", str(volumes), "--against", "torch", "--threads", "1"]
    assert main([*arguments, "--engine", "openvino", "--limit", "1", "--keep"]) == 0
    said = capsys.readouterr()
    assert "openvino float32 (openvino 20" in said.out
    assert "passed: " in said.out
    assert "case0" in said.out
    assert "case1" not in said.out
    (made,) = read_records(certificates_path(bundle.folder)).certificates
    assert (made.key.digest, made.key.engine, made.verdict.outcome) == (bundle.digest, "openvino float32", "passed")
    assert made.number in said.out
    assert [path.name for path in parity_folder(bundle.folder).iterdir()] == ["case0.nii.gz"]

    elsewhere = tmp_path / "records.json"
    strict = [*arguments, "--engine", "openvino", "--dice", "1.1", "--out", str(elsewhere)]
    assert main([*strict, "--json"]) == 1
    (plain,) = json.loads(capsys.readouterr().out)
    assert plain["verdict"]["outcome"] == "failed"
    assert plain["limits"]["dice"] == 1.1
    assert read_records(elsewhere).certificates[0].number == plain["number"]
    assert main(strict) == 1
    assert "below 1.1" in capsys.readouterr().out


def test_verify_says_what_is_wrong_in_one_line(
    make_bundle: Callable[..., Bundle], volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(make_bundle().folder)
    for arguments, reason in (
        (["--volumes", f"{tmp_path}/none"], "no such folder of images"),
        (["--volumes", str(volumes), "--engine", "tensorflow"], "there is no such backend"),
        (["--volumes", str(volumes), "--engine", "openvino float16"], "float16"),
    ):
        assert main(["verify", bundle, "--against", "torch", *arguments]) == 1
        assert reason in capsys.readouterr().err.splitlines()[-1]


def test_nothing_to_hold_against_torch_is_no_success(
    make_bundle: Callable[..., Bundle], volumes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(make_bundle().folder), "--volumes", str(volumes), "--against", "torch"]
    assert main([*arguments, "--engine", "torch"]) == 1
    assert "nothing to hold against torch here" in capsys.readouterr().err


def test_a_turned_volume_stands_in_the_table(
    make_bundle: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    key = EngineKey("d" * 64, "torch", "float32", "torch 2", "cpu x86_64")
    labels = (LabelAgreement(1, "liver", 4000, 4000, 1.0),)
    volumes = [VolumeAgreement("a" * 64, (9, 9, 9), 1.0, labels, turned) for turned in (None, Turned("SAR", "SPL"))]
    verifying._show_certificate(certify("unit", key, "nnunetv2 2", REFERENCE_LIMITS, volumes), ["one", "two"])
    said = capsys.readouterr().out
    assert "  two                      lies SAR, was turned to SPL for both\n" in said
    assert "one                      lies" not in said


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many"])
@pytest.mark.parametrize("option", ["--limit", "--threads"])
def test_numbers_that_mean_nothing_are_refused(
    tmp_path: Path, option: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path), "--volumes", str(tmp_path), f"{option}={number}"])
    assert ended.value.code == 2
    assert f"{option}: {number!r} is not a whole number above 0" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_the_work_and_named_after_it(
    make_bundle: Callable[..., Bundle],
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, lacking = str(make_bundle().folder), tmp_path / "gone"
    labels = lacking / "labels.nii.gz"
    assert main(["segment", bundle, str(image), str(labels), "--engine", "torch", "--threads", "1"]) == 1
    assert f"{labels}: there is no folder {lacking}" in capsys.readouterr().err
    assert main(["segment", bundle, str(image), str(tmp_path / "labels.what"), "--engine", "torch"]) == 1
    assert f"{tmp_path}/labels.what: cannot be written" in capsys.readouterr().err.splitlines()[-1]
    arguments = ["evaluate", bundle, "--images", str(image.parent), "--labels", str(image.parent), "--out"]
    assert main([*arguments, str(lacking / "figures.json")]) == 1
    assert f"there is no folder {lacking}" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path)]) == 1
    assert f"{tmp_path}: is a folder" in capsys.readouterr().err


def test_a_system_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    with pytest.raises(EngineError, match=r"figures\.json: cannot be written: No space left"), writing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_bundle_whose_name_begins_with_a_hyphen_is_verified_as_usual(
    make_bundle: Callable[..., Bundle], volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder such as `-m` is a name to the program, and would be an option to a command line."""
    from engines.conversion import verification

    told: list[verification.Verification] = []
    monkeypatch.setattr(verification, "verify", lambda _bundle, _cases, demand, _tell: told.append(demand) or [])
    bundle = replace(make_bundle(), folder=Path("-m"))
    assert verifying.verified_as_usual(bundle, volumes, as_json=True) == []
    assert told == [verification.Verification(Placement.told())]
    assert main(["verify", str(make_bundle().folder), "--volumes", str(volumes)]) == 0
    assert told[1] == told[0]


def test_import_verifies_straight_after(
    results: Path, card: Path, volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against nnunetv2's own predictor; the certificates lie beside the new bundle."""
    pytest.importorskip("nnunetv2")
    out = tmp_path / "bundle"
    options = f"--out {out} --name unit --version 1.0 --modality MR --card {card} --orientation any"
    status = main(["import", str(results), *options.split(), "--volumes", str(volumes), "--json"])
    described = json.loads(capsys.readouterr().out)
    made = read_records(certificates_path(out)).certificates
    assert [each.number for each in made] == [each["number"] for each in described["certificates"]]
    assert made[0].reference.startswith("nnunetv2 ")
    assert made[0].key.digest == load_bundle(out).digest
    assert made[0].volumes[0].equal_voxels > 0.99
    assert status == int(any(each.verdict.outcome != "passed" for each in made))


def test_help_needs_no_torch() -> None:
    code = "import sys; from engines.cli import _parser; _parser().format_help(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
