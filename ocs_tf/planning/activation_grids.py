"""Quantization grids of activations and their split channels, from calibration statistics."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

from ocs_tf.config import Config
from ocs_tf.graph.analysis.activation_sites import Site, fixed_grid
from ocs_tf.graph.analysis.divisors import divisors
from ocs_tf.graph.reader import Graph
from ocs_tf.numerics import ActivationGrid, OracleGrid, code_limit, copy_count
from ocs_tf.numerics.activation_clipping import regression_range
from ocs_tf.numerics.activation_splitting import (
    copies_by_count,
    copies_by_error,
    copies_by_maximum,
    outlier_counts,
)
from ocs_tf.numerics.grid import code_counts
from ocs_tf.planning.calibration import ChannelStatistics, Statistics

_WITHOUT_CHANNELS = "mse"  # the clip method in place of a regression of each channel
_FEWEST_STEPS = 4  # of the smallest divisor that is rounded


def activation_grids(
    sites: Sequence[Site],
    statistics: Mapping[str, Statistics],
    config: Config,
    bits: Mapping[str, int],
    split: Collection[str] = (),
    tables: Mapping[str, ActivationGrid] | None = None,
) -> dict[str, ActivationGrid | OracleGrid]:
    """A grid for every site, one for all sites of a group.

    Arguments:
        statistics: of all sites but those with a `fixed` function, by key; of channels, too, where
            these are going to be split, or clipped by regression.
        split: keys of the sites whose channels are going to be split, each alone in its group.
        tables: grids of the lookups whose output is on that of their table.
    """
    by_group: dict[str, list[Statistics]] = {}
    widths = {site.group: bits[site.key] for site in sites}
    for site in sites:
        if not site.fixed:
            by_group.setdefault(site.group, []).append(statistics[site.key])
    groups = {site.group for site in sites if site.key in split}
    grids = {
        group: _split_grid(seen[0], config, widths[group])
        if group in groups
        else _shared_grid(seen, config, widths[group])
        for group, seen in by_group.items()
    }
    prescribed = {
        site.key: fixed_grid(site.fixed, bits[site.key])
        for site in sites
        if site.fixed not in (None, "lookup")
    }
    prescribed |= {s.key: tables[s.key] for s in sites if tables and s.key in tables}
    return {s.key: prescribed.get(s.key) or grids[s.group] for s in sites}


def vanishing_divisors(
    graph: Graph,
    sites: Sequence[Site],
    statistics: Mapping[str, Statistics],
    grids: Mapping[str, ActivationGrid | OracleGrid],
) -> list[str]:
    """Keys of the sites of divisors of which some would be rounded to 0: they stay in float.

    The quantized model's are not quite those that were measured.
    """
    found = divisors(graph)
    keys = []
    for site in sites:
        grid = grids[site.key]
        if not isinstance(grid, ActivationGrid) or not site.is_output:
            continue
        seen = statistics.get(site.key)  # not of a prescribed grid, which reaches 0
        low, high = (0.0, 0.0) if seen is None else (seen.minimum, seen.maximum)
        margin = _FEWEST_STEPS * grid.scale
        near = low < margin and high > -margin
        if near and any(id(tensor) in found for tensor in site.tensors):
            keys.append(site.key)
    return keys


def _shared_grid(seen: Sequence[Statistics], config: Config, bits: int) -> ActivationGrid:
    """The grid that all tensors of a group share."""
    together = functools.reduce(Statistics.merge, seen)
    channels = [each.channels for each in seen if each.channels is not None]
    if clip_method(config, bits) != "regression" or len(channels) < len(seen):
        return _grid(together, config, bits)
    symmetric = _symmetric(config, bits)
    histograms = [(each.signed_counts, each.centers) for each in channels]
    low, high = regression_range(histograms, together.minimum, together.maximum, bits, symmetric)
    return ActivationGrid.from_range(low, high, bits, symmetric, config.power_of_two)


def _grid(
    seen: Statistics, config: Config, bits: int, copies: Sequence[int] = ()
) -> ActivationGrid:
    """The grid of a tensor; with `copies`, they come first and clipping second."""
    symmetric = _symmetric(config, bits)
    method = clip_method(config, bits)
    method = _WITHOUT_CHANNELS if method == "regression" else method
    low, high = seen.clip_range(bits, method, config.percentile, symmetric, copies)
    return ActivationGrid.from_range(low, high, bits, symmetric, config.power_of_two, copies)


def _split_grid(seen: Statistics, config: Config, bits: int) -> ActivationGrid | OracleGrid:
    channels = seen.channels
    assert channels is not None
    count = copy_count(config.activation_expand_ratio, len(channels.maxima))
    if config.activation_split == "oracle":
        return OracleGrid(bits, count, _symmetric(config, bits))
    if config.activation_split == "count":
        outliers = outlier_counts(channels.counts)
        copies = copies_by_count(outliers, channels.magnitudes, count)
        return _grid(seen, config, bits, copies)
    if config.activation_split == "maximum":
        return _grid(seen, config, bits, copies_by_maximum(channels.magnitudes, count))
    return _least_error_grid(channels, config, bits, count)


def _least_error_grid(
    seen: ChannelStatistics,
    config: Config,
    bits: int,
    count: int,
) -> ActivationGrid:
    """Copies and range of the least squared error."""
    symmetric = _symmetric(config, bits)
    levels: float = code_limit(bits)
    if not symmetric:
        one_sided = min(seen.minima) >= 0
        levels = 2 * levels + 1 if one_sided else levels + 0.5
    copies, threshold = copies_by_error(seen.counts, seen.width, count, levels)
    k = code_counts(copies, len(seen.maxima))
    low = max(float((seen.minima / k).min()), -threshold)
    high = min(float((seen.maxima / k).max()), threshold)
    return ActivationGrid.from_range(low, high, bits, symmetric, config.power_of_two, copies)


def clip_method(config: Config, bits: int) -> str:
    """The clip method of a tensor of this many bits."""
    if config.activation_clip != "auto":
        return config.activation_clip
    if bits >= 8:
        return "none"
    # Nearest codes do not undo the gain of clipped channels.
    return "regression" if config.rounding == "error_compensated" else _WITHOUT_CHANNELS


def _symmetric(config: Config, bits: int) -> bool:
    return config.activation_symmetric or bits == 16
