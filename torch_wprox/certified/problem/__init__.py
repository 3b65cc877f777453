"""The problem of one step of a layer.

Its particles, what moving them costs, and the loss as a function of the layer's output.
"""
