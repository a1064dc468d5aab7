"""Which frames of a series belong together: hard keys split always, conditional ones where positions collide."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from node.domain.instance import SourceFrame
from node.domain.planes import SAME_POSITION_MM, axes_of, orientation_fault, positions_of

_ORIENTATION_OFF = 1e-3
_SPACING_OFF = 1e-3
_MOST_KEYS = 3
_FILLED = 0.7
"""A group may lack this share of the positions between its ends, at most, to look like a scan of its own."""

_MEANINGS: Mapping[str, Mapping[str, str]] = {
    "pixels": {"ORIGINAL": "ORIGINAL", "DERIVED": "DERIVED"},
    "localizer": {"LOCALIZER": "LOCALIZER", "SCOUT": "LOCALIZER", "SURVEY": "LOCALIZER", "TOPOGRAM": "LOCALIZER"},
    "projection": {
        **dict.fromkeys(("MIP", "MINIP", "MAX_IP", "MIN_IP", "MAXIP", "PROJECTION IMAGE", "PROJECTION"), "PROJECTION"),
        **dict.fromkeys(("MPR", "CPR", "CURVED", "MEAN_IP", "VOLREN", "VOLUME_RENDER"), "MPR"),
    },
    "dixon": {
        **dict.fromkeys(("W", "WATER", "DIXON_W"), "WATER"),
        **dict.fromkeys(("F", "FAT", "DIXON_F"), "FAT"),
        **dict.fromkeys(("IP", "IN_PHASE", "INPHASE", "IN-PHASE"), "IN_PHASE"),
        **dict.fromkeys(("OP", "OPP_PHASE", "OUT_PHASE", "OPPOSED_PHASE", "OUTPHASE", "OUT-PHASE"), "OPPOSED_PHASE"),
        **dict.fromkeys(("FF", "FAT_FRACTION", "FATFRACTION"), "FAT_FRACTION"),
    },
    "component": {
        **dict.fromkeys(("M", "MAGNITUDE", "M_FFE", "M_SE", "M_IR", "M_PCA"), "MAGNITUDE"),
        **dict.fromkeys(("P", "PHASE", "PHASE MAP", "P_FFE", "VELOCITY MAP"), "PHASE"),
        **dict.fromkeys(("R", "REAL", "R_IR"), "REAL"),
        **dict.fromkeys(("I", "IMAGINARY"), "IMAGINARY"),
    },
    "map": {
        **dict.fromkeys(("ADC", "ADC_UNSPECIFIED", "EADC", "EXP"), "ADC"),
        **dict.fromkeys(("TRACE", "TRACEW", "ISOTROPIC"), "TRACE"),
        **dict.fromkeys(("FA", "COLFA", "FRACTIONAL_ANISO"), "FA"),
        **dict.fromkeys(("T1 MAP", "T2 MAP", "T2_STAR MAP", "PERFUSION", "RCBV", "RCBF", "MTT", "TTP"), "QUANTITY"),
    },
}
"""Tokens of ImageType and Frame Type by what they say; vendors order values beyond the third as they like (ASM-14)."""

_CT_ONLY_FIRST_TWO = frozenset({"dixon", "component", "map"})


def image_meaning(source: SourceFrame) -> dict[str, str]:
    """What ImageType says that keeps images apart, by kind: `component` -> `PHASE`, `projection` -> `MIP`, ..."""
    found: dict[str, set[str]] = defaultdict(set)
    tokens = {*source.frame.image_type, *source.header.image_type}
    if source.frame.image_type and source.frame.image_type != source.header.image_type:
        # A frame type of its own is nearer than MIXED of the object.
        tokens = set(source.frame.image_type)
    for kind, words in _MEANINGS.items():
        if source.header.modality != "MR" and kind in _CT_ONLY_FIRST_TWO:
            continue
        found[kind].update(words[token] for token in tokens if token in words)
    component = source.frame.complex_component
    if source.header.modality == "MR" and component in ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY"):
        found["component"] = {component}
    return {kind: "+".join(sorted(words)) for kind, words in found.items() if words}


@dataclass(frozen=True)
class Part:
    """Frames that share every hard key."""

    frames: tuple[SourceFrame, ...]
    keys: Mapping[str, str]
    """The keys in which the parts of this series differ, as text."""


def hard_parts(frames: Sequence[SourceFrame]) -> tuple[Part, ...]:
    """Split by the keys that always split (ASM-11 to ASM-14). Frames have orientation and pixel spacing."""
    orientations = _near([source.frame.orientation or () for source in frames], _ORIENTATION_OFF, relative=False)
    spacings = _near([source.frame.pixel_spacing_mm or () for source in frames], _SPACING_OFF, relative=True)
    named = [
        {**_exact(source), "ImageOrientationPatient": orientations[n], "PixelSpacing": spacings[n]}
        for n, source in enumerate(frames)
    ]
    groups: dict[tuple[tuple[str, str], ...], list[SourceFrame]] = defaultdict(list)
    for source, keys in zip(frames, named, strict=True):
        groups[tuple(sorted(keys.items()))].append(source)
    told = {name for name in (named[0] if named else ()) if len({keys[name] for keys in named}) > 1}
    return tuple(
        Part(tuple(groups[key]), {name: value for name, value in key if name in told}) for key in sorted(groups)
    )


def _exact(source: SourceFrame) -> dict[str, str]:
    header = source.header
    return {
        "SOPClassUID": header.sop_class_uid,
        "Rows": str(header.rows),
        "Columns": str(header.columns),
        "SamplesPerPixel": str(header.samples_per_pixel),
        "FrameOfReferenceUID": header.frame_of_reference_uid,
        "Modality": header.modality,
        "ImageType": " ".join(word for _, word in sorted(image_meaning(source).items())),
    }


def _near(vectors: Sequence[Sequence[float]], tolerance: float, relative: bool) -> list[str]:
    """A text for each vector; the same for vectors that differ by no more than the tolerance from the first of theirs.

    Seeds are taken in sorted order, so that the order of arrival decides nothing.
    """
    seeds: list[tuple[float, ...]] = []
    label: dict[tuple[float, ...], str] = {}
    for vector in sorted({tuple(vector) for vector in vectors}):
        for seed in seeds:
            scale = max(abs(x) for x in seed) if relative else 1.0
            if max(abs(a - b) for a, b in zip(vector, seed, strict=True)) <= tolerance * scale:
                label[vector] = label[seed]
                break
        else:
            seeds.append(vector)
            label[vector] = "\\".join(f"{value:.6g}" for value in vector)
    return [label[tuple(vector)] for vector in vectors]


# Conditional keys

Labels = Sequence[str]


def position_numbers(frames: Sequence[SourceFrame]) -> list[int]:
    """For each frame the number of its place along the normal; frames in one place share it."""
    distances = positions_of(frames) @ axes_of(frames)[2]
    order = np.argsort(distances, kind="stable")
    steps = np.diff(distances[order]) > SAME_POSITION_MM
    numbers = np.empty(len(frames), dtype=np.int64)
    numbers[order] = np.concatenate(([0], np.cumsum(steps)))
    return [int(n) for n in numbers]


def slices_of(sources: Sequence[SourceFrame], frames: Sequence[SourceFrame]) -> tuple[SourceFrame, ...]:
    """Of frames that cannot be used, those that would be slices of these: same hard keys, and a place of its own.

    Of one that does not say where it lies, whether nothing that it does say speaks against it.
    """
    first = frames[0]
    placed = [source for source in sources if _is_placed(source) and len(hard_parts((first, source))) == 1]
    places = position_numbers((*frames, *placed))
    taken = set(places[: len(frames)])
    lacking = [source for source, place in zip(placed, places[len(frames) :], strict=True) if place not in taken]
    return (*lacking, *(source for source in sources if not _is_placed(source) and _may_belong_to(source, first)))


def _is_placed(source: SourceFrame) -> bool:
    frame = source.frame
    return frame.position_mm is not None and frame.pixel_spacing_mm is not None and not orientation_fault(frame)


def _may_belong_to(source: SourceFrame, other: SourceFrame) -> bool:
    mine, theirs = _exact(source), _exact(other)
    return all(mine[name] in ("", "0", theirs[name]) for name in mine if name != "ImageType")


def separate(part: Part) -> tuple[Part, ...] | None:
    """Split where positions collide, by the smallest set of conditional keys that leaves none; None where none does."""
    places = position_numbers(part.frames)
    most = max(Counter(places).values())
    if most == 1:
        return (part,)
    candidates = [(name, labels) for name, labels in conditional_keys(part.frames, most) if len(set(labels)) > 1]
    for size in range(1, _MOST_KEYS + 1):
        for chosen in combinations(candidates, size):
            groups = _grouped(places, [labels for _, labels in chosen])
            if _is_separation(groups, most):
                return tuple(_subpart(part, chosen, key, members) for key, members in sorted(groups.items()))
    return None


def _grouped(places: Sequence[int], columns: Sequence[Labels]) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Frames by their labels, each as (index, place)."""
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for index, place in enumerate(places):
        groups[tuple(labels[index] for labels in columns)].append((index, place))
    return groups


