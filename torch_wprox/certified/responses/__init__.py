"""Best responses: where a particle goes under one gradient of the loss.

Exact in the plane and, for few samples, in space; searched over directions elsewhere.
"""
