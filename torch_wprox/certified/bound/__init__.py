"""The relaxed step and its dual: a lower bound that no choice of particles can beat.

In the relaxed step each particle may be spread over several positions, which makes it convex.
"""
