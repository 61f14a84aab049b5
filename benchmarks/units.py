"""Times as multiples of what one step of ordinary training costs, without the step."""

UNIT = "forward+backward"


def in_units(benchmark, ratios):
    """Every competitor's time as a multiple of one forward+backward pass, kept in the benchmark's extra_info."""
    unit = ratios[UNIT]
    multiples = {"ours": 1 / unit, **{name: ratio / unit for name, ratio in ratios.items()}}
    benchmark.extra_info["multiples"] = multiples
    return multiples
