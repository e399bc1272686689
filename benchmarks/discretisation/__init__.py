"""Discretisations of the reverse SDE on data that are not Gaussian."""