def _is_separation(groups: Mapping[tuple[str, ...], Sequence[tuple[int, int]]], most: int) -> bool:
    """Whether every place is single in every group, and the groups are scans rather than scattered frames.

    A value that changes from slice to slice (tube current, trigger time) makes places unique too, but not scans.
    """
    for members in groups.values():
        if len({place for _, place in members}) != len(members):
            return False
    if len(groups) == most:
        return True
    return all(_looks_like_scan([place for _, place in members]) for members in groups.values())


def _looks_like_scan(places: Sequence[int]) -> bool:
    return len(places) >= 3 and len(places) >= _FILLED * (max(places) - min(places) + 1)


def _subpart(
    part: Part, chosen: Sequence[tuple[str, Labels]], key: tuple[str, ...], members: Sequence[tuple[int, int]]
) -> Part:
    names = {name: value for (name, _), value in zip(chosen, key, strict=True)}
    return Part(tuple(part.frames[index] for index, _ in members), {**part.keys, **names})


def conditional_keys(frames: Sequence[SourceFrame], most: int) -> Iterator[tuple[str, Labels]]:
    """Keys in the order in which they are tried (ASM-15 to ASM-21), each with a label for every frame.

    AcquisitionNumber is the last but one, as one scan often has many; clusters of the acquisition time are the last.
    Times are cut into as many clusters as frames share a place, so that a time of each slice splits nothing.
    """
    for name, read, tolerance in _NUMBERS:
        yield name, _clusters([read(source) for source in frames], tolerance)
    for name, say in _TEXTS:
        yield name, [say(source) for source in frames]
    yield from _dimensions(frames)
    yield "TriggerTime", _time_clusters([source.frame.trigger_time for source in frames], most)
    yield "AcquisitionNumber", [source.frame.acquisition_number for source in frames]
    yield "AcquisitionTime", _time_clusters([_seconds(source.frame.acquisition_time) for source in frames], most)


