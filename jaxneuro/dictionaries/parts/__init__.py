# SPDX-License-Identifier: Apache-2.0
"""The pieces that dictionary methods are products of: a starting point, a scale, a sparse product, losses, a decoder
constraint, counters of silence, an optimiser. Each a few lines, each pure."""
