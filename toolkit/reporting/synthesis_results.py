"""What `vag synthesize` says of its episodes besides: how they differ, how long they are, how they drift."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplesDiffer:
    """Mean distance between neighbouring samples of one scene, and beside it between those of neighbouring scenes.

    actions: Euclidean, in raw units, a step; pictures: absolute difference of a colour, of 255.
    """

    actions: float
    pictures: float
    actions_of_scenes: float | None = None  # of one scene, none
    pictures_of_scenes: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpisodeEnds:
    """How long the episodes are [steps]. rule: window, or sampled, of so many recorded lengths, which cut so many.

    off: mean distance to the recorded length of the same scene, where there is one; off_of_window: that of whole
    windows.
    """

    rule: str
    shortest: int
    longest: int
    cut: int | None = None
    recorded_lengths: int | None = None
    off: float | None = None
    off_of_window: float | None = None


@dataclass(frozen=True, kw_only=True)
class DriftOfClip:
    """Means over the `episodes` that reach a clip, the first of which is what the others are held against.

    at_limits: share of the numbers of states that are held at the least or largest value of the data; sharpness: mean
    difference of neighbouring pixels, and colour_shift: that of the mean colour from the first picture's, of 255. The
    others are of the `compared` episodes whose recording is long enough, each beside what the mean action of the data
    or the first picture repeated would have.
    """

    clip: int
    episodes: int
    at_limits: float
    sharpness: float
    sharpness_of_first_picture: float
    colour_shift: float
    compared: int | None = None
    action_distance: float | None = None
    action_distance_of_mean: float | None = None
    psnr: float | None = None
    psnr_of_first_picture: float | None = None