_NUMBERS: tuple[tuple[str, Callable[[SourceFrame], float | None], float], ...] = (
    ("EchoTime", lambda source: source.frame.echo_time, 0.1),
    ("InversionTime", lambda source: source.frame.inversion_time, 1.0),
    ("FlipAngle", lambda source: source.frame.flip_angle, 0.1),
    ("RepetitionTime", lambda source: source.frame.repetition_time, 1.0),
    ("NominalPercentageOfCardiacPhase", lambda source: source.frame.cardiac_phase, 0.1),
    ("DiffusionBValue", lambda source: source.frame.b_value, 1.0),
    ("KVP", lambda source: source.frame.kvp, 1.0),
    ("Exposure", lambda source: source.frame.exposure, 1.0),
)


def _gradient_text(source: SourceFrame) -> str:
    gradient = source.frame.gradient
    if gradient is None or not any(gradient):
        return "none"
    # b-values go with it: two shells may share directions.
    return f"{source.frame.b_value or 0:g} " + "\\".join(f"{value + 0.0:.3f}" for value in gradient)


_TEXTS: tuple[tuple[str, Callable[[SourceFrame], str]], ...] = (
    ("EchoNumbers", lambda source: source.frame.echo_number),
    ("TemporalPosition", lambda source: source.frame.temporal_position),
    ("DiffusionGradientOrientation", _gradient_text),
    ("StackID", lambda source: source.frame.stack_id),
    ("ConvolutionKernel", lambda source: source.frame.convolution_kernel),
    ("MultienergyCT", lambda source: source.frame.energy),
    ("Contrast", lambda source: source.frame.contrast),
    ("ComplexImageComponent", lambda source: source.frame.complex_component),
    ("ReceiveCoilName", lambda source: source.frame.coil),
    ("SequenceName", lambda source: source.frame.sequence_name),
)


def _dimensions(frames: Sequence[SourceFrame]) -> Iterator[tuple[str, Labels]]:
    """Each column of DimensionIndexValues, where all frames have as many (ASM-19, PS3.3 C.7.6.17)."""
    widths = {len(source.frame.dimension_index) for source in frames}
    if len(widths) != 1:
        return
    for column in range(widths.pop()):
        yield f"DimensionIndexValues[{column + 1}]", [str(source.frame.dimension_index[column]) for source in frames]


def _clusters(values: Sequence[float | None], tolerance: float) -> list[str]:
    """A text for each value; values in one chain of differences up to the tolerance share it."""
    label: dict[float, str] = {}
    previous: float | None = None
    for value in sorted({value for value in values if value is not None}):
        label[value] = label[previous] if previous is not None and value - previous <= tolerance else f"{value:g}"
        previous = value
    return ["absent" if value is None else label[value] for value in values]


def _time_clusters(values: Sequence[float | None], count: int) -> list[str]:
    """A text for each time; the widest `count - 1` pauses cut the times into clusters."""
    known = sorted({value for value in values if value is not None})
    if len(known) < count:
        return ["" for _ in values]
    widest = sorted(range(1, len(known)), key=lambda n: (known[n - 1] - known[n], n))[: count - 1]
    starts = [known[0], *(known[n] for n in sorted(widest))]
    return ["absent" if value is None else f"{max(s for s in starts if s <= value):.3f}" for value in values]


def _seconds(text: str) -> float | None:
    """Seconds of a TM or DT value: `hhmmss.ffffff`, with a date before it or not (PS3.5 6.2)."""
    digits = text.partition("+")[0].partition("-")[0].replace(":", "")
    whole, _, fraction = digits.partition(".")
    if not whole.isdigit() or len(whole) not in (6, 14) or (fraction and not fraction.isdigit()):
        return None
    clock = whole[-6:]
    day = int(whole[6:8]) if len(whole) == 14 else 0
    return day * 86400 + int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + int(clock[4:]) + float(f"0.{fraction or 0}")


def condition_text(source: SourceFrame) -> tuple[str, ...]:
    """Every conditional value of a frame, for telling a frame sent twice from another one of equal pixels."""
    return (
        *(str(read(source)) for _, read, _ in _NUMBERS),
        *(say(source) for _, say in _TEXTS),
        str(source.frame.trigger_time),
    )
