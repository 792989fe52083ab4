"""Which candidates deserve a look, and which durations are unusual.

A candidate's own measures are judged by themselves. Whether a duration is *unusual* depends on the whole run:
`duration_z` is computed over a finished output, within bands of text length, since short texts are spoken at
very different rates and long ones are not.
"""

import numpy as np

# Tortoise takes more than 8 silent tokens in a row (0.37 s) for the end of the speech and cuts there.
LONG_RUN = 9
REPEATED_SHARE = 0.2  # a fifth of the speech was heard before
# Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): |z| above 3.5 is an outlier.
OUTLIER_Z = 3.5
BANDS_PER_OCTAVE = 2  # of text length, within which durations are compared


def token_flags(
    finished: np.ndarray, num_tokens: np.ndarray, longest_run: np.ndarray, repeated_ngrams: np.ndarray
) -> dict[str, np.ndarray]:
    """Which candidates [k] deserve a look, whatever the rest of the run is like; bool [k] by name."""
    return {
        "unfinished": ~finished,
        "empty": num_tokens == 0,
        "long_run": longest_run >= LONG_RUN,
        "repeated": repeated_ngrams >= REPEATED_SHARE,
    }


def length_bands(characters: np.ndarray) -> np.ndarray:
    """int64 [k]: band b holds the texts of 2**(b / 2) up to 2**((b + 1) / 2) characters."""
    return np.floor(BANDS_PER_OCTAVE * np.log2(characters)).astype(np.int64)


def robust_z(values: np.ndarray) -> np.ndarray:
    """Modified z-scores [k] of Iglewicz and Hoaglin (1993): distance from the median in robust deviations."""
    if not len(values):
        return np.zeros(0)
    center = float(np.median(values))
    distances = np.abs(values - center)
    return z_scores(values, center, robust_deviation(float(np.median(distances)), float(distances.mean())))


def robust_deviation(median_distance: float, mean_distance: float) -> float:
    """The standard deviation of normal data with these median and mean distances from the median.

    The mean distance stands in where over half of the values are equal and the median distance is zero.
    """
    return median_distance / 0.674_490 if median_distance > 0 else mean_distance * 1.253_314


def z_scores(values: np.ndarray, center: float, deviation: float) -> np.ndarray:
    """Distances from the center in deviations; all zero where the data do not vary."""
    return (values - center) / deviation if deviation > 0 else np.zeros(len(values))
