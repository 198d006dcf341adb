"""Which voices belong to one person, by their voice prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Distances = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Voice:
    """A unit vector, empty when too little was heard, and the seconds that the voice speaks."""

    print: tuple[float, ...]
    seconds: float


def agglomerated(
    distances: Distances, weights: Sequence[float], *, limit: float | None, count: int | None = None
) -> list[int]:
    """A cluster number for each row of `distances` [N, N]. The two nearest clusters are joined until all are further apart than
    `limit` (None: no limit), or until `count` are left.

    Average linkage, weighted by `weights`. Rows at distance `inf` are never joined. Among equal distances the first rows are
    joined first.
    """
    distance = distances.copy()
    np.fill_diagonal(distance, np.inf)
    weight = list(weights)
    clusters = {i: [i] for i in range(len(weight))}
    while len(clusters) > (count or 0):
        kept, gone = sorted(int(place) for place in np.unravel_index(distance.argmin(), distance.shape))
        if not np.isfinite(distance[kept, gone]) or (limit is not None and distance[kept, gone] > limit):
            break
        together = weight[kept] + weight[gone]
        distance[kept] = (weight[kept] * distance[kept] + weight[gone] * distance[gone]) / together
        distance[kept, kept] = np.inf
        distance[:, kept] = distance[kept]
        distance[gone] = distance[:, gone] = np.inf
        weight[kept] = together
        clusters[kept] += clusters.pop(gone)
    numbers = {member: number for number, members in clusters.items() for member in members}
    return [numbers[i] for i in range(len(weight))]


def people(
    voices: Sequence[Voice], *, same_voice_distance: float, min_speaker_seconds: float, count: int | None = None
) -> list[int | None]:
    """A person's number for each voice; None for a voice without a print.

    Voices that speak for at least `min_speaker_seconds` found the people: they are joined by average cosine distance up to
    `same_voice_distance`, or until `count` are left. Each shorter voice joins the nearest person, because the print of a
    second or two is too unsteady to found one. Where there are fewer long voices than `count` (or none), the longest voices
    found the people.
    """
    printed = sorted((i for i, voice in enumerate(voices) if voice.print), key=lambda i: -voices[i].seconds)
    steady = sum(voices[i].seconds >= min_speaker_seconds for i in printed)
    founders, others = printed[: max(steady, count or 1)], printed[max(steady, count or 1) :]
    if not founders:
        return [None] * len(voices)
    prints = np.array([voices[i].print for i in founders])
    seconds = np.array([voices[i].seconds for i in founders])
    limit = same_voice_distance if count is None else None
    clusters = np.array(agglomerated(1.0 - prints @ prints.T, seconds.tolist(), limit=limit, count=count))
    result: list[int | None] = [None] * len(voices)
    for i, cluster in zip(founders, clusters, strict=True):
        result[i] = int(cluster)
    numbers = sorted(set(clusters.tolist()))
    centres = np.stack([mean_print(prints[clusters == number], seconds[clusters == number]) for number in numbers])
    for i in others:
        result[i] = numbers[int((centres @ np.array(voices[i].print)).argmax())]
    return result


def mean_print(prints: Distances, seconds: Distances) -> Distances:
    """The unit vector of the mean of `prints` [N, D], weighted by `seconds` [N]."""
    centre = seconds @ prints
    return centre / max(float(np.linalg.norm(centre)), 1e-12)
