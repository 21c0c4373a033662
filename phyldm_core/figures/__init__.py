"""One house look, and the figures drawn in it: ``from phyldm_core import figures`` has what a chapter needs."""

from ..slices import MAPS
from .architecture import architecture
from .cohorts import anatomies, protocol_shares
from .curves import CORE_BAND, agreement, studies, tissue_histograms, training_curves
from .grids import T1W_WHITE, Panel, compared_maps, inference, map_grid, mosaic, samples, unseen
from .networks import diffusion_training, errors_by_scans, follows_the_person
from .signals import csf_t2, effective_echo_time, flair_nulls, null_points, sensitivity, signal_curves
from .style import (
    FIGURE_WIDTH,
    NO_VALUE,
    QUANTITIES,
    TISSUE_COLOURS,
    colour_bar,
    percentile_window,
    relaxation_norm,
    save_figure,
    show_image,
    show_map,
    symbol,
    to_png,
    to_rgb,
    use_house_style,
)

__all__ = [
    "FIGURE_WIDTH", "MAPS", "NO_VALUE", "QUANTITIES", "TISSUE_COLOURS", "colour_bar", "percentile_window",
    "relaxation_norm", "save_figure", "show_image", "show_map", "symbol", "to_png", "to_rgb", "use_house_style",
    "T1W_WHITE", "Panel", "compared_maps", "map_grid", "mosaic", "inference", "samples", "unseen",
    "CORE_BAND", "agreement", "studies", "tissue_histograms", "training_curves",
    "anatomies", "protocol_shares", "diffusion_training", "errors_by_scans", "follows_the_person",
    "csf_t2", "effective_echo_time", "flair_nulls", "null_points", "sensitivity", "signal_curves",
    "architecture",
]  # fmt: skip
