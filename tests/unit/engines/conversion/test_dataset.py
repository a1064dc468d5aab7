"""dataset.json: labels, regions and channels as nnU-Net means them; what collides is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from engines.conversion.dataset import Labels, read_labels
from engines.errors import BundleError

TUMOUR = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "liver": 1, "spleen": 1}, "liver 1, spleen 1: .* without gap or repetition"),
        ({"background": 0, "liver": 2}, "without gap or repetition"),
        ({"background": 0, "air": 0, "liver": 1}, "without gap or repetition"),
        ({"background": 1, "liver": 0}, "`background` must be there and be 0"),
        ({"background": [0, 1], "liver": 2}, "`background` must be there and be 0"),
        ({"liver": 0}, "`background`"),
        ({"background": 0}, "none but background"),
        ({"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order: None is not a list of labels"),
        ({"background": 0, "whole": [], "core": 2}, r"whole: \[\] is neither"),
        ({"background": 0, "whole": [1, "x"], "core": 2}, "whole: .* is neither"),
        ({"background": 0, "liver": 1, "ignore": 5}, "must be one label"),
        ({"background": 0, "liver": 1, "ignore": [2, 3]}, "must be one label"),
        ({"background": 0, "liver": True}, "neither a whole number nor a list"),
        ({"background": 0, "liver": -1}, "neither a whole number nor a list"),
    ],
)
def test_labels_refused(dataset: dict[str, Any], labels: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_labels(dataset | {"labels": labels})


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 2], "has 2 entries, but there are 3 regions"),
        ([1, 2, 3, 4], "has 4 entries, but there are 3 regions"),
        ([1, 2, 2], "two regions paint one label"),
        ([0, 1, 2], "is not a list of labels"),
        ("123", "is not a list of labels"),
    ],
)
def test_regions_whose_order_does_not_fit_are_refused(dataset: dict[str, Any], order: object, message: str) -> None:
    with pytest.raises(BundleError, match=f"regions_class_order: .*{message}"):
        read_labels(dataset | {"labels": TUMOUR, "regions_class_order": order})


def test_a_list_of_one_label_is_that_label(dataset: dict[str, Any]) -> None:
    """nnU-Net then trains no regions, whatever order is given."""
    given = {"labels": {"background": 0, "liver": [2], "spleen": 1}, "regions_class_order": [1, 2]}
    labels = read_labels(dataset | given)
    assert labels.names == {2: "liver", 1: "spleen"}
    assert (labels.regions, labels.outputs, labels.foreground) == ((), 3, (1, 2))


def test_a_painted_label_is_not_called_by_the_name_of_its_region(dataset: dict[str, Any]) -> None:
    """What later regions paint over is left of a region, and a name of the whole would be false."""
    labels = read_labels(dataset | {"labels": TUMOUR, "regions_class_order": [1, 2, 3]})
    assert labels.names == {
        1: "whole tumor without tumor core and enhancing tumor",
        2: "tumor core without enhancing tumor",
        3: "enhancing tumor",
    }
    assert (labels.outputs, labels.region_order, labels.foreground) == (3, (1, 2, 3), (1, 2, 3))


def test_a_region_that_nothing_is_painted_over_keeps_its_name(dataset: dict[str, Any]) -> None:
    listed = {"background": 0, "kidneys": [1, 2], "liver": [3, 4], "cyst": 2}
    labels = read_labels(dataset | {"labels": listed, "regions_class_order": [5, 6, 2]})
    assert labels.names == {5: "kidneys without cyst", 6: "liver", 2: "cyst"}
    assert labels.foreground == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "background", [{"background": 0}, {"background": 0, "air": [0]}, {"background": 0, "a": [0, 0]}]
)
def test_a_region_of_background_alone_is_none(dataset: dict[str, Any], background: dict[str, Any]) -> None:
    listed = {**background, "whole": [1, 2], "core": [2], "ignore": 3}
    labels = read_labels(dataset | {"labels": listed, "regions_class_order": [1, 2]})
    assert [region.name for region in labels.regions] == ["whole", "core"]
    assert labels.ignore_label == 3


def test_labels_are_renamed(dataset: dict[str, Any]) -> None:
    labels = read_labels(dataset | {"labels": TUMOUR, "regions_class_order": [1, 2, 3]})
    assert labels.renamed({1: "oedema", 2: "necrosis"}).names == {1: "oedema", 2: "necrosis", 3: "enhancing tumor"}
    with pytest.raises(BundleError, match=r"--label-name\): 7 is no label of the model; known: 1 whole"):
        labels.renamed({7: "oedema"})
    with pytest.raises(BundleError, match="another label has that name"):
        labels.renamed({1: "enhancing tumor"})
    assert Labels({1: "a", 2: "b"}).renamed({1: "b", 2: "a"}).names == {1: "b", 2: "a"}


@pytest.mark.parametrize("channels", [{}, {"1": "CT"}, {"0": "CT", "2": "PET"}, {"0": "CT", "a": "PET"}])
def test_channels_are_numbered_from_0(dataset: dict[str, Any], channels: dict[str, str]) -> None:
    with pytest.raises(BundleError, match=r"channel_names: .*numbered from 0"):
        read_labels(dataset | {"channel_names": channels})


def test_channels_stand_in_their_order(dataset: dict[str, Any]) -> None:
    named = {str(index): f"image {index}" for index in reversed(range(11))}
    assert read_labels(dataset | {"channel_names": named}).channels == tuple(f"image {n}" for n in range(11))
