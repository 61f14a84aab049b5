"""Times as multiples of what one step of ordinary training costs, without the step."""

UNIT = "forward+backward"


def in_units(benchmark, ratios):
    """Every competitor's time as a multiple of one forward+backward pass."""
    unit = ratios[UNIT]
    multiples = {"ours": 1 / unit, **{name: ratio / unit for name, ratio in ratios.items()}}
    benchmark.extra_info["multiples"] = multiples
    print(", ".join(f"{name} {m:.2f}" for name, m in multiples.items()))
    return multiples
