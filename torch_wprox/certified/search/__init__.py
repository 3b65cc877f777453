"""From the relaxed step to m particles: rounding, local search over cells, exchange of anchors."""
