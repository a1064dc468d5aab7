"""Which labels have a row in the shipped table."""

from __future__ import annotations

from collections.abc import Callable

from engines.conversion.codes import coded_names, uncoded_labels
from engines.model.bundle import Bundle


def test_organs_have_rows_and_structures_without_a_code_of_the_standard_have_none() -> None:
    coded = coded_names()
    assert coded["Anterior"] == "Hippocampus, Anterior"  # whatever a model calls so
    assert {"liver", "lung_upper_lobe_left", "vertebrae_C1", "iliac_vena_right", "costal_cartilages"} <= set(coded)
    assert not {"rib_left_1", "autochthon_left", "kidney_cyst_left", "vertebrae_S1", "gluteus_maximus_left"} & set(
        coded
    )


def test_uncoded_labels_are_those_that_results_mention(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(label_names={1: "rib_left_1"})
    assert uncoded_labels(bundle, coded_names()) == ["rib_left_1"]
    assert uncoded_labels(make_bundle("quiet", label_names={1: "rib_left_1"}, unreported=[1]), coded_names()) == []
